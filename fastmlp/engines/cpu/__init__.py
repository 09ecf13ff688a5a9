"""The CPU engine: kernels compiled by Numba, threads of its own."""

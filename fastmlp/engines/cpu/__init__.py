"""The CPU engine: kernels compiled by Numba, run by a private pool of threads."""

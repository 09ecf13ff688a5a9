"""Kernels for NVIDIA GPUs, and the list of names in their device API: the functions and types that the kernels use.

device.py implements this API for GPUs. The tests implement it in a simulator.
"""

DEVICE_API = (
    *("WARP", "cuda", "device", "kernel", "formula"),
    *("float32", "float64", "int32", "int64", "uint32", "uint64"),
    *("load", "store", "load2", "store2", "load4", "store4", "load_word"),
    *("divide", "remainder", "bits_of", "number_of", "arrive", "arrived", "trap"),
    *("tf32_of", "bf16_pair", "mma_tf32", "mma_bf16"),
)

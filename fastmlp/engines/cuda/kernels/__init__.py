"""Kernels for an NVIDIA GPU, and the names of their device API, which device.py implements for GPUs and tests simulate."""

DEVICE_API = (
    *("WARP", "cuda", "device", "kernel", "formula"),
    *("float32", "float64", "int32", "int64", "uint32", "uint64"),
    *("load", "store", "load2", "store2", "load4", "store4", "load_word"),
    *("divide", "remainder", "bits_of", "number_of", "arrive", "arrived", "trap"),
    *("tf32_of", "bf16_pair", "mma_tf32", "mma_bf16"),
)

"""Code generation for the CPU kernels: LLVM micro-kernels, vectorized math functions, the compiler and its disk cache."""

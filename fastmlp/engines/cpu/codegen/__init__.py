"""How CPU kernels are made: LLVM micro-kernels, vector mathematics, the compiler and its cache."""

"""CPU kernels: matrix products, losses, parameter updates, and the training and prediction loops that call them."""

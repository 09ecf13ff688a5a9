"""What CPU kernels do: products, losses, updates, and the programs that call them."""

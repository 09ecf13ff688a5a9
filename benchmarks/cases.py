"""Networks and batch sizes of the benchmarks of whole epochs, the same as in `fastmlp bench --all`."""

from fastmlp.bench.cases import CASES as EPOCHS
from fastmlp.bench.cases import ROWS, Case

__all__ = ["EPOCHS", "ROWS", "Case"]

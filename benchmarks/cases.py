"""Networks and batch sizes of all benchmarks of whole epochs: those of `fastmlp bench --all`."""

from fastmlp.bench.cases import CASES as EPOCHS
from fastmlp.bench.cases import ROWS, Case

__all__ = ["EPOCHS", "ROWS", "Case"]

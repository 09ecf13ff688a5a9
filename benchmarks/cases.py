"""The networks and batches that every benchmark of whole epochs uses: those of `fastmlp bench --all`."""

from fastmlp.bench.cases import CASES as EPOCHS
from fastmlp.bench.cases import ROWS, Case

__all__ = ["EPOCHS", "ROWS", "Case"]

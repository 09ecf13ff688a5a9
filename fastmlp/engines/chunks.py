"""The number of rows per engine call, so that Python checks signals and the time limit about ten times per second."""

from __future__ import annotations

# Target duration of a call, after which Python updates the progress and checks signals and the time limit.
CHUNK_SECONDS = 0.08
SLOWEST = 1e8  # lower bound of the floating-point operations per second of any engine; limits the size of the first chunk


class ChunkSize:
    """Number of rows for the next call of `Engine.train`: a whole number of mini-batches, at least one.

    Parameters
    ----------
    batch_size : mini-batch size
    flops_per_row : see `Network.flops_per_row`
    """

    def __init__(self, batch_size: int, flops_per_row: int) -> None:
        self.batch_size = batch_size
        self.rows = self._whole_batches(CHUNK_SECONDS * SLOWEST / flops_per_row)

    def record(self, rows: int, seconds: float) -> None:
        """Adapt the size to the duration of a call with `rows` rows. The size grows at most fourfold per call."""
        self.rows = self._whole_batches(min(rows * CHUNK_SECONDS / max(seconds, 1e-6), 4 * rows))

    def _whole_batches(self, rows: float) -> int:
        return max(1, int(rows // self.batch_size)) * self.batch_size

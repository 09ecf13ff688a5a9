"""Choice of the number of rows per call of an engine. Between calls, Python checks signals and the time limit."""

from __future__ import annotations

# Target duration of a call, in seconds. After each call, Python updates the progress and checks signals and the time limit.
CHUNK_SECONDS = 0.08
SLOWEST = 1e8  # lower bound of the floating-point operations per second of all engines; determines the first call


class ChunkSize:
    """Number of rows for the next call of `Engine.train`, which is a multiple of the mini-batch size.

    It is adapted so that each call takes about `CHUNK_SECONDS`.

    Parameters
    ----------
    batch_size : mini-batch size
    flops_per_row : floating-point operations per row, see `Network.flops_per_row`
    """

    def __init__(self, batch_size: int, flops_per_row: int) -> None:
        self.batch_size = batch_size
        self.rows = self._whole_batches(CHUNK_SECONDS * SLOWEST / flops_per_row)

    def record(self, rows: int, seconds: float) -> None:
        """Adapt the number of rows to the duration of a call with `rows` rows. It grows at most by a factor of 4 per call."""
        self.rows = self._whole_batches(min(rows * CHUNK_SECONDS / max(seconds, 1e-6), 4 * rows))

    def _whole_batches(self, rows: float) -> int:
        return max(1, int(rows // self.batch_size)) * self.batch_size

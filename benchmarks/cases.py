"""The networks and batches that every benchmark of whole epochs uses: seven rows, 48,000 rows of Fashion-MNIST each."""

from __future__ import annotations

from typing import NamedTuple

ROWS = 48_000


class Case(NamedTuple):
    """A network, relu in hidden layers, softmax cross-entropy, trained by plain SGD in float32."""

    sizes: tuple[int, ...]
    batch: int

    @property
    def label(self) -> str:
        return "-".join(map(str, self.sizes)) + f", {self.batch}"


EPOCHS = (
    Case((784, 128, 10), 64),
    Case((784, 128, 10), 128),
    Case((784, 500, 250, 100, 10), 64),
    Case((784, 400, 250, 100, 10), 128),
    Case((256, 512, 10), 64),
    Case((784, 128, 10), 1024),
    Case((784, 512, 256, 128, 64, 32, 10), 1024),
)

"""What an estimator keeps between calls to save time: the network for predictions, and the engine of `partial_fit`."""

from __future__ import annotations

from typing import Any

from fastmlp.data.rows import Array
from fastmlp.engines.base import Engine, EngineSpec
from fastmlp.models.model import Model


class Kept:
    """Objects that belong to fitted arrays. A copy or pickle of it is empty, because engines have threads and buffers.

    arrays : `coefs_` and `intercepts_` that the objects belong to; if the user replaces one, they are not used any more
    """

    def __init__(self) -> None:
        self.arrays: tuple[Array, ...] = ()
        self.model: Model | None = None
        self.engine: Engine | None = None
        self.spec: EngineSpec | None = None

    def __reduce__(self) -> Any:
        return Kept, ()

    def belongs_to(self, arrays: tuple[Array, ...]) -> bool:
        """Whether the objects belong to these arrays, which are compared by identity."""
        return len(arrays) == len(self.arrays) and all(a is b for a, b in zip(arrays, self.arrays, strict=True))

    def close(self) -> None:
        """Close the engine, if there is one."""
        if self.engine is not None:
            self.engine.close()
        self.engine = self.spec = None

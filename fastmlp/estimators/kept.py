"""Cache of an estimator: the network for predictions, and the engine that `partial_fit` used last."""

from __future__ import annotations

from typing import Any

from fastmlp.data.rows import Array
from fastmlp.engines.base import Engine, EngineSpec
from fastmlp.models.model import Model


class Kept:
    """Cached objects that were constructed from fitted arrays.

    Copies and pickles of this cache are empty, because the threads and buffers of an engine cannot be copied.

    arrays : arrays of `coefs_` and `intercepts_` from which the objects were constructed; if the user replaces one of these
        arrays, the objects are no longer used
    model : network for predictions, or None
    engine, spec : engine of the previous call of `partial_fit`, and its settings, or None
    """

    def __init__(self) -> None:
        self.arrays: tuple[Array, ...] = ()
        self.model: Model | None = None
        self.engine: Engine | None = None
        self.spec: EngineSpec | None = None

    def __reduce__(self) -> Any:
        return Kept, ()

    def belongs_to(self, arrays: tuple[Array, ...]) -> bool:
        """Return whether the objects were constructed from these arrays, which are compared by identity."""
        return len(arrays) == len(self.arrays) and all(a is b for a, b in zip(arrays, self.arrays, strict=True))

    def close(self) -> None:
        """Close and remove the engine, if there is one."""
        if self.engine is not None:
            self.engine.close()
        self.engine = self.spec = None

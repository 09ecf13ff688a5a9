"""Cache of an estimator: the network for predictions, and the engine that `partial_fit` used last."""

from __future__ import annotations

import os
from typing import Any

from fastmlp.data.rows import Array
from fastmlp.engines.base import Engine, EngineSpec
from fastmlp.models.model import Model


class Kept:
    """Cached objects that were constructed from fitted arrays.

    Copies and pickles of this cache are empty, because the threads and buffers of an engine cannot be copied.

    arrays : arrays of `coefs_` and `intercepts_` from which the objects were constructed; if the user replaces one of these
        arrays, the objects are no longer used
    process : process that constructed the objects
    key : parameters that the network for predictions depends on, as text
    model : network for predictions, or None
    engine, spec : engine of the previous call of `partial_fit`, and its settings, or None
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.key = ""
        self.arrays: tuple[Array, ...] = ()
        self.model: Model | None = None
        self.engine: Engine | None = None
        self.spec: EngineSpec | None = None

    def __reduce__(self) -> Any:
        return Kept, ()

    def belongs_to(self, arrays: tuple[Array, ...]) -> bool:
        """Return whether the objects were constructed from these arrays, which are compared by identity, in this process.

        Arrays that the user can change in place never match. Engines of the parent process are not used after a fork, because
        they may have been in use.
        """
        same = len(arrays) == len(self.arrays) and all(a is b for a, b in zip(arrays, self.arrays, strict=True))
        return same and self.process == os.getpid() and not any(array.flags.writeable for array in arrays)

    def renew(self, arrays: tuple[Array, ...]) -> None:
        """Remove all objects; those that are stored from now on belong to these arrays and to this process."""
        self.close()
        self.process, self.arrays, self.model = os.getpid(), arrays, None

    def close(self) -> None:
        """Remove the engine, if there is one, and close it unless it belongs to the parent process."""
        if self.engine is not None and self.process == os.getpid():
            self.engine.close()
        self.engine = self.spec = None

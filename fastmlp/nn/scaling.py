"""Scaling of features, (x - shift) * factor, which is stored with the model. See data/scaling.py for fitting it to data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.errors import DataError, unknown_name

SCALINGS = ("none", "unit", "symmetric", "zscore", "zscore-global")  # see data.scaling.fit_scaling


@dataclass(frozen=True, eq=False)
class Scaling:
    """Scaling of inputs: (x - shift) * factor per feature, two float32 operations.

    Parameters
    ----------
    kind : a name in `SCALINGS`
    shift, factor : (features,) float32

    Raises
    ------
    DataError : an unknown kind, or invalid arrays (from a damaged model file)
    """

    kind: str
    shift: npt.NDArray[np.float32]
    factor: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            raise DataError(unknown_name("scaling", self.kind, SCALINGS))
        for name, array in self.to_arrays().items():
            if array.dtype != np.float32 or array.shape != self.shift.shape or array.ndim != 1:
                given = f"{array.dtype} {array.shape}, shift has {self.shift.shape}"
                raise DataError(f"scaling {name} must be (features,) float32, but is {given}")
            if not np.isfinite(array).all():
                raise DataError(f"scaling {name} holds values that are not finite; fit it again")

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return a scaled copy of x (n, features), float32; raise DataError if the number of features differs.

        >>> scaling = Scaling("symmetric", np.float32([127.5, 127.5]), np.float32([1 / 127.5, 1 / 127.5]))
        >>> scaling.apply(np.array([[0, 255]], np.uint8)).tolist()
        [[-1.0, 1.0]]
        """
        if x.ndim != 2 or x.shape[1] != len(self.shift):
            raise DataError(f"scaling was fitted on {len(self.shift)} features, but the data has shape {x.shape}")
        scaled = x.astype(np.float32)  # in place from here: (x.astype(float32) - shift) * factor
        scaled -= self.shift
        scaled *= self.factor
        return scaled

    def to_arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the arrays by name; `Scaling(kind, **arrays)` is an equal scaling."""
        return {"shift": self.shift, "factor": self.factor}

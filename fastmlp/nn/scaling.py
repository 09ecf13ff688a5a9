"""Feature scaling, (x - shift) * factor. It is stored with the model; data/scaling.py fits it to data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp._summary import Summarized
from fastmlp.errors import DataError, unknown_name

SCALINGS = ("none", "unit", "symmetric", "zscore", "zscore-global")  # see data.scaling.fit_scaling


@dataclass(frozen=True, eq=False, repr=False)
class Scaling(Summarized):
    """Feature scaling, (x - shift) * factor for each feature, computed in float32.

    Parameters
    ----------
    kind : name of the scaling, from `SCALINGS`
    shift, factor : one value per feature, (features,) float32

    Raises
    ------
    DataError : `kind` is unknown, or the arrays are invalid (for example because the model file is damaged)
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
                raise DataError(f"scaling {name} contains values that are not finite; fit the scaling again")

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows."""
        return {"kind": self.kind, "features": len(self.shift)}

    def apply(self, x: npt.NDArray[Any], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """Return a scaled copy of x (n, features) in `dtype`; raise DataError if the number of features differs.

        >>> scaling = Scaling("symmetric", np.float32([127.5, 127.5]), np.float32([1 / 127.5, 1 / 127.5]))
        >>> scaling.apply(np.array([[0, 255]], np.uint8)).tolist()
        [[-1.0, 1.0]]
        """
        if x.ndim != 2 or x.shape[1] != len(self.shift):
            raise DataError(f"scaling was fitted on {len(self.shift)} features, but the data has shape {x.shape}")
        scaled = x.astype(dtype)  # a copy, so that the operations below can work in place
        scaled -= self.shift
        scaled *= self.factor
        return scaled

    def invert(self, y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the unscaled values, y / factor + shift, of scaled values (n, features) in float64.

        >>> Scaling("zscore", np.float32([10]), np.float32([0.5])).invert(np.array([[-1.0], [2.0]])).tolist()
        [[8.0], [14.0]]
        """
        return y / self.factor.astype(np.float64) + self.shift

    def to_arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return a dict of the arrays; `Scaling(kind, **arrays)` creates an equal scaling."""
        return {"shift": self.shift, "factor": self.factor}

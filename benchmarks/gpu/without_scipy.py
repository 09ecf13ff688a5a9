"""Replacements for the two SciPy functions that fastmlp/reference.py uses, for machines without SciPy.

SciPy's wheel is too large to be packed together with the data.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt


def expit(z: npt.ArrayLike) -> Any:
    """Compute 1 / (1 + exp(-z)) elementwise, in the dtype of z, without overflow.

    >>> expit(np.array([0.0, -1000.0])).tolist()
    [0.5, 0.0]
    """
    found = np.asarray(z)
    e = np.exp(-np.abs(found))
    return np.where(found >= 0, found.dtype.type(1), e) / (1 + e)


def erfc(z: npt.ArrayLike) -> Any:
    """Compute the complementary error function elementwise, in the dtype of z, with Python's math.erfc."""
    found = np.asarray(z)
    return np.vectorize(math.erfc, otypes=[found.dtype])(found)


def install() -> None:
    """Register this module as `scipy.special` if SciPy is not installed. `import scipy` alone still fails."""
    if importlib.util.find_spec("scipy") is None:
        sys.modules["scipy.special"] = sys.modules[__name__]

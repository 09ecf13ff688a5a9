"""The two functions of SciPy that the specification needs (fastmlp/reference.py), for a machine that lacks it.

SciPy's wheel is too large to be carried beside the data.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt


def expit(z: npt.ArrayLike) -> Any:
    """1 / (1 + exp(-z)) of each element, as numbers of their type, without overflow.

    >>> expit(np.array([0.0, -1000.0])).tolist()
    [0.5, 0.0]
    """
    found = np.asarray(z)
    e = np.exp(-np.abs(found))
    return np.where(found >= 0, found.dtype.type(1), e) / (1 + e)


def erfc(z: npt.ArrayLike) -> Any:
    """The complementary error function of each element, as numbers of their type; by the C library, an element at a time."""
    found = np.asarray(z)
    return np.vectorize(math.erfc, otypes=[found.dtype])(found)


def stand_in() -> None:
    """Let `from scipy.special import erfc` find this file where there is no SciPy; `import scipy` still fails there."""
    if importlib.util.find_spec("scipy") is None:
        sys.modules["scipy.special"] = sys.modules[__name__]

"""The two functions of SciPy that the specification needs (fastmlp/reference.py), for a machine that lacks it.

SciPy's wheel is too large to be carried beside the data. By the C library, an element at a time.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


def sigmoid(z: float) -> float:
    """1 / (1 + exp(-z)) without overflow.

    >>> sigmoid(0.0), sigmoid(-1000.0)
    (0.5, 0.0)
    """
    e = math.exp(-abs(z))
    return (1.0 if z >= 0 else e) / (1.0 + e)


def by_element(function: Callable[[float], float]) -> Callable[[npt.ArrayLike], Any]:
    """The function of each element, as numbers of their type."""

    def of_array(z: npt.ArrayLike) -> Any:
        found = np.asarray(z)
        return np.vectorize(function, otypes=[found.dtype])(found)

    return of_array


erfc, expit = by_element(math.erfc), by_element(sigmoid)


def stand_in() -> None:
    """Let `from scipy.special import erfc` find this file where there is no SciPy; `import scipy` still fails there."""
    if importlib.util.find_spec("scipy") is None:
        sys.modules["scipy.special"] = sys.modules[__name__]

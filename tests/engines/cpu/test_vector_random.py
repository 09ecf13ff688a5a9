"""Tests of codegen/vector_random.py: dropout factors are those of the reference, for every vector width."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastmlp.engines.cpu.codegen.compiler import from_python
from fastmlp.engines.cpu.kernels.formulas import drop_address
from fastmlp.nn.philox import drop_threshold, keep_mask, philox4x32

SCALE = np.float32(1.25)


def drop_of(lanes: int) -> Callable[..., None]:
    """Return the dropout kernel as a function that can be called from Python."""
    return from_python(drop_address(lanes), 12, 1)


@pytest.mark.parametrize("slopes", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_a_block_is_multiplied_by_the_factors_of_the_specification(lanes: int, rows: int, slopes: bool) -> None:
    """The block starts at the third vector of wider rows and has an odd number of vectors."""
    seed, step, layer, first, rate = 2**63 + 123_456_789_012_345, 2**31 + 7, 3, 11, 0.5
    column, columns, ld = 2 * lanes, 3 * lanes, 3 * lanes + 5
    rng = np.random.default_rng(lanes)
    y, s = (rng.normal(size=(rows + 1, ld)).astype(np.float32) for _ in range(2))
    wanted_y, wanted_s = y.copy(), s.copy()
    mask = keep_mask(seed, step, layer, first + rows, column + columns, rate)[first:, column:]
    wanted_y[:rows, :columns] *= np.where(mask, SCALE, np.float32(0))
    if slopes:
        wanted_s[:rows, :columns] *= np.where(mask, SCALE, np.float32(0))
    place = (slopes, ld, column, columns, layer, first, rows, step, seed - 2**64, int(drop_threshold(rate)))
    drop_of(lanes)(y.ctypes.data, s.ctypes.data, *place, SCALE)
    assert np.array_equal(y, wanted_y)
    assert np.array_equal(s, wanted_s)
    assert 0 < mask.mean() < 1


def test_a_word_at_the_threshold_keeps_its_unit() -> None:
    least = int(philox4x32(*[np.uint64(0)] * 6)[0])
    y = np.ones((1, 8), np.float32)
    for threshold, wanted in ((least, SCALE), (least + 1, 0)):
        drop_of(4)(y.ctypes.data, 0, 0, 8, 0, 8, 0, 0, 1, 0, 0, threshold, SCALE)
        assert y[0, 0] == wanted


def test_what_is_no_number_stays_none() -> None:
    """A dropped unit is multiplied by 0, as in the reference, so NaN stays NaN."""
    y = np.full((1, 8), np.nan, np.float32)
    drop_of(4)(y.ctypes.data, 0, 0, 8, 0, 8, 0, 0, 1, 0, 0, 2**31, SCALE)
    assert np.isnan(y).all()

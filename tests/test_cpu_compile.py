"""How kernels are compiled: nothing that nobody calls, calls by address with integers and floats, arrays from addresses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numba import types

from fastmlp.cpu_compile import address_of, compiled
from fastmlp.cpu_instructions import array_at, call


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))


@pytest.mark.parametrize(("called", "wrapper"), [("python", "cpython"), ("address", "cfunc")])
def test_a_kernel_is_its_code_and_one_way_in(called: str, wrapper: str) -> None:
    """What is inlined leaves no code of its own, and no wrapper is made that nobody calls."""
    twice = compiled(lambda x: x + x)
    fourfold = compiled(lambda x: twice(twice(x)))
    kernel = compiled(lambda x: fourfold(x), called=called)  # noqa: PLW0108 - a kernel around it
    kernel.compile((types.int64,))
    (assembly,) = kernel.inspect_asm().values()
    code, way_in = re.findall(r"\.type\s+(\S+),\s*@function", assembly)
    assert wrapper not in code
    assert wrapper in way_in


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.uint32])
def test_a_call_by_address_hands_over_integers_floats_and_arrays(dtype: Any) -> None:
    def scaled(source, to, n, factor):  # type: ignore[no-untyped-def]
        numbers, results = array_at(source, n, dtype), array_at(to, n, np.float32)
        for i in range(n):
            results[i] = np.float32(numbers[i]) * factor

    address = address_of(scaled, f"scaled {dtype.__name__}", 3, 1)

    def caller(source, to, factor):  # type: ignore[no-untyped-def]
        call(address, (source.ctypes.data, to.ctypes.data, len(source), factor))

    source, to = np.arange(9).astype(dtype), np.full(11, -1, np.float32)
    compiled(caller, called="python")(source, to, np.float32(0.5))
    np.testing.assert_array_equal(to, [*(0.5 * source), -1, -1])

"""The GPU simulator implements the whole device API, and detects errors that a GPU would not report."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

pytest.importorskip("greenlet", reason="the simulator of backend 'cuda' needs greenlet: pip install greenlet")

from support import cuda_simulator
from support.cuda_simulator import ALL_LANES, FEW_LANES, StuckError

from fastmlp.engines.cuda.kernels import DEVICE_API
from fastmlp.engines.cuda.kernels.passes import make_barrier
from fastmlp.engines.cuda.kernels.programs import PLAIN, arguments_of

pytestmark = pytest.mark.full


def test_the_simulator_has_every_word() -> None:
    for words in (FEW_LANES, ALL_LANES):
        assert set(DEVICE_API) <= set(vars(words)) | {"kernel"}


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_a_device_has_every_word() -> None:
    from fastmlp.engines.cuda.kernels import device

    assert set(DEVICE_API) <= set(vars(device))


def test_a_barrier_counts_beyond_32_bits() -> None:
    """A barrier works after 2**32 arrivals, where a 32-bit counter would overflow and blocks would wait forever."""
    barrier, start, past = make_barrier(FEW_LANES), 2**32 - 3, []

    def meet(counter: Any) -> None:
        target = np.uint64(start)
        for _ in range(3):
            target += np.uint64(2)
            barrier(counter, target)
        past.append(int(counter[0]))

    counter = np.full(1, start, np.dtype(arguments_of("barriers", PLAIN)[0].removesuffix("[]")))
    launched(meet, counter, blocks=2)
    assert past == [start + 3 * 2] * 2 * 4
    with pytest.raises((StuckError, RuntimeWarning)):
        launched(meet, np.full(1, start, np.uint32), blocks=2)


def test_a_block_that_waits_in_vain_ends_the_launch() -> None:
    barrier = make_barrier(FEW_LANES, most=9)
    with pytest.raises(StuckError, match=r"thread 0 of block [01] executed a trap"):
        launched(lambda counter: barrier(counter, np.uint64(3)), np.zeros(1, np.uint64), blocks=2)
    launched(lambda counter: barrier(counter, np.uint64(2)), np.zeros(1, np.uint64), blocks=2)


def launched(function: Any, *arguments: Any, blocks: int = 1, threads: int = 4, seed: int = 0) -> None:
    FEW_LANES.kernel(threads)(function).launch(blocks, arguments, seed)


def test_the_simulator_reports_what_a_device_would_not() -> None:
    cuda, a = FEW_LANES.cuda, np.zeros(8, np.float32)  # type: ignore[attr-defined]

    def some_wait() -> None:
        if cuda.threadIdx.x:
            cuda.syncthreads()

    def look_in_vain(counter: Any) -> None:
        while cuda_simulator.arrived(counter, 0) == 0:
            pass

    def poisoned(out: Any) -> None:
        out[0] = cuda.shared.array(4, np.float32)[0] + cuda.local.array(4, np.float32)[0]

    with pytest.raises(StuckError, match="3 of 4 threads wait in block 0"):
        launched(some_wait)
    with pytest.raises(StuckError, match="polls a counter that does not change"):
        launched(look_in_vain, np.zeros(1, np.uint64))
    for bad in (lambda: cuda_simulator.load(a, -1), lambda: cuda_simulator.load4(a, 2), lambda: cuda_simulator.load4(a, 8)):
        with pytest.raises(AssertionError):
            launched(bad)
    launched(poisoned, a)
    assert np.isnan(a[0])

"""Tests of the peak rates: results of the kernels, work of each thread, rates from work and time, selection of the best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numba import njit

from fastmlp.bench.machine import DEFAULT_CACHE_BYTES, PACKAGES, Ceilings, accumulators, last_cache_bytes, machine, make_kernels
from fastmlp.engines import installed_versions
from fastmlp.engines.cpu.codegen.intrinsics import make_fma_loop
from fastmlp.engines.cpu.codegen.simd import lanes


@pytest.mark.parametrize(("count", "width"), [(12, 8), (3, 4), (1, 16)])
def test_the_loop_executes_all_multiply_adds(count: int, width: int) -> None:
    """The result shows that no step is skipped: accumulator i starts at i and grows by x^2 in each step."""
    loop = make_fma_loop(count, width)

    @njit
    def run(steps, x):  # type: ignore[no-untyped-def]
        return loop(steps, x)

    for steps in (1, 2, 1000):
        assert run(steps, np.float32(0.5)) == sum(range(count)) + 0.25 * steps * count


def test_the_loop_has_multiply_adds_on_full_vectors() -> None:
    """The number of multiply-adds in the machine code is a multiple of the accumulators, so LLVM removed none of them."""
    fmas, _ = make_kernels()
    fmas(0, 1, np.float32(0.5), np.empty(1, np.float32))
    (code,) = fmas.inspect_llvm().values()
    found = code.count(f"call <{lanes()} x float> @llvm.fma")
    assert found > 0
    assert found % accumulators() == 0
    assert Ceilings.flop_per_step() == 2 * accumulators() * lanes()


def test_triad_computes_the_elements_of_each_thread() -> None:
    _, triad = make_kernels()
    a, b, c = np.zeros(11, np.float32), np.arange(11, dtype=np.float32), np.ones(11, np.float32)
    for t in (0, 2):
        triad(t, 3, a, b, c, np.float32(3))
    expected = b + 3
    expected[3:7] = 0  # elements of thread 1, which has not run yet
    np.testing.assert_array_equal(a, expected)
    triad(1, 3, a, b, c, np.float32(3))
    np.testing.assert_array_equal(a, b + 3)


def test_the_best_measurement_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = Ceilings([1, 2], array_bytes=4096)
    assert set(ceilings.gflops.values()) == {0.0}  # the warm-up is not recorded
    ceilings.measure()
    assert min(*ceilings.gflops.values(), *ceilings.triad.values()) > 0
    for gflops in (7.0, 9.0, 8.0):
        monkeypatch.setattr(ceilings, "fma_gflops", lambda team, steps, gflops=gflops: 1000 * gflops * team.threads)
        ceilings.measure()
    assert ceilings.gflops == {1: 9000.0, 2: 18000.0}
    ceilings.close()
    assert ceilings.arrays == []


def test_the_peak_rates_are_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = Ceilings([2], array_bytes=4000)
    clock = iter([0.0, 2.0, 0.0, 0.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    per_step = ceilings.flop_per_step()
    assert ceilings.fma_gflops(ceilings.teams[0], 1000) == 1000 * per_step * 2 / 2.0 / 1e9
    assert ceilings.triad_gb_per_s(ceilings.teams[0]) == 3 * 4000 / 0.5 / 1e9
    monkeypatch.undo()
    ceilings.close()


def test_each_last_level_cache_is_counted_once(tmp_path: Path) -> None:
    """A cache that is shared by several cores is counted once: each pair of four cores shares a level-3 cache."""
    assert last_cache_bytes(tmp_path) == DEFAULT_CACHE_BYTES
    for cpu in range(4):
        pair = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}"
        for index, (level, size, cpus) in enumerate([("1", "32K", str(cpu)), ("3", "1024K", pair)]):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", cpus)):
                (folder / name).write_text(text + "\n")
    assert last_cache_bytes(tmp_path) == 2 * 1024 * 1024


def test_the_machine_and_its_versions_are_described() -> None:
    about = machine()
    assert {"date", "processor", "name", "cores", "threads", "load"} <= set(about)
    assert about["cores"] >= 1
    found = installed_versions(PACKAGES)
    assert {"python", "fastmlp", "numpy", "numba", "llvmlite", "scikit-learn"} <= set(found)
    assert found["numpy"] == np.__version__
    assert "no-such-package" not in found

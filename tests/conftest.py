"""Fixtures for all tests, and a temporary cache folder for compiled kernels. Helper functions are in support/."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NoReturn

import hypothesis
import numpy as np
import pytest

from fastmlp.engines import BACKENDS

pytest.register_assert_rewrite("support")  # must be called before support is imported

from support.engines import REAL_GPU, marks_of, need_backend, simulation  # noqa: E402

if REAL_GPU:  # shrinking a failing example would take minutes on the GPU machine
    NO_SHRINKING = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("gpu", phases=NO_SHRINKING, report_multiple_bugs=False)
    hypothesis.settings.load_profile("gpu")


def pytest_configure(config: pytest.Config) -> None:
    """Set a temporary cache folder for compiled kernels. Child processes inherit it, so each kernel is compiled only once.

    NumPy and PyTorch use one thread, unless the variables that limit it are set. The matrices of the tests are small, and the
    threads of two pytest-xdist workers wait for each other for most of their time. The Numba engine has its own threads.

    On a real GPU, an existing FASTMLP_CACHE_DIR is used instead, since it may contain precompiled kernels for a machine that
    has no compiler.
    """
    if REAL_GPU and "FASTMLP_CACHE_DIR" in os.environ:
        return
    if hasattr(config, "workerinput"):  # a pytest-xdist worker inherits the environment variables
        return
    for library in ("OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    folder = tempfile.TemporaryDirectory(prefix="fastmlp-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ["FASTMLP_CACHE_DIR"] = folder.name


@pytest.fixture(autouse=True, scope="session")
def more_threads_than_cores() -> Iterator[None]:
    """Allow more threads than cores, so that multithreading is tested on machines with few cores, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmlp.engines.cpu.engine.most_threads", lambda: 64)
        yield


@pytest.fixture(autouse=True)
def no_global_random_numbers() -> Iterator[None]:
    """Fail a test that uses NumPy's global random generator, which is not seeded. Tests must create seeded generators."""
    before = np.random.get_state(legacy=False)["state"]  # noqa: NPY002 - detects use of the generator
    yield
    after = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert np.array_equal(before["key"], after["key"]), "the test drew from np.random"
    assert before["pos"] == after["pos"], "the test drew from np.random"


@pytest.fixture(autouse=True)
def the_check_packs_all_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """In the simulator, fail a test of the GPU check if it needs a kernel that is not precompiled for the GPU machine."""
    if REAL_GPU or request.node.get_closest_marker("gpu") is None:
        yield
        return
    from support.carried import only_carried_kernels

    from benchmarks.gpu.tests_on_device import TESTS

    of_the_check = request.node.nodeid.partition("::")[0] in TESTS
    with only_carried_kernels() if of_the_check else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session", params=[name for name in BACKENDS if name != "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """Run the test once for each engine that does not need a GPU."""
    return need_backend(request.param)


@pytest.fixture(autouse=True)
def quick_tests_are_quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test without the marker "full" if it starts Python, simulates a GPU or trains a convolutional network.

    GPU simulation and convolutional networks are only detected if the modules that implement them have been imported, for
    example during the collection of other tests.
    """
    if request.node.get_closest_marker("full") is not None:
        return

    def refuse(*given: Any, **named: Any) -> NoReturn:
        pytest.fail("a quick test starts Python, simulates a GPU or trains a CNN: mark it full")

    start = subprocess.Popen.__init__

    def started(self: Any, args: Any, *given: Any, **named: Any) -> None:
        if not isinstance(args, str) and sys.executable in list(args):  # libraries may start other programs
            refuse()
        start(self, args, *given, **named)

    monkeypatch.setattr(subprocess.Popen, "__init__", started)
    if "support.cuda_simulator" in sys.modules:
        monkeypatch.setattr("support.cuda_simulator.Grid.run", refuse)
    if "fastmlp.cnn.training" in sys.modules:
        monkeypatch.setattr("fastmlp.cnn.training.Trainer.run", refuse)


@pytest.fixture(scope="session", params=[pytest.param(name, marks=marks_of(name)) for name in BACKENDS])
def every_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once for each engine. "cuda" runs in the simulator, which is slow."""
    name = need_backend(request.param)
    with simulation() if name == "cuda" else contextlib.nullcontext():
        yield name


@pytest.fixture(scope="session")
def numba_backend() -> str:
    """The Numba engine, for tests of properties that only this engine has, such as bit-identical results."""
    return need_backend("numba")


@pytest.fixture
def simulated_gpu() -> Iterator[None]:
    """Run the test in the GPU simulator, for tests that only use the backend "cuda"."""
    with simulation():
        yield


@pytest.fixture
def eager_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use several threads even for small networks, so that tests with small shapes cover multithreading."""
    for threshold in ("MUCH_FLOPS", "SURE_FLOPS"):
        monkeypatch.setattr(f"fastmlp.engines.cpu.threads.{threshold}", 0)

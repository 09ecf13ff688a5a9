"""Fixtures of all tests, and one cache folder of compiled kernels for a session; helpers are in support/."""

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

pytest.register_assert_rewrite("support")  # before its first import

from support.engines import REAL_GPU, marks_of, need_backend, simulation  # noqa: E402

if REAL_GPU:  # a test that fails must not be shrunk for minutes: the machine is lent
    NO_SHRINKING = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("gpu", phases=NO_SHRINKING, report_multiple_bugs=False)
    hypothesis.settings.load_profile("gpu")


def pytest_configure(config: pytest.Config) -> None:
    """One compilation per session, in a temporary folder that child processes inherit; before anything is compiled.

    On a real GPU kernels may have been brought along, for there may be no compiler for them: then the folder is kept.
    """
    if REAL_GPU and "FASTMLP_CACHE_DIR" in os.environ:
        return
    if hasattr(config, "workerinput"):  # a process of pytest-xdist has it from the one that started it
        return
    folder = tempfile.TemporaryDirectory(prefix="fastmlp-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ["FASTMLP_CACHE_DIR"] = folder.name


@pytest.fixture(autouse=True, scope="session")
def more_threads_than_cores() -> Iterator[None]:
    """Let engines have as many threads as a test asks for: which thread computes what must not matter on any machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmlp.engines.cpu.engine.most_threads", lambda: 64)
        yield


@pytest.fixture(autouse=True)
def no_global_random_numbers() -> Iterator[None]:
    """Seeds are in the tests, none is global: NumPy's global generator, which nobody seeds, must stay untouched."""
    before = np.random.get_state(legacy=False)["state"]  # noqa: NPY002 - to see that nobody uses it
    yield
    after = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert np.array_equal(before["key"], after["key"]), "the test drew from np.random"
    assert before["pos"] == after["pos"], "the test drew from np.random"


@pytest.fixture(autouse=True)
def the_check_carries_all_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """A simulated test that the check of a GPU runs asks for no kernel that a machine without a compiler would lack."""
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
    """Each engine in turn that runs on any machine."""
    return need_backend(request.param)


@pytest.fixture(autouse=True)
def quick_tests_are_quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without the marker "full" starts no Python, simulates no GPU and trains no convolutional network.

    The last two are seen if their modules are loaded, as they are once the tests of these have been collected.
    """
    if request.node.get_closest_marker("full") is not None:
        return

    def refuse(*given: Any, **named: Any) -> NoReturn:
        pytest.fail("a quick test starts a Python, simulates a GPU or trains a CNN: mark it full")

    start = subprocess.Popen.__init__

    def started(self: Any, args: Any, *given: Any, **named: Any) -> None:
        if not isinstance(args, str) and sys.executable in list(args):  # others are of libraries, at their first import
            refuse()
        start(self, args, *given, **named)

    monkeypatch.setattr(subprocess.Popen, "__init__", started)
    if "support.cuda_simulator" in sys.modules:
        monkeypatch.setattr("support.cuda_simulator.Grid.run", refuse)
    if "fastmlp.cnn.training" in sys.modules:
        monkeypatch.setattr("fastmlp.cnn.training.Trainer.run", refuse)


@pytest.fixture(scope="session", params=[pytest.param(name, marks=marks_of(name)) for name in BACKENDS])
def every_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each engine in turn; "cuda" in the simulator, in which much work takes long."""
    name = need_backend(request.param)
    with simulation() if name == "cuda" else contextlib.nullcontext():
        yield name


@pytest.fixture(scope="session")
def numba_backend() -> str:
    """The compiled engine, for what only it promises (bits)."""
    return need_backend("numba")


@pytest.fixture
def simulated_gpu() -> Iterator[None]:
    """The same for tests of backend "cuda" alone."""
    with simulation():
        yield


@pytest.fixture
def eager_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines hand work to their threads however little it is, so that small shapes test the sharing."""
    for least in ("MUCH_FLOPS", "SURE_FLOPS"):
        monkeypatch.setattr(f"fastmlp.engines.cpu.threads.{least}", 0)

"""Kernels compiled in a forked child: they are loaded from the cache or else compiled here, and no child remains."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from numba.core.compiler_lock import global_compiler_lock
from support.cpu import PATIENCE, run_script

from fastmlp.engines.cpu.codegen import fork, observer
from fastmlp.engines.cpu.codegen.compiler import cached
from fastmlp.engines.cpu.codegen.fork import compiled_in_fork

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled in a child process only on Linux"),
    pytest.mark.full,
]
GUARD = 60.0  # seconds; a generous limit for all waits

# No test depends on how fast a child process compiles: the timeout for compiling is as long as that of a whole script.
PATIENT = f"""
from fastmlp.engines.cpu.codegen import fork
fork.PATIENCE = {PATIENCE}.0
"""


def next_number(x):  # type: ignore[no-untyped-def]
    return x + 1


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(fork, "PATIENCE", float(PATIENCE))
    return cached(next_number, "next number")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Process IDs of the forked child processes."""
    found: list[int] = []
    fork = os.fork

    def noted() -> int:
        child = fork()
        if child:
            found.append(child)
        return child

    monkeypatch.setattr(os, "fork", noted)
    return found


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit statuses returned by `os.waitpid`."""
    found: list[int] = []
    waitpid = os.waitpid

    def noted(child: int, options: int) -> tuple[int, int]:
        known, status = waitpid(child, options)
        if known:
            found.append(status)
        return known, status

    monkeypatch.setattr(os, "waitpid", noted)
    return found


def check_killed(ends: list[int]) -> None:
    (status,) = ends
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def check_gone(children: list[int]) -> None:
    """Check that exactly one process was forked, and that it has ended and was reaped."""
    (child,) = children
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_another_process_compiles(kernel: Any, children: list[int]) -> None:
    with compiled_in_fork(kernel, (3,)) as forked:
        assert forked
    check_gone(children)
    assert not kernel.overloads
    assert kernel(3) == 4
    assert (kernel._cache.hits, kernel._cache.misses) == (1, 0)


@pytest.mark.parametrize("error", [PermissionError, OSError])
def test_a_cache_folder_that_cannot_be_searched(
    kernel: Any, children: list[int], error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled in another process, and the kernel is compiled here; root may search any folder, hence the mock."""
    folder, stat = os.environ["FASTMLP_CACHE_DIR"], os.stat

    def refused(path: Any, *arguments: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(folder):
            raise error(13, "Permission denied")
        return stat(path, *arguments, **more)

    monkeypatch.setattr(os, "stat", refused)
    monkeypatch.setattr(fork, "can_keep", lambda folder: False)
    with compiled_in_fork(kernel, (3,)) as forked:
        assert not forked
    assert children == []


def test_the_child_does_not_report_its_compilation(
    kernel: Any, children: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(observer, "announced", threading.Event())

    def report() -> None:
        with (tmp_path / "reports.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")

    with observer.observer(report), compiled_in_fork(kernel, (3,)) as forked:
        assert forked
    assert len(children) == 1
    assert (tmp_path / "reports.txt").read_text() == f"{os.getpid()}\n"


def test_nobody_is_forked_for_a_kernel_that_is_there(kernel: Any, children: list[int]) -> None:
    with compiled_in_fork(kernel, (3,)):
        pass
    assert len(children) == 1
    with compiled_in_fork(kernel, (3,)) as forked:
        assert not forked  # the kernel is on disk
    assert kernel(3) == 4
    for file in Path(kernel._cache.cache_path).iterdir():
        file.unlink()
    with compiled_in_fork(kernel, (3,)) as forked:
        assert not forked  # the kernel is in memory
    assert len(children) == 1


def test_types_of_arguments_count(kernel: Any, children: list[int]) -> None:
    assert kernel(3) == 4
    with compiled_in_fork(kernel, (0.5,)) as forked:
        assert forked
    assert kernel(0.5) == 1.5
    assert (kernel._cache.hits, kernel._cache.misses) == (1, 1)


@pytest.mark.parametrize("why", ["no folder", "only to be read", "not Linux", "no more processes"])
def test_where_it_cannot_work_it_is_compiled_here(
    why: str, kernel: Any, children: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if why == "no folder":
        (tmp_path / "file").touch()
        kernel._cache.cache_path = str(tmp_path / "file" / "kernels")
    if why == "only to be read":
        monkeypatch.setattr(os, "access", lambda path, mode, **more: mode != os.W_OK)  # root may write everywhere
    if why == "not Linux":
        monkeypatch.setattr(sys, "platform", "darwin")
    if why == "no more processes":
        monkeypatch.setattr(os, "fork", lambda: os.open(os.devnull + "/none", os.O_RDONLY))  # an OSError
    with compiled_in_fork(kernel, (3,)) as forked:
        assert not forked
    assert children == []
    if why == "no folder":
        with pytest.warns(RuntimeWarning, match="not cached on disk"):
            assert kernel(3) == 4
    assert kernel(3) == 4
    assert kernel._cache.misses == 1


def test_what_a_child_fails_to_do_is_done_here(kernel: Any, children: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork, "compile_and_exit", lambda *given: os._exit(1))
    with compiled_in_fork(kernel, (3,)) as forked:
        assert forked
    check_gone(children)
    assert kernel(3) == 4
    assert (kernel._cache.hits, kernel._cache.misses) == (0, 1)


def sleep_and_exit(*given: Any) -> None:
    """Replace the work of the child by a long wait, which would end before the timeout of the fixture kills the child."""
    time.sleep(GUARD)
    os._exit(0)


def test_a_child_that_hangs_is_ended(
    kernel: Any, children: list[int], ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork, "compile_and_exit", sleep_and_exit)
    monkeypatch.setattr(fork, "PATIENCE", 0.2)
    with compiled_in_fork(kernel, (3,)):
        pass
    check_killed(ends)
    check_gone(children)
    assert kernel(3) == 4


def test_ctrl_c_ends_the_child_too(kernel: Any, children: list[int], ends: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork, "compile_and_exit", sleep_and_exit)
    with pytest.raises(KeyboardInterrupt), compiled_in_fork(kernel, (3,)):
        raise KeyboardInterrupt
    check_killed(ends)
    check_gone(children)


def test_somebody_else_may_have_asked_how_the_child_ended(kernel: Any, children: list[int]) -> None:
    with compiled_in_fork(kernel, (3,)):
        os.waitpid(children[0], 0)
    assert kernel(3) == 4


def test_no_fork_while_another_thread_compiles(kernel: Any, children: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A child forked while another thread compiles would inherit locks that are never released."""
    holds, asked = threading.Event(), threading.Event()
    meanwhile: list[Any] = []

    class Lock:
        """Numba's compiler lock, with an event that is set when a thread requests the lock."""

        def __enter__(self) -> None:
            asked.set()
            global_compiler_lock.__enter__()

        def __exit__(self, *error: Any) -> None:
            global_compiler_lock.__exit__(*error)

    def compile_for_long() -> None:
        with global_compiler_lock:
            holds.set()
            meanwhile.append(asked.wait(GUARD))
            meanwhile.extend(children)

    monkeypatch.setattr(fork, "global_compiler_lock", Lock())
    other = threading.Thread(target=compile_for_long)
    other.start()
    assert holds.wait(GUARD)
    with compiled_in_fork(kernel, (3,)) as forked:
        assert forked
    other.join()
    assert meanwhile == [True]  # the lock was requested, and no child was forked while it was held
    assert kernel(3) == 4


QUIET = """
import atexit, gc, os, signal, sys, time
from fastmlp.engines.cpu.codegen.compiler import cached

class Garbage:
    def __del__(self):
        os.write(1, b"collected ")

def handler(number, frame):
    os.write(1, b"handled ")

signal.signal(signal.SIGINT, handler)
atexit.register(os.write, 1, b"exit ")
if sys.argv[1] == "interrupted in the fork":
    os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
print("buffered", end=" ")
kernel = cached(lambda x: x + 1, "next")
compile = kernel.compile

def compile_twice(signature):
    if os.getpid() != parent:
        garbage = Garbage()
        garbage.own = garbage
        del garbage
        list([] for _ in range(100_000))
        if sys.argv[1] == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
    return compile(signature)

parent, kernel.compile = os.getpid(), compile_twice
with fork.compiled_in_fork(kernel, (3,)) as forked:
    assert forked
print(kernel(3), kernel._cache.hits, end=" ", flush=True)
"""


@pytest.mark.parametrize(("how", "hits"), [("left alone", 1), ("interrupted", 0), ("interrupted in the fork", 0)])
def test_a_child_tidies_up_nothing_and_handles_nothing(how: str, hits: int, monkeypatch: Any, tmp_path: Path) -> None:
    """The child process does not flush the parent's buffers, run exit handlers or collect garbage; Ctrl-C ends it."""
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))
    assert run_script(PATIENT + QUIET, how).split() == ["buffered", "4", str(hits), "exit"]


PARENT_ENDS = """
import os, sys, time
from fastmlp.engines.cpu.codegen.compiler import cached

kernel = cached(lambda x: x + 1, "next")
kernel.compile = lambda signature: time.sleep(float(sys.argv[1]))
with fork.compiled_in_fork(kernel, (3,)) as forked:
    assert forked
    os._exit(0)
"""


def test_the_child_ends_with_its_parent(monkeypatch: Any, tmp_path: Path) -> None:
    """The script has ended when the child has closed its standard output; the child would sleep until the timeout."""
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))
    assert run_script(PATIENT + PARENT_ENDS, str(2 * PATIENCE)) == ""


ENGINE = """
import os, sys
import numpy as np
from fastmlp.engines.cpu import engine as cpu
from fastmlp.engines.base import EngineSpec, State
from fastmlp.engines.cpu.kernels.programs import predict_kernel, train_kernel
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

forks, fork = [], os.fork
os.fork = lambda: forks.append(1) or fork()
cpu.most_threads = lambda: 2
network = Network((5, 6, 3), "leaky-relu")
x, y = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32), np.arange(20, dtype=np.int32) % 3
engine = cpu.NumbaEngine(EngineSpec(network, Optimizer("sgd"), batch_size=4, threads=int(sys.argv[1])))
engine.load(State(network.initial_parameters(0), np.zeros((0, network.parameters), np.float32), 0))
losses = [engine.train(x, y, np.arange(20), np.full(5, 0.1)).loss for _ in range(2)]
z = engine.forward(x)
train, predict = (kernel(engine.lanes)._cache for kernel in (train_kernel, predict_kernel))
numbers = np.concatenate([*losses, z.ravel()])
print(len(forks), train.hits, train.misses, predict.hits, predict.misses, numbers.tobytes().hex())
"""


def test_an_engine_of_more_threads_compiles_its_training_kernel_beside(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_OPT", "0")
    outcomes = {}
    for threads in ("2", "1"):
        monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / threads))
        outcomes[threads] = run_script(PATIENT + ENGINE, threads).split()
    assert outcomes["2"][:5] == ["1", "1", "0", "0", "1"]
    assert outcomes["1"][:5] == ["0", "0", "1", "0", "1"]
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "2"))
    again = run_script(PATIENT + ENGINE, "2").split()
    assert again[:5] == ["0", "1", "0", "1", "0"]
    assert outcomes["1"][5] == outcomes["2"][5] == again[5]

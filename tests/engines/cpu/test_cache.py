"""The disk cache of compiled kernels, tested in real processes: reuse, stale kernels, damaged files, unsafe folders."""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import fastmlp
from fastmlp.engines.base import EngineSpec, State
from fastmlp.engines.kernel_cache import DIGEST_BYTES
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

pytestmark = pytest.mark.full

PACKAGE = Path(fastmlp.__file__).parent
PATIENCE = 200  # seconds

# This script compiles a small kernel, the prediction kernels and, with the argument "train", the training kernels.
WORK = """
import json, sys, warnings
messages = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, category, *rest: messages.append([category.__name__, str(message)])
import numba
import numpy as np
from fastmlp.engines.cpu.codegen import compiler
from fastmlp.engines.base import EngineSpec, State
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.engines.cpu.codegen.cache import KernelCache
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

caches = []

class Counted(KernelCache):
    def __init__(self, name):
        super().__init__(name)
        caches.append(self)

compiler.KernelCache = Counted
rng = np.random.default_rng(0)
x, y = rng.normal(size=(10, 5)).astype(np.float32), rng.integers(0, 3, 10).astype(np.int32)
network = Network((5, 6, 3), "leaky-relu")
engine = NumbaEngine(EngineSpec(network, Optimizer("sgd"), batch_size=4, threads=1))
engine.load(State(network.initial_parameters(0), np.zeros((0, network.parameters), np.float32), 0))
small = numba.njit(lambda n: n + 1.5)
small._cache = Counted("small")
numbers = [small(2), *engine.forward(x).ravel().tolist()]
if sys.argv[1] == "train":
    numbers += engine.train(x, y, np.arange(10), np.full(3, 0.1)).loss.tolist()
print(json.dumps([numbers, sum(c.hits for c in caches), sum(c.misses for c in caches), messages]))
"""
PREDICTED = 31  # number of results before those of training
PREDICTION = 4  # number of kernels: small, product, activation, prediction
ALL = PREDICTION + 5  # also row scaling, gradient, loss, bias update and training


class Outcome(NamedTuple):
    """Output of the script."""

    numbers: list[float]
    hits: int
    misses: int
    warnings: list[list[str]]


def command(what: str, wrapper: str = "", work: str = WORK) -> list[str]:
    own = [sys.executable, "-c", work, what]
    return [sys.executable, "-c", wrapper, *own] if wrapper else own


def environment(package: Path, **more: str) -> dict[str, str]:
    """Return environment variables for the script; kernels are compiled without optimization to save time."""
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "FASTMLP_CACHE_DIR")}
    return env | {"PYTHONPATH": str(package), "NUMBA_OPT": "0", "PYTHONDONTWRITEBYTECODE": "1"} | more


def outcome_of(arguments: list[str], env: dict[str, str], folder: Path) -> Outcome:
    """Run a process in `folder`, which is the first import path of `python -c`, and return its output."""
    done = subprocess.run(arguments, env=env, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode == CANNOT_DROP:
        pytest.skip("root cannot drop its file privileges on this system")
    assert done.returncode == 0, done.stderr
    return Outcome(*json.loads(done.stdout))


def run(package: Path, folder: Path, what: str = "predict", wrapper: str = "") -> Outcome:
    """Run the script in a new process that caches its kernels in `folder`."""
    return outcome_of(command(what, wrapper), environment(package, FASTMLP_CACHE_DIR=str(folder)), package)


# File permissions do not restrict root. Once CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are removed from the bounding set
# (PR_CAPBSET_DROP), they restrict root too, from the next exec on.
CANNOT_DROP = 77
WITHOUT_PRIVILEGE = f"""
import ctypes, os, sys
prctl = ctypes.CDLL(None).prctl
if prctl(24, 1, 0, 0, 0) or prctl(24, 2, 0, 0, 0):
    sys.exit({CANNOT_DROP})
os.execv(sys.argv[1], sys.argv[1:])
"""


def unprivileged() -> str:
    """Return a script that drops root's file privileges and then runs a command; return "" if not running as root."""
    if os.geteuid() != 0:
        return ""
    if not sys.platform.startswith("linux"):
        pytest.skip("root can write everywhere, and can drop this privilege only on Linux")
    return WITHOUT_PRIVILEGE


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Import path of a copy of the package, with bytecode, which is not affected by edits during the tests."""
    root: Path = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE, root / "fastmlp", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(root, quiet=1)
    return root


class Warm(NamedTuple):
    """A folder with all kernels, and the output of the process that compiled them."""

    folder: Path
    outcome: Outcome

    @property
    def predictions(self) -> list[float]:
        return self.outcome.numbers[:PREDICTED]

    def copy(self, to: Path) -> Path:
        return Path(shutil.copytree(self.folder, to))


@pytest.fixture(scope="module")
def warm(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Warm:
    folder = tmp_path_factory.mktemp("warm") / "not" / "there" / "yet"
    return Warm(folder, run(package, folder, "train"))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ------------------------------------------------------------------------------------------------ cold and warm


def test_a_cold_start_compiles_and_keeps_the_kernels(warm: Warm) -> None:
    assert (warm.outcome.hits, warm.outcome.misses, warm.outcome.warnings) == (0, ALL, [])
    assert stat.S_IMODE(warm.folder.stat().st_mode) == 0o700
    files = list(warm.folder.iterdir())
    assert len(files) == ALL  # no temporary files
    assert all(stat.S_ISREG(file.lstat().st_mode) and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)


def test_the_numbers_are_right(warm: Warm) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 5)).astype(np.float32), rng.integers(0, 3, 10).astype(np.int32)
    network = Network((5, 6, 3), "leaky-relu")
    engine = NumpyEngine(EngineSpec(network, Optimizer("sgd"), batch_size=4, dtype=np.float64))
    engine.load(State(network.initial_parameters(0).astype(np.float64), np.zeros((0, network.parameters)), 0))
    wanted = [3.5, *engine.forward(x).ravel(), *engine.train(x, y, np.arange(10), np.full(3, 0.1)).loss]
    assert len(wanted) == len(warm.outcome.numbers) == PREDICTED + len(x)
    np.testing.assert_allclose(warm.outcome.numbers, wanted, rtol=1e-4, atol=1e-6)


def test_a_second_process_finds_them_again(package: Path, warm: Warm) -> None:
    before = contents(warm.folder)
    second = run(package, warm.folder, "train")
    assert (second.hits, second.misses, second.warnings) == (ALL, 0, [])
    assert second.numbers == warm.outcome.numbers
    assert contents(warm.folder) == before


def test_processes_that_start_together_do_not_disturb_each_other(package: Path, warm: Warm, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    processes = [
        subprocess.Popen(
            command("predict"),
            env=environment(package, FASTMLP_CACHE_DIR=str(folder)),
            cwd=package,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        outcome = Outcome(*json.loads(out))
        assert outcome.numbers == warm.predictions
        assert (outcome.hits + outcome.misses, outcome.warnings) == (PREDICTION, [])
    assert sorted(contents(folder)) == sorted(set(contents(folder)) & set(contents(warm.folder)))
    assert len(contents(folder)) == PREDICTION


# ------------------------------------------------------------------------------------------------ damage


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "10 bytes": lambda data: data[:10],
    "digest only": lambda data: data[:DIGEST_BYTES],
    "half": lambda data: data[: len(data) // 2],
    "last byte lost": lambda data: data[:-1],
    "too long": lambda data: data + b"\0",
    "bit of the digest": lambda data: flipped(data, 3),
    "bit in the middle": lambda data: flipped(data, len(data) // 2),
}


def whole(data: bytes) -> bool:
    return hashlib.sha256(data[DIGEST_BYTES:]).digest() == data[:DIGEST_BYTES]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_anew(damage: str, package: Path, warm: Warm, tmp_path: Path) -> None:
    folder = warm.copy(tmp_path / "kernels")
    assert all(whole(file.read_bytes()) for file in folder.iterdir())
    small = min(folder.iterdir(), key=lambda file: file.stat().st_size)
    small.write_bytes(DAMAGES[damage](small.read_bytes()))
    assert not whole(small.read_bytes())
    outcome = run(package, folder)
    assert (outcome.hits, outcome.misses, outcome.warnings) == (PREDICTION - 1, 1, [])
    assert outcome.numbers == warm.predictions
    assert whole(small.read_bytes())  # the next process can load it
    assert len(contents(folder)) == ALL


def test_all_files_damaged(package: Path, warm: Warm, tmp_path: Path) -> None:
    folder = warm.copy(tmp_path / "kernels")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    outcome = run(package, folder, "train")
    assert (outcome.hits, outcome.misses, outcome.warnings) == (0, ALL, [])
    assert outcome.numbers == warm.outcome.numbers


def test_a_damaged_file_that_cannot_be_removed(package: Path, warm: Warm, tmp_path: Path) -> None:
    folder = warm.copy(tmp_path / "kernels")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    folder.chmod(0o500)
    try:
        outcome = run(package, folder, wrapper=unprivileged())
    finally:
        folder.chmod(0o700)
    assert (outcome.hits, outcome.misses) == (0, PREDICTION)
    assert outcome.numbers == warm.predictions
    assert [category for category, _ in outcome.warnings] == ["RuntimeWarning"]


# ------------------------------------------------------------------------------------------------ stale


def test_an_edited_formula_is_never_served_from_the_old_kernels(package: Path, warm: Warm, tmp_path: Path) -> None:
    folder = warm.copy(tmp_path / "kernels")
    shutil.copytree(package / "fastmlp", tmp_path / "fastmlp")
    unedited = run(tmp_path, folder, "train")
    assert (unedited.hits, unedited.misses) == (ALL, 0)  # all kernels are reused
    assert unedited.numbers == warm.outcome.numbers
    with (tmp_path / "fastmlp" / "nn" / "activations.py").open("a") as file:
        file.write('\n\nACTIVATIONS["leaky-relu"] = ACTIVATIONS["linear"]\n')
    edited = run(tmp_path, folder, "train")
    assert (edited.hits, edited.misses, edited.warnings) == (0, ALL, [])
    same = [old == new for old, new in zip(warm.outcome.numbers, edited.numbers, strict=True)]
    assert same == [True] + [False] * (len(same) - 1)  # only the first number does not depend on the formula
    assert len(contents(folder)) == 2 * ALL


# ------------------------------------------------------------------------------------------------ folders


def check_uncached(outcome: Outcome, warm: Warm, named: str) -> None:
    """Check that the results are correct, no kernel was loaded, and the only warning names the folder."""
    assert outcome.numbers == warm.predictions
    assert (outcome.hits, outcome.misses) == (0, PREDICTION)
    ((category, message),) = outcome.warnings
    assert category == "RuntimeWarning"
    assert named in message
    assert "FASTMLP_CACHE_DIR" in message
    assert "\n" not in message


@pytest.mark.parametrize("place", ["below a file", "below a file's folder", "in proc"])
def test_a_folder_that_cannot_exist(place: str, package: Path, warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = {
        "below a file": tmp_path / "file" / "kernels",
        "below a file's folder": tmp_path / "file" / "a" / "b" / "kernels",
        "in proc": Path("/proc/fastmlp/kernels"),
    }
    if place == "in proc" and not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")
    check_uncached(run(package, places[place]), warm, str(places[place]))


def test_a_folder_that_may_not_be_written(package: Path, warm: Warm, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir(mode=0o500)
    check_uncached(run(package, folder, wrapper=unprivileged()), warm, str(folder))
    assert contents(folder) == {}


def test_a_folder_that_may_only_be_read_still_serves(package: Path, warm: Warm, tmp_path: Path) -> None:
    folder = warm.copy(tmp_path / "kernels")
    folder.chmod(0o500)
    try:
        outcome = run(package, folder, wrapper=unprivileged())
    finally:
        folder.chmod(0o700)
    assert (outcome.hits, outcome.misses, outcome.warnings) == (PREDICTION, 0, [])
    assert outcome.numbers == warm.predictions


def give_away(folder: Path) -> Path:
    try:
        os.chown(folder, 12345, -1)
    except OSError as error:
        pytest.skip(f"cannot change the owner of a folder: {error.strerror}")
    return folder


def open_to(mode: int) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        folder.chmod(mode)
        return folder

    return change


def link(folder: Path) -> Path:
    to = folder.with_name("link")
    to.symlink_to(folder)
    return to


UNSAFE: dict[str, Callable[[Path], Path]] = {
    "foreign": give_away,
    "group": open_to(0o770),
    "others": open_to(0o702),
    "link": link,
}


@pytest.mark.parametrize("how", UNSAFE)
def test_nothing_is_loaded_from_a_folder_that_others_may_write(how: str, package: Path, warm: Warm, tmp_path: Path) -> None:
    folder = warm.copy(tmp_path / "kernels")  # a valid cache that would otherwise be used
    before = contents(folder)
    named = UNSAFE[how](folder)
    check_uncached(run(package, named), warm, str(named))
    assert contents(folder) == before  # nothing was written


# The user database returns TEST_HOME as the home folder, or has no entry for the user, as in many containers.
NO_HOME = """
import os, pwd
def getpwuid(number):
    if "TEST_HOME" not in os.environ:
        raise KeyError(number)
    return pwd.struct_passwd(("name", "x", number, 0, "", os.environ["TEST_HOME"], "/bin/sh"))
pwd.getpwuid = getpwuid
"""


@pytest.mark.parametrize("entry", [True, False])
def test_without_home_and_xdg_cache_home(entry: bool, package: Path, warm: Warm, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    env = environment(package, **({"TEST_HOME": str(home)} if entry else {}))
    outcome = outcome_of(command("predict", work=NO_HOME + WORK), env, work)
    assert outcome.numbers == warm.predictions
    assert outcome.misses == PREDICTION
    assert len(outcome.warnings) == (0 if entry else 1)
    assert len(list(home.rglob("*.kernel"))) == (PREDICTION if entry else 0)
    assert list(work.iterdir()) == []  # no folder named "~"

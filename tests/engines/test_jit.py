"""Tests of NUMBA_DISABLE_JIT=1: `auto` selects the NumPy engine with a warning, and what needs the compiler is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.cli import forget_settings, ok, refused
from support.engines import need_backend
from support.processes import ROOT

from fastmlp import Activation
from fastmlp.commands.doctor import NOTE, self_test
from fastmlp.engines import make_engine, warn_of_disabled_jit
from fastmlp.engines.base import EngineSpec
from fastmlp.engines.jit import jit_is_disabled
from fastmlp.errors import UnavailableError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import SGD

SPEC = EngineSpec(Network((4, 5, 3)), SGD())
REMEDY = "unset the environment variable NUMBA_DISABLE_JIT"


@pytest.fixture
def disabled_jit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Disable the compiler in this process, as the environment variable does when Numba is imported."""
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", 1)
    warn_of_disabled_jit.cache_clear()
    yield
    warn_of_disabled_jit.cache_clear()


@pytest.mark.usefixtures("disabled_jit")
def test_auto_selects_numpy_and_warns_once() -> None:
    with pytest.warns(RuntimeWarning, match=REMEDY) as warned:
        engines = [make_engine("auto", SPEC) for _ in range(3)]
    assert [engine.name for engine in engines] == ["numpy"] * 3
    assert len(warned) == 1


@pytest.mark.usefixtures("disabled_jit")
def test_float64_needs_no_warning() -> None:
    assert make_engine("auto", EngineSpec(Network((4, 5, 3)), SGD(), dtype=np.float64)).name == "numpy"


@pytest.mark.usefixtures("disabled_jit")
def test_the_compiled_engine_is_refused() -> None:
    with pytest.raises(UnavailableError, match=f"^backend 'numba' needs Numba's JIT compiler, which is disabled: {REMEDY}"):
        make_engine("numba", SPEC)


@pytest.mark.usefixtures("disabled_jit")
@pytest.mark.parametrize("other_backend", ["numpy", "torch"])
def test_custom_activations_are_refused(other_backend: str) -> None:
    network = Network((4, 5, 3), activation=Activation("doubled", lambda z, a: 2 * z, lambda z, y, a: 2.0))
    with pytest.raises(UnavailableError, match=f"^activation 'doubled' needs .*: {REMEDY}"):
        make_engine(need_backend(other_backend), EngineSpec(network, SGD()))


@pytest.mark.parametrize(("value", "disabled"), [("1", True), ("0", False), ("", False), ("yes", False), (None, False)])
def test_the_variable_is_read_as_numba_reads_it(monkeypatch: pytest.MonkeyPatch, value: str | None, disabled: bool) -> None:
    """Before Numba is imported, its configuration is not known. Numba ignores values that are not integers."""
    monkeypatch.delitem(sys.modules, "numba.core.config", raising=False)
    if value is None:
        monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    else:
        monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
    assert jit_is_disabled() is disabled


# ------------------------------------------------------------------------------------------------ commands


@pytest.mark.usefixtures("disabled_jit")
def test_commands_work_with_numpy_or_name_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_settings(monkeypatch)
    ok("train", "--epochs", "1", "--hidden", "4", "--backend", "numpy", "--out", tmp_path / "run")
    with pytest.warns(RuntimeWarning, match=REMEDY):
        ok("evaluate", tmp_path / "run", "--backend", "auto")
    for command in (["train", "--out", tmp_path / "other"], ["evaluate", tmp_path / "run"]):
        assert REMEDY in refused(4, *command, "--backend", "numba", "-q")
    for arguments in ([], ["--estimators"]):
        assert REMEDY in refused(4, "bench", *arguments)
    check = self_test()  # of `fastmlp doctor`
    assert (check.name, check.state) == ("self-test", NOTE)
    assert REMEDY in check.value


def run_without_jit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the environment variable, check that it succeeds, and return the process."""
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


PROGRAM = """
import json, sys, warnings
import numpy as np
import fastmlp

x = np.random.default_rng(0).normal(size=(80, 4))
y = (x[:, 0] > 0).astype(int)
network = fastmlp.Network(hidden=(8,))
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    result = fastmlp.train(network, (x, y), epochs=2)
    imported = "numba" in sys.modules
    result.model.predict(x)
    many = fastmlp.train_many([(network, {"epochs": 2, "seed": seed}) for seed in (0, 1)], (x, y))
    fastmlp.find_learning_rate(network, (x, y), batch_size=4)
    fastmlp.MLPClassifier((8,), max_iter=2).fit(x, y).partial_fit(x, y).predict(x)
names = [one.backend for one in (result, *many)]
texts = [str(one.message) for one in warned if one.category is RuntimeWarning]
print(json.dumps({"backends": names, "imported": imported, "warnings": texts}))
"""


@pytest.mark.full
def test_the_library_works_without_the_compiler() -> None:
    """Numba is not even imported by `train`, and there is one warning in the process."""
    found = json.loads(run_without_jit("-c", PROGRAM).stdout)
    assert found["backends"] == ["numpy"] * 3
    assert not found["imported"]
    (text,) = found["warnings"]
    assert REMEDY in text


@pytest.mark.full
def test_the_program_warns_in_one_line(tmp_path: Path) -> None:
    done = run_without_jit("-m", "fastmlp", "train", "--epochs", "1", "--hidden", "4", "-q", "--out", tmp_path / "run")
    (line,) = done.stderr.splitlines()
    assert line.startswith("fastmlp: warning: backend 'auto' selects the NumPy engine")
    assert REMEDY in line

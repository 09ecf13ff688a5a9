"""Imports are fast: in a new process, neither `import fastmlp` nor `fastmlp --help` imports a large package."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.processes import ROOT

pytestmark = pytest.mark.full

HEAVY = {"numba", "llvmlite", "torch", "sklearn", "matplotlib", "scipy", "rich", "pooch", "PIL", "safetensors"}
SECONDS = 60  # timeout in case a process hangs; it usually takes less than a second

REPORT = """
print("imported", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def run_fresh(code: str) -> tuple[str, set[str]]:
    """Run code in a new process; return its output and the top-level packages that it imported."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys\n{code}\n{REPORT}"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    output, _, names = run.stdout.rpartition("imported ")
    return output, set(names.split())


def test_import_fastmlp_is_light() -> None:
    _, names = run_fresh("import fastmlp")
    assert "fastmlp" in names
    assert names & HEAVY == set()
    assert "numpy" not in names


def test_networks_and_optimizers_need_no_heavy_package() -> None:
    _, names = run_fresh("import fastmlp; fastmlp.Network((4, 3, 2)); fastmlp.Optimizer('adam'); dir(fastmlp)")
    assert names & HEAVY == set()


HELP = """
from click.testing import CliRunner
from fastmlp.commands.program import program
for arguments in [["--help"], *([name, "--help"] for name in program.commands)]:
    result = CliRunner().invoke(program, arguments)
    assert result.exit_code == 0, result.output
    print(result.output)
"""


def test_help_of_the_program_is_light() -> None:
    output, names = run_fresh(HELP)
    for command in ("train", "lr-find", "extract", "evaluate", "predict", "compare", "data", "recipes", "doctor", "bench"):
        assert f"program {command} " in output
    assert names & HEAVY == set()


TRAIN = """
import os, tempfile
from fastmlp.commands.program import program
folder = tempfile.TemporaryDirectory()
out = os.path.join(folder.name, "run")
arguments = ["train", "--epochs", "1", "--hidden", "8", "--backend", "numpy", "--quiet", "--out", out, *{options}]
assert program(arguments, standalone_mode=False) in (None, 0)
assert {{"curves.png", "confusion.png"}} <= set(os.listdir(out))
assert "matplotlib.pyplot" not in sys.modules
folder.cleanup()
"""


def heavy_imports_of_training(*options: str) -> set[str]:
    """Run `fastmlp train` on the digits with the NumPy engine; return the packages of `HEAVY` that were imported."""
    return run_fresh(TRAIN.format(options=options))[1] & HEAVY


def test_training_digits_loads_only_what_it_uses() -> None:
    assert heavy_imports_of_training() == {"matplotlib", "PIL", "rich", "safetensors"}


def test_a_heavy_import_is_detected() -> None:
    assert heavy_imports_of_training("--activation", "silu") == {"matplotlib", "PIL", "rich", "safetensors", "scipy"}


LEAVE = """
import atexit, gc
from fastmlp.commands import main
sys.argv = ["fastmlp", "--version"]
atexit.register(lambda: print(gc.get_freeze_count() > 10_000, gc.get_threshold()[0] > 100_000))
try:
    main()
except SystemExit:
    print("left")
"""


def test_the_program_excludes_imported_objects_from_garbage_collection() -> None:
    """At the exit of the program, `gc.freeze` has been called. The hook of this test is registered first, so it runs last."""
    run = subprocess.run([sys.executable, "-c", f"import sys{LEAVE}"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[1:] == ["left", "True True"]


def test_public_names_are_imported_on_first_access() -> None:
    import fastmlp

    assert set(fastmlp.__all__) == set(dir(fastmlp))
    for name in fastmlp.__all__:
        assert getattr(fastmlp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fastmlp.nonsense  # noqa: B018 - the attribute access must raise

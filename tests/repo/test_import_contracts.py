"""The source code satisfies all import-linter contracts (setup.cfg), and each contract detects a deliberate violation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT

pytest.importorskip("importlinter", reason="import-linter is not installed")
pytestmark = pytest.mark.full  # the tests start processes

LINT = """
import sys
from importlinter.cli import lint_imports
sys.exit(lint_imports(limit_to_contracts=tuple(sys.argv[1:]), no_cache=True))
"""

# Name of a contract, a file, and an import statement that violates the contract if it is added to that file.
VIOLATIONS = [
    ("layers", "nn/network.py", "from fastmlp.data.rows import Subset"),
    ("layers", "models/model.py", "def f():\n    from fastmlp.training.loop import train\n    return train"),
    ("layers", "reports/text.py", "from fastmlp.data.rows import Subset"),
    ("layers", "experiments/plan.py", "import fastmlp.bench.machine"),
    ("layers", "files/locks.py", "from fastmlp.nn.network import Network"),
    ("engines", "engines/base.py", "from fastmlp.files import read_json"),
    ("reports", "reports/style.py", "from fastmlp.nn.network import Network"),
    ("bench", "bench/cases.py", "from fastmlp.training.loop import train"),
    ("specification", "reference.py", "from fastmlp.nn.activations import relu_value"),
    ("specification", "engines/torch_engine.py", "from fastmlp.nn.losses import LOSSES"),
    ("cycles", "data/rows.py", "from fastmlp.data.splits import split_rows"),
]


def lint(folder: Path, *contracts: str) -> int:
    """Run import-linter for the given contracts, or for all; return its exit code, which is 0 if there is no violation."""
    command = [sys.executable, "-c", LINT, *contracts]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).returncode


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the files that import-linter reads to a folder, in which a test can add a violation."""
    folder = tmp_path_factory.mktemp("contracts")
    shutil.copytree(ROOT / "fastmlp", folder / "fastmlp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


def test_the_contracts_are_kept(copied: Path) -> None:
    assert lint(copied) == 0


@pytest.mark.parametrize(("contract", "name", "violation"), VIOLATIONS)
def test_each_contract_detects_a_violation(copied: Path, contract: str, name: str, violation: str) -> None:
    file = copied / "fastmlp" / name
    before = file.read_text()
    try:
        file.write_text(f"{before}\n{violation}\n")
        assert lint(copied, contract) == 1
    finally:
        file.write_text(before)

"""The engine's tests on the device, by pytest in a process of its own, whose outcomes are kept as they come."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.part import Part
from benchmarks.gpu.sizes import Sizes
from fastmlp.bench.rounds import Disagreement
from fastmlp.errors import FastMLPError, UnavailableError

NEEDED = ("pytest", "hypothesis", "greenlet")
# Both designs: the contract for small batches, and tiles for large ones.
TESTS = (
    *(f"tests/engines/{name}.py" for name in ("test_contract", "test_contract_state", "test_contract_evaluate")),
    "tests/engines/cuda/test_engine.py",
)
NOT_ON_A_GPU = {"forked": "CUDA cannot be used in a forked child of a process that has used it"}
OUTCOMES = "FASTMLP_TEST_OUTCOMES"  # a file to which outcomes.py adds a line for each test


def run_tests(part: Part, sizes: Sizes, watch: Any) -> None:
    """Counts, and the names of those that failed with the type of their error.

    Raises
    ------
    Disagreement : tests failed, all of them by an assertion
    FastMLPError : a test failed otherwise, or pytest did
    UnavailableError : a package is missing
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UnavailableError(f"the tests need {' and '.join(missing)}")
    chosen = " and ".join(f"not {word}" for word in NOT_ON_A_GPU)
    # Warnings are errors in the tests, but not here, where packages may be newer.
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-W", "default", "-m", "gpu", "-k", chosen]
    command += ["-p", "no:cacheprovider", "-p", "benchmarks.gpu.outcomes", *TESTS]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.jsonl"
        environment = os.environ | {
            "FASTMLP_TEST_GPU": "1",
            OUTCOMES: str(file),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # those of the machine's other packages
        }
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as run:
            assert run.stdout is not None
            end = ""
            for line in run.stdout:  # so that what is known is kept while pytest runs
                end = (end + line)[-4000:]
                part.put("tests", counted(file) | {"deselected": NOT_ON_A_GPU, "end_of_output": end})
        found = counted(file) | {"deselected": NOT_ON_A_GPU, "end_of_output": end, "status": run.returncode}
    part.put("tests", found)
    if found["failed"] or run.returncode != 0:
        kinds = Counter(found["failed"].values())
        kind = Disagreement if set(kinds) == {"AssertionError"} else FastMLPError
        raise kind(f"{found['passed']} passed, failed with {dict(kinds)}, status {run.returncode}: {end[-200:]}")


def counted(file: Path) -> dict[str, Any]:
    """Counts of outcomes so far, and what failed: name and type of error."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    counts = Counter(line["outcome"] for line in lines)
    failed = {line["test"]: line["error"] for line in lines if line["outcome"] == "failed"}
    return {"passed": counts["passed"], "skipped": counts["skipped"], "failed": failed}

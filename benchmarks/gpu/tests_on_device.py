"""Run the tests of the CUDA engine on the GPU, with pytest in a child process; outcomes are saved while it runs."""

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
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import Sizes
from fastmlp.bench.rounds import Disagreement
from fastmlp.errors import FastMLPError, UnavailableError

NEEDED = ("pytest", "hypothesis", "greenlet")
# These tests cover both designs of kernels: those of the engine contract use small batches, cuda/test_engine.py large ones.
TESTS = (
    *(
        f"tests/engines/{name}.py"
        for name in ("test_contract", "test_contract_state", "test_contract_evaluate", "test_contract_losses")
    ),
    "tests/engines/cuda/test_engine.py",
)
DESELECTED = {"forked": "CUDA cannot be used in a forked child of a process that has used it"}
OUTCOMES = "FASTMLP_TEST_OUTCOMES"  # file to which pytest_plugin.py appends a line per test


def run_tests(findings: Findings, sizes: Sizes, runtime: Any) -> None:
    """Run the tests; record how many passed and were skipped, and the exception type of each failed test.

    Raises
    ------
    Disagreement : one or more tests failed, all of them with an AssertionError
    FastMLPError : a test failed with another exception, or pytest itself failed
    UnavailableError : a package is missing
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UnavailableError(f"packages needed by the tests are not installed: {' and '.join(missing)}")
    chosen = " and ".join(f"not {word}" for word in DESELECTED)
    # The test configuration turns warnings into errors. This is overridden, since newer packages may emit other warnings.
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-W", "default", "-m", "gpu", "-k", chosen]
    command += ["-p", "no:cacheprovider", "-p", "benchmarks.gpu.pytest_plugin", *TESTS]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.jsonl"
        environment = os.environ | {
            "FASTMLP_TEST_GPU": "1",
            OUTCOMES: str(file),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # ignore plugins of other packages
        }
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as run:
            assert run.stdout is not None
            end = ""
            for line in run.stdout:  # save the counts while pytest runs
                end = (end + line)[-4000:]
                findings.put("tests", count_outcomes(file) | {"deselected": DESELECTED, "end_of_output": end})
        found = count_outcomes(file) | {"deselected": DESELECTED, "end_of_output": end, "status": run.returncode}
    findings.put("tests", found)
    if found["failed"] or run.returncode != 0:
        kinds = Counter(found["failed"].values())
        kind = Disagreement if set(kinds) == {"AssertionError"} else FastMLPError
        raise kind(f"{found['passed']} passed; failures by type: {dict(kinds)}; exit status {run.returncode}: {end[-200:]}")


def count_outcomes(file: Path) -> dict[str, Any]:
    """Count the outcomes so far; "failed" maps the name of each failed test to the type of its exception."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    counts = Counter(line["outcome"] for line in lines)
    failed = {line["test"]: line["error"] for line in lines if line["outcome"] == "failed"}
    return {"passed": counts["passed"], "skipped": counts["skipped"], "failed": failed}

"""Pytest plugin that appends the outcome of each test to a file, with the type of the exception if it failed."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import without_scipy
from benchmarks.gpu.tests_on_device import OUTCOMES

without_scipy.install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Append a line for each test that ran or was skipped, or whose setup or teardown failed."""
    report = yield
    if report.when == "call" or report.outcome != "passed":
        error = None if call.excinfo is None else call.excinfo.typename
        line = {"test": item.nodeid, "outcome": report.outcome, "error": error}
        with Path(os.environ[OUTCOMES]).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")
    return report

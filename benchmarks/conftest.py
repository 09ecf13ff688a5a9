"""Configuration of pytest for the benchmark suites bench_*.py: python -m pytest benchmarks"""

from __future__ import annotations

from pathlib import Path

import pytest

# All other files are scripts; without this, pytest would import them for `--doctest-modules`. Atheris may not be installed.
collect_ignore = ["fuzz", *(path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("bench_"))]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")

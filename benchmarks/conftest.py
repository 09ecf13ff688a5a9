"""Collection of the benchmark suites, bench_*.py, by pytest: python -m pytest benchmarks"""

from __future__ import annotations

from pathlib import Path

import pytest

# The other files are scripts, which `--doctest-modules` would import.
collect_ignore = [path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("bench_")]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")

"""How pytest finds and runs the suites of benchmarks, bench_*.py: python -m pytest benchmarks"""

from __future__ import annotations

from pathlib import Path

import pytest

# The other files here are scripts; `--doctest-modules` would import them.
collect_ignore = [path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("bench_")]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")

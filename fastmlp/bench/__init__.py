"""Benchmark behind `fastmlp bench`: training times of fastmlp's engines and of other libraries on the same task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmlp._lazy import lazy

if TYPE_CHECKING:
    from fastmlp.bench.cases import Case as Case
    from fastmlp.bench.cases import choose_cases as choose_cases
    from fastmlp.bench.report import bench_text as bench_text
    from fastmlp.bench.report import write_bench as write_bench
    from fastmlp.bench.rounds import BenchSettings as BenchSettings
    from fastmlp.bench.rounds import run_bench as run_bench

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "cases": ["Case", "choose_cases"],
        "report": ["bench_text", "write_bench"],
        "rounds": ["BenchSettings", "run_bench"],
    },
)

"""Command `fastmlp bench`; the measurements are in fastmlp/bench."""

from __future__ import annotations

from typing import Any

import click

from fastmlp.commands.console import say, show, show_json
from fastmlp.commands.options import bench_options, common_options


@click.command()
@bench_options
@common_options
def bench(
    networks: tuple[str, ...],
    batches: tuple[int, ...],
    everything: bool,
    backends: str | None,
    out: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Measure how fast networks train, here and with other libraries.

    \b
    fastmlp bench                                     a minute or two
    fastmlp bench --network 784-512-10 --batch-size 64 --batch-size 1024 --out speed
    fastmlp bench --backends numba,jax --rounds 9
    fastmlp bench --all --out speed                   as in README, half an hour

    Seconds per epoch of each, median and range over rounds in which all take turns, on the same rows in the same
    order. Who does not get the specified loss in a first epoch from the same start is left out. GFLOP/s are of
    the matrix products; the ceiling is what as many threads reach by multiply-adds in registers, measured in the
    same rounds. Networks are classifiers (softmax cross-entropy) in float32.
    """
    from fastmlp.bench.cases import choose_cases
    from fastmlp.bench.report import bench_text, make_folder, write_bench
    from fastmlp.bench.rivals import parse_names
    from fastmlp.bench.rounds import BenchSettings, run_bench

    settings = BenchSettings(choose_cases(networks, batches, everything), backends=parse_names(backends), **flags)
    folder = None if out is None else make_folder(out)
    result = run_bench(settings, say)
    if folder is not None:
        write_bench(result, folder)
    if as_json:
        show_json(result)
    else:
        show(bench_text(result))

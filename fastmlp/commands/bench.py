"""The command `fastmlp bench`. The package fastmlp.bench takes the measurements."""

from __future__ import annotations

from typing import Any

import click

from fastmlp.commands.console import say, show, show_json
from fastmlp.commands.options import Command, bench_options, common_options


@click.command(cls=Command)
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
    """Measure the training speed of fastmlp and of other libraries.

    \b
    fastmlp bench                                     takes a minute or two
    fastmlp bench --network 784-512-10 --batch-size 64 --batch-size 1024 --out speed
    fastmlp bench --backends numba,jax --rounds 9
    fastmlp bench --all --out speed                   the table in README.md; takes half an hour

    Reports the median and the range of the seconds per epoch. In every round, each library trains for one epoch on the
    same rows in the same order. All libraries start from the same initial weights; a library whose first-epoch loss
    disagrees is excluded. GFLOP/s count only the matrix products. The ceiling is the peak multiply-add rate of the same
    number of threads, measured in the same rounds. All networks are float32 classifiers with softmax output and
    cross-entropy loss.
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

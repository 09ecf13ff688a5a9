"""The command `fastmlp bench`. The package fastmlp.bench takes the measurements."""

from __future__ import annotations

from typing import Any

import click

from fastmlp.commands.common.console import say, show, show_json
from fastmlp.commands.common.options import Command, bench_options, common_options
from fastmlp.errors import ConfigError


@click.command(cls=Command)
@bench_options
@common_options
def bench(
    networks: tuple[str, ...],
    batches: tuple[int, ...],
    everything: bool,
    estimators: bool,
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
    fastmlp bench --estimators --out speed            the table in docs/estimators.md; takes ten minutes

    Reports the median and the range of the seconds per epoch. In every round, each library trains for one epoch on the
    same rows in the same order. All libraries start from the same initial weights. A library is excluded if its
    loss in the first epoch differs from that of the reference implementation. GFLOP/s count only the matrix products. The
    ceiling is the peak multiply-add rate of the same number of threads, measured in the same rounds. All networks are
    float32 classifiers with softmax output and cross-entropy loss.
    """
    if estimators:
        if networks or batches or everything or backends:
            raise ConfigError(
                "the estimators are compared in cases of their own; leave out the other settings",
                settings=("network", "batch_size", "all", "backends"),
            )
        show_result(*estimator_bench(out, flags["rounds"], flags["data_dir"]), as_json)
        return
    from fastmlp.bench.cases import choose_cases
    from fastmlp.bench.report import bench_text, make_folder, write_bench
    from fastmlp.bench.rivals import parse_names
    from fastmlp.bench.rounds import BenchSettings, run_bench

    settings = BenchSettings(choose_cases(networks, batches, everything), backends=parse_names(backends), **flags)
    folder = None if out is None else make_folder(out)
    result = run_bench(settings, say)
    if folder is not None:
        write_bench(result, folder)
    show_result(result, bench_text(result), as_json)


def estimator_bench(out: str | None, rounds: int, data_dir: str | None) -> tuple[dict[str, Any], str]:
    """Compare the estimators, and return the result and its text; the folder `out` gets estimators.json."""
    from fastmlp.bench.estimators import estimators_text, run_estimators
    from fastmlp.bench.report import make_folder
    from fastmlp.files import write_json

    folder = None if out is None else make_folder(out)
    result = run_estimators(say, rounds, data_dir)
    if folder is not None:
        write_json(folder / "estimators.json", result)
    return result, estimators_text(result)


def show_result(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Write a result to standard output, as JSON or as text."""
    if as_json:
        show_json(result)
    else:
        show(text)

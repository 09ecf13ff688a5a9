"""The program `fastmlp`: each command parses, calls and prints. No arithmetic, no heavy import before it is needed.

One contract for all: results on stdout, everything else on stderr; --json prints exactly one object; a flag wins
over its variable FASTMLP_<FLAG>, that over --config, that over the default; nothing ever asks a question.
Exit codes: 0 done, 1 a bug, 2 usage or configuration, 3 bad data or file, 4 something is missing, 5 diverged,
6 a threshold was missed, 130 and 143 after SIGINT and SIGTERM.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from fastmlp import __version__
from fastmlp.commands.console import (
    SOURCE,
    Chain,
    Program,
    Sections,
    bench_options,
    common_options,
    config_option,
    data_dir_option,
    end_by_signal,
    engine_options,
    is_quiet,
    is_verbose,
    note,
    prepare_process,
    recipe_option,
    say,
    setting_options,
    show,
    show_extraction,
    show_figures,
    show_json,
    show_reports,
    source_options,
)
from fastmlp.commands.data import data
from fastmlp.commands.recipes import recipes
from fastmlp.errors import UnavailableError
from fastmlp.experiments.config.extract import OF_EXTRACT, ExtractConfig
from fastmlp.experiments.config.train import Config

# The object is what commands below the program's own that train convolutional networks ask for package cnn.
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "obj": lambda: extraction_tools()}  # noqa: PLW0108


@click.group(cls=Program, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="fastmlp", message="%(prog)s %(version)s")
def program() -> None:
    """Train multi-layer perceptrons, fast.

    \b
    fastmlp train                           handwritten digits, in seconds, without a download
    fastmlp train --data fashion-mnist --hidden 400,250,100 --dropout 0.2 --out runs/a
    fastmlp evaluate runs/a                 the same figures once more
    fastmlp predict runs/a shirt.png        a label and its probability
    fastmlp extract --data photos/ train    a convolutional network's features into the same
    fastmlp recipes                         published experiments, by name
    fastmlp doctor                          what this machine has, and whether it works
    fastmlp bench                           how fast it trains, and how fast others do
    """


@program.command(cls=Sections)
@setting_options(Config)
@source_options
@recipe_option
@common_options
def train(recipe: str | None, config: str | None, print_config: bool, as_json: bool, **flags: Any) -> None:
    """Train a network, measure it, and write a run folder.

    \b
    fastmlp train
    fastmlp train --data mnist --hidden 500,250,100 --optimizer sgd --lr 0.01 --epochs 15
    fastmlp train --data prices.csv --target value --hidden 64,64 --activation silu
    fastmlp train --data photos/ --image-size 32,32 --max-time 2m --json
    fastmlp train --config runs/a/config.toml --seed 1
    fastmlp train --recipe cs776-mlp-6 --seed 1

    Every setting can also come from a variable, such as FASTMLP_BATCH_SIZE for --batch-size, or from a key in
    the --config file, such as batch_size = 64. The flag wins over the variable, the variable over the file.
    FASTMLP_DATA is the variable of --data-dir, that of --data is FASTMLP_DATASET.

    The run folder gets config.toml, metrics.jsonl (a line per epoch), result.json (what --json prints),
    model.safetensors, curves.png, confusion.png, report.txt and manifest.json. Ctrl-C ends the training and keeps the best
    weights so far.
    """
    from fastmlp.experiments.config.sources import resolve
    from fastmlp.experiments.recipes.recipe import settings_of

    settings = resolve(flags, os.environ, config, settings_of(recipe, "train"))
    if print_config:
        show(settings.text())
        return
    run_training(settings, as_json)


def run_training(settings: Config, as_json: bool, extracted: Any = None) -> None:
    """What `train` does with its settings; `extracted` is what `extract` has just made."""
    from fastmlp.experiments.result import check_accuracy
    from fastmlp.experiments.training_run import train_run

    if is_verbose():
        note(settings.text())
    outcome = train_run(settings, quiet=is_quiet(), say=say, data=extracted and extracted.data)
    if extracted is not None and not outcome.signal:
        from fastmlp.experiments.chain import draw_chain

        draw_chain(extracted, Path(outcome.result["out"]))
    show_figures(outcome.result, as_json)
    end_by_signal(outcome.signal)
    check_accuracy(outcome.result, "test", settings.min_accuracy)


@program.group(cls=Chain, invoke_without_command=True)
@setting_options(ExtractConfig, ["target"])
@source_options
@recipe_option
@common_options
@click.pass_context
def extract(
    ctx: click.Context, /, recipe: str | None, config: str | None, print_config: bool, as_json: bool, **flags: Any
) -> None:
    """Train a convolutional network on images, and make features of them for `train`.

    \b
    fastmlp extract --data fashion-mnist --filters 16,32,64,128,256 --init xavier --out features.npz
    fastmlp train --data features.npz --hidden 512
    fastmlp extract --data fashion-mnist --epochs 10 train --hidden 512        the same in one line
    fastmlp extract --data photos/ --image-size 64,64 --backbone resnet18 --flip 0.5
    fastmlp extract --kernel 5,4 --padding 2,1 --filters 8,12 --pool avg,avg --pool-kernel 4 --regularize batch

    The file is a data set with the parts of the images, and has the network in it: a model that was trained on it
    knows where its inputs come from, and `evaluate` and `predict` take images. The same settings and images make the
    same features; if the file is there, nothing is done. Ctrl-C leaves a checkpoint, and the same command goes on from it.

    Needs PyTorch: pip install 'fastmlp[cnn]'.
    """
    from fastmlp.experiments.config.sources import resolve_as
    from fastmlp.experiments.extraction import draw_extraction, extract_run
    from fastmlp.experiments.recipes.recipe import settings_of

    settings = resolve_as(ExtractConfig, flags, os.environ, config, settings_of(recipe, "extract"))
    ctx.obj = settings, settings_of(recipe, "extract train"), as_json
    if print_config:
        show(settings.text())
        ctx.exit()
    if ctx.invoked_subcommand is not None:  # it runs the extraction, after its own settings have been checked
        return
    found = extract_run(settings, extraction_tools(), quiet=is_quiet(), say=say)
    draw_extraction(found, found.job.pictures)
    show_extraction(found.result, as_json)
    end_by_signal(found.signal)


@extract.command("train", cls=Sections)
@setting_options(Config, OF_EXTRACT)
@config_option
@common_options
@click.pass_obj
def extract_train(chained: tuple[ExtractConfig, Any, bool], /, config: str | None, as_json: bool, **flags: Any) -> None:
    """Make the features, and train a network on them; as `fastmlp train`, without the options of data."""
    from dataclasses import replace

    from fastmlp.experiments.config.sources import resolve
    from fastmlp.experiments.extraction import check_chain, extract_run

    images, recipe, json_before = chained
    settings = resolve(flags | images.chained_flags(), os.environ, config, recipe)
    check_chain(images, settings)
    extracted = extract_run(images, extraction_tools(), follows=settings, quiet=is_quiet(), say=say)
    end_by_signal(extracted.signal)
    run_training(replace(settings, data=extracted.source), as_json or json_before, extracted)


def extraction_tools() -> Any:
    """Package cnn, or an error that tells what to install."""
    try:
        from cnn import toolkit
    except ModuleNotFoundError as error:
        raise UnavailableError(f"extract needs PyTorch ({error}); install it with: pip install 'fastmlp[cnn]'") from error
    return toolkit


def open_extractor(data: bytes, name: str) -> Any:
    """An extractor from its bytes, for models that take features of images."""
    from cnn.extractor import from_bytes

    extraction_tools()
    return from_bytes(data, name)


@program.command()
@click.argument("run", metavar="RUN|MODEL")
@click.option("--data", "source", envvar="FASTMLP_DATASET", metavar=SOURCE, help="[default: the run's own]")
@data_dir_option
@click.option(
    "--part",
    type=click.Choice(["test", "validation", "train", "all"]),
    default="test",
    show_default=True,
    envvar="FASTMLP_PART",
    help="Part of the data. The run's own data are split as in the run; of other data without a test part "
    "all rows are the test part.",
)
@engine_options
@click.option("--report", is_flag=True, envvar="FASTMLP_REPORT", help="Print a classification report as scikit-learn does.")
@click.option("--predictions", metavar="FILE", help="Write loss, accuracy, and true,predicted class of each row of the part.")
@click.option(
    "--min-accuracy",
    type=click.FloatRange(0, 1),
    envvar="FASTMLP_MIN_ACCURACY",
    help="Exit with code 6 if the accuracy is lower.",
)
@common_options
def evaluate(run: str, part: str, report: bool, min_accuracy: float | None, as_json: bool, **choices: Any) -> None:
    """Measure a saved model on data.

    \b
    fastmlp evaluate runs/a
    fastmlp evaluate runs/a --part all --json
    fastmlp evaluate runs/a --report --predictions predictions.txt
    fastmlp evaluate runs/a/model.safetensors --data new.csv --min-accuracy 0.9
    """
    from fastmlp.experiments.evaluation import evaluate_run
    from fastmlp.experiments.result import check_accuracy

    result = evaluate_run(run, part=part, open_extractor=open_extractor, **choices)
    if report and not as_json:
        show_reports(result)
    else:
        show_figures(result, as_json)
    check_accuracy(result, "test" if part == "all" else part, min_accuracy)


@program.command()
@click.argument("run", metavar="RUN|MODEL")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "--top",
    type=click.IntRange(1),
    envvar="FASTMLP_TOP",
    help="How many classes to tell of each row [default: 1; in --json and --out all].",
)
@click.option("--out", metavar="FILE.csv", help="Write a csv file instead of lines on stdout.")
@engine_options
@common_options
def predict(run: str, inputs: tuple[str, ...], top: int | None, out: str | None, as_json: bool, **engine: Any) -> None:
    """Predict labels with probabilities, or values, of images, .csv and .npz files.

    \b
    fastmlp predict runs/a shirt.png shoe.jpg
    fastmlp predict runs/a new.csv --top 3
    fastmlp predict runs/a new.npz --out labels.csv

    A line has the input, the label and its probability, with tabs between; further classes follow with --top.
    Images may have any size, grey or colour. They are brought to the form that the model was trained on: one
    channel is luma (ITU-R BT.601), transparency lies over black, resizing is bilinear; nothing is inverted.
    A .csv file has the features, or a label and then the features; an .npz file has them in its array x.
    """
    from fastmlp.experiments.prediction import as_csv, as_lines, predict_files
    from fastmlp.files import write_bytes

    found = predict_files(run, inputs, top, open_extractor=open_extractor, **engine)
    if out is not None:
        write_bytes(out, as_csv(found))
    if as_json:
        show_json({"predictions": found})
    elif out is None:
        show("\n".join(as_lines(found, top or 1)))


@program.command()
@data_dir_option
@common_options
def doctor(data_dir: str | None, as_json: bool) -> None:
    """Tell what this machine has, and test in a second whether it works.

    The exit code is 4 if something is broken; what is merely not there is noted.
    """
    from fastmlp.commands.doctor import BROKEN, as_table, examine

    checks = examine(data_dir)
    broken = [check.name for check in checks if check.state == BROKEN]
    if as_json:
        show_json({"ok": not broken, "checks": [check._asdict() for check in checks]})
    else:
        show(as_table(checks))
    if broken:
        raise UnavailableError(f"broken: {', '.join(broken)}; the remedy stands beside it in the table")


@program.command()
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


program.add_command(data)
program.add_command(recipes)


def main() -> None:
    """The console script."""
    prepare_process()
    program(prog_name="fastmlp")


if __name__ == "__main__":
    main()

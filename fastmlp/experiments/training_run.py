"""One training run from its settings to its folder.

Here: data loaded and split, `train_run`, and what goes into result.json. Not here: the training loop
(loop.py), figures (evaluation.py), how files are written (artifacts.py), pictures and tables (report.py, tables.py),
and what is done with a run afterwards (saved.py).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import platform
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp import __version__
from fastmlp.data.checks import Rows
from fastmlp.data.dataset import DATASETS, Dataset, load_data
from fastmlp.data.rows import take
from fastmlp.data.scaling import fit_scaling
from fastmlp.data.splits import split_rows
from fastmlp.errors import ConfigError, DivergedError, ThresholdError
from fastmlp.experiments.config.train import Config, DataSettings, flag
from fastmlp.experiments.folder import CLASSES_NAME, METRICS_NAME, check_free, new_run_folder, take_away, write_manifest
from fastmlp.experiments.snapshots import Snapshots
from fastmlp.files import append_line, read_lines, write_bytes, write_json, write_toml
from fastmlp.models.evaluation import judge
from fastmlp.models.file import FILE_NAME, save
from fastmlp.models.model import Model
from fastmlp.nn.network import Network
from fastmlp.nn.scaling import Scaling
from fastmlp.reports.listings import PREDICTIONS_NAME, REPORT_NAME, classification_report, predictions_text
from fastmlp.training.loop import Diverged, Interrupted, Row, Training
from fastmlp.training.progress import Progress, make_progress
from fastmlp.training.settings import Settings, check_moves
from fastmlp.training.training import train

CONFIG_NAME = "config.toml"
RESULT_NAME = "result.json"
CURVES_NAME = "curves.png"
CONFUSION_NAME = "confusion.png"
CLASSES_PICTURE = "classes.png"
NOT_ALWAYS = (CONFUSION_NAME, CLASSES_PICTURE, REPORT_NAME, PREDICTIONS_NAME)  # what some runs do not write
PART_NAMES = ("test", "validation", "train")
PART_FLAGS = {"test": "--test-fraction", "validation": "--val-fraction"}
FEATURES_OF = "features of "  # begins what stands in place of the data of a run whose features have no file
PACKAGES = ("numpy", "numba", "llvmlite", "scikit-learn")

Parts = dict[str, Rows]  # the parts that have rows, by their names in PART_NAMES
Say = Callable[[str], None]


class Plan(NamedTuple):
    """All that a run needs, checked before anything is written."""

    config: Config
    settings: Settings
    data: Dataset
    parts: Parts
    network: Network


class Ended(NamedTuple):
    """How a training ended: `signal` or 0, `error` if it diverged after its first epoch, and wall `seconds`."""

    training: Training
    signal: int
    error: DivergedError | None
    seconds: float


class Outcome(NamedTuple):
    """The object in result.json, and the signal that ended the training early, 0 for none."""

    result: dict[str, Any]
    signal: int


# ------------------------------------------------------------------------------------------------ before


def make_plan(config: Config, progress: bool = False, data: Dataset | None = None) -> Plan:
    """Load and split the data, unless they are given, and describe the network that fits them."""
    settings = config.settings()  # first, since wrong settings show at once, and data may take long
    if data is None and config.data.startswith(FEATURES_OF):
        raise ConfigError(
            f"{config.data} were made in memory; run `fastmlp extract … train` again, or give a file of them as --data"
        )
    if data is None:
        data = load_data(config.data, config.data_dir, image_size=config.image_size, target=config.target, progress=progress)
    parts = split(data, config)
    if data.validation is not None and "validation" not in parts:  # the settings cannot know it
        settings = dataclasses.replace(settings, patience=None)
    check_parts(config, parts)
    check_moves(settings, data.image_shape)
    network = config.network(data.x.shape[1], len(data.classes) or data.y.shape[1])
    return Plan(config, settings, data, parts, network)


def split(data: Dataset, config: DataSettings) -> Parts:
    """The parts of a data set that have rows. Parts of memory-mapped rows are subsets, not copies."""
    parts: Parts = {name: (take(data.x, rows), data.y[rows]) for name, rows in split_numbers(data, config).items()}
    if data.x_test is not None and data.y_test is not None:
        parts["test"] = (data.x_test, data.y_test)
    return parts


def check_parts(config: Config, names: Collection[str]) -> None:
    """Raise ConfigError if a setting needs a part of the data that is not among these."""
    for name, part in (("min_accuracy", "test"), ("predictions", "test"), ("val_steps", "validation")):
        if (value := getattr(config, name)) is not None and value is not False and part not in names:
            raise ConfigError(f"{name} needs a {part} part; give {PART_FLAGS[part]}, or leave {flag(name)} out")


def split_numbers(data: Dataset, config: DataSettings) -> dict[str, npt.NDArray[np.int64]]:
    """The rows of `data.x` in each part that has any: a pure function of y, the sizes, `stratify` and the seed.

    Test and validation part are the data's own, if it has them; else they are cut off together.
    """
    if data.validation is not None:
        rest = np.setdiff1d(np.arange(len(data.y)), data.validation, assume_unique=True)
        return {name: rows for name, rows in (("train", rest), ("validation", data.validation)) if len(rows)}
    sizes = {"validation": size(config.val_count, config.val_fraction)}
    if data.x_test is None:
        sizes["test"] = size(config.test_count, config.test_fraction)
    rest, *cut = split_rows(data.y, [*sizes.values()], config.stratify, config.seed)
    return {name: rows for name, rows in {"train": rest, **dict(zip(sizes, cut, strict=True))}.items() if len(rows)}


def size(count: int | None, fraction: float | None) -> float | int:
    return count if count is not None else fraction or 0


def check_settings(config: Config) -> None:
    """Check what needs no data, for those whose data are features that take long: raises ConfigError as `train_run` would."""
    check_moves(config.settings(), None)
    config.network(1, 2)
    if config.out is not None:
        check_free(Path(config.out), config.force)


@contextmanager
def run_folder(plan: Plan) -> Iterator[Path]:
    """The folder of a run; taken away again if it was made here and nothing came into it."""
    config = plan.config
    existed = config.out is not None and Path(config.out).exists()
    now = datetime.now().astimezone()
    folder = new_run_folder(config.out, plan.data.name, plan.network.label, now, force=config.force)
    try:
        yield folder
    finally:
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def load_for_the_end() -> None:
    """Load now what only the end needs, fonts and file formats included: after Ctrl-C there is no time for it."""
    from matplotlib.figure import Figure

    Figure().savefig(io.BytesIO())


# ------------------------------------------------------------------------------------------------ the run


def train_run(config: Config, *, quiet: bool = False, say: Say = lambda text: None, data: Dataset | None = None) -> Outcome:
    """Train as the settings say, measure the best weights, and write the run folder.

    Parameters
    ----------
    config : the settings
    quiet : no progress on stderr
    say : takes a line for a person on what is being done
    data : what to train on instead of what the settings name: features that an extractor has just made

    Returns
    -------
    Outcome : its `signal` is SIGINT or SIGTERM if that ended the training; the folder is complete then too

    Raises
    ------
    FastMLPError : settings or data that cannot be used; then no folder is made
    Diverged : if an epoch was finished before, the folder is complete, with the best weights; else none is

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = Config(hidden=(16,), epochs=2, backend="numpy", out=f"{folder}/run")
    ...     result, signal = train_run(config, quiet=True)
    ...     sorted(path.name for path in Path(folder, "run").iterdir())  # doctest: +NORMALIZE_WHITESPACE
    ['config.toml', 'confusion.png', 'curves.png', 'manifest.json', 'metrics.jsonl', 'model.safetensors',
     'report.txt', 'result.json']
    """
    plan = make_plan(config, progress=not quiet, data=data)
    rows = ", ".join(f"{len(x):,} {name}" for name, (x, _) in plan.parts.items())
    say(f"{plan.data.name}: {rows} rows; network {plan.network.label}, {plan.network.parameters:,} parameters")
    load_for_the_end()
    with run_folder(plan) as folder:
        with make_progress(quiet=quiet, epochs=config.epochs) as display:
            ended = run_training(plan, Recorder(display, folder, portable(config)), folder)
        result = finish(plan, ended, folder)
    say(f"{ended.training.stopped} after epoch {result['epochs']}, best {result['best_epoch']}: {folder}")
    if ended.error is not None:
        raise ended.error
    return Outcome(result, ended.signal)


class Recorder:
    """Progress that also writes metrics.jsonl; the files of a run begin with its first finished epoch."""

    def __init__(self, display: Progress, folder: Path, config: Mapping[str, Any]) -> None:
        self.display, self.folder, self.config = display, folder, config
        self.update = display.update

    def epoch_done(self, row: Row) -> None:
        if row["epoch"] == 1:
            write_toml(self.folder / CONFIG_NAME, self.config)
        append_line(self.folder / METRICS_NAME, row)
        self.display.epoch_done(row)


def run_training(plan: Plan, recorder: Recorder, folder: Path) -> Ended:
    """Train to the end, to a signal, or to the epoch before the one that diverged."""
    signal, error = 0, None
    scaling = fit_scaling(plan.config.scale, plan.parts["train"][0])
    began = time.perf_counter()
    try:
        training = train(
            plan.network,
            *plan.parts["train"],
            settings=plan.settings,
            validation=plan.parts.get("validation"),
            scaling=scaling,
            classes=plan.data.classes or None,
            image_shape=plan.data.image_shape,
            callbacks=[snapshots_of(plan, folder, scaling)],
            progress=recorder,
        )
    except Interrupted as stop:
        training, signal = stop.training, stop.signal
    except Diverged as stop:
        if stop.training is None:
            raise
        training, error = stop.training, stop
    return Ended(training, signal, error, time.perf_counter() - began)


def snapshots_of(plan: Plan, folder: Path, scaling: Scaling) -> Snapshots:
    """What is to be kept of a network while it trains."""
    network, start = plan.network, np.zeros(plan.network.parameters, plan.settings.dtype)
    model = Model(network, start, scaling, plan.data.classes, backend=plan.settings.backend, **of_images(plan.data))
    return Snapshots(folder, plan.config, model, plan.parts)


def of_images(data: Dataset) -> dict[str, Any]:
    """What a model knows of the images that it is applied to, and of the network that turns them into its inputs."""
    if data.extractor is None or data.about is None:
        return {"image_shape": data.image_shape}
    return {"image_shape": tuple(data.about["network"]["image_shape"]), "extractor": data.extractor}


def portable(config: Config) -> dict[str, Any]:
    """The settings as a run keeps them: they give the same run from any folder, into a folder of its own."""
    table = {name: value for name, value in config.table().items() if name not in ("out", "force")}
    if config.data not in DATASETS and not config.data.startswith(FEATURES_OF):
        table["data"] = str(Path(config.data).absolute())
    if config.data_dir is not None:
        table["data_dir"] = str(Path(config.data_dir).absolute())
    return table


# ------------------------------------------------------------------------------------------------ after


def finish(plan: Plan, ended: Ended, folder: Path) -> dict[str, Any]:
    """Write what a run leaves behind, first what cannot be had again; the object in result.json."""
    model = dataclasses.replace(ended.training.model, **of_images(plan.data))
    training = ended.training._replace(model=model)
    save(model, folder / FILE_NAME)
    left_out = ("train",) if ended.signal else ()  # to end soon
    judged = {name: judge(model, *plan.parts[name]) for name in plan.parts if name not in left_out}
    figures = {name: found for name, (found, _) in judged.items()}
    result = describe(plan, ended._replace(training=training), figures) | {"out": str(folder)}
    write_json(folder / RESULT_NAME, result)
    write_manifest(folder)
    take_away(folder, NOT_ALWAYS)  # those of an earlier run
    if plan.config.predictions:
        found, predicted = judged["test"]
        write_bytes(folder / PREDICTIONS_NAME, predictions_text(plan.parts["test"][1], predicted, found).encode())
    shown = result["test"] or result["validation"] or result["train"]
    if model.classes and shown is not None:
        write_bytes(folder / REPORT_NAME, classification_report(shown).encode())
    draw(training, shown, folder)
    return result


def draw(training: Training, shown: dict[str, Any] | None, folder: Path) -> None:
    """The pictures of a run; `shown` are the figures of the part whose confusions are to be seen."""
    from fastmlp.reports.curves import plot_confusion, plot_curves
    from fastmlp.reports.images import plot_classes

    classes = training.model.classes
    plot_curves(training.history, training.best_epoch, folder / CURVES_NAME)
    if classes and shown is not None:
        plot_confusion(shown["confusion"], classes, folder / CONFUSION_NAME)
    if (folder / CLASSES_NAME).exists():
        plot_classes(read_lines(folder / CLASSES_NAME), classes, folder / CLASSES_PICTURE)


def describe(plan: Plan, ended: Ended, figures: dict[str, Any]) -> dict[str, Any]:
    """The object in result.json but "out", with the figures of each part that was measured."""
    training, history = ended.training, ended.training.history
    rows = len(plan.parts["train"][0])
    whole = [row["seconds"] for row in history if row["rows"] == rows]
    epoch = statistics.median(whole or [row["seconds"] * rows / row["rows"] for row in history])
    return {
        **{name: figures.get(name) for name in PART_NAMES},
        "epochs": len(history),
        "best_epoch": training.best_epoch,
        "stopped": training.stopped,
        "seconds_per_epoch": epoch,
        "seconds": ended.seconds,
        "gflops": plan.network.flops_per_row * rows / epoch / 1e9,
        "parameters": plan.network.parameters,
        "backend": training.backend,
        "threads": training.threads,
        "seed": plan.config.seed,
        "data": describe_data(plan.data, plan.parts),
        "network": describe_network(plan.network),
        "versions": versions(training.backend),
    }


def describe_data(data: Dataset, parts: Parts) -> dict[str, Any]:
    """What result.json tells of the data."""
    return {
        "name": data.name,
        "sha256": data.sha256,
        "features": data.x.shape[1],
        "classes": list(data.classes),
        **({} if data.about is None else {"extracted": dict(data.about)}),
        "rows": {name: len(x) for name, (x, _) in parts.items()},
    }


def describe_network(network: Network) -> dict[str, Any]:
    """What result.json tells of the network."""
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(network).items()}
    return {"label": network.label, **fields}


def versions(backend: str) -> dict[str, str]:
    """Versions of Python and of the packages that compute, without importing them."""
    names = (*PACKAGES, "torch") if backend == "torch" else PACKAGES
    packages = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "fastmlp": __version__, **packages}


def check_accuracy(result: Mapping[str, Any], part: str, least: float | None) -> None:
    """Raise ThresholdError if the accuracy of a part is lower than asked for."""
    if least is None:
        return
    if "accuracy" not in result[part]:
        raise ConfigError("min_accuracy is for classes, but this model predicts values; leave it out")
    accuracy = result[part]["accuracy"]
    if accuracy < least:
        raise ThresholdError(f"{part} accuracy {accuracy:.6g} is below the {least:g} of --min-accuracy")

"""The commands `fastmlp evaluate` and `fastmlp verify`. experiments/evaluation.py and verification.py implement them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastmlp.commands.common.console import (
    given_flags,
    note,
    resolved,
    resume_hint,
    say,
    show,
    show_figures,
    show_json,
    show_reports,
)
from fastmlp.commands.common.options import (
    SOURCE,
    Command,
    common_options,
    data_dir_option,
    engine_options,
    invert_option,
    max_decompressed_option,
    skip_bad_option,
    with_flags,
)
from fastmlp.commands.common.toolkit import open_extractor
from fastmlp.errors import printable
from fastmlp.files.reading import is_folder


@click.command(cls=Command)
@click.argument("run", metavar="RUN|MODEL")
@click.option(
    "--data", "source", envvar="FASTMLP_DATASET", metavar=SOURCE, help="Data to evaluate on [default: the data of the run]."
)
@data_dir_option
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "train", "all"]),
    default="test",
    show_default=True,
    envvar="FASTMLP_SPLIT",
    help="Split to evaluate on. The data of the run are split as in the run. If other data have no test split, "
    "all their rows are used as the test split.",
)
@invert_option
@skip_bad_option
@max_decompressed_option
@engine_options
@click.option(
    "--report", is_flag=True, envvar="FASTMLP_REPORT", help="Print a classification report in the format of scikit-learn."
)
@click.option("--predictions", metavar="FILE", help="Write loss, accuracy, and each row's true and predicted class to FILE.")
@click.option(
    "--mistakes",
    metavar="FILE.png|FILE.csv",
    help="Plot the misclassified images to FILE.png, or write the misclassified rows of a table to FILE.csv; for regression, "
    "the rows with the largest residuals.",
)
@click.option(
    "--min-accuracy",
    type=click.FloatRange(0, 1),
    envvar="FASTMLP_MIN_ACCURACY",
    help="Exit with code 6 if the accuracy is below this value.",
)
@common_options
def evaluate(run: str, split: str, report: bool, min_accuracy: float | None, as_json: bool, **choices: Any) -> None:
    """Evaluate a saved model on data.

    \b
    fastmlp evaluate runs/a
    fastmlp evaluate runs/latest --split all --json
    fastmlp evaluate runs/a --report --predictions predictions.txt
    fastmlp evaluate runs/a --split validation --mistakes mistakes.png
    fastmlp evaluate runs/a/model.safetensors --data new.csv --min-accuracy 0.9

    The images of a folder given by --data are inverted as in `fastmlp predict`. The data of the run are only inverted with
    --invert yes.
    """
    from fastmlp.experiments.evaluation import evaluate_run
    from fastmlp.experiments.result import check_accuracy

    run = resolved(run)
    result = evaluate_run(run, split=split, open_extractor=open_extractor, say=lambda text: note(with_flags(text)), **choices)
    if not result["complete"] and is_folder(Path(run)):
        note(resume_hint(run))
    if report and not as_json:
        show_reports(result)
    else:
        show_figures(result, as_json)
    check_accuracy(result, "test" if split == "all" else split, min_accuracy)


@click.command(cls=Command)
@click.argument("run", metavar="RUN")
@click.option("--data", metavar=SOURCE, help="Path of the data of the run, if they have been moved.")
@data_dir_option
@engine_options
@common_options
def verify(run: str, as_json: bool, **flags: Any) -> None:
    """Check that a run can be reproduced.

    \b
    fastmlp verify runs/a

    The training is restarted from the second-to-last checkpoint, or from the beginning if there is only one, and
    continues up to the last checkpoint. The weights and the optimizer state are compared with the last checkpoint, the
    best weights with model.safetensors, and the metrics with metrics.jsonl, by their SHA-256 hashes. The run folder is
    not changed. The exit code is 3 if there is a difference.
    """
    from fastmlp.experiments.verification import check_verified, verify_run

    run = resolved(run)
    result = verify_run(Path(run), given_flags(flags), say=say)
    first, last = result["epochs"]
    epochs = f"epoch {last} was" if first == last else f"epochs {first} to {last} were"
    if as_json:
        show_json(result)
    elif result["same"]:
        show(f"{printable(run)}: {epochs} reproduced, with identical {', '.join(result['sha256'])}")
    check_verified(result)

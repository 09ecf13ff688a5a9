"""The command `fastmlp evaluate`. experiments/evaluation.py implements it."""

from __future__ import annotations

from typing import Any

import click

from fastmlp.commands.console import note, show_figures, show_reports
from fastmlp.commands.options import SOURCE, Command, common_options, data_dir_option, engine_options
from fastmlp.commands.toolkit import open_extractor


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
@engine_options
@click.option(
    "--report", is_flag=True, envvar="FASTMLP_REPORT", help="Print a classification report in the format of scikit-learn."
)
@click.option("--predictions", metavar="FILE", help="Write loss, accuracy, and each row's true and predicted class to FILE.")
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
    fastmlp evaluate runs/a --split all --json
    fastmlp evaluate runs/a --report --predictions predictions.txt
    fastmlp evaluate runs/a/model.safetensors --data new.csv --min-accuracy 0.9
    """
    from fastmlp.experiments.evaluation import evaluate_run
    from fastmlp.experiments.result import check_accuracy

    result = evaluate_run(run, split=split, open_extractor=open_extractor, say=note, **choices)
    if report and not as_json:
        show_reports(result)
    else:
        show_figures(result, as_json)
    check_accuracy(result, "test" if split == "all" else split, min_accuracy)

"""Command `fastmlp evaluate`; the measuring is in experiments/evaluation.py."""

from __future__ import annotations

from typing import Any

import click

from fastmlp.commands.console import show_figures, show_reports
from fastmlp.commands.options import SOURCE, common_options, data_dir_option, engine_options
from fastmlp.commands.toolkit import open_extractor


@click.command()
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

"""The command `fastmlp predict`. experiments/prediction.py implements it."""

from __future__ import annotations

from typing import Any

import click

from fastmlp.commands.common.console import say, show, show_json
from fastmlp.commands.common.options import Command, common_options, engine_options
from fastmlp.commands.common.toolkit import open_extractor


@click.command(cls=Command)
@click.argument("run", metavar="RUN|MODEL")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "--top",
    type=click.IntRange(1),
    envvar="FASTMLP_TOP",
    help="Number of most probable classes per row [default: 1, or all with --json and --out].",
)
@click.option("--out", metavar="FILE.csv", help="Write the predictions to a CSV file instead of stdout.")
@engine_options
@common_options
def predict(run: str, inputs: tuple[str, ...], top: int | None, out: str | None, as_json: bool, **engine: Any) -> None:
    """Predict classes or values with a saved model.

    The inputs are images, or tables and .npz files, whose rows are all predicted.

    \b
    fastmlp predict runs/a shirt.png shoe.jpg
    fastmlp predict runs/a new.csv --top 3
    fastmlp predict runs/a new.npz --out labels.csv

    Each output line has the input, the predicted label and its probability, separated by tabs. --top adds more classes.
    For regression, the line has the predicted values instead.

    Images may have any size, and may be grayscale or color. They are converted to the shape of the training images:
    color is converted to grayscale (ITU-R BT.601 luma) if the model takes one channel, transparent pixels are blended
    with black, and images are resized by bilinear interpolation. Pixel values are never inverted.

    The columns of a table (.csv, .tsv, .parquet) are matched by their names. Other columns, such as the label, are ignored.
    An .npz file has the features in an array x.
    """
    from fastmlp.experiments.prediction import as_csv, as_lines, predict_files
    from fastmlp.files import write_bytes

    found = predict_files(run, inputs, top, open_extractor=open_extractor, say=say, **engine)
    if out is not None:
        write_bytes(out, as_csv(found))
    if as_json:
        show_json({"predictions": found})
    elif out is None:
        show("\n".join(as_lines(found, top or 1)))

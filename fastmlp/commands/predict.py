"""The command `fastmlp predict`. experiments/prediction.py implements it."""

from __future__ import annotations

from typing import Any

import click

from fastmlp.commands.common.console import show, show_json
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
@click.option("--out", metavar="FILE", help="Write the predictions to a .csv, .json or .jsonl file instead of stdout.")
@engine_options
@common_options
def predict(run: str, inputs: tuple[str, ...], top: int | None, out: str | None, as_json: bool, **engine: Any) -> None:
    """Predict classes or values with a saved model.

    The inputs are images, or .csv and .npz files, whose rows are all predicted.

    \b
    fastmlp predict runs/a shirt.png shoe.jpg
    fastmlp predict runs/a new.csv --top 3
    fastmlp predict runs/a new.npz --out labels.csv

    Each line on stdout has the input, the predicted label and its probability, separated by tabs. --top adds more classes.
    For regression, the line has the predicted values instead. --out writes the format that the suffix names: CSV with a
    column per class or value, one JSON object as with --json, or one JSON object per line (.jsonl).

    Images may have any size, and may be grayscale or color. They are converted to the shape of the training images:
    color is converted to grayscale (ITU-R BT.601 luma) if the model takes one channel, transparent pixels are blended
    with black, and images are resized by bilinear interpolation. Pixel values are never inverted.

    A .csv file has the feature columns, which may follow a label column. An .npz file has the features in an array x.
    """
    from fastmlp.experiments.prediction import predict_files
    from fastmlp.files import write_bytes
    from fastmlp.reports.predictions import as_lines, format_of

    file_format = None if out is None else format_of(out)  # a wrong suffix is reported first
    found = predict_files(run, inputs, top, open_extractor=open_extractor, **engine)
    if out is not None and file_format is not None:
        write_bytes(out, file_format(found))
    if as_json:
        show_json({"predictions": found})
    elif out is None:
        show("\n".join(as_lines(found, top or 1)))

"""Command `fastmlp predict`. See experiments/prediction.py for the predictions."""

from __future__ import annotations

from typing import Any

import click

from fastmlp.commands.console import show, show_json
from fastmlp.commands.options import Command, common_options, engine_options
from fastmlp.commands.toolkit import open_extractor


@click.command(cls=Command)
@click.argument("run", metavar="RUN|MODEL")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "--top",
    type=click.IntRange(1),
    envvar="FASTMLP_TOP",
    help="Number of classes per row [default: 1; all in --json and --out].",
)
@click.option("--out", metavar="FILE.csv", help="Write a CSV file instead of lines on stdout.")
@engine_options
@common_options
def predict(run: str, inputs: tuple[str, ...], top: int | None, out: str | None, as_json: bool, **engine: Any) -> None:
    """Predict labels with probabilities, or numbers, for images, .csv and .npz files.

    \b
    fastmlp predict runs/a shirt.png shoe.jpg
    fastmlp predict runs/a new.csv --top 3
    fastmlp predict runs/a new.npz --out labels.csv

    Each line has the input, the label and its probability, separated by tabs; --top adds further classes.
    Images may have any size, in grayscale or color. They are converted to the shape of the training images: colors
    become luma (ITU-R BT.601) for one channel, transparency is blended with black, resizing is bilinear; nothing is
    inverted. A .csv file has the features, or a label and then the features; an .npz file has them in its array x.
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

"""Command `fastmlp predict`; the predictions are made in experiments/prediction.py."""

from __future__ import annotations

from typing import Any

import click

from fastmlp.commands.console import show, show_json
from fastmlp.commands.options import common_options, engine_options
from fastmlp.commands.toolkit import open_extractor


@click.command()
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

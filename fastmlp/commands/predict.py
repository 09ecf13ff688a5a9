"""The command `fastmlp predict`. experiments/prediction.py implements it."""

from __future__ import annotations

from typing import Any

import click

from fastmlp.commands.common.console import resolved, say, show, show_json
from fastmlp.commands.common.options import (
    Command,
    common_options,
    engine_options,
    invert_option,
    max_decompressed_option,
    skip_bad_option,
    with_flags,
)
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
@invert_option
@click.option(
    "--center",
    is_flag=True,
    envvar="FASTMLP_CENTER",
    help="Scale the drawing in each image and move it to the center, as in the images of MNIST.",
)
@skip_bad_option
@max_decompressed_option
@click.option("--show", metavar="FILE.png", help="Plot the images after all conversions, with their predictions, to this file.")
@engine_options
@common_options
def predict(run: str, inputs: tuple[str, ...], top: int | None, out: str | None, as_json: bool, **choices: Any) -> None:
    """Predict classes or values with a saved model.

    Each INPUT is an image, a folder of images, a table, an .npz or .npy file, or a glob pattern in quotes. All rows of
    tables and arrays are predicted. RUN can be runs/latest, the run in the folder runs that was started or resumed last.

    \b
    fastmlp predict runs/a shirt.png shoe.jpg
    fastmlp predict runs/latest photos/
    fastmlp predict runs/latest 'scans/**/*.png' --center --show inputs.png
    fastmlp predict runs/a new.csv --top 3
    fastmlp predict runs/a new.npz --out labels.csv

    Each line on stdout has the input, the predicted label and its probability, separated by tabs. --top adds more classes.
    For regression, the line has the predicted values instead. The suffix of --out sets the format of the file: .csv has a
    column per class or value, .json has one JSON object as with --json, and .jsonl has one JSON object per line.

    Images may have any size, and may be grayscale or color. They are converted to the shape of the training images: the
    EXIF orientation of photos is applied, transparent images are composited over white, or over black if they are light,
    color is converted to grayscale (ITU-R BT.601 luma) if the model takes one channel, and images are resized by bilinear
    interpolation. If the training images are light on dark, like those of MNIST, images that are dark on light are
    inverted, and vice versa.

    The columns of a table (.csv, .tsv, .parquet) are matched by their names. Other columns, such as the label, are ignored.
    An .npz file contains the features as an array x.
    """
    from fastmlp.data.images.inputs import ImageOptions
    from fastmlp.experiments.prediction import predict_files
    from fastmlp.files import write_bytes
    from fastmlp.reports.predictions import as_lines, format_of

    file_format = None if out is None else format_of(out)  # a wrong suffix is reported first
    choices["images"] = ImageOptions(*(choices.pop(name) for name in ("invert", "center", "skip_bad")))
    choices["say"] = lambda text: say(with_flags(text))
    shown = top or 1
    wanted = top if as_json or out is not None else shown  # None for all classes, which can be many
    found = predict_files(resolved(run), inputs, wanted, open_extractor=open_extractor, **choices)
    if out is not None and file_format is not None:
        write_bytes(out, file_format(found))
    if as_json:
        show_json({"predictions": found})
    elif out is None:
        show("\n".join(as_lines(found, shown)))

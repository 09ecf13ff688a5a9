"""Prediction with a saved model for image, .csv and .npz files, and output of the predictions as text and as CSV."""

from __future__ import annotations

import csv
import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import SourceLocation, check_features
from fastmlp.data.features import Extractor, OpenExtractor, extract_rows
from fastmlp.data.images.inputs import ImageInputs, ImageOptions, find_files
from fastmlp.data.readers.arrays import npz_array, open_npz
from fastmlp.data.readers.csv_table import csv_rows, csv_table, is_number, read_csv
from fastmlp.data.rows import Array, Features
from fastmlp.errors import ConfigError, DataError, UnavailableError
from fastmlp.experiments.plan import Say
from fastmlp.models.model import Model, load

Prediction = dict[str, Any]


def predict_files(  # noqa: PLR0913 - the options of a command
    path: str | Path,
    inputs: Iterable[str | Path],
    top: int | None = None,
    backend: str | None = None,
    threads: int | None = None,
    open_extractor: OpenExtractor | None = None,
    *,
    images: ImageOptions | None = None,
    show: str | Path | None = None,
    say: Say = lambda text: None,
) -> list[Prediction]:
    """Predict every row of the given files.

    Parameters
    ----------
    path : run folder, or model file
    inputs : image files (`images.load_images` converts them), .csv files, and .npz files with an array x; folders of images
        and patterns, see `inputs.find_files`. A .csv file contains only the features, or an additional first column with
        labels, which is ignored. Without labels, the first line is a header if none of its cells is a number; with labels,
        `csv_table.read_csv` reads the file.
    top : number of classes to return per row, in descending order of probability; None returns all classes
    backend, threads : see `engines.make_engine`; a backend of None means "auto"
    open_extractor : function that loads the feature extractor stored in a model that was trained on features of images. The
        extractor is applied to images, and to rows with as many columns as an image has pixels
    images : how images are inverted and centered, and whether unreadable ones are skipped; None for the defaults of
        `ImageOptions`. Arrays of type uint8 in .npz files count as images if they have as many columns as an image has pixels
    show : PNG file to which the converted images and their predictions are plotted
    say : function that is called with a message about images that were inverted or skipped

    Returns
    -------
    list : one dict per row. Its keys are "input" and "row" (the number of the row in its file, starting at 1), and for
        classification also "label", "probability" and "probabilities" (a dict from class name to probability, in descending
        order). The last two are called "score" and "scores" if the output function is not softmax. For regression, the
        additional key is "values".

    Raises
    ------
    ConfigError : an option is for images, but the model or a file is not
    DataError : a file is missing or damaged, or does not fit the model; or a folder or a pattern stands for no files

    Examples
    --------
    >>> import tempfile
    >>> from fastmlp import Network
    >>> network = Network((2, 2))
    >>> model = Model(network, network.initial_parameters(seed=0), classes=("no", "yes"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model.safetensors")
    ...     np.savez(f"{folder}/new.npz", x=np.zeros((1, 2), np.float32))
    ...     (found,) = predict_files(f"{folder}/model.safetensors", [f"{folder}/new.npz"], backend="numpy")
    >>> found["row"], found["label"], found["probabilities"]
    (1, 'no', {'no': 0.5, 'yes': 0.5})
    """
    model = load(path, backend=backend or "auto", threads=threads)
    converter = image_inputs(model, images or ImageOptions(), show)
    files = find_files(inputs)
    inputs_of = input_maker(model, open_extractor)
    # All files are read first, to reject invalid ones early.
    rows = [(file, x) for file in files if (x := read_rows(file, model, inputs_of, converter)) is not None]
    if converter is not None:
        converter.check()
    found = [answer for file, x in rows for answer in answers(model, file, x, top)]
    for text in [] if converter is None else converter.notes():
        say(text)
    if converter is not None and show is not None:
        show_inputs(converter, found, Path(show))
    return found


def read_rows(
    file: Path,
    model: Model,
    inputs_of: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    converter: ImageInputs | None,
) -> npt.NDArray[Any] | None:
    """Return the rows of a file, shape (n, features); None for an unreadable image that is skipped.

    `inputs_of` maps images to features; it is used if the model was trained on features of images. `converter` reads and
    converts images; it is None if the model takes no images.
    """
    features = model.network.sizes[0]
    pixels = math.prod(model.image_shape) if model.extractor is not None and model.image_shape else features
    match file.suffix.lower():
        case ".csv":
            x = read_table(file, pixels)
        case ".npz":
            x, made = read_arrays(file)
            if made and model.extractor is not None and x.shape[1] == features:
                return x
            if converter is not None and x.dtype == np.uint8 and x.shape[1] == pixels:
                x = converter.rows(x, file)
        case _ if converter is None:
            raise DataError(f"{file}: the model was not trained on images; give a .csv or an .npz file")
        case _ if (image := converter.read(file)) is None:
            return None
        case _:
            x = image
    if model.extractor is not None and x.shape[1] == pixels:
        return inputs_of(x)
    if x.shape[1] != features:
        raise DataError(f"{file}: rows of {x.shape[1]} features, but the model takes {features}")
    return x


def image_inputs(model: Model, options: ImageOptions, show: str | Path | None) -> ImageInputs | None:
    """Return the converter of images for a model; None if the model takes no images.

    Raises
    ------
    ConfigError : the model takes no images, but an option is for images
    """
    if model.image_shape is not None:
        return ImageInputs(model.image_shape, model.image_stats, options)
    given = {"invert": options.invert == "yes", "center": options.center, "show": show is not None}
    if names := [name for name, value in given.items() if value]:
        raise ConfigError(f"{names[0]} is for images, but the model was not trained on images; leave it out", settings=names)
    return None


def show_inputs(converter: ImageInputs, predictions: Sequence[Prediction], path: Path) -> None:
    """Plot the first images as the model gets them, with their predictions; raise ConfigError if there are none."""
    from fastmlp.reports.images import plot_inputs

    if not converter.kept:
        raise ConfigError("show is for images, but the inputs are tables; leave it out", settings=("show",))
    by_place = {(one["input"], one["row"]): one for one in predictions}
    height, width, channels = converter.image_shape
    shape = (height, width) if channels == 1 else converter.image_shape
    shown = [by_place[key] for key in converter.kept]
    captions = [(Path(place(one)).name, "  ".join(fields(one, 1))) for one in shown]
    plot_inputs([row.reshape(shape) for row in converter.kept.values()], captions, path, converter.total)


def read_table(file: Path, features: int) -> npt.NDArray[Any]:
    """Return the feature columns of a .csv file; an optional label column before them is ignored."""
    first = next(csv_rows(file), [])
    if len(first) == features + 1:
        x: npt.NDArray[Any] = read_csv(file).x
        return x
    if len(first) != features:
        raise DataError(
            f"{file}: {len(first)} columns, but the model takes {features} features,"
            f" or {features + 1} columns with a label first"
        )
    header = not any(is_number(cell.strip()) for cell in first)
    return csv_table(file, int(header), text=False)[0]


def read_arrays(file: Path) -> tuple[npt.NDArray[Any], bool]:
    """Return the array x of an .npz file as rows, and whether `extract` wrote the file; other arrays are ignored."""
    with open_npz(file, "x=...") as archive:
        if "x" not in archive.files:
            raise DataError(f"{file}: no array x (it holds: {', '.join(archive.files) or 'nothing'}); save the rows as x")
        x = check_features(npz_array(file, archive, "x"), SourceLocation(f"{file}: array 'x'"))[0]
        return x, {"provenance", "extractor"} <= set(archive.files)


def answers(model: Model, file: Path, x: npt.NDArray[Any], top: int | None) -> list[Prediction]:
    """Return one prediction per row of x, in the format of `predict_files`."""
    outputs = model.outputs(x)
    start = [{"input": str(file), "row": number} for number in range(1, len(x) + 1)]
    if not model.classes:
        return [one | {"values": row.tolist()} for one, row in zip(start, outputs, strict=True)]
    word, words = ("probability", "probabilities") if model.network.output == "softmax" else ("score", "scores")
    found = []
    for one, row in zip(start, outputs, strict=True):
        ranks = np.argsort(-row, kind="stable")[:top]
        shares = {model.classes[k]: float(row[k]) for k in ranks}
        label = model.classes[ranks[0]]
        found.append(one | {"label": label, word: shares[label], words: shares})
    return found


def as_lines(predictions: Sequence[Prediction], top: int) -> list[str]:
    """Return one line per prediction, with fields separated by tabs.

    The first field is the input, with the row number for .csv and .npz files. The label and the probability of each of the
    `top` most probable classes follow or, for regression, the predicted values.

    >>> as_lines([{"input": "a.png", "row": 1, "label": "7", "probability": 0.75, "probabilities": {"7": 0.75}}], 1)
    ['a.png\\t7\\t0.7500']
    """
    return ["\t".join([place(one), *fields(one, top)]) for one in predictions]


def place(one: Prediction) -> str:
    """Return the input of a prediction, followed by the row number for .csv and .npz files."""
    table = Path(one["input"]).suffix.lower() in (".csv", ".npz")
    return f"{one['input']}:{one['row']}" if table else str(one["input"])


def fields(one: Prediction, top: int) -> list[str]:
    """Return the fields that follow the input in a line."""
    if "values" in one:
        return [f"{value:.6g}" for value in one["values"]]
    pairs = list(shares_of(one).items())[:top]
    return [text for name, share in pairs for text in (name, f"{share:.4f}")]


def shares_of(one: Prediction) -> Mapping[str, float]:
    """Return a dict from class to probability or score, in descending order."""
    shares: Mapping[str, float] = one.get("probabilities") or one["scores"]
    return shares


def as_csv(predictions: Sequence[Prediction]) -> bytes:
    """Return the predictions as CSV with a header line.

    The columns are input, row, label, and one column for each class that any prediction contains. For regression, columns
    with the predicted values follow the row.
    """
    if "values" in predictions[0]:
        names = [f"value_{number}" for number in range(1, len(predictions[0]["values"]) + 1)]
        body = [[one["input"], one["row"], *one["values"]] for one in predictions]
    else:
        shown = sorted({name for one in predictions for name in shares_of(one)})
        names = ["label", *shown]
        body = [[one["input"], one["row"], one["label"], *map(shares_of(one).get, shown)] for one in predictions]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["input", "row", *names], *body])
    return text.getvalue().encode("utf-8", "backslashreplace")


def input_maker(model: Model, open_extractor: OpenExtractor | None) -> Callable[[Features], Array]:
    """Return a function that maps images, shape (n, pixels), to features with the extractor stored in the model.

    The extractor is loaded at the first call, which raises UnavailableError if `open_extractor` is None.
    """

    @functools.cache
    def extractor() -> Extractor:
        """Load the extractor, once for all images."""
        assert model.extractor is not None
        if open_extractor is None:
            raise UnavailableError(
                "this model takes features; pass open_extractor=fastmlp.cnn.extractor.from_bytes, or features instead of images"
            )
        return open_extractor(model.extractor, "the model's extractor")

    return lambda pixels: extract_rows(extractor(), pixels)

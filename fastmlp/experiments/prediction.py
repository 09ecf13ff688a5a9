"""Prediction with a saved model for image, .csv and .npz files, and output of the predictions as text and as CSV."""

from __future__ import annotations

import csv
import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import SourceLocation, check_features
from fastmlp.data.features import Extractor, OpenExtractor, extract_rows
from fastmlp.data.readers.arrays import npz_array, open_npz
from fastmlp.data.readers.images import load_images
from fastmlp.data.readers.table import is_table
from fastmlp.data.rows import Array, Features
from fastmlp.data.tables.load import load_features
from fastmlp.errors import DataError, UnavailableError
from fastmlp.experiments.plan import Say
from fastmlp.models.model import Model, load

Prediction = dict[str, Any]


def predict_files(
    path: str | Path,
    inputs: Iterable[str | Path],
    top: int | None = None,
    backend: str | None = None,
    threads: int | None = None,
    open_extractor: OpenExtractor | None = None,
    say: Say = lambda text: None,
) -> list[Prediction]:
    """Predict every row of the given files.

    Parameters
    ----------
    path : run folder, or model file
    inputs : image files (`images.load_images` converts them), tables, and .npz files with an array x. The columns of a table
        are matched by the names of the columns that the model was trained on, and other columns are ignored
    top : number of classes to return per row, in descending order of probability; None returns all classes
    backend, threads : see `engines.make_engine`; a backend of None means "auto"
    open_extractor : function that loads the feature extractor stored in a model that was trained on features of images. The
        extractor is applied to images, and to rows with as many columns as an image has pixels
    say : function that is called with messages about the inputs, such as columns that are ignored

    Returns
    -------
    list : one dict per row. Its keys are "input" and "row" (the number of the row in its file, starting at 1), and for
        classification also "label", "probability" and "probabilities" (a dict from class name to probability, in descending
        order). The last two are called "score" and "scores" if the output function is not softmax. For regression, the
        additional key is "values". A row of a table with missing values, if the model was trained without such rows, has the
        label "" and no probabilities, or no values

    Raises
    ------
    DataError : a file is missing or damaged, or does not fit the model

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
    files = [Path(one) for one in inputs]
    inputs_of = input_maker(model, open_extractor)
    rows = [read_rows(file, model, inputs_of, say) for file in files]  # all are read first, to reject invalid files early
    return [answer for file, found in zip(files, rows, strict=True) for answer in answers(model, file, found, top)]


class Rows(NamedTuple):
    """Rows of a file, (n, features), and where rows lack values, so that they cannot be predicted, (n,) bool; None: nowhere."""

    x: npt.NDArray[Any]
    incomplete: npt.NDArray[np.bool_] | None = None


def read_rows(file: Path, model: Model, inputs_of: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], say: Say) -> Rows:
    """Return the rows of a file.

    `inputs_of` maps images to features; it is used if the model was trained on features of images.
    """
    features = model.network.sizes[0]
    pixels = math.prod(model.image_shape) if model.extractor is not None and model.image_shape else features
    incomplete = None
    match file.suffix.lower():
        case _ if is_table(file):
            encoded = load_features(file, model.encoding, pixels)
            for note in encoded.notes:
                say(f"{file}: {note}")
            x, incomplete = encoded.x, encoded.incomplete
            if incomplete.any():
                say(f"{file}: {int(incomplete.sum())} rows have missing values, so they are answered without a label")
        case ".npz":
            x, made = read_arrays(file)
            if made and model.extractor is not None and x.shape[1] == features:
                return Rows(x)
        case _ if model.image_shape is None:
            raise DataError(f"{file}: the model was not trained on images; give a table, such as a .csv file, or an .npz file")
        case _:
            x = load_images([file], model.image_shape)
    if model.extractor is not None and x.shape[1] == pixels:
        return Rows(inputs_of(x), incomplete)
    if x.shape[1] != features:
        raise DataError(f"{file}: rows of {x.shape[1]} features, but the model takes {features}")
    return Rows(x, incomplete)


def read_arrays(file: Path) -> tuple[npt.NDArray[Any], bool]:
    """Return the array x of an .npz file as rows, and whether `extract` wrote the file; other arrays are ignored."""
    with open_npz(file, "x=...") as archive:
        if "x" not in archive.files:
            raise DataError(f"{file}: no array x (it holds: {', '.join(archive.files) or 'nothing'}); save the rows as x")
        x = check_features(npz_array(file, archive, "x"), SourceLocation(f"{file}: array 'x'"))[0]
        return x, {"provenance", "extractor"} <= set(archive.files)


def answers(model: Model, file: Path, rows: Rows, top: int | None) -> list[Prediction]:
    """Return one prediction per row, in the format of `predict_files`."""
    outputs = model.outputs(rows.x)
    start = [{"input": str(file), "row": number} for number in range(1, len(rows.x) + 1)]
    incomplete = np.zeros(len(start), bool) if rows.incomplete is None else rows.incomplete
    if not model.classes:
        every = zip(start, outputs, incomplete, strict=True)
        return [one | {"values": [] if lacks else row.tolist()} for one, row, lacks in every]
    word, words = ("probability", "probabilities") if model.network.output == "softmax" else ("score", "scores")
    found = []
    for one, row, lacks in zip(start, outputs, incomplete, strict=True):
        if lacks:
            found.append(one | {"label": "", word: None, words: {}})
            continue
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
    file = Path(one["input"])
    several = is_table(file) or file.suffix.lower() == ".npz"
    return f"{one['input']}:{one['row']}" if several else str(one["input"])


def fields(one: Prediction, top: int) -> list[str]:
    """Return the fields that follow the input in a line."""
    if "values" in one:
        return [f"{value:.6g}" for value in one["values"]]
    if not one["label"]:
        return [""]
    pairs = list(shares_of(one).items())[:top]
    return [text for name, share in pairs for text in (name, f"{share:.4f}")]


def shares_of(one: Prediction) -> Mapping[str, float]:
    """Return a dict from class to probability or score, in descending order."""
    shares: Mapping[str, float] = one["probabilities"] if "probabilities" in one else one["scores"]
    return shares


def as_csv(predictions: Sequence[Prediction]) -> bytes:
    """Return the predictions as CSV with a header line.

    The columns are input, row, label, and one column for each class that any prediction contains. For regression, columns
    with the predicted values follow the row.
    """
    if "values" in predictions[0]:
        names = [f"value_{number}" for number in range(1, max(len(one["values"]) for one in predictions) + 1)]
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

"""Prediction with a saved model for image, .csv and .npz files. reports/predictions.py formats the predictions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import SourceLocation, check_features
from fastmlp.data.features import Extractor, OpenExtractor, extract_rows
from fastmlp.data.readers.arrays import npz_array, open_npz
from fastmlp.data.readers.csv_table import csv_rows, csv_table, is_number, read_csv
from fastmlp.data.readers.images import load_images
from fastmlp.data.rows import Array, Features
from fastmlp.errors import DataError, UnavailableError
from fastmlp.models.model import Model, load
from fastmlp.reports.predictions import Prediction


def predict_files(
    path: str | Path,
    inputs: Iterable[str | Path],
    top: int | None = None,
    backend: str | None = None,
    threads: int | None = None,
    open_extractor: OpenExtractor | None = None,
) -> list[Prediction]:
    """Predict every row of the given files.

    Parameters
    ----------
    path : run folder, or model file
    inputs : image files (`images.load_images` converts them), .csv files, and .npz files with an array x. A .csv file
        contains only the features, or an additional first column with labels, which is ignored. Without labels, the first
        line is a header if none of its cells is a number; with labels, `csv_table.read_csv` reads the file.
    top : number of classes to return per row, in descending order of probability; None returns all classes
    backend, threads : see `engines.make_engine`; a backend of None means "auto"
    open_extractor : function that loads the feature extractor stored in a model that was trained on features of images. The
        extractor is applied to images, and to rows with as many columns as an image has pixels

    Returns
    -------
    list : one dict per row. Its keys are "input" and "row" (the number of the row in its file, starting at 1), and for
        classification also "label", "probability" and "probabilities" (a dict from class name to probability, in descending
        order). The last two are called "score" and "scores" if the output function is not softmax. For regression, the
        additional key is "values".

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
    rows = [read_rows(file, model, inputs_of) for file in files]  # all are read first, to reject invalid files early
    return [answer for file, x in zip(files, rows, strict=True) for answer in answers(model, file, x, top)]


def read_rows(file: Path, model: Model, inputs_of: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the rows of a file, shape (n, features).

    `inputs_of` maps images to features; it is used if the model was trained on features of images.
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
        case _ if model.image_shape is None:
            raise DataError(f"{file}: the model was not trained on images; give a .csv or an .npz file")
        case _:
            x = load_images([file], model.image_shape)
    if model.extractor is not None and x.shape[1] == pixels:
        return inputs_of(x)
    if x.shape[1] != features:
        raise DataError(f"{file}: rows of {x.shape[1]} features, but the model takes {features}")
    return x


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

"""Prediction with a saved model for images, tables, and files of arrays. reports/predictions.py formats the predictions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import SourceLocation, check_features
from fastmlp.data.features import Extractor, OpenExtractor, extract_rows
from fastmlp.data.images.inputs import ImageInputs, ImageOptions, find_files
from fastmlp.data.readers.arrays import map_npy, npz_array, open_npz
from fastmlp.data.readers.table import is_table
from fastmlp.data.rows import Array, Features
from fastmlp.data.tables.load import load_features
from fastmlp.errors import ConfigError, DataError, UnavailableError
from fastmlp.experiments.plan import Say
from fastmlp.files.limits import decompression_limit
from fastmlp.files.reading import check_paths, check_regular, given_paths
from fastmlp.models.model import Model, load
from fastmlp.nn.blocks import inference_blocks
from fastmlp.reports.predictions import Prediction, fields, place


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
    max_decompressed: float | None = None,
    say: Say = lambda text: None,
) -> list[Prediction]:
    """Predict every row of the given files.

    Parameters
    ----------
    path : run folder, or model file
    inputs : image files, tables, .npz files with an array x, .npy files, folders of images, and glob patterns, see
        `inputs.find_files`. Images are converted as in `readers.images.load_images`. The columns of a table are matched by the
        names of the columns that the model was trained on, and other columns are ignored
    top : number of classes to return per row, in descending order of probability; None returns all classes
    backend, threads : see `engines.make_engine`; a backend of None means "auto"
    open_extractor : function that loads the feature extractor stored in a model that was trained on features of images. The
        extractor is applied to images, and to rows with as many columns as an image has pixels
    images : how images are inverted and centered, and whether unreadable ones are skipped; None for the defaults of
        `ImageOptions`. Arrays of type uint8 count as images if they have as many columns as an image has pixels
    show : PNG file to which the converted images and their predictions are plotted
    max_decompressed : see `load_data`
    say : function that is called with messages about the inputs, such as columns that are ignored, or images that were inverted

    Returns
    -------
    list : one dict per row. Its keys are "input" and "row" (the number of the row in its file, starting at 1), and for
        classification also "label", "probability" and "probabilities" (a dict from class name to probability, in descending
        order). The last two are called "score" and "scores" if the output function is not softmax. For regression, the
        additional key is "values". A row of a table with missing values, if the model was trained without such rows, has the
        label "" and no probabilities, or no values

    Raises
    ------
    ConfigError : an option is for images, but the model or a file is not
    DataError : a file is missing or damaged, or does not fit the model; a folder has no images; or no file matches a pattern

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
    inputs = given_paths("inputs", inputs)
    check_paths(show=show)
    model = load(path, backend=backend or "auto", threads=threads)
    converter = image_inputs(model, images or ImageOptions(), show)
    files = find_files(inputs)
    inputs_of = input_maker(path, model, open_extractor)
    # All files are read first, to reject invalid ones early.
    with decompression_limit(max_decompressed):
        rows = [(file, read) for file in files if (read := read_rows(file, model, inputs_of, converter, say)) is not None]
    if converter is not None:
        converter.check()
    found = [one for file, read in rows for one in predictions_of(model, file, read, top)]
    for text in [] if converter is None else converter.notes():
        say(text)
    if converter is not None and show is not None:
        show_inputs(converter, found, Path(show))
    return found


class Rows(NamedTuple):
    """Rows of a file, (n, features), and which of them have missing values and cannot be predicted, (n,) bool or None."""

    x: npt.NDArray[Any]
    incomplete: npt.NDArray[np.bool_] | None = None


def read_rows(
    file: Path,
    model: Model,
    inputs_of: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    converter: ImageInputs | None,
    say: Say,
) -> Rows | None:
    """Return the rows of a file; None for an unreadable image that is skipped.

    `inputs_of` maps images to features; it is used if the model was trained on features of images. `converter` reads and
    converts images; it is None if the model was not trained on images.
    """
    check_regular(file)
    features = model.network.sizes[0]
    pixels = math.prod(model.image_shape) if model.extractor is not None and model.image_shape else features
    incomplete: npt.NDArray[np.bool_] | None = None
    match file.suffix.lower():
        case _ if is_table(file):
            x, incomplete = read_table(file, model, pixels, say)
        case ".npz" | ".npy":
            x, made = read_arrays(file)
            if made and model.extractor is not None and x.shape[1] == features:
                return Rows(x)
            if converter is not None and x.dtype == np.uint8 and x.shape[1] == pixels:
                x = converter.rows(x, file)
        case ".pt" | ".pth" | ".safetensors":
            raise DataError(f"{file}: arrays are predicted from .npz and .npy files; save the rows in one of these formats")
        case _ if converter is None:
            raise DataError(f"{file}: the model was not trained on images; give a table, such as a .csv file, or an .npz file")
        case _ if (image := converter.read(file)) is None:
            return None
        case _:
            x = image
    if model.extractor is not None and x.shape[1] == pixels:
        return Rows(inputs_of(x), incomplete)
    if x.shape[1] != features:
        raise DataError(f"{file}: rows of {x.shape[1]} features, but the model takes {features}")
    return Rows(x, incomplete)


def read_table(file: Path, model: Model, features: int, say: Say) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the features of a table, (n, features), and where rows have missing values that are not replaced, (n,) bool."""
    found = load_features(file, model.encoding, features)
    for note in found.notes:
        say(f"{file}: {note}")
    if count := int(found.incomplete.sum()):
        say(f"{file}: {count} row{'s'[: count != 1]} with missing values cannot be predicted")
    return found.x, found.incomplete


def image_inputs(model: Model, options: ImageOptions, show: str | Path | None) -> ImageInputs | None:
    """Return the converter of images for a model; None if the model was not trained on images.

    Raises
    ------
    ConfigError : the model was not trained on images, but an option is for images; or `show` does not end with .png
    """
    if show is not None and Path(show).suffix.lower() != ".png":
        raise ConfigError(f"show: the name {str(show)!r} must end with .png", settings=("show",))
    if model.image_shape is not None:
        return ImageInputs(model.image_shape, model.image_stats, options)
    given = {"invert": options.invert == "yes", "center": options.center, "show": show is not None}
    if names := [name for name, value in given.items() if value]:
        raise ConfigError(f"{names[0]} is for images, but the model was not trained on images; leave it out", settings=names)
    return None


def show_inputs(converter: ImageInputs, predictions: Sequence[Prediction], path: Path) -> None:
    """Plot the first converted images with their predictions; raise ConfigError if there are none."""
    from fastmlp.reports.images import plot_inputs

    if not converter.kept:
        raise ConfigError("show is for images, but none of the inputs is an image; leave it out", settings=("show",))
    by_place = {(one["input"], one["row"]): one for one in predictions}
    height, width, channels = converter.image_shape
    shape = (height, width) if channels == 1 else converter.image_shape
    shown = [by_place[key] for key in converter.kept]
    captions = [(Path(place(one)).name, "  ".join(fields(one, 1))) for one in shown]
    plot_inputs([row.reshape(shape) for row in converter.kept.values()], captions, path, converter.total)


def read_arrays(file: Path) -> tuple[npt.NDArray[Any], bool]:
    """Return the array x of an .npz file, or the array of an .npy file, as rows, and whether `extract` wrote the file."""
    if file.suffix.lower() == ".npy":
        return check_features(map_npy(file), SourceLocation(str(file)))[0], False
    with open_npz(file, "x=...") as archive:
        if "x" not in archive.files:
            raise DataError(f"{file}: no array x (it holds: {', '.join(archive.files) or 'nothing'}); save the rows as x")
        x = check_features(npz_array(file, archive, "x"), SourceLocation(f"{file}: array 'x'"))[0]
        return x, {"provenance", "extractor"} <= set(archive.files)


def predictions_of(model: Model, file: Path, rows: Rows, top: int | None) -> list[Prediction]:
    """Return one prediction per row, in the format of `predict_files`."""
    blocks = inference_blocks(rows.x, model.network.sizes[-1])
    outputs = (row for _, block in blocks for row in model.outputs(block))
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


def input_maker(path: str | Path, model: Model, open_extractor: OpenExtractor | None) -> Callable[[Features], Array]:
    """Return a function that maps images, shape (n, pixels), to features with the extractor stored in the model.

    The extractor is loaded at the first call, which raises UnavailableError if `open_extractor` is None, and DataError if the
    extractor does not fit the model.

    path : the file or run folder of the model, for error messages
    """

    @functools.cache
    def extractor() -> Extractor:
        """Load the extractor, once for all images."""
        assert model.extractor is not None
        if open_extractor is None:
            raise UnavailableError(
                "this model takes features; pass open_extractor=fastmlp.cnn.extractor.from_bytes, or features instead of images"
            )
        found = open_extractor(model.extractor, f"{path}: the model's extractor")
        taken = model.image_shape, model.network.sizes[0]
        if (found.image_shape, found.width) != taken:
            raise DataError(
                f"{path}: the model's extractor computes {found.width} features of images of shape {found.image_shape}, but "
                f"the model takes {taken[1]} features of images of shape {taken[0]}; train the model again"
            )
        return found

    return lambda pixels: extract_rows(extractor(), pixels)

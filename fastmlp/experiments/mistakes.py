"""The rows of a split that a model gets wrong: a figure of misclassified images, or a CSV table of the rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import CheckedRows
from fastmlp.data.dataset import Dataset
from fastmlp.data.rows import Array, Features, Subset
from fastmlp.data.splits import split_indices
from fastmlp.errors import ConfigError
from fastmlp.files import write_bytes
from fastmlp.models.model import Model
from fastmlp.nn.blocks import inference_blocks
from fastmlp.reports.images import most_confident, plot_mistakes
from fastmlp.reports.text import csv_text, short_name

MISTAKES_PICTURE, MISTAKES_TABLE = "mistakes.png", "mistakes.csv"
MOST_RESIDUALS = 100  # maximum number of rows of a regression in the table


class Answers(NamedTuple):
    """The predictions of a model for a split.

    data, split : the data set, and the name of the split
    inputs : (n, features) rows of the split as in the data set, such as pixels
    rows : the rows for the model: features of the inputs, and targets; labels are class numbers of the model
    predicted : (n,) class numbers or (n, k) values
    sizes : arguments of `split_indices` for the split; None if the data set was not split, see `evaluation.own_splits`
    """

    data: Dataset
    split: str
    inputs: Features
    rows: CheckedRows
    predicted: Array
    sizes: Mapping[str, Any] | None


class ImageRows:
    """Rows of pixels as images; a row is converted when it is accessed.

    Parameters
    ----------
    pixels : (n, features)
    shape : (height, width, 1 or 3)
    whole : array whose smallest and largest values become 0 and 255, unless the pixels are uint8
    """

    def __init__(self, pixels: Features, shape: tuple[int, int, int], whole: Array) -> None:
        self.pixels, self.shape = pixels, shape
        self.bounds = None if pixels.dtype == np.uint8 else (float(whole.min()), float(whole.max()))

    def __getitem__(self, row: Any, /) -> Array:
        """Return the image of a row, uint8 (height, width) or (height, width, 3)."""
        image = np.asarray(self.pixels[row]).reshape(self.shape)
        if self.bounds is not None:
            low, high = self.bounds
            image = ((image - low) * (255 / max(high - low, 1e-30))).clip(0, 255).astype(np.uint8)
        return image if self.shape[2] == 3 else image[..., 0]


def kinds_of_mistakes(data: Dataset) -> tuple[str, ...]:
    """Return the suffixes of the files of mistakes that can be written for a data set: ".png", ".csv", both or none."""
    images = data.classes and data.image_shape is not None and data.image_shape[2] in (1, 3)
    return (*((".png",) if images else ()), *((".csv",) if data.encoding is not None else ()))


def suffix_of(path: str | Path) -> str:
    """Return the suffix of a file of mistakes; raise ConfigError unless it is ".png" or ".csv"."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".csv"):
        raise ConfigError(f"mistakes: the name {str(path)!r} must end with .png or .csv", settings=("mistakes",))
    return suffix


def check_mistakes(path: str | Path, data: Dataset) -> None:
    """Raise ConfigError unless the mistakes in a data set can be written to a file with this name."""
    suffix = suffix_of(path)
    if suffix not in (kinds := kinds_of_mistakes(data)):
        reason = "has no images with class labels" if suffix == ".png" else "is not a table"
        remedy = f"use a name that ends with {kinds[0]}" if kinds else "omit mistakes"
        raise ConfigError(f"mistakes: {data.name} {reason}; {remedy}", settings=("mistakes",))


def write_mistakes(path: Path, model: Model, answers: Answers) -> None:
    """Write the mistakes to a .png file, see `images.plot_mistakes`, or to a .csv file, see `mistakes_table`."""
    if suffix_of(path) == ".csv":
        write_bytes(path, mistakes_table(model, answers))
        return
    data, truth = answers.data, answers.rows.y
    assert data.image_shape is not None
    images = ImageRows(answers.inputs, data.image_shape, data.x)
    title = f"{short_name(data.name)}, {answers.split} split"
    scores = scores_of_mistakes(model, answers)
    plot_mistakes(images, truth, answers.predicted, scores, model.classes, path, title, score=score_name(model))


def score_name(model: Model) -> str:
    return "probability" if model.network.output == "softmax" else "score"


def scores_of_mistakes(model: Model, answers: Answers) -> npt.NDArray[np.float64]:
    """Return the output (n,) for the predicted class of each misclassified row; it is 0 for the other rows."""
    x, predicted = answers.rows.x, answers.predicted
    scores = np.zeros(len(predicted))
    wrong = np.flatnonzero(predicted != answers.rows.y)
    if len(wrong):
        chosen = Subset(x.array, x.rows[wrong]) if isinstance(x, Subset) else Subset(x, wrong)
        for rows, block in inference_blocks(chosen, model.network.sizes[-1]):
            scores[wrong[rows]] = model.outputs(block)[np.arange(len(block)), predicted[wrong[rows]]]
    return scores


def mistakes_table(model: Model, answers: Answers) -> bytes:
    """Return the mistakes in a table as CSV.

    The columns are row (the number of the row in the file, from 1), true, predicted, the probability of the predicted class
    (or its score, or for a regression the residual: the true value minus the prediction), and the columns of the features.
    The rows are the misclassified ones in descending order of the probability, or for a regression the 100 with the largest
    absolute residuals.
    """
    predicted, encoding = answers.predicted, answers.data.encoding
    assert encoding is not None
    if model.classes:
        scores = scores_of_mistakes(model, answers)
        chosen = most_confident(answers.rows.y, predicted, scores)
        columns = [[model.classes[number] for number in labels[chosen]] for labels in (answers.rows.y, predicted)]
        measure, values = score_name(model), scores[chosen]
    else:
        residuals = answers.rows.y[:, 0].astype(np.float64) - predicted[:, 0]
        chosen = np.argsort(-np.abs(residuals), kind="stable")[:MOST_RESIDUALS]
        columns = [values[chosen, 0].tolist() for values in (answers.rows.y, predicted)]
        measure, values = "residual", residuals[chosen]
    names, numbers = ("row", "true", "predicted", measure), file_rows(answers)[chosen].tolist()
    described = zip(names, (numbers, *columns, values.tolist()), strict=True)
    return csv_bytes([*described, *encoding.decode(np.asarray(answers.inputs[chosen])).items()])


def file_rows(answers: Answers) -> npt.NDArray[np.int64]:
    """Return the number of each row of a split in its file, (n,), from 1."""
    data, sizes = answers.data, answers.sizes
    if answers.split == "test" and data.x_test is not None:
        return np.arange(1, len(data.x_test) + 1)
    chosen = np.arange(len(data.x)) if sizes is None else split_indices(data, **sizes)[answers.split]
    return 1 + (chosen if data.source_rows is None else data.source_rows[chosen])


def csv_bytes(columns: list[tuple[str, list[Any]]]) -> bytes:
    """Return columns with their names as CSV. Numbers are written with the digits that a float32 number has.

    >>> csv_bytes([("name", ["a", "b"]), ("size", [float(np.float32(5.1)), 3.0])])
    b'name,size\\na,5.1\\nb,3\\n'
    """
    names, values = zip(*columns, strict=True)
    return csv_text([names, *([cell_text(value) for value in row] for row in zip(*values, strict=True))]).encode()


def cell_text(value: Any) -> str:
    return str(np.float32(value)).removesuffix(".0") if isinstance(value, float) else str(value)

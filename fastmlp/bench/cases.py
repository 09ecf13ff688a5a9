"""Benchmark cases. A case is a network and a mini-batch size; `Source` provides the training data of a case.

`CASES` contains the seven cases of the table in docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.dataset import Dataset
from fastmlp.data.load import load_data
from fastmlp.data.named import list_data
from fastmlp.data.scaling import fit_scaling
from fastmlp.errors import ConfigError
from fastmlp.nn.network import FloatArray

ROWS = 48_000
SYNTHETIC = "synthetic"


class Case(NamedTuple):
    """A network, given by its layer sizes from the inputs to the outputs, and a mini-batch size."""

    sizes: tuple[int, ...]
    batch: int

    @property
    def network(self) -> str:
        return "-".join(map(str, self.sizes))

    @property
    def label(self) -> str:
        return f"{self.network}, batch {self.batch}"


CASES = (
    Case((784, 128, 10), 64),
    Case((784, 128, 10), 128),
    Case((784, 500, 250, 100, 10), 64),
    Case((784, 400, 250, 100, 10), 128),
    Case((256, 512, 10), 64),
    Case((784, 128, 10), 1024),
    Case((784, 512, 256, 128, 64, 32, 10), 1024),
)


def parse_sizes(text: str) -> tuple[int, ...]:
    """Parse the layer sizes of a network from a text such as "784-128-10".

    Raises
    ------
    ConfigError : the text is not two or more positive integers joined by hyphens, or the last one, the number of classes,
        is less than 2

    >>> parse_sizes("784-128-10")
    (784, 128, 10)
    """
    parts = text.split("-")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts) or int(parts[-1]) < 2:
        raise ConfigError(
            f"network {text!r}: give the sizes of all layers, such as 784-128-10; the last one must be at least 2",
            settings=("network",),
        )
    return tuple(map(int, parts))


def choose_cases(networks: Sequence[str], batches: Sequence[int], everything: bool = False) -> tuple[Case, ...]:
    """Return one case for each combination of a network and a batch size, or all of `CASES` if `everything` is true.

    If `networks` or `batches` is empty, the network or batch size of the first case of `CASES` is used.

    Raises
    ------
    ConfigError : `everything` is combined with networks or batch sizes, a network is invalid, or a batch size is below 1

    >>> [case.label for case in choose_cases(["20-16-10"], [32, 64])]
    ['20-16-10, batch 32', '20-16-10, batch 64']
    """
    if everything and (networks or batches):
        raise ConfigError(
            "the full table has fixed networks and batch sizes; choose the full table, or give networks and batch sizes",
            settings=("all", "network", "batch_size"),
        )
    if min(batches, default=1) < 1:
        raise ConfigError(f"batch size must be at least 1, not {min(batches)}", settings=("batch_size",))
    if everything:
        return CASES
    sizes = [parse_sizes(text) for text in networks] or [CASES[0].sizes]
    return tuple(dict.fromkeys(Case(one, batch) for one in sizes for batch in batches or [CASES[0].batch]))


class Rows(NamedTuple):
    """Training data of one case.

    x : inputs of shape (n, features), float32, C-contiguous
    y : class labels of shape (n,), int32
    name : name of the data set, or "synthetic"
    """

    x: FloatArray
    y: npt.NDArray[np.int32]
    name: str


class Source:
    """Provider of the training data for any case.

    A case is trained on the first columns of a data set. If the data set is missing, or has too few columns or too many
    classes, it is trained on synthetic data. Nothing is downloaded. Values are scaled to [0, 1]. About half of the synthetic
    values are zero, as in Fashion-MNIST.

    Parameters
    ----------
    name : name of a data set, as for `load_data`, or "synthetic"
    rows : maximum number of rows
    data_dir : folder of the named data sets

    Examples
    --------
    >>> rows = Source("synthetic", 100).rows_for(Case((20, 16, 10), 64))
    >>> rows.x.shape, rows.y.shape, rows.name
    ((100, 20), (100,), 'synthetic')
    """

    def __init__(self, name: str, rows: int = ROWS, data_dir: str | Path | None = None) -> None:
        self.name = name
        self.rows = rows
        self.data_dir = data_dir

    @cached_property
    def data(self) -> Dataset | None:
        """The data set, or None if its files are missing or synthetic data were chosen.

        Raises
        ------
        ConfigError : the targets are not class labels
        DataError : the name of the data set is unknown, or its files are damaged
        """
        states = {row.name: row.state for row in list_data(self.data_dir)}
        if self.name == SYNTHETIC or states.get(self.name, "present") not in ("embedded", "present"):
            return None
        found = load_data(self.name, self.data_dir)
        if found.y.ndim != 1:
            raise ConfigError(
                f"data {self.name!r} has no classes, but the benchmark trains classifiers; choose other data",
                settings=("data",),
            )
        return found

    def rows_for(self, case: Case) -> Rows:
        """Return training data with as many features as the network has inputs, and no more classes than it has outputs."""
        features, outputs = case.sizes[0], case.sizes[-1]
        data = self.data
        if data is None or data.x.shape[1] < features or len(data.classes) > outputs:
            return synthetic_rows(self.rows, features, outputs)
        x = np.ascontiguousarray(data.x[: self.rows, :features])
        return Rows(fit_scaling("unit", x).apply(x), data.y[: self.rows], data.name)


def synthetic_rows(rows: int, features: int, outputs: int) -> Rows:
    """Return synthetic data that a network can learn: a random prototype per class plus noise, clipped to [0, 1].

    Because of the clipping, about half of the values are zero.
    """
    draw = np.random.default_rng(0)
    y = draw.integers(0, outputs, rows, np.int32)
    pictures = draw.uniform(-1, 1, (outputs, features)).astype(np.float32)
    x = draw.standard_normal((rows, features), np.float32)
    x *= np.float32(0.3)
    x += pictures[y]
    return Rows(np.clip(x, 0, 1, out=x), y, SYNTHETIC)

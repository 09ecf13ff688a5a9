"""Benchmark cases: networks, batch sizes, and the rows to train on.

`CASES` are the seven cases of the table in docs/speed.md; `Source` provides the rows of a case.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.dataset import Dataset, load_data
from fastmlp.data.named import list_data
from fastmlp.data.scaling import fit_scaling
from fastmlp.errors import ConfigError
from fastmlp.nn.network import FloatArray

ROWS = 48_000
SYNTHETIC = "synthetic"


class Case(NamedTuple):
    """Layer sizes of a network, inputs and outputs included, and the mini-batch size."""

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
    """Parse the layer sizes of a network.

    Raises
    ------
    ConfigError : the text is not a list of two or more positive sizes, or there are fewer than 2 classes

    >>> parse_sizes("784-128-10")
    (784, 128, 10)
    """
    parts = text.split("-")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts) or int(parts[-1]) < 2:
        raise ConfigError(
            f"network {text!r}: give the sizes of all layers, with at least 2 classes at the end, such as 784-128-10",
            settings=("network",),
        )
    return tuple(map(int, parts))


def choose_cases(networks: Sequence[str], batches: Sequence[int], everything: bool = False) -> tuple[Case, ...]:
    """Return each network with each batch size, or all of `CASES`.

    Raises
    ------
    ConfigError : `everything` together with networks or batch sizes, an invalid network, or a batch size below 1

    >>> [case.label for case in choose_cases(["20-16-10"], [32, 64])]
    ['20-16-10, batch 32', '20-16-10, batch 64']
    """
    if everything and (networks or batches):
        raise ConfigError(
            "the full table fixes networks and batch sizes; give either it or networks and batch sizes of your own",
            settings=("all", "network", "batch_size"),
        )
    if min(batches, default=1) < 1:
        raise ConfigError(f"batch size must be at least 1, not {min(batches)}", settings=("batch_size",))
    if everything:
        return CASES
    sizes = [parse_sizes(text) for text in networks] or [CASES[0].sizes]
    return tuple(dict.fromkeys(Case(one, batch) for one in sizes for batch in batches or [CASES[0].batch]))


class Rows(NamedTuple):
    """Training rows of one case.

    x : (n, features) float32, C-contiguous; y : (n,) int32 class labels; name : name of the data
    """

    x: FloatArray
    y: npt.NDArray[np.int32]
    name: str


class Source:
    """Rows for any case: the first columns of a data set, or synthetic pixels if the data set is missing or does not fit.

    Nothing is downloaded. Pixels are scaled to [0, 1]; about half of the synthetic ones are zero, as in Fashion-MNIST.

    Parameters
    ----------
    name : a data set, as for `load_data`, or "synthetic"
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
        """The data set, or None if its files are missing.

        Raises
        ------
        ConfigError : the targets are not class labels
        DataError : the data set is unknown or corrupt
        """
        states = {row.name: row.state for row in list_data(self.data_dir)}
        if self.name == SYNTHETIC or states.get(self.name, "present") not in ("embedded", "present"):
            return None
        found = load_data(self.name, self.data_dir)
        if found.y.ndim != 1:
            raise ConfigError(
                f"data {self.name!r} has no classes, and the benchmark trains classifiers; choose other data",
                settings=("data",),
            )
        return found

    def rows_for(self, case: Case) -> Rows:
        """Return rows with one feature per network input and at most one class per output."""
        features, outputs = case.sizes[0], case.sizes[-1]
        data = self.data
        if data is None or data.x.shape[1] < features or len(data.classes) > outputs:
            return synthetic_rows(self.rows, features, outputs)
        x = np.ascontiguousarray(data.x[: self.rows, :features])
        return Rows(fit_scaling("unit", x).apply(x), data.y[: self.rows], data.name)


def synthetic_rows(rows: int, features: int, outputs: int) -> Rows:
    """Return learnable pixels in [0, 1]: a random prototype per class plus noise, clipped, so that about half are zero."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, outputs, rows, np.int32)
    pictures = draw.uniform(-1, 1, (outputs, features)).astype(np.float32)
    x = draw.standard_normal((rows, features), np.float32)
    x *= np.float32(0.3)
    x += pictures[y]
    return Rows(np.clip(x, 0, 1, out=x), y, SYNTHETIC)

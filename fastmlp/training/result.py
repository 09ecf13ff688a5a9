"""Results of training: the history of a run, the result of one run, and the results of several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from fastmlp._summary import cell, first_and_last, summary_html, summary_text, table_html, table_text
from fastmlp.engines.base import State
from fastmlp.models.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EpochLog = dict[str, Any]  # entry of the history for one epoch, see `TrainResult`
TIMINGS = ("seconds", "eval_seconds", "rows_per_second")  # keys that differ between two runs with the same settings
PATIENCE_KEY = "patience"  # key that only the progress display gets, see `EarlyStopping.patience`
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")  # of an epoch, as a repr shows them
SHOWN = ("epoch", *METRICS, "lr", "seconds")  # columns of the table that a repr shows


STOPPED = {  # for each value of `TrainResult.stopped`: the reason in words, followed by the last epoch
    "epochs": "maximum number of epochs reached at epoch {}",
    "patience": "early stopping at epoch {}",
    "time": "time limit reached at epoch {}",
    "callback": "stopped by a callback at epoch {}",
    "interrupted": "interrupted at epoch {}",
    "diverged": "diverged after epoch {}",
    "failed": "stopped after epoch {}, because a file could not be written",
}


class EpochMetrics(msgspec.Struct):
    """Fields of an entry of the history whose types are checked when it is read from a file."""

    epoch: int
    loss: float | None
    accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None


class History(list[EpochLog]):
    """The history of a training run: a list with one dict per epoch; `history["loss"]` returns a column as an array.

    `pandas.DataFrame(history)` and `polars.DataFrame(history)` convert it to a data frame.

    Examples
    --------
    >>> history = History([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    >>> history["loss"].tolist(), history[-1], history.columns
    ([0.5, 0.25], {'epoch': 2, 'loss': 0.25}, ('epoch', 'loss'))
    >>> history
    epoch  loss
        1   0.5
        2  0.25
    """

    def __getitem__(self, key: Any) -> Any:
        """Return a row for an int, some rows for a slice, or for a str a column as an array, in which None becomes NaN."""
        if isinstance(key, str):
            if key not in self.columns:
                raise KeyError(f"the history has no column {key!r}; columns: {', '.join(self.columns)}")
            values = [row.get(key) for row in self]
            return np.array([np.nan if value is None else value for value in values])
        found = super().__getitem__(key)
        return History(found) if isinstance(key, slice) else found

    def __contains__(self, key: object) -> bool:
        """Return whether a str is a column, or a dict is a row."""
        return key in self.columns if isinstance(key, str) else super().__contains__(key)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(dict.fromkeys(key for row in self for key in row))

    def _table(self) -> list[list[str]]:
        """Return the header and the rows that a repr shows, without columns whose values are all None."""
        names = [name for name in SHOWN if any(row.get(name) is not None for row in self)]
        rows = first_and_last(list(self))
        return [names, *(["..."] * len(names) if row is None else [cell(row.get(name)) for name in names] for row in rows)]

    def __repr__(self) -> str:
        return table_text(self._table())

    def _repr_html_(self) -> str:
        return table_html(self._table())


class TrainResult(NamedTuple):
    """Result of `train`.

    model : the model, with the weights of epoch `best_epoch`
    history : one dict per epoch with the keys epoch (from 1), rows (number of rows trained on), loss, accuracy, val_loss,
        val_accuracy, lr (learning rate of the first update), seconds (training time, without evaluation), eval_seconds and
        rows_per_second. loss and accuracy are means over the rows of the epoch, weighted by the sample weights; each
        mini-batch is evaluated before its update, with dropout. Losses are those of scaled targets if the targets are scaled.
        accuracy is None if the targets are not class labels. val_loss and val_accuracy are not weighted, and None without a
        validation split. If `Settings.val_steps` is set, there is also the key steps: a list with one dict per validation
        within the epoch, with the keys step (number of updates since the start of training), epoch (with fraction), loss (mean
        over the rows since the previous validation in this epoch), val_loss and val_accuracy
    best_epoch : number of the epoch from which the weights of the model were taken: the best epoch on the validation split. It
        is the last epoch if there is no validation split, or if `Settings.restore_best` is false
    stopped : why training ended: "epochs", "patience", "time", "callback", "interrupted", "diverged" or
        "failed" (a file could not be written)
    state : parameters, optimizer slots and number of updates at the end of training
    backend, threads : name of the engine, and number of threads that it used
    restore_best : the setting `restore_best`
    """

    model: Model
    history: History
    best_epoch: int
    stopped: str
    state: State
    backend: str
    threads: int
    restore_best: bool = True

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of epoch `best_epoch`: loss and, if they were measured, accuracy, val_loss and val_accuracy."""
        row = self.history[self.best_epoch - 1]
        return {key: row[key] for key in METRICS if row.get(key) is not None}

    @property
    def end(self) -> str:
        """The reason why training ended, the last epoch and the epoch of the weights, as text."""
        return f"{STOPPED[self.stopped].format(len(self.history))} ({self.kept})"

    @property
    def kept(self) -> str:
        """The epoch of the weights of the model, as text."""
        return f"{'best epoch' if self.restore_best else 'weights of epoch'} {self.best_epoch}"

    @property
    def marked_epoch(self) -> int | None:
        """Best epoch, which figures mark; None if the weights are not those of the best epoch."""
        return self.best_epoch if self.restore_best else None

    def plot(self) -> Figure:
        """Return a figure of the loss and the accuracy per epoch; a notebook displays it, and `savefig` writes a file."""
        from fastmlp.reports.curves import curves_figure
        from fastmlp.reports.style import own_style

        with own_style():
            return curves_figure(self.history, self.marked_epoch, f"Training of {self.model.network.label}")

    def _summary(self) -> dict[str, Any]:
        """Return what a repr shows: the metrics are those of the best epoch."""
        metrics = {key: f"{value:.4g}" for key, value in self.metrics.items()}
        epochs = f"{self.best_epoch} of {len(self.history)} (stopped: {self.stopped})"
        return {"network": self.model.network.label, "best_epoch": epochs, **metrics, "backend": self.backend}

    # A NamedTuple cannot have the base class Summarized.
    def __repr__(self) -> str:
        return summary_text("TrainResult", self._summary())

    def _repr_html_(self) -> str:
        return summary_html("TrainResult", self._summary())


class SeedResults:
    """Results of training runs that differ only in their seeds. It is a sequence of `TrainResult` objects.

    Its representation is a table with the metrics of the best epoch for each seed, their means and their standard deviations.

    Parameters
    ----------
    seeds : the seeds
    results : the result for each seed
    """

    def __init__(self, seeds: Sequence[int], results: Sequence[TrainResult]) -> None:
        self.seeds, self.results = tuple(seeds), tuple(results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: int) -> TrainResult:
        return self.results[index]

    def __iter__(self) -> Iterator[TrainResult]:
        return iter(self.results)

    @property
    def best(self) -> TrainResult:
        """The result with the smallest validation loss, or training loss if there is no validation split."""
        return min(self.results, key=lambda result: result.metrics.get("val_loss", result.metrics["loss"]))

    @property
    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and sample standard deviation, over the seeds, of the metrics of the best epoch of each run."""
        return mean_and_deviation([result.metrics for result in self.results])

    def score(self, x: Any, y: Any) -> tuple[float, float]:
        """Return the mean and the sample standard deviation of `Model.score` over the seeds."""
        return mean_and_deviation([{"score": result.model.score(x, y)} for result in self.results])["score"]

    def plot(self) -> Figure:
        """Return a figure of the mean loss and accuracy per epoch, with a band of one standard deviation on either side."""
        from fastmlp.reports.curves import band_figure
        from fastmlp.reports.style import own_style

        label = self.results[0].model.network.label
        with own_style():
            return band_figure([result.history for result in self.results], f"Training of {label}, {len(self)} seeds")

    @property
    def _title(self) -> str:
        return summary_text("SeedResults", {"network": self.results[0].model.network.label, "seeds": len(self)})

    def _table(self) -> list[list[str]]:
        """Return the header and the rows that a repr shows."""
        summary = self.summary
        rows = [[seed, one.best_epoch, *map(one.metrics.get, summary)] for seed, one in zip(self.seeds, self, strict=True)]
        header = ["seed", "best_epoch", *summary]
        shown = [["..."] * len(header) if row is None else list(map(cell, row)) for row in first_and_last(rows)]
        means = [f"{mean:.4g} ± {deviation:.2g}" for mean, deviation in summary.values()]
        return [header, *shown, ["mean ± std", "", *means]]

    def __repr__(self) -> str:
        return f"{self._title}\n{table_text(self._table())}"

    def _repr_html_(self) -> str:
        return table_html(self._table(), self._title)


def mean_and_deviation(rows: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Return the mean and the sample standard deviation of each value that all rows have; the latter is 0 for one row.

    >>> mean_and_deviation([{"loss": 1.0, "a": 2.0}, {"loss": 3.0}])
    {'loss': (2.0, 1.4142135623730951)}
    """
    found = {}
    for key in rows[0]:
        if all(key in row for row in rows):
            values = [row[key] for row in rows]
            found[key] = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    return found

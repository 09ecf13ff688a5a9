"""Progress display: a progress bar on a terminal or in a notebook, one line per epoch on other streams, or no output.

Write errors do not stop training. They occur, for example, if a pipe has no reader any more, the terminal was closed, or the
disk is full. After the first write error, no more output is written.
"""

from __future__ import annotations

import abc
import collections
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self, TextIO

from fastmlp.engines.cpu.codegen.observer import add_observer, remove_observer
from fastmlp.training.bars import Bar, NotebookBar, SafeStream, Status, TerminalBar, in_notebook
from fastmlp.training.result import PATIENCE_KEY

REDRAW_SECONDS = 0.1
LINE_LIMIT = 120
SMOOTHED_EPOCHS = 5
COMPILING = "compiling kernels, once on this machine"


class Progress(abc.ABC):
    """Interface of a progress display. It is a context manager that calls `start` on entry and `close` on exit.

    Between `start` and `close`, displays with output also show a message when kernels are compiled.
    """

    @abc.abstractmethod
    def start(self) -> None:
        """Start the display. Must be called once, before the first epoch."""

    @abc.abstractmethod
    def update(
        self,
        epoch: int,
        done: int,
        total: int,
        loss: float,
        accuracy: float | None,
        rows_per_second: float,
    ) -> None:
        """Show the progress of the current epoch.

        A call takes less than a microsecond unless the display is redrawn, which happens at most ten times per second.

        Parameters
        ----------
        epoch : number of the epoch, from 1
        done : number of rows trained on so far in this epoch
        total : number of rows per epoch
        loss, accuracy : means over the rows trained on so far in this epoch; accuracy is None for regression
        rows_per_second : training speed in this epoch
        """

    @abc.abstractmethod
    def epoch_done(self, row: Mapping[str, Any]) -> None:
        """Show the metrics of a finished epoch.

        Parameters
        ----------
        row : entry of the history for this epoch. The keys `epoch`, `loss`, `accuracy`, `val_loss`, `val_accuracy`, `seconds`,
            `eval_seconds` and `rows_per_second` are used; all except `epoch` may be missing or None. With early stopping, the
            key `patience` has the number of epochs without improvement and the patience.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Stop the display and restore the terminal. Can be called more than once."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def make_progress(
    stream: TextIO | None = None,
    quiet: bool = False,
    *,
    epochs: int,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Return the progress display for a stream.

    Parameters
    ----------
    stream : text stream; None for the output of the cell in a notebook, and elsewhere for `sys.stderr`
    quiet : whether to return a display without output
    epochs : maximum number of epochs; the remaining time is estimated for this number, so it is shown as "at most"
    clock : function that returns the time in seconds; used to limit the frequency of redraws

    Returns
    -------
    Progress
        A progress bar in a notebook, or if the stream is a terminal that can move its cursor; otherwise a display that writes
        one line per epoch, of at most 120 characters.

    Examples
    --------
    >>> row = {"epoch": 3, "loss": 0.5124, "accuracy": 0.8301, "val_loss": None, "val_accuracy": None,
    ...        "seconds": 0.375, "eval_seconds": 0.025, "rows_per_second": 412345.0}
    >>> with make_progress(sys.stdout, epochs=203) as progress:
    ...     progress.update(3, 64, 48000, 0.6, 0.8, 4e5)
    ...     progress.epoch_done(row)
    epoch 3/203  loss 0.5124  accuracy 0.8301  412k rows/s  1 min 20 s left at most
    """
    if stream is None and not quiet and in_notebook():
        return _InPlace(NotebookBar(), epochs, clock)
    stream = sys.stderr if stream is None else stream
    if quiet or stream is None:  # sys.stderr is None in a process without a console
        return _NoProgress()
    if _is_terminal(stream):
        # Warnings are printed above the bar.
        return _InPlace(TerminalBar(SafeStream(stream), redirect_stderr=stream is sys.stderr), epochs, clock)
    return _Lines(stream, epochs)


class _NoProgress(Progress):
    """Display without output."""

    def start(self) -> None:
        pass

    def update(self, *_state: object) -> None:
        pass

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines(Progress):
    """Display that writes one line per epoch, for log files and pipes."""

    def __init__(self, stream: TextIO, epochs: int) -> None:
        self._stream = SafeStream(stream)
        self._time_left = _TimeLeft(epochs)
        self._epochs = epochs

    def start(self) -> None:
        add_observer(self._show_compilation)

    def update(self, *_state: object) -> None:
        pass

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self._time_left.epoch_done(row)
        epoch = row["epoch"]
        full = Status(epoch, self._epochs, epoch, *_formatted(row), self._time_left.text(epoch))
        no_speed = full._replace(speed="")
        no_time = no_speed._replace(time_left="")
        lines = ["  ".join(one.parts) for one in (full, no_speed, no_time, no_time._replace(patience=""))]
        self._write(next((line for line in lines if len(line) <= LINE_LIMIT), lines[-1]))

    def close(self) -> None:
        remove_observer(self._show_compilation)

    def _show_compilation(self) -> None:
        self._write(COMPILING)

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class _InPlace(Progress):
    """Display of a progress bar that is redrawn in place."""

    def __init__(self, bar: Bar, epochs: int, clock: Callable[[], float]) -> None:
        self._bar = bar
        self._time_left = _TimeLeft(epochs)
        self._epochs = epochs
        self._clock = clock
        self._due = math.inf  # no redraw before `start` and after `close`
        self._open = False
        self._epoch = 1
        self._finished = 0.0  # number of finished epochs, including the fraction of the current epoch
        self._row: dict[str, Any] = {}

    def start(self) -> None:
        if self._open:
            return
        self._open = True
        try:
            self._bar.start(self._status())
        except BaseException:  # __exit__ would not be called, and the cursor of a terminal would stay hidden
            self.close()
            raise
        self._due = self._clock() + REDRAW_SECONDS
        add_observer(self._show_compilation)

    def update(
        self,
        epoch: int,
        done: int,
        total: int,
        loss: float,
        accuracy: float | None,
        rows_per_second: float,
    ) -> None:
        if self._clock() < self._due:
            return
        self._epoch = epoch
        self._finished = epoch - 1 + done / total
        self._row.update(loss=loss, accuracy=accuracy, rows_per_second=rows_per_second)
        self._time_left.estimate(total, rows_per_second)
        self._draw()

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self._time_left.epoch_done(row)
        self._epoch = row["epoch"]
        self._finished = float(self._epoch)
        self._row = dict(row)
        if self._clock() >= self._due:
            self._draw()

    def close(self) -> None:
        remove_observer(self._show_compilation)
        self._due = math.inf
        if self._open:
            self._open = False
            self._bar.close(self._status()._replace(time_left=""))

    def _show_compilation(self) -> None:
        self._bar.draw(self._status()._replace(metrics=[COMPILING]))

    def _draw(self) -> None:
        self._bar.draw(self._status())
        # The interval starts after the redraw, so that slow terminals are redrawn less often.
        self._due = math.inf if self._bar.broken else self._clock() + REDRAW_SECONDS

    def _status(self) -> Status:
        time_left = self._time_left.text(self._finished)
        return Status(self._epoch, self._epochs, self._finished, *_formatted(self._row), time_left)


class _TimeLeft:
    """Estimate of the remaining training time, based on the mean duration of the last epochs."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._seconds: collections.deque[float] = collections.deque(maxlen=SMOOTHED_EPOCHS)
        self._estimate: float | None = None

    def estimate(self, rows: int, rows_per_second: float) -> None:
        """Estimate the duration of an epoch from the speed. The estimate is used until the first epoch is finished."""
        self._estimate = rows / rows_per_second if rows_per_second > 0 else None

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        seconds = (row.get("seconds") or 0.0) + (row.get("eval_seconds") or 0.0)
        if math.isfinite(seconds):
            self._seconds.append(seconds)

    def text(self, finished: float) -> str:
        """Return the remaining time after `finished` epochs as text, or "" if it is unknown or all epochs are finished."""
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else self._estimate
        if mean is None or finished >= self._epochs:
            return ""
        return f"{_format_duration(mean * (self._epochs - finished))} left at most"


def _is_terminal(stream: TextIO) -> bool:
    """Return whether the stream is a terminal on which a progress bar can be redrawn in place.

    A command that is started in a notebook with "!" writes to a pseudo-terminal, but notebooks do not move the cursor up.
    """
    if "JPY_PARENT_PID" in os.environ:  # set by Jupyter for kernels, and inherited by the processes that they start
        return False
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in {"dumb", "unknown"}
    except ValueError:  # the stream is closed
        return False


def _formatted(row: Mapping[str, Any]) -> tuple[list[str], str, str]:
    """Format the metrics, the patience and the speed of a history entry, except those that are missing or None."""
    formats: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("loss", "loss {}", "{:.4g}".format),
        ("accuracy", "accuracy {}", "{:.4f}".format),
        ("val_loss", "val loss {}", "{:.4g}".format),
        ("val_accuracy", "val accuracy {}", "{:.4f}".format),
    )
    metrics = [text.format(number(row[key])) for key, text, number in formats if row.get(key) is not None]
    patience = "patience {}/{}".format(*row[PATIENCE_KEY]) if PATIENCE_KEY in row else ""
    speed = row.get("rows_per_second")
    return metrics, patience, "" if speed is None else f"{_format_count(speed)} rows/s"


def _format_count(number: float) -> str:
    """Format a number with three significant digits and the suffix k, M or G.

    >>> [_format_count(n) for n in (7, 950.4, 9_500, 412_345, 999_999, 12.3e6, 4.2e9)]
    ['7', '950', '9.5k', '412k', '1M', '12.3M', '4.2G']
    """
    for unit, factor in (("", 1.0), ("k", 1e3), ("M", 1e6)):
        if abs(number) < 999.5 * factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number / 1e9:.3g}G"


def _format_duration(seconds: float) -> str:
    """Format a duration in its two largest units.

    >>> [_format_duration(s) for s in (0.2, 59.4, 59.6, 80, 3599.9, 4800, 100_000)]
    ['1 s', '59 s', '1 min 0 s', '1 min 20 s', '1 h 0 min', '1 h 20 min', '1 d 3 h']
    """
    rounded = max(1, round(seconds))
    days, hours, minutes = rounded // 86400, rounded // 3600 % 24, rounded // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rounded % 60} s"
    return f"{rounded} s"

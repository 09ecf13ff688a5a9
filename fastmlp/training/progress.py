"""What a person sees on stderr while a network trains.

Here: a live bar on a terminal, one plain line per epoch elsewhere, nothing when quiet, all behind one small
interface. Not here: results (reports) and the training loop, which calls `update` as often as it likes.

A stream that breaks (the reader of a pipe is gone, the terminal was closed, the disk of a log file is full)
must not cost the user a training run: at the first failure to write, progress falls silent for good and
training goes on.
"""

from __future__ import annotations

import abc
import collections
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

REDRAW_SECONDS = 0.1
LINE_LIMIT = 120
SMOOTHED_EPOCHS = 5


class Progress(abc.ABC):
    """Interface of every display. A context manager: leaving it closes it, also after an exception."""

    @abc.abstractmethod
    def start(self) -> None:
        """Show the display; call it once, before the first epoch."""

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
        """Tell how far the epoch under way is.

        Costs less than a microsecond unless a redraw is due, ten times a second at most.

        Parameters
        ----------
        epoch : number of the epoch, from 1
        done, total : rows trained in this epoch, and rows of an epoch
        loss, accuracy : mean over the rows done so far; accuracy is None for regression
        rows_per_second : training speed in this epoch
        """

    @abc.abstractmethod
    def epoch_done(self, row: Mapping[str, Any]) -> None:
        """Tell that an epoch has ended.

        Parameters
        ----------
        row : row of the history with `epoch`, `loss`, `accuracy`, `val_loss`, `val_accuracy`, `seconds`,
            `eval_seconds`, `rows_per_second`; a value may be absent or None
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Leave the terminal as it was found; may be called more than once."""

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
    """The display that fits the stream.

    Parameters
    ----------
    stream : text stream to write to; None means `sys.stderr`
    quiet : show nothing
    epochs : largest number of epochs; early stopping may end sooner, therefore the time left is "at most"
    clock : seconds, for the time between two redraws

    Returns
    -------
    Progress
        A live bar if the stream is a terminal that can move its cursor, else one line per epoch, of at most
        120 characters.

    Examples
    --------
    >>> row = {"epoch": 3, "loss": 0.5124, "accuracy": 0.8301, "val_loss": None, "val_accuracy": None,
    ...        "seconds": 0.375, "eval_seconds": 0.025, "rows_per_second": 412345.0}
    >>> with make_progress(sys.stdout, epochs=203) as progress:
    ...     progress.update(3, 64, 48000, 0.6, 0.8, 4e5)
    ...     progress.epoch_done(row)
    epoch 3/203  loss 0.5124  accuracy 0.8301  412k rows/s  1 min 20 s left at most
    """
    stream = sys.stderr if stream is None else stream
    if quiet or stream is None:  # Python without a console has no stderr
        return _Silence()
    if _is_terminal(stream):
        return _Bar(stream, epochs, clock)
    return _Lines(stream, epochs)


class _Silence(Progress):
    """Shows nothing."""

    def start(self) -> None:
        pass

    def update(self, *_state: object) -> None:
        pass

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines(Progress):
    """One line per epoch: for log files and pipes."""

    def __init__(self, stream: TextIO, epochs: int) -> None:
        self._stream = _SafeStream(stream)
        self._time_left = _TimeLeft(epochs)
        self._epochs = epochs

    def start(self) -> None:
        pass

    def update(self, *_state: object) -> None:
        pass

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self._time_left.epoch_done(row)
        parts = [f"epoch {row['epoch']}/{self._epochs}", *_figures(row), self._time_left.text(row["epoch"])]
        parts = [part for part in parts if part]
        while len("  ".join(parts)) > LINE_LIMIT:  # the speed and the time left go first: they come last
            parts.pop()
        self._stream.write("  ".join(parts) + "\n")
        self._stream.flush()

    def close(self) -> None:
        pass


class _Bar(Progress):
    """Two live lines: a bar over all epochs with the time left, and the latest figures."""

    def __init__(self, stream: TextIO, epochs: int, clock: Callable[[], float]) -> None:
        self._raw_stream = stream
        self._stream = _SafeStream(stream)
        self._time_left = _TimeLeft(epochs)
        self._epochs = epochs
        self._clock = clock
        self._due = math.inf  # nothing to draw before start and after close
        self._live: Live | None = None
        self._epoch = 1
        self._finished = 0.0  # epochs, with the share of the one under way
        self._row: dict[str, Any] = {}

    def start(self) -> None:
        if self._live is not None:
            return
        from rich.console import Console
        from rich.live import Live

        self._live = Live(
            console=Console(file=self._stream, force_terminal=True),  # type: ignore[arg-type]
            get_renderable=self._render,
            auto_refresh=False,  # a thread of its own would take time from the training threads
            redirect_stdout=False,  # results on stdout must stay there
            redirect_stderr=self._raw_stream is sys.stderr,  # warnings appear above the bar
        )
        try:
            self._live.start(refresh=True)
        except BaseException:  # Ctrl-C now: __exit__ will not be called, and the cursor is hidden
            self.close()
            raise
        self._due = self._clock() + REDRAW_SECONDS

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
        self._time_left.guess(total, rows_per_second)
        self._draw()

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self._time_left.epoch_done(row)
        self._epoch = row["epoch"]
        self._finished = float(self._epoch)
        self._row = dict(row)
        if self._clock() >= self._due:
            self._draw()

    def close(self) -> None:
        live, self._live = self._live, None
        self._due = math.inf
        if live is not None:
            live.stop()  # draws the last state and brings the cursor back

    def _draw(self) -> None:
        assert self._live is not None, "nothing is due before start and after close"
        self._live.refresh()
        # counted from the end of the drawing: a slow terminal gets fewer pictures, not more of our time
        self._due = math.inf if self._stream.broken else self._clock() + REDRAW_SECONDS

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        top = Table.grid(padding=(0, 1, 0, 0), expand=True)
        for _ in range(4):
            top.add_column(no_wrap=True)
        top.columns[1].ratio = 1
        top.add_row(
            Text(f"epoch {self._epoch}/{self._epochs}", style="bold"),
            ProgressBar(total=self._epochs, completed=self._finished),
            f"{self._finished / max(1, self._epochs):.0%}",
            "" if self._live is None else self._time_left.text(self._finished),  # nothing is left once closed
        )
        return Group(top, Text("  ".join(_figures(self._row)), no_wrap=True, overflow="crop"))


class _SafeStream:
    """A text stream that falls silent at its first failure instead of raising (see the module's docstring).

    ValueError is what a closed stream raises, and one whose encoding lacks a character.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.broken = False

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if not self.broken:
            try:
                self._stream.write(text)
            except (OSError, ValueError):
                self.broken = True
        return len(text)

    def flush(self) -> None:
        if not self.broken:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self.broken = True


class _TimeLeft:
    """Time for the epochs to come, from the mean of the last few."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._seconds: collections.deque[float] = collections.deque(maxlen=SMOOTHED_EPOCHS)
        self._guess: float | None = None

    def guess(self, rows: int, rows_per_second: float) -> None:
        """Seconds of an epoch while none has ended."""
        self._guess = rows / rows_per_second if rows_per_second > 0 else None

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        seconds = (row.get("seconds") or 0.0) + (row.get("eval_seconds") or 0.0)
        if math.isfinite(seconds):
            self._seconds.append(seconds)

    def text(self, finished: float) -> str:
        """Time left in words after so many epochs; empty when it is unknown or nothing is left."""
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else self._guess
        if mean is None or finished >= self._epochs:
            return ""
        return f"{_duration(mean * (self._epochs - finished))} left at most"


def _is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be redrawn in place."""
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in {"dumb", "unknown"}
    except ValueError:  # the stream is closed
        return False


def _figures(row: Mapping[str, Any]) -> list[str]:
    """Words for the figures of a row that are present."""
    formats: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("loss", "loss {}", "{:.4g}".format),
        ("accuracy", "accuracy {}", "{:.4f}".format),
        ("val_loss", "val loss {}", "{:.4g}".format),
        ("val_accuracy", "val accuracy {}", "{:.4f}".format),
        ("rows_per_second", "{} rows/s", _count),
    )
    return [words.format(number(row[key])) for key, words, number in formats if row.get(key) is not None]


def _count(number: float) -> str:
    """Three significant digits with k, M or G.

    >>> [_count(n) for n in (7, 950.4, 9_500, 412_345, 999_999, 12.3e6, 4.2e9)]
    ['7', '950', '9.5k', '412k', '1M', '12.3M', '4.2G']
    """
    for unit, factor in (("", 1.0), ("k", 1e3), ("M", 1e6)):
        if abs(number) < 999.5 * factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number / 1e9:.3g}G"


def _duration(seconds: float) -> str:
    """The two largest units of a time.

    >>> [_duration(s) for s in (0.2, 59.4, 59.6, 80, 3599.9, 4800, 100_000)]
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

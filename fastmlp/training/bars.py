"""Progress bars that are redrawn in place, on a terminal or in the output of a notebook cell."""

from __future__ import annotations

import abc
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

if TYPE_CHECKING:
    from IPython.display import DisplayHandle
    from rich.console import RenderableType
    from rich.live import Live


class Status(NamedTuple):
    """State of a training run, as a progress display shows it.

    epoch, epochs : number of the current epoch, from 1, and maximum number of epochs
    finished : number of finished epochs, including the fraction of the current epoch
    metrics : the latest metrics with their names, formatted
    patience : number of epochs without improvement and the early-stopping patience, formatted; "" without early stopping
    speed : training speed, formatted; "" if it is unknown
    time_left : remaining time, formatted; "" if it is unknown
    """

    epoch: int
    epochs: int
    finished: float
    metrics: Sequence[str] = ()
    patience: str = ""
    speed: str = ""
    time_left: str = ""

    @property
    def title(self) -> str:
        """The current epoch and the number of epochs."""
        return f"epoch {self.epoch}/{self.epochs}"

    @property
    def percentage(self) -> str:
        """Finished part of the run, in percent."""
        return f"{self.finished / max(1, self.epochs):.0%}"

    @property
    def parts(self) -> list[str]:
        """The parts of a line of text that are known: epoch, metrics, patience, speed and remaining time."""
        return [part for part in (self.title, *self.metrics, self.patience, self.speed, self.time_left) if part]


class Bar(abc.ABC):
    """Interface of a progress bar that can be redrawn in place."""

    @property
    def broken(self) -> bool:
        """Whether drawing has no effect any more."""
        return False

    @abc.abstractmethod
    def start(self, status: Status) -> None:
        """Draw the progress bar for the first time."""

    @abc.abstractmethod
    def draw(self, status: Status) -> None:
        """Redraw the progress bar in place."""

    @abc.abstractmethod
    def close(self, status: Status) -> None:
        """Draw the progress bar for the last time; it stays visible. Also called if `start` raised an exception."""


class TerminalBar(Bar):
    """Progress bar of the package rich, with two lines: the bar with the remaining time, and the latest metrics.

    Parameters
    ----------
    stream : terminal
    redirect_stderr : whether to print what is written to `sys.stderr` above the bar
    """

    def __init__(self, stream: SafeStream, redirect_stderr: bool) -> None:
        self._stream = stream
        self._redirect_stderr = redirect_stderr
        self._live: Live | None = None
        self._status: Status

    @property
    def broken(self) -> bool:
        return self._stream.broken

    def start(self, status: Status) -> None:
        from rich.console import Console
        from rich.live import Live

        self._status = status
        self._live = Live(
            console=Console(file=self._stream, force_terminal=True),  # type: ignore[arg-type]
            get_renderable=self._render,
            auto_refresh=False,  # a refresh thread would compete with the training threads
            redirect_stdout=False,  # the display must not intercept results that are printed to stdout
            redirect_stderr=self._redirect_stderr,
        )
        self._live.start(refresh=True)

    def draw(self, status: Status) -> None:
        self._status = status
        if self._live is not None:
            self._live.refresh()

    def close(self, status: Status) -> None:
        self._status = status
        if self._live is not None:
            self._live.stop()  # redraws the display and shows the cursor again

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        status = self._status
        top = Table.grid(padding=(0, 1, 0, 0), expand=True)
        for _ in range(5):
            top.add_column(no_wrap=True)
        top.columns[1].ratio = 1
        top.add_row(
            Text(status.title, style="bold"),
            ProgressBar(total=status.epochs, completed=status.finished),
            status.percentage,
            status.patience,
            status.time_left,
        )
        return Group(top, Text("  ".join([*status.metrics, status.speed]).rstrip(), no_wrap=True, overflow="crop"))


class NotebookBar(Bar):
    """Progress bar in the output of a notebook cell, as HTML, and as text for frontends that do not show HTML.

    It is displayed by IPython: the bars of the package rich are not redrawn in a notebook without the package ipywidgets.
    """

    def __init__(self) -> None:
        self._handle: DisplayHandle | None = None

    def start(self, status: Status) -> None:
        from IPython.display import display

        self._handle = display(self._bundle(status), raw=True, display_id=True)

    def draw(self, status: Status) -> None:
        if self._handle is not None:
            self._handle.update(self._bundle(status), raw=True)

    def close(self, status: Status) -> None:
        self.draw(status)

    @staticmethod
    def _bundle(status: Status) -> dict[str, str]:
        """Return the output of the cell, by MIME type."""
        bar = f'<progress max="{max(1, status.epochs)}" value="{status.finished:.3f}" style="width: 40%"></progress>'
        top = [f"<b>{status.title}</b>", bar, status.percentage, status.patience, status.time_left]
        below = [*status.metrics, status.speed]
        html = f"<div>{' '.join(filter(None, top))}<br>{'&ensp;'.join(filter(None, below))}</div>"
        return {"text/plain": "  ".join(status.parts), "text/html": html}


def in_notebook() -> bool:
    """Return whether the code runs in a Jupyter kernel, which displays HTML. IPython is not imported if it is not loaded."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell: Any = None if get_ipython is None else get_ipython()
    # By name and with base classes, so that ipykernel is not imported, and kernels with their own class are recognized.
    return any(base.__name__ == "ZMQInteractiveShell" for base in type(shell).__mro__)


class SafeStream:
    """Wrapper around a text stream that does not raise write errors. After the first error, writes have no effect.

    Writing raises ValueError if the stream is closed, or if its encoding cannot represent a character.
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

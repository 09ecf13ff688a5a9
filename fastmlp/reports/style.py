"""The style of all figures, and a function that saves figures.

Figures use matplotlib's object-oriented interface (Figure and the Agg canvas) instead of pyplot, so they need no display and
leave no figure open in the user's session. The user's matplotlibrc does not affect them, and the same input always gives
identical files. Source of the colours: Okabe and Ito (jfly.uni-koeln.de/color); people with colour blindness can distinguish
them, and they differ in greyscale.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import ConfigError
from fastmlp.files import write_bytes
from fastmlp.files.reading import library_errors
from fastmlp.reports.text import short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
PADDING = 0.1  # inches around a figure
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#8A8A8A"
LOG_FROM = 50  # the axis of the loss is logarithmic if max >= LOG_FROM * min
# Fallback fonts for class names in scripts that are missing from DejaVu Sans, the default font of matplotlib.
FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Malgun Gothic")
# Okabe and Ito's colours, followed by two more that differ from them. If there are more classes than colours, the colours are
# used again with another marker.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000", "#7A5195", "#8C613C")
MARKERS = "os^Dv"
LONGEST_TITLE = 160  # maximum number of characters of a line of a title; matplotlib refuses figures that are too wide


@functools.cache  # an exception is not cached
def load_matplotlib() -> None:
    """Load Matplotlib with its fonts and the PNG format.

    Matplotlib reads its own settings and folders when it is imported. Some that it cannot use end in an exception, such as a
    loop of symbolic links.

    Raises
    ------
    ConfigError : it cannot be imported
    """
    remedy = "set the environment variable MPLCONFIGDIR to a folder that can be written, and check any file matplotlibrc"
    with library_errors("matplotlib", "cannot be imported", remedy, ConfigError):
        from matplotlib.figure import Figure

        Figure().savefig(io.BytesIO())


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Context manager that replaces the user's matplotlib settings with the defaults.

    Characters that no font contains are drawn as boxes, without a warning.
    """
    load_matplotlib()
    import matplotlib
    from matplotlib.font_manager import get_font_names

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        installed = set(get_font_names())
        fonts = [name for name in FONTS if name in installed]
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *fonts]
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from (current )?font")
        yield


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return a figure of this size in inches, with an Agg canvas and constrained layout; see `title_text` for the title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title_text(title), parse_math=False)
    figure._repr_png_ = functools.partial(png_bytes, figure)  # type: ignore[attr-defined]  # displays the figure in notebooks
    return figure


def title_text(title: str) -> str:
    r"""Return a title whose lines are truncated to LONGEST_TITLE characters, with control characters escaped.

    >>> title_text("two\nlines\t")
    'two\nlines\\t'
    """
    return "\n".join(short_name(line, LONGEST_TITLE) for line in title.split("\n"))


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG file; raise DataError if the file cannot be written."""
    write_bytes(path, png_bytes(figure))


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as PNG, without matplotlib's version in its metadata, so that equal figures give identical bytes.

    The layout is computed once and then disabled, because matplotlib would compute it again each time it draws the figure. The
    bounding box includes labels that the layout does not account for, such as those of a confusion matrix, which must stay
    square. It is computed here because bbox_inches="tight" would draw the figure again.
    """
    with own_style():  # the default settings apply also if a notebook displays the figure
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        # "none" would leave a placeholder of the layout engine, with which savefig draws the figure twice.
        figure.set_layout_engine(None)
        buffer = io.BytesIO()
        box = figure.get_tightbbox().padded(PADDING)
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches=box, metadata={"Software": None})
    return buffer.getvalue()


def epoch_axis(axes: Axes, first: int, last: int) -> None:
    """Set the limits and integer ticks of an axis of epochs, and call `light_grid`."""
    from matplotlib.ticker import MaxNLocator

    margin = max(0.5, 0.02 * (last - first))
    axes.set_xlim(max(first - min(margin, 0.9), 0), last + margin)  # epochs start at 1
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    light_grid(axes)


def light_grid(axes: Axes) -> None:
    """Draw a light grid behind the curves, and no frame at the top and at the right."""
    axes.grid(color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def scale_loss(axes: Axes, values: NDArray[np.float64]) -> None:
    """Make the y-axis logarithmic, with plain numbers as labels, if all values are positive and max >= LOG_FROM * min."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if values.size == 0 or values.min() <= 0 or values.max() < LOG_FROM * values.min():
        return
    decades = math.log10(values.max() / values.min())
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def class_legend(figure: Any, shown: Sequence[Any], classes: Sequence[str], **style: Any) -> None:
    """Add a legend of all classes.

    The names are set after the legend has been created, because `Figure.legend` skips labels that start with "_" and parses
    "$" as math.
    """
    legend = figure.legend(shown, ["class"] * len(shown), loc="outside right upper", frameon=False, **style)
    for text, name in zip(legend.get_texts(), classes, strict=True):
        text.set(text=short_name(name), parse_math=False)

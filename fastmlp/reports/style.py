"""Style of all figures, and how they are saved.

Figures use matplotlib's object-oriented interface (Figure and the Agg canvas) instead of pyplot, so they need no display and
leave no figure open in the user's session. The user's matplotlibrc does not affect them, and the same input gives the same
bytes. Colours are Okabe and Ito's (jfly.uni-koeln.de/color), which remain distinct in colour blindness and in greyscale.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.files import write_bytes
from fastmlp.reports.text import short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
PADDING = 0.1  # inches around a figure
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#8A8A8A"
LOG_FROM = 50  # losses get a logarithmic axis if max >= LOG_FROM * min
# For class names in scripts that matplotlib's DejaVu Sans lacks.
FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Malgun Gothic")
# Okabe and Ito's colours, then two more that differ from them; with more classes they repeat with another marker.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000", "#7A5195", "#8C613C")
MARKERS = "os^Dv"


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Context manager for matplotlib's defaults instead of the user's; missing glyphs become boxes, without a warning."""
    import matplotlib
    from matplotlib.font_manager import get_font_names

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        fonts = [name for name in FONTS if name in get_font_names()]
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *fonts]
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from (current )?font")
        yield


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return a figure of this size in inches, with an Agg canvas and constrained layout."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, without matplotlib's version in its metadata, so equal figures are equal files.

    The layout is computed once; otherwise every drawing would repeat it. The bounding box includes labels that the layout
    does not account for, next to a matrix that must stay square; bbox_inches="tight" would cost a further drawing.

    Raises
    ------
    DataError
        The file could not be written.
    """
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine("none")
    buffer = io.BytesIO()
    box = figure.get_tightbbox().padded(PADDING)
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches=box, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def epoch_axis(axes: Axes, first: int, last: int) -> None:
    """Set integer ticks for epochs, and a light grid behind the curves."""
    from matplotlib.ticker import MaxNLocator

    margin = max(0.5, 0.02 * (last - first))
    axes.set_xlim(max(first - min(margin, 0.9), 0), last + margin)  # epochs start at 1
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def scale_loss(axes: Axes, values: NDArray[np.float64]) -> None:
    """Set a logarithmic axis with plain numbers if the values (n,) are positive and span decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if values.size == 0 or values.min() <= 0 or values.max() < LOG_FROM * values.min():
        return
    decades = math.log10(values.max() / values.min())
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def class_legend(figure: Any, shown: Sequence[Any], classes: Sequence[str], **style: Any) -> None:
    """Add a legend of all classes. Names are set later: matplotlib skips labels starting with "_" and parses "$" as math."""
    legend = figure.legend(shown, ["class"] * len(shown), loc="outside right upper", frameon=False, **style)
    for text, name in zip(legend.get_texts(), classes, strict=True):
        text.set(text=short_name(name), parse_math=False)

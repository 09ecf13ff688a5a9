"""How all pictures look, and how they are saved.

They use matplotlib's objects (a Figure and the Agg canvas), never pyplot: no window, no display, no figure left over in the
user's session. The user's matplotlibrc does not change them, and the same input gives the same bytes. Colours are Okabe and
Ito's (jfly.uni-koeln.de/color), which remain distinct in colour blindness and in grey.
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
PADDING = 0.1  # inches around a picture
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#8A8A8A"
LOG_FROM = 50  # a loss whose largest value is so many times its smallest gets a logarithmic axis
# For class names in scripts that DejaVu Sans, which comes with matplotlib, does not have.
FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Malgun Gothic")
# Okabe and Ito's colours, then four that can be told from them; with more classes they repeat with another marker.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000", "#7A5195", "#8C613C")
MARKERS = "os^Dv"


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """matplotlib's own defaults, not the user's; a character that no font has becomes a box, silently."""
    import matplotlib
    from matplotlib.font_manager import get_font_names

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        fonts = [name for name in FONTS if name in get_font_names()]
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *fonts]
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from (current )?font")
        yield


def new_figure(width: float, height: float, title: str) -> Figure:
    """Figure of this size in inches, drawn by Agg, that arranges its parts so that none overlap."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """PNG without a note of the program's version, so that equal pictures are equal files.

    The parts are arranged once; left to itself, the figure would do it anew at each drawing. The box takes in what the
    layout cannot foresee: labels beside a matrix that must stay square. Asked for as "tight", it would cost a further drawing.
    """
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine("none")
    buffer = io.BytesIO()
    box = figure.get_tightbbox().padded(PADDING)
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches=box, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def epoch_axis(axes: Axes, first: int, last: int) -> None:
    """Whole epochs below a panel, and a light grid behind its curves."""
    from matplotlib.ticker import MaxNLocator

    margin = max(0.5, 0.02 * (last - first))
    axes.set_xlim(max(first - min(margin, 0.9), 0), last + margin)  # an epoch 0 does not exist
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def scale_loss(axes: Axes, values: NDArray[np.float64]) -> None:
    """Logarithmic axis, with plain numbers, if the values (n,) are positive and span decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if values.size == 0 or values.min() <= 0 or values.max() < LOG_FROM * values.min():
        return
    decades = math.log10(values.max() / values.min())
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def class_legend(figure: Any, shown: Sequence[Any], classes: Sequence[str], **style: Any) -> None:
    """A legend of all classes; matplotlib leaves out labels that begin with an underscore, and sets dollars as mathematics."""
    legend = figure.legend(shown, ["class"] * len(shown), loc="outside right upper", frameon=False, **style)
    for text, name in zip(legend.get_texts(), classes, strict=True):
        text.set(text=short_name(name), parse_math=False)

"""Style of all matplotlib figures: colours that colour-blind readers and print can distinguish, and few lines."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 150

# Okabe & Ito 2008, "Color Universal Design".
HELPFUL = "#0072B2"
HARMFUL = "#D55E00"
CONTROL = "#009E73"
FIT = "#CC79A7"
INK = "#222222"
QUIET = "#6E6E6E"
FAINT = "#E4E4E4"

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-3, 4),
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib, so that figures are the same everywhere
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.constrained_layout.w_pad": 0.1,  # inches
    "figure.constrained_layout.h_pad": 0.1,
    "text.color": INK,
    "text.usetex": False,
}


@contextmanager
def styled(width: float, height: float) -> Generator[Figure, None, None]:
    """Yields an empty figure (size in inches) with the style active while it is drawn; pyplot's state is unchanged."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def number(value: float, form: str) -> str:
    """Formats a number with a true minus sign."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def slope_form(slope: float) -> str:
    """Returns the format of a slope in a table; the slope of a method with other units may be far from 1."""
    return ".4f" if 0.01 <= abs(slope) < 1000 else ".2e"

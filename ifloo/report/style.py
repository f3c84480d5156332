"""One look for all pictures: colours that stay apart for colour-blind readers and in print, and few lines."""

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
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib: the same picture everywhere
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.constrained_layout.w_pad": 0.1,  # inches
    "figure.constrained_layout.h_pad": 0.1,
    "text.color": INK,
    "text.usetex": False,
}


@contextmanager
def styled(width: float, height: float) -> Generator[Figure, None, None]:
    """Give an empty figure (inches) and hold the style while it is drawn; no state of pyplot is touched."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def number(value: float, form: str) -> str:
    """Write a number with a true minus sign."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def slope_form(slope: float) -> str:
    """How to write a slope in a table: methods in units of their own are far from 1."""
    return ".4f" if 0.01 <= abs(slope) < 1000 else ".2e"

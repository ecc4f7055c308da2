"""One look for every figure: colours that colour-blind readers can tell apart (Okabe and Ito),
and for every rule of discretization a line and a marker of its own, so that colour is never the
only difference."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#666666"

RULE_STYLE = {
    "zoh": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "mamba_rule": {"color": ORANGE, "linestyle": "--", "marker": "s"},
    "euler": {"color": RED, "linestyle": ":", "marker": "^"},
    "bilinear": {"color": GREEN, "linestyle": "-.", "marker": "D"},
}
RULE_NAME = {
    "zoh": "zero-order hold",
    "mamba_rule": "Mamba's rule (ΔB)",
    "euler": "forward Euler",
    "bilinear": "bilinear",
}

MODEL_STYLE: dict[str, dict[str, Any]] = {
    "VMamba": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "ResNet": {"color": ORANGE, "linestyle": "--", "marker": "s"},
    "ConvNeXt": {"color": GREEN, "linestyle": "-.", "marker": "D"},
    "Swin": {"color": PURPLE, "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    "DeiT": {"color": RED, "linestyle": ":", "marker": "^"},
}

_LOOK: dict[Any, Any] = {
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "figure.dpi": 100,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw a figure in the look of the book, and close it so that a notebook shows it once."""

    @functools.wraps(draw)
    def drawn(*args, **options) -> Figure:
        with plt.rc_context(_LOOK):
            figure = draw(*args, **options)
        plt.close(figure)
        return figure

    return drawn


def new(rows: int = 1, columns: int = 1, *, height: float = 3.0, **options):
    """A figure of page width, 7.2 inches, and its axes."""
    return plt.subplots(rows, columns, figsize=(7.2, height), layout="constrained", **options)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without a date or a version in it, so that the same figure gives one file."""
    figure.savefig(path, dpi=150, metadata={"Software": None})

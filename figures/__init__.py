"""The pictures of the book: one function per figure, each returning a matplotlib Figure.

`python -m minivmamba.figures` (or `make figures`) redraws them all as PNG files beside this one.
"""

from minivmamba.figures.discretization import (
    factor,
    gate,
    hold,
    not_held,
    remember,
    rules,
    weights,
)
from minivmamba.figures.overview import routes, seen, stages, what_we_build

__all__ = [
    "factor",
    "gate",
    "hold",
    "not_held",
    "remember",
    "routes",
    "rules",
    "seen",
    "stages",
    "weights",
    "what_we_build",
]

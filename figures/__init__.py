"""The pictures of the book: one function per figure, each returning a matplotlib Figure.

`python -m minivmamba.figures` (or `make figures`) redraws them all as PNG files beside this one.
"""

from minivmamba.figures.algorithms import (
    cumulative_sums,
    processors,
    rounding,
    tree,
    trees,
    work_and_depth,
)
from minivmamba.figures.discretization import (
    factor,
    gate,
    hold,
    not_held,
    remember,
    rules,
    weights,
)
from minivmamba.figures.memory import (
    best_line,
    half_life_map,
    legendre_shapes,
    recall,
    redrawn,
    same_span,
    wanted_memories,
    whole_past,
)
from minivmamba.figures.overview import routes, seen, stages, what_we_build
from minivmamba.figures.selection import gate_map, hidden_row, selection_runs
from minivmamba.figures.systems import (
    pasts,
    place,
    poles,
    real_fit,
    strip,
    swing,
    weighed,
)
from minivmamba.figures.two_views import (
    kernel_of_two,
    leak,
    mixing_matrices,
    work_counted,
)

__all__ = [
    "best_line",
    "cumulative_sums",
    "factor",
    "gate",
    "gate_map",
    "half_life_map",
    "hidden_row",
    "hold",
    "kernel_of_two",
    "leak",
    "legendre_shapes",
    "mixing_matrices",
    "not_held",
    "pasts",
    "place",
    "poles",
    "processors",
    "real_fit",
    "recall",
    "redrawn",
    "remember",
    "rounding",
    "routes",
    "rules",
    "same_span",
    "seen",
    "selection_runs",
    "stages",
    "strip",
    "swing",
    "tree",
    "trees",
    "wanted_memories",
    "weighed",
    "weights",
    "what_we_build",
    "whole_past",
    "work_and_depth",
    "work_counted",
]

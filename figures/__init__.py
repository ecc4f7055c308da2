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
from minivmamba.figures.block import heard, inside_the_block
from minivmamba.figures.crossing import (
    mixing_cost,
    one_pixel_spreads,
    route_player,
    steps_apart,
    who_hears_whom,
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
from minivmamba.figures.model_map import (
    merged_corners,
    operation_budget,
    operation_map,
    parameter_map,
    with_pixels,
)
from minivmamba.figures.overview import routes, seen, stages, what_we_build
from minivmamba.figures.roofline import lanes, order_of_tasks, states_on_roof
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
from minivmamba.figures.training import (
    averaged,
    digits_to_read,
    five_learn,
    gap_of_scores,
    recipe,
    steps_before_and_after,
)
from minivmamba.figures.triton_lesson import (
    blocks,
    layout_of_a_program,
    predicted_roof,
    waiting_hidden,
)
from minivmamba.figures.two_views import (
    kernel_of_two,
    leak,
    mixing_matrices,
    work_counted,
)

__all__ = [
    "averaged",
    "best_line",
    "blocks",
    "cumulative_sums",
    "digits_to_read",
    "factor",
    "five_learn",
    "gap_of_scores",
    "gate",
    "gate_map",
    "half_life_map",
    "heard",
    "hidden_row",
    "hold",
    "inside_the_block",
    "kernel_of_two",
    "lanes",
    "layout_of_a_program",
    "leak",
    "legendre_shapes",
    "merged_corners",
    "mixing_cost",
    "mixing_matrices",
    "not_held",
    "one_pixel_spreads",
    "operation_budget",
    "operation_map",
    "order_of_tasks",
    "parameter_map",
    "pasts",
    "place",
    "poles",
    "predicted_roof",
    "processors",
    "real_fit",
    "recall",
    "recipe",
    "redrawn",
    "remember",
    "rounding",
    "route_player",
    "routes",
    "rules",
    "same_span",
    "seen",
    "selection_runs",
    "stages",
    "states_on_roof",
    "steps_apart",
    "steps_before_and_after",
    "strip",
    "swing",
    "tree",
    "trees",
    "waiting_hidden",
    "wanted_memories",
    "weighed",
    "weights",
    "what_we_build",
    "who_hears_whom",
    "whole_past",
    "with_pixels",
    "work_and_depth",
    "work_counted",
]

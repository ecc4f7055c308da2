"""The figures of lesson 06, and the scans they draw: one operator, four ways to set the brackets.

A scan here takes a list of items and an operation `op(earlier, later)`, and returns the list of
everything up to and including each item. It never looks into an item, so that an item may be a
pair of numbers, a pair of arrays, or a thing that counts.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

from minivmamba.figures.style import BLUE, GREEN, GREY, ORANGE, RED, new, styled

IDENTITY = (1.0, 0.0)  # the step that changes nothing


def then(first: tuple, second: tuple) -> tuple:
    """Two steps h → a h + b as one: the first, and then the second."""
    (a1, b1), (a2, b2) = first, second
    return a2 * a1, a2 * b1 + b2


def left_to_right(steps: list, op: Callable) -> list:
    """The loop."""
    done = [steps[0]]
    for step in steps[1:]:
        done.append(op(done[-1], step))
    return done


def hillis_steele(steps: list, op: Callable) -> list:
    """Every item takes in the one `gap` places before it, for gap = 1, 2, 4, …"""
    gap = 1
    while gap < len(steps):
        joined = [op(*pair) for pair in zip(steps[:-gap], steps[gap:], strict=True)]
        steps = steps[:gap] + joined
        gap *= 2
    return steps


def blelloch(steps: list, op: Callable, identity: Any = IDENTITY) -> list:
    """Up a tree and down again. Other lengths than powers of two are filled up."""
    L = len(steps)
    size = 1 << (L - 1).bit_length()
    tree = steps + [identity] * (size - L)
    gap = 1
    while gap < size:
        for i in range(2 * gap - 1, size, 2 * gap):
            tree[i] = op(tree[i - gap], tree[i])
        gap *= 2
    total, tree[-1] = tree[-1], identity
    while gap > 1:
        gap //= 2
        for i in range(2 * gap - 1, size, 2 * gap):
            tree[i - gap], tree[i] = tree[i], op(tree[i], tree[i - gap])
    return [*tree[1:], total][:L]


def chunked(steps: list, op: Callable, size: int = 0) -> list:
    """A loop in every chunk, a loop over the chunks, and one more combination for the rest."""
    size = size or math.isqrt(len(steps) - 1) + 1
    pieces = [steps[i : i + size] for i in range(0, len(steps), size)]
    first, *others = [left_to_right(piece, op) for piece in pieces]
    carries = left_to_right([piece[-1] for piece in (first, *others)], op)
    joined = [op(carry, x) for carry, piece in zip(carries, others, strict=False) for x in piece]
    return first + joined


SCANS: dict[str, Callable] = {
    "loop": left_to_right,
    "Hillis–Steele": hillis_steele,
    "Blelloch": blelloch,
    "chunks": chunked,
}
WAY_STYLE: dict[str, dict[str, Any]] = {
    "loop": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "Hillis–Steele": {"color": RED, "linestyle": ":", "marker": "^"},
    "Blelloch": {"color": GREEN, "linestyle": "--", "marker": "s"},
    "chunks": {"color": ORANGE, "linestyle": "-.", "marker": "D"},
}


class Counted:
    """An item that counts combinations, and how many of them waited for one another."""

    work = 0

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth


def _count(first: Counted, second: Counted) -> Counted:
    Counted.work += 1
    return Counted(1 + max(first.depth, second.depth))


@functools.cache
def work_and_chain(way: str, L: int, size: int = 0) -> tuple[int, int]:
    """How many combinations a way needs for L steps, and the longest chain of them.

    `size` is that of the chunks, √L by default.
    """
    Counted.work = 0
    options: dict[str, Any] = {}
    if way == "Blelloch":
        options = {"identity": Counted()}
    elif way == "chunks":
        options = {"size": size}
    done = SCANS[way]([Counted() for _ in range(L)], _count, **options)
    return Counted.work, max(item.depth for item in done)


@styled
def work_and_depth() -> Figure:
    """Combinations, and the longest chain of them, against the length."""
    figure, panels = new(1, 2, height=3.2)
    lengths = [2**k for k in range(2, 13)]
    for which, (axes, title) in enumerate(
        zip(panels, ("work: all combinations", "depth: the longest chain"), strict=True)
    ):
        for way, style in WAY_STYLE.items():
            counts = [work_and_chain(way, L)[which] for L in lengths]
            axes.loglog(lengths, counts, label=way, markevery=2, **style)
        axes.set(xlabel="length L of the sequence", ylabel="combinations", title=title)
        axes.set_xticks([10, 100, 1000], ["10", "100", "1,000"])
        axes.minorticks_off()
    panels[0].legend(loc="upper left", fontsize=9)
    return figure


@styled
def processors(L: int = 3136) -> Figure:
    """About how long each way takes with p processors: its work shared out, plus its chain."""
    figure, axes = new(height=3.2)
    p = 2 ** np.arange(0, 14)
    for way, style in WAY_STYLE.items():
        time = [finish(way, int(count), L) for count in p]
        axes.loglog(p, time, label=way, **style)
    axes.set(
        xlabel=f"processors for one chain of {L} steps",
        ylabel="time, in combinations",
        xticks=[1, 10, 100, 1000, 10000],
        yticks=[10, 100, 1000, 10000],
    )
    axes.set_xticklabels(["1", "10", "100", "1,000", "10,000"])
    axes.set_yticklabels(["10", "100", "1,000", "10,000"])
    axes.minorticks_off()
    axes.legend(loc="lower left", fontsize=9)
    return figure


def finish(way: str, p: int, L: int) -> float:
    """Brent's bound, chain + (work − chain)/p; one chunk for each processor, up to √L of them."""
    size = max(math.isqrt(L - 1) + 1, math.ceil(L / p))
    work, chain = work_and_chain(way, L, size if way == "chunks" else 0)
    return chain + (work - chain) / p


# How the brackets are drawn. An item is a span of steps (first, last); None is the identity.


def _join(first, second):
    """The span of both. Only neighbours may be joined, the earlier one first."""
    if first is None or second is None:
        return second if first is None else first
    assert first[1] + 1 == second[0], (first, second)
    return first[0], second[1]


def _rows(way: str, L: int) -> list[tuple[str, list, list]]:
    """(name, items, [(from, to) of every combination]) for each level, the steps first."""
    x: list = [(i, i) for i in range(L)]
    rows: list[tuple[str, list, list]] = [("the steps", list(x), [])]

    def level(name: str, pairs: list[tuple[int, int]]) -> None:
        """x[i] ← x[j] then x[i] for all (j, i) at once."""
        new_items = {i: _join(x[j], x[i]) for j, i in pairs}
        for i, item in new_items.items():
            x[i] = item
        rows.append((name, list(x), pairs))

    if way == "loop":
        for i in range(1, L):
            level(f"step {i + 1}", [(i - 1, i)])
    elif way == "Hillis–Steele":
        for k in range((L - 1).bit_length()):
            level(f"gap {2**k}", [(i - 2**k, i) for i in range(2**k, L)])
    elif way == "chunks of 3":
        for k in (1, 2):
            level(f"each chunk, {k + 1}", [(i - 1, i) for i in range(L) if i % 3 == k])
        if L > 6:
            level("carry", [(2, 5)])
        level("the rest", [(i // 3 * 3 - 1, i) for i in range(3, L) if L <= 6 or i != 5])
    else:
        _tree_rows(x, rows, level)
    return rows


def _tree_rows(x: list, rows: list, level: Callable) -> None:
    """The levels of Blelloch's tree: up, the identity at the root, down, one place to the left."""
    L, levels = len(x), (len(x) - 1).bit_length()
    size = 2**levels
    x += [None] * (size - L)
    rows[0] = ("the steps", list(x), [])
    for k in range(levels):
        gap = 2**k
        level(f"up, gap {gap}", [(i - gap, i) for i in range(2 * gap - 1, size, 2 * gap)])
    total, x[-1] = x[-1], None
    for k in reversed(range(levels)):
        gap, arrows = 2**k, []
        for i in range(2 * gap - 1, size, 2 * gap):
            x[i - gap], x[i] = x[i], _join(x[i], x[i - gap])
            arrows += [(i - gap, i), (i, i - gap)]
        rows.append((f"down, gap {gap}", list(x), arrows))
    x[:] = [*x[1:], total]
    rows.append(("one to the left", list(x), [(i + 1, i) for i in range(size - 1)]))


WAYS = ["loop", "Hillis–Steele", "Blelloch", "chunks of 3"]
FINISHED, PART, BEFORE = "#B7E0D2", "white", "#F6DDB0"


def _draw(axes: Axes, way: str, level: int, L: int, small: bool = False) -> None:
    """The levels of one way from the top down, those after `level` left blank."""
    rows = _rows(way, L)
    level = min(level, len(rows) - 1)
    width = len(rows[0][1])
    half = min(0.26, 0.033 * len(rows))  # of the height of a box
    for depth, (_, items, arrows) in enumerate(rows[: level + 1]):
        for start, end in arrows:
            axes.plot([start, end], [depth - 1 + half, depth - half], color=GREY, linewidth=1)
        exclusive = rows[depth][0].startswith("down")
        told = {end for _, end in arrows if exclusive}  # who has learnt what lies before
        for i, item in enumerate(items):
            finished = item is not None and item == (0, min(i, L - 1)) and not exclusive
            before = i in told
            colour = FINISHED if finished else BEFORE if before else PART
            box = FancyBboxPatch(
                (i - 0.34, depth - half), 0.68, 2 * half, boxstyle="round,pad=0.02",
                facecolor=colour, edgecolor="black" if finished else GREY,
                linewidth=1.6 if finished else 0.8, linestyle="--" if before else "-",
            )  # fmt: skip
            axes.add_patch(box)
            axes.text(
                i, depth, _named(item), ha="center", va="center", fontsize=7 + 2 * (not small)
            )
    names = [name for name, _, _ in rows]
    axes.set(xlim=(-0.6, width - 0.4), ylim=(len(rows) - 0.5, -0.5), xlabel="position")
    axes.set_xticks(range(width), [str(i + 1) for i in range(width)])
    axes.set_yticks(range(len(rows)), names)
    axes.grid(False)


def _named(item) -> str:
    if item is None:
        return "e"
    first, last = item[0] + 1, item[1] + 1
    return str(first) if first == last else f"{first}–{last}"


def _legend(figure: Figure, ways: tuple[str, ...]) -> None:
    looks = [
        Patch(facecolor=FINISHED, edgecolor="black", linewidth=1.6, label="all steps up to here"),
        Patch(facecolor=PART, edgecolor=GREY, label="a part of them"),
    ]
    if "Blelloch" in ways:
        before = "all steps before here (e: none)"
        looks.append(Patch(facecolor=BEFORE, edgecolor=GREY, linestyle="--", label=before))
    figure.legend(handles=looks, loc="outside lower center", ncols=3, fontsize=9)


@styled
def tree(way: str = "Blelloch", level: int = 99, L: int = 8) -> Figure:
    """Which steps have been combined, level by level."""
    figure, axes = new(height=4.4)
    L = int(L)
    _draw(axes, way, int(level), L)
    rows = _rows(way, L)
    reached = min(int(level), len(rows) - 1)
    spans = rows[reached][1][:L]
    done = sum(span == (0, i) for i, span in enumerate(spans))
    exclusive = rows[reached][0].startswith("down")
    found = "" if exclusive else f": {done} of {L} results known"
    axes.set(title=f"{way}, {rows[reached][0]}{found}", ylabel="level")
    _legend(figure, (way,))
    return figure


@styled
def trees(L: int = 8) -> Figure:
    """The signature figure: Hillis and Steele's levels beside Blelloch's tree."""
    figure, panels = new(1, 2, height=4.4)
    for axes, way in zip(panels, ("Hillis–Steele", "Blelloch"), strict=True):
        _draw(axes, way, 99, L, small=True)
        work, chain = work_and_chain(way, L)
        axes.set(title=f"{way}: work {work}, depth {chain}", ylabel="level")
    _legend(figure, ("Blelloch",))
    return figure


def shortcut(A_bar: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The states by two cumulative products and sums: right on paper."""
    P = np.cumprod(A_bar, dtype=A_bar.dtype)
    with np.errstate(all="ignore"):
        return P * np.cumsum(b / P, dtype=b.dtype)


@styled
def cumulative_sums(L: int = 200) -> Figure:
    """The shortcut in float32: how its terms grow, and where its result ends."""
    figure, (left, right) = new(1, 2, height=3.0)
    t = np.arange(1, L + 1)
    for decay, colour, line in ((0.5, RED, ":"), (0.6, ORANGE, "--"), (0.9, BLUE, "-")):
        growth = decay ** -t.astype(float)
        left.semilogy(t, growth, color=colour, linestyle=line, label=f"Ā = {decay}")
    left.axhline(np.finfo(np.float32).max, color="black", linewidth=1)
    left.text(3, 1e41, "largest float32", fontsize=9)
    left.set(xlabel="step t", ylabel="1 / (Ā$_1$ … Ā$_t$)", ylim=(1, 1e62), title="what is summed")
    left.legend(loc="lower right", fontsize=9)

    b = np.random.default_rng(2).uniform(size=L).astype(np.float32)
    A_bar = np.full(L, 0.6, dtype=np.float32)
    true = [h for _, h in left_to_right(list(zip(A_bar, b, strict=True)), then)]
    h = shortcut(A_bar, b)
    last = int(np.flatnonzero(np.isfinite(h))[-1])
    right.plot(t, true, color=GREY, linewidth=5, alpha=0.4, label="loop")
    right.plot(t[: last + 1], h[: last + 1], color=ORANGE, linewidth=1.2, label="shortcut")
    right.plot(t[last], h[last], "X", color="black", markersize=9, label="its last number")
    right.set(
        xlabel="step t", ylabel="state", xlim=(120, L), ylim=(0, 3.2), title="Ā = 0.6, the end"
    )
    right.legend(loc="upper left", ncols=2, fontsize=9)
    return figure


SEEDS = 32  # sequences over which an error is averaged
ROUNDING_LENGTHS = tuple(2**k for k in range(4, 13))


@functools.cache
def rounding_errors(decay: float, positive: bool = False) -> dict[str, np.ndarray]:
    """float32 against float64: {way: one error for each length}.

    The error is the root mean square over all steps and sequences, as a share of that of the
    states. Decays are drawn between decay − 0.01 and decay (exactly 1 for decay = 1), inputs are
    normal or, if `positive`, even between 0 and 1.
    """
    rng = np.random.default_rng(0)
    shape = (max(ROUNDING_LENGTHS), SEEDS)
    drawn = rng.uniform(decay - 0.01, decay, size=shape) if decay < 1 else np.ones(shape)
    A_bar = drawn.astype(np.float32)
    b = (rng.uniform(size=shape) if positive else rng.normal(size=shape)).astype(np.float32)
    wide = list(zip(A_bar.astype(float), b.astype(float), strict=True))
    exact = np.stack([h for _, h in left_to_right(wide, then)])
    steps = list(zip(A_bar, b, strict=True))
    one = (np.ones(SEEDS, dtype=np.float32), np.zeros(SEEDS, dtype=np.float32))
    errors: dict[str, list[float]] = {way: [] for way in SCANS}
    for L in ROUNDING_LENGTHS:
        for way, scan in SCANS.items():
            options = {"identity": one} if way == "Blelloch" else {}
            h = np.stack([h for _, h in scan(steps[:L], then, **options)])
            difference = np.sqrt(np.mean((h - exact[:L]) ** 2))
            errors[way].append(difference / np.sqrt(np.mean(exact[:L] ** 2)))
    return {way: np.array(line) for way, line in errors.items()}


@styled
def rounding() -> Figure:
    """The rounding error of each way against the length, with forgetting and without."""
    figure, panels = new(1, 2, height=3.2, sharey=True)
    titles = ("decays of 0.98 … 0.99", "no decay (Ā = 1), inputs from 0 to 1")
    for axes, decay, title in zip(panels, (0.99, 1.0), titles, strict=True):
        for way, line in rounding_errors(decay, positive=decay == 1).items():
            axes.loglog(ROUNDING_LENGTHS, line, label=way, markevery=2, **WAY_STYLE[way])
        axes.set(xlabel="length L of the sequence", title=title)
        axes.set_xticks([16, 128, 1024, 4096], ["16", "128", "1,024", "4,096"])
        axes.set_yticks([5e-8, 1e-7, 2e-7, 5e-7, 1e-6], ["0.5", "1", "2", "5", "10"])
        axes.minorticks_off()
    panels[0].set_ylabel("relative error, in 10$^{−7}$")
    panels[1].legend(loc="upper left", fontsize=9)
    return figure

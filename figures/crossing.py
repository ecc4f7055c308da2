"""The figures of lesson 09: routes over a map, who hears whom, and how far that is."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from minivmamba.cross_scan import cross_merge, cross_scan
from minivmamba.figures.overview import ROUTE_COLOURS, ROUTE_NAMES, photograph
from minivmamba.figures.style import BLUE, GREY, ORANGE, RED, new, styled
from minivmamba.selective_scan import selective_scan

ROUTE_SETS = {  # for the menus: a name for a reader, and the routes
    "route 0": (0,),
    "routes 0 and 1": (0, 1),
    "routes 0 and 2": (0, 2),
    "all four": (0, 1, 2, 3),
}


def orders_of(H: int, W: int) -> Tensor:
    """(4, L): the pixel that each route meets at each step; pixels are numbered row by row."""
    return cross_scan(torch.arange(H * W).view(1, 1, H, W))[0, :, 0]


def arrivals_of(H: int, W: int) -> Tensor:
    """(4, L): the step at which each route arrives at each pixel, the inverse of the order."""
    return orders_of(H, W).argsort(1)


# The player


@styled
def route_player(route: int = 1, step: int = 8) -> Figure:
    """One route walked up to a step: the photograph, and the sequence that the scan has read."""
    photo, rows, columns = photograph()[60:260], 4, 6  # 200 × 300 pixels, patches of 50 × 50
    order = orders_of(rows, columns)[route]
    step = min(int(step), len(order))
    figure, (above, below) = new(2, height=4.2, height_ratios=[6.5, 1])
    above.imshow(photo, extent=(0, columns, rows, 0))
    cover = np.full((rows * columns, 4), 0.0)
    cover[order[step:].numpy(), 3] = 0.75  # what has not been passed
    above.imshow(
        cover.reshape(rows, columns, 4), extent=(0, columns, rows, 0), interpolation="nearest"
    )
    r, c = (order[:step] // columns + 0.5).numpy(), (order[:step] % columns + 0.5).numpy()
    above.plot(c, r, color="white", linewidth=3.5)
    above.plot(c, r, color=ROUTE_COLOURS[route], linewidth=2)
    if step:
        for at, marker in ((0, "o"), (step - 1, "s")):
            above.plot(
                c[at], r[at], marker, color=ROUTE_COLOURS[route], markeredgecolor="white", ms=10
            )
    above.set_xticks(np.arange(columns) + 0.5, range(columns))
    above.set_yticks(np.arange(rows) + 0.5, range(rows))
    above.set(xlabel="column", ylabel="row", title=f"{ROUTE_NAMES[route]}, after {step} steps")
    above.grid(False)
    _strip(below, photo, order[:step], rows, columns)
    return figure


def _strip(axes, photo: np.ndarray, seen: Tensor, rows: int, columns: int) -> None:
    """The patches in the order in which they came, their numbers below."""
    height, width = photo.shape[0] // rows, photo.shape[1] // columns
    for i, pixel in enumerate(seen.tolist()):
        top, left = pixel // columns * height, pixel % columns * width
        patch = photo[top : top + height, left : left + width]
        axes.imshow(patch, extent=(i + 0.04, i + 0.96, 1, 0))
    axes.set(xlim=(0, rows * columns), ylim=(1, 0), ylabel="sequence", yticks=[], aspect="auto")
    axes.set_xticks(np.arange(len(seen)) + 0.5, seen.tolist(), fontsize=8)
    axes.set_xlabel("the patches in order, numbered row by row")
    axes.grid(False)


# Who hears whom


def ways_to_hear(routes: Sequence[int], H: int, W: int) -> Tensor:
    """(L, L): on how many of these routes pixel p (row) has passed pixel q (column) or is it."""
    at = arrivals_of(H, W)[list(routes)]
    return (at[:, :, None] >= at[:, None, :]).sum(0)


@styled
def who_hears_whom(H: int = 3, W: int = 4) -> Figure:
    """Four tables: pixels that listen against pixels that are heard, for four sets of routes."""
    figure, panels = new(1, 4, height=2.75, sharey=True)
    L = H * W
    for axes, (name, routes) in zip(panels, ROUTE_SETS.items(), strict=True):
        ways = ways_to_hear(routes, H, W)
        axes.imshow(ways.numpy(), cmap="Blues", vmin=0, vmax=5)
        for p, q in np.argwhere(ways.numpy() == 0):
            axes.plot(q, p, "x", color=RED, markersize=4, markeredgewidth=1.2)
        heard = int((ways > 0).sum())
        axes.set_title(f"{name}\n{heard} of {L * L} pairs", fontsize=9)
        axes.set_xticks(range(0, L, W))
        axes.set_yticks(range(0, L, W))
        axes.set_xlabel("heard pixel")
        axes.grid(False)
    panels[0].set_ylabel("listening pixel")
    return figure


# How far it is


def steps_between(row: int, column: int, H: int, W: int) -> Tensor:
    """(2, H, W): the steps between this pixel and every other, along rows and along columns.

    The reversed routes are as long as their lines forwards.
    """
    at = arrivals_of(H, W)[:2].view(2, H, W)
    return (at - at[:, row, column][:, None, None]).abs()


@styled
def steps_apart(row: int = 3, column: int = 3, H: int = 7, W: int = 7) -> Figure:
    """How many steps each pixel is away from one of them: by rows, by columns, and the shorter."""
    figure, panels = new(1, 3, height=3.0, sharey=True)
    by_rows, by_columns = steps_between(row, column, H, W).numpy()
    shorter = np.minimum(by_rows, by_columns)
    names = ("by rows, routes 0 and 2", "by columns, routes 1 and 3", "the shorter of the two")
    for axes, steps, name in zip(panels, (by_rows, by_columns, shorter), names, strict=True):
        axes.imshow(np.maximum(steps, 1), cmap="cividis", norm=LogNorm(1, H * W))
        for (r, c), value in np.ndenumerate(steps):
            colour = "black" if value > 8 else "white"
            axes.text(c, r, value, ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(0, W, 2))
        axes.set_yticks(range(0, H, 2))
        axes.set_xlabel("column")
        axes.set_title(name, fontsize=9)
        axes.grid(False)
    panels[0].set_ylabel("row")
    return figure


def spread(
    row: int,
    column: int,
    H: int,
    W: int,
    delta: float | Tensor = 0.05,
    A: float = -1.0,
    routes: Sequence[int] = (0, 1, 2, 3),
) -> Tensor:
    """(H, W): what one pixel of height 1 leaves everywhere, by the real scan.

    One channel and one state with B = C = 1 on each route. `delta` is a number or an (H, W) map.
    """
    x = torch.zeros(1, 1, H, W, dtype=torch.float64)
    x[0, 0, row, column] = 1
    steps = torch.as_tensor(delta, dtype=torch.float64).expand(1, 1, H, W)
    u, dt = cross_scan(x)[:, :, 0], cross_scan(steps)[:, :, 0]  # (1, 4, L): a route, a channel
    ones = torch.ones(1, 4, 1, H * W, dtype=torch.float64)
    rates = torch.full((4, 1), A, dtype=torch.float64)
    y = selective_scan(u, dt, rates, ones, ones, backend="naive")
    assert isinstance(y, Tensor)
    chosen = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
    chosen[:, list(routes)] = 1
    return cross_merge(y[:, :, None] * chosen, H, W)[0, 0]


SIDE = 28
SHOWN = ("route 0", "routes 0 and 2", "all four")


@styled
def one_pixel_spreads(delta: float = 0.05, row: int = 14, column: int = 14) -> Figure:
    """The signature figure: what one bright pixel leaves on a map, on one, two and four routes."""
    figure, panels = new(1, 3, height=2.9, sharey=True)
    for axes, name in zip(panels, SHOWN, strict=True):
        left = spread(int(row), int(column), SIDE, SIDE, delta, routes=ROUTE_SETS[name])
        share = left / delta  # of what one route takes in at the pixel itself
        picture = axes.imshow(share.numpy(), cmap="cividis", vmin=0, vmax=1)
        axes.plot(column, row, "o", color="white", markeredgecolor="black", markersize=4)
        axes.set(xlabel="column", title=name)
        axes.title.set_fontsize(9)
        axes.grid(False)
    panels[0].set_ylabel("row")
    figure.suptitle(f"A = −1, Δ = {delta:.3g}: a step keeps {np.exp(-delta):.1%}", fontsize=10)
    figure.colorbar(picture, ax=panels, label="share that is left", shrink=0.8, extend="max")
    return figure


# What it costs

SCAN_CHANNELS, STATES, WIDTH = 192, 16, 96  # of stage 1


def multiplications(L: int) -> tuple[int, int]:
    """(scan along four routes, attention): multiplications that mix L pixels in stage 1.

    A state of the scan takes three at a pixel: its decay, its input, its share of the output.
    Attention takes WIDTH for a score and WIDTH for a weighted sum, for each pair of pixels.
    """
    return 3 * 4 * SCAN_CHANNELS * STATES * L, 2 * WIDTH * L * L


@styled
def mixing_cost() -> Figure:
    """Multiplications of the four scans and of attention against the number of pixels."""
    figure, axes = new(height=3.0)
    sides = np.array([7, 14, 28, 56, 112, 224])
    scans, attention = np.array([multiplications(int(n) ** 2) for n in sides], dtype=float).T
    axes.loglog(sides**2, attention, "s--", color=ORANGE, label="attention, one head of width 96")
    axes.loglog(sides**2, scans, "o-", color=BLUE, label="four scans, 192 channels, 16 states")
    axes.axvline(192, color=GREY, linewidth=1, linestyle=":")
    axes.text(205, 5e5, "192 pixels", fontsize=9, color=GREY)
    axes.set(xlabel="pixels of the map", ylabel="multiplications")
    axes.set_xticks(sides**2, [f"{n} × {n}" for n in sides])
    axes.minorticks_off()
    axes.legend(loc="upper left", fontsize=9)
    return figure

"""The figures of lesson 00 and of the README."""

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minivmamba.cross_scan import cross_scan
from minivmamba.figures.style import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, new, styled
from minivmamba.photos import load_photo, to_input, to_picture
from minivmamba.vssm import vmamba_tiny

ROUTE_NAMES = ["0: row by row", "1: column by column", "2: route 0 reversed", "3: route 1 reversed"]
ROUTE_COLOURS = [BLUE, RED, SKY, ORANGE]


def photograph() -> np.ndarray:
    """Chelsea the cat, cut square: (300, 300, 3), from scikit-image's own files."""
    from skimage import data

    return data.chelsea()[:, 100:400]


@styled
def routes(photo: np.ndarray | None = None, grid: int = 6) -> Figure:
    """The four routes of the cross-scan over a square photograph cut into grid × grid patches."""
    photo = photograph() if photo is None else photo
    figure, panels = new(1, 4, height=2.05)
    centres = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"))
    visited = cross_scan(centres[None] + 0.5)[0]  # (4, 2, L): row and column along each route
    for axes, route, name, colour in zip(panels, visited, ROUTE_NAMES, ROUTE_COLOURS, strict=True):
        axes.imshow(photo, extent=(0, grid, grid, 0), alpha=0.7)
        axes.set_xticks(range(grid + 1), [])
        axes.set_yticks(range(grid + 1), [])
        axes.tick_params(length=0)
        axes.grid(color="white", linewidth=0.8, alpha=1)
        _draw_route(axes, rows=route[0], columns=route[1], colour=colour)
        axes.set_title(name, fontsize=9)
    return figure


def _draw_route(axes, rows, columns, colour) -> None:
    """A line through the patches in order, arrows along it, a disc at the start, a square last."""
    axes.plot(columns, rows, color="white", linewidth=3.5)
    axes.plot(columns, rows, color=colour, linewidth=2)
    # One arrow in the middle of every straight run: jumps to the next line are longer than 1.
    step_x, step_y = columns.diff(), rows.diff()
    arrows = (step_x.abs() + step_y.abs() == 1).nonzero().flatten()[2::5]
    axes.quiver(
        columns[arrows], rows[arrows], step_x[arrows], step_y[arrows],
        color=colour, edgecolor="white", linewidth=0.6, angles="xy", scale_units="xy", scale=1.0,
        headwidth=9, headlength=9, headaxislength=9, width=0.014, zorder=3,
    )  # fmt: skip
    ends = {"markersize": 10, "markeredgecolor": "white", "color": colour, "zorder": 4}
    axes.plot(columns[0], rows[0], "o", **ends)
    axes.plot(columns[-1], rows[-1], "s", **ends)


@styled
def seen(row: int = 2, column: int = 3, photo: np.ndarray | None = None, grid: int = 6) -> Figure:
    """What each route has passed when it arrives at one patch; the rest is covered."""
    photo = photograph() if photo is None else photo
    figure, panels = new(1, 4, height=2.25)
    masks = seen_masks(row, column, grid)
    for axes, mask, name, colour in zip(panels, masks, ROUTE_NAMES, ROUTE_COLOURS, strict=True):
        axes.imshow(photo, extent=(0, grid, grid, 0))
        cover = np.zeros((grid, grid, 4))
        cover[..., 3] = np.where(mask, 0.0, 0.8)
        axes.imshow(cover, extent=(0, grid, grid, 0), interpolation="nearest")
        axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=colour, linewidth=4))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{name}\n{int(mask.sum())} of {grid * grid}", fontsize=9)
    return figure


def seen_masks(row: int, column: int, grid: int) -> np.ndarray:
    """(4, grid, grid) booleans: the patches that route k passes up to and including this one."""
    order = arrival_times(grid)
    return order <= order[:, row, column][:, None, None]


def arrival_times(grid: int) -> np.ndarray:
    """(4, grid, grid): when each route arrives at each patch, counted from 0."""
    patches = torch.arange(grid * grid).view(1, 1, grid, grid)
    visited = cross_scan(patches)[0, :, 0]  # (4, L): which patch at which moment
    return visited.argsort(-1).view(4, grid, grid).numpy()


@styled
def stages(images: torch.Tensor | None = None, maps: list[torch.Tensor] | None = None) -> Figure:
    """The photograph as the model sees it, and the mean size of the activations of each stage."""
    if images is None or maps is None:
        images = to_input(load_photo(photograph()))
        torch.manual_seed(0)
        with torch.no_grad():
            maps = vmamba_tiny().eval().forward_features(images)
    figure, panels = new(1, 5, height=1.9)
    panels[0].imshow(to_picture(images))
    panels[0].set_title("input\n224 × 224", fontsize=9)
    for stage, (axes, features) in enumerate(zip(panels[1:], maps, strict=True), start=1):
        axes.imshow(features[0].abs().mean(0).numpy(), cmap="cividis")
        C, H, W = features.shape[1:]
        axes.set_title(f"stage {stage}\n{H} × {W}, {C} ch.", fontsize=9)
    for axes in panels:
        axes.set_axis_off()
    return figure


STAGES = [  # name, colour, side of the map at 224 px, channels, lesson that builds it
    ("image", "#999999", 224, 3, "00"),
    ("stem", GREEN, 56, 96, "11"),
    ("stage 1\n2 blocks", BLUE, 56, 96, "10"),
    ("stage 2\n2 blocks", BLUE, 28, 192, "10"),
    ("stage 3\n9 blocks", BLUE, 14, 384, "10"),
    ("stage 4\n2 blocks", BLUE, 7, 768, "10"),
    ("head", PURPLE, 1, 1000, "11"),
]
LADDER = [  # what one VSS block is made of, from the outside in
    ("VSS block", "10"),
    ("SS2D", "10"),
    ("cross-scan: four routes", "09"),
    ("selective scan", "05–08"),
    ("discretization", "02"),
    ("h′(t) = A h(t) + B x(t)", "01"),
]


@styled
def what_we_build() -> Figure:
    """VMamba-T at 224 px, and what is inside one block down to the differential equation."""
    figure, (above, below) = new(2, height=4.6, height_ratios=[1.25, 1])
    left = 0.0
    for name, colour, side, channels, lesson in STAGES:
        height, width = 0.25 + 0.75 * (side / 224) ** 0.5, 0.8 + 0.035 * np.log2(channels)
        above.add_patch(Rectangle((left, -height / 2), width, height, color=colour, alpha=0.85))
        middle = left + width / 2
        size = f"{side}×{side}\n×{channels}" if side > 1 else f"{channels}\nclasses"
        above.text(
            middle,
            0,
            size,
            ha="center",
            va="center",
            fontsize=9,
            color="white" if colour == BLUE else "black",
        )
        above.text(middle, 0.56, name, ha="center", va="bottom", fontsize=9)
        above.text(middle, -0.56, f"lesson {lesson}", ha="center", va="top", fontsize=9)
        left += width + 0.28
        if name != "head":
            above.annotate("", (left, 0), (left - 0.28, 0), arrowprops={"arrowstyle": "->"})
    above.set(xlim=(-0.1, left - 0.1), ylim=(-0.85, 0.95))
    for depth, (name, lesson) in enumerate(LADDER):
        margin, tall = depth * 0.5, 1 - depth * 0.16
        below.add_patch(
            Rectangle((margin, 0), 10 - margin, tall, facecolor=BLUE, alpha=0.13, edgecolor=BLUE)
        )
        below.text(margin + 0.12, tall - 0.08, name, va="center", fontsize=9)
        below.text(9.9, tall - 0.08, f"lesson {lesson}", va="center", ha="right", fontsize=9)
    below.set(xlim=(-0.1, 10.1), ylim=(-0.05, 1.05))
    for axes in (above, below):
        axes.set_axis_off()
    return figure

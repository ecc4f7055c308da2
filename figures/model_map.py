"""The figures of lesson 11: how the corners merge, where parameters, operations and time go."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minivmamba import vssm, vssm_v2
from minivmamba.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, new, styled
from minivmamba.flops import Flops, count_flops
from minivmamba.stages import StagedModel

CONSTRUCTORS = {
    "VMamba-T": vssm.vmamba_tiny,
    "VMamba-S": vssm.vmamba_small,
    "VMamba-B": vssm.vmamba_base,
    "T[s1l8]": vssm_v2.vmamba_tiny_s1l8,
    "T[s2l5]": vssm_v2.vmamba_tiny_s2l5,
}
LOOK = {  # part → colour and hatching
    "linear": (BLUE, "//"),
    "scan": (ORANGE, ""),
    "einsum": (GREEN, "\\\\"),
    "conv": (PURPLE, ".."),
    "norm": (SKY, "xx"),
    "pool": (RED, "++"),
    "rest": (GREY, "--"),
}
SIZES = (64, 112, 224, 384, 512, 640, 768, 1024)

Box = tuple[float, float, float, float]  # left, bottom, width, height


@cache
def _without_weights(name: str) -> StagedModel:
    with torch.device("meta"):
        return CONSTRUCTORS[name]()


@cache
def costs(name: str, size: int) -> Flops:
    """The operations of a model of `CONSTRUCTORS`."""
    return count_flops(_without_weights(name), size)


# Treemaps


def squarify(values: Sequence[float], box: Box = (0.0, 0.0, 1.0, 1.0)) -> list[Box]:
    """Cut a box into pieces of these areas, as square as a greedy choice makes them.

    Rows are laid along the shorter side, largest value first; a value joins the row as long as
    that makes the worst piece of the row more square (Bruls, Huizing and van Wijk, 2000).
    """
    total = sum(values)
    if total <= 0:
        return [(*box[:2], 0.0, 0.0) for _ in values]
    order = sorted(range(len(values)), key=lambda k: -values[k])
    pieces: dict[int, Box] = {}
    scale, rest = box[2] * box[3] / total, box
    while order:
        short, row = min(rest[2:]), order[:1]
        while len(row) < len(order):
            longer = order[: len(row) + 1]
            if _worst([values[k] * scale for k in longer], short) > _worst(
                [values[k] * scale for k in row], short
            ):
                break
            row = longer
        order = order[len(row) :]
        rest = _lay(row, [values[k] * scale for k in row], rest, pieces)
    return [pieces[k] for k in range(len(values))]


def _worst(areas: Sequence[float], side: float) -> float:
    """The most oblong piece of a row along a side: the longer over the shorter edge."""
    thick = sum(areas) / max(side, 1e-12)
    edges = [(area / max(thick, 1e-12), thick) for area in areas]
    return max(max(a, b) / max(min(a, b), 1e-12) for a, b in edges)


def _lay(row, areas, rest: Box, pieces: dict[int, Box]) -> Box:
    """Put one row into the box; returns what is left of it."""
    left, bottom, width, height = rest
    at = 0.0
    if width >= height:  # a column at the left
        thick = min(sum(areas) / max(height, 1e-12), width)
        for k, area in zip(row, areas, strict=True):
            edge = area / max(thick, 1e-12)
            pieces[k] = (left, bottom + at, thick, edge)
            at += edge
        return left + thick, bottom, width - thick, height
    thick = min(sum(areas) / max(width, 1e-12), height)
    for k, area in zip(row, areas, strict=True):
        edge = area / max(thick, 1e-12)
        pieces[k] = (left + at, bottom, edge, thick)
        at += edge
    return left, bottom + thick, width, height - thick


@styled
def treemap(groups: Mapping[str, Mapping[str, float]], title: str, unit: str) -> Figure:
    """Areas in proportion: {stage: {part: amount}}, parts coloured and hatched as in `LOOK`."""
    figure, axes = new(height=3.9)
    _draw_map(axes, groups, title, f"area in proportion to {unit}")
    axes.set_ylabel("thick lines: stages")
    _legend(figure, groups)
    return figure


def _draw_map(axes, groups: Mapping[str, Mapping[str, float]], title: str, label: str) -> None:
    ratio = 1.9  # about as wide as it is high on the page
    total = sum(sum(parts.values()) for parts in groups.values())
    outer = squarify([sum(parts.values()) for parts in groups.values()], (0.0, 0.0, ratio, 1.0))
    for (stage, parts), box in zip(groups.items(), outer, strict=True):
        inner = squarify(list(parts.values()), box)
        for (part, amount), piece in zip(parts.items(), inner, strict=True):
            colour, hatch = LOOK[part]
            axes.add_patch(
                Rectangle(
                    piece[:2], *piece[2:], facecolor=colour, edgecolor="white", alpha=0.55,
                    hatch=hatch, linewidth=0.8,
                )
            )  # fmt: skip
            under_name = piece[0] == box[0] and piece[1] + piece[3] > box[1] + box[3] - 0.01
            if piece[2] > 0.13 and piece[3] > (0.15 if under_name else 0.09):
                down = 0.04 if under_name and piece[3] < 0.35 else 0.0
                axes.text(
                    piece[0] + piece[2] / 2, piece[1] + piece[3] / 2 - down,
                    f"{part}\n{100 * amount / total:.0f}%", ha="center", va="center", fontsize=8,
                    bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5},
                )  # fmt: skip
        axes.add_patch(
            Rectangle(box[:2], *box[2:], fill=False, edgecolor="black", linewidth=2.2, zorder=3)
        )
        if box[2] > 0.06 and box[3] > 0.1:
            axes.text(
                box[0] + 0.015, box[1] + box[3] - 0.02,
                stage if box[2] > 0.2 else stage.removeprefix("stage "), va="top", fontsize=9,
                weight="bold", zorder=4,
                bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
    axes.set(xlim=(0, ratio), ylim=(0, 1), title=title, xlabel=label, xticks=[], yticks=[])
    axes.grid(False)


def _legend(figure: Figure, groups) -> None:
    used = [part for part in LOOK if any(part in parts for parts in groups.values())]
    handles = [
        Rectangle(
            (0, 0), 1, 1, facecolor=LOOK[p][0], hatch=LOOK[p][1], edgecolor="white", alpha=0.55,
            label=p,
        )
        for p in used
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(used), frameon=False,
                  borderpad=0.8, handlelength=2.6, handleheight=1.3)  # fmt: skip


PART_OF = {  # the end of a parameter's name → its part
    "x_proj_weight": "einsum", "dt_projs_weight": "einsum", "dt_projs_bias": "einsum",
    "A_logs": "scan", "Ds": "scan", "conv2d": "conv", "proj": "conv",
    "in_proj": "linear", "out_proj": "linear", "reduction": "linear", "head": "linear",
    "fc1": "linear", "fc2": "linear",
}  # fmt: skip


def parameters_by_part(model: torch.nn.Module) -> dict[str, dict[str, float]]:
    """Parameters of a VSSM: {"stem": {"conv": …}, "stage 1": {"linear": …, …}, …, "head": …}."""
    groups: dict[str, dict[str, float]] = {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        stage = "stem" if words[0] == "patch_embed" else "head"
        if words[0] == "layers":
            stage = f"stage {int(words[1]) + 1}"
        last = words[-1] if words[-1] in PART_OF else words[-2]
        part = PART_OF.get(last, "norm")
        groups.setdefault(stage, {}).setdefault(part, 0)
        groups[stage][part] += parameter.numel()
    return groups


@styled
def parameter_map() -> Figure:
    """Where the parameters of VMamba-T are, by stage and part."""
    with torch.device("meta"):
        model = vssm.vmamba_tiny()
    groups = parameters_by_part(model)
    total = sum(sum(parts.values()) for parts in groups.values())
    return treemap(groups, f"VMamba-T: {total / 1e6:.1f} million parameters", "the parameters")


def operations_by_part(name: str = "VMamba-T", size: int = 224) -> dict[str, dict[str, float]]:
    """Operations by stage and part, the scan by the prefix-sum formula."""
    groups: dict[str, dict[str, float]] = {}
    for cost in costs(name, size).costs:
        parts = groups.setdefault(cost.stage, {})
        parts[cost.part] = parts.get(cost.part, 0) + cost.total()
    return groups


@styled
def operation_map() -> Figure:
    """Where the operations of VMamba-T are, by stage and part."""
    groups = operations_by_part()
    total = costs("VMamba-T", 224).total() / 1e9
    title = f"VMamba-T, 224 × 224: {total:.1f} G operations (prefix-sum formula)"
    return treemap(groups, title, "the operations")


# Patch merging


@styled
def merged_corners() -> Figure:
    """A 3 × 3 map, padded, and the four numbers that each pixel of the next map gets."""
    values = np.arange(1, 10).reshape(3, 3)
    padded = np.zeros((4, 4), int)
    padded[:3, :3] = values
    figure, (left, right) = new(1, 2, height=2.9, width_ratios=(1, 1.25))
    shades = [BLUE, ORANGE, SKY, PURPLE]  # one for each corner
    for row in range(4):
        for column in range(4):
            corner = row % 2 + 2 * (column % 2)
            inside = row < 3 and column < 3
            left.add_patch(
                Rectangle(
                    (column, row), 1, 1, facecolor=shades[corner], alpha=0.5, edgecolor="white",
                    hatch="" if inside else "////",
                )
            )  # fmt: skip
            left.text(
                column + 0.5, row + 0.5, padded[row, column], ha="center", va="center",
                fontsize=12, color="black", weight="bold" if inside else "normal",
                bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1},
            )  # fmt: skip
    for line in (0, 2, 4):
        left.plot([0, 4], [line, line], color="black", linewidth=2)
        left.plot([line, line], [0, 4], color="black", linewidth=2)
    left.set(
        xlim=(0, 4), ylim=(4, 0), xticks=np.arange(4) + 0.5, yticks=np.arange(4) + 0.5,
        xticklabels=range(4), yticklabels=range(4), xlabel="column", ylabel="row", aspect="equal",
        title="a 3 × 3 map and its zeros (hatched)",
    )  # fmt: skip
    names = ["(0, 0)", "(1, 0)", "(0, 1)", "(1, 1)"]
    for pixel in range(4):
        row, column = 2 * (pixel // 2), 2 * (pixel % 2)
        for corner in range(4):
            value = padded[row + corner % 2, column + corner // 2]
            right.add_patch(
                Rectangle((corner, pixel), 1, 1, facecolor=shades[corner], alpha=0.5,
                          edgecolor="white")
            )  # fmt: skip
            right.text(corner + 0.5, pixel + 0.5, value, ha="center", va="center", fontsize=12)
    right.set(
        xlim=(0, 4), ylim=(4, 0), xticks=np.arange(4) + 0.5, yticks=np.arange(4) + 0.5,
        xticklabels=names, yticklabels=["(0, 0)", "(0, 1)", "(1, 0)", "(1, 1)"],
        xlabel="corner (row, column) in its square", ylabel="pixel of the next map",
        title="4C channels, corner after corner",
    )  # fmt: skip
    for axes in (left, right):
        axes.grid(False)
        axes.tick_params(length=0)
    return figure


# Operations against pixels


def attention_per_pixel(C: int, pixels: float) -> float:
    """Operations of self-attention at each of so many pixels: 4C² for q, k, v and the output."""
    return 4 * C**2 + 2 * pixels * C


def ss2d_per_pixel(C: int, N: int = 16, per_state: float = 9.0) -> float:
    """Operations of an SS2D of the first version at a pixel, without norms."""
    R = -(-C // 16)
    return 6 * C**2 + 18 * C + 16 * C * (R + N) + 8 * C * (per_state * N + 1)


@styled
def with_pixels() -> Figure:
    """Operations of VMamba-T against the side of the image, and with attention in its place."""
    figure, axes = new(height=3.6)
    sides = np.array(SIZES)
    attention = []
    for side in SIZES:
        cost = float(costs("VMamba-T", side).total())
        for C, depth, stride in zip((96, 192, 384, 768), (2, 2, 9, 2), (4, 8, 16, 32), strict=True):
            L = (-(-(side // 4) // (stride // 4))) ** 2  # the stem rounds down, merging up
            cost += depth * L * (attention_per_pixel(C, L) - ss2d_per_pixel(C))
        attention.append(cost)
    rows = {
        "attention in place of SS2D": (attention, RED, ":", "^"),
        "VMamba-T, prefix sum": (
            [costs("VMamba-T", s).total() for s in SIZES], BLUE, "-", "o",
        ),
        "VMamba-T, naive": (
            [costs("VMamba-T", s).total("naive") for s in SIZES], ORANGE, "--", "s",
        ),
    }  # fmt: skip
    for name, (values, colour, line, mark) in rows.items():
        axes.loglog(sides, np.array(values) / 1e9, line, marker=mark, color=colour, label=name)
    axes.set(
        xlabel="side of the square image in pixels", ylabel="operations in G",
        xticks=SIZES, xticklabels=SIZES,
    )  # fmt: skip
    axes.minorticks_off()
    axes.legend()
    return figure


@styled
def operation_budget(name: str = "VMamba-T", size: int = 224) -> Figure:
    """The operations of one model at one size, by part, with shares (prefix sum)."""
    found = costs(name, size)
    parts, total = found.by_part(), found.total()
    figure, axes = new(height=2.7)
    bars = axes.barh(list(parts), [value / 1e9 for value in parts.values()])
    for bar, (part, value) in zip(bars, parts.items(), strict=True):
        colour, hatch = LOOK[part]
        bar.set(facecolor=colour, hatch=hatch, alpha=0.6, edgecolor="white")
        axes.text(
            value / 1e9, bar.get_y() + bar.get_height() / 2,
            f" {value / 1e9:.2f} G, {100 * value / total:.0f}%", va="center", fontsize=9,
        )  # fmt: skip
    axes.invert_yaxis()
    axes.set(
        xlabel="operations in G", ylabel="part", xlim=(0, 1.35 * max(parts.values()) / 1e9),
        title=f"{name}, {size} × {size}, prefix sum: {total / 1e9:.2f} G",
    )  # fmt: skip
    return figure

"""The figures of lesson 13: effective receptive fields, and what becomes of larger images."""

import functools
import math
import statistics
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from safetensors.torch import load_file
from torch import Tensor

from minivmamba import results
from minivmamba.data import PhotoDigits
from minivmamba.figures.block import routes_apart
from minivmamba.figures.style import BLUE, GREY, MODEL_STYLE, ORANGE, new, styled
from minivmamba.receptive_field import displayed, effective_receptive_field, share_of_area
from minivmamba.ss2d import SS2D

MODELS = tuple(MODEL_STYLE)
WHEN = {"before": "class 0", "after digits": "class 600", "after pairs": "relation 1125"}
STEPS = tuple(
    f"{task} {step}"
    for task, steps in {
        "class": (0, 50, 100, 150, 200, 300, 400, 600),
        "relation": (50, 100, 200, 400, 700, 1125),
    }.items()
    for step in steps
)
ROUTES = {
    "rows, one way": [0],
    "rows, both ways": [0, 2],
    "columns, both ways": [1, 3],
    "all four": [0, 1, 2, 3],
}
REPORTED_SIDES = (224, 384, 512, 640, 768, 1024, 1120)
REPORTED = {  # ImageNet top-1 of weights trained at 224, by the authors (arXiv 2401.10166)
    "VMamba": ("VMamba-T", (82.17, 82.39, 81.05, 78.76, 75.10, 60.89, 54.18)),
    "ResNet": ("ResNet-50", (76.40, 76.44, 73.39, 69.73, 65.36, 52.09, 46.08)),
    "ConvNeXt": ("ConvNeXt-T", (82.15, 81.33, 78.36, 74.91, 70.75, 59.64, 54.75)),
    "Swin": ("Swin-T", (81.18, 79.51, 77.49, 74.98, 71.20, 58.05, 52.47)),
    "DeiT": ("DeiT-S", (80.69, 78.86, 74.22, 68.01, 60.94, 46.85, 42.34)),
}


@functools.cache
def kept_fields() -> dict[str, Tensor]:
    """{"VMamba class 600": (128, 128), …}, half precision, each with a maximum of 1."""
    return load_file(results.FOLDER / "backbones.safetensors")


def kept_field(model: str, when: str) -> Tensor:
    """The field of a model of seed 0 after a step, such as "class 600"; double precision."""
    return kept_fields()[f"{model} {when}"].double()


@functools.cache
def kept_share(model: str, when: str, power: float) -> float:
    return share_of_area(kept_field(model, when), power=power)


def half_square(field: Tensor, power: float) -> int:
    """k of the smallest centred square, 2k + 1 pixels wide, with half of the displayed score."""
    scores = displayed(field, power)
    row, column = (side // 2 for side in scores.shape)
    k = 0
    while True:
        top, left = max(row - k, 0), max(column - k, 0)
        held = scores[top : row + k + 1, left : column + k + 1].sum()
        if held >= scores.sum() / 2:
            return k
        k += 1


def show(panel: Any, field: Tensor, power: float, square: bool = True):
    """A field on a panel, and the square that holds half of what is seen."""
    H, W = field.shape
    drawn = panel.imshow(displayed(field, power).numpy(), cmap="cividis", vmin=0, vmax=1)
    panel.grid(False)
    if square:
        k = half_square(field, power)
        panel.add_patch(
            Rectangle(
                (W // 2 - k - 0.5, H // 2 - k - 0.5), 2 * k + 1, 2 * k + 1,
                fill=False, edgecolor="white", linewidth=1.2,
            )
        )  # fmt: skip
        panel.set(xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5))
    return drawn


@styled
def two_powers(model: str = "VMamba", when: str = "class 0") -> Figure:
    """One field drawn twice: the influence itself, and its fourth root."""
    field = kept_field(model, when)
    figure, axes = new(1, 2, height=3.5, sharey=True)
    for panel, power in zip(axes, (1.0, 0.25), strict=True):
        drawn = show(panel, field, power)
        share = kept_share(model, when, power)
        panel.set(title=f"power {power:g}: {share:.1%} of the area", xlabel="column, pixels")
        figure.colorbar(drawn, ax=panel, label="influence$^{%g}$ / largest" % power, shrink=0.8)  # noqa: UP031
    axes[0].set_ylabel("row, pixels")
    return figure


@styled
def after_a_root(tau: float = 10.0) -> Figure:
    """An exponential decay and its roots, each with its half-life."""
    figure, axes = new(height=3.0)
    r = np.linspace(0, 64, 300)
    for power, color, line in ((1.0, BLUE, "-"), (0.25, ORANGE, "--"), (0.2, GREY, ":")):
        half = tau * math.log(2) / power
        label = f"power {power:g}, half-life {half:.1f} pixels"
        axes.plot(r, np.exp(-power * r / tau), color=color, linestyle=line, label=label)
        axes.plot([half], [0.5], color=color, marker="o")
    axes.axhline(0.5, color=GREY, linewidth=1)
    axes.set(xlabel="distance from the centre, pixels", ylabel="what is drawn", ylim=(0, 1.02))
    axes.legend()
    return figure


@functools.cache
def layer_field(routes: tuple[int, ...], seed: int = 0, layers: int = 1) -> Tensor:
    """The field of up to four untrained scans in a row, with only some of their routes, (65, 65).

    Each is the scan of an SS2D of 16 channels and its norm, with D = 0, so that what is heard came
    over the states. The images are random.
    """
    torch.manual_seed(seed)
    scans = [SS2D(8) for _ in range(4)][:layers]
    colours = torch.randn(16, 3) / 3**0.5
    with torch.no_grad():
        for scan in scans:
            scan.Ds.zero_()

    def features(images: Tensor) -> Tensor:
        x = torch.einsum("dc,bchw->bdhw", colours, images)
        for scan in scans:
            x = routes_apart(scan, x)[:, list(routes)].sum(1)
            x = scan.out_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x

    noise = torch.randn(4, 3, 65, 65, generator=torch.Generator().manual_seed(1))
    return effective_receptive_field(features, noise)


@styled
def one_route_at_a_time(power: float = 0.25) -> Figure:
    """The middle of one untrained SS2D: what it hears over some routes and over all."""
    figure, axes = new(1, 4, height=2.5, sharey=True)
    for panel, (title, routes) in zip(axes, ROUTES.items(), strict=True):
        drawn = show(panel, layer_field(tuple(routes)), power, square=False)
        panel.set(title=title, xlabel="column, pixels", xticks=(0, 32, 64), yticks=(0, 32, 64))
        panel.title.set_fontsize(10)
    axes[0].set_ylabel("row, pixels")
    figure.colorbar(drawn, ax=axes, label=f"power {power:g}", shrink=0.8)
    return figure


@styled
def five_fields(power: float = 1.0) -> Figure:
    """Five models before training and after each of the two tasks, seed 0."""
    figure, axes = new(3, 5, height=4.7, sharex=True, sharey=True)
    for row, (name, when) in zip(axes, WHEN.items(), strict=True):
        for panel, model in zip(row, MODELS, strict=True):
            drawn = show(panel, kept_field(model, when), power)
            panel.set(xticks=(0, 64), yticks=(0, 64))
            panel.text(
                3, 124, f"{kept_share(model, when, power):.0%}", color="white", va="bottom",
                fontsize=8, bbox={"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0},
            )  # fmt: skip
        row[0].set_ylabel(f"{name}\nrow, pixels")
    for panel, model in zip(axes[0], MODELS, strict=True):
        panel.set_title(model)
    for panel in axes[-1]:
        panel.set_xlabel("column, pixels")
    figure.colorbar(drawn, ax=axes, label=f"power {power:g}", shrink=0.6)  # fmt: skip
    return figure


@styled
def shares_of_runs() -> Figure:
    """The share of the area of every run, linear and displayed."""
    found = results.load("backbones")["models"]
    figure, axes = new(1, 2, height=3.2, sharey=True)
    for panel, key in zip(axes, ("share, linear", "share, displayed"), strict=True):
        for place, (model, look) in enumerate(MODEL_STYLE.items()):
            for seed in range(3):
                shares = [100 * found[model][when]["field"][seed][key]
                          for when in ("untrained", "class", "relation")]  # fmt: skip
                panel.plot(
                    np.arange(3) + 0.07 * (place - 2), shares, linewidth=1, alpha=0.8, markersize=5,
                    label=model if seed == 0 else None, **look,
                )  # fmt: skip
        panel.axhline(50, color=GREY, linewidth=1)
        panel.set_xticks(range(3), ["before", "after\ndigits", "after\npairs"])
        panel.set(title=key.removeprefix("share, "), xlabel="training", ylim=(0, 55))
    axes[0].set_ylabel("area for half of the score, %")
    axes[1].legend(fontsize=8, loc="lower right", ncols=2)
    return figure


@styled
def field_of_training(model: str = "VMamba", when: str = "class 600", power: float = 1.0) -> Figure:
    """The field of a model after some steps, and its share of the area over all steps."""
    figure, (left, right) = new(1, 2, height=3.2, width_ratios=(1, 1.25))
    drawn = show(left, kept_field(model, when), power)
    left.set(title=f"{model}, {when}", xlabel="column, pixels", ylabel="row, pixels")
    figure.colorbar(drawn, ax=left, label=f"power {power:g}", shrink=0.8)
    shares = [100 * kept_share(model, step, power) for step in STEPS]
    right.plot(range(len(STEPS)), shares, **MODEL_STYLE[model])
    at = STEPS.index(when)
    right.plot([at], [shares[at]], color="black", marker="o", markersize=11, fillstyle="none")
    right.axvline(7.5, color=GREY, linewidth=1)
    right.set_xticks(range(len(STEPS)), [step.split()[1] for step in STEPS], rotation=60)
    right.set(xlabel="step (left: digits, right: pairs)", ylabel="area for half of the score, %",
              ylim=(0, 55))  # fmt: skip
    return figure


@styled
def a_field_grows(model: str = "VMamba", power: float = 1.0) -> Figure:
    """A row of checkpoints of one training."""
    chosen = ("class 0", "class 100", "class 200", "class 600", "relation 1125")
    figure, axes = new(1, len(chosen), height=2.3, sharey=True)
    for panel, when in zip(axes, chosen, strict=True):
        drawn = show(panel, kept_field(model, when), power)
        panel.set(title=f"{when}: {kept_share(model, when, power):.0%}", xlabel="column, pixels",
                  xticks=(0, 64), yticks=(0, 64))  # fmt: skip
        panel.title.set_fontsize(9)
    axes[0].set_ylabel("row, pixels")
    figure.colorbar(drawn, ax=axes, label=f"power {power:g}", shrink=0.8)
    return figure


@styled
def larger_images() -> Figure:
    """Accuracy on larger images: every run, and the mean of three."""
    found = results.load("backbones")
    sides = found["scaling"]["sides"]
    figure, axes = new(2, 2, height=5.6, sharex=True, sharey="row")
    for row, (task, chance) in zip(axes, {"class": 10, "relation": 50}.items(), strict=True):
        for panel, way in zip(row, ("zoom", "canvas"), strict=True):
            for model, look in MODEL_STYLE.items():
                runs = 100 * np.array(found["models"][model][task]["scaling"][way])
                panel.plot(sides, runs.mean(0), label=model, markersize=4, **look)
                for run in runs:
                    panel.plot(sides, run, color=look["color"], marker=look["marker"],
                               linestyle="none", markersize=3, alpha=0.5)  # fmt: skip
            panel.axhline(chance, color=GREY, linewidth=1)
            what = "larger objects" if way == "zoom" else "more room around"
            panel.set(title=f"{'digits' if task == 'class' else 'pairs'}, {what}", ylim=(0, 100))
        row[0].set_ylabel("right answers, %")
    for panel in axes[1]:
        panel.set(xlabel="side of the image, pixels", xticks=sides, ylim=(40, 90))
    axes[0, 0].legend(fontsize=8)
    return figure


def attention_operations(side: int, patch: int = 8, width: int = 78, blocks: int = 4) -> int:
    """Multiply-adds of the two products of attention in the small DeiT, for one image."""
    tokens = 1 + (side // patch) ** 2
    return blocks * 2 * tokens**2 * width


@styled
def growth() -> Figure:
    """Operations, memory and time against the number of pixels."""
    costs = results.load("backbones")["costs"]
    sides = np.array(costs["sides"])
    figure, axes = new(1, 3, height=3.4, sharex=True)
    titles = {"operations": "multiply-adds", "memory": "kept for backward, bytes",
              "time": "time, ResNet at 64² = 1"}  # fmt: skip
    for panel, (key, label) in zip(axes, titles.items(), strict=True):
        for model, look in MODEL_STYLE.items():
            values = np.array(costs["models"][model][key], dtype=float)
            panel.loglog(sides**2, values, label=model, **look | {"markersize": 4})
        panel.set(xlabel="pixels", ylabel=label)
        panel.set_xticks([64**2, 128**2, 256**2, 512**2], ["64²", "128²", "256²", "512²"])
        panel.minorticks_off()
    axes[0].legend(fontsize=8)
    return figure


@styled
def reported_and_ours() -> Figure:
    """The authors' input scaling beside that of the small models, objects growing in both."""
    found = results.load("backbones")
    figure, (theirs, ours) = new(1, 2, height=3.2, sharey=True)
    for model, look in MODEL_STYLE.items():
        name, values = REPORTED[model]
        theirs.plot(REPORTED_SIDES, values, label=name, **look)
        runs = found["models"][model]["class"]["scaling"]["zoom"]
        mean = [100 * statistics.mean(column) for column in zip(*runs, strict=True)]
        ours.plot(found["scaling"]["sides"], mean, label=model, **look)
    theirs.set(title="reported by the authors", xlabel="side, pixels (trained at 224)",
               ylabel="right answers, %", ylim=(0, 100), xticks=(224, 512, 768, 1120))  # fmt: skip
    ours.set(title="ours, digits zoomed", xlabel="side, pixels (trained at 64)",
             xticks=found["scaling"]["sides"])  # fmt: skip
    theirs.legend(fontsize=8, loc="lower left")
    return figure


@styled
def zoom_or_canvas() -> Figure:
    """One scene at 64 pixels, with everything twice as large, and with more room around it."""
    kinds: dict[str, dict[str, Any]] = {
        "as trained: 64": {},
        "larger objects: 128": {"zoom": 2},
        "more room around: 128": {"canvas": 2},
    }
    figure, axes = new(1, 3, height=2.8)
    for panel, (title, options) in zip(axes, kinds.items(), strict=True):
        images, _ = PhotoDigits("test", "relation", 64, 6, 0, distance="far", **options).tensors()
        panel.imshow(images[5].permute(1, 2, 0).numpy())
        panel.grid(False)
        panel.set(title=title, xlabel="column, pixels", ylabel="row, pixels")
        panel.title.set_fontsize(10)
    return figure

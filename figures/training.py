"""The figures of lesson 12: how a network learns, and what helps it."""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from minivmamba import results
from minivmamba.data import PhotoDigits, normalize
from minivmamba.figures.block import project
from minivmamba.figures.style import BLUE, GREY, MODEL_STYLE, ORANGE, RED, new, styled
from minivmamba.train.config import load_config
from minivmamba.train.optimizer import rate_at

STEPS_AN_EPOCH = 1_281_167 // 1024  # ImageNet in batches of the authors


@styled
def digits_to_read() -> Figure:
    """Ten training images, one of each class."""
    photos = PhotoDigits("train", "class", 64, 200, seed=0)
    figure, axes = new(2, 5, height=3.2)
    found: dict[int, np.ndarray] = {}
    for i in range(len(photos)):
        drawing = photos.drawing(i)
        found.setdefault(int(drawing.labels[0]), drawing.image)
    for label, panel in enumerate(axes.flat):
        panel.imshow(found[label])
        panel.set_title(str(label), fontsize=9)
        panel.axis("off")
    return figure


@styled
def five_learn() -> Figure:
    """Right answers on training images over the steps, five models, three seeds each."""
    found = results.load("backbones")
    figure, axes = new(1, 2, height=3.4, sharey=True)
    for panel, task, chance in zip(axes, ("class", "relation"), (10, 50), strict=True):
        for name, look in MODEL_STYLE.items():
            curves = np.array(found["models"][name][task]["curves"])  # (seeds, rows, 3)
            steps = curves[0, :, 0]
            smooth = [100 * running_mean(one[:, 2], 15) for one in curves]
            for one in smooth:
                panel.plot(steps, one, color=look["color"], linewidth=0.7, alpha=0.35)
            panel.plot(steps, np.mean(smooth, axis=0), label=name, markevery=0.12,
                       markersize=4, **look)  # fmt: skip
        panel.axhline(chance, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
        panel.text(panel.get_xlim()[1], chance - 4.5, "chance", fontsize=8, color=GREY, ha="right")
        panel.set(xlabel="step of 64 images", ylim=(0, 100))
    axes[0].set(title="one digit: which?", ylabel="right on training images, %")
    axes[1].set(title="two digits: the same?")
    axes[1].legend(fontsize=8, loc="lower right", ncols=2)
    return figure


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Means over the last `width` values, fewer at the beginning."""
    total = np.cumsum(values)
    total[width:] -= np.cumsum(values)[:-width]
    return total / np.minimum(np.arange(1, len(values) + 1), width)


@styled
def recipe() -> Figure:
    """The authors' learning rate, and what their decay alone would do to A."""
    config = load_config("imagenet_vmamba_tiny")
    steps, warmup = 300 * STEPS_AN_EPOCH, 20 * STEPS_AN_EPOCH
    rates = np.array([rate_at(t, steps, warmup, config) for t in range(0, steps, 25)])
    epochs = np.arange(len(rates)) * 25 / STEPS_AN_EPOCH
    left = np.exp(-np.cumsum(rates) * 25 * config.weight_decay)  # of every A_log
    figure, (above, below) = new(2, height=4.6, sharex=True)
    above.plot(epochs, 1e3 * rates, color=BLUE)
    above.set(ylabel="learning rate, 10⁻³", ylim=(0, 1.1))
    for n, style in ((16, "-"), (8, "--"), (4, "-."), (2, ":")):
        below.plot(epochs, -np.exp(math.log(n) * left), color=RED, linestyle=style,
                   label=f"state {n}")  # fmt: skip
    below.axhline(-1, color=GREY, linewidth=1)
    below.set(xlabel="epoch", ylabel="A under decay alone", ylim=(-16.5, 0))
    below.legend(fontsize=8, loc="lower right", ncols=2)
    return figure


@styled
def gap_of_scores() -> Figure:
    """How far the right score runs ahead of the others: plain and smoothed targets, ten classes."""
    figure, axes = new(height=3.0)
    shown = np.unique(np.geomspace(1, 20_000, 60).astype(int))
    for smoothing, color, style in ((0.0, ORANGE, "--"), (0.1, BLUE, "-")):
        gaps = gaps_while_learning(smoothing, int(shown[-1]))
        axes.plot(shown, gaps[shown - 1], color=color, linestyle=style,
                  label=f"ε = {smoothing:g}")  # fmt: skip
    axes.axhline(math.log(91), color=GREY, linewidth=1)
    axes.text(1, math.log(91) + 0.15, "ln 91", fontsize=8, color=GREY)
    axes.set(xscale="log", xlabel="step of gradient descent", ylabel="right score − others")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.88))
    return figure


def gaps_while_learning(
    smoothing: float, steps: int, classes: int = 10, rate: float = 1.0
) -> np.ndarray:
    """Gradient descent on the scores themselves, from 0: the gap after each step, (steps,).

    By symmetry the wrong scores stay equal, so one number tells all.
    """
    target = 1 - smoothing + smoothing / classes
    gaps, gap = np.empty(steps), 0.0
    for k in range(steps):
        right = 1 / (1 + (classes - 1) * math.exp(-gap))
        # The right score rises by target − p; the others share the opposite.
        gap += rate * (target - right) * classes / (classes - 1)
        gaps[k] = gap
    return gaps


@styled
def averaged(decay: float = 0.95) -> Figure:
    """A weight that wanders around its best value, 1, and its moving average."""
    weights = wandering()
    average, kept = weights[0], []
    for weight in weights:
        average = decay * average + (1 - decay) * weight
        kept.append(average)
    figure, axes = new(height=3.0)
    axes.plot(weights, color=ORANGE, linewidth=0.8, label="weight")
    axes.plot(kept, color=BLUE, label=f"average, decay {decay:g}")
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--", label="best value")
    axes.set(xlabel="step", ylabel="value", ylim=(-0.5, 1.7))
    axes.legend(loc="lower right")
    return figure


@functools.cache
def wandering(steps: int = 600) -> np.ndarray:
    """Gradient descent on (w − 1)² / 2 with noisy gradients, from 0."""
    noise = np.random.default_rng(0).standard_normal(steps)
    weights, weight = [], 0.0
    for kick in noise:
        weight -= 0.1 * (weight - 1 + 0.9 * kick)
        weights.append(weight)
    return np.array(weights)


@styled
def learning(rows: list[dict[str, str]], looks: list[tuple[int, float, float]]) -> Figure:
    """A run as it went: its log, and (step, accuracy, accuracy of the average) on new images."""
    steps = [int(row["step"]) for row in rows]
    figure, (loss, right) = new(1, 2, height=2.9)
    loss.plot(steps, [float(row["loss"]) for row in rows], color=BLUE)
    loss.axhline(math.log(10), color=GREY, linewidth=1, linestyle="--")
    loss.text(steps[-1], math.log(10) + 0.05, "ln 10", fontsize=8, color=GREY, ha="right")
    loss.set(xlabel="step", ylabel="loss, nats", ylim=(0, None))
    right.plot(steps, [100 * float(row["accuracy"]) for row in rows], color=GREY, linewidth=1,
               label="training images")  # fmt: skip
    when, plain, smooth = zip(*looks, strict=True)
    right.plot(when, [100 * a for a in plain], color=ORANGE, marker="s", linestyle="--",
               label="new images")  # fmt: skip
    right.plot(when, [100 * a for a in smooth], color=BLUE, marker="o",
               label="new images, average")  # fmt: skip
    right.set(xlabel="step", ylabel="right answers, %", ylim=(0, 100))
    right.legend(fontsize=8, loc="upper left")
    return figure


# --- Δ of a trained network ----------------------------------------------------------------------


def delta_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The step Δ of every block at every pixel, mean of routes and channels: (B, H, W) each."""
    found: list[Tensor] = []
    blocks = [b.self_attention for layer in model.layers for b in layer.blocks]  # type: ignore
    hooks = [
        # The scan reads what the convolution gives, through SiLU.
        b.conv2d.register_forward_hook(
            lambda _, __, out, scan=b: found.append(project(scan, F.silu(out))[0].mean((1, 4)))
        )
        for b in blocks
    ]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


@functools.cache
def two_models() -> dict[str, nn.Module]:
    """VMamba before and after it learned to read digits."""
    from minivmamba.small_models import small_vmamba
    from minivmamba.train.weights import load_weights

    torch.manual_seed(0)
    after = load_weights(results.FOLDER / "weights" / "VMamba_class.safetensors")[0]
    return {"before": small_vmamba(10).eval(), "after": after.eval()}


@styled
def steps_before_and_after(image: int = 2) -> Figure:
    """An image, and Δ in three blocks before and after training, over its mean."""
    picture = PhotoDigits("test", "class", 64, 200, seed=0).drawing(image).image
    pixels = normalize(torch.from_numpy(picture).permute(2, 0, 1)[None])
    figure, axes = new(2, 4, height=3.9)
    for row, (name, model) in zip(axes, two_models().items(), strict=True):
        row[0].imshow(picture)
        row[0].set_ylabel(name)
        for panel, block in zip(row[1:], (1, 3, 5), strict=True):
            steps = delta_maps(model, pixels)[block][0]
            shown = panel.imshow((steps / steps.mean()).numpy(), cmap="cividis", vmin=0.8, vmax=1.3)
            if name == "before":
                panel.set_title(f"block {block + 1}", fontsize=9)
    for panel in axes.flat:
        panel.grid(False)
        panel.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes, label="Δ over its mean", shrink=0.8, extend="both")
    return figure

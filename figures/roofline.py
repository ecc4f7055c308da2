"""The figures of lesson 07: where lanes find their numbers, tasks in any order, the roofline."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minivmamba.figures.style import BLUE, GREEN, GREY, ORANGE, RED, new, styled

OPERATIONS = 9  # multiply-adds for a state and step: 7 make e^{ΔA}, one makes h, one adds to y
BYTES = 12  # for a channel and step in float32: u and Δ come from memory, y goes there
# What `python -m minivmamba.bench scan` reported for two Zen 5 cores, per second.
REPORTED = {"multiply-adds": 245e9, "exponentials": 31.6e9, "bytes": 40e9}


def intensity(states: int, extra_bytes: float = 0.0) -> float:
    """Multiply-adds of a scan for every byte moved; B and C are little beside u, Δ and y."""
    return OPERATIONS * states / (BYTES + extra_bytes)


@styled
def lanes() -> Figure:
    """Where the numbers of a table stand in memory, in two layouts, and what one vector loads."""
    channels, steps, taken = 8, 8, 2
    figure, panels = new(1, 2, height=3.6, sharey=True)
    c, t = np.mgrid[:channels, :steps]
    layouts = {
        "(d, L): steps are neighbours": c * steps + t,
        "(L, d): channels are": t * channels + c,
    }
    for axes, (title, place) in zip(panels, layouts.items(), strict=True):
        axes.imshow(place, cmap="Greys", alpha=0.35)
        for row, column in np.ndindex(channels, steps):
            axes.text(column, row, place[row, column], ha="center", va="center", fontsize=8)
        axes.add_patch(
            Rectangle((taken - 0.5, -0.5), 1, 4, fill=False, edgecolor=RED, linewidth=2.5)
        )
        axes.grid(False)
        loaded = ", ".join(str(p) for p in place[:4, taken])
        axes.set(title=title, xlabel=f"step t\nfour lanes want {loaded}")
    panels[0].set_ylabel("channel")
    return figure


def run_tasks(tasks, u, delta, A, B, C) -> np.ndarray:
    """Tasks, one after another, each from whatever h holds when it begins: y (L, d).

    A task is (steps, channels). u, delta (L, d), A (N, d), B, C (L, N).
    """
    h, y = np.zeros_like(A), np.zeros_like(u)
    for steps, channels in tasks:
        for t in steps:
            dt = delta[t, channels]
            enters = B[t][:, None] * (dt * u[t, channels])
            h[:, channels] = np.exp(dt * A[:, channels]) * h[:, channels] + enters
            y[t, channels] = (C[t][:, None] * h[:, channels]).sum(0)  # in one order
    return y


@styled
def order_of_tasks() -> Figure:
    """One channel of a scan whose chunks of time ran in order, and in another order."""
    L, N = 64, 4
    draw = np.random.default_rng(7)
    u = 1 + draw.normal(size=(L, 1)) / 4
    delta = np.full((L, 1), 0.05)
    A, B, C = -np.arange(1.0, N + 1)[:, None], np.ones((L, N)), np.ones((L, N))
    parts = [(range(start, start + 16), slice(None)) for start in range(0, L, 16)]
    figure, axes = new(height=3.0)
    t = np.arange(1, L + 1)
    right = run_tasks(parts, u, delta, A, B, C)
    wrong = run_tasks([parts[k] for k in (2, 0, 3, 1)], u, delta, A, B, C)
    axes.plot(t, right, color=BLUE, label="chunks 1, 2, 3, 4")
    axes.plot(t, wrong, color=ORANGE, linestyle="--", label="chunks 3, 1, 4, 2")
    for edge in (16.5, 32.5, 48.5):
        axes.axvline(edge, color=GREY, linewidth=1, linestyle=":")
    axes.set(xlabel="step t", ylabel="output y", ylim=(0, 1.45 * right.max()), xlim=(0, L + 1))
    axes.set_xticks([1, 16, 32, 48, 64])
    axes.legend(loc="upper center", ncols=2, title="in which order the tasks ran")
    return figure


MARKS = ("o", "s", "^", "v", "D", "P", "X", "*", "<", ">")
COLOURS = (GREY, ORANGE, RED, GREEN, BLUE)


def _draw_roof(axes, rates: Mapping[str, float], label: str, **look) -> None:
    x = np.geomspace(0.05, 200, 400)
    roof = np.minimum(rates["bytes"] * x, rates["multiply-adds"]) / 1e9
    axes.loglog(x, roof, label=label, **look)


@styled
def roof(
    roofs: Mapping[str, Mapping[str, float]], points: Mapping[str, tuple[float, float]]
) -> Figure:
    """A measured roofline.

    roofs: name → rates per second. points: name → (multiply-adds a byte, multiply-adds a second).
    """
    figure, axes = new(height=4.4)
    for (name, rates), line in zip(roofs.items(), ("-", "--", ":"), strict=False):
        _draw_roof(axes, rates, f"roof of {name}", color="black", linestyle=line)
    for k, (name, (x, y)) in enumerate(points.items()):
        axes.plot(
            x, y / 1e9, MARKS[k % len(MARKS)], color=COLOURS[k % len(COLOURS)], markersize=8,
            label=name, linestyle="none",
        )  # fmt: skip
    axes.set(
        xlabel="multiply-adds for each byte from or to memory", ylabel="10⁹ multiply-adds a second"
    )
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


@styled
def states_on_roof(N: int = 16) -> Figure:
    """A scan with N states under the reported roof; what a channel and step need of each rate."""
    rates = REPORTED
    figure, (left, right) = new(1, 2, height=3.4, width_ratios=(3, 2))
    _draw_roof(left, rates, "roof", color="black")
    x = intensity(N)
    height = min(rates["bytes"] * x, rates["multiply-adds"])
    left.vlines(x, 0.5, height / 1e9, color=GREY, linestyle=":")
    left.plot(x, height / 1e9, "o", color=BLUE, markersize=9)
    left.set(
        xlabel="multiply-adds for each byte", ylabel="10⁹ multiply-adds a second", ylim=(0.5, 1000),
        title=f"N = {N}: {x:.3g} for each byte",
    )  # fmt: skip
    amounts = {
        "bytes": BYTES, "multiply-adds": OPERATIONS * N, "exponentials": N,
    }  # fmt: skip
    needs = {name: 1e9 * amount / rates[name] for name, amount in amounts.items()}
    most = max(needs, key=needs.__getitem__)
    bars = right.barh(list(needs), list(needs.values()), color="white", edgecolor=BLUE)
    bars[list(needs).index(most)].set(facecolor=BLUE, hatch="//", edgecolor="white")
    for place, value in enumerate(needs.values()):
        right.text(value * 1.15, place, f"{value:.2g}", va="center", fontsize=9)
    right.set(
        xscale="log", xlim=(0.01, 20), xlabel="at least, ns a channel and step",
        title=f"slowest: {most}",
    )  # fmt: skip
    right.set_ylabel("what is needed")
    return figure

"""The figures of lesson 02."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from minivmamba.discretize import bilinear, euler, mamba_rule, phi, zoh
from minivmamba.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RULE_NAME,
    RULE_STYLE,
    new,
    styled,
)

RULES = {"zoh": zoh, "mamba_rule": mamba_rule, "euler": euler, "bilinear": bilinear}
LN2 = float(np.log(2))


def run(rule: str, a: float, b: float, dt: float, xs) -> np.ndarray:
    """The states h_0 = 0, h_1, … of one scalar recurrence."""
    A_bar, B_bar = (float(value) for value in RULES[rule](a, b, dt))
    hs = [0.0]
    for x in xs:
        hs.append(A_bar * hs[-1] + B_bar * x)
    return np.array(hs)


def between_samples(a: float, b: float, dt: float, xs, points: int = 50):
    """The exact response inside every interval: (times in steps, values)."""
    starts = run("zoh", a, b, dt, xs)
    s = np.linspace(0, dt, points)
    levels = [
        h0 * np.exp(a * s) + np.expm1(a * s) / a * b * x
        for h0, x in zip(starts[:-1], xs, strict=True)
    ]
    times = [t + s / dt for t in range(len(levels))]
    return np.concatenate(times), np.concatenate(levels)


@styled
def hold(xs=(4.0, 0.0, 8.0, 2.0, 2.0, 0.0), a: float = -1.0, dt: float = LN2) -> Figure:
    """The held input above, the exact response below, going through the samples of the ZOH rule."""
    figure, (above, below) = new(2, height=4.4, sharex=True)
    steps = np.arange(len(xs) + 1)
    above.stairs(xs, steps, baseline=0, fill=True, color=GREY, alpha=0.25)
    above.stairs(xs, steps, baseline=None, color=GREY, linewidth=2)
    above.plot(steps[1:], xs, "o", color="black", label="sample x$_t$: held over the step before")
    above.set(ylabel="input x")
    times, levels = between_samples(a, 1.0, dt, xs)
    below.plot(times, levels, color=GREY, label="exact response h(t)")
    for rule, label_height in (("zoh", -12), ("mamba_rule", 4)):
        style = {**RULE_STYLE[rule], "linestyle": "none"}
        states = run(rule, a, 1.0, dt, xs)
        below.plot(steps, states, **style, label=RULE_NAME[rule])
        for t in (1, 2, 3):
            below.annotate(
                f"{states[t]:.3g}",
                (t, states[t]),
                (7, label_height),
                textcoords="offset points",
                fontsize=9,
            )
    below.set(xlabel="time t (in steps of Δ = ln 2)", ylabel="state h")
    for axes in (above, below):
        axes.legend(loc="upper right", fontsize=9)
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    return figure


@styled
def weights(a: float = -1.0, dt: float = LN2) -> Figure:
    """What is left, at the end of the step, of the input that arrived at moment s."""
    figure, axes = new(height=2.8)
    s = np.linspace(0, dt, 200)
    left = np.exp(a * (dt - s))
    axes.fill_between(s, left, color=BLUE, alpha=0.35)
    exact = float(zoh(a, 1.0, dt)[1])
    axes.plot(s, left, color=BLUE, label=f"what is left of it: area {exact:.2f} = exact B̄")
    axes.fill_between(s, left, 1, facecolor="none", edgecolor=ORANGE, hatch="///", linewidth=0)
    axes.plot(
        [0, dt], [1, 1], "--", color=ORANGE, label=f"nothing decays: area {dt:.2f} = Δ·b (the code)"
    )
    axes.set(
        xlabel=f"moment s of arrival; the step is Δ = {dt:.2f} units of time long",
        ylabel="share left at the end",
        xlim=(0, dt),
        ylim=(0, 1.5),
    )
    axes.legend(loc="upper left")
    return figure


@styled
def rules(dt: float = 0.5, a: float = -1.0, duration: float = 8.0) -> Figure:
    """A constant input of 1 from t = 0: the exact answer rises to 1; what does each rule do?"""
    figure, axes = new(height=3.4)
    t = np.linspace(0, duration, 300)
    axes.plot(t, 1 - np.exp(a * t), color=GREY, linewidth=5, alpha=0.4, label="exact")
    count = int(duration / dt + 1e-9)
    # The exact rule has no line of its own, for between its samples it claims nothing; where
    # markers meet, the smaller one lies on top.
    looks: dict[str, dict[str, Any]] = {
        "mamba_rule": {"markersize": 9},
        "zoh": {"markersize": 9, "linestyle": "none"},
        "bilinear": {"markersize": 5},
        "euler": {"markersize": 5},
    }
    for rule, look in looks.items():
        hs = run(rule, a, -a, dt, [1.0] * count)
        style = {**RULE_STYLE[rule], **look}
        axes.plot(dt * np.arange(count + 1), hs, **style, label=RULE_NAME[rule])
    axes.set(
        xlabel="time t (units of 1/|a|)",
        ylabel="state h",
        xlim=(0, duration),
        ylim=(-1.5, 4),
        title=f"step Δ = {dt:.2f}, so ΔA = {dt * a:.2f}".replace("-", "−"),
    )
    figure.legend(loc="outside upper center", ncols=5, fontsize=8)
    return figure


def initial_overshoot(points: int = 1000, d_state: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """ΔB over the exact B̄ for every initial Δ (log-uniform grid) and n = 1 … N: (Δ, overshoot)."""
    dt = np.exp(np.linspace(np.log(1e-3), np.log(1e-1), points))
    z = torch.from_numpy(-np.outer(dt, np.arange(1, d_state + 1)))
    return dt, (1 / phi(z)).numpy()


@styled
def factor() -> Figure:
    """How many times too large ΔB is: against z = ΔA, and for every Δ and n at the start."""
    figure, (left, right) = new(1, 2, height=3.2)
    z = np.linspace(-4, 1, 300)
    left.plot(z, 1 / phi(torch.from_numpy(z)), color=BLUE, label="1/φ(z) = z/(e$^z$ − 1)")
    left.plot(z, 1 - z / 2, ":", color=GREY, label="1 − z/2")
    left.axvspan(-1.6, 0, color=ORANGE, alpha=0.2, hatch="//", linewidth=0)
    left.text(-0.8, 0.25, "at the start\nof training", ha="center", fontsize=9)
    left.set(xlabel="z = ΔA", ylabel="ΔB / exact B̄", ylim=(0, 4.2))
    left.legend(loc="upper right", fontsize=9)

    dt, overshoot = initial_overshoot()
    n = np.arange(1, overshoot.shape[1] + 1)
    right.contourf(dt, n, overshoot.T, levels=np.linspace(1, 2.05, 22), cmap="cividis")
    lines = right.contour(dt, n, overshoot.T, levels=[1.02, 1.1, 1.3, 1.6], colors="white")
    corners = [(0.006, 7), (0.022, 9), (0.045, 12), (0.08, 13)]  # one label on each line
    right.clabel(lines, fmt="×%.2f", fontsize=9, manual=corners)
    right.set(
        xscale="log", xlabel="initial step Δ", ylabel="state n (A = −n)", title="ΔB / exact B̄"
    )
    right.grid(False)
    return figure


def not_held_errors(steps, where: str, frequency: float = 2.0) -> dict[str, list]:
    """Largest error at the samples for h' = −h + sin(ωt) over 10 units of time, by rule.

    Args:
        steps: numbers of steps to try.
        where: the moment of the step whose input is held: its "end", as in Mamba, or "middle".
        frequency: ω.
    """
    late = {"end": 0.0, "middle": 0.5}[where]
    errors: dict[str, list] = {"zoh": [], "mamba_rule": [], "bilinear": []}
    for count in steps:
        dt = 10.0 / count
        t = dt * np.arange(count + 1)
        exact = np.sin(frequency * t) - frequency * np.cos(frequency * t) + frequency * np.exp(-t)
        exact = exact / (1 + frequency**2)
        x = np.sin(frequency * (t[1:] - late * dt))
        for rule, found in errors.items():
            found.append(float(np.abs(run(rule, -1.0, 1.0, dt, x) - exact).max()))
    return errors


@styled
def not_held() -> Figure:
    """Error against the number of steps for an input that is not held, sampled at two moments."""
    figure, panels = new(1, 2, height=3.2, sharey=True)
    steps = [16, 32, 64, 128, 256, 512, 1024]
    for axes, where in zip(panels, ("end", "middle"), strict=True):
        for rule, error in not_held_errors(steps, where).items():
            size = {"zoh": 10, "mamba_rule": 7, "bilinear": 4}[rule]  # lines that coincide
            axes.loglog(steps, error, **RULE_STYLE[rule], markersize=size, label=RULE_NAME[rule])
        axes.set(xlabel="steps over 10 units of time", title=f"input at the {where} of the step")
        axes.set_xticks(steps, [str(count) for count in steps], minor=False, fontsize=9)
        axes.minorticks_off()
    panels[0].set_ylabel("largest error of h")
    panels[0].legend(loc="lower left", fontsize=9)
    return figure


@styled
def gate() -> Figure:
    """Δ = softplus(r) as a gate, for a = −1: what is kept of the past, what is taken in."""
    figure, axes = new(height=3.0)
    r = torch.linspace(-5, 5, 200, dtype=torch.float64)
    dt = torch.nn.functional.softplus(r)
    keep, take = zoh(-1.0, 1.0, dt)
    lines = [
        (keep, "^-", GREEN, "kept of the past: Ā = σ(−r)"),
        (take, "o-", BLUE, "taken in, exact: B̄ = σ(r)"),
        (dt, "s--", ORANGE, "taken in, in the code: Δ = softplus(r)"),
    ]
    for weight, style, colour, label in lines:
        axes.plot(r, weight, style, color=colour, markevery=20, label=label)
    axes.axhline(1, color=GREY, linewidth=1)
    axes.set(
        xlabel="r, what the network computes before the softplus", ylabel="weight", ylim=(0, 5.5)
    )
    axes.legend(loc="upper left")
    return figure


def gated_sequence(r_elsewhere: float, marked: int = 5, L: int = 24, seed: int = 0):
    """A noisy input, a gate that opens at one sample, and the state: (x, Δ, h), each (L,)."""
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=L))
    r = torch.full((L,), float(r_elsewhere), dtype=torch.float64)
    x[marked], r[marked] = 3.0, 5.0
    dt = torch.nn.functional.softplus(r)
    keep, take = zoh(-1.0, 1.0, dt)
    h, hs = torch.zeros(()), []
    for keep_t, take_t, x_t in zip(keep, take, x, strict=True):
        h = keep_t * h + take_t * x_t
        hs.append(h)
    return x.numpy(), dt.numpy(), torch.stack(hs).numpy()


@styled
def remember(r_elsewhere: float = -5.0) -> Figure:
    """One sample is let in, the others are not: how long does the state remember it?"""
    figure, (above, below) = new(2, height=3.6, sharex=True, height_ratios=[1, 1.4])
    x, dt, h = gated_sequence(r_elsewhere)
    t = np.arange(1, len(x) + 1)
    above.bar(t, dt, color=ORANGE, hatch="//", edgecolor="white")
    title = f"zero-order hold, r = 5 at sample 6 and {r_elsewhere:.1f} elsewhere"
    above.set(ylabel="step Δ", ylim=(0, 5.5), title=title.replace(" -", " −"))
    below.plot(t, h, "s-", color=BLUE, label="state h", markersize=6, markerfacecolor="white")
    below.plot(t, x, "o", color=GREY, label="input x", markersize=3)
    below.set(xlabel="sample t", ylabel="value", ylim=(-2.6, 4.4))
    below.legend(loc="upper right", ncols=2)
    return figure

"""The figures of lesson 02."""

import numpy as np
import torch
from matplotlib.figure import Figure

from minivmamba.discretize import bilinear, euler, mamba_rule, phi, zoh
from minivmamba.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
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
def weights(a: float = -1.0, dt: float = 1.0) -> Figure:
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
        xlabel="moment s of arrival within the step (units of time)",
        ylabel="share left at the end",
        xlim=(0, dt),
        ylim=(0, 1.45),
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
    for rule in ("euler", "bilinear", "mamba_rule", "zoh"):
        hs = run(rule, a, -a, dt, [1.0] * count)
        axes.plot(dt * np.arange(count + 1), hs, **RULE_STYLE[rule], label=RULE_NAME[rule])
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
    """Left: φ(z), the exact B̄ as a share of ΔB. Right: ΔB over B̄ at the start of training."""
    figure, (left, right) = new(1, 2, height=3.2)
    z = np.linspace(-4, 1, 300)
    left.plot(z, phi(torch.from_numpy(z)), color=BLUE, label="φ(z) = (e$^z$ − 1)/z")
    left.plot(z, 1 + z / 2, ":", color=GREY, label="1 + z/2")
    left.axvspan(-1.6, 0, color=ORANGE, alpha=0.2, hatch="//", linewidth=0)
    left.text(-0.8, 1.12, "at the start\nof training", ha="center", fontsize=9)
    left.set(xlabel="z = ΔA", ylabel="exact B̄ / (ΔB)", ylim=(0, 1.8))
    left.legend(loc="upper left", fontsize=9)

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


def not_held_errors(steps, frequency: float = 2.0, duration: float = 10.0) -> dict[str, list]:
    """Largest error at the samples for h' = −h + sin(ωt), by rule and number of steps."""
    errors: dict[str, list] = {"zoh": [], "mamba_rule": [], "bilinear": [], "two inputs": []}
    for count in steps:
        dt = duration / count
        t = dt * np.arange(count + 1)
        x = np.sin(frequency * t)
        exact = (np.sin(frequency * t) - frequency * np.cos(frequency * t)) / (1 + frequency**2)
        exact = exact + frequency / (1 + frequency**2) * np.exp(-t)
        for rule in ("zoh", "mamba_rule", "bilinear"):
            errors[rule].append(np.abs(run(rule, -1.0, 1.0, dt, x[1:]) - exact).max())
        mean = (x[1:] + x[:-1]) / 2
        errors["two inputs"].append(np.abs(run("bilinear", -1.0, 1.0, dt, mean) - exact).max())
    return errors


@styled
def not_held() -> Figure:
    """Error against the number of steps for an input that is not held: three rules of one order."""
    figure, axes = new(height=3.2)
    steps = [16, 32, 64, 128, 256, 512, 1024]
    for name, error in not_held_errors(steps).items():
        style = RULE_STYLE.get(name, {"color": PURPLE, "linestyle": "-", "marker": "P"})
        label = RULE_NAME.get(name, "bilinear, mean of two inputs")
        size = 10 if name == "zoh" else 6  # the first-order lines lie on one another
        axes.loglog(steps, error, **style, label=label, markersize=size)
    axes.set(xlabel="number of steps over 10 units of time", ylabel="largest error of h")
    axes.set_xticks(steps, [str(count) for count in steps], minor=False)
    axes.minorticks_off()
    axes.legend(loc="lower left", fontsize=9)
    return figure


@styled
def gate() -> Figure:
    """Δ = softplus(s) as a gate, for a = −1: what is kept of the past, what is taken in."""
    figure, axes = new(height=3.0)
    s = torch.linspace(-5, 5, 200, dtype=torch.float64)
    dt = torch.nn.functional.softplus(s)
    keep, take = zoh(-1.0, 1.0, dt)
    axes.plot(s, keep, "-", color=GREEN, label="kept of the past: Ā = σ(−s)")
    axes.plot(s, take, "-", color=BLUE, label="taken in, exact: B̄ = σ(s)", marker="o", markevery=20)
    axes.plot(
        s, dt, "--", color=ORANGE, label="taken in, in the code: Δ = softplus(s)",
        marker="s", markevery=20,
    )  # fmt: skip
    axes.axhline(1, color=GREY, linewidth=1)
    axes.set(xlabel="s, what the network writes before the softplus", ylabel="weight", ylim=(0, 3))
    axes.legend(loc="upper left")
    return figure


def gated_sequence(s_elsewhere: float, marked: int = 5, L: int = 24, seed: int = 0):
    """A noisy input, a gate that opens at one sample, and the state: (x, s, h), each (L,)."""
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=L))
    s = torch.full((L,), float(s_elsewhere), dtype=torch.float64)
    x[marked], s[marked] = 3.0, 5.0
    keep, take = zoh(-1.0, 1.0, torch.nn.functional.softplus(s))
    h, hs = torch.zeros(()), []
    for keep_t, take_t, x_t in zip(keep, take, x, strict=True):
        h = keep_t * h + take_t * x_t
        hs.append(h)
    return x.numpy(), s.numpy(), torch.stack(hs).numpy()


@styled
def remember(s_elsewhere: float = -5.0) -> Figure:
    """One sample is let in, the others are not: how long does the state remember it?"""
    figure, (above, below) = new(2, height=3.6, sharex=True, height_ratios=[1, 1.4])
    x, s, h = gated_sequence(s_elsewhere)
    t = np.arange(1, len(x) + 1)
    above.bar(t, np.logaddexp(s, 0), color=ORANGE, hatch="//", edgecolor="white")
    above.set(
        ylabel="step Δ", ylim=(0, 5.5), title=f"s = {s_elsewhere:.1f} elsewhere".replace("-", "−")
    )
    below.plot(t, x, "o", color=GREY, label="input x", markersize=4)
    below.plot(t, h, "s-", color=BLUE, label="state h", markersize=4)
    below.axhline(3, color=GREY, linewidth=1, linestyle=":")
    below.set(xlabel="sample t", ylabel="value", ylim=(-2.6, 4.2))
    below.legend(loc="upper right", ncols=2)
    return figure

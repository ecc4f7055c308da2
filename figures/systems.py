"""The figures of lesson 01: systems in continuous time."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from minivmamba.figures.style import BLUE, GREEN, GREY, ORANGE, RED, new, styled

LN2 = float(np.log(2))
HALF_LIFE = PERIOD = 2.0  # seconds, of the spring used throughout


def spring_matrix(half_life: float = HALF_LIFE, period: float = PERIOD) -> np.ndarray:
    """A of p'' = −ω0² p − 2γ p' + x with the state (p, v)."""
    rate, turn = LN2 / half_life, 2 * np.pi / period
    return np.array([[0.0, 1.0], [-(turn**2 + rate**2), -2 * rate]])


def spring_state(
    t, start=(0.0, 1.0), half_life: float = HALF_LIFE, period: float = PERIOD
) -> np.ndarray:
    """(p, v) at the times t, without input, from (p, v) at t = 0: shape (2, len(t))."""
    t = np.atleast_1d(np.asarray(t, dtype=float))
    moved = torch.linalg.matrix_exp(
        torch.from_numpy(t[:, None, None] * spring_matrix(half_life, period))
    )
    return (moved.numpy() @ np.asarray(start, dtype=float)).T


# A past: pushes (start, end, strength), each constant while it lasts.
Pushes = list[tuple[float, float, float]]


def after_pushes(t, pushes: Pushes) -> np.ndarray:
    """(p, v) of the spring at the times t, at rest before the first push: shape (2, len(t))."""
    t = np.atleast_1d(np.asarray(t, dtype=float))
    A = spring_matrix()
    state = np.zeros((2, len(t)))
    for start, end, strength in pushes:
        # A push that never ends moves the resting point; a push that ends is the difference.
        rest = np.array([-strength / A[1, 0], 0.0])
        for moment, sign in ((start, 1), (end, -1)):
            on = t >= moment
            state[:, on] += sign * (rest[:, None] - spring_state(t[on] - moment, rest))
    return state


def pushes_to(state, intervals) -> Pushes:
    """Two pushes during two intervals that bring the spring from rest to a state at t = 0."""
    unit = np.column_stack([after_pushes(0.0, [(*interval, 1.0)])[:, 0] for interval in intervals])
    strengths = np.linalg.solve(unit, np.asarray(state, dtype=float))
    return [(*interval, float(s)) for interval, s in zip(intervals, strengths, strict=True)]


def three_pasts() -> dict[str, Pushes]:
    """Two pasts that end in one state, (1, −2), and one that ends in (1, 2)."""
    early, late = [(-5.0, -3.5), (-1.0, -0.5)], [(-2.5, -2.0), (-0.75, -0.25)]
    return {
        "first": pushes_to((1.0, -2.0), early),
        "second": pushes_to((1.0, -2.0), late),
        "third": pushes_to((1.0, 2.0), late),
    }


PAST_STYLE: dict[str, dict[str, Any]] = {
    "first": {"color": ORANGE, "linestyle": "-", "linewidth": 5, "alpha": 0.6},
    "second": {"color": BLUE, "linestyle": "-", "linewidth": 1.8},
    "third": {"color": RED, "linestyle": "--", "linewidth": 1.8},
}


@styled
def pasts() -> Figure:
    """Three pasts of a spring up to t = 0, and what comes after without any further push."""
    figure, (above, below) = new(2, height=4.4, sharex=True, height_ratios=[1, 1.5])
    t = np.linspace(-6, 6, 961)
    for name, pushes in three_pasts().items():
        x = sum(strength * ((t >= start) & (t < end)) for start, end, strength in pushes)
        above.plot(t, x, **PAST_STYLE[name])
        below.plot(t, after_pushes(t, pushes)[0], **PAST_STYLE[name], label=f"{name} past")
    for axes in (above, below):
        axes.axvline(0, color=GREY, linewidth=1)
    below.plot(0, 1, "o", color="black", markersize=8, zorder=5)
    below.annotate(
        "now: position 1\nin all three", (0, 1), (1.2, 1.9), fontsize=9, va="center",
        arrowprops={"arrowstyle": "-", "color": GREY},
    )  # fmt: skip
    above.set(ylabel="push x")
    above.text(0.15, 0.9, "no push from here on", transform=above.get_xaxis_transform(), fontsize=9)
    below.set(xlabel="time t (s)", ylabel="position p", xlim=(-6, 6), ylim=(-2.3, 2.7))
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    return figure


def some_input(s) -> np.ndarray:
    """The input of the figure `weighed`: a short bump, a long plateau, a dip."""
    s = np.asarray(s, dtype=float)
    return (
        2.0 * ((s >= 0.5) & (s < 1.0))
        + 1.0 * ((s >= 2.0) & (s < 4.0))
        - 1.5 * ((s >= 5.0) & (s < 5.5))
    )


def output_of_decay(t, a: float = -1.0) -> np.ndarray:
    """∫ e^{a(t−s)} x(s) ds for x = `some_input`, exactly."""
    t = np.asarray(t, dtype=float)
    y = np.zeros_like(t)
    for start, end, level in ((0.5, 1.0, 2.0), (2.0, 4.0, 1.0), (5.0, 5.5, -1.5)):
        since, until = np.maximum(t - start, 0), np.maximum(t - end, 0)
        y += level * (np.exp(a * since) - np.exp(a * until)) / a
    return y


@styled
def weighed(now: float = 3.5, a: float = -1.0) -> Figure:
    """The output at one moment as the area under input × weight."""
    figure, (above, middle, below) = new(3, height=5.0, sharex=True)
    s = np.linspace(0, 8, 1601)
    past = s <= now
    weight = np.where(past, np.exp(a * (now - np.minimum(s, now))), 0.0)
    x = some_input(s)
    above.plot(s, x, color=GREY, label="input x(s)")
    above.plot(s[past], weight[past], "--", color=ORANGE, label="weight k(t − s)")
    above.set(ylabel="input, weight", ylim=(-1.8, 2.6))
    above.legend(loc="upper right", ncols=2, fontsize=9)
    middle.fill_between(
        s, weight * x, facecolor="none", edgecolor=BLUE, hatch="///", linewidth=0, alpha=0.7
    )
    middle.plot(s, weight * x, color=BLUE, linewidth=1)
    y = output_of_decay(s, a)
    value = float(output_of_decay(now, a))
    middle.set(ylabel="x × weight", ylim=(-1.8, 2.6))
    middle.text(
        0.985, 0.86, f"area = y(t) = {value:.2f}".replace("-", "−"), transform=middle.transAxes,
        ha="right", fontsize=9,
    )  # fmt: skip
    below.plot(s, y, ":", color=GREEN, linewidth=1.2)
    below.plot(s[past], y[past], color=GREEN)
    below.plot(now, value, "o", color="black")
    below.set(xlabel="moment s (seconds)", ylabel="output y", xlim=(0, 8), ylim=(-0.8, 2.2))
    for axes in (above, middle, below):
        axes.axvline(now, color=GREY, linewidth=1)
    above.set_title(f"now: t = {now:.2f} s; half-life of the weight {LN2 / abs(a):.2f} s")
    return figure


def _coil(length: float, turns: int = 9, width: float = 0.18) -> tuple[np.ndarray, np.ndarray]:
    """A drawn spring along x from 0 to `length`."""
    along = np.concatenate([[0], np.linspace(0.06, 0.94, 2 * turns + 1), [1]]) * length
    across = np.concatenate([[0], width * (-1.0) ** np.arange(2 * turns + 1), [0]])
    across[[1, -2]] = 0
    return along, across


def _draw_spring(axes, p: float, rest: float = 2.6) -> None:
    """A wall, a spring and a mass whose displacement from rest is p."""
    along, across = _coil(rest + p - 0.35)
    axes.plot(along, across, color=GREY, linewidth=1.2)
    axes.plot([0, 0], [-0.6, 0.6], color="black", linewidth=3)
    axes.plot(rest + p, 0, "s", color=BLUE, markersize=18)
    axes.axvline(rest, color=GREY, linestyle=":", linewidth=1)
    axes.set(xlim=(-0.1, 2 * rest), ylim=(-0.8, 0.8), xticks=[rest], yticks=[])
    axes.set_xticklabels([])
    axes.grid(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)


@styled
def swing(t: float = 1.25, half_life: float = HALF_LIFE, period: float = PERIOD) -> Figure:
    """A mass on a spring at one moment: drawn, as a curve so far, and as a point in the plane."""
    figure, panels = new(1, 3, height=2.5, width_ratios=[1.1, 1.5, 1.1])
    drawn, curve, plane = panels
    start = (1.5, 0.0)
    times = np.linspace(0, 6, 241)
    p, v = spring_state(times, start, half_life, period)
    (now_p,), (now_v,) = spring_state(t, start, half_life, period)
    so_far = times <= t
    _draw_spring(drawn, now_p)
    drawn.set(title="the mass", xlabel="rest", ylabel=" ")
    curve.plot(times, p, ":", color=GREY, linewidth=1)
    curve.plot(times[so_far], p[so_far], color=BLUE)
    curve.plot(t, now_p, "s", color=BLUE)
    curve.set(xlabel="time t (s)", ylabel="position p", xlim=(0, 6), ylim=(-1.7, 1.7))
    curve.set_title(f"t = {t:.2f} s")
    plane.plot(p, v, ":", color=GREY, linewidth=1)
    plane.plot(p[so_far], v[so_far], color=BLUE)
    plane.plot(now_p, now_v, "s", color=BLUE)
    reach = 1.1 * max(1.0, float(np.abs(v).max()))
    plane.set(xlabel="position p", ylabel="velocity v", xlim=(-1.7, 1.7), ylim=(-reach, reach))
    plane.set_title("the state")
    return figure


@styled
def strip(moments=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0)) -> Figure:
    """Several moments of the swinging mass one under the other, beside the curve of positions."""
    figure, panels = new(1, 2, height=3.4, width_ratios=[1, 1.3], sharey=True)
    drawn, curve = panels
    times = np.linspace(0, 3.2, 241)
    start, rest = (1.5, 0.0), 2.6
    curve.plot(spring_state(times, start)[0], times, color=GREY)
    for t in moments:
        p = spring_state(t, start)[0, 0]
        along, across = _coil(rest + p - 0.25, width=0.1)
        drawn.plot(along, t + across, color=GREY, linewidth=1)
        drawn.plot([0, 0], [t - 0.17, t + 0.17], color="black", linewidth=3)
        drawn.plot(rest + p, t, "s", color=BLUE, markersize=12)
        curve.plot(p, t, "s", color=BLUE)
        curve.annotate(
            f"{p:.2f}".replace("-", "−"), (p, t), (9, -3), textcoords="offset points", fontsize=9
        )
    drawn.axvline(rest, color=GREY, linestyle=":", linewidth=1)
    curve.axvline(0, color=GREY, linestyle=":", linewidth=1)
    drawn.set(ylabel="time t (s), downwards", ylim=(3.3, -0.3), xlim=(-0.1, 2 * rest), xticks=[])
    drawn.set(xlabel="the mass (dotted: rest)")
    drawn.grid(False)
    curve.set(xlabel="position p", xlim=(-1.8, 2.0))
    return figure


PLANE_REAL, PLANE_IMAGINARY = (-2.0, -1.0, -0.3, 0.0, 0.3), (0.0, 3.0, 6.0, 12.0)


@styled
def poles() -> Figure:
    """Small impulse responses drawn at the places of their poles in the complex plane."""
    figure, axes = new(height=5.2)
    # Places on the page are evenly spaced; the labels say which pole sits there.
    axes.axvspan(3.9, 4.95, facecolor="none", edgecolor=RED, hatch="//", alpha=0.25, linewidth=0)
    axes.axvline(3.0, color="black", linewidth=1.5, zorder=0)
    t = np.linspace(0, 3, 300)
    for column, real in enumerate(PLANE_REAL):
        colour, style = (BLUE, "-") if real < 0 else (GREY, "--") if real == 0 else (RED, "-")
        for row, imaginary in enumerate(PLANE_IMAGINARY):
            k = np.exp(real * t) * np.cos(imaginary * t)
            x = column + 0.78 * t / t[-1]
            axes.plot(x, np.full_like(t, row), color=GREY, linewidth=0.6)
            axes.plot(x, row + 0.16 * k, style, color=colour, linewidth=1.4)
            axes.plot(column, row, "x", color="black", markersize=6, markeredgewidth=1.8)
    axes.set_xticks(range(5), [f"{real:g}".replace("-", "−") for real in PLANE_REAL])
    axes.set_yticks(range(4), [f"{imaginary:g}" for imaginary in PLANE_IMAGINARY])
    for x, text in ((1.4, "decays: stable"), (3.4, "for ever"), (4.4, "grows")):
        axes.text(x, 3.56, text, ha="center", fontsize=10)
    axes.set(
        xlabel="real part of the pole (1/s): further left decays faster",
        ylabel="imaginary part (1/s): further up turns faster",
        xlim=(-0.25, 4.95),
        ylim=(-0.45, 3.8),
    )
    axes.grid(False)
    return figure


@styled
def place(real: float = -0.5, imaginary: float = 4.0) -> Figure:
    """One pole (and its mirror image) in the plane, and the impulse response that belongs to it."""
    figure, (plane, response) = new(1, 2, height=3.2, width_ratios=[1, 1.6])
    plane.axvspan(0, 1.2, facecolor="none", edgecolor=RED, hatch="//", alpha=0.3, linewidth=0)
    plane.axvline(0, color="black", linewidth=1)
    plane.axhline(0, color="black", linewidth=1)
    plane.plot([real, real], [imaginary, -imaginary], "x", color=BLUE, markersize=9, mew=2.5)
    plane.set(xlabel="real part (1/s)", ylabel="imaginary part (1/s)")
    plane.set(xlim=(-3.2, 1.2), ylim=(-13, 13), title="×: the poles")
    t = np.linspace(0, 6, 901)
    response.plot(t, np.exp(real * t) * np.cos(imaginary * t), color=BLUE)
    for sign in (1, -1):
        response.plot(t, sign * np.exp(real * t), ":", color=GREY, linewidth=1.2)
    fate = f"half-life {LN2 / -real:.2f} s" if real < 0 else "no decay" if real == 0 else "grows"
    turning = f"period {2 * np.pi / imaginary:.2f} s" if imaginary > 0 else "no turning"
    response.set(xlabel="time t (s)", ylabel="real part of e$^{λt}$", ylim=(-2.2, 2.2), xlim=(0, 6))
    response.set_title(f"{fate}, {turning}")
    return figure


def fit_with_decays(rates, bound: float | None = None, duration: float = 6.0):
    """Fit e^{−γt} cos ωt, a response that turns, by Σ c_n e^{−r_n t}, with every |c_n| ≤ bound.

    Least squares on 301 moments. Returns times, the response to fit, the fitted sum, and the c_n.
    """
    from scipy.optimize import lsq_linear

    t = np.linspace(0, duration, 301)
    target = np.exp(-LN2 / HALF_LIFE * t) * np.cos(2 * np.pi / PERIOD * t)
    decays = np.exp(-np.outer(t, np.asarray(rates, dtype=float)))
    if bound is None:
        c = np.linalg.lstsq(decays, target, rcond=None)[0]
    else:
        c = lsq_linear(decays, target, bounds=(-bound, bound), tol=1e-12).x
    return t, target, decays @ c, c


def share_missed(target, fitted) -> float:
    """The error of a fit over the size of the target, both as roots of mean squares."""
    return float(np.sqrt(np.mean((fitted - target) ** 2) / np.mean(target**2)))


@styled
def real_fit(step: float = 0.3, bound: float = 10.0) -> Figure:
    """A response that turns, and sixteen real decays that try to be it."""
    figure, axes = new(height=3.2)
    rates = step * np.arange(1, 17)
    t, target, bounded, _ = fit_with_decays(rates, bound)
    axes.plot(t, target, color=GREY, linewidth=5, alpha=0.4, label="wanted: one pair of poles")
    axes.plot(
        t, bounded, color=BLUE, label=f"16 real decays, Δ = {step:g}, weights at most {bound:g}"
        f": misses {share_missed(target, bounded):.0%}",
    )  # fmt: skip
    free = fit_with_decays(rates)[2]
    axes.plot(
        t, free, "--", color=ORANGE,
        label=f"weights of any size, in float64: {share_missed(target, free):.0%}",
    )  # fmt: skip
    axes.set(xlabel="time t (s)", ylabel="impulse response", xlim=(0, 6), ylim=(-1, 1.6))
    axes.legend(loc="upper right", fontsize=9)
    return figure

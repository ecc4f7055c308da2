"""The figures of lesson 04: memories of a whole past, and the half-lives a model starts with."""

import functools

import numpy as np
import torch
from matplotlib.figure import Figure

from minivmamba.discretize import zoh_matrix
from minivmamba.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    new,
    styled,
)

SAMPLES, LARGEST = 10_000, 64  # of the curve; numbers in the largest memory
LOOKS = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (RED, ":"), (PURPLE, (0, (5, 1, 1, 1, 1, 1)))]


def curve(L: int = SAMPLES, seed: int = 18) -> np.ndarray:
    """A wandering line of L samples: 42 sines of random phase, the slow ones stronger."""
    rng = np.random.default_rng(seed)
    r = (np.arange(L) + 0.5) / L
    f = sum(np.sin(np.pi * m * r + rng.uniform(0, 2 * np.pi)) / m**0.7 for m in range(1, 43))
    return f / np.abs(f).max()


def shapes(r: np.ndarray, N: int) -> np.ndarray:
    """φ_n(r) = √(2n+1) P_n(2r − 1) for n = 0 … N − 1: r.shape → r.shape + (N,)."""
    n = np.arange(N)
    return np.polynomial.legendre.legvander(2 * r - 1, N - 1) * np.sqrt(2 * n + 1)


def legs(N: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (N, N) and B (N,) of HiPPO-LegS, c' = (−A c + B f) / t."""
    n = torch.arange(N, dtype=torch.float64)
    B = torch.sqrt(2 * n + 1)
    return torch.outer(B, B).tril(-1) + torch.diag(n + 1), B


def remember_all(f: np.ndarray, N: int = LARGEST) -> np.ndarray:
    """The coefficients after every sample, (L, N), updated one sample at a time.

    A step is: redraw the past from c, squeeze it to make room for one more sample, append the
    sample, project again. With ρ = (k − 1)/k and g the redrawn past minus the new sample,

        c_n ← f_k [n = 0] + ρ ∫_0^1 φ_n(ρ x) g(x) dx,

    an integral that N Gauss points do exactly. For held samples this is zero-order hold in the
    clock ln t, many times faster than a matrix exponential for each step.
    """
    x, w = np.polynomial.legendre.leggauss(N)
    x, w = (x + 1) / 2, w / 2
    drawn = shapes(x, N)
    c = np.zeros(N)
    c[0] = f[0]
    history = [c]
    for chunk in np.array_split(np.arange(2, len(f) + 1), max(1, len(f) // 200)):
        rho = (chunk - 1) / chunk
        squeezed = shapes(rho[:, None] * x, N)  # (steps, points, N)
        for k, share, basis in zip(chunk, rho, squeezed, strict=True):
            g = drawn @ c - f[k - 1]
            c = share * ((w * g) @ basis)
            c[0] += f[k - 1]
            history.append(c)
    return np.stack(history)


@functools.cache
def history() -> tuple[np.ndarray, np.ndarray]:
    """The curve of the lesson and the 64 numbers after each of its samples."""
    f = curve()
    return f, remember_all(f)


def even_clock(f: np.ndarray, dt: float = 0.01, N: int = LARGEST) -> np.ndarray:
    """The same matrices with one constant step: an LTI system. Its redrawn past, (L,)."""
    A, B = legs(N)
    A_bar, B_bar = (m.numpy() for m in zoh_matrix(-A, B[:, None], dt))
    c = np.zeros(N)
    for sample in f:
        c = A_bar @ c + B_bar[:, 0] * sample
    age = len(f) - np.arange(len(f)) - 0.5
    return shapes(np.exp(-dt * age), N) @ c


def relative_error(f: np.ndarray, redrawn: np.ndarray) -> float:
    """Root mean square of the difference, as a share of how much f varies."""
    return float(np.sqrt(np.mean((f - redrawn) ** 2)) / np.std(f))


@styled
def whole_past() -> Figure:
    """64 numbers redraw 10,000 samples; with an even clock they have kept only the end."""
    figure, (above, below) = new(2, height=4.6, sharex=True)
    f, c = history()
    s = np.arange(len(f)) + 0.5
    redrawn = shapes(s / len(f), LARGEST) @ c[-1]
    for axes, line, title in (
        (above, redrawn, "64 numbers, HiPPO-LegS"),
        (below, even_clock(f), "64 numbers, the same matrices, but every step equally long"),
    ):
        axes.plot(s, f, color=GREY, linewidth=5, alpha=0.4, label="the 10,000 samples")
        axes.plot(s, line, color=BLUE, linewidth=1.5, label="redrawn from the 64 numbers")
        axes.set(ylabel="value", ylim=(-1.6, 1.6), title=title)
    above.legend(loc="upper left", ncols=2, fontsize=9)
    below.set(xlabel="sample", xlim=(0, len(f)))
    below.annotate(
        "only the end was kept", (9050, -0.45), (7600, 0.75), fontsize=9,
        arrowprops={"arrowstyle": "->", "color": "black"},
    )  # fmt: skip
    return figure


@styled
def recall(N: int = 16, seen: int = SAMPLES) -> Figure:
    """What N numbers redraw of everything up to the sample `seen`."""
    figure, axes = new(height=3.0)
    N, seen = int(N), int(seen)
    f, c = history()
    s = np.arange(len(f)) + 0.5
    redrawn = shapes(s[:seen] / seen, N) @ c[seen - 1, :N]
    axes.plot(s[:seen], f[:seen], color=GREY, linewidth=5, alpha=0.4, label="seen")
    axes.plot(s[seen:], f[seen:], ":", color=GREY, linewidth=1.5, label="still to come")
    axes.plot(s[:seen], redrawn, color=BLUE, linewidth=1.5, label="redrawn")
    error = relative_error(f[:seen], redrawn)
    axes.set(
        xlabel="sample",
        ylabel="value",
        xlim=(0, len(f)),
        ylim=(-1.3, 1.7),
        title=f"N = {N} numbers, {seen:,} samples seen: error {error:.1%}",
    )
    axes.legend(loc="upper right", ncols=3, fontsize=9)
    return figure


@styled
def redrawn() -> Figure:
    """The signature figure: one curve of 10,000 samples redrawn from 4, 16 and 64 numbers."""
    figure, panels = new(3, height=5.4, sharex=True)
    f, c = history()
    s = np.arange(len(f)) + 0.5
    for axes, N in zip(panels, (4, 16, 64), strict=True):
        line = shapes(s / len(f), N) @ c[-1, :N]
        axes.plot(s, f, color=GREY, linewidth=5, alpha=0.4, label="the 10,000 samples")
        axes.plot(s, line, color=BLUE, linewidth=1.5, label="redrawn")
        title = f"N = {N}: error {relative_error(f, line):.1%}"
        axes.set(ylabel="value", ylim=(-1.3, 1.5), title=title)
    panels[0].legend(loc="upper left", ncols=2, fontsize=9)
    panels[-1].set(xlabel="sample", xlim=(0, len(f)))
    return figure


@styled
def legendre_shapes() -> Figure:
    """The first four shapes, stretched over the whole past."""
    figure, axes = new(height=2.8)
    r = np.linspace(0, 1, 201)
    names = ["mean", "slope", "bend", "S-shape"]
    for n, (name, line) in enumerate(zip(names, shapes(r, 4).T, strict=True)):
        colour, style = LOOKS[n]
        axes.plot(r, line, color=colour, linestyle=style, label=f"φ$_{n}$: {name}")
    axes.set(
        xlabel="share r of the past: 0 the first sample, 1 now",
        ylabel="value",
        xlim=(0, 1),
        ylim=(-2.8, 2.8),
    )
    figure.legend(loc="outside right center")
    return figure


@styled
def same_span() -> Figure:
    """Four memory kernels of LegS, and the sixteen decays that span them."""
    figure, (left, right) = new(1, 2, height=3.0)
    age = np.linspace(0, 4, 400)
    kernels = np.exp(-age)[:, None] * shapes(np.exp(-age), 4)
    for n, line in enumerate(kernels.T):
        colour, style = LOOKS[n]
        left.plot(age, line, color=colour, linestyle=style, label=f"K$_{n}$")
    left.set(
        xlabel="age (in units of 1/Δ pixels)",
        ylabel="weight",
        title="four kernels of HiPPO",
        xlim=(0, 4),
    )
    left.legend(loc="upper right", fontsize=9)
    for n in range(1, 17):
        colour, style = LOOKS[(n - 1) % 5]
        right.plot(age, np.exp(-n * age), color=colour, linestyle=style, linewidth=1.2)
    right.text(1.05, 0.42, "n = 1", fontsize=9)
    right.annotate(
        "n = 16", (0.06, 0.4), (0.45, 0.75), fontsize=9,
        arrowprops={"arrowstyle": "->", "color": "black"},
    )  # fmt: skip
    right.set(
        ylabel="share left",
        xlabel="age (in units of 1/Δ pixels)",
        title="the decays e$^{−n·age}$, n = 1 … 16",
        xlim=(0, 4),
    )
    return figure


@styled
def half_life_map(dt_min: float = 1e-3, dt_max: float = 1e-1) -> Figure:
    """Left: half-life against Δ for some n. Right: how the channels share the range."""
    figure, (left, right) = new(1, 2, height=3.4)
    dt = np.geomspace(dt_min, dt_max, 100)
    for (colour, style), n in zip(LOOKS, (1, 2, 4, 8, 16), strict=True):
        left.loglog(dt, np.log(2) / (n * dt), color=colour, linestyle=style, label=f"n = {n}")
    for size, name in ((1, "one pixel"), (56, "a row, 56"), (3136, "the map, 3136")):
        left.axhline(size, color="black", linewidth=1)
        at, side = (1.05 * dt_min, "left") if size == 1 else (0.95 * dt_max, "right")
        left.text(at, size * 1.1, name, ha=side, fontsize=9)
    left.set(xlabel="step Δ", ylabel="half-life (pixels)", xlim=(dt_min, dt_max), ylim=(0.3, 2e5))
    left.legend(loc="upper left", ncols=3, fontsize=9, columnspacing=1)

    edges = np.minimum(dt_min * 2.0 ** np.arange(8), dt_max)  # the last range is cut at dt_max
    log_uniform = np.log(edges[1:] / edges[:-1]) / np.log(dt_max / dt_min)
    uniform = (edges[1:] - edges[:-1]) / (dt_max - dt_min)
    place = np.arange(len(log_uniform))
    right.bar(place - 0.2, 100 * log_uniform, 0.4, color=BLUE, label="Δ log-uniform (the code)")
    right.bar(
        place + 0.2, 100 * uniform, 0.4, color=ORANGE, hatch="//", edgecolor="white",
        label="Δ uniform",
    )  # fmt: skip
    right.set_xticks(place, [f"{edge:.3f}" for edge in edges[:-1]], fontsize=9)
    right.set(xlabel="step Δ from here to twice as much", ylabel="channels (%)")
    right.legend(loc="upper left", fontsize=9)
    return figure


TARGETS = ("last 5", "last 50", "last 500", "like 1/age")
SHARED_STEPS = (0.001, 0.01, 0.1)


def target(name: str, L: int = 1000) -> np.ndarray:
    """A wanted memory over the ages 1 … L, of norm 1: "like 1/age", "last 50", "exactly 100"."""
    age = np.arange(1, L + 1)
    kind, size = name.split()
    kernel: np.ndarray
    if kind == "like":
        kernel = 1 / age
    else:
        kernel = (age <= int(size)) * 1.0 if kind == "last" else (age == int(size)) * 1.0
    return kernel / np.linalg.norm(kernel)


def best_fit(steps, kernel: np.ndarray, N: int = 16, cost: float = 1e-4) -> np.ndarray:
    """The best mixture of the decays e^{−nΔ·age}, n = 1 … N, of channels with these steps Δ.

    Large weights cost: a network does not train weights of a million that nearly cancel.
    """
    rates = np.outer(steps, np.arange(1, N + 1)).ravel()
    decays = np.exp(-np.outer(np.arange(len(kernel)), rates))
    decays /= np.linalg.norm(decays, axis=0)
    gram = decays.T @ decays + cost * np.eye(len(rates))
    return decays @ np.linalg.solve(gram, decays.T @ kernel)


def drawn_steps(how: str, seed: int, channels: int = 16) -> np.ndarray:
    """Steps Δ of some channels in [0.001, 0.1], drawn "log-uniform" or "uniform"."""
    u = np.random.default_rng(seed).uniform(size=channels)
    return 0.001 * 100**u if how == "log-uniform" else 0.001 + 0.099 * u


def fit_error(steps, name: str) -> float:
    """How far the best mixture stays from a wanted memory: 0 perfect, 1 nothing of it."""
    kernel = target(name)
    return float(np.linalg.norm(best_fit(steps, kernel) - kernel))


@functools.cache
def fit_errors(name: str, seeds: int = 10) -> dict[str, list[float]]:
    """Errors for 16 channels: one Δ for all (three of them), Δ uniform, Δ log-uniform."""
    found = {f"all Δ = {step}": [fit_error([step] * 16, name)] for step in SHARED_STEPS}
    for how in ("uniform", "log-uniform"):
        found[f"Δ {how}"] = [fit_error(drawn_steps(how, seed), name) for seed in range(seeds)]
    return found


@styled
def wanted_memories() -> Figure:
    """Four wanted memories: what do channels of one Δ and of spread Δ make of them?"""
    figure, axes = new(height=3.4)
    markers = ["v", "D", "^", "s", "o"]
    for place, name in enumerate(TARGETS):
        for i, (choice, errors) in enumerate(fit_errors(name).items()):
            middle = float(np.mean(errors))
            axes.errorbar(
                place + 0.12 * (i - 2),
                middle,
                [[middle - min(errors)], [max(errors) - middle]],
                fmt=markers[i],
                color=[PURPLE, GREEN, RED, ORANGE, BLUE][i],
                capsize=4,
                label=choice if place == 0 else None,
            )
    axes.set_xticks(range(len(TARGETS)), TARGETS)
    axes.set(
        xlabel="the wanted memory: the mean of the last so many pixels, or a fading one",
        ylabel="error (0: perfect, 1: nothing)",
        ylim=(0, 1.05),
    )
    figure.legend(loc="outside upper center", ncols=5, fontsize=9, columnspacing=1)
    return figure


@styled
def best_line() -> Figure:
    """The samples 4, 0, 8, each held over a third of the past, and the best line through them."""
    figure, axes = new(height=2.6)
    axes.stairs([4, 0, 8], np.arange(4) / 3, baseline=None, color=GREY, linewidth=2, label="past")
    ends = np.array([0.0, 1.0])
    line = 4 + 8 / 3 * (2 * ends - 1)
    axes.plot(ends, line, color=BLUE, label="c$_0$φ$_0$ + c$_1$φ$_1$, the best line")
    axes.axhline(4, color=ORANGE, linestyle="--", label="c$_0$φ$_0$, the mean")
    for r, level in zip(ends, line, strict=True):
        axes.annotate(
            f"{level:.2f}", (r, level), (5 - 33 * r, 8), textcoords="offset points", fontsize=9
        )
    axes.set(xlabel="share r of the past: 0 the first sample, 1 now", ylabel="value", xlim=(0, 1))
    axes.set_ylim(-0.5, 11)
    axes.legend(loc="upper left", ncols=3, fontsize=9)
    return figure

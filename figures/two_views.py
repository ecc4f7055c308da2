"""The figures of lesson 03."""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from minivmamba.figures.style import BLUE, GREEN, GREY, ORANGE, RED, new, styled


@styled
def kernel_of_two(L: int = 9) -> Figure:
    """The kernel of a system with two states: each alone, and their sum."""
    figure, axes = new(height=2.9)
    j = np.arange(L)
    slow, fast = 0.5**j, -(0.25**j)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.plot(j, slow, "^--", color=GREEN, label="state 1 alone: 2 · ½ · (½)$^j$")
    axes.plot(j, fast, "v:", color=ORANGE, label="state 2 alone: −1 · 1 · (¼)$^j$")
    axes.plot(j, slow + fast, "o-", color=BLUE, label="their sum, the kernel K$_j$")
    axes.set(xlabel="j, how many steps ago the input came", ylabel="weight in the output")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right")
    return figure


def leaking_example(L: int = 16, J: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A slowly fading kernel of J samples and an input of L samples."""
    x = np.random.default_rng(3).uniform(0.5, 3, size=L)
    return 0.4 * 0.85 ** np.arange(J), x


@styled
def leak(n: int = 22, L: int = 16, J: int = 16) -> Figure:
    """A transform of n points: what does not fit into the circle, and where it lands."""
    K, x = leaking_example(L, J)
    n = int(n)
    whole = np.convolve(K, x)
    circular = np.fft.irfft(np.fft.rfft(K, n) * np.fft.rfft(x, n), n)[:L]
    wrong = max(0, L + J - 1 - n)
    figure, (above, below) = new(2, height=4.6, sharex=True)

    index = np.arange(len(whole))
    above.bar(index[:n], whole[:n], color=BLUE, alpha=0.6, label="fits into the circle")
    leaks: dict[str, Any] = {"facecolor": "white", "edgecolor": RED, "hatch": "///"}
    above.bar(index[n:], whole[n:], **leaks)
    above.axvline(n - 0.5, color="black", linewidth=1.5)
    above.set(ylabel="whole product", ylim=(0, 1.5 * whole.max()))
    beyond = Patch(**leaks, label=f"index n or more: lands n = {n} places further left")
    above.legend(handles=[above.containers[0], beyond], loc="upper left", fontsize=9)

    t = np.arange(L)
    below.bar(t[:wrong], circular[:wrong] - whole[:wrong], bottom=whole[:wrong], **leaks)
    lines = [
        *below.plot(t, circular, "s", color=ORANGE, markersize=8, label=f"transform of {n} points"),
        *below.plot(t, whole[:L], "o", color=BLUE, markersize=4, label="right answer"),
    ]
    title = f"n = {n}: {wrong} of {L} outputs are wrong" if wrong else f"n = {n}: all right"
    below.set(
        xlabel="index, from 0", ylabel="output", title=title, ylim=(0, 1.6 * whole.max()),
        xlim=(-0.8, L + J - 1.2),
    )  # fmt: skip
    leaked = Patch(**leaks, label="leaked in")
    below.legend(handles=[*lines, leaked], loc="upper right", fontsize=9)
    return figure


def multiplications(L: int) -> dict[str, int]:
    """Multiplications of the three ways for one state; complex ones for the transform."""
    n = 2 * L
    levels = int(math.log2(n))
    return {"loop": 3 * L, "direct": L * (L + 1) // 2, "fft": 3 * (n // 2) * levels + n}


def longest_chain(L: int) -> dict[str, int]:
    """How many multiplications must wait for one another."""
    return {"loop": L + 1, "direct": 1, "fft": 2 * int(math.log2(2 * L)) + 1}


WAY_STYLE = {
    "loop": {"color": BLUE, "linestyle": "-", "marker": "o", "label": "loop"},
    "direct": {"color": RED, "linestyle": ":", "marker": "^", "label": "direct sum"},
    "fft": {"color": GREEN, "linestyle": "--", "marker": "s", "label": "Fourier transform"},
}


@styled
def work_counted() -> Figure:
    """Multiplications, and the longest chain of them, against the length of the sequence."""
    figure, panels = new(1, 2, height=3.1)
    lengths = [2**k for k in range(2, 15)]
    counts = (multiplications, longest_chain)
    titles = ("multiplications", "multiplications in the longest chain")
    for axes, count, title in zip(panels, counts, titles, strict=True):
        for way, style in WAY_STYLE.items():
            axes.loglog(lengths, [count(L)[way] for L in lengths], markevery=2, **style)
        axes.set(xlabel="length L of the sequence", ylabel="number", title=title)
        axes.set_xticks([10, 100, 1000, 10000], ["10", "100", "1,000", "10,000"])
        axes.minorticks_off()
    panels[0].legend(loc="upper left", fontsize=9)
    return figure


def mixing_matrix(delta: torch.Tensor) -> torch.Tensor:
    """M[t, s] for A = −1, B = C = 1 and a step of its own at every t, as the code weighs: (L, L).

    The input of s enters with weight Δ_s and decays over the steps s + 1 … t.
    """
    clock = delta.cumsum(0)
    return (torch.exp(clock[None, :] - clock[:, None]) * delta[None, :]).tril()


def steps_of(listens: float, seed: int, L: int = 24) -> torch.Tensor:
    """Δ_t = softplus(listens · x_t − 1.5) for a random input."""
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=L))
    return torch.nn.functional.softplus(listens * x - 1.5)


@styled
def mixing_matrices(listens: float = 2.0) -> Figure:
    """Who hears whom, and how loudly: constant Δ, and Δ from two inputs."""
    figure, panels = new(2, 3, height=4.3, height_ratios=[2.2, 1], sharex=True)
    columns = [
        ("constant Δ", steps_of(0.0, 0)),
        ("Δ from input x", steps_of(listens, 0)),
        ("Δ from input x′", steps_of(listens, 1)),
    ]
    for (above, below), (title, delta) in zip(panels.T, columns, strict=True):
        M = mixing_matrix(delta).numpy()
        L = len(M)
        shown = np.where(np.tri(L, dtype=bool), np.clip(M, 1e-3, None), np.nan)
        extent = (0.5, L + 0.5, L + 0.5, 0.5)
        image = above.imshow(
            shown, norm=LogNorm(1e-3, 3), cmap="viridis", extent=extent, aspect="auto"
        )
        above.set_title(title)
        above.grid(False)
        below.bar(np.arange(1, L + 1), delta.numpy(), color=ORANGE)
        below.set(xlabel="input step s", ylim=(0, 2), xticks=[1, 8, 16, 24])
        above.set_yticks([1, 8, 16, 24])
    for row, label in zip(panels, ("output step t", "step Δ"), strict=True):
        row[0].set_ylabel(label)
        for axes in row[1:]:
            axes.sharey(row[0])
            axes.tick_params(labelleft=False)
    bar = figure.colorbar(image, ax=panels, aspect=35, pad=0.01)
    bar.set_label("size of the entry M[t, s]; darkest: 0.001 or less", fontsize=9)
    return figure

"""The figures of lesson 05: steps that listen to a line of pixels, and what selection can do."""

import functools

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from minivmamba import results, selective_scan
from minivmamba.figures.style import BLUE, GREEN, GREY, ORANGE, new, styled

PIXELS, N = 96, 8
STILL, EDGE = 0.02, 5.0  # the step where nothing changes, and at a full change of brightness


@functools.cache
def pixel_row() -> np.ndarray:
    """Brightness, 0 to 1, of 96 pixels of one row of a photograph."""
    from skimage import data

    return data.astronaut()[100, 150:438:3].mean(-1) / 255


def edge_steps(row: np.ndarray) -> torch.Tensor:
    """Δ of every pixel, (L,): small where it is like the one before, large at an edge."""
    change = np.abs(np.diff(row, prepend=0.0))
    return torch.from_numpy(STILL + EDGE * change)


def states_along(row: np.ndarray, delta: torch.Tensor, states: int = N) -> torch.Tensor:
    """h of every state after every pixel, (N, L): A = −1 … −N, and B makes ZOH of Mamba's rule.

    State n is read by an operator whose C hears nothing else.
    """
    A = -torch.arange(1.0, states + 1).double()
    # ZOH is (1 − e^{ΔA}) / −A; Mamba's rule multiplies by Δ, so B makes up for it.
    B = torch.expm1(A[:, None] * delta) / A[:, None] / delta * -A[:, None]  # (N, L)
    u = torch.from_numpy(row)[None, None].expand(states, 1, -1)
    C = torch.eye(states).double()[:, :, None].expand(-1, -1, len(row))  # (N, N, L)
    steps = delta[None, None].expand_as(u)
    h = selective_scan(u, steps, A[None], B[None].expand(states, -1, -1), C)
    assert isinstance(h, torch.Tensor)
    return h[:, 0]


@styled
def gate_map(constant: float = 0.0) -> Figure:
    """Pixels, states and steps. constant: 0 for the selected steps, 1 for all equal to their mean.

    In between, every step lies on the way from one to the other.
    """
    row = pixel_row()
    selected = edge_steps(row)
    delta = (1 - constant) * selected + constant * selected.mean()
    h = states_along(row, delta).numpy()
    figure, (above, middle, below) = new(3, height=5.2, sharex=True, height_ratios=(2, 3, 2))
    t = np.arange(1, len(row) + 1)
    above.step(t, row, where="mid", color=GREY, linewidth=1.5, label="pixel $u_t$")
    above.plot(t, h[0], color=BLUE, label="state 1, its memory")
    above.set(ylabel="brightness", ylim=(-0.05, 1.35), yticks=(0, 0.5, 1))
    above.legend(loc="upper right", fontsize=8, ncols=2)
    image = middle.imshow(
        h, aspect="auto", cmap="cividis", vmin=0, vmax=1,
        extent=(0.5, len(row) + 0.5, N + 0.5, 0.5),
    )  # fmt: skip
    middle.set(ylabel="state n", yticks=range(1, N + 1))
    middle.grid(False)
    figure.colorbar(image, ax=middle, label="h", pad=0.01)
    below.bar(t, delta.numpy(), width=0.9, color=ORANGE)
    below.set(ylabel="step Δ", xlabel="pixel t", ylim=(0, 4))
    return figure


@styled
def hidden_row() -> Figure:
    """Who listens to whom along the row of pixels: the matrix of state 1, for two kinds of step."""
    selected = edge_steps(pixel_row())
    ones = torch.ones_like(selected)
    figure, axes = new(1, 2, height=3.6, sharey=True)
    kinds = {"selected steps": selected, "all steps equal": ones * selected.mean()}
    for panel, (title, delta) in zip(axes, kinds.items(), strict=True):
        B = -torch.expm1(-delta) / delta
        M = hidden_matrix(delta, -ones[:1], B[:, None], ones[:, None]).numpy()
        ahead = np.triu(np.ones_like(M), k=1) > 0
        image = panel.imshow(
            np.ma.masked_array(M, ahead), cmap="cividis",
            norm=PowerNorm(0.5, vmin=0, vmax=1),
            extent=(0.5, PIXELS + 0.5, PIXELS + 0.5, 0.5),
        )  # fmt: skip
        panel.set(title=title, xlabel="pixel s that is heard")
        panel.grid(False)
    axes[0].set_ylabel("pixel t that listens")
    figure.colorbar(image, ax=axes, label="weight M[t, s]", pad=0.01)
    return figure


def hidden_matrix(
    delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
) -> torch.Tensor:
    """M with y = M u for the steps given: delta (L,), A (N,), B, C (L, N) → (L, L)."""
    past = torch.cumsum(delta, 0)
    since = past[:, None] - past[None]  # Σ of Δ after s, up to t
    reach = since[..., None].clamp(min=0) * A  # (L, L, N); what lies ahead is cut off below
    return torch.einsum("tn,tsn,sn->ts", C, torch.exp(reach), delta[:, None] * B).tril()


@styled
def selection_runs() -> Figure:
    """Right answers of every run, on both tasks."""
    found = results.load("selection")
    figure, axes = new(1, 2, height=3.0, sharey=True)
    looks = {"S6": (BLUE, "o"), "LTI": (ORANGE, "s"), "S6, shuffled labels": (GREEN, "^")}
    for panel, (task, models) in zip(axes, found["tasks"].items(), strict=True):
        for place, (model, runs) in enumerate(models.items()):
            color, marker = looks[model]
            accuracies = [100 * run["accuracy"] for run in runs["runs"]]
            panel.scatter(
                place + np.linspace(-0.15, 0.15, len(accuracies)), accuracies,
                color=color, marker=marker, s=45,
            )  # fmt: skip
        panel.axhline(100 * found["chance"], color=GREY, linestyle="--", linewidth=1.5)
        panel.text(-0.45, 100 * found["chance"] + 2, "chance", fontsize=8, color=GREY)
        panel.set(title=task, xlabel="model", ylim=(0, 104), xlim=(-0.5, 2.5))
        panel.set_xticks(range(len(models)), ["S6", "LTI", "S6, labels\nshuffled"])
    axes[0].set_ylabel("right answers, %")
    return figure

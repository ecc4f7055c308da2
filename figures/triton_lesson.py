"""The figures of lesson 08: blocks with masks, warps that wait, and a predicted roofline."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minivmamba.bench import roofline
from minivmamba.figures.style import BLUE, GREEN, GREY, ORANGE, RED, new, styled

STEP = 147  # instructions of a forward step of 16 states, on sm_90
CLOCKS = roofline.WAIT * 1e9 * roofline.CARDS["H200"].clock  # of a step, when a warp is alone


@styled
def blocks(size: int = 22, block: int = 8) -> Figure:
    """Which numbers three programs touch, and which the mask keeps them from."""
    figure, axes = new(height=1.9)
    colors = (BLUE, ORANGE, GREEN)
    programs = math.ceil(size / block)
    for at in range(programs * block):
        program, inside = at // block, at < size
        look = (
            {"facecolor": colors[program % 3], "alpha": 0.65}
            if inside
            else {"facecolor": "white", "edgecolor": RED, "hatch": "////"}
        )
        axes.add_patch(Rectangle((at - 0.45, 0), 0.9, 1, linewidth=1, **look))
        axes.text(at, 0.5, str(at), ha="center", va="center", fontsize=8)
    for program in range(programs):
        left, right = program * block - 0.45, (program + 1) * block - 0.55
        axes.plot([left, right], [1.25, 1.25], color=colors[program % 3])
        middle = (left + right) / 2
        axes.text(middle, 1.4, f"program {program}", ha="center", va="bottom", fontsize=9)
    axes.plot([size - 0.5, size - 0.5], [-0.2, 1.1], color="black", linewidth=2)
    axes.text(size - 0.6, -0.25, "the tensor ends", ha="right", va="top", fontsize=9)
    axes.text(size - 0.4, -0.25, "masked", ha="left", va="top", fontsize=9, color=RED)
    axes.set(xlim=(-1, programs * block), ylim=(-0.8, 2.0))
    axes.axis("off")
    return figure


def warps_of(registers: int) -> int:
    """Programs of one warp that a multiprocessor holds: exercise 8.4."""
    of_a_warp = math.ceil(32 * registers / 256) * 256
    return min(4 * (16384 // of_a_warp), 32)


def busy(warps: int) -> float:
    """The share of clocks in which a scheduler has an instruction to send, if steps take turns."""
    return min(1.0, warps / 4 * STEP / CLOCKS)


@styled
def waiting_hidden(registers: int = 72) -> Figure:
    """One scheduler: its warps in turn, and when it has nothing to do."""
    each = warps_of(registers) // 4
    figure, (above, below) = new(
        2, height=3.4, sharex=True, height_ratios=(max(each, 2), 1.2), gridspec_kw={"hspace": 0.05}
    )
    period = max(CLOCKS, each * STEP)
    end = 2.4 * CLOCKS
    for warp in range(each):
        starts = np.arange(warp * STEP, end, period)
        above.broken_barh([(0, end)], (warp + 0.62, 0.76), facecolor="white", edgecolor=GREY)
        above.broken_barh([(s, STEP) for s in starts], (warp + 0.62, 0.76), facecolor=BLUE)
        below.broken_barh([(s, STEP) for s in starts], (0, 1), facecolor=BLUE)
    below.broken_barh([(0, end)], (0, 1), facecolor="none", edgecolor=GREY)
    above.set(ylim=(each + 0.7, 0.3), ylabel="warp")
    above.set_yticks(range(1, each + 1))
    share = busy(4 * each)
    above.set_title(
        f"{registers} registers a thread: {4 * each} warps, {each} for each scheduler, "
        f"busy {100 * share:.0f}% of the time",
        fontsize=10,
    )
    below.set(yticks=[], ylim=(0, 1), xlim=(0, end), xlabel="clocks")
    below.set_ylabel("scheduler", rotation=0, ha="right", va="center")
    for axes in (above, below):
        axes.grid(False)
    return figure


def place_on_the_roof(kernel: str, card: roofline.Card, group: int = 192) -> tuple[float, float]:
    """(instructions a byte, 10¹² instructions of threads a second at most), in stage 1."""
    amounts = roofline.Pass(kernel, 4 * group, 1, group, 1).amounts()
    rates = card.rates()
    seconds = max(amounts[name] / rates[name] for name in amounts if name != "waiting")
    return amounts["issue"] / amounts["memory"], amounts["issue"] / seconds / 1e12


@styled
def predicted_roof() -> Figure:
    """Two cards: what memory allows, what the schedulers allow, and the kernel's place."""
    figure, axes = new(1, 2, height=3.3, sharey=True)
    x = np.geomspace(1, 100, 200)
    for panel, name in zip(axes, ("A100", "H100"), strict=True):
        card = roofline.CARDS[name]
        rates = card.rates()
        roof = np.minimum(x * rates["memory"], rates["issue"]) / 1e12
        panel.loglog(x, roof, color="black", label="roof: memory, schedulers")
        one = roofline.Pass("forward", 4 * 192, 1, 192, 1).amounts()
        for what, style in (("floats", ":"), ("exponentials", "--")):
            height = one["issue"] / (one[what] / rates[what]) / 1e12
            panel.axhline(
                height, color=BLUE, linestyle=style, linewidth=1.4, label=f"limit of its {what}"
            )
        looks = (("forward", BLUE, "o", 13, "white"), ("backward", ORANGE, "s", 5, ORANGE))
        for kernel, color, marker, size, face in looks:
            panel.plot(
                *place_on_the_roof(kernel, card), marker, color=color, markersize=size,
                markerfacecolor=face, markeredgewidth=2, label=f"{kernel}, predicted",
            )  # fmt: skip
        panel.set(xlabel="instructions a byte of memory", title=f"{name} (predicted)")
        panel.set_ylim(1, 60)
        panel.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        panel.set_yticks([1, 3, 10, 30], ["1", "3", "10", "30"])
        panel.minorticks_off()
    axes[0].set_ylabel("10¹² instructions of threads a second")
    axes[1].legend(loc="lower right", fontsize=8)
    return figure


@styled
def layout_of_a_program(states: int = 4, lanes: int = 8) -> Figure:
    """The block of a program: a thread for every channel, its states in registers below it."""
    figure, axes = new(height=3.0)
    for lane in range(lanes):
        for state in range(states):
            axes.add_patch(
                Rectangle((lane, -state), 0.9, 0.9, facecolor=BLUE, alpha=0.25, edgecolor=BLUE)
            )
            axes.text(lane + 0.45, 0.45 - state, "$h$", ha="center", va="center", fontsize=9)
        axes.add_patch(Rectangle((lane, 1.4), 0.9, 0.9, facecolor=ORANGE, alpha=0.5))
        axes.text(lane + 0.45, 1.85, r"$u_t, \Delta_t$", ha="center", va="center", fontsize=7)
        axes.text(lane + 0.45, 2.5, f"{lane}", ha="center", fontsize=8)
        axes.add_patch(Rectangle((lane, -states - 0.4), 0.9, 0.9, facecolor=GREEN, alpha=0.5))
        axes.text(lane + 0.45, 0.05 - states, "$y_t$", ha="center", va="center", fontsize=8)
    for state in range(states):
        axes.add_patch(
            Rectangle((-1.9, -state), 1.4, 0.9, facecolor="white", edgecolor=GREY, hatch="...")
        )
        axes.text(
            -1.2, 0.45 - state, "$B_t, C_t$", ha="center", va="center", fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.text(-0.6, 2.5, "thread:", ha="right", fontsize=9)
    axes.text(lanes + 0.2, 1.85, "its own u and Δ,\nloaded in every step", va="center", fontsize=8)
    axes.text(
        lanes + 0.2, 0.5 - states / 2 + 0.4, "stay in registers:\none column is one thread",
        va="center", fontsize=8,
    )  # fmt: skip
    axes.text(
        lanes + 0.2, 0.05 - states, "a sum over a column:\nno other thread needed",
        va="center", fontsize=8,
    )  # fmt: skip
    axes.text(-1.9, -states - 0.35, "the same for\nall threads", va="bottom", fontsize=8)
    axes.set(xlim=(-2.1, lanes + 3.6), ylim=(-states - 0.6, 3.0))
    axes.axis("off")
    return figure

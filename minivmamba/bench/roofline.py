"""`bench roofline`: what the Triton scan needs at least on a GPU; predicted, nothing is run.

A kernel can be no faster than the slowest of these, each alone:

    memory        every number comes from memory once and goes there once, whatever the caches do
    exponentials  16 a multiprocessor and clock
    floats        multiplications and additions, as many a clock as the multiprocessor has lanes
    issue         4 instructions of a warp a multiprocessor and clock, of any kind
    waiting       the steps of one program, one after another, WAIT each

Instructions and float operations of a state and step are counted in the machine code for sm_90
(float32, 16 states); tests/test_triton_machine_code.py compares them with what the kernels compile
to. `bench scan --device cuda` measures all but the issue, and puts it beside what it finds.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from minivmamba.bench.problem import GROUPS, STAGES
from minivmamba.bench.report import Report
from minivmamba.selective_scan import why_no_triton

N = 16  # states, for which the instructions are counted
EXPONENTIALS = 16  # of a multiprocessor in a clock
ISSUED = 4 * 32  # instructions of single threads
WAIT = 0.57e-6  # seconds, measured on an H200: of a step when hardly a warp shares a scheduler


class Card(NamedTuple):
    """multiprocessors, float32 lanes of one, clock in 10⁹/s, memory in 10⁹ bytes/s."""

    multiprocessors: int
    lanes: int
    clock: float
    memory: float

    def rates(self) -> dict[str, float]:
        """Per second; the names are those of `Pass.amounts`."""
        clocks = 1e9 * self.clock * self.multiprocessors
        return {
            "memory": 1e9 * self.memory,
            "exponentials": EXPONENTIALS * clocks,
            "floats": self.lanes * clocks,
            "issue": ISSUED * clocks,
            "waiting": 1 / WAIT,
        }


# As NVIDIA reports them, at the highest clock.
CARDS = {
    "A100": Card(108, 64, 1.41, 2039),
    "H100": Card(132, 128, 1.98, 3350),
    "H200": Card(132, 128, 1.98, 4800),
    "L4": Card(58, 128, 2.04, 300),
    "RTX3090": Card(82, 128, 1.695, 936),
    "RTX4090": Card(128, 128, 2.52, 1008),
}


class Kernel(NamedTuple):
    """Of a state and step: instructions, float operations. Of a channel and step, beside B and C:
    bytes. Numbers of B and C that a group reads in a step. Exponentials of a channel and step."""

    instructions: float
    floats: float
    bytes: float
    matrices: int
    exponentials: int


KEPT, OFTEN = 4 * N / 32, 4 * N / 4  # bytes of the states before every 32nd, every 4th step
SHARES = 2 * 2 * 4 * N / 32  # dB and dC of 32 channels, written and added up
KERNELS = {
    "forward": Kernel(9.2, 5.5, 12, 2 * N, N + 1),
    "forward, keeping": Kernel(10.2, 5.5, 12 + KEPT, 2 * N, N + 1),
    "forward of a part": Kernel(10.1, 5.5, 12, 2 * N, N + 1),
    "what a part does": Kernel(7.2, 4.1, 8, N, N + 1),
    "what a part does to g": Kernel(7.6, 4.1, 8, N, N + 1),
    "again": Kernel(7.1, 4.0, 8 + KEPT + OFTEN, N, N + 1),
    "backward": Kernel(33.1, 19.4, 20 + OFTEN + SHARES, 2 * N, 2 * (N + 1)),
}


class Pass(NamedTuple):
    """One kernel over `channels` channels in all images and groups; `row` steps after another."""

    name: str
    channels: int
    length: int
    group: int  # channels that share B and C
    row: int

    def amounts(self) -> dict[str, float]:
        kernel, steps = KERNELS[self.name], self.channels * self.length
        return {
            "memory": steps * (kernel.bytes + 4 * kernel.matrices / self.group),
            "exponentials": steps * kernel.exponentials,
            "floats": steps * N * kernel.floats,
            "issue": steps * N * kernel.instructions,
            "waiting": self.row,
        }


def passes(
    batch: int, channels: int, length: int, multiprocessors: int, training: bool
) -> list[Pass]:
    """The kernels of one call, with the sequence cut as the host code cuts it."""
    from minivmamba.kernels.scan_triton import CHUNK, cut

    group = channels // GROUPS
    row = cut(length, batch * GROUPS * math.ceil(group / 32), multiprocessors)

    def one(name: str, steps: int = row) -> Pass:
        return Pass(name, batch * channels, length, group, steps)

    in_parts = row < length
    forward = [one("forward, keeping" if training else "forward")]
    forward = [one("what a part does"), *forward] if in_parts else forward
    if not training:
        return forward
    back = [one("what a part does to g"), one("backward")] if in_parts else [one("backward")]
    return [*forward, one("again", min(CHUNK, length)), *back]


def floors(kernels: Sequence[Pass], rates: Mapping[str, float]) -> dict[str, float]:
    """Seconds: what each of the rates allows, and "all", where each kernel waits for its slowest.

    Kernels run one after another, so that "all" may be more than the largest of the others.
    """
    times = [{name: k.amounts()[name] / rate for name, rate in rates.items()} for k in kernels]
    sums = {name: sum(t[name] for t in times) for name in rates}
    return {**sums, "all": sum(max(t.values()) for t in times)}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", choices=CARDS, nargs="+", default=["H100"], help="(default: H100)")


def run(options: argparse.Namespace, report: Report) -> None:
    if why_no_triton():
        raise SystemExit(f"roofline: how the sequence is cut {why_no_triton()}")
    for gpu in options.gpu:
        card = CARDS[gpu]
        rates = card.rates()
        report.remark(
            f"{gpu}: PREDICTED, not measured, from NVIDIA's figures ({card.multiprocessors} "
            f"multiprocessors at {card.clock} GHz, {card.memory / 1000:.3g} TB/s) and the machine "
            "code; nothing can be faster, and what runs is slower."
        )
        for batch in (128, 1):
            for training in (False, True):
                work = "forward + backward" if training else "forward"
                rows = [
                    _row(
                        stage, passes(batch, *STAGES[stage], card.multiprocessors, training), rates
                    )
                    for stage in STAGES
                ]
                report.facts(f"{gpu}, predicted: {batch} image(s), {work}, floors in µs", rows)


def _row(stage: int, kernels: Sequence[Pass], rates: Mapping[str, float]) -> dict[str, object]:
    amounts = [kernel.amounts() for kernel in kernels]
    times = floors(kernels, rates)
    return {
        "": f"stage {stage}",
        "kernels": len(kernels),
        "MB": sum(a["memory"] for a in amounts) / 1e6,
        "10⁹ exp": sum(a["exponentials"] for a in amounts) / 1e9,
        "10⁹ instr.": sum(a["issue"] for a in amounts) / 32e9,
        **{name: 1e6 * times[name] for name in (*rates, "all")},
    }

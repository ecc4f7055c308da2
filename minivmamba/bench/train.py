"""`bench train`: one training step of VMamba-T and its peers, and the memory it needs."""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from minivmamba.bench import memory, models
from minivmamba.bench.models import FOOTINGS, LABELS
from minivmamba.bench.options import chosen, image_size, whole
from minivmamba.bench.report import Report
from minivmamba.bench.timing import compare


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=image_size, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--batch", type=whole, default=8, help="images (default: 8)")
    parser.add_argument("--peers", type=chosen(models.PEERS), metavar="a,b", default=models.PEERS,
                        help=f"some of {', '.join(models.PEERS)}; or none")  # fmt: skip
    parser.add_argument("--footing", type=chosen(FOOTINGS), metavar="a,b", default=["shipped"],
                        help=f"some of {', '.join(FOOTINGS)} (default: shipped)")  # fmt: skip


def run(options: argparse.Namespace, report: Report) -> None:
    names = ["ours", *models.installed(options.peers, report)]
    title = f"Training step, {options.batch} images of {options.size} px"
    steps = {name: training_step(name, options.size) for name in names}
    for footing in options.footing:
        calls: dict[str, Callable[[], object]] = {
            name: partial(step, options.batch, footing) for name, step in steps.items()
        }
        timings = compare(calls, options.repeats, options.seconds)
        ratios = {
            "ours / it": {name: timings.ratio("ours", name) for name in timings},
            "it / ours": {name: timings.ratio(name, "ours") for name in timings},
        }
        report.timed(f"{title}, {FOOTINGS[footing]}", timings, LABELS, ratios)

    rows = []
    for name in names:
        work = (name, options.size, options.batch, torch.get_num_threads())
        peak = memory.in_fresh_process(step_memory, *work)
        if peak is None:
            report.remark("Memory is left out: only Linux tells a process its peak.")
            return
        rows.append({"": LABELS[name], "MB": peak / 1e6})
    for row in rows:
        row["ours / it"] = rows[0]["MB"] / row["MB"]
    report.facts(f"{title}: peak beyond weights, gradients and optimizer", rows)


def training_step(name: str, size: int) -> Callable[[int, str], None]:
    """A function that takes a batch through forward, cross-entropy, backward and AdamW."""
    model = models.build(name, size).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def step(batch: int, footing: str) -> None:
        x, target = models.images(batch, size), torch.arange(batch)
        with models.on_footing(footing):
            loss = F.cross_entropy(model(x), target)
            optimizer.zero_grad(set_to_none=False)  # the gradients' memory is touched already
            loss.backward()
            optimizer.step()

    return step


def step_memory(name: str, size: int, batch: int, threads: int) -> int | None:
    """Bytes at the peak of a step, beyond what stays between steps; for a fresh process."""
    torch.set_num_threads(threads)
    step = training_step(name, size)
    step(2, "shipped")  # gradients, optimizer states and compiled code are there from now on
    return memory.peak_of(lambda: step(batch, "shipped"))

"""`bench model`: VMamba-T and its peers classify images, with random weights."""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn as nn
from torch import Tensor

from minivmamba.bench import models
from minivmamba.bench.models import FOOTINGS, LABELS
from minivmamba.bench.options import chosen, image_size, whole
from minivmamba.bench.peers import Scan, public_loop
from minivmamba.bench.problem import our_scan
from minivmamba.bench.report import Report
from minivmamba.bench.timing import compare

PLAIN: dict[str, tuple[str, Scan]] = {
    "plain": ("VMamba-T, plain path, our scan", our_scan),
    "naive": ("VMamba-T, plain path, naive rung", partial(our_scan, backend="naive")),
    "loop": ("VMamba-T, plain path, loop of public code", public_loop),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=image_size, default=224, help="pixels a side (default: 224)")
    parser.add_argument(
        "--batch", type=whole, nargs="+", default=[1, 8], help="images (default: 1 8)"
    )
    parser.add_argument("--peers", type=chosen([*models.PEERS, *PLAIN]), metavar="a,b",
                        default=[*models.PEERS, *PLAIN],
                        help=f"some of {', '.join([*models.PEERS, *PLAIN])}; or none")  # fmt: skip
    parser.add_argument("--footing", type=chosen(FOOTINGS), metavar="a,b", default=list(FOOTINGS),
                        help=f"some of {', '.join(FOOTINGS)} (default: all)")  # fmt: skip


def run(options: argparse.Namespace, report: Report) -> None:
    wanted = [name for name in options.peers if name in models.PEERS]
    names = ["ours", *models.installed(wanted, report)]
    nets = {name: models.build(name, options.size) for name in names}
    agreement(nets["ours"], options.size, report)
    for batch in options.batch:
        x = models.images(batch, options.size)
        for footing in options.footing:
            calls: dict[str, Callable[[], object]] = {
                name: models.inference(net, x, footing) for name, net in nets.items()
            }
            if footing == "shipped" and batch == min(options.batch):  # slow, and linear in batch
                for name in options.peers:
                    if name in PLAIN:
                        calls[name] = _plain(nets["ours"], x, PLAIN[name][1])
            labels = LABELS | {name: label for name, (label, _) in PLAIN.items()}
            timings = compare(calls, options.repeats, options.seconds)
            ratios = {
                "ours / it": {name: timings.ratio("ours", name) for name in timings},
                "it / ours": {name: timings.ratio(name, "ours") for name in timings},
            }
            title = f"{batch} image(s) of {options.size} px, {FOOTINGS[footing]}"
            report.timed(title, timings, labels, ratios)


def _plain(model: nn.Module, x: Tensor, scan: Scan) -> Callable[[], Tensor]:
    model.eval()

    def run() -> Tensor:
        with torch.inference_mode(), models.plain_path(scan):
            return model(x)

    return run


def agreement(model: nn.Module, size: int, report: Report) -> None:
    """Logits of the model as it runs, against the plain path with the naive rung."""
    rows = []
    for width in (size, size + 32):
        x = models.images(1, size, width)
        ours = models.inference(model, x)()
        plain = _plain(model, x, partial(our_scan, backend="naive"))()
        difference = ours - plain
        rows.append(
            {
                "": f"{size} × {width} px",
                "largest difference": difference.abs().max().item(),
                "relative (L2)": (difference.norm() / plain.norm()).item(),
                "largest logit": plain.abs().max().item(),
            }
        )
    report.facts("Logits of VMamba-T: as it runs, and on the plain path with the naive rung", rows)

"""`bench family`: all nine VMambas and the peers of their size classify images."""

import argparse
from collections.abc import Callable

from minivmamba.bench import models
from minivmamba.bench.models import FOOTINGS
from minivmamba.bench.options import chosen, image_size, whole
from minivmamba.bench.report import Report
from minivmamba.bench.timing import compare

FAMILIES = {
    "tiny": {
        "vmamba_tiny": "VMamba-T",
        "vmamba_tiny_s1l8": "VMamba-T[s1l8]",
        "vmamba_tiny_s2l5": "VMamba-T[s2l5]",
        "swin": "Swin-T",
        "convnext": "ConvNeXt-T",
    },
    "small": {
        "vmamba_small": "VMamba-S",
        "vmamba_small_s1l20": "VMamba-S[s1l20]",
        "vmamba_small_s2l15": "VMamba-S[s2l15]",
        "swin_small": "Swin-S",
        "convnext_small": "ConvNeXt-S",
    },
    "base": {
        "vmamba_base": "VMamba-B",
        "vmamba_base_s1l20": "VMamba-B[s1l20]",
        "vmamba_base_s2l15": "VMamba-B[s2l15]",
        "swin_base": "Swin-B",
        "convnext_base": "ConvNeXt-B",
    },
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=image_size, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--batch", type=whole, default=1, help="images (default: 1)")
    parser.add_argument("--models", type=chosen(FAMILIES), metavar="a,b", default=list(FAMILIES),
                        help=f"some of {', '.join(FAMILIES)} (default: all)")  # fmt: skip
    parser.add_argument("--footing", type=chosen(FOOTINGS), metavar="a,b", default=list(FOOTINGS),
                        help=f"some of {', '.join(FOOTINGS)} (default: all)")  # fmt: skip


def run(options: argparse.Namespace, report: Report) -> None:
    x = models.images(options.batch, options.size)
    for family in options.models:
        labels = FAMILIES[family]
        ours = [name for name in labels if name.startswith("vmamba")]
        peers = models.installed([name for name in labels if name not in ours], report)
        nets = {name: models.build(name, options.size) for name in [*ours, *peers]}
        for footing in options.footing:
            calls: dict[str, Callable[[], object]] = {
                name: models.inference(net, x, footing) for name, net in nets.items()
            }
            timings = compare(calls, options.repeats, options.seconds)
            ratios = {
                f"it / {labels[peer]}": {name: timings.ratio(name, peer) for name in timings}
                for peer in peers
            }
            title = f"{family}, {options.batch} image(s) of {options.size} px, {FOOTINGS[footing]}"
            report.timed(title, timings, labels, ratios)

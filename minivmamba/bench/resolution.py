"""`bench resolution`: how the time of one image grows with its pixels."""

import argparse
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from minivmamba.bench import models
from minivmamba.bench.models import LABELS, SDPA
from minivmamba.bench.options import chosen, image_size, whole
from minivmamba.bench.report import Report
from minivmamba.bench.timing import Quartiles, Timings, compare

SIZES = (224, 384, 512, 640, 768, 1024)
PEERS = ("swin", "convnext", "deit")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=image_size, nargs="+", help="pixels a side (default: 224 … 1024)"
    )
    parser.add_argument("--batch", type=whole, default=1, help="images (default: 1)")
    parser.add_argument("--peers", type=chosen(PEERS), default=list(PEERS), metavar="a,b",
                        help=f"some of {', '.join(PEERS)}; or none")  # fmt: skip


def run(options: argparse.Namespace, report: Report) -> None:
    sizes = sorted(set(options.size or (SIZES[:3] if options.quick else SIZES)))
    if len(sizes) < 2:
        raise SystemExit("resolution: --size: expected two different sizes or more")
    names = ["ours", *models.installed(options.peers, report)]
    # All sizes of all models take turns in one table, so that no drift looks like growth.
    timings = compare(contestants(names, sizes, options.batch), options.repeats, options.seconds)
    for size in sizes:
        here = Timings({name: timings.samples[f"{name}, {size}"] for name in names})
        ratios = {
            "ours / it": {name: here.ratio("ours", name) for name in names},
            "it / ours": {name: here.ratio(name, "ours") for name in names},
        }
        title = f"{options.batch} image(s) of {size} px; attention by SDPA"
        report.timed(title, here, LABELS, ratios)
    rows = []
    for name in names:
        e = exponent(sizes, [timings.samples[f"{name}, {size}"] for size in sizes])
        rows.append({"": LABELS[name], "e": e.median, "q1": e.q1, "q3": e.q3})
    report.facts(f"time ∝ pixels^e, {sizes[0]} to {sizes[-1]} px", rows)


def contestants(
    names: Sequence[str], sizes: Sequence[int], batch: int
) -> dict[str, Callable[[], object]]:
    """A call for every model and size. Only DeiT has weights that depend on the size."""
    nets = {name: models.build(name, sizes[0]) for name in names if name != "deit"}
    return {
        f"{name}, {size}": models.inference(
            nets[name] if name in nets else models.build(name, size),
            models.images(batch, size),
            SDPA,
        )
        for name, size in itertools.product(names, sizes)
    }


def exponent(sizes: Sequence[int], samples: Sequence[Sequence[float]]) -> Quartiles:
    """e of a least-squares line through (log pixels, log time), fitted in every round."""
    pixels = 2 * np.log(sizes)
    rounds = zip(*samples, strict=False)  # rounds in which every size took part
    return Quartiles.of([float(np.polyfit(pixels, np.log(times), 1)[0]) for times in rounds])

"""The command line: `python -m minivmamba.bench scan`, or another of COMMANDS; see `--help`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from minivmamba.bench import family, memory, model, resolution, roofline, scan, train
from minivmamba.bench.options import positive, whole
from minivmamba.bench.report import Report

COMMANDS = {
    "scan": scan,
    "model": model,
    "family": family,
    "train": train,
    "resolution": resolution,
    "roofline": roofline,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--json", type=Path, metavar="PATH", help="results (default: bench-COMMAND.json here)"
    )
    common.add_argument("--repeats", type=whole, metavar="N",
                        help="rounds of the quicker contestants (default: 9)")  # fmt: skip
    common.add_argument("--seconds", type=positive, metavar="S",
                        help="that a contestant may take in a table; a slower one has fewer rounds,"
                        " at least 3 (default: 6)")  # fmt: skip
    common.add_argument("--threads", type=whole, metavar="N", help="(default: as PyTorch has it)")
    common.add_argument("--pool", type=positive, default=4.0, metavar="GIB",
                        help="memory to touch before the first measurement, at most a quarter of"
                        " what is free (default: 4)")  # fmt: skip
    common.add_argument(
        "--quick", action="store_true", help="3 rounds and fewer sizes: a look, not a result"
    )
    parser = argparse.ArgumentParser(
        prog="python -m minivmamba.bench",
        description="Ratios of speed, measured in turns in one run, against named peers.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        module.add_options(commands.add_parser(name, parents=[common], description=summary,
                                               help=summary.partition(": ")[2]))  # fmt: skip
    options = parser.parse_args(arguments)
    options.repeats = options.repeats or (3 if options.quick else 9)
    options.seconds = options.seconds or (0.5 if options.quick else 6.0)
    options.json = options.json or Path(f"bench-{options.command}.json")
    if options.json.is_dir() or not options.json.resolve().parent.is_dir():
        parser.error(f"--json: expected a file in a folder that exists, got {options.json}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    before = torch.get_num_threads()
    _use_threads(options.threads or before)
    try:
        memory.touch(min(options.pool, memory.free_gib() / 4))
        report = Report(options.command, {k: v for k, v in vars(options).items() if k != "json"})
        COMMANDS[options.command].run(options, report)
        report.write(options.json)
    finally:
        torch.set_num_threads(before)


def _use_threads(threads: int) -> None:
    """Numba, when it starts its threads, sets the number of PyTorch's as well: let it go first."""
    try:
        import numba

        numba.get_num_threads()
    except ImportError:
        pass
    torch.set_num_threads(threads)


if __name__ == "__main__":
    parse()  # a wrong argument needs no second start
    memory.keep_memory()
    main()

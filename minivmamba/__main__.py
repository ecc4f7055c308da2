"""The command line: `python -m minivmamba classify PHOTO --weights FILE`."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from minivmamba import classify


class Parser(argparse.ArgumentParser):
    """Errors in one line; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def build() -> Parser:
    parser = Parser(
        prog="python -m minivmamba",
        description="VMamba in PyTorch, built step by step in notebooks.",
        epilog="python -m minivmamba.bench compares speeds; `make lab` opens the lessons.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    summary = (classify.__doc__ or "").strip()
    classify.add_options(
        commands.add_parser("classify", description=summary, help=summary.partition(":")[0])
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return
    try:
        classify.run(options)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])

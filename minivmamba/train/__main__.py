"""Train a model: python -m minivmamba.train CONFIG --out FOLDER."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivmamba.train.config import list_configs, load_config
from minivmamba.train.loop import NonFinite, Training
from minivmamba.train.processes import processes

EPILOG = """\
examples
  python -m minivmamba.train digits --out runs/digits
  python -m minivmamba.train digits --out runs/short --set epochs=2 --set seed=1
  torchrun --nproc_per_node 8 -m minivmamba.train imagenet_vmamba_tiny \\
      --data /data/imagenet --workers 8 --out runs/tiny

A run that was stopped goes on where it was: give the same command again.
"""


def build() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minivmamba.train",
        description="Train a model from a configuration.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help=f"a TOML file, or one of {', '.join(list_configs())}")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                        help="for the snapshot, log.csv and the weights")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FOLDER",
                        help="images in train/CLASS/ and val/CLASS/; digits need none")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="change an entry of the configuration")  # fmt: skip
    parser.add_argument("--workers", type=int, default=0, metavar="N",
                        help="processes that load images, for each process of the run")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def changes(words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE words, values as in TOML; a word that is none stays a text.

    Raises ValueError if a word has no "=".
    """
    from minivmamba.train.config import tomllib

    found: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"--set: expected NAME=VALUE, got {word!r}")
        try:
            found |= tomllib.loads(f"{name} = {value}")
        except tomllib.TOMLDecodeError:
            found[name] = value
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build()
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, **changes(options.set))
        with processes(options.device) as here:
            run = Training(config, options.out, options.data, here, options.workers, options.quiet)
            found = run.run()
    except NonFinite as error:
        sys.exit(f"stopped: {error}")
    except (OSError, ValueError, ModuleNotFoundError) as error:
        parser.error(str(error))
    if here.rank == 0:
        for name, value in found.items():
            print(f"{name}: {value:.2%}")
        print(f"written: {options.out}/weights.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Types of command-line values, with errors that say what was expected."""

import argparse
from collections.abc import Callable, Collection


def whole(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def image_size(text: str) -> int:
    """Pixels of a side that every contestant can take: a multiple of 16, at least 32."""
    value = whole(text)
    if value < 32 or value % 16:
        raise argparse.ArgumentTypeError(f"expected a multiple of 16 from 32 on, got {text!r}")
    return value


def chosen(names: Collection[str]) -> Callable[[str], list[str]]:
    """Some of the names, separated by commas; "none" for none of them."""

    def parse(text: str) -> list[str]:
        if text == "none":
            return []
        wanted = text.split(",")
        for name in wanted:
            if name not in names:
                expected = ", ".join(names)
                raise argparse.ArgumentTypeError(f"expected some of {expected}; got {name!r}")
        return [name for name in names if name in wanted]

    return parse

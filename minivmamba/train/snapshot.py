"""The state of a run in one file, which is always whole.

A new snapshot is written beside the old one, flushed to the disk, and renamed over it. A rename
either happens or does not: a kill at any instant leaves the old snapshot or the new one.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

NAME = "last.pt"


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file, and give it its name only when it is complete and on the disk."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_snapshot(folder: Path, state: dict[str, Any]) -> None:
    write_whole(folder / NAME, lambda file: torch.save(state, file))


def load_snapshot(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The last snapshot of a folder, on the CPU, or None if there is none.

    Nothing in the file is executed.

    Raises:
        ValueError: it belongs to another configuration, or is not a snapshot.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        made = state["config"]
    except Exception as error:  # torch.load raises many kinds for a file that is something else
        raise ValueError(
            f"out: {str(path)!r} is not a snapshot of a run: {error}; choose another folder"
        ) from error
    differ = [name for name in made.keys() | config.keys() if made.get(name) != config.get(name)]
    if differ:
        name = min(differ)
        raise ValueError(
            f"out: {str(folder)!r} holds another run: {name} was {made.get(name)!r} there and is "
            f"{config.get(name)!r} now; choose another folder, or delete that one"
        )
    return state

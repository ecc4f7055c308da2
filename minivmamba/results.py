"""What the long runs of `experiments/` found, for lessons and figures, whatever the folder."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "experiments"


def load(name: str) -> Any:
    """The content of experiments/NAME.json.

    Raises:
        ValueError: there is no such result.
        FileNotFoundError: the package was installed without its repository.
    """
    path = FOLDER / f"{name}.json"
    if not FOLDER.is_dir():
        raise FileNotFoundError(
            f"results: expected the folder {FOLDER.name}/ of the repository beside the package; "
            "install minivmamba from a clone, with pip install -e"
        )
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in FOLDER.glob("*.json")))
        raise ValueError(f"name: expected one of {names}; got {name!r}")
    return json.loads(path.read_text())

"""Redraw every picture of the book: `python -m minivmamba.figures [FOLDER]`."""

import sys
from pathlib import Path

from minivmamba import figures
from minivmamba.figures.style import save


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in figures.__all__:
        save(getattr(figures, name)(), folder / f"{name}.png")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)

"""What a run tells: a progress bar for the eye, a CSV file for everything else."""

import csv
import io
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minivmamba.train.snapshot import write_whole

COLUMNS = ("step", "epoch", "rate", "loss", "accuracy", "images_per_second",
           "val_loss", "val_accuracy", "ema_accuracy")  # fmt: skip


class Log:
    """Rows of `COLUMNS` in a CSV file, and a bar with loss, accuracy, speed and the time left.

    Args:
        path: the CSV file; its rows up to step `start` stay, later ones belong to a future that a
            killed run did not keep.
        start, steps: where the run begins and how long it is.
        quiet: no bar.
    """

    def __init__(self, path: Path, start: int, steps: int, quiet: bool) -> None:
        self.path, self.rows = path, _rows_until(path, start)
        self._write()
        self.bar = tqdm(total=steps, initial=start, unit="step", disable=quiet)
        self.clock = time.perf_counter()

    def row(self, step: int, images: int, **values: Any) -> None:
        """Add a row; `images` have been seen since the last one."""
        now = time.perf_counter()
        speed = images / max(now - self.clock, 1e-9)
        self.clock = now
        given = {"step": step, "images_per_second": round(speed, 1)} | values
        self.rows.append({name: given.get(name, "") for name in COLUMNS})
        self._write()
        self.bar.set_postfix(
            {k: f"{v:.3g}" for k, v in given.items() if isinstance(v, float) and k != "rate"}
        )

    def skip_time(self) -> None:
        """Leave the time since the last row out of images a second, as an evaluation does."""
        self.clock = time.perf_counter()

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, lambda file: file.write(text.getvalue().encode()))


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log, every value as it stands in the file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    if step == 0 or not path.is_file():
        return []
    return [dict(row) for row in read_log(path) if int(row["step"]) <= step]

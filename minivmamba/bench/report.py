"""What a command found: printed as it comes, and kept for a JSON file."""

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minivmamba.bench.timing import Quartiles, Timings

Row = dict[str, Any]


class Report:
    """Tables, facts and remarks of one command.

    The JSON file holds `command`, `options`, `machine`, `tables` and `remarks`. A table has a
    `title` and `rows`. A row of a timed table has `name`, `label`, `runs`, `ms` and `ratios`;
    `ms` and every ratio are {"q1", "median", "q3"}.
    """

    def __init__(self, command: str, options: Mapping[str, Any]) -> None:
        self.content: dict[str, Any] = {
            "command": command,
            "options": dict(options),
            "machine": machine(),
            "tables": [],
            "remarks": [],
        }
        facts = self.content["machine"]
        if options.get("device") == "cuda" and torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
            print(f"{facts['gpu']}, triton {facts['triton']}")
        print(f"{facts['cpu']}, {facts['threads']} thread(s), torch {facts['torch']}")

    def remark(self, sentence: str) -> None:
        self.content["remarks"].append(sentence)
        print(f"\n{sentence}")

    def timed(
        self,
        title: str,
        timings: Timings,
        labels: Mapping[str, str],
        ratios: Mapping[str, Mapping[str, Quartiles]],
        **more: Mapping[str, float],
    ) -> None:
        """A table of contestants.

        Args:
            labels: name → words, for the reader.
            ratios: heading → name → ratio; in the order of the columns.
            more: heading → name → a number measured besides.
        """
        rows: list[Row] = []
        for name in timings:
            seconds = timings.seconds(name)
            rows.append(
                {
                    "name": name,
                    "label": labels[name],
                    "ratios": {head: r[name].as_dict() for head, r in ratios.items() if name in r},
                    **{head: column[name] for head, column in more.items() if name in column},
                    "ms": Quartiles(*(1e3 * t for t in vars(seconds).values())).as_dict(),
                    "runs": timings.runs(name),
                }
            )
        self.content["tables"].append({"title": title, "rows": rows})
        heads = ["", *ratios, *more, "runs", "(ms)"]
        lines = [
            [
                row["label"],
                *(_ratio(row["ratios"].get(head)) for head in ratios),
                *(_number(row.get(head)) for head in more),
                str(row["runs"]),
                f"({_number(row['ms']['median'])})",
            ]
            for row in rows
        ]
        _print(title, heads, lines)

    def facts(self, title: str, rows: Sequence[Row]) -> None:
        """A table of anything: every row has the keys of the first; the first key labels it."""
        self.content["tables"].append({"title": title, "rows": list(rows)})
        heads = list(rows[0])
        _print(title, ["", *heads[1:]], [[_number(row[head]) for head in heads] for row in rows])

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
        print(f"\nwritten: {path}")


def machine() -> dict[str, Any]:
    """What a reader needs to know about this machine."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numba", "triton", "torchvision", "mambapy")},
    }


def _cpu_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return (
        f"{value:.1e}"
        if 0 < abs(value) < 1e-3
        else f"{value:.3g}"
        if value < 1e3
        else f"{value:.0f}"
    )


def _ratio(ratio: Mapping[str, float] | None) -> str:
    """median [quartiles]."""
    if ratio is None:
        return "–"
    digits = 3 if ratio["median"] < 1000 else 4
    q1, median, q3 = (_plain(ratio[key], digits) for key in ("q1", "median", "q3"))
    return f"{median} [{q1}–{q3}]"


def _plain(value: float, digits: int) -> str:
    return f"{value:#.{digits}g}".rstrip(".") if value < 10**digits else f"{value:.0f}"


def _print(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    print(f"\n{title}\n{'─' * (sum(widths) + 2 * len(widths) - 2)}")
    for line in [heads, *lines]:
        first, *others = (
            text.ljust(w) if i == 0 else text.rjust(w)
            for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())

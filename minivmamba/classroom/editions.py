"""The edition to work in, made from the complete one: `python -m minivmamba.classroom.editions`.

The complete lessons in `notebooks/` are the master. In `notebooks/student/` the same lessons stand
without outputs, and every solution is a stub that raises NotImplementedError. A file there that
somebody has worked in is left alone.
"""

import argparse
import copy
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import nbformat

from minivmamba.classroom.book import NOTEBOOKS, find_lessons, store

STUDENT = "student"  # the folder, beside the complete lessons
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.DOTALL | re.MULTILINE)
STUB = "raise NotImplementedError  # your answer instead of this line"
# A link into this folder, except to another lesson, which has its twin in the student's folder.
LINK_NEARBY = re.compile(r"\]\((?!\d\d_\w+\.ipynb|https?:|#|/|\.\./)")
TITLE = re.compile(r"\A(# .+)$", re.MULTILINE)


def student_edition(complete: Any, name: str) -> Any:
    """A lesson without outputs and solutions.

    Args:
        complete: the notebook. name: its file name, for the link back to it.
    """
    notebook = copy.deepcopy(complete)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = SOLUTION.sub(rf"\1{STUB}", cell.source)
        else:
            cell.source = LINK_NEARBY.sub("](../", cell.source)
    welcome = (
        f"*The edition to work in: write your answers into the exercises and run the cells. The "
        f"[complete edition](../{name}) shows every output and one solution of each exercise.*"
    )
    first = notebook.cells[0]
    first.source = TITLE.sub(rf"\1\n\n{welcome}", first.source, count=1)
    notebook.metadata.setdefault("minivmamba", {})["as_made"] = fingerprint(notebook)
    return notebook


def fingerprint(notebook: Any) -> str:
    """What stands in the cells, whatever they have printed."""
    sources = "\0".join(cell.source for cell in notebook.cells)
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def worked_in(path: Path) -> bool:
    """Whether somebody has changed a cell of this student's file since it was made."""
    notebook = nbformat.read(path, as_version=4)
    return notebook.metadata.get("minivmamba", {}).get("as_made") != fingerprint(notebook)


def make(lesson: Path, folder: Path, force: bool = False) -> bool:
    """Write the student's edition of one lesson; False if there are answers in its place."""
    target = folder / lesson.name
    made = student_edition(nbformat.read(lesson, as_version=4), lesson.name)
    if target.exists() and not force and worked_in(target):
        return False
    folder.mkdir(exist_ok=True)
    store(made, target)
    return True


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 1 if a file was left alone because somebody has worked in it."""
    parser = argparse.ArgumentParser(
        prog="python -m minivmamba.classroom.editions",
        description="Write the lessons without solutions into notebooks/student/.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="02, 02_discretization or a path")
    parser.add_argument("--force", action="store_true", help="also over a reader's answers")
    options = parser.parse_args(arguments)
    try:
        lessons = find_lessons(options.names)
    except LookupError as error:
        parser.error(str(error))
    kept = [p for p in lessons if not make(p, NOTEBOOKS / STUDENT, options.force)]
    for lesson in kept:
        print(
            f"{STUDENT}/{lesson.name} holds somebody's answers and was left as it is; move it "
            "away, or use --force to lose them",
            file=sys.stderr,
        )
    print(f"{len(lessons) - len(kept)} of {len(lessons)} lessons written")
    return 1 if kept else 0


if __name__ == "__main__":
    sys.exit(main())

"""A class that is graded: `python -m minivmamba.classroom.course [FOLDER]` (or `make classroom`).

Builds a course for nbgrader from the lessons of the book. Every exercise is worth as many points
as it has dots; its points are given by a cell that asserts the same `check` the reader sees, once
as the reader sees it and once more on hidden inputs. TEACHING.md tells a teacher the rest.
"""

import argparse
import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell

from minivmamba.classroom.book import NOTEBOOKS, find_lessons, store
from minivmamba.classroom.editions import SOLUTION, STUB
from minivmamba.classroom.exercise import find_exercise

CHECK = re.compile(r'^check\("(\d\d\.\d+)", (\w+)\)$', re.MULTILINE)
LESSON_LINK = re.compile(r"\]\((\d\d_\w+)\.ipynb")
CONFIG = f'''"""The settings of this course; `nbgrader --help-all` lists what can be set."""

c = get_config()
c.CourseDirectory.course_id = "minivmamba"
c.ClearSolutions.code_stub = {{"python": "{STUB}"}}
c.ExecutePreprocessor.timeout = 120  # seconds a cell
'''
POINTS = """from minivmamba.classroom import check

verdict = check("{number}", {function})
assert verdict, verdict
### BEGIN HIDDEN TESTS
verdict = check("{number}", {function}, seed={seed})
assert verdict, verdict
### END HIDDEN TESTS"""


def assignment(complete: Any, seed: int) -> Any:
    """A lesson as nbgrader's source: answers to fill in, and a cell of points after each.

    Args:
        complete: the notebook of the complete edition. seed: of the hidden inputs.
    """
    notebook, cells = copy.deepcopy(complete), []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:  # every assignment has a folder of its own
            cell.source = LESSON_LINK.sub(r"](../\1/\1.ipynb", cell.source)
        cells.append(cell)
        if SOLUTION.search(cell.source) and (exercise := CHECK.search(cell.source)):
            number, function = exercise.groups()
            cell.metadata["nbgrader"] = _role(f"answer-{_dashed(number)}", solution=True)
            cells.append(_points(number, function, seed))
    notebook.cells = cells
    return notebook


def _points(number: str, function: str, seed: int) -> Any:
    exercise = find_exercise(number)
    if exercise is None:
        raise LookupError(f"a lesson checks exercise {number}, which is not in the bank")
    role = _role(f"points-{_dashed(number)}", grade=True, locked=True, points=exercise.difficulty)
    source = POINTS.format(number=number, function=function, seed=seed)
    cell = new_code_cell(source, metadata={"nbgrader": role})
    cell.id = role["grade_id"]
    return cell


def _role(grade_id: str, **changes: Any) -> dict[str, Any]:
    """nbgrader's metadata of a cell."""
    role = {"grade": False, "solution": False, "locked": False, "task": False}
    return {"schema_version": 3, "grade_id": grade_id, **role, **changes}


def _dashed(number: str) -> str:
    return number.replace(".", "-")


def start(folder: Path) -> None:
    """Make the folder of the course, with its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nbgrader_config.py"
    if not config.exists():
        config.write_text(CONFIG, encoding="utf-8")


def add(folder: Path, lesson: Path, seed: int) -> str:
    """Add one lesson to the course; returns what was done, in a word or two.

    What is there already stays as it is: a teacher may have changed the source, or handed out the
    release.
    """
    source, released = (folder / part / lesson.stem for part in ("source", "release"))
    if released.exists():
        return "kept as it was"
    if not source.exists():
        source.mkdir(parents=True)
        shutil.copy(NOTEBOOKS / "glossary.md", source)
        store(assignment(nbformat.read(lesson, as_version=4), seed), source / lesson.name)
    release(folder, lesson.stem)
    return "new"


def release(folder: Path, name: str) -> None:
    """Let nbgrader make what students get, in release/NAME, without solutions and hidden tests."""
    # nbgrader starts a program that lies beside this Python, and looks for it on the PATH.
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "nbgrader", "generate_assignment", name, "--log-level=WARN"]
    try:
        subprocess.run(command, cwd=folder, env={**os.environ, "PATH": here}, check=True)
    except subprocess.CalledProcessError:
        raise SystemExit(
            f"nbgrader could not release {name}; its reason stands above (if it is missing, "
            "install the extra `classroom`: pip install -e '.[classroom]')"
        ) from None


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m minivmamba.classroom.course",
        description="Build a course for nbgrader from the lessons.",
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("classroom"))
    parser.add_argument("--lesson", action="append", default=[], help="02; all without it")
    parser.add_argument("--seed", type=int, default=1, help="of the hidden inputs; choose your own")
    options = parser.parse_args(arguments)
    try:
        lessons = find_lessons(options.lesson)
    except LookupError as error:
        parser.error(str(error))
    start(options.folder)
    for lesson in lessons:
        done = add(options.folder, lesson, options.seed)
        print(f"{options.folder / 'release' / lesson.stem}: {done}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The edition to work in runs untouched to its end, and then every slider is moved everywhere.

One run of each lesson serves both: cells that listen to `interact` and that move the sliders stand
before and behind its own (widget_driver.py).
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from minivmamba.classroom import book, editions
from minivmamba.classroom.exercise import exercises_of

pytestmark = pytest.mark.slow

LESSONS = sorted(book.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
LISTEN = f"""import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import widget_driver
widget_driver.listen()"""
MOVE = "widget_driver.move_all()"


def driven(path, folder):
    """The executed cells of a lesson, and (function, calls) for each of its widgets."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [new_code_cell(LISTEN), *notebook.cells, new_code_cell(MOVE)]
    nbformat.write(notebook, folder / path.name)
    cells = book.execute(folder / path.name).cells
    report = "".join(output.get("text", "") for output in cells[-1].outputs)
    return cells, re.findall(r"^(.+): (\d+) calls$", report, re.MULTILINE)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_untouched_edition_runs_to_its_end_and_every_slider_moves(lesson, tmp_path):
    """Every check answers, none stops the run, and nothing depends on an answer."""
    cells, calls = driven(book.NOTEBOOKS / editions.STUDENT / lesson.name, tmp_path)
    shown = [
        output.get("data", {}).get("text/plain", "")
        for cell in cells
        if cell.cell_type == "code" and "raise NotImplementedError  # your answer" in cell.source
        for output in cell.outputs
    ]
    numbers = exercises_of(lesson.stem[:2])
    assert shown == [f"Exercise {number}: not attempted yet" for number in numbers]
    views = [
        cell
        for cell in nbformat.read(lesson, as_version=4).cells
        for output in cell.get("outputs", ())
        if book.WIDGET_VIEW in output.get("data", {}) and "interact(" in cell.source
    ]
    assert views and len(calls) == len(views)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return 1 / (x - 2)", "ZeroDivisionError"),
        ("return warnings.warn('not for 2') if x == 2 else x", "UserWarning"),
        ("return x if x != 2 else None", "draw(2, 1) shows nothing"),
    ],
)
def test_one_bad_stop_is_seen(body, complaint, tmp_path):
    source = (
        f"import warnings\nfrom ipywidgets import IntSlider, fixed, interact\n"
        f"def draw(x, y):\n    {body}\ninteract(draw, x=IntSlider(min=0, max=4), y=fixed(1));"
    )
    folder = tmp_path / "driven"
    folder.mkdir()
    path = tmp_path / "02_bad.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    with pytest.raises(book.LessonError, match=re.escape(complaint)):
        driven(path, folder)

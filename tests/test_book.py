"""The lessons as files: executed in order, explained without the pictures, free of this machine.

`pytest --nbval` compares stored outputs with a fresh run, but a lesson without outputs passes it;
what is asked here makes that comparison mean something.
"""

import ast
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from minivmamba.classroom.book import NOTEBOOKS, WIDGET_VIEW, budget_of

LESSONS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)

MACHINE_PATH = re.compile(r"/(tmp|home|work|root)/")
LONGEST_CELL = 25  # lines; beyond that a reader scrolls between the code and its output
WHOLE_BOOK = 600  # seconds on two cores


@cache
def read(lesson: Path):
    return nbformat.read(lesson, as_version=4)


def code_cells(lesson):
    """The cells that run, with their numbers as a reader sees them, from 1."""
    cells = [cell for cell in read(lesson).cells if cell.cell_type == "code"]
    return list(enumerate((cell for cell in cells if cell.source.strip()), start=1))


def outputs(lesson):
    """Every output with the number and the cell it belongs to."""
    for number, cell in code_cells(lesson):
        for output in cell.outputs:
            yield number, cell, output


def texts(lesson):
    """What a reader sees as text, with the number of its code cell or None for prose."""
    for cell in read(lesson).cells:
        yield None, cell.source
    for number, _, output in outputs(lesson):
        yield number, output.get("text", "")
        for mime, value in output.get("data", {}).items():
            if not mime.startswith("image/"):  # base64 may spell anything
                yield number, str(value)


def asserts(source):
    """Whether a cell, magics and all, contains an assert statement or a call of `claim`."""
    tree = ast.parse(TransformerManager().transform_cell(source))
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "claim")
        for node in ast.walk(tree)
    )


def test_there_are_lessons():
    """Without them every test below would be skipped, and the book would look sound."""
    assert LESSONS


def test_the_book_executes_in_ten_minutes():
    assert sum(budget_of(read(lesson)) or 0 for lesson in LESSONS) < WHOLE_BOOK


@each_lesson
def test_declares_a_budget(lesson):
    budget = budget_of(read(lesson))
    assert budget is not None and budget > 0


@each_lesson
def test_was_executed_from_top_to_bottom(lesson):
    """A stripped lesson, or one run out of order, has other counts than 1..N."""
    counts = [cell.execution_count for _, cell in code_cells(lesson)]
    assert counts and counts == list(range(1, len(counts) + 1))


@each_lesson
def test_stores_no_error(lesson):
    """Nor a traceback printed by hand: it would come with colour codes."""
    assert not [number for number, _, output in outputs(lesson) if output.output_type == "error"]
    assert not [number for number, text in texts(lesson) if "\x1b[" in text]


@each_lesson
def test_asserts_its_claims(lesson):
    """At least three cells assert something, and every cell tagged as a claim does."""
    asserting = [number for number, cell in code_cells(lesson) if asserts(cell.source)]
    assert len(asserting) >= 3
    claims = [n for n, cell in code_cells(lesson) if "claim" in cell.metadata.get("tags", [])]
    assert set(claims) <= set(asserting)


@each_lesson
def test_cells_fit_a_screen(lesson):
    lengths = {number: len(cell.source.splitlines()) for number, cell in code_cells(lesson)}
    assert not {n: length for n, length in lengths.items() if length > LONGEST_CELL}


@each_lesson
def test_pictures_and_widgets_are_described(lesson):
    """Whoever cannot see them reads the cell's `alt`."""
    undescribed = [
        number
        for number, cell, output in outputs(lesson)
        if any(mime.startswith("image/") or mime == WIDGET_VIEW for mime in output.get("data", {}))
        and not cell.metadata.get("alt", "").strip()
    ]
    assert not undescribed


@each_lesson
def test_names_no_path_of_the_machine(lesson):
    """A warning that reaches stderr carries one, and differs at every run."""
    assert not [(n, found[0]) for n, text in texts(lesson) if (found := MACHINE_PATH.search(text))]

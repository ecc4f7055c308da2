"""The edition to work in: made from the complete one, without answers (test_widgets runs it)."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minivmamba.classroom import book, editions
from minivmamba.classroom.exercise import exercises_of

LESSONS = sorted(book.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
STUDENT = book.NOTEBOOKS / editions.STUDENT
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)

SOLVED = """def half(x):
    if x:
        ### BEGIN SOLUTION
        y = x / 2
        return y
        ### END SOLUTION
    return 0


check("02.1", half)"""
STUB = """def half(x):
    if x:
        raise NotImplementedError  # your answer instead of this line
    return 0


check("02.1", half)"""


def read(path):
    return nbformat.read(path, as_version=4)


def sources(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


def test_every_lesson_has_its_edition_to_work_in():
    assert [path.name for path in LESSONS] == sorted(p.name for p in STUDENT.glob("*.ipynb"))


@each_lesson
def test_edition_differs_from_the_complete_one_in_nothing_else(lesson, tmp_path):
    """Red: `make editions` was forgotten, or the file was worked in."""
    assert editions.make(lesson, tmp_path)
    assert (STUDENT / lesson.name).read_bytes() == (tmp_path / lesson.name).read_bytes()


@each_lesson
def test_edition_holds_no_answer_and_no_output(lesson):
    notebook = read(STUDENT / lesson.name)
    number = lesson.stem[:2]
    stubs = sources(notebook).count("raise NotImplementedError  # your answer")
    assert stubs == len(exercises_of(number)) and "SOLUTION" not in sources(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert f"](../{lesson.name})" in notebook.cells[0].source


@each_lesson
def test_links_lead_somewhere(lesson):
    for path in (lesson, STUDENT / lesson.name):
        prose = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", "\n".join(prose))
        assert all((path.parent / link).exists() for link in links), links


def test_solution_becomes_a_stub_at_its_own_depth():
    cells = [
        new_markdown_cell("# 02 · A title\n\nSee [terms](glossary.md), [next](03_next.ipynb)."),
        new_code_cell(SOLVED, execution_count=1, outputs=[]),
    ]
    text, code = editions.student_edition(new_notebook(cells=cells), "02_title.ipynb").cells
    assert code.source == STUB and code.execution_count is None
    assert text.source.startswith("# 02 · A title\n\n*The edition to work in")
    assert "[complete edition](../02_title.ipynb)" in text.source
    assert text.source.endswith("See [terms](../glossary.md), [next](03_next.ipynb).")
    assert cells[1].source == SOLVED  # the master is not touched


def test_answers_of_a_reader_are_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(editions, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(editions, "find_lessons", lambda names: LESSONS[:1])
    assert editions.main([]) == 0
    path = tmp_path / editions.STUDENT / LESSONS[0].name
    notebook = read(path)
    notebook.cells[-1].source += "\n\nMy notes."
    nbformat.write(notebook, path)
    before = path.read_bytes()
    assert editions.main([]) == 1
    assert path.read_bytes() == before and "somebody's answers" in capsys.readouterr().err
    assert editions.main(["--force"]) == 0
    assert "My notes." not in sources(read(path))


def test_an_edition_that_was_only_run_is_made_anew(tmp_path):
    assert editions.make(LESSONS[0], tmp_path)
    path = tmp_path / LESSONS[0].name
    notebook, made = read(path), path.read_bytes()
    next(cell for cell in notebook.cells if cell.cell_type == "code").execution_count = 5
    nbformat.write(notebook, path)
    assert editions.make(LESSONS[0], tmp_path) and path.read_bytes() == made

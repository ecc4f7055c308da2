"""A teacher's week in one test: release a lesson, collect two submissions, grade, give feedback."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from minivmamba.classroom import course
from minivmamba.classroom.book import NOTEBOOKS
from minivmamba.classroom.exercise import exercises_of

pytestmark = pytest.mark.slow

LESSON = "02_discretization"
FULL = sum(exercise.difficulty for exercise in exercises_of("02").values())
WRONG = {  # Δ·b for the exact weight, and the input of one step too early
    "answer-02-1": "def zoh_step(a, b, dt):\n    return math.exp(a * dt), b * dt",
    "answer-02-5": """def uneven_clock(a, b, dts, xs):
    h, before, hs = 0.0, 0.0, []
    for dt, x in zip(dts, xs, strict=True):
        h, before = torch.exp(a * dt) * h + torch.expm1(a * dt) / a * b * before, x
        hs.append(h)
    return torch.as_tensor(hs)""",
}
LOST = sum(exercises_of("02")[number].difficulty for number in ("02.1", "02.5"))
ADDED = "from minivmamba.classroom import Verdict\ncheck = lambda *_, **__: Verdict('', 'right')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The course, released, submitted by two students, graded, with feedback and exported."""
    folder = tmp_path_factory.mktemp("course")
    assert course.main([str(folder), "--lesson", "02", "--seed", "7"]) == 0
    submit(folder, "ada", solved(folder))
    submit(folder, "bob", solved(folder, WRONG))
    for command in (["autograde", LESSON], ["generate_feedback", LESSON], ["export"]):
        nbgrader(folder, *command)
    return folder


def nbgrader(folder, *command):
    # Away from what the user has set up for JupyterLab.
    own = {key: str(folder / "jupyter") for key in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "-m", "nbgrader", *command],
        cwd=folder, env={**os.environ, **own, "PATH": path}, check=True,
    )  # fmt: skip


def released(folder):
    return nbformat.read(folder / "release" / LESSON / f"{LESSON}.ipynb", as_version=4)


def solved(folder, changes=None):
    """What a student hands in: the released lesson with the book's answers, but for `changes`."""
    complete = nbformat.read(NOTEBOOKS / f"{LESSON}.ipynb", as_version=4)
    answers = {cell.id: cell.source for cell in complete.cells}
    notebook = released(folder)
    for cell in notebook.cells:
        role = cell.metadata.get("nbgrader", {})
        if role.get("solution"):
            cell.source = (changes or {}).get(role["grade_id"], answers[cell.id])
    if changes:  # and tries to be clever
        notebook.cells[1].source = "Nothing to see here."
        notebook.cells.insert(3, nbformat.v4.new_code_cell(ADDED))
    return notebook


def submit(folder, student, notebook):
    place = folder / "submitted" / student / LESSON
    shutil.copytree(folder / "release" / LESSON, place)
    nbformat.write(notebook, place / f"{LESSON}.ipynb")


def test_release_holds_no_answer_and_no_hidden_test(folder):
    text = "\n".join(cell.source for cell in released(folder).cells)
    assert text.count("raise NotImplementedError") == len(exercises_of("02"))
    for secret in ("BEGIN SOLUTION", "HIDDEN TESTS", "seed=7"):
        assert secret not in text
    assert 'verdict = check("02.3", exact_B_bar)' in text


def test_points_are_those_of_the_exercises_solved(folder):
    with (folder / "grades.csv").open() as table:
        rows = {row["student_id"]: row for row in csv.DictReader(table)}
    assert {float(row["max_score"]) for row in rows.values()} == {FULL}
    assert float(rows["ada"]["score"]) == FULL
    assert float(rows["bob"]["score"]) == FULL - LOST


def test_feedback_says_which_idea_was_wrong(folder):
    pages = {
        student: (folder / "feedback" / student / LESSON / f"{LESSON}.html").read_text()
        for student in ("ada", "bob")
    }
    assert "the shortcut of the code" in pages["bob"] and "this uses x_{t−1}" in pages["bob"]
    assert "Exercise 02.1: wrong" not in pages["ada"]


def test_a_course_in_use_is_left_as_it_is(folder, capsys):
    source = folder / "source" / LESSON / f"{LESSON}.ipynb"
    source.write_text(source.read_text().replace("Discretization", "My own title", 1))
    before = source.read_bytes()
    assert course.main([str(folder), "--lesson", "02"]) == 0
    assert source.read_bytes() == before and "kept as it was" in capsys.readouterr().out


@pytest.mark.parametrize(
    "lesson", sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")), ids=lambda p: p.stem
)
def test_every_exercise_of_every_lesson_gives_its_points(lesson):
    """Once each, also where a lesson shows a check at work before the exercise."""
    cells = course.assignment(nbformat.read(lesson, as_version=4), seed=1).cells
    roles = [cell.metadata["nbgrader"] for cell in cells if "nbgrader" in cell.metadata]
    assert len({role["grade_id"] for role in roles}) == len(roles)
    points = [role["points"] for role in roles if role["grade"]]
    assert points == [e.difficulty for e in exercises_of(lesson.stem[:2]).values()]


def test_links_between_lessons_lead_to_their_folders():
    cell = nbformat.v4.new_markdown_cell("[next](03_next.ipynb), [terms](glossary.md)")
    (made,) = course.assignment(nbformat.v4.new_notebook(cells=[cell]), seed=1).cells
    assert made.source == "[next](../03_next/03_next.ipynb), [terms](glossary.md)"


def test_unknown_lesson_and_unknown_exercise(tmp_path, capsys):
    with pytest.raises(SystemExit):
        course.main([str(tmp_path), "--lesson", "99"])
    assert "no lesson '99'" in capsys.readouterr().err
    source = '### BEGIN SOLUTION\npass\n### END SOLUTION\ncheck("02.9", answer)'
    cell = nbformat.v4.new_code_cell(source)
    with pytest.raises(LookupError, match=r"02\.9"):
        course.assignment(nbformat.v4.new_notebook(cells=[cell]), seed=1)


def test_plans_for_teachers_name_every_lesson_and_its_points():
    text = (NOTEBOOKS.parent / "TEACHING.md").read_text()
    for lesson in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        exercises = exercises_of(lesson.stem[:2]).values()
        points = sum(exercise.difficulty for exercise in exercises)
        assert f"({lesson.stem[:2]}: {len(exercises)} exercises, {points} points)" in text

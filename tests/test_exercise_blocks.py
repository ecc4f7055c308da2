"""An exercise in its lesson: heading, dots, stub, check and hints, the same as in the bank."""

import html
import re

import nbformat
import pytest

from minivmamba.classroom import Verdict, check, claim, folded, hint, progress
from minivmamba.classroom.book import NOTEBOOKS
from minivmamba.classroom.checks import verdicts
from minivmamba.classroom.exercise import exercises_of
from minivmamba.classroom.guide import Folded

LESSONS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
BLOCK = re.compile(
    r"### Exercise (\d+\.\d+) · (.+)\n\nDifficulty ([●○]{5}) · about \d+ minutes\n\n\S"
)
ANSWER = re.compile(
    r'### BEGIN SOLUTION\n.*### END SOLUTION\n.*\n\ncheck\("(\d\d\.\d+)", \w+\)\Z', re.DOTALL
)
HINT = re.compile(r"<details><summary>Hint (\d)</summary>(.+?)</details>")


def plain(text):
    """The words of a text, whether it was written in Markdown, in HTML or with formulas."""
    text = text.replace(r"\bar A", "Ā").replace(r"\bar B", "B̄").replace(r"\Delta", "Δ")
    text = html.unescape(re.sub(r"</?\w+>", "", text))
    return re.sub(r"[`*${}^_\s]", "", text)


def blocks(lesson):
    """(heading match, answer match, {level: hint}) of every exercise of a lesson, in order."""
    cells = nbformat.read(lesson, as_version=4).cells
    found = []
    for index, cell in enumerate(cells):
        if heading := BLOCK.search(cell.source):
            answer = ANSWER.search(cells[index + 1].source)
            hints = {int(level): text for level, text in HINT.findall(cells[index + 2].source)}
            found.append((heading, answer, hints))
    return found


@each_lesson
def test_lesson_and_bank_hold_the_same_exercises(lesson):
    exercises = exercises_of(lesson.stem[:2])
    found = blocks(lesson)
    assert [f"{answer[1]}" for _, answer, _ in found] == list(exercises)
    for (heading, answer, hints), exercise in zip(found, exercises.values(), strict=True):
        assert answer[1] == heading[1].zfill(len(answer[1]))  # 02.3 is Exercise 2.3
        assert plain(heading[2]) == plain(exercise.title)
        assert heading[3].count("●") == exercise.difficulty
        assert list(hints) == list(range(1, len(exercise.hints) + 1)) and len(hints) >= 2
        assert [plain(text) for text in hints.values()] == [plain(h) for h in exercise.hints]


@each_lesson
def test_parts_of_a_lesson(lesson):
    """At least three exercises after lesson 00, a negative control, a quiz, a table of progress."""
    number = lesson.stem[:2]
    cells = nbformat.read(lesson, as_version=4).cells
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    text = "\n".join(cell.source for cell in cells)
    assert len(exercises_of(number)) >= (2 if number == "00" else 3)
    assert "negative-control" in tags and "claim" in tags and "quiz" in tags
    assert f'progress("{number}")' in text
    headings = ["## Common mistakes", "## Summary", "## Quiz", "## References", "**Next:**"]
    places = [text.find(heading) for heading in headings]
    assert -1 not in places and places == sorted(places)


def test_hints_rise_to_the_last():
    assert hint("02.1").startswith("Hint 1 of 2: Both results")
    assert repr(hint("02.1", 2)).startswith("Hint 2 of 2: With a = −1")
    assert hint("02.1", 3) == hint("02.1", 0) == "Exercise 02.1 has hints 1 to 2."
    assert hint("02.99") == "There is no exercise 02.99."


def test_progress_is_the_latest_verdict_of_each_exercise(monkeypatch):
    verdicts.clear()
    check("02.1", lambda a, b, dt: (a, b))
    check("02.2", exercises_of("02")["02.2"].specification)
    rows = repr(progress("02")).splitlines()
    assert [row.split("  ")[-1].strip() for row in rows[:3]] == [
        "wrong",
        "right",
        "not attempted yet",
    ]
    assert rows[0].startswith("02.1  ●○○○○  One exact step") and rows[-1] == "1 of 5 right"
    check("02.1", exercises_of("02")["02.1"].specification)
    assert progress("02").endswith("2 of 5 right")
    assert progress("98") == "Lesson 98 has no exercises."


def test_unknown_exercises_leave_no_trace():
    verdicts.clear()
    assert check("02.77", len).status == "wrong" and not verdicts


def test_claim_says_what_holds_and_raises_what_does_not(capsys):
    claim("half of two is one", 2 / 2 == 1)
    assert capsys.readouterr().out == "✓ half of two is one\n"
    with pytest.raises(AssertionError, match="this does not hold: all are true"):
        claim("all are true", [True, False])


def test_answers_are_folded_away(capsys):
    with folded("Answers"):
        print("1. a < b")
        print("2. yes")
    assert capsys.readouterr().out == "Answers:\n1. a < b\n2. yes\n"  # where there is no page
    page = Folded("Answers", "1. a < b\n2. yes")._repr_html_()
    assert page == "<details><summary>Answers</summary>1. a &lt; b<br>2. yes</details>"


def test_a_verdict_is_true_when_the_answer_is_right():
    assert Verdict("02.1", "right") and not Verdict("02.1", "not attempted yet")

"""Beside the exercises: hints, progress, claims that check themselves, answers folded away."""

import contextlib
import html
import io
from collections.abc import Iterator

import torch

from minivmamba.classroom.checks import NOT_ATTEMPTED, verdicts
from minivmamba.classroom.exercise import exercises_of, find_exercise


class Note(str):
    """A text that a notebook shows as it is, without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


def hint(number: str, level: int = 1) -> Note:
    """A hint for an exercise such as "02.3": level 1 nudges, the last one nearly tells."""
    exercise = find_exercise(number)
    if exercise is None:
        return Note(f"There is no exercise {number}.")
    last = len(exercise.hints)
    if isinstance(level, bool) or level not in range(1, last + 1):
        return Note(f"Exercise {number} has hints 1 to {last}.")
    return Note(f"Hint {level} of {last}: {exercise.hints[level - 1]}")


def progress(lesson: str) -> Note:
    """A table of the exercises of a lesson such as "02", with the latest verdict of each."""
    exercises = exercises_of(lesson)
    if not exercises:
        return Note(f"Lesson {lesson} has no exercises.")
    width = max(len(exercise.title) for exercise in exercises.values())
    lines = []
    for number, exercise in exercises.items():
        dots = "●" * exercise.difficulty + "○" * (5 - exercise.difficulty)
        status = verdicts[number].status if number in verdicts else NOT_ATTEMPTED
        lines.append(f"{number}  {dots}  {exercise.title:<{width}}  {status}")
    right = sum(bool(verdicts.get(number)) for number in exercises)
    return Note("\n".join([*lines, f"{right} of {len(exercises)} right"]))


def claim(sentence: str, holds) -> None:
    """Print a sentence of the lesson once it is found true.

    Args:
        sentence: what is claimed, in words.
        holds: a truth value, or a tensor or array of them.

    Raises:
        AssertionError: it does not hold; the message is the sentence.
    """
    if not bool(torch.as_tensor(holds).all()):
        raise AssertionError(f"this does not hold: {sentence}")
    print(f"✓ {sentence}")


class Folded:
    """A text that a notebook shows under a title, only when the reader opens it."""

    def __init__(self, title: str, text: str) -> None:
        self.title, self.text = title, text

    def _repr_html_(self) -> str:
        text = html.escape(self.text).replace("\n", "<br>")
        return f"<details><summary>{html.escape(self.title)}</summary>{text}</details>"

    def __repr__(self) -> str:
        return f"{self.title}:\n{self.text}"


@contextlib.contextmanager
def folded(title: str = "Answers") -> Iterator[None]:
    """Fold away what is printed inside; the reader opens it by a click on the title."""
    from IPython.display import display

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        yield
    display(Folded(title, printed.getvalue().strip()))

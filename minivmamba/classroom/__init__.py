"""What the lessons need beside the mathematics.

`check`, `hint`, `progress`, `claim` and `folded` for the reader (exercise.py says what an exercise
is, bank/ holds them all), editions.py for the edition without solutions, course.py for a class
that is graded with nbgrader, book.py for executing the lessons.
"""

from minivmamba.classroom.checks import Verdict, check
from minivmamba.classroom.guide import claim, folded, hint, progress
from minivmamba.classroom.machine import describe_machine

__all__ = ["Verdict", "check", "claim", "describe_machine", "folded", "hint", "progress"]

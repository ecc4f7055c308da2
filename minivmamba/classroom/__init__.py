"""What the lessons need beside the mathematics: checks of exercises, and a look at the machine."""

from minivmamba.classroom.checks import Verdict, check
from minivmamba.classroom.machine import describe_machine

__all__ = ["Verdict", "check", "describe_machine"]

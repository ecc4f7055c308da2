"""What an exercise is: a right function, inputs to try, the mistakes people make, and hints.

Exercises live in `minivmamba/classroom/bank/`, one module a lesson; `check` (checks.py) judges a
reader's function by them.
"""

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Draw:
    """Random inputs for a check, the same ones whenever the seed is the same."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(
        self, *shape: int, low: float = -1.0, high: float = 1.0, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """A tensor of that shape, spread evenly over [low, high)."""
        share = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * share).to(dtype)

    def number(self, low: float, high: float) -> float:
        """A Python float in [low, high)."""
        return self.uniform(low=low, high=high).item()

    def integer(self, low: int, high: int) -> int:
        """A Python int from low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))


def double(*entries: float) -> Tensor:
    """A vector of these numbers in double precision."""
    return torch.tensor(entries, dtype=torch.float64)


def strided(tensor: Tensor) -> Tensor:
    """The same values with gaps between them in memory, as in a slice of a map: not contiguous,
    and no `view` can flatten it."""
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
    gappy = wide[..., :-1:2]
    return gappy.copy_(tensor)


class Observed(dict):
    """Several things observed of one call, with the names that a message gives them."""


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One exercise.

    Attributes:
        title: as in the heading of the lesson. difficulty: its black dots, 1 to 5.
        hints: from a nudge to nearly the answer.
        specification: the right function, short and readable.
        alternatives: right answers written differently, at least two.
        mistakes: {sentence: function that makes the mistake, or several that make the same one}.
        arguments: names of the arguments, for messages.
        cases: the inputs to try, from a `Draw`: argument tuples.
        observe: what is compared, from (function, arguments); the returned value by default.
        diagnose: for a mistake that is seen in the result whoever made it: a sentence from
            (observed, expected), two lists over the cases, or "".
    """

    title: str
    difficulty: int
    hints: Sequence[str]
    specification: Callable
    alternatives: Sequence[Callable]
    mistakes: dict[str, Callable | tuple[Callable, ...]]
    arguments: Sequence[str]
    cases: Callable[[Draw], Sequence[tuple]]
    observe: Callable[[Callable, tuple], Any] = lambda function, case: function(*case)
    diagnose: Callable[[list, list], str] = lambda observed, expected: ""

    def ways(self, sentence: str) -> tuple[Callable, ...]:
        """The functions that make the mistake of this sentence."""
        made = self.mistakes[sentence]
        return made if isinstance(made, tuple) else (made,)


def exercises_of(lesson: str) -> dict[str, Exercise]:
    """The exercises of a lesson such as "02", in order; none if there is no such lesson."""
    if not re.fullmatch(r"\d\d", str(lesson)):
        return {}
    name = f"minivmamba.classroom.bank.lesson_{lesson}"
    try:
        return importlib.import_module(name).EXERCISES
    except ModuleNotFoundError as error:
        if error.name != name:  # the lesson is there, something it needs is not
            raise
        return {}


def find_exercise(number: str) -> Exercise | None:
    """The exercise of a number such as "02.3", or None."""
    return exercises_of(str(number).partition(".")[0]).get(number)

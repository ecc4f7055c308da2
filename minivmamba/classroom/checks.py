"""`check("02.3", my_function)`: not attempted yet, right, or wrong and why.

An exercise is a specification (a short function that is right), inputs to try it on, and the
mistakes people make, each a function of its own with a sentence that names the idea behind it. A
check runs the reader's function on the inputs and compares *values*, never source text: a wrong
answer that agrees everywhere with a known mistake is told that mistake's sentence; any other is
shown the first input on which it differs. A check returns its verdict and never raises.
"""

import copy
import importlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

NOT_ATTEMPTED, RIGHT, WRONG = "not attempted yet", "right", "wrong"


@dataclass(frozen=True)
class Verdict:
    """What a check found. True when the answer is right."""

    exercise: str
    status: str
    reason: str = ""

    def __bool__(self) -> bool:
        return self.status == RIGHT

    def __repr__(self) -> str:
        return f"Exercise {self.exercise}: {self.status}" + (self.reason and f" — {self.reason}")


class Observed(dict):
    """Several things observed of one call, with the names that a message gives them."""


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        specification: the right function.
        cases: argument tuples to try; `arguments` names their parts for messages.
        mistakes: {sentence: function that makes the mistake, or several that make the same one}.
        observe: what is compared, from (function, arguments); the returned value by default.
        diagnose: for a mistake that is seen in the result whoever made it: a sentence from
            (observed, expected), two lists over the cases, or "".
    """

    specification: Callable
    arguments: Sequence[str]
    cases: Sequence[tuple]
    mistakes: dict[str, Callable | tuple[Callable, ...]] = field(default_factory=dict)
    observe: Callable = lambda function, case: function(*case)
    diagnose: Callable[..., str] = lambda observed, expected: ""

    def ways(self, sentence: str) -> tuple[Callable, ...]:
        """The functions that make the mistake of this sentence."""
        made = self.mistakes[sentence]
        return made if isinstance(made, tuple) else (made,)


def check(number: str, answer: Callable) -> Verdict:
    """Compare a reader's function with the exercise of that number, such as "02.3"."""
    exercise = _find(number)
    if exercise is None:
        return Verdict(number, WRONG, "there is no exercise of that number")
    if not callable(answer):
        return Verdict(number, WRONG, f"expected your function, got {type(answer).__name__}")
    try:
        return Verdict(number, *_judge(exercise, answer))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an exit() in the answer must not end the reader's kernel
        # The stub raises it without a word; torch raises it too, and says what is missing.
        if isinstance(error, NotImplementedError) and not error.args:
            return Verdict(number, NOT_ATTEMPTED)
        return Verdict(number, WRONG, _explain(error))


def _find(number: str) -> Exercise | None:
    lesson, _, _ = str(number).partition(".")
    try:
        module = importlib.import_module(f"minivmamba.classroom.lesson_{lesson}")
    except ModuleNotFoundError:
        return None
    return module.EXERCISES.get(number)


def _judge(exercise: Exercise, answer: Callable) -> tuple[str, str]:
    """RIGHT if every case agrees, else WRONG with the best sentence there is."""
    cases = exercise.cases
    observed = [_observe(exercise, answer, case) for case in cases]
    expected = [_observe(exercise, exercise.specification, case) for case in cases]
    differs = [i for i, case in enumerate(cases) if not _same(observed[i], expected[i], case)]
    if not differs:
        return RIGHT, ""
    for sentence in exercise.mistakes:
        for mistake in exercise.ways(sentence):
            made = [_observe(exercise, mistake, case) for case in cases]
            if all(map(_same, observed, made, cases)):
                return WRONG, sentence
    if sentence := exercise.diagnose(observed, expected):
        return WRONG, sentence
    first = differs[0]
    return WRONG, _difference(exercise, first, observed[first], expected[first])


def _observe(exercise: Exercise, function: Callable, case: tuple):
    # A copy of the arguments for each call, and of what it returns: a function that writes into
    # its arguments, or returns one buffer again and again, must not spoil the other calls.
    return _frozen(exercise.observe(function, copy.deepcopy(case)))


def _frozen(value):
    """Numbers, arrays and tensors as tensors of their own, in the same nesting."""
    if value is None:
        raise ValueError("your function returned None: is a return missing?")
    if isinstance(value, Observed):
        return Observed({name: _frozen(part) for name, part in value.items()})
    if isinstance(value, tuple | list):
        return [_frozen(part) for part in value]
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value.copy())
    try:
        # A Python number has double precision, which torch would cut to single.
        dtype = torch.float64 if isinstance(value, int | float) else None
        return torch.as_tensor(value, dtype=dtype).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"expected numbers or tensors, got {type(value).__name__}") from None


def _flat(value) -> list[Tensor]:
    """The tensors of a nesting in order.

    Several numbers become one vector: a pair, a list and a tensor of two entries are one answer.
    """
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Observed) else value
    flat = [part for item in parts for part in _flat(item)]
    return [torch.stack(flat)] if flat and all(part.ndim == 0 for part in flat) else flat


def _same(left, right, case: tuple) -> bool:
    """Equal shapes, and values equal to about half the digits there can be.

    Single precision is enough for an answer, unless double precision was put in.
    """
    left, right = _flat(left), _flat(right)
    if [part.shape for part in left] != [part.shape for part in right]:
        return False
    double = any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in case)
    return all(_close(a, b, double) for a, b in zip(left, right, strict=True))


def _close(a: Tensor, b: Tensor, double: bool) -> bool:
    if a.is_complex() or b.is_complex():
        return False
    single = not double and torch.float32 in (a.dtype, b.dtype)
    rtol, atol = (1e-5, 1e-7) if single else (1e-7, 1e-10)
    return torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True)


def _difference(exercise: Exercise, case: int, observed, expected) -> str:
    names = zip(exercise.arguments, exercise.cases[case], strict=True)
    given = ", ".join(f"{name} = {_short(value)}" for name, value in names)
    for digits in (5, 9, 17):  # more of them until the reader can see the difference
        right, theirs = _short(expected, digits), _short(observed, digits)
        if right != theirs:
            break
    return f"for {given} expected {right}, got {theirs}"


def _short(value, digits: int = 5) -> str:
    """A value in a message: few digits, few entries, the shape of what is long."""
    if callable(value):
        return getattr(value, "__name__", "a function")
    if isinstance(value, Observed):
        return "; ".join(f"{name} {_short(part, digits)}" for name, part in value.items())
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_short(part, digits) for part in value) + ")"
    tensor = torch.as_tensor(value).detach()
    if tensor.ndim == 0:
        return f"{tensor.item():.{digits}g}"
    entries = ", ".join(f"{entry:.{digits}g}" for entry in tensor.flatten()[:8].tolist())
    more = ", …" if tensor.numel() > 8 else ""
    return f"[{entries}{more}] of shape {tuple(tensor.shape)}"


def _explain(error: BaseException) -> str:
    """The error and the reader's own line, without the machinery around it."""
    ours = str(importlib.import_module("minivmamba").__path__[0])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if ours not in f.filename]
    theirs = [frame for frame in frames if "site-packages" not in frame.filename]
    if not theirs:  # raised by this file, whose sentences are complete, or by the call itself
        return str(error)
    kind = "".join(traceback.format_exception_only(type(error), error)).strip()
    return f"{kind} in your line {theirs[-1].lineno}: {theirs[-1].line}"

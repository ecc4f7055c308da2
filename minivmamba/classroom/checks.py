"""`check("02.3", my_function)`: not attempted yet, right, or wrong and why.

A check runs the reader's function on inputs drawn from a seed and compares *values*, never source
text, with a specification: a wrong answer that agrees everywhere with a known mistake is told
that mistake's sentence; any other is shown the first input on which it differs. A check returns
its verdict and never raises.
"""

import copy
import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from minivmamba.classroom.exercise import Draw, Exercise, Observed, find_exercise

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


class Failed:
    """An answer that raised an exception instead of returning a value."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


verdicts: dict[str, Verdict] = {}  # the latest of each exercise, for the table of progress


def check(number: str, answer: Callable, seed: int = 0) -> Verdict:
    """Compare a reader's function with an exercise.

    Args:
        number: of the exercise, such as "02.3".
        answer: the reader's function.
        seed: of the inputs. A teacher who grades with another one tries the same idea on inputs
            that nobody has seen.
    """
    verdict = Verdict(number, *_examine(number, answer, seed))
    if find_exercise(number):
        verdicts[number] = verdict
    return verdict


def _examine(number: str, answer: Callable, seed: int) -> tuple[str, str]:
    exercise = find_exercise(number)
    if exercise is None:
        return WRONG, "there is no exercise of that number"
    if not callable(answer):
        return WRONG, f"expected your function, got {type(answer).__name__}"
    try:
        return _judge(exercise, answer, exercise.cases(Draw(seed)))
    except Exception as error:  # what the answer returned cannot even be compared
        return WRONG, f"your result could not be compared: {type(error).__name__}: {error}"


def _judge(exercise: Exercise, answer: Callable, cases) -> tuple[str, str]:
    """RIGHT if every case agrees, else WRONG with the best sentence there is."""
    # Before the answer runs, which may change what the specification relies on.
    expected = [_observe(exercise, exercise.specification, case) for case in cases]
    spoiled: set[str] = set()
    observed = []
    for case in cases:
        observed.append(_observe(exercise, answer, case, spoiled))
        if _is_stub(observed[0]):
            return NOT_ATTEMPTED, ""
    differs = [i for i, case in enumerate(cases) if not _same(observed[i], expected[i], case)]
    if not differs and spoiled:
        names = " and ".join(sorted(spoiled))
        return WRONG, f"the values are right, but your function overwrites its argument {names}"
    if not differs:
        return RIGHT, ""
    for sentence in exercise.mistakes:
        for mistake in exercise.ways(sentence):
            made = [_observe(exercise, mistake, case) for case in cases]
            if all(map(_same, observed, made, cases)):
                return WRONG, sentence
    for result, case in zip(observed, cases, strict=True):
        if isinstance(result, Failed):
            return WRONG, _explain(result.error, _given(exercise, case))
    if sentence := exercise.diagnose(observed, expected):
        return WRONG, sentence
    first = differs[0]
    if _single_for_double(observed[first], expected[first], cases[first]):
        return WRONG, SINGLE
    return WRONG, _difference(_given(exercise, cases[first]), observed[first], expected[first])


def _is_stub(result) -> bool:
    """A stub raises NotImplementedError without a word; torch raises it too, and says why."""
    if not isinstance(result, Failed):
        return False
    return isinstance(result.error, NotImplementedError) and not result.error.args


def _observe(exercise: Exercise, function: Callable, case: tuple, spoiled: set | None = None):
    """What a function makes of a case; the names of arguments it writes into go into `spoiled`."""
    # A copy of the arguments for each call, and of what it returns: a function that writes into
    # its arguments, or returns one buffer again and again, must not spoil the other calls.
    given = copy.deepcopy(case)
    try:
        result = _frozen(exercise.observe(function, given))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an exit() in the answer must not end the reader's kernel
        return Failed(error)
    for name, before, after in zip(exercise.arguments, case, given, strict=True):
        if spoiled is not None and isinstance(before, Tensor) and not torch.equal(before, after):
            spoiled.add(name)
    return result


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
        dtypes = {int: torch.float64, float: torch.float64, complex: torch.complex128}
        dtype = dtypes.get(type(value), torch.float64 if isinstance(value, int | float) else None)
        return torch.as_tensor(value, dtype=dtype).detach().cpu().to_dense().clone()
    except (TypeError, ValueError, RuntimeError):
        listed = "; put list(…) around it" if hasattr(value, "__next__") else ""
        kind = type(value).__name__
        raise TypeError(f"expected numbers or tensors, got {kind}{listed}") from None


def _flat(value) -> list[Tensor]:
    """The tensors of a nesting in order.

    Parts of one shape become one tensor: a pair of numbers and a vector of two entries, a list of
    rows and a matrix, are one answer.
    """
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Observed) else value
    flat = [part for item in parts for part in _flat(item)]
    alike = len({part.shape for part in flat}) == 1 and (len(flat) > 1 or flat[0].ndim == 0)
    return [torch.stack(flat)] if alike else flat


def _same(left, right, case: tuple) -> bool:
    """Equal shapes, and values equal to about half the digits there can be.

    Single precision is enough for an answer, unless a tensor of double precision was put in. An
    answer and a known mistake that both fail are the same if they fail with one kind of error.
    """
    if isinstance(left, Failed) or isinstance(right, Failed):
        both = isinstance(left, Failed) and isinstance(right, Failed)
        return both and type(left.error) is type(right.error)
    left, right = _flat(left), _flat(right)
    if [part.shape for part in left] != [part.shape for part in right]:
        return False
    double = _holds_double(case)
    return all(_close(a, b, double) for a, b in zip(left, right, strict=True))


def _holds_double(case: tuple) -> bool:
    wide = (torch.float64, torch.complex128)
    return any(isinstance(value, Tensor) and value.dtype in wide for value in case)


def _close(a: Tensor, b: Tensor, double: bool) -> bool:
    if a.is_complex() != b.is_complex():
        return False
    # 5e-8 is seven digits, and just below the rounding of single precision, 6e-8.
    rtol, atol = (5e-8, 1e-10) if double else (1e-5, 1e-7)
    wide = torch.complex128 if a.is_complex() else torch.float64
    return torch.allclose(a.to(wide), b.to(wide), rtol=rtol, atol=atol, equal_nan=True)


SINGLE = (
    "right to about six digits, but double precision came in and single goes out: torch.zeros, "
    "torch.tensor and .float() make float32 unless you give them a dtype, such as that of the input"
)


def _single_for_double(observed, expected, case: tuple) -> bool:
    """Whether an answer differs from what is expected by the rounding of single precision only."""
    if isinstance(observed, Failed) or not _holds_double(case):
        return False
    left, right = _flat(observed), _flat(expected)
    rounded = any(a.dtype in (torch.float32, torch.complex64) for a in left)
    alike = [a.shape for a in left] == [b.shape for b in right]
    return rounded and alike and all(map(partial(_close, double=False), left, right))


def _given(exercise: Exercise, case: tuple) -> str:
    names = zip(exercise.arguments, case, strict=True)
    return ", ".join(f"{name} = {_short(value)}" for name, value in names)


def _difference(given: str, observed, expected) -> str:
    for digits in (5, 9, 17):  # more of them until the reader can see the difference
        right, theirs = _short(expected, digits), _short(observed, digits)
        if right != theirs:
            break
    return f"for {given} expected {right}, got {theirs}"


def _short(value, digits: int = 5) -> str:
    """A value in a message: few digits, few entries, the shape of what is long."""
    if callable(value):
        return getattr(value, "__name__", "a function")
    if isinstance(value, Failed):
        return f"{type(value.error).__name__}"
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


def _explain(error: BaseException, given: str) -> str:
    """The error, the reader's own line and the input, without the machinery around it."""
    ours = str(importlib.import_module("minivmamba").__path__[0])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if ours not in f.filename]
    theirs = [frame for frame in frames if "site-packages" not in frame.filename]
    if not theirs:  # raised by this file, whose sentences are complete, or by the call itself
        return str(error)
    kind = "".join(traceback.format_exception_only(type(error), error)).strip()
    return f"{kind} in your line {theirs[-1].lineno}: {theirs[-1].line} (for {given})"

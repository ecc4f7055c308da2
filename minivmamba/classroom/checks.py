"""`check("02.3", my_function)`: not attempted yet, right, or wrong and why.

A check runs the reader's function on inputs drawn from a seed and compares *values*, never source
text, with a specification: a wrong answer that agrees everywhere with a known mistake is told
that mistake's sentence; any other is shown the first input on which it differs. A check returns
its verdict and never raises.
"""

import copy
import importlib
import sysconfig
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass

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
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        return _judge(exercise, answer, exercise.cases(Draw(seed)))
    except Exception as error:  # what the answer returned cannot even be compared
        return WRONG, f"your result could not be compared: {type(error).__name__}: {error}"
    finally:  # whatever the answer has switched
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)


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
    results = list(zip(observed, expected, cases, strict=True))
    if all(_same(*result) for result in results):
        if any(_is_single(theirs) and _holds_double(case) for theirs, _, case in results):
            return WRONG, SINGLE
        if spoiled:
            names = " and ".join(sorted(spoiled))
            return WRONG, f"the values are right, but your function overwrites its argument {names}"
        return RIGHT, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the known mistakes set off is not the reader's
        for sentence in exercise.mistakes:
            for mistake in exercise.ways(sentence):
                # The first case alone clears most of them.
                made = (_observe(exercise, mistake, case) for case in cases)
                if all(_same(*pair) for pair in zip(observed, made, cases, strict=True)):
                    return WRONG, sentence
    theirs, right, case = next(result for result in results if not _same(*result))
    if isinstance(theirs, Failed):
        return WRONG, _explain(theirs.error, _given(exercise, case))
    if not any(isinstance(result, Failed) for result in observed):
        if sentence := exercise.diagnose(observed, expected):
            return WRONG, sentence
        if all(_same(*result, rough=True) for result in results):
            return WRONG, SIX_DIGITS
    differs = _difference(theirs, right, _tolerance(theirs, right, case))
    return WRONG, f"for {_given(exercise, case)} {differs}"


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
    """Numbers, arrays and tensors as tensors of their own.

    Parts of one shape become one tensor: a pair of numbers and a vector of two entries, a list of
    rows and a matrix, are one answer.
    """
    if value is None:
        raise ValueError("your function returned None: is a return missing?")
    if isinstance(value, Observed):
        return Observed({name: _frozen(part) for name, part in value.items()})
    if isinstance(value, tuple | list):
        parts = [_frozen(part) for part in value]
        rows = isinstance(value, list) or len(parts) > 1 or not any(map(_shape, parts))
        return torch.stack(parts) if rows and len({_shape(part) for part in parts}) == 1 else parts
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value.copy())
    elif isinstance(value, bool | np.bool_):
        value = torch.tensor(bool(value))
    elif isinstance(value, complex | np.complexfloating):
        value = torch.tensor(complex(value), dtype=torch.complex128)
    elif not isinstance(value, Tensor) and hasattr(value, "__float__"):
        value = torch.tensor(float(value), dtype=torch.float64)  # a Python number is double
    try:
        return torch.as_tensor(value).detach().cpu().to_dense().clone()
    except (TypeError, ValueError, RuntimeError):
        listed = "; put list(…) around it" if hasattr(value, "__next__") else ""
        kind = type(value).__name__
        raise TypeError(f"expected numbers or tensors, got {kind}{listed}") from None


def _shape(part):
    """The shape of a tensor; an object of its own for anything else."""
    return part.shape if isinstance(part, Tensor) else object()


def _tensors(value) -> list[Tensor]:
    """The tensors of a result in order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Observed) else value
    return [tensor for part in parts for tensor in _tensors(part)]


def _same(left, right, case: tuple, rough: bool = False) -> bool:
    """Equal shapes, and values equal to about half the digits there can be; `rough`: to six.

    A result in single precision need not have more than its own digits. An answer and a known
    mistake that both fail are the same if they fail with one kind of error.
    """
    if isinstance(left, Failed) or isinstance(right, Failed):
        both = isinstance(left, Failed) and isinstance(right, Failed)
        return both and type(left.error) is type(right.error)
    tolerance = _tolerance(left, right, case, rough)
    left, right = _tensors(left), _tensors(right)
    if [part.shape for part in left] != [part.shape for part in right]:
        return False
    return all(_close(a, b, *tolerance).all() for a, b in zip(left, right, strict=True))


def _tolerance(left, right, case: tuple, rough: bool = False) -> tuple[float, float]:
    """The relative and the absolute difference that two results may have."""
    if _is_single(left) or _is_single(right) or (rough and not _holds_double(case)):
        return 1e-5, 1e-7
    if rough or not _holds_double(case):
        return 1e-6, 1e-6 if rough else 1e-12
    return 5e-8, 1e-10  # seven digits, and just below the rounding of single precision, 6e-8


def _close(a: Tensor, b: Tensor, rtol: float, atol: float) -> Tensor:
    """Entry by entry; a complex number is never close to a real one."""
    if a.is_complex() != b.is_complex():
        return torch.zeros(a.shape, dtype=torch.bool)
    wide = torch.complex128 if a.is_complex() else torch.float64
    return torch.isclose(a.to(wide), b.to(wide), rtol=rtol, atol=atol, equal_nan=True)


def _is_single(result) -> bool:
    if isinstance(result, Failed):
        return False
    return any(tensor.dtype in (torch.float32, torch.complex64) for tensor in _tensors(result))


def _holds_double(case: tuple) -> bool:
    wide = (torch.float64, torch.complex128)
    return any(isinstance(value, Tensor) and value.dtype in wide for value in case)


SINGLE = (
    "right to about six digits, but double precision came in and single goes out: torch.zeros, "
    "torch.tensor and .float() make float32 unless you give them a dtype, such as that of the input"
)
SIX_DIGITS = (
    "right to about six digits only: either an approximation or a rounded number is used where it "
    "is not close enough, or single precision got in on the way (torch.arange, torch.zeros and "
    "torch.tensor(0.1) make float32 unless you give them a dtype)"
)


def _given(exercise: Exercise, case: tuple) -> str:
    names = zip(exercise.arguments, case, strict=True)
    given = ", ".join(f"{name} = {_short(value)}" for name, value in names)
    single = any(isinstance(value, Tensor) and value.dtype == torch.float32 for value in case)
    return given + " in float32" * single


def _difference(observed, expected, tolerance: tuple[float, float]) -> str:
    where, both = "", isinstance(observed, Tensor) and isinstance(expected, Tensor)
    if both and observed.shape == expected.shape and observed.numel() > LONG:
        at = tuple((~_close(observed, expected, *tolerance)).nonzero()[0].tolist())  # the first
        where, observed, expected = f" at {list(at)}", observed[at], expected[at]
    for digits in (5, 9, 17):  # more of them until the reader can see the difference
        right, theirs = _short(expected, digits), _short(observed, digits)
        if right != theirs:
            break
    return f"expected{where} {right}, got {theirs}"


LONG = 12  # entries; more are not shown


def _short(value, digits: int = 5) -> str:
    """A value in a message: few digits, few entries, the shape of what is long."""
    if callable(value):
        return getattr(value, "__name__", "a function")
    if isinstance(value, Failed):
        return f"{type(value.error).__name__}"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Observed):
        return "; ".join(f"{name} {_short(part, digits)}" for name, part in value.items())
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_short(part, digits) for part in value) + ")"
    tensor = torch.as_tensor(value).detach()
    if tensor.ndim == 0:
        if tensor.dtype == torch.bool:
            return str(bool(tensor))
        return f"{tensor.item():.{digits}g}"
    if tensor.ndim == 1 or tensor.numel() <= LONG:
        entries = ", ".join(_short(entry, digits) for entry in tensor[:LONG])
        more = f", … of shape {tuple(tensor.shape)}" if len(tensor) > LONG else ""
        return f"[{entries}{more}]"
    return f"[{_short(tensor.flatten()[0], digits)}, …] of shape {tuple(tensor.shape)}"


def _explain(error: BaseException, given: str) -> str:
    """The error, the reader's own line and the input, without the machinery around it."""
    ours = str(importlib.import_module("minivmamba").__path__[0])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if ours not in f.filename]
    libraries = ("site-packages", sysconfig.get_paths()["stdlib"])
    theirs = [f for f in frames if not any(folder in f.filename for folder in libraries)]
    if not theirs:  # raised by this file, whose sentences are complete, or by the call itself
        return str(error)
    kind = "".join(traceback.format_exception_only(type(error), error)).strip()
    return f"{kind} in your line {theirs[-1].lineno}: {theirs[-1].line} (for {given})"

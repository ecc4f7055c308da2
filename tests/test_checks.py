"""The checks of the exercises, tested as the exercises are: with right and with wrong answers."""

import dataclasses
import json
import math
import re
import statistics
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minivmamba.classroom import check, checks, describe_machine
from minivmamba.classroom.bank import lesson_00, lesson_02
from minivmamba.classroom.book import NOTEBOOKS
from minivmamba.classroom.exercise import Draw, exercises_of

LESSONS = sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
EXERCISES = {
    number: exercise for lesson in LESSONS for number, exercise in exercises_of(lesson[:2]).items()
}
SEEDS = (0, pytest.param(1, marks=pytest.mark.slow))
MISTAKES = [
    pytest.param(number, sentence, way, id=f"{number}-{index}-{way}")
    for number, exercise in EXERCISES.items()
    for index, sentence in enumerate(exercise.mistakes)
    for way in range(len(exercise.ways(sentence)))
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("number", EXERCISES)
def test_right_answers_are_right(number, seed):
    exercise = EXERCISES[number]
    assert len(exercise.alternatives) >= 2
    for answer in (exercise.specification, *exercise.alternatives):
        verdict = check(number, answer, seed)
        assert verdict and repr(verdict) == f"Exercise {number}: right", (answer, verdict)


@pytest.mark.parametrize("number", EXERCISES)
def test_stub_is_not_attempted(number):
    def stub(*arguments):
        raise NotImplementedError

    verdict = check(number, stub)
    assert not verdict and repr(verdict) == f"Exercise {number}: not attempted yet"


@pytest.mark.parametrize("number", EXERCISES)
def test_every_exercise_knows_at_least_four_mistakes(number):
    assert len(EXERCISES[number].mistakes) >= 4


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("number", "sentence", "way"), MISTAKES)
def test_each_mistake_gets_its_own_sentence(number, sentence, way, seed):
    mistake = EXERCISES[number].ways(sentence)[way]
    verdict = check(number, lambda *arguments: mistake(*arguments), seed)
    assert not verdict and verdict.reason == sentence


# Right answers written differently, as a reader might.


def uneven_clock_in_one_buffer(a, b, dts, xs, buffer=np.empty(2000)):  # noqa: B008
    hs = buffer[: len(xs)]
    hs[:] = lesson_02.UNEVEN.specification(a, b, dts, xs).numpy()
    return hs[::-1][::-1]


def uneven_clock_in_one_tensor(a, b, dts, xs, buffer=torch.empty(2000).double()):  # noqa: B008
    return buffer[: len(xs)].copy_(lesson_02.UNEVEN.specification(a, b, dts, xs))


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        ("02.1", lambda a, b, dt: (torch.tensor(math.exp(a * dt)), math.expm1(a * dt) / a * b)),
        (
            "02.2",
            lambda rule, a, b, dt: lesson_02._half_steps_by_running(rule, np.float32(a), b, dt),
        ),
        ("02.5", uneven_clock_in_one_buffer),
        ("02.5", uneven_clock_in_one_tensor),
    ],
)
def test_right_answers_written_differently(number, answer):
    assert check(number, answer), check(number, answer)


# Wrong answers that no list foresees: wrong all the same.


def writes_into_its_input(a, b, dts, xs):
    xs *= 2
    return lesson_02.UNEVEN.specification(a, b, dts, xs)


def shapes_with_parity_of_the_first_map(H, W):
    H, W = H // 4, W // 4
    odd_H, odd_W, shapes = H % 2, W % 2, []
    for stage in range(4):
        shapes.append((96 << stage, H, W))
        H, W = (H + odd_H) // 2, (W + odd_W) // 2
    return shapes


def shapes_padded_if_both_are_odd(H, W):
    H, W, shapes = H // 4, W // 4, []
    for stage in range(4):
        shapes.append((96 << stage, H, W))
        extra = H % 2 and W % 2
        H, W = (H + extra) // 2, (W + extra) // 2
    return shapes


def b_bar_without_gradient(a, b, dt):
    with torch.no_grad():
        return lesson_02.NEAR_ZERO.specification(a, b, dt)


def bias_by_series(dt):
    return torch.where(dt < 2e-2, torch.log(dt) + dt / 2, torch.log(torch.expm1(dt)))


def decays_always(a, b, dts, xs):
    return lesson_02.UNEVEN.specification(-abs(a), b, dts, xs)


def in_single_precision(a, b, dts, xs):
    return lesson_02.UNEVEN.specification(a, b, dts.float(), xs.float())


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        ("00.1", lambda H, W: [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]),
        ("00.1", lambda H, W: [(96, H // 4, W // 4)] * 4),
        ("00.1", shapes_with_parity_of_the_first_map),
        ("00.1", shapes_padded_if_both_are_odd),
        ("00.2", lambda route, row, column, H, W: 0),
        ("00.2", lambda *case: complex(lesson_00.POSITION.specification(*case), 1)),
        ("00.2", lambda route, row, column, H, W: row * W + column),
        ("02.1", lambda a, b, dt: (0.5, 0.5)),
        ("02.1", lambda a, b, dt: (2 ** (-dt / math.log(2)), (1 - math.exp(-dt)) * b)),
        ("02.1", lambda a, b, dt: (math.exp(a * dt), abs(b * math.expm1(a * dt) / a))),
        ("02.2", lambda rule, a, b, dt: (0.25, 0.75)),
        ("02.2", lambda rule, a, b, dt: lesson_02.zoh(a, b, dt)),
        ("02.3", lambda a, b, dt: dt * b * (1 + dt * a / 2)),
        ("02.3", lambda a, b, dt: torch.nan_to_num(b * torch.expm1(dt * a) / a, nan=1.0)),
        ("02.3", lambda a, b, dt: (dt * b * torch.expm1(dt * a + 1e-12) / (dt * a + 1e-12))[:1]),
        ("02.4", bias_by_series),
        ("02.4", lambda dt: lesson_02.BIAS.specification(dt.clamp(min=1e-4))),
        ("02.4", lambda dt: torch.log(dt) + dt / 2),
        ("02.4", lambda dt: torch.special.logit(dt / 11)),
        ("02.5", lambda a, b, dts, xs: torch.tensor([2.0, 1.0, 4.5])),
        ("02.5", lambda a, b, dts, xs: xs * 0),
        ("02.5", writes_into_its_input),
        ("02.5", decays_always),
        ("12.1", lambda step, steps, warmup, first, peak, last: peak),
        ("12.2", lambda name, shape: "weight" in name and len(shape) > 1),
        ("12.2", lambda name, shape: "proj" in name),
        ("12.3", lambda scores, labels, smoothing: scores.mean()),
        ("12.4", lambda weights, decay: decay * weights + (1 - decay) * weights.mean(0)),
    ],
)
def test_other_wrong_answers_are_shown_where_they_differ(number, answer):
    verdict = check(number, answer)
    assert verdict.status == "wrong"
    assert verdict.reason.startswith("for ") and "expected" in verdict.reason


def test_a_function_without_return_or_with_an_error_or_of_another_kind():
    def forgets(a, b, dt):
        a * dt

    def divides(a, b, dt):
        return 1 / 0

    def leaves(a, b, dt):
        raise SystemExit

    def asks_too_much(a, b, dt):
        raise NotImplementedError("not for this dtype")

    class Speechless(Exception):
        def __str__(self):
            raise RuntimeError

    def mumbles(a, b, dt):
        raise Speechless

    cases = [
        (leaves, "SystemExit in your line"),
        (asks_too_much, "NotImplementedError: not for this dtype in your line"),
        (mumbles, "Speechless"),
        (forgets, "your function returned None: is a return missing?"),
        (divides, "ZeroDivisionError: division by zero in your line"),
        (lambda a, b: (a, b), "takes 2 positional arguments but 3 were given"),
        (lambda a, b, dt: "½", "expected numbers or tensors, got str"),
        (0.5, "expected your function, got float"),
    ]
    for answer, message in cases:
        verdict = check("02.1", answer)
        assert verdict.status == "wrong" and message in verdict.reason, verdict
    assert "return 1 / 0" in check("02.1", divides).reason  # the reader's own line
    assert "checks.py" not in check("02.1", divides).reason
    assert "no exercise" in check("02.9", divides).reason
    assert "no exercise" in check("nonsense", divides).reason


def test_a_difference_in_the_last_digits_is_shown():
    """Two equal displays would tell a reader nothing."""
    cases = lesson_02.UNEVEN.cases
    long = dataclasses.replace(lesson_02.UNEVEN, cases=lambda draw: cases(draw)[-1:])
    _, reason = checks._judge(long, lambda *c: long.specification(*c) + 3e-6, long.cases(Draw(0)))
    expected, got = re.fullmatch(r".* expected at \[0\] (.*), got (.*)", reason).groups()
    assert expected != got


def test_an_answer_without_a_gradient_is_named():
    assert check("02.3", b_bar_without_gradient).reason == lesson_02.CUT


def test_the_difference_shown_is_one_that_counts():
    """Not the rounding of an earlier entry."""
    late = dataclasses.replace(
        lesson_02.BIAS,
        specification=lambda dt: dt,
        cases=lambda draw: [(torch.linspace(0.1, 0.9, 20),)],
        observe=lambda function, case: function(*case),
        mistakes={},
    )
    wrong = torch.cat([torch.full((19,), 1e-7), torch.tensor([0.5])])
    _, reason = checks._judge(late, lambda dt: dt + wrong, late.cases(Draw(0)))
    assert "expected at [19] 0.9, got 1.4" in reason


def test_single_precision_out_of_double_is_named():
    for answer in (in_single_precision, uneven_clock_in_a_default_buffer):
        assert check("02.5", answer).reason == checks.SINGLE


def uneven_clock_in_a_default_buffer(a, b, dts, xs):
    hs = torch.empty(len(xs))
    for t, h in enumerate(lesson_02.UNEVEN.specification(a, b, dts, xs)):
        hs[t] = h
    return hs


@pytest.mark.parametrize("seed", range(5))
def test_numbers_may_be_computed_in_single_precision(seed):
    def with_items(a, b, dt):
        z = torch.tensor(a * dt)
        return torch.exp(z), torch.expm1(z) / a * b

    assert check("02.1", with_items, seed), check("02.1", with_items, seed)


def test_overwritten_arguments_are_named():
    def in_place(dt):
        return dt.copy_(lesson_02.BIAS.specification(dt))

    assert check("02.4", in_place).reason.endswith("overwrites its argument dt")


def test_a_specification_that_fails_agrees_with_nobody():
    torch.set_default_device("meta")
    try:
        assert not check("02.5", lambda a, b, dts, xs: xs * 0)
    finally:
        torch.set_default_device(None)


def test_a_function_that_stops_halfway_was_attempted():
    def first_two_routes(route, row, column, H, W):
        if route > 1:
            raise NotImplementedError
        return lesson_00.POSITION.specification(route, row, column, H, W)

    verdict = check("00.2", first_two_routes)
    assert verdict.status == "wrong" and "NotImplementedError in your line" in verdict.reason


def test_single_precision_on_the_way_is_named():
    def bias(dt):
        third = torch.tensor(1 / 3)  # float32
        return lesson_02.BIAS.specification(dt) * (third.double() * 3)

    assert check("02.4", bias).reason == checks.SIX_DIGITS


def test_what_an_answer_switches_is_switched_back():
    def meddles(dt):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return lesson_02.BIAS.specification(dt)

    assert check("02.4", meddles)
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_the_known_mistakes_warn_nobody():
    """They run beside every wrong answer, and some divide by zero."""

    def warns(dt):
        warnings.warn("nothing for the reader", stacklevel=1)
        return dt

    exercise = dataclasses.replace(lesson_02.BIAS, mistakes={"this warns": warns})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for answer, status in ((torch.sin, "wrong"), (lambda dt: dt, "wrong")):
            assert checks._judge(exercise, answer, exercise.cases(Draw(0)))[0] == status
    assert not seen


def test_your_line_is_the_readers_own():
    def mean_of_nothing(a, b, dt):
        return statistics.mean([])

    assert "in your line" in check("02.1", mean_of_nothing).reason
    assert "return statistics.mean([])" in check("02.1", mean_of_nothing).reason


def test_results_of_unusual_kinds():
    right = lesson_02.BIAS.specification
    assert check("02.4", lambda dt: right(dt).to_sparse())
    assert check("02.4", lambda dt: right(dt).tolist())  # rows of a list are a matrix
    verdict = check("00.1", lambda H, W: zip((96, H, W), (96, H, W)))  # noqa: B905
    assert "got zip; put list(…) around it" in verdict.reason


def test_a_reader_can_interrupt_a_check():
    def endless(a, b, dt):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("02.1", endless)


@pytest.mark.parametrize("near", [1e-6, 1e-3])
def test_nan_gradient_is_seen_whatever_the_threshold(near):
    def answer(a, b, dt):
        z = dt * a
        return dt * b * torch.where(z.abs() < near, 1 + z / 2 + z**2 / 6, torch.expm1(z) / z)

    assert check("02.3", answer).reason == lesson_02.NAN_GRADIENT


def test_gradients_are_looked_at_also_where_they_are_switched_off():
    with torch.no_grad():
        verdict = check("02.3", lesson_02._quotient_with_where)
    assert "gradient at a = 0 is NaN" in verdict.reason


def test_cases_do_not_depend_on_the_default_dtype():
    code = (
        "import torch; torch.set_default_dtype(torch.float64)\n"
        "from minivmamba.classroom import check\n"
        "assert not check('02.4', lambda dt: torch.log(torch.exp(dt) - 1))\n"
        "assert check('02.4', lambda dt: torch.log(torch.expm1(dt)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_machine_is_described_in_sentences():
    text = describe_machine()
    for topic in ("Python", "PyTorch", "cores", "Numba", "Triton", "GPU"):
        assert topic in text
    assert all(line.endswith(".") for line in text.splitlines())


def test_softplus_of_the_asked_bias_is_the_wanted_step():
    """The specification itself, against torch."""
    dt = torch.logspace(-4, 1, 40, dtype=torch.float64)
    torch.testing.assert_close(F.softplus(lesson_02.BIAS.specification(dt)), dt)


@pytest.mark.parametrize("lesson", LESSONS)
def test_sentences_quoted_in_a_lesson_are_those_of_its_checks(lesson):
    cells = json.loads((NOTEBOOKS / f"{lesson}.ipynb").read_text())["cells"]
    table = next(text for c in cells if "## Common mistakes" in (text := "".join(c["source"])))
    quoted = re.findall(r'"([^"]+?) …"', table)
    sentences = [
        s for number, e in EXERCISES.items() if number[:2] == lesson[:2] for s in e.mistakes
    ]
    assert quoted and all(any(s.startswith(q) for s in sentences) for q in quoted)

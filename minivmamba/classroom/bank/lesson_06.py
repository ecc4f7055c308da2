"""The exercises of lesson 06, the scan as an algorithm."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minivmamba.classroom.exercise import Draw, Exercise, Observed, double, strided


def _sizes(draw: Draw, count: int, low: float, high: float) -> Tensor:
    """Numbers of either sign whose sizes lie in [low, high): none is near 0, none is special."""
    signs = draw.uniform(count).sign()
    return signs * draw.uniform(count, low=low, high=high)


def _then(first, second):
    (a1, b1), (a2, b2) = first, second
    return a2 * a1, a2 * b1 + b2


# 06.1 — a piece of the sequence as one step


def _one_step(A_bar, b):
    a, h = torch.ones_like(A_bar[0]), torch.zeros_like(b[0])
    for a_t, b_t in zip(A_bar, b, strict=True):
        a, h = a_t * a, a_t * h + b_t
    return a, h


def _one_step_by_weights(A_bar, b):
    """Every input is multiplied by all the decays after it."""
    after = [A_bar[t + 1 :].prod() for t in range(len(b))]
    return A_bar.prod(), sum(weight * b_t for weight, b_t in zip(after, b, strict=True))


def _one_step_by_halves(A_bar, b):
    if len(b) == 1:
        return A_bar[0], b[0]
    middle = len(b) // 2
    a1, b1 = _one_step_by_halves(A_bar[:middle], b[:middle])
    a2, b2 = _one_step_by_halves(A_bar[middle:], b[middle:])
    return a2 * a1, a2 * b1 + b2


def _one_step_from_two_states(A_bar, b):
    """Run it twice: what h = 1 gives more than h = 0 is the decay."""
    ends = []
    for h in (0.0, 1.0):
        for a_t, b_t in zip(A_bar.tolist(), b.tolist(), strict=True):
            h = a_t * h + b_t
        ends.append(h)
    return ends[1] - ends[0], ends[0]


def _backwards(A_bar, b):
    return _one_step(A_bar.flip(0), b.flip(0))


def _swapped_one_step(A_bar, b):
    a, h = A_bar[0], b[0]
    for a_t, b_t in zip(A_bar[1:], b[1:], strict=True):
        a, h = a_t * a, a * b_t + h
    return a, h


def _states(A_bar, b):
    h, hs = torch.zeros_like(b[0]), []
    for a_t, b_t in zip(A_bar, b, strict=True):
        h = a_t * h + b_t
        hs.append(h)
    return torch.stack(hs)


def _decays_its_own_input(A_bar, b):
    h = torch.zeros_like(b[0])
    for a_t, b_t in zip(A_bar, b, strict=True):
        h = a_t * (h + b_t)
    return A_bar.prod(), h


def _pieces(draw: Draw):
    return [
        (double(0.5, 0.5, 0.5), double(2, 0, 4)),
        (_sizes(draw, 5, 0.3, 0.9), _sizes(draw, 5, 0.5, 2)),
        (strided(_sizes(draw, 4, 0.3, 0.9)), strided(_sizes(draw, 4, 0.5, 2))),
        (double(0.7), double(1.5)),
        (double(0.5, 0.0, 0.25), double(1, 2, 3)),
        (double(0.5, 0.25).float(), double(3, -1).float()),
        (_sizes(draw, 16, 0.5, 0.95), _sizes(draw, 16, 0.5, 2)),
        (double(0.5, 0.25, 0.8), double(0, 0, 0)),
    ]


ONE_STEP = Exercise(
    title="A piece as one step",
    difficulty=1,
    hints=(
        "Start with the step that changes nothing, a = 1 and b = 0, and put one step after the "
        "other behind it.",
        "In a loop: `a, h = a_t * a, a_t * h + b_t`. Each new step acts on both numbers.",
    ),
    specification=_one_step,
    alternatives=(_one_step_by_weights, _one_step_by_halves, _one_step_from_two_states),
    arguments=("A_bar", "b"),
    cases=_pieces,
    mistakes={
        "the decay of the piece is that of its last step only: what was there before the piece "
        "goes through all of its steps, so their decays multiply": (
            lambda A_bar, b: (A_bar[-1], _one_step(A_bar, b)[1])
        ),
        "the last decay is missing: the state goes through all steps of the piece": (
            lambda A_bar, b: (A_bar[:-1].prod(), _one_step(A_bar, b)[1])
        ),
        "each input is multiplied by its own decay here, once: it has to go through the decays of "
        "all steps after it": lambda A_bar, b: (A_bar.prod(), (A_bar * b).sum()),
        "decays multiply, they do not add up: ½ and then ½ leave ¼": (
            lambda A_bar, b: (A_bar.sum(), _one_step(A_bar, b)[1])
        ),
        "the steps are taken in the wrong order: the first of the piece acts first": (
            _backwards,
            _swapped_one_step,
        ),
        "the inputs are added up without their decays: an input is multiplied by the decays of "
        "all steps after its own": lambda A_bar, b: (A_bar.prod(), b.sum()),
        "this is the last input alone: what came in before is still there, decayed": (
            lambda A_bar, b: (A_bar.prod(), b[-1])
        ),
        "an input does not decay at its own step: h ← Ā h + b, not Ā (h + b)": (
            _decays_its_own_input
        ),
        "these are all the steps on the way; asked is the whole piece, two numbers": (
            lambda A_bar, b: (A_bar.cumprod(0), _states(A_bar, b))
        ),
        "b is what the piece adds to a state of 0; this starts from h = 1": (
            lambda A_bar, b: (A_bar.prod(), _one_step(A_bar, b)[1] + A_bar.prod())
        ),
        "a comes first, then b": lambda A_bar, b: _one_step(A_bar, b)[::-1],
        "the decay of the piece is missing: return (a, b)": lambda A_bar, b: _one_step(A_bar, b)[1],
        "every input is multiplied by all the decays: those before its own step are over when it "
        "comes in": lambda A_bar, b: (A_bar.prod(), A_bar.prod() * b.sum()),
    },
)


# 06.2 — Hillis and Steele, for any length and any operation


class Marked:
    """A step that is a piece from its first to its last position, and knows its chain.

    It unpacks like the pair (a, b) that it stands for.
    """

    def __init__(self, a: float, b: float, chain: int = 0) -> None:
        self.a, self.b, self.chain = a, b, chain

    def __iter__(self):
        return iter((self.a, self.b))

    def __getitem__(self, index):
        return (self.a, self.b)[index]

    def __len__(self) -> int:
        return 2


def _marked_then(first, second):
    a, b = _then(first, second)
    chain = 1 + max(getattr(first, "chain", 0), getattr(second, "chain", 0))
    return Marked(a, b, chain)


def _levels(steps, op):
    steps, gap = list(steps), 1
    while gap < len(steps):
        steps = steps[:gap] + [op(*pair) for pair in zip(steps[:-gap], steps[gap:], strict=True)]
        gap *= 2
    return steps


def _levels_downwards_in_place(steps, op):
    steps, gap = list(steps), 1
    while gap < len(steps):
        for i in reversed(range(gap, len(steps))):
            steps[i] = op(steps[i - gap], steps[i])
        gap *= 2
    return steps


def _levels_by_halves(steps, op):
    """Sklansky's way: both halves by themselves, then the left total before all of the right."""
    if len(steps) == 1:
        return list(steps)
    middle = 1 << ((len(steps) - 1).bit_length() - 1)
    left, right = _levels_by_halves(steps[:middle], op), _levels_by_halves(steps[middle:], op)
    return left + [op(left[-1], step) for step in right]


def _in_place(steps, op):
    steps, gap = list(steps), 1
    while gap < len(steps):
        for i in range(gap, len(steps)):
            steps[i] = op(steps[i - gap], steps[i])
        gap *= 2
    return steps


def _wrapping(steps, op):
    steps, gap = list(steps), 1
    while gap < len(steps):
        steps = [op(steps[i - gap], steps[i]) for i in range(len(steps))]
        gap *= 2
    return steps


def _levels_with(gaps: Callable[[int], Any]):
    def scan(steps, op):
        steps = list(steps)
        for gap in gaps(len(steps)):
            steps = [
                op(steps[i - gap], steps[i]) if i >= gap else steps[i] for i in range(len(steps))
            ]
        return steps

    return scan


def _folded(steps, op):
    done = [steps[0]]
    for step in steps[1:]:
        done.append(op(done[-1], step))
    return done


def _dropping(steps, op):
    """The items that have nothing before them get lost."""
    steps, gap = list(steps), 1
    while gap < len(steps):
        steps = [op(steps[i - gap], steps[i]) for i in range(gap, len(steps))]
        gap *= 2
    return steps


TOO_LONG = (
    "the values are right, but not in log₂ L levels: some combination waits for too many others. "
    "In one level every item takes in the one 1, 2, 4, 8, … places before it, all at once"
)


def _chain_is_too_long(observed: list, expected: list) -> str:
    pairs = list(zip(observed, expected, strict=True))
    same = all(
        o["steps"].shape == e["steps"].shape and torch.allclose(o["steps"], e["steps"])
        for o, e in pairs
    )
    return TOO_LONG if same else ""


NOT_COMBINED = (
    "a result did not come from op: use op(earlier, later) for every combination, whatever the "
    "items are, and do not look into them"
)


class NotCombined(Exception):
    """A result that was computed past the operation."""


def _past_the_operation(steps, op):
    a, h, done = 1.0, 0.0, []
    for a_t, b_t in steps:
        a, h = a_t * a, a_t * h + b_t
        done.append((a, h))
    return done


def _watched(function, case):
    """The results, and whether none of them had to wait for more than ⌈log₂ L⌉ combinations."""
    steps, op = case
    marked = [Marked(*step) for step in steps]
    done = function(marked, op)
    if done is None:
        raise ValueError("your function returned None: is a return missing?")
    done = list(done)
    if any(not isinstance(x, Marked) and tuple(x) != (1.0, 0.0) for x in done):  # e is a pair
        raise NotCombined(NOT_COMBINED)
    allowed = (len(steps) - 1).bit_length()
    in_time = all(getattr(item, "chain", 0) <= allowed for item in done)
    pairs = [list(map(float, item)) for item in done]
    return Observed(steps=torch.tensor(pairs, dtype=torch.float64), in_time=in_time)


def _lists_of_steps(draw: Draw):
    def steps(L: int) -> list[tuple[float, float]]:
        a, b = _sizes(draw, L, 0.3, 0.9).tolist(), _sizes(draw, L, 0.5, 2).tolist()
        return list(zip(a, b, strict=True))

    def operation(first, second):
        return _marked_then(first, second)

    operation.__name__ = "then"
    worked = [(0.5, 2.0), (0.5, 0.0), (0.5, 4.0)]
    lists = [worked, *(steps(L) for L in (8, 1, 2, 5, 6, 7, 9, 16, 33))]
    return [(each, operation) for each in lists]


LEVELS = Exercise(
    title="A scan in log₂ L levels",
    difficulty=2,
    hints=(
        "One level: item i becomes op(item i − gap, item i), for all i ≥ gap at once; the items "
        "before it stay. Then the gap doubles. Go on as long as the gap is less than L.",
        "Build a new list in each level, so that no item reads what the level has just written: "
        "`steps = steps[:gap] + [op(steps[i - gap], steps[i]) for i in range(gap, len(steps))]`.",
    ),
    specification=_levels,
    alternatives=(_levels_downwards_in_place, _levels_by_halves),
    arguments=("steps", "op"),
    cases=_lists_of_steps,
    observe=_watched,
    diagnose=_chain_is_too_long,
    mistakes={
        "a level reads what it has just written: item i − gap was already changed when item i took "
        "it in. Write into a new list (or go from the right)": _in_place,
        "the steps are swapped: the earlier one, i − gap, comes first": (
            lambda steps, op: _levels(steps, lambda p, q: op(q, p)),
        ),
        "an index below 0 is the end of the list in Python: the first items took in the last ones. "
        "An item with nothing before it stays as it is": _wrapping,
        "the gap must double: after the first level an item holds two steps already": (
            _levels_with(lambda L: range(1, L)),
        ),
        "a level is missing: go on as long as the gap is less than L, not only up to L/2": (
            _levels_with(lambda L: [2**k for k in range(L.bit_length()) if 2 * 2**k < L]),
        ),
        "this has ⌊log₂ L⌋ levels, enough for powers of two only: for L = 5 it takes three": (
            _levels_with(lambda L: [2**k for k in range(int(math.log2(L)))]),
        ),
        "one level is not enough: the gap must go on to 2, 4, 8, …": (
            _levels_with(lambda L: [1] if L > 1 else []),
        ),
        "only neighbours are combined, again and again: the gap stays 1": (
            _levels_with(lambda L: [1] * (L - 1).bit_length()),
            _levels_with(lambda L: [1] * (L - 1)),
        ),
        TOO_LONG: _folded,
        NOT_COMBINED: _past_the_operation,
        "the first items get lost in each level: those with nothing before them stay as they are": (
            _dropping
        ),
        "this is the last result only; asked are all L": (
            lambda steps, op: _levels(steps, op)[-1:],
        ),
        "this is exclusive, everything before an item; asked is everything up to it, itself "
        "included": lambda steps, op: [Marked(1.0, 0.0), *_levels(steps, op)[:-1]],
    },
)


# 06.3 — chunks with carries


def _join(chunks):
    h, hs = torch.zeros_like(chunks[0][1][0]), []
    for A_bar, local in chunks:
        states = local + A_bar.cumprod(0) * h
        hs.append(states)
        h = states[-1]
    return torch.cat(hs)


def _join_by_carries_first(chunks):
    """All carries first, each from the totals of its chunk; then all the chunks at once."""
    carries, h = [], 0.0
    for A_bar, local in chunks:
        carries.append(h)
        h = A_bar.prod() * h + local[-1]
    pairs = zip(chunks, carries, strict=True)
    return torch.cat([local + A_bar.cumprod(0) * carry for (A_bar, local), carry in pairs])


def _join_step_by_step(chunks):
    hs, carry = [], 0.0
    for A_bar, local in chunks:
        reaches = carry
        for a_t, h_t in zip(A_bar.tolist(), local.tolist(), strict=True):
            reaches *= a_t
            hs.append(h_t + reaches)
        carry = hs[-1]
    return hs


def _join_by_undoing(chunks):
    """Find the inputs again and run the loop: right, though nothing is gained."""
    h, hs = 0.0, []
    for A_bar, local in chunks:
        before = torch.cat([torch.zeros_like(local[:1]), local[:-1]])
        for a_t, b_t in zip(A_bar, local - A_bar * before, strict=True):
            h = a_t * h + b_t
            hs.append(h)
    return torch.stack(hs)


def _join_with(carried, spread):
    """`carried(A, local, h, states)` → the next carry, `spread(A, local, h)` → the states."""

    def join(chunks):
        h, hs = torch.zeros_like(chunks[0][1][0]), []
        for A_bar, local in chunks:
            states = spread(A_bar, local, h)
            hs.append(states)
            h = carried(A_bar, local, h, states)
        return torch.cat(hs)

    return join


def _all_before(A_bar):
    return torch.cat([torch.ones_like(A_bar[:1]), A_bar.cumprod(0)[:-1]])


def _right_spread(A_bar, local, h):
    return local + A_bar.cumprod(0) * h


def _last(A_bar, local, h, states):
    return states[-1]


def _chunk_lists(draw: Draw):
    def pieces(lengths, dtype=torch.float64, gappy=False):
        made = []
        for length in lengths:
            A_bar, b = _sizes(draw, length, 0.3, 0.95), _sizes(draw, length, 0.5, 2)
            pair = A_bar.to(dtype), _states(A_bar, b).to(dtype)
            made.append(tuple(map(strided, pair)) if gappy else pair)
        return made

    worked = [(double(0.5, 0.5), double(2, 1)), (double(0.5, 0.5), double(4, 3))]
    lists = [
        worked,
        pieces([4, 4, 4]),
        pieces([3, 3, 3, 2]),
        pieces([5, 5, 1], gappy=True),
        pieces([6]),
        pieces([1, 1, 1, 1]),
        pieces([3, 3, 1], dtype=torch.float32),
        [(double(0.5, 0, 0.5), double(2, 1, 3)), (double(0.25, 0.5, 0), double(1, 2, 5))],
        pieces([8] * 5),
        pieces([1]),
    ]
    return [(each,) for each in lists]


def _joined(function, case):
    (chunks,) = case
    before = [tuple(part.clone() for part in chunk) for chunk in chunks]
    result = function(chunks)
    for chunk, kept in zip(chunks, before, strict=False):
        if not all(torch.equal(x, y) for x, y in zip(chunk, kept, strict=True)):
            raise ValueError(
                "your function overwrites the chunks it was given: write local = local + …, not +="
            )
    return result


CHUNKS = Exercise(
    title="Chunks with carries",
    difficulty=3,
    hints=(
        "The states of a chunk are short of what was there before it. How much of that carry is "
        "left at the first step of the chunk, at the second, at the third?",
        "At step i of the chunk `A_bar.cumprod(0)[i]` of the carry is left. The carry for the next "
        "chunk is the last *true* state of this one, not its last state from rest.",
    ),
    specification=_join,
    alternatives=(_join_by_carries_first, _join_step_by_step, _join_by_undoing),
    arguments=("chunks",),
    cases=_chunk_lists,
    observe=_joined,
    mistakes={
        "nothing is carried: the chunks still start from rest": (
            lambda chunks: torch.cat([local for _, local in chunks]),
        ),
        "the carry is the last state of the chunk before *from rest*: what came from still earlier "
        "chunks is lost after one chunk": (
            _join_with(lambda A_bar, local, h, states: local[-1], _right_spread)
        ),
        "the carry does not decay inside the chunk: every step multiplies it by one more Ā": (
            _join_with(_last, lambda A_bar, local, h: local + h),
        ),
        "at step i the carry has been multiplied by all decays of the chunk up to i, not by that "
        "of step i alone": _join_with(_last, lambda A_bar, local, h: local + A_bar * h),
        "off by one: the first step of a chunk multiplies the carry by its own decay already": (
            _join_with(_last, lambda A_bar, local, h: local + _all_before(A_bar) * h),
        ),
        "all steps get what is left of the carry at the end of the chunk: at step i only the "
        "decays up to i have acted": (
            _join_with(_last, lambda A_bar, local, h: local + A_bar.prod() * h),
        ),
        "the carries are added up without the decay of the chunks between": (
            _join_with(lambda A_bar, local, h, states: h + local[-1], _right_spread),
        ),
        "only the first step of a chunk hears of the carry; it stays for the steps after": (
            _join_with(
                _last,
                lambda A_bar, local, h: torch.cat([local[:1] + A_bar[:1] * h, local[1:]]),
            ),
        ),
        "the decays run backwards in the chunk: at its first step only one of them has acted": (
            _join_with(_last, lambda A_bar, local, h: local + A_bar.flip(0).cumprod(0).flip(0) * h),
        ),
        "the chunk itself decays here: only the carry is multiplied, the states from rest are "
        "complete in themselves": (
            _join_with(_last, lambda A_bar, local, h: A_bar.cumprod(0) * (local + h)),
        ),
        "these are the carries; asked are the states of all steps": (
            lambda chunks: torch.stack(
                [
                    _join(chunks)[end - 1]
                    for end in np.cumsum([len(local) for _, local in chunks]).tolist()
                ]
            ),
        ),
    },
)


# 06.4 — hunt the wrong operator


def _as_matrices(first, second):
    """The same by 2 × 2 matrices [[a, b], [0, 1]], in numpy."""
    left = np.array([[second[0], second[1]], [0.0, 1.0]])
    right = np.array([[first[0], first[1]], [0.0, 1.0]])
    return (left @ right)[0].tolist()


def _by_two_runs(first, second):
    """The same by running both steps from h = 0 and from h = 1: rounded differently."""
    zero, one = ((second[0] * (first[0] * h + first[1]) + second[1]) for h in (0.0, 1.0))
    return one - zero, zero


OPERATORS: tuple[tuple[str, Callable, bool, bool], ...] = (
    ("box_1", _then, True, True),
    ("box_2", lambda p, q: (q[0], q[0] * p[1] + q[1]), False, False),
    ("box_3", lambda p, q: _then(q, p), True, False),
    ("box_4", _by_two_runs, True, True),
    ("box_5", lambda p, q: (p[0] * q[0], p[1] + q[1]), True, False),
    ("box_6", lambda p, q: (p[0] + q[0], q[0] * p[1] + q[1]), False, False),
    ("box_7", lambda p, q: (p[0] * q[0], p[0] * p[1] + q[1]), False, False),
    ("box_8", lambda p, q: (p[0] * q[0], q[0] * p[1] + p[0] * q[1]), True, False),
    ("box_9", lambda p, q: (p[0] * q[0], abs(q[0]) * p[1] + q[1]), True, False),
    ("box_10", lambda p, q: (p[0] * q[0], q[0] * p[1] - q[1]), False, False),
    ("box_11", lambda p, q: (q[0], q[1]), True, False),
    ("box_12", lambda p, q: ((p[0] + q[0]) / 2, (p[1] + q[1]) / 2), False, False),
    ("box_13", _as_matrices, True, True),
    ("box_14", lambda p, q: (min(p[0], q[0]), q[0] * p[1] + q[1]), False, False),
    ("box_15", lambda p, q: (p[0] * q[0], q[0] * (p[1] + q[1])), False, False),
)


def _boxed(name: str, op: Callable):
    def box(first, second):
        a, b = op(tuple(float(x) for x in first), tuple(float(x) for x in second))
        return float(a), float(b)

    box.__name__ = name
    return box


def _operator_boxes(draw: Draw):
    boxes = [(_boxed(name, op),) for name, op, *_ in OPERATORS]
    turn = draw.integer(0, len(boxes) - 1)  # another order for another seed
    return boxes[turn:] + boxes[:turn]


def _two_verdicts(function, case):
    answer = function(*case)
    if answer is None:
        raise ValueError("your function returned None: is a return missing?")
    if isinstance(answer, bool | np.bool_) or len(answer) != 2:
        raise TypeError("return two truth values: (associative, right)")
    associative, right = (bool(x) for x in answer)
    return Observed(associative=associative, right=right)


P, Q, R = (0.5, 2.0), (-0.25, -3.0), (3.0, 4.0)
POSITIVE = ((0.5, 2.0), (0.25, 3.0), (0.125, 4.0))
DECIMAL = ((0.3, -1.7), (-0.7, 0.9), (0.9, -1.3))


def _near(x, y):
    return np.allclose(x, y, rtol=1e-9, atol=1e-12)


def _associates(op, p=P, q=Q, r=R, near=_near):
    return near(op(op(p, q), r), op(p, op(q, r)))


def _composes(op, p=P, q=Q, near=_near):
    return near(op(p, q), _then(p, q))


def _judge(op):
    return _associates(op), _composes(op)


def _judge_by_random_steps(op):
    rng = np.random.default_rng(5)
    triples = [rng.normal(size=(3, 2)) for _ in range(20)]
    associative = all(_associates(op, p, q, r) for p, q, r in triples)
    return associative, all(_composes(op, p, q) for p, q, _ in triples)


def _judge_with_round_numbers(op):
    """Dyadic numbers are not rounded, so == is right for them."""
    p, q, r = P, Q, R
    composed = q[0] * p[0], q[0] * p[1] + q[1]
    return op(op(p, q), r) == op(p, op(q, r)), op(p, q) == composed


def _left_fold_is_right(op, steps=(P, Q, R)):
    h, folded, fine = steps[0][1], steps[0], True
    for a, b in steps[1:]:
        h, folded = a * h + b, op(folded, (a, b))
        fine = fine and math.isclose(folded[1], h)
    return fine


HUNT = Exercise(
    title="Hunt the wrong operator",
    difficulty=2,
    hints=(
        "Two questions, two tests. Set the brackets of three steps in both ways; and compare the "
        "combination of two steps with what it has to be. Take steps with different numbers, some "
        "of them negative.",
        "`left, right = op(op(p, q), r), op(p, op(q, r))` for the first. For the second compare "
        "`op(p, q)`, both of its numbers, with `(a2 * a1, a2 * b1 + b2)`. Compare by "
        "`np.allclose`.",
    ),
    specification=_judge,
    alternatives=(_judge_by_random_steps, _judge_with_round_numbers),
    arguments=("op",),
    cases=_operator_boxes,
    observe=_two_verdicts,
    mistakes={
        "associative is not enough to be right: swapped steps are associative, too": (
            lambda op: (_associates(op), _associates(op))
        ),
        "right or wrong is not the first question: a wrong operator can be associative all the "
        "same": lambda op: (_composes(op), _composes(op)),
        "this looks at b alone: an operator that forgets to multiply the decays has the right b "
        "and the wrong a, and the next combination will need the a": (
            lambda op: (_associates(op), op(P, Q)[1] == _then(P, Q)[1]),
            lambda op: (_associates(op), _left_fold_is_right(op)),
            lambda op: (
                _associates(op, near=lambda x, y: _near(x[1], y[1])),
                _composes(op, near=lambda x, y: _near(x[1], y[1])),
            ),
        ),
        "this looks at the decays alone: b must be right as well": (
            lambda op: (_associates(op), _near(op(P, Q)[0], _then(P, Q)[0])),
            lambda op: (
                _associates(op, near=lambda x, y: _near(x[0], y[0])),
                _composes(op, near=lambda x, y: _near(x[0], y[0])),
            ),
        ),
        "the brackets are not tried: a loop from left to right sets them in one way only": (
            lambda op: (_left_fold_is_right(op), _composes(op)),
        ),
        "p ∘ q = q ∘ p is commutativity; associativity is about brackets, the order stays": (
            lambda op: (_near(op(P, Q), op(Q, P)), _composes(op))
        ),
        "steps that repeat hide mistakes: take three that differ, not p, p, p or p, q, p": (
            lambda op: (_associates(op, P, P, P), _composes(op, P, P)),
            lambda op: (_associates(op, P, P, P), _composes(op)),
            lambda op: (_associates(op, P, Q, P), _composes(op)),
        ),
        "this calls every box associative: compare op(op(p, q), r) with op(p, op(q, r))": (
            lambda op: (True, _composes(op)),
        ),
        "this calls every box right: compare op(p, q) with (a2·a1, a2·b1 + b2)": (
            lambda op: (_associates(op), True),
        ),
        "only positive numbers are tried: an operator may go wrong for a negative decay or a "
        "negative input": lambda op: (_associates(op, *POSITIVE), _composes(op, *POSITIVE[:2])),
        "the step that changes nothing, or a zero, hides mistakes: take numbers that are neither "
        "0 nor 1": (
            lambda op: (_associates(op, (1, 0), (1, 0), (1, 0)), _composes(op, (1, 0), (1, 0))),
        ),
        "numbers on a computer are rounded: compare with np.allclose, not with ==": (
            lambda op: (
                _associates(op, *DECIMAL, near=lambda x, y: x == y),
                _composes(op, *DECIMAL[:2], near=lambda x, y: x == y),
            ),
        ),
        "this compares with the steps swapped: the first step acts first, so its b is multiplied "
        "by the decay of the second": lambda op: (_associates(op), _near(op(P, Q), _then(Q, P))),
        "the two answers are in the wrong order: (associative, right)": lambda op: _judge(op)[::-1],
        "this says the same of every box": (
            lambda op: (True, True),
            lambda op: (False, False),
            lambda op: (True, False),
        ),
    },
)


# 06.5 — the gradient is a scan from the end


def _gradient(A_bar, c):
    g, gs = torch.zeros_like(c[0]), []
    for t in reversed(range(len(c))):
        later = A_bar[t + 1] if t + 1 < len(c) else 0
        g = c[t] + later * g
        gs.append(g)
    return torch.stack(gs[::-1])


def _gradient_by_a_scan(A_bar, c):
    return _states(torch.roll(A_bar, -1).flip(0), c.flip(0)).flip(0)


def _gradient_by_autograd(A_bar, c):
    A_bar, c, b = A_bar.clone(), c.clone(), torch.zeros_like(c, requires_grad=True)
    with torch.enable_grad():
        loss = (c * _states(A_bar, b)).sum()
        return torch.autograd.grad(loss, b)[0]


def _gradient_by_weights(A_bar, c):
    L = len(c)
    return [sum((A_bar[t + 1 : s + 1].prod() * c[s]).item() for s in range(t, L)) for t in range(L)]


def _reversed_with(A_bar, c):
    """A scan from the end in which step t uses its own decay."""
    return _states(A_bar.flip(0), c.flip(0)).flip(0)


def _decays_and_weights(draw: Draw):
    def pair(L: int):
        return _sizes(draw, L, 0.3, 0.9), _sizes(draw, L, 0.5, 2)

    return [
        (double(0.5, 0.25, 0.5), double(1, 1, 1)),
        pair(6),
        tuple(map(strided, pair(5))),
        pair(1),
        pair(2),
        tuple(x.float() for x in pair(4)),
        (double(0.5, 0.0, 0.7, 0.9), double(2, -1, 3, 0.5)),
        pair(33),
        (double(0.5, 0.25, 0.8, 0.6), double(0, 0, 0, 2)),
    ]


GRADIENT = Exercise(
    title="The gradient is a scan from the end",
    difficulty=3,
    hints=(
        "h_t is heard twice: in the loss, with weight c_t, and in h_{t+1}, with weight Ā_{t+1}. "
        "Start at t = L, where there is no next step.",
        "From the end: `g = c[t] + A_bar[t + 1] * g` for t < L − 1 (from 0), and `g = c[L - 1]` at "
        "the last. As a scan: move the decays one place to the left, turn both round, scan, turn "
        "the result round.",
    ),
    specification=_gradient,
    alternatives=(_gradient_by_a_scan, _gradient_by_autograd, _gradient_by_weights),
    arguments=("A_bar", "c"),
    cases=_decays_and_weights,
    mistakes={
        "the wrong decay: between h_t and h_{t+1} stands Ā_{t+1}, the decay of the later step, not "
        "Ā_t": _reversed_with,
        "the decays are moved the wrong way: g_t needs Ā_{t+1}, one place on, not Ā_{t−1}": (
            lambda A_bar, c: _reversed_with(torch.roll(A_bar, 1), c)
        ),
        "this runs from the beginning: a state is heard by *later* losses, so the scan starts at "
        "the end": (
            lambda A_bar, c: _states(A_bar, c),
            lambda A_bar, c: _states(torch.roll(A_bar, -1), c),
        ),
        "the result is still turned round: g_1 comes first": (
            lambda A_bar, c: _gradient(A_bar, c).flip(0)
        ),
        "c is turned round and the decays are not: both must run from the end": (
            lambda A_bar, c: _states(A_bar, c.flip(0)).flip(0),
        ),
        "the loss hears h_t directly with weight c_t, undecayed: c_t + Ā_{t+1} g_{t+1}, not "
        "Ā_{t+1} (c_t + g_{t+1})": (
            lambda A_bar, c: (
                _gradient(A_bar, c) * torch.cat([A_bar[1:], torch.ones_like(A_bar[:1])])
            ),
            lambda A_bar, c: _decays_its_own_weight(A_bar, c),
        ),
        "the decays are missing: what is heard later has faded": lambda A_bar, c: (
            c.flip(0).cumsum(0).flip(0)
        ),
        "this is c alone: h_t is also heard through all the states after it": (
            lambda A_bar, c: c.clone()
        ),
        "the direct part is missing: the loss hears h_t itself, with weight c_t": (
            lambda A_bar, c: _gradient(A_bar, c) - c
        ),
        "this looks one step ahead only: put g_{t+1}, not c_{t+1}, behind the decay": (
            lambda A_bar, c: c + torch.cat([A_bar[1:] * c[1:], torch.zeros_like(c[:1])])
        ),
        "the weights c are moved instead of the decays": (
            lambda A_bar, c: _reversed_with(A_bar, torch.cat([c[1:], torch.zeros_like(c[:1])])),
        ),
    },
)


def _decays_its_own_weight(A_bar, c):
    g, gs = torch.zeros_like(c[0]), []
    for t in reversed(range(len(c))):
        later = A_bar[t + 1] if t + 1 < len(c) else torch.ones_like(g)
        g = later * (c[t] + g)
        gs.append(g)
    return torch.stack(gs[::-1])


EXERCISES = {
    "06.1": ONE_STEP,
    "06.2": LEVELS,
    "06.3": CHUNKS,
    "06.4": HUNT,
    "06.5": GRADIENT,
}

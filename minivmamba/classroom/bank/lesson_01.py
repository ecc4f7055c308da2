"""The exercises of lesson 01, state space models in continuous time."""

import cmath
import math

import numpy as np
import torch

from minivmamba.classroom.exercise import Draw, Exercise, strided

LN2 = math.log(2)


def _tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


# 01.1 — what a kick leaves: the impulse response of N real decays


def _kick_response(a, b, c, t):
    k = (c * b) @ torch.exp(a[:, None] * t.clamp(min=0))
    return torch.where(t >= 0, k, 0)


def _kick_response_in_a_loop(a, b, c, t):
    k = []
    for moment in t.tolist():
        left = 0.0
        for a_n, b_n, c_n in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
            left += c_n * b_n * math.exp(a_n * moment) if moment >= 0 else 0.0
        k.append(left)
    return k


def _kick_response_by_matrix(a, b, c, t):
    """The states as columns, moved by the exponential of the whole matrix."""
    A = torch.diag(a)
    rows = [
        c @ torch.linalg.matrix_exp(A * moment) @ b if moment >= 0 else torch.zeros_like(b[0])
        for moment in t
    ]
    return torch.stack(rows)


def _weighed(weight):
    """k(t) = Σ_n weight(a_n, b_n, c_n, t), 0 before the kick."""

    def response(a, b, c, t):
        since = t.clamp(min=0)
        k = weight(a[:, None], b[:, None], c[:, None], since).sum(0)
        return torch.where(t >= 0, k, 0)

    return response


def _states(transposed: bool, with_c: bool):
    def response(a, b, c, t):
        h = b[:, None] * torch.exp(a[:, None] * t.clamp(min=0)) * (t >= 0)
        h = c[:, None] * h if with_c else h
        return h.T if transposed else h

    return response


def _kicks(draw: Draw):
    a, b, c = _tensor([-1.0, -2.0]), _tensor([1.0, 1.0]), _tensor([2.0, -1.0])
    N = draw.integer(3, 5)
    drawn = (
        draw.uniform(N, low=-3, high=-0.2),
        draw.uniform(N, low=0.5, high=2),
        draw.uniform(N, low=0.6, high=2.2) * _tensor([1.0, -1.0, 1.0, 1.0, -1.0])[:N],
    )
    late = draw.number(0.3, 0.9)
    return [
        (a, b, c, _tensor([-LN2, 0.0, LN2])),
        (a, 3 * b, c, _tensor([0.7])),  # one moment
        (*drawn, late + torch.arange(7, dtype=torch.float64)),  # the clock does not start at 0
        (*map(strided, drawn), strided(draw.uniform(6, low=-2, high=3))),  # in no order
        (_tensor([-0.4]), _tensor([1.7]), _tensor([-2.3]), _tensor([-1.5, 0.2, 4.0])),  # one state
        (a, b, c, _tensor([-2.0, -0.1])),  # nothing has come yet
        (_tensor([0.3, -1.0]), 2 * b, c, _tensor([0.0, 1.0, 2.5])),  # one state grows
        (a.float(), b.float(), c.float(), torch.tensor([-1.0, 0.0, 0.5, 2.0])),
        (torch.arange(-16, 0).double(), draw.uniform(16), draw.uniform(16), _tensor([-80.0, 0.1])),
        (a, b, c, _tensor([-1e-3, 1e-3])),
        (_tensor([-1e-3, -2.0]), b, c, _tensor([0.0, 900.0])),
        (_tensor([-1.0, -1.0]), b, c, _tensor([0.0, 0.5, -5e-10])),
        (_tensor([1.0, -1.0]), b, c, _tensor([60.0])),
    ]


KICK = Exercise(
    title="What a kick leaves",
    difficulty=1,
    hints=(
        "Write one state first: `c[n] * b[n] * torch.exp(a[n] * t)`. Then sum over n. Last, choose "
        "0 where `t < 0`.",
        "`torch.exp(a[:, None] * t)` has the shape (N, L). For t long before the kick it is huge, "
        "and inf · 0 is NaN: do not multiply by a mask, choose with `torch.where(t >= 0, k, 0)`.",
    ),
    specification=_kick_response,
    alternatives=(_kick_response_in_a_loop, _kick_response_by_matrix),
    arguments=("a", "b", "c", "t"),
    cases=_kicks,
    mistakes={
        "this answers before the kick comes: for t < 0 nothing has happened yet": (
            lambda a, b, c, t: (c * b) @ torch.exp(a[:, None] * t),
            lambda a, b, c, t: (c * b) @ torch.exp(a[:, None] * t.abs()),
            lambda a, b, c, t: (c * b) @ torch.exp(a[:, None] * t.clamp(min=0)),
        ),
        "at t = 0 the kick has just come: the response there is Σ c b, not 0": (
            lambda a, b, c, t: _kick_response(a, b, c, t) * (t > 0)
        ),
        "long before the kick e^{at} overflows, and inf · 0 is NaN: keep t ≥ 0 in the exponent, "
        "or choose with where": (
            lambda a, b, c, t: ((c * b) @ torch.exp(a[:, None] * t)) * (t >= 0),
            lambda a, b, c, t: ((c * b)[:, None] * torch.exp(a[:, None] * t) * (t >= 0)).sum(0),
        ),
        "b is missing: a state that takes in twice as much answers twice as much": (
            _weighed(lambda a, b, c, t: c * torch.exp(a * t))
        ),
        "c is missing: this adds up the states, y = Σ c h weighs them": (
            _weighed(lambda a, b, c, t: b * torch.exp(a * t))
        ),
        "b and c are missing: this is the sum of the decays alone": (
            _weighed(lambda a, b, c, t: torch.exp(a * t))
        ),
        "the sum over n is missing: y is one number for each t": (
            _states(False, True),
            _states(True, True),
        ),
        "these are the states h_n after a kick; the output is Σ c_n h_n": (
            _states(False, False),
            _states(True, False),
        ),
        "this is the mean over the states; y is their weighted sum": (
            lambda a, b, c, t: _kick_response(a, b, c, t) / len(a)
        ),
        "every state has its own b: multiply before you sum, Σ b times Σ c e^{at} mixes them": (
            lambda a, b, c, t: b.sum() * _kick_response(a, torch.ones_like(b), c, t),
            lambda a, b, c, t: c.sum() * _kick_response(a, b, torch.ones_like(c), t),
            lambda a, b, c, t: (c @ b) * _kick_response(a, b / b, c / c, t),
        ),
        "the states decay side by side: their rates do not add up in one exponent": (
            lambda a, b, c, t: torch.where(t >= 0, (c @ b) * torch.exp(a.sum() * t), 0)
        ),
        "the sign of the exponent is turned: with a < 0 a kick must fade": (
            _weighed(lambda a, b, c, t: c * b * torch.exp(-a * t))
        ),
        "this is a decay with half-life 1/|a|: the base is e, not 2": (
            _weighed(lambda a, b, c, t: c * b * 2 ** (a * t))
        ),
        "this is the answer to a push that never ends, ∫ e^{as} ds; a kick is over at once": (
            _weighed(lambda a, b, c, t: c * b * torch.expm1(a * t) / a)
        ),
        "this is h′, not h: the derivative brings down an a": (
            _weighed(lambda a, b, c, t: c * b * a * torch.exp(a * t))
        ),
        "t counts from the kick, not from the first entry of t": (
            lambda a, b, c, t: _kick_response(a, b, c, t - t[0])
        ),
        "1 + at is only the start of e^{at}": _weighed(lambda a, b, c, t: c * b * (1 + a * t)),
    },
)


# 01.2 — a pole from a half-life and a period


def _pole(half_life, period):
    return complex(-LN2 / half_life, 2 * math.pi / period)


def _pole_by_logarithm(half_life, period):
    """The logarithm of what is left after a thousandth of a period."""
    dt = period / 1000
    return cmath.log(0.5 ** (dt / half_life) * cmath.exp(2j * math.pi / 1000)) / dt


def _pole_in_torch(half_life, period):
    real = torch.tensor(0.5, dtype=torch.float64).log() / half_life
    turn = torch.tensor(2 * torch.pi / period, dtype=torch.float64)
    return torch.complex(real, turn)


def _rates(draw: Draw):
    fixed = [(2.0, 0.5), (0.3, 5.0), (10.0, 1.0), (3, 2), (2.0, 1.7), (1.3, 0.5), (2.0, 0.05)]
    return fixed + [(draw.number(0.5, 1.0), draw.number(1.5, 4.0)) for _ in range(3)]


POLE = Exercise(
    title="A pole on demand",
    difficulty=1,
    hints=(
        "e^{λt} = e^{−γt} e^{iωt}. Which γ makes e^{−γt} one half at t = half_life? Which ω makes "
        "a full turn of 2π at t = period?",
        "`complex(re, im)` makes the number. A pole that decays lies to the left, so its real part "
        "is negative.",
    ),
    specification=_pole,
    alternatives=(_pole_by_logarithm, _pole_in_torch),
    arguments=("half_life", "period"),
    cases=_rates,
    mistakes={
        "−1/half_life would make it a time constant, after which 1/e = 37% is left; one half is "
        "left after ln 2/|a|": lambda T, P: complex(-1 / T, 2 * math.pi / P),
        "1/period is the frequency in turns per second; the pole holds the angular frequency, 2π "
        "times that": (
            lambda T, P: complex(-LN2 / T, 1 / P),
            lambda T, P: complex(-LN2 / T, 1 / (2 * math.pi * P)),
        ),
        "both parts lack their constant: ln 2 for the half-life, 2π for the period": (
            lambda T, P: complex(-1 / T, 1 / P)
        ),
        "this pole grows: the real part of a decay is negative": (
            lambda T, P: complex(LN2 / T, 2 * math.pi / P)
        ),
        "this is its mirror image; the pole in the upper half plane is asked": (
            lambda T, P: complex(-LN2 / T, -2 * math.pi / P)
        ),
        "real and imaginary part are exchanged: decay is real, turning is imaginary": (
            lambda T, P: complex(2 * math.pi / P, -LN2 / T),
            lambda T, P: complex(-2 * math.pi / P, LN2 / T),
        ),
        "half-life and period are exchanged": lambda T, P: _pole(P, T),
        "a pole holds rates, per second: divide by the half-life, do not multiply": (
            lambda T, P: complex(-LN2 * T, 2 * math.pi / P),
            lambda T, P: complex(-T / LN2, 2 * math.pi / P),
        ),
        "a pole holds rates, per second: divide by the period, do not multiply": (
            lambda T, P: complex(-LN2 / T, 2 * math.pi * P),
            lambda T, P: complex(-LN2 / T, P / (2 * math.pi)),
            lambda T, P: complex(-LN2 / T, P),
        ),
        "the imaginary part is ω itself; ω0 = √(ω² + γ²) is its distance from 0": (
            lambda T, P: complex(-LN2 / T, math.hypot(2 * math.pi / P, LN2 / T))
        ),
        "a full turn is 2π, half a turn is π": lambda T, P: complex(-LN2 / T, math.pi / P),
        "this is e^λ, what is left after one second; the pole is λ": (
            lambda T, P: cmath.exp(_pole(T, P))
        ),
        "one complex number is asked, complex(re, im), not a pair of them": (
            lambda T, P: (_pole(T, P).real, _pole(T, P).imag)
        ),
        "the minus belongs to the real part alone": lambda T, P: -_pole(T, P),
        "the real part is ln ½ per half-life; −½ is not its logarithm": (
            lambda T, P: complex(-0.5 / T, 2 * math.pi / P)
        ),
    },
)


# 01.3 — the spring with these poles


def _spring(half_life, period):
    gamma, omega = LN2 / half_life, 2 * math.pi / period
    return _tensor([[0.0, 1.0], [-(omega**2 + gamma**2), -2 * gamma]])


def _spring_from_poles(half_life, period):
    """The polynomial with the roots λ and its mirror image: its coefficients are the last row."""
    pole = complex(-math.log(2) / half_life, 2 * math.pi / period)
    _, first, last = np.poly([pole, pole.conjugate()]).real
    return np.array([[0, 1], [-last, -first]])


def _spring_by_change_of_basis(half_life, period):
    """A turning matrix, seen in the coordinates p and v = p′."""
    gamma, omega = LN2 / half_life, 2 * math.pi / period
    turning = _tensor([[-gamma, omega], [-omega, -gamma]])
    T = torch.stack([_tensor([1.0, 0.0]), _tensor([1.0, 0.0]) @ turning])  # (p, v) = T g
    return T @ turning @ torch.linalg.inv(T)


def _spring_with(row):
    """[[0, 1], row(γ, ω)]."""
    return lambda T, P: _tensor([[0.0, 1.0], list(row(LN2 / T, 2 * math.pi / P))])


def _in_double(function, case):
    """The answer, which the task wants as a tensor of float64."""
    answer = function(*case)
    if getattr(answer, "dtype", None) in (torch.float32, np.float32):
        raise TypeError("expected dtype torch.float64, got torch.float32")
    return answer


SPRING = Exercise(
    title="A spring on demand",
    difficulty=2,
    hints=(
        "The first row says p′ = v. The second row is v′ = −ω0² p − 2γ v, with γ and ω from "
        "Exercise 1.2.",
        "The poles −γ ± iω are the roots of λ² + 2γλ + ω0². Their product is ω0²: what is "
        "(−γ + iω)(−γ − iω)?",
    ),
    specification=_spring,
    alternatives=(_spring_from_poles, _spring_by_change_of_basis),
    arguments=("half_life", "period"),
    cases=_rates,
    observe=_in_double,
    mistakes={
        "ω0² is ω² + γ²: friction makes the spring turn a little slower than ω0, and ω² alone "
        "forgets that": (
            _spring_with(lambda g, w: (-(w**2), -2 * g)),
            _spring_with(lambda g, w: (-((w + g) ** 2), -2 * g)),
        ),
        "the last row is in the other order: −ω0² belongs to p, −2γ to v": (
            _spring_with(lambda g, w: (-2 * g, -(w**2 + g**2)))
        ),
        "both signs are turned: the spring pulls back, and the friction brakes": (
            _spring_with(lambda g, w: (w**2 + g**2, 2 * g))
        ),
        "ω0² is ω² + γ², not ω² − γ²: the product of −γ + iω and −γ − iω": (
            _spring_with(lambda g, w: (-(w**2 - g**2), -2 * g))
        ),
        "the friction is 2γ, so that each pole gets −γ; here the half-life comes out twice as "
        "long": _spring_with(lambda g, w: (-(w**2 + g**2), -g)),
        "the friction is missing: this spring swings for ever": (
            _spring_with(lambda g, w: (-(w**2 + g**2), 0.0)),
            _spring_with(lambda g, w: (-(w**2), 0.0)),
        ),
        "the friction pushes: −2γ brakes, +2γ makes the swing grow": (
            _spring_with(lambda g, w: (-(w**2 + g**2), 2 * g)),
            _spring_with(lambda g, w: (-(w**2), 2 * g)),
        ),
        "the spring pushes away from rest: −ω0² pulls back": (
            _spring_with(lambda g, w: (w**2 + g**2, -2 * g))
        ),
        "this is ω0, the equation has ω0²": (
            _spring_with(lambda g, w: (-math.hypot(w, g), -2 * g)),
            _spring_with(lambda g, w: (-w, -2 * g)),
        ),
        "this is the transpose: the first row is p′ = v, so (0, 1)": (
            lambda T, P: _spring(T, P).T.contiguous()
        ),
        "this is the state (v, p); (p, v) is asked": lambda T, P: _spring(T, P).flip(0, 1),
        "the rows are exchanged: the first row is p′ = v": lambda T, P: _spring(T, P).flip(0),
        "right poles, but not the coordinates p and v: the first row must say p′ = v": (
            lambda T, P: _tensor(
                [[-LN2 / T, 2 * math.pi / P], [-2 * math.pi / P, -LN2 / T]],
            ),
            lambda T, P: _tensor(
                [[-LN2 / T, -2 * math.pi / P], [2 * math.pi / P, -LN2 / T]],
            ),
            lambda T, P: torch.diag(torch.tensor([_pole(T, P), _pole(T, P).conjugate()])),
        ),
        "1/period is the frequency in turns per second; ω is 2π times that": (
            lambda T, P: _spring(T, 2 * math.pi * P)
        ),
        "1/half_life would make it a time constant, after which 37% is left; γ is ln 2/half_life": (
            lambda T, P: _spring(LN2 * T, P)
        ),
        "half-life and period are exchanged": lambda T, P: _spring(P, T),
        "this is e^A, what one second does to the state; A itself is asked": (
            lambda T, P: torch.linalg.matrix_exp(_spring(T, P))
        ),
    },
)


# 01.4 — the half-life of the slowest part


def _longest_half_life(A):
    slowest = torch.linalg.eigvals(A).real.max().item()
    return math.inf if slowest > -1e-9 else LN2 / -slowest


def _longest_half_life_in_numpy(A):
    rates = -np.linalg.eigvals(A.numpy()).real
    return max(np.log(2) / rate if rate > 1e-9 else float("inf") for rate in rates)


def _longest_half_life_by_squaring(A):
    """e^{At} for t = 1, 2, 4, …: how fast its size shrinks in the end."""
    size, logarithm, t = torch.linalg.matrix_exp(A), 0.0, 1.0
    for _ in range(60):  # size · e^logarithm is e^{At}
        size, logarithm, t = size @ size, 2 * logarithm, 2 * t
        norm = torch.linalg.matrix_norm(size).item()
        size, logarithm = size / norm, logarithm + math.log(norm)
    rate = -logarithm / t
    return LN2 / rate if rate > 1e-9 else math.inf


def _until_half(rate):
    """ln 2 / −rate, inf where that does not decay."""
    return math.inf if rate >= -1e-9 else LN2 / -float(rate)


def _half_life_of(choose):
    """That of one number chosen from the eigenvalues."""
    return lambda A: _until_half(choose(torch.linalg.eigvals(A)))


def _turned(matrix, draw: Draw):
    """The same eigenvalues in another basis."""
    N = len(matrix)
    T = torch.eye(N, dtype=torch.float64) + draw.uniform(N, N, low=0.1, high=0.4).triu(1)
    T = T @ (torch.eye(N, dtype=torch.float64) + draw.uniform(N, N, low=0.1, high=0.4).tril(-1))
    return torch.linalg.solve(T, matrix @ T)


def _systems(draw: Draw):
    slow, fast = draw.number(0.2, 0.5), draw.number(1.5, 3.0)
    turn = draw.number(1.0, 2.0)
    block = torch.zeros(3, 3, dtype=torch.float64)
    block[:2, :2] = _tensor([[-slow, turn], [-turn, -slow]])
    block[2, 2] = -fast
    quick = block.clone()  # the one that turns is the quick one
    quick[:2, :2] = _tensor([[-fast, turn], [-turn, -fast]])
    quick[2, 2] = -slow
    growing = block.clone()
    growing[2, 2] = 0.3
    return [
        (_spring(2.0, 2.0),),
        (_tensor([[-3.0, 1.0], [0.0, -0.5]]),),
        (_tensor([[-3.0, 0.0], [1.2, -0.5]]),),
        (_tensor([[-0.25]]),),
        (_tensor([[0.7]]),),  # grows
        (_tensor([[0.0, 1.0], [-4.0, 0.0]]),),  # swings for ever
        (_tensor([[0.0, 1.0], [0.0, -1.0]]),),  # one part stays where it is
        (_tensor([[-0.5, 1.0], [0.0, -0.5]]),),  # cannot be made diagonal
        (_tensor([[-0.5, 5.0], [0.0, -1.0]]),),  # grows at first, decays in the end
        (_spring(0.5, 0.9),),
        (_turned(block, draw),),
        (strided(_turned(quick, draw)),),
        (_turned(growing, draw),),
        (torch.diag(-torch.arange(1.0, 17.0, dtype=torch.float64)),),
        (_tensor([[-1e-12]]),),  # a rounding error, by the task
        (_tensor([[-1e-7]]),),  # slow, but it decays
        (_tensor([[0.2, 2.0], [-2.0, 0.2]]),),  # turns and grows
        (_tensor([[-0.5, 2.0], [-2.0, -0.5]]),),
        (_tensor([[-0.2, 3.0, 0.0], [-3.0, -0.2, 0.0], [0.0, 0.0, -1.0]]),),
        (_tensor([[-9e-9]]),),
        (_tensor([[-7e-10]]),),
    ]


def _no_case_for_growth(A):
    return LN2 / -torch.linalg.eigvals(A).real.max()


def _rates_of(A):
    """The real parts as Python numbers."""
    return torch.linalg.eigvals(A).real.tolist()


LONGEST = Exercise(
    title="The longest memory",
    difficulty=2,
    hints=(
        "`torch.linalg.eigvals(A)` gives the N poles as complex numbers. Which part of a pole "
        "says how fast it decays, and which of the N decays last?",
        "The largest real part is the slowest. If it is above −1e-9, the answer is `math.inf`; "
        "otherwise ln 2 divided by its distance from 0.",
    ),
    specification=_longest_half_life,
    alternatives=(_longest_half_life_in_numpy, _longest_half_life_by_squaring),
    arguments=("A",),
    cases=_systems,
    mistakes={
        "this is the half-life of the fastest part; what is left in the end is the slowest, with "
        "the largest real part": (
            _half_life_of(lambda poles: poles.real.min()),
            lambda A: math.inf if max(_rates_of(A)) > -1e-9 else LN2 / -min(_rates_of(A)),
        ),
        "the absolute value of λ counts the turning as decay: only the real part makes it fade": (
            lambda A: LN2 / torch.linalg.eigvals(A).abs().min(),
            lambda A: LN2 / torch.linalg.eigvals(A).abs().max(),
            lambda A: _half_life_of(lambda poles: -poles.abs().min())(A),
            lambda A: (
                math.inf
                if max(_rates_of(A)) > -1e-9
                else LN2 / torch.linalg.eigvals(A).abs().min().item()
            ),
            _half_life_of(lambda poles: poles[poles.real.argmax()].abs() * -1),
        ),
        "the pole nearest to 0 need not be the slowest: |λ| counts the turning too, compare real "
        "parts": lambda A: _until_half(min(torch.linalg.eigvals(A).tolist(), key=abs).real),
        "a real part of 0 never decays (it stays, or swings for ever): answer inf before you "
        "divide": (
            lambda A: LN2 / -max(_rates_of(A)),
            lambda A: math.inf if max(_rates_of(A)) > 0 else LN2 / -max(_rates_of(A)),
        ),
        "parts that do not decay were left out: they outlive the others, so the answer is inf": (
            lambda A: max((LN2 / -rate for rate in _rates_of(A) if rate < -1e-9), default=math.inf)
        ),
        "a part that grows is taken for one that decays: |Re λ| is a rate of growth there": (
            lambda A: LN2 / torch.linalg.eigvals(A).real.max().abs(),
            lambda A: LN2 / torch.linalg.eigvals(A).real.abs().min(),
            _half_life_of(lambda poles: -poles.real.abs().min()),
        ),
        "what grows or swings for ever has no half-life: answer inf there, not a negative number": (
            _no_case_for_growth,
            lambda A: (LN2 / -torch.linalg.eigvals(A).real).max(),
        ),
        "what never decays keeps its half for ever: the answer is inf, not 0 or NaN": (
            lambda A: 0.0 if math.isinf(_longest_half_life(A)) else _longest_half_life(A),
            lambda A: math.nan if math.isinf(_longest_half_life(A)) else _longest_half_life(A),
        ),
        "this is the time constant 1/|a|, after which 37% is left; the half-life is ln 2/|a|": (
            lambda A: _longest_half_life(A) / LN2
        ),
        "this is the rate itself; the half-life is ln 2 divided by it": (
            lambda A: max(0.0, LN2 / _longest_half_life(A)),
            lambda A: -torch.linalg.eigvals(A).real.max(),
            lambda A: torch.linalg.eigvals(A).real.max(),
        ),
        "the diagonal of A holds the poles only if the rest is zero: take the eigenvalues": (
            lambda A: _until_half(A.diagonal().max())
        ),
        "eigvalsh is for symmetric matrices, it reads only half of A: take eigvals": (
            lambda A: _until_half(torch.linalg.eigvalsh(A).max()),
            lambda A: _until_half(torch.linalg.eigvalsh(A, UPLO="U").max()),
        ),
        "the eigenvalues of (A + Aᵀ)/2 tell how the size changes at first, not in the end": (
            lambda A: _until_half(torch.linalg.eigvalsh((A + A.T) / 2).max())
        ),
        "singular values tell how much A stretches; the poles are its eigenvalues": (
            lambda A: LN2 / torch.linalg.svdvals(A).min(),
            lambda A: LN2 / torch.linalg.svdvals(A).max(),
        ),
        "this is the mean of the poles; one slow part outlives all the others": (
            _half_life_of(lambda poles: poles.real.mean())
        ),
        "this reads the imaginary part, the turning; the decay is in the real part": (
            lambda A: LN2 / torch.linalg.eigvals(A).imag.max(),
            _half_life_of(lambda poles: -poles.imag.abs().max()),
        ),
        "a pole that turns decays too: only one with a real part of 0 or more lasts for ever": (
            lambda A: math.inf if torch.linalg.eigvals(A).imag.any() else _longest_half_life(A)
        ),
        "multiply and divide are exchanged: a faster decay has a shorter half-life": (
            lambda A: LN2 * -torch.linalg.eigvals(A).real.max(),
        ),
        "the imaginary part of the pole is still in the answer: take the real part first": (
            lambda A: LN2 / -torch.linalg.eigvals(A)[torch.linalg.eigvals(A).real.argmax()],
        ),
        "this is twice the half-life: a matrix with several poles keeps each at its own rate": (
            lambda A: 2 * _longest_half_life(A)
        ),
    },
)


# 01.5 — another basis


def _in_other_basis(A, B, C, T):
    return torch.linalg.solve(T, A @ T), torch.linalg.solve(T, B), C @ T


def _in_other_basis_by_inverse(A, B, C, T):
    back = torch.linalg.inv(T)
    return back @ A @ T, back @ B, C @ T


def _in_other_basis_column_by_column(A, B, C, T):
    """What g′ is for each single coordinate g, one at a time."""
    A, B, C, T = (part.numpy() for part in (A, B, C, T))
    columns = [np.linalg.solve(T, A @ T[:, n]) for n in range(len(T))]
    return np.stack(columns, axis=1), np.linalg.solve(T, B), np.array([C @ g for g in T.T])


def _basis(change_A, change_B, change_C):
    """(A, B, C, T, T⁻¹) → three changed matrices, each its own way."""

    def changed(A, B, C, T):
        back = torch.linalg.inv(T)
        return change_A(A, T, back), change_B(B, T, back), change_C(C, T, back)

    return changed


def _right_A(A, T, back):
    return back @ A @ T


def _right_B(B, T, back):
    return back @ B


def _right_C(C, T, back):
    return C @ T


def _bases(draw: Draw):
    def near_one(N):
        return torch.eye(N, dtype=torch.float64) + draw.uniform(N, N, low=0.1, high=0.5)

    cases = [
        (_spring(2.0, 2.0), _tensor([0.0, 1.0]), _tensor([1.0, 0.0]), _tensor([[0.01, 0], [0, 1]])),
        (_tensor([[-0.8]]), _tensor([3.0]), _tensor([-2.0]), _tensor([[4.0]])),
    ]
    for N in (2, 3, 5):
        A, T = draw.uniform(N, N, low=0.3, high=2), near_one(N)
        B, C = draw.uniform(N, low=0.5, high=2), draw.uniform(N, low=-2, high=-0.5)
        cases.append((A, B, C, T) if N < 5 else (strided(A), strided(B), strided(C), strided(T)))
    A, B, C, T = cases[2]
    turned = T + 1j * draw.uniform(2, 2, low=-0.4, high=-0.1)
    return [
        *cases,
        (A * (1 + 0.3j), B * (1 - 0.2j), C * (1 + 0.5j), turned),
        (
            _tensor([[0.0, 1.0], [-10.0, -1.0]]),
            cases[0][1],
            cases[0][2],
            _tensor([[0.0, 1], [1, 0]]),
        ),
        (
            _tensor([[0.3, 1.0, 2.0], [-1.0, -1.0, 0.4], [2.0, 0.1, -0.7]]),
            _tensor([1.0, -1.0, 2.0]),
            _tensor([2.0, 1.0, 0.5]),
            _tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [1.0, 0.0, 0.0]]),
        ),
    ]


BASIS = Exercise(
    title="Two bases, one output",
    difficulty=2,
    hints=(
        "Put h = T g into h′ = A h + B x and into y = C h. Then bring T to the other side of the "
        "first equation.",
        "T g′ = A T g + B x. Multiply by T⁻¹ from the left. `torch.linalg.inv(T)` is T⁻¹; C has "
        "T to its right.",
    ),
    specification=_in_other_basis,
    alternatives=(_in_other_basis_by_inverse, _in_other_basis_column_by_column),
    arguments=("A", "B", "C", "T"),
    cases=_bases,
    mistakes={
        "this goes the other way round, g = T h: with h = T g it is A′ = T⁻¹ A T, B′ = T⁻¹ B, "
        "C′ = C T": _basis(
            lambda A, T, back: T @ A @ back, lambda B, T, back: T @ B, lambda C, T, back: C @ back
        ),
        "T and T⁻¹ stand on the wrong sides of A: read from the right, T turns g into h first": (
            _basis(lambda A, T, back: T @ A @ back, _right_B, _right_C)
        ),
        "B enters h, and g = T⁻¹ h: so B′ = T⁻¹ B, not T B": (
            _basis(_right_A, lambda B, T, back: T @ B, _right_C)
        ),
        "C reads h, and h = T g: so C′ = C T, not C T⁻¹": (
            _basis(_right_A, _right_B, lambda C, T, back: C @ back)
        ),
        "C is a row: C T, not T C (nor T⁻¹ C)": (
            _basis(_right_A, _right_B, lambda C, T, back: T @ C),
            _basis(_right_A, _right_B, lambda C, T, back: back @ C),
        ),
        "B is a column: T⁻¹ B, not B T⁻¹": _basis(_right_A, lambda B, T, back: B @ back, _right_C),
        "the transpose of T is its inverse only for a rotation": (
            _basis(lambda A, T, back: T.mT @ A @ T, lambda B, T, back: T.mT @ B, _right_C),
            _basis(lambda A, T, back: T.mH @ A @ T, lambda B, T, back: T.mH @ B, _right_C),
        ),
        "A is changed, B and C must change too: the input enters g and the output reads g": (
            lambda A, B, C, T: (_in_other_basis(A, B, C, T)[0], B, C)
        ),
        "B must change too: the input enters g": (_basis(_right_A, lambda B, T, back: B, _right_C)),
        "C must change too: the output reads g": (_basis(_right_A, _right_B, lambda C, T, back: C)),
        "A must change too: this is A of the old coordinates": (
            _basis(lambda A, T, back: A, _right_B, _right_C)
        ),
        "A needs both, T⁻¹ to its left and T to its right; this has T⁻¹ alone": (
            _basis(lambda A, T, back: back @ A, _right_B, _right_C)
        ),
        "A needs both, T⁻¹ to its left and T to its right; this has T alone": (
            _basis(lambda A, T, back: A @ T, _right_B, _right_C)
        ),
        "this multiplies entry by entry (*); matrices need @": (
            _basis(
                lambda A, T, back: back * A * T,
                lambda B, T, back: back @ B,
                lambda C, T, back: C @ T,
            )
        ),
        "1 / T inverts every entry, not the matrix": (
            lambda A, B, C, T: (1 / T @ A @ T, 1 / T @ B, C @ T)
        ),
        "B′ and C′ are in the other order: return (A′, B′, C′)": (
            lambda A, B, C, T: [_in_other_basis(A, B, C, T)[i] for i in (0, 2, 1)]
        ),
        "A′ is transposed": (
            lambda A, B, C, T: (_in_other_basis(A, B, C, T)[0].mT, *_in_other_basis(A, B, C, T)[1:])
        ),
    },
)


# 01.6 — two kicks that lead to a wanted state


def _two_kicks(A, B, ages, target):
    left = torch.stack([torch.linalg.matrix_exp(age * A) @ B for age in ages], dim=1)
    return torch.linalg.solve(left, target)


def _two_kicks_in_numpy(A, B, ages, target):
    """By the power series, and Cramer's rule for the two equations."""
    left = []
    for age in ages.tolist():
        term = total = B.numpy()
        for k in range(1, 80):
            term = A.numpy() @ term * age / k
            total = total + term
        left.append(total.tolist())
    (p1, v1), (p2, v2) = left
    p, v = target.tolist()
    area = p1 * v2 - v1 * p2
    return [(p * v2 - v * p2) / area, (p1 * v - v1 * p) / area]


def _two_kicks_by_descent(A, B, ages, target):
    """Least squares on what two kicks leave, each found by many tiny exact steps."""
    left = []
    for age in ages:
        h, step = B.clone(), torch.linalg.matrix_exp(age / 64 * A)
        for _ in range(64):
            h = step @ h
        left.append(h)
    return torch.linalg.lstsq(torch.stack(left, 1), target[:, None]).solution[:, 0]


def _kicks_with(leave, solve=lambda left, target: torch.linalg.solve(left, target)):
    def strengths(A, B, ages, target):
        return solve(torch.stack([leave(A, B, age) for age in ages], dim=1), target)

    return strengths


def _targets(draw: Draw):
    B = _tensor([0.0, 1.0])
    drawn = _tensor([[-0.9, 1.3], [-2.1, -0.2]]) + draw.uniform(2, 2, low=-0.2, high=0.2)
    return [
        (_spring(2.0, 2.0), B, _tensor([0.5, 2.0]), _tensor([1.0, -2.0])),
        (_spring(1.0, 3.0), B, _tensor([1.3, 0.4]), _tensor([0.7, 0.4])),
        (_tensor([[0.0, 1.0], [0.0, 0.0]]), B, _tensor([2.0, 1.0]), _tensor([5.0, 3.0])),  # a ball
        (drawn, _tensor([0.6, 1.7]), _tensor([0.9, 0.2]), draw.uniform(2, low=0.5, high=2)),
        (_tensor([[-1.0, 0.0], [0.0, -2.0]]), _tensor([1.0, 3.0]), _tensor([0.7, 0.0]), B + 1),
        (strided(drawn), strided(_tensor([1.1, -0.4])), strided(_tensor([0.5, 1.1])), B - 2),
        (_spring(2.0, 2.0), B, _tensor([4.0, 1 / 3]), _tensor([1.0, -2.0])),
        (_spring(2.0, 2.0), B, _tensor([5.3, 1.0]), _tensor([1.0, -2.0])),
    ]


def _by_eigenvectors(A, B, age):
    rates, V = torch.linalg.eig(A)
    return (V @ torch.diag(torch.exp(rates * age)) @ torch.linalg.inv(V) @ B.to(V.dtype)).real


TWO_KICKS = Exercise(
    title="Two kicks, any state",
    difficulty=3,
    hints=(
        "First the answer to one kick of strength 1: it leaves e^{A · age} B now. Two kicks leave "
        "the sum of two such columns, each times its strength.",
        "Stack the two columns to a 2 × 2 matrix M with `torch.stack([...], dim=1)`, and solve "
        "M q = target: `torch.linalg.solve(M, target)`.",
    ),
    specification=_two_kicks,
    alternatives=(_two_kicks_in_numpy, _two_kicks_by_descent),
    arguments=("A", "B", "ages", "target"),
    cases=_targets,
    mistakes={
        "the matrix exponential is not the exponential of each entry: torch.linalg.matrix_exp": (
            _kicks_with(lambda A, B, age: torch.exp(age * A) @ B)
        ),
        "the sign of time is turned: a kick of that age has moved forward by it, e^{A · age}": (
            _kicks_with(lambda A, B, age: torch.linalg.matrix_exp(-age * A) @ B)
        ),
        "both columns are the same, so nothing can be solved: each kick leaves e^{A · age} B with "
        "an age of its own": (
            _kicks_with(lambda A, B, age: B),
            _kicks_with(lambda A, B, age: torch.linalg.matrix_exp(A) @ B),
            lambda A, B, ages, target: _two_kicks(A, B, ages[:1].expand(2), target),
        ),
        "not every A falls apart: the ball has no basis of eigenvectors (section 6), but it has a "
        "matrix exponential": _kicks_with(_by_eigenvectors),
        "B need not be (0, 1): this takes the second column of e^{A · age}": (
            _kicks_with(lambda A, B, age: torch.linalg.matrix_exp(age * A)[:, 1])
        ),
        "B is missing: a kick enters along B, not along (1, 1)": (
            _kicks_with(lambda A, B, age: torch.linalg.matrix_exp(age * A).sum(1))
        ),
        "the columns have become rows: each kick is a column of the matrix, dim=1": (
            _kicks_with(
                lambda A, B, age: torch.linalg.matrix_exp(age * A) @ B,
                lambda left, target: torch.linalg.solve(left.mT, target),
            )
        ),
        "this multiplies by the matrix of the kicks; the strengths are what it must be multiplied "
        "with: solve": (
            _kicks_with(
                lambda A, B, age: torch.linalg.matrix_exp(age * A) @ B,
                lambda left, target: left @ target,
            )
        ),
        "the strengths are in the other order: first the kick of ages[0]": (
            lambda A, B, ages, target: _two_kicks(A, B, ages, target).flip(0)
        ),
        "each strength was chosen as if the other kick did not exist; both columns add up": (
            lambda A, B, ages, target: torch.stack(
                [
                    (torch.linalg.matrix_exp(age * A) @ B)
                    @ target
                    / (torch.linalg.matrix_exp(age * A) @ B).square().sum()
                    for age in ages
                ]
            )
        ),
        "A is transposed: e^{A · age} B moves B by the rows of A": (
            lambda A, B, ages, target: _two_kicks(A.mT.contiguous(), B, ages, target)
        ),
        "the older kick ages twice: ages count back from now, both of them": (
            lambda A, B, ages, target: _two_kicks(A, B, torch.stack([ages.sum(), ages[1]]), target),
            lambda A, B, ages, target: _two_kicks(A, B, ages.cumsum(0), target),
        ),
        "1 + A·age is only the start of the series of e^{A · age}": (
            _kicks_with(lambda A, B, age: B + age * A @ B)
        ),
        "this is what a push leaves that lasts until now; a kick is over at once": (
            _kicks_with(
                lambda A, B, age: torch.linalg.matrix_exp(
                    age * torch.cat([torch.cat([A, B[:, None]], 1), A.new_zeros(1, 3)])
                )[:2, 2]
            )
        ),
    },
)


EXERCISES = {
    "01.1": KICK,
    "01.2": POLE,
    "01.3": SPRING,
    "01.4": LONGEST,
    "01.5": BASIS,
    "01.6": TWO_KICKS,
}

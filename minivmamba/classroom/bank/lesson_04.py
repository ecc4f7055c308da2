"""The exercises of lesson 04, initialization."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minivmamba.classroom.exercise import Draw, Exercise, strided
from minivmamba.discretize import inverse_softplus, zoh_matrix

LN2 = math.log(2)


# 04.1 — half-lives of S4D-real


def _half_lives(dt, N):
    return LN2 / (dt[:, None] * _counted(dt, N))


def _counted(dt, N, start=1):
    return torch.arange(start, start + N, dtype=dt.dtype)


def _half_lives_in_loops(dt, N):
    lives = np.empty((len(dt), N))
    for channel, step in enumerate(dt.tolist()):
        for n in range(1, N + 1):
            left = math.exp(-n * step)  # of the state after one pixel
            lives[channel, n - 1] = math.log(0.5) / math.log(left)
    return lives


def _half_lives_of_rates(dt, N):
    rates = torch.exp(torch.log(torch.arange(1, N + 1, dtype=torch.float64)))  # −A from A_logs
    return -math.log(0.5) / torch.einsum("d,n->dn", dt.double(), rates)


def _steps_and_states(draw: Draw):
    return [
        (torch.tensor([0.001, 0.1]).double(), 16),
        (draw.uniform(5, low=0.01, high=0.5), 3),
        (strided(draw.uniform(3, low=0.001, high=0.1)), 7),
        (draw.uniform(1, low=0.2, high=2.0), 1),
        (draw.uniform(4, low=0.001, high=0.1, dtype=torch.float32), 5),
        (draw.uniform(2, low=0.01, high=0.1), 20),
        (torch.tensor([1e-4], dtype=torch.float64), 2),
        (torch.tensor([0.1, 0.5], dtype=torch.float64), 2),
    ]


HALF_LIVES = Exercise(
    title="Half-lives of all states",
    difficulty=1,
    hints=(
        "After p pixels a share of exp(−nΔp) is left. Set it to ½ and solve for p.",
        "n = `torch.arange(1, N + 1)`, and `dt[:, None]` makes a column of the steps.",
    ),
    specification=_half_lives,
    alternatives=(_half_lives_in_loops, _half_lives_of_rates),
    arguments=("dt", "N"),
    cases=_steps_and_states,
    mistakes={
        "n counts from 1 here: with n = 0 the state would have A = 0 and never forget": (
            lambda dt, N: LN2 / (dt[:, None] * _counted(dt, N, 0))
        ),
        "n counts from 1 to N: this starts at 2": lambda dt, N: (
            LN2 / (dt[:, None] * _counted(dt, N, 2))
        ),
        "this is the time constant 1/(nΔ), after which 1/e is left; for a half multiply by ln 2": (
            lambda dt, N: 1 / (dt[:, None] * _counted(dt, N))
        ),
        "this is half of the time constant; half is left after ln 2 of it": (
            lambda dt, N: 0.5 / (dt[:, None] * _counted(dt, N))
        ),
        "the rates are 1, 2, 3, …, not 1, 2, 4, …": (
            lambda dt, N: LN2 / (dt[:, None] * 2 ** (_counted(dt, N) - 1))
        ),
        "the rate is nΔ, not Δ/n: a larger n forgets faster": (
            lambda dt, N: LN2 * _counted(dt, N) / dt[:, None]
        ),
        "the table is transposed: one row for each channel, one column for each state": (
            lambda dt, N: _half_lives(dt, N).T
        ),
        "Δ is missing: ln 2/n is a half-life in units of time, not in pixels": (
            lambda dt, N: (LN2 / _counted(dt, N)).expand(len(dt), N)
        ),
        "Δ divides: the longer the step, the fewer pixels a half-life takes": (
            lambda dt, N: dt[:, None] * LN2 / _counted(dt, N)
        ),
        "n is missing: this gives every state of a channel the half-life of the first": (
            lambda dt, N: (LN2 / dt)[:, None].expand(len(dt), N)
        ),
        "A_n is −n; log n is what the parameter A_logs stores": (
            lambda dt, N: LN2 / (dt[:, None] * _counted(dt, N).log())
        ),
        "the natural logarithm of 2 is needed, since the decay is a power of e": (
            lambda dt, N: math.log10(2) / (dt[:, None] * _counted(dt, N))
        ),
        "this is negative: ln ½ = −ln 2, and A = −n is negative too": (
            lambda dt, N: -_half_lives(dt, N)
        ),
        "this is the share left after one pixel, not the number of pixels until a half is left": (
            lambda dt, N: torch.exp(-dt[:, None] * _counted(dt, N))
        ),
        "the columns run from n = N to 1; n = 1 comes first": (
            lambda dt, N: _half_lives(dt, N).flip(1)
        ),
        "pixels may be a fraction: this rounds them": (
            lambda dt, N: _half_lives(dt, N).round(),
            lambda dt, N: _half_lives(dt, N).ceil(),
            lambda dt, N: _half_lives(dt, N).floor(),
        ),
    },
)


# 04.2 — the matrices of HiPPO-LegS


def _legs(N):
    n = torch.arange(N, dtype=torch.float64)
    B = torch.sqrt(2 * n + 1)
    return torch.outer(B, B).tril(-1) + torch.diag(n + 1), B


def _legs_in_loops(N):
    A, B = np.zeros((N, N)), np.zeros(N)
    for n in range(N):
        B[n] = math.sqrt(2 * n + 1)
        for k in range(n):
            A[n, k] = math.sqrt((2 * n + 1) * (2 * k + 1))
        A[n, n] = n + 1
    return A, B


def _shapes(r, N):
    """φ_n(r), and r φ_n'(r), for n = 0 … N − 1: two arrays r.shape + (N,)."""
    scale = np.sqrt(2 * np.arange(N) + 1)
    series = [np.polynomial.Legendre.basis(n, domain=[0, 1]) for n in range(N)]
    values = np.stack([shape(r) for shape in series], axis=-1)
    slopes = np.stack([r * shape.deriv()(r) for shape in series], axis=-1)
    return scale * values, scale * slopes


def _legs_by_integrals(N):
    """A = I + ∫ r φ_n'(r) φ_k(r) dr and B = φ_n(1)."""
    x, w = np.polynomial.legendre.leggauss(N + 1)
    values, slopes = _shapes((x + 1) / 2, N)
    A = np.eye(N) + slopes.T @ (w[:, None] / 2 * values)
    return A, _shapes(np.ones(()), N)[0]


def _like_legs(entry: Callable, diagonal: Callable | None = None, weight: Callable | None = None):
    """A function of N: `entry(n, k)` below the diagonal, the rest as in LegS unless given."""

    def made(N):
        n = torch.arange(N, dtype=torch.float64)
        on = n + 1 if diagonal is None else diagonal(n)
        B = torch.sqrt(2 * n + 1) if weight is None else weight(n)
        return entry(n[:, None], n[None, :]).expand(N, N).tril(-1) + torch.diag(on), B

    return made


def _root(n, k):
    return torch.sqrt((2 * n + 1) * (2 * k + 1))


def _legs_full(N):
    A, B = _legs(N)
    return A + A.tril(-1).T, B


LEGS = Exercise(
    title="The matrices of the whole past",
    difficulty=2,
    hints=(
        "Below the diagonal A is an outer product: `torch.outer(B, B)` has the entry "
        "√(2n+1)·√(2k+1) in row n, column k.",
        "`torch.outer(B, B).tril(-1)` keeps what is strictly below the diagonal; add "
        "`torch.diag(n + 1)`.",
    ),
    specification=_legs,
    alternatives=(_legs_in_loops, _legs_by_integrals),
    arguments=("N",),
    cases=lambda draw: [(1,), (2,), (3,), (5,), (8,), (draw.integer(4, 12),), (20,)],
    mistakes={
        "A is transposed: the slope needs the mean, not the reverse; A is lower triangular": (
            lambda N: (_legs(N)[0].T, _legs(N)[1])
        ),
        "the diagonal is n + 1 with n counted from 0: with n the mean would have rate 0 and never "
        "forget": _like_legs(_root, lambda n: n),
        "the diagonal is n + 1; (√(2n+1))² = 2n + 1 belongs to no entry after the first": (
            _like_legs(_root, lambda n: 2 * n + 1)
        ),
        "tril() keeps the diagonal of the outer product, tril(-1) does not: this adds 2n + 1 to "
        "n + 1": _like_legs(_root, lambda n: 3 * n + 2),
        "A and B are in the other order: return (A, B)": lambda N: _legs(N)[::-1],
        "A and B are positive in this sign convention, both are turned here": (
            lambda N: (-_legs(N)[0], -_legs(N)[1])
        ),
        "the diagonal is empty: it holds n + 1": _like_legs(_root, lambda n: 0 * n),
        "the diagonal is n + 1, not 1": _like_legs(_root, lambda n: 0 * n + 1),
        "the root is missing below the diagonal: √((2n+1)(2k+1))": (
            _like_legs(lambda n, k: (2 * n + 1) * (2 * k + 1))
        ),
        "below the diagonal both factors count, √(2n+1) and √(2k+1)": (
            _like_legs(lambda n, k: torch.sqrt(2 * n + 1 + 0 * k)),
            _like_legs(lambda n, k: torch.sqrt(2 * k + 1 + 0 * n)),
            _like_legs(lambda n, k: 2 * k + 1 + 0 * n),
            _like_legs(lambda n, k: 2 * n + 1 + 0 * k),
        ),
        "n counts from 0, so it is 2n + 1: this has 2n − 1": (
            _like_legs(
                lambda n, k: torch.sqrt((2 * n - 1) * (2 * k - 1)),
                weight=lambda n: torch.sqrt(2 * n - 1),
            ),
            _like_legs(
                lambda n, k: torch.sqrt((2 * n - 1).abs() * (2 * k - 1).abs()),
                weight=lambda n: torch.sqrt((2 * n - 1).abs()),
            ),
        ),
        "n counts from 0: this counts from 1": (
            _like_legs(
                lambda n, k: torch.sqrt((2 * n + 3) * (2 * k + 3)),
                lambda n: n + 2,
                lambda n: torch.sqrt(2 * n + 3),
            ),
            _like_legs(
                lambda n, k: torch.sqrt((2 * n + 3) * (2 * k + 3)),
                weight=lambda n: torch.sqrt(2 * n + 3),
            ),
        ),
        "the sign of A is turned: here c' = (−A c + B f)/t with a positive A": (
            lambda N: (-_legs(N)[0], _legs(N)[1])
        ),
        "above the diagonal all is 0: a shape never needs a finer one": _legs_full,
        "this keeps the diagonal only, which is the step to S4D-real in section 6": (
            _like_legs(lambda n, k: 0 * n * k)
        ),
        "B is √(2n+1): the root is missing": _like_legs(_root, weight=lambda n: 2 * n + 1),
        "B is √(2n+1), not 1 everywhere": _like_legs(_root, weight=lambda n: 0 * n + 1),
        "B has shape (N,), this is a column (N, 1)": (
            lambda N: (_legs(N)[0], _legs(N)[1][:, None])
        ),
        "the entries below the diagonal are positive in this sign convention": (
            _like_legs(lambda n, k: -_root(n, k))
        ),
    },
)


# 04.3 — run it over samples


def _zoh_step(A, B, dt):
    A_bar, B_bar = zoh_matrix(-A, B[:, None], dt)
    return A_bar, B_bar[:, 0]


def _run(f, A, B, step=_zoh_step, clock=lambda k: math.log(k / (k - 1)), first=None):
    """The states after every sample, (L, N)."""
    c = torch.zeros_like(B)
    c[0] = 1.0
    c = f[0] * c if first is None else first(f, B)
    states = [c]
    for k in range(2, len(f) + 1):
        A_bar, B_bar = step(A, B, clock(k))
        c = A_bar @ c + B_bar * f[k - 1]
        states.append(c)
    return torch.stack(states)


def _remember(f, A, B):
    return _run(f, A, B)[-1]


def _remember_by_projection(f, A, B):
    """∫ f(s) φ_n(s/t) ds / t, sample by sample, with Gauss points inside each."""
    L, N = len(f), len(B)
    x, w = np.polynomial.legendre.leggauss(N)
    total = np.zeros(N)
    for k, sample in enumerate(f.tolist()):
        values, _ = _shapes((k + (x + 1) / 2) / L, N)
        total += sample * (w / 2) @ values
    return total / L


def _remember_from_rest(f, A, B):
    """c − f e_0 is multiplied by ((k − 1)/k)^A in every step."""
    rest = torch.zeros_like(B)
    rest[0] = 1.0
    c = f[0] * rest
    for k, sample in enumerate(f[1:], start=2):
        shrink = torch.linalg.matrix_exp(A * math.log((k - 1) / k))
        c = sample * rest + shrink @ (c - sample * rest)
    return c


def _euler_step(A, B, dt):
    return torch.eye(len(B), dtype=A.dtype) - dt * A, dt * B


def _implicit_step(share):
    """The slope at the end of the step counts with this share, that at its start with the rest."""

    def step(A, B, dt):
        one = torch.eye(len(B), dtype=A.dtype)
        solved = torch.linalg.inv(one + share * dt * A)
        return solved @ (one - (1 - share) * dt * A), solved @ (dt * B)

    return step


def _diagonal_step(A, B, dt):
    return _zoh_step(torch.diag(A.diagonal()), B, dt)


def _way(**options):
    return lambda f, A, B: _run(f, A, B, **options)[-1]


def _histories(draw: Draw):
    def drawn(L, N):
        return (draw.uniform(L, low=0.5, high=2.0) * _signs(L), *_legs(N))

    strided_case = (strided(draw.uniform(11, low=0.5, high=2.0) * _signs(11)), *_legs(4))
    return [
        (torch.tensor([4.0, 0.0, 8.0]).double(), *_legs(2)),
        drawn(7, 3),
        strided_case,
        drawn(20, 5),
        drawn(2, 2),
        drawn(1, 3),
        drawn(5, 1),
        drawn(8, 28),  # where a basis of eigenvectors has no digits left
        (drawn(5, 1)[0].float(), *_legs(3)),
        (torch.tensor([0.0, -3.0, 5.0, 1.0]).double(), *_legs(3)),
        (-draw.uniform(4, low=0.5, high=2.0), *_legs(2)),
    ]


def _signs(L):
    """+ + − + + − …: not symmetric under reversal for the lengths used."""
    return torch.tensor([(1.0, 1.0, -1.0)[i % 3] for i in range(L)], dtype=torch.float64)


REMEMBER = Exercise(
    title="One sample at a time, exactly",
    difficulty=3,
    hints=(
        "In the clock ln t the equation is c' = −A c + B f. Which A does `zoh_matrix` want, and "
        "which shape of B?",
        "Start with zeros and set c[0] to the first sample. For k = 2 … L call "
        "`zoh_matrix(-A, B[:, None], math.log(k / (k - 1)))` and take one step with `f[k - 1]`.",
    ),
    specification=_remember,
    alternatives=(_remember_by_projection, _remember_from_rest),
    arguments=("f", "A", "B"),
    cases=_histories,
    mistakes={
        "the 1/t is gone: with the same Δ at every step old samples fade, and the whole past is "
        "not kept": (
            _way(clock=lambda k: 1.0),
            _way(clock=lambda k: 0.1),
            _way(clock=lambda k: 0.01),
            lambda f, A, B: _run(f, A, B, clock=lambda k: 1 / len(f))[-1],
        ),
        "Δ = 1/k is the length of the step in ln t to first order only: it is ln(k/(k−1))": (
            _way(clock=lambda k: 1 / k),
            _way(clock=lambda k: 1 / (k - 1)),
        ),
        "the step that takes in sample k goes from k − 1 to k: ln(k/(k−1)), not ln((k+1)/k) "
        "(or the first sample is taken in twice)": (_way(clock=lambda k: math.log((k + 1) / k))),
        "Δ is the difference of two moments of the clock, ln k − ln(k−1), not ln k itself": (
            _way(clock=lambda k: math.log(k))
        ),
        "the clock is the natural logarithm": (
            _way(clock=lambda k: math.log2(k / (k - 1))),
            _way(clock=lambda k: math.log10(k / (k - 1))),
        ),
        "this is Euler's step, 1 − ΔA and ΔB; the exact one is zoh_matrix": (
            _way(step=_euler_step),
            _way(step=_euler_step, clock=lambda k: 1 / k),
            _way(step=_euler_step, clock=lambda k: 1 / (k - 1)),
        ),
        "this is the bilinear rule, the mean of the slopes at both ends; the exact step is "
        "zoh_matrix": (
            _way(step=_implicit_step(0.5)),
            _way(step=_implicit_step(0.5), clock=lambda k: 1 / k),
        ),
        "this is Euler's step backwards, with the slope at its end; the exact step is zoh_matrix": (
            _way(step=_implicit_step(1.0)),
            _way(step=_implicit_step(1.0), clock=lambda k: 1 / k),
        ),
        "this uses the diagonal of A alone: the slope must see the mean": (
            _way(step=_diagonal_step)
        ),
        "this weighs the sample by Δ·B, the shortcut of the code of VMamba; here the exact weight "
        "is asked": _way(step=lambda A, B, dt: (torch.linalg.matrix_exp(-dt * A), dt * B)),
        "the sign: the equation is c' = −A c + B f, so zoh_matrix wants −A": (
            _way(step=lambda A, B, dt: _zoh_step(-A, B, dt))
        ),
        "A is transposed: coefficient n needs those before it, row n of A": (
            _way(step=lambda A, B, dt: _zoh_step(A.T, B, dt))
        ),
        "Ā is transposed: Ā @ c, with row n of Ā for coefficient n": (
            _way(step=lambda A, B, dt: (_zoh_step(A, B, dt)[0].T, _zoh_step(A, B, dt)[1]))
        ),
        "this weighs the sample by (1 − Ā)·B: the exact weight has A⁻¹ in it, zoh_matrix knows": (
            _way(
                step=lambda A, B, dt: (
                    _zoh_step(A, B, dt)[0],
                    B - _zoh_step(A, B, dt)[0] @ B,
                )
            )
        ),
        "this takes the exponential of every entry; wanted is the matrix exponential": (
            _way(step=lambda A, B, dt: (torch.exp(-dt * A), _zoh_step(A, B, dt)[1]))
        ),
        "the first sample is lost: after it c = (f_1, 0, …, 0)": (
            _way(first=lambda f, B: torch.zeros_like(B))
        ),
        "after one sample the past is constant: its mean is f_1 and every other coefficient is 0": (
            _way(first=lambda f, B: f[0] * B),
            _way(first=lambda f, B: f[0] * torch.ones_like(B)),
        ),
        "step k takes in sample k, which is f[k − 1]: this uses the one before": (
            lambda f, A, B: _remember(torch.cat([f[:1], f[:-1]]), A, B)
        ),
        "the samples are taken from the newest to the oldest": (
            lambda f, A, B: _remember(f.flip(0), A, B)
        ),
        "this stops one sample early": lambda f, A, B: _run(f, A, B)[:-1][-1:].flatten(),
        "this returns the coefficients after every sample; only the last ones are asked": _run,
        "this multiplies by k/(k−1): the old coefficients must shrink, Δ = ln(k/(k−1)) > 0": (
            _way(clock=lambda k: math.log((k - 1) / k))
        ),
        "the new sample enters without its weight B̄": (
            _way(step=lambda A, B, dt: (_zoh_step(A, B, dt)[0], B))
        ),
    },
)


# 04.4 — redraw the past


def _redraw(c, L):
    return _mixture(c, (torch.arange(L, dtype=c.dtype) + 0.5) / L)


def _mixture(c, r, scale=lambda n: math.sqrt(2 * n + 1), shape=None):
    """Σ_n c_n scale(n) shape_n(2r − 1), Legendre polynomials unless another shape is given."""
    x, total = 2 * r - 1, torch.zeros_like(r)
    shapes = _legendre(x, len(c)) if shape is None else shape(x, len(c))
    for n, values in enumerate(shapes):
        total = total + c[n] * scale(n) * values
    return total


def _legendre(x, N):
    shapes = [torch.ones_like(x), x]
    for n in range(1, N):
        shapes.append(((2 * n + 1) * x * shapes[n] - n * shapes[n - 1]) / (n + 1))
    return shapes[:N]


def _legendre_off_by_one(x, N):
    shapes = [torch.ones_like(x), x]
    for n in range(2, N + 1):
        shapes.append(((2 * n + 1) * x * shapes[n - 1] - n * shapes[n - 2]) / (n + 1))
    return shapes[:N]


def _chebyshev(x, N):
    return [torch.cos(n * torch.arccos(x)) for n in range(N)]


def _redraw_by_series(c, L):
    weights = c.numpy() * np.sqrt(2 * np.arange(len(c)) + 1)
    past = np.polynomial.Legendre(weights, domain=[0, L])
    return past(np.arange(L) + 0.5)


def _redraw_by_binomials(c, L):
    """P_n(2r − 1) = Σ_k (−1)^{n+k} C(n, k) C(n+k, k) r^k, in Python integers."""
    samples = []
    for j in range(L):
        r, value = Fraction(2 * j + 1, 2 * L), 0.0
        for n, weight in enumerate(c.tolist()):
            terms = [
                (-1) ** (n + k) * math.comb(n, k) * math.comb(n + k, k) * r**k for k in range(n + 1)
            ]
            value += weight * math.sqrt(2 * n + 1) * float(sum(terms))
        samples.append(value)
    return samples


def _at(moments: Callable):
    return lambda c, L: _mixture(c, moments(torch.arange(L, dtype=c.dtype), L))


def _drawn_with(**options):
    return lambda c, L: _mixture(c, (torch.arange(L, dtype=c.dtype) + 0.5) / L, **options)


def _memories(draw: Draw):
    def drawn(N):
        return draw.uniform(N, low=0.3, high=1.5) * _signs(N)

    return [
        (torch.tensor([4.0, 8 / 9 * math.sqrt(3)]).double(), 3),
        (drawn(4), 7),
        (strided(drawn(5)), 4),
        (drawn(6), 1),
        (drawn(1), 5),
        (drawn(3), 10),
        (drawn(8), 7),
        (drawn(20), 9),
        (drawn(40), 20),
        (-draw.uniform(3, low=0.3, high=1.5), 4),
    ]


REDRAW = Exercise(
    title="Redraw the past",
    difficulty=3,
    hints=(
        "The middle of sample j = 0 … L − 1 lies at the share r = (j + ½)/L of the past, and the "
        "Legendre polynomials want x = 2r − 1.",
        "P_0 = 1, P_1 = x, and (n + 1)·P_{n+1} = (2n + 1)·x·P_n − n·P_{n−1}. Add up "
        "c_n·√(2n+1)·P_n(x).",
    ),
    specification=_redraw,
    alternatives=(_redraw_by_series, _redraw_by_binomials),
    arguments=("c", "L"),
    cases=_memories,
    mistakes={
        "√(2n+1) is missing: the shape φ_n is √(2n+1)·P_n": _drawn_with(scale=lambda n: 1.0),
        "this divides by √(2n+1), the shape has it as a factor": (
            _drawn_with(scale=lambda n: 1 / math.sqrt(2 * n + 1))
        ),
        "the factor is √(2n+1): the root is missing": _drawn_with(scale=lambda n: 2 * n + 1),
        "n counts from 0, so the factor is √(2n+1), not √(2n−1) or √(2n+3)": (
            _drawn_with(scale=lambda n: math.sqrt(abs(2 * n - 1))),
            _drawn_with(scale=lambda n: math.sqrt(2 * n + 3)),
        ),
        "the polynomials want x = 2r − 1 from −1 to 1: this gives them r from 0 to 1": (
            _at(lambda j, L: ((j + 0.5) / L + 1) / 2)
        ),
        "the past is drawn backwards: the oldest sample comes first": (
            lambda c, L: _redraw(c, L).flip(0),
            _at(lambda j, L: 1 - (j + 0.5) / L),  # x = 1 − 2r
        ),
        "this looks at the beginning of each interval; its middle is half a sample later": (
            _at(lambda j, L: j / L)
        ),
        "this looks at the end of each interval; its middle is half a sample earlier": (
            _at(lambda j, L: (j + 1) / L)
        ),
        "this spreads L points from the first moment to the last; the middles of the samples are "
        "(j + ½)/L": (
            lambda c, L: _mixture(c, torch.linspace(0, 1, L, dtype=c.dtype)),
            _at(lambda j, L: j / max(L - 1, 1) + 0 * j),
        ),
        "these are powers of x, not Legendre polynomials": (
            _drawn_with(shape=lambda x, N: [x**n for n in range(N)])
        ),
        "these are powers of r, not Legendre polynomials": (
            _drawn_with(shape=lambda x, N: [((x + 1) / 2) ** n for n in range(N)])
        ),
        "these are Chebyshev's polynomials, not Legendre's": _drawn_with(shape=_chebyshev),
        "the index in the recurrence of the polynomials is off by one": (
            _drawn_with(shape=_legendre_off_by_one)
        ),
        "the coefficients are in the other order: c_0 belongs to the mean": (
            lambda c, L: _redraw(c.flip(0), L)
        ),
        "every coefficient counts: this leaves the last one out": (
            lambda c, L: _redraw(c[:-1], L) if len(c) > 1 else torch.zeros(L, dtype=c.dtype)
        ),
        "this is the mean alone, c_0; the other coefficients give it its shape": (
            lambda c, L: c[:1].expand(L)
        ),
    },
)


# 04.5 — the bias of a fresh model


def _log_uniform(u, low, high):
    return torch.exp(u * (math.log(high) - math.log(low)) + math.log(low))


def _initial_dt_bias(u, low, high):
    return inverse_softplus(_log_uniform(u, low, high))


def _bias_by_powers(u, low, high):
    dt = low * (high / low) ** u.double().numpy()
    return np.log(np.expm1(dt))


def _bias_by_bisection(u, low, high):
    wanted = math.log(low) + u.double() * math.log(high / low)  # of ln Δ
    below, above = torch.full_like(wanted, -60), torch.full_like(wanted, 60)
    for _ in range(200):
        middle = (below + above) / 2
        small = torch.log(torch.log1p(torch.exp(middle))) < wanted
        below, above = torch.where(small, middle, below), torch.where(small, above, middle)
    return above


def _ranges(draw: Draw):
    return [
        (torch.tensor([0.0, 0.25, 0.5, 0.75]).double(), 0.001, 0.1),
        (draw.uniform(6, low=0.05, high=0.95), 0.01, 3.0),
        (strided(draw.uniform(2, 3, low=0.1, high=0.9)), 0.001, 0.1),
        (draw.uniform(1, low=0.2, high=0.8), 0.02, 0.9),
        (torch.linspace(0, 0.9, 10, dtype=torch.float32), 1e-5, 0.1),
        (torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64), 0.5, 8.0),
        (torch.tensor(0.3, dtype=torch.float64), 0.001, 0.1),
        (torch.tensor([0.99], dtype=torch.float64), 0.5, 11.0),
        (torch.tensor([0.2], dtype=torch.float64), 1e-5, 0.1),
    ]


DT_BIAS = Exercise(
    title="The bias of a fresh model",
    difficulty=2,
    hints=(
        "u = 0 must give Δ = low, u → 1 must give Δ = high, and u = ½ their geometric mean "
        "√(low·high). So ln Δ moves evenly with u.",
        "`low * (high / low) ** u` is Δ; `minivmamba.inverse_softplus` of it is the bias.",
    ),
    specification=_initial_dt_bias,
    alternatives=(_bias_by_powers, _bias_by_bisection),
    arguments=("u", "low", "high"),
    cases=_ranges,
    mistakes={
        "Δ goes down to `low`: this keeps it above 1e-4, the floor of other code": (
            lambda u, low, high: inverse_softplus((low * (high / low) ** u).clamp(min=1e-4))
        ),
        "this spreads Δ evenly, not its logarithm: small steps, long memories, would be rare": (
            lambda u, low, high: inverse_softplus(low + (high - low) * u)
        ),
        "right on paper, but exp(Δ) − 1 loses digits for small Δ in float32: expm1 keeps them": (
            lambda u, low, high: torch.log(torch.exp(_log_uniform(u, low, high)) - 1)
        ),
        "right on paper, but 1 − exp(−Δ) loses digits for small Δ in float32: expm1 keeps them": (
            lambda u, low, high: (
                _log_uniform(u, low, high) + torch.log(1 - torch.exp(-_log_uniform(u, low, high)))
            ),
            lambda u, low, high: (
                _log_uniform(u, low, high) + torch.log1p(-torch.exp(-_log_uniform(u, low, high)))
            ),
        ),
        "log Δ is the inverse of exp, not of softplus: close for small Δ only": (
            lambda u, low, high: torch.log(_log_uniform(u, low, high))
        ),
        "this is softplus of Δ; wanted is the number that softplus turns into Δ": (
            lambda u, low, high: F.softplus(_log_uniform(u, low, high))
        ),
        "this is Δ itself; wanted is the bias that softplus turns into Δ": _log_uniform,
        "low and high are swapped: u = 0 must give low": (
            lambda u, low, high: _initial_dt_bias(u, high, low)
        ),
        "exp and log have different bases: 10 and e do not undo each other": (
            lambda u, low, high: inverse_softplus(
                torch.exp(u * math.log10(high / low) + math.log10(low))
            ),
            lambda u, low, high: inverse_softplus(10 ** (u * math.log(high / low) + math.log(low))),
            lambda u, low, high: inverse_softplus(2 ** (u * math.log(high / low) + math.log(low))),
        ),
        "this spreads the bias evenly, not ln Δ: the same for small Δ only": (
            lambda u, low, high: (1 - u) * _inverse(low) + u * _inverse(high)
        ),
        "the exponential is missing: this is the inverse softplus of ln Δ": (
            lambda u, low, high: _inverse_raw(torch.log(_log_uniform(u, low, high)))
        ),
        "the sign of the bias is turned": lambda u, low, high: -_initial_dt_bias(u, low, high),
        "the inverse of the logistic function belongs to a gate, not to softplus": (
            lambda u, low, high: torch.special.logit(_log_uniform(u, low, high))
        ),
        "the Δ in front is missing: Δ + log(1 − e^{−Δ})": (
            lambda u, low, high: torch.log(-torch.expm1(-_log_uniform(u, low, high)))
        ),
        "this is a range of factors, high/low to the power u; it must start at low": (
            lambda u, low, high: inverse_softplus((high / low) ** u)
        ),
    },
)


def _inverse(number: float) -> float:
    return math.log(math.expm1(number))


def _inverse_raw(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


# 04.6 — a range of Δ for wanted half-lives


def _step_range(shortest, longest, N):
    return LN2 / longest, LN2 / (N * shortest)


def _step_range_by_powers(shortest, longest, N):
    """The share of one pixel, ½ to the power 1/pixels, and its logarithm."""
    return -math.log(0.5 ** (1 / longest)), -math.log(0.5 ** (1 / shortest)) / N


def _step_range_by_search(shortest, longest, N):
    def solve(pixels, n):
        low, high = 0.0, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            if math.exp(-n * middle * pixels) > 0.5:
                low = middle
            else:
                high = middle
        return high

    return torch.tensor([solve(longest, 1), solve(shortest, N)], dtype=torch.float64)


STEP_RANGE = Exercise(
    title="Steps for the memory you want",
    difficulty=2,
    hints=(
        "Which state of a channel has the longest half-life, and does it get longer or shorter "
        "when Δ grows?",
        "The longest is n = 1 at dt_min: ln 2/dt_min. The shortest is n = N at dt_max: "
        "ln 2/(N·dt_max). Solve each for its step.",
    ),
    specification=_step_range,
    alternatives=(_step_range_by_powers, _step_range_by_search),
    arguments=("shortest", "longest", "N"),
    cases=lambda draw: [
        (0.5, 700.0, 16),
        (1, 3136, 16),
        (20, 20000, 24),
        (0.5, 10, 1),
        (0.1, 50, 4),
        (20, 2e6, 24),
        (2.0, 56.0, 5),
        (3.0, 40.0, 1),
        (draw.number(0.5, 3.0), draw.number(60.0, 900.0), draw.integer(3, 12)),
    ],
    mistakes={
        "dt_min and dt_max are swapped: the small step has the long memory": (
            lambda shortest, longest, N: _step_range(shortest, longest, N)[::-1]
        ),
        "ln 2 is missing (or log₂ 2 = 1 was taken for it): 1/(nΔ) is the time constant, not the "
        "half-life": (lambda shortest, longest, N: (1 / longest, 1 / (N * shortest))),
        "N is forgotten: the shortest half-life belongs to state N, which decays N times as fast": (
            lambda shortest, longest, N: (LN2 / longest, LN2 / shortest)
        ),
        "the longest half-life belongs to n = 1, so N does not enter dt_min": (
            lambda shortest, longest, N: (LN2 / (N * longest), LN2 / (N * shortest))
        ),
        "N is at the wrong end: the shortest half-life, at dt_max, belongs to state N": (
            lambda shortest, longest, N: (LN2 / (N * longest), LN2 / shortest)
        ),
        "brackets are missing: ln 2/N·shortest multiplies by shortest": (
            lambda shortest, longest, N: (LN2 / longest, LN2 / N * shortest)
        ),
        "divide by N: state N forgets N times as fast, so its step must be smaller": (
            lambda shortest, longest, N: (LN2 / longest, N * LN2 / shortest)
        ),
        "the states are n = 1 … N, so the fastest has n = N, not N − 1 or N + 1": (
            lambda shortest, longest, N: (LN2 / longest, LN2 / max(N - 1, 0.5) / shortest),
            lambda shortest, longest, N: (LN2 / longest, LN2 / (N + 1) / shortest),
        ),
        "Δ and half-life are inverse: a long half-life needs a small step": (
            lambda shortest, longest, N: (longest / LN2, shortest / (N * LN2)),
            lambda shortest, longest, N: (LN2 * shortest / N, LN2 * longest),
            lambda shortest, longest, N: (LN2 * shortest, LN2 * longest),
        ),
        "the natural logarithm of 2 is needed, since the decay is a power of e": (
            lambda shortest, longest, N: (
                math.log10(2) / longest,
                math.log10(2) / (N * shortest),
            )
        ),
        "longest and shortest are mixed up: dt_min belongs to the longest half-life": (
            lambda shortest, longest, N: (LN2 / shortest, LN2 / (N * longest))
        ),
        "these are the negative rates; a step is positive": (
            lambda shortest, longest, N: (-LN2 / longest, -LN2 / (N * shortest))
        ),
        "ln 2 multiplies the inverse of the half-life; this divides by it": (
            lambda shortest, longest, N: (1 / (LN2 * longest), 1 / (N * LN2 * shortest))
        ),
    },
)


EXERCISES = {
    "04.1": HALF_LIVES,
    "04.2": LEGS,
    "04.3": REMEMBER,
    "04.4": REDRAW,
    "04.5": DT_BIAS,
    "04.6": STEP_RANGE,
}

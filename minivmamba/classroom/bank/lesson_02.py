"""The exercises of lesson 02, discretization."""

import math

import numpy as np
import torch
from torch import Tensor

from minivmamba.classroom.exercise import Draw, Exercise, Observed, double, strided
from minivmamba.discretize import bilinear, euler, mamba_rule, phi, zoh

LN2 = math.log(2)


# 02.1 — one scalar step, exactly


def _zoh_step(a, b, dt):
    A_bar = math.exp(a * dt)
    return A_bar, (A_bar - 1) / a * b


def _zoh_by_quadrature(a, b, dt, parts=20000):
    width = dt / parts
    left = [math.exp(a * (dt - (k + 0.5) * width)) for k in range(parts)]
    return math.e ** (a * dt), b * width * sum(left)


def _zoh_by_matrix(a, b, dt):
    M = torch.tensor([[a, b], [0.0, 0.0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(dt * M)[0]


def _scalar_systems(draw: Draw):
    fixed = [(-1.0, 1.0, LN2), (-0.5, 3.0, 0.8), (-4.0, -2.0, 0.3), (0.7, 1.5, 1.1)]
    drawn = [(draw.number(-3, -0.1), draw.number(-2, 2), draw.number(0.05, 1.5)) for _ in range(4)]
    small = [(-9e-4, 1.0, 100.0), (-9e-7, 2.0, 1e5), (-9e-3, 2.0, 1.0)]  # a near 0, exactly
    small += [(-1e-4, 1.0, 9.0), (-9e-6, 10.0, 10.0), (-9e-7, 1.0, 10.0)]
    far = [(-16.0, 1.0, 1.0), (-0.7, 0.0, 0.5), (-1.0, 1.0, 20.0)]
    return fixed + drawn + small + far


STEP = Exercise(
    title="One exact step",
    difficulty=1,
    hints=(
        "Both results stand above the braces in section 3. Mind what the exponent is: the decay "
        "over one step, not over one unit of time.",
        "With a = −1, b = 1, dt = ln 2 both must be ½. With b = 3 only the second one changes.",
    ),
    specification=_zoh_step,
    alternatives=(_zoh_by_quadrature, _zoh_by_matrix),
    arguments=("a", "b", "dt"),
    cases=_scalar_systems,
    mistakes={
        "right on paper, but torch.exp of a Python number is single precision, and e^z − 1 then "
        "loses its digits near 0: use math.exp": (
            lambda a, b, dt: (
                torch.exp(torch.tensor(a * dt)),
                (torch.exp(torch.tensor(a * dt)) - 1) / a * b,
            ),
            lambda a, b, dt: (
                torch.exp(torch.tensor(a * dt)).item(),
                (torch.exp(torch.tensor(a * dt)).item() - 1) / a * b,
            ),
            lambda a, b, dt: (
                np.exp(np.float32(a * dt)),
                (np.exp(np.float32(a * dt)) - np.float32(1)) / np.float32(a) * np.float32(b),
            ),
        ),
        "this B̄ is Δ·b, the shortcut of the code (Euler's); the exact weight lets the input decay "
        "from the moment it arrives": lambda a, b, dt: (math.exp(a * dt), dt * b),
        "this is forward Euler, 1 + Δa and Δ·b: it follows the slope at the start of the step": (
            lambda a, b, dt: (1 + a * dt, dt * b)
        ),
        "b is missing from B̄": lambda a, b, dt: (math.exp(a * dt), math.expm1(a * dt) / a),
        "the sign of B̄ is turned: with a < 0 and b > 0 the input must raise h": (
            lambda a, b, dt: (math.exp(a * dt), -math.expm1(a * dt) / a * b)
        ),
        "Δ is missing from the exponent: e^a is the decay over one unit of time, not over Δ": (
            lambda a, b, dt: (math.exp(a), math.expm1(a) / a * b)
        ),
        "the factor e^{aΔ} in front of the integral is missing: ∫ e^{−as} ds weighs an input by "
        "how it grew, not by how it decays until the end of the step": (
            lambda a, b, dt: (math.exp(a * dt), -math.expm1(-a * dt) / a * b)
        ),
        "B̄ is divided by aΔ but not multiplied by Δ: this is φ(aΔ)·b": (
            lambda a, b, dt: (math.exp(a * dt), math.expm1(a * dt) / (a * dt) * b)
        ),
        "(1 − Ā)·b is right for a = −1 only: divide by −a": (
            lambda a, b, dt: (math.exp(a * dt), -math.expm1(a * dt) * b)
        ),
        "the sign of the exponent is turned: with a < 0 the old state must shrink": (
            lambda a, b, dt: (math.exp(-a * dt), math.expm1(-a * dt) / -a * b),
            lambda a, b, dt: (math.exp(-a * dt), math.expm1(-a * dt) / a * b),
            lambda a, b, dt: (math.exp(-a * dt), math.expm1(a * dt) / a * b),
        ),
        "Ā and B̄ are in the other order: return (Ā, B̄)": lambda a, b, dt: _zoh_step(a, b, dt)[::-1],
    },
)


# 02.2 — two half-steps


def _rule(rule):
    """The rule with the names and the kinds of number that the task speaks of."""

    def named(a, b, dt):
        return rule(float(a), float(b), float(dt))

    named.__name__ = named.__qualname__ = rule.__name__
    return named


def _two_half_steps(rule, a, b, dt):
    A_half, B_half = rule(a, b, dt / 2)
    return A_half * A_half, A_half * B_half + B_half


def _two_full_steps(rule, a, b, dt):
    A_bar, B_bar = rule(a, b, dt)
    return A_bar * A_bar, A_bar * B_bar + B_bar


def _both_forgotten(rule, a, b, dt):
    A_half, B_half = rule(a, b, dt / 2)
    return A_half * A_half, 2 * B_half


def _input_once(rule, a, b, dt):
    A_half, B_half = rule(a, b, dt / 2)
    return A_half * A_half, B_half


def _only_first_input(rule, a, b, dt):
    A_half, B_half = rule(a, b, dt / 2)
    return A_half * A_half, A_half * B_half


def _decay_once(rule, a, b, dt):
    A_half, B_half = rule(a, b, dt / 2)
    return A_half, A_half * B_half + B_half


def _decay_added(rule, a, b, dt):
    A_half, B_half = rule(a, b, dt / 2)
    return 2 * A_half, A_half * B_half + B_half


def _half_steps_by_running(rule, a, b, dt):
    A_bar, B_bar = rule(a, b, dt / 2)

    def run(h, x):
        for _ in range(2):
            h = A_bar * h + B_bar * x
        return h

    return [run(1.0, 0.0), run(0.0, 1.0)]


def _half_steps_as_matrices(rule, a, b, dt):
    A_half, B_half = map(float, rule(a, b, dt / 2))
    M = torch.tensor([[A_half, B_half], [0.0, 1.0]], dtype=torch.float64)
    return (M @ M)[0]


def _systems_and_rules(draw: Draw):
    systems = [(-1.0, 1.0, LN2), (-3.0, -0.5, 0.4), (0.2, 2.0, 1.0)]
    systems.append((draw.number(-2, -0.2), draw.number(0.5, 2), draw.number(0.1, 0.9)))
    rules = [_rule(rule) for rule in (zoh, mamba_rule, euler, bilinear)]
    of_the_lesson = [(rule, *system) for rule in rules for system in systems]
    return [
        *of_the_lesson,
        (_rule(euler), -3.0, 1.0, 1.0),  # Ā of a half-step is negative
        (_rule(zoh), 0.0, 1.0, 1.0),
        (_rule(backward_euler), -1.0, 2.0, 0.5),  # Python numbers, as in exercise 2.1
        (_rule(another_rule), -1.0, 2.0, 0.5),
    ]


def backward_euler(a, b, dt):
    return 1 / (1 - a * dt), dt * b / (1 - a * dt)


def another_rule(a, b, dt):
    """No good rule, but a rule: it decays by e^a however short the step."""
    return [math.exp(a), dt * b]


HALF_STEPS = Exercise(
    title="Two half-steps",
    difficulty=1,
    hints=(
        "Call the rule once, with dt / 2. Then write h after the first half-step as a formula in "
        "h and x, and put it into the second.",
        "What entered in the first half-step decays during the second; what enters in the second "
        "does not.",
    ),
    specification=_two_half_steps,
    alternatives=(_half_steps_by_running, _half_steps_as_matrices),
    arguments=("rule", "a", "b", "dt"),
    cases=_systems_and_rules,
    mistakes={
        "these are two steps of length Δ; each half-step has length Δ/2": _two_full_steps,
        "this is the rule itself over Δ; take two steps of Δ/2 and put one into the other": (
            lambda rule, a, b, dt: rule(a, b, dt)
        ),
        "this is one half-step; put it into a second one": lambda rule, a, b, dt: rule(
            a, b, dt / 2
        ),
        "the input of the first half-step must still decay during the second: Ā·B̄ + B̄, not "
        "2·B̄": _both_forgotten,
        "the held input acts in both half-steps: this counts the second one only": _input_once,
        "the held input acts in both half-steps: this counts the first one only": (
            _only_first_input
        ),
        "the state decays in both half-steps: Ā·Ā, not Ā": _decay_once,
        "decays multiply, they do not add: Ā·Ā, not 2·Ā": _decay_added,
    },
)


# 02.3 — B̄ for tensors, a = 0 included


def _b_bar(a, b, dt):
    return dt * b * phi(dt * a)


def _value_and_gradient(function, case):
    """The value, and where single precision allows a fair answer also its gradient by a.

    In float32 even a good quotient has lost digits of its derivative at z = −0.01, so there the
    gradient is looked at only where a series is the one right way: next to 0.
    """
    a, b, dt = case
    if a.dtype == torch.float32 and (a * dt).abs().max() > 1e-6:
        return Observed(value=function(a, b, dt))
    with torch.enable_grad():  # whatever an earlier cell has switched off
        value = function(a.requires_grad_(), b, dt)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"expected a floating-point tensor, got {kind}")
        gradient = torch.zeros_like(a)  # of an answer that does not depend on a
        if value.requires_grad:
            (found,) = torch.autograd.grad(value.sum(), a, allow_unused=True)
            gradient = gradient if found is None else found
    return Observed(value=value, gradient=gradient)


def _quotient_with_where(a, b, dt):
    z = dt * a
    return torch.where(z == 0, dt * b, dt * b * torch.expm1(z) / z)


def _shifted(by):
    def weight(a, b, dt):
        z = dt * a + by
        return dt * b * torch.expm1(z) / z

    return weight


def _exp_minus_one(near):
    """A series near 0 and the quotient with exp(z) − 1 elsewhere."""

    def weight(a, b, dt):
        z = dt * a
        safe = torch.where(z.abs() <= near, torch.ones_like(z), z)
        quotient = (torch.exp(safe) - 1) / safe
        return dt * b * torch.where(z.abs() <= near, 1 + z / 2 * (1 + z / 3), quotient)

    return weight


def _series_at_zero_only(a, b, dt):
    z = dt * a
    safe = torch.where(z == 0, torch.ones_like(z), z)
    return dt * b * torch.where(z == 0, 1 + z / 2, torch.expm1(safe) / safe)


def _constant(near):
    """φ = 1 near 0."""

    def weight(a, b, dt):
        z = dt * a
        safe = torch.where(z.abs() <= near, torch.ones_like(z), z)
        share = torch.where(z.abs() <= near, torch.ones_like(z), torch.expm1(safe) / safe)
        return dt * b * share

    return weight


def _series(near, terms):
    """The series with so many terms for |z| < near, the quotient elsewhere."""

    def weight(a, b, dt):
        z = dt * a
        close = z.abs() < near
        safe = torch.where(close, torch.ones_like(z), z)
        series = sum(z**k / math.factorial(k + 1) for k in range(terms))
        return dt * b * torch.where(close, series, torch.expm1(safe) / safe)

    return weight


def _series_by_a(near, terms):
    """As `_series`, but it asks whether a is near 0."""

    def weight(a, b, dt):
        z = dt * a
        close = (a.abs() < near).expand_as(z)
        safe = torch.where(close, torch.ones_like(z), z)
        series = sum(z**k / math.factorial(k + 1) for k in range(terms))
        return dt * b * torch.where(close, series, torch.expm1(safe) / safe)

    return weight


def _quotient_with_exp(a, b, dt):
    z = dt * a
    return torch.where(z == 0, dt * b, dt * b * (torch.exp(z) - 1) / z)


NAN_GRADIENT = (
    "the values are right, but the gradient at a = 0 is NaN: the 0/0 was computed and replaced "
    "afterwards (where computes both branches), and still reaches the gradient; make its argument "
    "safe first"
)
CUT = "the values are right, but the way from a to the result is cut, so there is no gradient"


def _spoiled_gradient(observed, expected):
    """If every value is about right: NAN_GRADIENT if a gradient is NaN, CUT if there is none."""
    for ours, theirs in zip(expected, observed, strict=True):
        right, value = ours["value"].double(), theirs["value"].double()
        if value.shape != right.shape or not torch.allclose(value, right, rtol=1e-4):
            return ""
    gradients = [case["gradient"] for case in observed if "gradient" in case]
    if any(bool(g.isnan().any()) for g in gradients):
        return NAN_GRADIENT
    return "" if any(bool(g.any()) for g in gradients) else CUT


ONE = torch.tensor(1.0, dtype=torch.float64)
ENTRIES = torch.tensor([0.0, -1e-3, 2e-3, -0.05, -0.5, -1.0, -16.0, 0.3], dtype=torch.float64)


def _b_bar_by_quadrature(a, b, dt):
    """Gauss points on [0, 1]: no special case at 0 at all."""
    points, weights = np.polynomial.legendre.leggauss(40)
    z = dt * a
    total = torch.zeros_like(z)
    for point, weight in zip(points, weights, strict=True):
        total = total + weight / 2 * torch.exp(z * (1 + point) / 2)
    return dt * b * total


def _b_bar_by_sinh(a, b, dt):
    z = dt * a / 2
    tiny = z.abs() < 1e-2
    safe = z.masked_fill(tiny, 1.0)
    near = 1 + z**2 / 6 * (1 + z**2 / 20)
    return dt * b * torch.exp(z) * torch.where(tiny, near, torch.sinh(safe) / safe)


def _entries(draw: Draw):
    drawn = torch.cat([ENTRIES[:3], draw.uniform(3, low=-3, high=0)]).view(2, 3)
    b = draw.uniform(3, low=-2, high=2)
    dt = draw.uniform(2, 1, low=0.01, high=1)
    return [
        (ENTRIES, ONE, ONE),
        (drawn, b, dt),
        (strided(drawn), b, dt),
        (drawn.T.contiguous().T, b, dt),
        (double(0, -1e-3, -1), double(1, 2, -1), double(0.1, 0.7).view(2, 1)),  # b, dt wider
        (
            double(1.3e-5, -2e-5, 3.7e-5, -9e-7, 9.9e-4, -1.9e-2, -4.9e-2, 0.099, -0.49, 0.99),
            ONE,
            ONE,
        ),
        (double(8e-5, -9e-4, 9e-3, 0, -1), ONE, double(20)),
        (double(-40, 3), ONE, ONE),
        (double(9e-6, 9e-7, 0), ONE, double(1000)),
        (torch.zeros(1).double(), torch.ones(1).double(), torch.ones(1).double() / 2),
        (double(0, 1e-12, -1e-8, 3e-6, -9e-6, 8e-5, 2e-10, -3.3e-9), ONE, ONE),
        (-torch.logspace(-4, 0, 13, dtype=torch.float32), ONE.float(), ONE.float()),
        (torch.tensor([1e-9, -1e-8, 1e-7, 0.0], dtype=torch.float32), ONE.float(), ONE.float()),
        (torch.logspace(-9, -6.01, 20, dtype=torch.float32), ONE.float(), ONE.float()),
        (-torch.logspace(-9, -6.01, 20, dtype=torch.float32), ONE.float(), ONE.float()),
        # A small Δ brings a large a near 0 (b is large so that the gradient counts), …
        *[
            (torch.tensor(a), torch.tensor(b), torch.tensor(dt))
            for a, b, dt in [
                ([-5e-6, -2e-6], 50.0, 0.1),
                ([-3e-5, -2e-5], 1e3, 0.02),
                ([-2e-4, 3e-4], 1e5, 0.002),
                ([-2e-3, 3e-3], 1e7, 2e-4),
            ]
        ],
        # … and a large Δ takes a small a away from it.
        *[(double(a), ONE, double(dt)) for a, dt in [(-9e-4, 1e3), (9e-5, 1e4), (9e-6, 1e5)]],
        (double(9e-7), ONE, double(1e6)),
    ]


NEAR_ZERO = Exercise(
    title="Exact B̄ near a = 0",
    difficulty=4,
    hints=(
        "Near 0 use the series of φ: 1 + z/2 + z²/6 is enough for |z| < 0.0001. With one term more "
        "it holds for |z| < 0.005, which the gradient in float32 would thank you for. Elsewhere "
        "use `torch.expm1(z) / z`.",
        "`torch.where` computes both branches, also where it does not choose them, and 0/0 in a "
        "branch not chosen still makes the gradient NaN. So change the *argument* of the quotient "
        "first, to anything harmless such as 1, and choose afterwards.",
    ),
    specification=_b_bar,
    alternatives=(_b_bar_by_quadrature, _b_bar_by_sinh),
    arguments=("a", "b", "dt"),
    cases=_entries,
    observe=_value_and_gradient,
    diagnose=_spoiled_gradient,
    mistakes={
        "this is Euler's ΔB, not the exact integral": (
            lambda a, b, dt: dt * b + 0 * a,
            lambda a, b, dt: dt * b,
        ),
        "b is missing": lambda a, b, dt: dt * phi(dt * a),
        "Δ is missing: this is φ(Δa)·b": lambda a, b, dt: b * phi(dt * a),
        "at a = 0 this is 0/0: the value there is NaN; the limit is Δ·b": (
            lambda a, b, dt: dt * b * torch.expm1(dt * a) / (dt * a)
        ),
        "at a = 0 this is 0/0: the value there is NaN; the limit is Δ·b (and exp(z) − 1 loses "
        "digits near 0: expm1 keeps them)": (
            lambda a, b, dt: dt * b * (torch.exp(dt * a) - 1) / (dt * a)
        ),
        NAN_GRADIENT: (_quotient_with_where, _quotient_with_exp),
        "a small number added to the denominator moves every value a little, also where there is "
        "no danger": tuple(_shifted(by) for by in (1e-4, 1e-6, 1e-8, 1e-10)),
        "right on paper, but exp(z) − 1 loses digits near 0 in float32: expm1 keeps them": tuple(
            _exp_minus_one(near) for near in (0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
        ),
        "the series is used too far from 0 for its number of terms: the gradient needs one term "
        "more, or a smaller limit": tuple(
            _series(near, terms)
            for near, terms in [(1e-3, 3), (1e-2, 3), (2e-2, 4), (0.1, 5), (0.5, 8), (1, 10)]
        ),
        "near 0 is a question to z = Δa, not to a: a small Δ brings a large a near 0, a large Δ "
        "takes a small a away": tuple(
            _series_by_a(near, terms) for near in (1e-6, 1e-5, 1e-4, 1e-3) for terms in (3, 4, 6)
        ),
        "next to 0 the quotient is used where its gradient has lost its digits (in float32 up to "
        "|z| = 1e-6): widen the limit of the series, and give it a term more if it has two": tuple(
            _series(near, 2) for near in (1e-7, 1.2e-7, 3e-7, 1e-6, 1e-5, 1e-4, 1e-3)
        ),
        "the values are right, but next to 0 the gradient of the quotient loses all its digits: it "
        "is the difference of two huge numbers; use the series in a neighbourhood of 0, not at 0 "
        "only": _series_at_zero_only,
        "the values are right, but what is held constant near 0 has no slope: the gradient there "
        "is ½·Δ²·b, so the series needs its term z/2": tuple(
            _constant(near) for near in (0, 1e-8, 1e-6, 1e-4)
        ),
    },
)


# 02.4 — the bias that gives a wanted Δ


def _initial_bias(dt):
    return dt + torch.log(-torch.expm1(-dt))


def _bias_by_bisection(dt):
    low, high = torch.full_like(dt, -60), dt.clone()  # softplus(x) > x
    for _ in range(200):
        middle = (low + high) / 2
        too_low = torch.log1p(torch.exp(middle)) < dt
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return high


def _steps(draw: Draw):
    return [
        (torch.logspace(-4, 0, 9, dtype=torch.float32),),
        (torch.logspace(-6, 1, 29, dtype=torch.float64),),
        (torch.tensor([[0.001, 0.1], [3.0, 10.0]], dtype=torch.float64),),
        (torch.tensor(LN2, dtype=torch.float64),),
        (strided(10 ** draw.uniform(2, 3, low=-5, high=0.5)),),
        (torch.tensor([1e-12, 1e-10], dtype=torch.float64),),
        (torch.tensor([12.0, 25.0], dtype=torch.float64),),
        (torch.tensor([0.68, 0.7, 0.71], dtype=torch.float64),),
        (torch.tensor([9e-7, 1e-12, 1.5e-7, 13.5], dtype=torch.float64),),
        (torch.tensor([1e-12, 1e-9, 5e-8, 12.0, 25.0], dtype=torch.float32),),
    ]


def _bias_and_step(function, case):
    """The bias, and the step that softplus makes of it as a share of the wanted one."""
    (dt,) = case
    wanted = dt.double().clone()  # before the answer may write into it
    bias = function(dt)
    wide = torch.as_tensor(bias, dtype=torch.float64).detach().to_dense()
    return Observed(bias=bias, share_of_dt=torch.nn.functional.softplus(wide) / wanted)


BIAS = Exercise(
    title="The bias for a wanted Δ",
    difficulty=2,
    hints=(
        "The last form of the formula, with `expm1` for the part in brackets.",
        "1 − e^{−Δ} = −(e^{−Δ} − 1).",
    ),
    specification=_initial_bias,
    alternatives=(lambda dt: torch.log(torch.expm1(dt)), _bias_by_bisection),
    arguments=("dt",),
    cases=_steps,
    observe=_bias_and_step,
    mistakes={
        "right on paper, but exp(Δ) − 1 loses digits for small Δ in float32: expm1 keeps them": (
            lambda dt: torch.log(torch.exp(dt) - 1)
        ),
        "right on paper, but 1 − exp(−Δ) loses digits for small Δ in float32: expm1 keeps them": (
            lambda dt: dt + torch.log(1 - torch.exp(-dt)),
            lambda dt: dt + torch.log1p(-torch.exp(-dt)),
            lambda dt: dt + torch.log(1 - 1 / torch.exp(dt)),
            lambda dt: dt.numpy() + np.log(1 - np.exp(-dt.numpy())),
        ),
        "the sign in the exponent and the sign in front belong together: −expm1(−Δ), or expm1(Δ)": (
            lambda dt: torch.log(torch.expm1(-dt)),
            lambda dt: dt + torch.log(torch.expm1(-dt)),
        ),
        "this is softplus itself; wanted is the number that softplus turns into Δ": (
            torch.nn.functional.softplus
        ),
        "log Δ is the inverse of exp, not of softplus: close for small Δ only": torch.log,
        "the Δ in front is missing or has the wrong sign: x = Δ + log(1 − e^{−Δ}), or log(e^Δ − 1) "
        "alone": (lambda dt: torch.log(-torch.expm1(-dt))),
        "this returns Δ unchanged": lambda dt: dt,
    },
)


# 02.5 — a clock that ticks unevenly


def _simulate(step, dts, xs):
    """Run h ← step(h, previous x, x, dt) and collect the states."""
    h, previous, hs = torch.zeros((), dtype=xs.dtype), torch.zeros((), dtype=xs.dtype), []
    for dt, x in zip(dts, xs, strict=True):
        h = step(h, previous, x, dt)
        previous = x
        hs.append(h)
    return torch.stack(hs)


def _uneven_clock(a, b, dts, xs):
    return _simulate(lambda h, _, x, dt: torch.exp(a * dt) * h + _gain(a, b, dt) * x, dts, xs)


def _gain(a, b, dt):
    return torch.expm1(a * dt) / a * b


def _uneven_clock_in_numpy(a, b, dts, xs):
    level, levels = 0.0, []
    for dt, x in zip(dts.tolist(), xs.tolist(), strict=True):
        rest = -b * x / a
        level = rest + (level - rest) * math.exp(a * dt)
        levels.append(level)
    return levels


def _uneven_clock_by_sums(a, b, dts, xs):
    time = dts.cumsum(0)
    decay = torch.exp(a * (time[:, None] - time[None, :])).tril()
    return decay @ (torch.expm1(a * dts) / a * b * xs)


def _clocks(draw: Draw):
    dts, xs = draw.uniform(7, low=0.05, high=1.5), draw.uniform(7, low=-2, high=2)
    return [
        (-0.7, 1.5, dts, xs),
        (draw.number(-2, -0.3), draw.number(0.5, 2), strided(dts.flip(0)), strided(xs)),
        (-2.0, -1.0, torch.tensor([0.4]).double(), torch.tensor([3.0]).double()),
        (0.6, 2.0, torch.tensor([0.3, 1.2]).double(), torch.tensor([1.0, -2.0]).double()),
        (-1.0, 1.0, torch.tensor([LN2] * 3).double(), torch.tensor([4.0, 0.0, 8.0]).double()),
        (-1.0, 1.5, torch.tensor([0.5, 1.0, 0.25]), torch.tensor([4.0, 0.0, 8.0])),  # single
        (-9e-4, 1.0, double(100, 50), double(1, 2)),
        (-0.1, 1.0, double(5, 3), double(1, -2)),
        (-0.1, 1.0, double(0.09, 0.05), double(1, 2)),
        (-1e-3, 1.0, double(0.9, 0.5), double(1, 2)),
        *[(a, 1.0, double(1, 0.5), double(1, 2)) for a in (-9e-5, -9e-6, -9e-7)],
        *[(a, 1.0, double(-0.09, -0.045) / a, double(1, 2)) for a in (-9e-5, -9e-6, -9e-7)],
        (-0.01, 1.0, torch.ones(100).double(), torch.ones(100).double()),
        (-2.0, 1.0, draw.uniform(900, low=0.5, high=1.5), draw.uniform(900)),
    ]


def _two_cumulative_sums(a, b, dts, xs):
    decay = torch.exp(a * dts).cumprod(0)
    return decay * (_gain(a, b, dts) * xs / decay).cumsum(0)


UNEVEN = Exercise(
    title="A clock that ticks unevenly",
    difficulty=2,
    hints=(
        "Exercise 2.1 inside a loop: compute A_bar and B_bar anew for every step.",
        "Collect the states in a list and return `torch.stack` of it. The input of the step that "
        "ends at t is x_t, which is `xs[t]` of the same round.",
    ),
    specification=_uneven_clock,
    alternatives=(_uneven_clock_in_numpy, _uneven_clock_by_sums),
    arguments=("a", "b", "dts", "xs"),
    cases=_clocks,
    mistakes={
        "this uses x_{t−1}: the hold covers the interval that ends at t, with the input x_t": (
            lambda a, b, dts, xs: _simulate(
                lambda h, before, _, dt: torch.exp(a * dt) * h + _gain(a, b, dt) * before, dts, xs
            )
        ),
        "this weighs the input by Δ·b, the shortcut of the code; here the exact B̄ is asked": (
            lambda a, b, dts, xs: _simulate(
                lambda h, _, x, dt: torch.exp(a * dt) * h + dt * b * x, dts, xs
            )
        ),
        "right on paper, but the product of all decays reaches 0 on a long clock, and dividing by "
        "it gives NaN: step through the sequence": _two_cumulative_sums,
        "every interval has its own Δ: this uses the first one throughout": (
            lambda a, b, dts, xs: _uneven_clock(a, b, dts[0].expand_as(dts), xs)
        ),
        "every interval has its own Δ: this uses their mean": (
            lambda a, b, dts, xs: _uneven_clock(a, b, dts.mean().expand_as(dts), xs)
        ),
        "the state is not carried on: h_t needs Ā·h_{t−1}": (
            lambda a, b, dts, xs: _gain(a, b, dts) * xs
        ),
        "this returns the last state only; one state per sample is asked": (
            lambda a, b, dts, xs: _uneven_clock(a, b, dts, xs)[-1]
        ),
        "(1 − Ā)·b is right for a = −1 only: divide by −a": (
            lambda a, b, dts, xs: _simulate(
                lambda h, _, x, dt: torch.exp(a * dt) * h - torch.expm1(a * dt) * b * x, dts, xs
            )
        ),
        "h_0 is not part of the answer: the first state asked is the one after the first input": (
            lambda a, b, dts, xs: torch.cat(
                [torch.zeros_like(xs[:1]), _uneven_clock(a, b, dts, xs)]
            ),
            lambda a, b, dts, xs: torch.cat(
                [torch.zeros_like(xs[:1]), _uneven_clock(a, b, dts, xs)[:-1]]
            ),
        ),
        "the new input decays too: Ā multiplies the old state only": (
            lambda a, b, dts, xs: _simulate(
                lambda h, _, x, dt: torch.exp(a * dt) * (h + _gain(a, b, dt) * x), dts, xs
            )
        ),
    },
)


EXERCISES = {
    "02.1": STEP,
    "02.2": HALF_STEPS,
    "02.3": NEAR_ZERO,
    "02.4": BIAS,
    "02.5": UNEVEN,
}

"""Discretization: each rule against an independent source, and against what makes it that rule."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from minivmamba import bilinear, euler, inverse_softplus, mamba_rule, zoh, zoh_matrix
from minivmamba.discretize import phi

RULES = [zoh, mamba_rule, euler, bilinear]
DOUBLE = {"rtol": 1e-12, "atol": 1e-14}  # a few roundings of 2e-16


def system(N=4, M=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(N, N, generator=generator, dtype=torch.float64)
    B = torch.randn(N, M, generator=generator, dtype=torch.float64)
    return A, B


@pytest.mark.parametrize("dt", [1e-6, 0.3, 2.0])
@pytest.mark.parametrize("singular", [False, True])
def test_zoh_matrix_agrees_with_scipy(dt, singular):
    A, B = system()
    if singular:
        A[0] = A[1]
    C, D = np.ones((1, 4)), np.zeros((1, 2))
    expected_A, expected_B, *_ = scipy.signal.cont2discrete(
        (A.numpy(), B.numpy(), C, D), dt, method="zoh"
    )
    A_bar, B_bar = zoh_matrix(A, B, dt)
    np.testing.assert_allclose(A_bar, expected_A, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(B_bar, expected_B, rtol=1e-11, atol=1e-13)


def test_zoh_is_the_exponential_of_the_augmented_matrix():
    """The diagonal form, entry by entry, from scipy's expm of a 2 × 2 matrix."""
    for a, b, dt in [(-1.0, 1.0, 0.5), (-16.0, -2.0, 0.1), (0.0, 3.0, 0.7), (0.8, 1.0, 2.0)]:
        expected = scipy.linalg.expm(dt * np.array([[a, b], [0.0, 0.0]]))
        A_bar, B_bar = zoh(a, b, dt)
        np.testing.assert_allclose([A_bar, B_bar], expected[0], rtol=1e-12)


@pytest.mark.parametrize("rule", [euler, bilinear])
def test_euler_and_bilinear_agree_with_scipy(rule):
    A, B = tensor([[-1.5]]).double(), tensor([[0.7]]).double()
    # scipy's bilinear also moves C and D, so only the pair (A, B) is comparable.
    expected_A, expected_B, *_ = scipy.signal.cont2discrete(
        (A.numpy(), B.numpy(), np.ones((1, 1)), np.zeros((1, 1))), 0.4, method=rule.__name__
    )
    A_bar, B_bar = rule(A, B, 0.4)
    np.testing.assert_allclose(A_bar, expected_A, rtol=1e-12)
    np.testing.assert_allclose(B_bar, expected_B, rtol=1e-12)


def test_zoh_is_exact_for_piecewise_constant_input():
    """Against the closed solution of a 2-state system, evaluated far finer than the step."""
    A, B = tensor([[0.0, 1.0], [-4.0, -0.4]]).double(), tensor([[0.0], [1.0]]).double()
    inputs, dt, fine = [1.0, -2.0, 0.5, 3.0], 0.6, 4000
    A_bar, B_bar = zoh_matrix(A, B, dt)
    A_fine, B_fine = zoh_matrix(A, B, dt / fine)
    coarse_h = fine_h = torch.zeros(2, 1, dtype=torch.float64)
    for x in inputs:
        coarse_h = A_bar @ coarse_h + B_bar * x
        for _ in range(fine):
            fine_h = A_fine @ fine_h + B_fine * x
        torch.testing.assert_close(coarse_h, fine_h, rtol=1e-10, atol=1e-12)


@given(a=st.floats(-30, 2), b=st.floats(-5, 5), dt=st.floats(1e-4, 2))
def test_two_half_steps_of_zoh_are_one_step(a, b, dt):
    A_half, B_half = zoh(a, b, dt / 2)
    A_bar, B_bar = zoh(a, b, dt)
    torch.testing.assert_close(A_half * A_half, A_bar, **DOUBLE)
    torch.testing.assert_close(A_half * B_half + B_half, B_bar, **DOUBLE)


@pytest.mark.parametrize("rule", [mamba_rule, euler, bilinear])
def test_two_half_steps_tell_the_other_rules_apart(rule):
    A_half, B_half = rule(-1.0, 1.0, math.log(2) / 2)
    _, B_bar = rule(-1.0, 1.0, math.log(2))
    assert abs(A_half * B_half + B_half - B_bar) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zoh_near_zero(dtype):
    """Value and both derivatives against the series, from A = 0 through the change of branch."""
    eps = torch.finfo(dtype).eps
    magnitudes = torch.logspace(-12, 0, 200, dtype=dtype)
    z = torch.cat([-magnitudes, tensor([0.0, 0.0999999, 0.1, -0.1], dtype=dtype), magnitudes])
    z.requires_grad_()
    value = phi(z)
    (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)

    def series(z, order):  # the derivative of order n of Σ z^k / (k + 1)!
        terms = range(order, 30)
        return sum(
            math.perm(k, order) * z.double() ** (k - order) / float(math.factorial(k + 1))
            for k in terms
        )

    exact = z.detach().double()
    # Each division by z (at least 0.1 there) costs a digit.
    for got, order, tolerance in [(value, 0, 4), (first, 1, 100), (second, 2, 4000)]:
        torch.testing.assert_close(
            got.detach().double(), series(exact, order), rtol=tolerance * eps, atol=0
        )


def test_zoh_at_zero_has_the_limit_and_finite_gradients():
    A = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    dt = tensor([0.1, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    A_bar, B_bar = zoh(A, 3.0, dt)
    torch.testing.assert_close(B_bar, 3 * dt)
    dA, ddt = torch.autograd.grad((A_bar + B_bar).sum(), [A, dt])
    torch.testing.assert_close(dA, dt + 1.5 * dt**2)  # d/da of e^{Δa} + 3Δ(1 + Δa/2 + …)
    torch.testing.assert_close(ddt, torch.full_like(dt, 3.0))


def test_zoh_does_not_overflow_into_its_gradient():
    A = tensor([-1e30, -1e4, 0.0], requires_grad=True)
    A_bar, B_bar = zoh(A, 1.0, 1.0)
    (gradient,) = torch.autograd.grad((A_bar + B_bar).sum(), A)
    assert torch.isfinite(B_bar).all() and torch.isfinite(gradient).all()


def test_rules_gradcheck():
    A = -torch.rand(3, 4, dtype=torch.float64).requires_grad_()
    B = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    dt = torch.rand(3, 1, dtype=torch.float64, requires_grad=True)
    for rule in RULES:
        assert torch.autograd.gradcheck(rule, (A, B, dt)), rule


@pytest.mark.parametrize("rule", RULES)
def test_rules_agree_as_the_step_shrinks(rule):
    """All rules are first-order approximations of zoh: the distance shrinks at least as Δ²."""
    distance = []
    for dt in (1e-2, 1e-3):
        (A_bar, B_bar), (A_zoh, B_zoh) = rule(-2.0, 1.0, dt), zoh(-2.0, 1.0, dt)
        distance.append(abs(A_bar - A_zoh) + abs(B_bar - B_zoh))
    assert distance[1] <= distance[0] / 90


def test_diagonal_of_zoh_matrix_is_zoh():
    diagonal, B = -torch.rand(5, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    A_bar, B_bar = zoh_matrix(torch.diag(diagonal), B, 0.3)
    expected_A, expected_B = zoh(diagonal, B[:, 0], 0.3)
    torch.testing.assert_close(A_bar, torch.diag(expected_A), **DOUBLE)
    torch.testing.assert_close(B_bar[:, 0], expected_B, **DOUBLE)


def test_complex_entries_turn_and_decay():
    A_bar, B_bar = zoh(-0.5 + 2j, 1.0, 0.3)
    assert A_bar.dtype == torch.complex128
    np.testing.assert_allclose(A_bar, np.exp(0.3 * (-0.5 + 2j)), rtol=1e-14)
    np.testing.assert_allclose(B_bar, (np.exp(0.3 * (-0.5 + 2j)) - 1) / (-0.5 + 2j), rtol=1e-14)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_zoh_matrix_in_half_precision(dtype, digits):
    A, B = system()
    low = zoh_matrix(A.to(dtype), B.to(dtype), 0.1)
    for got, exact in zip(low, zoh_matrix(A, B, 0.1), strict=True):
        assert got.dtype == dtype
        assert (got - exact).norm() < digits * exact.norm()


def test_mixed_arguments_are_computed_in_the_widest_dtype():
    """A number or a float32 tensor must not cost a float64 one its digits."""
    exact_A, exact_B = zoh(-1.0, 1.0, 0.1)
    for A in (torch.tensor(-1.0).double(), -torch.ones(3), np.float32(-1)):
        for B in (torch.ones(3).double(), torch.ones(3, 1).double()):
            A_bar, B_bar = zoh(A, B, 0.1)
            assert A_bar.dtype == B_bar.dtype == torch.float64
            assert (A_bar - exact_A).abs().max() < 1e-15 > (B_bar - exact_B).abs().max()


def test_dtypes():
    assert zoh(-1.0, 1.0, 0.5)[0].dtype == torch.float64
    assert zoh(torch.ones(2), 1.0, 0.5)[1].dtype == torch.float32
    assert zoh(torch.ones(2).double(), 1.0, 0.5)[1].dtype == torch.float64
    assert zoh(torch.ones(2, dtype=torch.bfloat16), 1.0, 0.5)[1].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_softplus(dtype):
    y = torch.logspace(-6, 2, 100, dtype=dtype)
    # log(e^x + e^0) is the exact softplus; F.softplus returns x itself above 20.
    back = torch.logaddexp(inverse_softplus(y), torch.zeros_like(y))
    torch.testing.assert_close(back, y, rtol=20 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: zoh("1", 1.0, 1.0), TypeError, "A: expected a number or a tensor, got str"),
        (lambda: zoh(-1.0, None, 1.0), TypeError, "B: expected a number or a tensor, got None"),
        (lambda: euler(-1.0, 1.0, True), TypeError, "dt: expected a number or a tensor, got bool"),
        (
            lambda: zoh(torch.ones(2, dtype=torch.int64), 1.0, 1.0),
            TypeError,
            "A: expected a floating-point tensor, got torch.int64",
        ),
        (
            lambda: zoh(torch.ones(2), torch.ones(3), 1.0),
            ValueError,
            r"broadcast together, got A \(2,\), B \(3,\)",
        ),
        (
            lambda: zoh(torch.ones(2), torch.ones(2, device="meta"), 1.0),
            ValueError,
            "one device, got A on cpu, B on meta",
        ),
        (
            lambda: zoh_matrix(torch.ones(2, 3), torch.ones(2, 1), 1.0),
            ValueError,
            r"A: expected a square matrix \(N, N\), got shape \(2, 3\)",
        ),
        (
            lambda: zoh_matrix(torch.eye(2), torch.ones(2), 1.0),
            ValueError,
            r"B: expected shape \(2, M\), got \(2,\)",
        ),
        (
            lambda: zoh_matrix(torch.eye(2), torch.ones(2, 1), torch.ones(2)),
            ValueError,
            r"dt: expected one step, got shape \(2,\)",
        ),
        (lambda: inverse_softplus(tensor([1.0, 0.0])), ValueError, "y: expected positive entries"),
        (lambda: inverse_softplus(tensor([1])), TypeError, "y: expected a floating-point tensor"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

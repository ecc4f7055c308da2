"""Time-invariant systems: the recurrence and the convolution are one map."""

import pytest
import torch

from minivmamba import lti_convolution, lti_kernel, lti_recurrence, zoh


def system(d=3, N=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    A = -torch.rand(d, N, generator=generator, dtype=dtype) * 3
    B, C = torch.randn(2, d, N, generator=generator, dtype=dtype)
    A_bar, B_bar = zoh(A, B, 0.3)
    D = torch.randn(d, generator=generator, dtype=dtype)
    return A_bar, B_bar, C, D


@pytest.mark.parametrize("L", [1, 2, 7, 100])
def test_recurrence_equals_convolution(L):
    A_bar, B_bar, C, D = system()
    u = torch.randn(2, 3, L, dtype=torch.float64)
    by_steps = lti_recurrence(u, A_bar, B_bar, C, D)
    by_kernel = lti_convolution(u, lti_kernel(A_bar, B_bar, C, L), D)
    torch.testing.assert_close(by_steps, by_kernel, rtol=1e-12, atol=1e-13)


def test_kernel_is_the_response_to_one_impulse():
    A_bar, B_bar, C, _ = system()
    impulse = torch.zeros(3, 20, dtype=torch.float64)
    impulse[:, 0] = 1
    response = lti_recurrence(impulse, A_bar, B_bar, C)
    torch.testing.assert_close(response, lti_kernel(A_bar, B_bar, C, 20))


def test_convolution_is_causal():
    """A change of the last input changes the last output only: nothing wraps around."""
    A_bar, B_bar, C, _ = system()
    K = lti_kernel(A_bar, B_bar, C, 16)
    u = torch.randn(3, 16, dtype=torch.float64)
    changed = u.clone()
    changed[:, -1] += 100
    difference = (lti_convolution(changed, K) - lti_convolution(u, K)).abs().amax(0)
    assert difference[:-1].max() < 1e-12 and difference[-1] > 1


def test_differentiable_and_kernel_at_zero():
    A_bar = torch.tensor([[0.0, 0.5, -0.5]], dtype=torch.float64, requires_grad=True)
    B_bar, C = torch.ones(2, 1, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda A_bar: lti_kernel(A_bar, B_bar, C, 5), A_bar)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b, c: lti_kernel(a, b.float(), c, 4), "B_bar: expected torch.float64 on cpu"),
        (
            lambda a, b, c: lti_convolution(torch.ones(3, 5).half(), torch.ones(3, 5).half()),
            "u: expected torch.float32 or torch.float64, got torch.float16",
        ),
        (
            lambda a, b, c: lti_convolution(torch.ones(3, 5), torch.ones(5)),
            r"K: expected shape \(d, L\), got \(5,\)",
        ),
        (
            lambda a, b, c: lti_convolution(torch.ones(3, 5), torch.ones(3, 5), torch.ones(5)),
            r"D: expected shape \(3,\), got \(5,\)",
        ),
        (lambda a, b, c: lti_recurrence(torch.ones(3, 0), a, b, c), "with L ≥ 1"),
        (lambda a, b, c: lti_kernel(a, b, c.to("meta"), 4), "C: expected torch.float64 on cpu"),
        (lambda a, b, c: lti_recurrence(None, a, b, c), "u: expected a torch.Tensor, got None"),
        (lambda a, b, c: lti_kernel(a, b, c, 0), "L: expected an integer of at least 1, got 0"),
        (lambda a, b, c: lti_kernel(a, b[:1], c, 4), r"B_bar: expected shape \(3, 4\) as A_bar"),
        (lambda a, b, c: lti_kernel(a[0], b, c, 4), r"A_bar: expected shape \(d, N\), got \(4,\)"),
        (
            lambda a, b, c: lti_recurrence(torch.ones(2, 5), a, b, c),
            r"u: expected shape \(..., 3, L\) with L ≥ 1, got \(2, 5\)",
        ),
        (
            lambda a, b, c: lti_recurrence(torch.ones(3, 5), a, b, c, torch.ones(2)),
            r"D: expected shape \(3,\), got \(2,\)",
        ),
        (
            lambda a, b, c: lti_convolution(torch.ones(3, 5), torch.ones(3, 4)),
            "K: expected 5 samples as in u, got 4",
        ),
    ],
)
def test_bad_input(call, message):
    A_bar, B_bar, C, _ = system()
    with pytest.raises((ValueError, TypeError), match=message):
        call(A_bar, B_bar, C)

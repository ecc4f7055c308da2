"""The four routes and their merge."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivmamba import cross_merge, cross_scan

sizes = st.integers(1, 7)


def test_routes_of_a_small_map():
    x = torch.tensor([[1, 2, 3], [4, 5, 6]]).view(1, 1, 2, 3)
    assert cross_scan(x)[0, :, 0].tolist() == [
        [1, 2, 3, 4, 5, 6],
        [1, 4, 2, 5, 3, 6],
        [6, 5, 4, 3, 2, 1],
        [6, 3, 5, 2, 4, 1],
    ]


@given(H=sizes, W=sizes)
def test_merge_is_the_adjoint_of_scan(H, W):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, H, W, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 4, 3, H * W, generator=generator, dtype=torch.float64)
    left, right = (cross_scan(x) * y).sum(), (x * cross_merge(y, H, W)).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@given(H=sizes, W=sizes)
def test_merge_of_scan_is_four_times_the_map(H, W):
    x = torch.randn(2, 3, H, W)
    torch.testing.assert_close(cross_merge(cross_scan(x), H, W), 4 * x)


def test_gradient_of_each_is_the_other():
    x = torch.randn(1, 2, 3, 5, requires_grad=True)
    y = torch.randn(1, 4, 2, 15)
    (gradient,) = torch.autograd.grad(cross_scan(x), x, y)
    torch.testing.assert_close(gradient, cross_merge(y, 3, 5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cross_scan(torch.ones(2, 3)), ValueError, r"x: expected shape \(B, C, H, W\)"),
        (lambda: cross_scan([[1.0]]), TypeError, "x: expected a torch.Tensor, got list"),
        (
            lambda: cross_merge(torch.ones(1, 4, 2, 6), 2, 4),
            ValueError,
            r"ys: expected shape \(B, 4, C, 8\) for H = 2, W = 4, got \(1, 4, 2, 6\)",
        ),
        (
            lambda: cross_merge(torch.ones(1, 4, 2, 6), "2", 3),
            ValueError,
            "H: expected an integer of at least 1, got '2'",
        ),
        (
            lambda: cross_merge(torch.ones(1, 4, 2, 6), 2, 3.0),
            ValueError,
            "W: expected an integer of at least 1, got 3.0",
        ),
        (lambda: cross_merge([1.0], 2, 3), TypeError, "ys: expected a torch.Tensor, got list"),
        (lambda: cross_scan(None), TypeError, "x: expected a torch.Tensor, got NoneType"),
        (lambda: cross_merge(torch.ones(1, 3, 2, 6), 2, 3), ValueError, "ys: expected shape"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

"""The selective scan: its definition, its gradients, its precision, its errors."""

import pytest
import torch
import torch.nn.functional as F

from minivmamba import lti_recurrence, mamba_rule, selective_scan


def arguments(batch=2, K=2, d=3, N=4, L=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "u": randn(batch, K * d, L),
        "delta": randn(batch, K * d, L),
        "A": -torch.exp(randn(K * d, N)),
        "B": randn(batch, K, N, L),
        "C": randn(batch, K, N, L),
        "D": randn(K * d),
        "delta_bias": randn(K * d),
        "delta_softplus": True,
    }


@pytest.mark.parametrize("L", [1, 2, 13])
def test_every_output_is_the_sum_over_the_past(L):
    """y_t = Σ_{s ≤ t} Σ_n C_t[n] exp(A_n Σ_{r = s+1…t} Δ_r) Δ_s B_s[n] u_s + D u_t, unrolled."""
    a = arguments(L=L)
    a["A"][0] *= -1  # nothing forbids a state that grows
    a["delta"][0, 1, 0] = 800.0  # nor a step beyond the range of exp: softplus(x) is x there
    y = selective_scan(**a)
    dt = F.softplus(a["delta"] + a["delta_bias"][:, None])
    for channel in range(6):
        B, C = a["B"][:, channel // 3], a["C"][:, channel // 3]  # (batch, N, L): 3 a group
        for t in range(L):
            total = a["D"][channel] * a["u"][:, channel, t]
            for s in range(t + 1):
                passed = dt[:, channel, s + 1 : t + 1].sum(-1, keepdim=True)  # (batch, 1)
                weight = (C[:, :, t] * torch.exp(a["A"][channel] * passed) * B[:, :, s]).sum(-1)
                total = total + weight * dt[:, channel, s] * a["u"][:, channel, s]
            torch.testing.assert_close(y[:, channel, t], total, rtol=1e-12, atol=1e-12)


def test_constant_arguments_give_the_time_invariant_system():
    d, N, L = 3, 4, 9
    u = torch.randn(2, d, L, dtype=torch.float64)
    A = -torch.rand(d, N, dtype=torch.float64)
    B, C = torch.randn(2, N, dtype=torch.float64)
    y = selective_scan(
        u,
        torch.full_like(u, 0.3),
        A,
        B[None, :, None].expand(2, N, L),  # (batch, N, L): one group
        C[None, :, None].expand(2, N, L),
    )
    A_bar, B_bar = mamba_rule(A, B.expand(d, N), 0.3)
    expected = lti_recurrence(u, A_bar, B_bar.expand(d, N), C.expand(d, N))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_last_state_continues_the_sequence():
    a = arguments(L=8, K=1)
    _, h = selective_scan(**a, return_last_state=True)
    assert h.shape == (2, 3, 4)
    # After the last input the state only decays: one more step with u = 0 shows it through C.
    longer = {name: F.pad(a[name], (0, 1)) for name in ("u", "delta", "B")}
    longer["C"] = F.pad(a["C"], (0, 1), value=1.0)
    y = selective_scan(**{**a, **longer})
    dt = F.softplus(a["delta_bias"])[:, None]
    torch.testing.assert_close(y[..., -1], (torch.exp(dt * a["A"]) * h).sum(-1))


def test_gradcheck():
    a = arguments(batch=2, K=2, d=2, N=2, L=6)
    names = [name for name in a if name != "delta_softplus"]
    for value in (a[name] for name in names):
        value.requires_grad_()

    assert all(out.requires_grad for out in selective_scan(**a, return_last_state=True))

    def scan(*tensors):
        return selective_scan(
            **dict(zip(names, tensors, strict=True)), delta_softplus=True, return_last_state=True
        )

    assert torch.autograd.gradcheck(scan, tuple(a[name] for name in names))


def test_optional_arguments_are_zeros():
    a = arguments()
    bare = {name: a[name] for name in ("u", "delta", "A", "B", "C")}
    zeros = {"D": torch.zeros_like(a["D"]), "delta_bias": torch.zeros_like(a["D"])}
    torch.testing.assert_close(selective_scan(**bare), selective_scan(**bare, **zeros))
    raw = selective_scan(**{**bare, "delta": F.softplus(bare["delta"])})
    torch.testing.assert_close(raw, selective_scan(**bare, delta_softplus=True))
    biased = {**bare, "delta": bare["delta"] + a["delta_bias"][:, None]}
    with_bias = selective_scan(**bare, delta_bias=a["delta_bias"])  # and no softplus
    torch.testing.assert_close(selective_scan(**biased), with_bias)
    torch.testing.assert_close(with_bias, selective_scan(**biased, backend="naive"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_float32(dtype):
    a = arguments(L=200)
    low = {name: v.to(dtype) if torch.is_tensor(v) else v for name, v in a.items()}
    rounded = {name: v.double() if torch.is_tensor(v) else v for name, v in low.items()}
    y, exact = selective_scan(**low), selective_scan(**rounded)
    assert y.dtype == torch.float32 and exact.dtype == torch.float64
    # float32 rounds at 6e-8; decays forget old roundings, so the error does not grow with L.
    assert (y - exact).norm() < 1e-6 * exact.norm()


def test_non_contiguous_arguments():
    a = arguments(L=6)
    strided = {
        name: v.transpose(0, -1).contiguous().transpose(0, -1) if torch.is_tensor(v) else v
        for name, v in a.items()
    }
    assert not strided["u"].is_contiguous()
    torch.testing.assert_close(selective_scan(**strided), selective_scan(**a))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": [1.0]}, TypeError, "u: expected a torch.Tensor, got list"),
        ({"u": torch.ones(6, 5)}, ValueError, r"u: expected shape \(batch, K·d, L\)"),
        ({"u": torch.ones(2, 6, 0)}, ValueError, "with L ≥ 1"),
        ({"delta": torch.ones(2, 6, 4)}, ValueError, r"delta: expected shape \(2, 6, 5\), got"),
        (
            {"A": torch.ones(5, 4)},
            ValueError,
            r"A: expected shape \(6, N\) with N ≥ 1 for the 6 channels",
        ),
        ({"B": torch.ones(2, 4, 4, 5)}, ValueError, "B: its 4 groups do not divide the 6"),
        ({"B": torch.ones(6)}, ValueError, r"B: expected shape \(batch, K, N, L\), got"),
        ({"C": torch.ones(2, 2, 3, 5)}, ValueError, r"C: expected shape \(2, 2, 4, 5\), got"),
        ({"D": torch.ones(5)}, ValueError, r"D: expected shape \(6,\), got \(5,\)"),
        ({"delta_bias": torch.ones(1, 6)}, ValueError, r"delta_bias: expected shape \(6,\)"),
        ({"A": torch.ones(6, 4)}, TypeError, "A: expected torch.float64 as B, C, D"),
        (
            {"B": torch.ones(2, 2, 4, 5, dtype=torch.int64)},
            TypeError,
            "B: expected a floating-point tensor, got torch.int64",
        ),
        (
            {"D": torch.ones(6, dtype=torch.float64, device="meta")},
            ValueError,
            "D: expected device cpu as u, got meta",
        ),
        ({"A": torch.ones(6, 0)}, ValueError, r"A: expected shape \(6, N\) with N ≥ 1"),
        ({"B": torch.ones(2, 0, 4, 5)}, ValueError, "B: its 0 groups do not divide"),
        ({"u": None}, TypeError, "u: expected a torch.Tensor, got NoneType"),
        ({"delta_softplus": "no"}, TypeError, "delta_softplus: expected True or False, got 'no'"),
        ({"backend": ["naive"]}, ValueError, r"backend: expected one of .* got \['naive'\]"),
        (
            {"backend": "cuda"},
            ValueError,
            'backend: expected one of "auto", "naive", "numba", "triton", got \'cuda\'',
        ),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        selective_scan(**{**arguments(), **change})

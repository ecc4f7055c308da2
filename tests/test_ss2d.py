"""SS2D: initial values, precision, gradients, errors (its values: test_reference.py)."""

import pytest
import torch
import torch.nn.functional as F

from minivmamba import SS2D, ss2d


def test_initial_step_is_log_uniform_and_differs_by_route():
    torch.manual_seed(0)
    dt = F.softplus(SS2D(96).dt_projs_bias)
    assert dt.shape == (4, 192)
    assert dt.min() >= 0.001 * (1 - 1e-5) and dt.max() <= 0.1 * (1 + 1e-5)
    assert dt.min() < 0.0011 and dt.max() > 0.095  # the whole range is used
    # Log-uniform: half lie below the geometric mean 0.01, and each route has its own draw.
    assert abs((dt < 0.01).float().mean() - 0.5) < 0.06
    assert len({tuple(route.tolist()) for route in dt}) == 4


def test_initial_values():
    torch.manual_seed(0)
    module = SS2D(96)
    torch.testing.assert_close(torch.exp(module.A_logs), torch.arange(1.0, 17).expand(768, 16))
    assert (module.Ds == 1).all()
    for weight, bound in [(module.x_proj_weight, 192**-0.5), (module.dt_projs_weight, 6**-0.5)]:
        assert bound * 0.98 < weight.abs().max() <= bound
        assert abs(weight.std() / (bound / 3**0.5) - 1) < 0.03
        assert not torch.equal(weight[0], weight[1])  # every route has its own draw
    assert [SS2D(width).dt_rank for width in (8, 16, 17, 96, 100)] == [1, 1, 2, 6, 7]


@pytest.mark.parametrize(("fused", "name"), [(True, "ss2d_scan"), (False, "selective_scan")])
def test_autocast_leaves_the_scan_norm_and_gate_in_float32(fused, name, monkeypatch):
    seen = {}

    def spy(**arguments):
        y = scan(**arguments)
        seen["scan"] = {v.dtype for v in [y, *arguments.values()] if torch.is_tensor(v)}
        return y

    scan = getattr(ss2d, name)
    monkeypatch.setattr(ss2d, name, spy)
    module = SS2D(16, d_state=4)
    module.fused = fused
    module.out_norm.register_forward_hook(lambda _, i, o: seen.update(norm=[i[0].dtype, o]))
    module.out_proj.register_forward_hook(lambda _, i, o: seen.update(gated=i[0], out=o.dtype))
    module.in_proj.register_forward_hook(lambda _, i, o: seen.update(in_proj=o))
    x = torch.randn(1, 4, 5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert seen["in_proj"].dtype == torch.bfloat16  # autocast was really on
    into_norm, normed = seen["norm"]
    assert seen["scan"] == {torch.float32} == {into_norm, normed.dtype, seen["gated"].dtype}
    gate = F.silu(seen["in_proj"].chunk(2, dim=-1)[1])
    assert torch.equal(seen["gated"], normed * gate)
    assert y.dtype == seen["out"] == torch.bfloat16
    # bfloat16 keeps 8 bits; the products before the scan lose some.
    assert (y - module(x)).norm() < 0.03 * module(x).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_whole_module_in_one_precision(dtype):
    module = SS2D(16, d_state=4).to(dtype)
    assert module(torch.randn(1, 3, 4, 16, dtype=dtype)).dtype == dtype


def test_gradients_reach_every_parameter_and_are_right():
    torch.manual_seed(0)
    module = SS2D(4, d_state=2, dt_rank=2).double()
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    # SiLU and softplus are smooth, so finite differences are good to 1e-6 here.
    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)
    module(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: SS2D(16, dt_rank=0),
            ValueError,
            "dt_rank: expected an integer of at least 1, got 0",
        ),
        (lambda: SS2D(0), ValueError, "d_model: expected an integer of at least 1, got 0"),
        (lambda: SS2D(16, d_state=1.5), ValueError, "d_state: expected an integer .* got 1.5"),
        (lambda: SS2D(16, expand=-1), ValueError, "expand: expected an integer"),
        (
            lambda: SS2D(16)(torch.ones(1, 16, 4, 4)),
            ValueError,
            r"x: expected shape \(B, H, W, 16\), channels last, got \(1, 16, 4, 4\)",
        ),
        (lambda: SS2D(16)(torch.ones(1, 0, 4, 16)), ValueError, "x: expected shape"),
        (
            lambda: SS2D(16)(torch.ones(1, 4, 4, 16).double()),
            TypeError,
            "x: expected torch.float32 as the model, got torch.float64",
        ),
        (
            lambda: SS2D(16)(torch.ones(1, 4, 4, 16, device="meta")),
            ValueError,
            "x: expected device cpu, got meta",
        ),
        (lambda: SS2D(16)([1]), TypeError, "x: expected a torch.Tensor, got list"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

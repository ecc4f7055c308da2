"""The second version of VMamba: names, shapes, sizes, and its values written out plainly."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minivmamba
from minivmamba import SS2Dv2, VSSBlockV2, VSSMv2, cross_merge, cross_scan
from minivmamba.ss2d import RouteScan
from minivmamba.stages import DropPath

# name: depths, first width, d_inner / C, parameters, rate of the last block
FAMILY = {
    "vmamba_tiny_s1l8": ([2, 2, 8, 2], 96, 1, 30_249_064, 0.2),
    "vmamba_small_s1l20": ([2, 2, 20, 2], 96, 1, 49_012_840, 0.3),
    "vmamba_base_s1l20": ([2, 2, 20, 2], 128, 1, 86_614_504, 0.5),
    "vmamba_tiny_s2l5": ([2, 2, 5, 2], 96, 2, 30_705_832, 0.2),
    "vmamba_small_s2l15": ([2, 2, 15, 2], 96, 2, 50_147_752, 0.3),
    "vmamba_base_s2l15": ([2, 2, 15, 2], 128, 2, 88_557_800, 0.6),
}


def on_meta(name, **options):
    with torch.device("meta"):
        return getattr(minivmamba, name)(**options)


def small(dtype=torch.float32, **options):
    """Every part of the model, random everywhere, also where it starts from ones or zeros."""
    torch.manual_seed(0)
    model = VSSMv2([1, 2, 1, 1], 8, num_classes=5, **options).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def published_shapes(depths, dim, ratio, N=1):
    """Names and shapes, written from the published table of the newest release."""
    shapes = {
        "patch_embed.0.weight": (dim // 2, 3, 3, 3),
        "patch_embed.0.bias": (dim // 2,),
        "patch_embed.5.weight": (dim, dim // 2, 3, 3),
        "patch_embed.5.bias": (dim,),
        **{f"patch_embed.2.{part}": (dim // 2,) for part in ("weight", "bias")},
        **{f"patch_embed.7.{part}": (dim,) for part in ("weight", "bias")},
        **{f"classifier.norm.{part}": (8 * dim,) for part in ("weight", "bias")},
        "classifier.head.weight": (1000, 8 * dim),
        "classifier.head.bias": (1000,),
    }
    for stage, depth in enumerate(depths):
        C = dim * 2**stage
        d, R = ratio * C, -(-C // 16)
        block_shapes = {
            **{f"{norm}.{part}": (C,) for norm in ("norm", "norm2") for part in ("weight", "bias")},
            "op.x_proj_weight": (4, R + 2 * N, d),
            "op.dt_projs_weight": (4, d, R),
            "op.dt_projs_bias": (4, d),
            "op.A_logs": (4 * d, N),
            "op.Ds": (4 * d,),
            "op.in_proj.weight": (d, C),
            "op.conv2d.weight": (d, 1, 3, 3),
            "op.out_norm.weight": (d,),
            "op.out_norm.bias": (d,),
            "op.out_proj.weight": (C, d),
            "mlp.fc1.weight": (4 * C, C),
            "mlp.fc1.bias": (4 * C,),
            "mlp.fc2.weight": (C, 4 * C),
            "mlp.fc2.bias": (C,),
        }
        for block in range(depth):
            shapes |= {f"layers.{stage}.blocks.{block}.{k}": v for k, v in block_shapes.items()}
        if stage < len(depths) - 1:
            shapes |= {
                f"layers.{stage}.downsample.1.weight": (2 * C, C, 3, 3),
                f"layers.{stage}.downsample.1.bias": (2 * C,),
                f"layers.{stage}.downsample.3.weight": (2 * C,),
                f"layers.{stage}.downsample.3.bias": (2 * C,),
            }
    return shapes


@pytest.mark.parametrize("name", FAMILY)
def test_names_shapes_counts_and_rates(name):
    depths, dim, ratio, parameters, rate = FAMILY[name]
    model = on_meta(name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == published_shapes(depths, dim, ratio)
    assert sum(p.numel() for p in model.parameters()) == parameters
    headless = on_meta(name, num_classes=0)
    assert sum(p.numel() for p in headless.parameters()) == parameters - 1000 * (8 * dim + 1)
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert len(rates) == sum(depths) and rates[0] == 0 and rates[-1] == pytest.approx(rate)


def test_options_of_the_constructors():
    model = on_meta("vmamba_tiny_s1l8", num_classes=7, d_state=3, drop_path_rate=0.1, ssm_ratio=1.5)
    state = model.state_dict()
    assert state["layers.0.blocks.0.op.A_logs"].shape == (4 * 144, 3)
    assert state["classifier.head.weight"].shape == (7, 768)
    assert list(on_meta("VSSMv2").state_dict()) == list(on_meta("vmamba_tiny_s1l8").state_dict())


def written_out(state, images, depths):
    """Logits from the weights alone, on channels-first maps as the public code has them.

    The scan goes pixel by pixel: h ← e^{δA} h + δ B u, y = C h + D u.
    """

    def norm(x, name):  # of the channels of a channels-first map
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias).movedim(-1, 1)

    def linear(x, name):
        y = torch.einsum("bchw,dc->bdhw", x, state[f"{name}.weight"])
        bias = state.get(f"{name}.bias")
        return y if bias is None else y + bias[:, None, None]

    def conv(x, name):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride=2, padding=1)

    def op(x, name):
        x = linear(x, f"{name}.in_proj")
        d = x.shape[1]
        x = F.silu(F.conv2d(x, state[f"{name}.conv2d.weight"], padding=1, groups=d))
        A = -torch.exp(state[f"{name}.A_logs"]).unflatten(0, (4, d))
        D, bias = state[f"{name}.Ds"].view(4, d), state[f"{name}.dt_projs_bias"]
        dt_weight, N = state[f"{name}.dt_projs_weight"], A.shape[-1]
        xs = cross_scan(x)  # (B, 4, d, L)
        ys = torch.empty_like(xs)
        for route in range(4):
            h = x.new_zeros(x.shape[0], d, N)
            for t in range(xs.shape[-1]):
                u = xs[:, route, :, t]
                projected = u @ state[f"{name}.x_proj_weight"][route].T
                steps, B, C = projected.split([dt_weight.shape[-1], N, N], dim=-1)
                delta = F.softplus(steps @ dt_weight[route].T + bias[route])[..., None]
                h = torch.exp(delta * A[route]) * h + delta * B[:, None] * u[..., None]
                ys[:, route, :, t] = (h * C[:, None]).sum(-1) + D[route] * u
        y = norm(cross_merge(ys, *x.shape[2:]), f"{name}.out_norm")
        return linear(y, f"{name}.out_proj")

    x = F.gelu(norm(conv(images, "patch_embed.0"), "patch_embed.2"))
    x = norm(conv(x, "patch_embed.5"), "patch_embed.7")
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            x = x + op(norm(x, f"{name}.norm"), f"{name}.op")
            hidden = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
            x = x + linear(hidden, f"{name}.mlp.fc2")
        if stage < len(depths) - 1:
            down = f"layers.{stage}.downsample"
            x = norm(conv(x, f"{down}.1"), f"{down}.3")
    x = norm(x, "classifier.norm").mean((2, 3))
    return F.linear(x, state["classifier.head.weight"], state["classifier.head.bias"])


@pytest.mark.parametrize(
    ("ratio", "N", "size"), [(1, 1, (32, 32)), (2, 1, (45, 34)), (1, 3, (33, 64))]
)
def test_logits_are_those_written_out(ratio, N, size):
    model = small(torch.float64, ssm_ratio=ratio, d_state=N)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = written_out(model.state_dict(), images, model.depths)
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ratio", [1, 2])
def test_plain_and_fused_path_agree_in_values_and_gradients(ratio):
    torch.manual_seed(0)
    module = SS2Dv2(24, ssm_ratio=ratio)
    x = torch.randn(2, 5, 7, 24, requires_grad=True)
    weights = torch.randn(2, 5, 7, 24)
    found = {}
    for module.fused in (True, False):
        inputs = (x, *module.parameters())
        y = module(x)
        found[module.fused] = [y, *torch.autograd.grad((y * weights).sum(), inputs)]
    for fused, plain in zip(*found.values(), strict=True):
        assert (fused - plain).norm() <= 3e-6 * plain.norm()


def test_stage_maps_of_any_size():
    model = small()
    for H, W in [(32, 32), (45, 70), (33, 224)]:
        images = torch.randn(1, 3, H, W)
        assert model(images).shape == (1, 5)
        h, w = -(-H // 2), -(-W // 2)
        for stage, features in enumerate(model.forward_features(images)):
            h, w = -(-h // 2), -(-w // 2)  # every convolution of stride 2 rounds up
            assert features.shape == (1, 8 * 2**stage, h, w)


def test_a_training_step_lowers_the_loss():
    torch.manual_seed(0)
    model = VSSMv2([1, 1, 1, 1], 8, num_classes=5).train()
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_both_branches_of_a_block_are_dropped_apart():
    torch.manual_seed(0)
    block = VSSBlockV2(8, drop_path=0.5).train()
    x = torch.randn(400, 2, 2, 8)
    kept = (block(x) != x).flatten(1).any(1).float().mean()
    assert abs(kept - 0.75) < 0.09  # two fair coins; standard error 0.022
    block.eval()
    middle = x + block.op(block.norm(x))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))


def test_autocast_keeps_the_scan_in_float32():
    module = SS2Dv2(16)
    seen = []
    module.out_norm.register_forward_hook(lambda _, i, o: seen.extend([i[0].dtype, o.dtype]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(torch.randn(1, 4, 5, 16))
    assert seen == [torch.float32, torch.float32] and y.dtype == torch.bfloat16


def test_initial_values():
    torch.manual_seed(0)
    model = VSSMv2([1, 1], 32, num_classes=50)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert abs(module.weight.std() / 0.02 - 1) < 0.1
            assert module.bias is None or (module.bias == 0).all()
        if isinstance(module, RouteScan):
            assert (module.A_logs == 0).all() and (module.Ds == 1).all()  # A = −1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VSSMv2(dims=7), "dims: expected an even first width, got 7"),
        (lambda: VSSMv2(ssm_ratio=0), "ssm_ratio: expected a number above 0, got 0"),
        (lambda: VSSMv2(mlp_ratio=-1.0), "mlp_ratio: expected a number above 0, got -1.0"),
        (lambda: VSSMv2(depths=[]), "depths: expected at least one stage"),
        (lambda: VSSMv2(in_chans=0), "in_chans: expected an integer of at least 1, got 0"),
        (lambda: SS2Dv2(0), "d_model: expected an integer of at least 1, got 0"),
        (lambda: SS2Dv2(4, ssm_ratio="2"), "ssm_ratio: expected a number above 0, got '2'"),
        (lambda: SS2Dv2(4, ssm_ratio=0.1), "d_inner: expected an integer of at least 1, got 0"),
        (lambda: small()(torch.ones(1, 3, 31, 64)), "height and width of at least 32 pixels"),
        (lambda: SS2Dv2(8)(torch.ones(1, 8, 4, 4)), r"x: expected shape \(B, H, W, 8\)"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()

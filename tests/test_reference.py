"""SS2D and VSSM agree with `reference.py`, and a wrong SS2D or VSSM does not.

The reference is NumPy in float64, written without reading the package. Every parameter is drawn
at random here: with the initial values D = 1, the norms are the identity and A is the same in all
routes, and many mistakes would leave no trace. The second half applies one mistake at a time to
our modules and demands that the comparison sees it.
"""

from copy import deepcopy

import numpy as np
import pytest
import reference
import torch
import torch.nn as nn
import torch.nn.functional as F

from minivmamba import (
    SS2D,
    VSSM,
    bilinear,
    cross_merge,
    cross_scan,
    euler,
    mamba_rule,
    selective_scan,
    zoh,
)
from minivmamba.vssm import DropPath

# Both sides compute in float64 and differ only in the order of sums of at most some hundred
# terms: about 1e-15 is seen. A factor of 1e5 is left to faster scans, which sum in other orders;
# it is still far below a silent pass through float32 (see the faint mutants).
FLOAT64_TOLERANCE = 1e-10
# A float32 rounding is 6e-8. The scans decay and the norms divide by a spread of order 1, so
# roundings do not pile up with the length: at most 1e-6 is seen after five blocks.
FLOAT32_TOLERANCE = 1e-5
# What a real mistake has to exceed: 1e7 times the tolerance, so no choice of the tolerance
# decides what is found.
MARGIN = 1e-3
# A scale of what LayerNorm reads shows only through eps / variance, and a rounding to float32 is
# as small as it is: such mistakes cannot reach MARGIN. They still exceed the tolerance 100 times.
FAINT_MARGIN = 1e-8


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small gain nothing from threads, and under pytest -n these fight for cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def randomise(module, seed=0):
    """Draw every parameter so that none is 0 or 1 and each has a say in the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.endswith("A_logs"):  # A between -2.7 and -0.14: the state lasts 1 to 50 pixels
            parameter.uniform_(-2, 1, generator=generator)
        elif name.endswith("dt_projs_bias"):  # delta around 0.1 to 1
            parameter.uniform_(-2, 0.5, generator=generator)
        elif name.endswith(("x_proj_weight", "dt_projs_weight")):
            parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        elif parameter.ndim == 1:  # D, biases, norm weights
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return module


def random_input(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def arrays(module):
    return {key: tensor.double().numpy() for key, tensor in module.state_dict().items()}


def relative_difference(ours, expected):
    """Largest deviation over the largest expected value; `ours` is a tensor."""
    assert ours.shape == expected.shape
    return np.abs(ours.double().numpy() - expected).max() / np.abs(expected).max()


def reference_ss2d(module, x):
    weights = arrays(module)
    return np.stack([reference.ss2d(sample, weights) for sample in x.double().numpy()])


def reference_vssm(model, images):
    """Logits (B, num_classes) and the stage maps (B, C, H, W)."""
    weights = arrays(model)
    results = [reference.vssm(image, weights) for image in images.double().numpy()]
    logits, maps = zip(*results, strict=True)
    return np.stack(logits), [np.stack(stage) for stage in zip(*maps, strict=True)]


# The reference itself


def test_the_four_routes_of_a_2x3_map():
    """The map shows when each pixel is visited."""
    expected = [
        [[0, 1, 2], [3, 4, 5]],
        [[0, 2, 4], [1, 3, 5]],
        [[5, 4, 3], [2, 1, 0]],
        [[5, 3, 1], [4, 2, 0]],
    ]
    for route, visits in zip(reference.ROUTES, expected, strict=True):
        coordinates = route(2, 3)
        assert [[coordinates.index((r, c)) for c in range(3)] for r in range(2)] == visits


# SS2D

SIZES = [(5, 7), (7, 4), (1, 9), (8, 1), (1, 1), (2, 3)]
OPTIONS = [
    pytest.param({"d_model": 6, "d_state": 3, "dt_rank": 2}, id="N3-R2"),
    pytest.param({"d_model": 5, "d_state": 1, "dt_rank": 7, "expand": 3}, id="N1-R7-expand3"),
    pytest.param({"d_model": 17}, id="defaults"),  # N = 16, R = ceil(17 / 16) = 2
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@torch.no_grad()
def test_ss2d_agrees(size, options):
    module = randomise(SS2D(**options).double().eval())
    # Channels first and then permuted: not contiguous, as a map often comes.
    x = random_input(2, options["d_model"], *size).permute(0, 2, 3, 1)
    assert relative_difference(module(x), reference_ss2d(module, x)) < FLOAT64_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@torch.no_grad()
def test_ss2d_of_the_first_stage_agrees(dtype):
    """The width of VMamba-T and 196 pixels: the longest scan of this file."""
    module = randomise(SS2D(96).to(dtype).eval())
    x = random_input(1, 14, 14, 96, dtype=dtype)
    tolerance = FLOAT64_TOLERANCE if dtype == torch.float64 else FLOAT32_TOLERANCE
    assert relative_difference(module(x), reference_ss2d(module, x)) < tolerance


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@torch.no_grad()
def test_ss2d_agrees_in_float32(size):
    module = randomise(SS2D(6, d_state=3, dt_rank=2).eval())
    x = random_input(2, *size, 6, dtype=torch.float32)
    assert relative_difference(module(x), reference_ss2d(module, x)) < FLOAT32_TOLERANCE


# The model

MODELS = {
    # 38x54 pixels: the stem loses 2 rows and 2 columns; maps 9x13, 5x7, 3x4, 2x2, padded at the
    # bottom and right twice, then at the bottom only.
    "four-stages": (
        {"depths": [1, 2, 1, 1], "dims": [6, 12, 24, 48], "num_classes": 5, "d_state": 3},
        (38, 54),
    ),
    # 17x22 pixels in patches of 2: maps 8x11, 4x6, padded at the right only.
    "two-stages": (
        {"depths": [1, 2], "dims": [4, 8], "num_classes": 3, "d_state": 2, "patch_size": 2},
        (17, 22),
    ),
    # 32x64 pixels: maps 8x16, 4x8, 2x4, 1x2, never padded. N = 16 as in the released models.
    "even-maps": ({"depths": [1, 1, 1, 1], "dims": [4, 8, 16, 32], "num_classes": 2}, (32, 64)),
}


def build_model(name, dtype=torch.float64):
    """A random model and two images for it."""
    options, size = MODELS[name]
    return randomise(VSSM(**options).to(dtype).eval()), random_input(2, 3, *size, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_vssm_agrees(name, dtype):
    """Every stage map first, so that a failure tells where the two part; then the logits."""
    model, images = build_model(name, dtype)
    logits, maps = reference_vssm(model, images)
    tolerance = FLOAT64_TOLERANCE if dtype == torch.float64 else FLOAT32_TOLERANCE
    for ours, expected in zip(model.forward_features(images), maps, strict=True):
        assert relative_difference(ours, expected) < tolerance
    assert relative_difference(model(images), logits) < tolerance


def test_every_entry_of_every_parameter_matters():
    """One gradient tells for all: no number in the state dict is without effect on the logits.

    The bounds are those of "not a rounding error" for one entry and "visible" for a tensor.
    """
    model, images = build_model("four-stages")
    (model(images) * random_input(2, 5)).sum().backward()
    for name, parameter in model.named_parameters():
        effect = (parameter.grad * parameter).abs()  # of a relative change of the entry
        assert effect.min() > 1e-12, name
        assert effect.max() > 1e-3, name


# Mutants of SS2D: each changes our module, or what it calls, in one way a reader could get wrong

PER_ROUTE = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias")
STACKED = ("A_logs", "Ds")  # group k owns the rows k·d to (k + 1)·d


def permuted_routes(*order):
    """Route k works with the weights of route order[k]: the routes are visited in that order."""

    def mutate(module, monkeypatch):
        order_list = list(order)
        for name in PER_ROUTE:
            parameter = getattr(module, name)
            parameter.copy_(parameter[order_list])
        for name in STACKED:
            parameter = getattr(module, name)
            parameter.copy_(parameter.unflatten(0, (4, -1))[order_list].flatten(0, 1))

    return mutate


def stacked_by_channel(name):
    """Rows read as (d, K) instead of (K, d)."""

    def mutate(module, monkeypatch):
        parameter = getattr(module, name)
        parameter.copy_(parameter.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1))

    return mutate


def changed_weight(name, change):
    """One tensor of the state dict replaced by change(tensor)."""

    def mutate(module, monkeypatch):
        parameter = module.get_parameter(name)
        parameter.copy_(change(parameter.clone()))

    return mutate


def swapped_halves(weight):
    return weight.roll(weight.shape[0] // 2, dims=0)


def swap_B_and_C(module, monkeypatch):
    R, N = module.dt_rank, module.d_state
    dt, B, C = module.x_proj_weight.clone().split([R, N, N], dim=1)
    module.x_proj_weight.copy_(torch.cat([dt, C, B], dim=1))


def delta_last_in_x_proj(module, monkeypatch):
    """Rows of x_proj read as (B, C, dt) instead of (dt, B, C)."""
    R, N = module.dt_rank, module.d_state
    B, C, dt = module.x_proj_weight.clone().split([N, N, R], dim=1)
    module.x_proj_weight.copy_(torch.cat([dt, B, C], dim=1))


def circular_conv(module, monkeypatch):
    module.conv2d.padding_mode = "circular"


def gated_by(combine):
    """out_proj receives combine(normed y, z)."""

    def mutate(module, monkeypatch):
        seen = {}
        module.in_proj.register_forward_hook(lambda *call: seen.update(z=call[-1].chunk(2, -1)[1]))
        module.out_norm.register_forward_hook(lambda *call: seen.update(y=call[-1]))
        module.out_proj.register_forward_pre_hook(lambda *call: combine(seen["y"], seen["z"]))

    return mutate


gated_rightly = gated_by(lambda y, z: y * F.silu(z))


def gated_before_norm(module, monkeypatch):
    seen = {}
    module.in_proj.register_forward_hook(lambda *call: seen.update(z=call[-1].chunk(2, -1)[1]))
    module.out_norm.register_forward_pre_hook(lambda _, args: args[0] * F.silu(seen["z"]))
    gated_by(lambda y, z: y)(module, monkeypatch)


def no_silu_after_conv(module, monkeypatch):
    module.act = nn.Identity()
    gated_rightly(module, monkeypatch)  # in case the gate used the same SiLU


def leave_out(module):
    """The module hands its input on."""
    module.register_forward_hook(lambda _, args, out: args[0])


def no_out_norm(module, monkeypatch):
    leave_out(module.out_norm)


def norm_with_eps_1e_6(module, monkeypatch):
    module.out_norm.eps = 1e-6


def scanned_with(**changes):
    """The scan receives other arguments: name = f(all arguments)."""

    def mutate(module, monkeypatch):
        def scan(**arguments):
            changed = {name: change(arguments) for name, change in changes.items()}
            return selective_scan(**(arguments | changed))

        monkeypatch.setattr("minivmamba.ss2d.selective_scan", scan)

    return mutate


def scanned_in_float32(module, monkeypatch):
    """Public reference scans do this to float64 without a word."""

    def scan(*, delta_softplus, **tensors):
        rounded = {name: tensor.float() for name, tensor in tensors.items()}
        return selective_scan(**rounded, delta_softplus=delta_softplus).double()

    monkeypatch.setattr("minivmamba.ss2d.selective_scan", scan)


def bias_outside_softplus(arguments):
    return F.softplus(arguments["delta"]) + arguments["delta_bias"][:, None]


def stepped_by(rule, read_before_update=False):
    """A plain loop over the sequence with another rule of discretization."""

    def scan(u, delta, A, B, C, D, delta_bias, delta_softplus):
        delta = F.softplus(delta + delta_bias[:, None])
        d = A.shape[0] // B.shape[1]
        B, C = B.repeat_interleave(d, dim=1), C.repeat_interleave(d, dim=1)  # (B, K·d, N, L)
        A_bar, B_bar = rule(A[..., None], B, delta[:, :, None])
        h = torch.zeros_like(A_bar[..., 0])
        ys = []
        for t in range(u.shape[-1]):
            before, h = h, A_bar[..., t] * h + B_bar[..., t] * u[..., None, t]
            ys.append((C[..., t] * (before if read_before_update else h)).sum(-1))
        return torch.stack(ys, dim=-1) + D[:, None] * u

    def mutate(module, monkeypatch):
        monkeypatch.setattr("minivmamba.ss2d.selective_scan", scan)

    return mutate


def routed_by(scan=cross_scan, merge=cross_merge):
    def mutate(module, monkeypatch):
        monkeypatch.setattr("minivmamba.ss2d.cross_scan", scan)
        monkeypatch.setattr("minivmamba.ss2d.cross_merge", merge)

    return mutate


def flip_last_two(ys):
    """Turn routes 2 and 3 round, (B, 4, C, L) → the same shape."""
    return torch.cat([ys[:, :2], ys[:, 2:].flip(-1)], dim=1)


def column_routes_as_rows(ys, H, W):
    """Reorder routes 1 and 3 so that cross_merge lays them out as if they were row-major."""
    ys = ys.clone()
    ys[:, 1::2] = ys[:, 1::2].unflatten(-1, (H, W)).transpose(-2, -1).flatten(-2)
    return ys


def rotation_scan(x):
    """The map rotated by 0, 90, 180 and 270 degrees, read row by row each time."""
    return torch.stack([x.rot90(k, (2, 3)).flatten(2) for k in range(4)], dim=1)


def rotation_merge(ys, H, W):
    shapes = [(H, W), (W, H), (H, W), (W, H)]
    return sum(ys[:, k].unflatten(-1, shapes[k]).rot90(-k, (2, 3)) for k in range(4))


SS2D_MUTANTS = {
    "routes-0-and-1-swapped": permuted_routes(1, 0, 2, 3),
    "routes-1-and-2-swapped": permuted_routes(0, 2, 1, 3),
    "routes-0-and-2-swapped": permuted_routes(2, 1, 0, 3),
    "routes-1-and-3-swapped": permuted_routes(0, 3, 2, 1),
    "every-route-reversed": permuted_routes(2, 3, 0, 1),
    "rows-and-columns-swapped": permuted_routes(1, 0, 3, 2),
    "routes-are-rotations": routed_by(rotation_scan, rotation_merge),
    "no-route-is-reversed": routed_by(
        lambda x: flip_last_two(cross_scan(x)),
        lambda ys, H, W: cross_merge(flip_last_two(ys), H, W),
    ),
    "merge-keeps-the-reversed-order": routed_by(
        merge=lambda ys, H, W: cross_merge(flip_last_two(ys), H, W)
    ),
    "merge-keeps-the-column-order": routed_by(
        merge=lambda ys, H, W: cross_merge(column_routes_as_rows(ys, H, W), H, W)
    ),
    "A_logs-stacked-by-channel": stacked_by_channel("A_logs"),
    "Ds-stacked-by-channel": stacked_by_channel("Ds"),
    "x-and-z-swapped": changed_weight("in_proj.weight", swapped_halves),
    "B-and-C-swapped": swap_B_and_C,
    "delta-last-in-x_proj": delta_last_in_x_proj,
    "conv-kernel-flipped": changed_weight("conv2d.weight", lambda w: w.flip(2, 3)),
    "conv-kernel-transposed": changed_weight("conv2d.weight", lambda w: w.transpose(2, 3)),
    "conv-without-bias": changed_weight("conv2d.bias", torch.zeros_like),
    "conv-with-circular-padding": circular_conv,
    "no-silu-after-conv": no_silu_after_conv,
    "gate-added": gated_by(lambda y, z: y + F.silu(z)),
    "gate-without-silu": gated_by(lambda y, z: y * z),
    "gate-is-a-sigmoid": gated_by(lambda y, z: y * z.sigmoid()),
    "gate-before-norm": gated_before_norm,
    "no-gate": gated_by(lambda y, z: y),
    "no-out_norm": no_out_norm,
    "no-D": changed_weight("Ds", torch.zeros_like),
    "A-positive": scanned_with(A=lambda arguments: -arguments["A"]),
    "A-is-minus-A_logs": scanned_with(A=lambda arguments: -torch.log(-arguments["A"])),
    "no-softplus": scanned_with(delta_softplus=lambda arguments: False),
    "no-delta-bias": scanned_with(delta_bias=lambda arguments: None),
    "delta-bias-twice": scanned_with(delta_bias=lambda arguments: 2 * arguments["delta_bias"]),
    "delta-bias-outside-softplus": scanned_with(
        delta=bias_outside_softplus,
        delta_bias=lambda arguments: None,
        delta_softplus=lambda arguments: False,
    ),
    "exact-zoh-for-B": stepped_by(zoh),
    "euler-for-A": stepped_by(euler),
    "bilinear": stepped_by(bilinear),
    "delta-not-in-B": stepped_by(lambda A, B, delta: (mamba_rule(A, B, delta)[0], B)),
    "output-read-before-update": stepped_by(mamba_rule, read_before_update=True),
}
SS2D_FAINT_MUTANTS = {
    "scan-in-float32": scanned_in_float32,
    "merge-is-a-mean": routed_by(merge=lambda ys, H, W: cross_merge(ys, H, W) / 4),
    "out_norm-eps-1e-6": norm_with_eps_1e_6,
}
# The tools above without a mistake: what fails is the mistake, not the tool.
SS2D_CONTROLS = {
    "routes": permuted_routes(0, 1, 2, 3),
    "weight": changed_weight("in_proj.weight", torch.clone),
    "gate": gated_rightly,
    "scan": scanned_with(A=lambda arguments: arguments["A"]),
    "step": stepped_by(mamba_rule),
    "route": routed_by(),
}


@pytest.fixture(scope="module")
def ss2d_case():
    """Input and expected output of `build_ss2d()`."""
    x = random_input(2, 5, 7, 6)
    return x, reference_ss2d(build_ss2d(), x)


def build_ss2d():
    return randomise(SS2D(6, d_state=3, dt_rank=2).double().eval())


@torch.no_grad()
def ss2d_difference(mutate, monkeypatch, case):
    x, expected = case
    module = build_ss2d()
    module.fused = False  # the mistakes are made in the path that is written to be read
    mutate(module, monkeypatch)
    return relative_difference(module(x), expected)


@pytest.mark.parametrize("mutate", SS2D_MUTANTS.values(), ids=SS2D_MUTANTS)
def test_a_wrong_ss2d_is_seen(mutate, monkeypatch, ss2d_case):
    assert ss2d_difference(mutate, monkeypatch, ss2d_case) > MARGIN


@pytest.mark.parametrize("mutate", SS2D_FAINT_MUTANTS.values(), ids=SS2D_FAINT_MUTANTS)
def test_a_faintly_wrong_ss2d_is_seen(mutate, monkeypatch, ss2d_case):
    assert ss2d_difference(mutate, monkeypatch, ss2d_case) > FAINT_MARGIN


@pytest.mark.parametrize("mutate", SS2D_CONTROLS.values(), ids=SS2D_CONTROLS)
def test_the_ss2d_tools_do_no_harm(mutate, monkeypatch, ss2d_case):
    assert ss2d_difference(mutate, monkeypatch, ss2d_case) < FLOAT64_TOLERANCE


# Mutants of the model


def mergings(model):
    return [layer.downsample for layer in model.layers if layer.downsample is not None]


def blocks(model):
    return [block for layer in model.layers for block in layer.blocks]


def swap_corners(columns):
    """Columns of corner (1, 0) and corner (0, 1) change places, (..., 4C) → (..., 4C)."""
    return columns.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].flatten(-2)


def corners_read_row_by_row(model):
    for merging in mergings(model):
        for parameter in (merging.norm.weight, merging.norm.bias, merging.reduction.weight):
            parameter.copy_(swap_corners(parameter.clone()))


def merged_after(prepare):
    """Patch merging receives prepare(x, rows missing, columns missing), an even map."""

    def mutate(model):
        def hook(_, args):
            (x,) = args
            return prepare(x, x.shape[1] % 2, x.shape[2] % 2)

        for merging in mergings(model):
            merging.register_forward_pre_hook(hook)

    return mutate


def padded_by_repeating(x, rows, columns):
    x = torch.cat([x, x[:, x.shape[1] - rows :]], dim=1)
    return torch.cat([x, x[:, :, x.shape[2] - columns :]], dim=2)


def cropped(x, rows, columns):
    return x[:, : x.shape[1] - rows, : x.shape[2] - columns]


def no_merging_norm(model):
    for merging in mergings(model):
        leave_out(merging.norm)


def stem_keeps_bottom_right(model):
    """The pixels beyond a multiple of the patch size are lost at the top and left instead."""
    model.patch_embed.register_forward_pre_hook(
        lambda _, args: args[0][:, :, args[0].shape[2] % 4 :, args[0].shape[3] % 4 :]
    )


def stem_transposed(model):
    model.patch_embed.proj.weight.copy_(model.patch_embed.proj.weight.transpose(2, 3).clone())


def no_stem_norm(model):
    leave_out(model.patch_embed.norm)


def blocks_give(combine):
    """A block returns combine(block, x, x + SS2D(LN(x)))."""

    def mutate(model):
        for block in blocks(model):
            block.register_forward_hook(lambda block, args, out: combine(block, args[0], out))

    return mutate


def no_block_norm(model):
    for block in blocks(model):
        leave_out(block.ln_1)


def norm_after_the_sum(model):
    """LN(x + SS2D(x)), the order of the first transformers."""
    for block in blocks(model):
        norm = deepcopy(block.ln_1)
        leave_out(block.ln_1)
        block.register_forward_hook(lambda block, args, out, norm=norm: norm(out))


def drop_path_stays_on(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, DropPath):
            module.train()


def blocks_of_a_stage_swapped(model):
    stage = model.layers[1].blocks
    first, second = stage[0], stage[1]
    stage[0], stage[1] = second, first


def no_final_norm(model):
    leave_out(model.norm)


def norm_after_pooling(model):
    norm = deepcopy(model.norm)
    leave_out(model.norm)
    model.avgpool.register_forward_hook(lambda _, args, out: norm(out.squeeze(-1)).unsqueeze(-1))


def max_pooling(model):
    model.avgpool = nn.AdaptiveMaxPool1d(1)


def every_eps_1e_6(model):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


VSSM_MUTANTS = {
    "corners-read-row-by-row": corners_read_row_by_row,
    "padded-at-top-and-left": merged_after(lambda x, r, c: F.pad(x, (0, 0, c, 0, r, 0))),
    "padded-at-top-and-right": merged_after(lambda x, r, c: F.pad(x, (0, 0, 0, c, r, 0))),
    "padded-by-repeating": merged_after(padded_by_repeating),
    "odd-maps-cropped": merged_after(cropped),
    "no-merging-norm": no_merging_norm,
    "stem-keeps-bottom-right": stem_keeps_bottom_right,
    "stem-transposed": stem_transposed,
    "no-stem-norm": no_stem_norm,
    "no-residual": blocks_give(lambda block, x, out: out - x),
    "residual-after-the-norm": blocks_give(lambda block, x, out: out - x + block.ln_1(x)),
    "no-block-norm": no_block_norm,
    "norm-after-the-sum": norm_after_the_sum,
    "drop-path-stays-on": drop_path_stays_on,
    "blocks-of-a-stage-swapped": blocks_of_a_stage_swapped,
    "no-final-norm": no_final_norm,
    "norm-after-pooling": norm_after_pooling,
    "max-pooling": max_pooling,
}
VSSM_FAINT_MUTANTS = {"every-eps-1e-6": every_eps_1e_6}
VSSM_CONTROLS = {
    "merging": merged_after(lambda x, r, c: F.pad(x, (0, 0, 0, c, 0, r))),
    "block": blocks_give(lambda block, x, out: out),
}


@pytest.fixture(scope="module")
def vssm_logits():
    return reference_vssm(*build_model("four-stages"))[0]


@torch.no_grad()
def vssm_difference(mutate, expected):
    """Of the logits: whatever goes wrong inside has to reach them."""
    model, images = build_model("four-stages")
    mutate(model)
    return relative_difference(model(images), expected)


@pytest.mark.parametrize("mutate", VSSM_MUTANTS.values(), ids=VSSM_MUTANTS)
def test_a_wrong_vssm_is_seen(mutate, vssm_logits):
    assert vssm_difference(mutate, vssm_logits) > MARGIN


@pytest.mark.parametrize("mutate", VSSM_FAINT_MUTANTS.values(), ids=VSSM_FAINT_MUTANTS)
def test_a_faintly_wrong_vssm_is_seen(mutate, vssm_logits):
    assert vssm_difference(mutate, vssm_logits) > FAINT_MARGIN


@pytest.mark.parametrize("mutate", VSSM_CONTROLS.values(), ids=VSSM_CONTROLS)
def test_the_vssm_tools_do_no_harm(mutate, vssm_logits):
    assert vssm_difference(mutate, vssm_logits) < FLOAT64_TOLERANCE

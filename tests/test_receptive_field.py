"""The effective receptive field: models whose field is known exactly, and the measures of a field.

Closed forms and fields are compared in float64: 1e-12 leaves room for a few thousand roundings.
"""

import math
from functools import partial

import pytest
import torch
import torch.nn as nn

from minivmamba import VSSM, VSSMv2, cross_merge, cross_scan, selective_scan
from minivmamba.receptive_field import (
    by_patch,
    cross_ratio,
    displayed,
    effective_receptive_field,
    half_lives,
    last_map,
    profiles,
    share_of_area,
)

close = partial(torch.testing.assert_close, rtol=1e-12, atol=0)


def images(*shape, dtype=torch.float64):
    """Positive pixels: with positive weights no ReLU of s closes."""
    return torch.rand(*shape, dtype=dtype) + 0.1


def convolution(kernel, stride=1, padding=0, chans=(3, 2)):
    conv = nn.Conv2d(*chans, kernel, stride, padding, bias=False).double().eval()
    nn.init.uniform_(conv.weight, 0.5, 1.5)
    return conv


def offsets(H, W):
    """Rows below and columns right of the centre pixel."""
    return torch.arange(H)[:, None] - H // 2, torch.arange(W)[None] - W // 2


def distances(H, W):
    """|x| + |y| and the Euclidean distance from the centre pixel, (H, W) float64 each."""
    down, right = (offset.double() for offset in offsets(H, W))
    return down.abs() + right.abs(), torch.hypot(down, right)


# ---- the field of a model -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (15, 18), (13, 11)])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("k", [3, 5])
def test_convolution_sees_exactly_its_kernel(k, stride, size):
    H, W = size
    conv = convolution(k, stride, padding=k // 2)
    field = effective_receptive_field(conv, images(1, 3, H, W))
    h, w = (-(-side // stride) for side in size)  # a padding of k // 2 rounds up
    top, left = h // 2 * stride - k // 2, w // 2 * stride - k // 2
    expected = torch.zeros(H, W, dtype=torch.float64)
    kernel = conv.weight.detach().sum((0, 1))
    rows, cols = slice(max(top, 0), top + k), slice(max(left, 0), left + k)
    expected[rows, cols] = kernel[: H - top, : W - left]
    assert field.dtype == torch.float64 and field.shape == size
    close(field, expected)
    assert torch.equal(field > 0, expected > 0)  # exactly 0 elsewhere


@pytest.mark.parametrize(("side", "patch"), [(64, 8), (56, 8)])  # an even and an odd map
def test_centre_pixel_lies_in_the_patch_of_the_middle(side, patch):
    field = effective_receptive_field(convolution(patch, patch), images(1, 3, side, side))
    rows = (field.sum(1) > 0).nonzero().flatten()
    assert side // 2 in rows and len(rows) == patch
    assert side // 2 - rows[0] == (0 if side // patch % 2 == 0 else patch // 2)
    reduced = by_patch(field, patch)
    n = side // patch
    assert (reduced > 0).nonzero().tolist() == [[n // 2, n // 2]]
    assert math.isclose(reduced.sum(), field.sum(), rel_tol=1e-12)


def test_stack_of_convolutions_adds_up_their_kernels():
    stack = nn.Sequential(convolution(3, 2, 1), convolution(5, 1, 2, chans=(2, 4))).eval()
    field = effective_receptive_field(stack, images(2, 3, 32, 32))
    side = 3 + (5 - 1) * 2
    seen = field > 0
    assert seen.sum() == side**2 and seen[11:22, 11:22].all()  # around pixel 16


@pytest.mark.parametrize("size", [(1, 1), (4, 6), (5, 7)])
def test_identity_sees_one_pixel(size):
    H, W = size
    field = effective_receptive_field(nn.Identity().eval(), images(2, 3, H, W))
    expected = torch.zeros(H, W, dtype=torch.float64)
    expected[H // 2, W // 2] = 3  # one of each colour
    assert torch.equal(field, expected)
    assert share_of_area(field) == 1 / (H * W)


@pytest.mark.parametrize(("H", "W"), [(20, 20), (21, 21), (12, 17), (6, 30)])
@pytest.mark.parametrize("power", [0.2, 0.25, 1.0])
def test_global_average_is_uniform_and_scores_half_the_area(H, W, power):
    def average(x):
        return x.mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:])

    field = effective_receptive_field(average, images(2, 3, H, W))
    close(field, torch.full((H, W), 3 / (H * W), dtype=torch.float64))
    down, right = offsets(H, W)
    areas = [int(((down.abs() <= i) & (right.abs() <= i)).sum()) for i in range(max(H, W))]
    assert share_of_area(field, power=power) == next(a for a in areas if a >= H * W / 2) / (H * W)
    assert share_of_area(field, fraction=1.0, power=power) == 1.0


DELTA, RATE = 0.3, 0.2  # Δ and −A: influence e^(−0.06 · distance along the route)


def scans(x, routes=(0, 1, 2, 3), delta=(DELTA,), rates=(RATE,)):
    """Causal scans with B = C = 1 and constant Δ, merged: (B, 1, H, W) → (B, len(delta), H, W)."""
    n, (H, W) = len(delta), x.shape[2:]
    u = cross_scan(x.expand(-1, n, -1, -1)).flatten(1, 2)  # (B, 4n, L)
    A = -x.new_tensor(rates).expand(4 * n, -1)
    ones = x.new_ones(len(x), 4, len(rates), H * W)
    steps = x.new_tensor(delta).repeat(4)[:, None].expand_as(u)
    ys = selective_scan(u, steps, A, ones, ones).unflatten(1, (4, n))
    chosen = torch.zeros(4, 1, 1, dtype=x.dtype)
    chosen[list(routes)] = 1
    return cross_merge(ys * chosen, H, W)


def route_field(route, H, W, decay):
    """decay(steps from a pixel to the centre along a route), 0 for pixels that come later."""
    down, right = offsets(H, W)
    ahead = -(down * W + right) if route % 2 == 0 else -(right * H + down)
    ahead = ahead if route < 2 else -ahead
    return torch.where(ahead >= 0, decay(ahead.double().clamp(min=0)), 0.0)


def constant_decay(steps):
    return DELTA * torch.exp(-DELTA * RATE * steps)


@pytest.mark.parametrize("size", [(6, 9), (9, 8), (7, 7)])
@pytest.mark.parametrize("route", range(4))
def test_one_causal_scan_decays_along_its_route_and_sees_nothing_after(route, size):
    x = images(1, 1, *size)
    field = effective_receptive_field(partial(scans, routes=[route]), x)
    expected = route_field(route, *size, constant_decay)
    close(field, expected)
    later = expected == 0
    assert later.any() and torch.equal(field == 0, later)  # exactly


@pytest.mark.parametrize("size", [(9, 9), (8, 9), (10, 6)])
def test_four_scans_add_up_to_a_cross(size):
    field = effective_receptive_field(scans, images(1, 1, *size))
    close(field, sum(route_field(route, *size, constant_decay) for route in range(4)))
    assert (field > 0).all()
    if size == (9, 9):
        close(field, field.T)
        close(field, field.flip(0, 1))
        cross = cross_ratio(field)
        assert cross.ratio > 1.2 and (cross.ratios > 1).all()  # the decay is slow: e^(−0.06)


def test_untrained_layer_scores_what_the_lesson_says():
    """65 × 65, Δ log-uniform in [0.001, 0.1] as at the start, A = −1 … −16: 10% of the area on the
    linear scale, 44% after the root; a cross with 80% of the influence in 9% of the area.
    """
    steps = (10 ** (-3 + 2 * (torch.arange(20) + 0.5) / 20)).tolist()  # 20 equally likely draws
    rates = [float(n) for n in range(1, 17)]
    features = partial(scans, delta=steps, rates=rates)
    field = effective_receptive_field(features, images(1, 1, 65, 65))

    def decay(distance):
        pairs = [(dt, n) for dt in steps for n in rates]
        return sum(dt * torch.exp(-dt * n * distance) for dt, n in pairs)

    close(field, sum(route_field(route, 65, 65, decay) for route in range(4)), rtol=1e-9)
    cross = cross_ratio(field)
    shares = [share_of_area(field, power=1), share_of_area(field), cross.influence, cross.area]
    # One part in a hundred more or less: it depends on how the 20 steps are drawn.
    assert shares == pytest.approx([0.10, 0.44, 0.80, 0.09], abs=0.012)


def test_relu_comes_before_the_sum_over_colours():
    weight = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64).view(1, 3, 1, 1)
    x = torch.ones(1, 3, 4, 4, dtype=torch.float64)
    field = effective_receptive_field(lambda x: (x * weight).sum(1, keepdim=True), x)
    assert field.max() == field[2, 2] == 4  # 1 + 3; neither 2 nor 6


def test_negative_features_do_not_count():
    x = images(1, 1, 4, 4)
    field = effective_receptive_field(lambda x: torch.cat([2 * x, -5 * x], 1), x)
    assert field[2, 2] == 2  # neither −3 nor 7


@pytest.mark.parametrize("batched", [True, False])
def test_relu_comes_before_the_mean_over_images(batched):
    """f = x²: gradient 2x. An image that lowers the answer counts 0 and cancels nothing."""
    x = torch.tensor([3.0, -2.0], dtype=torch.float64).view(2, 1, 1, 1).expand(-1, 1, 3, 3)
    field = effective_receptive_field(torch.square, [x] if batched else list(x))
    assert field[1, 1] == 3  # (6 + 0) / 2; neither (6 − 4) / 2 nor (6 + 4) / 2


def small_vssm(kind=VSSM, **options):
    return kind([1, 1], 8, num_classes=5, **options).double().eval()


def test_any_split_into_batches_gives_the_mean_over_images():
    features, x = last_map(small_vssm(d_state=2)), images(5, 3, 16, 24)
    single = [effective_receptive_field(features, [image]) for image in x]
    mean = torch.stack(single).mean(0)
    assert single[0].max() > 0 and (single[0] - single[1]).abs().max() > 0
    for split in (x, [x], x.split([3, 2]), [x[0], x[1:]], (image[None] for image in x)):
        field = effective_receptive_field(features, split)
        torch.testing.assert_close(field, mean, rtol=1e-9, atol=1e-15)


def test_one_tensor_passes_image_by_image():
    seen = []

    def features(x):
        seen.append(len(x))
        return x

    effective_receptive_field(features, images(3, 3, 4, 4))
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("kind", [VSSM, VSSMv2])
def test_untrained_vmamba_sees_the_corners_and_a_small_cnn_does_not(kind):
    x = torch.randn(2, 3, 64, 64)
    field = effective_receptive_field(last_map(small_vssm(kind).float()), x)
    corners = by_patch(field, 8)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners > 0).all()
    assert cross_ratio(field).influence > cross_ratio(field).area

    cnn = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    field = effective_receptive_field(cnn, x)
    seen = (field > 0).nonzero()  # position 8 of the map: patches 7 to 9, pixels 28 to 39
    assert seen.min() == 28 and seen.max() == 39


def test_model_grad_mode_and_random_state_stay_as_they_are():
    model = small_vssm()
    names = [name for name, _ in model.named_parameters()]
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        parameter.grad = torch.full_like(parameter, 7.0) if i % 4 == 0 else None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, random_state = images(2, 3, 16, 16), torch.get_rng_state()
    kept = x.clone()
    with torch.no_grad():
        closed = effective_receptive_field(last_map(model), x)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        inferred = effective_receptive_field(last_map(model), x + 0)
        assert torch.is_inference_mode_enabled()
    field = effective_receptive_field(last_map(model), x)
    assert torch.equal(field, closed) and torch.equal(field, inferred) and not field.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x, kept) and not x.requires_grad and x.grad is None
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for i, parameter in enumerate(model.parameters()):
        assert parameter.requires_grad == (i % 2 == 0), names[i]
        assert (parameter.grad == 7).all() if i % 4 == 0 else parameter.grad is None, names[i]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_of_the_model(dtype):
    model, x = small_vssm(), images(1, 3, 16, 16)
    exact = effective_receptive_field(last_map(model), x)
    field = effective_receptive_field(last_map(model.to(dtype)), x.to(dtype))
    assert field.dtype == torch.float64
    # Rounding of the format, grown by two blocks and their norms.
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    assert (field - exact).norm() < tolerance * exact.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees():
    model, x = small_vssm().float(), images(2, 3, 32, 32, dtype=torch.float32)
    expected = effective_receptive_field(last_map(model), x)
    field = effective_receptive_field(last_map(model.cuda()), x.cuda())
    assert field.device.type == "cpu"
    assert (field - expected).norm() < 1e-3 * expected.norm()  # float32, TF32 in convolutions


# ---- the last map of a model --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [VSSM, VSSMv2])
def test_last_map_is_what_the_head_pools(kind):
    model, x = small_vssm(kind), images(2, 3, 32, 24)
    head = model.head if kind is VSSM else model.classifier["head"]
    last = last_map(model)(x)
    assert last.shape == (2, 16, 4, 3)
    torch.testing.assert_close(head(last.mean((2, 3))), model(x), rtol=1e-9, atol=1e-12)
    if kind is VSSM:
        close(last.permute(0, 2, 3, 1).mean(-1), torch.zeros(2, 4, 3).double(), atol=1e-12)


def torchvision_model(name):
    models = pytest.importorskip("torchvision.models")
    options = {"num_classes": 5}
    if name == "ResNet":
        return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], **options)
    if name == "ConvNeXt":
        setting = models.convnext.CNBlockConfig
        return models.ConvNeXt([setting(8, 16, 1), setting(16, None, 1)], **options)
    if name == "SwinTransformer":
        return models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], **options)
    return models.VisionTransformer(16, 8, 1, 2, 16, 32, **options)


@pytest.mark.parametrize("name", ["ResNet", "ConvNeXt", "SwinTransformer", "VisionTransformer"])
def test_last_map_of_torchvision(name):
    model = torchvision_model(name).double().eval()
    size = (16, 16) if name == "VisionTransformer" else (64, 48)
    x = images(2, 3, *size)
    last = last_map(model)(x)
    h, w = {"ResNet": (2, 2), "VisionTransformer": (2, 2)}.get(name, (8, 6))
    assert last.shape[2:] == (h, w)
    if name == "ResNet":
        scores = model.fc(last.mean((2, 3)))
    elif name == "SwinTransformer":
        scores = model.head(last.mean((2, 3)))
    elif name == "ConvNeXt":  # norms after pooling: undo ours, at every position
        norm = model.classifier[0]
        assert torch.equal(last, norm(model.features(x)))
        scores = model.classifier(model.features(x).mean((2, 3), keepdim=True))
    else:
        tokens = []
        model.encoder.register_forward_hook(lambda *call: tokens.append(call[2]))
        scores = model(x)
        assert torch.equal(last.flatten(2).transpose(1, 2), tokens[0][:, 1:])
    torch.testing.assert_close(scores, model(x), rtol=1e-9, atol=1e-12)

    field = effective_receptive_field(last_map(model), x)
    assert field.shape == size and field[size[0] // 2, size[1] // 2] > 0


# ---- measures of a field ------------------------------------------------------------------------


def test_displayed_is_the_root_scaled_to_one():
    field = torch.tensor([[0.0, 1.0], [16.0, 81.0]])
    close(displayed(field), torch.tensor([[0, 1 / 3], [2 / 3, 1]], dtype=torch.float64))
    close(displayed(field, 1.0), field.double() / 81)
    # 0.2 lifts faint pixels more than 0.25; influences of 1e-300 do not vanish.
    assert displayed(field, 0.2)[0, 1] > displayed(field)[0, 1]
    assert displayed(torch.tensor([[1e-300, 1.0]], dtype=torch.float64))[0, 0] > 0


def test_share_of_area_by_hand():
    """5 × 5: the centre has 3, its ring of 8 pixels 1 each, the border 1/16 each: 3 + 8 + 1."""
    field = torch.full((5, 5), 1 / 16, dtype=torch.float64)
    field[1:4, 1:4] = 1
    field[2, 2] = 3
    shares = [share_of_area(field, fraction, power=1) for fraction in (0.25, 0.26, 11 / 12, 0.92)]
    assert shares == [1 / 25, 9 / 25, 9 / 25, 1]
    # After the root the 16 border pixels have 1/2 each: 1.32 + 8 + 8.
    assert share_of_area(field, 0.53) == 9 / 25 and share_of_area(field, 0.54) == 1
    corner = torch.zeros(4, 4)
    corner[0, 0] = 1
    assert share_of_area(corner) == 1


@pytest.mark.parametrize(("H", "W"), [(61, 61), (60, 64)])
def test_half_lives_and_cross_of_exponentials(H, W):
    manhattan, euclid = distances(H, W)
    rate = 0.2
    half = math.log(2) / rate
    for start in (0, 1, 5):
        # Round: every direction decays alike, and the axis is no stronger than the diagonal.
        close(torch.tensor(half_lives(torch.exp(-rate * euclid), start)), torch.full((4,), half))
        # |x| + |y| grows √2 times as fast along the diagonal.
        lives = half_lives(torch.exp(-rate * manhattan), start)
        close(torch.tensor(lives), torch.tensor([half, half, half, half / math.sqrt(2)]))
    round_cross = cross_ratio(torch.exp(-rate * euclid))
    close(round_cross.ratios, torch.ones_like(round_cross.ratios))
    assert math.isclose(round_cross.ratio, 1, rel_tol=1e-12)
    diamond = cross_ratio(torch.exp(-rate * manhattan))
    steps = torch.arange(1, len(diamond.radii) + 1).double()
    close(diamond.radii, steps * math.sqrt(2))
    assert diamond.radii[-1] > (min(H, W) - 1) // 2 - math.sqrt(2)  # up to the border
    close(diamond.ratios, torch.exp(rate * steps * (2 - math.sqrt(2))))


def test_half_life_of_a_horizontal_bar():
    down, right = offsets(9, 41)
    field = torch.exp(-0.5 * right.double().abs()) * (down == 0)
    axis, row, column, diagonal = half_lives(field, start=0)
    assert math.isclose(row, 2 * math.log(2), rel_tol=1e-12)
    assert column == diagonal == 0  # an abrupt end: the centre is the last pixel
    assert 0 < axis < row
    lives = half_lives(field)  # from the first neighbours
    assert math.isnan(lives.column) and math.isnan(lives.diagonal)
    assert math.isclose(lives.row, 2 * math.log(2), rel_tol=1e-12)
    assert half_lives(torch.ones(9, 9)) == (math.inf,) * 4
    assert cross_ratio(field, width=1).influence == 1
    assert cross_ratio(field).ratio == math.inf


def test_box_ends_where_it_ends():
    down, right = offsets(21, 21)
    field = ((down.abs() <= 3) & (right.abs() <= 3)).double()
    axis, row, column, diagonal = half_lives(field)
    assert axis == row == column == 2 and math.isclose(diagonal, 2 * math.sqrt(2))
    cross = cross_ratio(field, width=3)
    assert math.isclose(cross.influence, (7 * 3 * 2 - 9) / 49)
    assert math.isclose(cross.area, (21 * 3 * 2 - 9) / 441)


@pytest.mark.parametrize("size", [(9, 11), (8, 10)])
def test_profiles_average_their_arms(size):
    H, W = size
    field = torch.arange(1, H * W + 1).double().view(size)
    lines = profiles(field)
    assert len(lines.row) == (min(size) - 1) // 2 + 1  # as many steps as fit on all sides
    for line in lines:  # a plane: opposite arms average to the centre
        close(line, torch.full_like(line, float(field[H // 2, W // 2])))
    field[H // 2, W // 2 + 2] += 8
    field[H // 2 - 1, W // 2 + 1] += 8
    changed = profiles(field)
    assert [round(float(a[2] - b[2])) for a, b in zip(changed, lines, strict=True)] == [2, 4, 0, 0]
    assert [round(float(a[1] - b[1])) for a, b in zip(changed, lines, strict=True)] == [0, 0, 0, 2]


def test_by_patch_sums():
    field = torch.arange(24.0).view(4, 6)
    expected = [[0 + 1 + 6 + 7, 2 + 3 + 8 + 9, 4 + 5 + 10 + 11], [62, 70, 78]]
    assert by_patch(field, 2).tolist() == expected
    assert torch.equal(by_patch(field, 1), field.double())


# ---- errors -------------------------------------------------------------------------------------

X = torch.ones(1, 3, 8, 8)
FIELD = torch.ones(7, 7)
ERF = effective_receptive_field
MODEL = "model: expected evaluation mode"


def half_trained():
    model = VSSM([1], 8).eval()
    model.norm.train()
    return last_map(model)


def nan_field(x):
    return x * torch.where(torch.arange(8) == 4, math.nan, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ERF(nn.Conv2d(3, 3, 1), X), ValueError, f"{MODEL}, but Conv2d is in training"),
        (lambda: ERF(nn.BatchNorm2d(3).forward, X), ValueError, f"{MODEL}, but BatchNorm2d is"),
        (
            lambda: ERF(half_trained(), X),
            ValueError,
            rf"{MODEL}, but its norm is .* model.eval\(\)",
        ),
        (lambda: ERF(torch.square, []), ValueError, "images: expected at least one image"),
        (lambda: ERF(torch.square, X[:0]), ValueError, "images: expected at least one image"),
        (lambda: ERF(torch.square, [X[:0]]), ValueError, r"images: .* got \(0, 3, 8, 8\)"),
        (lambda: ERF(torch.square, X[0]), ValueError, r"images: expected .* got \(8, 8\)"),
        (
            lambda: ERF(torch.square, [[1.0]]),
            TypeError,
            "images: expected a torch.Tensor, got list",
        ),
        (lambda: ERF(torch.square, X.byte()), TypeError, "images: .* got torch.uint8"),
        (
            lambda: ERF(torch.square, [X, X[..., :4]]),
            ValueError,
            "images: expected all of one size, 8 × 8 as the first, got 8 × 4",
        ),
        (lambda: ERF(lambda x: x.sum(3), X), ValueError, r"features: .* got \(1, 3, 8\)"),
        (lambda: ERF(lambda x: x.mean(0, True), [X, X.expand(2, -1, -1, -1)]), ValueError, "feat"),
        (lambda: ERF(lambda x: 1, X), TypeError, "features: expected a torch.Tensor, got int"),
        (lambda: ERF(torch.zeros_like, X), ValueError, "features: .* got a constant"),
        (lambda: ERF(lambda x: X.clone().requires_grad_(), X), ValueError, "got a constant"),
        (lambda: ERF(nan_field, X), ValueError, "features: expected finite gradients"),
        (lambda: last_map(nn.Linear(2, 2)), TypeError, "model: expected a VSSM, .* got Linear"),
        (lambda: displayed(FIELD, 0), ValueError, "power: expected a number above 0, got 0"),
        (lambda: displayed(X), ValueError, r"field: expected shape \(H, W\), got \(1, 3, 8, 8\)"),
        (lambda: displayed([[1.0]]), TypeError, "field: expected a torch.Tensor, got list"),
        (lambda: displayed(FIELD * 0), ValueError, "field: expected influence somewhere"),
        (lambda: displayed(-FIELD), ValueError, "field: expected finite influences of at least 0"),
        (lambda: displayed(FIELD * math.nan), ValueError, "field: expected finite influences"),
        (lambda: share_of_area(FIELD, 1.5), ValueError, "fraction: expected at most 1, got 1.5"),
        (lambda: share_of_area(FIELD, 0), ValueError, "fraction: expected a number above 0"),
        (lambda: half_lives(FIELD, 4), ValueError, "start: expected at most 3 steps, got 4"),
        (lambda: half_lives(FIELD, -1), ValueError, "start: expected an integer of at least 0"),
        (lambda: cross_ratio(FIELD, 2), ValueError, "width: expected an odd number of pixels"),
        (lambda: cross_ratio(FIELD[:4]), ValueError, "field: expected at least 5 × 5 .* 4 × 7"),
        (lambda: by_patch(FIELD, 3), ValueError, "side: expected a divisor of the size 7 × 7"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

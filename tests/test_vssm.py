"""VMamba-T, S and B against what is published of them, and at any size of image."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from minivmamba import (
    VSSM,
    PatchMerging2D,
    VSSBlock,
    vmamba_base,
    vmamba_small,
    vmamba_tiny,
)
from minivmamba.stages import DropPath

NOTE = Path(__file__).parent / "data" / "reading_note_tree.txt"


def on_meta(build, **options):
    """Shapes without memory: enough to count and to name."""
    with torch.device("meta"):
        return build(**options)


def small(**options):
    torch.manual_seed(0)
    return VSSM([1, 1, 1, 1], 8, num_classes=5, d_state=2, **options).eval()


@pytest.mark.parametrize(
    ("build", "with_head", "without", "tensors"),
    [
        (vmamba_tiny, 22_893_448, 22_124_448, 212),
        (vmamba_small, 44_417_416, 43_648_416, 446),
        (vmamba_base, 76_254_056, 75_229_056, 446),
    ],
)
def test_parameter_counts(build, with_head, without, tensors):
    model = on_meta(build)
    assert sum(p.numel() for p in model.parameters()) == with_head
    assert len(model.state_dict()) == tensors
    headless = on_meta(build, num_classes=0)
    assert sum(p.numel() for p in headless.parameters()) == without


def described(module):
    """(class, numbers, bias) of a module's own line: what two versions of torch print alike."""
    text = f"{type(module).__name__}({module.extra_repr()})"
    return parsed(text)


def parsed(line):
    kind, _, rest = line.removeprefix("timm.").partition("(")
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", rest)]
    return kind, numbers, "bias=False" in rest


def tree_of_the_note():
    """{dotted name: (class, numbers, bias)} from the printed model, by its indentation."""
    path, tree = [], {}
    for line in NOTE.read_text().splitlines()[1:]:
        if found := re.match(r"( +)\((\w+)\): (.*)", line):
            depth = len(found[1]) // 2
            path = [*path[: depth - 1], found[2]]
            tree[".".join(path)] = parsed(found[3])
    return tree


def test_module_tree_is_the_one_of_the_reading_note():
    expected = tree_of_the_note()
    model = on_meta(vmamba_tiny)
    tree = {name: described(module) for name, module in model.named_modules() if name}
    assert list(tree) == list(expected)  # names and their order
    assert len(tree) == 15 * 9 + 3 * 3 + 4 * 2 + 8  # blocks, mergings, stages, the rest
    for name, (kind, numbers, bias) in expected.items():
        if kind == "DropPath":  # the note prints float32 rates, ours are printed shorter
            assert model.get_submodule(name).rate == pytest.approx(numbers[0], abs=1e-7)
            assert tree[name][0] == kind
        else:
            assert tree[name] == (kind, numbers, bias), name


def expected_parameters(depths, dim, N=16):
    """Names and shapes in order, written from the published key table."""
    yield from {"weight": (dim, 3, 4, 4), "bias": (dim,)}.items()
    yield from {"weight": (dim,), "bias": (dim,)}.items()
    for stage, depth in enumerate(depths):
        C = dim * 2**stage
        d, R = 2 * C, -(-C // 16)
        for _ in range(depth):
            yield from {"ln_1.weight": (C,), "ln_1.bias": (C,)}.items()
            yield "x_proj_weight", (4, R + 2 * N, d)
            yield "dt_projs_weight", (4, d, R)
            yield "dt_projs_bias", (4, d)
            yield "A_logs", (4 * d, N)
            yield "Ds", (4 * d,)
            yield "in_proj.weight", (2 * d, C)
            yield from {"conv2d.weight": (d, 1, 3, 3), "conv2d.bias": (d,)}.items()
            yield from {"out_norm.weight": (d,), "out_norm.bias": (d,)}.items()
            yield "out_proj.weight", (C, d)
        if stage < len(depths) - 1:
            yield "reduction.weight", (2 * C, 4 * C)
            yield from {"norm.weight": (4 * C,), "norm.bias": (4 * C,)}.items()
    yield from {"norm.weight": (8 * dim,), "norm.bias": (8 * dim,)}.items()
    yield from {"head.weight": (1000, 8 * dim), "head.bias": (1000,)}.items()


@pytest.mark.parametrize(
    ("build", "depths", "dim"),
    [
        (vmamba_tiny, [2, 2, 9, 2], 96),
        (vmamba_small, [2, 2, 27, 2], 96),
        (vmamba_base, [2, 2, 27, 2], 128),
    ],
)
def test_state_dict_names_shapes_and_order(build, depths, dim):
    state = on_meta(build).state_dict()
    expected = list(expected_parameters(depths, dim))
    assert [tuple(value.shape) for value in state.values()] == [shape for _, shape in expected]
    assert all(key.endswith(name) for key, (name, _) in zip(state, expected, strict=True))
    assert {"layers.2.blocks.3.self_attention.A_logs", "layers.0.downsample.norm.bias"} <= set(
        state
    )


def test_drop_path_rates_by_size():
    for build, rate in [(vmamba_tiny, 0.2), (vmamba_small, 0.3), (vmamba_base, 0.5)]:
        rates = [m.rate for m in on_meta(build).modules() if isinstance(m, DropPath)]
        assert rates[0] == 0 and rates[-1] == rate
        steps = torch.tensor(rates).diff()
        torch.testing.assert_close(steps, torch.full_like(steps, rate / (len(rates) - 1)))


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    y = drop(torch.ones(4000, 2, 3))
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (y.amax((1, 2)) == y.amin((1, 2))).all()
    assert abs(y.mean() - 1) < 0.05  # standard error 0.009
    assert (drop.eval()(torch.ones(4)) == 1).all()


def test_a_dropped_block_leaves_its_input_alone():
    """Only the branch is dropped, never the way past it."""
    block = VSSBlock(8, d_state=2, drop_path=0.5).train()
    x = torch.randn(64, 2, 2, 8)
    kept = (block(x) != x).flatten(1).any(1)
    assert 10 < kept.sum() < 54  # 64 fair coins
    branch = block.self_attention(block.ln_1(x))
    torch.testing.assert_close(block.eval()(x), x + branch)


def test_sizes_in_between_and_options():
    """One stage, one channel, no head, another number of states: what the constructors promise."""
    assert VSSM([1], 8, num_classes=3, in_chans=1)(torch.ones(2, 1, 4, 8)).shape == (2, 3)
    headless = VSSM([1, 1], [8, 16], num_classes=0)
    assert headless(torch.ones(2, 3, 8, 8)).shape == (2, 16)
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 1, H, W\)"):
        VSSM([1], 8, in_chans=1)(torch.ones(1, 3, 8, 8))
    for build in (vmamba_tiny, vmamba_small, vmamba_base):
        state = on_meta(build, num_classes=7, d_state=3, drop_path_rate=0.1).state_dict()
        assert state["layers.0.blocks.0.self_attention.A_logs"].shape[1] == 3
        assert state["head.weight"].shape[0] == 7
    default = on_meta(VSSM).state_dict()
    assert list(default) == list(on_meta(vmamba_tiny).state_dict())


def test_initial_weights_of_linear_and_norm_layers():
    torch.manual_seed(0)
    model = VSSM([1, 1], 32, num_classes=50)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert abs(module.weight.std() / 0.02 - 1) < 0.1
            assert module.bias is None or (module.bias == 0).all()
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5 and (module.weight == 1).all() and (module.bias == 0).all()


def test_stages_of_vmamba_tiny():
    model = on_meta(vmamba_tiny)
    maps = model.forward_features(torch.empty(2, 3, 64, 96, device="meta"))
    assert [tuple(m.shape) for m in maps] == [
        (2, 96, 16, 24),
        (2, 192, 8, 12),
        (2, 384, 4, 6),
        (2, 768, 2, 3),
    ]


@pytest.mark.parametrize(("H", "W"), [(32, 32), (33, 47), (36, 100), (75, 32), (64, 224)])
def test_any_size_from_32_pixels(H, W):
    model = small()
    images = torch.randn(2, 3, H, W)
    assert model(images).shape == (2, 5)
    h, w = H // 4, W // 4
    for features in model.forward_features(images):
        assert features.shape[2:] == (h, w)
        h, w = -(-h // 2), -(-w // 2)  # odd maps grow by a row or column of zeros


def test_the_last_row_of_an_odd_map_counts():
    """Zero padding keeps it, where the first release would drop it."""
    merging = PatchMerging2D(4)
    x = torch.randn(1, 3, 5, 4)
    changed = x.clone()
    changed[:, -1] += 1 + torch.arange(4)  # not constant: LayerNorm would hide that
    assert merging(x).shape == (1, 2, 3, 8)
    assert not torch.allclose(merging(x)[:, -1], merging(changed)[:, -1])
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 1))
    torch.testing.assert_close(merging(x), merging(padded))


def test_logits_come_from_the_last_map():
    model = small()
    images = torch.randn(2, 3, 32, 64)
    last = model.forward_features(images)[-1]
    pooled = model.norm(last.permute(0, 2, 3, 1)).mean((1, 2))
    torch.testing.assert_close(model(images), model.head(pooled))


def test_samples_of_a_batch_do_not_mix():
    model = small()
    images = torch.randn(3, 3, 40, 32)
    one_by_one = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), one_by_one, rtol=1e-4, atol=1e-5)


def test_a_training_step_lowers_the_loss():
    torch.manual_seed(0)
    model = small().train()
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (
            torch.ones(1, 3, 16, 16),
            ValueError,
            "images: expected a height and width of at least 32 pixels, got 16 × 16",
        ),
        (torch.ones(1, 3, 64, 31), ValueError, "at least 32 pixels, got 64 × 31"),
        (torch.ones(3, 64, 64), ValueError, r"images: expected shape \(B, 3, H, W\), got \(3, 64"),
        (torch.ones(1, 64, 64, 3), ValueError, r"images: expected shape \(B, 3, H, W\)"),
        (
            torch.ones(1, 3, 32, 32, dtype=torch.uint8),
            TypeError,
            "got torch.uint8; minivmamba.photos.to_input prepares",
        ),
        (
            torch.ones(1, 3, 32, 32, dtype=torch.float64),
            TypeError,
            "images: expected torch.float32 as the model, got torch.float64",
        ),
        (
            torch.ones(1, 3, 32, 32, device="meta"),
            ValueError,
            "images: expected device cpu, got meta",
        ),
        (torch.ones(1, 3, 32, 32, dtype=torch.int64), TypeError, "expected a floating-point"),
        (None, TypeError, "images: expected a torch.Tensor, got NoneType"),
        ([[0.0]], TypeError, "images: expected a torch.Tensor, got list"),
    ],
)
def test_bad_images(images, error, message):
    with pytest.raises(error, match=message):
        small()(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": []}, "depths: expected at least one stage"),
        ({"depths": [2, 0]}, "depths: expected an integer of at least 1, got 0"),
        ({"depths": [1, 1], "dims": [8]}, "dims: expected 2 widths as in depths, got 1"),
        ({"depths": [1, 1], "dims": [8, 24]}, "dims: expected widths that double"),
        ({"dims": 0}, "dims: expected an integer of at least 1, got 0"),
        ({"num_classes": -1}, "num_classes: expected an integer of at least 0, got -1"),
        ({"depths": 2}, "depths: expected a list of integers, got int"),
        ({"dims": 96.0}, "dims: expected an integer of at least 1, got 96.0"),
        ({"patch_size": 0}, "patch_size: expected an integer of at least 1, got 0"),
        ({"drop_path_rate": "0.1"}, r"drop_path_rate: expected a rate in \[0, 1\), got '0.1'"),
        ({"drop_path_rate": -0.1}, r"drop_path_rate: expected a rate in \[0, 1\), got -0.1"),
        ({"dims": True}, "dims: expected an integer of at least 1, got True"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate: expected a rate in \[0, 1\), got 1.0"),
        ({"d_state": 0}, "d_state: expected an integer of at least 1, got 0"),
    ],
)
def test_bad_constructor_arguments(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        VSSM(**options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PatchMerging2D(0), "dim: expected an integer of at least 1, got 0"),
        (lambda: VSSBlock(8, drop_path=1.0), r"drop_path: expected a rate in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_of_the_parts(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_half_precision_images_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert small()(torch.ones(1, 3, 32, 32).bfloat16()).shape == (1, 5)


def test_double_images_under_autocast():
    """Autocast unites half and single precision, not double: say so before the convolution does."""
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(TypeError, match=r"images: expected torch.float32 as the model"),
    ):
        small()(torch.ones(1, 3, 32, 32).double())

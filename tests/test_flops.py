"""count_flops against what is published, against a hand count, and against PyTorch's counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import minivmamba
from minivmamba import VSSM, Backbone, VSSBlock, VSSMv2, count_flops, vmamba_tiny, vmamba_tiny_s1l8
from minivmamba.flops import PARTS
from minivmamba.ss2d import RouteScan

FORMULAS = ("prefix sum", "naive")


def on_meta(build, *arguments, **options):
    """Shapes without memory, and without the time that random weights take."""
    with torch.device("meta"):
        return build(*arguments, **options)


def giga(operations, digits=4):
    return round(operations / 1e9, digits)


# What is published


@pytest.mark.parametrize(
    ("name", "scan", "published"),
    [
        ("tiny", "naive", 4.4612),
        ("tiny", "prefix sum", 5.6269),
        ("small", "naive", 9.1121),
        ("small", "prefix sum", 11.2315),
        ("tiny_s1l8", "prefix sum", 4.9056),
        ("small_s1l20", "prefix sum", 8.6122),
        ("base_s1l20", "prefix sum", 15.2209),
        ("tiny_s2l5", "prefix sum", 4.8577),
        ("small_s2l15", "prefix sum", 8.7158),
        ("base_s2l15", "prefix sum", 15.3589),
    ],
)
def test_published_totals(name, scan, published):
    model = on_meta(getattr(minivmamba, f"vmamba_{name}"))
    assert giga(count_flops(model).total(scan)) == published


def as_fvcore_reads(operations):
    """An einsum in fvcore: half of its multiplications and additions, as NumPy prints them."""
    return float(f"{2 * operations:.3e}") // 2


def in_the_authors_tool(model, cost, scan):
    """A cost with the rounding of fvcore: to four digits of each einsum."""
    if cost.part == "einsum":
        return as_fvcore_reads(cost.operations)
    if cost.part == "scan" and scan == "naive":
        channels = 4 * model.get_submodule(cost.layer).d_inner
        steps = cost.operations // channels
        before = as_fvcore_reads(cost.states / 2) + as_fvcore_reads(cost.states)  # ΔA and ΔBu
        in_the_loop = cost.states + steps * as_fvcore_reads(cost.states // steps)  # Āh + …, C·h
        return before + in_the_loop + cost.operations
    return cost.total(scan)


@pytest.mark.parametrize(
    ("name", "scan", "published", "exact"),
    [
        ("tiny", "naive", 4.4612, 4.4612),
        ("tiny", "prefix sum", 5.6269, 5.6269),
        ("small", "naive", 9.1121, 9.1121),
        ("small", "prefix sum", 11.2315, 11.2315),
        ("base", "naive", 15.1944, 15.1937),
        ("base", "prefix sum", 18.0201, 18.0196),
    ],
)
def test_published_totals_of_the_first_version_are_rounded(name, scan, published, exact):
    """It shows for VMamba-B only, and the rounding of the einsums explains it to the digit."""
    model = on_meta(getattr(minivmamba, f"vmamba_{name}"))
    flops = count_flops(model)
    assert giga(flops.total(scan)) == exact
    rounded = sum(in_the_authors_tool(model, cost, scan) for cost in flops.costs)
    assert giga(rounded) == published


def test_published_parts():
    parts = count_flops(on_meta(vmamba_tiny)).by_part()
    published = {"linear": 2.7753, "scan": 1.9207, "einsum": 0.8574, "conv": 0.0443, "norm": 0.0292}
    assert {part: giga(parts[part]) for part in published} == published
    assert parts["pool"] == 7 * 7 * 768
    assert giga(count_flops(on_meta(vmamba_tiny_s1l8)).by_part()["scan"]) == 0.0632


@pytest.mark.parametrize(
    ("size", "published"),
    [
        (64, 0.460),
        (112, 1.451),
        (384, 16.535),
        (512, 29.394),
        (640, 45.928),
        (768, 66.137),
        (1024, 117.575),
    ],
)
def test_published_sizes(size, published):
    assert giga(count_flops(on_meta(vmamba_tiny), size).total(), 3) == published


# By hand


def test_a_tiny_model_by_hand():
    """Two stages on 8 × 12 pixels: maps of 2 × 3 and 1 × 2 (the odd side is padded)."""
    model = on_meta(VSSM, [1, 1], 4, num_classes=5, in_chans=2, d_state=3)
    flops = count_flops(model, (8, 12))
    first, second = 2 * 3, 1 * 2
    assert flops.by_part("naive") == {
        #          in_proj, out_proj of each block; reduction; head
        "linear": first * (4 * 16 + 8 * 4) + second * (8 * 32 + 16 * 8 + 16 * 8) + 8 * 5,
        #          the patches; the depthwise convolutions
        "conv": first * (2 * 4 * 4 * 4 + 8 * 9) + second * 16 * 9,
        #          rank 1 and 3 states: 4 routes × d × (1 + 6), and back to d channels
        "einsum": first * 4 * 8 * (7 + 1) + second * 4 * 16 * (7 + 1),
        "scan": (first * 8 + second * 16) * 4 * 3 * 7 // 2 + (first * 8 + second * 16) * 4,
        #          stem, ln_1, out_norm; the norm of the merging; ln_1, out_norm; the head's norm
        "norm": 5 * (first * (4 + 4 + 8) + second * (16 + 8 + 16 + 8)),
        "pool": second * 8,
    }
    more = (first * 8 + second * 16) * 4 * 3 * 11 // 2  # 9 − 3.5 a state
    assert flops.total() - flops.total("naive") == more
    assert flops.by_stage("naive")["stem"] == first * (2 * 4 * 4 * 4 + 5 * 4)
    assert flops.by_stage("naive")["head"] == 8 * 5 + second * (5 * 8 + 8)


def test_a_tiny_model_of_the_second_version_by_hand():
    """One stage on 6 × 9 pixels: the stem makes 3 × 5, then 2 × 3, each side rounded up."""
    model = on_meta(VSSMv2, [1], 4, num_classes=0, ssm_ratio=2.0, mlp_ratio=3.0)
    flops = count_flops(model, (6, 9))
    half, L = 3 * 5, 2 * 3
    assert flops.by_part() == {
        "linear": L * (4 * 8 + 8 * 4 + 4 * 12 + 12 * 4),  # in_proj, out_proj, fc1, fc2
        "conv": half * 3 * 2 * 9 + L * 2 * 4 * 9 + L * 8 * 9,  # stem, stem, depthwise
        "einsum": L * 4 * 8 * (1 + 2 + 1),
        "scan": L * 4 * 8 * (9 + 1),
        "norm": 5 * (half * 2 + L * (4 + 4 + 8 + 4 + 4)),  # stem, stem, norm, out_norm, norm2, head
        "pool": L * 4,
    }


def test_one_more_block():
    """In stage 3 of VMamba-T: C = 384, d = 768, R = 24, N = 16 on 14 × 14 pixels."""
    more = (
        count_flops(on_meta(VSSM, [2, 2, 10, 2], 96)).total() - count_flops(on_meta(VSSM)).total()
    )
    norm, linear, conv = 5 * (384 + 768), 384 * 1536 + 768 * 384, 768 * 9
    einsum, scan = 4 * 768 * (24 + 32 + 24), 4 * 768 * (9 * 16 + 1)
    assert more == 14 * 14 * (norm + linear + conv + einsum + scan)


# What must hold for any model and size


@pytest.fixture(params=[VSSM, VSSMv2], ids=["v1", "v2"])
def small(request):
    # Width 32 gives Δ a rank of at least 2. At rank 1 PyTorch's einsum multiplies elementwise,
    # which its counter does not count.
    return request.param([1, 2, 1, 1], 32, num_classes=7, in_chans=4).eval()


@pytest.mark.parametrize("scan", FORMULAS)
def test_parts_and_stages_add_up(small, scan):
    flops = count_flops(small, (70, 45))
    assert tuple(flops.by_part(scan)) == PARTS
    assert list(flops.by_stage(scan)) == [
        "stem",
        "stage 1",
        "stage 2",
        "stage 3",
        "stage 4",
        "head",
    ]
    for sums in (flops.by_part(scan), flops.by_stage(scan)):
        assert sum(sums.values()) == flops.total(scan)
        assert all(isinstance(count, int) and count >= 0 for count in sums.values())


@pytest.mark.parametrize("scan", FORMULAS)
def test_linear_in_the_pixels(small, scan):
    """But for the linear layer of the head, which sees one vector."""
    head = 256 * 7
    per_tile = count_flops(small, 32).total(scan) - head
    for H, W in [(64, 32), (32, 96), (224, 224), (1024, 512)]:
        tiles = (H // 32) * (W // 32)
        assert count_flops(small, (H, W)).total(scan) - head == tiles * per_tile


def test_size_of_the_image(small):
    square = count_flops(small, 64)
    assert square == count_flops(small, (64, 64)) == count_flops(small, torch.Size([64, 64]))
    assert square.total() < count_flops(small, (64, 68)).total()
    assert count_flops(small, (64, 45)).total() == count_flops(small, (45, 64)).total()
    assert count_flops(small).size == (224, 224)


# Against PyTorch's counter, which runs the model


def counted_by_torch(model, size, *, fused):
    """{operator: operations} of one image, by torch.utils.flop_counter."""
    for module in model.modules():
        if isinstance(module, RouteScan):
            module.fused = fused
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, model.in_chans, *size))
    return {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}


SIZES = [(32, 32), (64, 96), (33, 47), (75, 38)]  # odd maps on the way in the last two


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_pytorch_on_the_plain_path(small, size):
    """Twice linear, conv and einsum; the scan by its own formula, the rest not at all."""
    counts = counted_by_torch(small, size, fused=False)
    scan = counts.pop("minivmamba.selective_scan")
    flops = count_flops(small, size)
    parts = flops.by_part()
    assert sum(counts.values()) == 2 * (parts["linear"] + parts["conv"] + parts["einsum"])
    assert counts["aten.convolution"] == 2 * parts["conv"]
    # Every multiplication and addition of the loop: 6 for each state and 3 for Δu and D·u +. The
    # naive formula makes ΔB u with two multiplications for each state: 7, and 2 for D·u +.
    states = sum(cost.states for cost in flops.costs)
    steps = sum(cost.operations for cost in flops.costs if cost.part == "scan")
    assert scan == 6 * states + 3 * steps
    assert 2 * flops.by_part("naive")["scan"] == 7 * states + 2 * steps


@pytest.mark.parametrize("size", SIZES)
def test_differs_from_pytorch_on_the_fused_path_by_where_delta_is_made(small, size):
    """There the operator of the scan expands Δ itself, so that einsum is counted with it."""
    pytest.importorskip("numba")
    counts = counted_by_torch(small, size, fused=True)
    scan = counts.pop("minivmamba.ss2d_scan")
    costs = count_flops(small, size).costs
    scans = [cost for cost in costs if cost.part == "scan"]
    ranks = {cost.layer: small.get_submodule(cost.layer).dt_rank for cost in scans}
    to_delta = sum(cost.operations * ranks[cost.layer] for cost in scans)
    parts = count_flops(small, size).by_part()
    assert sum(counts.values()) == 2 * (
        parts["linear"] + parts["conv"] + parts["einsum"] - to_delta
    )
    assert scan == sum(6 * c.states + 3 * c.operations for c in scans) + 2 * to_delta


# The model is read only


def test_leaves_the_model_alone(small):
    def never(*_):
        raise AssertionError("the model was run")

    small.train()
    small.register_forward_hook(never)
    small.layers[0].register_forward_pre_hook(never)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    first = count_flops(small, 64)
    assert small.training and len(small._forward_hooks) == 1
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    assert count_flops(small.double(), 64) == count_flops(small.half(), 64) == first
    assert count_flops(small.to("meta"), 64) == first


def test_without_a_head():
    with_head, without = (count_flops(on_meta(vmamba_tiny, num_classes=n)) for n in (1000, 0))
    assert with_head.total() - without.total() == 768 * 1000
    assert without.by_stage()["head"] == 49 * (5 * 768 + 768)


def test_another_head_counts_on_the_pooled_vector():
    model = on_meta(vmamba_tiny, num_classes=0)
    without = count_flops(model).total()
    model.head = nn.Sequential(nn.Dropout(), nn.Linear(768, 64), nn.GELU(), nn.Linear(64, 10))
    assert count_flops(model).total() - without == 768 * 64 + 64 * 10


def test_channels_of_the_image():
    grey, colour = (count_flops(on_meta(vmamba_tiny, in_chans=n)) for n in (1, 3))
    assert colour.total() - grey.total() == 56 * 56 * 2 * 96 * 16


def test_table():
    lines = str(count_flops(on_meta(vmamba_tiny))).splitlines()
    assert lines[0].startswith("VSSM at 224 × 224 pixels")
    assert lines[1].split() == [*PARTS, "total"]
    assert " ".join(lines[-2].split()) == "all 2.7753 0.0443 0.8574 1.9207 0.0292 0.0000 5.6269"
    assert lines[-1].split()[-1] == "4.4612"
    assert len(lines) == 2 + 6 + 2 and len({len(line) for line in lines[1:]}) == 1


# Errors


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: VSSBlock(8), "model: expected a VSSM or VSSMv2, got VSSBlock"),
        (lambda: Backbone(VSSM([1], 8), [0]), "model: expected a VSSM or VSSMv2, got Backbone"),
        (lambda: VSSM, "model: expected a VSSM or VSSMv2, got type"),
        (lambda: None, "model: expected a VSSM or VSSMv2, got NoneType"),
    ],
)
def test_not_a_model(model, message):
    with pytest.raises(TypeError, match=message):
        count_flops(model())


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (31, "size: expected an integer of at least 32, got 31"),
        ((64, 16), "size: expected an integer of at least 32, got 16"),
        (224.0, "size: expected an integer of at least 32, got 224.0"),
        (True, "size: expected an integer of at least 32, got True"),
        ("224", "size: expected an integer of at least 32, got '224'"),
        (None, "size: expected an integer of at least 32, got None"),
        ((3, 224, 224), r"size: expected an integer or \(H, W\), got \(3, 224, 224\)"),
        ([], r"size: expected an integer or \(H, W\), got \[\]"),
    ],
)
def test_bad_sizes(size, message):
    with pytest.raises(ValueError, match=message):
        count_flops(on_meta(vmamba_tiny), size)


def test_unknown_formula():
    flops = count_flops(on_meta(vmamba_tiny))
    for method in (flops.total, flops.by_part, flops.by_stage):
        with pytest.raises(ValueError, match='scan: expected "prefix sum" or "naive", got "fast"'):
            method("fast")


def test_a_layer_without_a_formula():
    """Better no count than one that leaves something out."""
    model = on_meta(vmamba_tiny)
    model.layers[1].blocks[0].ln_1 = nn.BatchNorm2d(192)
    with pytest.raises(TypeError, match=r"BatchNorm2d.* at layers\.1\.blocks\.0\.ln_1"):
        count_flops(model)
    model = on_meta(vmamba_tiny)
    model.patch_embed.proj = nn.Conv2d(3, 96, 4, padding="same")
    with pytest.raises(TypeError, match=r'padding in pixels, got "same" at patch_embed\.proj'):
        count_flops(model)

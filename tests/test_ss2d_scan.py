"""The fused scan of a map: the same numbers as a loop over pixels, and as SS2D's plain path.

The loop is NumPy in float64 and walks the lists of coordinates of `reference.py`. With the initial
values of a model (A equal in all routes, D = 1) a swapped route would leave no trace, so everything
is drawn at random here.
"""

from functools import partial

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reference import randomise
from test_scan_op import Recorder
from test_scan_properties import assert_agree, exactly

from minivmamba import SS2D, VSSM, ss2d_scan, vmamba_tiny

scan_numba = partial(ss2d_scan, backend="numba")
scan_naive = partial(ss2d_scan, backend="naive")
MAPS = ("x", "delta", "B", "C")
TENSORS = ("x", "delta", "A", "B", "C", "D", "delta_bias", "delta_weight")

# One rounding is 6e-8 or 1e-16. Each number is the sum of four routes of at most 165 pixels whose
# states decay, and a gradient is the sum over all pixels: some ten roundings are seen.
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13}
SIZES = [(1, 1), (1, 7), (7, 1), (33, 5), (5, 33), (4, 6)]
size_name = "{0[0]}x{0[1]}".format
OPTIONS = [{}, {"bare": True}, {"softplus": False}, {"rank": 1}, {"rank": 6}]


def arguments(
    batch=2, H=4, W=6, d=3, N=4, dtype=torch.float64, seed=0, bare=False, softplus=True, rank=0
):
    """Arguments of ss2d_scan; with a rank, delta is of that rank and has its weight."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    delta = randn(batch, 4, H, W, rank or d)
    weight = randn(4, d, rank) / rank**0.5 if rank else None
    if weight is not None and not softplus:
        weight = weight.abs()
    tensors = {
        "x": randn(batch, H, W, d),
        "delta": delta if softplus else delta.abs(),
        "A": -torch.exp(randn(4 * d, N)),
        "B": randn(batch, 4, H, W, N),
        "C": randn(batch, 4, H, W, N),
        "D": None if bare else randn(4 * d),
        "delta_bias": None if bare else randn(4 * d) if softplus else randn(4 * d).abs(),
        "delta_weight": weight,
    }
    tensors = {name: v if v is None else v.to(dtype) for name, v in tensors.items()}
    return {**tensors, "delta_softplus": softplus}


def run(scan, arguments, dy):
    """y and the gradients of ⟨dy, y⟩, by name."""
    leaves = {
        name: value.detach().requires_grad_() if torch.is_tensor(value) else value
        for name, value in arguments.items()
    }
    tensors = {name: value for name, value in leaves.items() if torch.is_tensor(value)}
    y = scan(**leaves)
    gradients = torch.autograd.grad(y, tuple(tensors.values()), dy)
    named = zip(tensors, gradients, strict=True)
    return {"y": y.detach()} | {f"d{name}": gradient for name, gradient in named}


def by_pixel(x, delta, A, B, C, D, delta_bias, delta_softplus, delta_weight):
    """One image, one route, one pixel after the other; NumPy arrays of one image each.

    x (H, W, d), delta (4, H, W, d), A (4·d, N), B and C (4, H, W, N), D and delta_bias (4·d,),
    delta_weight (4, d, R).
    """
    H, W, d = x.shape
    y = np.zeros_like(x)
    for k, coordinates in enumerate(reference.ROUTES):
        rows = slice(k * d, (k + 1) * d)
        h = np.zeros_like(A[rows])  # (d, N)
        for row, col in coordinates(H, W):
            u, step = x[row, col], delta[k, row, col]
            step = step if delta_weight is None else delta_weight[k] @ step
            step = step if delta_bias is None else step + delta_bias[rows]
            step = reference.softplus(step) if delta_softplus else step
            h = np.exp(step[:, None] * A[rows]) * h + (step * u)[:, None] * B[k, row, col]
            y[row, col] += h @ C[k, row, col] + (0 if D is None else D[rows] * u)
    return y


def batch_by_pixel(arguments):
    images = [
        {
            name: value.double().numpy()[image] if name in MAPS else value
            for name, value in arguments.items()
        }
        for image in range(len(arguments["x"]))
    ]
    shared = ("A", "D", "delta_bias", "delta_weight")
    arrays = {k: arguments[k].double().numpy() for k in shared if arguments[k] is not None}
    return torch.from_numpy(np.stack([by_pixel(**(image | arrays)) for image in images]))


# 1 · Values and gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=size_name)
def test_every_pixel_agrees_with_the_loop(size, options, dtype):
    a = arguments(2, *size, dtype=dtype, **options)
    exact = {"y": batch_by_pixel(a)}
    assert_agree({"y": scan_naive(**exactly(a))}, exact, TOLERANCE[torch.float64])
    assert_agree({"y": scan_numba(**a)}, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("k", range(4))
def test_every_route_by_itself(k):
    """The other routes have C = 0 and D = 0: a mistake cannot hide in the sum."""
    a = arguments(1, 5, 3, d=70)
    others = torch.arange(4) != k
    a["C"][:, others] = 0
    a["D"].view(4, 70)[others] = 0
    exact = batch_by_pixel(a)
    assert_agree({"y": scan_numba(**a)}, {"y": exact}, TOLERANCE[torch.float64])


def pixels_that_matter(k):
    """Which pixels of a 3×4 map the output at (1, 2) depends on, through route k alone."""
    a = arguments(1, 3, 4, d=1, N=1)
    a["C"][:, torch.arange(4) != k] = 0
    a["D"].zero_()
    x = a["x"].requires_grad_()
    (gradient,) = torch.autograd.grad(scan_numba(**{**a, "x": x})[0, 1, 2, 0], x)
    return (gradient[0, :, :, 0] != 0).int().tolist()


def test_what_each_route_has_seen():
    """Written out by hand, so that the loop above may be wrong as well."""
    seen = [
        [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]],
        [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]],
        [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1]],
    ]
    assert [pixels_that_matter(k) for k in range(4)] == seen


def check_gradients(size, dtype, dy_layout="standard", **options):
    a = arguments(*size, dtype=dtype, **options)
    dy = torch.randn_like(a["x"])
    if dy_layout == "channels first":  # as a gradient arrives through a permuted map
        dy = dy.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    elif dy_layout == "expanded":  # as it arrives from y.sum()
        dy = dy[:1, :1, :1, :1].expand_as(dy)
    exact = run(scan_naive, exactly(a), dy.double())
    ours = run(scan_numba, a, dy)
    assert all(value.dtype == dtype for value in ours.values())
    assert_agree(ours, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=size_name)
def test_gradients_agree_with_the_naive_rung(size, options, dtype):
    check_gradients((2, *size), dtype, **options)


@settings(max_examples=60)
@given(
    size=st.tuples(
        st.integers(1, 3),
        st.integers(1, 9),
        st.integers(1, 9),
        st.integers(1, 5) | st.sampled_from([63, 64, 65, 128, 129]) | st.integers(1, 130),
        st.integers(1, 20),
    ),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    bare=st.booleans(),
    softplus=st.booleans(),
    rank=st.integers(0, 9),
    dy_layout=st.sampled_from(["standard", "channels first", "expanded"]),
    seed=st.integers(0, 2**31),
)
def test_any_size(size, dtype, bare, softplus, rank, dy_layout, seed):
    check_gradients(size, dtype, dy_layout, bare=bare, softplus=softplus, rank=rank, seed=seed)


@pytest.mark.slow
def test_gradients_of_a_stage():
    """56×56 pixels, more than one chunk in a row, two tiles and some lanes of a third."""
    check_gradients((1, 56, 57, 150, 16), torch.float32)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(2, 2, 3, 2, 2), (1, 6, 7, 1, 1)], ids=["small", "two-chunks"])
def test_gradcheck(size, options):
    a = arguments(*size, **options)
    names = [name for name in TENSORS if a[name] is not None]
    assert len(names) == (5 if "bare" in options else 7) + ("rank" in options)

    def scan(*tensors):
        named = dict(zip(names, tensors, strict=True))
        return scan_numba(**named, delta_softplus=a["delta_softplus"])

    assert torch.autograd.gradcheck(scan, tuple(a[name].requires_grad_() for name in names))


def as_slices(a):
    """The arguments as SS2D cuts them: B and C out of one projection, x out of (x, z)."""
    N = a["B"].shape[-1]
    one = torch.cat([torch.full_like(a["B"][..., :1], torch.nan), a["B"], a["C"]], dim=-1)
    _, B, C = one.split([1, N, N], dim=-1)
    x = torch.cat([a["x"], torch.full_like(a["x"], torch.nan)], dim=-1).chunk(2, dim=-1)[0]
    delta = a["delta"].permute(0, 2, 3, 1, 4).contiguous().permute(0, 3, 1, 2, 4)
    return {**a, "x": x, "delta": delta, "B": B, "C": C}


def channels_first(a):
    """Maps whose channels do not lie side by side."""
    return {
        name: v.movedim(-1, 1).contiguous().movedim(1, -1)
        if name in ("x", "delta", "B", "C")
        else v
        for name, v in a.items()
    }


def expanded(a):
    """One step, B and C for all four routes, and parameters without storage of their own."""
    one = {name: a[name][:, :1].expand_as(a[name]) for name in ("delta", "B", "C")}
    return {**a, **one, "A": a["A"][:1].expand_as(a["A"]), "D": a["D"][:1].expand_as(a["D"])}


def cropped(a):
    """Windows of larger maps: from row to row it is farther than the width."""

    def crop(x):
        H, W = x.shape[-3:-1]
        larger = x.new_full((*x.shape[:-3], H + 3, W + 2, x.shape[-1]), torch.nan)
        larger[..., 1 : H + 1, 2:, :] = x
        return larger[..., 1 : H + 1, 2:, :]

    return {name: crop(v) if name in MAPS else v for name, v in a.items()}


def columns_first(a):
    """Maps stored column by column."""
    return {
        name: v.transpose(-3, -2).contiguous().transpose(-3, -2) if name in MAPS else v
        for name, v in a.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(5, 7), (5, 1), (1, 7)], ids=size_name)
@pytest.mark.parametrize("layout", [as_slices, channels_first, expanded, cropped, columns_first])
def test_any_strides(layout, size, dtype):
    a = layout(arguments(2, *size, d=66, dtype=dtype))
    dy = layout({**a, "x": torch.randn(2, *size, 66, dtype=dtype)})["x"]
    exact = run(scan_naive, exactly(a), dy.double())
    assert_agree(run(scan_numba, a, dy), exact, TOLERANCE[dtype])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["x", "delta", "A", "D"])
def test_what_is_not_finite_stays_in_its_channel(name, value):
    """And is seen there: channel 66 stands in the second tile, pixel (2, 3) in no corner."""
    a = arguments(2, 5, 7, d=80)
    dy = torch.randn_like(a["x"])
    clean = run(scan_numba, a, dy)
    place = {"x": (0, 2, 3, 66), "delta": (0, 1, 2, 3, 66), "A": (66, 1), "D": (66,)}[name]
    bad = {**a, name: a[name].clone()}
    bad[name][place] = value
    ours = run(scan_numba, bad, dy)
    assert not ours["y"][0, 2, 3, 66].isfinite()
    others = torch.arange(80) != 66
    for key in ("y", "dx", "ddelta"):
        now, before = ours[key][..., others], clean[key][..., others]
        torch.testing.assert_close(now, before)
    for key in ("dA", "dD", "ddelta_bias"):
        now, before = (result[key].unflatten(0, (4, 80))[:, others] for result in (ours, clean))
        torch.testing.assert_close(now, before)


@pytest.fixture
def threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(2, 9, 7, 130, 5), (1, 9, 7, 3, 16)], ids=["many", "one"])
def test_results_repeat_to_the_last_bit(size, dtype, threads):
    """Run to run, and for one and two threads: the routes are added in one order."""
    a = arguments(*size, dtype=dtype)
    dy = torch.randn_like(a["x"])
    threads(1)
    once = run(scan_numba, a, dy)
    for count in (1, 2, 2, 2, 1):
        threads(count)
        again = run(scan_numba, a, dy)
        assert torch.get_num_threads() == count
        for name, value in once.items():
            assert torch.equal(again[name], value), f"{name}, {count} threads"


# 2 · Errors


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, r"x: expected a torch\.Tensor, got list"),
        ({"x": torch.ones(2, 4, 6).double()}, ValueError, r"x: expected .* got \(2, 4, 6\)"),
        ({"x": torch.ones(2, 0, 6, 3).double()}, ValueError, r"x: expected .* got \(2, 0, 6, 3\)"),
        (
            {"delta": torch.ones(2, 4, 24, 3).double()},
            ValueError,
            r"delta: expected shape \(2, 4, 4, 6, 3\), got \(2, 4, 24, 3\)",
        ),
        (  # rows and columns exchanged
            {"delta": torch.ones(2, 4, 6, 4, 3).double()},
            ValueError,
            r"delta: expected shape \(2, 4, 4, 6, 3\), got \(2, 4, 6, 4, 3\)",
        ),
        (  # one route's
            {"A": torch.ones(3, 4).double()},
            ValueError,
            r"A: expected shape \(12, N\).* got \(3, 4\)",
        ),
        ({"A": torch.ones(12, 0).double()}, ValueError, r"A: expected shape \(12, N\)"),
        (
            {"B": torch.ones(2, 3, 4, 6, 4).double()},
            ValueError,
            r"B: expected shape \(2, 4, 4, 6, 4\), got \(2, 3, 4, 6, 4\)",
        ),
        (
            {"C": torch.ones(2, 4, 4, 6, 5).double()},
            ValueError,
            r"C: expected shape \(2, 4, 4, 6, 4\), got \(2, 4, 4, 6, 5\)",
        ),
        ({"D": torch.ones(3).double()}, ValueError, r"D: expected shape \(12,\), got \(3,\)"),
        (
            {"delta_bias": torch.ones(4, 3).double()},
            ValueError,
            r"delta_bias: expected shape \(12,\), got \(4, 3\)",
        ),
        (
            {"delta_weight": torch.ones(4, 2, 3).double()},
            ValueError,
            r"delta_weight: expected shape \(4, 3, R\).* got \(4, 2, 3\)",
        ),
        (
            {"delta_weight": torch.ones(4, 3, 2).double()},
            ValueError,
            r"delta: expected shape \(2, 4, 4, 6, 2\), got \(2, 4, 4, 6, 3\)",
        ),
        ({"A": torch.ones(12, 4)}, TypeError, r"A: expected torch\.float64.* got torch\.float32"),
        (
            {"B": torch.ones(2, 4, 4, 6, 4, dtype=torch.int64)},
            TypeError,
            r"B: expected a floating-point tensor, got torch\.int64",
        ),
        (
            {"x": torch.ones(2, 4, 6, 3, dtype=torch.complex64)},
            TypeError,
            r"x: expected a floating-point tensor, got torch\.complex64",
        ),
        (
            {"D": torch.ones(12, dtype=torch.float64, device="meta")},
            ValueError,
            "D: expected device cpu as x, got meta",
        ),
        ({"delta": None}, TypeError, r"delta: expected a torch\.Tensor, got NoneType"),
        ({"delta_softplus": 1}, TypeError, "delta_softplus: expected True or False, got 1"),
        (
            {"backend": "cuda"},
            ValueError,
            'backend: expected one of "auto", "naive", "numba".* got \'cuda\'',
        ),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        ss2d_scan(**{**arguments(), **change})


# 3 · SS2D and VMamba


def values_and_gradients(module, x, *, fused):
    for part in module.modules():
        if isinstance(part, SS2D):
            part.fused = fused
    x = x.detach().requires_grad_()
    y = module(x)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    named = dict(module.named_parameters())
    gradients = torch.autograd.grad((y * weight).sum(), [x, *named.values()])
    return {"y": y.detach()} | dict(zip(["dx", *named], gradients, strict=True))


# The paths differ in the order of sums only: some roundings of 6e-8 or 1e-16.
PATHS_DIFFER = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {"d_model": 6, "d_state": 3, "dt_rank": 2},
        {"d_model": 5, "d_state": 1, "expand": 3},
        {"d_model": 40},
    ],
    ids=["N3-R2", "N1-expand3", "two-tiles"],
)
@pytest.mark.parametrize("size", SIZES, ids=size_name)
def test_fused_ss2d_is_the_plain_one(size, options, dtype):
    module = randomise(SS2D(**options).to(dtype))
    x = torch.randn(2, *size, options["d_model"], dtype=dtype)
    fused = values_and_gradients(module, x, fused=True)
    assert_agree(fused, values_and_gradients(module, x, fused=False), PATHS_DIFFER[dtype])


def test_both_paths_are_what_they_are_called():
    """The tests above would pass if `fused` were ignored."""
    module, x = SS2D(8), torch.randn(1, 3, 5, 8)
    called = {}
    for module.fused in (True, False):
        with Recorder() as recorder:
            module(x).sum().backward()
        called[module.fused] = {str(op) for op, _, _ in recorder.calls}
    assert any("ss2d" in op for op in called[True])
    assert any("ss2d" in op and "backward" in op for op in called[True])
    assert not any("ss2d" in op for op in called[False])
    assert any("selective_scan" in op for op in called[False])
    assert SS2D.fused is True  # on a CPU a user need not ask


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_fused_ss2d_under_autocast(low):
    module, x = randomise(SS2D(16, d_state=4)), torch.randn(1, 5, 6, 16)
    with torch.autocast("cpu", dtype=low):
        fused = values_and_gradients(module, x, fused=True)
        plain = values_and_gradients(module, x, fused=False)
    assert fused["y"].dtype == low
    # Both round their projections to 8 bits, each its own way; a gradient passes several.
    assert_agree(fused, plain, 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_model_is_the_plain_one(dtype):
    """Maps of 9×13, 5×7, 3×4 and 2×2 pixels, in training too."""
    model = VSSM(depths=[1, 2, 1, 1], dims=[6, 12, 24, 48], num_classes=5, d_state=3)
    model = randomise(model.to(dtype)).eval()  # no dropped paths
    x = torch.randn(2, 3, 38, 54, dtype=dtype)
    fused = values_and_gradients(model, x, fused=True)
    # Five blocks, each normed again, hand their roundings on.
    assert_agree(fused, values_and_gradients(model, x, fused=False), 5 * PATHS_DIFFER[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (160, 224)], ids=size_name)
@torch.no_grad()
def test_fused_vmamba_tiny_has_the_plain_logits(size):
    model = randomise(vmamba_tiny()).eval()
    images = torch.randn(1, 3, *size)
    logits = {}
    for fused in (True, False):
        for part in model.modules():
            if isinstance(part, SS2D):
                part.fused = fused
        logits[fused] = model(images)
    largest = logits[False].abs().max()
    assert largest > 0.1  # the logits say something
    assert (logits[True] - logits[False]).abs().max() <= 1e-5 * largest

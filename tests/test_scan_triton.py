"""The Triton rung, and its form over a map, agree with the naive rung: shown without a GPU.

Triton's interpreter runs the kernels one program after another, in NumPy. What it cannot show is
shown beside it: that programs do not depend on each other, and that `combine` may be bracketed in
any way. The mutants at the end are kernels with one mistake, each of which has to be noticed.
"""

import importlib.util
import random
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
import triton_tools
from test_scan_op import Recorder
from triton_tools import FencedTorch, fenced, interpreted, shuffle_programs

from minivmamba import selective_scan
from minivmamba.kernels import scan_triton as sequence_kernels
from minivmamba.kernels import ss2d_triton as map_kernels
from minivmamba.kernels.scan_naive import scan_naive, scan_naive_backward
from minivmamba.ss2d_scan import reference, ss2d_scan

triton, tl = triton_tools.triton, triton_tools.triton.language
CHUNK = sequence_kernels.CHUNK
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
# Roundings of 6e-8, of which a state that hardly decays collects those of 65 steps, and a sum over
# all steps may cancel. Ten times what is seen.
TOLERANCE = 5e-6


# 1 · Arguments, and the truth in float64


def arguments(batch=1, K=1, d=3, N=2, L=5, softplus=True, has_D=True, has_bias=True, seed=0):
    """Channels last; A, D and the bias random; steps that shrink and keep a state."""
    torch.manual_seed(seed)
    channels = K * d
    delta = torch.randn(batch, L, channels) if softplus else torch.rand(batch, L, channels)
    return (
        torch.randn(batch, L, channels).transpose(1, 2),
        delta.transpose(1, 2),
        -torch.exp(torch.randn(channels, N)),
        torch.randn(batch, K, L, N).transpose(2, 3),
        torch.randn(batch, K, L, N).transpose(2, 3),
        torch.randn(channels) if has_D else None,
        torch.randn(channels) / (1 if softplus else 10) if has_bias else None,
        softplus,
    )


def exactly(values):
    return [v.double() if torch.is_tensor(v) else v for v in values]


def results(kernels, values, dy, dlast):
    """Everything that the rung gives for ⟨dy, y⟩ + ⟨dlast, h_L⟩, by name."""
    y, last, kept = kernels.scan_triton(*values, keep=True)
    gradients = kernels.scan_triton_backward(dy, dlast, kept, *values)
    named = {f"d{name}": g for name, g in zip(NAMES, gradients, strict=True)}
    if values[5] is None:
        del named["dD"]  # of a tensor that is not there
    if values[6] is None:
        del named["ddelta_bias"]
    return {"y": y, "last": last} | named


def truth(values, dy, dlast):
    values = exactly(values)
    y, last, kept = scan_naive(*values, keep=True)
    gradients = scan_naive_backward(dy.double(), dlast.double(), kept, *values)
    return {"y": y, "last": last} | {
        f"d{name}": g for name, g in zip(NAMES, gradients, strict=True)
    }


def assert_agree(ours, exact, tolerance=TOLERANCE):
    for name, value in ours.items():
        assert value.shape == exact[name].shape, name
        error, size = (value.double() - exact[name]).norm(), exact[name].norm()
        # The gradient of a lone bias can cancel to nothing: what it sums up is the measure.
        size = exact["ddelta"].norm() if name == "ddelta_bias" else size
        assert error <= tolerance * size, f"{name}: {error:.1e} beside {size:.1e}"


def upstream(values):
    u, A = values[0], values[2]
    return torch.randn(u.shape), torch.randn(u.shape[0], *A.shape)


def check(kernels=sequence_kernels, values=None, tolerance=TOLERANCE, **sizes):
    values = arguments(**sizes) if values is None else values
    dy, dlast = upstream(values)
    assert_agree(results(kernels, values, dy, dlast), truth(values, dy, dlast), tolerance)


def in_parts(monkeypatch, steps=CHUNK):
    """Cut every sequence, as for a card that it would not fill."""
    monkeypatch.setattr(sequence_kernels, "steps_of_a_part", lambda problem: steps)


# 2 · The sequence


@interpreted
@pytest.mark.parametrize("softplus", [True, False], ids=["softplus", "plain"])
@pytest.mark.parametrize("has_D", [True, False], ids=["D", "no-D"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_values_and_gradients_of_every_option(softplus, has_D, has_bias):
    check(batch=2, K=2, L=6, softplus=softplus, has_D=has_D, has_bias=has_bias)


@interpreted
@pytest.mark.parametrize("L", [1, 2, 3, 4, 5, 31, 32, 33, 65])
def test_lengths_that_no_chunk_divides(L):
    check(L=L, d=2)


@interpreted
@pytest.mark.parametrize("N", [1, 2, 3, 16, 17])
@pytest.mark.parametrize("d", [1, 31, 32, 33, 65])
def test_states_and_channels_that_no_block_divides(d, N):
    check(d=d, N=N, L=5)


@interpreted
@pytest.mark.parametrize("L", [33, 64, 100])
def test_a_sequence_in_parts(monkeypatch, L):
    """The carries, forward and backward: every part starts from what came before it."""
    in_parts(monkeypatch)
    check(K=2, L=L, softplus=L != 64, seed=L)


@interpreted
def test_a_state_that_crosses_all_parts(monkeypatch):
    """Without decay, input only in the first step, output only in the last."""
    in_parts(monkeypatch)
    L = 3 * CHUNK
    u, delta, A, B, C, *_ = arguments(L=L)
    u = u * (torch.arange(L) == 0)
    A = A * 1e-6
    values = (u, delta, A, B, C, None, None, True)
    dy = torch.randn(u.shape) * (torch.arange(L) == L - 1)
    dlast = torch.zeros(1, *A.shape)
    found = results(sequence_kernels, values, dy, dlast)
    assert found["y"][..., -1].abs().min() > 0 and found["du"][..., 0].abs().min() > 0
    assert_agree(found, truth(values, dy, dlast))


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_loaded_as_it_is(dtype):
    """Computed in float32 from the rounded numbers; only gradients are rounded again."""
    values = tuple(v.to(dtype) if torch.is_tensor(v) else v for v in arguments(K=2, L=9, N=3))
    dy, dlast = upstream(values)
    ours, exact = results(sequence_kernels, values, dy, dlast), truth(values, dy, dlast)
    assert ours["y"].dtype == ours["last"].dtype == torch.float32
    assert all(ours[f"d{n}"].dtype == dtype for n in NAMES)
    assert_agree({name: ours[name] for name in ("y", "last")}, exact)
    assert_agree(ours, exact, tolerance=torch.finfo(dtype).eps)


@interpreted
@pytest.mark.parametrize(("K", "d", "N"), [(1, 3, 2), (1, 1, 1), (2, 3, 2)])
def test_every_result_has_memory_of_its_own(K, d, N):
    """PyTorch forbids an operator to return two views of one tensor."""
    values = arguments(K=K, d=d, N=N)
    memories = [v.untyped_storage().data_ptr() for v in values if torch.is_tensor(v)]
    found = results(sequence_kernels, values, *upstream(values))
    apart = [v for name, v in found.items() if name not in ("dB", "dC")]  # which are laid out anew
    memories += [v.untyped_storage().data_ptr() for v in apart]
    assert len(set(memories)) == len(memories)


@interpreted
def test_dtypes_may_differ():
    """As under autocast: u, B, C from a product in bfloat16, the rest in float32."""
    u, delta, A, B, C, *rest = arguments(K=2, L=6)
    check(values=(u.bfloat16(), delta, A, B.bfloat16(), C.bfloat16(), *rest), tolerance=0.01)


def standard(x):
    return x.contiguous()


def strided(x):
    return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1).flatten(-2)[..., ::2]


def expanded(x):
    return x[..., :1, :].expand_as(x)


@interpreted
@pytest.mark.parametrize("layout", [standard, strided, expanded])
def test_any_strides(layout):
    values = arguments(batch=2, K=2, L=6)
    moved = [layout(v) if i in (0, 1, 3, 4) else v for i, v in enumerate(values)]
    moved[2] = values[2].T.contiguous().T
    dy, dlast = upstream(values)
    dy = layout(dy)
    assert_agree(
        results(sequence_kernels, moved, dy, dlast.transpose(1, 2).contiguous().transpose(1, 2)),
        truth(moved, dy, dlast),
    )


@interpreted
@pytest.mark.parametrize("delta", [-30.0, -10.0, 0.0, 10.0, 60.0])
def test_softplus_at_its_ends(delta):
    """Where e^x is all that is left of log(1 + e^x), and where nothing is left beside x."""
    u, raw, A, B, C, D, *_ = arguments(L=5)
    check(values=(u, raw + delta, A, B, C, D, None, True), tolerance=2e-5)


@interpreted
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_channel(value):
    values = arguments(d=5, L=6)
    dy, dlast = upstream(values)
    clean = results(sequence_kernels, values, dy, dlast)
    u = values[0].clone()
    u[0, 2, 3] = value
    found = results(sequence_kernels, (u, *values[1:]), dy, dlast)
    assert not found["y"][0, 2, 3].isfinite()
    others = torch.arange(5) != 2
    for name in ("y", "du", "ddelta"):
        assert torch.equal(found[name][:, others], clean[name][:, others]), name


@interpreted
def test_results_repeat_to_the_last_bit():
    values = arguments(batch=2, d=33, L=6)
    dy, dlast = upstream(values)
    once, again = (results(sequence_kernels, values, dy, dlast) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


# 3 · Poison


def within_fence(x, stride=None):
    """The same numbers in a memory of their own, with NaN around them."""
    return fenced(tuple(x.shape), x.dtype, stride).tensor.copy_(x)


def loose(x):
    """Strides with room for NaN after every row."""
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    strides, size = [0] * x.ndim, 1
    for axis in reversed(order):
        strides[axis] = size
        size = size * x.shape[axis] + 3
    return tuple(strides)


def check_fences(kernels, monkeypatch, **sizes):
    """Nothing is read from outside of an input, nor written outside of what the rung makes."""
    around, rates = FencedTorch(), kernels.rates
    monkeypatch.setattr(kernels, "torch", around)
    monkeypatch.setattr(kernels, "rates", lambda *given: within_fence(rates(*given)))
    *tensors, softplus = arguments(**sizes)
    dy, dlast = upstream(tensors)
    dy = dy.transpose(1, 2).contiguous().transpose(1, 2)
    *tensors, dy, dlast = (within_fence(x, loose(x)) for x in (*tensors, dy, dlast))
    values = (*tensors, softplus)
    assert_agree(results(kernels, values, dy, dlast), truth(values, dy, dlast))
    assert len(around.made) > 6
    for made in around.made:
        made.assert_untouched()
        assert made.tensor.isfinite().all(), "left unwritten, or made of something poisoned"


@interpreted
@pytest.mark.parametrize("parts", [False, True], ids=["whole", "in-parts"])
@pytest.mark.parametrize("sizes", [(2, 2, 33, 3, 7), (1, 1, 5, 16, 33), (1, 2, 1, 1, 1)], ids=str)
def test_poison_around_every_buffer(monkeypatch, sizes, parts):
    if parts:
        in_parts(monkeypatch)
    names = ("batch", "K", "d", "N", "L")
    check_fences(sequence_kernels, monkeypatch, **dict(zip(names, sizes, strict=True)))


# 4 · What the interpreter cannot show


def stretches(count, seed=0):
    """Exact (decay, h), one for each stretch of steps."""
    numbers = random.Random(seed)
    return [
        (Fraction(numbers.randint(1, 9), 10), Fraction(numbers.randint(-9, 9), 7))
        for _ in range(count)
    ]


def pair(left, right, combine):
    return combine(*left, *right)


def tree(items, combine, numbers):
    """Combine neighbours bracketed at random, as a card might."""
    if len(items) == 1:
        return items[0]
    cut = numbers.randint(1, len(items) - 1)
    return pair(tree(items[:cut], combine, numbers), tree(items[cut:], combine, numbers), combine)


def one_after_another(items):
    """What `combine` means, without it."""
    decay, h = Fraction(1), Fraction(0)
    for step_decay, step_h in items:
        decay, h = decay * step_decay, step_decay * h + step_h
    return decay, h


def assert_any_bracketing(combine):
    for count in range(1, 9):
        items = stretches(count, seed=count)
        for seed in range(20):
            assert tree(items, combine, random.Random(seed)) == one_after_another(items)


def test_combine_may_be_bracketed_in_any_way():
    """The very function of the kernel, in exact arithmetic; and it is no commutative one."""
    combine = sequence_kernels.combine.fn
    a, b, c = stretches(3)
    assert pair(pair(a, b, combine), c, combine) == pair(a, pair(b, c, combine), combine)
    assert pair(a, b, combine) != pair(b, a, combine)
    assert_any_bracketing(combine)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda d, h, next_d, next_h: (d * next_d, d * next_h + h),  # the later one first
        lambda d, h, next_d, next_h: (next_d, next_d * h + next_h),  # forgets the first decay
        lambda d, h, next_d, next_h: (d * next_d, h + next_h),
    ],
)
def test_another_operator_is_noticed(wrong):
    with pytest.raises(AssertionError):
        assert_any_bracketing(wrong)


@triton.jit
def leaning_kernel(x):
    """A program that needs the one before it: a negative control."""
    i = tl.program_id(0)
    before = tl.load(x + i - 1, mask=i > 0, other=0)
    tl.store(x + i, before + 1)


@interpreted
def test_the_order_of_programs_does_not_matter(monkeypatch):
    in_parts(monkeypatch)
    values = arguments(batch=2, d=33, L=34)
    dy, dlast = upstream(values)
    in_order = results(sequence_kernels, values, dy, dlast)
    shuffle_programs(monkeypatch, seed=1)
    shuffled = results(sequence_kernels, values, dy, dlast)
    assert all(torch.equal(shuffled[name], in_order[name]) for name in in_order)


@interpreted
def test_the_order_of_programs_does_not_matter_on_a_map(monkeypatch):
    """Four routes write at every pixel."""
    values = map_arguments(d=33)
    dy = torch.randn(values[0].shape)
    in_order = map_results(values, dy)
    shuffle_programs(monkeypatch, seed=1)
    shuffled = map_results(values, dy)
    assert all(torch.equal(shuffled[name], in_order[name]) for name in in_order)


@interpreted
def test_a_program_that_leans_on_another_is_noticed(monkeypatch):
    x = torch.zeros(8)
    leaning_kernel[(8,)](x)
    assert x.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    shuffle_programs(monkeypatch, seed=0)
    x = torch.zeros(8)
    leaning_kernel[(8,)](x)
    assert x.tolist() != [1, 2, 3, 4, 5, 6, 7, 8]


# 5 · The map


def map_arguments(batch=1, H=2, W=3, d=2, N=2, softplus=True, bare=False, seed=0):
    torch.manual_seed(seed)
    delta = torch.randn(batch, 4, H, W, d) if softplus else torch.rand(batch, 4, H, W, d)
    return (
        torch.randn(batch, H, W, d),
        delta,
        -torch.exp(torch.randn(4 * d, N)),
        torch.randn(batch, 4, H, W, N),
        torch.randn(batch, 4, H, W, N),
        None if bare else torch.randn(4 * d),
        None if bare else torch.randn(4 * d) / (1 if softplus else 10),
        softplus,
    )


def map_truth(values, dy):
    """By autograd through the four sequences laid out, in float64."""
    *tensors, softplus = exactly(values)
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    given = [t for t in leaves if t is not None]
    y = reference(*leaves, delta_softplus=softplus)
    gradients = iter(torch.autograd.grad(y, given, dy.double()))
    named = {f"d{n}": next(gradients) for n, t in zip(NAMES, leaves, strict=True) if t is not None}
    return {"y": y.detach()} | named


def map_results(values, dy):
    y, kept = map_kernels.ss2d_triton(*values, keep=True)
    gradients = map_kernels.ss2d_triton_backward(dy, kept, *values)
    named = {
        f"d{name}": g
        for name, g, v in zip(NAMES, gradients, values[:7], strict=True)
        if v is not None
    }
    return {"y": y} | named


def check_map(values, dy=None):
    dy = torch.randn(values[0].shape) if dy is None else dy
    assert_agree(map_results(values, dy), map_truth(values, dy))


@interpreted
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 3), (3, 2), (5, 7)], ids=str)
def test_a_map_of_any_size(size):
    check_map(map_arguments(1, *size))


@interpreted
@pytest.mark.parametrize(
    "options", [{"bare": True}, {"softplus": False}, {"d": 33, "N": 3}], ids=str
)
def test_a_map_with_every_option(options):
    check_map(map_arguments(**options))


@interpreted
@pytest.mark.slow
def test_a_map_in_parts(monkeypatch):
    in_parts(monkeypatch)
    check_map(map_arguments(H=6, W=7, batch=2))


@interpreted
def test_a_map_in_half_precision():
    values = tuple(v.bfloat16() if torch.is_tensor(v) else v for v in map_arguments())
    dy = torch.randn(values[0].shape)
    ours, exact = map_results(values, dy), map_truth(values, dy)
    assert ours["y"].dtype == torch.float32 and ours["du"].dtype == torch.bfloat16
    assert_agree({"y": ours["y"]}, exact)
    assert_agree(ours, exact, tolerance=torch.finfo(torch.bfloat16).eps)


def channels_first(x):
    return x.movedim(-1, 1).contiguous().movedim(1, -1)


def columns_first(x):
    return x.transpose(-3, -2).contiguous().transpose(-3, -2)


@interpreted
@pytest.mark.parametrize("layout", [channels_first, columns_first])
def test_a_map_with_any_strides(layout):
    values = map_arguments()
    moved = [layout(v) if i in (0, 1, 3, 4) else v for i, v in enumerate(values)]
    check_map(moved, layout(torch.randn(values[0].shape)))


# 6 · Through the door: the operators, as users call them


def door_arguments(dtype=torch.float32, bare=False, K=2):
    values = arguments(batch=2, K=K, L=6, has_D=not bare, has_bias=not bare)
    named = dict(zip((*NAMES, "delta_softplus"), values, strict=True))
    return {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in named.items()}


def door_map_arguments(dtype=torch.float32, bare=False, rank=2):
    *values, softplus = map_arguments(bare=bare)
    named = {"x": values[0]} | dict(zip(NAMES[1:], values[1:], strict=True))
    if rank:
        named["delta"] = torch.randn(1, 4, 2, 3, rank)
        named["delta_weight"] = torch.randn(4, 2, rank)
    named = {k: v if v is None else v.to(dtype) for k, v in named.items()}
    return {**named, "delta_softplus": softplus}


def value_and_gradients(scan, arguments, dtype=None):
    leaves = {
        k: v.detach().to(dtype or v.dtype).requires_grad_() if torch.is_tensor(v) else v
        for k, v in arguments.items()
    }
    y = scan(**leaves)
    given = [v for v in leaves.values() if torch.is_tensor(v)]
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), given)]


DOORS = {
    "sequence": (selective_scan, door_arguments),
    "one group": (selective_scan, partial(door_arguments, K=1)),
    "map": (ss2d_scan, door_map_arguments),
}


@interpreted
@pytest.mark.parametrize("bare", [False, True], ids=["D-bias", "bare"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DOORS)
def test_the_operators_take_the_triton_rung(name, dtype, bare):
    """Values, gradients and dtypes; half precision is read as it is and y is float32."""
    scan, make = DOORS[name]
    given = make(dtype, bare)
    ours = value_and_gradients(partial(scan, backend="triton"), given)
    exact = value_and_gradients(partial(scan, backend="naive"), given, torch.float64)
    assert ours[0].dtype == torch.float32 and all(g.dtype == dtype for g in ours[1:])
    for mine, true in zip(ours, exact, strict=True):
        # Δ of low rank is a product in the dtype of its factors: rounded once more.
        tolerance = 2e-5 if dtype == torch.float32 else 3e-2
        assert (mine.double() - true).norm() <= tolerance * true.norm()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DOORS)
def test_opcheck(name, dtype):
    """Fake kernel and autograd keep what the kernels do: shapes, strides, dtypes."""
    scan, make = DOORS[name]
    given = {k: v.requires_grad_() if torch.is_tensor(v) else v for k, v in make(dtype).items()}
    with Recorder() as forward:
        y = scan(**given, backend="triton")
    with Recorder() as backward:
        torch.autograd.grad(y.sum(), [v for v in given.values() if torch.is_tensor(v)])
    assert forward.calls and backward.calls
    for op, args, kwargs in forward.calls + backward.calls:
        args = [x.detach() if torch.is_tensor(x) else x for x in args]
        torch.library.opcheck(op, args, kwargs)


@interpreted
@pytest.mark.parametrize("name", DOORS)
def test_float64_is_refused(name):
    scan, make = DOORS[name]
    with pytest.raises(TypeError, match=r"u: expected torch\.float32 or half precision.*float64"):
        scan(**make(torch.float64), backend="triton")


# 7 · Mutants

MASKS = "is_channel, is_state = channels < d, n < N"
SKIP = "tl.sum(C_t[:, None] * h, 0) + D * u_t"
MUTANTS = {
    "a padded step decays": ("return tl.where(inside, dt, 0), slope", "return dt, slope"),
    "a padded step has a bias": ("tl.where(inside, d_dt * slope, 0)", "d_dt * slope"),
    "no slope of softplus": ("tl.where(inside, d_dt * slope, 0)", "tl.where(inside, d_dt, 0)"),
    "natural and binary logarithm": ("* LN2 + d_input", "+ d_input"),
    "softplus by log(1 + e)": ("(x, 0) + log1p", "(x, 0) + tl.log(1 + e)"),
    "no skip": (SKIP, "tl.sum(C_t[:, None] * h, 0)"),
    "no skip backward": ("d_input * dt + D * dy_t", "d_input * dt"),
    "the state before for dC": ("tl.sum(tl.sum(h *", "tl.sum(tl.sum(states[i] *"),
    "decay missing in dA": ("g * (decay * states[i])", "g * states[i]"),
    "B and C exchanged": ("tl.join(dB_t, dC_t)", "tl.join(dC_t, dB_t)"),
    "channels not masked": (MASKS, "is_channel, is_state = channels < 9999, n < N"),
    "states not masked": (MASKS, "is_channel, is_state = channels < d, n < 9999"),
    "past the end": ("last = tl.minimum(first + part_steps, L)", "last = first + part_steps"),
    "carries in one direction": ("parts - 1 - i if REVERSE else i", "i"),
    "carry without decay": ("next_decay * h + next_h", "h + next_h"),
    "start ignored": ("if start is not None:\n        h =", "if start is not None:\n        _ ="),
    "the states of later steps": ("at = begin // FEW", "at = begin // FEW + 1"),
    "g not carried": ("            g *= decay\n", ""),
}


ROUTES = {
    "no way back": ("tl.where(route < 2, t, L - 1 - t)", "t"),
    "rows for columns": ("tl.where(route % 2 == 0, s, s * W - column * (L - 1))", "s"),
    "columns of length W": ("column = s // H", "column = s // W"),
    "W and H exchanged": ("s * W - column", "s * H - column"),
}


def mutant(edit, folder: Path):
    """The kernels with one edit, as a module of its own beside the others."""
    old, new = edit
    text = Path(sequence_kernels.__file__).read_text()
    assert old in text
    file = folder / "mutant.py"
    file.write_text(text.replace(old, new))
    spec = importlib.util.spec_from_file_location("minivmamba.kernels.mutant", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def examine(kernels, monkeypatch):
    """A small part of the tests above."""
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "steps_of_a_part", lambda problem: CHUNK)
        check_fences(kernels, patch, d=3, N=3, L=38, batch=1)
    u, raw, A, B, C, D, *_ = arguments(L=3)
    check(kernels, values=(u, raw - 9, A, B, C, D, None, True))


@interpreted
@pytest.mark.parametrize("edit", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_mutant_is_noticed(edit, tmp_path, monkeypatch):
    kernels = mutant(edit, tmp_path)
    with pytest.raises(AssertionError):
        examine(kernels, monkeypatch)


@interpreted
@pytest.mark.parametrize("edit", ROUTES.values(), ids=ROUTES.keys())
def test_a_mutant_of_the_routes_is_noticed(edit, tmp_path, monkeypatch):
    kernels = mutant(edit, tmp_path)
    for name in ("forward", "backward", "Problem"):
        monkeypatch.setattr(map_kernels, name, getattr(kernels, name))
    for module in (kernels, map_kernels):  # a wrong place stays within a fence
        monkeypatch.setattr(module, "torch", FencedTorch())
    *tensors, softplus = map_arguments()
    with pytest.raises(AssertionError):
        check_map((*(within_fence(x) for x in tensors), softplus))


@interpreted
def test_without_a_mutation_nothing_is_noticed(tmp_path, monkeypatch):
    examine(mutant(("", ""), tmp_path), monkeypatch)

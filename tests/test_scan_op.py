"""The two scans are good citizens of PyTorch: opcheck, compile, export, FLOPs, autograd.

What the operators compute is tested elsewhere (test_scan_properties.py, test_ss2d_scan.py); here
the compiled, exported or transformed call only has to repeat what the plain call gives.
"""

import shutil
import sys
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from test_scan_properties import run, usual
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from minivmamba import selective_scan, ss2d_scan

pytestmark = pytest.mark.slow
scan_numba = partial(selective_scan, backend="numba")
ss2d_numba = partial(ss2d_scan, backend="numba")
door = sys.modules["minivmamba.selective_scan"]  # of that name the package shows the function


def map_arguments(batch=1, H=3, W=5, d=4, N=3, dtype=torch.float64, bare=False, rank=0):
    """Arguments of ss2d_scan; with a rank, delta is of that rank and has its weight."""

    def randn(*shape):
        return torch.randn(*shape, dtype=dtype)

    return {
        "x": randn(batch, H, W, d),
        "delta": randn(batch, 4, H, W, rank or d),
        "A": -torch.exp(randn(4 * d, N)),
        "B": randn(batch, 4, H, W, N),
        "C": randn(batch, 4, H, W, N),
        "D": None if bare else randn(4 * d),
        "delta_bias": None if bare else randn(4 * d),
        "delta_softplus": True,
        "delta_weight": randn(4, d, rank) if rank else None,
    }


def sequence_arguments(dtype=torch.float64, bare=False, layout="standard", **sizes):
    options = {"has_D": not bare, "has_bias": not bare, "layouts": {"u": layout, "delta": layout}}
    return usual(dtype=dtype, **options, **sizes)[0]


def leaves_of(arguments):
    """The same arguments, every tensor a leaf that requires a gradient; and the leaves alone."""
    fresh = {
        name: value.detach().requires_grad_() if torch.is_tensor(value) else value
        for name, value in arguments.items()
    }
    return fresh, [value for value in fresh.values() if torch.is_tensor(value)]


def value_and_gradients(function, arguments):
    fresh, leaves = leaves_of(arguments)
    y = function(**fresh)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)  # no two outputs alike
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


class Recorder(TorchDispatchMode):
    """Notes the calls of our operators, backward ones included."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "minivmamba":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


# 1 · The operators themselves

CALLS = {
    "sequence": (scan_numba, sequence_arguments),
    "sequence-channels-last": (scan_numba, partial(sequence_arguments, layout="channels last")),
    "sequence-naive": (partial(selective_scan, backend="naive"), sequence_arguments),
    "map": (ss2d_numba, map_arguments),
    "map-rank-2": (ss2d_numba, partial(map_arguments, rank=2)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bare", [False, True], ids=["D-bias", "bare"])
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name, bare, dtype):
    """Schema, fake kernel (shapes, strides, dtype) and autograd, for the very calls we make.

    The calls are recorded, so that the order of the operators' arguments stays their own affair.
    """
    scan, make = CALLS[name]
    fresh, leaves = leaves_of(make(dtype=dtype, bare=bare))
    with Recorder() as forward:
        y = scan(**fresh)
    with Recorder() as backward:
        torch.autograd.grad(y.sum(), leaves)
    for op, args, kwargs in forward.calls:
        torch.library.opcheck(op, args, kwargs)
    for op, args, kwargs in backward.calls:
        # opcheck differentiates what requires gradients, and a second derivative is refused.
        args = [x.detach() if torch.is_tensor(x) else x for x in args]
        torch.library.opcheck(op, args, kwargs)


def test_names():
    """Fixed for good: exported programs and profiles of users contain them."""
    for name in ("selective_scan", "selective_scan_backward", "ss2d_scan", "ss2d_scan_backward"):
        assert hasattr(torch.ops.minivmamba, name), name


def test_flops_of_the_backward_pass():
    """Per channel and step 18 N + 10; the model's user adds it to the forward pass."""
    batch, K, d, N, L = 2, 4, 5, 3, 7
    arguments, leaves = leaves_of(sequence_arguments(batch=batch, K=K, d=d, N=N, L=L))
    y = selective_scan(**arguments)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(y.sum(), leaves)
    assert counter.get_total_flops() == batch * K * d * L * (18 * N + 10)


@pytest.mark.parametrize("has_D", [True, False])
@pytest.mark.parametrize("backend", ["naive", "numba"])
def test_flops(backend, has_D):
    """Per channel and step 6 N + 1, and 2 for the skip; exponentials are not counted.

    Per state: δ·A, the product with h, δu·B and its sum, C·h and its sum; and δ·u once.
    """
    batch, K, d, N, L = 2, 4, 5, 3, 7
    arguments = sequence_arguments(bare=not has_D, batch=batch, K=K, d=d, N=N, L=L)
    with FlopCounterMode(display=False) as counter:
        selective_scan(**arguments, backend=backend)
    assert counter.get_total_flops() == batch * K * d * L * (6 * N + (3 if has_D else 1))


@pytest.mark.parametrize("has_D", [True, False])
def test_flops_of_a_map(has_D):
    """Four sequences; as published tables do, the merge is not counted."""
    batch, H, W, d, N = 2, 3, 5, 6, 7
    arguments = map_arguments(batch, H, W, d, N, bare=not has_D)
    with FlopCounterMode(display=False) as counter:
        ss2d_numba(**arguments)
    assert counter.get_total_flops() == batch * 4 * d * H * W * (6 * N + (3 if has_D else 1))


def test_flops_of_a_map_of_low_rank():
    """A product of R numbers for every step; backward again, and for both of its factors."""
    batch, H, W, d, N, R = 2, 3, 5, 6, 7, 2
    fresh, leaves = leaves_of(map_arguments(batch, H, W, d, N, rank=R))
    with FlopCounterMode(display=False) as forward:
        y = ss2d_numba(**fresh)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(y.sum(), leaves)
    steps = batch * 4 * d * H * W
    assert forward.get_total_flops() == steps * (6 * N + 3 + 2 * R)
    assert backward.get_total_flops() == steps * (18 * N + 10 + 6 * R)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["standard", "channels last"])
def test_meta_tensors(layout, dtype):
    """Shapes, dtypes and strides without computing: models build and count on the meta device."""
    arguments = sequence_arguments(dtype, layout=layout)
    real = scan_numba(**arguments, return_last_state=True)
    on_meta = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in arguments.items()}
    for backend in ("auto", "numba", "naive"):
        meta = selective_scan(**on_meta, backend=backend, return_last_state=True)
        for expected, got in zip(real, meta, strict=True):
            assert got.device.type == "meta"
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        if backend != "naive":
            assert meta[0].stride() == real[0].stride()


def test_meta_tensors_of_a_map():
    arguments = map_arguments(dtype=torch.float32)
    on_meta = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in arguments.items()}
    y = ss2d_scan(**on_meta)
    assert y.device.type == "meta" and y.shape == (1, 3, 5, 4) and y.dtype == torch.float32


def test_auto_is_numba_on_a_cpu():
    """Bit for bit, which the naive rung, summing in another order, is not."""
    arguments = sequence_arguments(torch.float32, d=70, L=40)
    assert torch.equal(selective_scan(**arguments), scan_numba(**arguments))
    assert not torch.equal(scan_numba(**arguments), selective_scan(**arguments, backend="naive"))
    arguments = map_arguments(d=70, dtype=torch.float32)
    assert torch.equal(ss2d_scan(**arguments), ss2d_numba(**arguments))
    assert not torch.equal(ss2d_numba(**arguments), ss2d_scan(**arguments, backend="naive"))


# 2 · Compile and export


def in_a_model(u, A, **rest):
    """The scan between operations that a compiler fuses."""
    y, h = scan_numba(torch.sin(u), A=-torch.exp(A), return_last_state=True, **rest)
    return torch.tanh(y) + h.sum(-1, keepdim=True)


def map_in_a_model(x, A, **rest):
    return torch.tanh(ss2d_numba(torch.sin(x), A=-torch.exp(A), **rest))


MODELS = {"sequence": (in_a_model, sequence_arguments), "map": (map_in_a_model, map_arguments)}
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_compile(backend, name):
    if backend == "inductor" and not shutil.which("gcc") and not shutil.which("clang"):
        pytest.skip("torch.compile for a CPU needs a C compiler")
    function, make = MODELS[name]
    arguments = make()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    # Fused sin, exp and tanh round otherwise: a few times 1e-16.
    torch.testing.assert_close(
        value_and_gradients(compiled, arguments),
        value_and_gradients(function, arguments),
        rtol=1e-12,
        atol=1e-13,
    )


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_once_for_every_length():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(in_a_model, fullgraph=True, backend=counter, dynamic=True)
    for L in (5, 40, 7):
        arguments = sequence_arguments(L=L)
        torch.testing.assert_close(
            value_and_gradients(compiled, arguments), value_and_gradients(in_a_model, arguments)
        )
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_once_for_every_map():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(map_in_a_model, fullgraph=True, backend=counter, dynamic=True)
    for H, W in ((13, 17), (6, 19), (17, 11)):  # unlike every other size of the problem
        arguments = map_arguments(H=H, W=W)
        torch.testing.assert_close(
            value_and_gradients(compiled, arguments), value_and_gradients(map_in_a_model, arguments)
        )
    assert counter.frame_count == 1


class Layer(nn.Module):
    """A scan with parameters, for what wants a module."""

    def __init__(self, arguments):
        super().__init__()
        self.A, self.D, self.delta_bias = (
            nn.Parameter(arguments[name].clone()) for name in ("A", "D", "delta_bias")
        )

    def forward(self, u, delta, B, C):
        rest = {"D": self.D, "delta_bias": self.delta_bias, "delta_softplus": True}
        return scan_numba(u, delta, self.A, B, C, **rest)


def test_export_with_dynamic_length():
    """The exported program holds one node for the scan and takes any batch and length."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    arguments = sequence_arguments(batch=3, L=8)
    layer = Layer(arguments)
    program = torch.export.export(
        layer,
        tuple(arguments[name] for name in ("u", "delta", "B", "C")),
        dynamic_shapes={
            "u": {0: batch, 2: length},
            "delta": {0: batch, 2: length},
            "B": {0: batch, 3: length},
            "C": {0: batch, 3: length},
        },
    )
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("minivmamba.selective_scan" in target for target in targets) == 1
    for batch_size, L in ((3, 8), (2, 41), (5, 2)):
        longer = sequence_arguments(batch=batch_size, L=L)
        inputs = tuple(longer[name] for name in ("u", "delta", "B", "C"))
        assert torch.equal(program.module()(*inputs), layer(*inputs))


def test_export_with_dynamic_map():
    class MapLayer(nn.Module):
        def forward(self, x, delta, A, B, C):
            return ss2d_numba(x, delta, A, B, C, delta_softplus=True)

    names = ("x", "delta", "A", "B", "C")
    height, width = torch.export.Dim("height"), torch.export.Dim("width")
    of_map, of_routes = {1: height, 2: width}, {2: height, 3: width}
    arguments = map_arguments(batch=2)
    program = torch.export.export(
        MapLayer(),
        tuple(arguments[name] for name in names),
        dynamic_shapes={"x": of_map, "delta": of_routes, "A": None, "B": of_routes, "C": of_routes},
    )
    for H, W in ((3, 5), (9, 4)):
        inputs = tuple(map_arguments(batch=2, H=H, W=W)[name] for name in names)
        assert torch.equal(program.module()(*inputs), MapLayer()(*inputs))


# 3 · Autograd


@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives_are_refused(name):
    """A silent zero would be worse: gradient penalties would train on nothing."""
    scan, make = CALLS[name]
    fresh, leaves = leaves_of(make())
    (gradient,) = torch.autograd.grad(scan(**fresh).sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"(?i)second"):
        torch.autograd.grad(gradient.square().sum(), leaves)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_some_arguments_only(name):
    scan, make = CALLS[name]
    arguments = make()
    tensors = [key for key, value in arguments.items() if torch.is_tensor(value)]
    weight = torch.randn_like(scan(**arguments))
    fresh, leaves = leaves_of(arguments)
    full = torch.autograd.grad((scan(**fresh) * weight).sum(), leaves)
    for wanted, expected in zip(tensors, full, strict=True):
        one = arguments[wanted].detach().requires_grad_()
        y = scan(**{**arguments, wanted: one})
        (got,) = torch.autograd.grad((y * weight).sum(), one)
        assert torch.equal(got, expected), wanted


@pytest.mark.parametrize("name", CALLS)
def test_no_graph_where_none_is_wanted(name):
    scan, make = CALLS[name]
    arguments = make()
    assert scan(**arguments).grad_fn is None  # no argument requires a gradient
    fresh, _ = leaves_of(arguments)
    with torch.no_grad():
        assert not scan(**fresh).requires_grad
    with torch.inference_mode():
        assert torch.equal(scan(**fresh), scan(**arguments))


@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_left_alone(name):
    scan, make = CALLS[name]
    fresh, leaves = leaves_of(make())
    before = [leaf.detach().clone() for leaf in leaves]
    y = scan(**fresh)
    kept = y.detach().clone()
    y.sum().backward()
    assert all(leaf._version == 0 for leaf in leaves)
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves, before, strict=True))
    assert torch.equal(y, kept)  # nor does the backward pass work in the result


@pytest.mark.parametrize("name", CALLS)
def test_backward_twice(name):
    """What the forward pass has kept is only read."""
    scan, make = CALLS[name]
    fresh, leaves = leaves_of(make())
    y = scan(**fresh).square().sum()
    once = torch.autograd.grad(y, leaves, retain_graph=True)
    twice = torch.autograd.grad(y, leaves)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_a_changed_argument_is_noticed(name):
    """The backward pass reads the arguments again: changed in between, they must not pass."""
    scan, make = CALLS[name]
    fresh, leaves = leaves_of(make())
    first = next(iter(fresh))
    work = fresh[first] * 1
    y = scan(**{**fresh, first: work})
    work.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(y.sum(), leaves)


def test_functional_call():
    arguments = sequence_arguments()
    layer = Layer(arguments)
    inputs = tuple(arguments[name] for name in ("u", "delta", "B", "C"))
    copies = {name: p.detach().requires_grad_() for name, p in layer.named_parameters()}
    loss = torch.func.functional_call(layer, copies, inputs).square().sum()
    gradients = dict(zip(copies, torch.autograd.grad(loss, [*copies.values()]), strict=True))
    layer(*inputs).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, name):
    """Computed in float32 and returned so; gradients come back in the dtype of their argument."""
    scan, make = CALLS[name]
    low = make(dtype=dtype)
    rounded = {k: v.float() if torch.is_tensor(v) else v for k, v in low.items()}
    y, *gradients = value_and_gradients(scan, low)
    expected, *exact = value_and_gradients(scan, rounded)
    assert y.dtype == torch.float32 and torch.equal(y, expected)
    for got, want in zip(gradients, exact, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, want.to(dtype))


@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing(name):
    """The scan stays in float32 there, also when a projection before it does not."""
    scan, make = CALLS[name]
    arguments = make(dtype=torch.float32)
    first = next(iter(arguments))
    mixed = {**arguments, first: arguments[first].bfloat16()}
    rounded = {**arguments, first: arguments[first].bfloat16().float()}
    plain, from_mixed = value_and_gradients(scan, arguments), value_and_gradients(scan, rounded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scan(**arguments), plain[0])
        again = value_and_gradients(scan, mixed)
    assert again[0].dtype == torch.float32 and torch.equal(again[0], from_mixed[0])
    assert again[1].dtype == torch.bfloat16
    for got, want in zip(again[2:], from_mixed[2:], strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", CALLS)
def test_an_empty_batch(name):
    """The last batch of a filter may hold nothing; parameters then get gradients of 0."""
    scan, make = CALLS[name]
    arguments = make()
    in_a_batch = [key for key in arguments if key in ("u", "x", "delta", "B", "C")]
    arguments |= {key: arguments[key][:0] for key in in_a_batch}
    fresh, leaves = leaves_of(arguments)
    y = scan(**fresh)
    assert y.shape == leaves[0].shape
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert all(not gradient.any() for gradient in gradients)
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in leaves]


def test_gradients_add_up_over_shared_arguments():
    """One tensor in two places receives the sum of both gradients."""
    arguments, dy, _ = usual(d=4, N=4)
    separate = run(scan_numba, {**arguments, "C": arguments["B"].clone()}, dy)
    shared = arguments["B"].detach().requires_grad_()
    y = scan_numba(**{**arguments, "B": shared, "C": shared})
    (gradient,) = torch.autograd.grad(y, shared, dy)
    torch.testing.assert_close(gradient, separate["dB"] + separate["dC"])


# The rung for a GPU, where there is none


@pytest.fixture
def fresh_answers():
    """What is known of Triton, and what has been said, forgotten before and after."""
    for known in (door.why_no_triton, door._naive_instead):
        known.cache_clear()
    yield
    for known in (door.why_no_triton, door._naive_instead):
        known.cache_clear()


@pytest.mark.parametrize("make", [sequence_arguments, map_arguments])
def test_triton_on_a_cpu_is_refused(make, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    scan = selective_scan if make is sequence_arguments else ss2d_scan
    with pytest.raises(ValueError, match='"triton" works on a GPU, got tensors on cpu; use "auto"'):
        scan(**make(dtype=torch.float32), backend="triton")


@pytest.mark.parametrize(
    "version, message",
    [
        (None, r"needs Triton 3\.3 or newer, which is not installed \(pip install triton\)"),
        ("3.2.0", r"needs Triton 3\.3 or newer, got 3\.2\.0 \(a newer PyTorch has it\)"),
    ],
)
def test_triton_missing_or_too_old(version, message, monkeypatch, fresh_answers):
    """Asked for, it is an error; "auto" takes the naive rung and says why, once."""
    module = None if version is None else SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "triton", module)
    with pytest.raises(ImportError, match=f'backend: "triton" {message}'):
        selective_scan(**sequence_arguments(dtype=torch.float32), backend="triton")
    with pytest.warns(UserWarning, match=f"since the rung for a GPU {message}"):
        assert door.choose("auto", "cuda", torch.float32) == "naive"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert door.choose("auto", "cuda", torch.float32) == "naive"
        assert door.choose("auto", "cpu", torch.float32) == "numba"


def test_auto_on_a_gpu(monkeypatch, fresh_answers):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.10.1"))
    assert door.choose("auto", "cuda", torch.float32) == "triton"
    with pytest.warns(UserWarning, match="computes in float32 and not in float64"):
        assert door.choose("auto", "cuda", torch.float64) == "naive"
    with pytest.raises(TypeError, match=r"u: expected torch\.float32 or half precision"):
        door.choose("triton", "cuda", torch.float64)
    with pytest.raises(ValueError, match='"numba" works on a CPU, got tensors on cuda'):
        door.choose("numba", "cuda", torch.float32)

"""What only a GPU can show of the Triton rung; everywhere else these tests are skipped.

The properties are those of the CPU rung, drawn by the same strategies (test_scan_properties.py),
against the naive rung in float64 on the CPU.
"""

import json
from functools import partial

import pytest
import test_scan_properties as properties
import torch
from hypothesis import Phase, given, settings
from triton_tools import INTERPRETING

from minivmamba import SS2D, cross_merge, cross_scan, selective_scan
from minivmamba.ss2d_scan import ss2d_scan

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(INTERPRETING, reason="this process interprets kernels"),
]

scan_triton = partial(selective_scan, backend="triton")
ss2d_triton = partial(ss2d_scan, backend="triton")
GPU = "cuda"


def on(device, arguments):
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}


def sizes(batch=2, K=4, d=96, N=16, L=196, seed=0):
    """Ordinary arguments in float32 on the GPU, channels last, with dy and dh."""
    layouts = dict.fromkeys(("u", "delta", "B", "C"), "channels last")
    arguments, dy, dh = properties.usual(
        batch=batch, K=K, d=d, N=N, L=L, dtype=torch.float32, seed=seed, layouts=layouts
    )
    return on(GPU, arguments), dy.to(GPU), dh.to(GPU)


def assert_right(case):
    arguments, dy, dh = properties.arguments_of(case._replace(dtype=torch.float32))
    exact = (properties.exactly(arguments), dy.double(), dh.double())
    there = properties.run(scan_triton, on(GPU, arguments), dy.to(GPU), dh.to(GPU))
    properties.assert_agree(
        on("cpu", there),
        properties.run(properties.scan_naive, *exact),
        properties.TOLERANCE[torch.float32],
        properties.NEGLIGIBLE[torch.float32],
        partial(properties.sums_of_absolute_values, *exact),
    )


# 1 · Values and gradients


# Every pair is compiled anew, and so is every kind of strides: many examples would take an hour.
@pytest.mark.parametrize(
    ("d", "N"), [(1, 1), (5, 3), (31, 16), (32, 4), (33, 5), (64, 16), (65, 2), (200, 64)], ids=str
)
@settings(max_examples=8, phases=[Phase.generate])
@given(case=properties.cases(states=3_000))
def test_values_and_gradients_agree_with_the_naive_rung(d, N, case):
    """All of them are cut into parts, if they are long enough: none fills a card."""
    assert_right(case._replace(sizes=case.sizes | {"d": d, "N": N}))


@pytest.mark.parametrize("L", [700, 3136])
def test_values_and_gradients_agree_in_larger_cases(L):
    arguments, dy, dh = sizes(batch=3, K=2, d=100, N=8, L=L)
    exact = properties.exactly(on("cpu", arguments)), dy.cpu().double(), dh.cpu().double()
    ours = on("cpu", properties.run(scan_triton, arguments, dy, dh))
    properties.assert_agree(ours, properties.run(properties.scan_naive, *exact), 1e-5)


@pytest.mark.parametrize("steps", [32, 64, 10_000], ids=["chunks", "parts", "whole"])
def test_parts_give_what_the_whole_gives(monkeypatch, steps):
    """However the sequence is cut; but sums then have another order."""
    from minivmamba.kernels import scan_triton as kernels

    arguments, dy, dh = sizes(L=500)
    exact = properties.exactly(on("cpu", arguments)), dy.cpu().double(), dh.cpu().double()
    monkeypatch.setattr(kernels, "steps_of_a_part", lambda problem: min(steps, problem.L))
    ours = on("cpu", properties.run(scan_triton, arguments, dy, dh))
    properties.assert_agree(ours, properties.run(properties.scan_naive, *exact), 1e-5)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (14, 20), (56, 56)], ids=str)
def test_a_map_agrees_with_the_reference(size):
    torch.manual_seed(0)
    (H, W), d, N = size, 40, 16
    values = {
        "x": torch.randn(2, H, W, d),
        "delta": torch.randn(2, 4, H, W, d),
        "A": -torch.exp(torch.randn(4 * d, N)),
        "B": torch.randn(2, 4, H, W, N),
        "C": torch.randn(2, 4, H, W, N),
        "D": torch.randn(4 * d),
        "delta_bias": torch.randn(4 * d),
    }
    dy = torch.randn(2, H, W, d)
    found = {}
    for device, scan in (("cpu", partial(ss2d_scan, backend="naive")), (GPU, ss2d_triton)):
        chosen = properties.exactly(values) if device == "cpu" else values
        leaves = {k: v.to(device).requires_grad_() for k, v in chosen.items()}
        y = scan(**leaves, delta_softplus=True)
        gradients = torch.autograd.grad(y, tuple(leaves.values()), dy.to(y))
        named = {f"d{k}": g.cpu() for k, g in zip(leaves, gradients, strict=True)}
        found[device] = {"y": y.detach().cpu()} | named
    properties.assert_agree(found[GPU], found["cpu"], 1e-5)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (33, 65), (224, 224)], ids=str)
def test_cross_scan_and_merge(size):
    from minivmamba.kernels.cross_scan_triton import cross_merge_triton, cross_scan_triton

    x = torch.randn(2, 5, *size, device=GPU)
    ys = torch.randn(2, 4, 5, size[0] * size[1], device=GPU)
    assert torch.equal(cross_scan_triton(x), cross_scan(x))
    assert torch.equal(cross_merge_triton(ys, *size), cross_merge(ys, *size))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(low):
    arguments, *_ = sizes()
    rounded = {k: v.to(low) if torch.is_tensor(v) else v for k, v in arguments.items()}
    exact = properties.exactly(on("cpu", rounded))
    y = scan_triton(**rounded)
    expected = properties.scan_naive(**exact)
    assert y.dtype == torch.float32
    assert (y.cpu().double() - expected).norm() <= 1e-5 * expected.norm()


# 2 · Repeatability, devices, precision, graphs


@pytest.mark.parametrize("L", [196, 3136])
def test_results_repeat_to_the_last_bit(L):
    arguments, dy, dh = sizes(L=L)
    once = properties.run(scan_triton, arguments, dy, dh)
    for _ in range(10):
        again = properties.run(scan_triton, arguments, dy, dh)
        assert all(torch.equal(once[name], again[name]) for name in once)


def test_on_another_device_than_the_first():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    arguments, dy, dh = sizes()
    first = properties.run(scan_triton, arguments, dy, dh)
    assert torch.cuda.current_device() == 0
    there = properties.run(scan_triton, on("cuda:1", arguments), dy.to("cuda:1"), dh.to("cuda:1"))
    assert all(value.device == torch.device("cuda:1") for value in there.values())
    # The cards may differ in their size, and so in where they cut.
    properties.assert_agree(on("cpu", there), on("cpu", properties.exactly(first)), 1e-5)


def test_on_a_stream_of_its_own():
    """The kernels are launched where PyTorch stands, and wait for what stands before them."""
    arguments, *_ = sizes()
    expected = scan_triton(**arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # an early read would see zeros
        late = {k: v.clone() if torch.is_tensor(v) else v for k, v in arguments.items()}
        y = scan_triton(**late)
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_ss2d_under_autocast(low):
    torch.manual_seed(0)
    module, x = SS2D(96), torch.randn(2, 14, 14, 96)
    expected = module(x)
    with torch.autocast("cuda", dtype=low):
        y = module.to(GPU)(x.to(GPU))
        y.float().sum().backward()
    assert y.dtype == low
    assert all(p.grad.isfinite().all() for p in module.parameters())
    assert (y.float().cpu() - expected).norm() <= 0.05 * expected.norm()  # 8 bits, several times


def test_a_cuda_graph_captures_and_replays():
    arguments, *_ = sizes(L=784)
    fresh, *_ = sizes(L=784, seed=1)
    with torch.no_grad():
        expected = scan_triton(**fresh)  # also compiles, which a capture must not
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            scan_triton(**arguments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = scan_triton(**arguments)
        for name, value in arguments.items():
            if torch.is_tensor(value):
                value.copy_(fresh[name])
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)


def test_more_numbers_than_32_bits_count():
    """Places are counted in 64 bits: the last of very many images is scanned as if alone."""
    K, d, N, L = 4, 192, 1, 3136
    batch = 2**31 // (K * d * L) + 2
    if torch.cuda.mem_get_info()[0] < 16 * batch * K * d * L:
        pytest.skip("not enough memory on the device")
    u = torch.randn(batch, L, K * d, device=GPU, dtype=torch.bfloat16).transpose(1, 2)
    delta = torch.randn(batch, L, K * d, device=GPU, dtype=torch.bfloat16).transpose(1, 2)
    A = -torch.rand(K * d, N, device=GPU)
    B, C = torch.randn(2, batch, K, N, L, device=GPU)
    y = scan_triton(u, delta, A, B, C, delta_softplus=True)
    last = scan_triton(u[-1:], delta[-1:], A, B[-1:], C[-1:], delta_softplus=True)
    # A single image is cut into parts, so that sums have another order.
    assert (y[-1:] - last).norm() <= 1e-5 * last.norm()


# 3 · Speed


def microseconds(call, repeats=20):
    for _ in range(3):
        call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return 1000 * begin.elapsed_time(end) / repeats


@pytest.mark.parametrize("batch", [1, 128])
@pytest.mark.parametrize(
    ("d", "L"), [(192, 3136), (384, 784), (768, 196), (1536, 49)], ids=["S1", "S2", "S3", "S4"]
)
def test_speed_beside_mamba_ssm(batch, d, L, capsys):
    """Printed, not judged: forward, and forward with backward, in microseconds."""
    arguments, dy, _ = sizes(batch=batch, d=d, L=L)
    lines = {"triton": microseconds_of(scan_triton, arguments, dy)}
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        selective_scan_fn = None
    if selective_scan_fn:
        contiguous = {k: v.contiguous() if torch.is_tensor(v) else v for k, v in arguments.items()}
        lines["mamba-ssm"] = microseconds_of(selective_scan_fn, contiguous, dy.contiguous())
    with capsys.disabled():
        name = torch.cuda.get_device_name()
        for rung, (forward, both) in lines.items():
            print(f"\n{name}, batch {batch}, {4 * d} channels, L {L}: {rung:10}", end="")
            print(f"{forward:9.0f} µs forward, {both:9.0f} µs with backward", end="")
    assert all(torch.isfinite(torch.tensor(times)).all() for times in lines.values())


def test_the_bench_on_a_gpu(tmp_path):
    """Ours agree with float64, and no kernel is faster than what the card can do at best."""
    from minivmamba.bench.__main__ import main

    out = tmp_path / "scan.json"
    options = ["--device", "cuda", "--quick", "--peers", "loop,naive", "--batch", "8"]
    main(["scan", *options, "--json", str(out), "--pool", "0.1"])
    tables = {t["title"].rpartition(": ")[2]: t for t in json.loads(out.read_text())["tables"]}
    labels = [row["name"] for row in tables["forward"]["rows"]]
    assert labels == ["standard", "channels-last", "naive", "loop"]
    assert all(row["measured / floor"] > 1 for row in tables["roofline of the kernels"]["rows"])


def microseconds_of(scan, arguments, dy):
    leaves = {
        k: v.detach().requires_grad_() if torch.is_tensor(v) else v for k, v in arguments.items()
    }
    given = [v for v in leaves.values() if torch.is_tensor(v)]
    with torch.no_grad():
        forward = microseconds(lambda: scan(**arguments))
    return forward, microseconds(lambda: torch.autograd.grad(scan(**leaves), given, dy))

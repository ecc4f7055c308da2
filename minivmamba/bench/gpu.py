"""What a GPU can do at best, measured on the spot, and the time that kernels alone take there."""

import statistics
import time
from collections.abc import Callable

import torch
import triton
import triton.language as tl

from minivmamba.bench.problem import GROUPS, draw_problem, our_scan

BLOCK, WARPS = 512, 4  # 4 numbers a thread, each of which waits for itself alone
PROGRAMS = 16  # of a multiprocessor
ROUNDS, UNROLLED = 2048, 16


@triton.jit
def multiply_adds_kernel(
    out, a, b, ROUNDS: tl.constexpr, UNROLLED: tl.constexpr, BLOCK: tl.constexpr
):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = lanes.to(tl.float32)
    for _ in range(ROUNDS):
        for _ in tl.static_range(UNROLLED):
            x = x * a + b
    tl.store(out + lanes, x)


@triton.jit
def exponentials_kernel(out, ROUNDS: tl.constexpr, UNROLLED: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = 1 / (1 + lanes.to(tl.float32))
    for _ in range(ROUNDS):
        for _ in tl.static_range(UNROLLED):
            x = tl.exp2(-x)
    tl.store(out + lanes, x)


def rates(gib: float) -> dict[str, float]:
    """The best of several runs, per second; the names are those of the roofline."""
    grid = (PROGRAMS * torch.cuda.get_device_properties("cuda").multi_processor_count,)
    out = torch.empty(grid[0] * BLOCK, device="cuda")
    sizes = {"ROUNDS": ROUNDS, "UNROLLED": UNROLLED, "BLOCK": BLOCK, "num_warps": WARPS}
    source = torch.ones(int(gib * 2**30) // 8, device="cuda")
    target = torch.ones_like(source)
    count = out.numel() * ROUNDS * UNROLLED
    work: dict[str, tuple[Callable[[], object], float]] = {
        "memory": (lambda: target.copy_(source), 2 * source.numel() * source.element_size()),
        "exponentials": (lambda: exponentials_kernel[grid](out, **sizes), count),
        "floats": (lambda: multiply_adds_kernel[grid](out, 0.999, 0.001, **sizes), count),
    }
    best = {name: amount / min(seconds(run)) for name, (run, amount) in work.items()}
    return best | {"waiting": steps_in_a_row()}


def steps_in_a_row(L: int = 2048) -> float:
    """Steps a second of programs that hardly share a multiprocessor, so that each step waits."""
    from minivmamba.kernels import scan_triton

    problem = draw_problem(GROUPS * scan_triton.LANES, L).arranged("channels-last").to("cuda")
    usual, scan_triton.WARPS = scan_triton.WARPS, 0  # programs enough: nothing is cut
    try:
        with torch.inference_mode():
            return L / kernel_seconds(lambda: our_scan(*problem.arguments))
    finally:
        scan_triton.WARPS = usual


def seconds(call: Callable[[], object], repeats: int = 9) -> list[float]:
    """Between two events in the card's own queue, for every repeat."""
    call()
    found = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return found


def kernel_seconds(call: Callable[[], object]) -> float:
    """The median of replays of a CUDA graph: without the time in which Python prepares a launch."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return statistics.median(seconds(graph.replay))


def clock() -> float:
    """A clock for `compare` that waits for the card."""
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that tensors held at most during `work`, beyond those held before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before

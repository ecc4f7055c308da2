"""What this machine can do at best: multiply-adds, exponentials, and bytes, measured on the spot.

For a (state, step) pair a scan does nine multiply-adds: two reduce the range of the exponential,
five are its polynomial, one makes h and one adds to y. `scan_floor` runs exactly so many, on
numbers that stay in registers, and grants the rest of the work (a product, a subtraction, a shift
and an integer addition, all loads and stores) for nothing.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from numba import njit, prange

from minivmamba.bench.problem import Problem
from minivmamba.kernels.scan_numba import FLAGS, exp2, launch, wide_vectors

OPERATIONS = 9  # multiply-adds for a (state, step) pair
LANES = 256  # 16 vectors of 16: enough of them to hide the latency of each
CHAIN = 16  # multiply-adds of a lane between load and store


@njit(fastmath=FLAGS, nogil=True)
def _multiply_adds(passes, sums):
    """passes × LANES × CHAIN multiply-adds."""
    wide_vectors()
    a, b = np.float32(0.999), np.float32(0.001)  # sums stay at 1
    for _ in range(passes):
        for lane in range(LANES):
            x = sums[lane]
            for _ in range(CHAIN):
                x = x * a + b
            sums[lane] = x


@njit(fastmath=FLAGS, nogil=True)
def _exponentials(passes, sums):
    """passes × LANES powers of two, each added to its lane."""
    wide_vectors()
    for i in range(passes):
        q = np.float32(-0.1) * np.float32(i & 15)
        for lane in range(LANES):
            sums[lane] = sums[lane] + exp2(sums[lane], q)


@njit
def _serial(tasks, passes, sums, powers):
    for task in range(tasks):
        if powers:
            _exponentials(passes, sums[task])
        else:
            _multiply_adds(passes, sums[task])


@njit(parallel=True)
def _parallel(tasks, passes, sums, powers):
    for task in prange(tasks):
        if powers:
            _exponentials(passes, sums[task])
        else:
            _multiply_adds(passes, sums[task])


def _run(count: float, per_pass: int, powers: bool) -> None:
    """Do `count` operations, shared out to the threads that the scan would use."""
    tasks = torch.get_num_threads()
    sums = torch.ones(tasks, LANES).numpy()  # torch aligns to cache lines
    launch(_parallel, _serial, tasks, (int(count / (tasks * per_pass)) + 1, sums, powers))


def multiply_adds(count: float) -> None:
    _run(count, LANES * CHAIN, powers=False)


def exponentials(count: float) -> None:
    _run(count, LANES, powers=True)


def scan_floor(problem: Problem) -> Callable[[], None]:
    """The multiply-adds that no float32 scan of this problem can save."""
    return lambda: multiply_adds(OPERATIONS * problem.pairs)


def copy_of(gib: float) -> tuple[Callable[[], object], int]:
    """A copy between two arrays that together have so many GiB, and the bytes that it moves."""
    source = torch.ones(int(gib * 2**30) // 8)
    target = torch.ones_like(source)
    return lambda: target.copy_(source), 2 * source.numel() * source.element_size()


def rates(gib: float = 1.0, seconds: float = 0.5) -> dict[str, float]:
    """The best of several runs, per second: multiply-adds, exponentials, bytes copied."""
    copy, moved = copy_of(gib)
    count = 2e9  # long beside the time that threads need to wake up
    work: dict[str, tuple[Callable[[], object], float]] = {
        "multiply-adds": (lambda: multiply_adds(count), count),
        "exponentials": (lambda: exponentials(count / 8), count / 8),
        "bytes": (copy, moved),
    }
    return {name: amount / _best(run, seconds) for name, (run, amount) in work.items()}


def _best(run: Callable[[], object], seconds: float) -> float:
    """The shortest of the runs that fit into so many seconds: a floor is what is possible."""
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best

"""Memory that does not disturb the clock, and the peak that a piece of work needs.

Fresh memory is slow: the kernel clears every page at its first touch, and a virtual machine may
first have to ask its host for it, up to seconds for a gigabyte. By default, glibc gives large
blocks back as soon as they are free and takes fresh ones for the next tensor, so hungry code
would be timed on the kernel's work instead of its own. `keep_memory` makes the process keep what
it once had, and `touch` takes a pool before the first measurement.
"""

import concurrent.futures
import gc
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

GIB = 1 << 30
# glibc reads these when the process starts, so they cannot be set from inside.
KEEP = {
    "MALLOC_MMAP_MAX_": "0",  # no block of its own for a large tensor: all from one heap
    "MALLOC_TRIM_THRESHOLD_": str(1 << 46),  # which never shrinks
    "MALLOC_TOP_PAD_": str(256 << 20),  # and grows by a quarter of a gigabyte
    "MALLOC_ARENA_MAX": "1",  # and is the same for all threads
}
# The opposite, to see what a piece of work needs: whatever is free goes back at once.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def keep_memory() -> None:
    """Start this very command once more, under a glibc that keeps its memory. Linux only."""
    glibc = platform.libc_ver()[0] == "glibc"
    if glibc and any(os.environ.get(name) != value for name, value in KEEP.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | KEEP)


def touch(gib: float) -> None:
    """Take so much memory, write to each page of it, and free it for the tensors to come."""
    torch.empty(int(gib * GIB), dtype=torch.uint8).fill_(1)


def free_gib() -> float:
    """Memory that nobody uses; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    except (AttributeError, ValueError, OSError):
        return 0.0


def peak_of(work: Callable[[], object]) -> int | None:
    """Bytes that the process held at most during `work`, beyond those held before.

    Measured by the kernel (VmHWM), so Linux only; None elsewhere. To be called in a fresh process.
    """
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    gc.collect()
    try:
        clear.write_text("5")  # the peak so far becomes what is held now
    except OSError:  # some containers forbid it
        return None
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a new process whose memory goes back when it is free."""
    mine = dict(os.environ)
    for name in KEEP:
        os.environ.pop(name, None)
    os.environ.update(GIVE_BACK)
    try:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(mine)


def _status(field: str) -> int:
    """Bytes, from a line such as "VmRSS:   123456 kB"."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")

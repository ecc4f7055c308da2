"""What the tests of the Triton kernels share: running and compiling them without a GPU.

A process either interprets Triton's kernels (TRITON_INTERPRET=1, set before `import triton`) or
compiles them, and pytest is one process. Hence `interpreted`: such a test runs in a second pytest
that interprets, once for all of its file, and reports here what it said there.
"""

from __future__ import annotations

import functools
import inspect
import os
import random
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")  # Linux only
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


# 1 · Tests in the interpreter


def interpreted(test: Callable) -> Callable:
    """A test that runs where kernels are interpreted, and appears by its name in any case."""
    if INTERPRETING:
        return test

    def outcome(request, **_):
        said = elsewhere(request.session, request.node.path)
        if trouble := said.get(request.node.name, "it was not run"):
            pytest.fail(trouble, pytrace=False)

    signature = inspect.signature(test)
    itself = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)
    named = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()]
    outcome.__signature__ = inspect.Signature([itself, *named])
    outcome.__name__, outcome.__doc__, outcome.__module__ = (
        test.__name__, test.__doc__, test.__module__,
    )  # fmt: skip
    outcome.pytestmark = list(getattr(test, "pytestmark", []))
    return outcome


@functools.cache
def elsewhere(session: pytest.Session, file: Path) -> dict[str, str]:
    """What the tests of a file said in a process that interprets: "" for those that passed."""
    chosen = [item for item in session.items if item.path == file]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *(item.nodeid for item in chosen)],
            cwd=session.config.rootpath,
            env=os.environ | {"TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        if not report.exists():  # it broke before a test could
            return dict.fromkeys((item.name for item in chosen), done.stdout + done.stderr)
        cases = ElementTree.parse(report).iter("testcase")
        return {case.get("name", ""): trouble_of(case) for case in cases}


def trouble_of(case: ElementTree.Element) -> str:
    parts = [part for part in case if part.tag in ("failure", "error", "skipped")]
    return "\n".join(part.text or part.get("message", part.tag) for part in parts)


if INTERPRETING:
    from triton.runtime import interpreter

    # The interpreter exchanges the functions of triton.language for its own whenever a kernel or
    # one of its functions is called, and puts them back after a kernel. Once is enough in a
    # process that does nothing else, and makes it twice as fast.
    class Exchanged:
        def restore(self) -> None:
            pass

    _exchange, _done = interpreter._patch_lang, set()

    def _exchange_once(function) -> Exchanged:
        if id(function.__globals__) not in _done:
            _done.add(id(function.__globals__))
            _exchange(function)
        return Exchanged()

    interpreter._patch_lang = _exchange_once


def shuffle_programs(monkeypatch, seed: int) -> None:
    """From now on the interpreter takes the programs of a grid in a random order."""
    builder = interpreter.interpreter_builder
    set_dim, set_index, order = builder.set_grid_dim, builder.set_grid_idx, {}

    def set_grid_dim(nx, ny, nz):
        places = [(x, y, z) for x in range(nx) for y in range(ny) for z in range(nz)]
        shuffled = random.Random(seed).sample(places, len(places))
        order.clear()
        order.update(zip(places, shuffled, strict=True))
        set_dim(nx, ny, nz)

    monkeypatch.setattr(builder, "set_grid_dim", set_grid_dim)
    monkeypatch.setattr(builder, "set_grid_idx", lambda *place: set_index(*order[place]))


# 2 · Memory with poison around it


class Fenced(NamedTuple):
    """A tensor with NaN on both sides, and the whole of its memory."""

    tensor: torch.Tensor
    memory: torch.Tensor

    def assert_untouched(self) -> None:
        width = self.tensor.untyped_storage().nbytes() // self.tensor.element_size()
        inside = torch.zeros(width, dtype=torch.bool)
        inside.as_strided(
            self.tensor.size(), self.tensor.stride(), self.tensor.storage_offset()
        ).fill_(True)
        assert self.memory[~inside].isnan().all(), "written outside of a tensor"


FENCE = 512  # numbers, more than a program reads at once


def fenced(size, dtype=torch.float32, stride=None) -> Fenced:
    """A tensor full of NaN whose rows, if `stride` leaves room, have NaN between them too."""
    stride = stride or torch.empty(size, device="meta").stride()
    span = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    memory = torch.full((span + 2 * FENCE,), torch.nan, dtype=dtype)
    return Fenced(memory.as_strided(size, stride, FENCE), memory)


class FencedTorch:
    """The torch that a kernel module sees: every tensor it makes is fenced."""

    def __init__(self):
        self.made: list[Fenced] = []

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *size, dtype=torch.float32, device=None):
        size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        self.made.append(fenced(tuple(size), dtype))
        return self.made[-1].tensor

    def empty_like(self, x, dtype=None):
        like = torch.empty_like(x, device="meta")
        self.made.append(fenced(tuple(like.shape), dtype or x.dtype, like.stride()))
        return self.made[-1].tensor


# 3 · From a call of a kernel to its machine code

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class Call(NamedTuple):
    """kernel[grid](…), as the host code made it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class Recorder:
    """Stands where a kernel stood and writes its calls down instead of running them."""

    def __init__(self, kernel: Any, calls: list[Call]):
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid):
        def call(*arguments, **more):
            named = dict(zip(self.kernel.arg_names, arguments, strict=False)) | more
            self.calls.append(Call(self.kernel, grid, named))

        return call


def record(monkeypatch, module: Any) -> list[Call]:
    """The calls that the host code of a module will make from now on."""
    calls: list[Call] = []
    for name, value in vars(module).copy().items():
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel"):
            monkeypatch.setattr(module, name, Recorder(value, calls))
    return calls


def specialise(value: Any, plain: bool, where: tuple, constants: dict, facts: dict) -> Any:
    """The type of an argument; what Triton knows beyond it goes to constants and facts.

    As at a launch: 1 and None are constants, multiples of 16 are known to be such, unless the
    kernel asks not to (`plain`).
    """
    if isinstance(value, torch.Tensor):
        facts[where] = [["tt.divisibility", 16]]
        return POINTERS[value.dtype]
    if isinstance(value, tuple):
        parts = (specialise(v, plain, (*where, i), constants, facts) for i, v in enumerate(value))
        return tuple(parts)
    if isinstance(value, bool) or value is None or (value == 1 and not plain):
        constants[where] = value
        return "constexpr"
    if not plain and value % 16 == 0:
        facts[where] = [["tt.divisibility", 16]]
    return "i32"


def compiled(call: Call, target: str, known: dict[str, int] | None = None, **options: Any) -> Any:
    """The kernel of a call for one of TARGETS: `.asm` has its forms by name.

    `known` are arguments whose values the compiler is told.
    """
    signature, constants, facts = {}, {}, {}
    for i, parameter in enumerate(call.kernel.params):
        name, value = parameter.name, (call.arguments | (known or {}))[parameter.name]
        if parameter.is_constexpr or name in (known or {}):
            signature[name], constants[(i,)] = "constexpr", value
        else:
            plain = parameter.do_not_specialize
            signature[name] = specialise(value, plain, (i,), constants, facts)
    source = ASTSource(call.kernel, signature, constants, facts)
    options |= {"num_warps": call.arguments["num_warps"], "enable_fp_fusion": True}
    return triton.compile(source, target=TARGETS[target], options=options)


# 4 · Reading NVIDIA's machine code (SASS)


class Instruction(NamedTuple):
    opcode: str  # with its suffixes, LDG.E.128
    text: str

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]


class Resources(NamedTuple):
    registers: int
    spilled: int  # bytes of local memory a thread
    shared: int  # bytes of shared memory a program


def nvidia_tool(name: str, *arguments: str, cubin: bytes) -> str:
    """The output of a program that comes inside the Triton wheel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        done = subprocess.run(
            [tool, *arguments, str(file)], capture_output=True, text=True, check=True
        )
    return done.stdout


def nvidia_resources(cubin: bytes) -> Resources:
    text = nvidia_tool("cuobjdump", "--dump-resource-usage", cubin=cubin)
    found = {
        name: int(re.search(rf"Function.*\n?.*\b{name}:(\d+)", text)[1])
        for name in ("REG", "STACK", "LOCAL", "SHARED")
    }
    return Resources(found["REG"], found["STACK"] + found["LOCAL"], found["SHARED"])


def sass(cubin: bytes) -> str:
    return nvidia_tool("nvdisasm", "-c", cubin=cubin)


INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\S*)([^;]*);")


def instructions_and_loops(text: str) -> tuple[list[Instruction], list[range]]:
    """The instructions in order, and the loops: from the target of a branch back to the branch."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        if label := re.match(r"^(\.L_\w+):", line):
            labels[label[1]] = len(code)
        elif found := INSTRUCTION.match(line):
            target = re.search(r"`\((\.L_\w+)\)", found[2])
            if found[1].startswith("BRA") and target:
                jumps.append((len(code), target[1]))
            code.append(Instruction(found[1], line))
    loops = [range(labels[label], at + 1) for at, label in jumps if labels[label] < at]
    return code, loops


def innermost(loops: list[range]) -> list[range]:
    def inside(inner, outer):
        return inner != outer and outer.start <= inner.start and inner.stop <= outer.stop

    return [loop for loop in loops if not any(inside(other, loop) for other in loops)]


def steady_loop(text: str) -> list[Instruction]:
    """The innermost loop with the most exponentials: that of the steps of a scan."""
    code, loops = instructions_and_loops(text)
    bodies = [[code[i] for i in loop] for loop in innermost(loops)]
    return max(bodies, key=lambda body: (count(body, "MUFU.EX2"), -len(body)))


def count(body: list[Instruction], prefix: str) -> int:
    return sum(instruction.opcode.startswith(prefix) for instruction in body)


def width(instruction: Instruction) -> int:
    """The bytes that a load or store moves for a thread."""
    for suffix in instruction.opcode.split("."):
        if suffix in ("64", "128"):
            return int(suffix) // 8
        if suffix in ("U8", "S8", "U16", "S16"):
            return int(suffix[1:]) // 8
    return 4


def bytes_moved(body: list[Instruction], name: str) -> int:
    """By the loads (LDG) or stores (STG) of one thread."""
    return sum(width(instruction) for instruction in body if instruction.name == name)


def opcodes(body: list[Instruction]) -> Counter:
    return Counter(instruction.name for instruction in body)


# 5 · Reading AMD's


def amd_resources(text: str) -> Resources:
    """From the notes that the assembler text carries."""
    found = {
        name: sum(int(v) for v in re.findall(rf"\.{name}:\s+(\d+)", text))
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count",
                     "private_segment_fixed_size", "group_segment_fixed_size")
    }  # fmt: skip
    spilled = (
        found["vgpr_spill_count"] + found["sgpr_spill_count"] + found["private_segment_fixed_size"]
    )
    return Resources(found["vgpr_count"], spilled, found["group_segment_fixed_size"])

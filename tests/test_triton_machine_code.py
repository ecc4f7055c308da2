"""What the Triton kernels cost, read from the machine code that they compile to, without a GPU.

The calls are those that the host code makes, for a layer of the first stage of VMamba-T: 4 routes,
192 channels, 16 states, 56 × 56 pixels, channels last. The limits are those of Triton 3.8 with a
little room. Triton 3.3 and 3.4 compile all kernels too; their backward pass takes 48 instructions a
state and step, and some of its forms spill.
"""

import functools
from types import SimpleNamespace

import pytest
import torch
from triton_tools import (
    INTERPRETING,
    TARGETS,
    amd_resources,
    bytes_moved,
    compiled,
    count,
    innermost,
    instructions_and_loops,
    nvidia_resources,
    record,
    sass,
    steady_loop,
    triton,
    width,
)

from minivmamba.bench import roofline
from minivmamba.kernels import cross_scan_triton as cross_scan_kernels
from minivmamba.kernels import scan_triton as kernels
from minivmamba.kernels import ss2d_triton as map_kernels

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
pytestmark = [
    pytest.mark.skipif(INTERPRETING, reason="this process interprets kernels"),
    pytest.mark.skipif(VERSION < (3, 8), reason="the limits are those of Triton 3.8"),
]

NVIDIA = ["sm_80", "sm_90"]
DTYPES = [torch.float32, torch.bfloat16]
K, d, N, H, W = 4, 192, 16, 56, 56
L = H * W


# 1 · The calls


def empty(*size, dtype=torch.float32):
    return torch.empty(*size, device="meta", dtype=dtype)


def sequence_arguments(dtype):
    u, delta = (empty(1, L, K * d, dtype=dtype).transpose(1, 2) for _ in range(2))
    B, C = (empty(1, K, L, N, dtype=dtype).transpose(2, 3) for _ in range(2))
    return u, delta, empty(K * d, N), B, C, empty(K * d), empty(K * d), True


def map_arguments(dtype):
    delta = empty(1, 4, H, W, d, dtype=dtype)
    B, C = (empty(1, 4, H, W, N, dtype=dtype) for _ in range(2))
    x = empty(1, H, W, d, dtype=dtype)
    return x, delta, empty(4 * d, N), B, C, empty(4 * d), empty(4 * d), True


@functools.cache
def calls(dtype, lanes):
    """The launches of the two forms, by name; on a card that L has to be cut for, too."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "LANES", lanes)
        made = record(patch, kernels)
        values = sequence_arguments(dtype)
        dy, dlast = empty(1, L, K * d).transpose(1, 2), empty(1, K * d, N)
        kernels.scan_triton(*values)
        _, _, kept = kernels.scan_triton(*values, keep=True)
        kernels.scan_triton_backward(dy, dlast, kept, *values)
        found |= zip(("forward", "forward, keeping", "again", "backward"), made, strict=True)
        made.clear()
        values = map_arguments(dtype)
        _, kept = map_kernels.ss2d_triton(*values, keep=True)
        map_kernels.ss2d_triton_backward(empty(1, H, W, d), kept, *values)
        found |= zip(("forward on a map", "again on a map", "backward on a map"), made, strict=True)
        made.clear()
        patch.setattr(kernels, "steps_of_a_part", lambda problem: 10 * kernels.CHUNK)
        values = sequence_arguments(dtype)
        _, _, kept = kernels.scan_triton(*values, keep=True)
        kernels.scan_triton_backward(dy, dlast, kept, *values)
        names = ("what a part does", "carry", "forward of a part", "-", "what a part does to g",
                 "carry back", "-")  # fmt: skip
        found |= zip(names, made, strict=True)
        del found["-"]
    return found


FORMS = list(calls(torch.float32, 32))
LOOPS = [name for name in FORMS if "carry" not in name]  # those that take steps


@functools.cache
def machine_code(form, target, dtype):
    """Its resources, and on NVIDIA its text and the loop over steps."""
    asm = compiled(calls(dtype, TARGETS[target].warp_size)[form], target).asm
    if target.startswith("gfx"):
        return SimpleNamespace(resources=amd_resources(asm["amdgcn"]), text=asm["amdgcn"])
    text = sass(asm["cubin"])
    return SimpleNamespace(
        resources=nvidia_resources(asm["cubin"]), text=text, loop=steady_loop(text)
    )


def steps_of_the_loop(form):
    return kernels.FEW if form.startswith("backward") else 1


def each(forms, targets):
    """Every form on every target in both dtypes; all but sm_90 in float32 are slow."""
    chosen = []
    for target in targets:
        for dtype in DTYPES:
            slow = () if (target, dtype) == ("sm_90", torch.float32) else pytest.mark.slow
            for form in forms:
                name = f"{form}-{target}-{str(dtype)[6:]}"
                chosen.append(pytest.param(form, target, dtype, id=name, marks=slow))
    return chosen


# 2 · What the head of scan_triton.py says


@pytest.mark.parametrize(("form", "target", "dtype"), each(FORMS, TARGETS))
def test_nothing_is_spilled(form, target, dtype):
    code = machine_code(form, target, dtype)
    assert code.resources.spilled == 0
    if target in NVIDIA:
        instructions, _ = instructions_and_loops(code.text)
        assert count(instructions, "LDL") == count(instructions, "STL") == 0
        # Room for 20 warps of the forward pass on a multiprocessor, and 8 of the backward.
        assert code.resources.registers <= (255 if form.startswith("backward") else 96)
    else:
        assert code.resources.registers <= 512


def bytes_of_a_step(form, dtype):
    """(loads, stores) of one thread: the table of the head comment."""
    e = dtype.itemsize
    if form.startswith("backward"):
        again = 3 / 4 * (2 + N / 4) * e + N
        du = 4 if form.endswith("map") else e  # a summand for each route
        return again + (2 + N / 2) * e + 4, du + e + N / 4
    if form.startswith("forward"):
        return (2 + 2 * N) * e, 4
    if form == "what a part does to g":
        return (1 + N) * e + 4, 0
    return (2 + N) * e, 0  # without y


@pytest.mark.parametrize(("form", "target", "dtype"), each(LOOPS, NVIDIA))
def test_bytes_of_a_step_are_those_of_the_model(form, target, dtype):
    loop, steps = machine_code(form, target, dtype).loop, steps_of_the_loop(form)
    found = bytes_moved(loop, "LDG") / steps, bytes_moved(loop, "STG") / steps
    assert found == bytes_of_a_step(form, dtype)


@pytest.mark.parametrize(("form", "target", "dtype"), each(LOOPS, NVIDIA))
def test_exponentials_of_a_step(form, target, dtype):
    """One for every state, once more in the backward pass, and one for softplus."""
    loop, steps = machine_code(form, target, dtype).loop, steps_of_the_loop(form)
    expected = (N + 1) * (2 * steps - 1 if form.startswith("backward") else 1)
    assert count(loop, "MUFU.EX2") == expected


@pytest.mark.parametrize(("form", "target", "dtype"), each(LOOPS, NVIDIA))
def test_states_stay_in_their_threads(form, target, dtype):
    """Forward, a warp exchanges nothing; backward, 3 numbers for a sum over channels."""
    loop, steps = machine_code(form, target, dtype).loop, steps_of_the_loop(form)
    exchanges = count(loop, "SHFL")
    if form.startswith("backward"):
        sums_over_channels, sums_over_states = 2 * 4 * 3, 2 * 4 * 2
        assert exchanges == steps * (sums_over_channels + sums_over_states)
    else:
        assert exchanges == count(loop, "LDS") == count(loop, "BAR") == 0


def limit(form, dtype):
    """Instructions a state and step."""
    on_a_map = 3 if form.endswith("map") else 0
    unpacking = 3 if dtype == torch.bfloat16 else 0
    if form.startswith("backward"):
        return 35 + on_a_map + unpacking
    return (10.5 if form.startswith("forward") else 8) + on_a_map + unpacking


@pytest.mark.parametrize(("form", "target", "dtype"), each(LOOPS, NVIDIA))
def test_instructions_of_a_state_and_step(form, target, dtype):
    loop, steps = machine_code(form, target, dtype).loop, steps_of_the_loop(form)
    assert len(loop) / (N * steps) <= limit(form, dtype)


@pytest.mark.parametrize("form", ["forward", "forward, keeping", "forward of a part"])
def test_forward_stays_below_12(form):
    """The authors' CUDA kernel spends 33.5, on the same card."""
    assert len(machine_code(form, "sm_90", torch.float32).loop) / N <= 12


FLOATS = ("FMUL", "FADD", "FFMA", "FMNMX", "FSETP", "FSEL")


@pytest.mark.parametrize("form", roofline.KERNELS)
def test_the_roofline_counts_what_the_machine_code_has(form):
    """Of sm_90, in float32: instructions, float operations, exponentials."""
    loop, steps = machine_code(form, "sm_90", torch.float32).loop, steps_of_the_loop(form)
    counted = roofline.KERNELS[form]
    assert counted.instructions == pytest.approx(len(loop) / (N * steps), rel=0.02)
    floats = sum(count(loop, name) for name in FLOATS) / (N * steps)
    assert counted.floats == pytest.approx(floats, rel=0.05)
    # The backward pass goes through 7 steps for 4, twice but for the last of the four.
    assert counted.exponentials == pytest.approx(count(loop, "MUFU.EX2") / steps, rel=0.15)


# 3 · The cross-scan


@functools.cache
def cross_scan_code(name, dtype):
    with pytest.MonkeyPatch.context() as patch:
        made = record(patch, cross_scan_kernels)
        x = empty(2, d, H, W, dtype=dtype)
        cross_scan_kernels.cross_scan_triton(x)
        cross_scan_kernels.cross_merge_triton(empty(2, 4, d, L, dtype=dtype), H, W)
        call = dict(zip(("scan", "merge"), made, strict=True))[name]
    asm = compiled(call, "sm_90").asm
    return nvidia_resources(asm["cubin"]), instructions_and_loops(sass(asm["cubin"]))[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "reads", "writes"), [("scan", 1, 4), ("merge", 4, 1)])
def test_the_cross_scan_moves_each_number_once(name, reads, writes, dtype):
    """A tile of 32 × 32 numbers on 128 threads: 8 for each."""
    resources, code = cross_scan_code(name, dtype)
    assert resources.spilled == 0
    of_a_thread = 8 * dtype.itemsize
    assert bytes_moved(code, "LDG") == reads * of_a_thread
    assert bytes_moved(code, "STG") == writes * of_a_thread


# 4 · The reader itself

TEXT = """
.L_x_0:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_2:
        /*0020*/                   MUFU.EX2 R8, R9 ;
        /*0030*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0040*/              @!UP1 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0050*/               @P0 BRA `(.L_x_2) ;
        /*0060*/                   STG.E desc[UR4][R2.64], R4 ;
        /*0070*/              @!P1 BRA `(.L_x_1) ;
        /*0080*/               @P2 BRA `(.L_x_3) ;
.L_x_3:
        /*0090*/                   EXIT ;
.L_x_4:
        /*00a0*/                   BRA `(.L_x_4);
"""


def test_the_reader_finds_loops_by_their_branches_back():
    code, loops = instructions_and_loops(TEXT)
    assert [i.name for i in code] == [
        "MOV", "LDG", "MUFU", "LDG", "UIADD3", "BRA", "STG", "BRA", "BRA", "EXIT", "BRA",
    ]  # fmt: skip
    assert loops == [range(2, 6), range(1, 8)]  # a branch onto itself fills up the end of a kernel
    assert innermost(loops) == [range(2, 6)]
    loop = steady_loop(TEXT)
    assert len(loop) == 4 and count(loop, "MUFU.EX2") == 1
    assert (bytes_moved(loop, "LDG"), bytes_moved(loop, "STG")) == (2, 0)
    assert [width(i) for i in code if i.name in ("LDG", "STG")] == [16, 2, 4]


@pytest.mark.parametrize("target", NVIDIA)
def test_the_reader_sees_a_spill(target):
    """The same kernel, allowed no more than 40 registers."""
    call = calls(torch.float32, 32)["forward"]
    asm = compiled(call, target, maxnreg=40).asm
    assert nvidia_resources(asm["cubin"]).spilled > 0
    code, _ = instructions_and_loops(sass(asm["cubin"]))
    assert count(code, "LDL") > 0 and count(code, "STL") > 0


def test_the_reader_sees_a_spill_on_amd():
    """The backward pass in a quarter of the registers: several warps share a unit's file."""
    call = calls(torch.float32, 64)["backward"]
    asm = compiled(call, "gfx942", waves_per_eu=8).asm
    assert amd_resources(asm["amdgcn"]).spilled > 0


def test_the_reader_sees_what_threads_exchange():
    """A compiler that knows `zero` to be 0 loads four channels a thread, and pays in every step."""
    call = calls(torch.float32, 32)["forward"]
    loop = steady_loop(sass(compiled(call, "sm_90", known={"zero": 0}).asm["cubin"]))
    assert count(loop, "SHFL") > 0 and count(loop, "LDS") > 0

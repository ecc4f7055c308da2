"""The selective scan on a GPU, in Triton (lesson 08): read scan_naive.py first.

The mathematics and shapes of `scan_naive`, as programs of one warp:

    forward   A program carries a block of channels of one image and group through the sequence,
              one channel a thread. A thread keeps the N states of its channel in registers, so the
              sum over n needs no other thread; B_t and C_t are the same for all of them.
    in parts  When images × channels do not fill the card, the sequence is cut. A first pass finds
              what each part does to a state, x → e^{A ΣΔ} x + h, where h is its last state from 0;
              `combine` carries on from part to part; a second pass starts from the right states.
    keep      For the backward pass h before every 32nd step is kept.
    backward  The forward kernel runs once more over all chunks of 32 at a time, and writes h
              before every 4th step. Then, from the last four steps to the first: their states
              again, held in registers, and back with g, the gradient of h,

        g_t = C_t dy_t + Ā_{t+1} g_{t+1}
        dC_t = Σ dy_t h_t        dB_t = Σ g_t Δ_t u_t       (Σ over the channels of a group)
        dΔ_t = Σ_n (g_t Ā_t h_{t−1} A + g_t B_t u_t)        du_t = D dy_t + Δ_t Σ_n g_t B_t
        dA = Σ_t g_t Ā_t h_{t−1} Δ_t

              In parts, with carries from the end. dB and dC are written for every block of
              channels, dA for every image and part, and PyTorch adds them up: no atomics, so
              results repeat to the last bit on one kind of card.

Bytes that a thread moves in a step, where a number of u, delta, B, C takes e (float32 4,
bfloat16 and float16 2) and results and states take 4; N is a multiple of 4, channels last:

                loads                                                    stores
    forward     (2 + 2N) e: u, delta and B_t, C_t                        4: y
    again       (2 + N) e: u, delta and B_t                              N: a state in 4 steps
    backward    (2 + N/2) e + 4: u, delta, dy, a quarter of B_t, C_t,    2e + N/4: du, ddelta
                ¾ (2 + N/4) e + N: the states of 4 steps                 and a share of dB, dC

B_t and C_t come from memory once for a block of channels, and from the cache for its threads.

Operations a state and step, in instructions of a warp (sm_90, float32, N = 16, channels last):
9 to 10 forward, of which the mathematics needs 5 (Δ A, 2^x, Δu B, two multiply-adds); 7 again;
33 backward. Unpacking bfloat16 adds 1 to 3. Registers of a thread: 64 to 75 forward, all 255
backward, nothing spilled. tests/test_triton_machine_code.py reads all this from the compiled code.

Seen on one GPU, an H200 with Triton 3.6: tests/gpu passed there (values and gradients, parts,
repeatability, half precision, streams, graph capture). Errors against float64 are 8e-8 for y and
8e-7 for the worst gradient. `bench scan --device cuda`, channels-last: forward 2.6 times the floor
of exponentials for 128 images, since warps wait for memory three quarters of the time; forward and
backward 3.4 times, for the backward pass leaves room for 8 warps on a multiprocessor; 5 to 6 times
for one image. Four orders of loading ahead, and programs of two and four warps, brought a tenth at
most, or cost time. Not seen: other cards, AMD's at all, and two cards in one machine.

Needs Triton 3.3, which knows tuples.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 64 if torch.version.hip else 32  # channels of a program: one for every thread of a warp
CHUNK = 32  # steps between two states that the forward pass keeps
FEW = 4  # steps whose states the backward pass holds in registers; CHUNK is a multiple of it
WARPS = 32  # programs that keep a multiprocessor busy: on an H200 no fewer did
OWN = tl.constexpr(4)  # channels of a thread in the backward pass
LOG2E = tl.constexpr(1 / math.log(2))
LN2 = tl.constexpr(math.log(2))


# 1 · Steps, on values in registers


@triton.jit
def softplus(x):
    """(log(1 + e^x), its derivative), as exact near 0 as elsewhere."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2 + e)  # log(1 + e) = 2 artanh(s) with s ≤ 1/3: the series leaves 1.5e-8
    z = s * s
    series = 1 / 7 + z * (1 / 9 + z * (1 / 11 + z * (1 / 13)))
    log1p = 2 * s * (1 + z * (1 / 3 + z * (1 / 5 + z * series)))
    return tl.maximum(x, 0) + log1p, tl.where(x > 0, 1.0, e) / (1 + e)


@triton.jit
def step(h, decay, input, B):
    """h_t from h_{t−1}; the input is Δu."""
    return decay * h + B * input


@triton.jit
def combine(decay, h, next_decay, next_h):
    """Two stretches of steps in one: each turns a state x into decay · x + h."""
    return decay * next_decay, next_decay * h + next_h


# 2 · Where things stand. An image holds fewer than 2^31 numbers; all images together may hold more.


@triton.jit
def place_of(t, route, L, H, W, MAP: tl.constexpr):
    """The place of step t: t in a sequence; on a map the pixel of a route, counted row by row."""
    if MAP:
        s = tl.where(route < 2, t, L - 1 - t)
        column = s // H
        t = tl.where(route % 2 == 0, s, s * W - column * (L - 1))
    return tl.cast(t, tl.int64)


@triton.jit
def lanes_of(x, strides, image, group, lanes):
    """Pointers into a tensor at place 0; its strides are those of image, group, lane and place."""
    return x + tl.cast(image, tl.int64) * strides[0] + group * strides[1] + lanes * strides[2]


@triton.jit
def block(x, image, at, count, group, groups, rows, columns, N, d):
    """Pointers to cells of a block (N, d) in a contiguous tensor (image, count, group, N, d)."""
    x += ((tl.cast(image, tl.int64) * count + at) * groups + group) * N * d
    return x + columns + rows * d


@triton.jit
def load(x, mask):
    return tl.load(x, mask=mask, other=0).to(tl.float32)


@triton.jit
def load_delta(delta, bias, inside, SOFTPLUS: tl.constexpr):
    """(Δ, dΔ/d delta); Δ = 0 outside, so that the step leaves every state as it is."""
    x = load(delta, inside) + bias
    if SOFTPLUS:
        dt, slope = softplus(x)
    else:
        dt, slope = x, tl.full(x.shape, 1, tl.float32)
    return tl.where(inside, dt, 0), slope


@triton.jit
def load_channels(x, group, d, channels):
    """A row of D or of the bias, zeros if there is none."""
    if x is None:
        return tl.zeros(channels.shape, tl.float32)
    else:
        return load(x + group * d + channels, channels < d)


# 3 · Forward
#
# `zero` is 0, which the compiler must not know. It would see rows of states that start at multiples
# of 16 bytes, let a thread load four channels at once, and pass states between threads for it.

CHANGING = ("L", "H", "W", "part_steps", "parts", "kept_count", "zero")  # no reason to recompile


@triton.jit(do_not_specialize=CHANGING)
def forward_kernel(
    u, delta, A, B, C, D, bias, start, y, kept, end, total,
    u_strides, delta_strides, B_strides, C_strides, y_strides,
    groups, L, H, W, part_steps, kept_count, zero,
    d: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EVERY: tl.constexpr, SOFTPLUS: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    """A block of channels of one image and group, through one part of the sequence.

    Reads the state before it (start) and writes y, the state before every EVERY-th step (kept),
    the state after it (end), the sum of its Δ (total): whichever are given.
    """
    image, group = tl.program_id(0), tl.program_id(1) % groups
    part, parts = tl.program_id(2), tl.num_programs(2)
    channels = tl.program_id(1) // groups * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    is_channel, is_state = channels < d, n < N
    is_cell = is_state[:, None] & is_channel[None, :]
    row, column = n[:, None], channels[None, :] + zero

    u = lanes_of(u, u_strides, image, group, channels)
    delta = lanes_of(delta, delta_strides, image, group, channels)
    B = lanes_of(B, B_strides, image, group, n)
    A = load(block(A, 0, 0, 1, group, groups, row, column, N, d), is_cell)
    bias = load_channels(bias, group, d, channels)
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    if start is not None:
        h = load(block(start, image, part, parts, group, groups, row, column, N, d), is_cell)
    if y is not None:
        C = lanes_of(C, C_strides, image, group, n)
        y = lanes_of(y, y_strides, image, group, channels)
        D = load_channels(D, group, d, channels)
    sum_dt = tl.zeros((BLOCK_D,), tl.float32)

    first = part * part_steps
    last = tl.minimum(first + part_steps, L)
    for chunk in range(first, last, EVERY):
        if kept is not None:
            at = chunk // EVERY
            here = block(kept, image, at, kept_count, group, groups, row, column, N, d)
            tl.store(here, h, mask=is_cell)
        for t in range(chunk, tl.minimum(chunk + EVERY, last)):
            place = place_of(t, group, L, H, W, MAP)
            dt, _ = load_delta(delta + place * delta_strides[3], bias, is_channel, SOFTPLUS)
            u_t = load(u + place * u_strides[3], is_channel)
            B_t = load(B + place * B_strides[3], is_state)
            h = step(h, tl.exp2(dt[None, :] * A), (dt * u_t)[None, :], B_t[:, None])
            if y is not None:
                C_t = load(C + place * C_strides[3], is_state)
                y_t = tl.sum(C_t[:, None] * h, 0) + D * u_t
                tl.store(y + place * y_strides[3], y_t, mask=is_channel)
            if total is not None:
                sum_dt += dt

    if end is not None:
        here = block(end, image, part, parts, group, groups, row, column, N, d)
        tl.store(here, h, mask=is_cell)
    if total is not None:
        here = block(total, image, part, parts, group, groups, 0, channels, 1, d)
        tl.store(here, sum_dt, mask=is_channel)


@triton.jit(do_not_specialize=CHANGING)
def carry_kernel(
    A, initial, end, total, start, groups, parts, zero,
    d: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """From what every part does to a state (total, end), the state that enters it (start)."""
    image, group = tl.program_id(0), tl.program_id(1) % groups
    channels = tl.program_id(1) // groups * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    is_channel, is_state = channels < d, n < N
    is_cell = is_state[:, None] & is_channel[None, :]
    row, column = n[:, None], channels[None, :] + zero

    A = load(block(A, 0, 0, 1, group, groups, row, column, N, d), is_cell)
    decay = tl.full((BLOCK_N, BLOCK_D), 1, tl.float32)
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    if initial is not None:
        h = load(block(initial, image, 0, 1, group, groups, row, column, N, d), is_cell)
    for i in range(parts):
        part = parts - 1 - i if REVERSE else i
        here = block(start, image, part, parts, group, groups, row, column, N, d)
        tl.store(here, h, mask=is_cell)
        here = block(total, image, part, parts, group, groups, 0, channels, 1, d)
        part_decay = tl.exp2(load(here, is_channel)[None, :] * A)
        here = block(end, image, part, parts, group, groups, row, column, N, d)
        decay, h = combine(decay, h, part_decay, load(here, is_cell))


# 4 · Backward


@triton.jit(do_not_specialize=CHANGING)
def backward_summary_kernel(
    dy, delta, A, C, bias, end, total,
    dy_strides, delta_strides, C_strides,
    groups, L, H, W, part_steps, zero,
    d: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    SOFTPLUS: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    """What dy alone makes of g in one part, from its last step to its first, and the sum of Δ."""
    image, group = tl.program_id(0), tl.program_id(1) % groups
    part, parts = tl.program_id(2), tl.num_programs(2)
    channels = tl.program_id(1) // groups * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    is_channel, is_state = channels < d, n < N
    is_cell = is_state[:, None] & is_channel[None, :]
    row, column = n[:, None], channels[None, :] + zero

    dy = lanes_of(dy, dy_strides, image, group, channels)
    delta = lanes_of(delta, delta_strides, image, group, channels)
    C = lanes_of(C, C_strides, image, group, n)
    A = load(block(A, 0, 0, 1, group, groups, row, column, N, d), is_cell)
    bias = load_channels(bias, group, d, channels)
    g = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sum_dt = tl.zeros((BLOCK_D,), tl.float32)

    first = part * part_steps
    last = tl.minimum(first + part_steps, L)
    for back in range(last - first):
        place = place_of(last - 1 - back, group, L, H, W, MAP)
        dt, _ = load_delta(delta + place * delta_strides[3], bias, is_channel, SOFTPLUS)
        dy_t = load(dy + place * dy_strides[3], is_channel)
        C_t = load(C + place * C_strides[3], is_state)
        g = tl.exp2(dt[None, :] * A) * (g + C_t[:, None] * dy_t[None, :])
        sum_dt += dt

    here = block(end, image, part, parts, group, groups, row, column, N, d)
    tl.store(here, g, mask=is_cell)
    here = block(total, image, part, parts, group, groups, 0, channels, 1, d)
    tl.store(here, sum_dt, mask=is_channel)


@triton.jit(do_not_specialize=CHANGING)
def backward_kernel(
    dy, carry, kept, u, delta, A, B, C, D, bias,
    du, ddelta, dBC, sums,
    dy_strides, u_strides, delta_strides, B_strides, C_strides, du_strides, ddelta_strides,
    groups, L, H, W, part_steps, kept_count, zero,
    d: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    FEW: tl.constexpr, SOFTPLUS: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    """A block of channels of one image and group, through one part, from last step to first.

    FEW steps at a time: their states again, from the one kept before them, then back.

    The channels stand in two axes, OWN × the rest, on both sides of the states: a thread holds OWN
    channels of a quarter of the states. Sums over channels, two for every state, then begin
    inside a thread and end in 3 exchanges between threads, where one channel a thread needs 5.
    """
    image, group = tl.program_id(0), tl.program_id(1) % groups
    part, parts = tl.program_id(2), tl.num_programs(2)
    REST: tl.constexpr = BLOCK_D // OWN
    channels = tl.arange(0, OWN)[:, None] * REST + tl.arange(0, REST)[None, :]
    channels += tl.program_id(1) // groups * BLOCK_D
    n = tl.arange(0, BLOCK_N)
    is_channel, is_state = channels < d, n < N
    is_cell = is_state[None, :, None] & is_channel[:, None, :]
    row, column = n[None, :, None], channels[:, None, :] + zero

    dy = lanes_of(dy, dy_strides, image, group, channels)
    u = lanes_of(u, u_strides, image, group, channels)
    delta = lanes_of(delta, delta_strides, image, group, channels)
    B = lanes_of(B, B_strides, image, group, n)
    C = lanes_of(C, C_strides, image, group, n)
    du = lanes_of(du, du_strides, image, group, channels)
    ddelta = lanes_of(ddelta, ddelta_strides, image, group, channels)
    # (image, block of channels and group, place, N of both dB and dC)
    pair = 2 * n[:, None] + tl.arange(0, 2)[None, :]
    dBC = block(dBC, image, tl.program_id(1), tl.num_programs(1), 0, 1, 0, pair, L, 2 * N)
    A = load(block(A, 0, 0, 1, group, groups, row, column, N, d), is_cell)
    D = load_channels(D, group, d, channels)
    bias = load_channels(bias, group, d, channels)
    g = load(block(carry, image, part, parts, group, groups, row, column, N, d), is_cell)
    dA = tl.zeros(g.shape, tl.float32)
    dD = tl.zeros(channels.shape, tl.float32)
    dbias = tl.zeros(channels.shape, tl.float32)

    first = part * part_steps
    last = tl.minimum(first + part_steps, L)
    rounds = tl.cdiv(last - first, FEW)
    for back in range(rounds):
        begin = first + (rounds - 1 - back) * FEW
        at = begin // FEW
        h = load(block(kept, image, at, kept_count, group, groups, row, column, N, d), is_cell)
        states = (h,)
        for i in tl.static_range(FEW - 1):
            exists = begin + i < last
            inside = is_channel & exists
            place = place_of(begin + i, group, L, H, W, MAP)
            dt, _ = load_delta(delta + place * delta_strides[3], bias, inside, SOFTPLUS)
            u_t = load(u + place * u_strides[3], inside)
            B_t = load(B + place * B_strides[3], is_state & exists)
            h = step(h, tl.exp2(dt[:, None, :] * A), (dt * u_t)[:, None, :], B_t[None, :, None])
            states = states + (h,)  # noqa: RUF005 (Triton knows no unpacking)
        for i in tl.static_range(FEW - 1, -1, -1):
            exists = begin + i < last
            inside = is_channel & exists
            place = place_of(begin + i, group, L, H, W, MAP)
            # Δ again: held since the last loop, these rows would push states out of registers.
            dt, slope = load_delta(delta + place * delta_strides[3], bias, inside, SOFTPLUS)
            u_t = load(u + place * u_strides[3], inside)
            dy_t = load(dy + place * dy_strides[3], inside)
            B_t = load(B + place * B_strides[3], is_state & exists)[None, :, None]
            C_t = load(C + place * C_strides[3], is_state & exists)[None, :, None]
            decay = tl.exp2(dt[:, None, :] * A)
            input = (dt * u_t)[:, None, :]
            h = step(states[i], decay, input, B_t)

            g += C_t * dy_t[:, None, :]
            dB_t = tl.sum(tl.sum(g * input, 0), 1)
            dC_t = tl.sum(tl.sum(h * dy_t[:, None, :], 0), 1)
            d_input = tl.sum(g * B_t, 1)
            through_decay = g * (decay * states[i])  # the gradient of the exponent ΔA
            g *= decay
            dA += through_decay * dt[:, None, :]
            d_dt = tl.sum(through_decay * A, 1) * LN2 + d_input * u_t
            d_raw = tl.where(inside, d_dt * slope, 0)
            dbias += d_raw
            dD += dy_t * u_t

            tl.store(ddelta + place * ddelta_strides[3], d_raw, mask=inside)
            tl.store(du + place * du_strides[3], d_input * dt + D * dy_t, mask=inside)
            tl.store(dBC + place * 2 * N, tl.join(dB_t, dC_t), mask=(is_state & exists)[:, None])

    # (part, image, group, N rows of dA and those of dD and dbias, d)
    rows = N + 2
    images = tl.num_programs(0)
    tl.store(block(sums, part, image, images, group, groups, row, column, rows, d), dA, is_cell)
    tl.store(block(sums, part, image, images, group, groups, N, channels, rows, d), dD, is_channel)
    here = block(sums, part, image, images, group, groups, N + 1, channels, rows, d)
    tl.store(here, dbias, mask=is_channel)


# 5 · From tensors to kernels


class Problem(NamedTuple):
    """A scan as the kernels see it: of a sequence with K groups, or of a map with 4 routes.

    Strides are those of image, group, lane (a channel, or a state of B and C) and place.
    """

    u: Tensor
    delta: Tensor
    A: Tensor  # as `rates` makes it
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None
    softplus: bool
    strides: tuple  # of u, delta, B, C
    batch: int
    groups: int
    d: int
    N: int
    L: int
    H: int = 1
    W: int = 1
    is_map: bool = False

    def geometry(self) -> tuple[int, ...]:
        return self.groups, self.L, self.H, self.W

    def room(self, parts: int) -> Tensor:
        """For one state of every part."""
        shape = self.batch, parts, self.groups, self.N, self.d
        return torch.empty(shape, device=self.u.device, dtype=torch.float32)

    def rows(self, *sizes: int) -> Tensor:
        return torch.empty(sizes, device=self.u.device, dtype=torch.float32)


def rates(A: Tensor, groups: int) -> Tensor:
    """A·log2(e) as (K, N, d): e^{ΔA} = 2^{ΔA·log2(e)}, and 2^x is one instruction."""
    blocks = A.float().unflatten(0, (groups, -1)).transpose(1, 2)
    return (blocks * LOG2E.value).contiguous()


def channels_first(states: Tensor) -> Tensor:
    """(…, K, N, d) → (…, K·d, N)."""
    return states.transpose(-1, -2).flatten(-3, -2)


def launch(kernel: Any, problem: Problem, parts: int, *arguments: Any, **constants: Any) -> None:
    """Run a kernel for every image and group, block of channels, and part of the sequence."""
    grid = problem.batch, triton.cdiv(problem.d, LANES) * problem.groups, parts
    constants |= {
        "d": problem.d,
        "N": problem.N,
        "BLOCK_N": triton.next_power_of_2(problem.N),
        "BLOCK_D": LANES,
    }
    if 0 not in grid:
        with torch.cuda.device_of(problem.u):  # Triton launches on the current device
            kernel[grid](*arguments, zero=0, num_warps=1, **constants)


def steps_of_a_part(problem: Problem) -> int:
    """L, unless that makes too few programs to fill the card: then a multiple of CHUNK."""
    L, device = problem.L, problem.u.device
    if device.type != "cuda":
        return L
    programs = problem.batch * problem.groups * triton.cdiv(problem.d, LANES)
    return cut(L, programs, torch.cuda.get_device_properties(device).multi_processor_count)


def cut(L: int, programs: int, multiprocessors: int) -> int:
    parts = WARPS * multiprocessors // max(programs, 1)
    # A scan in parts is computed almost twice: fewer than three would gain nothing.
    return L if parts < 3 else triton.cdiv(triton.cdiv(L, parts), CHUNK) * CHUNK


def carries(problem, initial, end, total, reverse) -> Tensor:
    """The state that enters every part."""
    start, parts = torch.empty_like(end), end.shape[1]
    launch(
        carry_kernel, problem, 1,
        problem.A, initial, end, total, start, problem.groups, parts, REVERSE=reverse,
    )  # fmt: skip
    return start


def run_forward(problem, part, parts, start, y, y_strides, kept, end, total, every=CHUNK) -> None:
    launch(
        forward_kernel, problem, parts,
        *problem[:7], start, y, kept, end, total, *problem.strides, y_strides,
        *problem.geometry(), part, 0 if kept is None else kept.shape[1],
        EVERY=every, SOFTPLUS=problem.softplus, MAP=problem.is_map,
    )  # fmt: skip


def forward(problem: Problem, y: Tensor, y_strides: tuple, keep: bool) -> tuple[Tensor, Tensor]:
    """Fill y; return the last state (B, K·d, N) and, if `keep`, those before every chunk.

    There is room for one or two chunks more, zeros, and never for 1 chunk: torch.compile would
    take a size of 1 for a constant.
    """
    part = steps_of_a_part(problem)
    parts = triton.cdiv(problem.L, part)
    start = None
    end = problem.room(parts)
    if parts > 1:
        total = problem.rows(problem.batch, parts, problem.groups, problem.d)
        run_forward(problem, part, parts, None, None, y_strides, None, end, total)
        start = carries(problem, None, end, total, reverse=False)
    kept = None
    if keep:
        kept = problem.room(problem.L // CHUNK + 2)
        kept[:, triton.cdiv(problem.L, CHUNK) :] = 0
    run_forward(problem, part, parts, start, y, y_strides, kept, end, None)
    return channels_first(end[:, -1]), y.new_empty(0) if kept is None else kept


def backward(
    problem: Problem, dy, dy_strides, dlast, kept, du, du_strides, ddelta, ddelta_strides
) -> tuple[Tensor, ...]:
    """Fill du and ddelta; return dA (K·d, N), dB, dC (B, K, L, N) by place, dD, dbias (K·d,)."""
    batch, groups, d, N, L = problem[9:14]
    # First the states before every few steps: every chunk by itself, as its first one is known.
    often = problem.room(triton.cdiv(L, FEW))
    run_forward(problem, CHUNK, kept.shape[1], kept, None, dy_strides, often, None, None, FEW)

    part = steps_of_a_part(problem)
    parts = triton.cdiv(L, part)
    geometry = problem.geometry()
    constants = {"SOFTPLUS": problem.softplus, "MAP": problem.is_map}
    carry = dlast.float().view(batch, 1, groups, d, N).transpose(-1, -2).contiguous()
    if parts > 1:
        end, total = problem.room(parts), problem.rows(batch, parts, groups, d)
        _, delta_strides, _, C_strides = problem.strides
        launch(
            backward_summary_kernel, problem, parts,
            dy, problem.delta, problem.A, problem.C, problem.bias, end, total,
            dy_strides, delta_strides, C_strides, *geometry, part, **constants,
        )  # fmt: skip
        carry = carries(problem, carry, end, total, reverse=True)

    dBC = problem.rows(batch, triton.cdiv(d, LANES), groups, L, N, 2)
    sums = problem.rows(parts, batch, groups, N + 2, d)
    launch(
        backward_kernel, problem, parts,
        dy, carry, often, *problem[:7], du, ddelta, dBC, sums,
        dy_strides, *problem.strides, du_strides, ddelta_strides,
        *geometry, part, often.shape[1], FEW=FEW, **constants,
    )  # fmt: skip
    # Nobody adds to what another program has written: these sums have one order.
    dB, dC = dBC.sum(1).unbind(-1)
    # Each a tensor of its own: what an operator returns may not share memory.
    dA, dD, dbias = (rows.sum((0, 1)) for rows in sums.split([N, 1, 1], dim=3))  # (K, …, d)
    return channels_first(dA), dB, dC, dD.flatten(), dbias.flatten()


# 6 · The rung


def strides_in_groups(x: Tensor, K: int) -> tuple[int, ...]:
    """Of (B, K·d, L): strides of image, group, channel, place."""
    image, channel, place = x.stride()
    return image, x.shape[1] // K * channel, channel, place


def sequence(u, delta, A, B, C, D, delta_bias, delta_softplus) -> Problem:
    (batch, channels, L), K = u.shape, B.shape[1]
    D, bias = (None if x is None else x.contiguous() for x in (D, delta_bias))
    strides = strides_in_groups(u, K), strides_in_groups(delta, K), B.stride(), C.stride()
    return Problem(
        u, delta, rates(A, K), B, C, D, bias, delta_softplus, strides,
        batch, K, channels // K, A.shape[1], L,
    )  # fmt: skip


def scan_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, laid out as u; the last state (B, K·d, N); if `keep`, the states before chunks.

    float32, bfloat16 or float16, each tensor its own, and any strides; computed in float32, and
    so are the results. Fastest channels-last: stride 1 along the channels of u and delta and along
    the states of B and C.
    """
    problem = sequence(u, delta, A, B, C, D, delta_bias, delta_softplus)
    y = torch.empty_like(u, dtype=torch.float32)
    last, kept = forward(problem, y, strides_in_groups(y, problem.groups), keep)
    return y, last, kept


def scan_triton_backward(
    dy: Tensor,
    dlast: Tensor,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, ...]:
    """The gradients of (u, delta, A, B, C, D, delta_bias) for those of y and the last state.

    `kept` is what the forward pass returned with keep=True. Those of u and delta are laid out as
    their tensors; each has the dtype of its tensor, absent ones float32 and to be ignored.
    """
    problem = sequence(u, delta, A, B, C, D, delta_bias, delta_softplus)
    K = problem.groups
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dA, dB, dC, dD, dbias = backward(
        problem, dy, strides_in_groups(dy, K), dlast, kept,
        du, strides_in_groups(du, K), ddelta, strides_in_groups(ddelta, K),
    )  # fmt: skip
    dB, dC = (x.transpose(-1, -2) for x in (dB, dC))  # (B, K, N, L)
    sums = zip((dA, dB, dC, dD, dbias), (A, B, C, D, delta_bias), strict=True)
    return du, ddelta, *(dx if x is None else dx.to(x.dtype) for dx, x in sums)

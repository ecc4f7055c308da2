"""The selective scan on a CPU, compiled by Numba (lesson 07): read scan_naive.py first.

The mathematics and shapes of `scan_naive` in another order of work:

    A task carries one tile, 64 channels of one group of one image, through the whole sequence.
    The channels are the lanes of the vector unit: the state of a lane needs no other lane, B_t[n]
    and C_t[n] are scalars for the whole tile, and the exponential is a polynomial of the lane.
    The sequence is taken in chunks of 32 steps, whose scratch rows stay in the nearest cache:
        load    delta → Δ (softplus), u → Δu, and y starts as D u
        scan    four states at a time, step after step
        store   y

    Backward: the forward pass keeps h before every chunk. From the last chunk to the first, run
    the chunk again, keeping its 32 states and decays Ā, then walk back with g, the gradient of h:

        g_t = C_t dy_t + Ā_{t+1} g_{t+1}
        dC_t = Σ dy_t h_t        dB_t = Σ g_t Δ_t u_t       (Σ over the channels of a group)
        dΔ_t = Σ_n (g_t Ā_t h_{t−1} A + g_t B_t u_t)        du_t = D dy_t + Δ_t Σ_n g_t B_t
        dA = Σ_t g_t Ā_t h_{t−1} Δ_t

Bytes: u, delta and y move once, 12 bytes per channel and step in float32; the states never leave
the cache, except one in 32 when training.
Operations per state and step, in vector instructions of 16 lanes: 10 for e^{ΔA} (range 3,
polynomial 5, exponent 2), 2 for h, 1 for y. The backward pass repeats the first 12 and adds 8.
Extra memory: y; for training also the gradients, N / 32 of u for the states kept, and one dB and
dC for every tile.

Sums have one order, whatever the number of threads: results repeat to the last bit.

The kernels take any strides and a table `pos`: step t of route k stands at place pos[k, t]. With
pos = 0, 1, 2, … they scan a sequence; with the four routes they scan a map (ss2d_numba.py).
"""

import math
import threading
import warnings

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic, overload
from torch import Tensor

from .fork import is_forked

TILE = 64  # lanes of a task: 4 vectors of 16, so that one can wait while others compute
CHUNK = 32  # steps between two states kept
FLAGS = {"contract", "nsz"}  # a·b + c is one instruction; sums keep their order
SUM_FLAGS = FLAGS | {"reassoc"}  # only for sums over the lanes of a tile


_no_cache_told = False


def compiled(**options):
    """njit whose machine code is kept on disk, or in memory where no folder can be written."""

    def decorate(function):
        global _no_cache_told
        options.update(nogil=True, error_model="numpy")
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # Numba found no folder for its cache
            if not _no_cache_told:
                _no_cache_told = True
                warnings.warn(
                    "minivmamba: Numba can write its compiled code nowhere, so every process "
                    "compiles again (some seconds); set NUMBA_CACHE_DIR to a folder to avoid it",
                    stacklevel=2,
                )
            return njit(**options)(function)

    return decorate


# 1 · Four instructions that Python has no word for


@intrinsic
def wide_vectors(typingctx):
    """Let the calling function use 512-bit vectors where the CPU has them, and keep it a function.

    LLVM prefers 256 bits on Intel's server CPUs, which there is slower for a loop that computes.
    """

    def codegen(context, builder, signature, arguments):
        attributes = builder.function.attributes
        attributes.add("noinline")
        set.add(attributes, '"prefer-vector-width"="512"')  # its own add() knows single words only
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a·b + c without rounding a·b, where the CPU can."""

    def codegen(context, builder, signature, arguments):
        kind = arguments[0].type
        function = builder.module.declare_intrinsic(
            "llvm.fmuladd", [kind], ir.FunctionType(kind, [kind] * 3)
        )
        return builder.call(function, arguments)

    return a(a, a, a), codegen


@intrinsic
def times_power_of_two(typingctx, p, t):
    """p · 2^n, where the lowest bits of t hold n: adds n to the exponent bits of p."""

    def codegen(context, builder, signature, arguments):
        p_value, t_value = arguments
        width, mantissa = (32, 23) if p == types.float32 else (64, 52)
        integer = ir.IntType(width)
        n = builder.shl(builder.bitcast(t_value, integer), ir.Constant(integer, mantissa))
        bits = builder.add(n, builder.bitcast(p_value, integer))
        return builder.bitcast(bits, p_value.type)

    return p(p, p), codegen


@intrinsic
def address(typingctx, x):
    """Where the first number of an array lies in memory."""

    def codegen(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(array.data, context.get_value_type(types.intp))

    return types.intp(x), codegen


# 2 · Functions of one lane, for float32 and for float64

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)  # widen exactly to float64
INFINITY = np.float32(np.inf)
LOG2E = 1 / math.log(2)
LOG2E_32 = np.float32(LOG2E)
# Adding 1.5·2^23 (float64: 1.5·2^52) to x leaves round(x) in the lowest bits of the sum.
MAGIC_32, MAGIC_64 = np.float32(1.5 * 2**23), 1.5 * 2**52
# The exponents that float32 has; 2^HIGH is infinite.
LOW_32, HIGH_32 = np.float32(-126), np.float32(128)
# 2^r on |r| ≤ 1/2: degree 5, largest error 1.1e-7 (float64: Taylor to degree 13, 4e-18).
P1, P2, P3, P4, P5 = (
    np.float32(p) for p in (0.693146978, 0.240222421, 0.0555073374, 0.00967151264, 0.00132647272)
)
T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13 = (
    math.log(2) ** k / math.factorial(k) for k in range(1, 14)
)
# log(1 + e) = 2 artanh(s), s = e / (2 + e) ≤ 1/3: s² ≤ 1/9, seven terms leave 1.5e-8.
R3, R5, R7, R9, R11, R13 = (np.float32(1 / k) for k in (3, 5, 7, 9, 11, 13))


@njit(inline="always", fastmath=FLAGS)
def exp2_32(p, q):
    t = fma(p, q, MAGIC_32)
    r = fma(p, q, MAGIC_32 - t)
    return times_power_of_two(ONE + r * (P1 + r * (P2 + r * (P3 + r * (P4 + r * P5)))), t)


@njit(inline="always", fastmath=FLAGS)
def exp2_64(p, q):
    t = fma(p, q, MAGIC_64)
    r = fma(p, q, MAGIC_64 - t)
    high = T7 + r * (T8 + r * (T9 + r * (T10 + r * (T11 + r * (T12 + r * T13)))))
    low = 1.0 + r * (T1 + r * (T2 + r * (T3 + r * (T4 + r * (T5 + r * (T6 + r * high))))))
    return times_power_of_two(low, t)


@njit(inline="always", fastmath=FLAGS)
def exp2_any_32(p, q):
    x = p * q
    x = LOW_32 if x < LOW_32 else x  # in this order NaN stays NaN
    x = HIGH_32 if x > HIGH_32 else x
    return exp2_32(x, ONE) + (x - x)  # NaN, whatever its bits, stays NaN


@njit(inline="always", fastmath=FLAGS)
def exp2_any_64(p, q):
    x = p * q
    x = -1022.0 if x < -1022.0 else x
    x = 1024.0 if x > 1024.0 else x
    return exp2_64(x, 1.0) + (x - x)


@njit(inline="always", fastmath=FLAGS)
def softplus_32(x):
    """(softplus(x), its derivative)."""
    e = exp2_any_32(-abs(x), LOG2E_32)
    s = e / (TWO + e)
    z = s * s
    log1p = TWO * s * (ONE + z * (R3 + z * (R5 + z * (R7 + z * (R9 + z * (R11 + z * R13))))))
    return max(x, ZERO) + log1p, (ONE if x > ZERO else e) / (ONE + e)


@njit(inline="always")
def softplus_64(x):
    e = math.exp(-abs(x))
    return max(x, 0.0) + math.log1p(e), (1.0 if x > 0.0 else e) / (1.0 + e)


def _exp2(p, q): ...


def _exp2_any(p, q): ...


def _softplus(x): ...


@overload(_exp2, jit_options={"fastmath": FLAGS})
def _exp2_of_type(p, q):
    chosen = exp2_32 if p == types.float32 else exp2_64
    return lambda p, q: chosen(p, q)


@overload(_exp2_any, jit_options={"fastmath": FLAGS})
def _exp2_any_of_type(p, q):
    chosen = exp2_any_32 if p == types.float32 else exp2_any_64
    return lambda p, q: chosen(p, q)


@overload(_softplus, jit_options={"fastmath": FLAGS})
def _softplus_of_type(x):
    chosen = softplus_32 if x == types.float32 else softplus_64
    return lambda x: chosen(x)


@njit(inline="always", fastmath=FLAGS)
def exp2(p, q):
    """2^(p·q) while |p·q| < 126."""
    return _exp2(p, q)


@njit(inline="always", fastmath=FLAGS)
def exp2_any(p, q):
    """2^(p·q) whatever p·q: about 0 far below, infinite far above, NaN for NaN."""
    return _exp2_any(p, q)


# 3 · Scratch rows: between the strided arrays of the caller and the lanes of a task
#
# A step t of a chunk owns `stride` numbers of scratch, in rows of 64 lanes.


@njit(fastmath=FLAGS)
def load_rows(x, base, lane, place, pos, steps, width, rows, stride, row):
    """rows[t, row, j] = x[base + j·lane + pos[t]·place]; lanes beyond the width are not touched."""
    wide_vectors()
    if lane == 1:
        for t in range(steps):
            start = base + pos[t] * place
            source = x[start : start + width]
            target = rows[t * stride + row * TILE : t * stride + row * TILE + width]
            for j in range(width):
                target[j] = source[j]
    else:
        for j in range(width):
            for t in range(steps):
                rows[t * stride + row * TILE + j] = x[base + j * lane + pos[t] * place]


@njit(fastmath=FLAGS)
def store_rows(x, base, lane, place, pos, steps, width, rows, stride, row, add):
    """The way back; `add` adds to what another route has left there."""
    wide_vectors()
    if lane == 1:
        for t in range(steps):
            start = base + pos[t] * place
            target = x[start : start + width]
            source = rows[t * stride + row * TILE : t * stride + row * TILE + width]
            if add:
                for j in range(width):
                    target[j] += source[j]
            else:
                for j in range(width):
                    target[j] = source[j]
    else:
        for j in range(width):
            for t in range(steps):
                at = base + j * lane + pos[t] * place
                value = rows[t * stride + row * TILE + j]
                x[at] = x[at] + value if add else value


@njit
def load_weights(x, base, state, place, pos, steps, N, weights):
    """weights[t, n] = x[base + n·state + pos[t]·place]: B or C of a chunk."""
    for t in range(steps):
        for n in range(N):
            weights[t * N + n] = x[base + n * state + pos[t] * place]


@njit(fastmath=FLAGS)
def softplus_rows(rows, stride, steps, bias, softplus, slope):
    """Row 0: delta → Δ. Row `slope`, if not 0: dΔ/d delta."""
    wide_vectors()
    for t in range(steps):
        w = rows[t * stride : t * stride + stride]
        if softplus and slope > 0:
            derivative = w[slope * TILE : (slope + 1) * TILE]
            for j in range(TILE):
                w[j], derivative[j] = _softplus(w[j] + bias[j])
        elif softplus:
            for j in range(TILE):
                w[j], _ = _softplus(w[j] + bias[j])
        else:
            for j in range(TILE):
                w[j] += bias[j]


@njit(fastmath=FLAGS)
def exponents_are_small(rows, stride, steps, fastest, largest):
    """Whether Δ·max|A| < 126 in the whole chunk, so that no exponent leaves its range."""
    wide_vectors()
    for j in range(TILE):
        largest[j] = ZERO
    for t in range(steps):
        w = rows[t * stride : t * stride + TILE]
        for j in range(TILE):
            size = abs(w[j])
            largest[j] = size if size > largest[j] else largest[j]
    small = 0
    for j in range(TILE):
        small += largest[j] * fastest < 126
    return small == TILE


@njit
def copy_lanes(row, x, base, stride, width):
    """row[j] = x[base + j·stride], zero in the lanes beyond the width."""
    for j in range(width):
        row[j] = x[base + j * stride]
    for j in range(width, TILE):
        row[j] = ZERO


@njit
def aligned(size, like):
    """Scratch of `size` numbers that starts at a cache line, as vectors of 64 bytes want it."""
    memory = np.zeros(size + 16, like.dtype)
    skip = -(address(memory) // like.itemsize) % 16
    return memory[skip : skip + size]


# 4 · Forward. Rows of a step: 0 Δ, 1 Δu, 2 y. Rows of state n: 2n A, 2n + 1 h.

FORWARD = 3 * TILE


@njit(inline="always", fastmath=FLAGS)
def one_state(exp2, s, w, b, c):
    for j in range(TILE):
        h = exp2(s[j], w[j]) * s[j + TILE] + w[j + TILE] * b
        s[j + TILE] = h
        w[j + 2 * TILE] += c * h


@njit(inline="always", fastmath=FLAGS)
def four_states(exp2, s, w, b0, b1, b2, b3, c0, c1, c2, c3):
    for j in range(TILE):
        dt = w[j]
        input = w[j + TILE]
        h0 = exp2(s[j], dt) * s[j + TILE] + input * b0
        h1 = exp2(s[j + 2 * TILE], dt) * s[j + 3 * TILE] + input * b1
        h2 = exp2(s[j + 4 * TILE], dt) * s[j + 5 * TILE] + input * b2
        h3 = exp2(s[j + 6 * TILE], dt) * s[j + 7 * TILE] + input * b3
        s[j + TILE] = h0
        s[j + 3 * TILE] = h1
        s[j + 5 * TILE] = h2
        s[j + 7 * TILE] = h3
        w[j + 2 * TILE] = w[j + 2 * TILE] + c0 * h0 + c1 * h1 + c2 * h2 + c3 * h3


@njit(inline="always", fastmath=FLAGS)
def scan_with(exp2, states, rows, B, C, steps, N):
    """States outside, steps inside: the rows of four states stay in the nearest cache."""
    for n in range(0, N - 3, 4):
        s = states[2 * n * TILE : 2 * (n + 4) * TILE]
        for t in range(steps):
            i = t * N + n
            w = rows[t * FORWARD : (t + 1) * FORWARD]
            four_states(
                exp2, s, w, B[i], B[i + 1], B[i + 2], B[i + 3], C[i], C[i + 1], C[i + 2], C[i + 3]
            )
    for n in range(N - N % 4, N):
        s = states[2 * n * TILE : 2 * (n + 1) * TILE]
        for t in range(steps):
            one_state(exp2, s, rows[t * FORWARD : (t + 1) * FORWARD], B[t * N + n], C[t * N + n])


@njit(fastmath=FLAGS)
def scan_chunk(states, rows, B, C, steps, N):
    wide_vectors()
    scan_with(exp2, states, rows, B, C, steps, N)


@njit(fastmath=FLAGS)
def scan_any_chunk(states, rows, B, C, steps, N):
    wide_vectors()
    scan_with(exp2_any, states, rows, B, C, steps, N)


@njit(fastmath=FLAGS)
def start_rows(rows, steps, D):
    """u stands in row 1: row 2 becomes D u, row 1 Δu."""
    wide_vectors()
    for t in range(steps):
        w = rows[t * FORWARD : (t + 1) * FORWARD]
        for j in range(TILE):
            u = w[j + TILE]
            w[j + TILE] = w[j] * u
            w[j + 2 * TILE] = D[j] * u


@njit
def load_states(states, stride, A, channel, width, N):
    """Row `stride`·n of the states becomes A, the rows after it zero. Returns the largest |A|."""
    fastest = ZERO
    states[:] = ZERO
    for n in range(N):
        for j in range(width):
            a = A[(channel + j) * N + n]
            states[stride * n * TILE + j] = a
            fastest = max(fastest, abs(a) if a == a else INFINITY)
    return fastest


@njit
def forward_task(task, plan, pos, u, delta, A, B, C, D, bias, y, last, kept):
    """One tile of channels through the routes of a group, each from its first step to its last."""
    groups, routes, tiles, d, L, N, softplus = plan[0]
    us, ds, bs, cs, ys = plan[1], plan[2], plan[3], plan[4], plan[5]
    image, group, tile = task // (groups * tiles), task // tiles % groups, task % tiles
    first = tile * TILE
    width = min(TILE, d - first)
    states, rows = aligned(2 * N * TILE, u), aligned(CHUNK * FORWARD, u)
    B_rows, C_rows = aligned(CHUNK * N, u), aligned(CHUNK * N, u)
    bias_row, D_row, largest = aligned(TILE, u), aligned(TILE, u), aligned(TILE, u)
    for route in range(routes):
        k = group + route * groups
        channel = k * d + first
        copy_lanes(bias_row, bias, channel, 1, width)
        copy_lanes(D_row, D, channel, 1, width)
        fastest = load_states(states, 2, A, channel, width, N)
        for start in range(0, L, CHUNK):
            steps = min(CHUNK, L - start)
            at = pos[k * L + start : k * L + start + steps]
            if kept.size:
                chunk = (image * (L // CHUNK + 2) + start // CHUNK) * groups * routes + k
                for n in range(N):
                    row = states[(2 * n + 1) * TILE : (2 * n + 1) * TILE + width]
                    kept[(chunk * N + n) * d + first : (chunk * N + n) * d + first + width] = row
            base = image * ds[0] + k * ds[1] + first * ds[2]
            load_rows(delta, base, ds[2], ds[3], at, steps, width, rows, FORWARD, 0)
            base = image * us[0] + k * us[1] + first * us[2]
            load_rows(u, base, us[2], us[3], at, steps, width, rows, FORWARD, 1)
            load_weights(B, image * bs[0] + k * bs[1], bs[2], bs[3], at, steps, N, B_rows)
            load_weights(C, image * cs[0] + k * cs[1], cs[2], cs[3], at, steps, N, C_rows)
            softplus_rows(rows, FORWARD, steps, bias_row, softplus, 0)
            start_rows(rows, steps, D_row)
            if exponents_are_small(rows, FORWARD, steps, fastest, largest):
                scan_chunk(states, rows, B_rows, C_rows, steps, N)
            else:
                scan_any_chunk(states, rows, B_rows, C_rows, steps, N)
            base = image * ys[0] + group * ys[1] + first * ys[2]
            store_rows(y, base, ys[2], ys[3], at, steps, width, rows, FORWARD, 2, route > 0)
        for n in range(N):
            for j in range(width):
                at_state = ((image * groups * routes + k) * d + first + j) * N + n
                last[at_state] = states[(2 * n + 1) * TILE + j]


# Parallel loops take no tuple of arguments, so these are spelled out.
@compiled(parallel=True)
def forward_parallel(tasks, plan, pos, u, delta, A, B, C, D, bias, y, last, kept):
    for task in prange(tasks):
        forward_task(task, plan, pos, u, delta, A, B, C, D, bias, y, last, kept)


@compiled()
def forward_serial(tasks, *arguments):
    for task in range(tasks):
        forward_task(task, *arguments)


# 5 · Backward. Rows of a step: 0 Δ, 1 Δu, 2 dy, 3 dΔ, 4 d(Δu), 5 u, 6 dΔ/d delta.
# Rows of state n: 3n A, 3n + 1 g, 3n + 2 dA. History of a step, for m states: m rows of h before
# it, m rows of its Ā; h after it stands in the next step.

BACKWARD = 7 * TILE


@njit(inline="always", fastmath=FLAGS)
def one_state_again(exp2, history, a, w, b):
    for j in range(TILE):
        decay = exp2(a[j], w[j])
        history[j + TILE] = decay
        history[j + 2 * TILE] = decay * history[j] + w[j + TILE] * b


@njit(inline="always", fastmath=FLAGS)
def four_states_again(exp2, history, a, w, b0, b1, b2, b3):
    for j in range(TILE):
        dt = w[j]
        input = w[j + TILE]
        decay0 = exp2(a[j], dt)
        decay1 = exp2(a[j + 3 * TILE], dt)
        decay2 = exp2(a[j + 6 * TILE], dt)
        decay3 = exp2(a[j + 9 * TILE], dt)
        h0 = decay0 * history[j] + input * b0
        h1 = decay1 * history[j + TILE] + input * b1
        h2 = decay2 * history[j + 2 * TILE] + input * b2
        h3 = decay3 * history[j + 3 * TILE] + input * b3
        history[j + 4 * TILE] = decay0
        history[j + 5 * TILE] = decay1
        history[j + 6 * TILE] = decay2
        history[j + 7 * TILE] = decay3
        history[j + 8 * TILE] = h0
        history[j + 9 * TILE] = h1
        history[j + 10 * TILE] = h2
        history[j + 11 * TILE] = h3


@njit(inline="always", fastmath=FLAGS)
def again_with(exp2, history, states, rows, B, steps, N, n, count):
    """The chunk once more for `count` states from n on, one or four, keeping its history."""
    size = 2 * count * TILE
    a = states[3 * n * TILE : 3 * (n + count) * TILE]
    for t in range(steps):
        i = t * N + n
        w = rows[t * BACKWARD : (t + 1) * BACKWARD]
        h = history[t * size : (t + 2) * size]
        if count == 4:
            four_states_again(exp2, h, a, w, B[i], B[i + 1], B[i + 2], B[i + 3])
        else:
            one_state_again(exp2, h, a, w, B[i])


@njit(fastmath=FLAGS)
def again_chunk(history, states, rows, B, steps, N, n, count):
    wide_vectors()
    again_with(exp2, history, states, rows, B, steps, N, n, count)


@njit(fastmath=FLAGS)
def again_any_chunk(history, states, rows, B, steps, N, n, count):
    wide_vectors()
    again_with(exp2_any, history, states, rows, B, steps, N, n, count)


@njit(inline="always", fastmath=SUM_FLAGS)
def one_state_back(history, s, w, b, c):
    dB = dC = ZERO * b
    for j in range(TILE):
        dt, input, dy = w[j], w[j + TILE], w[j + 2 * TILE]
        g = s[j + TILE] + c * dy
        dB += g * input
        dC += dy * history[j + 2 * TILE]
        g_before = g * history[j + TILE]
        through_decay = g_before * history[j]
        s[j + TILE] = g_before
        s[j + 2 * TILE] += through_decay * dt
        w[j + 3 * TILE] += through_decay * s[j]
        w[j + 4 * TILE] += g * b
    return dB, dC


@njit(inline="always", fastmath=SUM_FLAGS)
def four_states_back(history, s, w, b0, b1, b2, b3, c0, c1, c2, c3):
    dB0 = dB1 = dB2 = dB3 = dC0 = dC1 = dC2 = dC3 = ZERO * b0
    for j in range(TILE):
        dt, input, dy = w[j], w[j + TILE], w[j + 2 * TILE]
        g0 = s[j + TILE] + c0 * dy
        g1 = s[j + 4 * TILE] + c1 * dy
        g2 = s[j + 7 * TILE] + c2 * dy
        g3 = s[j + 10 * TILE] + c3 * dy
        dB0 += g0 * input
        dB1 += g1 * input
        dB2 += g2 * input
        dB3 += g3 * input
        dC0 += dy * history[j + 8 * TILE]
        dC1 += dy * history[j + 9 * TILE]
        dC2 += dy * history[j + 10 * TILE]
        dC3 += dy * history[j + 11 * TILE]
        w[j + 4 * TILE] += g0 * b0 + g1 * b1 + g2 * b2 + g3 * b3
        g0 *= history[j + 4 * TILE]
        g1 *= history[j + 5 * TILE]
        g2 *= history[j + 6 * TILE]
        g3 *= history[j + 7 * TILE]
        s[j + TILE] = g0
        s[j + 4 * TILE] = g1
        s[j + 7 * TILE] = g2
        s[j + 10 * TILE] = g3
        g0 *= history[j]  # from here on g Ā h, what reaches the exponent ΔA
        g1 *= history[j + TILE]
        g2 *= history[j + 2 * TILE]
        g3 *= history[j + 3 * TILE]
        s[j + 2 * TILE] += g0 * dt
        s[j + 5 * TILE] += g1 * dt
        s[j + 8 * TILE] += g2 * dt
        s[j + 11 * TILE] += g3 * dt
        w[j + 3 * TILE] += (
            g0 * s[j] + g1 * s[j + 3 * TILE] + g2 * s[j + 6 * TILE] + g3 * s[j + 9 * TILE]
        )
    return dB0, dB1, dB2, dB3, dC0, dC1, dC2, dC3


@njit(fastmath=SUM_FLAGS)
def back_chunk(history, states, rows, B, C, dB, dC, steps, N, n, count):
    """From the last step of the chunk to its first, for `count` states from n on."""
    wide_vectors()
    size = 2 * count * TILE
    s = states[3 * n * TILE : 3 * (n + count) * TILE]
    for t in range(steps - 1, -1, -1):
        i = t * N + n
        w = rows[t * BACKWARD : (t + 1) * BACKWARD]
        h = history[t * size : (t + 2) * size]
        if count == 4:
            dB[i], dB[i + 1], dB[i + 2], dB[i + 3], dC[i], dC[i + 1], dC[i + 2], dC[i + 3] = (
                four_states_back(
                    h, s, w, B[i], B[i + 1], B[i + 2], B[i + 3], C[i], C[i + 1], C[i + 2], C[i + 3]
                )
            )
        else:
            dB[i], dC[i] = one_state_back(h, s, w, B[i], C[i])


@njit(fastmath=FLAGS)
def start_back_rows(rows, steps):
    wide_vectors()
    for t in range(steps):
        w = rows[t * BACKWARD : (t + 1) * BACKWARD]
        for j in range(TILE):
            w[j + TILE] = w[j] * w[j + 5 * TILE]
            w[j + 3 * TILE] = ZERO
            w[j + 4 * TILE] = ZERO


@njit(fastmath=FLAGS)
def finish_back_rows(rows, steps, softplus, D, ln2, dD, dbias):
    """Row 3 becomes the gradient of delta, row 4 that of u; A was in units of log2(e)."""
    wide_vectors()
    for t in range(steps):
        w = rows[t * BACKWARD : (t + 1) * BACKWARD]
        for j in range(TILE):
            dy, d_input, u = w[j + 2 * TILE], w[j + 4 * TILE], w[j + 5 * TILE]
            ddelta = w[j + 3 * TILE] * ln2 + d_input * u
            if softplus:
                ddelta *= w[j + 6 * TILE]
            w[j + 3 * TILE] = ddelta
            w[j + 4 * TILE] = d_input * w[j] + D[j] * dy
            dbias[j] += ddelta
            dD[j] += dy * u


@njit
def backward_task(
    task, plan, pos, u, delta, A, B, C, D, bias, ln2, dy, dlast, kept,
    du, ddelta, dA, dB, dC, dD, dbias,
):  # fmt: skip
    """What forward_task read, walked backwards.

    dB, dC are (tile, image, route, place, state), contiguous; dA (image, channel, state); dD and
    dbias (image, channel): one writer each, summed by the caller.
    """
    groups, routes, tiles, d, L, N, softplus = plan[0]
    us, ds, bs, cs, ys = plan[1], plan[2], plan[3], plan[4], plan[5]
    dus, dds = plan[6], plan[7]
    image, group, tile = task // (groups * tiles), task // tiles % groups, task % tiles
    images = dD.size // (groups * routes * d)
    first = tile * TILE
    width = min(TILE, d - first)
    states, rows = aligned(3 * N * TILE, u), aligned(CHUNK * BACKWARD, u)
    history = aligned((CHUNK + 1) * 8 * TILE, u)
    B_rows, C_rows = aligned(CHUNK * N, u), aligned(CHUNK * N, u)
    dB_rows, dC_rows = aligned(CHUNK * N, u), aligned(CHUNK * N, u)
    bias_row, D_row, largest = aligned(TILE, u), aligned(TILE, u), aligned(TILE, u)
    dbias_row, dD_row = aligned(TILE, u), aligned(TILE, u)
    for route in range(routes):
        k = group + route * groups
        channel = k * d + first
        image_channel = image * groups * routes * d + channel
        copy_lanes(bias_row, bias, channel, 1, width)
        copy_lanes(D_row, D, channel, 1, width)
        dbias_row[:] = ZERO
        dD_row[:] = ZERO
        fastest = load_states(states, 3, A, channel, width, N)
        for n in range(N):
            row = states[(3 * n + 1) * TILE : (3 * n + 2) * TILE]
            copy_lanes(row, dlast, image_channel * N + n, N, width)
        for start in range((L - 1) // CHUNK * CHUNK, -1, -CHUNK):
            steps = min(CHUNK, L - start)
            at = pos[k * L + start : k * L + start + steps]
            base = image * ds[0] + k * ds[1] + first * ds[2]
            load_rows(delta, base, ds[2], ds[3], at, steps, width, rows, BACKWARD, 0)
            base = image * us[0] + k * us[1] + first * us[2]
            load_rows(u, base, us[2], us[3], at, steps, width, rows, BACKWARD, 5)
            base = image * ys[0] + group * ys[1] + first * ys[2]
            load_rows(dy, base, ys[2], ys[3], at, steps, width, rows, BACKWARD, 2)
            load_weights(B, image * bs[0] + k * bs[1], bs[2], bs[3], at, steps, N, B_rows)
            load_weights(C, image * cs[0] + k * cs[1], cs[2], cs[3], at, steps, N, C_rows)
            softplus_rows(rows, BACKWARD, steps, bias_row, softplus, 6)
            start_back_rows(rows, steps)
            small = exponents_are_small(rows, BACKWARD, steps, fastest, largest)
            chunk = (image * (L // CHUNK + 2) + start // CHUNK) * groups * routes + k
            n = 0
            while n < N:
                count = 4 if n + 4 <= N else 1
                for m in range(count):
                    row = history[m * TILE : (m + 1) * TILE]
                    copy_lanes(row, kept, (chunk * N + n + m) * d + first, 1, width)
                if small:
                    again_chunk(history, states, rows, B_rows, steps, N, n, count)
                else:
                    again_any_chunk(history, states, rows, B_rows, steps, N, n, count)
                back_chunk(
                    history, states, rows, B_rows, C_rows, dB_rows, dC_rows, steps, N, n, count
                )
                n += count
            finish_back_rows(rows, steps, softplus, D_row, ln2, dD_row, dbias_row)
            base = image * dds[0] + k * dds[1] + first * dds[2]
            store_rows(ddelta, base, dds[2], dds[3], at, steps, width, rows, BACKWARD, 3, False)
            base = image * dus[0] + group * dus[1] + first * dus[2]
            store_rows(du, base, dus[2], dus[3], at, steps, width, rows, BACKWARD, 4, route > 0)
            base = ((tile * images + image) * groups * routes + k) * L
            for t in range(steps):
                for n in range(N):
                    dB[(base + at[t]) * N + n] = dB_rows[t * N + n]
                    dC[(base + at[t]) * N + n] = dC_rows[t * N + n]
        for j in range(width):
            dbias[image_channel + j] = dbias_row[j]
            dD[image_channel + j] = dD_row[j]
            for n in range(N):
                dA[(image_channel + j) * N + n] = states[(3 * n + 2) * TILE + j]


@compiled(parallel=True)
def backward_parallel(
    tasks, plan, pos, u, delta, A, B, C, D, bias, ln2, dy, dlast, kept,
    du, ddelta, dA, dB, dC, dD, dbias,
):  # fmt: skip
    for task in prange(tasks):
        backward_task(
            task, plan, pos, u, delta, A, B, C, D, bias, ln2, dy, dlast, kept,
            du, ddelta, dA, dB, dC, dD, dbias,
        )  # fmt: skip


@compiled()
def backward_serial(tasks, *arguments):
    for task in range(tasks):
        backward_task(task, *arguments)


# 6 · Threads
#
# Numba's OpenMP layer runs well beside PyTorch's OpenMP; its workqueue layer does not, and is not
# safe when two Python threads enter it, hence the lock. A forked child must not enter OpenMP at
# all (the library would kill it), so there the tasks run one after another.

_one_at_a_time = threading.Lock()

if numba.config.THREADING_LAYER == "default":
    try:
        from numba.np.ufunc import omppool  # noqa: F401

        numba.config.THREADING_LAYER = "omp"
    except ImportError:  # no OpenMP library on this machine: Numba takes what there is
        pass


def launch(parallel, serial, tasks, arguments) -> None:
    """Run the tasks on as many threads as PyTorch uses, and leave Numba's own setting alone."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, tasks)
    if tasks == 0:
        return
    if threads < 2 or is_forked():
        serial(tasks, *arguments)
        return
    with _one_at_a_time:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            parallel(tasks, *arguments)
        finally:
            numba.set_num_threads(before)


# 7 · From tensors to numbers


def numbers(x: Tensor) -> np.ndarray:
    """The stretch of memory that x lives in, flat; its strides say how to read it. No copy."""
    if x.numel() == 0:
        return x.detach().reshape(-1).numpy()
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.detach().as_strided((span,), (1,)).numpy()


def plan_of(groups, routes, d, L, N, softplus, *strides) -> np.ndarray:
    """Sizes, then the strides of u, delta, B, C, y (and of the gradients of u and delta).

    Strides are those of image, route, channel or state, and place; for y and the gradient of u
    of image, group, channel and place, since the routes of a group are summed.
    """
    plan = np.zeros((1 + len(strides), 7), np.int64)
    plan[0] = groups, routes, -(-d // TILE), d, L, N, softplus
    plan[1:, :4] = strides
    return plan


def strides_in_groups(x: Tensor, K: int) -> tuple[int, ...]:
    """Of (B, K·d, L): strides of image, group, channel, place."""
    image, channel, place = x.stride()
    return image, x.shape[1] // K * channel, channel, place


def or_zeros(x: Tensor | None, channels: int, like: Tensor) -> np.ndarray:
    return numbers(like.new_zeros(channels) if x is None else x.contiguous())


def room_for_states(like: Tensor, batch, K, d, N, L) -> Tensor:
    """For h before every chunk, (B, chunks, K, N, d), and zeros for one or two chunks more.

    There are at least 2: torch.compile would take a size of 1 for a constant, and L ≤ 32 for a
    rule.
    """
    kept = like.new_empty(batch, L // CHUNK + 2, K, N, d)
    kept[:, -(-L // CHUNK) :] = 0
    return kept


def scan_numba(
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

    float32 or float64, all tensors alike, any strides. Channels-last (stride 1 along K·d) is the
    fastest: other layouts are turned over while they are read.
    """
    (batch, channels, L), K, N = u.shape, B.shape[1], A.shape[1]
    d = channels // K
    y = torch.empty_like(u)
    last = u.new_empty(batch, channels, N)
    kept = room_for_states(u, batch, K, d, N, L) if keep else u.new_empty(0)
    strides = (
        strides_in_groups(u, K),
        strides_in_groups(delta, K),
        B.stride(),
        C.stride(),
        strides_in_groups(y, K),
    )
    arguments = (
        plan_of(K, 1, d, L, N, delta_softplus, *strides),
        np.tile(np.arange(L), K),
        *(numbers(x) for x in (u, delta, (A * LOG2E).contiguous(), B, C)),
        or_zeros(D, channels, u),
        or_zeros(delta_bias, channels, u),
        *(numbers(x) for x in (y, last)),
        kept.numpy().reshape(-1),
    )
    launch(forward_parallel, forward_serial, batch * K * -(-d // TILE), arguments)
    return y, last, kept


def scan_numba_backward(
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
    their tensors; those of absent D and delta_bias are to be ignored.
    """
    (batch, channels, L), K, N = u.shape, B.shape[1], A.shape[1]
    d = channels // K
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dA = u.new_empty(batch, channels, N)
    tiles = -(-d // TILE)
    dB, dC = u.new_empty(2, tiles, batch, K, L, N)
    dD, dbias = u.new_empty(2, batch, channels)
    strides = (
        strides_in_groups(u, K),
        strides_in_groups(delta, K),
        B.stride(),
        C.stride(),
        *(strides_in_groups(x, K) for x in (dy, du, ddelta)),
    )
    arguments = (
        plan_of(K, 1, d, L, N, delta_softplus, *strides),
        np.tile(np.arange(L), K),
        *(numbers(x) for x in (u, delta, (A * LOG2E).contiguous(), B, C)),
        or_zeros(D, channels, u),
        or_zeros(delta_bias, channels, u),
        numbers(u.new_tensor(math.log(2)))[0],
        *(numbers(x) for x in (dy, dlast.contiguous(), kept, du, ddelta, dA, dB, dC, dD, dbias)),
    )
    launch(backward_parallel, backward_serial, batch * K * tiles, arguments)
    dB, dC = (x.sum(0).transpose(-1, -2) for x in (dB, dC))  # (B, K, N, L)
    return du, ddelta, dA.sum(0), dB, dC, dD.sum(0), dbias.sum(0)

"""The selective scan on a CPU, compiled by Numba (lesson 07): read scan_naive.py first.

The mathematics and shapes of `scan_naive` in another order of work:

    A tile is 64 channels of one group of one image. The channels are the lanes of the vector unit:
    the state of a lane needs no other lane, B_t[n] and C_t[n] are scalars for the whole tile, and
    the exponential is a polynomial of the lane.
    A task carries a tile, or up to 8 neighbours, through the whole sequence, in chunks of 32 steps
    whose scratch rows stay in the nearest cache. For each tile of a chunk:
        start   delta → Δ (softplus), u → Δu, and y starts as D u
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
MOST_TILES = 8  # that a task takes along together: their states fit a core's second cache
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


# 1 · Instructions that Python has no word for


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
def larger(typingctx, a, b):
    """The larger of two, and the other one if one is NaN.

    Of `if` LLVM would make a store under a mask, which CPUs with AVX2 alone do slowly.
    """

    def codegen(context, builder, signature, arguments):
        kind = arguments[0].type
        function = builder.module.declare_intrinsic(
            "llvm.maxnum", [kind], ir.FunctionType(kind, [kind] * 2)
        )
        return builder.call(function, arguments)

    return a(a, a), codegen


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


@intrinsic
def transpose_block(typingctx, x, i, x_stride, z, k, z_stride):
    """z[k + b·z_stride + a] = x[i + a·x_stride + b] for a, b < 8, within the registers."""

    def codegen(context, builder, signature, arguments):
        x, i, x_stride, z, k, z_stride = arguments
        element = context.get_data_type(signature.args[0].dtype)
        vector = ir.VectorType(element, 8)

        def place(array, number, start, stride, row):
            data = context.make_array(signature.args[number])(context, builder, array).data
            offset = builder.add(start, builder.mul(stride, ir.Constant(stride.type, row)))
            return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())

        def zip_halves(v, w, half):
            pairs = [lane for j in range(4 * half, 4 * half + 4) for lane in (j, j + 8)]
            order = ir.Constant(ir.VectorType(ir.IntType(32), 8), pairs)
            return builder.shuffle_vector(v, w, order)

        alone = signature.args[0].dtype.bitwidth // 8  # the alignment of a number, not a vector
        rows = [builder.load(place(x, 0, i, x_stride, r), align=alone) for r in range(8)]
        for _ in range(3):  # three times the perfect shuffle of cards: rows become columns
            rows = [zip_halves(rows[m // 2], rows[m // 2 + 4], m % 2) for m in range(8)]
        for r in range(8):
            builder.store(rows[r], place(z, 3, k, z_stride, r), align=alone)
        return context.get_dummy_value()

    return types.void(x, i, x_stride, z, k, z_stride), codegen


# 2 · Functions of one lane, for float32 and for float64

ZERO, ONE = np.float32(0), np.float32(1)  # widen exactly to float64
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
# log(1 + e) / e on 0 ≤ e ≤ 1, lowest power first: largest error 8.5e-8 of the value (3.5e-8 before
# the coefficients are rounded).
LOG1P = (0.99999996523, -0.49999435979, 0.33317937848, -0.24833964703, 0.19071364726,
         -0.13590688440, 0.07738152311, -0.02899231386, 0.00510588915)  # fmt: skip
Q0, Q1, Q2, Q3, Q4, Q5, Q6, Q7, Q8 = (np.float32(q) for q in LOG1P)


@njit(inline="always", fastmath=FLAGS)
def exp2_32(p, q):
    t = fma(p, q, MAGIC_32)
    r = fma(p, q, MAGIC_32 - t)
    return times_power_of_two(ONE + r * (P1 + r * (P2 + r * (P3 + r * (P4 + r * P5)))), t)


@njit(inline="always", fastmath=FLAGS)
def four_exp2_32(p0, p1, p2, p3, q):
    """2^(p·q) of four p, side by side: while a step waits for the one before, the others go on."""
    t0, t1, t2, t3 = (
        fma(p0, q, MAGIC_32), fma(p1, q, MAGIC_32), fma(p2, q, MAGIC_32), fma(p3, q, MAGIC_32)
    )  # fmt: skip
    r0, r1, r2, r3 = MAGIC_32 - t0, MAGIC_32 - t1, MAGIC_32 - t2, MAGIC_32 - t3
    r0, r1, r2, r3 = fma(p0, q, r0), fma(p1, q, r1), fma(p2, q, r2), fma(p3, q, r3)
    p0, p1, p2, p3 = P4 + r0 * P5, P4 + r1 * P5, P4 + r2 * P5, P4 + r3 * P5
    p0, p1, p2, p3 = P3 + r0 * p0, P3 + r1 * p1, P3 + r2 * p2, P3 + r3 * p3
    p0, p1, p2, p3 = P2 + r0 * p0, P2 + r1 * p1, P2 + r2 * p2, P2 + r3 * p3
    p0, p1, p2, p3 = P1 + r0 * p0, P1 + r1 * p1, P1 + r2 * p2, P1 + r3 * p3
    p0, p1, p2, p3 = ONE + r0 * p0, ONE + r1 * p1, ONE + r2 * p2, ONE + r3 * p3
    return (
        times_power_of_two(p0, t0), times_power_of_two(p1, t1),
        times_power_of_two(p2, t2), times_power_of_two(p3, t3),
    )  # fmt: skip


@njit(inline="always", fastmath=FLAGS)
def exp2_64(p, q):
    t = fma(p, q, MAGIC_64)
    r = fma(p, q, MAGIC_64 - t)
    high = T7 + r * (T8 + r * (T9 + r * (T10 + r * (T11 + r * (T12 + r * T13)))))
    low = 1.0 + r * (T1 + r * (T2 + r * (T3 + r * (T4 + r * (T5 + r * (T6 + r * high))))))
    return times_power_of_two(low, t)


@njit(inline="always", fastmath=FLAGS)
def four_exp2_64(p0, p1, p2, p3, q):
    return exp2_64(p0, q), exp2_64(p1, q), exp2_64(p2, q), exp2_64(p3, q)


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
def small_part_32(x):
    """e^{-|x|}, of which softplus(x) = max(x, 0) + log(1 + e^{-|x|}) is made."""
    return exp2_any_32(-abs(x), LOG2E_32)


@njit(inline="always", fastmath=FLAGS)
def softplus_32(x, e):
    """(softplus(x), its derivative), with e = small_part(x)."""
    square = e * e
    fourth = square * square  # in three parts that do not wait for each other
    low, high = (Q0 + e * Q1) + square * (Q2 + e * Q3), (Q4 + e * Q5) + square * (Q6 + e * Q7)
    log1p = e * (low + fourth * (high + fourth * Q8))
    return max(x, ZERO) + log1p, (ONE if x > ZERO else e) / (ONE + e)


@njit(inline="always")
def small_part_64(x):
    return math.exp(-abs(x))


@njit(inline="always")
def softplus_64(x, e):
    return max(x, 0.0) + math.log1p(e), (1.0 if x > 0.0 else e) / (1.0 + e)


def _exp2(p, q): ...


def _four_exp2(p0, p1, p2, p3, q): ...


def _exp2_any(p, q): ...


def _small_part(x): ...


def _softplus(x, e): ...


@overload(_exp2, jit_options={"fastmath": FLAGS})
def _exp2_of_type(p, q):
    chosen = exp2_32 if p == types.float32 else exp2_64
    return lambda p, q: chosen(p, q)


@overload(_four_exp2, jit_options={"fastmath": FLAGS})
def _four_exp2_of_type(p0, p1, p2, p3, q):
    chosen = four_exp2_32 if p0 == types.float32 else four_exp2_64
    return lambda p0, p1, p2, p3, q: chosen(p0, p1, p2, p3, q)


@overload(_exp2_any, jit_options={"fastmath": FLAGS})
def _exp2_any_of_type(p, q):
    chosen = exp2_any_32 if p == types.float32 else exp2_any_64
    return lambda p, q: chosen(p, q)


@overload(_small_part, jit_options={"fastmath": FLAGS})
def _small_part_of_type(x):
    chosen = small_part_32 if x == types.float32 else small_part_64
    return lambda x: chosen(x)


@overload(_softplus, jit_options={"fastmath": FLAGS})
def _softplus_of_type(x, e):
    chosen = softplus_32 if x == types.float32 else softplus_64
    return lambda x, e: chosen(x, e)


@njit(inline="always", fastmath=FLAGS)
def small_part(x):
    """e^{-|x|}."""
    return _small_part(x)


@njit(inline="always", fastmath=FLAGS)
def softplus(x, e):
    """(softplus(x), its derivative), with e = small_part(x)."""
    return _softplus(x, e)


@njit(inline="always", fastmath=FLAGS)
def nothing(x):
    return ZERO * x


@njit(inline="always", fastmath=FLAGS)
def as_it_is(x, e):
    """(x, its derivative)."""
    return x, ONE


@njit(inline="always", fastmath=FLAGS)
def exp2(p, q):
    """2^(p·q) while |p·q| < 126."""
    return _exp2(p, q)


@njit(inline="always", fastmath=FLAGS)
def exp2_any(p, q):
    """2^(p·q) whatever p·q: about 0 far below, infinite far above, NaN for NaN."""
    return _exp2_any(p, q)


@njit(inline="always", fastmath=FLAGS)
def four_exp2(p0, p1, p2, p3, q):
    """exp2 of four p."""
    return _four_exp2(p0, p1, p2, p3, q)


@njit(inline="always", fastmath=FLAGS)
def four_exp2_any(p0, p1, p2, p3, q):
    """exp2_any of four p."""
    return exp2_any(p0, q), exp2_any(p1, q), exp2_any(p2, q), exp2_any(p3, q)


# 3 · Scratch rows: between the strided arrays of the caller and the lanes of a task
#
# A step t of a chunk owns some rows of scratch, of 64 lanes each.


@njit
def copy_lanes(row, x, start, width):
    """row[j] = x[start + j], zero in the lanes beyond the width."""
    source = x[start : start + width]
    for j in range(width):
        row[j] = source[j]
    for j in range(width, TILE):
        row[j] = ZERO


@njit
def in_order(at, steps):
    """Whether the steps stand at neighbouring places."""
    misplaced = 0
    for t in range(1, steps):
        misplaced += at[t] != at[0] + t
    return misplaced == 0


@njit(fastmath=FLAGS)
def load_rows(x, base, lane, place, at, steps, width, rows):
    """rows[t, j] = x[base + j·lane + at[t]·place], zero in the lanes beyond the width."""
    if lane == 1:
        for t in range(steps):
            start = base + at[t] * place
            copy_lanes(rows[t * TILE : (t + 1) * TILE], x, start, width)
        return
    blocks = steps // 8 * 8 if place == 1 and in_order(at, steps) else 0
    if blocks:
        for j in range(0, width - 7, 8):
            for t in range(0, blocks, 8):
                transpose_block(x, base + j * lane + at[t], lane, rows, t * TILE + j, TILE)
    for t in range(steps):
        first = width // 8 * 8 if t < blocks else 0
        for j in range(first, width):
            rows[t * TILE + j] = x[base + j * lane + at[t] * place]
        for j in range(width, TILE):
            rows[t * TILE + j] = ZERO


@njit
def rows_of(x, base, lane, place, at, steps, width, copy, counted):
    """(x, base, place, at) of a tile's rows: where they lie if 64 lanes lie together, or a copy."""
    if lane == 1 and width == TILE:
        return x, base, place, at
    load_rows(x, base, lane, place, at, steps, width, copy)
    return copy, 0, TILE, counted


@njit(inline="always", fastmath=FLAGS)
def add_four_products(row, w, x0, x1, x2, x3):
    for j in range(TILE):
        row[j] = row[j] + x0 * w[j] + x1 * w[j + TILE] + x2 * w[j + 2 * TILE] + x3 * w[j + 3 * TILE]


@njit(inline="always", fastmath=FLAGS)
def add_product(row, w, x):
    for j in range(TILE):
        row[j] += x * w[j]


@njit(fastmath=FLAGS)
def project_rows(x, base, rank, place, at, steps, R, weight, rows):
    """rows[t, j] = Σ_r weight[r, j] · x[base + r·rank + at[t]·place]."""
    wide_vectors()
    for t in range(steps):
        row = rows[t * TILE : (t + 1) * TILE]
        for j in range(TILE):
            row[j] = ZERO
        i = base + at[t] * place
        for r in range(0, R - 3, 4):
            w = weight[r * TILE : (r + 4) * TILE]
            i0 = i + r * rank
            add_four_products(row, w, x[i0], x[i0 + rank], x[i0 + 2 * rank], x[i0 + 3 * rank])
        for r in range(R - R % 4, R):
            add_product(row, weight[r * TILE : (r + 1) * TILE], x[i + r * rank])


@njit
def steps_of(x, base, lane, place, at, steps, channel, width, weight, R, copy, counted):
    """As rows_of, for delta: of this tile's channels, or made for them from R numbers a step."""
    if R == 0:
        return rows_of(x, base + channel * lane, lane, place, at, steps, width, copy, counted)
    project_rows(x, base, lane, place, at, steps, R, weight, copy)
    return copy, 0, TILE, counted


@njit(fastmath=FLAGS)
def store_rows(x, base, lane, place, at, steps, width, rows, stride, row, add):
    """x[base + j·lane + at[t]·place] = rows[t, row, j]; or += what another route has left there."""
    wide_vectors()
    if lane == 1:
        for t in range(steps):
            start = base + at[t] * place
            target = x[start : start + width]
            source = rows[t * stride + row * TILE : t * stride + row * TILE + width]
            if add:
                for j in range(width):
                    target[j] += source[j]
            else:
                for j in range(width):
                    target[j] = source[j]
        return
    blocks = steps // 8 * 8 if place == 1 and not add and in_order(at, steps) else 0
    if blocks:
        for j in range(0, width - 7, 8):
            for t in range(0, blocks, 8):
                from_row = t * stride + row * TILE + j
                transpose_block(rows, from_row, stride, x, base + j * lane + at[t], lane)
    for t in range(steps):
        for j in range(width // 8 * 8 if t < blocks else 0, width):
            to = base + j * lane + at[t] * place
            value = rows[t * stride + row * TILE + j]
            x[to] = x[to] + value if add else value


@njit
def load_weights(x, base, state, place, at, steps, N, weights):
    """weights[t, n] = x[base + n·state + at[t]·place]: B or C of a chunk."""
    for t in range(steps):
        for n in range(N):
            weights[t * N + n] = x[base + n * state + at[t] * place]


@njit
def count():
    """0, 1, 2, … : the places of rows that were copied."""
    return np.arange(CHUNK)


@njit
def aligned(size, like):
    """Scratch of `size` numbers that starts at a cache line, as vectors of 64 bytes want it."""
    memory = np.zeros(size + 16, like.dtype)
    skip = -(address(memory) // like.itemsize) % 16
    return memory[skip : skip + size]


# 4 · Forward. Rows of a step: 0 Δ, 1 Δu, 2 y. Rows of a tile: for every state A and h; then
# 0 the bias, 1 D, 2 the largest |A| of a channel, 3 the largest Δ of a channel in this chunk; then
# R rows of the weight that makes delta of R numbers a step.

FORWARD, FIXED = 3 * TILE, 4 * TILE


@njit(inline="always", fastmath=FLAGS)
def one_state(exp2, s, w, b, c):
    for j in range(TILE):
        h = exp2(s[j], w[j]) * s[j + TILE] + w[j + TILE] * b
        s[j + TILE] = h
        w[j + 2 * TILE] += c * h


@njit(inline="always", fastmath=FLAGS)
def four_states(four_exp2, s, w, b0, b1, b2, b3, c0, c1, c2, c3):
    for j in range(TILE):
        dt = w[j]
        input = w[j + TILE]
        e0, e1, e2, e3 = four_exp2(s[j], s[j + 2 * TILE], s[j + 4 * TILE], s[j + 6 * TILE], dt)
        h0 = e0 * s[j + TILE] + input * b0
        h1 = e1 * s[j + 3 * TILE] + input * b1
        h2 = e2 * s[j + 5 * TILE] + input * b2
        h3 = e3 * s[j + 7 * TILE] + input * b3
        s[j + TILE] = h0
        s[j + 3 * TILE] = h1
        s[j + 5 * TILE] = h2
        s[j + 7 * TILE] = h3
        w[j + 2 * TILE] = w[j + 2 * TILE] + c0 * h0 + c1 * h1 + c2 * h2 + c3 * h3


@njit(inline="always", fastmath=FLAGS)
def scan_with(exp2, four_exp2, states, rows, B, C, steps, N):
    """States outside, steps inside: the rows of four states stay in the nearest cache."""
    for n in range(0, N - 3, 4):
        s = states[2 * n * TILE : 2 * (n + 4) * TILE]
        for t in range(steps):
            i = t * N + n
            w = rows[t * FORWARD : (t + 1) * FORWARD]
            four_states(
                four_exp2, s, w, B[i], B[i + 1], B[i + 2], B[i + 3],
                C[i], C[i + 1], C[i + 2], C[i + 3],
            )  # fmt: skip
    for n in range(N - N % 4, N):
        s = states[2 * n * TILE : 2 * (n + 1) * TILE]
        for t in range(steps):
            one_state(exp2, s, rows[t * FORWARD : (t + 1) * FORWARD], B[t * N + n], C[t * N + n])


@njit(fastmath=FLAGS)
def scan_chunk(states, rows, B, C, steps, N):
    wide_vectors()
    scan_with(exp2, four_exp2, states, rows, B, C, steps, N)


@njit(fastmath=FLAGS)
def scan_any_chunk(states, rows, B, C, steps, N):
    wide_vectors()
    scan_with(exp2_any, four_exp2_any, states, rows, B, C, steps, N)


@njit(inline="always", fastmath=FLAGS)
def start_with(
    part, step, fixed, delta, base, place, at, u, u_base, u_place, u_at, rows, steps
):  # fmt: skip
    """In two loops: the constants of one alone fit the registers of a CPU with 16."""
    for j in range(TILE):
        fixed[j + 3 * TILE] = ZERO
    for t in range(steps):
        start = base + at[t] * place
        delta_row = delta[start : start + TILE]
        start = u_base + u_at[t] * u_place
        u_row = u[start : start + TILE]
        w = rows[t * FORWARD : (t + 1) * FORWARD]
        for j in range(TILE):
            x = delta_row[j] + fixed[j]
            w[j] = x
            w[j + TILE] = part(x)
        for j in range(TILE):
            dt, _ = step(w[j], w[j + TILE])
            w[j] = dt
            w[j + TILE] = dt * u_row[j]
            w[j + 2 * TILE] = fixed[j + TILE] * u_row[j]
            fixed[j + 3 * TILE] = larger(fixed[j + 3 * TILE], abs(dt))


@njit(fastmath=FLAGS)
def start_softplus_rows(fixed, delta, base, place, at, u, u_base, u_place, u_at, rows, steps):
    """delta → Δ, u → Δu, y starts as D u; and how large Δ is."""
    wide_vectors()
    start_with(
        small_part, softplus, fixed, delta, base, place, at, u, u_base, u_place, u_at, rows, steps
    )


@njit(fastmath=FLAGS)
def start_rows(fixed, delta, base, place, at, u, u_base, u_place, u_at, rows, steps):
    wide_vectors()
    start_with(
        nothing, as_it_is, fixed, delta, base, place, at, u, u_base, u_place, u_at, rows, steps
    )


@njit(fastmath=FLAGS)
def exponents_are_small(fixed):
    """Whether Δ|A| < 126 in the whole chunk, so that no exponent leaves its range."""
    small = 0
    for j in range(TILE):
        small += fixed[j + 2 * TILE] * fixed[j + 3 * TILE] < 126
    return small == TILE


@njit
def load_tile(states, rows_per_state, fixed_rows, A, bias, D, weight, channel, width, N, R):
    """A, bias, D, the largest |A| and the weight of a tile; all the other rows become zero."""
    states[:] = ZERO
    fixed = states[rows_per_state * N * TILE :]
    copy_lanes(fixed, bias, channel, width)
    copy_lanes(fixed[TILE:], D, channel, width)
    for n in range(N):
        for j in range(width):
            a = A[(channel + j) * N + n]
            states[rows_per_state * n * TILE + j] = a
            size = abs(a) if a == a else INFINITY
            fixed[2 * TILE + j] = max(fixed[2 * TILE + j], size)
    for r in range(R):
        for j in range(width):
            fixed[fixed_rows + r * TILE + j] = weight[(channel + j) * R + r]


@njit
def forward_task(task, plan, pos, u, delta, A, B, C, D, bias, weight, y, last, kept):
    """A span of tiles through the routes of a group, each from its first step to its last."""
    groups, routes, d, L, N, delta_softplus, span, R = plan[0]
    us, ds, bs, cs, ys = plan[1], plan[2], plan[3], plan[4], plan[5]
    tiles = -(-d // TILE)
    spans = -(-tiles // span)
    image, group, first = task // (groups * spans), task // spans % groups, task % spans * span
    size = 2 * N * TILE + FIXED + R * TILE
    span_states, rows = aligned(span * size, u), aligned(CHUNK * FORWARD, u)
    B_rows, C_rows = aligned(CHUNK * N, u), aligned(CHUNK * N, u)
    delta_copy, u_copy, counted = aligned(CHUNK * TILE, u), aligned(CHUNK * TILE, u), count()
    for route in range(routes):
        k = group + route * groups
        for tile in range(first, min(first + span, tiles)):
            states = span_states[(tile - first) * size : (tile - first + 1) * size]
            channel, width = tile * TILE, min(TILE, d - tile * TILE)
            load_tile(states, 2, FIXED, A, bias, D, weight, k * d + channel, width, N, R)
        for start in range(0, L, CHUNK):
            steps = min(CHUNK, L - start)
            chunk = (image * (L // CHUNK + 2) + start // CHUNK) * groups * routes + k
            at = pos[k * L + start : k * L + start + steps]
            load_weights(B, image * bs[0] + k * bs[1], bs[2], bs[3], at, steps, N, B_rows)
            load_weights(C, image * cs[0] + k * cs[1], cs[2], cs[3], at, steps, N, C_rows)
            for tile in range(first, min(first + span, tiles)):
                states = span_states[(tile - first) * size : (tile - first + 1) * size]
                fixed = states[2 * N * TILE :]
                channel, width = tile * TILE, min(TILE, d - tile * TILE)
                if kept.size:
                    for n in range(N):
                        to = (chunk * N + n) * d + channel
                        kept_row = kept[to : to + width]
                        row = states[(2 * n + 1) * TILE : (2 * n + 1) * TILE + width]
                        for j in range(width):
                            kept_row[j] = row[j]
                base = image * ds[0] + k * ds[1]
                deltas = steps_of(
                    delta, base, ds[2], ds[3], at, steps, channel, width, fixed[FIXED:], R,
                    delta_copy, counted,
                )  # fmt: skip
                base = image * us[0] + k * us[1] + channel * us[2]
                inputs = rows_of(u, base, us[2], us[3], at, steps, width, u_copy, counted)
                if delta_softplus:
                    start_softplus_rows(fixed, *deltas, *inputs, rows, steps)
                else:
                    start_rows(fixed, *deltas, *inputs, rows, steps)
                if exponents_are_small(fixed):
                    scan_chunk(states, rows, B_rows, C_rows, steps, N)
                else:
                    scan_any_chunk(states, rows, B_rows, C_rows, steps, N)
                base = image * ys[0] + group * ys[1] + channel * ys[2]
                store_rows(y, base, ys[2], ys[3], at, steps, width, rows, FORWARD, 2, route > 0)
        for tile in range(first, min(first + span, tiles)):
            states = span_states[(tile - first) * size : (tile - first + 1) * size]
            for n in range(N if last.size else 0):
                for j in range(min(TILE, d - tile * TILE)):
                    channel = (image * groups * routes + k) * d + tile * TILE + j
                    last[channel * N + n] = states[(2 * n + 1) * TILE + j]


# Parallel loops take no tuple of arguments, so these are spelled out.
@compiled(parallel=True)
def forward_parallel(tasks, plan, pos, u, delta, A, B, C, D, bias, weight, y, last, kept):
    for task in prange(tasks):
        forward_task(task, plan, pos, u, delta, A, B, C, D, bias, weight, y, last, kept)


@compiled()
def forward_serial(tasks, *arguments):
    for task in range(tasks):
        forward_task(task, *arguments)


# 5 · Backward. Rows of a step: 0 Δ, 1 Δu, 2 dy, 3 dΔ, 4 d(Δu), 5 u, 6 dΔ/d delta.
# Rows of a tile: for every state A, g and dA; then as above, with 4 the gradient of the bias and 5
# that of D between them and the weight. History of a step, for m states: m rows of h before it, m
# rows of its Ā; h after it stands in the next step.

BACKWARD, FIXED_BACK = 7 * TILE, 6 * TILE


@njit(inline="always", fastmath=FLAGS)
def one_state_again(exp2, history, a, w, b):
    for j in range(TILE):
        decay = exp2(a[j], w[j])
        history[j + TILE] = decay
        history[j + 2 * TILE] = decay * history[j] + w[j + TILE] * b


@njit(inline="always", fastmath=FLAGS)
def four_states_again(four_exp2, history, a, w, b0, b1, b2, b3):
    for j in range(TILE):
        dt = w[j]
        input = w[j + TILE]
        decay0, decay1, decay2, decay3 = four_exp2(
            a[j], a[j + 3 * TILE], a[j + 6 * TILE], a[j + 9 * TILE], dt
        )
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
def again_with(exp2, four_exp2, history, states, rows, B, steps, N, n, count):
    """The chunk once more for `count` states from n on, one or four, keeping its history."""
    size = 2 * count * TILE
    a = states[3 * n * TILE : 3 * (n + count) * TILE]
    for t in range(steps):
        i = t * N + n
        w = rows[t * BACKWARD : (t + 1) * BACKWARD]
        h = history[t * size : (t + 2) * size]
        if count == 4:
            four_states_again(four_exp2, h, a, w, B[i], B[i + 1], B[i + 2], B[i + 3])
        else:
            one_state_again(exp2, h, a, w, B[i])


@njit(fastmath=FLAGS)
def again_chunk(history, states, rows, B, steps, N, n, count):
    wide_vectors()
    again_with(exp2, four_exp2, history, states, rows, B, steps, N, n, count)


@njit(fastmath=FLAGS)
def again_any_chunk(history, states, rows, B, steps, N, n, count):
    wide_vectors()
    again_with(exp2_any, four_exp2_any, history, states, rows, B, steps, N, n, count)


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


@njit(inline="always", fastmath=FLAGS)
def start_back_with(
    part, step, fixed, delta, base, place, at, u, u_base, u_place, u_at,
    dy, dy_base, dy_place, dy_at, rows, steps,
):  # fmt: skip
    for j in range(TILE):
        fixed[j + 3 * TILE] = ZERO
    for t in range(steps):
        start = base + at[t] * place
        delta_row = delta[start : start + TILE]
        start = u_base + u_at[t] * u_place
        u_row = u[start : start + TILE]
        start = dy_base + dy_at[t] * dy_place
        dy_row = dy[start : start + TILE]
        w = rows[t * BACKWARD : (t + 1) * BACKWARD]
        for j in range(TILE):
            x = delta_row[j] + fixed[j]
            w[j] = x
            w[j + TILE] = part(x)
        for j in range(TILE):
            dt, slope = step(w[j], w[j + TILE])
            w[j] = dt
            w[j + TILE] = dt * u_row[j]
            w[j + 2 * TILE] = dy_row[j]
            w[j + 3 * TILE] = ZERO
            w[j + 4 * TILE] = ZERO
            w[j + 5 * TILE] = u_row[j]
            w[j + 6 * TILE] = slope
            fixed[j + 3 * TILE] = larger(fixed[j + 3 * TILE], abs(dt))


@njit(fastmath=FLAGS)
def start_back_softplus_rows(
    fixed, delta, base, place, at, u, u_base, u_place, u_at,
    dy, dy_base, dy_place, dy_at, rows, steps,
):  # fmt: skip
    wide_vectors()
    start_back_with(
        small_part, softplus, fixed, delta, base, place, at, u, u_base, u_place, u_at,
        dy, dy_base, dy_place, dy_at, rows, steps,
    )  # fmt: skip


@njit(fastmath=FLAGS)
def start_back_rows(
    fixed, delta, base, place, at, u, u_base, u_place, u_at,
    dy, dy_base, dy_place, dy_at, rows, steps,
):  # fmt: skip
    wide_vectors()
    start_back_with(
        nothing, as_it_is, fixed, delta, base, place, at, u, u_base, u_place, u_at,
        dy, dy_base, dy_place, dy_at, rows, steps,
    )  # fmt: skip


@njit(fastmath=FLAGS)
def finish_back_rows(fixed, rows, steps, ln2):
    """Row 3 becomes the gradient of delta, row 4 that of u; A was in units of log2(e)."""
    wide_vectors()
    for t in range(steps):
        w = rows[t * BACKWARD : (t + 1) * BACKWARD]
        for j in range(TILE):
            dy, d_input, u = w[j + 2 * TILE], w[j + 4 * TILE], w[j + 5 * TILE]
            ddelta = (w[j + 3 * TILE] * ln2 + d_input * u) * w[j + 6 * TILE]
            w[j + 3 * TILE] = ddelta
            w[j + 4 * TILE] = d_input * w[j] + fixed[j + TILE] * dy
            fixed[j + 4 * TILE] += ddelta
            fixed[j + 5 * TILE] += dy * u


@njit
def walk_back(states, history, rows, B, C, dB, dC, steps, N, kept, place, d, width):
    """The states of a chunk again from those kept, then their gradients; N in fours and ones."""
    small = exponents_are_small(states[3 * N * TILE :])
    n = 0
    while n < N:
        together = 4 if n + 4 <= N else 1
        for m in range(together):
            row = history[m * TILE : (m + 1) * TILE]
            copy_lanes(row, kept, place + (n + m) * d, width)
        if small:
            again_chunk(history, states, rows, B, steps, N, n, together)
        else:
            again_any_chunk(history, states, rows, B, steps, N, n, together)
        back_chunk(history, states, rows, B, C, dB, dC, steps, N, n, together)
        n += together


@njit
def backward_task(
    task, plan, pos, u, delta, A, B, C, D, bias, weight, ln2, dy, dlast, kept,
    du, ddelta, dA, dB, dC, dD, dbias,
):  # fmt: skip
    """What forward_task read, walked backwards.

    dB, dC are (tile, image, route, place, state), contiguous; dA (image, channel, state); dD and
    dbias (image, channel): one writer each, summed by the caller.
    """
    groups, routes, d, L, N, delta_softplus, span, R = plan[0]
    us, ds, bs, cs, ys = plan[1], plan[2], plan[3], plan[4], plan[5]
    dus, dds = plan[6], plan[7]
    tiles = -(-d // TILE)
    spans = -(-tiles // span)
    image, group, first = task // (groups * spans), task // spans % groups, task % spans * span
    images = dD.size // (groups * routes * d)
    size = 3 * N * TILE + FIXED_BACK + R * TILE
    span_states, rows = aligned(span * size, u), aligned(CHUNK * BACKWARD, u)
    history = aligned((CHUNK + 1) * 8 * TILE, u)
    B_rows, C_rows = aligned(CHUNK * N, u), aligned(CHUNK * N, u)
    dB_rows, dC_rows = aligned(CHUNK * N, u), aligned(CHUNK * N, u)
    delta_copy, u_copy, dy_copy = (
        aligned(CHUNK * TILE, u), aligned(CHUNK * TILE, u), aligned(CHUNK * TILE, u),
    )  # fmt: skip
    counted = count()
    for route in range(routes):
        k = group + route * groups
        image_channel = (image * groups * routes + k) * d
        for tile in range(first, min(first + span, tiles)):
            states = span_states[(tile - first) * size : (tile - first + 1) * size]
            channel, width = tile * TILE, min(TILE, d - tile * TILE)
            load_tile(states, 3, FIXED_BACK, A, bias, D, weight, k * d + channel, width, N, R)
            for n in range(N):
                for j in range(width):
                    from_last = dlast[(image_channel + channel + j) * N + n]
                    states[(3 * n + 1) * TILE + j] = from_last
        for start in range((L - 1) // CHUNK * CHUNK, -1, -CHUNK):
            steps = min(CHUNK, L - start)
            chunk = (image * (L // CHUNK + 2) + start // CHUNK) * groups * routes + k
            at = pos[k * L + start : k * L + start + steps]
            load_weights(B, image * bs[0] + k * bs[1], bs[2], bs[3], at, steps, N, B_rows)
            load_weights(C, image * cs[0] + k * cs[1], cs[2], cs[3], at, steps, N, C_rows)
            for tile in range(first, min(first + span, tiles)):
                states = span_states[(tile - first) * size : (tile - first + 1) * size]
                fixed = states[3 * N * TILE :]
                channel, width = tile * TILE, min(TILE, d - tile * TILE)
                base = image * ds[0] + k * ds[1]
                deltas = steps_of(
                    delta, base, ds[2], ds[3], at, steps, channel, width, fixed[FIXED_BACK:], R,
                    delta_copy, counted,
                )  # fmt: skip
                base = image * us[0] + k * us[1] + channel * us[2]
                inputs = rows_of(u, base, us[2], us[3], at, steps, width, u_copy, counted)
                base = image * ys[0] + group * ys[1] + channel * ys[2]
                upstream = rows_of(dy, base, ys[2], ys[3], at, steps, width, dy_copy, counted)
                if delta_softplus:
                    start_back_softplus_rows(fixed, *deltas, *inputs, *upstream, rows, steps)
                else:
                    start_back_rows(fixed, *deltas, *inputs, *upstream, rows, steps)
                walk_back(
                    states, history, rows, B_rows, C_rows, dB_rows, dC_rows, steps, N,
                    kept, chunk * N * d + channel, d, width,
                )  # fmt: skip
                finish_back_rows(fixed, rows, steps, ln2)
                base = image * dds[0] + k * dds[1] + channel * dds[2]
                store_rows(ddelta, base, dds[2], dds[3], at, steps, width, rows, BACKWARD, 3, False)
                base = image * dus[0] + group * dus[1] + channel * dus[2]
                store_rows(du, base, dus[2], dus[3], at, steps, width, rows, BACKWARD, 4, route > 0)
                base = ((tile * images + image) * groups * routes + k) * L
                for t in range(steps):
                    for n in range(N):
                        dB[(base + at[t]) * N + n] = dB_rows[t * N + n]
                        dC[(base + at[t]) * N + n] = dC_rows[t * N + n]
        for tile in range(first, min(first + span, tiles)):
            states = span_states[(tile - first) * size : (tile - first + 1) * size]
            fixed = states[3 * N * TILE :]
            for j in range(min(TILE, d - tile * TILE)):
                channel = image_channel + tile * TILE + j
                dbias[channel] = fixed[4 * TILE + j]
                dD[channel] = fixed[5 * TILE + j]
                for n in range(N):
                    dA[channel * N + n] = states[(3 * n + 2) * TILE + j]


@compiled(parallel=True)
def backward_parallel(
    tasks, plan, pos, u, delta, A, B, C, D, bias, weight, ln2, dy, dlast, kept,
    du, ddelta, dA, dB, dC, dD, dbias,
):  # fmt: skip
    for task in prange(tasks):
        backward_task(
            task, plan, pos, u, delta, A, B, C, D, bias, weight, ln2, dy, dlast, kept,
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


def plan_of(groups, routes, d, L, N, delta_softplus, span, R, *strides) -> np.ndarray:
    """Sizes, then the strides of u, delta, B, C, y (and of the gradients of u and delta).

    R is 0 where delta is given for every channel. Strides are those of image, route, channel or
    state, and place; for y and the gradient of u of image, group, channel and place, since the
    routes of a group are summed.
    """
    plan = np.zeros((1 + len(strides), 8), np.int64)
    plan[0] = groups, routes, d, L, N, delta_softplus, span, R
    plan[1:, :4] = strides
    return plan


def spans_of(d: int, sequences: int, channels_last: bool) -> tuple[int, int]:
    """How many tiles a task takes along together, chunk by chunk, and how many tasks that makes.

    Neighbouring tiles of a channels-last tensor lie side by side: taken together they share pages
    of memory and B and C. In other layouts the next chunk of the same tile lies nearer.
    """
    tiles = -(-d // TILE)
    share = -(-tiles * sequences // torch.get_num_threads())
    most = max(1, min(MOST_TILES, share)) if channels_last else 1
    spans = -(-tiles // most)
    return -(-tiles // spans), sequences * spans


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
    span, tasks = spans_of(d, batch * K, u.stride(1) == 1)
    arguments = (
        plan_of(K, 1, d, L, N, delta_softplus, span, 0, *strides),
        np.tile(np.arange(L), K),
        *(numbers(x) for x in (u, delta, (A * LOG2E).contiguous(), B, C)),
        or_zeros(D, channels, u),
        or_zeros(delta_bias, channels, u),
        *(numbers(x) for x in (u.new_empty(0), y, last)),
        kept.numpy().reshape(-1),
    )
    launch(forward_parallel, forward_serial, tasks, arguments)
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
    span, tasks = spans_of(d, batch * K, u.stride(1) == 1)
    arguments = (
        plan_of(K, 1, d, L, N, delta_softplus, span, 0, *strides),
        np.tile(np.arange(L), K),
        *(numbers(x) for x in (u, delta, (A * LOG2E).contiguous(), B, C)),
        or_zeros(D, channels, u),
        or_zeros(delta_bias, channels, u),
        numbers(u.new_empty(0)),
        numbers(u.new_tensor(math.log(2)))[0],
        *(numbers(x) for x in (dy, dlast.contiguous(), kept, du, ddelta, dA, dB, dC, dD, dbias)),
    )
    launch(backward_parallel, backward_serial, tasks, arguments)
    dB, dC = (x.sum(0).transpose(-1, -2) for x in (dB, dC))  # (B, K, N, L)
    return du, ddelta, dA.sum(0), dB, dC, dD.sum(0), dbias.sum(0)

"""The exercises of lesson 11, VMamba-T."""

import math
import re
from functools import lru_cache

import torch
import torch.nn.functional as F

from minivmamba.classroom.exercise import Draw, Exercise, strided

# 11.1 — patch merging

CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))


def _merge(x, gain, shift, weight):
    H, W = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
    x = torch.cat([x[:, row::2, column::2] for row, column in CORNERS], dim=-1)
    return F.layer_norm(x, x.shape[-1:], gain, shift) @ weight.T


def _merge_by_views(x, gain, shift, weight):
    B, H, W, C = x.shape
    whole = x.new_zeros(B, H + H % 2, W + W % 2, C)
    whole[:, :H, :W] = x
    whole = whole.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))  # (B, H/2, 2, W/2, 2, C)
    x = whole.permute(0, 1, 3, 4, 2, 5).flatten(3)
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return F.linear((x - mean) / torch.sqrt(variance + 1e-5) * gain + shift, weight)


def _merge_by_loops(x, gain, shift, weight):
    B, H, W, C = x.shape
    rows, columns = (H + 1) // 2, (W + 1) // 2
    out = x.new_empty(B, rows, columns, 2 * C)
    for i in range(rows):
        for j in range(columns):
            parts = []
            for row, column in CORNERS:
                inside = 2 * i + row < H and 2 * j + column < W
                parts.append(
                    x[:, 2 * i + row, 2 * j + column] if inside else torch.zeros_like(x[:, 0, 0])
                )
            corner = F.layer_norm(torch.cat(parts, -1), (4 * C,), gain, shift, 1e-5)
            out[:, i, j] = torch.einsum("bc,oc->bo", corner, weight)
    return out


def _merge_by_unfold(x, gain, shift, weight):
    H, W = x.shape[1:3]
    x = F.pad(x.permute(0, 3, 1, 2), (0, W % 2, 0, H % 2)).transpose(2, 3)  # (B, C, W, H)
    rows = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)
    return F.layer_norm(rows.permute(0, 3, 2, 1), gain.shape, gain, shift) @ weight.mT


def _merge_of(
    order=CORNERS,
    fit=lambda x: F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2)),
    norm=lambda x, gain, shift: F.layer_norm(x, x.shape[-1:], gain, shift),
    finish=lambda x, weight: x @ weight.T,
):
    def merge(x, gain, shift, weight):
        x = fit(x)
        x = torch.cat([x[:, row::2, column::2] for row, column in order], dim=-1)
        return finish(norm(x, gain, shift), weight)

    return merge


def _norm_after(x, gain, shift, weight):
    y = _merge_of(norm=lambda x, gain, shift: x)(x, gain, shift, weight)
    half = y.shape[-1]
    return F.layer_norm(y, (half,), gain[:half], shift[:half])


def _norm_after_plain(x, gain, shift, weight):
    y = _merge_of(norm=lambda x, gain, shift: x)(x, gain, shift, weight)
    return F.layer_norm(y, y.shape[-1:])


def _norm_before(x, gain, shift, weight):
    x = F.layer_norm(x, x.shape[-1:])
    plain = _merge_of(norm=lambda x, gain, shift: x * gain + shift)
    return plain(x, gain, shift, weight)


def _reshaped(x, gain, shift, weight):
    B, H, W, C = x.shape
    x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
    x = x.reshape(B, (H + 1) // 2, (W + 1) // 2, 4 * C)
    return F.layer_norm(x, x.shape[-1:], gain, shift) @ weight.T


def _quarters(x, gain, shift, weight):
    H, W = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
    h, w = x.shape[1] // 2, x.shape[2] // 2
    parts = [x[:, :h, :w], x[:, h:, :w], x[:, :h, w:], x[:, h:, w:]]
    x = torch.cat(parts, dim=-1)
    return F.layer_norm(x, x.shape[-1:], gain, shift) @ weight.T


def _interleaved(x, gain, shift, weight):
    H, W = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
    x = torch.stack([x[:, row::2, column::2] for row, column in CORNERS], dim=-1).flatten(3)
    return F.layer_norm(x, x.shape[-1:], gain, shift) @ weight.T


def _unshuffled(x, gain, shift, weight):
    H, W = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
    x = F.pixel_unshuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    return F.layer_norm(x, x.shape[-1:], gain, shift) @ weight.T


def _averaged(x, gain, shift, weight):
    H, W = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
    x = sum(x[:, row::2, column::2] for row, column in CORNERS) / 4
    return _merge_of()(x.repeat_interleave(2, 1).repeat_interleave(2, 2), gain, shift, weight)


def _repeated_edge(x):
    x = torch.cat([x, x[:, -1:]], 1) if x.shape[1] % 2 else x
    return torch.cat([x, x[:, :, -1:]], 2) if x.shape[2] % 2 else x


def _wrapped_edge(x):
    x = torch.cat([x, x[:, :1]], 1) if x.shape[1] % 2 else x
    return torch.cat([x, x[:, :, :1]], 2) if x.shape[2] % 2 else x


def _both_or_none(x):
    odd = max(x.shape[1] % 2, x.shape[2] % 2)
    return F.pad(x, (0, 0, 0, odd, 0, odd))


def _maps(draw: Draw):
    def some(B, H, W, C, dtype=torch.float64, scale=1.0, gaps=False):
        x = draw.uniform(B, H, W, C, low=-scale, high=scale, dtype=dtype)
        gain, shift = (draw.uniform(4 * C, low=0.5, high=1.5, dtype=dtype) for _ in range(2))
        # In single precision nothing may cancel, or the last digits decide.
        low = 0.2 if dtype == torch.float32 else -1.0
        weight = draw.uniform(2 * C, 4 * C, low=low, dtype=dtype)
        return (strided(x) if gaps else x, gain, shift, weight)

    return [
        some(1, 2, 2, 1),
        some(1, 4, 6, 3),
        some(2, 3, 5, 2),
        some(1, 5, 4, 2),
        some(1, 4, 3, 2),
        some(1, 1, 1, 2),
        some(3, 1, 8, 1),
        some(2, 6, 4, 2, gaps=True),
        some(1, 2, 4, 2, scale=2e-3),  # so flat that the eps of the norm is seen
        some(1, 6, 7, 2, dtype=torch.float32),
        some(2, draw.integer(2, 9), draw.integer(2, 9), 3),
    ]


MERGE = Exercise(
    title="Patch merging",
    difficulty=3,
    hints=(
        "x[:, 1::2, 0::2] are the lower left corners of all squares. Take the four corners in the "
        "order (0, 0), (1, 0), (0, 1), (1, 1) and put them behind one another along the last axis. "
        "An odd map gets its zeros before that.",
        "`x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))` counts axes from the last: channels, columns, "
        "rows. Then `torch.cat([…], dim=-1)`, then `F.layer_norm(x, (4 * C,), gain, shift)` with "
        "the default eps, and last `@ weight.T`.",
    ),
    specification=_merge,
    alternatives=(_merge_by_views, _merge_by_loops, _merge_by_unfold),
    arguments=("x", "gain", "shift", "weight"),
    cases=_maps,
    mistakes={
        "the corners run down the columns here: (1, 0), below, comes before (0, 1), beside": (
            _merge_of(order=((0, 0), (0, 1), (1, 0), (1, 1)))
        ),
        "the corners do not run round the square: (1, 1) comes last": (
            _merge_of(order=((0, 0), (0, 1), (1, 1), (1, 0))),
            _merge_of(order=((0, 0), (1, 0), (1, 1), (0, 1))),
        ),
        "the corners are in the order opposite to (0, 0), (1, 0), (0, 1), (1, 1)": _merge_of(
            order=CORNERS[::-1]
        ),
        "an odd map gets zeros; this drops its last row or column, as the first release did": (
            _merge_of(fit=lambda x: x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])
        ),
        "an odd map is not taken care of: its corners come out in different sizes": _merge_of(
            fit=lambda x: x
        ),
        "zeros come at the bottom and at the right, not at the top and at the left": _merge_of(
            fit=lambda x: F.pad(x, (0, 0, x.shape[2] % 2, 0, x.shape[1] % 2, 0))
        ),
        "an even side got a row or column: H % 2 rows, W % 2 columns, and F.pad counts axes from "
        "the last": (
            _merge_of(fit=lambda x: F.pad(x, (0, 0, 0, x.shape[1] % 2, 0, x.shape[2] % 2))),
            _merge_of(fit=_both_or_none),
            _merge_of(fit=lambda x: F.pad(x, (0, 0, 0, 1, 0, 1))),
        ),
        "an odd map gets zeros; this repeats its last row or column": _merge_of(fit=_repeated_edge),
        "an odd map gets zeros; this goes on with its first row or column": _merge_of(
            fit=_wrapped_edge
        ),
        "the norm comes before the reduction, over all 4C numbers of a square": (
            _norm_after,
            _norm_after_plain,
        ),
        "the norm sees the 4C numbers of a square together; this norms each pixel by itself": (
            _norm_before
        ),
        "the norm is missing": (
            _merge_of(norm=lambda x, gain, shift: x),
            _merge_of(norm=lambda x, gain, shift: x * gain + shift),
        ),
        "gain and shift of the norm are not used": _merge_of(
            norm=lambda x, gain, shift: F.layer_norm(x, x.shape[-1:])
        ),
        "the shift of the norm is not used": _merge_of(
            norm=lambda x, gain, shift: F.layer_norm(x, x.shape[-1:], gain)
        ),
        "a LayerNorm divides by the number of entries, not by one less": _merge_of(
            norm=lambda x, gain, shift: (
                (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt() * gain
                + shift
            )
        ),
        "the eps of this LayerNorm is 1e-5, and it is seen where a map is nearly flat": (
            _merge_of(norm=lambda x, gain, shift: F.layer_norm(x, x.shape[-1:], gain, shift, 1e-6)),
            _merge_of(norm=lambda x, gain, shift: F.layer_norm(x, x.shape[-1:], gain, shift, 0.0)),
            _merge_of(
                norm=lambda x, gain, shift: F.layer_norm(x, x.shape[-1:], gain, shift, 1e-12)
            ),
            _merge_of(norm=lambda x, gain, shift: F.layer_norm(x, x.shape[-1:], gain, shift, 1e-8)),
        ),
        "neighbours in memory are not the corners of a square: reshape alone cannot gather them": (
            _reshaped
        ),
        "these are the four quarters of the map; a square is 2 × 2 neighbours": _quarters,
        "this runs through the corners of channel 0, then of channel 1; a corner keeps its C "
        "channels together": _interleaved,
        "pixel_unshuffle runs along the rows, and through channel 0 before channel 1; here a "
        "corner keeps its C channels together, and (1, 0) comes second": _unshuffled,
        "the four corners are kept apart, this takes their mean": _averaged,
        "the reduction is missing: from 4C numbers to 2C": _merge_of(finish=lambda x, weight: x),
    },
)


# 11.2 — the parameters of a block


def _block(C, N, expand):
    d, R = expand * C, math.ceil(C / 16)
    routes = 4 * d * ((R + 2 * N) + R + 1 + N + 1)  # x_proj, dt_projs and bias, A_logs, Ds
    return 2 * C + 2 * d * C + 10 * d + routes + 2 * d + d * C


def _block_by_counting(C, N, expand):
    from minivmamba.vssm import VSSBlock

    with torch.device("meta"):
        block = VSSBlock(C, N)
        block.self_attention = type(block.self_attention)(C, N, expand)
    return sum(p.numel() for p in block.parameters())


def _block_as_polynomial(C, N, expand):
    R = (C + 15) // 16
    return expand * C * (3 * C + 8 * R + 12 * N + 20) + 2 * C


def _block_by_shapes(C, N, expand):
    d, R = expand * C, -(-C // 16)
    shapes = [(C,), (C,), (2 * d, C), (d, 3, 3), (d,), (4, R + 2 * N, d), (4, d, R), (4, d)]
    shapes += [(4 * d, N), (4 * d,), (d,), (d,), (C, d)]
    return sum(math.prod(shape) for shape in shapes)


def _block_of(
    ln=lambda C: 2 * C,
    in_proj=lambda C, d: 2 * d * C,
    conv=lambda C, d: 10 * d,
    rank=lambda C, d: -(-C // 16),
    width=lambda R, N: R + 2 * N,
    routes=4,
    dt_bias=1,
    skip=1,
    decay=lambda d, N: 4 * d * N,
    out_norm=lambda C, d: 2 * d,
    out_proj=lambda C, d: d * C,
    inner=lambda C, expand: expand * C,
    more=lambda C, d: 0,
):
    """A block with one of its parts counted otherwise."""

    def block_parameters(C, N, expand):
        d = inner(C, expand)
        R = rank(C, d)
        scan = routes * d * (width(R, N) + R + dt_bias + skip) + decay(d, N)
        parts = ln(C) + in_proj(C, d) + conv(C, d) + out_norm(C, d) + out_proj(C, d)
        return parts + scan + more(C, d)

    return block_parameters


def _sizes(draw: Draw):
    drawn = [(draw.integer(1, 300), draw.integer(1, 32), draw.integer(1, 3)) for _ in range(4)]
    fixed = [(96, 16, 2), (768, 16, 2), (40, 8, 1), (1, 1, 1), (17, 3, 3), (16, 5, 2), (100, 2, 2)]
    return fixed + drawn


BLOCK = Exercise(
    title="The parameters of a block",
    difficulty=2,
    hints=(
        "Go down the table of section 5 row by row. Everything inside SS2D has d = expand · C "
        "channels, and whatever belongs to a route is there four times.",
        "LayerNorm of n channels: 2n. in_proj: 2d · C, no bias. Convolution: 9d + d. The four "
        "routes: 4d · (R + 2N) for x_proj, 4d · R + 4d for Δ, 4d · N for A, 4d for D. out_norm: "
        "2d, out_proj: d · C. And R is `-(-C // 16)`.",
    ),
    specification=_block,
    alternatives=(_block_by_counting, _block_as_polynomial, _block_by_shapes),
    arguments=("C", "N", "expand"),
    cases=_sizes,
    mistakes={
        "in_proj makes x and the gate z: it has 2d rows, not d": _block_of(
            in_proj=lambda C, d: d * C
        ),
        "the convolution is depthwise: each channel has 3 × 3 weights of its own": _block_of(
            conv=lambda C, d: 9 * d * d + d
        ),
        "d numbers are missing: the convolution has a bias, and out_norm a weight and a bias": (
            _block_of(conv=lambda C, d: 9 * d),
            _block_of(out_norm=lambda C, d: d),
        ),
        "in_proj and out_proj have no bias": (
            _block_of(more=lambda C, d: 2 * d + C),
            _block_of(more=lambda C, d: C),
            _block_of(more=lambda C, d: 2 * d),
        ),
        "the four routes have weights of their own; this counts one route": _block_of(
            routes=1, decay=lambda d, N: d * N
        ),
        "each of the four routes has an A of its own: 4d rows": _block_of(decay=lambda d, N: d * N),
        "A is a vector of N rates for every channel and route, not one rate": _block_of(
            decay=lambda d, N: 4 * d
        ),
        "4d · N numbers are missing: A_logs has so many, and B and C in x_proj, each": (
            _block_of(decay=lambda d, N: 0),
            _block_of(width=lambda R, N: R + N),
        ),
        "4d numbers are missing: D and the bias of Δ each have one for every channel and route": (
            _block_of(skip=0),
            _block_of(dt_bias=0),
        ),
        "x_proj makes R numbers for Δ beside the 2N for B and C": _block_of(
            width=lambda R, N: 2 * N
        ),
        "R is C / 16 rounded up, also where C is no multiple of 16": (
            _block_of(rank=lambda C, d: C // 16),
            _block_of(rank=lambda C, d: max(C // 16, 1)),
            _block_of(rank=lambda C, d: round(C / 16)),
            _block_of(rank=lambda C, d: C // 16 + 1),
        ),
        "R is made from C, the width of the block, not from d": _block_of(
            rank=lambda C, d: -(-d // 16)
        ),
        "a LayerNorm has a weight and a bias for every channel": (
            _block_of(ln=lambda C: C, out_norm=lambda C, d: d),
            _block_of(ln=lambda C: C),
        ),
        "the norm before SS2D, ln_1, is missing": _block_of(ln=lambda C: 0),
        "the norm inside SS2D, out_norm, is missing": _block_of(out_norm=lambda C, d: 0),
        "out_norm stands before out_proj, where there are d channels": _block_of(
            out_norm=lambda C, d: 2 * C
        ),
        "out_proj goes from d channels back to C": (
            _block_of(out_proj=lambda C, d: d * d),
            _block_of(out_proj=lambda C, d: C * C),
            _block_of(out_proj=lambda C, d: 2 * d * C),
        ),
        "d is expand · C, not 2C": _block_of(inner=lambda C, expand: 2 * C),
        "the block of the first version has no MLP": (
            _block_of(more=lambda C, d: 8 * C * C + 5 * C),
            _block_of(more=lambda C, d: 8 * C * C + 7 * C),
            _block_of(more=lambda C, d: 8 * C * C),
        ),
    },
)


# 11.3 — where attention costs as much


def _crossing(C, N, per_state):
    R = -(-C // 16)
    ss2d = 6 * C + 18 + 16 * (R + N) + 8 * (per_state * N + 1)  # over C, at a pixel
    return math.floor((ss2d - 4 * C) / 2) + 1


def _crossing_by_search(C, N, per_state):
    d, R, L = 2 * C, math.ceil(C / 16), 1
    while True:
        linear = L * (2 * d * C + d * C)
        conv = 9 * d * L
        einsum = 4 * d * L * (R + 2 * N) + 4 * d * L * R
        scan = per_state * L * 4 * d * N + L * 4 * d
        if linear + conv + einsum + scan < 4 * L * C**2 + 2 * L**2 * C:
            return L
        L += 1


def _crossing_as_formula(C, N, per_state):
    bound = C + 13 + 8 * ((C + 15) // 16) + 8 * N + 4 * per_state * N
    return int(bound // 1) + 1


def _crossing_of(
    attention=lambda C: 4 * C,
    quadratic=2.0,
    linear=lambda C: 6 * C,
    conv=18,
    rank=lambda C: -(-C // 16),
    einsum=lambda R, N: 16 * (R + N),
    scan=lambda N, c: 8 * (c * N + 1),
    more=0,
    finish=lambda bound: math.floor(bound) + 1,
):
    """The crossing with something counted otherwise; all is divided by C, at one pixel."""

    def crossing(C, N, per_state):
        ss2d = linear(C) + conv + einsum(rank(C), N) + scan(N, per_state) + more
        return finish((ss2d - attention(C)) / quadratic)

    return crossing


def _of_the_scan_alone(C, N, per_state):
    return math.floor(4 * (per_state * N + 1)) + 1


def _widths(draw: Draw):
    def some():
        return (draw.integer(1, 900), draw.integer(1, 32), draw.integer(4, 40) / 4)

    fixed = [(96, 16, 9.0), (768, 16, 3.5), (384, 16, 9.0), (96, 1, 9.0), (100, 3, 3.5)]
    return [*fixed, (1, 1, 1.0), (17, 1, 3.5), (40, 5, 0.3), *(some() for _ in range(5))]


CROSSING = Exercise(
    title="Where attention costs as much",
    difficulty=3,
    hints=(
        "Write both costs for one pixel; L appears in attention alone: 4C² + 2LC. SS2D with d = 2C "
        "is 6C² for the projections, 18C for the convolution, 16C(R + N) for Δ, B and C, and "
        "8C(cN + 1) for the scan. Divide by C and solve for L.",
        "`bound = C + 9 + 8 * (R + N) + 4 * (c * N + 1)` with `R = -(-C // 16)`: at exactly that "
        "many pixels the two cost the same. The first whole number above it is "
        "`math.floor(bound) + 1`.",
    ),
    specification=_crossing,
    alternatives=(_crossing_by_search, _crossing_as_formula),
    arguments=("C", "N", "per_state"),
    cases=_widths,
    mistakes={
        "attention has projections too: q, k, v and the output, 4C² at a pixel": _crossing_of(
            attention=lambda C: 0
        ),
        "attention has four projections, that to the output is one of them": _crossing_of(
            attention=lambda C: 3 * C
        ),
        "attention multiplies twice by all pixels, for the weights and for the sum: 2LC": (
            _crossing_of(quadratic=1.0)
        ),
        "a multiply-add is one operation here: 2LC at a pixel, not 4LC": _crossing_of(
            quadratic=4.0
        ),
        "the projections of SS2D are missing: 4C² into x and z, 2C² out": _crossing_of(
            linear=lambda C: 0
        ),
        "in_proj makes x and z, so the projections of SS2D are 6C², not 4C²": (
            _crossing_of(linear=lambda C: 4 * C),
            _crossing_of(linear=lambda C: 3 * C),
        ),
        "the depthwise convolution is missing: 9 for each of d channels": _crossing_of(conv=0),
        "the convolution has d = 2C channels, 9 each: 18C": _crossing_of(conv=9),
        "the projections to Δ, B and C are missing": _crossing_of(einsum=lambda R, N: 0),
        "to bring Δ from rank R to d channels costs 4dR more": _crossing_of(
            einsum=lambda R, N: 8 * (R + 2 * N)
        ),
        "B and C have N numbers each: R + 2N on every route": _crossing_of(
            einsum=lambda R, N: 8 * (2 * R + N)
        ),
        "the scan is missing": _crossing_of(scan=lambda N, c: 0),
        "the scan runs on four routes of d = 2C channels, 8C in all": (
            _crossing_of(scan=lambda N, c: 2 * (c * N + 1)),
            _crossing_of(scan=lambda N, c: 4 * (c * N + 1)),
            _crossing_of(scan=lambda N, c: c * N + 1),
            _crossing_of(scan=lambda N, c: 2 * (c * N + 1), einsum=lambda R, N: 4 * (R + N)),
        ),
        "D · u is missing: one operation for each channel and route": _crossing_of(
            scan=lambda N, c: 8 * c * N
        ),
        "the operations a state are given as per_state; this has 9": _crossing_of(
            scan=lambda N, c: 8 * (9 * N + 1)
        ),
        "every one of the N states is computed": _crossing_of(scan=lambda N, c: 8 * (c + 1)),
        "R is C / 16 rounded up": (
            _crossing_of(rank=lambda C: C // 16),
            _crossing_of(rank=lambda C: max(C // 16, 1)),
            _crossing_of(rank=lambda C: C // 16 + 1),
            _crossing_of(rank=lambda C: C / 16),
        ),
        "R is made from C, not from d": _crossing_of(rank=lambda C: -(-2 * C // 16)),
        "6C is where the two products of attention reach the linear layers of a transformer block "
        "with its MLP; there is no SS2D in that": (
            lambda C, N, per_state: 6 * C,
            lambda C, N, per_state: 6 * C + 1,
        ),
        "this compares the scan with the two products of attention; asked for are whole layers": (
            _of_the_scan_alone
        ),
        "norms are left out on both sides": (
            _crossing_of(more=15),
            _crossing_of(more=10),
        ),
        "an image of L pixels is asked for, this is its side": _crossing_of(
            finish=lambda bound: math.isqrt(math.floor(bound) + 1)
        ),
        "asked for is the first whole L at which attention costs more": (
            _crossing_of(finish=lambda bound: bound),
            _crossing_of(finish=math.floor),
            _crossing_of(finish=math.ceil),
            _crossing_of(finish=round),
        ),
    },
)


# 11.4 — name the architecture


@lru_cache
def _release(version, depths, width, N, expand, renamed, head):
    """The names and shapes in a release, in the order of a state dict."""
    first = version == 1
    names = ("ln_1", "self_attention") if first and not renamed else ("norm", "op")
    shapes: dict[str, tuple] = {}
    if first:
        stem = ("patch_embed.0", "patch_embed.2") if renamed else (
            "patch_embed.proj", "patch_embed.norm",
        )  # fmt: skip
        shapes |= {f"{stem[0]}.weight": (width, 3, 4, 4), f"{stem[0]}.bias": (width,)}
        shapes |= {f"{stem[1]}.{end}": (width,) for end in ("weight", "bias")}
    else:
        half = width // 2
        shapes |= {"patch_embed.0.weight": (half, 3, 3, 3), "patch_embed.0.bias": (half,)}
        shapes |= {f"patch_embed.2.{end}": (half,) for end in ("weight", "bias")}
        shapes |= {"patch_embed.5.weight": (width, half, 3, 3), "patch_embed.5.bias": (width,)}
        shapes |= {f"patch_embed.7.{end}": (width,) for end in ("weight", "bias")}
    C = width
    for stage, depth in enumerate(depths):
        C, d, R = width * 2**stage, expand * width * 2**stage, -(-width * 2**stage // 16)
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}."
            op = at + names[1] + "."
            shapes |= {f"{at}{names[0]}.{end}": (C,) for end in ("weight", "bias")}
            shapes |= {
                op + "x_proj_weight": (4, R + 2 * N, d),
                op + "dt_projs_weight": (4, d, R),
                op + "dt_projs_bias": (4, d),
                op + "A_logs": (4 * d, N),
                op + "Ds": (4 * d,),
                op + "in_proj.weight": (2 * d if first else d, C),
                op + "conv2d.weight": (d, 1, 3, 3),
            }
            shapes |= {op + "conv2d.bias": (d,)} if first else {}
            shapes |= {f"{op}out_norm.{end}": (d,) for end in ("weight", "bias")}
            shapes |= {op + "out_proj.weight": (C, d)}
            if not first:
                shapes |= {f"{at}norm2.{end}": (C,) for end in ("weight", "bias")}
                shapes |= {f"{at}mlp.fc1.weight": (4 * C, C), f"{at}mlp.fc1.bias": (4 * C,)}
                shapes |= {f"{at}mlp.fc2.weight": (C, 4 * C), f"{at}mlp.fc2.bias": (C,)}
        if stage + 1 < len(depths):
            down = f"layers.{stage}.downsample."
            if first:
                shapes |= {f"{down}norm.{end}": (4 * C,) for end in ("weight", "bias")}
                shapes |= {down + "reduction.weight": (2 * C, 4 * C)}
            else:
                shapes |= {down + "1.weight": (2 * C, C, 3, 3), down + "1.bias": (2 * C,)}
                shapes |= {f"{down}3.{end}": (2 * C,) for end in ("weight", "bias")}
    if head:
        last = ("norm", "head") if first and not renamed else ("classifier.norm", "classifier.head")
        shapes |= {f"{last[0]}.{end}": (C,) for end in ("weight", "bias")}
        shapes |= {f"{last[1]}.weight": (1000, C), f"{last[1]}.bias": (1000,)}
    return shapes


def release(version, depths, width, N, expand, renamed=0, head=1, backwards=0):
    """{name: shape} of a released model; `backwards` lists the names from the last to the first."""
    items = list(_release(version, tuple(depths), width, N, expand, renamed, head).items())
    return dict(items[::-1] if backwards else items)


NAME = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.(?:self_attention|op)\.(.+)")


def _blocks(shapes):
    """{(stage, block): {name inside SS2D: shape}}"""
    found: dict[tuple[int, int], dict[str, tuple]] = {}
    for name, shape in shapes.items():
        if match := NAME.fullmatch(name):
            found.setdefault((int(match[1]), int(match[2])), {})[match[3]] = shape
    return found


def _name_it(shapes):
    blocks = _blocks(shapes)
    stages = sorted({stage for stage, _ in blocks})
    depths = [sum(stage == s for s, _ in blocks) for stage in stages]
    dims = [blocks[stage, 0]["out_proj.weight"][0] for stage in stages]
    d, N = blocks[0, 0]["out_proj.weight"][1], blocks[0, 0]["A_logs"][1]
    version = 1 if blocks[0, 0]["in_proj.weight"][0] == 2 * d else 2
    return version, depths, dims, N, d // dims[0]


def _name_it_by_splitting(shapes):
    depths: dict[int, int] = {}
    dims: dict[int, int] = {}
    for name, shape in shapes.items():
        words = name.split(".")
        if words[0] == "layers" and words[2] == "blocks":
            stage = int(words[1])
            depths[stage] = max(depths.get(stage, 0), int(words[3]) + 1)
            if name.endswith("in_proj.weight"):
                dims[stage] = shape[1]
    rows, N = next(shape for name, shape in shapes.items() if name.startswith("layers.0.") and
                   name.endswith("A_logs"))  # fmt: skip
    stages = range(len(depths))
    version = 2 if any(".mlp." in name for name in shapes) else 1
    expand = rows // 4 // dims[0]
    return [version, [depths[s] for s in stages], [dims[s] for s in stages], N, expand]


def _name_it_by_suffix(shapes):
    ends = [(name, shape) for name, shape in shapes.items() if name.endswith("conv2d.weight")]
    depths = [sum(name.startswith(f"layers.{s}.") for name, _ in ends) for s in range(9)]
    depths = [depth for depth in depths if depth]
    gated = any(name.endswith("conv2d.bias") for name in shapes)
    key = next(name for name in shapes if name.startswith("layers.0.") and "x_proj" in name)
    out = shapes[key.replace("x_proj_weight", "out_proj.weight")]
    _, rows, _ = shapes[key]
    rank = shapes[key.replace("x_proj_weight", "dt_projs_weight")][-1]
    dims = [out[0] * 2**stage for stage in range(len(depths))]
    return 2 - gated, torch.tensor(depths), dims, (rows - rank) // 2, out[1] / out[0]


def _named(**wrong):
    """The right answer with one part found in another way."""

    def architecture(shapes):
        version, depths, dims, N, expand = _name_it(shapes)
        found = {"version": version, "depths": depths, "dims": dims, "N": N, "expand": expand}
        found |= {part: find(shapes, found) for part, find in wrong.items()}
        return tuple(found.values())

    return architecture


def _each_stage(name, axis):
    def find(shapes, found):
        blocks = _blocks(shapes)
        return [blocks[stage, 0][name][axis] for stage in range(len(found["depths"]))]

    return find


def _names_of(part):
    """How many names a stage has that hold this part, by their second word."""

    def find(shapes, found):
        return [
            sum(name.startswith(f"layers.{s}.") and part in name for name in shapes)
            for s in range(len(found["depths"]))
        ]

    return find


def _last_index(shapes, found):
    return [depth - 1 for depth in found["depths"]]


def _largest_as_text(shapes, found):
    return [int(max(map(str, range(depth)))) + 1 for depth in found["depths"]]


def _one_digit(shapes, found):
    return [min(depth, 10) for depth in found["depths"]]


def _first(name, axis):
    return lambda shapes, found: _blocks(shapes)[0, 0][name][axis]


def _rows_by_columns(shapes):
    rows, columns = _blocks(shapes)[0, 0]["in_proj.weight"]
    return rows / columns


def _by_order(shapes, found):
    """Stages in the order in which their names come."""
    stages = dict.fromkeys(stage for stage, _ in _blocks(shapes))
    return [found["depths"][stage] for stage in stages]


def _dims_by_order(shapes, found):
    stages = dict.fromkeys(stage for stage, _ in _blocks(shapes))
    return [found["dims"][stage] for stage in stages]


def _architectures(draw: Draw):
    width, N = 2 * draw.integer(4, 20), draw.integer(2, 9)
    depths = tuple(draw.integer(1, 12) for _ in range(draw.integer(2, 4)))
    return [
        (1, (2, 2, 9, 2), 96, 16, 2, 0, 1, 0),
        (2, (2, 2, 8, 2), 96, 1, 1, 0, 1, 0),
        (1, (2, 2, 27, 2), 128, 16, 2, 0, 1, 0),
        (2, (2, 2, 5, 2), 96, 1, 2, 0, 0, 0),
        (1, (1, 3, 11, 1), 32, 1, 1, 1, 1, 0),
        (2, (2, 2, 15, 3), 64, 16, 2, 0, 1, 1),
        (1, (3, 1), 48, 8, 3, 0, 0, 1),
        (1, (2,), 40, 4, 2, 1, 1, 0),
        (2, depths, width, N, draw.integer(1, 3), 0, draw.integer(0, 1), 1),
        (1, depths, width, N, draw.integer(1, 3), draw.integer(0, 1), 1, 1),
    ]


ARCHITECTURE = Exercise(
    title="Name the architecture",
    difficulty=3,
    hints=(
        "Everything stands in a few names. How many different j are there in layers.i.blocks.j? "
        "Whose shape has C and nothing else on one axis? Which axis of A_logs is N? And in_proj "
        "tells the version: the first makes x and a gate, the second x alone.",
        "Split a name at its dots: words 1 and 3 are stage and block, as `int`. C and d are the "
        "two axes of out_proj.weight, (C, d). N is the last axis of A_logs, expand is d / C. If "
        "in_proj.weight has 2d rows it is version 1, with d rows version 2.",
    ),
    specification=_name_it,
    alternatives=(_name_it_by_splitting, _name_it_by_suffix),
    arguments=("version", "depths", "width", "N", "expand", "renamed", "head", "backwards"),
    cases=_architectures,
    observe=lambda function, case: function(release(*case)),
    mistakes={
        "these dims are d = expand · C: take the axis of out_proj or in_proj that has C": (
            _named(dims=_each_stage("out_proj.weight", 1)),
            _named(
                dims=_each_stage("out_proj.weight", 1),
                expand=lambda shapes, found: 1,
            ),
        ),
        "these dims are rows of in_proj, which are d or 2d, not C": (
            _named(dims=_each_stage("in_proj.weight", 0)),
        ),
        "these dims are rows of A_logs: it has 4d of them, one for each channel and route": _named(
            dims=_each_stage("A_logs", 0)
        ),
        "depths counts names here; a block has a dozen of them": (
            _named(depths=_names_of(".blocks.")),
            _named(depths=_names_of("")),
        ),
        "blocks are counted from 0: with blocks.8 as the last there are nine": _named(
            depths=_last_index
        ),
        'a block may have two digits: as text "9" is larger than "26", so make it an int': (
            _named(depths=_largest_as_text),
            _named(depths=_one_digit),
        ),
        "stages are in the order in which the names come, but a dict may have any order": (
            _named(depths=_by_order, dims=_dims_by_order),
            _named(depths=_by_order),
            _named(dims=_dims_by_order),
        ),
        "N is the number of columns of A_logs; this is the number of its rows": _named(
            N=_first("A_logs", 0)
        ),
        "x_proj has R + 2N rows a route: N is not all of them": _named(
            N=_first("x_proj_weight", 1)
        ),
        "x_proj has R + 2N rows a route: this leaves R in": _named(
            N=lambda shapes, found: _blocks(shapes)[0, 0]["x_proj_weight"][1] // 2
        ),
        "x_proj has R + 2N rows, and B and C share them: half of what is left beside R": _named(
            N=lambda shapes, found: (
                _blocks(shapes)[0, 0]["x_proj_weight"][1]
                - _blocks(shapes)[0, 0]["dt_projs_weight"][2]
            )
        ),
        "this is R, the rank of Δ": _named(N=_first("dt_projs_weight", 2)),
        "N does not tell the version: either may have any number of states": _named(
            version=lambda shapes, found: 1 if found["N"] > 1 else 2
        ),
        "expand does not tell the version: either may have any": (
            _named(version=lambda shapes, found: 1 if found["expand"] > 1 else 2),
            _named(version=lambda shapes, found: 1 if found["expand"] == 2 else 2),
        ),
        "the newest code writes op for the first version too: look at shapes, not at that name": (
            _named(
                version=lambda shapes, found: (
                    1 if any("self_attention" in name for name in shapes) else 2
                )
            ),
            _named(version=lambda shapes, found: 1 if "patch_embed.proj.weight" in shapes else 2),
            _named(
                version=lambda shapes, found: 1 if any("ln_1" in name for name in shapes) else 2
            ),
        ),
        "both versions have a head, and a backbone may have none: it does not tell the version": (
            _named(version=lambda shapes, found: 1 if "head.weight" in shapes else 2),
            _named(version=lambda shapes, found: 2 if "classifier.head.weight" in shapes else 1),
        ),
        "compare the rows of in_proj with d, from out_proj: its columns are C, not d": (
            _named(version=lambda shapes, found: 1 if _rows_by_columns(shapes) == 2 else 2),
            _named(version=lambda shapes, found: 1 if _rows_by_columns(shapes) > 1 else 2),
            _named(version=lambda shapes, found: 1 if _rows_by_columns(shapes) == 4 else 2),
        ),
        "version 1 and 2 are exchanged: the gate doubles the rows of in_proj in the first": _named(
            version=lambda shapes, found: 3 - found["version"]
        ),
        "in_proj has 2d rows in the first version: half of them are the gate": _named(
            expand=lambda shapes, found: (
                _blocks(shapes)[0, 0]["in_proj.weight"][0] // found["dims"][0]
            )
        ),
        "expand is d / C; this takes 2 or 1 by the version": (
            _named(expand=lambda shapes, found: 3 - found["version"]),
            _named(expand=lambda shapes, found: 2),
            _named(expand=lambda shapes, found: 1),
        ),
        "expand is d / C, a ratio; this is d": _named(expand=_first("out_proj.weight", 1)),
        "expand is d / C; this is C / d": _named(expand=lambda shapes, found: 1 / found["expand"]),
    },
)


EXERCISES = {"11.1": MERGE, "11.2": BLOCK, "11.3": CROSSING, "11.4": ARCHITECTURE}

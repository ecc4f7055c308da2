"""The selective scan of a map along its four routes, without making the four sequences.

`cross_scan` lays a map of H·W pixels out four times, scans four sequences and adds them back up.
Here the map stays where it is: a route is a table `pos` that says at which pixel its step t
stands, and the kernels of scan_numba.py read u, Δ, B, C and write y through that table.

    task     one tile of channels, two routes that are each other's reverse (0 and 2, 1 and 3)
    y        one map for each of the two pairs; the second route of a pair adds to the first
    Δ, B, C  projected once at every pixel, in pixel order, channels last

Bytes: u is read by every route, 4 times 4 a pixel and channel, mostly from the cache; delta 16;
y written twice, read once. The four sequences and their four outputs, 32, are never made.
Operations: those of four scans.
"""

import functools
import math

import numpy as np
from torch import Tensor

from .scan_numba import (
    LOG2E,
    TILE,
    backward_parallel,
    backward_serial,
    forward_parallel,
    forward_serial,
    launch,
    numbers,
    or_zeros,
    plan_of,
    room_for_states,
)

ROUTES = 4
PAIRS = 2  # group g of a pair holds the routes g and g + 2


@functools.lru_cache(maxsize=64)
def route_table(H: int, W: int) -> np.ndarray:
    """pos[k, t]: the pixel, counted row by row, at which step t of route k stands; flat."""
    pixels = np.arange(H * W).reshape(H, W)
    rows, columns = pixels.ravel(), pixels.T.ravel()
    return np.concatenate([rows, columns, rows[::-1], columns[::-1]])


def with_one_pixel_stride(x: Tensor) -> Tensor:
    """(…, H, W, channels) whose pixels lie at equal distances, row by row."""
    H_stride, W_stride, _ = x.stride()[-3:]
    return x if x.shape[-3] == 1 or H_stride == x.shape[-2] * W_stride else x.contiguous()


def per_route(x: Tensor) -> tuple[int, ...]:
    """Of (B, 4, H, W, channels): strides of image, route, channel, pixel."""
    image, route, _, pixel, channel = x.stride()
    return image, route, channel, pixel


def shared(x: Tensor) -> tuple[int, ...]:
    """Of (B, H, W, d), the same for all routes."""
    image, _, pixel, channel = x.stride()
    return image, 0, channel, pixel


def per_pair(x: Tensor) -> tuple[int, ...]:
    """Of (2, B, H, W, d)."""
    pair, image, _, pixel, channel = x.stride()
    return image, pair, channel, pixel


def ss2d_numba(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    keep: bool = False,
) -> tuple[Tensor, Tensor]:
    """x (B, H, W, d), delta (B, 4, H, W, d), A (4·d, N), B, C (B, 4, H, W, N) → y (B, H, W, d).

    Also returns, if `keep`, the states that the backward pass starts its chunks from.
    """
    (batch, H, W, d), N = x.shape, A.shape[1]
    x, delta, B, C = (with_one_pixel_stride(v) for v in (x, delta, B, C))
    y = x.new_empty(PAIRS, batch, H, W, d)
    last = x.new_empty(batch, ROUTES * d, N)
    kept = room_for_states(x, batch, ROUTES, d, N, H * W) if keep else x.new_empty(0)
    strides = (shared(x), per_route(delta), per_route(B), per_route(C), per_pair(y))
    arguments = (
        plan_of(PAIRS, ROUTES // PAIRS, d, H * W, N, delta_softplus, *strides),
        route_table(H, W),
        *(numbers(v) for v in (x, delta, (A * LOG2E).contiguous(), B, C)),
        or_zeros(D, ROUTES * d, x),
        or_zeros(delta_bias, ROUTES * d, x),
        *(numbers(v) for v in (y, last)),
        kept.numpy().reshape(-1),
    )
    launch(forward_parallel, forward_serial, batch * PAIRS * -(-d // TILE), arguments)
    return y[0] + y[1], kept


def ss2d_numba_backward(
    dy: Tensor,
    kept: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, ...]:
    """The gradients of (x, delta, A, B, C, D, delta_bias), contiguous, for that of y."""
    (batch, H, W, d), N = x.shape, A.shape[1]
    x, delta, B, C, dy = (with_one_pixel_stride(v) for v in (x, delta, B, C, dy))
    tiles = -(-d // TILE)
    dx = x.new_empty(PAIRS, batch, H, W, d)
    ddelta = x.new_empty(batch, ROUTES, H, W, d)
    dA = x.new_empty(batch, ROUTES * d, N)
    dB, dC = x.new_empty(2, tiles, batch, ROUTES, H, W, N)
    dD, dbias = x.new_empty(2, batch, ROUTES * d)
    strides = (
        shared(x),
        *(per_route(v) for v in (delta, B, C)),
        shared(dy),
        per_pair(dx),
        per_route(ddelta),
    )
    dlast = x.new_zeros(batch, ROUTES * d, N)
    arguments = (
        plan_of(PAIRS, ROUTES // PAIRS, d, H * W, N, delta_softplus, *strides),
        route_table(H, W),
        *(numbers(v) for v in (x, delta, (A * LOG2E).contiguous(), B, C)),
        or_zeros(D, ROUTES * d, x),
        or_zeros(delta_bias, ROUTES * d, x),
        numbers(x.new_tensor(math.log(2)))[0],
        *(numbers(v) for v in (dy, dlast, kept, dx, ddelta, dA, dB, dC, dD, dbias)),
    )
    launch(backward_parallel, backward_serial, batch * PAIRS * tiles, arguments)
    sums = (v.sum(0) for v in (dA, dB, dC, dD, dbias))
    return dx[0] + dx[1], ddelta, *sums

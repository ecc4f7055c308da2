"""The selective scan of a map along its four routes, without making the four sequences.

`cross_scan` lays a map of H·W pixels out four times, scans four sequences and adds them back up.
Here the map stays where it is: a route is a table `pos` that says at which pixel its step t
stands, and the kernels of scan_numba.py read u, Δ, B, C and write y through that table.

    task     one tile of channels, two routes that are each other's reverse (0 and 2, 1 and 3)
    y        one map for each of the two pairs; the second route of a pair adds to the first
    Δ, B, C  projected once at every pixel, in pixel order, channels last; Δ inside the task, if its
             weight is given

Bytes: u is read by every route, 4 times 4 a pixel and channel, mostly from the cache; delta 16, or
next to nothing with its weight; y written twice, read once. The four sequences and their four
outputs, 32, are never made.
Operations: those of four scans.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from .map_layout import ROUTES, per_route, shared, with_one_pixel_stride
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
    spans_of,
)

PAIRS = 2  # group g of a pair holds the routes g and g + 2


@functools.lru_cache(maxsize=64)
def route_table(H: int, W: int) -> np.ndarray:
    """pos[k, t]: the pixel, counted row by row, at which step t of route k stands; flat."""
    pixels = np.arange(H * W).reshape(H, W)
    rows, columns = pixels.ravel(), pixels.T.ravel()
    return np.concatenate([rows, columns, rows[::-1], columns[::-1]])


def weight_of(delta_weight: Tensor | None, like: Tensor) -> tuple[Tensor, int]:
    """delta_weight (4, d, R), contiguous, and R; nothing and 0 where there is none."""
    if delta_weight is None:
        return like.new_empty(0), 0
    return delta_weight.contiguous(), delta_weight.shape[-1]


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
    delta_weight: Tensor | None = None,
    keep: bool = False,
) -> tuple[Tensor, Tensor]:
    """x (B, H, W, d), delta (B, 4, H, W, d), A (4·d, N), B, C (B, 4, H, W, N) → y (B, H, W, d).

    With delta_weight (4, d, R) delta is (B, 4, H, W, R), and a task multiplies the two tile by
    tile: the R numbers of a pixel are read where d would be.
    Also returns, if `keep`, the states that the backward pass starts its chunks from.
    """
    (batch, H, W, d), N = x.shape, A.shape[1]
    x, delta, B, C = (with_one_pixel_stride(v) for v in (x, delta, B, C))
    y = x.new_empty(PAIRS, batch, H, W, d)
    kept = room_for_states(x, batch, ROUTES, d, N, H * W) if keep else x.new_empty(0)
    strides = (shared(x), per_route(delta), per_route(B), per_route(C), per_pair(y))
    span, tasks = spans_of(d, batch * PAIRS, x.stride(-1) == 1)
    weight, R = weight_of(delta_weight, x)
    arguments = (
        plan_of(PAIRS, ROUTES // PAIRS, d, H * W, N, delta_softplus, span, R, *strides),
        route_table(H, W),
        *(numbers(v) for v in (x, delta, (A * LOG2E).contiguous(), B, C)),
        or_zeros(D, ROUTES * d, x),
        or_zeros(delta_bias, ROUTES * d, x),
        *(numbers(v) for v in (weight, y, x.new_empty(0))),
        kept.numpy().reshape(-1),
    )
    launch(forward_parallel, forward_serial, tasks, arguments)
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
    delta_weight: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The gradients of (x, delta, A, B, C, D, delta_bias, delta_weight) for that of y.

    That of an absent argument is to be ignored.
    """
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
    span, tasks = spans_of(d, batch * PAIRS, x.stride(-1) == 1)
    weight, R = weight_of(delta_weight, x)
    arguments = (
        plan_of(PAIRS, ROUTES // PAIRS, d, H * W, N, delta_softplus, span, R, *strides),
        route_table(H, W),
        *(numbers(v) for v in (x, delta, (A * LOG2E).contiguous(), B, C)),
        or_zeros(D, ROUTES * d, x),
        or_zeros(delta_bias, ROUTES * d, x),
        numbers(weight),
        numbers(x.new_tensor(math.log(2)))[0],
        *(numbers(v) for v in (dy, dlast, kept, dx, ddelta, dA, dB, dC, dD, dbias)),
    )
    launch(backward_parallel, backward_serial, tasks, arguments)
    sums = (v.sum(0) for v in (dA, dB, dC, dD, dbias))
    dweight = weight
    if delta_weight is not None:
        with torch.autocast("cpu", enabled=False):
            steps = ddelta.flatten(2, 3)  # (B, 4, L, d)
            dweight = (steps.transpose(2, 3) @ delta.flatten(2, 3)).sum(0)  # (4, d, R)
            ddelta = (steps @ weight).unflatten(2, (H, W))
    return dx[0] + dx[1], ddelta, *sums, dweight

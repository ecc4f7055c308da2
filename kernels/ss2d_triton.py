"""The selective scan of a map along its four routes, in Triton, without making the four sequences.

The kernels of scan_triton.py read and write a map where it lies: `place_of` says at which pixel,
counted row by row, step t of a route stands.

    programs  as in a sequence of 4 groups: a block of channels of one image and route
    y         one map for each route, added up afterwards, always in one order
    Δ, B, C   projected once at every pixel, in pixel order, channels last

Bytes of a pixel and channel in float32: x is read by every route, 16 together, all but the first
from the cache at best; delta 16; y written 16, read again 16, their sum written 4. Against the
four sequences laid out: 20 to lay out u, and 80 for a delta that had to be laid out as well.
Operations: those of four scans, and a division of whole numbers in every step: 1 to 2
instructions more for each of 16 states (sm_90, float32: 11 forward, 34 backward).
"""

import torch
from torch import Tensor

from .map_layout import ROUTES, per_route, shared, with_one_pixel_stride
from .scan_triton import Problem, backward, forward, rates


def on_a_map(x, delta, A, B, C, D, delta_bias, delta_softplus) -> Problem:
    (batch, H, W, d), N = x.shape, A.shape[1]
    x, delta, B, C = (with_one_pixel_stride(v) for v in (x, delta, B, C))
    D, bias = (None if v is None else v.contiguous() for v in (D, delta_bias))
    strides = shared(x), per_route(delta), per_route(B), per_route(C)
    return Problem(
        x, delta, rates(A, ROUTES), B, C, D, bias, delta_softplus, strides,
        batch, ROUTES, d, N, H * W, H, W, is_map=True,
    )  # fmt: skip


def ss2d_triton(
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

    y is float32, whatever the tensors are. Also returns, if `keep`, the states that the backward
    pass starts its chunks from.
    """
    batch, H, W, d = x.shape
    problem = on_a_map(x, delta, A, B, C, D, delta_bias, delta_softplus)
    y = problem.rows(batch, ROUTES, H, W, d)
    _, kept = forward(problem, y, per_route(y), keep)
    return y.sum(1), kept


def ss2d_triton_backward(
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
    batch, H, W, d = x.shape
    problem = on_a_map(x, delta, A, B, C, D, delta_bias, delta_softplus)
    dy = with_one_pixel_stride(dy)
    dx = problem.rows(batch, ROUTES, H, W, d)
    ddelta = torch.empty(batch, ROUTES, H, W, d, dtype=delta.dtype, device=delta.device)
    dlast = problem.rows(batch, ROUTES * d, A.shape[1]).zero_()
    dA, dB, dC, dD, dbias = backward(
        problem, dy, shared(dy), dlast, kept, dx, per_route(dx), ddelta, per_route(ddelta)
    )
    dB, dC = (v.unflatten(2, (H, W)).contiguous() for v in (dB, dC))  # (B, 4, H, W, N)
    sums = zip((dx.sum(1), dA, dB, dC, dD, dbias), (x, A, B, C, D, delta_bias), strict=True)
    dx, *rest = (dv if v is None else dv.to(v.dtype) for dv, v in sums)
    return dx, ddelta, *rest

"""The cross-scan module: four routes over a feature map, and the way back (lesson 09).

A scan sees only what came before. Four routes together show every pixel every other one:

    0   row by row          top-left     → bottom-right
    1   column by column    top-left     → bottom-right
    2   route 0 reversed    bottom-right → top-left
    3   route 1 reversed    bottom-right → top-left

`cross_merge` undoes each order and adds the four maps, unweighted. It is the adjoint (the
transpose) of `cross_scan`: ⟨cross_scan(x), y⟩ = ⟨x, cross_merge(y)⟩.

Source: VMamba, arXiv 2401.10166, 2D selective scan; the order is the one of the released weights.
"""

import torch
from torch import Tensor

from minivmamba.expect import expect_int, expect_tensors

ROUTES = 4


def cross_scan(x: Tensor) -> Tensor:
    """Lay a map out along the four routes.

    Args:
        x: (B, C, H, W), any dtype.

    Returns:
        (B, 4, C, H·W): the route is the second axis.

    Raises:
        ValueError: x does not have four axes.
    """
    expect_tensors(x=x)
    if x.ndim != 4:
        raise ValueError(f"x: expected shape (B, C, H, W), got {tuple(x.shape)}")
    rows = x.flatten(2)
    columns = x.transpose(2, 3).flatten(2)
    forward = torch.stack([rows, columns], dim=1)  # (B, 2, C, L)
    return torch.cat([forward, forward.flip(-1)], dim=1)


def cross_merge(ys: Tensor, H: int, W: int) -> Tensor:
    """Bring the four sequences back to the map and add them.

    Args:
        ys: (B, 4, C, H·W), ordered as by `cross_scan`.
        H, W: height and width of the map.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: ys does not have the shape (B, 4, C, H·W), or H or W is below 1.
    """
    expect_tensors(ys=ys)
    expect_int("H", H, minimum=1)
    expect_int("W", W, minimum=1)
    if ys.ndim != 4 or ys.shape[1] != 4 or ys.shape[3] != H * W:
        raise ValueError(
            f"ys: expected shape (B, 4, C, {H * W}) for H = {H}, W = {W}, got {tuple(ys.shape)}"
        )
    forward = ys[:, :2] + ys[:, 2:].flip(-1)  # (B, 2, C, L)
    rows, columns = forward.unbind(1)
    return rows.unflatten(-1, (H, W)) + columns.unflatten(-1, (W, H)).transpose(2, 3)

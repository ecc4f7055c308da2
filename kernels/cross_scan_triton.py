"""The cross-scan and the cross-merge on a GPU, in Triton (lessons 08 and 09).

    cross_scan    a map x (B, C, H, W) → four sequences (B, 4, C, H·W), one for each route
    cross_merge   four sequences → the map, each brought back to its order, and all four added

Route 0 goes row by row, route 1 column by column, routes 2 and 3 are 0 and 1 from the last pixel
to the first. Each kernel is the other's backward pass: the merge is the transpose of the scan.

A program carries one square tile of one channel. It stands in memory twice by rows and twice by
columns; between the two Triton turns it over in shared memory, so that neighbouring threads always
touch neighbouring numbers.

Bytes of a number in float32: scan 4 read, 16 written; merge 16 read, 4 written. Operations: none,
and 3 additions.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 32


@triton.jit
def tile_of(H, W, TILE: tl.constexpr):
    """(by rows, by columns, mask): the pixels of a tile in both orders."""
    across = tl.cdiv(W, TILE)
    h = (tl.program_id(1) // across * TILE + tl.arange(0, TILE))[:, None]
    w = (tl.program_id(1) % across * TILE + tl.arange(0, TILE))[None, :]
    return h * W + w, w * H + h, (h < H) & (w < W)


@triton.jit
def cross_scan_kernel(x, ys, x_strides, y_strides, channels, H, W, TILE: tl.constexpr):
    """x_strides: image, channel, row, column; y_strides: image, route, channel, place."""
    image, channel = tl.program_id(0) // channels, tl.program_id(0) % channels
    rows, columns, mask = tile_of(H, W, TILE)
    x += tl.cast(image, tl.int64) * x_strides[0] + tl.cast(channel, tl.int64) * x_strides[1]
    ys += tl.cast(image, tl.int64) * y_strides[0] + tl.cast(channel, tl.int64) * y_strides[2]
    values = tl.load(x + rows // W * x_strides[2] + rows % W * x_strides[3], mask=mask)
    last = H * W - 1
    tl.store(ys + rows * y_strides[3], values, mask=mask)
    tl.store(ys + y_strides[1] + columns * y_strides[3], values, mask=mask)
    tl.store(ys + 2 * y_strides[1] + (last - rows) * y_strides[3], values, mask=mask)
    tl.store(ys + 3 * y_strides[1] + (last - columns) * y_strides[3], values, mask=mask)


@triton.jit
def cross_merge_kernel(x, ys, x_strides, y_strides, channels, H, W, TILE: tl.constexpr):
    image, channel = tl.program_id(0) // channels, tl.program_id(0) % channels
    rows, columns, mask = tile_of(H, W, TILE)
    x += tl.cast(image, tl.int64) * x_strides[0] + tl.cast(channel, tl.int64) * x_strides[1]
    ys += tl.cast(image, tl.int64) * y_strides[0] + tl.cast(channel, tl.int64) * y_strides[2]
    last = H * W - 1
    by_rows = tl.load(ys + rows * y_strides[3], mask=mask)
    by_rows += tl.load(ys + 2 * y_strides[1] + (last - rows) * y_strides[3], mask=mask)
    by_columns = tl.load(ys + y_strides[1] + columns * y_strides[3], mask=mask)
    by_columns += tl.load(ys + 3 * y_strides[1] + (last - columns) * y_strides[3], mask=mask)
    where = rows // W * x_strides[2] + rows % W * x_strides[3]
    tl.store(x + where, by_rows + by_columns, mask=mask)


def launch(kernel: Any, x: Tensor, ys: Tensor) -> None:
    batch, channels, H, W = x.shape
    grid = batch * channels, triton.cdiv(H, TILE) * triton.cdiv(W, TILE)
    if 0 not in grid:
        with torch.cuda.device_of(x):  # Triton launches on the current device
            kernel[grid](x, ys, x.stride(), ys.stride(), channels, H, W, TILE=TILE, num_warps=4)


def cross_scan_triton(x: Tensor) -> Tensor:
    """(B, C, H, W), any strides → (B, 4, C, H·W)."""
    batch, channels, H, W = x.shape
    ys = x.new_empty(batch, 4, channels, H * W)
    launch(cross_scan_kernel, x, ys)
    return ys


def cross_merge_triton(ys: Tensor, H: int, W: int) -> Tensor:
    """(B, 4, C, H·W), any strides → (B, C, H, W)."""
    batch, _, channels, _ = ys.shape
    x = ys.new_empty(batch, channels, H, W)
    launch(cross_merge_kernel, x, ys)
    return x

"""How the fused kernels see a map: its channels last, its pixels counted row by row.

Strides are those of image, route, channel or state, and pixel.
"""

from torch import Tensor

ROUTES = 4


def with_one_pixel_stride(x: Tensor) -> Tensor:
    """(…, H, W, channels) whose pixels lie at equal distances, row by row."""
    H_stride, W_stride, _ = x.stride()[-3:]
    return x if x.shape[-3] == 1 or H_stride == x.shape[-2] * W_stride else x.contiguous()


def per_route(x: Tensor) -> tuple[int, ...]:
    """Of (B, 4, H, W, channels)."""
    image, route, _, pixel, channel = x.stride()
    return image, route, channel, pixel


def shared(x: Tensor) -> tuple[int, ...]:
    """Of (B, H, W, d), the same for all routes."""
    image, _, pixel, channel = x.stride()
    return image, 0, channel, pixel

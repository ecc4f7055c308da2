"""What both versions of VMamba share: stages of falling resolution, and how an image passes them.

    image (B, 3, H, W)
      → stem              (B, H/4, W/4, C)
      → VSSLayer × 4      blocks, then half the size and twice the channels

Inside the model maps are channels-last, (B, H, W, C). A version adds its stem, its blocks, its step
between stages and its classifier: vssm.py is the first, vssm_v2.py the second.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn as nn
from torch import Tensor

from minivmamba.expect import expect_int, expect_like_weights, expect_rate, expect_tensors


class DropPath(nn.Module):
    """Leave out the whole branch of a random sample while training (stochastic depth).

    The samples that keep it are scaled by 1 / (1 − rate), so that the mean stays the same.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        expect_rate("drop_path", rate)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with the batch first → the same shape."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"{self.rate:.3f}"


class VSSLayer(nn.Module):
    """One stage: blocks at one resolution, then a smaller map (none in the last stage).

    Args:
        blocks: modules that keep the shape (B, H, W, C).
        downsample: (B, H, W, C) → (B, H/2, W/2, 2C), or None.
    """

    def __init__(self, blocks: Iterable[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def features(self, x: Tensor) -> Tensor:
        """The blocks alone: (B, H, W, C) → (B, H, W, C)."""
        for block in self.blocks:
            x = block(x)
        return x

    def shrink(self, x: Tensor) -> Tensor:
        """The step to the next stage alone, or x itself in the last stage."""
        return x if self.downsample is None else self.downsample(x)

    def forward(self, x: Tensor) -> Tensor:
        """The blocks, then the smaller map."""
        return self.shrink(self.features(x))


class StagedModel(nn.Module):
    """A stem, stages and a classifier; a version sets `layers` and writes `stem` and `classify`.

    Args:
        depths: blocks per stage.
        dims: channels per stage, or those of the first stage, doubled at every next one.
        num_classes: width of the head; 0 leaves the head out and gives the pooled features.
        in_chans: channels of the image.
        stride: pixels of the image to a pixel of the first map.

    Raises:
        TypeError: depths is not a list.
        ValueError: an argument is out of range, or dims does not double from stage to stage.
    """

    layers: nn.ModuleList

    def __init__(
        self,
        depths: Sequence[int],
        dims: int | Sequence[int],
        num_classes: int,
        in_chans: int,
        stride: int,
    ) -> None:
        super().__init__()
        self.dims, self.depths = stage_dims(dims, depths), list(depths)
        expect_int("num_classes", num_classes, minimum=0)
        expect_int("in_chans", in_chans, minimum=1)
        self.num_classes, self.in_chans, self.stride = num_classes, in_chans, stride

    def stem(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) → (B, H/stride, W/stride, C)."""
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        """The last map, (B, H, W, C) → class scores (B, num_classes)."""
        raise NotImplementedError

    @property
    def min_size(self) -> int:
        """Smallest height and width of an image: 32 for four stages behind a stem of stride 4.

        Below it a stage would see more padding than picture.
        """
        return self.stride * 2 ** (len(self.depths) - 1)

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """The map of every stage before patch merging.

        Args:
            images: (B, in_chans, H, W), floating point, H and W at least `min_size`.

        Returns:
            One map a stage, (B, C, H/s, W/s) at strides s = 4, 8, 16, 32; odd sizes round up.

        Raises:
            TypeError: images is not a floating-point tensor of the model's dtype.
            ValueError: a wrong number of axes or channels, an image that is too small, or another
                device than the model's.
        """
        self._check_images(images)
        x = self.stem(images)
        maps = []
        for layer in cast(Iterable[VSSLayer], self.layers):
            x = layer.features(x)
            maps.append(x.permute(0, 3, 1, 2))
            x = layer.shrink(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (logits), (B, num_classes). Arguments and errors: `forward_features`."""
        return self.classify(self.forward_features(images)[-1].permute(0, 2, 3, 1))

    def _check_images(self, images: Tensor) -> None:
        expect_tensors(images=images)
        weight = next(self.parameters())
        shape = tuple(images.shape)
        if images.ndim != 4 or shape[1] != self.in_chans:
            raise ValueError(f"images: expected shape (B, {self.in_chans}, H, W), got {shape}")
        if min(shape[2:]) < self.min_size:
            raise ValueError(
                f"images: expected a height and width of at least {self.min_size} pixels, "
                f"got {shape[2]} × {shape[3]}"
            )
        if images.dtype == torch.uint8:
            raise TypeError(
                "images: expected a floating-point tensor, got torch.uint8; "
                "minivmamba.photos.to_input prepares a photograph"
            )
        expect_like_weights("images", images, weight)


def stage_dims(dims: int | Sequence[int], depths: Sequence[int]) -> list[int]:
    if not isinstance(depths, Sequence):
        raise TypeError(f"depths: expected a list of integers, got {type(depths).__name__}")
    if not depths:
        raise ValueError("depths: expected at least one stage, got none")
    for depth in depths:
        expect_int("depths", depth, minimum=1)
    if not isinstance(dims, Sequence):
        expect_int("dims", dims, minimum=1)
        dims = [dims * 2**stage for stage in range(len(depths))]
    dims = list(dims)
    if len(dims) != len(depths):
        raise ValueError(f"dims: expected {len(depths)} widths as in depths, got {len(dims)}")
    for dim in dims:
        expect_int("dims", dim, minimum=1)
    if dims != [dims[0] * 2**stage for stage in range(len(dims))]:
        raise ValueError(f"dims: expected widths that double from stage to stage, got {dims}")
    return dims


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """A list a stage: 0 at the first block of all, `last` at the last, linear between."""
    expect_rate("drop_path_rate", last)
    rates = iter(last * block / max(sum(depths) - 1, 1) for block in range(sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def init_linear(module: nn.Module) -> None:
    """Linear layers start from a truncated normal of 0.02; the rest keep their own start."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

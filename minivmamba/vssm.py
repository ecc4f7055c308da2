"""VMamba: from an image to class scores (lesson 11).

    image (B, 3, H, W)
      → PatchEmbed2D      4×4 patches, (B, H/4, W/4, C)
      → VSSLayer × 4      VSS blocks, then PatchMerging2D: half the size, twice the channels
      → norm, avgpool, head

Inside the model maps are channels-last, (B, H, W, C). Module tree, names and initial values are
those of the first public release (January 2024) of VMamba, arXiv 2401.10166.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minivmamba.expect import expect_int, expect_like_weights, expect_rate, expect_tensors
from minivmamba.ss2d import SS2D


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


class VSSBlock(nn.Module):
    """x + DropPath(SS2D(LayerNorm(x))), channels-last; there is no MLP in this version."""

    def __init__(self, dim: int, d_state: int = 16, drop_path: float = 0.0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = SS2D(dim, d_state=d_state)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) → (B, H, W, dim)."""
        return x + self.drop_path(self.self_attention(self.ln_1(x)))


class PatchEmbed2D(nn.Module):
    """The stem: cut the image into patches and project each, (B, 3, H, W) → (B, H/4, W/4, dim).

    Rows and columns beyond a multiple of the patch size are dropped, as a strided convolution
    does.
    """

    def __init__(self, patch_size: int = 4, in_chans: int = 3, dim: int = 96) -> None:
        super().__init__()
        for name, value in {"patch_size": patch_size, "in_chans": in_chans, "dim": dim}.items():
            expect_int(name, value, minimum=1)
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging2D(nn.Module):
    """Four neighbours become one pixel of twice the channels: (B, H, W, C) → (B, H/2, W/2, 2C).

    An odd map gets a row or column of zeros at the bottom or right, as in the newest public code
    (the first release dropped the last row or column instead).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        expect_int("dim", dim, minimum=1)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        corners = [x[:, row::2, col::2] for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class VSSLayer(nn.Module):
    """One stage: VSS blocks at one resolution, then patch merging (none in the last stage).

    Args:
        dim: channels. depth: number of blocks. d_state: states per channel.
        drop_path: one rate per block. downsample: whether patch merging follows.
    """

    def __init__(
        self, dim: int, depth: int, d_state: int, drop_path: Sequence[float], downsample: bool
    ) -> None:
        super().__init__()
        if len(drop_path) != depth:
            raise ValueError(f"drop_path: expected {depth} rates, got {len(drop_path)}")
        self.blocks = nn.ModuleList(
            VSSBlock(dim, d_state=d_state, drop_path=rate) for rate in drop_path
        )
        self.downsample = PatchMerging2D(dim) if downsample else None

    def features(self, x: Tensor) -> Tensor:
        """The blocks alone: (B, H, W, dim) → (B, H, W, dim)."""
        for block in self.blocks:
            x = block(x)
        return x

    def shrink(self, x: Tensor) -> Tensor:
        """Patch merging alone: (B, H, W, dim) → (B, H/2, W/2, 2·dim), or x in the last stage."""
        return x if self.downsample is None else self.downsample(x)

    def forward(self, x: Tensor) -> Tensor:
        """The blocks, then patch merging."""
        return self.shrink(self.features(x))


class VSSM(nn.Module):
    """VMamba, first version: `vmamba_tiny`, `vmamba_small` and `vmamba_base` are its sizes.

    Args:
        depths: blocks per stage.
        dims: channels per stage, or those of the first stage, doubled at every next one.
        num_classes: width of the head; 0 leaves the head out and gives the pooled features.
        in_chans: channels of the image.
        patch_size: side of a patch of the stem.
        d_state: states per channel and route.
        drop_path_rate: rate of the last block; it grows linearly from 0 at the first.

    Raises:
        TypeError: depths is not a list.
        ValueError: an argument is out of range, or dims does not double from stage to stage.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 9, 2),
        dims: int | Sequence[int] = 96,
        num_classes: int = 1000,
        in_chans: int = 3,
        patch_size: int = 4,
        d_state: int = 16,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        dims = _stage_dims(dims, depths)
        expect_int("num_classes", num_classes, minimum=0)
        rates = _drop_path_rates(drop_path_rate, sum(depths))
        self.depths, self.dims = list(depths), dims
        self.num_classes, self.in_chans, self.patch_size = num_classes, in_chans, patch_size

        self.patch_embed = PatchEmbed2D(patch_size, in_chans, dims[0])
        self.pos_drop = nn.Dropout(0.0)
        self.layers = nn.ModuleList()
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            first = sum(depths[:stage])
            self.layers.append(
                VSSLayer(
                    dim,
                    depth,
                    d_state=d_state,
                    drop_path=rates[first : first + depth],
                    downsample=stage < len(depths) - 1,
                )
            )
        self.norm = nn.LayerNorm(dims[-1])
        self.avgpool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(dims[-1], num_classes) if num_classes > 0 else nn.Identity()
        self.apply(_init_linear)

    @property
    def min_size(self) -> int:
        """Smallest height and width of an image: 32 for four stages and patches of 4 pixels.

        Below it a stage would see more padding than picture.
        """
        return self.patch_size * 2 ** (len(self.depths) - 1)

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
        x = self.pos_drop(self.patch_embed(images))
        maps = []
        for layer in cast(Iterable[VSSLayer], self.layers):
            x = layer.features(x)
            maps.append(x.permute(0, 3, 1, 2))
            x = layer.shrink(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (logits), (B, num_classes). Arguments and errors: `forward_features`."""
        x = self.forward_features(images)[-1].permute(0, 2, 3, 1)
        x = self.norm(x).flatten(1, 2).transpose(1, 2)  # (B, C, L)
        return self.head(self.avgpool(x).flatten(1))

    def _check_images(self, images: Tensor) -> None:
        expect_tensors(images=images)
        weight = self.patch_embed.proj.weight
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


def vmamba_tiny(num_classes: int = 1000, drop_path_rate: float = 0.2, **options) -> VSSM:
    """VMamba-T: depths 2, 2, 9, 2, first width 96; 22,893,448 parameters with 1000 classes."""
    return VSSM([2, 2, 9, 2], 96, num_classes, drop_path_rate=drop_path_rate, **options)


def vmamba_small(num_classes: int = 1000, drop_path_rate: float = 0.3, **options) -> VSSM:
    """VMamba-S: depths 2, 2, 27, 2, first width 96; 44,417,416 parameters with 1000 classes."""
    return VSSM([2, 2, 27, 2], 96, num_classes, drop_path_rate=drop_path_rate, **options)


def vmamba_base(num_classes: int = 1000, drop_path_rate: float = 0.5, **options) -> VSSM:
    """VMamba-B: depths 2, 2, 27, 2, first width 128; 76,254,056 parameters with 1000 classes."""
    return VSSM([2, 2, 27, 2], 128, num_classes, drop_path_rate=drop_path_rate, **options)


def _stage_dims(dims: int | Sequence[int], depths: Sequence[int]) -> list[int]:
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


def _drop_path_rates(last: float, blocks: int) -> list[float]:
    """0 at the first block, `last` at the last, linear between."""
    expect_rate("drop_path_rate", last)
    return [last * block / max(blocks - 1, 1) for block in range(blocks)]


def _init_linear(module: nn.Module) -> None:
    """Linear layers start from a truncated normal of 0.02; the rest keep their own start."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

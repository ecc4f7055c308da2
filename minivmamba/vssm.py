"""VMamba, first version: from an image to class scores (lesson 11).

    image (B, 3, H, W)
      → PatchEmbed2D      4×4 patches, (B, H/4, W/4, C)
      → VSSLayer × 4      VSS blocks, then PatchMerging2D: half the size, twice the channels
      → norm, avgpool, head

Inside the model maps are channels-last, (B, H, W, C). Module tree, names and initial values are
those of the first public release (January 2024) of VMamba, arXiv 2401.10166.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minivmamba.expect import expect_int
from minivmamba.ss2d import SS2D
from minivmamba.stages import DropPath, StagedModel, VSSLayer, drop_path_rates, init_linear


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


class VSSM(StagedModel):
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
        super().__init__(depths, dims, num_classes, in_chans, patch_size)
        rates = drop_path_rates(drop_path_rate, depths)
        self.patch_embed = PatchEmbed2D(patch_size, in_chans, self.dims[0])
        self.pos_drop = nn.Dropout(0.0)
        last = len(depths) - 1
        self.layers = nn.ModuleList(
            VSSLayer(
                (VSSBlock(dim, d_state, rate) for rate in rates[stage]),
                PatchMerging2D(dim) if stage < last else None,
            )
            for stage, dim in enumerate(self.dims)
        )
        self.norm = nn.LayerNorm(self.dims[-1])
        self.avgpool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(self.dims[-1], num_classes) if num_classes > 0 else nn.Identity()
        self.apply(init_linear)

    def stem(self, images: Tensor) -> Tensor:
        return self.pos_drop(self.patch_embed(images))

    def classify(self, x: Tensor) -> Tensor:
        x = self.norm(x).flatten(1, 2).transpose(1, 2)  # (B, C, L)
        return self.head(self.avgpool(x).flatten(1))


def vmamba_tiny(num_classes: int = 1000, drop_path_rate: float = 0.2, **options) -> VSSM:
    """VMamba-T: depths 2, 2, 9, 2, first width 96; 22,893,448 parameters with 1000 classes."""
    return VSSM([2, 2, 9, 2], 96, num_classes, drop_path_rate=drop_path_rate, **options)


def vmamba_small(num_classes: int = 1000, drop_path_rate: float = 0.3, **options) -> VSSM:
    """VMamba-S: depths 2, 2, 27, 2, first width 96; 44,417,416 parameters with 1000 classes."""
    return VSSM([2, 2, 27, 2], 96, num_classes, drop_path_rate=drop_path_rate, **options)


def vmamba_base(num_classes: int = 1000, drop_path_rate: float = 0.5, **options) -> VSSM:
    """VMamba-B: depths 2, 2, 27, 2, first width 128; 76,254,056 parameters with 1000 classes."""
    return VSSM([2, 2, 27, 2], 128, num_classes, drop_path_rate=drop_path_rate, **options)

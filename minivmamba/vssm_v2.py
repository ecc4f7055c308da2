"""VMamba, second version: the same four routes in a leaner block (lessons 10 and 11).

Against the first version (vssm.py):

    state     one per channel and route instead of 16: the scan becomes nearly free
    SS2D      no gate z; d_inner = C (s1) or 2C (s2); the depthwise convolution has no bias
    block     an MLP follows, as in a transformer: x + SS2D(LN(x)), then x + MLP(LN(x))
    stem      two convolutions 3×3 of stride 2, and one between stages, instead of patches

Names and shapes of the parameters are those of the newest public release (March 2025) of VMamba,
arXiv 2401.10166. It works on channels-first maps; here maps are channels-last inside, as in the
first version, so the positions of its sequences hold `Permute` modules where axes are exchanged.
"""

import math
from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor

from minivmamba.expect import expect_int, expect_positive
from minivmamba.ss2d import RouteScan, expect_map
from minivmamba.stages import DropPath, StagedModel, VSSLayer, drop_path_rates, init_linear


class SS2Dv2(RouteScan):
    """2D selective scan without a gate: (B, H, W, d_model) → the same shape.

    Args:
        d_model: channels of the map.
        d_state: N, states per channel and route.
        ssm_ratio: d_inner = ssm_ratio · d_model, rounded down.
        dt_rank: R, width of the low-rank projection to Δ; ceil(d_model / 16) if None.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, d_model: int, d_state: int = 1, ssm_ratio: float = 1.0, dt_rank: int | None = None
    ) -> None:
        expect_int("d_model", d_model, minimum=1)
        expect_positive("ssm_ratio", ssm_ratio)
        d = int(ssm_ratio * d_model)
        super().__init__(d, d_state, math.ceil(d_model / 16) if dt_rank is None else dt_rank)
        self.d_model = d_model
        self.in_proj = nn.Linear(d_model, d, bias=False)
        self.conv2d = nn.Conv2d(d, d, kernel_size=3, padding=1, groups=d, bias=False)
        self.act = nn.SiLU()
        self.out_norm = nn.LayerNorm(d)
        self.out_proj = nn.Linear(d, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, d_model) → (B, H, W, d_model). Errors: as those of `SS2D`."""
        expect_map(x, self.d_model, self.in_proj.weight)
        x = self.in_proj(x).permute(0, 3, 1, 2)  # (B, d, H, W)
        y = self.scan(self.act(self.conv2d(x)))  # (B, H, W, d), at least float32
        return self.out_proj(self.out_norm(y.to(self.out_norm.weight.dtype)))


class MLP(nn.Module):
    """Linear, GELU, linear, at every pixel: (…, dim) → (…, dim)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class VSSBlockV2(nn.Module):
    """x + DropPath(SS2D(LN(x))), then x + DropPath(MLP(LN(x))), channels-last."""

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        expect_positive("mlp_ratio", mlp_ratio)
        self.norm = nn.LayerNorm(dim)
        self.op = SS2Dv2(dim, d_state, ssm_ratio)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(mlp_ratio * dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) → (B, H, W, dim)."""
        x = x + self.drop_path(self.op(self.norm(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Permute(nn.Module):
    """Exchange the axes of a tensor."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.order))


def channels_last() -> Permute:
    return Permute(0, 2, 3, 1)


def channels_first() -> Permute:
    return Permute(0, 3, 1, 2)


class VSSMv2(StagedModel):
    """VMamba, second version: `vmamba_tiny_s1l8` and its siblings are its sizes.

    Args:
        depths: blocks per stage.
        dims: channels per stage, or those of the first stage, doubled at every next one; even.
        num_classes: width of the head; 0 leaves the head out and gives the pooled features.
        in_chans: channels of the image.
        d_state: states per channel and route.
        ssm_ratio: channels of the scan, as a multiple of those of the map.
        mlp_ratio: hidden channels of the MLP, likewise.
        drop_path_rate: rate of the last block; it grows linearly from 0 at the first.

    Raises:
        TypeError: depths is not a list.
        ValueError: an argument is out of range, or dims does not double from stage to stage.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: int | Sequence[int] = 96,
        num_classes: int = 1000,
        in_chans: int = 3,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__(depths, dims, num_classes, in_chans, stride=4)
        if self.dims[0] % 2:
            raise ValueError(f"dims: expected an even first width, got {self.dims[0]}")
        rates = drop_path_rates(drop_path_rate, depths)
        self.patch_embed = two_convolutions(in_chans, self.dims[0])
        last = len(depths) - 1
        self.layers = nn.ModuleList(
            VSSLayer(
                (VSSBlockV2(dim, d_state, ssm_ratio, mlp_ratio, rate) for rate in rates[stage]),
                half_the_size(dim) if stage < last else None,
            )
            for stage, dim in enumerate(self.dims)
        )
        self.classifier = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(self.dims[-1]),
                "head": nn.Linear(self.dims[-1], num_classes) if num_classes else nn.Identity(),
            }
        )
        self.apply(init_linear)

    def stem(self, images: Tensor) -> Tensor:
        return self.patch_embed(images)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier["head"](self.classifier["norm"](x).mean((1, 2)))


def two_convolutions(in_chans: int, dim: int) -> nn.Sequential:
    """The stem: (B, in_chans, H, W) → (B, H/4, W/4, dim); odd sizes round up."""
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 2, kernel_size=3, stride=2, padding=1),
        channels_last(),
        nn.LayerNorm(dim // 2),
        channels_first(),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, kernel_size=3, stride=2, padding=1),
        channels_last(),
        nn.LayerNorm(dim),
    )


def half_the_size(dim: int) -> nn.Sequential:
    """The step between stages: (B, H, W, dim) → (B, H/2, W/2, 2·dim); odd sizes round up."""
    return nn.Sequential(
        channels_first(),
        nn.Conv2d(dim, 2 * dim, kernel_size=3, stride=2, padding=1),
        channels_last(),
        nn.LayerNorm(2 * dim),
    )


def vmamba_tiny_s1l8(num_classes: int = 1000, drop_path_rate: float = 0.2, **options) -> VSSMv2:
    """VMamba-T[s1l8]: depths 2, 2, 8, 2, first width 96; 30,249,064 parameters."""
    return _build([2, 2, 8, 2], 96, 1.0, num_classes, drop_path_rate, options)


def vmamba_small_s1l20(num_classes: int = 1000, drop_path_rate: float = 0.3, **options) -> VSSMv2:
    """VMamba-S[s1l20]: depths 2, 2, 20, 2, first width 96; 49,012,840 parameters."""
    return _build([2, 2, 20, 2], 96, 1.0, num_classes, drop_path_rate, options)


def vmamba_base_s1l20(num_classes: int = 1000, drop_path_rate: float = 0.5, **options) -> VSSMv2:
    """VMamba-B[s1l20]: depths 2, 2, 20, 2, first width 128; 86,614,504 parameters."""
    return _build([2, 2, 20, 2], 128, 1.0, num_classes, drop_path_rate, options)


def vmamba_tiny_s2l5(num_classes: int = 1000, drop_path_rate: float = 0.2, **options) -> VSSMv2:
    """VMamba-T[s2l5]: depths 2, 2, 5, 2, first width 96; 30,705,832 parameters."""
    return _build([2, 2, 5, 2], 96, 2.0, num_classes, drop_path_rate, options)


def vmamba_small_s2l15(num_classes: int = 1000, drop_path_rate: float = 0.3, **options) -> VSSMv2:
    """VMamba-S[s2l15]: depths 2, 2, 15, 2, first width 96; 50,147,752 parameters."""
    return _build([2, 2, 15, 2], 96, 2.0, num_classes, drop_path_rate, options)


def vmamba_base_s2l15(num_classes: int = 1000, drop_path_rate: float = 0.6, **options) -> VSSMv2:
    """VMamba-B[s2l15]: depths 2, 2, 15, 2, first width 128; 88,557,800 parameters."""
    return _build([2, 2, 15, 2], 128, 2.0, num_classes, drop_path_rate, options)


def _build(depths, dim, ssm_ratio, num_classes, drop_path_rate, options) -> VSSMv2:
    options = {"ssm_ratio": ssm_ratio, "drop_path_rate": drop_path_rate, **options}
    return VSSMv2(depths, dim, num_classes, **options)

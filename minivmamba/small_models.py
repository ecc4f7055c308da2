"""Five backbones of one size, small enough for a laptop: VMamba and those it is measured against.

    small_vmamba, small_resnet, small_convnext, small_swin, small_deit     0.32 M parameters, ± 5%
    small_field_cnn                                                        a control, see below

Made for images of 64 pixels and upwards. The four hierarchical ones have three stages at strides 4,
8 and 16 (VMamba-T has four, at 64 pixels the last would be 2 × 2); DeiT has patches of 8 pixels.
Every head is linear behind an average or a class token.

torchvision's own classes take any width and depth, except ResNet, whose widths are fixed: it is put
together from torchvision's blocks. Its VisionTransformer takes one size only; `SmallDeiT`
interpolates the position embedding for others.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from minivmamba.expect import expect_int
from minivmamba.vssm import VSSM

Model = TypeVar("Model", bound=nn.Module)

SIZE = 64  # pixels of the side that the position embedding of DeiT is made for


def small_vmamba(num_classes: int = 10) -> VSSM:
    """VMamba, first version: depths 2, 2, 2, widths 28, 56, 112, 4 states."""
    model = VSSM([2, 2, 2], 28, num_classes, d_state=4, drop_path_rate=0.0)
    model.patch_embed.proj = conv_stem(28)  # type: ignore[assignment]
    return begin_wider(model)


def small_resnet(num_classes: int = 10) -> "SmallResNet":
    """ResNet of basic blocks: depths 2, 2, 2, widths 22, 44, 88."""
    return SmallResNet([2, 2, 2], 22, num_classes)


def small_convnext(num_classes: int = 10) -> ConvNeXt:
    """ConvNeXt: depths 2, 2, 2, widths 28, 56, 112; kernels of 7 × 7."""
    widths = [28, 56, 112]
    stages = [
        CNBlockConfig(width, after, 2)
        for width, after in zip(widths, [*widths[1:], None], strict=True)
    ]
    model = ConvNeXt(stages, layer_scale=1.0, num_classes=num_classes)
    model.features[0][0] = conv_stem(widths[0])
    return begin_wider(model)


def small_swin(num_classes: int = 10) -> SwinTransformer:
    """Swin: depths 2, 2, 2, widths 24, 48, 96, windows of 4 × 4, shifted in every second block."""
    model = SwinTransformer(
        [4, 4], 24, [2, 2, 2], [2, 4, 8], [4, 4],
        stochastic_depth_prob=0.0, num_classes=num_classes,
    )  # fmt: skip
    model.features[0][0] = conv_stem(24)
    return begin_wider(model)


def small_deit(num_classes: int = 10) -> "SmallDeiT":
    """DeiT: 4 blocks of width 78 over patches of 8 × 8, a class token, learned positions."""
    return begin_wider(SmallDeiT(num_classes))


def conv_stem(width: int) -> nn.Sequential:
    """The stem that the five share: (B, 3, H, W) → (B, width, H/4, W/4).

    Three convolutions with batch norms. With the usual one of 4 × 4 pixels the models without
    convolutions in their blocks hardly learn anything from as few images as a laptop can show them.
    """
    half = width // 2
    return nn.Sequential(
        *(nn.Conv2d(3, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
        *(nn.Conv2d(half, half, 3, 1, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
        *(nn.Conv2d(half, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)),
    )


def begin_wider(model: Model) -> Model:
    """Draw the weights of linear layers from a deviation of 1/√inputs.

    The usual 0.02 is made for hundreds of inputs; with 24 a block would begin as almost nothing.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    return model


class SmallResNet(nn.Module):
    """ResNet of torchvision's basic blocks with any widths.

    Args:
        depths: blocks per stage; every stage after the first halves the map.
        width: channels of the first stage, doubled at every next one.
        num_classes: width of the head.
    """

    def __init__(self, depths: list[int], width: int, num_classes: int) -> None:
        super().__init__()
        expect_int("num_classes", num_classes, minimum=1)
        self.stem = nn.Sequential(conv_stem(width), nn.ReLU())
        stages, before = [], width
        for stage, depth in enumerate(depths):
            after = width * 2**stage
            stages.append(_resnet_stage(before, after, depth, stride=1 if stage == 0 else 2))
            before = after
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def last_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, C, H/16, W/16)."""
        return self.stages(self.stem(images))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → class scores (B, num_classes)."""
        return self.head(self.last_map(images).mean((2, 3)))


def _resnet_stage(before: int, after: int, depth: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride > 1:
        shortcut = nn.Sequential(
            nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
        )
    first = BasicBlock(before, after, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(after, after) for _ in range(depth - 1)))


class SmallDeiT(VisionTransformer):
    """torchvision's vision transformer, for images of any size.

    The position embedding belongs to 8 × 8 patches; for another grid it is interpolated
    (bicubic), as DeiT does when it is used at another resolution.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(SIZE, 8, 4, 3, 78, 312, num_classes=num_classes)
        self.conv_proj = nn.Sequential(conv_stem(40), nn.ReLU(), nn.Conv2d(40, 78, 2, stride=2))

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → the class token and the patches after the last norm, (B, 1 + h·w, C)."""
        patches = self.conv_proj(images)  # (B, C, h, w)
        rows, columns = patches.shape[2:]
        x = torch.cat([self.class_token.expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
        x = self.encoder.dropout(x + self.positions(rows, columns))
        return self.encoder.ln(self.encoder.layers(x))

    def positions(self, rows: int, columns: int) -> Tensor:
        """The position embedding of a grid of patches, (1, 1 + rows·columns, C)."""
        side = math.isqrt(self.encoder.pos_embedding.shape[1] - 1)
        if rows == columns == side:
            return self.encoder.pos_embedding
        first, grid = self.encoder.pos_embedding.split([1, side * side], dim=1)
        grid = grid.mT.unflatten(2, (side, side))
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([first, grid.flatten(2).mT], dim=1)

    def last_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → the patches after the last norm, (B, C, H/8, W/8)."""
        rows = images.shape[2] // self.patch_size
        return self.tokens(images)[:, 1:].mT.unflatten(2, (rows, -1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → class scores (B, num_classes)."""
        return self.heads(self.tokens(images)[:, 0])


class SmallFieldCNN(nn.Module):
    """A control: no feature sees more than 20 × 20 pixels, and the rest is averaging.

    Without padding, no feature can tell where it stands either. On "same or different" its
    features see one digit at a time, so that it cannot pass `data.local_evidence_ceiling()`.
    """

    def __init__(self, num_classes: int = 2, width: int = 132) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=4)]
        for _ in range(2):  # each adds 2 · 4 pixels to the field
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def last_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, C, H/4 − 4, W/4 − 4)."""
        return self.layers(images)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → class scores (B, num_classes)."""
        return self.head(self.last_map(images).mean((2, 3)))


def small_field_cnn(num_classes: int = 2) -> SmallFieldCNN:
    """The control with a field of 20 × 20 pixels."""
    return SmallFieldCNN(num_classes)


FIVE: dict[str, Callable[[int], nn.Module]] = {
    "VMamba": small_vmamba,
    "ResNet": small_resnet,
    "ConvNeXt": small_convnext,
    "Swin": small_swin,
    "DeiT": small_deit,
}

CONTROL = "field_CNN"  # small_field_cnn, as the five are called in tables

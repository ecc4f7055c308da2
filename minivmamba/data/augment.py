"""The authors' augmentation for ImageNet, from torchvision's transforms.

Random resized crop, flip, RandAugment, normalise, random erasing; mixup or cutmix for a whole
batch; resize and centre crop to evaluate. Label smoothing (0.1) belongs to the loss:
`cross_entropy(logits, mixed, label_smoothing=0.1)` takes the mixed targets.

Where this differs from the authors, who use timm's `rand-m9-mstd0.5-inc1`:

- timm's level 9 is of 10, torchvision's magnitude 9 is of 30: a third of the strength. About the
  same strength is magnitude=27.
- timm draws the level from a normal distribution (9, deviation 0.5); here it is fixed.
- timm draws two operations of 15 and applies each with probability ½; torchvision draws two of 14,
  one of which changes nothing, and applies both.
- timm's set has Invert and SolarizeAdd; its Posterize keeps 4 to 0 bits, torchvision's 8 to 4.
- timm mixes a batch with itself turned around, torchvision with itself moved by one.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minivmamba.expect import expect_int, expect_positive, expect_rate
from minivmamba.photos import IMAGENET_MEAN, IMAGENET_STD, to_input

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = tuple(round(255 * value) for value in IMAGENET_MEAN)  # fills what a rotation uncovers


def train_transform(
    size: int = 224, *, magnitude: int = 9, erasing: float = 0.25
) -> Callable[["Image"], Tensor]:
    """An RGB Pillow image → float32 (3, size, size), another one at every call.

    Args:
        size: side of the square in pixels.
        magnitude: of torchvision's RandAugment, 0…30; 27 is nearest to timm's 9.
        erasing: probability that a rectangle (2% to 33% of the area) is replaced by noise.

    Raises:
        ValueError: an argument is out of range.
        ModuleNotFoundError: torchvision is missing.
    """
    expect_int("size", size, minimum=1)
    expect_int("magnitude", magnitude, minimum=0)
    if magnitude > 30:
        raise ValueError(f"magnitude: expected at most 30, got {magnitude}")
    expect_rate("erasing", erasing)
    v2 = _torchvision("train_transform")
    cubic = v2.InterpolationMode.BICUBIC
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, interpolation=cubic),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(2, magnitude, interpolation=cubic, fill=list(GREY)),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            v2.RandomErasing(erasing, scale=(0.02, 1 / 3), value="random"),
        ]
    )


def eval_transform(size: int = 224) -> Callable[["Image"], Tensor]:
    """An RGB Pillow image → float32 (3, size, size), as `photos.to_input` makes it.

    Bicubic to a short side of size · 256/224, centre crop, normalise.

    Raises ValueError if size is out of range, ModuleNotFoundError without torchvision.
    """
    expect_int("size", size, minimum=1)
    _torchvision("eval_transform")
    return partial(_evaluated, size=size)


def mix_batches(
    classes: int, *, mixup: float = 0.8, cutmix: float = 1.0, switch: float = 0.5
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A transform for batches: mixup or cutmix, chosen anew for every batch.

    Args:
        classes: number of classes.
        mixup, cutmix: parameter α of the Beta(α, α) distribution of the shares.
        switch: probability of cutmix, in [0, 1].

    Returns:
        A function of images float32 (B, 3, H, W) and labels int64 (B,) that gives mixed images of
        the same shape and targets float32 (B, classes) whose rows sum to 1.

    Raises:
        ValueError: an argument is out of range.
        ModuleNotFoundError: torchvision is missing.
    """
    expect_int("classes", classes, minimum=2)
    expect_positive("mixup", mixup)
    expect_positive("cutmix", cutmix)
    if isinstance(switch, bool) or not 0.0 <= switch <= 1.0:
        raise ValueError(f"switch: expected a probability in [0, 1], got {switch!r}")
    v2 = _torchvision("mix_batches")
    kinds = [
        v2.MixUp(alpha=mixup, num_classes=classes),
        v2.CutMix(alpha=cutmix, num_classes=classes),
    ]
    return v2.RandomChoice(kinds, p=[1 - switch, switch])


def _evaluated(photo: "Image", size: int) -> Tensor:
    return to_input(photo, size)[0]


def _torchvision(name: str) -> Any:
    try:
        from torchvision.transforms import v2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"data.{name} needs torchvision: pip install 'minivmamba[lessons]'"
        ) from error
    return v2

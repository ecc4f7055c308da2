"""The effective receptive field: which pixels move the middle of the last map (lesson 13).

For a map f (B, C, h, w) of images (B, 3, H, W), both of one model in evaluation mode,

    s = Σ_c ReLU(f[:, c, h//2, w//2])       how strongly the middle answers
    g = Σ_colour ReLU(∂s / ∂image)          (H, W): what a brighter pixel would add to it
    field = mean of g over the images       small numbers over many decades
    displayed = field^power / max           power 0.25 in the first release, 0.2 today

The root lifts faint influence into sight, so that a picture of it alone flatters: look at the
linear field (power 1) beside it.

**Centre.** The position (h//2, w//2) of the map sees a patch of H/h × W/w pixels. Pixel
(H//2, W//2) lies in that patch: it is the only one at stride 1, the first one (top left) where h
and w are even, as in 1024/32 = 32, and just right of and below the middle where they are odd, as in
224/32 = 7. All measures are centred there, as those of the authors are; `by_patch` brings a field
to the resolution of the map, where the centre is exactly the position asked about.

Source: VMamba, arXiv 2401.10166, the section on effective receptive fields, and the authors'
`analyze/get_erf.py`, which follows RepLKNet (arXiv 2203.06717). Two differences: the first release
computes (field + 1 − 1)^0.25 in float32, which loses influences below 6e-8, and it passes over
images whose gradient is NaN; here nothing is lost and NaN is an error.
"""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from minivmamba.expect import expect_int, expect_positive, expect_tensors
from minivmamba.stages import StagedModel
from minivmamba.vssm import VSSM
from minivmamba.vssm_v2 import VSSMv2


def effective_receptive_field(
    features: Callable[[Tensor], Tensor], images: Iterable[Tensor]
) -> Tensor:
    """The influence of every pixel on the middle of a map, averaged over images.

    Args:
        features: (B, 3, H, W) → (B, C, h, w); `last_map(model)` makes it from a model. Samples of a
            batch must not influence each other: a module must be in evaluation mode.
        images: normalized as the model expects them, on its device and in its dtype, all of one
            size. Items are batches (B, 3, H, W) or single images (3, H, W), and each passes the
            model by itself: a generator of single images, or one tensor (B, 3, H, W), which gives
            its images one after the other, takes the memory of one image however many there are.

    Returns:
        (H, W), float64 on the CPU, ≥ 0, in units of the map per unit of normalized pixel value.
        Parameters, their gradients and the grad mode stay as they are; no random number is drawn.

    Raises:
        TypeError: an image is not a floating-point tensor, or the map not a tensor.
        ValueError: no image, an image of another size or number of axes, a module in training mode,
            a map that is not (B, C, h, w) or does not depend on the image, or a gradient that is
            NaN or infinite.
    """
    expect_eval(getattr(features, "__self__", features))  # a bound method belongs to its module
    total, count = torch.zeros(()), 0
    for image in images:
        batch = _as_batch(image)
        if count and batch.shape[2:] != total.shape:
            raise ValueError(
                f"images: expected all of one size, {_size(total)} as the first, got {_size(batch)}"
            )
        influence = _influence(features, batch)
        total, count = total + influence.sum(0), count + len(batch)
    if not count:
        raise ValueError("images: expected at least one image, got none")
    return total / count


def _as_batch(image: Tensor) -> Tensor:
    expect_tensors(images=image)
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise ValueError(
            "images: expected images of shape (3, H, W) or batches of shape (B, 3, H, W), "
            f"got {tuple(image.shape)}"
        )
    if not image.is_floating_point():
        raise TypeError(f"images: expected a floating-point tensor, got {image.dtype}")
    return image if image.ndim == 4 else image[None]


def _influence(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, H, W), each image's own g, float64 on the CPU."""
    # The caller may stand in no_grad or inference_mode; a clone made outside can carry gradients.
    with torch.inference_mode(False), torch.enable_grad():
        images = images.detach().clone().requires_grad_()
        maps = features(images)
        expect_tensors(features=maps)
        if maps.ndim != 4 or len(maps) != len(images):
            raise ValueError(
                f"features: expected a map of shape ({len(images)}, C, h, w), "
                f"got {tuple(maps.shape)}"
            )
        h, w = maps.shape[2:]
        # Summed over the batch too: samples are independent, so each keeps its own gradient.
        score = maps[:, :, h // 2, w // 2].relu().sum()
        gradient = None
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score, images, allow_unused=True)
    if gradient is None:
        raise ValueError("features: expected a map that depends on the images, got a constant")
    if not gradient.isfinite().all():
        raise ValueError("features: expected finite gradients, got NaN or infinity")
    # ReLU first: a colour that lowers the answer does not cancel one that raises it.
    return gradient.relu().cpu().double().sum(1)


def expect_eval(model: object) -> None:
    """Raise ValueError if model is a module and it or a part of it is in training mode.

    There batch norm would tie the samples together, and dropout would hide pixels at random.
    """
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if module.training:
                part = f"its {name}" if name else type(module).__name__
                raise ValueError(
                    f"model: expected evaluation mode, but {part} is in training mode; "
                    "call model.eval() first"
                )


def last_map(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The part of a model that gives its last map after the final norm, before pooling.

    Args:
        model: a VSSM or VSSMv2, a model that has a method `last_map`, or a ResNet, ConvNeXt,
            SwinTransformer or VisionTransformer of torchvision. A ResNet has no final norm and
            gives the output of layer4. ConvNeXt norms the pooled features; here its norm acts at
            every position. A vision transformer gives its patches without the class token.

    Returns:
        (B, 3, H, W) → (B, C, h, w); it raises ValueError while the model is in training mode.

    Raises:
        TypeError: model is something else; write the function yourself then.
    """
    part = _part_of(model)

    def features(images: Tensor) -> Tensor:
        expect_eval(model)
        return part(model, images)

    return features


def _part_of(model: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    if isinstance(model, StagedModel):
        return _staged
    if callable(own := getattr(type(model), "last_map", None)):
        return own
    for kind in type(model).__mro__:  # by name, so that torchvision need not be there
        if kind.__module__.startswith("torchvision.models.") and kind.__name__ in TORCHVISION:
            return TORCHVISION[kind.__name__]
    raise TypeError(
        f"model: expected a VSSM, VSSMv2 or one of torchvision's {', '.join(TORCHVISION)}, "
        f"got {type(model).__name__}"
    )


def _staged(model: VSSM | VSSMv2, images: Tensor) -> Tensor:
    norm = model.norm if isinstance(model, VSSM) else model.classifier["norm"]
    return norm(model.forward_features(images)[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _resnet(model: Any, images: Tensor) -> Tensor:
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))


def _convnext(model: Any, images: Tensor) -> Tensor:
    return model.classifier[0](model.features(images))


def _swin(model: Any, images: Tensor) -> Tensor:
    return model.permute(model.norm(model.features(images)))


def _vision_transformer(model: Any, images: Tensor) -> Tensor:
    tokens = model._process_input(images)  # (B, h·w, C)
    first = model.class_token.expand(len(tokens), -1, -1)
    tokens = model.encoder(torch.cat([first, tokens], dim=1))[:, 1:]
    rows = images.shape[2] // model.patch_size
    return tokens.transpose(1, 2).unflatten(2, (rows, -1))


TORCHVISION: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "ResNet": _resnet,
    "ConvNeXt": _convnext,
    "SwinTransformer": _swin,
    "VisionTransformer": _vision_transformer,
}


# What a field tells, in numbers. A field is (H, W), ≥ 0 and not zero everywhere; its centre is the
# pixel (H//2, W//2).


def displayed(field: Tensor, power: float = 0.25) -> Tensor:
    """field^power, scaled to a maximum of 1: (H, W) → (H, W) in float64.

    Raises:
        TypeError, ValueError: field is no field, or power is not a number above 0.
    """
    expect_positive("power", power)
    field = _expect_field(field)
    return (field / field.max()) ** power


def share_of_area(field: Tensor, fraction: float = 0.5, power: float = 0.25) -> float:
    """Area of the smallest centred square that holds a fraction of the displayed score.

    Squares have sides 1, 3, 5, …; beyond the border they are cut. A uniform field gives about
    `fraction`, whatever the power, and a field of one pixel 1 / (H·W). (The authors' squares start
    at 3 and end one pixel before the border.)

    Args:
        field: (H, W).
        fraction: of the sum of `displayed(field, power)`, above 0 and at most 1.
        power: 1 measures the influence itself.

    Returns:
        Share of the area of the image, in (0, 1].

    Raises:
        TypeError, ValueError: field is no field, or fraction or power is out of range.
    """
    expect_positive("fraction", fraction)
    if fraction > 1:
        raise ValueError(f"fraction: expected at most 1, got {fraction!r}")
    scores = displayed(field, power)
    down, right = _offsets(scores)
    ring = torch.maximum(down.abs(), right.abs()).flatten()  # the first square that has the pixel
    held = torch.bincount(ring, weights=scores.flatten()).cumsum(0)
    first = int((held >= fraction * held[-1]).nonzero()[0])
    return float((ring <= first).double().mean())


class Profiles(NamedTuple):
    """Influence along the lines through the centre, entry k at k steps; (K,) each, float64.

    Each is the mean of its arms: two of row and column, four of diagonal; `axis` is the mean of row
    and column. A step of the diagonal is √2 pixels long. K steps fit into the image on all sides.
    """

    axis: Tensor
    row: Tensor
    column: Tensor
    diagonal: Tensor


def profiles(field: Tensor) -> Profiles:
    """The influence (H, W) along the lines through the centre.

    Raises:
        TypeError, ValueError: field is no field.
    """
    field = _expect_field(field)
    H, W = field.shape
    y, x = H // 2, W // 2
    k = torch.arange(min(y, H - 1 - y, x, W - 1 - x) + 1)
    row = (field[y, x - k] + field[y, x + k]) / 2
    column = (field[y - k, x] + field[y + k, x]) / 2
    falling = (field[y - k, x - k] + field[y + k, x + k]) / 2
    rising = (field[y + k, x - k] + field[y - k, x + k]) / 2
    return Profiles((row + column) / 2, row, column, (falling + rising) / 2)


class HalfLives(NamedTuple):
    """Distances in pixels at which influence falls to half, along each of `Profiles`."""

    axis: float
    row: float
    column: float
    diagonal: float


def half_lives(field: Tensor, start: int = 1) -> HalfLives:
    """How far from its starting point influence falls to half, on the linear scale.

    Between pixels it is taken to fall exponentially, so that e^(−r/τ) has the half-life τ ln 2
    whatever the start; where it ends abruptly, the last pixel with influence counts. A field of
    patches is rough inside them: apply `by_patch` first.

    Args:
        field: (H, W).
        start: steps from the centre at which to begin. The centre itself is reached by all four
            routes and by the skip connection, its neighbours on the axis by two, so that from 0 one
            measures the peak more than the decay.

    Returns:
        Euclidean distances beyond the start; infinite where influence stays above half up to the
        border, NaN where there is none at the start.

    Raises:
        TypeError, ValueError: field is no field, or start is outside it.
    """
    expect_int("start", start, minimum=0)
    lines = profiles(field)
    if start >= len(lines.axis):
        raise ValueError(f"start: expected at most {len(lines.axis) - 1} steps, got {start}")
    axis, row, column, diagonal = (_half_life(line[start:].tolist()) for line in lines)
    return HalfLives(axis, row, column, diagonal * math.sqrt(2))


def _half_life(line: list[float]) -> float:
    """Steps from the first entry at which the line first falls to half of it."""
    half = line[0] / 2
    if half == 0:
        return math.nan
    for k, (here, after) in enumerate(pairwise(line)):
        if after <= half:
            return k + (math.log(here / half) / math.log(here / after) if after > 0 else 0.0)
    return math.inf


class Cross(NamedTuple):
    """How much of a cross a field is.

    Attributes:
        radii: k√2 pixels for k = 1, 2, …, where the diagonal has pixels; (K,).
        ratios: influence on the axis over that on the diagonal at these radii; (K,). 1 is round;
            infinite where only the axis has influence, NaN where neither has.
        ratio: the same of the sums over all radii, one number; the innermost radii decide it.
        influence: share of the influence, 0 to 1, that lies in the cross through the centre.
        area: share of the area, 0 to 1, that this cross covers.
    """

    radii: Tensor
    ratios: Tensor
    ratio: float
    influence: float
    area: float


def cross_ratio(field: Tensor, width: int = 3) -> Cross:
    """Measure the cross that scans along rows and columns leave, on the linear scale.

    The axis is read at equal Euclidean distance: a step of the diagonal is √2 pixels, and between
    pixels influence is taken to fall exponentially.

    Args:
        field: (H, W), at least 5 × 5.
        width: pixels across a bar of the cross; odd.

    Raises:
        TypeError, ValueError: field is no field or too small, or width is not odd.
    """
    expect_int("width", width, minimum=1)
    if width % 2 == 0:
        raise ValueError(f"width: expected an odd number of pixels, got {width}")
    lines = profiles(field)
    steps = torch.arange(1, len(lines.axis), dtype=torch.float64)
    radii = (steps * math.sqrt(2))[steps * math.sqrt(2) <= len(lines.axis) - 1]
    if not len(radii):
        raise ValueError(f"field: expected at least 5 × 5 pixels, got {_size(field)}")
    below, part = radii.long(), radii.frac()
    axis = lines.axis[below] ** (1 - part) * lines.axis[below + 1] ** part
    diagonal = lines.diagonal[1 : len(radii) + 1]

    field = _expect_field(field)
    down, right = _offsets(field)
    inside = torch.minimum(down.abs(), right.abs()) <= width // 2
    return Cross(
        radii=radii,
        ratios=axis / diagonal,
        ratio=float(axis.sum() / diagonal.sum()),
        influence=float(field[inside].sum() / field.sum()),
        area=float(inside.double().mean()),
    )


def by_patch(field: Tensor, side: int) -> Tensor:
    """The influence of whole patches: (H, W) → (H/side, W/side), sums, float64.

    With the stride of the map as side, pixel (h//2, w//2) is the patch of the position asked about.

    Raises:
        TypeError, ValueError: field is no field, or side does not divide its height and width.
    """
    expect_int("side", side, minimum=1)
    field = _expect_field(field)
    H, W = field.shape
    if H % side or W % side:
        raise ValueError(f"side: expected a divisor of the size {_size(field)}, got {side}")
    return field.unflatten(1, (-1, side)).unflatten(0, (-1, side)).sum((1, 3))


def _offsets(field: Tensor) -> tuple[Tensor, Tensor]:
    """Rows down and columns right of the centre, (H, W) integers each."""
    H, W = field.shape
    down, right = torch.arange(H) - H // 2, torch.arange(W) - W // 2
    return down[:, None].expand(H, W), right.expand(H, W)


def _expect_field(field: Tensor) -> Tensor:
    """The field in float64 on the CPU, or an error."""
    expect_tensors(field=field)
    if field.ndim != 2:
        raise ValueError(f"field: expected shape (H, W), got {tuple(field.shape)}")
    field = field.detach().cpu().double()
    if not field.isfinite().all() or (field < 0).any():
        raise ValueError("field: expected finite influences of at least 0, got others")
    if not field.any():
        raise ValueError("field: expected influence somewhere, got 0 everywhere")
    return field


def _size(x: Tensor) -> str:
    return f"{x.shape[-2]} × {x.shape[-1]}"

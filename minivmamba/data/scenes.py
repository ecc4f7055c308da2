"""What is to be seen in sample i, before a pixel is drawn.

A scene is measured in fractions of the image's side, so it can be drawn at any size. It depends on
the seed, the split, the index and the options alone: samples can be made in any order, by any
number of workers, and again tomorrow.

Labels are dealt like cards, not thrown like dice: every 10 samples of the class task hold each
digit once; every 180 samples of the relation task hold each of the 90 ordered pairs of different
digits once and each of the 10 equal pairs nine times. So "same" is right in half of the cases, and
still in half of them for whoever has seen one of the two digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minivmamba.data.sources import SPLITS, Glyphs, Photograph, glyphs, photographs

TASKS = ("class", "relation", "masks", "boxes")
BACKGROUND = 10  # in a mask; a digit has its own value
# Between the centres of the two digits: the larger of the horizontal and the vertical offset, in
# fractions of the side. A square receptive field must reach this far to hold both centres.
DISTANCES = {"near": (0.3, 0.4), "far": (0.6, 0.68)}
# Length of a digit's ink, in fractions of the side at canvas 1.
SIZES = {"class": (0.35, 0.65), "relation": (0.2, 0.27), "several": (0.22, 0.4)}
MARGIN = 0.02  # between ink and the image's edge
CROP = (0.25, 0.5)  # of the photograph's short side, at canvas 1
CONTRAST = 0.4  # of luminance (0…1), at least, between a digit and the photograph under it


@dataclass(frozen=True)
class Digit:
    """label 0…9; row of the split's glyphs; centre x, y and length `size` of its ink as fractions
    of the image's side; colour as red, green, blue in 0…255."""

    label: int
    row: int
    x: float
    y: float
    size: float
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """A square of a photograph (number in its split; pixels of that photograph), and the digits."""

    split: str
    source: str
    photograph: int
    left: float
    top: float
    width: float
    digits: tuple[Digit, ...]


@dataclass(frozen=True)
class Place:
    """A digit that has no glyph and no colour yet."""

    label: int
    x: float
    y: float
    size: float


def plan(
    task: str,
    split: str,
    index: int,
    *,
    seed: int = 0,
    source: str = "mnist",
    distance: tuple[float, float] = DISTANCES["far"],
    canvas: float = 1.0,
) -> Scene:
    """The scene of sample `index`. `PhotoDigits` checks the arguments and explains them.

    The same index shows the same digits in the same relative places whatever the canvas; digits
    are `canvas` times smaller there, in fractions of the side, and the photograph shows more.
    """
    lay = {"class": _one, "relation": _two}.get(task, _several)
    stream = _STREAMS[lay]
    rng = _random(seed, split, stream, index)
    places = lay(rng, seed, split, index, distance, canvas)
    number = _pick(rng, len(photographs(split)))
    photograph = photographs(split)[number]
    width = _between(rng, *CROP) * min(photograph.size) * canvas
    # Negative where the square is wider than the photograph, which then continues mirrored.
    left, top = (rng.random() * (extent - width) for extent in photograph.size)
    scene = Scene(split, source, number, left, top, width, ())
    rows = _choose_glyphs(rng, glyphs(source, split), places)
    digits = tuple(
        Digit(p.label, row, p.x, p.y, p.size, _colour(rng, p, scene, photograph))
        for p, row in zip(places, rows, strict=True)
    )
    return Scene(split, source, number, left, top, width, digits)


def pair(cell: int) -> tuple[int, int]:
    """The two digits of one of the 180 cells of the relation task: 90 same, then 90 different."""
    if cell < 90:
        return cell % 10, cell % 10
    first, step = divmod(cell - 90, 9)
    return first, (first + 1 + step) % 10


def _one(
    rng: np.random.Generator,
    seed: int,
    split: str,
    index: int,
    distance: tuple[float, float],
    canvas: float,
) -> list[Place]:
    """One digit anywhere."""
    label = _dealt(10, seed, split, index)
    size = _between(rng, *SIZES["class"])
    room = 1 - size - 2 * MARGIN
    x, y = (MARGIN + size / 2 + room * rng.random() for _ in range(2))
    return [Place(label, x, y, size / canvas)]


def _two(
    rng: np.random.Generator,
    seed: int,
    split: str,
    index: int,
    distance: tuple[float, float],
    canvas: float,
) -> list[Place]:
    """Two digits at a distance; which is first says nothing about where it stands."""
    labels = pair(_dealt(180, seed, split, index))
    sizes = [_between(rng, *SIZES["relation"]) for _ in range(2)]
    room = reach()
    along = _between(rng, *distance)
    across = along * _between(rng, -1, 1)
    offsets = [along if rng.random() < 0.5 else -along, across]
    if rng.random() < 0.5:
        offsets.reverse()
    # The pair's lower end may lie anywhere where the other end still fits.
    starts = [
        (1 - room) / 2 + (room - abs(step)) * rng.random() + max(0, -step) for step in offsets
    ]
    ends = [start + step for start, step in zip(starts, offsets, strict=True)]
    return [
        Place(labels[0], starts[0], starts[1], sizes[0] / canvas),
        Place(labels[1], ends[0], ends[1], sizes[1] / canvas),
    ]


def reach() -> float:
    """The largest distance that the relation task has room for."""
    return 1 - SIZES["relation"][1] - 2 * MARGIN


def _several(
    rng: np.random.Generator,
    seed: int,
    split: str,
    index: int,
    distance: tuple[float, float],
    canvas: float,
) -> list[Place]:
    """One to three digits, each in its own quarter of the image: they never overlap."""
    quarters = np.argsort(rng.random(4), kind="stable").tolist()[: 1 + _pick(rng, 3)]
    places = []
    for quarter in quarters:
        size = _between(rng, *SIZES["several"])
        room = 0.5 - size - 2 * MARGIN
        down, right = divmod(quarter, 2)
        x, y = (corner / 2 + MARGIN + size / 2 + room * rng.random() for corner in (right, down))
        places.append(Place(_pick(rng, 10), x, y, size / canvas))
    return places


_STREAMS: dict[Callable[..., list[Place]], int] = {_one: 0, _two: 1, _several: 2}
_DEALING = {10: 3, 180: 4}


def _choose_glyphs(rng: np.random.Generator, known: Glyphs, places: list[Place]) -> list[int]:
    """A handwritten digit for every place, no two alike: "same" is a matter of class."""
    chosen: list[int] = []
    for place in places:
        candidates = known.rows[place.label]
        start = _pick(rng, len(candidates))
        while candidates[start] in chosen:
            start = (start + 1) % len(candidates)
        chosen.append(candidates[start])
    return chosen


def _colour(
    rng: np.random.Generator, place: Place, scene: Scene, photograph: Photograph
) -> tuple[int, int, int]:
    """Any colour that stands out from the photograph under the digit.

    The luminance is read from the photograph itself: it does not depend on the drawing's size.
    """
    half = place.size / 2
    mean, deviation = photograph.luminance_of(
        scene.left + (place.x - half) * scene.width,
        scene.top + (place.y - half) * scene.width,
        scene.left + (place.x + half) * scene.width,
        scene.top + (place.y + half) * scene.width,
    )
    colour = [rng.random() for _ in range(3)]
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    # Up to 0.5 there is always room on one side of the mean.
    needed = min(CONTRAST + deviation, 0.5)
    if abs(luminance - mean) < needed:
        goal, end = (mean + needed, 1.0) if mean < 0.5 else (mean - needed, 0.0)
        share = (goal - luminance) / (end - luminance) if luminance != end else 0.0
        colour = [value + share * (end - value) for value in colour]
    red, green, blue = (round(255 * value) for value in colour)
    return red, green, blue


def _random(seed: int, split: str, stream: int, index: int) -> np.random.Generator:
    """Its own random numbers for every sample. Only `random()` is drawn from: NumPy may change how
    it makes integers or shuffles from the same bits, and has done so."""
    words = [seed, SPLITS.index(split), stream, index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def _dealt(cells: int, seed: int, split: str, index: int) -> int:
    """The card that sample `index` gets from the pack of its block."""
    block, place = divmod(index, cells)
    return _pack(cells, seed, split, block)[place]


@lru_cache(maxsize=256)
def _pack(cells: int, seed: int, split: str, block: int) -> tuple[int, ...]:
    rng = _random(seed, split, _DEALING[cells], block)
    return tuple(np.argsort(rng.random(cells), kind="stable").tolist())


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _pick(rng: np.random.Generator, count: int) -> int:
    return int(rng.random() * count)

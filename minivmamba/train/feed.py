"""Images for training, in an order that depends on the seed and the step alone.

Epoch e visits the images in the order of a permutation drawn from (seed, e). Step t takes the next
`batch` of them, process r of n the r-th part. A random augmentation draws from (seed, e, image). So
a run that goes on at step t sees what it would have seen, whatever happened before, however many
workers load the images.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from minivmamba.data import PhotoDigits, normalize, train_val_folders
from minivmamba.train.config import Config

Place = tuple[int, int]  # (epoch, image)


def word(*numbers: int) -> int:
    """One seed from several numbers, so that (1, 23) and (12, 3) have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Steps(Sampler[list[Place]]):
    """Which images the steps start … stop − 1 see, as lists of (epoch, image) for one process.

    The images that are left over at the end of an epoch wait for another permutation.
    """

    def __init__(
        self, images: int, batch: int, seed: int, start: int, stop: int, rank: int, world: int
    ) -> None:
        self.images, self.batch, self.seed = images, batch, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Place]]:
        per_epoch, share = self.images // self.batch, self.batch // self.world
        order, known = torch.empty(0), -1
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, per_epoch)
            if epoch != known:
                generator = torch.Generator().manual_seed(word(self.seed, epoch))
                order, known = torch.randperm(self.images, generator=generator), epoch
            first = place * self.batch + self.rank * share
            yield [(epoch, int(image)) for image in order[first : first + share]]


class InMemory(Dataset[tuple[Tensor, Tensor]]):
    """uint8 images (n, 3, H, W) and labels (n,), normalized when they are asked for.

    An image is asked for by number, or by (epoch, image) as `Steps` does.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int | Place) -> tuple[Tensor, Tensor]:
        image = place[1] if isinstance(place, tuple) else place
        return normalize(self.images[image]), self.labels[image]


class Augmented(Dataset[tuple[Tensor, int]]):
    """A folder of images whose random transform draws from (seed, epoch, image)."""

    def __init__(self, folder: Any, seed: int) -> None:
        self.folder, self.seed = folder, seed

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        epoch, image = place
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(word(self.seed, epoch, image))
            return self.folder[image]


def data_sets(config: Config, root: str | Path | None) -> tuple[Dataset[Any], Dataset[Any]]:
    """What a run trains on, and what it is evaluated on.

    Raises:
        ValueError: the data do not fit the configuration.
        FileNotFoundError: a folder is missing.
    """
    if config.data == "folder":
        return _folders(config, root)
    if root is not None:
        raise ValueError(f"data: {config.data!r} is made from a seed and takes no folder")
    train = digits(config, "train", config.images, config.seed)
    if config.shuffle_labels:
        generator = torch.Generator().manual_seed(word(config.seed, 1))
        train.labels = train.labels[torch.randperm(len(train), generator=generator)]
    return train, digits(config, "val", config.val_images)


def digits(
    config: Config, split: str, images: int, seed: int = 0, zoom: float = 1, canvas: float = 1
) -> InMemory:
    """photo-digits of a configuration's task and size, drawn into memory."""
    made = PhotoDigits(
        split, config.data, config.size, images, seed,
        distance=config.distance, zoom=zoom, canvas=canvas,
    )  # fmt: skip
    return InMemory(*made.tensors())


def _folders(config: Config, root: str | Path | None) -> tuple[Dataset[Any], Dataset[Any]]:
    if root is None:
        raise ValueError("data: expected a folder with train/ and val/ in it, got none")
    if config.shuffle_labels:
        raise ValueError("shuffle_labels: expected photo-digits, got a folder of images")
    train, val = train_val_folders(
        root, config.size, magnitude=config.magnitude, erasing=config.erasing
    )
    if len(train.classes) != config.classes:
        raise ValueError(
            f"classes: expected {len(train.classes)}, the folders of {str(root)!r}; "
            f"got {config.classes}"
        )
    return Augmented(train, config.seed), val


def loader(data: Dataset[Any], batches: Any, workers: int, pin: bool) -> Any:
    """Batches of a data set in the order of `batches`, a sampler of lists of indices."""
    return DataLoader(data, batch_sampler=batches, num_workers=workers, pin_memory=pin)

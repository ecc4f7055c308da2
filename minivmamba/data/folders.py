"""The reader's own images: one folder a class, as ImageNet is kept.

    root/train/cat/1.jpg      root/val/cat/7.jpg
    root/train/dog/2.jpg      root/val/dog/8.jpg

Files are opened as a person would see them (`photos.load_photo`): upright, three colours.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minivmamba.data.augment import eval_transform, train_transform
from minivmamba.photos import load_photo

VALIDATION = ("val", "validation", "test")  # the names of a second folder, the first found


def image_folder(root: str | Path, transform: Callable[[Any], Any] | None = None) -> Any:
    """A data set of (transform(image), class number), classes in alphabetical order.

    Args:
        root: a folder that holds one folder for every class.
        transform: takes an RGB Pillow image; None leaves it as it is.

    Returns:
        torchvision's ImageFolder; `.classes` names the classes.

    Raises:
        FileNotFoundError: there is no such folder, or a class without images.
        ValueError: the folder holds no class folders, or train/ and val/.
        ModuleNotFoundError: torchvision is missing.
    """
    root = Path(root)
    _expect_classes(root)
    try:
        from torchvision.datasets import ImageFolder
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "data.image_folder needs torchvision: pip install 'minivmamba[lessons]'"
        ) from error
    try:
        return ImageFolder(str(root), transform, loader=load_photo)
    except FileNotFoundError as error:  # torchvision names the classes and the endings it knows
        raise FileNotFoundError(
            f"root: expected images in every class folder of {str(root)!r}: {error}"
        ) from error


def train_val_folders(root: str | Path, size: int = 224, **augmentation: Any) -> tuple[Any, Any]:
    """root/train with the training transform and root/val with the one to evaluate.

    Args:
        root: a folder that holds train/ and val/ (or validation/, or test/).
        size: side of the images in pixels.
        augmentation: for `train_transform`.

    Raises:
        FileNotFoundError, ValueError: as `image_folder`, or the two have different classes.
    """
    root = Path(root)
    _expect_folder(root)
    second = next((name for name in VALIDATION if (root / name).is_dir()), "val")
    train = image_folder(root / "train", train_transform(size, **augmentation))
    val = image_folder(root / second, eval_transform(size))
    if train.classes != val.classes:
        only = sorted(set(train.classes) ^ set(val.classes))
        raise ValueError(
            f"root: expected the same classes in train and {second} of {str(root)!r}, "
            f"but {', '.join(map(repr, only[:5]))} stand in one of them only"
        )
    return train, val


def _expect_classes(root: Path) -> None:
    _expect_folder(root)
    entries = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    folders = {entry.name for entry in entries if entry.is_dir()}
    if not folders:
        found = f"{len(entries)} files and no folder" if entries else "nothing"
        raise ValueError(
            f"root: expected one folder for every class in {str(root)!r}, found {found}; "
            "move each image into a folder named after its class"
        )
    if "train" in folders and folders & set(VALIDATION):
        raise ValueError(
            f"root: expected one folder for every class, but {str(root)!r} holds train/ and "
            "others like it; give one of them, or call train_val_folders"
        )


def _expect_folder(root: Path) -> None:
    if not root.is_dir():
        what = "a file" if root.exists() else "nothing there"
        raise FileNotFoundError(f"root: expected a folder, got {str(root)!r} ({what})")

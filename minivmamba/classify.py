"""What is in a photograph: the best classes of a model whose weights are in a file."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from minivmamba.checkpoint_names import constructor
from minivmamba.checkpoints import (
    CheckpointError,
    constructor_of,
    load_checkpoint,
    num_classes_of,
    read_checkpoint,
)
from minivmamba.photos import load_photo, to_input
from minivmamba.stages import StagedModel

SMALLEST = 32  # pixels of a side: four stages behind a stem of stride 4


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, metavar="PHOTO", help="an image file")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE",
                        help="released weights (.pth), or a file of save_checkpoint")  # fmt: skip
    parser.add_argument("--which", default="model", metavar="ENTRY",
                        help="entry of the file: model or model_ema (default: model)")  # fmt: skip
    parser.add_argument("--size", type=_at_least(SMALLEST), default=224, metavar="S",
                        help="side of the square that the model sees (default: 224)")  # fmt: skip
    parser.add_argument("--top", type=_at_least(1), default=5, metavar="K",
                        help="how many classes to print (default: 5)")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Print the classes, the likeliest first.

    Raises OSError, ValueError or ModuleNotFoundError, each with a sentence for the user.
    """
    image = to_input(load_photo(options.photo), options.size)
    name, model = model_of(options.weights, options.which)
    for score, number in best(model, image, options.top):
        print(f"{score:7.2%}  {class_name(number, model.num_classes)}")
    print(f"({name}, {options.which!r} of {options.weights}, at {options.size}×{options.size})")


def best(model: StagedModel, image: Tensor, top: int) -> list[tuple[float, int]]:
    """Score and number of the likeliest classes of an image (1, 3, H, W); scores add up to 1.

    Raises ValueError if a score is NaN or infinite, as those of damaged weights are.
    """
    with torch.inference_mode():
        logits = model.eval()(image)[0]
    if not logits.isfinite().all():
        raise ValueError("the model's scores are not finite: its weights hold NaN or are too large")
    scores, numbers = logits.softmax(0).topk(min(top, len(logits)))
    return list(zip(scores.tolist(), numbers.tolist(), strict=True))


def class_name(number: int, num_classes: int) -> str:
    """The name in ImageNet's list of 1000; else, or without torchvision, the number."""
    if num_classes != 1000:
        return f"class {number}"
    try:
        from torchvision.models import ResNet18_Weights
    except ModuleNotFoundError:
        return f"class {number}"
    # Every set of weights carries the list; no weights are fetched to read it.
    return ResNet18_Weights.IMAGENET1K_V1.meta["categories"][number]


def model_of(file: Path, which: str = "model") -> tuple[str, StagedModel]:
    """The constructor that the weights of a VMamba want, and its model with them.

    Raises:
        CheckpointError (a ValueError): they are of something else, or have no classifier.
    """
    weights = read_checkpoint(file, which)
    name = constructor_of(weights)
    if name is None:
        raise CheckpointError(
            f"{file}: expected the weights of a VMamba that minivmamba has a constructor for, "
            f"got {len(weights)} tensors of something else"
        )
    classes = num_classes_of(weights)
    if classes == 0:
        raise CheckpointError(f"{file}: expected weights with a classifier, got none")
    model = constructor(name)(num_classes=classes)
    load_checkpoint(model, weights)
    return name, model


def _at_least(minimum: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        if value < minimum:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {minimum}, got {text!r}"
            )
        return value

    return whole

"""How often a model is right: python -m minivmamba.evaluate WEIGHTS.

A file that `minivmamba.train` wrote says itself what it was trained for, so that

    python -m minivmamba.evaluate experiments/weights/VMamba_relation.safetensors

gives the first of the three runs behind a row of the tables of lesson 13 again (weights kept in
half precision round a little). Released weights and files of `save_checkpoint` want a folder of
images, in which the classes stand in the order of the weights:

    python -m minivmamba.evaluate vssmtiny.pth --data IMAGENET
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from minivmamba.classify import model_of
from minivmamba.data import SPLITS, eval_transform, image_folder
from minivmamba.expect import expect_int
from minivmamba.train.config import Config
from minivmamba.train.feed import digits
from minivmamba.train.loop import evaluate
from minivmamba.train.processes import processes
from minivmamba.train.weights import is_from_training, load_weights


def build() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minivmamba.evaluate",
        description="Accuracy and loss of a model whose weights are in a file.",
    )
    parser.add_argument("weights", type=Path, metavar="WEIGHTS",
                        help="a file of minivmamba.train, or weights of a VMamba")  # fmt: skip
    parser.add_argument("--which", default="model", metavar="ENTRY",
                        help="released weights: model or model_ema (default: model)")  # fmt: skip
    parser.add_argument("--split", choices=SPLITS, default="test",
                        help="of photo-digits (default: test)")  # fmt: skip
    parser.add_argument("--images", type=int, default=3960, metavar="N",
                        help="of photo-digits (default: 3960)")  # fmt: skip
    parser.add_argument("--zoom", type=float, default=1, metavar="Z",
                        help="of photo-digits: images and digits Z times as large")  # fmt: skip
    parser.add_argument("--canvas", type=float, default=1, metavar="Z",
                        help="of photo-digits: images Z times as large, digits not")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FOLDER",
                        help="a folder with one folder a class, or with val/")  # fmt: skip
    parser.add_argument("--size", type=int, metavar="S",
                        help="side of images of --data (default: as trained, or 224)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=0, metavar="N",
                        help="processes that load images")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What the options ask for.

    Returns:
        "model", "data", "side", "images", "accuracy" (0 … 1) and "loss" (nats).

    Raises:
        OSError, ValueError, ModuleNotFoundError: with a sentence for the user.
    """
    model, config, name = _model(options)
    data, about, side = _images(options, config, classes=_classes(model, config))
    with processes(options.device) as here:
        found = evaluate(model.to(here.device), data, here, options.workers)
    return {"model": name, "data": about, "side": side} | found | {"images": int(found["images"])}


def _model(options: argparse.Namespace) -> tuple[nn.Module, Config | None, str]:
    """The model, what it was trained for if the file says so, and its name."""
    if not is_from_training(options.weights):
        name, staged = model_of(options.weights, options.which)
        return staged.eval(), None, name
    model, note = load_weights(options.weights)
    entries = {key: value for key, value in note.items() if key in Config.__dataclass_fields__}
    return model, Config(**entries), str(note["model"])


def _classes(model: nn.Module, config: Config | None) -> int:
    return config.classes if config else int(model.num_classes)  # type: ignore[arg-type]


def _images(
    options: argparse.Namespace, config: Config | None, classes: int
) -> tuple[Dataset[Any], str, int]:
    """The images, what they are in words, and their side in pixels."""
    if options.data is None and (config is None or config.data == "folder"):
        raise ValueError("data: expected a folder of images for these weights, got none")
    if options.data is None:
        assert config is not None
        expect_int("images", options.images, minimum=1)
        made = digits(config, options.split, options.images,
                      zoom=options.zoom, canvas=options.canvas)  # fmt: skip
        return made, f"photo-digits, {config.data}, {options.split}", made.images.shape[-1]
    side = options.size or (config.size if config else 224)
    inside = options.data / "val"
    folder = image_folder(inside if inside.is_dir() else options.data, eval_transform(side))
    if len(folder.classes) != classes:
        raise ValueError(
            f"data: expected {classes} folders of classes in {str(options.data)!r}, as the weights "
            f"have, got {len(folder.classes)}"
        )
    return folder, str(options.data), side


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build()
    options = parser.parse_args(arguments)
    try:
        found = measure(options)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        parser.error(" ".join(str(error).split()))
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['model']}: {found['accuracy']:.2%} of {found['images']} images right, "
          f"loss {found['loss']:.4f}")  # fmt: skip
    print(f"({found['data']}, {found['side']}×{found['side']} pixels)")


if __name__ == "__main__":
    main(sys.argv[1:])

"""From a photograph to the tensor that a model reads, and back to a picture.

Photographs come greyscale, transparent, lying on their side with a note in their EXIF data, or
with 16 bits a pixel. `load_photo` gives what a person sees: upright, three colours, 8 bits, on
white paper. `to_input` prepares it as the authors evaluate on ImageNet.

Needs Pillow and torchvision (extra `lessons`); the models do not.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minivmamba.expect import expect_int, expect_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

# Mean and standard deviation of ImageNet's training pixels per colour, on the scale 0…1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_photo(source: "str | Path | np.ndarray | Image") -> "Image":
    """Open a photograph as a person would see it.

    Args:
        source: a file, a Pillow image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

    Returns:
        An upright RGB Pillow image. Transparency is laid on white; 16-bit grey is brought to 8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, is damaged or too large, or the pixels are not of 8 or
            16 bits, or the array has another shape or dtype.
        TypeError: source is something else.
    """
    image = _open(source)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        pixels = np.asarray(image)  # 16-bit grey; converting it directly would clip at 255
        image = _from_array((pixels / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"source: expected 8 or 16 bits a pixel, got an image of mode {image.mode}"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = _from_array(np.full((image.height, image.width, 4), 255, np.uint8))
        paper.alpha_composite(image)
        image = paper
    return image.convert("RGB")


def to_input(photo: "Image", size: int = 224) -> Tensor:
    """Resize, crop and normalise a photograph as the authors do to evaluate.

    Bicubic to a short side of size · 256/224, rounded down; centre crop; ImageNet mean and
    standard deviation.

    Args:
        photo: an RGB Pillow image, see `load_photo`.
        size: side of the square in pixels.

    Returns:
        float32 tensor (1, 3, size, size).

    Raises:
        ValueError: the photo is not RGB, or size is below 1.
        ModuleNotFoundError: torchvision is missing.
    """
    if getattr(photo, "mode", None) != "RGB":
        got = getattr(photo, "mode", type(photo).__name__)
        raise ValueError(f"photo: expected an RGB Pillow image as load_photo gives, got {got}")
    expect_int("size", size, minimum=1)
    from PIL import ImageOps

    try:
        from torchvision.transforms import v2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "photos.to_input needs torchvision: pip install 'minivmamba[lessons]'; "
            "the models themselves work without it"
        ) from error
    prepare = v2.Compose(
        [
            v2.Resize(size * 256 // 224, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return prepare(ImageOps.exif_transpose(photo)).unsqueeze(0)


def to_picture(images: Tensor) -> np.ndarray:
    """What the model sees, for a plot: (1, 3, H, W) from `to_input` → (H, W, 3) in 0…1.

    Raises TypeError if images is not a tensor, ValueError for another shape.
    """
    expect_tensors(images=images)
    if images.ndim != 4 or images.shape[:2] != (1, 3):
        raise ValueError(f"images: expected shape (1, 3, H, W), got {tuple(images.shape)}")
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = images[0].detach().cpu().permute(1, 2, 0) * std + mean
    return pixels.clamp(0, 1).numpy()


def _open(source: "str | Path | np.ndarray | Image") -> "Image":
    """The image, read to its last pixel and turned upright."""
    from PIL import Image, ImageOps

    if isinstance(source, np.ndarray):
        return _from_array(source)
    if not isinstance(source, str | Path | Image.Image):
        raise TypeError(
            f"source: expected a path, a Pillow image or an array, got {type(source).__name__}"
        )
    try:
        if isinstance(source, Image.Image):
            opened = source
        else:
            # Not from the file itself: Pillow maps an uncompressed TIFF into memory with width
            # and height exchanged when it is to be turned.
            opened = Image.open(io.BytesIO(Path(source).read_bytes()))
        image = ImageOps.exif_transpose(opened)
        image.format = opened.format  # a copy has none, and load_photo asks for it
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow has many words for "no image", "damaged", "too large"
        got = repr(str(source)) if isinstance(source, str | Path) else "a Pillow image"
        raise ValueError(
            f"source: expected an image that can be read, got {got} ({type(error).__name__})"
        ) from error
    if 0 in image.size:
        raise ValueError(f"source: expected an image with pixels, got size {image.size}")
    return image


def _from_array(pixels: np.ndarray) -> "Image":
    from PIL import Image

    colours = pixels.shape[2:] in ((), (3,), (4,))
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not colours or pixels.size == 0:
        raise ValueError(
            "source: expected a uint8 array (H, W), (H, W, 3) or (H, W, 4), "
            f"got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(pixels)

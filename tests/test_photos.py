"""Photographs of every kind open as a person would expect."""

import numpy as np
import pytest
import torch
from PIL import Image

from minivmamba.photos import load_photo, to_input, to_picture


def gradient(H=60, W=80):
    """A picture that no rotation or mirror leaves unchanged."""
    rows, columns = np.mgrid[0:H, 0:W]
    return np.stack([rows * 4, columns * 3, (rows + columns) % 256], -1).astype(np.uint8)


def test_rgb_file_and_array_agree(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "photo.png")
    for source in [tmp_path / "photo.png", str(tmp_path / "photo.png"), gradient()]:
        photo = load_photo(source)
        assert photo.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(photo), gradient())


def turned(pixels, orientation):
    """The image as a camera held in that way stores it, and the note it leaves in the file."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return upright.transpose(turns[orientation]) if orientation in turns else upright, exif


@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, kind):
    """A camera held in any way: the file is turned, the note in it says how, we see it upright."""
    stored, exif = turned(gradient(), orientation)
    path = tmp_path / f"photo.{kind}"
    stored.save(path, exif=exif, lossless=True)
    np.testing.assert_array_equal(np.asarray(load_photo(path)), gradient())
    # A photograph that somebody opened without load_photo still goes in upright.
    torch.testing.assert_close(to_input(Image.open(path), 32), to_input(load_photo(path), 32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_grey_uncompressed_tiff(tmp_path, orientation):
    """Pillow's memory map would scramble the pixels of these."""
    grey = gradient()[..., 0]
    stored, exif = turned(grey, orientation)
    stored.save(tmp_path / "photo.tif", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_photo(tmp_path / "photo.tif"))[..., 0], grey)


def test_grey_photographs(tmp_path):
    grey = gradient()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(load_photo(grey)), expected)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16_bit.png")
    np.testing.assert_array_equal(np.asarray(load_photo(tmp_path / "16_bit.png")), expected)
    Image.fromarray(grey > 50).save(tmp_path / "1_bit.png")
    assert set(np.unique(np.asarray(load_photo(tmp_path / "1_bit.png")))) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    # A hidden black pixel, half a black one, and a solid black one.
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = [0, 128, 255]
    image = Image.fromarray(pixels)
    photo = load_photo(image.convert(mode))
    np.testing.assert_allclose(np.asarray(photo)[0, :, 0], [255, 127, 0], atol=1)


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "photo.gif", transparency=0)
    photo = np.asarray(load_photo(tmp_path / "photo.gif"))
    assert photo[0].tolist() == [[255, 255, 255], [10, 200, 30]]


def test_cmyk_photograph(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "photo.jpg")
    red, green, blue = np.asarray(load_photo(tmp_path / "photo.jpg"))[4, 4]
    assert red > 200 and green < 60 and blue < 60


def test_to_input_is_resized_cropped_and_normalised():
    photo = load_photo(np.full((300, 451, 3), (255, 0, 128), np.uint8))
    images = to_input(photo, size=224)
    assert images.shape == (1, 3, 224, 224) and images.dtype == torch.float32
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(images[0, :, 100, 100], torch.tensor(expected))
    np.testing.assert_allclose(to_picture(images)[0, 0], [1, 0, 128 / 255], atol=1e-6)


def test_to_input_takes_the_centre():
    """The crop loses (1 − 224/256)/2 of the short side at each edge."""
    columns = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    picture = to_picture(to_input(load_photo(columns), size=224)) * 255
    np.testing.assert_allclose(picture[0, :, 0], np.arange(16, 240), atol=1e-3)


@pytest.mark.parametrize("shape", [(33, 500, 3), (500, 33, 3), (20, 20, 3), (1, 1, 3)])
def test_long_and_tiny_photographs(shape):
    assert to_input(load_photo(np.zeros(shape, np.uint8)), size=64).shape == (1, 3, 64, 64)


def test_bad_sources(tmp_path):
    text = tmp_path / "note.txt"
    text.write_text("not an image")
    cut = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3)).astype(np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:9000])
    for source, error, message in [
        (tmp_path / "missing.jpg", FileNotFoundError, "missing.jpg"),
        (text, ValueError, "source: expected an image that can be read, got .*note.txt"),
        (cut, ValueError, "source: expected an image that can be read, got .*cut.png"),
        (tmp_path, ValueError, "source: expected an image that can be read"),
        (Image.new("RGB", (0, 5)), ValueError, "source: expected an image with pixels"),
        (np.zeros((0, 4), np.uint8), ValueError, "source: expected a uint8 array"),
        (Image.new("I", (4, 4)), ValueError, "expected 8 or 16 bits a pixel, got .* mode I"),
        (42, TypeError, "source: expected a path, a Pillow image or an array, got int"),
        (np.zeros((4, 4, 3)), ValueError, "source: expected a uint8 array .* got float64"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, "source: expected a uint8 array"),
        (Image.new("F", (4, 4)), ValueError, "source: expected 8 or 16 bits a pixel"),
    ]:
        with pytest.raises(error, match=message):
            load_photo(source)


def test_bad_arguments_of_to_input():
    photo = load_photo(gradient())
    with pytest.raises(ValueError, match=r"photo: expected an RGB Pillow image .* got ndarray"):
        to_input(gradient())
    with pytest.raises(ValueError, match=r"photo: expected an RGB Pillow image .* got L"):
        to_input(photo.convert("L"))
    with pytest.raises(ValueError, match="size: expected an integer of at least 1, got 0"):
        to_input(photo, size=0)
    with pytest.raises(ValueError, match=r"size: expected an integer of at least 1, got 32\.5"):
        to_input(photo, size=32.5)
    with pytest.raises(TypeError, match=r"images: expected a torch.Tensor, got list"):
        to_picture([0.0])
    with pytest.raises(ValueError, match=r"images: expected shape \(1, 3, H, W\), got \(3, 4, 4\)"):
        to_picture(torch.zeros(3, 4, 4))

"""Whether two pictures show the same, drawn perhaps by another version of Matplotlib.

Pictures are averaged over square cells, in colour (two curves of equal grey may differ), and each
cell is held against the range of the 3 x 3 cells around it in the other picture: ink may move by
one cell, not appear or vanish. Between Matplotlib 3.8-3.10 and 3.11, which draws every letter
anew and shifts frames by a pixel, five figures of this book's kinds differed by at most 37 of 255
levels; a missing curve, arrow or marker, or a curve off by 5 %, by at least 100. Not seen: a
dashed grey line one pixel wide (31).
"""

from PIL import Image, ImageChops, ImageFilter

LEVELS = 48


def same_picture(old: Image.Image, new: Image.Image, cell: int = 4) -> bool:
    """Compare two pictures.

    Args:
        old, new: Pillow images. If their sizes differ a little, both are brought to old's cells.
        cell: side of a cell in pixels; 4 for the 100 dots an inch of a notebook.
    """
    size = (max(1, round(old.width / cell)), max(1, round(old.height / cell)))
    small_old, small_new = (_on_paper(picture).resize(size, _MEAN) for picture in (old, new))
    return max(_excess(small_old, small_new), _excess(small_new, small_old)) <= LEVELS


_MEAN = Image.Resampling.BILINEAR  # averages over the whole cell when it shrinks a picture


def _on_paper(picture: Image.Image) -> Image.Image:
    """The picture as it is seen, on white."""
    picture = picture.convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture).convert("RGB")


def _excess(picture: Image.Image, other: Image.Image) -> int:
    """By how many levels a cell of `picture` is at most outside the range around it in `other`."""
    brighter = ImageChops.subtract(picture, other.filter(ImageFilter.MaxFilter(3)))
    darker = ImageChops.subtract(other.filter(ImageFilter.MinFilter(3)), picture)
    extrema = ImageChops.lighter(brighter, darker).split()
    return max(int(band.getextrema()[1]) for band in extrema)  # type: ignore[arg-type]

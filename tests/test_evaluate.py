"""python -m minivmamba.evaluate: what it counts, and what it says of files that do not fit."""

import json

import pytest
import torch
from PIL import Image

from minivmamba import classify, evaluate
from minivmamba.data import PhotoDigits, normalize
from minivmamba.train.config import load_config
from minivmamba.train.models import build_model
from minivmamba.train.weights import save_weights


@pytest.fixture
def weights(tmp_path):
    """A ResNet for the digits, as it was drawn; such a model says one class nearly always."""
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    note = load_config("digits", model="small_resnet", ema=0.0).as_dict()
    save_weights(build_model("small_resnet", 10), path, note | {"accuracy": 0.5})
    return path


def answers(weights, **options):
    """The model's answers to test images, computed without the module under test."""
    torch.manual_seed(0)
    model = build_model("small_resnet", 10).eval()
    images, labels = PhotoDigits("test", "class", 64, 50, 0, **options).tensors()
    with torch.no_grad():
        scores = model(normalize(images))
    loss = torch.nn.functional.cross_entropy(scores, labels).item()
    return (scores.argmax(1) == labels).double().mean().item(), loss


@pytest.mark.parametrize("way", [{}, {"zoom": 1.5}, {"canvas": 2.0}])
def test_it_counts_right_answers(weights, capsys, way):
    words = [word for name, value in way.items() for word in (f"--{name}", str(value))]
    evaluate.main([str(weights), "--images", "50", "--json", "--device", "cpu", *words])
    found = json.loads(capsys.readouterr().out)
    accuracy, loss = answers(weights, **way)
    assert found["accuracy"] == accuracy
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    assert found["model"] == "small_resnet" and found["images"] == 50
    assert found["side"] == 64 * next(iter(way.values()), 1)


def test_it_says_so_in_a_sentence(weights, capsys):
    evaluate.main([str(weights), "--images", "50", "--split", "val", "--device", "cpu"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("small_resnet: ") and "% of 50 images right" in first
    assert second == "(photo-digits, class, val, 64×64 pixels)"


class ByColour(torch.nn.Module):
    """Says class 1 where red prevails, else 0."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        means = self.gain * images.mean((2, 3))
        return means[:, [2, 0]]


@pytest.fixture
def photos(tmp_path):
    """Three blue photographs and one red in a folder of the blue, two in one of the red."""
    for name, colours in (("blue", "bbbr"), ("red", "rr")):
        folder = tmp_path / "photos" / "val" / name
        folder.mkdir(parents=True)
        for number, colour in enumerate(colours):
            value = (200, 0, 0) if colour == "r" else (0, 0, 200)
            Image.new("RGB", (40, 50), value).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("inside", [".", "val"])
def test_released_weights_on_a_folder(photos, tmp_path, capsys, monkeypatch, inside):
    file = tmp_path / "released.pth"
    torch.save({"model": {}}, file)
    seen = []

    def found(path, which):
        seen.append((path, which))
        return "vmamba_tiny", ByColour()

    monkeypatch.setattr(evaluate, "model_of", found)
    options = ["--which", "model_ema", "--size", "32", "--json", "--device", "cpu"]
    evaluate.main([str(file), "--data", str(photos / inside), *options])
    result = json.loads(capsys.readouterr().out)
    assert seen == [(file, "model_ema")]
    assert (result["images"], result["side"]) == (6, 32)
    assert result["accuracy"] == pytest.approx(5 / 6)


def test_the_same_reader_as_classify():
    assert evaluate.model_of is classify.model_of


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(word) for word in (*words, "--device", "cpu")])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_does_not_fit_gets_a_sentence(weights, photos, tmp_path, capsys, monkeypatch):
    empty, text = tmp_path / "empty.pth", tmp_path / "text.safetensors"
    empty.touch()
    text.write_text("not weights")
    assert "weights: expected a file, got" in refused(capsys, tmp_path / "none")
    assert "got an empty file" in refused(capsys, empty)
    assert "expected a file of torch.save or safetensors" in refused(capsys, text)
    assert "images: expected an integer of at least 1" in refused(capsys, weights, "--images", 0)
    assert "zoom" in refused(capsys, weights, "--zoom", 0.5)
    assert "data: expected 10 folders of classes" in refused(capsys, weights, "--data", photos)
    monkeypatch.setattr(evaluate, "is_from_training", lambda path: False)
    monkeypatch.setattr(evaluate, "model_of", lambda path, which: ("vmamba_tiny", ByColour()))
    assert "data: expected a folder of images for these weights" in refused(capsys, weights)

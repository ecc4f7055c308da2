"""`python -m minivmamba classify`: the right classes, or one line that says what is wrong."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoint_files import SMALL, drawn, v1_table, v2_table, write_bare, write_training
from PIL import Image

from minivmamba import vmamba_tiny_s1l8
from minivmamba.__main__ import main
from minivmamba.classify import class_name
from minivmamba.photos import load_photo, to_input


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    rows, columns = np.mgrid[0:60, 0:80]
    pixels = np.stack([rows * 4, columns * 3, (rows + columns) % 256], -1)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def best_by_hand(state, photo, size):
    """Scores and numbers of all classes, the parameters set by position."""
    model = vmamba_tiny_s1l8(num_classes=state["classifier.head.bias"].numel()).eval()
    with torch.no_grad():
        for parameter, tensor in zip(model.parameters(), state.values(), strict=True):
            parameter.copy_(tensor)
        return model(to_input(load_photo(photo), size)).softmax(1)[0].sort(descending=True)


@pytest.mark.slow
def test_top_five_of_a_thousand(photo, tmp_path, capsys):
    first, state = (drawn(v2_table([2, 2, 8, 2], 96), seed) for seed in (0, 1))
    file = write_training(tmp_path / "weights.pth", first, ema=state)
    main(["classify", str(photo), "--weights", str(file), "--which", "model_ema", "--size", "64"])
    *lines, last = capsys.readouterr().out.splitlines()
    scores, numbers = best_by_hand(state, photo, 64)
    expected = [
        f"{score:7.2%}  {class_name(number, 1000)}"
        for score, number in zip(scores[:5].tolist(), numbers[:5].tolist(), strict=True)
    ]
    assert lines == expected
    assert last == f"(vmamba_tiny_s1l8, 'model_ema' of {file}, at 64×64)"


@pytest.mark.slow
def test_other_classes_have_numbers(photo, tmp_path, capsys):
    state = drawn(v2_table([2, 2, 8, 2], 96, classes=3))
    file = write_bare(tmp_path / "weights.pth", state)
    main(["classify", str(photo), "--weights", str(file), "--size", "32", "--top", "9"])
    *lines, _ = capsys.readouterr().out.splitlines()
    _, numbers = best_by_hand(state, photo, 32)
    assert [line.split("  ")[-1] for line in lines] == [f"class {n}" for n in numbers.tolist()]
    assert sum(float(line.split("%")[0]) for line in lines) == pytest.approx(100, abs=0.02)


def test_names_of_classes():
    """The first and the last of ImageNet's list, as its authors order it."""
    assert class_name(0, 1000) == "tench" and class_name(999, 1000) == "toilet tissue"
    assert class_name(7, 10) == "class 7"


def html(path):
    path.write_text("<html>Too many requests</html>")


def headless(path):
    state = dict(list(drawn(v2_table([2, 2, 8, 2], 96)).items())[:-2])
    write_bare(path, {key: tensor.to(torch.float16) for key, tensor in state.items()})


ERRORS = {
    "no photo": ({"photo": "nowhere.png"}, None, r"No such file.*nowhere\.png"),
    "photo is none": ({"photo": __file__}, None, "expected an image that can be read"),
    "no weights": ({"weights": "nowhere.pth"}, None, r"no such file: nowhere\.pth"),
    "HTML": ({}, html, "got an HTML page: the download failed"),
    "entry": (
        {"which": "model_ema"},
        lambda path: write_bare(path, {"model": drawn(v1_table(*SMALL))}),
        "expected weights in an entry 'model_ema', got weights in 'model'",
    ),
    "no constructor": (
        {},
        lambda path: write_bare(path, drawn(v1_table(*SMALL))),
        f"expected the weights of a VMamba .*, got {len(v1_table(*SMALL))} tensors of something",
    ),
    "no classifier": ({}, headless, "expected weights with a classifier, got none"),
    "small": ({"size": "31"}, None, "--size: expected a whole number of at least 32, got '31'"),
    "fraction": ({"top": "1.5"}, None, "--top: expected a whole number of at least 1, got '1.5'"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_are_one_line(photo, tmp_path, capsys, kind):
    options, write, message = ERRORS[kind]
    options = {"photo": photo, "weights": tmp_path / "weights.pth", "size": "32"} | options
    if write:
        write(tmp_path / "weights.pth")
    arguments = ["classify", str(options.pop("photo"))]
    for name, value in options.items():
        arguments += [f"--{name}", str(value)]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    assert err.endswith("\n") and err.count("\n") == 1
    assert err.startswith("python -m minivmamba") and re.search(message, err)


@pytest.mark.parametrize("arguments", [["classify"], ["classify", "a.png"], ["nothing"]])
def test_wrong_arguments_are_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_alone_it_says_what_there_is(capsys):
    main([])
    out, err = capsys.readouterr()
    assert "classify" in out and "python -m minivmamba.bench" in out and err == ""


@pytest.mark.slow
def test_as_a_program():
    command = [sys.executable, "-m", "minivmamba", "classify", "a.png", "--weights", "b.pth"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1

"""The test of the lessons is itself tested: it must be red for whatever a reader would call wrong.

A small lesson is executed the way the book is; copies of it with one corruption each then go
through a single run of `pytest --nbval` beside the real notebooks/conftest.py.
"""

import base64
import copy
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import defaultdict

import nbformat
import pytest
import test_book
from nbclient.output_widget import OutputWidget
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image, ImageChops

from minivmamba.classroom import book

pytestmark = pytest.mark.slow

CONFTEST = book.NOTEBOOKS / "conftest.py"

IMPORTS = """import math, time
import matplotlib.pyplot as plt
from ipywidgets import FloatSlider, interact
times = [step / 20 for step in range(120)]"""
FIGURE = """plt.plot(times, [math.exp(-t / 2) for t in times], label="exact")
plt.plot(times, [math.exp(-t / 3) for t in times], label="Euler")
plt.title("A decaying state");"""
INTERACT = """@interact(rate=FloatSlider(value=1, max=3))
def draw(rate):
    print("rate", rate)
    plt.plot(times, [math.exp(-rate * t) for t in times])
    plt.show()"""
LESSON = [
    new_code_cell(IMPORTS),
    new_code_cell('print(f"After {len(times)} steps the state is {math.exp(-1):.7f}.")'),
    new_code_cell(FIGURE),
    new_code_cell("assert math.exp(0) == 1", metadata={"tags": ["claim"]}),
    new_code_cell(INTERACT),
    new_code_cell("times[3];"),
    new_code_cell("print(time.time())", metadata={"tags": ["nbval-ignore-output"]}),
    new_code_cell("[object(), len(_ih)]"),  # an address, and how many cells have run
]
PRINTED, DRAWN, CLAIM, WIDGET, SILENT = 1, 2, 3, 4, 5  # nbval counts code cells from 0


def write(path, cells, **budget):
    metadata = {"minivmamba": {"budget_seconds": 60} | budget}
    nbformat.write(new_notebook(cells=copy.deepcopy(cells), metadata=metadata), path)
    return path


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """The executed lesson."""
    path = write(tmp_path_factory.mktemp("lesson") / "02_meta.ipynb", LESSON)
    assert book.main([str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The same figure with one curve missing, and with one curve off by up to 4 % of the axis."""
    missing = "\n".join(line for line in FIGURE.splitlines() if "Euler" not in line)
    changed = FIGURE.replace("t / 3", "t / 3.4")
    cells = [new_code_cell(source) for source in (IMPORTS, missing, changed)]
    path = write(tmp_path_factory.mktemp("pictures") / "02_pictures.ipynb", cells)
    assert book.main([str(path)]) == 0
    return [picture_of(cell) for cell in nbformat.read(path, as_version=4).cells[1:]]


def picture_of(cell):
    (output,) = cell.outputs
    return output.data["image/png"]


def printing(old, new):
    """A corruption that prints something else."""

    def corrupt(cells, pictures):
        (output,) = cells[PRINTED].outputs
        assert old in output.text
        output.text = output.text.replace(old, new)

    return corrupt


def drawing(redraw):
    """A corruption that stores another picture: `redraw` gets the stored one and the others."""

    def corrupt(cells, pictures):
        (output,) = cells[DRAWN].outputs
        old = output.data["image/png"]
        output.data["image/png"] = redraw(old, pictures)
        assert output.data["image/png"] != old

    return corrupt


def programming(number, old, new):
    """A corruption of what a cell computes."""

    def corrupt(cells, pictures):
        assert old in cells[number].source
        cells[number].source = cells[number].source.replace(old, new)

    return corrupt


def encoded(picture, **options):
    file = io.BytesIO()
    picture.save(file, "png", **options)
    return base64.b64encode(file.getvalue()).decode()


def reencode(old, _):
    return encoded(Image.open(io.BytesIO(base64.b64decode(old))), compress_level=1)


def shift(old, _):
    return encoded(ImageChops.offset(Image.open(io.BytesIO(base64.b64decode(old))), 1, 1))


def remove_picture(cells, _):
    del cells[DRAWN].outputs[0].data["image/png"]


def remove_outputs(number):
    """A corruption that leaves a cell without outputs."""
    return lambda cells, _: cells[number].outputs.clear()


def add_output(cells, _):
    cells[SILENT].outputs.append(new_output("stream", name="stdout", text="0.15\n"))


TOLERATED = {
    "unchanged": lambda cells, pictures: None,
    "decimal_by_a_millionth": printing("0.3678794", "0.3678798"),
    "picture_encoded_again": drawing(reencode),
    "picture_shifted_by_a_pixel": drawing(shift),
}
CAUGHT = {  # with the cell that must fail, and no other
    "integer_by_one": (PRINTED, printing("120", "121")),
    "decimal_by_a_hundredth": (PRINTED, printing("0.3678794", "0.3715582")),
    "word": (PRINTED, printing("state", "output")),
    "printed_output_removed": (PRINTED, remove_outputs(PRINTED)),
    "curve_missing": (DRAWN, drawing(lambda old, pictures: pictures[0])),
    "curve_changed": (DRAWN, drawing(lambda old, pictures: pictures[1])),
    "picture_removed": (DRAWN, remove_picture),
    "claim_falsified": (CLAIM, programming(CLAIM, "== 1", "== 2")),
    "widget_removed": (WIDGET, remove_outputs(WIDGET)),
    "callback_raises": (WIDGET, programming(WIDGET, "rate * t", "rate / 0")),
    "output_added": (SILENT, add_output),
}


@pytest.fixture(scope="module")
def failures(lesson, pictures, tmp_path_factory):
    """For each corruption the numbers of the cells that failed."""
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copy(CONFTEST, folder)
    corruptions = TOLERATED | {name: corrupt for name, (_, corrupt) in CAUGHT.items()}
    for name, corrupt in corruptions.items():
        notebook = nbformat.read(lesson, as_version=4)
        corrupt(notebook.cells, pictures)
        nbformat.write(notebook, folder / f"{name}.ipynb")
    results = run_nbval(folder)
    assert {name: len(cells) for name, cells in results.items()} == dict.fromkeys(
        corruptions, len(LESSON)
    )
    return {name: {n for n, ok in cells.items() if not ok} for name, cells in results.items()}


def run_nbval(folder):
    """Notebook -> cell -> whether it passed. On two processes, as `--dist loadscope` is to work."""
    command = [sys.executable, "-m", "pytest", "--nbval", "-n2", "--dist=loadscope"]
    command += ["-p", "no:cacheprovider", "--junitxml=results.xml", "."]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    run = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    results = defaultdict(dict)
    for case in ET.parse(folder / "results.xml").iter("testcase"):
        notebook, cell = case.get("classname"), case.get("name")
        results[notebook.removesuffix(".ipynb")][int(cell.removeprefix("Cell "))] = not len(case)
    return results


@pytest.mark.parametrize("name", TOLERATED)
def test_what_differs_between_machines_is_tolerated(name, failures):
    assert failures[name] == set()


@pytest.mark.parametrize("name", CAUGHT)
def test_corruption_is_caught(name, failures):
    number, _ = CAUGHT[name]
    assert failures[name] == {number}


def test_stripped_lesson_is_caught(lesson, tmp_path):
    """nbval takes a lesson without outputs and counts for one that was never run, and is green."""
    notebook = nbformat.read(lesson, as_version=4)
    for cell in notebook.cells:
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, tmp_path / "stripped.ipynb")
    test_book.test_was_executed_from_top_to_bottom(lesson)
    with pytest.raises(AssertionError):
        test_book.test_was_executed_from_top_to_bottom(tmp_path / "stripped.ipynb")


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("0.50000", "0.50004", True),
        ("0.50000", "0.50100", False),
        ("x = 1e-5", "x = 2e-5", False),
        ("a residue of 2.2e-16", "a residue of 0.0", True),
        ("[-0.0000, 1.0000]", "[ 0.0000, 1.0000]", True),
        ("tensor([1., 2.])", "tensor([1.0000, 2.0000])", True),
        ("It took 10000.", "It took 10001.", False),
        ("10000 steps", "10001 steps", False),
        ("torch 2.6.0", "torch 2.6.1", False),
        ("vmamba_t1.00001", "vmamba_t1.00002", False),
        (r"\bar A = 0.25", r"\bar B = 0.25", False),
        ("<td>0.25</td>", "<td>0.26</td>", False),
        ("a 0.25 b", "a 0.25", False),
        ("<Cell at 0x7f01>", "<Cell at 0x7f02>", True),
    ],
)
def test_texts_are_compared_by_value(old, new, same):
    spec = importlib.util.spec_from_file_location("lessons_conftest", CONFTEST)
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    assert conftest.same_text(old, new) is same


def test_executing_again_changes_no_byte(tmp_path):
    """Widgets have new ids, and pictures are drawn again, at every run."""
    cells = [new_code_cell(source) for source in (IMPORTS, FIGURE, INTERACT, "")]
    path = write(tmp_path / "02_stable.ipynb", cells)
    assert book.main([str(path)]) == 0
    first = path.read_bytes()
    assert book.main([str(path)]) == 0
    assert path.read_bytes() == first
    assert first.endswith(b"}\n") and list(tmp_path.iterdir()) == [path]


def test_answer_is_noticed_that_comes_while_a_widget_is_sent(tmp_path, monkeypatch):
    """It comes at this moment now and then; while a slow widget is sent, it comes for certain."""
    send = OutputWidget.send

    def send_slowly(*arguments, **keywords):
        time.sleep(0.5)
        send(*arguments, **keywords)

    monkeypatch.setattr(OutputWidget, "send", send_slowly)
    source = "from ipywidgets import interact\ninteract(lambda x: print(x), x=1);"
    path = write(tmp_path / "02_widget.ipynb", [new_code_cell(source)])
    start = time.perf_counter()
    book.execute(path)
    assert time.perf_counter() - start < book.CELL_TIMEOUT


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "code cell 2: "),
        (
            "from ipywidgets import interact\ninteract(lambda x: 1 / 0, x=1)",
            "widget callback: ZeroDivisionError",
        ),
    ],
)
def test_lesson_that_raises_is_not_overwritten(source, message, tmp_path, capsys):
    path = write(tmp_path / "02_raises.ipynb", [new_code_cell("2"), new_code_cell(source)])
    before = path.read_bytes()
    assert book.main([str(path)]) == 1
    assert path.read_bytes() == before
    assert f"02_raises: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [None, 0.001])
def test_budget_is_demanded(seconds, tmp_path, capsys):
    path = write(tmp_path / "02_slow.ipynb", [new_code_cell("1 + 1")], budget_seconds=seconds)
    assert book.main([str(path)]) == 1
    assert "BUDGET" in capsys.readouterr().out


def test_unknown_lesson_is_answered_with_the_known(tmp_path):
    for name in ("01_first.ipynb", "02_second.ipynb"):
        (tmp_path / name).touch()
    assert book.find_lessons(["02"], tmp_path) == [tmp_path / "02_second.ipynb"]
    assert len(book.find_lessons([], tmp_path)) == 2
    with pytest.raises(LookupError, match="'03'; the lessons are 01_first, 02_second"):
        book.find_lessons(["03"], tmp_path)

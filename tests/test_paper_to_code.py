"""Every row of notebooks/paper_to_code.md leads somewhere, and every part of the model is in it."""

import importlib
import inspect
import re
from functools import reduce
from pathlib import Path

import pytest

import minivmamba

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
HEADER = ["in the paper", "here", "lesson", "in the public code"]

# Where links may lead. Before you add a commit, see that the code stands there.
PINNED = {
    "MzeroMiko/VMamba": {
        "b2faf5013b16200bcdeb22ad31e5b15b97ee66b7",  # the first release
        "06d8cf9ce7b27d77ccaf70771c7bbbf59e682c8c",  # later, one file each
        "0479f85b7e7e48a8fc1f2b9360951d5280686128",
        "18df7ef7f0087ff890603507b7701dc7fd3da9f7",
        "1a5b30070272a1c3be31e7ef85edee291743cc55",
        "33d98bfe3f614177556c711eef0f5b21992e297f",
        "5e4c4d76f5cbeb7f680e7feb5dd95cf34c3dde8d",
        "889d9134c59a68be221c4ff936818619641aabed",
        "d2891cb299bb08733ec90b4c920bb6b5b512f9af",
    },
    "state-spaces/mamba": {"6dbfc4553a98c81e1e93b8fd2d5abf387f5c09ee"},
    "state-spaces/s4": {"2ed46fcf77f2392145ceb801a553367c9111675a"},
}
PERMALINK = re.compile(
    r"https://github\.com/(?P<repo>[\w-]+/[\w-]+)/blob/(?P<commit>[0-9a-f]{40})"
    r"/[\w./-]+\.(py|yaml|cuh)(#L\d+(-L\d+)?)?"
)
OF_THE_MODEL = {
    *("discretize", "ssm", "selective_scan", "cross_scan", "ss2d_scan", "ss2d", "stages"),
    *("vssm", "vssm_v2", "backbone", "flops"),
}


def table(text):
    """The cells of each row of the only table, without the header."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    header, rule, *rows = [[cell.strip() for cell in line] for line in lines]
    assert header == HEADER and set("".join(rule)) == {"-"}
    return rows


ROWS = table((NOTEBOOKS / "paper_to_code.md").read_text(encoding="utf-8"))
over_rows = pytest.mark.parametrize("row", ROWS, ids=[row[0][:40] for row in ROWS])


def names_in(cell):
    return re.findall(r"`([\w.]+)`", cell)


def found(name):
    """The object of a dotted name of the package."""
    parts = name.split(".")
    if parts[0] == "kernels":  # compiled only where their compiler is
        pytest.importorskip({"scan_numba": "numba", "scan_triton": "triton"}.get(parts[1], "torch"))
    for last in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(["minivmamba", *parts[:last]]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[last:], module)
    return reduce(getattr, parts, minivmamba)


@over_rows
def test_names_are_public_and_documented(row):
    _, here, _, _ = row
    names = names_in(here)
    assert here == ", ".join(f"`{name}`" for name in names) or here in ("in the lesson", "to come")
    for name in names:
        assert not any(part.startswith("_") for part in name.split("."))
        value = found(name)
        assert inspect.isfunction(value) or inspect.isclass(value)
        assert value.__doc__, name


@over_rows
def test_lessons_are_linked_once_they_are_written(row):
    _, here, lesson, _ = row
    number = re.fullmatch(r"\[?(\d\d)(\]\((\d\d_\w+\.ipynb)\))?", lesson)
    assert number, lesson
    written = [path.name for path in NOTEBOOKS.glob(f"{number[1]}_*.ipynb")]
    assert [number[3]] == (written or [None])
    assert (here != "to come") if written else (here != "in the lesson")


@over_rows
def test_links_are_pinned(row):
    *_, code = row
    urls = re.findall(r"\]\(([^)]*)\)", code)
    assert urls or code.startswith("none")
    assert code.count("http") == len(urls)
    for url in urls:
        link = PERMALINK.fullmatch(url)
        assert link, url
        assert link["commit"] in PINNED[link["repo"]], url


def test_every_pin_is_used():
    text = "".join(code for *_, code in ROWS)
    assert {commit for commits in PINNED.values() for commit in commits} == set(
        re.findall(r"/blob/([0-9a-f]{40})/", text)
    )


def test_every_part_of_the_model_is_in_the_map():
    mapped = {name for _, here, _, _ in ROWS for name in names_in(here)}
    parts = [
        name
        for name in minivmamba.__all__
        if getattr(minivmamba, name).__module__.removeprefix("minivmamba.") in OF_THE_MODEL
    ]
    assert len(parts) >= 30  # or the names of the modules have changed
    assert [name for name in parts if name not in mapped] == []


def test_lessons_appear_in_order():
    lessons = [re.search(r"\d\d", lesson)[0] for _, _, lesson, _ in ROWS]
    assert lessons == sorted(lessons)

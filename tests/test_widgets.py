"""Every slider of the book, moved everywhere: its function must draw something at every stop.

The code cells of a lesson run in order with `ipywidgets.interact` replaced by a recorder; then
each recorded function is called over a grid of its sliders' values. An exception or a warning
would reach a reader in the middle of playing. A lesson runs in a process of its own, so that what
it changes stays there: this file is that process's program.
"""

import itertools
import linecache
import os
import re
import subprocess
import sys
import warnings

import ipywidgets
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from minivmamba.classroom.book import NOTEBOOKS, WIDGET_VIEW

LESSONS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
MOST = 9  # stops of one slider: the ends and evenly between


def stops(control):
    """Some of the values that a reader can choose: both ends, and what lies evenly between."""
    if isinstance(control, ipywidgets.fixed):
        return [control.value]
    # What `interact` makes of an abbreviation such as (0, 5).
    widget = ipywidgets.interactive(lambda x: x, x=control).children[0]
    if isinstance(widget.value, bool):
        return [False, True]
    if hasattr(widget, "options"):
        return [o[1] if isinstance(o, tuple) else o for o in widget.options]
    count = round((widget.max - widget.min) / widget.step)
    chosen = sorted({round(k * count / (MOST - 1)) for k in range(MOST)})
    return [type(widget.value)(widget.min + k * widget.step) for k in chosen]


def drive(path):
    """Run a lesson and move its widgets; prints how many calls each of them got."""
    recorded = []
    ipywidgets.interact = lambda function, **controls: recorded.append((function, controls))
    space = {"display": lambda *_, **__: None}
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "code":
            name = f"<cell {number} of {path}>"
            # Triton and Numba read the source of a function where Python keeps it, as in a lesson.
            lines = cell.source.splitlines(keepends=True)
            linecache.cache[name] = (len(cell.source), None, lines, name)
            exec(compile(cell.source, name, "exec"), space)
    warnings.simplefilter("error")
    for function, controls in recorded:
        calls = list(itertools.product(*map(stops, controls.values())))
        for values in calls:
            shown = function(**dict(zip(controls, values, strict=True)))
            assert shown is not None, f"{function.__name__}{values} shows nothing"
        print(f"{function.__name__}: {len(calls)} calls")


def driven(path):
    """Run `drive` in a process of its own; returns its exit status, its report and its errors."""
    command = [sys.executable, __file__, str(path)]
    # Lesson 08 asks for Triton's interpreter, but here minivmamba, and Triton, come before it.
    options = {"env": os.environ | {"TRITON_INTERPRET": "1"}, "timeout": 600}
    run = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    return run.returncode, re.findall(r"^(.+): (\d+) calls$", run.stdout, re.MULTILINE), run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_every_slider_at_every_stop(lesson):
    views = [
        cell
        for cell in nbformat.read(lesson, as_version=4).cells
        for output in cell.get("outputs", ())
        if WIDGET_VIEW in output.get("data", {}) and "interact(" in cell.source
    ]
    status, calls, errors = driven(lesson)
    assert status == 0, errors[-3000:]
    assert views and len(calls) == len(views)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return 1 / (x - 2)", "ZeroDivisionError"),
        ("return warnings.warn('not for 2') if x == 2 else x", "UserWarning"),
        ("return x if x != 2 else None", "draw(2, 1) shows nothing"),
    ],
)
def test_one_bad_stop_is_seen(body, complaint, tmp_path):
    source = (
        f"import warnings\nfrom ipywidgets import IntSlider, fixed, interact\n"
        f"def draw(x, y):\n    {body}\ninteract(draw, x=IntSlider(min=0, max=4), y=fixed(1));"
    )
    path = tmp_path / "02_bad.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    status, _, errors = driven(path)
    assert status != 0 and complaint in errors


if __name__ == "__main__":
    drive(sys.argv[1])

"""Every figure: readable, labelled, the same as the PNG beside its source, for any slider."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minivmamba import figures
from minivmamba.classroom.pictures import same_picture
from minivmamba.figures.discretization import between_samples, run
from minivmamba.figures.style import RULE_STYLE, save

FOLDER = Path(__file__).parents[1] / "figures"
WITHOUT_AXES = {
    "blocks", "digits_to_read", "layout_of_a_program", "routes", "seen", "stages",
    "steps_before_and_after", "what_we_build",
}  # pictures and drawings  # fmt: skip


@pytest.mark.parametrize("name", figures.__all__)
def test_committed_picture_is_what_its_function_draws(name, tmp_path):
    save(getattr(figures, name)(), tmp_path / "new.png")
    with Image.open(tmp_path / "new.png") as new, Image.open(FOLDER / f"{name}.png") as old:
        assert same_picture(old, new, cell=6)  # as coarse at 150 dots an inch as 4 at 100


@pytest.mark.parametrize("name", sorted(set(figures.__all__) - WITHOUT_AXES))
def test_axes_are_labelled_and_the_figure_fits_a_page(name):
    figure = getattr(figures, name)()
    assert figure.get_size_inches()[0] <= 7.2
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert panels[-1].get_xlabel()
    for axes in panels:  # a row of panels may share the label of its first
        sharing = axes.get_shared_y_axes().get_siblings(axes)
        assert any(panel.get_ylabel() for panel in sharing)


def test_rules_differ_in_more_than_colour():
    for key in ("color", "linestyle", "marker"):
        assert len({style[key] for style in RULE_STYLE.values()}) == len(RULE_STYLE)


@pytest.mark.parametrize("dt", [0.1, 0.2, 0.5, 1.0, 1.9, 2.1, 3.0])
def test_slider_of_the_rules(dt):
    figure = figures.rules(dt)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == 5 and f"{dt:.2f}" in figure.axes[0].get_title()


def test_grey_curve_is_the_exact_answer():
    exact, *_ = figures.rules(0.5).axes[0].lines
    assert np.allclose(exact.get_ydata(), 1 - np.exp(-exact.get_xdata()))


@pytest.mark.parametrize("s", [-6.0, -2.5, 0.0, 1.0])
def test_slider_of_the_gate(s):
    assert f"{abs(s):.1f}" in figures.remember(s).axes[0].get_title()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 5), (5, 0), (5, 5), (3, 2)])
def test_sliders_of_the_routes(row, column):
    titles = [axes.get_title() for axes in figures.seen(row, column).axes]
    counts = [int(title.split("\n")[1].split()[0]) for title in titles]
    assert counts[0] == row * 6 + column + 1 and counts[0] + counts[2] == 37
    assert counts[1] == column * 6 + row + 1 and counts[1] + counts[3] == 37


def test_curve_between_samples_goes_through_them():
    xs = [4.0, 0.0, 8.0]
    times, levels = between_samples(-1.0, 1.0, 0.7, xs)
    for t, h in enumerate(run("zoh", -1.0, 1.0, 0.7, xs)):
        assert np.allclose(levels[np.isclose(times, t)], h)

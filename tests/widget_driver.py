"""Every slider of a lesson, moved everywhere: for cells put before and behind a lesson's own.

`listen` makes `ipywidgets.interact` remember what it was given; `move_all` then calls each of these
functions over a grid of its sliders' values. An exception or a warning would reach a reader in the
middle of playing.
"""

import itertools
import warnings
from functools import wraps

import ipywidgets

MOST = 9  # stops of one slider: the ends and evenly between
given = []  # (function, its controls)


def listen():
    real = ipywidgets.interact

    @wraps(real)
    def interact(function, **controls):
        given.append((function, controls))
        return real(function, **controls)

    ipywidgets.interact = interact


def move_all():
    """Prints how many calls each function got."""
    from IPython.utils.capture import capture_output
    from matplotlib import pyplot as plt

    for function, controls in given:
        calls = list(itertools.product(*map(stops, controls.values())))
        for values in calls:
            with capture_output(), warnings.catch_warnings():
                warnings.simplefilter("error")
                shown = function(**dict(zip(controls, values, strict=True)))
            plt.close("all")
            assert shown is not None, f"{function.__name__}{values} shows nothing"
        print(f"{function.__name__}: {len(calls)} calls")


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

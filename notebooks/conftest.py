"""How `pytest --nbval notebooks` compares a fresh run of the lessons with their stored outputs.

Strict nbval compares strings and skips pictures: it is red for a rounding error and green for a
wrong figure. Here words and integers must agree exactly, decimals within a tolerance, pictures as
pictures, and no output may be missing or new. nbval has no hooks for this, so four of its
functions are replaced, each named in the docstring of its replacement.
"""

import math
import re
from base64 import b64decode
from functools import partial
from importlib.metadata import version
from io import BytesIO

import nbval.kernel
import nbval.plugin
import pytest
from PIL import Image

from minivmamba.classroom.pictures import same_picture

collect_ignore = ["student"]  # has no outputs to compare; tests/test_editions.py runs it

CELL_TIMEOUT = 300.0  # seconds; nbval's own 2000 would let a hanging cell eat the whole test run

# Across machines the last digits differ (order of sums, BLAS, libm): 1e-4 is what four printed
# digits can show, and a hundredth of the smallest mistake worth teaching. Near zero no relative
# tolerance holds: a residue of 2e-16 may be 0 elsewhere. A lesson prints nothing else below 1e-9.
RELATIVE, ABSOLUTE = 1e-4, 1e-9

# A decimal with the blanks before it, which shift when a sign or a digit comes or goes. Glued to
# a letter or another number (v1.5, 2.6.0) it is part of a word. Whatever does not match is text,
# so integers are compared exactly.
DECIMAL = re.compile(
    r"[^\S\n]*(?<![\w.])([-+]?(?:\d+\.\d*|\.\d+|\d+(?=e[-+]?\d))(?:e[-+]?\d+)?)",
    re.ASCII | re.IGNORECASE,
)
# What differs at every run and means nothing: addresses in reprs, the ids of widget models.
VOLATILE = re.compile(r"(?<=\bat )0x[0-9a-fA-F]+|\b[0-9a-f]{32}\b")

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
DISPLAYED = {"stream", "display_data", "update_display_data", "execute_result", "clear_output"}


def pytest_configure(config):
    """Put the replacements in place, in nbval's option and in its modules."""
    if not version("nbval").startswith("0.11."):
        raise pytest.UsageError(
            f"notebooks/conftest.py replaces internals of nbval 0.11, not of {version('nbval')}: "
            "pip install 'nbval==0.11.*'"
        )
    if config.option.nbval_cell_timeout == 2000:  # nobody asked for another
        config.option.nbval_cell_timeout = CELL_TIMEOUT
    nbval.plugin.IPyNbCell.compare_outputs = compare_outputs
    nbval.plugin.IPyNbFile.get_kernel_message = get_kernel_message
    nbval.kernel.RunningKernel.execute_cell_input = execute_cell_input
    # With a history, kernels that run side by side would queue for one file of the user's.
    nbval.kernel.start_new_kernel = partial(
        nbval.kernel.start_new_kernel, extra_arguments=["--HistoryManager.hist_file=:memory:"]
    )


def execute_cell_input(kernel, cell_input, allow_stdin=None):
    """Replaces RunningKernel.execute_cell_input, to run a cell as Jupyter does.

    Only with store_history does a closing `;` silence the output and the execution count rise.
    """
    return kernel.kc.execute(
        cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False
    )


def get_kernel_message(file, timeout=None, stream="iopub"):
    """Replaces IPyNbFile.get_kernel_message, to do what a browser does for Output widgets.

    While such a widget (one is in every `interact`) names a cell's message in its `msg_id`, what
    the cell prints or shows belongs to the widget, and is not among the stored outputs. Errors
    pass: they make the cell fail.
    """
    captured = file.__dict__.setdefault("captured", {})  # widget -> message it listens to
    while True:
        message = file.kernel.get_message(stream, timeout=timeout)
        if message["msg_type"] == "comm_msg":
            state = message["content"]["data"].get("state", {})
            if "msg_id" in state:
                captured[message["content"]["comm_id"]] = state["msg_id"]
        parent = message["parent_header"].get("msg_id")
        if message["msg_type"] not in DISPLAYED or parent not in captured.values():
            return message


def compare_outputs(cell, test, ref, skip_compare=None):
    """Replaces IPyNbCell.compare_outputs; not called for cells tagged `nbval-ignore-output`."""
    stored, computed = flatten(ref), flatten(test)
    kinds, new_kinds = ([kind for kind, _ in outputs] for outputs in (stored, computed))
    cell.comparison_traceback = []
    if kinds != new_kinds:
        cell.comparison_traceback.append(f"stored: {kinds}\ncomputed: {new_kinds}")
        return False
    for (kind, old), (_, new) in zip(stored, computed, strict=True):
        if not same(kind, old, new):
            cell.format_output_compare(kind, old, new)
    return not cell.comparison_traceback


def flatten(outputs):
    """The outputs of a cell as (kind, value) pairs, one for each MIME type or stream.

    Sorted by kind: stdout and stderr arrive in any order. Within a kind the order counts.
    """
    pairs = []
    for output in outputs:
        if output.output_type == "stream":
            pairs.append((output.name, output.text))
        elif output.output_type == "error":
            pairs.append(("error", f"{output.ename}: {output.evalue}"))
        else:
            pairs.extend(output.data.items())
    return sorted(pairs, key=lambda pair: pair[0])


def same(kind, old, new):
    """Whether two values of one kind agree."""
    if kind == WIDGET_VIEW:
        return True  # only an id; what the widget is stands in the text/plain beside it
    if kind in ("image/png", "image/jpeg"):
        return same_picture(*(Image.open(BytesIO(b64decode(encoded))) for encoded in (old, new)))
    if isinstance(old, str) and isinstance(new, str):
        return same_text(old, new)
    return old == new


def same_text(old, new):
    """Words and integers equal, decimals close."""
    old, new = (DECIMAL.split(VOLATILE.sub("…", text)) for text in (old, new))
    return old[::2] == new[::2] and all(map(same_decimal, old[1::2], new[1::2]))


def same_decimal(old, new):
    """Whether two decimals are close; `12.`, a whole number of torch's or the end of a sentence,
    is an integer.
    """
    if old.endswith(".") and new.endswith("."):
        return float(old) == float(new)
    return math.isclose(float(old), float(new), rel_tol=RELATIVE, abs_tol=ABSOLUTE)

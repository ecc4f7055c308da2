"""Execute the lessons and store their outputs: `python -m minivmamba.classroom.book [NAME ...]`.

A reader who only looks at the pages, and the test that compares every stored output with a fresh
run, both rely on what is written here. So the files are stable: executing a lesson twice gives
the same bytes unless what it prints or draws has changed.
"""

import argparse
import itertools
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

try:
    import nbformat
    import zmq
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
except ImportError as error:
    raise ImportError(
        "executing lessons needs nbclient and nbformat: pip install -e '.[lessons]'; "
        "the package itself works without them"
    ) from error

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
CELL_TIMEOUT = 300  # seconds, as in notebooks/conftest.py
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")


class LessonError(Exception):
    """A lesson that does not run to its end; the message tells where and why."""


def find_lessons(names: list[str], folder: Path = NOTEBOOKS) -> list[Path]:
    """The files meant by `02`, by `02_discretization` or by a path; without names, all lessons."""
    lessons = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    return [_find(name, lessons, folder) for name in names] or _all(lessons, folder)


def _all(lessons: list[Path], folder: Path) -> list[Path]:
    """The lessons, or LookupError where there are none, as beside an installed wheel."""
    if not lessons:
        raise LookupError(f"no lessons in {folder}: the book is executed from a checkout")
    return lessons


def _find(name: str, lessons: list[Path], folder: Path) -> Path:
    """The lesson called `name`, or LookupError with the names there are."""
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    for lesson in _all(lessons, folder):
        if lesson.stem == name or lesson.stem.startswith(f"{name}_"):
            return lesson
    known = ", ".join(lesson.stem for lesson in lessons)
    raise LookupError(f"no lesson {name!r}; the lessons are {known}")


class Client(NotebookClient):
    """nbclient, without its long waits at cells with widgets.

    When a cell prints into an Output widget (one is in every `interact`), nbclient sends the
    widget's new state to the kernel, on the very socket on which it awaits the end of the cell. ZMQ
    announces an arrival once, and sending uses the announcement up: an answer that came at this
    moment lay unread until the cell's time was up (github.com/jupyter/nbclient/issues/312).
    """

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        """Handle what a cell shows, then look whether an answer has come meanwhile."""
        try:
            return super().process_message(msg, cell, cell_index)
        finally:
            assert self.kc is not None
            self.kc.shell_channel.socket.get(zmq.EVENTS)  # this wakes whoever awaits the answer


def execute(path: Path) -> Any:
    """Run a lesson from its first cell in a fresh kernel and return the notebook."""
    notebook = nbformat.read(path, as_version=4)
    for cell in _code_cells(notebook):
        # nbclient leaves blank cells alone, with whatever an earlier run stored in them.
        cell.outputs, cell.execution_count = [], None
    client = Client(
        notebook,
        kernel_name="python3",
        timeout_func=lambda cell: CELL_TIMEOUT,
        # For the question which language the kernel speaks. On a busy machine the answer gets lost
        # now and then, and nbclient would wait for it in silence as long as for a cell.
        timeout=10,
        record_timing=False,
        coalesce_streams=True,  # the kernel cuts a stream into pieces by the clock
        extra_arguments=["--log-level=ERROR"],  # not its remarks on unencrypted loopback
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        reason = COLOUR_CODE.sub("", str(error)).strip()
        raise LessonError(f"code cell {client.code_cells_executed}: {reason}") from error
    _refuse_widget_errors(notebook)
    return _tidy(notebook)


def _code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _refuse_widget_errors(notebook: Any) -> None:
    """Raise LessonError if a widget's callback failed.

    An Output widget catches the exception and keeps it in its own state, which is not stored:
    neither the run nor the file would show that the reader is going to see a traceback.
    """
    widgets = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for widget in widgets.values():
        for output in widget["state"].get("outputs", ()):
            if output["output_type"] == "error":
                raise LessonError(f"widget callback: {output['ename']}: {output['evalue']}")


def _tidy(notebook: Any) -> Any:
    """Remove what differs between two runs or two machines and tells a reader nothing."""
    notebook.metadata.pop("widgets", None)  # dead without its kernel; new ids at every run
    notebook.metadata.kernelspec = KERNELSPEC
    notebook.metadata.language_info = LANGUAGE
    ids = itertools.count()
    for cell in _code_cells(notebook):
        cell.metadata.pop("execution", None)  # JupyterLab's timestamps
        for output in cell.outputs:
            view = output.get("data", {}).get(WIDGET_VIEW)
            if view is not None:
                view["model_id"] = f"{next(ids):032x}"
    return notebook


def store(notebook: Any, path: Path) -> None:
    """Replace the file in one step: interrupted at any moment, the old lesson is still whole."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        text = nbformat.writes(notebook).rstrip("\n") + "\n"
        draft.write_text(text, encoding="utf-8", newline="\n")
        if path.exists():
            shutil.copymode(path, draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def budget_of(notebook: Any) -> float | None:
    """The seconds a lesson declares in its metadata, or None."""
    budget = notebook.metadata.get("minivmamba", {}).get("budget_seconds")
    return float(budget) if budget is not None else None


def build(path: Path) -> tuple[float, float, bool]:
    """Execute and store one lesson, print its line; returns seconds, budget, and whether it holds.

    A lesson that raises keeps the outputs it had.
    """
    start = time.perf_counter()
    try:
        notebook = execute(path)
    except LessonError as error:
        print(f"{path.stem}: {error}", file=sys.stderr, flush=True)
        return time.perf_counter() - start, 0.0, False
    seconds = time.perf_counter() - start
    store(notebook, path)
    budget = budget_of(notebook)
    if budget is None:
        print(f"{path.stem:<32}{seconds:7.1f} s  NO BUDGET in its metadata", flush=True)
        return seconds, 0.0, False
    verdict = "" if seconds <= budget else "  OVER BUDGET"
    print(f"{path.stem:<32}{seconds:7.1f} s of {budget:g} s{verdict}", flush=True)
    return seconds, budget, seconds <= budget


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 1 if a lesson raised, was too slow or declares no budget."""
    parser = argparse.ArgumentParser(
        prog="python -m minivmamba.classroom.book",
        description="Execute lessons and store their outputs in place.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="02, 02_discretization or a path")
    try:
        lessons = find_lessons(parser.parse_args(arguments).names)
    except LookupError as error:
        parser.error(str(error))
    results = [build(lesson) for lesson in lessons]
    seconds, budget = sum(r[0] for r in results), sum(r[1] for r in results)
    print(f"{'total':<32}{seconds:7.1f} s of {budget:g} s")
    return 0 if all(r[2] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What a reader does first: `make lab`, Run All Cells, move a slider and see the figure answer.

A real JupyterLab on loopback, driven in headless Chromium. All that JupyterLab writes goes into a
temporary folder; nothing is saved in the checkout, and that is tested too.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
STUDENT = NOTEBOOKS / "student"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
CHROMIUM_FLAGS = [
    "--no-sandbox",  # needed by root, the only user of most containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TOKEN = "reader"
SETTINGS = {
    "docmanager-extension/plugin": {"autosave": False},
    # Otherwise cells outside the window are not in the page.
    "notebook-extension/tracker": {"windowingMode": "none"},
    # Otherwise a question about news covers the corner of the page, and loopback is left.
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
SECOND = 1000  # Playwright counts milliseconds
ERRORS = "[data-mime-type='application/vnd.jupyter.error']"
STDERR = "[data-mime-type='application/vnd.jupyter.stderr']"
# Not an `expect`, whose message would print both pictures in base64.
OTHER_PICTURE = """old => {
    const pictures = [...document.querySelectorAll('.widget-interact img')];
    return pictures.length > 0 && pictures.every(picture => picture.src !== old);
}"""
PROMPTS = ".jp-CodeCell .jp-InputPrompt"

pytestmark = [
    pytest.mark.slow,
    # In CI a missing browser is an error: what is skipped there would be seen by nobody.
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ,
        reason="needs Chromium, on Debian: apt install chromium",
    ),
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def jupyter_folders(folder):
    """Write the settings and return the variables that keep JupyterLab inside `folder`."""
    for plugin, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    # Opening a notebook makes a checkpoint, by default beside it.
    config = {"FileCheckpoints": {"checkpoint_dir": str(folder / "checkpoints")}}
    (folder / "jupyter_server_config.json").write_text(json.dumps(config))
    return {
        "JUPYTER_CONFIG_DIR": str(folder),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
    }


def start_lab(folder):
    """`make lab` in a process group of its own, as if typed in a terminal."""
    flags = f"--no-browser --ip=127.0.0.1 --port={free_port()} --ServerApp.port_retries=0"
    # When `make test` runs this, its own flags must not reach the inner make.
    outer = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            ["make", "lab", f"LAB_FLAGS={flags} --IdentityProvider.token={TOKEN}"],
            cwd=ROOT,
            env=outer | jupyter_folders(folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_server(process, folder, seconds=300):
    """What the server writes about itself once it listens: its address and its root folder.

    Minutes, if pyproject.toml is new and `make lab` installs first.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        for info in (folder / "runtime").glob("jpserver-*.json"):
            if text := info.read_text():
                return json.loads(text)
        time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start:\n{(folder / 'log').read_text()}")


def stop(process):
    """End the whole group; at SIGTERM the server also ends its kernels."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=15)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    process = start_lab(folder)
    try:
        yield wait_for_server(process, folder)
    finally:
        stop(process)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(30 * SECOND)
    expect.set_options(timeout=30 * SECOND)
    yield page
    page.close()


@pytest.fixture(autouse=True)
def checkout_stays_as_it_was():
    before = {path: path.read_bytes() for path in NOTEBOOKS.rglob("*.ipynb")}
    yield
    assert {path: path.read_bytes() for path in NOTEBOOKS.rglob("*.ipynb")} == before


def open_lab(page, lab):
    """Show what `make lab` opens by itself, and wait for the kernel of the lesson in it."""
    page.goto(f"{lab['url']}?token={TOKEN}")
    wait_for_kernel(page)


def open_lesson(page, lab, path):
    """Show a lesson and wait for its kernel."""
    shown = path.relative_to(lab["root_dir"]).as_posix()
    page.goto(f"{lab['url']}lab/tree/{shown}?token={TOKEN}&reset")
    wait_for_kernel(page)


def wait_for_kernel(page):
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    wait_idle(page)


def wait_idle(page, seconds=60):
    page.get_by_text("| Idle").wait_for(timeout=seconds * SECOND)


def choose(page, menu, item):
    """Click an item of the menu bar."""
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()


def run_all(page, seconds=120):
    """Run every cell and wait for the last; the counts that the file stores are cleared first."""
    prompts = page.locator(PROMPTS)
    done, running = prompts.filter(has_text=re.compile("[0-9]")), prompts.filter(has_text="[*]")
    choose(page, "Edit", "Clear Outputs of All Cells")
    expect(done).to_have_count(0)
    choose(page, "Run", "Run All Cells")
    done.first.wait_for(timeout=seconds * SECOND)  # from here on, what has not run shows [*]
    expect(running).to_have_count(0, timeout=seconds * SECOND)
    wait_idle(page, seconds)


def expected_prompts(path):
    """1..N over the cells that hold code; a folded cell shows no prompt."""
    prompts, number = [], 0
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            number += bool(cell.source.strip())
            folded = cell.metadata.get("jupyter", {}).get("source_hidden")
            prompt = f"[{number}]:" if cell.source.strip() else "[ ]:"
            prompts.append("" if folded else prompt)
    return prompts


def assert_ran(page, path):
    """Every cell ran, in order, without a traceback or a warning."""
    assert page.locator(f"{ERRORS}, {STDERR}").all_inner_texts() == []
    assert page.locator(PROMPTS).all_text_contents() == expected_prompts(path)


def test_make_lab_opens_the_first_lesson_and_it_runs(lab, page):
    lesson = STUDENT / "00_start_here.ipynb"
    open_lab(page, lab)
    expect(page.locator(".jp-Notebook h1").first).to_contain_text("00 · Start here")
    run_all(page)
    assert_ran(page, lesson)


def test_slider_redraws_the_figure(lab, page):
    lesson = NOTEBOOKS / "02_discretization.ipynb"
    open_lesson(page, lab, lesson)
    run_all(page)
    assert_ran(page, lesson)
    interact = page.locator(".widget-interact", has=page.locator(".noUi-handle")).first
    figure, readout = interact.locator("img").first, interact.locator(".widget-readout").first
    picture, value = figure.get_attribute("src"), readout.inner_text()
    for _ in range(3):
        interact.locator(".noUi-handle").first.press("ArrowRight")
    expect(readout).not_to_have_text(value)
    page.wait_for_function(OTHER_PICTURE, arg=picture)
    expect(page.locator(ERRORS)).to_have_count(0)


def test_the_mass_on_a_spring_moves(lab, page):
    """Lesson 01: the play button turns the frames, and the figure follows."""
    lesson = STUDENT / "01_state_space_models.ipynb"
    open_lesson(page, lab, lesson)
    run_all(page)
    assert_ran(page, lesson)
    show = page.locator(".widget-interact", has_text="frame")
    figure, readout = show.locator("img").first, show.locator(".widget-readout").first
    expect(readout).to_have_text("0")
    picture = figure.get_attribute("src")
    page.locator(".jupyter-widgets.widget-play button").first.click()
    expect(readout).to_have_text(re.compile("[1-9]"))
    page.wait_for_function(OTHER_PICTURE, arg=picture)
    expect(page.locator(ERRORS)).to_have_count(0)


WRONG_STEP = "def zoh_step(a, b, dt):\n    return math.exp(a * dt), dt * b\n\n\n"
RIGHT_STEP = (
    "def zoh_step(a, b, dt):\n    return math.exp(a * dt), math.expm1(a * dt) / a * b\n\n\n"
)


def test_a_reader_answers_an_exercise(lab, page):
    """First with the mistake of the lesson, then right; the checkout stays as it was."""
    open_lesson(page, lab, STUDENT / "02_discretization.ipynb")
    imports = page.locator(".jp-CodeCell", has_text="from minivmamba.classroom import").first
    answer = page.locator(".jp-CodeCell", has_text='check("02.1", zoh_step)').first
    for cell, source in ((imports, None), (answer, WRONG_STEP), (answer, RIGHT_STEP)):
        cell.locator(".cm-content").click()
        if source:
            page.keyboard.press("ControlOrMeta+a")
            page.keyboard.insert_text(source + 'check("02.1", zoh_step)')
        page.keyboard.press("Shift+Enter")
        if source:
            verdict = "wrong — this B̄ is Δ·b" if source == WRONG_STEP else "right"
            expect(answer.locator(".jp-OutputArea-output")).to_contain_text(
                f"Exercise 02.1: {verdict}"
            )

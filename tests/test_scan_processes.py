"""The compiled scan survives what happens to it outside: forks, threads, caches, no Numba.

Each test runs a script in a fresh process, since a mistake here kills or hangs the process: an
OpenMP runtime entered after a fork aborts, Numba's workqueue layer aborts under two Python threads.
"""

import os
import shutil
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
slow = pytest.mark.slow
pytestmark = slow
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# What every script starts with. Only the scan has several tasks (2 images, 3 tiles each) and wants
# threads. No exp, no matrix product: with 2 threads they enter MKL's OpenMP, however small,
# and hang in a forked child by themselves, without any scan.
PRELUDE = """
import os, signal, sys, time, warnings
import torch
import minivmamba
from minivmamba import selective_scan, ss2d_scan

def arguments():
    generator = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=generator)
    u, delta = randn(2, 150, 40), randn(2, 150, 40)
    return u, delta, -randn(150, 3).abs(), randn(2, 1, 3, 40), randn(2, 1, 3, 40)

def forward():
    return [selective_scan(*arguments(), delta_softplus=True, backend="numba")]

def forward_and_backward():
    leaves = [value.requires_grad_() for value in arguments()]
    y = selective_scan(*leaves, delta_softplus=True, backend="numba")
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]

def map_forward():
    u, delta, A, B, C = arguments()
    x = u.view(2, 5, 8, 150)
    steps = delta.view(2, 1, 5, 8, 150).expand(2, 4, 5, 8, 150)
    B, C = (v.view(2, 1, 5, 8, 3).expand(2, 4, 5, 8, 3) for v in (B, C))
    A, D = A.repeat(4, 1), torch.ones(600)
    return [ss2d_scan(x, steps, A, B, C, D, delta_softplus=True, backend="numba")]

def everything():
    # A GPU's autograd threads, where there is a GPU, do not survive a fork; the scan has to.
    backward = forward if torch.cuda.is_available() else forward_and_backward
    return [*backward(), *map_forward()]

def same(results, expected):
    return all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
"""


def python(script, tmp_path, *, env=None, path=ROOT, timeout=240):
    """Run the script after the prelude; return what it printed."""
    file = tmp_path / "script.py"  # a file: spawned processes import it again
    file.write_text(PRELUDE + textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(path), **(env or {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    result = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(file)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
        timeout=timeout,  # a hang is a failure, too
    )
    assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


# 1 · Processes

FORK = """
torch.set_num_threads(2)
torch.ones(1_000_000).exp()  # torch's own threads have started in any case
expected = everything() if PARENT_HAS_RUN else None

def child():
    results = everything()
    assert torch.get_num_threads() == 2
    assert not PARENT_HAS_RUN or same(results, expected)
    assert same(everything(), results)
    if GRANDCHILD:
        fork_and_wait(lambda: same(everything(), results) or os._exit(4))

def fork_and_wait(run):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # a child that hangs ends itself
        try:
            run()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, os.waitstatus_to_exitcode(status)

fork_and_wait(child)
assert expected is None or same(everything(), expected)  # the parent goes on as before
"""


@needs_fork
@pytest.mark.parametrize("parent_has_run", [True, False], ids=["after-a-scan", "before"])
def test_fork(parent_has_run, tmp_path):
    """A child has the threads' bookkeeping of its parent, but not the threads."""
    settings = f"PARENT_HAS_RUN, GRANDCHILD = {parent_has_run}, {parent_has_run}\n"
    python(settings + FORK, tmp_path)


MULTIPROCESSING = """
import torch.multiprocessing as multiprocessing

def work(index):
    torch.set_num_threads(2)
    return [value.numpy().tobytes() for value in everything()]

if __name__ == "__main__":
    torch.set_num_threads(2)
    expected = work(0)
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        for result in pool.map_async(work, range(4)).get(timeout=200):
            assert result == expected
"""


@pytest.mark.parametrize(
    "method", [pytest.param("fork", marks=[needs_fork, slow]), pytest.param("spawn", marks=slow)]
)
def test_multiprocessing(method, tmp_path):
    python(MULTIPROCESSING.format(method=method), tmp_path)


@needs_fork
def test_workers_of_a_data_loader(tmp_path):
    """A dataset that runs a model, in workers forked from a process that has run it, too."""
    script = """
    from torch.utils.data import DataLoader, Dataset

    class Scans(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return torch.stack([*forward(), *(v.view(2, 150, 40) for v in map_forward())])

    if __name__ == "__main__":
        torch.set_num_threads(2)
        expected = Scans()[0]
        loader = DataLoader(
            Scans(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=200
        )
        batches = list(loader)
        assert len(batches) == 3
        assert all(torch.equal(item, expected) for batch in batches for item in batch)
        assert torch.equal(Scans()[0], expected)
    """
    python(script, tmp_path)


# 2 · Threads

FOUR_THREADS = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

torch.set_num_threads(2)
start = Barrier(4)

def work(index):
    start.wait(timeout=200)  # the first, compiling call happens in four threads at once
    return [everything() for _ in range(40)]

with ThreadPoolExecutor(4) as pool:
    results = [run for runs in pool.map(work, range(4)) for run in runs]
expected = everything()
assert len(results) == 160
assert all(same(run, expected) for run in results)
"""


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(None, id="default"),
        pytest.param("omp", marks=slow),
        pytest.param("workqueue", marks=slow),
    ],
)
def test_four_python_threads(layer, tmp_path):
    """A server answers in threads. Numba's workqueue layer ends the process when two meet in it."""
    if layer == "omp":
        pytest.importorskip("numba.np.ufunc.omppool", reason="this Numba has no OpenMP layer")
    python(FOUR_THREADS, tmp_path, env={"NUMBA_THREADING_LAYER": layer})


@pytest.mark.parametrize("torch_threads", [2, pytest.param(7, marks=slow)])
def test_numba_has_fewer_threads_than_torch(torch_threads, tmp_path):
    script = f"""
    torch.set_num_threads(1)
    expected = everything()
    torch.set_num_threads({torch_threads})
    assert same(everything(), expected)
    assert torch.get_num_threads() == {torch_threads}
    """
    python(script, tmp_path, env={"NUMBA_NUM_THREADS": "1"})


# 3 · What may be missing

NO_CACHE = """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.set_num_threads(1)
    one = everything()
    double = [v.double().requires_grad_() for v in arguments()]  # compiles once more
    y = selective_scan(*double, delta_softplus=True, backend="numba")
    assert (y - one[0]).abs().max() < 1e-4
assert minivmamba.__file__.startswith(FOLDER), minivmamba.__file__
print([str(warning.message) for warning in caught])
assert len(caught) == 1, [str(warning.message) for warning in caught]
assert "NUMBA_CACHE_DIR" in str(caught[0].message)
"""


@slow
@pytest.mark.parametrize("cache_dir", [None, "/dev/null/numba"], ids=["unset", "unusable"])
def test_no_writable_cache(cache_dir, tmp_path):
    """Compiled in memory, with one warning that tells the remedy.

    Permission bits do not stop root. A file where Numba wants a folder stops everybody.
    """
    package = tmp_path / "minivmamba"
    shutil.copytree(ROOT / "minivmamba", package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (package, package / "kernels"):
        (folder / "__pycache__").write_text("not a folder")
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache"}
    nowhere |= {"NUMBA_CACHE_DIR": cache_dir, "PYTHONDONTWRITEBYTECODE": "1"}
    script = f"FOLDER = {str(tmp_path)!r}\n" + NO_CACHE
    python(script, tmp_path, env=nowhere, path=tmp_path)


def test_without_numba(tmp_path):
    """auto falls back on the naive rung and says so once; who asks for Numba learns what to do."""
    script = """
    sys.modules["numba"] = None  # import numba raises ImportError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, second = (selective_scan(*arguments(), delta_softplus=True) for _ in range(2))
        minivmamba.SS2D(8)(torch.randn(1, 3, 4, 8)).sum().backward()
    naive = selective_scan(*arguments(), delta_softplus=True, backend="naive")
    assert torch.equal(first, naive) and torch.equal(second, naive)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1 and "numba" in messages[0].lower(), messages
    assert "pip install" in messages[0], messages
    try:
        forward()
    except ImportError as error:
        assert "numba" in str(error), error
    else:
        raise AssertionError("backend='numba' without Numba passed")
    """
    python(script, tmp_path)


# 4 · Time to start

IMPORT_TIME = """
import time
import torch
start = time.perf_counter()
import minivmamba
print(time.perf_counter() - start)
"""


def test_import_leaves_numba_alone(tmp_path):
    """Numba takes 0.3 s to import and is wanted on a CPU only: it waits for the first scan."""
    script = """
    assert "numba" not in sys.modules
    minivmamba.SS2D(8, d_state=2)
    selective_scan(*arguments(), backend="naive")
    assert "numba" not in sys.modules
    forward()
    assert "numba" in sys.modules
    """
    python(script, tmp_path)


@slow
def test_import_time():
    """0.15 s is what the package promises; twice that, since other processes run beside us."""
    seconds = [
        float(subprocess.check_output([sys.executable, "-c", IMPORT_TIME], cwd=ROOT))
        for _ in range(5)
    ]
    assert statistics.median(seconds) < 0.3, seconds


@slow
def test_first_call_with_a_warm_cache(tmp_path):
    """1 s with Numba's import: the code comes from the disk. Compiling takes 10 times as long.

    Not counted: PyTorch imports torch._dynamo, about another second, when the first custom
    operator of a process runs. Twice the second is allowed on a busy machine.
    """
    script = """
    import torch._dynamo
    start = time.perf_counter()
    forward()
    print(time.perf_counter() - start)
    """
    seconds = [float(python(script, tmp_path)) for _ in range(4)][1:]  # the first may compile
    assert statistics.median(seconds) < 2, seconds

"""The package imports from any kind of checkout and asks for little."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(code, **options):
    command = [sys.executable, "-I", "-c", code] if not options else [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_import_needs_torch_and_numpy_only():
    """Numba, Triton and everything of the lessons are imported where they are used."""
    heavy = ["numba", "triton", "torchvision", "matplotlib", "PIL", "scipy", "ipywidgets"]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({heavy}))"  # None: ImportError
    result = python(f"{blocked}; import minivmamba, minivmamba.kernels; minivmamba.SS2D(8)")
    assert result.returncode == 0, result.stderr


def test_checkout_without_symbolic_links(tmp_path):
    """As git leaves it on Windows: the link is a small text file that holds its target."""
    for folder in ("minivmamba", "kernels", "figures"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    for link in ("kernels", "figures"):
        (tmp_path / "minivmamba" / link).unlink()
        (tmp_path / "minivmamba" / link).write_text(f"../{link}")
    code = "import minivmamba.kernels as k, minivmamba.figures; print(k.__file__)"
    result = python(code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(tmp_path)


def test_kernels_import_nothing_of_ours():
    for path in (ROOT / "kernels").glob("*.py"):
        assert "import minivmamba" not in path.read_text()
        assert "from minivmamba" not in path.read_text()

"""What this machine can do, in words (lesson 00)."""

import importlib.util
import os
import platform

import torch


def describe_machine() -> str:
    """A few sentences on the processor, PyTorch, Numba, Triton and the GPU of this machine."""
    return "\n".join([_python(), _processor(), _numba(), _triton(), _gpu()])


def _python() -> str:
    return (
        f"Python {platform.python_version()} on {platform.system()}, PyTorch {torch.__version__}."
    )


def _processor() -> str:
    vectors = torch.backends.cpu.get_cpu_capability()
    return (
        f"Processor: {os.cpu_count()} cores, of which PyTorch uses {torch.get_num_threads()}; "
        f"vector instructions: {vectors}."
    )


def _numba() -> str:
    if importlib.util.find_spec("numba") is None:
        return "Numba: not installed (pip install numba). Lesson 07 needs it, the rest does not."
    import numba

    compiled = numba.njit(lambda n: n + 1)  # a real compilation, not only an import
    works = compiled(41) == 42
    return f"Numba {numba.__version__}: " + (
        "compiles functions here; lesson 07 will use it." if works else "installed, but broken."
    )


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return (
            "Triton: not installed; it exists for Linux only. Lesson 08 can be read, not run, "
            "without it; the rest does not need it."
        )
    import triton

    how = (
        "on the GPU"
        if torch.cuda.is_available()
        else "in its interpreter, and compile them to read the machine code"
    )
    return f"Triton {triton.__version__}: installed; lesson 08 will run its kernels {how}."


def _gpu() -> str:
    if torch.cuda.is_available():
        return f"GPU: {torch.cuda.get_device_name()}. The book does not need it."
    if torch.backends.mps.is_available():
        return "GPU: Apple's, through MPS. The book runs on the processor and does not need it."
    return "GPU: none that PyTorch can use. The book does not need one."

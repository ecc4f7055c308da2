"""What Triton makes of the scan of `kernels/scan_triton.py`, read without a GPU (lesson 08).

`python -m minivmamba.classroom.machine_code sm_80 sm_90` compiles two kernels for a layer of the
first stage of VMamba-T and prints, as JSON, for every target and kernel: registers of a thread,
bytes spilled, the lines of PTX, and the instructions of the loop over steps.

Compiling needs a process that does not interpret, so the lesson runs this one beside its own.
Compiler and disassembler come inside Triton's wheel for Linux; no card and no driver is asked.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

K, d, N, L = 4, 192, 16, 56 * 56  # routes, channels, states, pixels


def arguments() -> dict[str, Any]:
    """One image for `scan_triton`, channels last; "meta" tensors have shapes and no memory."""

    def empty(*size: int) -> torch.Tensor:
        return torch.empty(*size, device="meta")

    u, delta = (empty(1, L, K * d).transpose(1, 2) for _ in range(2))
    B, C = (empty(1, K, L, N).transpose(2, 3) for _ in range(2))
    A, D, bias = empty(K * d, N), empty(K * d), empty(K * d)
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": bias}
    return {**named, "delta_softplus": True}


class Recorder:
    """Stands where a kernel stood, and keeps the arguments of its last call."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.given: dict[str, Any] = {}

    def __getitem__(self, grid: tuple) -> Any:
        def call(*values: Any, **more: Any) -> None:
            self.given = dict(zip(self.kernel.arg_names, values, strict=False)) | more

        return call


def recorded() -> dict[str, Recorder]:
    """The calls that the host code of the scan makes, forward and backward."""
    from minivmamba.kernels import scan_triton as module

    names = {"forward": "forward_kernel", "backward": "backward_kernel"}
    recorders = {name: Recorder(getattr(module, kernel)) for name, kernel in names.items()}
    for name, kernel in names.items():
        setattr(module, kernel, recorders[name])
    values = arguments()
    try:
        *_, kept = module.scan_triton(**values, keep=True)
        dy, dlast = torch.empty_like(values["u"]), kept.new_empty(1, K * d, N)
        module.scan_triton_backward(dy, dlast, kept, **values)
        module.scan_triton(**values)  # last, so that this forward is the one kept: without states
    finally:
        for name, kernel in names.items():
            setattr(module, kernel, recorders[name].kernel)
    return recorders


def compiled(call: Recorder, target: str) -> Any:
    """The kernel of a call for a target such as "sm_90"."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types: dict[str, Any] = {}
    constants: dict[tuple, Any] = {}
    facts: dict[tuple, Any] = {}

    def describe(value: Any, plain: bool, where: tuple) -> Any:
        """The type of an argument; as at a launch, 1 and None are constants, and multiples of 16
        are known to be such."""
        if isinstance(value, tuple):
            return tuple(describe(part, plain, (*where, i)) for i, part in enumerate(value))
        is_tensor = isinstance(value, torch.Tensor)
        is_one = not is_tensor and value == 1 and not plain
        if value is None or isinstance(value, bool) or is_one:
            constants[where] = value
            return "constexpr"
        if is_tensor or (not plain and value % 16 == 0):
            facts[where] = [["tt.divisibility", 16]]
        return "*fp32" if is_tensor else "i32"

    for i, parameter in enumerate(call.kernel.params):
        value = call.given[parameter.name]
        if parameter.is_constexpr:
            types[parameter.name], constants[(i,)] = "constexpr", value
        else:
            types[parameter.name] = describe(value, parameter.do_not_specialize, (i,))
    source = ASTSource(call.kernel, types, constants, facts)
    options = {"num_warps": call.given["num_warps"], "enable_fp_fusion": True}
    architecture = int(target.removeprefix("sm_"))
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def tool(name: str, option: str, cubin: bytes) -> str:
    """What a program inside Triton's wheel says of a compiled kernel."""
    import triton

    program = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [str(program), option, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+((?:@!?U?P\w+\s+)?[A-Z][^;]*?)\s*;")
GUARD = re.compile(r"^@!?U?P\w+\s+")


def loops_of(text: str) -> list[list[str]]:
    """The instructions of every innermost loop: from the target of a branch back to the branch."""
    code: list[str] = []
    labels: dict[str, int] = {}
    loops: list[range] = []
    for line in text.splitlines():
        if label := re.match(r"^(\.L_\w+):", line):
            labels[label[1]] = len(code)
        elif found := INSTRUCTION.match(line):
            target = re.search(r"BRA.*`\((\.L_\w+)\)", found[1])
            if target and labels.get(target[1], len(code)) < len(code):
                loops.append(range(labels[target[1]], len(code) + 1))
            code.append(GUARD.sub("", found[1]))

    def holds_another(outer: range) -> bool:
        return any(o != outer and outer.start <= o.start and o.stop <= outer.stop for o in loops)

    return [[code[i] for i in loop] for loop in loops if not holds_another(loop)]


def steady_loop(text: str) -> list[str]:
    """The innermost loop with the most exponentials: that over the steps of a scan."""
    loops = loops_of(text)
    return max(loops, key=lambda loop: (sum(i.startswith("MUFU.EX2") for i in loop), -len(loop)))


def report(call: Recorder, target: str) -> dict[str, Any]:
    asm = compiled(call, target).asm
    usage = tool("cuobjdump", "--dump-resource-usage", asm["cubin"])
    used = {
        name: int(found[1])
        for name in ("REG", "STACK", "LOCAL")
        if (found := re.search(rf"\b{name}:(\d+)", usage))
    }
    return {
        "registers": used["REG"],
        "spilled": used["STACK"] + used["LOCAL"],
        "ptx": asm["ptx"].splitlines(),
        "loop": steady_loop(tool("nvdisasm", "-c", asm["cubin"])),
    }


def main(targets: list[str]) -> None:
    calls = recorded()
    found = {
        target: {name: report(call, target) for name, call in calls.items()} for target in targets
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])

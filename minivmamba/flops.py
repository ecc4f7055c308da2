"""How many operations an image costs, counted as the published figures count them (lesson 11).

A multiplication with the addition that follows it is one operation; exp, SiLU, GELU, softplus,
other additions and flips are free. At every pixel of a map:

    linear   in · out
    conv     in · out · k² / groups, at every pixel of the result
    einsum   4 · d · (R + 2N) from x to Δ, B and C on the four routes, and 4 · d · R for all of Δ
    scan     4 · d · (c · N + 1): N states a channel, and 1 for D·u
    norm     5 · channels, a rough figure of fvcore, the authors' tool
    pool     1 · channels, in the head

Two values of c are in use. "naive", 3.5, is the loop over the steps: seven multiplications and
additions a state, by twos. "prefix sum", 9, is what Mamba's author allows for a parallel scan
(state-spaces/mamba, issue 110). VMamba-T has 4.5 G in the first version of the paper, which is
naive (and its 22M parameters leave out the head), and 5.6 G in the last one, which is not.

Counts here are exact. fvcore takes those of an einsum from a text with four digits, so the
published ones of `vmamba_base` are higher, by 0.0005 G, and by 0.0007 G with a naive scan.

PyTorch's `FlopCounterMode` counts a multiply-add as 2, and a LayerNorm and the pooling as 0. A scan
it counts as this package registers it: 6N + 3 a channel and step, every multiplication and addition
of a loop that makes Δu only once for the N states.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch.nn as nn

from minivmamba.cross_scan import ROUTES
from minivmamba.expect import expect_int
from minivmamba.ss2d import RouteScan
from minivmamba.stages import StagedModel
from minivmamba.vssm import PatchMerging2D

PARTS = ("linear", "conv", "einsum", "scan", "norm", "pool")
PER_STATE = {"prefix sum": 9.0, "naive": 3.5}  # c

Size = tuple[int, int]


@dataclass(frozen=True)
class Cost:
    """What one layer costs.

    Attributes:
        stage: "stem", "stage 1", "stage 2", … (with the step to the next), or "head".
        layer: name of the module in the model; "" for the pooling, which may have none.
        part: "linear", "conv", "einsum", "scan", "norm" or "pool".
        operations: in a scan only those of D·u; the others depend on the formula.
        states: in a scan pixels · 4 · d · N, how many states it computes; else 0.
    """

    stage: str
    layer: str
    part: str
    operations: int
    states: int = 0

    def total(self, scan: str = "prefix sum") -> int:
        """All its operations, those of a scan by the formula "prefix sum" or "naive"."""
        if scan not in PER_STATE:
            names = " or ".join(f'"{name}"' for name in PER_STATE)
            raise ValueError(f'scan: expected {names}, got "{scan}"')
        return self.operations + int(PER_STATE[scan] * self.states)  # states: a multiple of 4


@dataclass(frozen=True)
class Flops:
    """Operations for one image; print it for a table.

    Attributes:
        model: name of its class.
        size: (H, W) of the image.
        costs: one for every layer; a module with a scan has two of "einsum" and one of "scan".

    The methods take the formula of the scan, "prefix sum" or "naive", and raise ValueError for
    another.
    """

    model: str
    size: Size
    costs: tuple[Cost, ...]

    def total(self, scan: str = "prefix sum") -> int:
        """All operations."""
        return sum(cost.total(scan) for cost in self.costs)

    def by_part(self, scan: str = "prefix sum") -> dict[str, int]:
        """Operations of "linear", "conv", "einsum", "scan", "norm" and "pool"."""
        return {part: sum(c.total(scan) for c in self.costs if c.part == part) for part in PARTS}

    def by_stage(self, scan: str = "prefix sum") -> dict[str, int]:
        """Operations of "stem", "stage 1", "stage 2", …, "head"."""
        stages = dict.fromkeys(cost.stage for cost in self.costs)  # in order, each once
        return {name: sum(c.total(scan) for c in self.costs if c.stage == name) for name in stages}

    def __str__(self) -> str:
        height, width = self.size
        lines = [
            f"{self.model} at {height} × {width} pixels, 10⁹ multiply-adds, scans as a prefix sum",
            f"{'':<15}" + "".join(f"{name:>9}" for name in (*PARTS, "total")),
        ]
        for stage in self.by_stage():
            lines.append(_row(stage, [c for c in self.costs if c.stage == stage]))
        lines += [_row("all", self.costs), _row("all, naive scan", self.costs, "naive")]
        return "\n".join(lines)


def _row(title: str, costs: Sequence[Cost], scan: str = "prefix sum") -> str:
    parts = [sum(c.total(scan) for c in costs if c.part == part) for part in PARTS]
    return f"{title:<15}" + "".join(f"{count / 1e9:9.4f}" for count in (*parts, sum(parts)))


def count_flops(model: StagedModel, size: int | Sequence[int] = 224) -> Flops:
    """Count the operations of a VSSM or VSSMv2 for one image, by stage and part.

    The modules are read, not run, so the model may have any dtype and device, and stays as it is.
    Each layer counts once, at the size of map that the layers before it leave.

    Args:
        model: such as vmamba_tiny().
        size: side of the image, or (H, W); at least `model.min_size`.

    Raises:
        TypeError: model is something else, or a layer in it has weights and no formula here.
        ValueError: size is not one or two integers, or too small.
    """
    if not isinstance(model, StagedModel):
        raise TypeError(f"model: expected a VSSM or VSSMv2, got {type(model).__name__}")
    sides = (size, size) if not isinstance(size, Sequence) or isinstance(size, str) else size
    if len(sides) != 2:
        raise ValueError(f"size: expected an integer or (H, W), got {size!r}")
    for side in sides:
        expect_int("size", side, minimum=model.min_size)
    height, width = cast(Size, tuple(sides))
    costs = tuple(_model_costs(model, (height, width)))
    return Flops(type(model).__name__, (height, width), costs)


def _model_costs(model: StagedModel, size: Size) -> Iterator[Cost]:
    """The layers from the image to the head, in the order of their registration."""
    stage = "stem"
    for name, module in model.named_modules():
        root, number = [*name.split("."), ""][:2]
        if root == "layers":
            stage = f"stage {int(number) + 1}" if number else stage
        elif stage != "stem":
            stage = "head"
        size = _size_after(module, name, size)
        # The norm of the head sees the last map, its linear layer one pooled vector.
        pooled = stage == "head" and not isinstance(module, nn.LayerNorm)
        for part, operations, states in _own_costs(module, name, (1, 1) if pooled else size):
            yield Cost(stage, name, part, operations, states)
    yield Cost("head", "", "pool", size[0] * size[1] * model.dims[-1])


def _size_after(module: nn.Module, name: str, size: Size) -> Size:
    """Height and width of the map that a layer leaves, as far as the layer itself changes it."""
    if isinstance(module, PatchMerging2D):
        return -(-size[0] // 2), -(-size[1] // 2)
    if not isinstance(module, nn.Conv2d):
        return size
    if isinstance(module.padding, str):
        raise TypeError(f'model: expected padding in pixels, got "{module.padding}" at {name}')
    layer = zip(
        size, module.kernel_size, module.stride, module.padding, module.dilation, strict=True
    )
    height, width = (
        (n + 2 * pad - gap * (k - 1) - 1) // step + 1 for n, k, step, pad, gap in layer
    )
    return height, width


def _own_costs(module: nn.Module, name: str, size: Size) -> list[tuple[str, int, int]]:
    """(part, operations, states) of a layer without the layers inside it, on a map of this size."""
    pixels = size[0] * size[1]
    if isinstance(module, nn.Linear):
        return [("linear", pixels * module.in_features * module.out_features, 0)]
    if isinstance(module, nn.Conv2d):  # weight: (out, in / groups, k, k)
        return [("conv", pixels * module.weight.numel(), 0)]
    if isinstance(module, nn.LayerNorm):
        return [("norm", pixels * 5 * math.prod(module.normalized_shape), 0)]
    if isinstance(module, RouteScan):
        d, N, R = module.d_inner, module.d_state, module.dt_rank
        routes = pixels * ROUTES * d
        projections = [("einsum", routes * width, 0) for width in (R + 2 * N, R)]
        return [*projections, ("scan", routes, routes * N)]
    if list(module.parameters(recurse=False)):
        raise TypeError(f"model: expected layers with a formula here, got {module} at {name}")
    return []

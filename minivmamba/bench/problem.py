"""The scans of VMamba-T, and the ways in which their tensors can lie in memory.

Sequences keep their groups apart here: u, delta, y are (B, K, d, L) and B, C are (B, K, N, L), so
that every memory order of the four axes is one shape with other strides. A contestant gets the
order that suits it, and results and gradients of all can be compared as they are.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from minivmamba import inverse_softplus, selective_scan

GROUPS = 4  # K, the routes of VMamba
# (K·d, L) of the four stages of VMamba-T for an image of 224 × 224
STAGES = {1: (768, 3136), 2: (1536, 784), 3: (3072, 196), 4: (6144, 49)}

# The axes (B, K, d or N, L) in the order in which they lie in memory, the fastest last.
ORDERS = {"standard": (0, 1, 2, 3), "channels-last": (0, 3, 1, 2), "group by group": (0, 1, 3, 2)}


@dataclass(frozen=True)
class Problem:
    """Arguments of a scan with softplus, and dy, the gradient that its backward pass gets."""

    u: Tensor  # (B, K, d, L)
    delta: Tensor  # (B, K, d, L), before bias and softplus
    A: Tensor  # (K·d, N)
    B: Tensor  # (B, K, N, L)
    C: Tensor  # (B, K, N, L)
    D: Tensor  # (K·d,)
    bias: Tensor  # (K·d,)
    dy: Tensor  # (B, K, d, L)

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """All but dy."""
        return (self.u, self.delta, self.A, self.B, self.C, self.D, self.bias)

    @property
    def pairs(self) -> int:
        """How many (state, step) pairs there are: B·L·K·d·N."""
        return self.u.numel() * self.A.shape[1]

    @property
    def input_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.arguments)

    def arranged(self, order: str) -> "Problem":
        """The same numbers, with every four-axis tensor in another memory order."""
        axes = ORDERS[order]
        back = sorted(range(4), key=axes.__getitem__)

        def arrange(t: Tensor) -> Tensor:
            return t.permute(axes).contiguous().permute(back) if t.ndim == 4 else t

        return replace(self, **{f.name: arrange(getattr(self, f.name)) for f in fields(self)})

    def double(self) -> "Problem":
        return replace(self, **{f.name: getattr(self, f.name).double() for f in fields(self)})

    def to(self, device: str) -> "Problem":
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def first_image(self) -> "Problem":
        images = (f.name for f in fields(self) if getattr(self, f.name).ndim == 4)
        return replace(self, **{name: getattr(self, name)[:1] for name in images})

    def trainable(self) -> "Problem":
        """The same memory, as leaves that collect gradients; dy stays a constant."""
        leaves = {f.name: getattr(self, f.name).detach().requires_grad_() for f in fields(self)}
        return replace(self, **{**leaves, "dy": self.dy})


def draw_problem(channels: int, length: int, states: int = 16, batch: int = 1) -> Problem:
    """Random sequences; A, D and bias as VMamba starts with them, so that Δ is realistic."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    d = channels // GROUPS
    low, high = math.log(1e-3), math.log(1e-1)
    start = torch.exp(low + (high - low) * torch.rand(channels, generator=generator))
    return Problem(
        u=randn(batch, GROUPS, d, length),
        delta=0.5 * randn(batch, GROUPS, d, length),
        A=-torch.arange(1.0, states + 1).repeat(channels, 1),
        B=randn(batch, GROUPS, states, length),
        C=randn(batch, GROUPS, states, length),
        D=torch.ones(channels),
        bias=inverse_softplus(start),
        dy=randn(batch, GROUPS, d, length),
    )


def our_scan(u, delta, A, B, C, D, bias, backend: str = "auto") -> Tensor:
    """`minivmamba.selective_scan`, groups apart: (B, K, d, L) → (B, K, d, L)."""
    y = selective_scan(
        u.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, bias, True, backend=backend
    )
    assert isinstance(y, Tensor)
    return y.unflatten(1, u.shape[1:3])

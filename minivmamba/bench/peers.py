"""Other ways to run a selective scan, each fed with the same problem in the order it likes best.

Every scan here has the signature of `problem.our_scan`: u, delta (B, K, d, L), A (K·d, N),
B, C (B, K, N, L), D, bias (K·d,) → y (B, K, d, L).
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from minivmamba.bench.problem import our_scan

Scan = Callable[..., Tensor]


@dataclass(frozen=True)
class Peer:
    """label: for the reader. order: key of `problem.ORDERS`. passes: where it takes part.

    needs: a package beyond ours. gpu_only: it has no form for a CPU.
    """

    label: str
    scan: Scan
    order: str = "standard"
    passes: tuple[str, ...] = ("forward", "training")
    needs: str | None = None
    gpu_only: bool = False

    @property
    def installed(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def public_loop(u, delta, A, B, C, D, bias) -> Tensor:
    """What public code does without its CUDA kernel: everything of size L·N at once, then a loop.

    e^{δA} and δBu are stored for all steps, and step t is a slice of them.
    """
    d = u.shape[2]
    x, delta = u.flatten(1, 2), F.softplus(delta.flatten(1, 2) + bias[:, None])  # (B, K·d, L)
    B, C = B.repeat_interleave(d, dim=1), C.repeat_interleave(d, dim=1)  # (B, K·d, N, L)
    decay = torch.exp(torch.einsum("bcl,cn->bcln", delta, A))  # (B, K·d, L, N)
    enters = torch.einsum("bcl,bcnl,bcl->bcln", delta, B, x)
    h = torch.zeros_like(enters[:, :, 0])
    ys = []
    for t in range(x.shape[-1]):
        h = decay[:, :, t] * h + enters[:, :, t]
        ys.append(torch.einsum("bcn,bcn->bc", h, C[..., t]))
    return (torch.stack(ys, dim=-1) + D[:, None] * x).view_as(u)


def autograd_loop(u, delta, A, B, C, D, bias) -> Tensor:
    """A step at a time, left to autograd: unbind, since the gradient of a slice is a full tensor.

    The public loop with its slices allocates L gradients of length L when it trains, and takes
    minutes for what takes this one seconds.
    """
    delta = F.softplus(delta + bias.view(*u.shape[1:3], 1))
    A = A.view(*u.shape[1:3], -1)  # (K, d, N)
    h = torch.zeros(())
    ys = []
    steps = (t.unbind(-1) for t in (delta, delta * u, B, C))
    for delta_t, x_t, B_t, C_t in zip(*steps, strict=True):
        h = torch.exp(delta_t[..., None] * A) * h + x_t[..., None] * B_t[:, :, None]
        ys.append((h * C_t[:, :, None]).sum(-1))
    return torch.stack(ys, dim=-1) + D.view(*u.shape[1:3], 1) * u


def mambapy_scan(u, delta, A, B, C, D, bias, parallel: bool) -> Tensor:
    """The two scans of mambapy's MambaBlock, as they are.

    They know one group. Here the groups are laid into the batch: A gets an axis for them,
    (B·K, 1, d, N), and broadcasts where mambapy multiplies by it. So all groups run in one call,
    with the operations that as many images would need.
    """
    from mambapy.mamba import MambaBlock

    batch, K, d, _ = u.shape
    N = A.shape[1]

    def as_images(t: Tensor) -> Tensor:  # (B, K, c, L) → (B·K, L, c)
        return t.transpose(2, 3).flatten(0, 1)

    A = A.view(1, K, 1, d, N).expand(batch, -1, -1, -1, -1).flatten(0, 1)
    D = D.view(1, K, 1, d).expand(batch, -1, -1, -1).flatten(0, 1)
    delta = F.softplus(as_images(delta) + bias.view(K, 1, d).repeat(batch, 1, 1))
    block = SimpleNamespace(config=SimpleNamespace(d_inner=d, d_state=N))
    scan = MambaBlock.selective_scan if parallel else MambaBlock.selective_scan_seq
    y = scan(block, as_images(u), delta, A, as_images(B), as_images(C), D)
    return y.unflatten(0, (batch, K)).transpose(2, 3)


def associative_scan(u, delta, A, B, C, D, bias) -> Tensor:
    """PyTorch's own associative scan, over pairs (a, x) that stand for h → a·h + x.

    Only `torch.compile` makes it quick: it runs in about 2·log2(L) passes over all states.
    """
    # Still under a private name in torch; where it is missing, the peer is left out.
    from torch._higher_order_ops.associative_scan import associative_scan

    def then(first, second):
        return second[0] * first[0], second[0] * first[1] + second[1]

    shape = u.shape[1:3]
    delta = F.softplus(delta + bias.view(*shape, 1)).movedim(-1, 1)[..., None]  # (B, L, K, d, 1)
    a = torch.exp(delta * A.view(*shape, -1))  # (B, L, K, d, N)
    x = delta * u.movedim(-1, 1)[..., None] * B.movedim(-1, 1)[:, :, :, None]
    _, h = associative_scan(then, (a, x), dim=1, combine_mode="generic")
    y = (h * C.movedim(-1, 1)[:, :, :, None]).sum(-1)
    return y.movedim(1, -1) + D.view(*shape, 1) * u


def mamba_ssm_scan(u, delta, A, B, C, D, bias) -> Tensor:
    """The CUDA kernel of the authors of Mamba."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y = selective_scan_fn(
        u.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, delta_bias=bias, delta_softplus=True
    )
    return y.unflatten(1, u.shape[1:3])


@functools.cache
def _compiled() -> Scan:
    return torch.compile(associative_scan, dynamic=False)


def compiled_scan(*arguments: Tensor) -> Tensor:
    return _compiled()(*arguments)


OURS = {
    "standard": Peer("ours, standard layout", our_scan),
    "channels-last": Peer("ours, channels-last", our_scan, order="channels-last"),
}
PEERS = {
    "naive": Peer("our naive rung", partial(our_scan, backend="naive")),
    "loop": Peer("loop of public code", public_loop, passes=("forward",)),
    "autograd": Peer("loop, autograd", autograd_loop, passes=("training",)),
    "sequential": Peer(
        "mambapy, sequential",
        partial(mambapy_scan, parallel=False),
        order="group by group",
        passes=("forward",),
        needs="mambapy",
    ),
    "pscan": Peer(
        "mambapy, pscan",
        partial(mambapy_scan, parallel=True),
        order="group by group",
        needs="mambapy",
    ),
    "compiled": Peer(
        "torch.compile'd associative scan",
        compiled_scan,
        order="channels-last",
        passes=("forward",),
    ),
    "mamba-ssm": Peer("mamba-ssm, CUDA", mamba_ssm_scan, needs="mamba_ssm", gpu_only=True),
}

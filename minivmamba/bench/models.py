"""The models of `bench model`, `train` and `resolution`, and the footings on which they compete.

As shipped, every model runs as its package has it. On equal footing, all their linear layers are
computed in one way: all by `F.linear`, or all as 1×1 convolutions of channels-last maps, for which
PyTorch calls oneDNN. Which is faster depends on the CPU; a model that picked the faster one would
win by its libraries instead of its design.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import minivmamba
from minivmamba import cross_merge, cross_scan
from minivmamba.bench.peers import Scan
from minivmamba.bench.report import Report
from minivmamba.ss2d import RouteScan

LABELS = {
    "ours": "VMamba-T, ours",
    "swin": "Swin-T",
    "convnext": "ConvNeXt-T",
    "deit": "DeiT-S",
    "resnet": "ResNet-50",
}
PEERS = [name for name in LABELS if name != "ours"]
# What torchvision calls them.
TORCHVISION = {
    "swin": "swin_t",
    "swin_small": "swin_s",
    "swin_base": "swin_b",
    "convnext": "convnext_tiny",
    "convnext_small": "convnext_small",
    "convnext_base": "convnext_base",
    "resnet": "resnet50",
}
FOOTINGS = {
    "shipped": "as shipped",
    "linear": "equal footing, all linear layers by F.linear",
    "conv": "equal footing, all linear layers as 1×1 convolutions",
}
SDPA = "sdpa"  # as shipped, but attention by scaled_dot_product_attention


def build(name: str, size: int) -> nn.Module:
    """A model with random weights, for square images of `size` pixels.

    Of ours "ours" is VMamba-T; the others have the names of their constructors.
    """
    torch.manual_seed(0)
    if name == "ours" or name.startswith("vmamba"):
        return getattr(minivmamba, "vmamba_tiny" if name == "ours" else name)()
    from torchvision import models

    if name == "deit":  # torchvision has the architecture (it is ViT's), not the size
        shape = {"num_layers": 12, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536}
        return models.VisionTransformer(image_size=size, patch_size=16, **shape)
    return getattr(models, TORCHVISION[name])()


def installed(peers: Sequence[str], report: Report) -> list[str]:
    """The peers, if torchvision is there to build them."""
    if not peers or importlib.util.find_spec("torchvision"):
        return list(peers)
    names = ", ".join(LABELS.get(name, name) for name in peers)
    report.remark(f"{names} are left out: pip install torchvision to see them.")
    return []


def images(batch: int, height: int, width: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width or height, generator=generator)


def inference(model: nn.Module, x: Tensor, footing: str = "shipped") -> Callable[[], Tensor]:
    model.eval()

    def run() -> Tensor:
        with torch.inference_mode(), on_footing(footing):
            return model(x)

    return run


@contextmanager
def on_footing(name: str) -> Iterator[None]:
    """Compute linear layers, and attention, as the footing says.

    Layers, attention and Swin's windows all look `F.linear` up in its module when they run.
    """
    fast, linear = torch.backends.mha.get_fastpath_enabled(), F.linear
    if name != "shipped":
        # The fast path of nn.MultiheadAttention calls neither F.linear nor SDPA: on a CPU it is a
        # little faster for small images, and stores every attention weight.
        torch.backends.mha.set_fastpath_enabled(False)
    if name == "conv":
        F.linear = partial(linear_as_conv, linear)
    try:
        yield
    finally:
        F.linear = linear
        torch.backends.mha.set_fastpath_enabled(fast)


def linear_as_conv(linear, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, as a 1×1 convolution of a channels-last map: (B, …, C) → (B, …, C')."""
    if x.ndim < 3:  # the head: one vector an image is no map
        return linear(x, weight, bias)
    map_ = x.reshape(x.shape[0], -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (B, C, L, 1)
    y = F.conv2d(map_, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


@contextmanager
def plain_path(scan: Scan) -> Iterator[None]:
    """The scan of SS2D step by step, as lesson 10 writes it, with any scan in place of ours."""
    ours = RouteScan.scan
    RouteScan.scan = lambda block, x: plain_scan(block, x, scan)  # type: ignore
    try:
        yield
    finally:
        RouteScan.scan = ours  # type: ignore[method-assign]


def plain_scan(block: RouteScan, x: Tensor, scan: Scan) -> Tensor:
    """(B, d, H, W) → (B, H, W, d); nothing is fused, each of the four sequences is stored."""
    H, W = x.shape[2:]
    xs = cross_scan(x)  # (B, K, d, L)
    projected = torch.einsum("bkdl,kcd->bkcl", xs, block.x_proj_weight)
    steps, B, C = projected.split([block.dt_rank, block.d_state, block.d_state], dim=2)
    delta = torch.einsum("bkrl,kdr->bkdl", steps, block.dt_projs_weight)
    A, bias = -torch.exp(block.A_logs), block.dt_projs_bias.flatten()
    y = cross_merge(scan(xs, delta, A, B, C, block.Ds, bias), H, W)  # (B, d, H, W)
    return y.permute(0, 2, 3, 1)

"""The figures of lesson 10: one VSS block from the inside, and how far a pixel is heard."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from minivmamba.cross_scan import ROUTES
from minivmamba.figures.overview import ROUTE_COLOURS, photograph
from minivmamba.figures.style import BLUE, ORANGE, new, styled
from minivmamba.photos import load_photo, to_input, to_picture
from minivmamba.selective_scan import selective_scan
from minivmamba.ss2d import SS2D, RouteScan
from minivmamba.ss2d_scan import in_route_order
from minivmamba.vssm import VSSM, VSSBlock

SIDE = 33  # of the map on which one pixel is moved; its middle is (16, 16)
SYMMETRIES = {  # what is done to a map (…, H, W), and the routes whose weights take their places
    "identity": (lambda m: m, [0, 1, 2, 3]),
    "half turn": (lambda m: m.flip(-2, -1), [2, 3, 0, 1]),
    "transpose": (lambda m: m.transpose(-2, -1), [1, 0, 3, 2]),
    "anti-transpose": (lambda m: m.flip(-2, -1).transpose(-2, -1), [3, 2, 1, 0]),
    "mirror, left and right": (lambda m: m.flip(-1), None),
    "mirror, up and down": (lambda m: m.flip(-2), None),
    "quarter turn": (lambda m: m.rot90(1, (-2, -1)), None),
    "quarter turn back": (lambda m: m.rot90(-1, (-2, -1)), None),
}


def project(scan: RouteScan, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Δ, B and C of every route at every pixel of (B, d, H, W), routes second, channels last."""
    R, N = scan.dt_rank, scan.d_state
    numbers = torch.einsum("bdij,kcd->bkijc", x, scan.x_proj_weight)
    low, B, C = numbers.split([R, N, N], dim=-1)
    raw = torch.einsum("bkijr,kdr->bkijd", low, scan.dt_projs_weight)
    return F.softplus(raw + scan.dt_projs_bias[:, None, None]), B, C


def routes_apart(scan: RouteScan, x: Tensor) -> Tensor:
    """What each route gives at each pixel before the sum: (B, d, H, W) → (B, 4, d, H, W)."""
    H, W = x.shape[2:]
    delta, B, C = project(scan, x)
    u = x[:, None].expand(-1, ROUTES, -1, -1, -1).permute(0, 1, 3, 4, 2)  # (B, 4, H, W, d)
    y = selective_scan(
        in_route_order(u).flatten(1, 2),
        in_route_order(delta).flatten(1, 2),
        -torch.exp(scan.A_logs),
        in_route_order(B),
        in_route_order(C),
        scan.Ds,
    )
    assert isinstance(y, Tensor)
    rows, columns, rows_back, columns_back = y.unflatten(1, (ROUTES, -1)).unbind(1)
    return torch.stack(
        [
            rows.unflatten(-1, (H, W)),
            columns.unflatten(-1, (W, H)).transpose(-2, -1),
            rows_back.flip(-1).unflatten(-1, (H, W)),
            columns_back.flip(-1).unflatten(-1, (W, H)).transpose(-2, -1),
        ],
        dim=1,
    )


@torch.no_grad()
def trace(block: VSSBlock, x: Tensor) -> dict[str, Tensor]:
    """Everything that comes up in a block, in order, for (B, H, W, C); maps are channels-last."""
    ss2d = block.self_attention
    normed = block.ln_1(x)
    before, z = ss2d.in_proj(normed).chunk(2, dim=-1)
    u = ss2d.act(ss2d.conv2d(before.permute(0, 3, 1, 2)))
    apart = routes_apart(ss2d, u)
    y = apart.sum(1).permute(0, 2, 3, 1)
    y_normed, gate = ss2d.out_norm(y), ss2d.act(z)
    branch = ss2d.out_proj(y_normed * gate)
    return {
        "input": x,
        "LayerNorm": normed,
        "x": before,
        "z": z,
        "u = SiLU(conv x)": u.permute(0, 2, 3, 1),
        "Δ": project(ss2d, u)[0],  # (B, 4, H, W, d)
        "y of each route": apart.permute(0, 1, 3, 4, 2),
        "y": y,
        "LayerNorm of y": y_normed,
        "SiLU(z)": gate,
        "SS2D": branch,
        "output": x + block.drop_path(branch),
    }


@functools.cache
def fresh_trace() -> tuple[Tensor, dict[str, Tensor]]:
    """The photograph, and the trace of the first block of an untrained VMamba-T with seed 0."""
    images = to_input(load_photo(photograph()))
    torch.manual_seed(0)
    # The first stage of VMamba-T alone; `apply` gives its layers the initial values of the model.
    model = VSSM([2], 96, num_classes=1).eval()
    with torch.no_grad():
        x = model.stem(images)
    block = next(module for module in model.modules() if isinstance(module, VSSBlock))
    found = trace(block, x)
    found["D u"] = found["u = SiLU(conv x)"] * block.self_attention.Ds.detach()[:192]
    return images, found


@styled
def inside_the_block(channel: int = 0) -> Figure:
    """One channel on its way through the first block of an untrained VMamba-T."""
    images, maps = fresh_trace()
    channel = int(channel)
    memory = (maps["y of each route"] - maps["D u"][:, None])[0, ..., channel]
    figure, panels = new(3, 4, height=5.9, sharex=True, sharey=True)
    pictures = [
        ("photograph", None),
        ("x from in_proj", maps["x"][0, ..., channel]),
        ("u = SiLU(conv(x))", maps["u = SiLU(conv x)"][0, ..., channel]),
        ("mean Δ of route 0", maps["Δ"][0, 0].mean(-1)),
        *((f"route {k}: $y_{k}$ − D u", memory[k]) for k in range(ROUTES)),
        ("y, the sum", maps["y"][0, ..., channel]),
        ("LayerNorm(y)", maps["LayerNorm of y"][0, ..., channel]),
        ("gate SiLU(z)", maps["SiLU(z)"][0, ..., channel]),
        ("LayerNorm(y) × gate", (maps["LayerNorm of y"] * maps["SiLU(z)"])[0, ..., channel]),
    ]
    for axes, (title, picture) in zip(panels.flat, pictures, strict=True):
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=9)
        axes.grid(False)
        if picture is None:
            axes.imshow(to_picture(images), extent=(-0.5, 55.5, 55.5, -0.5))
            continue
        low, high = _range(picture)
        axes.imshow(picture.numpy(), cmap="cividis", vmin=low, vmax=high)
        digits = 3 if high < 1.1 * low else 2
        ends = (f"{end:.{digits}g}".replace("-", "−") for end in (low, high))
        axes.set_xlabel(" … ".join(ends), fontsize=8, labelpad=2)
    for axes, part in zip(
        panels[:, 0], ("before the scan", "each route", "after the scan"), strict=True
    ):
        axes.set_ylabel(part, fontsize=9)
    for axes, colour in zip(panels[1], ROUTE_COLOURS, strict=True):
        for spine in axes.spines.values():
            spine.set(visible=True, color=colour, linewidth=2.5)
    return figure


def _range(picture: Tensor) -> tuple[float, float]:
    """From dark to bright, without the most extreme hundredth at either end."""
    low, high = np.quantile(picture.numpy(), (0.01, 0.99))
    return float(low), float(high)


@functools.cache
def influence(shift: float) -> tuple[np.ndarray, float]:
    """How strongly the middle pixel is heard everywhere, (33, 33), and the median step.

    The scan of a fresh SS2D, with `shift` added to the bias of every Δ. The middle pixel is moved
    by 0.1 in all channels; what is heard is the mean size of the change of y, over channels and
    over four maps of random numbers.
    """
    torch.manual_seed(0)
    scan = SS2D(16).double()
    x = torch.randn(4, 32, SIDE, SIDE, dtype=torch.float64)
    moved = x.clone()
    moved[:, :, SIDE // 2, SIDE // 2] += 0.1
    with torch.no_grad():
        scan.dt_projs_bias.add_(shift)
        change = (scan.scan(moved) - scan.scan(x)).abs().mean((0, -1)).numpy()
        step = project(scan, x)[0].median().item()
    return change / change.max(), step


@styled
def heard(shift: float = 2.0) -> Figure:
    """The map of who hears the middle pixel, and two cuts through it."""
    share, step = influence(float(shift))
    figure, (left, right) = new(1, 2, height=3.3, width_ratios=(1, 1.25))
    image = left.imshow(np.maximum(share, 1e-6), cmap="cividis", norm=LogNorm(1e-6, 1e-1))
    moved = f"{shift:+g}".replace("-", "−") if shift else "0"
    left.set(xlabel="column", ylabel="row", title=f"bias of Δ shifted by {moved}")
    left.grid(False)
    figure.colorbar(image, ax=left, label="heard", shrink=0.9)
    middle = SIDE // 2
    away = np.arange(1, middle + 1)
    arms = {
        "to the right": share[middle, middle + 1 :],
        "diagonal": np.diagonal(share)[middle + 1 :],
    }
    looks = [(BLUE, "-", "o"), (ORANGE, "--", "s")]
    for (name, arm), (color, line, marker) in zip(arms.items(), looks, strict=True):
        right.semilogy(
            away, np.maximum(arm, 1e-12), color=color, linestyle=line, marker=marker, markevery=3,
            label=name,
        )  # fmt: skip
    right.set(
        xlabel="pixels away", ylabel="heard, as a share of the pixel itself", ylim=(1e-8, 1),
        xlim=(0, middle), title=f"median step Δ = {step:.2g}",
    )  # fmt: skip
    right.legend(fontsize=9, loc="upper right", ncols=2)
    return figure

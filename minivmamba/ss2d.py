"""SS2D: the selective scan of an image, along four routes (lesson 10).

    (x, z) = in_proj(input)
    x      = SiLU(depthwise 3×3(x))
    y      = cross_merge( selective_scan( cross_scan(x) ) )
    output = out_proj( LayerNorm(y) × SiLU(z) )

Every route has its own projections to Δ, B and C, and its own A, D: that part is `RouteScan`, which
both versions of VMamba share. `SS2D` is the module of the first version; that of the second stands
in vssm_v2.py. Parameter names, shapes and initial values are those of the public releases
(arXiv 2401.10166), so that their weights load; d_inner is written d, and K = 4 is the number of
routes.
"""

import math
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minivmamba.cross_scan import ROUTES, cross_merge, cross_scan
from minivmamba.discretize import inverse_softplus
from minivmamba.expect import expect_int, expect_like_weights, expect_tensors
from minivmamba.selective_scan import choose, computed_in, selective_scan
from minivmamba.ss2d_scan import ss2d_scan

DT_MIN, DT_MAX = 1e-3, 1e-1  # range of the initial step Δ (Mamba, section 3.6)


class RouteScan(nn.Module):
    """Four selective scans of a map, with their projections: (B, d, H, W) → (B, H, W, d).

    Args:
        d_inner: d, channels of the map.
        d_state: N, states per channel and route.
        dt_rank: R, width of the low-rank projection to Δ.

    Two paths give equal results: the plain one lays the four sequences out, the fused one
    (`ss2d_scan`, where Numba or Triton compiles it) leaves the map where it is.
    `module.fused = False` forces the plain one.

    Raises:
        ValueError: an argument is not an integer of at least 1.
    """

    fused: bool = True

    def __init__(self, d_inner: int, d_state: int, dt_rank: int) -> None:
        super().__init__()
        sizes = {"d_inner": d_inner, "d_state": d_state, "dt_rank": dt_rank}
        for name, size in sizes.items():
            expect_int(name, size, minimum=1)
        self.d_inner, self.d_state, self.dt_rank = d_inner, d_state, dt_rank
        self.x_proj_weight = nn.Parameter(torch.empty(ROUTES, dt_rank + 2 * d_state, d_inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(ROUTES, d_inner, dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(ROUTES, d_inner))
        self.A_logs = nn.Parameter(torch.empty(ROUTES * d_inner, d_state))
        self.Ds = nn.Parameter(torch.empty(ROUTES * d_inner))
        self.reset_scan_parameters()

    @torch.no_grad()
    def reset_scan_parameters(self) -> None:
        """Initial values of what the scan uses; the layers initialise themselves."""
        for route in range(ROUTES):  # as nn.Linear does it: uniform within ± d^(−1/2)
            nn.init.kaiming_uniform_(self.x_proj_weight[route], a=math.sqrt(5))
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_projs_weight, -bound, bound)
        # The initial Δ is log-uniform, drawn for each route and channel. (The public code also has
        # a floor of 1e-4, which lies below this range and never acts.)
        low, high = math.log(DT_MIN), math.log(DT_MAX)
        dt = torch.exp(torch.empty_like(self.dt_projs_bias).uniform_(low, high))
        self.dt_projs_bias.copy_(inverse_softplus(dt))
        # A = −(1, 2, …, N) for every channel: S4D-real (lesson 04).
        n = torch.arange(1, self.d_state + 1, device=self.A_logs.device)
        self.A_logs.copy_(torch.log(n).expand_as(self.A_logs))
        nn.init.ones_(self.Ds)

    def scan(self, x: Tensor) -> Tensor:
        """(B, d, H, W) → (B, H, W, d), float32, or float64 for a float64 input."""
        fused = self.fused and choose("auto", x.device.type, computed_in(x)) != "naive"
        y = self.scan_map(x) if fused else self.scan_routes(x)
        return y.permute(0, 2, 3, 1)

    def scan_map(self, x: Tensor) -> Tensor:
        """The same as scan_routes, with Δ, B and C projected once at every pixel."""
        x = x.permute(0, 2, 3, 1).contiguous()  # (B, H, W, d)
        projected = F.linear(x, self.x_proj_weight.flatten(0, 1)).unflatten(-1, (ROUTES, -1))
        projected = projected.permute(0, 3, 1, 2, 4)  # (B, K, H, W, R + 2N)
        dts, Bs, Cs = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y = ss2d_scan(
            x=at_least_float32(x),
            delta=at_least_float32(dts),  # (B, K, H, W, R)
            A=-torch.exp(at_least_float32(self.A_logs)),
            B=at_least_float32(Bs),
            C=at_least_float32(Cs),
            D=at_least_float32(self.Ds),
            delta_bias=at_least_float32(self.dt_projs_bias).flatten(),
            delta_softplus=True,
            delta_weight=at_least_float32(self.dt_projs_weight),
        )
        return y.permute(0, 3, 1, 2)

    def scan_routes(self, x: Tensor) -> Tensor:
        """Project, scan and merge along the four routes: (B, d, H, W) → (B, d, H, W).

        The result is float32, or float64 for a float64 input, also under autocast.
        """
        H, W = x.shape[2:]
        xs = cross_scan(x)  # (B, K, d, L)
        projected = torch.einsum("bkdl,kcd->bkcl", xs, self.x_proj_weight)  # (B, K, R + 2N, L)
        dts, Bs, Cs = projected.split([self.dt_rank, self.d_state, self.d_state], dim=2)
        deltas = torch.einsum("bkrl,kdr->bkdl", dts, self.dt_projs_weight)  # (B, K, d, L)
        scanned = selective_scan(
            u=at_least_float32(xs).flatten(1, 2),  # (B, K·d, L)
            delta=at_least_float32(deltas).flatten(1, 2),
            A=-torch.exp(at_least_float32(self.A_logs)),
            B=at_least_float32(Bs),
            C=at_least_float32(Cs),
            D=at_least_float32(self.Ds),
            delta_bias=at_least_float32(self.dt_projs_bias).flatten(),
            delta_softplus=True,
        )
        ys = cast(Tensor, scanned).unflatten(1, (ROUTES, self.d_inner))  # (B, K, d, L)
        return cross_merge(ys, H, W)


class SS2D(RouteScan):
    """2D selective scan of a channels-last map: (B, H, W, d_model) → the same shape.

    Args:
        d_model: channels of the map.
        d_state: N, states per channel and route.
        expand: d_inner = expand · d_model.
        dt_rank: R, width of the low-rank projection to Δ; ceil(d_model / 16) if None.

    Raises:
        ValueError: an argument is not an integer of at least 1.
    """

    def __init__(
        self, d_model: int, d_state: int = 16, expand: int = 2, dt_rank: int | None = None
    ) -> None:
        expect_int("d_model", d_model, minimum=1)
        expect_int("expand", expand, minimum=1)
        d = expand * d_model
        super().__init__(d, d_state, math.ceil(d_model / 16) if dt_rank is None else dt_rank)
        self.d_model = d_model
        self.in_proj = nn.Linear(d_model, 2 * d, bias=False)
        self.conv2d = nn.Conv2d(d, d, kernel_size=3, padding=1, groups=d)
        self.act = nn.SiLU()
        self.out_norm = nn.LayerNorm(d)
        self.out_proj = nn.Linear(d, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, d_model) → (B, H, W, d_model).

        Raises:
            TypeError: x is not a floating-point tensor of the weights' dtype.
            ValueError: x has another shape or device.
        """
        expect_map(x, self.d_model, self.in_proj.weight)
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (B, H, W, d) each
        x = self.act(self.conv2d(x.permute(0, 3, 1, 2)))  # (B, d, H, W)
        y = self.scan(x)  # (B, H, W, d), at least float32
        # Under autocast norm and gate stay in float32, as the scan; out_proj goes back by itself.
        # Where the weights themselves are in half precision, so is everything from here on.
        y = self.out_norm(y.to(self.out_norm.weight.dtype)) * self.act(z)
        return self.out_proj(y)


def expect_map(x: Tensor, d_model: int, weight: Tensor) -> None:
    """Raise unless x is a channels-last map that a module with this weight can take."""
    expect_tensors(x=x)
    if x.ndim != 4 or x.shape[-1] != d_model or 0 in x.shape[1:3]:
        raise ValueError(
            f"x: expected shape (B, H, W, {d_model}), channels last, got {tuple(x.shape)}"
        )
    expect_like_weights("x", x, weight)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

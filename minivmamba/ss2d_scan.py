"""The selective scan of a map along four routes in one operator (lessons 09 and 10).

    ss2d_scan(x, …) = cross_merge( selective_scan( cross_scan(x), … ) )

with Δ, B and C given once at every pixel. The right-hand side is `reference`, the form to read;
on a CPU `kernels/ss2d_numba.py` walks the four routes over the map where it lies.
"""

from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from minivmamba.cross_scan import ROUTES, cross_merge, cross_scan
from minivmamba.expect import expect_tensors, given
from minivmamba.selective_scan import (
    as_the_rung_reads_them,
    choose,
    chunks_kept,
    common_dtype,
    computed_in,
    expect_scan_options,
    forget,
    like_channels,
    no_second_derivative,
    selective_scan,
    wants_gradient,
)


def ss2d_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    delta_weight: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Scan a channels-last map along the four routes and add up what they give at every pixel.

    Args:
        x: the map, (batch, H, W, d).
        delta: (batch, 4, H, W, d): delta[:, k, i, j] is the step of route k at pixel (i, j),
            before bias and softplus.
        A: (4·d, N); route k owns rows k·d … k·d + d − 1.
        B, C: (batch, 4, H, W, N), at the pixels as delta.
        D, delta_bias: (4·d,).
        delta_softplus: pass delta + delta_bias through softplus.
        delta_weight: (4, d, R), for a Δ of low rank: delta is then (batch, 4, H, W, R), and the
            steps are delta_weight[k] @ delta[:, k, i, j]. They are never stored in the forward
            pass, nor between it and the backward pass.
        backend: "naive" (the reference in PyTorch), "numba" (CPU), "triton" (GPU), or "auto", as
            in selective_scan. On a GPU the steps of a low rank are stored.

    Returns:
        y, (batch, H, W, d): float64 if the arguments are, else float32. Differentiable in every
        tensor argument, once.

    Raises:
        TypeError, ValueError, ImportError, RuntimeError: as selective_scan.

    Source: VMamba, arXiv 2401.10166, section 4.2 (2D selective scan).
    """
    optional = given(D=D, delta_bias=delta_bias, delta_weight=delta_weight)
    expect_tensors(x=x, delta=delta, A=A, B=B, C=C, **optional)
    expect_scan_options(delta_softplus, backend)
    tensors = {"x": x, "delta": delta, "A": A, "B": B, "C": C, **optional}
    _check_shapes(tensors)
    rung = choose(backend, x.device.type, common_dtype(tensors))
    tensors = as_the_rung_reads_them(tensors, rung)
    if rung == "naive":
        return reference(**tensors, delta_softplus=delta_softplus)
    if rung == "triton":
        tensors["delta"] = every_step(tensors["delta"], tensors.pop("delta_weight", None))
    names = ("x", "delta", "A", "B", "C", "D", "delta_bias", "delta_weight")
    y, _ = torch.ops.minivmamba.ss2d_scan(
        *(tensors.get(name) for name in names), delta_softplus, rung, wants_gradient(tensors)
    )
    return y


def every_step(delta: Tensor, delta_weight: Tensor | None) -> Tensor:
    """(B, 4, H, W, R) → (B, 4, H, W, d), and delta itself where there is no weight."""
    if delta_weight is None:
        return delta
    deltas = torch.matmul(delta.flatten(2, 3), delta_weight.transpose(1, 2))
    return deltas.unflatten(2, delta.shape[2:4])


def reference(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_weight: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """The same with the four sequences laid out, as the paper draws it."""
    H, W = x.shape[1:3]
    ys = selective_scan(
        u=cross_scan(x.permute(0, 3, 1, 2)).flatten(1, 2),  # (B, 4·d, L)
        delta=in_route_order(every_step(delta, delta_weight)).flatten(1, 2),
        A=A,
        B=in_route_order(B),  # (B, 4, N, L)
        C=in_route_order(C),
        D=D,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        backend="naive",
    )
    ys = cast(Tensor, ys).unflatten(1, (ROUTES, x.shape[-1]))  # (B, 4, d, L)
    return cross_merge(ys, H, W).permute(0, 2, 3, 1)


def in_route_order(values: Tensor) -> Tensor:
    """What stands at the pixels, one map a route, as sequences: (B, 4, H, W, C) → (B, 4, C, L)."""
    rows, columns, rows_back, columns_back = values.unbind(1)
    sequences = [
        rows.flatten(1, 2),
        columns.transpose(1, 2).flatten(1, 2),
        rows_back.flatten(1, 2).flip(1),
        columns_back.transpose(1, 2).flatten(1, 2).flip(1),
    ]
    return torch.stack(sequences, dim=1).transpose(2, 3)


@torch.library.custom_op("minivmamba::ss2d_scan", mutates_args=())
def _scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """y, and, if `keep`, the states that the backward pass needs."""
    if backend == "triton":
        from minivmamba.kernels.ss2d_triton import ss2d_triton

        return ss2d_triton(x, delta, A, B, C, D, delta_bias, delta_softplus, keep)
    from minivmamba.kernels.ss2d_numba import ss2d_numba

    return ss2d_numba(x, delta, A, B, C, D, delta_bias, delta_softplus, delta_weight, keep)


@_scan.register_fake
def _(x, delta, A, B, C, D, delta_bias, delta_weight, delta_softplus, backend, keep):
    (batch, H, W, d), N = x.shape, A.shape[1]
    kept = (batch, chunks_kept(H * W), ROUTES, N, d) if keep else (0,)
    dtype = computed_in(x)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(kept, dtype=dtype)


@torch.library.custom_op("minivmamba::ss2d_scan_backward", mutates_args=())
def _scan_backward(
    dy: Tensor,
    kept: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, ...]
    if backend == "triton":
        from minivmamba.kernels.ss2d_triton import ss2d_triton_backward

        gradients = ss2d_triton_backward(dy, kept, x, delta, A, B, C, D, delta_bias, delta_softplus)
        gradients = (*gradients, x.new_empty(0))
    else:
        from minivmamba.kernels.ss2d_numba import ss2d_numba_backward

        gradients = ss2d_numba_backward(
            dy, kept, x, delta, A, B, C, D, delta_bias, delta_softplus, delta_weight
        )
    return cast(tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], gradients)


@_scan_backward.register_fake
def _(dy, kept, x, delta, A, B, C, D, delta_bias, delta_weight, delta_softplus, backend):
    gradients = (v.new_empty(v.shape) for v in (x, delta, A, B, C))
    dweight = x.new_empty(0 if delta_weight is None else delta_weight.shape)
    return *gradients, like_channels(D, A), like_channels(delta_bias, A), dweight


def _remember(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.backend, ctx.keep = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dy, _):
    *tensors, kept = ctx.saved_tensors
    if not ctx.keep:
        raise RuntimeError(
            "ss2d_scan: its backward pass needs the states of the forward pass; call the operator "
            "with keep=True, as minivmamba.ss2d_scan does"
        )
    gradients = torch.ops.minivmamba.ss2d_scan_backward(
        dy, kept, *tensors, ctx.delta_softplus, ctx.backend
    )
    wanted = (g if x is not None else None for x, g in zip(tensors, gradients, strict=True))
    return *wanted, None, None, None


torch.library.register_autograd("minivmamba::ss2d_scan", _backward, setup_context=_remember)
torch.library.register_autograd(
    "minivmamba::ss2d_scan_backward", no_second_derivative, setup_context=forget
)


@register_flop_formula(torch.ops.minivmamba.ss2d_scan)
def _scan_flops(x, delta, A, B, C, D, delta_bias, weight, *_, out_shape=None, **__) -> int:
    """Four scans, counted as in selective_scan, and 2 R a step for its Δ; the merge is not."""
    batch, H, W, d = x
    rank = 0 if weight is None else weight[2]
    return batch * H * W * d * ROUTES * (6 * A[1] + (1 if D is None else 3) + 2 * rank)


@register_flop_formula(torch.ops.minivmamba.ss2d_scan_backward)
def _scan_backward_flops(
    dy, kept, x, delta, A, B, C, D, delta_bias, weight, *_, out_shape=None, **__
) -> int:
    batch, H, W, d = x
    rank = 0 if weight is None else weight[2]  # for Δ again, its gradient and that of the weight
    return batch * H * W * d * ROUTES * (18 * A[1] + 10 + 6 * rank)


def _check_shapes(tensors: dict[str, Tensor]) -> None:
    x, A = tensors["x"], tensors["A"]
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x: expected shape (batch, H, W, d), channels last, got {tuple(x.shape)}")
    batch, H, W, d = x.shape
    if A.ndim != 2 or A.shape[0] != ROUTES * d or A.shape[1] < 1:
        raise ValueError(
            f"A: expected shape ({ROUTES * d}, N) with N ≥ 1 for 4 routes of the {d} channels of "
            f"x, got {tuple(A.shape)}"
        )
    steps = d
    if "delta_weight" in tensors:
        weight = tensors["delta_weight"]
        if weight.ndim != 3 or weight.shape[:2] != (ROUTES, d) or weight.shape[2] < 1:
            raise ValueError(
                f"delta_weight: expected shape ({ROUTES}, {d}, R) with R ≥ 1 for the {d} channels "
                f"of x, got {tuple(weight.shape)}"
            )
        steps = weight.shape[2]
    expected = {
        "delta": (batch, ROUTES, H, W, steps),
        "B": (batch, ROUTES, H, W, A.shape[1]),
        "C": (batch, ROUTES, H, W, A.shape[1]),
        "D": (ROUTES * d,),
        "delta_bias": (ROUTES * d,),
    }
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensors[name].shape)}")
    for name, value in tensors.items():
        if value.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x, got {value.device}")

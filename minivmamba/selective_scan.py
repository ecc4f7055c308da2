"""The selective scan: the one operator of Mamba and VMamba (lesson 05).

`selective_scan` is the door: it checks the arguments, settles the dtype and calls the operator,
which calls a rung of `minivmamba.kernels`. The mathematics and the shapes are told in
`kernels/scan_naive.py`. Autograd, torch.compile and torch.export see one operator,
`torch.ops.minivmamba.selective_scan`, and never look inside.
"""

import functools
import importlib
import os
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import minivmamba.kernels.fork  # noqa: F401 (it has to see every fork from now on)
from minivmamba.expect import expect_tensors, given

BACKENDS = ("naive", "numba", "triton")
OLDEST_TRITON = (3, 3)  # the first whose kernels take tuples, the strides of ours


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    backend: str = "auto",
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run h_t = e^{Δ_t A} h_{t−1} + Δ_t B_t u_t, y_t = C_t·h_t + D u_t from h_0 = 0.

    Args:
        u: input, (batch, K·d, L), for K groups of d channels. Any strides; the fastest are those
            of a channels-last tensor, x.transpose(1, 2) for an x of shape (batch, L, K·d).
        delta: step Δ before bias and softplus, shaped as u.
        A: diagonal state matrix, (K·d, N).
        B, C: (batch, K, N, L): group k serves channels k·d … k·d + d − 1. For one group
            (batch, N, L) will do.
        D: skip connection, (K·d,).
        delta_bias: added to delta, (K·d,).
        delta_softplus: pass delta + delta_bias through softplus.
        backend: "naive" (a loop in PyTorch, any device), "numba" (compiled, CPU), "triton"
            (compiled, GPU, not in float64; on a CPU only where TRITON_INTERPRET=1 was set), or
            "auto": numba on a CPU, triton on a GPU, naive for what these cannot take or where
            they are missing (said once).
        return_last_state: return (y, h_L) with h_L of shape (batch, K·d, N).

    Returns:
        y, shaped as u: float64 if the arguments are, else float32. Half-precision arguments are
        computed in float32, since a state that decays and grows over thousands of steps needs it;
        the triton rung reads them as they are, the others a float32 copy.
        Differentiable in every tensor argument, once.

    Raises:
        TypeError: an argument is not a floating-point tensor, float64 meets another dtype or
            backend="triton", or delta_softplus is neither True nor False.
        ValueError: a shape or device does not fit, the backend is unknown, or it cannot work on
            this device.
        ImportError: backend="numba" without Numba, "triton" without Triton or with an old one.
        RuntimeError: a second derivative is asked for.

    Source: Mamba, arXiv 2312.00752, algorithm 2 and section 3.3; VMamba, arXiv 2401.10166.
    """
    optional = given(D=D, delta_bias=delta_bias)
    expect_tensors(u=u, delta=delta, A=A, B=B, C=C, **optional)
    expect_scan_options(delta_softplus, backend)
    if B.ndim == 3:
        B = B.unsqueeze(1)
    if C.ndim == 3:
        C = C.unsqueeze(1)
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, **optional}
    _check_shapes(tensors)
    rung = choose(backend, u.device.type, common_dtype(tensors))
    tensors = as_the_rung_reads_them(tensors, rung)
    keep = wants_gradient(tensors)
    y, last_state, _ = torch.ops.minivmamba.selective_scan(
        *(tensors.get(name) for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")),
        delta_softplus,
        rung,
        keep,
    )
    return (y, last_state) if return_last_state else y


# The operator


@torch.library.custom_op("minivmamba::selective_scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and, if `keep`, the states that the backward pass of the rung needs."""
    rung = f"scan_{backend}"
    scan = getattr(_rung(rung), rung)
    y, last, kept = scan(u, delta, A, B, C, D, delta_bias, delta_softplus, keep)
    return laid_out_as(u, y), last.contiguous(), kept


@_scan.register_fake
def _(u, delta, A, B, C, D, delta_bias, delta_softplus, backend, keep):
    batch, channels, L = u.shape
    K, N = B.shape[1], A.shape[1]
    kept: tuple = (0,)
    if keep and backend == "naive":  # h before every step
        kept = (batch, L, channels, N)
    elif keep:
        kept = (batch, chunks_kept(L), K, N, channels // K)
    dtype = computed_in(u)
    y = torch.empty_like(u, dtype=dtype)
    return y, u.new_empty(batch, channels, N, dtype=dtype), u.new_empty(kept, dtype=dtype)


@torch.library.custom_op("minivmamba::selective_scan_backward", mutates_args=())
def _scan_backward(
    dy: Tensor,
    dlast: Tensor,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    backward = getattr(_rung(f"scan_{backend}"), f"scan_{backend}_backward")
    inputs = (u, delta, A, B, C)
    gradients = backward(dy, dlast, kept, *inputs, D, delta_bias, delta_softplus)
    laid_out = [laid_out_as(x, dx) for x, dx in zip(inputs, gradients[:5], strict=True)]
    return (*laid_out, *gradients[5:])


@_scan_backward.register_fake
def _(dy, dlast, kept, u, delta, A, B, C, D, delta_bias, delta_softplus, backend):
    inputs = (torch.empty_like(x) for x in (u, delta, A, B, C))
    return *inputs, like_channels(D, A), like_channels(delta_bias, A)


def _remember(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.backend, ctx.keep = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, dy, dlast, _):
    *tensors, kept = ctx.saved_tensors
    if not ctx.keep:
        raise RuntimeError(
            "selective_scan: its backward pass needs the states of the forward pass; call the "
            "operator with keep=True, as minivmamba.selective_scan does"
        )
    u, A = tensors[0], tensors[2]
    dtype = computed_in(u)
    dy = torch.zeros_like(u, dtype=dtype) if dy is None else dy
    dlast = u.new_zeros(u.shape[0], *A.shape, dtype=dtype) if dlast is None else dlast
    gradients = torch.ops.minivmamba.selective_scan_backward(
        dy, dlast, kept, *tensors, ctx.delta_softplus, ctx.backend
    )
    wanted = (g if x is not None else None for x, g in zip(tensors, gradients, strict=True))
    return *wanted, None, None, None


torch.library.register_autograd("minivmamba::selective_scan", _backward, setup_context=_remember)


def no_second_derivative(*_: Any):
    raise RuntimeError(
        "selective_scan: a second derivative was asked for, and only first ones are implemented; "
        "for a small problem write the loop of kernels/scan_naive.py and let autograd do both"
    )


def forget(ctx, inputs, output) -> None:
    """Nothing to remember for a derivative that is not there."""


torch.library.register_autograd(
    "minivmamba::selective_scan_backward", no_second_derivative, setup_context=forget
)


@register_flop_formula(torch.ops.minivmamba.selective_scan)
def _scan_flops(u, delta, A, B, C, D, *_, out_shape=None, **__) -> int:
    """Multiplications and additions, not exponentials: 6 N + 1 a channel and step, 6 N + 3 with D.

    For each state ΔA, Āh, Δu·B, their sum, and C·h with its sum; once Δu, and D u with its sum.
    """
    return u[0] * u[1] * u[2] * (6 * A[1] + (1 if D is None else 3))


@register_flop_formula(torch.ops.minivmamba.selective_scan_backward)
def _scan_backward_flops(dy, dlast, kept, u, delta, A, *_, out_shape=None, **__) -> int:
    """18 N + 10 a channel and step, exponentials not counted.

    For each state 4 to have it again, 2 for g and 1 to pass it on, 1 for g Ā h, and 2 for each of
    dA, dB, dC, d(Δu), dΔ; then 1 for Δu, 3 for d delta, 3 for du, 2 for dD and 1 for the bias.
    """
    return u[0] * u[1] * u[2] * (18 * A[1] + 10)


# What the two forms of the scan share


@functools.cache
def _rung(name: str):
    return importlib.import_module(f"minivmamba.kernels.{name}")


def expect_scan_options(delta_softplus: object, backend: object) -> None:
    if not isinstance(delta_softplus, bool):
        raise TypeError(f"delta_softplus: expected True or False, got {delta_softplus!r}")
    if backend != "auto" and backend not in BACKENDS:
        names = ", ".join(f'"{name}"' for name in ("auto", *BACKENDS))
        raise ValueError(f"backend: expected one of {names}, got {backend!r}")


def choose(backend: str, device: str, dtype: torch.dtype) -> str:
    """The rung that works on this device in this dtype: for "auto" the fastest."""
    if backend == "naive" or device == "meta":
        return "naive" if backend == "auto" else backend
    if backend == "auto":
        return _fastest(device, dtype)
    if backend == "numba" and device != "cpu":
        raise ValueError(f'backend: "numba" works on a CPU, got tensors on {device}; use "auto"')
    if backend == "numba" and not numba_is_here():
        raise ImportError('backend: "numba" needs Numba (pip install numba); "naive" works without')
    if backend == "triton":
        _expect_triton(device, dtype)
    return backend


def _fastest(device: str, dtype: torch.dtype) -> str:
    if device == "cpu":
        return "numba" if numba_is_here() else _naive_instead("without Numba (pip install numba)")
    if device != "cuda":
        return _naive_instead(f"on {device}, which has no compiled rung,")
    if why_no_triton():
        return _naive_instead(f"since the rung for a GPU {why_no_triton()}")
    if dtype == torch.float64:
        return _naive_instead("since the rung for a GPU computes in float32 and not in float64")
    return "triton"


def _expect_triton(device: str, dtype: torch.dtype) -> None:
    if why_no_triton():
        raise ImportError(f'backend: "triton" {why_no_triton()}; "naive" works without')
    if device != "cuda" and not (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        raise ValueError(
            f'backend: "triton" works on a GPU, got tensors on {device}; use "auto", or, to follow '
            "its kernels on a CPU, set TRITON_INTERPRET=1 before Python starts"
        )
    if dtype == torch.float64:
        raise TypeError(
            'u: expected torch.float32 or half precision for backend="triton", which computes in '
            'float32, got torch.float64; use "naive"'
        )


@functools.cache
def why_no_triton() -> str:
    """What the Triton rung lacks on this machine, as the rest of a sentence; "" for nothing."""
    oldest = ".".join(map(str, OLDEST_TRITON))
    try:
        import triton
    except ImportError:
        return f"needs Triton {oldest} or newer, which is not installed (pip install triton)"
    if tuple(int(n) for n in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        return f"needs Triton {oldest} or newer, got {triton.__version__} (a newer PyTorch has it)"
    return ""


_numba_is_here: bool | None = None  # not functools.cache, which torch.compile warns about


def numba_is_here() -> bool:
    global _numba_is_here
    if _numba_is_here is None:
        try:
            import numba  # noqa: F401

            _numba_is_here = True
        except ImportError:
            _numba_is_here = False
    return _numba_is_here


@functools.cache
def _naive_instead(reason: str) -> str:
    warnings.warn(
        f"minivmamba: {reason} the scan runs as a loop in PyTorch, right but slow",
        stacklevel=5,
    )
    return "naive"


def chunks_kept(L):
    """For how many chunks of 32 steps the numba rung has room, of which it fills ⌈L / 32⌉."""
    return L // 32 + 2


def wants_gradient(tensors: dict[str, Tensor]) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors.values())


def as_the_rung_reads_them(tensors: dict[str, Tensor], rung: str) -> dict[str, Tensor]:
    """All in the dtype that is computed in, except that triton reads half precision as it is."""
    if rung == "triton":
        return tensors
    dtype = common_dtype(tensors)
    return {name: value.to(dtype) for name, value in tensors.items()}


def computed_in(x: Tensor) -> torch.dtype:
    """float32 for half precision, else the dtype itself."""
    return torch.promote_types(x.dtype, torch.float32)


def like_channels(x: Tensor | None, A: Tensor) -> Tensor:
    """The gradient of D or of the bias: as the tensor, or of no meaning if there is none."""
    return A.new_empty(A.shape[0], dtype=computed_in(A)) if x is None else x.new_empty(x.shape)


def laid_out_as(like: Tensor, value: Tensor) -> Tensor:
    """`value` with the strides that empty_like(like) has: what the fake kernel promises."""
    if value.stride() == torch.empty_like(like, device="meta").stride():
        return value
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


def _check_shapes(tensors: dict[str, Tensor]) -> None:
    u, A, B = tensors["u"], tensors["A"], tensors["B"]
    if u.ndim != 3 or u.shape[-1] < 1:
        raise ValueError(f"u: expected shape (batch, K·d, L) with L ≥ 1, got {tuple(u.shape)}")
    batch, channels, L = u.shape
    if A.ndim != 2 or A.shape[0] != channels or A.shape[1] < 1:
        raise ValueError(
            f"A: expected shape ({channels}, N) with N ≥ 1 for the {channels} channels of u, "
            f"got {tuple(A.shape)}"
        )
    if B.ndim != 4:
        raise ValueError(f"B: expected shape (batch, K, N, L), got {tuple(B.shape)}")
    K, N = B.shape[1], A.shape[1]
    if K < 1 or channels % K:
        raise ValueError(f"B: its {K} groups do not divide the {channels} channels of u")
    expected = {
        "delta": (batch, channels, L),
        "B": (batch, K, N, L),
        "C": (batch, K, N, L),
        "D": (channels,),
        "delta_bias": (channels,),
    }
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensors[name].shape)}")
    for name, value in tensors.items():
        if value.device != u.device:
            raise ValueError(f"{name}: expected device {u.device} as u, got {value.device}")


def common_dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    """float64 if all are float64, float32 for any mixture of float32 and half precision."""
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    double = {name for name, value in tensors.items() if value.dtype == torch.float64}
    if double and len(double) < len(tensors):
        name = next(name for name in tensors if name not in double)
        raise TypeError(
            f"{name}: expected torch.float64 as {', '.join(sorted(double))}, got "
            f"{tensors[name].dtype}; float64 is computed in float64 only when all arguments are"
        )
    return torch.float64 if double else torch.float32

"""The selective scan: the one operator of Mamba and VMamba (lesson 05).

`selective_scan` is the door: it checks the arguments, settles the dtype and calls a rung of
`minivmamba.kernels`. The mathematics and the shapes are told in `kernels/scan_naive.py`.
"""

import torch
from torch import Tensor

from minivmamba.expect import expect_tensors, given
from minivmamba.kernels.scan_naive import scan_naive

BACKENDS = {"naive": scan_naive}


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
        u: input, (batch, K·d, L), for K groups of d channels.
        delta: step Δ before bias and softplus, shaped as u.
        A: diagonal state matrix, (K·d, N).
        B, C: (batch, K, N, L): group k serves channels k·d … k·d + d − 1. For one group
            (batch, N, L) will do.
        D: skip connection, (K·d,).
        delta_bias: added to delta, (K·d,).
        delta_softplus: pass delta + delta_bias through softplus.
        backend: "naive", or "auto" for the fastest that can take these arguments (today: naive).
        return_last_state: return (y, h_L) with h_L of shape (batch, K·d, N).

    Returns:
        y, shaped as u: float64 if the arguments are, else float32. Half-precision arguments are
        computed in float32, since a state that decays and grows over thousands of steps needs it.
        Differentiable in every tensor argument.

    Raises:
        TypeError: an argument is not a floating-point tensor, float64 meets another dtype, or
            delta_softplus is neither True nor False.
        ValueError: a shape or device does not fit, or the backend is unknown.

    Source: Mamba, arXiv 2312.00752, algorithm 2 and section 3.3; VMamba, arXiv 2401.10166.
    """
    optional = given(D=D, delta_bias=delta_bias)
    expect_tensors(u=u, delta=delta, A=A, B=B, C=C, **optional)
    if not isinstance(delta_softplus, bool):
        raise TypeError(f"delta_softplus: expected True or False, got {delta_softplus!r}")
    if B.ndim == 3:
        B = B.unsqueeze(1)
    if C.ndim == 3:
        C = C.unsqueeze(1)
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, **optional}
    _check_shapes(tensors)
    dtype = _common_dtype(tensors)
    scan = _choose(backend)
    y, last_state = scan(
        **{name: value.to(dtype) for name, value in tensors.items()},
        delta_softplus=delta_softplus,
    )
    return (y, last_state) if return_last_state else y


def _choose(backend: str):
    names = ["auto", *BACKENDS]
    if backend not in names:
        expected = ", ".join(f'"{name}"' for name in names)
        raise ValueError(f"backend: expected one of {expected}, got {backend!r}")
    return scan_naive if backend == "auto" else BACKENDS[backend]


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


def _common_dtype(tensors: dict[str, Tensor]) -> torch.dtype:
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

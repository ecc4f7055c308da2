"""Linear time-invariant state space models: one system, two views (lessons 01 and 03).

After discretization (lesson 02) a diagonal system with constant A_bar, B_bar, C is

    h_t = A_bar h_{t-1} + B_bar u_t,      y_t = Σ_n C_n h_t[n] + D u_t,      h_0 = 0,

which is a recurrence, and, because nothing in it depends on t, also a convolution:

    y = K * u + D u,      K_j = Σ_n C_n A_bar_n^j B_bar_n,      j = 0 … L−1.

The selective scan gives up the second view so that the system may depend on the input.
"""

import torch
from torch import Tensor

from minivmamba.expect import expect_int, expect_tensors, given


def lti_recurrence(
    u: Tensor, A_bar: Tensor, B_bar: Tensor, C: Tensor, D: Tensor | None = None
) -> Tensor:
    """Step through the sequence, one state per channel.

    Args:
        u: input, (..., d, L).
        A_bar, B_bar, C: discrete diagonal system, (d, N) each, real or complex.
        D: skip connection, (d,).

    Returns:
        y of shape (..., d, L).

    Raises:
        TypeError: A_bar, B_bar and C differ in dtype or device, or something is not a tensor.
        ValueError: a shape does not fit; the message names the argument.
    """
    _check_system(A_bar, B_bar, C, D)
    _check_input(u, d=A_bar.shape[0])
    h = torch.zeros((), dtype=A_bar.dtype, device=u.device)
    ys = []
    for u_t in u.unbind(-1):  # (..., d)
        h = A_bar * h + B_bar * u_t.unsqueeze(-1)  # (..., d, N)
        ys.append((C * h).sum(-1))
    y = torch.stack(ys, dim=-1)
    return y if D is None else y + D.unsqueeze(-1) * u


def lti_kernel(A_bar: Tensor, B_bar: Tensor, C: Tensor, L: int) -> Tensor:
    """The response to a single 1 at t = 1: K_j = Σ_n C_n A_bar_n^j B_bar_n.

    Args:
        A_bar, B_bar, C: (d, N) each. L: number of samples, at least 1.

    Returns:
        K of shape (d, L).

    Raises:
        TypeError: A_bar, B_bar and C differ in dtype or device, or something is not a tensor.
        ValueError: a shape does not fit, or L < 1.
    """
    _check_system(A_bar, B_bar, C)
    expect_int("L", L, minimum=1)
    powers = A_bar.unsqueeze(-1) ** torch.arange(L, device=A_bar.device)  # (d, N, L)
    return torch.einsum("dn,dnl->dl", C * B_bar, powers)


def lti_convolution(u: Tensor, K: Tensor, D: Tensor | None = None) -> Tensor:
    """y = K * u + D u, causal, by a Fourier transform of twice the length.

    The transform is circular: without the zeros that double the length, the end of the sequence
    would leak into its beginning.

    Args:
        u: (..., d, L), real. K: (d, L), real. D: (d,).

    Returns:
        y of shape (..., d, L).

    Raises:
        TypeError: u or K is not a float32 or float64 tensor (there is no transform for others).
        ValueError: a shape does not fit; the message names the argument.
    """
    expect_tensors(u=u, K=K, **given(D=D))
    for name, value in {"u": u, "K": K}.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: expected torch.float32 or torch.float64, got {value.dtype}")
    if K.ndim != 2:
        raise ValueError(f"K: expected shape (d, L), got {tuple(K.shape)}")
    d, L = K.shape
    _check_input(u, d)
    if u.shape[-1] != L:
        raise ValueError(f"K: expected {u.shape[-1]} samples as in u, got {L}")
    if D is not None and D.shape != (d,):
        raise ValueError(f"D: expected shape ({d},), got {tuple(D.shape)}")
    spectrum = torch.fft.rfft(u, n=2 * L) * torch.fft.rfft(K, n=2 * L)
    y = torch.fft.irfft(spectrum, n=2 * L)[..., :L]
    return y if D is None else y + D.unsqueeze(-1) * u


def _check_input(u: Tensor, d: int) -> None:
    expect_tensors(u=u)
    if u.ndim < 2 or u.shape[-2] != d or u.shape[-1] < 1:
        raise ValueError(f"u: expected shape (..., {d}, L) with L ≥ 1, got {tuple(u.shape)}")


def _check_system(A_bar: Tensor, B_bar: Tensor, C: Tensor, D: Tensor | None = None) -> None:
    expect_tensors(A_bar=A_bar, B_bar=B_bar, C=C, **given(D=D))
    if A_bar.ndim != 2:
        raise ValueError(f"A_bar: expected shape (d, N), got {tuple(A_bar.shape)}")
    for name, value in {"B_bar": B_bar, "C": C}.items():
        if value.shape != A_bar.shape:
            expected, got = tuple(A_bar.shape), tuple(value.shape)
            raise ValueError(f"{name}: expected shape {expected} as A_bar, got {got}")
        if (value.dtype, value.device) != (A_bar.dtype, A_bar.device):
            raise TypeError(
                f"{name}: expected {A_bar.dtype} on {A_bar.device} as A_bar, "
                f"got {value.dtype} on {value.device}"
            )
    if D is not None and D.shape != A_bar.shape[:1]:
        raise ValueError(f"D: expected shape ({A_bar.shape[0]},), got {tuple(D.shape)}")

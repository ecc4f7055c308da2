"""From a differential equation to a recurrence: five rules (lesson 02).

A state space model in continuous time,

    h'(t) = A h(t) + B x(t),

becomes a recurrence over samples a step dt (Δ) apart,

    h_t = A_bar h_{t-1} + B_bar x_t,      h_0 = 0,  t = 1 … L,

where x_t is the input held constant over the interval that *ends* at sample t. A rule of
discretization is a recipe for A_bar and B_bar:

    rule         A_bar                          B_bar
    zoh          e^{Δa}                         Δb · φ(Δa),  φ(z) = (e^z − 1) / z
    mamba_rule   e^{Δa}                         Δb
    euler        1 + Δa                         Δb
    bilinear     (1 + Δa/2) / (1 − Δa/2)        Δb / (1 − Δa/2)

with `zoh_matrix` for a full matrix A. Mamba's paper writes `zoh` (arXiv 2312.00752, eq. 4); the
code of Mamba and VMamba computes `mamba_rule`.

Here A is a diagonal, stored as its entries: (N,) for one channel, (d, N) for d channels. All
rules but `zoh_matrix` work entry by entry with ordinary broadcasting.
"""

import functools
import numbers
from collections.abc import Iterable

import torch
from torch import Tensor

from minivmamba.expect import expect_tensors

Number = float | complex | Tensor


def zoh(A: Number, B: Number, dt: Number) -> tuple[Tensor, Tensor]:
    """Zero-order hold (零阶保持) of a diagonal system: exact when the input is held.

    Args:
        A: diagonal entries, real or complex, any shape, in 1/time.
        B: input weights, broadcastable with A.
        dt: step Δ, broadcastable with both, in time.

    Returns:
        (A_bar, B_bar), A_bar = e^{ΔA} and B_bar = Δ B (e^{ΔA} − 1) / (ΔA). At A = 0 the value is
        the limit ΔB and every gradient is finite, first and second ones.

    Numbers alone are computed in double precision; beside tensors everything is brought to the
    widest dtype among these.

    Raises:
        TypeError: an argument is neither a number nor a floating-point or complex tensor.
        ValueError: the shapes do not broadcast, or the tensors lie on different devices.
    """
    A, B, dt = _as_tensors(A=A, B=B, dt=dt)
    z = dt * A
    return torch.exp(z), dt * B * phi(z)


def mamba_rule(A: Number, B: Number, dt: Number) -> tuple[Tensor, Tensor]:
    """What the code of Mamba and VMamba computes: zero-order hold for A, Euler for B.

    Arguments, shapes and errors as in `zoh`; returns (e^{ΔA}, ΔB). B_bar is larger than the exact
    one by the factor 1 / φ(ΔA), which tends to 1 as ΔA → 0.
    """
    A, B, dt = _as_tensors(A=A, B=B, dt=dt)
    return torch.exp(dt * A), dt * B


def euler(A: Number, B: Number, dt: Number) -> tuple[Tensor, Tensor]:
    """Forward Euler: follow the slope at the start of the step. Unstable when |1 + ΔA| > 1.

    Arguments, shapes and errors as in `zoh`; returns (1 + ΔA, ΔB).
    """
    A, B, dt = _as_tensors(A=A, B=B, dt=dt)
    return 1 + dt * A, dt * B


def bilinear(A: Number, B: Number, dt: Number) -> tuple[Tensor, Tensor]:
    """Bilinear rule (Tustin; used by S4): the mean of the slopes at both ends of the step.

    Arguments, shapes and errors as in `zoh`; returns ((1 + ΔA/2)/(1 − ΔA/2), ΔB/(1 − ΔA/2)).
    Stable whenever the real part of A is negative.
    """
    A, B, dt = _as_tensors(A=A, B=B, dt=dt)
    half = dt * A / 2
    return (1 + half) / (1 - half), dt * B / (1 - half)


def zoh_matrix(A: Tensor, B: Tensor, dt: float | Tensor) -> tuple[Tensor, Tensor]:
    """Zero-order hold of a full matrix system, invertible or not.

    One matrix exponential of the augmented system gives both answers, because a held input is
    one more state whose derivative is zero (Van Loan, 1978):

        exp( Δ [[A, B], [0, 0]] ) = [[A_bar, B_bar], [0, I]].

    Args:
        A: (N, N). B: (N, M). dt: one number or a tensor with one element.

    Returns:
        A_bar (N, N), B_bar (N, M).

    Raises:
        TypeError, ValueError: as in `zoh`, or when the shapes are not (N, N), (N, M) and one step.
    """
    A, B, dt = _as_tensors(broadcast=False, A=A, B=B, dt=dt)
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"A: expected a square matrix (N, N), got shape {tuple(A.shape)}")
    if B.ndim != 2 or B.shape[0] != A.shape[0]:
        raise ValueError(f"B: expected shape ({A.shape[0]}, M), got {tuple(B.shape)}")
    if dt.numel() != 1:
        raise ValueError(f"dt: expected one step, got shape {tuple(dt.shape)}")
    N, M = B.shape
    augmented = torch.cat([torch.cat([A, B], dim=1), A.new_zeros(M, N + M)], dim=0)
    # matrix_exp gives wrong numbers in half precision, silently.
    precise = torch.promote_types(A.dtype, torch.float32)
    stepped = torch.linalg.matrix_exp(dt.reshape(()).to(precise) * augmented.to(precise))
    return stepped[:N, :N].to(A.dtype), stepped[:N, N:].to(A.dtype)


def phi(z: Tensor) -> Tensor:
    """φ(z) = (e^z − 1) / z, entry by entry, with φ(0) = 1 and accurate gradients everywhere.

    φ is the mean of e^s for s between 0 and z: the factor by which zero-order hold weighs ΔB.

    Near 0 the quotient is 0/0 in value and loses its digits in the derivative, so there a series
    is used, 1 + z/2 (1 + z/3 (1 + z/4 …)). Each branch sees only arguments that are safe for it:
    a `where` over an unsafe branch would let its NaN into the gradient.
    """
    near_zero = z.abs() < 0.1
    small = torch.where(near_zero, z, torch.zeros_like(z))
    series = torch.ones_like(z)
    for k in range(12, 1, -1):  # the first term left out is below 0.1^12 / 13!
        series = 1 + small / k * series
    large = torch.where(near_zero, torch.ones_like(z), z)
    return torch.where(near_zero, series, torch.expm1(large) / large)


def inverse_softplus(y: Tensor) -> Tensor:
    """The x with softplus(x) = log(1 + e^x) = y, for y > 0: x = y + log(1 − e^{−y}).

    Mamba stores the initial step Δ in this form, so that softplus gives it back. Written with
    expm1, because 1 − e^{−y} has no digits left for y near 0.

    Args:
        y: positive floating-point tensor, any shape.

    Raises:
        TypeError: y is not a floating-point tensor. ValueError: an entry is not positive.
    """
    expect_tensors(y=y)
    if not y.is_floating_point():
        raise TypeError(f"y: expected a floating-point tensor, got {y.dtype}")
    if not y.is_meta and not bool((y > 0).all()):
        raise ValueError(f"y: expected positive entries, got a minimum of {y.min().item():g}")
    return y + torch.log(-torch.expm1(-y))


def _as_tensors(broadcast: bool = True, **arguments: Number) -> list[Tensor]:
    """Bring numbers and tensors to one dtype; check types, devices and, if asked, broadcasting."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            if not (value.is_floating_point() or value.is_complex()):
                raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
        elif isinstance(value, bool) or not isinstance(value, numbers.Number):
            raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")
    placed = {name: value for name, value in tensors.items() if value.ndim > 0} or tensors
    if len({value.device for value in placed.values()}) > 1:
        devices = ", ".join(f"{name} on {value.device}" for name, value in placed.items())
        raise ValueError(f"expected all tensors on one device, got {devices}")
    try:
        if broadcast:
            torch.broadcast_shapes(*(value.shape for value in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
        raise ValueError(f"expected shapes that broadcast together, got {shapes}") from None
    dtype = _common_dtype(arguments.values())
    device = next((value.device for value in placed.values()), None)
    return [torch.as_tensor(value, dtype=dtype, device=device) for value in arguments.values()]


def _common_dtype(values: Iterable[Number]) -> torch.dtype:
    """The widest dtype of the tensors, float64 without any; complex if a number is complex."""
    values = list(values)
    dtypes = [value.dtype for value in values if isinstance(value, Tensor)] or [torch.float64]
    dtype = functools.reduce(torch.promote_types, dtypes)
    turns = any(isinstance(v, numbers.Complex) and not isinstance(v, numbers.Real) for v in values)
    return dtype.to_complex() if turns and not dtype.is_complex else dtype

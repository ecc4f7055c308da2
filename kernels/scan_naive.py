"""The selective scan as a loop (lesson 05): read this rung first.

Symbols, shapes and the paper they come from (Mamba, arXiv 2312.00752, algorithm 2):

    u       (B, K·d, L)     input sequence, K groups of d channels
    delta   (B, K·d, L)     step Δ of every channel at every position
    A       (K·d, N)        diagonal of the state matrix, one row per channel, usually negative
    B, C    (B, K, N, L)    input and output weights; group k serves channels k·d … k·d + d − 1
    D       (K·d,)          skip connection, or None
    bias    (K·d,)          added to delta, or None
    h       (B, K·d, N)     the state

    Δ_t = softplus(delta_t + bias)          if delta_softplus
    h_t = e^{Δ_t A} h_{t−1} + Δ_t B_t u_t     h_0 = 0      (mamba_rule of minivmamba.discretize)
    y_t = Σ_n C_t[n] h_t[n] + D u_t

    Backward, from the last step to the first, with g_t the gradient of the state h_t:

    g_t  = C_t dy_t + Ā_{t+1} g_{t+1}         g_{L+1} = 0; Ā_t = e^{Δ_t A}
    dC_t = Σ dy_t h_t        dB_t = Σ g_t Δ_t u_t       (Σ over the channels of a group)
    dΔ_t = Σ_n (g_t Ā_t h_{t−1} A + g_t B_t u_t)        du_t = D dy_t + Δ_t Σ_n g_t B_t
    dA   = Σ_t g_t Ā_t h_{t−1} Δ_t

Bytes and operations: 2 exponential-like functions aside, 3 multiplications and 1 addition for
each of the L·K·d·N states, in L small steps that the Python interpreter has to start one by one.
Nothing of size L·N·d is stored in the forward pass, unless it keeps its states for the backward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def scan_naive(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (B, K·d, L), the last state (B, K·d, N), and, if `keep`, h before every step."""
    batch, channels, _ = u.shape
    d = channels // B.shape[1]
    dt = step_size(delta, delta_bias, delta_softplus)
    h = u.new_zeros(batch, channels, A.shape[1])
    ys, kept = [], []
    for u_t, dt_t, B_t, C_t in zip(*(x.unbind(-1) for x in (u, dt, B, C)), strict=True):
        if keep:
            kept.append(h)
        B_t = B_t.repeat_interleave(d, dim=1)  # (B, K, N) → (B, K·d, N)
        C_t = C_t.repeat_interleave(d, dim=1)
        A_bar = torch.exp(dt_t[..., None] * A)  # (B, K·d, N)
        h = A_bar * h + (dt_t * u_t)[..., None] * B_t
        ys.append((C_t * h).sum(-1))
    y = torch.stack(ys, dim=-1)
    y = y if D is None else y + D[:, None] * u
    return y, h, torch.stack(kept, dim=1) if keep else u.new_empty(0)  # (B, L, K·d, N)


def scan_naive_backward(
    dy: Tensor,
    dlast: Tensor,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, ...]:
    """The gradients of (u, delta, A, B, C, D, delta_bias) for those of y and of the last state.

    `kept` is what the forward pass returned with keep=True. Where D or delta_bias is None, its
    gradient is what it would be for zeros.
    """
    K, d = B.shape[1], u.shape[1] // B.shape[1]
    dt = step_size(delta, delta_bias, delta_softplus)
    g, dA = dlast, torch.zeros_like(A)  # g arrives at step t as Ā_{t+1} g_{t+1}
    steps: list[tuple[Tensor, ...]] = []  # what one step gives to du, dΔ, dB, dC
    for t in reversed(range(u.shape[-1])):
        u_t, dt_t, dy_t = u[..., t, None], dt[..., t, None], dy[..., t, None]  # (B, K·d, 1)
        B_t, C_t = (x[..., t].repeat_interleave(d, dim=1) for x in (B, C))  # (B, K·d, N)
        A_bar = torch.exp(dt_t * A)
        h_before = kept[:, t]
        h = A_bar * h_before + dt_t * u_t * B_t
        g = g + C_t * dy_t
        through_decay = g * A_bar * h_before
        steps.append(
            (
                dt_t[..., 0] * (g * B_t).sum(-1),
                (through_decay * A + g * B_t * u_t).sum(-1),
                (g * dt_t * u_t).unflatten(1, (K, d)).sum(2),  # (B, K, N)
                (dy_t * h).unflatten(1, (K, d)).sum(2),
            )
        )
        dA += (through_decay * dt_t).sum(0)
        g = A_bar * g
    du, d_dt, dB, dC = (torch.stack(x, dim=-1) for x in zip(*reversed(steps), strict=True))
    if delta_softplus:
        d_dt = d_dt * -torch.expm1(-dt)  # the slope of softplus is 1 − e^{−softplus}
    du = du if D is None else du + D[:, None] * dy
    return du, d_dt, dA, dB, dC, (dy * u).sum((0, 2)), d_dt.sum((0, 2))


def step_size(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """Δ (B, K·d, L)."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    # PyTorch's softplus(x) is x from a threshold on; at 40 that is exact in double precision.
    return F.softplus(delta, threshold=40) if delta_softplus else delta

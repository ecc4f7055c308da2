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

Bytes and operations: 2 exponential-like functions aside, 3 multiplications and 1 addition for
each of the L·K·d·N states, in L small steps that the Python interpreter has to start one by one.
Nothing of size L·N·d is ever stored in the forward pass; autograd keeps what it needs.
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
) -> tuple[Tensor, Tensor]:
    """Return y (B, K·d, L) and the last state h_L (B, K·d, N); all tensors in one dtype."""
    batch, channels, _ = u.shape
    d = channels // B.shape[1]
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    # unbind, not u[:, :, t]: each slice's gradient would be a zero tensor as large as u, and the
    # backward pass quadratic in L.
    steps = zip(u.unbind(-1), delta.unbind(-1), B.unbind(-1), C.unbind(-1), strict=True)
    h = u.new_zeros(batch, channels, A.shape[1])
    ys = []
    for u_t, delta_t, B_t, C_t in steps:
        B_t = B_t.repeat_interleave(d, dim=1)  # (B, K, N) → (B, K·d, N)
        C_t = C_t.repeat_interleave(d, dim=1)
        A_bar = torch.exp(delta_t[..., None] * A)  # (B, K·d, N)
        h = A_bar * h + (delta_t * u_t)[..., None] * B_t
        ys.append((C_t * h).sum(-1))
    y = torch.stack(ys, dim=-1)
    return (y if D is None else y + D[:, None] * u), h

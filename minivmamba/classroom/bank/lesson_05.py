"""The exercises of lesson 05, the selective scan."""

import torch
import torch.nn.functional as F

from minivmamba.classroom.exercise import Draw, Exercise, Observed, strided
from minivmamba.kernels.scan_naive import scan_naive, scan_naive_backward


def _named(*names):
    """Observe the parts of a result by name, if there are as many."""

    def observe(function, case):
        result = function(*case)
        if isinstance(result, tuple | list) and len(result) == len(names):
            return Observed(zip(names, result, strict=True))
        return result

    return observe


# 05.1 — one step


def _step(h, u_t, delta_t, A, B_t, C_t):
    A_bar = torch.exp(delta_t[:, None] * A)
    h = A_bar * h + (delta_t * u_t)[:, None] * B_t
    return h, (h * C_t).sum(1)


def _step_in_loops(h, u_t, delta_t, A, B_t, C_t):
    new, y = torch.zeros_like(h), torch.zeros_like(u_t)
    for c in range(h.shape[0]):
        for n in range(h.shape[1]):
            decay = torch.exp(delta_t[c] * A[c, n])
            new[c, n] = decay * h[c, n] + delta_t[c] * B_t[n] * u_t[c]
            y[c] += C_t[n] * new[c, n]
    return new, y


def _step_with_einsum(h, u_t, delta_t, A, B_t, C_t):
    decay = torch.einsum("d,dn->dn", delta_t, A).exp()
    h = decay * h + torch.einsum("d,n,d->dn", delta_t, B_t, u_t)
    return h, torch.einsum("dn,n->d", h, C_t)


def _step_of(decay, weight, listen=lambda h, new, C_t: (new * C_t).sum(1)):
    """A step with another decay or input weight; both of (Δ, A, B) with axes d and N."""

    def step(h, u_t, delta_t, A, B_t, C_t):
        dt = delta_t[:, None]
        new = decay(dt, A) * h + weight(dt, A, B_t) * u_t[:, None]
        return new, listen(h, new, C_t)

    return step


def _decay(dt, A):
    return torch.exp(dt * A)


def _mamba(dt, A, B):
    return dt * B


def _steps(draw: Draw):
    def case(d, N, dtype=torch.float64, make=lambda x: x):
        return (
            make(draw.uniform(d, N, dtype=dtype)),
            make(draw.uniform(d, low=-2.0, high=2.0, dtype=dtype)),
            draw.uniform(d, low=0.05, high=1.5, dtype=dtype),
            make(draw.uniform(d, N, low=-3.0, high=-0.2, dtype=dtype)),
            draw.uniform(N, dtype=dtype),
            make(draw.uniform(N, dtype=dtype)),
        )

    rest = case(3, 2)
    return [
        case(2, 3),
        case(1, 1),
        case(5, 4, torch.float32),
        case(4, 4),
        case(3, 5, make=strided),
        (torch.zeros(3, 2).double(), *rest[1:]),  # the first step starts from nothing
        (*rest[:2], torch.zeros(3).double(), *rest[3:]),  # a step of length 0 changes nothing
    ]


STEP = Exercise(
    title="One step",
    difficulty=1,
    hints=(
        "Give Δ and u an axis for the states, `[:, None]`, so that they meet A of shape (d, N). B "
        "and C of shape (N,) fit already: they serve all channels.",
        "`A_bar = torch.exp(delta_t[:, None] * A)`, then h from Ā h and (Δ u)[:, None] · B, then "
        "`(h * C_t).sum(1)` with the new h.",
    ),
    specification=_step,
    alternatives=(_step_in_loops, _step_with_einsum),
    arguments=("h", "u_t", "delta_t", "A", "B_t", "C_t"),
    cases=_steps,
    observe=_named("h", "y"),
    mistakes={
        "this listens to the state before the step; y_t = C_t h_t with the new one": _step_of(
            _decay, _mamba, lambda h, new, C_t: (h * C_t).sum(1)
        ),
        "Δ is missing in front of B: the input weight of the code is ΔB": _step_of(
            _decay, lambda dt, A, B: B
        ),
        "this is the exact weight of zero-order hold; the code, and this exercise, take ΔB": (
            _step_of(_decay, lambda dt, A, B: torch.expm1(dt * A) / A * B)
        ),
        "Ā is e^{ΔA}; 1 + ΔA is Euler's": _step_of(lambda dt, A: 1 + dt * A, _mamba),
        "Δ is missing in the decay: it is e^{ΔA}, not e^A": _step_of(
            lambda dt, A: torch.exp(A), _mamba
        ),
        "the sign of A: it is negative already, and e^{ΔA} must be below 1": _step_of(
            lambda dt, A: torch.exp(-dt * A), _mamba
        ),
        "the decay belongs to the old state alone; this shrinks the new input as well": _step_of(
            _decay, lambda dt, A, B: torch.exp(dt * A) * dt * B
        ),
        "delta_t is the step already: softplus came before": _step_of(
            lambda dt, A: torch.exp(F.softplus(dt) * A), lambda dt, A, B: F.softplus(dt) * B
        ),
        "B and C are swapped: B lets in, C listens": lambda h, u_t, delta_t, A, B_t, C_t: _step(
            h, u_t, delta_t, A, C_t, B_t
        ),
        "the old state is gone: this starts from 0 in every step": (
            lambda h, u_t, delta_t, A, B_t, C_t: _step(0 * h, u_t, delta_t, A, B_t, C_t)
        ),
        "this adds the states before C has weighed them": _step_of(
            _decay, _mamba, lambda h, new, C_t: new.sum(1) * C_t.sum()
        ),
        "y is the mean of the weighed states; it is their sum": _step_of(
            _decay, _mamba, lambda h, new, C_t: (new * C_t).mean(1)
        ),
        "the exponential is missing: ΔA is the exponent of the decay": _step_of(
            lambda dt, A: dt * A, _mamba
        ),
        "the new state comes first, then y": lambda *a: _step(*a)[::-1],
        "u is missing: what enters is Δ B u": lambda h, u_t, *rest: _step(
            h, torch.ones_like(u_t), *rest
        ),
    },
)


# 05.2 — where Δ, B and C come from


def _select(x, x_proj, dt_proj, bias):
    R = dt_proj.shape[1]
    low, B, C = (x @ x_proj.T).split([R, (len(x_proj) - R) // 2, (len(x_proj) - R) // 2], dim=1)
    return F.softplus(low @ dt_proj.T + bias), B, C


def _select_in_slices(x, x_proj, dt_proj, bias):
    R = dt_proj.shape[1]
    N = (x_proj.shape[0] - R) // 2
    delta = torch.log1p(torch.exp(x @ x_proj[:R].T @ dt_proj.T + bias))
    return delta, x @ x_proj[R : R + N].T, x @ x_proj[R + N :].T


def _select_pixel_by_pixel(x, x_proj, dt_proj, bias):
    R = dt_proj.shape[1]
    N = (x_proj.shape[0] - R) // 2
    rows = []
    for pixel in x:
        numbers = x_proj @ pixel
        step = torch.logaddexp(dt_proj @ numbers[:R] + bias, torch.zeros_like(bias))
        rows.append((step, numbers[R : R + N], numbers[R + N :]))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _selected(delta=lambda low, dt_proj, bias: F.softplus(low @ dt_proj.T + bias), order="RBC"):
    """Another Δ, or another order of the three parts."""

    def select(x, x_proj, dt_proj, bias):
        R = dt_proj.shape[1]
        N = (len(x_proj) - R) // 2
        sizes = [R if letter == "R" else N for letter in order]
        parts = dict(zip(order, (x @ x_proj.T).split(sizes, dim=1), strict=True))
        return delta(parts["R"], dt_proj, bias), parts["B"], parts["C"]

    return select


def _pixels(draw: Draw):
    def case(L, d, R, N, dtype=torch.float64, make=lambda x: x):
        return (
            make(draw.uniform(L, d, low=-2.0, high=2.0, dtype=dtype)),
            draw.uniform(R + 2 * N, d, dtype=dtype),
            make(draw.uniform(d, R, dtype=dtype)),
            draw.uniform(d, low=-2.0, high=1.0, dtype=dtype),
        )

    return [
        case(3, 2, 1, 2),
        case(4, 6, 2, 3),
        case(1, 5, 1, 4),
        case(3, 4, 4, 4),
        case(5, 8, 2, 2, torch.float32),
        case(3, 6, 3, 1, make=strided),
    ]


SELECT = Exercise(
    title="Where Δ, B and C come from",
    difficulty=2,
    hints=(
        "One product x @ x_proj.T gives R + 2N numbers for every pixel: first the R for Δ, then B, "
        "then C. N follows from the sizes.",
        "`low, B, C = (x @ x_proj.T).split([R, N, N], dim=1)`; then Δ is the softplus of `low @ "
        "dt_proj.T + bias`.",
    ),
    specification=_select,
    alternatives=(_select_in_slices, _select_pixel_by_pixel),
    arguments=("x", "x_proj", "dt_proj", "bias"),
    cases=_pixels,
    observe=_named("delta", "B", "C"),
    mistakes={
        "softplus is missing: a step must be positive": _selected(
            lambda low, dt_proj, bias: low @ dt_proj.T + bias
        ),
        "the bias is missing: it says how long the step is when the input says nothing": _selected(
            lambda low, dt_proj, bias: F.softplus(low @ dt_proj.T)
        ),
        "the bias belongs inside of softplus, where it cannot make a step negative": _selected(
            lambda low, dt_proj, bias: F.softplus(low @ dt_proj.T) + bias
        ),
        "B and C are swapped: the rows of x_proj are those of Δ, of B, of C": _selected(
            order="RCB"
        ),
        "the rows for Δ come first in x_proj, here they were taken from its end": _selected(
            order="BCR"
        ),
        "this is ReLU: it stops at 0 and lets no gradient through there": _selected(
            lambda low, dt_proj, bias: F.relu(low @ dt_proj.T + bias)
        ),
        "this is the exponential; softplus grows like its argument, not like e to it": _selected(
            lambda low, dt_proj, bias: torch.exp(low @ dt_proj.T + bias)
        ),
        "this is the sigmoid: no step could be longer than 1": _selected(
            lambda low, dt_proj, bias: torch.sigmoid(low @ dt_proj.T + bias)
        ),
        "softplus came twice: the low numbers go into dt_proj as they are": _selected(
            lambda low, dt_proj, bias: F.softplus(F.softplus(low) @ dt_proj.T + bias)
        ),
        "every channel has its own step; this gives all of them the same": _selected(
            lambda low, dt_proj, bias: (
                F.softplus(low @ dt_proj.T + bias).mean(1, keepdim=True).expand(-1, len(bias))
            )
        ),
    },
)


# 05.3 — the hidden matrix


def _hidden(delta, A, B, C):
    M = delta.new_zeros(len(delta), len(delta))
    for s in range(len(delta)):
        h = delta[s] * B[s]  # a single 1 at step s
        for t in range(s, len(delta)):
            h = torch.exp(delta[t] * A) * h if t > s else h
            M[t, s] = C[t] @ h
    return M


def _hidden_by_impulses(delta, A, B, C):
    L = len(delta)
    u = torch.eye(L, dtype=delta.dtype)[:, None]  # L images of one channel
    y, *_ = scan_naive(
        u, delta.expand(L, 1, L), A[None],
        B.T[None, None].expand(L, 1, -1, L), C.T[None, None].expand(L, 1, -1, L),
    )  # fmt: skip
    return y[:, 0].T


def _hidden_by_sums(delta, A, B, C, first=1, cut=True, weight=None):
    """From sums of Δ between s and t; `first` 0 counts the decay of step s as well."""
    past = torch.cumsum(delta, 0)
    since = past[:, None] - past[None] + (0 if first else delta[None])
    if cut:
        since = since.clamp(min=0)
    entering = (delta[:, None] * B) if weight is None else weight(delta, A, B)
    M = torch.einsum("tn,tsn,sn->ts", C, torch.exp(since[..., None] * A), entering)
    return M.tril() if cut else M


def _last_decay_missing(delta, A, B, C):
    past = torch.cumsum(delta, 0) - delta  # Σ of Δ before t
    since = (past[:, None] - past[None] - delta[None]).clamp(min=0)
    return torch.einsum(
        "tn,tsn,sn->ts", C, torch.exp(since[..., None] * A), delta[:, None] * B
    ).tril()


def _paths(draw: Draw):
    def case(L, N, dtype=torch.float64, make=lambda x: x):
        return (
            draw.uniform(L, low=0.05, high=1.5, dtype=dtype),
            draw.uniform(N, low=-2.0, high=-0.2, dtype=dtype),
            make(draw.uniform(L, N, dtype=dtype)),
            make(draw.uniform(L, N, dtype=dtype)),
        )

    fading = (draw.uniform(40, low=0.5, high=1.5), draw.uniform(2, low=-40.0, high=-30.0),
              draw.uniform(40, 2), draw.uniform(40, 2))  # fmt: skip
    return [case(3, 2), case(1, 1), case(5, 3), case(4, 4), case(6, 1, torch.float32),
            case(4, 2, make=strided), fading]  # fmt: skip


def _hidden_by_quotients(delta, A, B, C):
    P = torch.exp(torch.cumsum(delta, 0)[:, None] * A)
    return torch.einsum("tn,tn,sn,sn->ts", C, P, 1 / P, delta[:, None] * B).tril()


def _hidden_without_decay(delta, A, B, C):
    return torch.einsum("tn,sn->ts", C, delta[:, None] * B).tril()


HIDDEN = Exercise(
    title="The hidden matrix",
    difficulty=3,
    hints=(
        "Column s is the answer to a single 1 at step s. It enters with Δ_s B_s; each later step "
        "up to t multiplies by its own e^{ΔA}; C_t listens.",
        "For every s start with `h = delta[s] * B[s]`, write `C[s] @ h` into M[s, s], and for t = "
        "s + 1 … multiply h by `torch.exp(delta[t] * A)` before you listen.",
    ),
    specification=_hidden,
    alternatives=(_hidden_by_impulses, _hidden_by_sums),
    arguments=("delta", "A", "B", "C"),
    cases=_paths,
    mistakes={
        "what enters at s has not decayed yet: the decays of the steps s + 1 … t count, not s": (
            lambda delta, A, B, C: _hidden_by_sums(delta, A, B, C, first=0)
        ),
        "the decay of step t itself is missing: it comes before C_t listens": _last_decay_missing,
        "M is transposed: rows are outputs, columns are inputs": (
            lambda delta, A, B, C: _hidden(delta, A, B, C).T
        ),
        "the future is not cut off: M[t, s] is 0 for s > t": (
            lambda delta, A, B, C: _hidden_by_sums(delta, A, B, C, cut=False)
        ),
        "B belongs to the input, s, and C to the output, t": (
            lambda delta, A, B, C: _hidden(delta, A, C, B)
        ),
        "Δ is missing in front of B_s": lambda delta, A, B, C: _hidden_by_sums(
            delta, A, B, C, weight=lambda delta, A, B: B
        ),
        "this is the exact weight of zero-order hold; the code takes Δ_s B_s": (
            lambda delta, A, B, C: _hidden_by_sums(
                delta, A, B, C, weight=lambda delta, A, B: torch.expm1(delta[:, None] * A) / A * B
            )
        ),
        "the steps differ: this takes their mean and gives every diagonal one decay": (
            lambda delta, A, B, C: torch.einsum(
                "tn,tsn,sn->ts",
                C,
                torch.exp(
                    delta.mean()
                    * (torch.arange(len(delta))[:, None] - torch.arange(len(delta))).clamp(min=0)[
                        ..., None
                    ]
                    * A
                ),
                delta[:, None] * B,
            ).tril()
        ),
        "products from 1 on become 0, and 0/0 is no number: multiply the decays of s + 1 … t": (
            _hidden_by_quotients
        ),
        "the decays are missing: what entered at s fades at every later step": (
            _hidden_without_decay
        ),
        "C B and the decays belong together state by state; add over n last": (
            lambda delta, A, B, C: (
                torch.einsum("tn,sn->ts", C, delta[:, None] * B)
                * _hidden_by_sums(delta, A, torch.ones_like(B) / delta[:, None], torch.ones_like(C))
            ).tril()
        ),
    },
)


# 05.4 — backward


def _run_back(
    dy,
    u,
    delta,
    A,
    B,
    C,
    ways="both",
    late=True,
    after=True,
    spread=True,
    through="h before",
    step_in_dA=True,
    fades=True,
    decay_in_past=True,
    A_in_way=True,
    u_in_way=True,
):
    """With everything as it should be, the backward pass; each option makes one mistake."""
    L, h = len(u), torch.zeros_like(A)
    before, states = [], []
    for t in range(L):
        before.append(h)
        h = torch.exp(delta[t] * A) * h + delta[t] * u[t] * B[t]
        states.append(h)
    du, ddelta, dB, dC = (torch.zeros_like(x) for x in (u, delta, B, C))
    dA, g = torch.zeros_like(A), torch.zeros_like(A)
    for t in reversed(range(L)):
        decay = torch.exp(delta[t] * A)
        carried = g if late else decay * g
        g = C[t] * dy[t] + carried
        dC[t] = dy[t] * (states[t] if after else before[t])
        du[t] = delta[t] * (g * B[t]).sum()
        dB[t] = g * delta[t] * u[t]
        past = before[t] if through == "h before" else states[t]
        through_decay = g * past * (decay if decay_in_past else 1)
        in_decay = (through_decay * (A if A_in_way else 1)).sum()
        in_weight = (g * B[t]).sum() * (u[t] if u_in_way else 1)
        ddelta[t] = {"both": in_decay + in_weight, "decay": in_decay, "weight": in_weight}[ways]
        dA += through_decay * (delta[t] if step_in_dA else 1)
        g = decay * g if late and fades else g
        g = g if spread else torch.zeros_like(g)
    return du, ddelta, dA, dB, dC


def _back_with(**options):
    """The backward pass with one mistake."""
    return lambda dy, u, delta, A, B, C: _run_back(dy, u, delta, A, B, C, **options)


def _backward_by_autograd(dy, u, delta, A, B, C):
    leaves = [x.detach().clone().requires_grad_() for x in (u, delta, A, B, C)]
    u, delta, A, B, C = leaves
    with torch.enable_grad():
        h, ys = torch.zeros_like(A), []
        for t in range(len(u)):
            h = torch.exp(delta[t] * A) * h + delta[t] * u[t] * B[t]
            ys.append(C[t] @ h)
        return torch.autograd.grad(torch.stack(ys), leaves, dy, allow_unused=False)


def _backward_of_the_package(dy, u, delta, A, B, C):
    values = (u[None, None], delta[None, None], A[None], B.T[None, None], C.T[None, None])
    _, last, kept = scan_naive(*values, keep=True)
    du, ddelta, dA, dB, dC, *_ = scan_naive_backward(
        dy[None, None], torch.zeros_like(last), kept, *values
    )
    return du[0, 0], ddelta[0, 0], dA[0], dB[0, 0].T, dC[0, 0].T


def _replaced(**wrong):
    """The right gradients, but for those named: each a function of (right ones, inputs)."""

    def backward(dy, u, delta, A, B, C):
        named = dict(
            zip(("du", "ddelta", "dA", "dB", "dC"), _run_back(dy, u, delta, A, B, C), strict=True)
        )
        inputs = {"dy": dy, "u": u, "delta": delta, "A": A, "B": B, "C": C}
        return tuple((named | {k: f(named, inputs) for k, f in wrong.items()}).values())

    return backward


def _gradients(draw: Draw):
    def case(L, N, dtype=torch.float64, make=lambda x: x):
        return (
            make(draw.uniform(L, low=-2.0, high=2.0, dtype=dtype)),
            draw.uniform(L, low=-2.0, high=2.0, dtype=dtype),
            make(draw.uniform(L, low=0.05, high=1.5, dtype=dtype)),
            draw.uniform(N, low=-2.0, high=-0.2, dtype=dtype),
            make(draw.uniform(L, N, dtype=dtype)),
            draw.uniform(L, N, dtype=dtype),
        )

    return [case(4, 2), case(1, 3), case(7, 1), case(5, 5), case(6, 3, torch.float32),
            case(4, 3, make=strided)]  # fmt: skip


BACKWARD = Exercise(
    title="Backward",
    difficulty=4,
    hints=(
        "Run forward once and keep the state before and after every step. Then go from the last "
        "step to the first with g = C_t dy_t + (what came from step t + 1); before you leave step "
        "t, multiply g by its decay.",
        "In step t, with decay = e^{Δ_t A} and p = g · decay · (state before): dC = dy_t · (state "
        "after), dB = g Δ_t u_t, du = Δ_t Σ g B_t, dA += p Δ_t, and dΔ = Σ p A + u_t Σ g B_t.",
    ),
    specification=_run_back,
    alternatives=(_backward_by_autograd, _backward_of_the_package),
    arguments=("dy", "u", "delta", "A", "B", "C"),
    cases=_gradients,
    observe=_named("du", "ddelta", "dA", "dB", "dC"),
    mistakes={
        "dΔ has two ways; the one through the input weight ΔB is missing": (
            _back_with(ways="decay")
        ),
        "dΔ has two ways; the one through the decay e^{ΔA} is missing": (_back_with(ways="weight")),
        "g comes from step t + 1 with the decay of step t + 1; this takes that of step t": (
            _back_with(late=False)
        ),
        "dC hears the state after the step, as y does; this takes the one before": (
            _back_with(after=False)
        ),
        "g is forgotten between steps: an input also acts on all later outputs": (
            _back_with(spread=False)
        ),
        "the decay of step t multiplies the state before it; this takes the one after": (
            _back_with(through="h after")
        ),
        "Δ is missing in dA: the exponent is Δ A": _back_with(step_in_dA=False),
        "g does not fade on its way back: step t + 1 hears Ā h, so Ā comes back with it": (
            _back_with(fades=False)
        ),
        "the derivative of e^x is e^x: Ā is missing in dA and in the first way of dΔ": (
            _back_with(decay_in_past=False)
        ),
        "A is missing in the first way of dΔ: the exponent is Δ A": _back_with(A_in_way=False),
        "u is missing in the second way of dΔ: what enters is Δ B u": _back_with(u_in_way=False),
        "the order is du, ddelta, dA, dB, dC": lambda *a: _run_back(*a)[::-1],
        "u is missing in dB: what enters is Δ B u": _replaced(
            dB=lambda g, x: g["dB"] / x["u"][:, None]
        ),
        "Δ is missing in dB: what enters is Δ B u": _replaced(
            dB=lambda g, x: g["dB"] / x["delta"][:, None]
        ),
        "Δ is missing in du: what enters is Δ B u": _replaced(du=lambda g, x: g["du"] / x["delta"]),
        "dB and dC are swapped": _replaced(dB=lambda g, x: g["dC"], dC=lambda g, x: g["dB"]),
    },
)


EXERCISES = {"05.1": STEP, "05.2": SELECT, "05.3": HIDDEN, "05.4": BACKWARD}

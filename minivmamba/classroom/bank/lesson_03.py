"""The exercises of lesson 03, recurrence and convolution."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minivmamba.classroom.exercise import Draw, Exercise, Observed, double, strided


def _sizes(draw: Draw, count: int, low: float, high: float) -> Tensor:
    """Numbers of either sign whose sizes lie in [low, high): none is near 0, none is special."""
    signs = draw.uniform(count).sign()
    return signs * draw.uniform(count, low=low, high=high)


# 03.1 — the kernel of a diagonal system


def _kernel(A_bar, B_bar, C, L):
    j = torch.arange(L, dtype=A_bar.dtype)
    return (C * B_bar * A_bar ** j[:, None]).sum(1)


def _kernel_by_running(A_bar, B_bar, C, L):
    h, K = torch.zeros_like(A_bar), []
    for t in range(L):
        h = A_bar * h + B_bar * (1.0 if t == 0 else 0.0)
        K.append((C * h).sum())
    return torch.stack(K)


def _kernel_by_sums(A_bar, B_bar, C, L):
    states = list(zip(A_bar.tolist(), B_bar.tolist(), C.tolist(), strict=True))
    return [sum(c * b * a**j for a, b, c in states) for j in range(L)]


def _kernel_by_vandermonde(A_bar, B_bar, C, L):
    return (C * B_bar).numpy() @ np.vander(A_bar.numpy(), L, increasing=True)


def _one_state_each(A_bar, B_bar, C, L):
    j = torch.arange(L, dtype=A_bar.dtype)
    return C * B_bar * A_bar ** j[:, None]


def _systems(draw: Draw):
    drawn = [_sizes(draw, 3, 0.3, 0.9), _sizes(draw, 3, 0.5, 2), _sizes(draw, 3, 0.5, 2)]
    return [
        (double(0.5), double(0.5), double(1), 3),
        (double(0.5, 0.25), double(0.5, 1), double(2, -1), 5),
        (*drawn, 7),
        (*map(strided, drawn), 4),
        (double(-0.7, 0.9, 0.4, 0), double(1.5, -0.6, 1, 2), double(0.8, 1.2, -2, 1.1), 6),
        (_sizes(draw, 2, 0.3, 0.9), double(1.3, 0.7), double(0.6, 1.9), 1),
        (double(0.6).float(), double(1.7).float(), double(-0.8).float(), 5),
        (double(0.9, -0.8), double(1, 2), double(1, 0.5), 40),
        (double(0.2, 0.4, -0.6), double(1, 2, 3), double(1, -1, 2), 7),
        (double(0), double(2), double(1.5), 4),
        (double(1, -1), double(1, 2), double(1, 3), 6),
        (double(0.5), double(0.5), double(1), 40),
        (_sizes(draw, 16, 0.3, 0.9), _sizes(draw, 16, 0.5, 2), _sizes(draw, 16, 0.5, 2), 5),
    ]


KERNEL = Exercise(
    title="The kernel",
    difficulty=1,
    hints=(
        "Send a single 1 through the recurrence and write down y: that is the kernel. Or use the "
        "formula, with one power of Ā for every j from 0 to L − 1.",
        "`A_bar ** j[:, None]` with `j = torch.arange(L)` has shape (L, N): one row for each j. "
        "What is left to do is to weigh the columns and to add them up.",
    ),
    specification=_kernel,
    alternatives=(_kernel_by_running, _kernel_by_sums, _kernel_by_vandermonde),
    arguments=("A_bar", "B_bar", "C", "L"),
    cases=_systems,
    mistakes={
        "this starts at Ā¹: the input of today has not decayed yet, so K_0 = Σ C·B̄": (
            lambda A_bar, B_bar, C, L: _kernel(A_bar, A_bar * B_bar, C, L)
        ),
        "this starts one step late: K_0 answers the 1 at the step at which it arrives": (
            lambda A_bar, B_bar, C, L: torch.cat(
                [torch.zeros(1, dtype=C.dtype), _kernel(A_bar, B_bar, C, L)[:-1]]
            )
        ),
        "the sum over the N states is missing: y_t is one number": (
            _one_state_each,
            lambda *system: _one_state_each(*system).T,
        ),
        "this is the mean over the states; C says how much each one counts, so add them up": (
            lambda A_bar, B_bar, C, L: _kernel(A_bar, B_bar, C, L) / len(C)
        ),
        "C is missing: this is the sum of the states": (
            lambda A_bar, B_bar, C, L: _kernel(A_bar, B_bar, torch.ones_like(C), L)
        ),
        "B̄ is missing: it says how strongly the 1 enters each state": (
            lambda A_bar, B_bar, C, L: _kernel(A_bar, torch.ones_like(B_bar), C, L)
        ),
        "multiply state by state first and add up last: a product of sums is not a sum of "
        "products": (
            lambda A_bar, B_bar, C, L: (
                C.sum() * B_bar.sum() * (A_bar ** torch.arange(L)[:, None]).sum(1)
            ),
            lambda A_bar, B_bar, C, L: C.sum() * (B_bar * A_bar ** torch.arange(L)[:, None]).sum(1),
            lambda A_bar, B_bar, C, L: (C @ B_bar) * (A_bar ** torch.arange(L)[:, None]).sum(1),
            lambda A_bar, B_bar, C, L: (C @ B_bar) * A_bar.sum() ** torch.arange(L),
        ),
        "the kernel is turned round: K_0, the weight of today's input, comes first": (
            lambda *system: _kernel(*system).flip(0)
        ),
        "this is the answer to 1, 1, 1, …; the kernel is the answer to a single 1": (
            lambda *system: _kernel(*system).cumsum(0)
        ),
        "Ā is already the decay over one step: its powers are asked, not exp(j·Ā)": (
            lambda A_bar, B_bar, C, L: _kernel(torch.exp(A_bar), B_bar, C, L)
        ),
        "j·Ā is not Ā to the power j": (
            lambda A_bar, B_bar, C, L: (C * B_bar * A_bar * torch.arange(L)[:, None]).sum(1)
        ),
        "a kernel of L samples ends at K_{L−1}: this one is a sample too long": (
            lambda A_bar, B_bar, C, L: _kernel(A_bar, B_bar, C, L + 1)
        ),
        "exp(j·log Ā) is Ā to the power j for Ā > 0 only: a negative Ā gives NaN": (
            lambda A_bar, B_bar, C, L: (
                C * B_bar * torch.exp(torch.arange(L)[:, None] * torch.log(A_bar))
            ).sum(1)
        ),
        "only the size of Ā is used: a negative Ā changes its sign from step to step": (
            lambda A_bar, B_bar, C, L: _kernel(A_bar.abs(), B_bar, C, L)
        ),
    },
)


# 03.2 — the direct causal sum


def _convolve(K, x):
    return torch.stack([(K[: t + 1].flip(0) * x[: t + 1]).sum() for t in range(len(x))])


def _convolve_by_matrix(K, x):
    t = torch.arange(len(x))
    lag = t[:, None] - t
    return torch.where(lag >= 0, K[lag.clamp(min=0)], torch.zeros_like(K[:1])) @ x


def _convolve_in_python(K, x):
    return [sum(float(K[j] * x[t - j]) for j in range(t + 1)) for t in range(len(x))]


def _convolve_by_conv1d(K, x):
    return F.conv1d(F.pad(x, (len(K) - 1, 0))[None, None], K.flip(0)[None, None])[0, 0]


def _sliding(K, x, left, right):
    """What conv1d of torch does with a kernel as it is: multiply and add, without turning it."""
    return F.conv1d(F.pad(x, (left, right))[None, None], K[None, None])[0, 0]


def _circle(K, x, n):
    """The first L samples of the convolution on a circle of n points, longer inputs cut to n."""
    return torch.fft.irfft(torch.fft.rfft(K, n=n) * torch.fft.rfft(x, n=n), n=n)[: len(x)]


def _kernels_and_inputs(draw: Draw):
    K, x = _sizes(draw, 7, 0.3, 2), _sizes(draw, 7, 0.3, 2)
    return [
        (double(0.5, 0.25, 0.125), double(4, 0, 8)),
        (double(0, 0.25, 0.1875), double(4, 0, 8)),
        (K, x),
        (strided(x[:6]), strided(K[1:])),
        (_sizes(draw, 1, 0.5, 2), _sizes(draw, 1, 1.5, 3)),
        (_sizes(draw, 2, 0.3, 2), _sizes(draw, 2, 0.3, 2)),
        (double(3, 1, 2, 0.5, -1).float(), double(1, -2, 0.5, 4, 3).float()),
        (double(1, 2, 0, 0), double(1, 0, 0, 0)),
        (double(0.5, 0.25, 0.125), double(0, 4, 8)),
        (_sizes(draw, 40, 0.3, 2), _sizes(draw, 40, 0.3, 2)),
    ]


CONVOLVE = Exercise(
    title="The direct sum",
    difficulty=2,
    hints=(
        "Two loops: over t, and for each t over j from 0 to t. K_j meets the input of j steps ago.",
        "With Python's indices from 0: `y[t] = sum(K[j] * x[t - j] for j in range(t + 1))`.",
    ),
    specification=_convolve,
    alternatives=(
        _convolve_by_matrix,
        _convolve_in_python,
        _convolve_by_conv1d,
        lambda K, x: np.convolve(K.numpy(), x.numpy())[: len(x)],
    ),
    arguments=("K", "x"),
    cases=_kernels_and_inputs,
    mistakes={
        "this looks ahead: K_j meets the input j steps later; it must meet that of j steps ago "
        "(the conv1d of torch slides the kernel without turning it round)": (
            lambda K, x: _sliding(K, x, 0, len(K) - 1)
        ),
        "the kernel is turned round: today's input meets K_0, older ones meet later numbers": (
            lambda K, x: _sliding(K, x, len(K) - 1, 0),
            lambda K, x: _convolve(K.flip(0), x),
        ),
        "K_s meets x_s at every t here: the kernel must move along with t": (
            lambda K, x: (K * x).cumsum(0)
        ),
        "this is cut from the middle, as mode='same' does; the outputs asked are the first L": (
            lambda K, x: np.convolve(K.numpy(), x.numpy(), mode="same"),
        ),
        "this is the whole product of L + J − 1 numbers; the outputs are the first L of them": (
            lambda K, x: np.convolve(K.numpy(), x.numpy())
        ),
        "this is the last output only; one for every t is asked": (
            lambda K, x: _convolve(K, x)[-1:],
            lambda K, x: _convolve(K, x)[-1],
        ),
        "this goes round in a circle: at t only the inputs up to t count, not those of the end": (
            lambda K, x: _circle(K, x, len(x)),
            lambda K, x: torch.stack(
                [sum(K[j] * x[t - j] for j in range(len(x))) for t in range(len(x))]
            ),
        ),
        "the input of today is missing: j starts at 0": lambda K, x: _convolve(
            torch.cat([0 * K[:1], K[1:]]), x
        ),
        "the oldest input is missing: j runs up to t, itself included": lambda K, x: torch.stack(
            [
                sum((K[j] * x[t - j] for j in range(t)), torch.zeros_like(x[0]))
                for t in range(len(x))
            ]
        ),
        "the kernel comes a step late: K_0 meets the input of today": (
            lambda K, x: torch.cat([0 * x[:1], _convolve(K, x)[:-1]])
        ),
        "this is K·x, entry by entry: each output must add up the whole past": lambda K, x: K * x,
        "the outputs come in the wrong order: the first output is the oldest": (
            lambda K, x: _convolve(K, x).flip(0)
        ),
        "the weight of an input depends on how long ago it was: K_{t−s}, not K_t": (
            lambda K, x: K * x.cumsum(0)
        ),
    },
)


# 03.3 — by a Fourier transform


def _convolve_fft(K, x):
    n = len(K) + len(x) - 1
    return torch.fft.irfft(torch.fft.rfft(K, n=n) * torch.fft.rfft(x, n=n), n=n)[: len(x)]


def _convolve_fft_with_a_power_of_two(K, x):
    n = 1 << (len(K) + len(x)).bit_length()
    spectrum = np.fft.fft(K.numpy(), n) * np.fft.fft(x.numpy(), n)
    return np.fft.ifft(spectrum).real[: len(x)]


def _convolve_fft_of_a_cut_kernel(K, x):
    """Only the first L numbers of K can matter, and then 2L points are enough."""
    return _circle(K[: len(x)], x, 2 * len(x))


def _convolve_without_fft(K, x):
    return np.convolve(K.numpy(), x.numpy())[: len(x)]


def _complex(K, x):
    n = len(K) + len(x) - 1
    return torch.fft.ifft(torch.fft.fft(K, n=n) * torch.fft.fft(x, n=n))[: len(x)]


def _length_untold(K, x):
    n = len(K) + len(x) - 1
    return torch.fft.irfft(torch.fft.rfft(K, n=n) * torch.fft.rfft(x, n=n))[: len(x)]


def _padded_in_front(K, x):
    n = len(K) + len(x) - 1
    K, x = F.pad(K, (n - len(K), 0)), F.pad(x, (n - len(x), 0))
    return torch.fft.irfft(torch.fft.rfft(K) * torch.fft.rfft(x), n=n)


def _input_padded_in_front(K, x):
    n = len(K) + len(x) - 1
    front = F.pad(x, (n - len(x), 0))
    return torch.fft.irfft(torch.fft.rfft(K, n=n) * torch.fft.rfft(front), n=n)[: len(x)]


def _correlated(K, x):
    n = len(K) + len(x) - 1
    spectrum = torch.fft.rfft(K, n=n).conj() * torch.fft.rfft(x, n=n)
    return torch.fft.irfft(spectrum, n=n)[: len(x)]


def _power_of_two(n):
    return 1 << (n - 1).bit_length()


def _kernels_of_other_lengths(draw: Draw):
    lengths = [(1, 1), (1, 4), (5, 1), (3, 7), (7, 3), (6, 6), (4, 13), (13, 4), (8, 8), (20, 17)]
    lengths += [(6, 6), (600, 500), (2500, 2500), (3, 10)]
    drawn = [(_sizes(draw, J, 0.3, 2), _sizes(draw, L, 0.3, 2)) for J, L in lengths]
    drawn.append((strided(drawn[3][0]), strided(drawn[3][1])))
    with_zeros = [
        (double(0, 0.25, 0.1875), double(0, 4, 8)),
        (double(1, 2), double(1, 0, 0, 0)),
        (double(1e-9), double(1, 2)),
    ]
    return [(double(0.5, 0.25, 0.125), double(4, 0, 8)), *drawn, *with_zeros]


CONVOLVE_FFT = Exercise(
    title="By a Fourier transform",
    difficulty=2,
    hints=(
        "How many coefficients has the product of a polynomial with J and one with L "
        "coefficients? The transform needs at least as many points.",
        "`torch.fft.rfft(x, n=n)` appends the zeros for you. Tell `torch.fft.irfft` the same n, "
        "since an odd n cannot be guessed from the spectrum, and keep the first L outputs.",
    ),
    specification=_convolve_fft,
    alternatives=(
        _convolve_fft_with_a_power_of_two,
        _convolve_fft_of_a_cut_kernel,
        _convolve_without_fft,
    ),
    arguments=("K", "x"),
    cases=_kernels_of_other_lengths,
    mistakes={
        "without zeros behind it the end of the sequence leaks into its beginning: n = L is too "
        "short, L + J − 1 points are needed": lambda K, x: _circle(K, x, len(x)),
        "n = max(L, J) is still too short: L + J − 1 points are needed": (
            lambda K, x: _circle(K, x, max(len(K), len(x)))
        ),
        "the power of two below L + J − 1 is too short: round up, not down": (
            lambda K, x: _circle(K, x, 2 ** int(math.log2(len(K) + len(x) - 1)))
        ),
        "the next power of two after max(L, J) is sometimes too short: take one that is at least "
        "L + J − 1": lambda K, x: _circle(K, x, _power_of_two(max(len(K), len(x)))),
        "n = L + J − 2 is one point too short: the last coefficient lands on the first output": (
            lambda K, x: _circle(K, x, max(1, len(K) + len(x) - 2))
        ),
        "n = 2L is enough for a kernel of up to L + 1 samples; here J may be larger": (
            lambda K, x: _circle(K, x, 2 * len(x))
        ),
        "n = 2J is enough for an input of up to J + 1 samples; here L may be larger": (
            lambda K, x: _circle(K, x, 2 * len(K))
        ),
        "an odd n cannot be guessed from the spectrum: irfft must be told it, n=n": _length_untold,
        "the values are right, but complex: take the real part, or rfft and irfft": _complex,
        "this is the whole product of L + J − 1 numbers; the outputs are the first L of them": (
            lambda K, x: np.convolve(K.numpy(), x.numpy())
        ),
        "this is cut from the middle, as mode='same' does; the outputs asked are the first L": (
            lambda K, x: np.convolve(K.numpy(), x.numpy(), mode="same"),
            lambda K, x: np.convolve(K.numpy(), x.numpy())[(len(K) - 1) // 2 :][: len(x)],
        ),
        "this is cut from the end; the outputs asked are the first L": (
            lambda K, x: np.convolve(K.numpy(), x.numpy())[-len(x) :]
        ),
        "one output for every input: this keeps J of them instead of L": (
            lambda K, x: np.convolve(K.numpy(), x.numpy())[: len(K)]
        ),
        "the zeros belong behind the numbers: in front of them they delay the output": (
            _padded_in_front,
            lambda K, x: _padded_in_front(K, x)[: len(x)],
            _input_padded_in_front,
        ),
        "one of the two runs backwards in time: a conjugate or a flip too many": (
            _correlated,
            lambda K, x: _correlated(x, K)[: len(x)],
        ),
        "abs loses the sign: the way back ends with the real part": (
            lambda K, x: _convolve_fft(K, x).abs()
        ),
        "this is n times too large: the way back divides by n": (
            lambda K, x: (len(K) + len(x) - 1) * _convolve_fft(K, x)
        ),
    },
)


# 03.4 — which outputs a circular transform gets wrong


def _contaminated(L, J, n):
    return list(range(max(0, L + J - 1 - n)))


def _contaminated_by_landing(L, J, n):
    return [j - n for j in range(L + J - 1) if j >= n]


def _contaminated_by_trying(L, J, n):
    random = np.random.default_rng(0)
    K, x = 1 + random.random(J), 1 + random.random(L)
    circular = np.fft.irfft(np.fft.rfft(K, n) * np.fft.rfft(x, n), n)[:L]
    return np.flatnonzero(abs(circular - np.convolve(K, x)[:L]) > 1e-6)


def _positions(function, case):
    """How many positions an answer lists, and which, in order, whatever holds them."""
    answer = function(*case)
    if answer is None:
        given = "L = {}, J = {}, n = {}".format(*case)
        raise ValueError(f"your function returned None for {given}; [] if no output is wrong")
    if isinstance(answer, str | dict) or hasattr(answer, "__next__"):
        raise TypeError(f"expected a list of positions, got {type(answer).__name__}")
    found = np.asarray(sorted(answer) if isinstance(answer, set | frozenset) else answer)
    if found.dtype.kind not in "iufb":
        raise TypeError("expected a list of whole numbers")
    if found.ndim == 0:  # a number instead of a list: known mistakes answer with one
        return Observed(number=float(found))
    if found.ndim > 1:
        raise ValueError(
            f"expected a flat list, got the shape {found.shape}: np.where(…)[0], or .flatten()"
        )
    return Observed(count=len(found), positions=np.sort(found.astype(float)))


def _lengths(draw: Draw):
    L, J = draw.integer(20, 30), draw.integer(8, 15)
    return [
        (3, 3, 3),
        (3, 3, 4),
        (3, 3, 5),
        (8, 5, 8),
        (5, 8, 9),
        (16, 16, 20),
        (16, 16, 32),
        (1, 1, 1),
        (1, 6, 6),
        (6, 1, 6),
        (100, 7, 128),
        (L, J, L + draw.integer(1, 5)),
        (J, L, L + draw.integer(1, 5)),
        (L, J, L + J - 2),
        (L, J, L + J - 1),
        (64, 64, 64),
        (7, 200, 201),
        (4, 12, 13),
    ]


CONTAMINATED = Exercise(
    title="Which outputs are wrong?",
    difficulty=2,
    hints=(
        "The product has coefficients 0 … L + J − 2. Which of them have an index of n or more, and "
        "where do these land?",
        "They land on j − n. The smallest lands on 0, the largest on L + J − 2 − n. If that is "
        "negative, no output is wrong.",
    ),
    specification=_contaminated,
    alternatives=(_contaminated_by_landing, _contaminated_by_trying),
    arguments=("L", "J", "n"),
    cases=_lengths,
    observe=_positions,
    mistakes={
        "one too many: the last coefficient has index L + J − 2, not L + J − 1": (
            lambda L, J, n: list(range(max(0, L + J - n)))
        ),
        "one is missing: the last coefficient, L + J − 2, lands on L + J − 2 − n, and that output "
        "is wrong too": lambda L, J, n: list(range(max(0, L + J - 2 - n))),
        "these are the coefficients that do not fit; asked is where they land, j − n": (
            lambda L, J, n: list(range(n, L + J - 1))
        ),
        "the wrong outputs are at the beginning, not at the end: what does not fit lands on 0, "
        "1, …": (
            lambda L, J, n: list(range(min(L, n - J + 1), L)),
            lambda L, J, n: list(range(L - max(0, L + J - 1 - n), L)),
        ),
        "this counts the first J − 1 outputs, which is right for n = L only": (
            lambda L, J, n: list(range(J - 1)),
            lambda L, J, n: list(range(min(L, J - 1))),
        ),
        "this takes the kernel to be as long as the input; its length is J": (
            lambda L, J, n: list(range(max(0, 2 * L - 1 - n))),
            lambda L, J, n: list(range(max(0, 2 * L - 1 - n)))[:L],
        ),
        "this is all or nothing; only as many outputs are wrong as coefficients do not fit": (
            lambda L, J, n: list(range(L)) if n < L + J - 1 else []
        ),
        "n − L is the number of zeros behind the input; asked are the outputs that they do not "
        "save": lambda L, J, n: list(range(n - L)),
        "n at least as large as L and J is not enough: L + J − 1 points are needed": (
            lambda L, J, n: []
        ),
        "this counts from 1; the first output has position 0": lambda L, J, n: list(
            range(1, max(0, L + J - 1 - n) + 1)
        ),
        "this is how many outputs are wrong; asked is the list of their positions": (
            lambda L, J, n: max(0, L + J - 1 - n)
        ),
        "this is the position of the last wrong output; asked is the list of all": (
            lambda L, J, n: L + J - 2 - n
        ),
        "this is a mask, one True or False for every output; asked are the positions": (
            lambda L, J, n: [t <= L + J - 2 - n for t in range(L)]
        ),
        "these are the outputs that are right; asked are the wrong ones": lambda L, J, n: list(
            range(max(0, L + J - 1 - n), L)
        ),
    },
)


# 03.5 — go on from a state


def _continue(h, A_bar, B_bar, C, x):
    ys = []
    for x_t in x:
        h = A_bar * h + B_bar * x_t
        ys.append((C * h).sum())
    return torch.stack(ys), h


def _continue_by_convolution(h, A_bar, B_bar, C, x):
    """The answer to the new inputs from rest, plus what is left of the old state."""
    left = A_bar ** torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None]  # (L, N)
    y = _convolve(_kernel(A_bar, B_bar, C, len(x)), x) + (C * left * h).sum(1)
    weights = A_bar ** torch.arange(len(x) - 1, -1, -1, dtype=x.dtype)[:, None]
    return y, left[-1] * h + (weights * B_bar * x[:, None]).sum(0)


def _continue_in_numpy(h, A_bar, B_bar, C, x):
    h, ys = h.numpy().copy(), np.zeros(len(x), x.numpy().dtype)
    for t, x_t in enumerate(x.tolist()):
        h *= A_bar.numpy()
        h += B_bar.numpy() * x_t
        ys[t] = C.numpy() @ h
    return ys, h


def _steps(step, h, C, x):
    """Run h, y ← step(h, x, t) and collect the outputs."""
    ys = []
    for t, x_t in enumerate(x):
        h, y = step(h, x_t, t)
        ys.append(y)
    return torch.stack(ys), h


def _reads_before_the_step(h, A_bar, B_bar, C, x):
    return _steps(lambda h, x_t, t: (A_bar * h + B_bar * x_t, (C * h).sum()), h, C, x)


def _forgets_to_decay_at_the_cut(h, A_bar, B_bar, C, x):
    def step(h, x_t, t):
        h = (A_bar * h if t else h) + B_bar * x_t
        return h, (C * h).sum()

    return _steps(step, h, C, x)


def _old_state_in_first_output_only(h, A_bar, B_bar, C, x):
    y, last = _continue(torch.zeros_like(h), A_bar, B_bar, C, x)
    y[0] += (C * A_bar * h).sum()
    return y, last


def _old_output_added_to_every_output(h, A_bar, B_bar, C, x):
    y, last = _continue(torch.zeros_like(h), A_bar, B_bar, C, x)
    return y + (C * h).sum(), last


def _input_decays_too(h, A_bar, B_bar, C, x):
    def step(h, x_t, t):
        h = A_bar * (h + B_bar * x_t)
        return h, (C * h).sum()

    return _steps(step, h, C, x)


def _without_sum(h, A_bar, B_bar, C, x):
    def step(h, x_t, t):
        h = A_bar * h + B_bar * x_t
        return h, C * h

    return _steps(step, h, C, x)


def _without_C(h, A_bar, B_bar, C, x):
    return _continue(h, A_bar, B_bar, torch.ones_like(C), x)


def _state_through_B(h, A_bar, B_bar, C, x):
    """The old state treated as if it were one more input."""
    y, last = _continue(torch.zeros_like(h), A_bar, B_bar, C, x)
    left = A_bar ** torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None]
    return y + (C * left * B_bar * h).sum(1), last + left[-1] * B_bar * h


def _every_input_from_the_cut(h, A_bar, B_bar, C, x):
    start = h
    return _steps(
        lambda h, x_t, t: (A_bar * start + B_bar * x_t, (C * (A_bar * start + B_bar * x_t)).sum()),
        h,
        C,
        x,
    )


def _states_and_inputs(draw: Draw):
    def system(N, L):
        decay = _sizes(draw, N, 0.3, 0.9)
        rest = [_sizes(draw, N, 0.5, 2) for _ in range(2)]
        return (_sizes(draw, N, 0.5, 2), decay, *rest, _sizes(draw, L, 0.5, 2))

    drawn = system(3, 6)
    return [
        (double(1), double(0.5), double(0.5), double(1), double(8)),
        (double(1, 1), double(0.5, 0.25), double(0.5, 1), double(2, -1), double(8, 0, 4)),
        drawn,
        tuple(map(strided, drawn)),
        system(4, 1),
        system(2, 5),
        system(1, 7),
        (torch.zeros(2).double(), *system(2, 3)[1:]),
        (double(1, 2), double(0, 0.5), double(1, 1), double(1, 2), double(1, 2, 3)),
        tuple(part.float() for part in system(2, 3)),
        (double(-1, 0), *system(2, 40)[1:]),
        (double(1, 2), double(0, 0.5), double(1, 1), double(1, 2), torch.ones(40).double()),
    ]


CONTINUE = Exercise(
    title="Go on from a state",
    difficulty=1,
    hints=(
        "The loop of the lesson, only that it does not start from 0. The old state decays before "
        "the first new input is added.",
        "Collect `(C * h).sum()` in a list after each step, and return `torch.stack` of it "
        "together with the last h.",
    ),
    specification=_continue,
    alternatives=(_continue_by_convolution, _continue_in_numpy),
    arguments=("h", "A_bar", "B_bar", "C", "x"),
    cases=_states_and_inputs,
    mistakes={
        "this starts from 0: what came before the cut is forgotten": (
            lambda h, *rest: _continue(torch.zeros_like(h), *rest)
        ),
        "the old state must decay before the first new input is added to it": (
            _forgets_to_decay_at_the_cut
        ),
        "the output is read before the step: y_t = C h_t uses the input x_t": (
            _reads_before_the_step
        ),
        "the old state is heard in the first output only; it fades from step to step": (
            _old_state_in_first_output_only
        ),
        "the old output is added to every new one; the old state fades from step to step": (
            _old_output_added_to_every_output
        ),
        "the new input decays too: Ā multiplies the old state only": _input_decays_too,
        "the sum over the N states is missing: y_t is one number": _without_sum,
        "C is missing: this adds up the states as they are": _without_C,
        "the state has passed B̄ already when its inputs came in: do not multiply it again": (
            _state_through_B
        ),
        "every step starts from the state at the cut here: carry the new state on": (
            _every_input_from_the_cut
        ),
        "the second answer is the state at the cut again; asked is the state after the last "
        "input": lambda h, *rest: (_continue(h, *rest)[0], h),
        "the second answer is the last output; asked is the state after it, of shape (N,)": (
            lambda *case: (_continue(*case)[0], _continue(*case)[0][-1])
        ),
        "these are the states after every input; asked is the last one": (
            lambda h, A_bar, B_bar, C, x: (
                _continue(h, A_bar, B_bar, C, x)[0],
                torch.stack([_continue(h, A_bar, B_bar, C, x[: t + 1])[1] for t in range(len(x))]),
            )
        ),
        "the state comes first here: return (y, h)": lambda *case: _continue(*case)[::-1],
        "the last state is missing: return (y, h), so that the next piece can go on": (
            lambda *case: _continue(*case)[0]
        ),
    },
)


# 03.6 — is the black box linear?


def _recurrence(x: Tensor, decay, weight) -> Tensor:
    """h_t = decay_t h_{t−1} + weight_t x_t from h_0 = 0: all states of one scalar system."""
    h, hs = torch.zeros((), dtype=torch.float64), []
    for x_t, decay_t, weight_t in zip(x, decay, weight, strict=True):
        h = decay_t * h + weight_t * x_t
        hs.append(h)
    return torch.stack(hs)


def _named(name: str, system):
    """A black box with a name for messages."""
    system.__name__ = name
    return system


def _softplus_box(name: str, drive, A: float):
    """Δ = softplus(drive(x)), the selective scan of one channel and one state."""

    def system(x):
        delta = F.softplus(drive(x))
        return _recurrence(x, torch.exp(A * delta), delta)

    return _named(name, system)


def _constant_box(name: str, decay: float, weight: float, D: float = 0.0):
    def system(x):
        ones = torch.ones_like(x)
        return _recurrence(x, decay * ones, weight * ones) + D * x

    return _named(name, system)


def _two_state_box(name: str):
    def system(x):
        ones = torch.ones_like(x)
        return 2 * _recurrence(x, ones / 2, ones / 2) - _recurrence(x, ones / 4, ones)

    return _named(name, system)


def _position_box(name: str):
    def system(x):
        delta = 0.2 + torch.arange(len(x), dtype=torch.float64) % 3
        return _recurrence(x, torch.exp(-delta), delta)

    return _named(name, system)


def _gain_box(name: str):
    return _named(name, lambda x: (1 + torch.arange(len(x)).double() % 2) * x)


def _forgetting_box(name: str, w: float):
    """Only the decay listens to the input."""

    def system(x):
        return _recurrence(x, torch.sigmoid(1 - w * x), torch.full_like(x, 0.7))

    return _named(name, system)


def _quieter(x):
    return 0.3 - 1.1 * x.abs()


def _weighing_box(name: str, w: float):
    """Only the weight of the input listens to it."""

    def system(x):
        return _recurrence(x, torch.full_like(x, 0.8), torch.sigmoid(w * x))

    return _named(name, system)


def _exact_boxes():
    """Linear boxes whose answers are never rounded."""
    return [
        _gain_box("box_with_gain_by_position"),
        _named("box_that_passes_on", lambda x: x.clone()),
        _named("box_times_minus_four", lambda x: -4 * x),
        _named("box_that_answers_a_step_later", lambda x: torch.cat([0 * x[:1], x[:-1]])),
    ]


def _boxes(draw: Draw):
    w, b = draw.number(0.7, 1.5), draw.number(-0.5, 0.5)
    decay = draw.number(0.5, 0.9)
    loud = _softplus_box("selective", lambda x: w * x + b, A=-1.0)
    boxes = [
        _constant_box("box_with_constant_step", 0.5, 0.5),
        _constant_box("another_box_with_constant_step", decay, draw.number(0.5, 2)),
        _constant_box("box_with_skip_connection", 0.6, 0.3, D=-1.7),
        _constant_box("box_with_negative_kernel", -0.8, -0.9),
        _two_state_box("box_with_two_states"),
        _constant_box("box_without_memory", 0.0, 1.7),
        _position_box("box_with_step_by_position"),
        _softplus_box("selective_box", lambda x: w * x + b, A=-1.0),
        _softplus_box("selective_box_with_negative_weight", lambda x: b - w * x, A=-0.7),
        _softplus_box("selective_box_that_hears_the_size", lambda x: w * x.abs() - 1, A=-1.0),
        _forgetting_box("box_that_forgets_selectively", w),
        _forgetting_box("box_that_forgets_selectively_with_negative_weight", -w),
        _weighing_box("box_that_weighs_selectively", w),
        _softplus_box("box_that_hears_the_size_with_negative_weight", _quieter, A=-1.0),
        _constant_box("box_with_round_numbers", 0.5, 0.25),
        _softplus_box("box_that_hears_little", lambda x: 0.002 * x, A=-1.0),
        _named("quiet_box", lambda x: 1e-4 * loud(x)),
        *_exact_boxes(),
    ]
    return [(box,) for box in boxes]


LIMIT = 3
TOO_MANY_CALLS = "the box may be asked three times only"


class TooManyCalls(Exception):
    """The fourth question to a box."""


ROUNDING = (
    "this calls linear boxes nonlinear because of rounding: ask in double precision (`.double()`) "
    "and compare with a tolerance"
)


def _rounding(observed: list, expected: list) -> str:
    """ROUNDING if nothing but linear boxes that do round is misjudged."""
    pairs = list(zip(observed, expected, strict=True))
    wrong = [i for i, (found, right) in enumerate(pairs) if found["linear"] != right["linear"]]
    first_exact = len(pairs) - len(_exact_boxes())
    rounding = all(pairs[i][1]["linear"] and i < first_exact for i in wrong)
    return ROUNDING if rounding else ""


def _questioned(function, case):
    """The answer as True or False; the box answers three times and no more."""
    (system,) = case
    calls = 0

    def box(x):
        nonlocal calls
        calls += 1
        if calls > LIMIT:
            raise TooManyCalls(TOO_MANY_CALLS)
        x = torch.as_tensor(x).to(torch.float64, copy=True)
        if x.ndim != 1 or len(x) == 0:
            raise ValueError(f"the box takes a vector of shape (L,), got {tuple(x.shape)}")
        return system(x)

    answer = function(box)
    if answer is None:
        raise ValueError("your function returned None: is a return missing?")
    if isinstance(answer, np.ndarray | Tensor):
        if answer.size != 1 if isinstance(answer, np.ndarray) else answer.numel() != 1:
            raise TypeError("this is one truth value per output; asked is one for all: .all()")
    elif not isinstance(answer, bool | np.bool_ | int):
        raise TypeError(f"return True or False, got {type(answer).__name__}")
    return Observed(linear=bool(answer))


PROBE = double(1.0, -0.5, 2.0, 0.3, -1.2, 0.7)
OTHER = double(0.4, 1.1, -0.6, 1.7, 0.9, -0.8)


def _is_linear(system):
    return torch.allclose(system(PROBE + OTHER), system(PROBE) + system(OTHER))


def _doubles(system):
    """Two calls."""
    x = torch.arange(1.0, 6.0)
    return bool(((system(2 * x) - 2 * system(x)).abs() < 1e-6).all())


def _doubles_with_random_input(system):
    x = np.random.default_rng(1).normal(size=20)
    return np.allclose(system(x) * -3, system(-3 * x))


def _shifts(system, x=PROBE):
    zero = torch.zeros(1, dtype=x.dtype)
    shifted = torch.cat([zero, x[:-1]])
    return torch.allclose(system(shifted), torch.cat([zero, system(x)[:-1]]))


def _doubles_and_shifts(system):
    """At most three calls."""
    y, zero = system(PROBE), torch.zeros(1, dtype=torch.float64)
    doubled = torch.allclose(system(2 * PROBE), 2 * y)
    shifted = torch.cat([zero, PROBE[:-1]])
    return doubled and torch.allclose(system(shifted), torch.cat([zero, y[:-1]]))


def _impulse(length=6):
    return F.pad(torch.ones(1, dtype=torch.float64), (0, length - 1))


def _many_calls(system):
    inputs = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6) + 0.1
    return all([torch.allclose(system(2 * x), 2 * system(x)) for x in inputs])


def _straight_line(system):
    y = system(torch.arange(1.0, 7.0, dtype=torch.float64))
    return torch.allclose(y.diff(), y.diff()[:1].expand(5))


def _multiple_of_the_input(system):
    y = system(PROBE)
    return torch.allclose(y, y[0] / PROBE[0] * PROBE)


LINEAR = Exercise(
    title="Three calls to a black box",
    difficulty=3,
    hints=(
        "Choose two different inputs of a few samples each, not zeros. What must the answer to "
        "their sum be if the box is linear? Doubling one input is a test as well.",
        "`torch.allclose(system(x + z), system(x) + system(z))` with x and z such as "
        "`torch.randn(8).double()`. Several samples that differ from 0 are needed: a box may "
        "listen to its input only when it decides how much to forget, and at the first sample "
        "there is nothing to forget.",
    ),
    specification=_is_linear,
    alternatives=(_doubles, _doubles_with_random_input),
    arguments=("system",),
    cases=_boxes,
    observe=_questioned,
    diagnose=_rounding,
    mistakes={
        "this calls every box linear: ask it two different inputs, not zeros or tiny numbers, and "
        "compare the answers entry by entry with what linearity demands": (
            lambda system: torch.allclose(system(PROBE), system(PROBE)),
            lambda system: torch.allclose(system(0 * PROBE), 2 * system(0 * PROBE)),
            lambda system: True,
        ),
        "this calls no box linear, not even y = −4x: twice the input must give twice the output, "
        "up to rounding, and both answers must belong to the same x": (
            lambda system: torch.allclose(system(2 * PROBE), system(PROBE)),
            lambda system: torch.allclose(system(PROBE + OTHER), system(PROBE)),
            lambda system: False,
        ),
        "this tests whether a shifted input gives a shifted output. That is time invariance, and a "
        "step by position fails it though it is linear, while a selective box passes": (
            _shifts,
            lambda system: _shifts(system, 2 * PROBE),
        ),
        "this asks for linearity and time invariance: a step that depends on the position is still "
        "linear": _doubles_and_shifts,
        "this turns the sign only: a step that depends on the size of the input passes, because x "
        "and −x have the same size": lambda system: torch.allclose(system(-PROBE), -system(PROBE)),
        "the deviation may be negative: take .abs() before you compare it with a tolerance": (
            lambda system: (system(PROBE) + system(OTHER) - system(PROBE + OTHER)).max() < 1e-9,
            lambda system: (system(PROBE + OTHER) - system(PROBE) - system(OTHER)).max() < 1e-9,
        ),
        "single 1s that do not overlap never add up to another size: a box whose weight listens "
        "answers them like a linear one": (
            lambda system: torch.allclose(
                system(double(1, 0, 0, 1)),
                system(double(1, 0, 0, 0)) + system(double(0, 0, 0, 1)),
            ),
            lambda system: torch.allclose(
                system(double(1, 1)), system(double(1, 0)) + system(double(0, 1))
            ),
        ),
        "a single 1, a single sample, or a look at the first output alone (also .any() for "
        ".all()), finds an empty state: whether the box forgets selectively shows only when there "
        "is something to forget (and huge inputs shut a gate altogether)": (
            lambda system: torch.isclose(
                system(PROBE + OTHER), system(PROBE) + system(OTHER)
            ).any(),
            lambda system: torch.allclose(system(2 * _impulse()), 2 * system(_impulse())),
            lambda system: torch.allclose(system(2 * _impulse(1)), 2 * system(_impulse(1))),
            lambda system: torch.allclose(system(4 * PROBE[:1]), 4 * system(PROBE[:1])),
        ),
        "the answers are turned round: True means that the box is linear": (
            lambda system: not _is_linear(system)
        ),
        TOO_MANY_CALLS: _many_calls,
        "linear does not mean that a straight line comes out, or that pieces can be joined: it "
        "means f(x + z) = f(x) + f(z)": (
            _straight_line,
            lambda system: torch.allclose(
                system(torch.cat([PROBE, OTHER])), torch.cat([system(PROBE), system(OTHER)])
            ),
        ),
        "this tests whether the output is a multiple of the input: a box that remembers can be "
        "linear all the same": _multiple_of_the_input,
        "numbers on a computer are rounded: compare with torch.allclose, not with ==": (
            lambda system: torch.equal(system(PROBE + OTHER), system(PROBE) + system(OTHER)),
            lambda system: torch.equal(system(PROBE / 3), system(PROBE) / 3),
        ),
    },
)


EXERCISES = {
    "03.1": KERNEL,
    "03.2": CONVOLVE,
    "03.3": CONVOLVE_FFT,
    "03.4": CONTAMINATED,
    "03.5": CONTINUE,
    "03.6": LINEAR,
}

"""The exercises of lesson 07, from the loop to the kernel."""

import math

import numpy as np
import torch

from minivmamba.classroom.exercise import Draw, Exercise, Observed

# 07.1 — what a scan needs at least


def _at_least(channels, L, N, rates):
    pairs = channels * L * N
    numbers = 3 * channels * L + 2 * N * L  # u, Δ, y; B, C
    amounts = (9 * pairs, pairs, 4 * numbers)
    return max(amount / rate for amount, rate in zip(amounts, rates, strict=True))


def _at_least_per_step(channels, L, N, rates):
    multiply_adds, exponentials, bandwidth = rates
    slowest = channels * N / min(multiply_adds / 9, exponentials)
    return L * max(slowest, (12 * channels + 8 * N) / bandwidth)


def _at_least_with_numpy(channels, L, N, rates):
    work = np.array([9.0 * N * channels, N * channels, 12 * channels + 8 * N]) * L
    return (work / np.asarray(rates)).max()


def _bound(
    pick=max,
    operations=9,
    numbers=lambda channels, L, N: 3 * channels * L + 2 * N * L,
    exponentials=lambda channels, L, N: channels * L * N,
    size=4,
    divide=lambda amount, rate: amount / rate,
):
    """The bound with something counted otherwise."""

    def at_least(channels, L, N, rates):
        amounts = (
            operations * channels * L * N,
            exponentials(channels, L, N),
            size * numbers(channels, L, N),
        )
        return pick([divide(a, r) for a, r in zip(amounts, rates, strict=True)])

    return at_least


def _machines(draw: Draw):
    def rates(multiply_adds, exponentials, bandwidth):
        return tuple(
            draw.number(0.9, 1.1) * rate for rate in (multiply_adds, exponentials, bandwidth)
        )

    return [
        (256, 784, 16, (245e9, 31.6e9, 40e9)),
        (768, 3136, 16, rates(245e9, 31.6e9, 40e9)),
        (96, 50, 1, rates(245e9, 31.6e9, 40e9)),  # bytes
        (2, 100, 64, rates(400e9, 60e9, 5e9)),  # bytes, most of them of B and C
        (192, 784, 16, rates(400e9, 9e9, 90e9)),  # exponentials, as without a polynomial
        (8, 10, 1, (1e12, 1e9, 1e12)),  # the exponentials again
        (1, 1, 1, (1.0, 1.0, 1.0)),
        (3, 5, 2, (10.0, 1e9, 1e9)),
    ]


AT_LEAST = Exercise(
    title="At least so many seconds",
    difficulty=2,
    hints=(
        "Three amounts: multiply-adds, exponentials, bytes. Divide each by its rate. The scan can "
        "be no faster than any of the three, so the largest is the bound, not the sum.",
        "`pairs = channels * L * N`; 9 multiply-adds and 1 exponential for each of them. u, Δ and "
        "y have channels · L numbers each, B and C have N · L, and a number has 4 bytes. Return "
        "the `max` of the three quotients.",
    ),
    specification=_at_least,
    alternatives=(_at_least_per_step, _at_least_with_numpy),
    arguments=("channels", "L", "N", "rates"),
    cases=_machines,
    mistakes={
        "this adds the three times; they can overlap, so a floor takes the largest alone": _bound(
            sum
        ),
        "this is the quickest of the three; the work is done when the slowest is done": _bound(min),
        "these are numbers, not bytes: a number in float32 has 4 of them": _bound(size=1),
        "these are the bytes of float64; the kernel works in float32, 4 bytes a number": _bound(
            size=8
        ),
        "B and C are missing: they come from memory as well": _bound(
            numbers=lambda channels, L, N: 3 * channels * L
        ),
        "y is missing: it goes to memory once": _bound(
            numbers=lambda channels, L, N: 2 * channels * L + 2 * N * L
        ),
        "the channels of a group share B and C; this loads them once for every channel": _bound(
            numbers=lambda channels, L, N: 3 * channels * L + 2 * channels * N * L
        ),
        "the states stay in the cache; this sends them to memory at every step": (
            _bound(numbers=lambda channels, L, N: 3 * channels * L + 2 * N * L + channels * L * N),
            _bound(
                numbers=lambda channels, L, N: 3 * channels * L + 2 * N * L + 2 * channels * L * N
            ),
        ),
        "every state has its own decay, so there are N exponentials a channel and step": _bound(
            exponentials=lambda channels, L, N: channels * L
        ),
        "the exponentials are missing: where they are slow, they decide": _bound(
            exponentials=lambda channels, L, N: 0
        ),
        "a state and step takes 9 multiply-adds; this counts one": _bound(operations=1),
        "a state and step takes 9 multiply-adds; this counts 18, each of them twice": _bound(
            operations=18
        ),
        "a rate is work per second: seconds are the work divided by it": _bound(
            divide=lambda amount, rate: amount * rate
        ),
        "this is rate over work, how often it could be done in a second": (
            _bound(divide=lambda amount, rate: rate / max(amount, 1)),
            _bound(min, divide=lambda amount, rate: rate / max(amount, 1)),
        ),
    },
)


# 07.2 — two to the power of x

POLYNOMIAL = (1.0, 0.693147, 0.24022242, 0.05550733, 0.0096715, 0.00132765)


def _polynomial(r, coefficients=POLYNOMIAL):
    value = np.zeros_like(r)
    for p in reversed(coefficients):
        value = value * r + np.float32(p)
    return value


def _into_bits(p, k, shift=23):
    return (p.view(np.int32) + (k.astype(np.int32) << shift)).view(np.float32)


def _two_to(x):
    x = np.maximum(x, np.float32(-126))
    k = np.rint(x)
    return _into_bits(_polynomial(x - k), k)


def _two_to_with_ldexp(x):
    x = np.maximum(x.astype(np.float64), -126)
    k = np.rint(x)
    return np.ldexp(np.exp((x - k) * math.log(2)), k.astype(int)).astype(np.float32)


def _two_to_by_numpy(x):
    return np.exp2(np.clip(x, -126, None))


def _two_to_with_torch(x):
    x = torch.from_numpy(x.copy()).clamp(min=-126)
    k = torch.round(x)
    p = torch.from_numpy(_polynomial((x - k).numpy()))
    return (p.view(torch.int32) + (k.int() << 23)).view(torch.float32)


def _two_to_of(
    whole=np.rint,
    lowest=-126.0,
    coefficients=POLYNOMIAL,
    finish=_into_bits,
    rest=lambda x, k: x - k,
):
    def two_to(x):
        x = np.maximum(x, np.float32(lowest)) if lowest is not None else x
        k = whole(x)
        return finish(_polynomial(rest(x, k).astype(np.float32), coefficients), k)

    return two_to


def _exponents(draw: Draw):
    def spread(n, low, high):
        return draw.uniform(n, low=low, high=high, dtype=torch.float32).numpy()

    return [
        (np.array([-2.5, 0.0, 1.0, 3.25, -7.75], np.float32),),
        (np.array([0.5], np.float32),),
        (spread(200, -30.0, 0.0),),
        (spread(50, -125.0, 80.0),),
        (spread(7, 0.0, 4.0)[::2],),
        (spread(6, -5.0, 5.0).reshape(2, 3),),
        (np.array([-126.0, -127.0, -140.5, -300.0, -1e6], np.float32),),
    ]


def _beside_the_truth(function, case):
    """The answer as a multiple of what it should be, so that 2^−100 counts as much as 2^10."""
    (x,) = case
    answer = function(x)
    if answer is None:
        return None
    answer = answer.detach().numpy() if isinstance(answer, torch.Tensor) else np.asarray(answer)
    truth = np.exp2(np.maximum(x.astype(np.float64), -126))
    if answer.shape != truth.shape:
        return Observed({"shape": torch.tensor(answer.shape)})
    return Observed({"answer / 2^x": torch.from_numpy(answer.astype(np.float64) / truth)})


TWO_TO = Exercise(
    title="Two to the power of x",
    difficulty=3,
    hints=(
        "Clamp first. Then k = np.rint(x) is the nearest whole number and r = x − k lies between "
        "−½ and ½. The polynomial makes 2^r; what is left is to multiply it by 2^k.",
        "Evaluate from the last coefficient: p = P5, then p = p · r + P4 and so on down to 1. Then "
        "`bits = p.view(np.int32) + (k.astype(np.int32) << 23)`, and `bits.view(np.float32)`. Keep "
        "p in float32: `np.float32(…)` around the coefficients.",
    ),
    specification=_two_to,
    alternatives=(_two_to_with_ldexp, _two_to_by_numpy, _two_to_with_torch),
    arguments=("x",),
    cases=_exponents,
    observe=_beside_the_truth,
    mistakes={
        "np.floor leaves r between 0 and 1, and the polynomial is good for |r| ≤ ½: np.rint": (
            _two_to_of(np.floor)
        ),
        "np.ceil leaves r between −1 and 0, and the polynomial is good for |r| ≤ ½: np.rint": (
            _two_to_of(np.ceil)
        ),
        "cutting the decimals off leaves r between −1 and 1; the nearest whole number is np.rint": (
            _two_to_of(np.trunc)
        ),
        "below −126 the exponent bits run out and the result is garbage: clamp x first": (
            _two_to_of(lowest=None)
        ),
        "below −126 the value at −126 is asked for: clamp x before anything else": (
            lambda x: np.where(x < -126, np.float32(0), _two_to(x)),
            _two_to_of(lowest=-127.0),
            lambda x: np.exp2(x),
            lambda x: np.ldexp(_polynomial(x - np.rint(x)), np.rint(x).astype(int)),
        ),
        "clamped at −128: the last exponent whose bits are in order is −126": _two_to_of(
            lowest=-128.0
        ),
        "clamped above −126, which takes values away that float32 can hold": (
            _two_to_of(lowest=-125.0),
            _two_to_of(lowest=-100.0),
        ),
        "clamped at 0, but almost every exponent of a scan is negative: −126": _two_to_of(
            lowest=0.0
        ),
        "r is k − x here; 2^x = 2^k · 2^r needs r = x − k": _two_to_of(rest=lambda x, k: k - x),
        "this is 2^r alone: the factor 2^k is missing": _two_to_of(finish=lambda p, k: p),
        "this is 2^k alone: the polynomial of r is missing": _two_to_of(coefficients=(1.0,)),
        "k belongs to the exponent bits, which start at bit 23; this adds it to the lowest bits": (
            _two_to_of(finish=lambda p, k: _into_bits(p, k, shift=0))
        ),
        "the exponent bits start at bit 23, this shifts to another place": (
            _two_to_of(finish=lambda p, k: _into_bits(p, k, shift=22)),
            _two_to_of(finish=lambda p, k: _into_bits(p, k, shift=24)),
        ),
        "these are the bits of the answer; .view(np.float32) reads them as a number": _two_to_of(
            finish=lambda p, k: _into_bits(p, k).view(np.int32)
        ),
        "this multiplies by k; the factor is 2^k": _two_to_of(finish=lambda p, k: p * k),
        "this adds 2^k; the factor multiplies": _two_to_of(finish=lambda p, k: p + np.exp2(k)),
        "these are the coefficients of e^r: those of 2^r begin with 1 and ln 2": _two_to_of(
            coefficients=tuple(1 / math.factorial(n) for n in range(6))
        ),
        "the coefficients run the wrong way: 1 stands alone, 0.00132765 belongs to r⁵": _two_to_of(
            coefficients=POLYNOMIAL[::-1]
        ),
        "the last coefficient is missing: the polynomial has degree 5": _two_to_of(
            coefficients=POLYNOMIAL[:-1]
        ),
        "this is e^x; asked for is 2^x": lambda x: np.exp(np.maximum(x, np.float32(-126))),
        "this is x², asked for is 2^x": lambda x: np.square(np.maximum(x, np.float32(-126))),
    },
)


# 07.3 — what a task carries


def _carries(task, groups, d, tile):
    tiles = math.ceil(d / tile)
    image, rest = divmod(task, groups * tiles)
    group, number = divmod(rest, tiles)
    return image, group, number * tile, min((number + 1) * tile, d)


def _carries_by_counting(task, groups, d, tile):
    image, group, start = 0, 0, 0
    for _ in range(task):
        start += tile
        if start >= d:
            start, group = 0, group + 1
        if group == groups:
            group, image = 0, image + 1
    return [image, group, start, d if start + tile > d else start + tile]


def _carries_in_one_table(task, groups, d, tile):
    starts = torch.arange(0, d, tile)
    image, group, number = np.unravel_index(task, (task + 1, groups, len(starts)))
    start = int(starts[number])
    return image, group, start, start + min(tile, d - start)


def _carried(
    count=lambda d, tile: -(-d // tile),
    stop=lambda start, d, tile: min(start + tile, d),
    begin=lambda number, tile: number * tile,
    swap=False,
    wrap=True,
    of_the_whole=False,
):
    def carries(task, groups, d, tile):
        tiles = count(d, tile)
        image, group = task // (groups * tiles), task // tiles
        group = group % groups if wrap else group
        start = begin(task % tiles, tile)
        if swap:
            image, group = task // tiles % 2, task // (2 * tiles)
        end = stop(start, d, tile)
        if of_the_whole:
            start, end = start + group * d, end + group * d
        return image, group, start, end

    return carries


def _channels_first(task, groups, d, tile):
    tiles = -(-d // tile)
    start = task // groups % tiles * tile
    return task // (groups * tiles), task % groups, start, min(start + tile, d)


def _tasks(draw: Draw):
    def some(groups, d, tile, images=2):
        tiles = -(-d // tile)
        return (draw.integer(0, images * groups * tiles - 1), groups, d, tile)

    return [
        (7, 4, 96, 64),
        (8, 4, 192, 64),
        (25, 4, 192, 64),
        (0, 1, 10, 64),
        (3, 1, 10, 64),
        (0, 1, 65, 64),  # one channel is left over
        (5, 3, 100, 32),
        (31, 4, 200, 64),
        (13, 2, 128, 64),
        some(4, 96, 64),
        some(3, 65, 16),
        some(2, 7, 1),
    ]


CARRIES = Exercise(
    title="What a task carries",
    difficulty=2,
    hints=(
        "A group has tiles = d / tile tiles, rounded up, and an image has groups · tiles tasks. "
        "Count as with hours, minutes and seconds: tiles change fastest, then groups, then images.",
        "With `tiles = -(-d // tile)`: the image is `task // (groups * tiles)`, the group `task // "
        "tiles % groups`, the tile `task % tiles`. It starts at its number times tile, and stops "
        "at `min(start + tile, d)`.",
    ),
    specification=_carries,
    alternatives=(_carries_by_counting, _carries_in_one_table),
    arguments=("task", "groups", "d", "tile"),
    cases=_tasks,
    mistakes={
        "d // tile rounds down, and the last, short tile gets no task: round up": _carried(
            lambda d, tile: max(d // tile, 1)
        ),
        "d // tile + 1 has a tile too many where d is a multiple of the tile: -(-d // tile)": (
            _carried(lambda d, tile: d // tile + 1)
        ),
        "the last tile is short: it must stop at d, or it writes into the next group": _carried(
            stop=lambda start, d, tile: start + tile
        ),
        "this gives the number of the tile; its first channel is that number times tile": _carried(
            begin=lambda number, tile: number
        ),
        "this gives how many channels there are; asked for is the channel after the last": (
            _carried(stop=lambda start, d, tile: min(tile, d - start))
        ),
        "this gives the last channel; as in Python's range, stop is one further": _carried(
            stop=lambda start, d, tile: min(start + tile, d) - 1
        ),
        "groups start again in every image: % groups is missing": _carried(wrap=False),
        "here groups change fastest; the tiles of a group should be neighbours": _channels_first,
        "image and group are swapped": lambda *a: (
            _carries(*a)[1],
            _carries(*a)[0],
            *_carries(*a)[2:],
        ),
        "channels are counted within their group; this counts them over all groups": _carried(
            of_the_whole=True
        ),
    },
)


# 07.4 — one state in 32


def _again(t, L, every):
    chunk = (t - 1) // every
    return -(-L // every), chunk, t - chunk * every


def _again_by_lists(t, L, every):
    kept = list(range(0, L, every))  # a state is named by the step after which it stands
    chunk = max(k for k, after in enumerate(kept) if after < t)
    return len(kept), chunk, t - kept[chunk]


def _again_with_divmod(t, L, every):
    chunk, steps = divmod(t - 1, every)
    return math.ceil(L / every), chunk, steps + 1


def _again_of(
    kept=lambda L, every: -(-L // every),
    chunk=lambda t, every: (t - 1) // every,
    steps=lambda t, chunk, every: t - chunk * every,
):
    def again(t, L, every):
        number = chunk(t, every)
        return kept(L, every), number, steps(t, number, every)

    return again


def _steps_to_run(draw: Draw):
    def some(L, every):
        return (draw.integer(1, L), L, every)

    return [
        (70, 784, 32),
        (64, 3136, 32),
        (65, 3136, 32),
        (1, 1, 32),
        (49, 49, 32),
        (32, 33, 32),
        (5, 5, 1),
        some(196, 32),
        some(3136, 56),
        some(100, 7),
    ]


AGAIN = Exercise(
    title="One state in 32",
    difficulty=2,
    hints=(
        "Steps are counted from 1, and the state kept for chunk 0 is the one before step 1. So "
        "with every = 32, chunk 0 holds the steps 1 … 32 and chunk 1 begins with step 33.",
        "The chunk of step t is `(t - 1) // every`. Before it, `chunk * every` steps have been "
        "done, so `t - chunk * every` are left to run. One state is kept for every chunk, the last "
        "short one too: `-(-L // every)`.",
    ),
    specification=_again,
    alternatives=(_again_by_lists, _again_with_divmod),
    arguments=("t", "L", "every"),
    cases=_steps_to_run,
    mistakes={
        "the last chunk may be short, and its state is kept too: round up": _again_of(
            kept=lambda L, every: L // every
        ),
        "L // every + 1 keeps a state too many where L is a multiple: nothing starts after L": (
            _again_of(kept=lambda L, every: L // every + 1)
        ),
        "steps are counted from 1: with every = 32, step 32 is the last of chunk 0": (
            _again_of(chunk=lambda t, every: t // every),
            _again_of(chunk=lambda t, every: t // every, steps=lambda t, chunk, every: t % every),
            _again_of(
                chunk=lambda t, every: t // every, steps=lambda t, chunk, every: t % every + 1
            ),
        ),
        "step 64 with every = 32 is the last of its chunk and needs 32 steps; t % every says 0": (
            _again_of(steps=lambda t, chunk, every: t % every)
        ),
        "h_t is asked for, the state after step t; this stops before it": _again_of(
            steps=lambda t, chunk, every: t - chunk * every - 1
        ),
        "this runs one step more than it takes to have h_t": _again_of(
            steps=lambda t, chunk, every: t - chunk * every + 1
        ),
        "this starts from the first step; the point of a kept state is to start from there": (
            _again_of(steps=lambda t, chunk, every: t)
        ),
        "this runs the whole chunk; h_t is there after t − chunk · every steps of it": _again_of(
            steps=lambda t, chunk, every: every
        ),
        "chunks are counted from 0 here": (
            _again_of(
                chunk=lambda t, every: -(-t // every),
                steps=lambda t, chunk, every: t - (chunk - 1) * every,
            )
        ),
        "the nearest kept state may lie after step t, and a scan cannot run backwards": _again_of(
            chunk=lambda t, every: round(t / every)
        ),
        "kept are L / every states, one for each chunk; every is the length of a chunk": _again_of(
            kept=lambda L, every: every
        ),
    },
)


EXERCISES = {"07.1": AT_LEAST, "07.2": TWO_TO, "07.3": CARRIES, "07.4": AGAIN}

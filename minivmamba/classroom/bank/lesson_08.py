"""The exercises of lesson 08, the scan on a GPU."""

import math

import torch
import torch.nn.functional as F

from minivmamba.classroom.exercise import Draw, Exercise, double, strided

# 08.1 — the numbers that a program touches


def _block_at(program, t, d, lanes, strides):
    channel = program * lanes + torch.arange(lanes)
    return channel * strides[0] + t * strides[1], channel < d


def _block_in_a_list(program, t, d, lanes, strides):
    offsets, mask = [], []
    for lane in range(lanes):
        channel = program * lanes + lane
        offsets.append(channel * strides[0] + t * strides[1])
        mask.append(channel < d)
    return offsets, mask


def _block_of_a_range(program, t, d, lanes, strides):
    channels = torch.arange(program * lanes, (program + 1) * lanes)
    of_channel, of_place = strides
    return of_place * t + of_channel * channels, torch.clamp(d - channels, 0, 1) == 1


def _block_with(
    channel=lambda program, d, lanes: program * lanes + torch.arange(lanes),
    offset=lambda channel, t, d, of_channel, of_place: channel * of_channel + t * of_place,
    mask=lambda channel, offset, d: channel < d,
):
    """A block with other channels, other offsets or another mask."""

    def block_at(program, t, d, lanes, strides):
        channels = channel(program, d, lanes)
        offsets = offset(channels, t, d, *strides)
        return offsets, mask(channels, offsets, d)

    return block_at


def _only_those_inside(program, t, d, lanes, strides):
    offsets, mask = _block_at(program, t, d, lanes, strides)
    return offsets[mask], mask[mask]


def _blocks(draw: Draw):
    t = draw.integer(2, 9)
    return [
        (1, 2, 6, 4, (1, 6)),
        (0, 0, 6, 4, (1, 6)),
        (0, 1, 8, 8, (1, 8)),
        (1, t, 40, 32, (1, 40)),
        (2, t, 70, 32, (1, 280)),  # a group of a wider tensor
        (1, t, 6, 4, (100, 1)),  # channels first
        (0, 3, 1, 4, (1, 1)),
        (3, 1, 6, 4, (1, 6)),  # a program for which nothing is left
    ]


BLOCK = Exercise(
    title="The block of a program",
    difficulty=1,
    hints=(
        "First the channels: a program takes as many as there are lanes, and the programs before "
        "it have taken theirs. Then a stride for each of the two, channel and step. The mask asks "
        "about channels.",
        "`channel = program * lanes + torch.arange(lanes)`; the offsets are `channel * strides[0] "
        "+ t * strides[1]` and the mask is `channel < d`.",
    ),
    specification=_block_at,
    alternatives=(_block_in_a_list, _block_of_a_range),
    arguments=("program", "t", "d", "lanes", "strides"),
    cases=_blocks,
    mistakes={
        "all programs take the first block; program 1 begins where program 0 ends": _block_with(
            lambda program, d, lanes: torch.arange(lanes)
        ),
        "programs overlap: the next one begins a whole block later, not one channel": _block_with(
            lambda program, d, lanes: program + torch.arange(lanes)
        ),
        "programs lie d channels apart here; a block has as many channels as lanes": _block_with(
            lambda program, d, lanes: program * d + torch.arange(lanes)
        ),
        "programs are counted from 0 here, not from 1": _block_with(
            lambda program, d, lanes: (program - 1) * lanes + torch.arange(lanes)
        ),
        "the mask asks whether a channel exists; it was asked about places in memory": _block_with(
            mask=lambda channel, offset, d: offset < d
        ),
        "the mask lets one channel too many in: the last one is d − 1": _block_with(
            mask=lambda channel, offset, d: channel <= d
        ),
        "the mask is upside down: True where there is a number": _block_with(
            mask=lambda channel, offset, d: channel >= d
        ),
        "nothing is masked: the last block reaches beyond the tensor": _block_with(
            mask=lambda channel, offset, d: channel >= 0
        ),
        "the strides are swapped: the first is that of the channel": _block_with(
            offset=lambda channel, t, d, of_channel, of_place: channel * of_place + t * of_channel
        ),
        "the step t is missing: every step would read the first": _block_with(
            offset=lambda channel, t, d, of_channel, of_place: channel * of_channel
        ),
        "this takes d for the stride of a step; use the strides, rows may be wider": _block_with(
            offset=lambda channel, t, d, of_channel, of_place: channel + t * d
        ),
        "this takes the stride of a channel for 1; use the strides": _block_with(
            offset=lambda channel, t, d, of_channel, of_place: channel + t * of_place
        ),
        "a block is cut short here; it always has all its lanes, and the mask says which count": (
            _only_those_inside
        ),
    },
)


# 08.2 — the steps of a block, beyond the end too


def _steps(raw, bias, first, block):
    t = first + torch.arange(block)
    inside = t < len(raw)
    dt = F.softplus(raw[t.clamp(max=len(raw) - 1)] + bias)
    return torch.where(inside, dt, 0)


def _steps_by_minus_infinity(raw, bias, first, block):
    row = raw.new_full((block,), -math.inf)
    there = raw[first : first + block]
    row[: len(there)] = there
    return torch.log1p(torch.exp(row + bias))


def _steps_by_appending(raw, bias, first, block):
    dt = torch.logaddexp(raw + bias, torch.zeros_like(raw))
    return torch.cat([dt, raw.new_zeros(block)])[first : first + block]


def _steps_with(
    outside,
    step=lambda raw, bias: F.softplus(raw + bias),
):
    """Steps inside by `step`; outside what that function makes of (raw, bias)."""

    def steps(raw, bias, first, block):
        t = first + torch.arange(block)
        dt = step(raw[t.clamp(max=len(raw) - 1)], bias)
        return torch.where(t < len(raw), dt, outside(raw, bias))

    return steps


def _nothing(raw, bias):
    return torch.zeros_like(raw[0])


def _raw_steps(draw: Draw):
    def case(L, first, block, dtype=torch.float64, make=lambda x: x):
        raw = make(draw.uniform(L, low=-2.0, high=2.0, dtype=dtype))
        return raw, draw.number(0.3, 1.0), first, block

    return [
        (double(0.0, 0.0, 0.0), 0.5, 2, 2),
        case(5, 4, 4),
        case(8, 4, 4),
        case(7, 0, 4),
        case(6, 4, 8, torch.float32),
        case(1, 0, 8),
        case(9, 8, 2, make=strided),
    ]


PADDED = Exercise(
    title="The step that changes nothing",
    difficulty=2,
    hints=(
        "A step beyond the end has to leave every state as it is: Ā = 1 and nothing enters. Which "
        "single number does both? And does softplus come before or after you put it there?",
        "softplus first, for the steps that exist; then zeros for the others: with `t = first + "
        "torch.arange(block)`, `torch.where(t < len(raw), ..., 0)`. An index beyond the end can "
        "be clamped, for what it reads is thrown away.",
    ),
    specification=_steps,
    alternatives=(_steps_by_minus_infinity, _steps_by_appending),
    arguments=("raw", "bias", "first", "block"),
    cases=_raw_steps,
    mistakes={
        "softplus came after the mask, and the bias was in it: softplus(bias) is no step of 0": (
            _steps_with(lambda raw, bias: F.softplus(torch.zeros_like(raw[0]) + bias))
        ),
        "softplus came after the mask: softplus(0) is ln 2, a step that halves states": (
            _steps_with(lambda raw, bias: F.softplus(torch.zeros_like(raw[0])))
        ),
        "a step of 1 beyond the end: it is Ā = e^{ΔA} that must be 1, so Δ must be 0": (
            _steps_with(lambda raw, bias: torch.ones_like(raw[0]))
        ),
        "the last step is repeated beyond the end; there the state must stay": _steps_with(
            lambda raw, bias: F.softplus(raw[-1] + bias)
        ),
        "beyond the end this goes on with the first steps": lambda raw, bias, first, block: (
            F.softplus(raw[(first + torch.arange(block)) % len(raw)] + bias)
        ),
        "the bias is missing": _steps_with(_nothing, lambda raw, bias: F.softplus(raw)),
        "the bias belongs inside of softplus": _steps_with(
            _nothing, lambda raw, bias: F.softplus(raw) + bias
        ),
        "softplus is missing: a step must be positive": _steps_with(
            _nothing, lambda raw, bias: raw + bias
        ),
        "the block has to have all its steps, also those beyond the end": (
            lambda raw, bias, first, block: F.softplus(raw[first : first + block] + bias)
        ),
        "this is the first block whatever `first` says": lambda raw, bias, first, block: _steps(
            raw, bias, 0, block
        ),
        "`first` is a step, not the number of a block": lambda raw, bias, first, block: _steps(
            torch.cat([raw, raw.new_full((first * block,), -math.inf)]), bias, first * block, block
        ),
        "NaN beyond the end: not a number is not a step": _steps_with(
            lambda raw, bias: torch.full_like(raw[0], math.nan)
        ),
    },
)


# 08.3 — the states that enter the parts


def _entering(totals, ends, A, initial):
    h, starts = initial, []
    for total, end in zip(totals, ends, strict=True):
        starts.append(h)
        h = torch.exp(A * total) * h + end
    return torch.stack(starts)


def _entering_by_sums(totals, ends, A, initial):
    """Every part by itself: what the initial state and all earlier parts have left."""
    rows = []
    for part in range(len(totals)):
        h = torch.exp(A * totals[:part].sum()) * initial
        for s in range(part):
            h = h + torch.exp(A * totals[s + 1 : part].sum()) * ends[s]
        rows.append(h)
    return torch.stack(rows)


def _entering_by_pairs(totals, ends, A, initial):
    """With `combine`, as the kernel does."""
    starts = torch.empty_like(ends)
    decay, h = torch.ones_like(A), initial.clone()
    for part in range(len(totals)):
        starts[part] = h
        next_decay = torch.exp(totals[part] * A)
        decay, h = decay * next_decay, next_decay * h + ends[part]
    return starts


def _entering_with(
    after=lambda h, decay, end, index: decay * h + end,
    decay=lambda totals, A, part: torch.exp(A * totals[part]),
):
    """Another state after a part, or another decay over it."""

    def entering(totals, ends, A, initial):
        h, starts = initial, []
        for part in range(len(totals)):
            starts.append(h)
            h = after(h, decay(totals, A, part), ends[part], part)
        return torch.stack(starts)

    return entering


def _leaving(totals, ends, A, initial):
    starts = _entering(totals, ends, A, initial)
    return torch.exp(A * totals[:, None]) * starts + ends


def _parts(draw: Draw):
    def case(parts, N, dtype=torch.float64, make=lambda x: x):
        return (
            draw.uniform(parts, low=0.1, high=1.0, dtype=dtype),
            make(draw.uniform(parts, N, dtype=dtype)),
            make(draw.uniform(N, low=-2.0, high=-0.2, dtype=dtype)),
            draw.uniform(N, dtype=dtype),
        )

    return [
        (math.log(2) * double(1, 1, 2), double(8, 6, 4)[:, None], double(-1), double(4)),
        case(4, 3),
        case(1, 2),
        case(7, 1),
        case(5, 4, torch.float32),
        case(3, 3, make=strided),
    ]


CARRY = Exercise(
    title="The carry",
    difficulty=3,
    hints=(
        "Go from part to part with the state that enters. A part turns a state x into e^{A ΣΔ} x "
        "plus the state it ends with when it starts from 0. Write down what enters before you "
        "change it.",
        "`h = initial`, and for every part: append h to the list, then `h = torch.exp(A * total) "
        "* h + end`. At the end stack the list.",
    ),
    specification=_entering,
    alternatives=(_entering_by_sums, _entering_by_pairs),
    arguments=("totals", "ends", "A", "initial"),
    cases=_parts,
    mistakes={
        "these are the states that leave the parts; asked are those that enter": _leaving,
        "the carry does not decay: over a part it shrinks by e^{A ΣΔ}": _entering_with(
            lambda h, decay, end, part: h + end
        ),
        "what the part itself made has decayed already; this shrinks it once more": _entering_with(
            lambda h, decay, end, part: decay * (h + end)
        ),
        "only the part just before is remembered; its own carry must go on too": _entering_with(
            lambda h, decay, end, part: end
        ),
        "this carries on, but forgets what the parts themselves make": _entering_with(
            lambda h, decay, end, part: decay * h
        ),
        "this is the decay of the next part: a state decays by the part it goes through": (
            _entering_with(
                decay=lambda totals, A, part: torch.exp(A * totals[min(part + 1, len(totals) - 1)])
            )
        ),
        "the decay reaches over all parts so far; earlier ones have acted already": (
            _entering_with(decay=lambda totals, A, part: torch.exp(A * totals[: part + 1].sum()))
        ),
        "A is missing: the decay is e^{A ΣΔ}, not e^{−ΣΔ}": _entering_with(
            decay=lambda totals, A, part: torch.exp(-totals[part])
        ),
        "the sign of A: it is negative already": _entering_with(
            decay=lambda totals, A, part: torch.exp(-A * totals[part])
        ),
        "ΣΔ is missing in the decay": _entering_with(decay=lambda totals, A, part: torch.exp(A)),
        "the exponential is missing": _entering_with(
            decay=lambda totals, A, part: A * totals[part]
        ),
        "this starts from 0, not from `initial`": lambda totals, ends, A, initial: _entering(
            totals, ends, A, 0 * initial
        ),
        "this goes from the last part to the first, as the gradient does": (
            lambda totals, ends, A, initial: _entering(
                totals.flip(0), ends.flip(0), A, initial
            ).flip(0)
        ),
        "every part starts from the same state here; the parts follow one another": (
            lambda totals, ends, A, initial: initial.expand_as(ends)
        ),
    },
)


# 08.4 — occupancy


def _warps(registers):
    of_a_warp = math.ceil(32 * registers / 256) * 256
    return min(4 * (16384 // of_a_warp), 32)


def _warps_in_units(registers):
    return min(64 // -(-registers // 8) * 4, 32)  # a scheduler has 64 portions of 256


def _warps_one_by_one(registers):
    """Fill one scheduler until the next warp does not fit."""
    of_a_warp = 32 * registers
    while of_a_warp % 256:
        of_a_warp += 1
    warps = 0
    while warps < 8 and (warps + 1) * of_a_warp <= 16384:
        warps += 1
    return 4 * warps


OCCUPANCY = Exercise(
    title="How many warps fit",
    difficulty=2,
    hints=(
        "Follow one scheduler. How many registers does a warp of 32 threads take, rounded up to a "
        "multiple of 256? How many such warps go into 16384? There are four schedulers, and one "
        "more limit.",
        "`of_a_warp = math.ceil(32 * registers / 256) * 256`, then `4 * (16384 // of_a_warp)`, and "
        "never more than 32.",
    ),
    specification=_warps,
    alternatives=(_warps_in_units, _warps_one_by_one),
    arguments=("registers",),
    cases=lambda draw: [
        *((r,) for r in (72, 255, 40, 32, 88, 100, 128, 129, 160, 200, 16, 8, 61, 65)),
        (draw.integer(30, 255),),
    ],
    mistakes={
        "registers are not rounded up: a warp gets them in portions of 256": lambda registers: min(
            4 * (16384 // (32 * registers)), 32
        ),
        "registers are rounded down to a multiple of 256; a warp must get all it needs": (
            lambda registers: min(4 * (16384 // (32 * registers // 256 * 256)), 32)
        ),
        "the four schedulers have files of their own: a warp cannot take the rest of several": (
            lambda registers: min(65536 // (math.ceil(registers / 8) * 256), 32)
        ),
        "one limit is missing: no more than 32 programs": lambda registers: (
            4 * (16384 // (math.ceil(registers / 8) * 256))
        ),
        "64 warps fit if programs have several; with one warp each the limit is 32 programs": (
            lambda registers: min(4 * (16384 // (math.ceil(registers / 8) * 256)), 64)
        ),
        "this counts one scheduler; a multiprocessor has four": lambda registers: min(
            16384 // (math.ceil(registers / 8) * 256), 8
        ),
        "these are threads; a warp has 32 of them": lambda registers: (
            32 * min(4 * (16384 // (math.ceil(registers / 8) * 256)), 32)
        ),
        "a warp is 32 threads, each with these registers; here it has those of one": (
            lambda registers: min(4 * (16384 // (math.ceil(registers / 256) * 256)), 32)
        ),
        "a warp that does not fit whole does not run: round down": lambda registers: min(
            4 * math.ceil(16384 / (math.ceil(registers / 8) * 256)), 32
        ),
        "half a warp does not run: the number of a scheduler is rounded down": lambda registers: (
            min(4 * 16384 / (math.ceil(registers / 8) * 256), 32)
        ),
        "the limit of 32 is one of the multiprocessor, not of each scheduler": lambda registers: (
            4 * min(16384 // (math.ceil(registers / 8) * 256), 32)
        ),
        "a portion of 256 is for the whole warp, not for every thread": lambda registers: min(
            4 * (16384 // (32 * math.ceil(registers / 256) * 256)), 32
        ),
    },
)


EXERCISES = {
    "08.1": BLOCK,
    "08.2": PADDED,
    "08.3": CARRY,
    "08.4": OCCUPANCY,
}

"""The exercises of lesson 13, receptive field and input scaling."""

import math

import torch
import torch.nn.functional as F

from minivmamba.classroom.exercise import Draw, Exercise, strided

# 13.1 — the share of the area


def _share(field, power):
    H, W = field.shape
    scores = field.double() ** power
    for k in range(max(H, W) + 1):
        top, left = max(H // 2 - k, 0), max(W // 2 - k, 0)
        square = scores[top : H // 2 + k + 1, left : W // 2 + k + 1]
        if square.sum() >= scores.sum() / 2:
            break
    return square.numel() / scores.numel()


def _rings(H, W, row, column):
    """(H, W): the half-width of the first square that holds a pixel."""
    down, right = (torch.arange(H) - row).abs(), (torch.arange(W) - column).abs()
    return torch.maximum(down[:, None].expand(H, W), right.expand(H, W))


def _share_by_rings(field, power):
    H, W = field.shape
    scores, ring = field.double() ** power, _rings(H, W, H // 2, W // 2)
    held = torch.zeros(int(ring.max()) + 1).double().index_add(0, ring.flatten(), scores.flatten())
    first = int((held.cumsum(0) < scores.sum() / 2).sum())
    return (ring <= first).double().mean()


def _share_by_growing(field, power):
    H, W = field.shape
    rows = [[float(v) ** power for v in row] for row in field.tolist()]
    whole = math.fsum(map(math.fsum, rows))
    side = 1
    while True:
        inside = [
            rows[i][j]
            for i in range(H)
            for j in range(W)
            if max(abs(i - H // 2), abs(j - W // 2)) <= side // 2
        ]
        if 2 * math.fsum(inside) >= whole:
            return len(inside) / (H * W)
        side += 2


def _share_of(
    centre=lambda H, W: (H // 2, W // 2),
    root=lambda field, power: field**power,
    enough=lambda held, scores: held >= scores.sum() / 2,
    finish=lambda inside, held, scores, side: inside.double().mean(),
    distance=None,
    first=0,
):
    """The share with one of its parts done otherwise."""

    def share(field, power):
        H, W = field.shape
        scores, middle = root(field.double(), power), centre(H, W)
        ring = (distance or _rings)(H, W, *middle)
        for k in range(first, H + W):
            inside = ring <= k
            held = scores[inside].sum()
            if enough(held, scores):
                break
        return float(finish(inside, held, scores, 2 * k + 1))

    return share


def _discs(H, W, row, column):
    down, right = torch.arange(H) - row, torch.arange(W) - column
    return (down[:, None] ** 2 + right**2).double().sqrt()


def _diamonds(H, W, row, column):
    down, right = (torch.arange(H) - row).abs(), (torch.arange(W) - column).abs()
    return down[:, None] + right


def _even_sides(H, W, row, column):
    down, right = torch.arange(H) - row, torch.arange(W) - column
    down = torch.where(down < 0, -down, down + 1)
    right = torch.where(right < 0, -right, right + 1)
    return torch.maximum(down[:, None].expand(H, W), right.expand(H, W))


def _fewest_pixels(field, power):
    scores = (field.double() ** power).flatten().sort(descending=True).values
    return (int((scores.cumsum(0) < scores.sum() / 2).sum()) + 1) / len(scores)


def _until_the_short_side(field, power):
    (H, W), scores = field.shape, field.double() ** power
    ring = _rings(H, W, H // 2, W // 2)
    for k in range(min(H, W) // 2 + 1):
        if scores[ring <= k].sum() >= scores.sum() / 2:
            return float((ring <= k).double().mean())
    return 1.0


def _above_half(field, power):
    scores = field.double() ** power
    return float((scores >= scores.max() / 2).double().mean())


def _fields(draw: Draw):
    def some(H, W, power, tau=None, dtype=torch.float64, gaps=False):
        tau = tau or draw.number(1.0, 3.0)
        far = _discs(H, W, H // 2, W // 2)
        field = torch.exp(-far / tau) * draw.uniform(H, W, low=0.2, high=1.0)
        field = field.to(dtype)
        return (strided(field) if gaps else field, power)

    one = torch.zeros(6, 7).double()
    one[1, 5] = 2.0
    peak = torch.zeros(8, 6).double()
    peak[4, 3] = 1.0  # the centre itself
    tie = torch.tensor([[1.0, 2.0, 1.0]]).double()
    return [
        some(9, 9, 1.0),
        (tie, 1.0),
        (torch.ones(1, 1).double(), 0.25),
        (one, 0.25),
        (peak, 0.5),
        some(8, 13, 0.25),
        some(13, 6, 0.5, tau=4.0),
        (torch.ones(9, 5).double(), 0.25),
        (torch.ones(3, 21).double(), 1.0),  # the short side is full long before half is held
        (torch.eye(12).double(), 1.0),
        some(10, 10, 0.25, gaps=True),
        some(7, 10, 0.25, dtype=torch.float32),
        some(15, 16, 0.2, tau=1.0),
        some(11, 11, 1.0, tau=0.3),
        some(16, 15, 0.25, tau=1.5),
        some(draw.integer(5, 20), draw.integer(5, 20), draw.number(0.2, 1.0)),
    ]


SHARE = Exercise(
    title="Share of the area",
    difficulty=3,
    hints=(
        "Take the root first. Then let k = 0, 1, 2, … grow; the square holds the rows from "
        "H//2 − k to H//2 + k and the columns from W//2 − k to W//2 + k, as far as they exist.",
        "`scores[max(H // 2 - k, 0) : H // 2 + k + 1, max(W // 2 - k, 0) : W // 2 + k + 1]` is the "
        "square, cut at the border: a negative start would count from the end. Stop as soon as "
        "`square.sum() >= scores.sum() / 2`, and return `square.numel() / scores.numel()`.",
    ),
    specification=_share,
    alternatives=(_share_by_rings, _share_by_growing),
    arguments=("field", "power"),
    cases=_fields,
    mistakes={
        "the centre is the pixel (H//2, W//2); for an even side this takes the one before it": (
            _share_of(centre=lambda H, W: ((H - 1) // 2, (W - 1) // 2))
        ),
        "the two sides are exchanged: H counts the rows, W the columns": _share_of(
            centre=lambda H, W: (W // 2, H // 2)
        ),
        "the root is not taken: this measures the influence itself, whatever the power": _share_of(
            root=lambda field, power: field
        ),
        "the root is taken the other way round: the score is field^power": _share_of(
            root=lambda field, power: field ** (1 / power)
        ),
        "this is the side of the square as a share of the side; asked is the share of the area": (
            _share_of(finish=lambda inside, held, scores, side: inside.double().mean().sqrt())
        ),
        "beyond the border the square is cut: count the pixels that exist, not side²": _share_of(
            finish=lambda inside, held, scores, side: side**2 / scores.numel()
        ),
        "on a map longer than high the square goes on, cut above and below; here it stops": (
            _until_the_short_side
        ),
        "this is the score that the square holds, not the area it needs": _share_of(
            finish=lambda inside, held, scores, side: held / scores.sum()
        ),
        "this counts pixels, asked is their share of all H·W": _share_of(
            finish=lambda inside, held, scores, side: inside.sum()
        ),
        "a square that holds exactly half holds enough: ≥, not >": _share_of(
            enough=lambda held, scores: held > scores.sum() / 2
        ),
        "the square is to hold half of the sum; this asks for half of the largest score": (
            _share_of(enough=lambda held, scores: held >= scores.max() / 2)
        ),
        "these are the pixels above half of the largest score, wherever they lie": _above_half,
        "these are the fewest pixels that hold half, wherever they lie; asked is a square around "
        "the centre": _fewest_pixels,
        "this grows discs; the measure is made with squares": _share_of(distance=_discs),
        "this grows squares that stand on a corner; their sides run along rows and columns": (
            _share_of(distance=_diamonds)
        ),
        "the sides are 1, 3, 5, …: each square has the centre in its middle": _share_of(
            distance=_even_sides, first=1
        ),
        "the smallest square is the centre alone, one pixel": _share_of(first=1),
    },
)


# 13.2 — what is left after k steps


def _fade(a, dt, power, K):
    k = torch.arange(K, dtype=torch.float64)
    return torch.exp(a * dt * k) ** power, math.log(2) / (-a * dt * power)


def _fade_by_factors(a, dt, power, K):
    factor = math.exp(a * dt * power)
    values = [1.0]
    for _ in range(K - 1):
        values.append(values[-1] * factor)
    return torch.tensor(values, dtype=torch.float64), math.log(0.5, factor)


def _fade_by_scanning(a, dt, power, K):
    """The influence read off by autograd, the half-life from one step of it."""
    x = torch.ones(K, dtype=torch.float64, requires_grad=True)
    h = torch.zeros((), dtype=torch.float64)
    for t in range(K):
        h = math.exp(a * dt) * h + x[t]
    (influence,) = torch.autograd.grad(h, x)
    return influence.flip(0) ** power, -1 / math.log2(math.exp(a * dt) ** power)


def _fade_of(
    steps=lambda K: torch.arange(K, dtype=torch.float64),
    value=lambda a, dt, power, k: torch.exp(a * dt * power * k),
    half=lambda a, dt, power: math.log(2) / (-a * dt * power),
    finish=lambda values: values,
):
    """Fading with one of its parts done otherwise."""

    def fading(a, dt, power, K):
        return finish(value(a, dt, power, steps(K))), half(a, dt, power)

    return fading


def _decays(draw: Draw):
    drawn = [
        (draw.number(-4, -0.5), draw.number(0.02, 0.5), draw.number(0.2, 0.9), draw.integer(2, 9))
        for _ in range(4)
    ]
    fixed = [(-1.0, 0.1, 1.0, 5), (-1.0, 0.1, 0.25, 5), (-2.0, 0.5, 0.25, 3), (-16.0, 0.05, 0.2, 4)]
    return [*fixed, (-0.5, 0.3, 0.5, 1), *drawn]


FADE = Exercise(
    title="Half-life after a root",
    difficulty=2,
    hints=(
        "One step multiplies what was heard before by e^{a dt}, so k steps by e^{a dt k}. Take the "
        "power of that. The half-life is the k, not a whole number as a rule, at which ½ is left.",
        "`k = torch.arange(K, dtype=torch.float64)`, then `torch.exp(a * dt * power * k)`. From "
        "e^{a dt power k} = ½ follows k = ln 2 / (−a · dt · power): a is negative.",
    ),
    specification=_fade,
    alternatives=(_fade_by_factors, _fade_by_scanning),
    arguments=("a", "dt", "power", "K"),
    cases=_decays,
    mistakes={
        "the root is missing in both: this is the influence itself": _fade_of(
            value=lambda a, dt, power, k: torch.exp(a * dt * k),
            half=lambda a, dt, power: math.log(2) / (-a * dt),
        ),
        "the values are right, but the half-life is that of the influence before the root": (
            _fade_of(half=lambda a, dt, power: math.log(2) / (-a * dt))
        ),
        "the half-life is right, but the values are those before the root": _fade_of(
            value=lambda a, dt, power, k: torch.exp(a * dt * k)
        ),
        "a root makes the half-life longer: divide by the power, do not multiply": _fade_of(
            half=lambda a, dt, power: math.log(2) * power / (-a * dt)
        ),
        "this is the time constant, where 1/e is left; at the half-life ½ is left, a factor ln 2": (
            _fade_of(half=lambda a, dt, power: 1 / (-a * dt * power))
        ),
        "the half-life is asked in steps; this is in time: divide by dt too": _fade_of(
            half=lambda a, dt, power: math.log(2) / (-a * power)
        ),
        "a half-life need not be a whole number of steps": (
            _fade_of(half=lambda a, dt, power: math.ceil(math.log(2) / (-a * dt * power))),
            _fade_of(half=lambda a, dt, power: math.floor(math.log(2) / (-a * dt * power))),
            _fade_of(half=lambda a, dt, power: round(math.log(2) / (-a * dt * power))),
        ),
        "the half-life came out negative: a is negative, its size counts": _fade_of(
            half=lambda a, dt, power: math.log(2) / (a * dt * power)
        ),
        "influence fades with the distance; here it grows: the sign of a is lost": (
            _fade_of(value=lambda a, dt, power, k: torch.exp(-a * dt * power * k)),
            _fade_of(
                value=lambda a, dt, power, k: torch.exp(-a * dt * power * k),
                half=lambda a, dt, power: math.log(2) / (a * dt * power),
            ),
        ),
        "the first value is that of the last pixel itself, k = 0, which is 1": _fade_of(
            steps=lambda K: torch.arange(1, K + 1, dtype=torch.float64)
        ),
        "the order is turned round: k = 0, the nearest pixel, comes first": _fade_of(
            finish=lambda values: values.flip(0)
        ),
    },
)


# 13.3 — a field by gradients


def _field(features, images):
    images = images.detach().clone().requires_grad_()
    maps = features(images)
    h, w = maps.shape[2:]
    score = maps[:, :, h // 2, w // 2].relu().sum()
    (gradient,) = torch.autograd.grad(score, images)
    return gradient.relu().sum(1).mean(0)


def _field_one_by_one(features, images):
    found = []
    for image in images:
        x = image.clone()[None].requires_grad_()
        answer = features(x)
        middle = answer[0, :, answer.shape[2] // 2, answer.shape[3] // 2]
        middle[middle > 0].sum().backward()
        found.append(x.grad[0].clamp(min=0).sum(0))
    return sum(found) / len(found)


def _field_by_vjp(features, images):
    maps, back, *_ = torch.func.vjp(features, images)
    at = torch.zeros_like(maps)
    middle = (slice(None), slice(None), maps.shape[2] // 2, maps.shape[3] // 2)
    at[middle] = (maps[middle] > 0).to(maps)
    (gradient,) = back(at)
    return torch.where(gradient > 0, gradient, 0).sum(dim=1).sum(dim=0) / len(images)


def _field_of(
    place=lambda maps, images: maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2],
    score=torch.relu,
    colours=lambda gradient: gradient.relu().sum(1),
    batch=lambda influence: influence.mean(0),
    finish=lambda field: field,
):
    """A field with one of its parts done otherwise."""

    def influence(features, images):
        images = images.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(score(place(features(images), images)).sum(), images)
        return finish(batch(colours(gradient)))

    return influence


def _before_middle(maps, images):
    return maps[:, :, (maps.shape[2] - 1) // 2, (maps.shape[3] - 1) // 2]


def _exchanged_middle(maps, images):
    return maps[:, :, maps.shape[3] // 2, maps.shape[2] // 2]


def _pixel_of_image(maps, images):
    return maps[:, :, images.shape[2] // 2, images.shape[3] // 2]


def _convolution(weight, bias, stride):
    """A small model: two convolutions with a bend between them; its kernels are not symmetric."""

    def features(images):
        padding = weight.shape[-1] // 2
        middle = F.conv2d(images, weight, bias, stride, padding)
        return F.conv2d(torch.tanh(middle), weight.transpose(0, 1)[:, :, :2, 1:], padding=1)

    return features


def _with_global_part(weight):
    def features(images):
        mean = images.tanh().mean((2, 3), keepdim=True)
        return torch.einsum("dc,bchw->bdhw", weight, images**2 / 2 + mean)

    return features


def _models(draw: Draw):
    def convolution(B, H, W, stride, dtype=torch.float64, gaps=False, low=-1.0):
        weight = draw.uniform(4, 3, 3, 3, low=low, dtype=dtype)
        bias = draw.uniform(4, low=low, dtype=dtype)
        images = draw.uniform(B, 3, H, W, low=low, dtype=dtype)
        return (_convolution(weight, bias, stride), strided(images) if gaps else images)

    def spread(B, H, W):
        return (_with_global_part(draw.uniform(4, 3)), draw.uniform(B, 3, H, W))

    return [
        convolution(2, 9, 9, 1),
        convolution(3, 8, 11, 1),
        convolution(2, 12, 8, 2),
        convolution(4, 11, 16, 2),
        spread(3, 5, 6),
        spread(2, 1, 1),
        convolution(3, 10, 7, 1, gaps=True),
        convolution(2, 9, 6, 1, dtype=torch.float32, low=0.1),
        convolution(3, draw.integer(6, 14), draw.integer(6, 14), draw.integer(1, 3)),
    ]


FIELD = Exercise(
    title="A field by gradients",
    difficulty=4,
    hints=(
        "Let gradients flow to a copy of the images. Take the middle position of the map, ReLU, "
        "and sum over channels and images to one number; samples do not touch each other, so one "
        "call of torch.autograd.grad gives each its own gradient. Then in this order: ReLU, sum "
        "over colours, mean over images.",
        "`x = images.detach().clone().requires_grad_()`, `maps = features(x)`, `score = "
        "maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].relu().sum()`, `(g,) = "
        "torch.autograd.grad(score, x)`, and last `g.relu().sum(1).mean(0)`.",
    ),
    specification=_field,
    alternatives=(_field_one_by_one, _field_by_vjp),
    arguments=("features", "images"),
    cases=_models,
    mistakes={
        "only answers above 0 count: the ReLU on the middle of the map is missing": _field_of(
            score=lambda answer: answer
        ),
        "the ReLU belongs to every channel by itself, before the sum over the channels": _field_of(
            score=lambda answer: answer.sum(1).relu()
        ),
        "only raising counts: the ReLU on the gradient is missing": _field_of(
            colours=lambda gradient: gradient.sum(1)
        ),
        "both ReLUs are missing": _field_of(
            score=lambda answer: answer, colours=lambda gradient: gradient.sum(1)
        ),
        "this takes the size of the gradient: a pixel that lowers the answer counts as 0": (
            _field_of(colours=lambda gradient: gradient.abs().sum(1))
        ),
        "the ReLU comes before the sum over colours, or they cancel each other": _field_of(
            colours=lambda gradient: gradient.sum(1).relu()
        ),
        "the ReLU comes before the mean over images, or they cancel each other": _field_of(
            colours=lambda gradient: gradient, batch=lambda g: g.mean(0).relu().sum(0)
        ),
        "this asks for all positions of the map at once; the field is that of the middle one": (
            _field_of(place=lambda maps, images: maps)
        ),
        "this asks for the mean over the map; the field is that of its middle position": _field_of(
            place=lambda maps, images: maps.mean((2, 3))
        ),
        "the middle of the map is (h//2, w//2); for an even side this takes the position before": (
            _field_of(place=_before_middle)
        ),
        "the two axes of the map are exchanged: the middle is (h//2, w//2)": _field_of(
            place=_exchanged_middle
        ),
        "the middle is that of the map, whose sides are h and w, not that of the image": _field_of(
            place=_pixel_of_image
        ),
        "the colours are added; this takes their mean, a third": _field_of(
            colours=lambda gradient: gradient.relu().mean(1)
        ),
        "the images are averaged; this adds them": _field_of(
            batch=lambda influence: influence.sum(0)
        ),
        "this is one channel of the map; the score adds all of them": _field_of(
            place=lambda maps, images: maps[:, 0, maps.shape[2] // 2, maps.shape[3] // 2]
        ),
        "this is the field for display; asked is the influence itself, without a scale": (
            _field_of(finish=lambda field: field / field.max()),
            _field_of(finish=lambda field: (field / field.max()) ** 0.25),
            _field_of(finish=lambda field: field**0.25),
        ),
        "rows and columns of the field are exchanged": _field_of(finish=lambda field: field.T),
    },
)


# 13.4 — how costs grow


def _slope(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x * x).sum()


def _exponent(sides, costs):
    return _slope(torch.log(sides.double() ** 2), torch.log(costs.double()))


def _exponent_by_lstsq(sides, costs):
    x = 2 * torch.log2(sides.double())
    design = torch.stack([x, torch.ones_like(x)], dim=1)
    return torch.linalg.lstsq(design, torch.log2(costs.double())[:, None]).solution[0, 0]


def _exponent_by_pairs(sides, costs):
    """The mean of the slopes of all pairs, weighted by the squared distance of their pixels."""
    x, y = 2 * torch.log10(sides.double()), torch.log10(costs.double())
    dx, dy = x[:, None] - x, y[:, None] - y
    return ((dx * dy).sum() / (dx * dx).sum()).item()


def _exponent_of(x=lambda sides: torch.log(sides**2), y=torch.log, fit=_slope):
    def exponent(sides, costs):
        return float(fit(x(sides.double()), y(costs.double())))

    return exponent


def _steps_averaged(x, y):
    order = x.argsort()
    return (y[order].diff() / x[order].diff()).mean()


def _correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm())


def _ends(x, y):
    return (y[x.argmax()] - y[x.argmin()]) / (x.max() - x.min())


def _costs(draw: Draw):
    def some(K, low, high, dtype=torch.float64, gaps=False):
        # Unevenly spaced and out of order, with sides and costs scattered.
        sides = torch.cumsum(draw.uniform(K, low=8.0, high=90.0), 0) + 32
        p = draw.number(low, high)
        costs = draw.number(0.1, 9.0) * sides ** (2 * p) * draw.uniform(K, low=0.6, high=1.7)
        order = torch.randperm(K, generator=draw.generator)
        sides, costs = sides[order].to(dtype), costs[order].to(dtype)
        return (strided(sides), strided(costs)) if gaps else (sides, costs)

    return [
        some(5, 0.8, 1.2),
        (torch.tensor([64.0, 128.0]).double(), torch.tensor([3.0, 48.0]).double()),
        some(7, 1.5, 2.0),
        some(4, 0.4, 0.6),
        some(6, 0.9, 2.0, gaps=True),
        some(6, 0.9, 2.0, dtype=torch.float32),
        some(draw.integer(3, 9), 0.5, 2.0),
    ]


EXPONENT = Exercise(
    title="Fit an exponent",
    difficulty=2,
    hints=(
        "If cost = c · pixels^p, then log cost = log c + p · log pixels: a straight line of slope "
        "p. An image has side² pixels, and log side² = 2 log side.",
        "x = log(sides²), y = log(costs), both less their mean; then p = Σ x y / Σ x². In double "
        "precision: `sides.double()`. Any base of the logarithm gives the same slope.",
    ),
    specification=_exponent,
    alternatives=(_exponent_by_lstsq, _exponent_by_pairs),
    arguments=("sides", "costs"),
    cases=_costs,
    mistakes={
        "this is the exponent of the side: an image has side² pixels, so it is twice as large": (
            _exponent_of(x=torch.log)
        ),
        "this is half of the exponent: side² is squared once more": _exponent_of(
            x=lambda sides: torch.log(sides**4)
        ),
        "no logarithm is taken: this is the slope of the costs themselves": (
            _exponent_of(x=lambda sides: sides**2, y=lambda costs: costs),
            _exponent_of(x=lambda sides: sides, y=lambda costs: costs),
        ),
        "only the costs are in logarithms: take that of the pixels too": (
            _exponent_of(x=lambda sides: sides**2),
            _exponent_of(x=lambda sides: sides),
        ),
        "only the pixels are in logarithms: take that of the costs too": (
            _exponent_of(y=lambda costs: costs),
            _exponent_of(x=torch.log, y=lambda costs: costs),
        ),
        "the line is forced through 0: take the means away first, the factor c is not 1": (
            _exponent_of(fit=lambda x, y: (x * y).sum() / (x * x).sum()),
            _exponent_of(fit=lambda x, y: (y / x).mean()),
        ),
        "only the smallest and the largest size are used; fit all of them": _exponent_of(fit=_ends),
        "only the first and the last entry are used; fit all of them": _exponent_of(
            fit=lambda x, y: (y[-1] - y[0]) / (x[-1] - x[0])
        ),
        "this is the mean of the slopes from size to size; fit one line to all": _exponent_of(
            fit=_steps_averaged
        ),
        "the axes are exchanged: this tells how the pixels grow with the cost": _exponent_of(
            fit=lambda x, y: _slope(y, x)
        ),
        "this is a correlation, at most 1: it tells how straight the line is, not how steep": (
            _exponent_of(fit=_correlation)
        ),
    },
)


EXERCISES = {"13.1": SHARE, "13.2": FADE, "13.3": FIELD, "13.4": EXPONENT}

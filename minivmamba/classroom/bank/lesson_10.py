"""The exercises of lesson 10, SS2D and the VSS block."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minivmamba.classroom.exercise import Draw, Exercise, Observed, strided
from minivmamba.cross_scan import cross_merge, cross_scan
from minivmamba.selective_scan import selective_scan
from minivmamba.ss2d import SS2D


def _eighths(draw: Draw, *shape: int, high: float = 2.0, dtype=torch.float64) -> Tensor:
    """Multiples of 1/8, whose sums of products are exact in single precision, too."""
    return (draw.uniform(*shape, low=-high, high=high) * 8).round().div(8).to(dtype)


# 10.1 — Δ, B and C of a whole map


def _parts(numbers, R):
    """(…, R + 2N) → r, B, C."""
    N = (numbers.shape[-1] - R) // 2
    return numbers.split([R, N, N], dim=-1)


def _project(x, x_proj_weight, dt_projs_weight, dt_projs_bias):
    numbers = torch.einsum("bdij,kcd->bkijc", x, x_proj_weight)
    low, B, C = _parts(numbers, dt_projs_weight.shape[-1])
    raw = torch.einsum("bkijr,kdr->bkijd", low, dt_projs_weight)
    return F.softplus(raw + dt_projs_bias[:, None, None]), B, C


def _project_with_linear(x, x_proj_weight, dt_projs_weight, dt_projs_bias):
    pixels = x.permute(0, 2, 3, 1)
    found = []
    for weight, dt_weight, bias in zip(x_proj_weight, dt_projs_weight, dt_projs_bias, strict=True):
        low, B, C = _parts(F.linear(pixels, weight), dt_weight.shape[1])
        found.append((F.softplus(F.linear(low, dt_weight, bias)), B, C))
    return tuple(torch.stack(each, dim=1) for each in zip(*found, strict=True))


def _project_with_one_matrix(x, x_proj_weight, dt_projs_weight, dt_projs_bias):
    """Both matrices of Δ multiplied first: more work, the same numbers."""
    R = dt_projs_weight.shape[-1]
    full = dt_projs_weight @ x_proj_weight[:, :R]  # (4, d, d)
    raw = torch.einsum("bdij,ked->bkije", x, full) + dt_projs_bias[:, None, None]
    _, B, C = _parts(torch.einsum("bdij,kcd->bkijc", x, x_proj_weight), R)
    return torch.logaddexp(raw, torch.zeros_like(raw)), B, C


def _projected(
    pixels=lambda x: x.permute(0, 2, 3, 1),
    weights=lambda *three: three,
    order="RBC",
    delta=lambda raw, bias: F.softplus(raw + bias[:, None, None]),
    after=lambda *three: three,
):
    """Another layout, other weights, another order of the parts, another Δ, or a last change."""

    def project(x, x_proj_weight, dt_projs_weight, dt_projs_bias):
        R = dt_projs_weight.shape[-1]
        N = (x_proj_weight.shape[1] - R) // 2
        x_w, dt_w, bias = weights(x_proj_weight, dt_projs_weight, dt_projs_bias)
        numbers = torch.einsum("bijd,kcd->bkijc", pixels(x), x_w)
        sizes = [R if letter == "R" else N for letter in order]
        parts = dict(zip(order, numbers.split(sizes, dim=-1), strict=True))
        raw = torch.einsum("bkijr,kdr->bkijd", parts["R"], dt_w)
        return after(delta(raw, bias), parts["B"], parts["C"])

    return project


def _of_route_0(weight):
    return weight[:1].expand_as(weight)


def _as_sequences(maps):
    """(B, 4, H, W, c) → (B, 4, c, L) in natural order."""
    return maps.flatten(2, 3).transpose(2, 3)


def _along_routes(maps):
    """(B, 4, H, W, c), each route's map turned into the order in which the route comes by."""
    rows, columns, rows_back, columns_back = maps.unbind(1)
    H, W, c = rows.shape[1:]
    back = rows_back.flatten(1, 2).flip(1).unflatten(1, (H, W))
    down = columns.transpose(1, 2).reshape(-1, H, W, c)
    up = columns_back.transpose(1, 2).flatten(1, 2).flip(1).unflatten(1, (H, W))
    return torch.stack([rows, down, back, up], dim=1)


def _maps(draw: Draw):
    def case(batch, d, H, W, R, N, dtype=torch.float64, make=lambda x: x):
        return (
            make(_eighths(draw, batch, d, H, W, dtype=dtype)),
            _eighths(draw, 4, R + 2 * N, d, high=1.0, dtype=dtype),
            make(_eighths(draw, 4, d, R, high=1.0, dtype=dtype)),
            _eighths(draw, 4, d, dtype=dtype) - 1,
        )

    return [
        case(1, 2, 1, 2, 1, 1),
        case(2, 4, 3, 5, 2, 3),
        case(1, 4, 4, 2, 1, 2, torch.float32),
        case(1, 3, 2, 2, 3, 1, make=strided),
        case(2, 6, 3, 3, 2, 2),
        case(1, 5, 1, 1, 2, 4),
    ]


def _three(function, case):
    result = function(*case)
    if isinstance(result, tuple | list) and len(result) == 3:
        return Observed(zip(("delta", "B", "C"), result, strict=True))
    return result


PROJECT = Exercise(
    title="Δ, B and C of a whole map",
    difficulty=2,
    hints=(
        "For every route one product with its x_proj gives R + 2N numbers at every pixel: first "
        "the R for Δ, then B, then C. No order of pixels is needed.",
        '`torch.einsum("bdij,kcd->bkijc", x, x_proj_weight)`, then split the last axis; Δ is the '
        'softplus of `torch.einsum("bkijr,kdr->bkijd", low, dt_projs_weight)` plus the bias as '
        "`dt_projs_bias[:, None, None]`.",
    ),
    specification=_project,
    alternatives=(_project_with_linear, _project_with_one_matrix),
    arguments=("x", "x_proj_weight", "dt_projs_weight", "dt_projs_bias"),
    cases=_maps,
    observe=_three,
    mistakes={
        "softplus is missing: a step must be positive": _projected(
            delta=lambda raw, bias: raw + bias[:, None, None]
        ),
        "softplus and the bias are missing: the step is softplus(raw + bias)": _projected(
            delta=lambda raw, bias: raw
        ),
        "this is ReLU, not softplus: a step of 0 would leave the state as it is": _projected(
            delta=lambda raw, bias: F.relu(raw + bias[:, None, None])
        ),
        "the bias is missing: every channel of every route has a step of its own before the input "
        "says anything": _projected(delta=lambda raw, bias: F.softplus(raw)),
        "the bias belongs inside of softplus: it shifts what goes in, not the step": _projected(
            delta=lambda raw, bias: F.softplus(raw) + bias[:, None, None]
        ),
        "this is exp, not softplus: for a large input the step would explode": _projected(
            delta=lambda raw, bias: torch.exp(raw + bias[:, None, None])
        ),
        "B and C are exchanged: the rows of x_proj are those of r, of B, of C": (
            _projected(order="RCB"),
            _projected(after=lambda delta, B, C: (delta, C, B)),
        ),
        "the rows for Δ come first in x_proj, not last": (
            _projected(order="BCR"),
            _projected(order="CBR"),
        ),
        "this tears the pixels apart: (B, d, H, W) becomes (B, H, W, d) by permute, which takes "
        "the numbers along; reshape and view only cut the same row of numbers anew": _projected(
            pixels=lambda x: x.reshape(x.shape[0], *x.shape[2:], x.shape[1])
        ),
        "all routes got the x_proj of route 0: each has its own": _projected(
            weights=lambda x_w, dt_w, bias: (_of_route_0(x_w), dt_w, bias)
        ),
        "all routes got the dt_proj of route 0: each has its own": _projected(
            weights=lambda x_w, dt_w, bias: (x_w, _of_route_0(dt_w), bias)
        ),
        "all routes got the bias of route 0: each has its own": _projected(
            weights=lambda x_w, dt_w, bias: (x_w, dt_w, _of_route_0(bias))
        ),
        "all three were taken from route 0: each route has its own x_proj, dt_proj and bias": (
            _projected(weights=lambda *three: tuple(map(_of_route_0, three)))
        ),
        "each route's numbers stand in the order in which the route comes by; asked are they at "
        "the pixels, the same order for all four": (
            _projected(after=lambda *three: tuple(map(_along_routes, three)))
        ),
        "these are sequences of pixels; asked are maps, (B, 4, H, W, …) with the numbers of a "
        "pixel last": (
            _projected(after=lambda *three: tuple(map(_as_sequences, three))),
            _projected(after=lambda *three: tuple(_as_sequences(_along_routes(m)) for m in three)),
            _projected(after=lambda *three: tuple(part.flatten(2, 3) for part in three)),
        ),
        "the numbers of a pixel stand before height and width here; asked are they last, "
        "(B, 4, H, W, …)": _projected(
            after=lambda *three: tuple(part.movedim(-1, 2) for part in three)
        ),
        "height and width are exchanged": _projected(
            after=lambda *three: tuple(part.transpose(2, 3) for part in three)
        ),
        "this gives the R numbers that go into dt_proj; asked is the step of each of the d "
        "channels": lambda x, x_w, dt_w, bias: _parts(
            torch.einsum("bdij,kcd->bkijc", x, x_w), dt_w.shape[-1]
        ),
    },
)


# 10.2 — four Ds fold into one


FOLD = Exercise(
    title="Four Ds fold into one",
    difficulty=1,
    hints=(
        "Write down what one pixel of channel c gets from the four direct ways, if the merge adds "
        "the routes up without weights.",
        "Route k owns the entries k·d … k·d + d − 1: `Ds.view(4, -1)` has one row for each route. "
        "Add the rows.",
    ),
    specification=lambda Ds: Ds.view(4, -1).sum(0),
    alternatives=(
        lambda Ds: sum(Ds.chunk(4)),
        lambda Ds: torch.stack([Ds[c :: len(Ds) // 4].sum() for c in range(len(Ds) // 4)]),
        lambda Ds: [sum(Ds[c :: len(Ds) // 4].tolist()) for c in range(len(Ds) // 4)],
    ),
    arguments=("Ds",),
    cases=lambda draw: [
        (torch.tensor([1.0, 2, 1, 0, 1, 5, 1, 1], dtype=torch.float64),),
        (_eighths(draw, 4 * 3),),
        (_eighths(draw, 4 * 5, dtype=torch.float32),),
        (_eighths(draw, 4),),
        (_eighths(draw, 4 * 4),),
        (torch.ones(4 * 2, dtype=torch.float64),),
    ],
    mistakes={
        "this is the mean: the merge adds the routes, and divides by nothing": (
            lambda Ds: Ds.view(4, -1).mean(0)
        ),
        "the entries are grouped wrongly: the first d belong to route 0, the next d to route 1; "
        "channel c has c, d + c, 2d + c, 3d + c": lambda Ds: Ds.view(-1, 4).sum(1),
        "this is the D of route 0 alone: every route has a direct way": (
            lambda Ds: Ds.view(4, -1)[0]
        ),
        "this is 4 times the D of route 0: the four were equal at the start, and training moves "
        "each by itself": lambda Ds: 4 * Ds.view(4, -1)[0],
        "these are products: the four ways lie side by side, not one behind the other": (
            lambda Ds: Ds.view(4, -1).prod(0)
        ),
        "all channels were added, too: each has its own D": (
            lambda Ds: Ds.sum(),
            lambda Ds: Ds.view(4, -1).sum(1),
            lambda Ds: Ds.sum().expand(len(Ds) // 4),
        ),
        "the sum stands at each route again, so that it enters four times: asked is one D for the "
        "merged map, d numbers": lambda Ds: Ds.view(4, -1).sum(0).repeat(4),
        "one row for each route is right; now add the four rows": lambda Ds: Ds.view(4, -1),
        "only the forward routes, 0 and 1, are in: routes 2 and 3 have a direct way as well": (
            lambda Ds: Ds.view(4, -1)[:2].sum(0)
        ),
    },
)


# 10.3 — SS2D from its weights


class Weights(dict):
    """A state dict that a message names instead of listing it: messages give a callable's name."""

    __name__ = "random numbers"

    def __call__(self) -> dict:
        return dict(self)


def _random_weights(draw: Draw, C: int, d: int, R: int, N: int) -> Weights:
    """A state dict of SS2D with nothing at a special value."""

    def away_from_zero(*shape, low, high):
        return draw.uniform(*shape).sign() * draw.uniform(*shape, low=low, high=high)

    return Weights(
        {
            "x_proj_weight": draw.uniform(4, R + 2 * N, d),
            "dt_projs_weight": draw.uniform(4, d, R),
            "dt_projs_bias": draw.uniform(4, d, low=-2.0, high=1.0),
            "A_logs": draw.uniform(4 * d, N, low=-1.5, high=1.0),
            "Ds": away_from_zero(4 * d, low=0.3, high=1.5),
            "in_proj.weight": draw.uniform(2 * d, C),
            "conv2d.weight": draw.uniform(d, 1, 3, 3),
            "conv2d.bias": away_from_zero(d, low=0.1, high=0.5),
            "out_norm.weight": away_from_zero(d, low=0.5, high=1.5),
            "out_norm.bias": away_from_zero(d, low=0.1, high=0.5),
            "out_proj.weight": draw.uniform(C, d),
        }
    )


def _module(weights: dict) -> SS2D:
    """An SS2D of the sizes of its weights, which it holds."""
    d, C = weights["in_proj.weight"].shape[0] // 2, weights["in_proj.weight"].shape[1]
    R = weights["dt_projs_weight"].shape[-1]
    module = SS2D(C, weights["A_logs"].shape[-1], d // C, R)
    module = module.to(weights["in_proj.weight"].dtype)
    module.load_state_dict(dict(weights))
    return module


@torch.no_grad()
def _ss2d(x, weights):
    return _module(weights)(x)


def _conv(v, w, bias=True):
    """The depthwise convolution as nine shifted copies: on maps this small faster than conv2d."""
    H, W = v.shape[2:]
    padded, kernels = F.pad(v, (1, 1, 1, 1)), w["conv2d.weight"][:, 0]  # (d, 3, 3)
    copies = [
        kernels[:, i, j, None, None] * padded[:, :, i : i + H, j : j + W]
        for i in range(3)
        for j in range(3)
    ]
    return sum(copies) + bias * w["conv2d.bias"][:, None, None]


def _x_z(x, w):
    v, z = F.linear(x, w["in_proj.weight"]).chunk(2, dim=-1)
    return v, z


def _local(v, w):
    return F.silu(_conv(v, w))


def _scan_args(u, w):
    """u, Δ before bias and softplus, A, B, C, D, bias, as selective_scan takes them."""
    R = w["dt_projs_weight"].shape[-1]
    us = cross_scan(u)
    numbers = torch.einsum("bkdl,kcd->bklc", us, w["x_proj_weight"])
    low, B, C = _parts(numbers, R)
    raw = torch.einsum("bklr,kdr->bkdl", low, w["dt_projs_weight"])
    A = -torch.exp(w["A_logs"])
    bias = w["dt_projs_bias"].flatten()
    return [us.flatten(1, 2), raw.flatten(1, 2), A, B.mT, C.mT, w["Ds"], bias]


def _scanned(args, softplus=True):
    u, delta, A, B, C, D, bias = (a.contiguous() for a in args)
    return selective_scan(u, delta, A, B, C, D, bias, softplus, backend="naive")


def _merge(ys, H, W):
    return cross_merge(ys, H, W).permute(0, 2, 3, 1)


def _norm(y, w):
    centred = y - y.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
    return centred * scale * w["out_norm.weight"] + w["out_norm.bias"]


def _gated(y, z, w):
    return _norm(y, w) * F.silu(z)


def _built(
    split=_x_z,
    local=_local,
    arguments=lambda args, w: args,
    softplus=True,
    merge=_merge,
    gate=_gated,
    out=lambda y, x, w: F.linear(y, w["out_proj.weight"]),
):
    """SS2D step by step, with another step here or there."""

    def ss2d(x, weights):
        v, z = split(x, weights)
        u = local(v.permute(0, 3, 1, 2), weights)
        H, W = u.shape[2:]
        ys = _scanned(arguments(_scan_args(u, weights), weights), softplus)
        y = merge(ys.unflatten(1, (4, -1)), H, W)
        return out(gate(y, z, weights), x, weights)

    return ss2d


def _pixel_by_pixel(x, w):
    """Every route as a walk over pixels with a state in hand."""
    batch, H, W, _ = x.shape
    v, z = _x_z(x, w)
    u = _local(v.permute(0, 3, 1, 2), w).permute(0, 2, 3, 1)  # (B, H, W, d)
    delta, B, C = _project(
        u.permute(0, 3, 1, 2), w["x_proj_weight"], w["dt_projs_weight"], w["dt_projs_bias"]
    )
    d = u.shape[-1]
    A, D = -w["A_logs"].exp().view(4, d, -1), w["Ds"].view(4, d)
    y = torch.zeros_like(u)
    rows = [(i, j) for i in range(H) for j in range(W)]
    columns = [(i, j) for j in range(W) for i in range(H)]
    for k, walk in enumerate((rows, columns, rows[::-1], columns[::-1])):
        h = u.new_zeros(batch, d, A.shape[-1])
        for i, j in walk:
            dt, here = delta[:, k, i, j, :, None], u[:, i, j]
            h = torch.exp(dt * A[k]) * h + dt * B[:, k, i, j, None] * here[..., None]
            y[:, i, j] += (h * C[:, k, i, j, None]).sum(-1) + D[k] * here
    return F.linear(_gated(y, z, w), w["out_proj.weight"])


def _changed(position, change):
    """Another argument of the scan at this position: `change(argument, weights)`."""

    def arguments(args, w):
        args = list(args)
        args[position] = change(args[position], w)
        return args

    return arguments


def _softplus_before(args, w):
    """Softplus and bias outside, and softplus once more in the scan."""
    u, raw, A, B, C, D, bias = args
    return [u, F.softplus(raw + bias[:, None]), A, B, C, D, torch.zeros_like(bias)]


def _first_group(value):
    """The rows of route 0 for every route, of (4·d, …)."""
    group = value.view(4, -1, *value.shape[1:])
    return group[:1].expand_as(group).reshape(value.shape)


def _interleaved(value):
    """Read as (d, 4, …) instead of (4, d, …)."""
    return value.view(-1, 4, *value.shape[1:]).transpose(0, 1).reshape(value.shape)


def _scanned_map(x, w):
    """u, channels last."""
    return _local(_x_z(x, w)[0].permute(0, 3, 1, 2), w).permute(0, 2, 3, 1)


def _not_undone(ys, H, W):
    return ys.sum(1).unflatten(-1, (H, W)).permute(0, 2, 3, 1)


def _rows_for_columns(ys, H, W):
    forward = ys[:, :2] + ys[:, 2:].flip(-1)
    return forward.sum(1).unflatten(-1, (H, W)).permute(0, 2, 3, 1)


def _not_turned_back(ys, H, W):
    both = ys[:, :2] + ys[:, 2:]
    rows, columns = both.unbind(1)
    y = rows.unflatten(-1, (H, W)) + columns.unflatten(-1, (W, H)).transpose(2, 3)
    return y.permute(0, 2, 3, 1)


def _two_routes(ys, H, W):
    return ys[:, 0].unflatten(-1, (H, W)).permute(0, 2, 3, 1) + ys[:, 2].flip(-1).unflatten(
        -1, (H, W)
    ).permute(0, 2, 3, 1)


def _norm_each_route(x, w):
    """LayerNorm for every route, then the merge."""
    v, z = _x_z(x, w)
    u = _local(v.permute(0, 3, 1, 2), w)
    H, W = u.shape[2:]
    ys = _scanned(_scan_args(u, w)).unflatten(1, (4, -1))
    ys = _norm(ys.transpose(2, 3), w).transpose(2, 3)
    return F.linear(_merge(ys, H, W) * F.silu(z), w["out_proj.weight"])


def _blocks(draw: Draw):
    def case(batch, H, W, C, expand, R, N, dtype=torch.float64, make=lambda x: x):
        weights = _random_weights(draw, C, expand * C, R, N)
        x = make(draw.uniform(batch, H, W, C, low=-2.0, high=2.0))
        return x.to(dtype), Weights({name: w.to(dtype) for name, w in weights.items()})

    return [
        case(1, 2, 3, 2, 2, 1, 2),
        case(2, 3, 4, 4, 2, 2, 3),
        case(1, 4, 2, 3, 2, 1, 1),
        case(2, 3, 2, 4, 2, 2, 2, torch.float32),
        case(1, 3, 3, 4, 1, 2, 2, make=strided),
        case(1, 1, 1, 2, 2, 2, 2),
    ]


def _output(function, case):
    """The map; in single precision its size per channel, since single entries may be near 0."""
    x, weights = case
    with torch.no_grad():
        y = function(x, weights)
    if isinstance(y, Tensor) and y.dtype == torch.float32 and y.shape == x.shape:
        return y.double().flatten(0, 2).norm(dim=0).float()
    return y


PROJECTIONS = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias")
ROUTES_NOT_UNDONE = (
    "the four sequences are added in the order in which the routes came by: entry t of each is "
    "another pixel, so undo the order first (cross_merge does)"
)

BUILD = Exercise(
    title="SS2D from its weights",
    difficulty=4,
    hints=(
        "In this order: in_proj, cut into x and z; conv and SiLU on x; cross_scan; the projections "
        "of each route; selective_scan with delta_softplus=True; cross_merge; LayerNorm; times "
        "SiLU(z); out_proj. Compare the shapes after each line with the table of section 2.",
        'After cross_scan `us` is (B, 4, d, L): `torch.einsum("bkdl,kcd->bkcl", us, '
        'w["x_proj_weight"])`, split on axis 2 into R, N, N, and `torch.einsum("bkrl,kdr->bkdl", '
        'low, w["dt_projs_weight"])`. The scan takes `us.flatten(1, 2)`, `raw.flatten(1, 2)`, '
        '`-torch.exp(w["A_logs"])`, B, C, Ds and the bias flattened; its result is '
        "`.unflatten(1, (4, -1))` for cross_merge.",
    ),
    specification=_ss2d,
    alternatives=(_built(), _pixel_by_pixel),
    arguments=("x", "weights"),
    cases=_blocks,
    observe=_output,
    mistakes={
        "the gate is added: SiLU(z) multiplies, so that it can shut a channel of a pixel": (
            _built(gate=lambda y, z, w: _norm(y, w) + F.silu(z))
        ),
        "x and z are exchanged: the first half of in_proj is x, which is scanned; the last is z": (
            _built(split=lambda x, w: _x_z(x, w)[::-1])
        ),
        "x and z are taken in turn, every other channel: they are two halves, first x, then z": (
            _built(
                split=lambda x, w: (
                    F.linear(x, w["in_proj.weight"])[..., ::2],
                    F.linear(x, w["in_proj.weight"])[..., 1::2],
                )
            )
        ),
        "the gate is z itself here: SiLU(z) is asked": (
            _built(gate=lambda y, z, w: _norm(y, w) * z)
        ),
        "the gate is sigmoid(z) here: SiLU(z) = z · sigmoid(z)": (
            _built(gate=lambda y, z, w: _norm(y, w) * torch.sigmoid(z))
        ),
        "the gate is missing: the normed y times SiLU(z)": (
            _built(gate=lambda y, z, w: _norm(y, w))
        ),
        "the gate comes after LayerNorm, not before": (
            _built(gate=lambda y, z, w: _norm(y * F.silu(z), w))
        ),
        "LayerNorm is missing between the merge and the gate": (
            _built(gate=lambda y, z, w: y * F.silu(z))
        ),
        "LayerNorm has weights of its own here, out_norm.weight and out_norm.bias": (
            _built(gate=lambda y, z, w: F.layer_norm(y, y.shape[-1:]) * F.silu(z))
        ),
        "each route is normed by itself: the routes are added first, then comes one LayerNorm": (
            _norm_each_route
        ),
        "SiLU after the convolution is missing": _built(local=_conv),
        "after the convolution comes SiLU, not ReLU or GELU": (
            _built(local=lambda v, w: F.relu(_conv(v, w))),
            _built(local=lambda v, w: F.gelu(_conv(v, w))),
        ),
        "this tears the pixels apart: cross_merge gives (B, d, H, W), which becomes (B, H, W, d) "
        "by permute; reshape and view only cut the same row of numbers anew": _built(
            merge=lambda ys, H, W: cross_merge(ys, H, W).reshape(len(ys), H, W, -1)
        ),
        "the gate is made of u here, which is scanned: it is SiLU of the other half, z": (
            lambda x, w: _built(gate=lambda y, z, w: _norm(y, w) * _scanned_map(x, w))(x, w),
            lambda x, w: _built(gate=lambda y, z, w: _norm(y, w) * F.silu(_scanned_map(x, w)))(
                x, w
            ),
        ),
        "SiLU comes after the convolution, not before": (
            _built(local=lambda v, w: _conv(F.silu(v), w))
        ),
        "the 3×3 convolution is missing": _built(local=lambda v, w: F.silu(v)),
        "the bias of the convolution is missing": (
            _built(local=lambda v, w: F.silu(_conv(v, w, bias=False)))
        ),
        "softplus is missing: pass delta_softplus=True, or apply it to Δ plus bias": (
            _built(softplus=False)
        ),
        "softplus is in twice: delta_softplus=True applies it already, to delta + delta_bias": (
            _built(
                arguments=_changed(
                    1, lambda raw, w: F.softplus(raw + w["dt_projs_bias"].flatten()[:, None])
                )
            ),
            _built(arguments=_softplus_before),
        ),
        "the bias of Δ is missing": _built(
            arguments=_changed(6, lambda bias, w: torch.zeros_like(bias))
        ),
        "the bias of Δ is in twice: softplus(raw + bias), once": (
            _built(arguments=_changed(6, lambda bias, w: 2 * bias))
        ),
        "A has lost its minus sign: A = −exp(A_logs), and the states grow instead of decaying": (
            _built(arguments=_changed(2, lambda A, w: -A))
        ),
        "A is A_logs itself here: A = −exp(A_logs)": (
            _built(arguments=_changed(2, lambda A, w: w["A_logs"]))
        ),
        "A is −A_logs here: the exponential is missing, A = −exp(A_logs)": (
            _built(arguments=_changed(2, lambda A, w: -w["A_logs"]))
        ),
        "all routes got the A of route 0: A_logs holds four groups of d rows, one for each": (
            _built(arguments=_changed(2, lambda A, w: _first_group(A)))
        ),
        "all routes got the B and C of route 0: each has its own": _built(
            arguments=lambda args, w: [
                a[:, :1].expand_as(a) if i in (3, 4) else a for i, a in enumerate(args)
            ]
        ),
        "the rows of A_logs are grouped wrongly: the first d belong to route 0, the next d to "
        "route 1": _built(arguments=_changed(2, lambda A, w: _interleaved(A))),
        "B and C are exchanged: x_proj gives r, then B, then C": _built(
            arguments=lambda args, w: [*args[:3], args[4], args[3], *args[5:]]
        ),
        "D is missing: every route adds D·u to what it has scanned": (
            _built(arguments=_changed(5, lambda D, w: torch.zeros_like(D)))
        ),
        "D is in once, that of route 0: every route has its own, and the merge adds all four": (
            _built(
                arguments=_changed(
                    5,
                    lambda D, w: torch.cat([D[: len(D) // 4], torch.zeros_like(D[len(D) // 4 :])]),
                )
            )
        ),
        "the routes are averaged: they are added. LayerNorm hides the factor 4 almost, but its eps "
        "does not": _built(merge=lambda ys, H, W: _merge(ys, H, W) / 4),
        "all routes got the projections of route 0: x_proj, dt_proj and bias have a set for each": (
            lambda x, w: _ss2d(
                x, {name: _of_route_0(v) if name in PROJECTIONS else v for name, v in w.items()}
            )
        ),
        "the 3×3 kernels are turned round here: conv2d slides them as they are": (
            lambda x, w: _ss2d(x, dict(w) | {"conv2d.weight": w["conv2d.weight"].flip(2, 3)})
        ),
        ROUTES_NOT_UNDONE: _built(merge=_not_undone),
        "routes 1 and 3 went down the columns: lay them down as (W, H) and transpose": (
            _built(merge=_rows_for_columns)
        ),
        "routes 2 and 3 are not turned round again before they are added": (
            _built(merge=_not_turned_back)
        ),
        "only the routes along the rows are in: the merge adds all four": (
            _built(merge=_two_routes)
        ),
        "the input is added at the end: the residual belongs to the block, not to SS2D": (
            _built(out=lambda y, x, w: x + F.linear(y, w["out_proj.weight"]))
        ),
        "out_proj is missing: the result has the channels of the input again": (
            _built(out=lambda y, x, w: y)
        ),
    },
)


# 10.4 — the weights of the transposed map

TRANSPOSED = [1, 0, 3, 2]


def _rearranged(weights, routes=TRANSPOSED, kernel=lambda k: k.mT, leave=()):
    """The weights of each route handed to another, and the 3×3 kernels changed."""
    new = dict(weights)
    for name in PROJECTIONS:
        if name not in leave:
            new[name] = new[name][routes]
    for name in ("A_logs", "Ds"):
        if name not in leave:
            new[name] = new[name].unflatten(0, (4, -1))[routes].flatten(0, 1)
    if "conv2d.weight" not in leave:
        new["conv2d.weight"] = kernel(new["conv2d.weight"])
    return new


def _rearranged_by_hand(weights):
    new = {name: value.clone() for name, value in weights.items()}
    d = len(weights["Ds"]) // 4
    for old, k in ((0, 1), (1, 0), (2, 3), (3, 2)):
        for name in PROJECTIONS:
            new[name][k] = weights[name][old]
        new["A_logs"][k * d : k * d + d] = weights["A_logs"][old * d : old * d + d]
        # The four Ds only appear as their sum: they may stay where they are.
    new["conv2d.weight"] = weights["conv2d.weight"].permute(0, 1, 3, 2)
    return new


def _rearranged_in_pairs(weights):
    """Neighbouring routes change places: a view of pairs, turned round."""

    def swap(value):
        return value.unflatten(0, (2, 2)).flip(1).flatten(0, 1)

    def swap_groups(value):
        return swap(value.unflatten(0, (4, -1))).flatten(0, 1)

    new = {
        name: swap(w) if w.shape[0] == 4 and "proj" in name else w for name, w in weights.items()
    }
    for name in ("in_proj.weight", "out_proj.weight"):
        new[name] = weights[name]
    new["A_logs"], new["Ds"] = swap_groups(weights["A_logs"]), swap_groups(weights["Ds"])
    new["conv2d.weight"] = weights["conv2d.weight"].transpose(2, 3)
    return new


def _on_the_transposed(function, case):
    """What SS2D with the new weights makes of the transposed map, turned back."""
    weights, x = case
    before = {name: w.clone() for name, w in weights.items()}
    new = function(weights)
    if any(not torch.equal(before[name], weights[name]) for name in before):
        raise ValueError("your function overwrites the weights that it is given: return new ones")
    if not isinstance(new, dict):
        raise TypeError("expected the dict of all weights, with the same names")
    for name, w in before.items():
        if name not in new:
            raise ValueError(f"{name} is missing: return all weights, the unchanged ones, too")
        if (shape := tuple(torch.as_tensor(new[name]).shape)) != w.shape:
            raise ValueError(f"{name} has shape {shape}: no weight changes its shape here")
    new = {name: torch.as_tensor(w).to(x.dtype) for name, w in new.items()}
    with torch.no_grad():
        return _module(new)(x.transpose(1, 2)).transpose(1, 2)


def _weights_and_maps(draw: Draw):
    def case(batch, H, W, C, expand, R, N, dtype=torch.float64):
        weights = _random_weights(draw, C, expand * C, R, N)
        weights = Weights({name: w.to(dtype) for name, w in weights.items()})
        return weights, draw.uniform(batch, H, W, C, low=-2.0, high=2.0)

    return [
        case(1, 2, 3, 2, 2, 1, 2),
        case(2, 4, 3, 3, 2, 2, 3),
        case(1, 3, 3, 2, 2, 1, 1),
        case(1, 1, 4, 4, 1, 2, 2),
        case(2, 2, 2, 3, 1, 1, 2, torch.float32),
        case(1, 3, 2, 4, 2, 4, 2),
    ]


TRANSPOSE = Exercise(
    title="Weights for the transposed map",
    difficulty=3,
    hints=(
        "In the transposed map the columns of the old one are rows: what route 1 did, route 0 must "
        "do now. Which weights belong to a route, and what else sees more than one pixel?",
        "`order = [1, 0, 3, 2]`; index the three projections with it, and A_logs as "
        '`w["A_logs"].unflatten(0, (4, -1))[order].flatten(0, 1)`, Ds likewise. The 3×3 kernels '
        "are transposed. All others stay.",
    ),
    specification=_rearranged,
    alternatives=(_rearranged_by_hand, _rearranged_in_pairs),
    arguments=("weights", "x"),
    cases=_weights_and_maps,
    observe=_on_the_transposed,
    mistakes={
        "nothing has changed: a map on its side is read by the rows where it was read by columns": (
            lambda weights: dict(weights)
        ),
        "the 3×3 kernels see more than one pixel, too: transpose them": (
            lambda weights: _rearranged(weights, leave=("conv2d.weight",))
        ),
        "only the kernels are transposed: the routes must change places as well": (
            lambda weights: _rearranged(weights, routes=[0, 1, 2, 3])
        ),
        "this is the half turn: routes 0 and 2, 1 and 3 change places there; the transpose "
        "exchanges rows and columns, so 0 and 1, 2 and 3": (
            lambda weights: _rearranged(weights, [2, 3, 0, 1]),
            lambda weights: _rearranged(weights, [2, 3, 0, 1], lambda k: k.flip(2, 3)),
        ),
        "this is the other diagonal, the anti-transpose: there 0 and 3, 1 and 2 change places": (
            lambda weights: _rearranged(weights, [3, 2, 1, 0]),
            lambda weights: _rearranged(weights, [3, 2, 1, 0], lambda k: k.flip(2, 3).mT),
        ),
        "only two routes have changed places: 0 and 1, and their reverses 2 and 3 as well": (
            lambda weights: _rearranged(weights, [1, 0, 2, 3]),
            lambda weights: _rearranged(weights, [0, 1, 3, 2]),
        ),
        "the routes move on by one here; in pairs they change places": (
            lambda weights: _rearranged(weights, [1, 2, 3, 0]),
            lambda weights: _rearranged(weights, [3, 0, 1, 2]),
        ),
        "A_logs belongs to the routes: four groups of d rows, which change places like the rest": (
            lambda weights: _rearranged(weights, leave=("A_logs",))
        ),
        "A_logs is cut wrongly: group k is the rows k·d … k·d + d − 1, so unflatten to (4, d, N)": (
            lambda weights: (
                _rearranged(weights, leave=("A_logs",))
                | {"A_logs": weights["A_logs"].unflatten(0, (-1, 4))[:, TRANSPOSED].flatten(0, 1)}
            )
        ),
        "x_proj belongs to the routes: r, B and C are computed by each in its own way": (
            lambda weights: _rearranged(weights, leave=("x_proj_weight",))
        ),
        "dt_projs_weight belongs to the routes": (
            lambda weights: _rearranged(weights, leave=("dt_projs_weight",))
        ),
        "dt_projs_bias belongs to the routes: each has steps of its own": (
            lambda weights: _rearranged(weights, leave=("dt_projs_bias",))
        ),
        "the kernels are turned by half here, not transposed: rows and columns change places": (
            lambda weights: _rearranged(weights, kernel=lambda k: k.flip(2, 3))
        ),
        "the kernels are turned by a quarter here, not transposed": (
            lambda weights: _rearranged(weights, kernel=lambda k: k.rot90(1, (2, 3))),
            lambda weights: _rearranged(weights, kernel=lambda k: k.rot90(-1, (2, 3))),
        ),
    },
)


EXERCISES = {"10.1": PROJECT, "10.2": FOLD, "10.3": BUILD, "10.4": TRANSPOSE}

"""The exercises of lesson 09, the cross-scan module."""

from collections.abc import Callable

import torch
from torch import Tensor

from minivmamba.classroom.exercise import Draw, Exercise, strided
from minivmamba.cross_scan import cross_merge, cross_scan


def _columns(x):
    return x.transpose(2, 3).flatten(2)


# 09.1 — lay the map out


def _scan(x):
    rows, columns = x.flatten(2), _columns(x)
    return torch.stack([rows, columns, rows.flip(-1), columns.flip(-1)], dim=1)


def _scan_by_index(x):
    H, W = x.shape[2:]
    numbers = torch.arange(H * W).view(H, W)
    routes = torch.stack([numbers.flatten(), numbers.T.flatten()])
    routes = torch.cat([routes, routes.flip(1)])
    return x.flatten(2)[:, :, routes].transpose(1, 2)


def _scan_by_turning(x):
    """Routes 2 and 3 are routes 0 and 1 of the map after a half turn."""
    halves = [torch.stack([m.flatten(2), _columns(m)], dim=1) for m in (x, x.flip(2, 3))]
    return torch.cat(halves, dim=1)


def _scan_pixel_by_pixel(x):
    B, C, H, W = x.shape
    ys = x.new_empty(B, 4, C, H * W)
    for r in range(H):
        for c in range(W):
            for route, at in enumerate((r * W + c, c * H + r)):
                ys[:, route, :, at] = ys[:, route + 2, :, H * W - 1 - at] = x[:, :, r, c]
    return ys


def _four(*parts: Callable):
    """A cross-scan from four functions of the map, each giving a sequence."""
    return lambda x: torch.stack([part(x) for part in parts], dim=1)


def _rows(x):
    return x.flatten(2)


def _reversed(part: Callable):
    return lambda x: part(x).flip(-1)


def _rotations(x):
    return torch.stack([torch.rot90(x, k, (2, 3)).flatten(2) for k in range(4)], dim=1)


def _snake(x):
    def snake(m):
        m = m.clone()
        m[:, :, 1::2] = m[:, :, 1::2].flip(-1)
        return m.flatten(2)

    forward = torch.stack([snake(x), snake(x.transpose(2, 3))], dim=1)
    return torch.cat([forward, forward.flip(-1)], dim=1)


def _diagonals(x):
    def along(m):
        H, W = m.shape[2:]
        cells = sorted((r + c, r, c) for r in range(H) for c in range(W))
        return torch.stack([m[:, :, r, c] for _, r, c in cells], dim=-1)

    return torch.stack([along(m) for m in (x, x.flip(3), x.flip(2, 3), x.flip(2))], dim=1)


def _corners_by_rows(x):
    """Rows only, from each of the four corners."""
    return torch.stack([m.flatten(2) for m in (x, x.flip(3), x.flip(2, 3), x.flip(2))], dim=1)


def _viewed(x):
    forward = torch.stack([x.view(*x.shape[:2], -1), _columns(x)], dim=1)
    return torch.cat([forward, forward.flip(-1)], dim=1)


def _flipped_routes(x):
    forward = torch.stack([_rows(x), _columns(x)], dim=1)
    return torch.cat([forward, forward.flip(1)], dim=1)


def _flipped_channels(x):
    forward = torch.stack([_rows(x), _columns(x)], dim=1)
    return torch.cat([forward, forward.flip(2)], dim=1)


def _all_flipped(x):
    forward = torch.stack([_rows(x), _columns(x)], dim=1)
    return torch.cat([forward, forward.flip(1, -1)], dim=1)


def _as_if_wide(x):
    return x.reshape(*x.shape[:2], x.shape[3], x.shape[2]).transpose(2, 3).flatten(2)


def _maps(draw: Draw):
    worked = torch.arange(6, dtype=torch.float64).view(1, 1, 2, 3)
    return [
        (worked,),
        (draw.uniform(2, 3, 4, 5),),
        (draw.uniform(1, 2, 3, 2),),
        (strided(draw.uniform(2, 2, 3, 4)),),
        (draw.uniform(1, 2, 1, 7),),
        (draw.uniform(1, 2, 6, 1),),
        (draw.uniform(3, 1, 1, 1),),
        (draw.uniform(1, 3, 2, 5, dtype=torch.float32),),
        (draw.uniform(2, 2, 4, 4),),
        (draw.uniform(1, 4, 5, 3).permute(0, 3, 1, 2),),
        (draw.uniform(1, 2, draw.integer(5, 8), draw.integer(9, 12)),),
    ]


SCAN = Exercise(
    title="Lay a map out",
    difficulty=2,
    hints=(
        "Route 0 is the map flattened. Route 1 is the same of the map with H and W exchanged. "
        "Routes 2 and 3 are these two sequences from the end.",
        "`rows = x.flatten(2)`, `columns = x.transpose(2, 3).flatten(2)`; stack them with their "
        "`.flip(-1)` along a new axis 1, in the order rows, columns, rows reversed, columns "
        "reversed.",
    ),
    specification=_scan,
    alternatives=(_scan_by_index, _scan_by_turning, _scan_pixel_by_pixel),
    arguments=("x",),
    cases=_maps,
    mistakes={
        "these are four rotations of the map: a quarter turn gives lines that are none of the "
        "four routes. There are two lines, rows and columns, each run both ways": (
            _rotations,
            lambda x: _rotations(x)[:, [0, 3, 2, 1]],
        ),
        "these routes start at all four corners and run along rows only: the code starts at two "
        "corners, at each along the rows and along the columns": _corners_by_rows,
        "these are diagonals: the routes of VMamba run along whole rows and whole columns": (
            _diagonals,
        ),
        "the routes are in the order rows, rows reversed, columns, columns reversed: the released "
        "weights expect rows, columns, and then both reversed": (
            _four(_rows, _reversed(_rows), _columns, _reversed(_columns)),
        ),
        "the reversed routes come first here: 0 and 1 start at the top left": (
            _four(_reversed(_rows), _reversed(_columns), _rows, _columns),
        ),
        "columns come first here: route 0 goes along the rows": (
            _four(_columns, _rows, _reversed(_columns), _reversed(_rows)),
        ),
        "routes 2 and 3 run backwards: they are 0 and 1 reversed, not 0 and 1 again": (
            _four(_rows, _columns, _rows, _columns),
        ),
        "a reshape renames the axes but moves no pixel, so route 1 is route 0 here: exchange H and "
        "W with transpose, then flatten": (_four(_rows, _rows, _reversed(_rows), _reversed(_rows))),
        "routes 2 and 3 reverse the whole sequence, not each row or column: the last row comes "
        "first and in it the last pixel": (
            _four(
                _rows,
                _columns,
                lambda x: x.flip(3).flatten(2),
                lambda x: _columns(x.flip(2)),
            ),
            _four(
                _rows,
                _columns,
                lambda x: x.flip(2).flatten(2),
                lambda x: _columns(x.flip(3)),
            ),
            _four(
                _rows,
                _columns,
                lambda x: x.flip(3).flatten(2),
                lambda x: _columns(x.flip(3)),
            ),
            _four(
                _rows,
                _columns,
                lambda x: x.flip(2).flatten(2),
                lambda x: _columns(x.flip(2)),
            ),
        ),
        "flip along the pixels, the last axis: this exchanges the routes or the channels and "
        "reverses no sequence": (_flipped_routes, _flipped_channels),
        "route 2 is route 0 reversed and route 3 is route 1 reversed; here they are exchanged": (
            _all_flipped
        ),
        "the transposed map is (W, H), but the pixels were first relaid as (W, H) and then "
        "transposed: that is the way back from route 1, the same only where H = W": (
            _four(_rows, _as_if_wide, _reversed(_rows), _reversed(_as_if_wide)),
        ),
        "every row is run in the same direction, and so is every column: a route jumps to the "
        "start of the next one": _snake,
        "the route is the second axis, before the channels: (B, 4, C, H·W)": (
            lambda x: _scan(x).transpose(1, 2),
            lambda x: _scan(x).transpose(0, 1),
        ),
        "this flattens the routes into the channels: keep them apart, (B, 4, C, H·W)": (
            lambda x: _scan(x).flatten(1, 2)
        ),
        "the routes are still maps: each becomes one sequence, (B, 4, C, H·W)": (
            lambda x: _scan(x).unflatten(-1, x.shape[2:])
        ),
        "only two of the four routes are there: the reversed ones are missing": (
            lambda x: _scan(x)[:, :2]
        ),
        "view needs the pixels to lie one after another in memory, and in a slice they do not: "
        "flatten or reshape": _viewed,
    },
)


# 09.2 — bring the sequences back


def _merge(ys, H, W):
    rows, columns, rows_back, columns_back = ys.unbind(1)
    along_rows = rows + rows_back.flip(-1)
    along_columns = columns + columns_back.flip(-1)
    return along_rows.unflatten(-1, (H, W)) + along_columns.unflatten(-1, (W, H)).transpose(2, 3)


def _merge_by_arrival(ys, H, W):
    """Look each pixel up at the moment a route arrives there."""
    r, c = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    y0, y1, y2, y3 = ys.unbind(1)
    by_rows, by_columns, last = r * W + c, c * H + r, H * W - 1
    return y0[..., by_rows] + y1[..., by_columns] + y2[..., last - by_rows] + (
        y3[..., last - by_columns]
    )  # fmt: skip


def _merge_by_adding_at(ys, H, W):
    """Send each number to its pixel and let it add up there."""
    routes = cross_scan(torch.arange(H * W).view(1, 1, H, W))[0, :, 0]
    out = torch.zeros_like(ys[:, 0])
    for k in range(4):
        out.index_add_(-1, routes[k], ys[:, k])
    return out.unflatten(-1, (H, W))


def _merge_as_gradient(ys, H, W):
    """The adjoint of the scan is what its gradient applies."""
    with torch.enable_grad():
        x = torch.zeros(ys.shape[0], ys.shape[2], H, W, dtype=ys.dtype, requires_grad=True)
        (cross_scan(x) * ys).sum().backward()
    return x.grad


def _back(rows: Callable, columns: Callable, rows_back: Callable, columns_back: Callable):
    """A merge from four ways to bring one sequence back to the map."""
    ways = (rows, columns, rows_back, columns_back)

    def merge(ys, H, W):
        return sum(way(ys[:, k], H, W) for k, way in enumerate(ways))

    return merge


def _from_rows(y, H, W):
    return y.unflatten(-1, (H, W))


def _from_columns(y, H, W):
    return y.unflatten(-1, (W, H)).transpose(2, 3)


def _turned(way: Callable):
    return lambda y, H, W: way(y.flip(-1), H, W)


def _relaid(y, H, W):
    """The scan along the columns once more, where its inverse is asked for."""
    return y.unflatten(-1, (H, W)).transpose(2, 3).reshape(*y.shape[:2], H, W)


def _mirrored(way: Callable, axis: int):
    return lambda y, H, W: way(y, H, W).flip(axis)


_MERGED = (_from_rows, _from_columns, _turned(_from_rows), _turned(_from_columns))


def _of_routes(*routes: int):
    return lambda ys, H, W: sum(_MERGED[k](ys[:, k], H, W) for k in routes)


def _stacked(ys, H, W):
    return torch.stack([way(ys[:, k], H, W) for k, way in enumerate(_MERGED)], dim=1)


def _sequences(draw: Draw):
    worked = torch.zeros(1, 4, 1, 6, dtype=torch.float64)
    worked[0, 1, 0] = torch.arange(6)
    worked[0, 2, 0, 0] = 10
    return [
        (worked, 2, 3),
        (draw.uniform(2, 4, 3, 20), 4, 5),
        (draw.uniform(1, 4, 2, 6), 3, 2),
        (strided(draw.uniform(2, 4, 2, 12)), 3, 4),
        (draw.uniform(1, 4, 2, 7), 1, 7),
        (draw.uniform(1, 4, 2, 6), 6, 1),
        (draw.uniform(3, 4, 1, 1), 1, 1),
        (draw.uniform(1, 4, 3, 10, dtype=torch.float32), 2, 5),
        (draw.uniform(2, 4, 2, 16), 4, 4),
        (draw.uniform(1, 4, 15, 2).transpose(2, 3), 3, 5),
        (draw.uniform(1, 4, 2, 12), 6, 2),
    ]


MERGE = Exercise(
    title="Bring four sequences back",
    difficulty=3,
    hints=(
        "First turn routes 2 and 3 round: then they run as 0 and 1 do, and two sums of two "
        "sequences are left. A sum along the columns lists W columns of H pixels.",
        "`forward = ys[:, :2] + ys[:, 2:].flip(-1)`. Row by row: `.unflatten(-1, (H, W))`. Column "
        "by column: `.unflatten(-1, (W, H)).transpose(2, 3)`.",
    ),
    specification=_merge,
    alternatives=(_merge_by_arrival, _merge_by_adding_at, _merge_as_gradient),
    arguments=("ys", "H", "W"),
    cases=_sequences,
    mistakes={
        "this is the mean of the four maps: the module adds them, unweighted": (
            lambda ys, H, W: _merge(ys, H, W) / 4
        ),
        "routes 2 and 3 are added as they are: turn them round first, they started at the other "
        "end": _back(_from_rows, _from_columns, _from_rows, _from_columns),
        "it is routes 2 and 3 that run backwards; here 0 and 1 are turned round": (
            _back(_turned(_from_rows), _turned(_from_columns), _from_rows, _from_columns),
        ),
        "all four are added in the order in which they arrive, whatever pixel they belong to: undo "
        "each order first": (lambda ys, H, W: ys.sum(1).unflatten(-1, (H, W))),
        "a sequence along the columns lists W columns of H pixels: unflatten it to (W, H), then "
        "transpose. Read as (H, W), or looked up by the order instead of the arrival, it comes "
        "back right at most where H = W": (
            _back(_from_rows, _relaid, _turned(_from_rows), _turned(_relaid)),
            _back(_from_rows, _from_rows, _turned(_from_rows), _turned(_from_rows)),
        ),
        "the flip reverses the whole sequence; flipping the rows or the columns of the map "
        "undoes only a half of it": (
            _back(_from_rows, _from_columns, _mirrored(_from_rows, 3), _mirrored(_from_columns, 2)),
            _back(_from_rows, _from_columns, _mirrored(_from_rows, 2), _mirrored(_from_columns, 3)),
            _back(_from_rows, _from_columns, _mirrored(_from_rows, 3), _mirrored(_from_columns, 3)),
            _back(_from_rows, _from_columns, _mirrored(_from_rows, 2), _mirrored(_from_columns, 2)),
        ),
        "the routes are ordered rows, columns, rows reversed, columns reversed; here they are "
        "taken as rows, rows reversed, columns, columns reversed": (
            _back(_from_rows, _turned(_from_rows), _from_columns, _turned(_from_columns)),
        ),
        "route 2 belongs to route 0 and route 3 to route 1; here they are exchanged": (
            _back(_from_rows, _from_columns, _turned(_from_columns), _turned(_from_rows)),
            lambda ys, H, W: _merge(torch.cat([ys[:, :2], ys[:, 2:].flip(1)], dim=1), H, W),
        ),
        "flip along the pixels, the last axis: the flip here acts on the channels": (
            lambda ys, H, W: _merge(torch.cat([ys[:, :2], ys[:, 2:].flip(2, -1)], dim=1), H, W)
        ),
        "routes 0 and 2 go along the rows, 1 and 3 along the columns; here it is the other way "
        "round": _back(_from_columns, _from_rows, _turned(_from_columns), _turned(_from_rows)),
        "two routes are left out: all four maps are added": (
            _of_routes(0, 1),
            _of_routes(0, 2),
            _of_routes(1, 3),
            _of_routes(2, 3),
        ),
        "the four maps are not added yet: asked is (B, C, H, W)": (
            _stacked,
            lambda ys, H, W: _stacked(ys, H, W).flatten(1, 2),
        ),
        "the values are right, as one sequence for each channel: give it back its shape, "
        "(B, C, H, W)": lambda ys, H, W: _merge(ys, H, W).flatten(2),
        "height and width are exchanged in the result: it is (B, C, H, W)": (
            lambda ys, H, W: _merge(ys, H, W).transpose(2, 3)
        ),
        "the largest of the four is taken; the module adds them": (
            lambda ys, H, W: _stacked(ys, H, W).amax(1)
        ),
        "the routes are multiplied; the module adds them": (
            lambda ys, H, W: _stacked(ys, H, W).prod(1)
        ),
    },
)


# 09.3 — who hears whom


def _arrivals(orders):
    return orders.argsort(dim=1)


def _reach(orders):
    at = _arrivals(orders)  # (K, L): when route k arrives at pixel p
    return (at[:, :, None] >= at[:, None, :]).any(0)


def _reach_by_walking(orders):
    L = orders.shape[1]
    heard = torch.zeros(L, L, dtype=torch.bool)
    for order in orders.tolist():
        for step, pixel in enumerate(order):
            heard[pixel, order[: step + 1]] = True
    return heard


def _reach_by_triangles(orders):
    """A lower triangle in the order of the route, put back into the order of the pixels."""
    L = orders.shape[1]
    heard = torch.zeros(L, L)
    for order in orders:
        heard[order[:, None], order[None, :]] += torch.ones(L, L).tril()
    return heard > 0


def _reach_by_scanning(orders):
    """Send a one from every pixel and see where a running sum has heard of it."""
    L = orders.shape[1]
    ones = torch.eye(L)
    arrived = [ones[order].cumsum(0)[order.argsort()] for order in orders]
    return torch.stack(arrived).sum(0) > 0


def _just_before(orders):
    L = orders.shape[1]
    heard = torch.eye(L, dtype=torch.bool)
    for order in orders:
        heard[order[1:], order[:-1]] = True
    return heard


def _confused(orders):
    return (orders[:, :, None] >= orders[:, None, :]).any(0)


def _twice(orders):
    heard = _reach(orders).double()
    return heard @ heard > 0


def _route_sets(draw: Draw):
    def routes(H, W, *chosen):
        return cross_scan(torch.arange(H * W).view(1, 1, H, W))[0, list(chosen), 0]

    def shuffled(K, L):
        return torch.stack([torch.randperm(L, generator=draw.generator) for _ in range(K)])

    chosen = [
        routes(2, 3, 1),
        routes(2, 3, 0, 1),
        routes(2, 3, 0, 2),
        routes(3, 4, 0, 1, 2, 3),
        routes(4, 3, 0, 3),
        routes(4, 2, 1, 2),
        routes(1, 5, 0, 1),
        routes(5, 1, 0, 2),
        routes(1, 1, 0),
        routes(3, 3, 1, 1),
        shuffled(1, 7),
        shuffled(2, 9),
        shuffled(3, 6),
        routes(3, 5, 1).expand(2, -1),
    ]
    return [(orders,) for orders in chosen]


REACH = Exercise(
    title="Who hears whom",
    difficulty=2,
    hints=(
        "A pixel hears what a route has passed when it arrives there, itself included. Turn each "
        "order into moments of arrival first.",
        "`at = orders.argsort(1)` holds the moment at which route k arrives at pixel p. Compare "
        "`at[:, :, None]` with `at[:, None, :]`, and ask for `.any(0)`.",
    ),
    specification=_reach,
    alternatives=(_reach_by_walking, _reach_by_triangles, _reach_by_scanning),
    arguments=("orders",),
    cases=_route_sets,
    mistakes={
        "the order is taken for the moment of arrival: orders[k, i] is the pixel at step i, and "
        "its inverse, orders.argsort(1), the step at pixel p": (
            _confused,
            lambda orders: _confused(orders).T,
        ),
        "this is the other way round: row p says whom pixel p hears, not who hears it": (
            lambda orders: _reach(orders).T
        ),
        "a pixel hears itself: a step takes its input in before its output is read": (
            lambda orders: _reach(orders) & ~torch.eye(orders.shape[1], dtype=torch.bool)
        ),
        "one route is enough: this asks that all routes have passed the other pixel": (
            lambda orders: (_arrivals(orders)[:, :, None] >= _arrivals(orders)[:, None, :]).all(0)
        ),
        "this counts the routes; asked is whether there is one": (
            lambda orders: (_arrivals(orders)[:, :, None] >= _arrivals(orders)[:, None, :]).sum(0)
        ),
        "only the pixel just before is heard here: the state carries on what came before that": (
            _just_before
        ),
        "rows and columns are numbered by steps here: number them by pixels, or the routes "
        "cannot be compared": lambda orders: torch.ones(
            orders.shape[1], orders.shape[1], dtype=torch.bool
        ).tril(),
        "this lets news go on through a second scan: asked is one scan, along one route": _twice,
        "one table for each route: asked is one for all of them together": (
            lambda orders: _arrivals(orders)[:, :, None] >= _arrivals(orders)[:, None, :]
        ),
        "only one of the routes is looked at": (
            lambda orders: _reach(orders[:1]),
            lambda orders: _reach(orders[-1:]),
        ),
        "a route is not run backwards unless it is in the list: a pixel hears what comes before "
        "it, not what comes after": (
            lambda orders: torch.ones(orders.shape[1], orders.shape[1], dtype=torch.bool)
        ),
    },
)


# 09.4 — which symmetries keep the four routes


def _routes_of(x):
    return cross_scan(x[None, None])[0, :, 0]


def _pixels(H, W):
    return torch.arange(H * W).view(H, W)


def _same_routes(turn, H, W):
    before, after = _routes_of(_pixels(H, W)), _routes_of(turn(_pixels(H, W)))
    return [next((j for j in range(4) if torch.equal(before[j], after[k])), -1) for k in range(4)]


def _same_routes_with_lists(turn, H, W):
    before = _routes_of(_pixels(H, W)).tolist()
    after = _routes_of(turn(_pixels(H, W))).tolist()
    return [before.index(route) if route in before else -1 for route in after]


def _same_routes_by_table(turn, H, W):
    x = torch.rand(H, W, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    equal = (_routes_of(turn(x))[:, None] == _routes_of(x)[None]).all(-1)  # (k, j)
    return torch.where(equal.any(1), equal.int().argmax(1), -1)


def _matching(alike: Callable, none: int = -1, first: bool = True):
    """An answer that uses another idea of two sequences being alike."""

    def answer(turn, H, W):
        before, after = _routes_of(_pixels(H, W)), _routes_of(turn(_pixels(H, W)))
        found = []
        for route in after:
            fits = [j for j in range(4) if alike(before[j], route)]
            found.append((fits[0] if first else fits[-1]) if fits else none)
        return found

    return answer


def _only_of_one_shape(turn, H, W):
    return [-1] * 4 if turn(_pixels(H, W)).shape != (H, W) else _same_routes(turn, H, W)


def _most_alike(turn, H, W):
    before, after = _routes_of(_pixels(H, W)), _routes_of(turn(_pixels(H, W)))
    return (before[None] == after[:, None]).sum(-1).argmax(1)


def _other_way(turn, H, W):
    before, after = _routes_of(_pixels(H, W)), _routes_of(turn(_pixels(H, W)))
    return [next((j for j in range(4) if torch.equal(after[j], before[k])), -1) for k in range(4)]


def _in_place(turn, H, W):
    before, after = _routes_of(_pixels(H, W)), _routes_of(turn(_pixels(H, W)))
    return [k if torch.equal(before[k], after[k]) else -1 for k in range(4)]


def _on_the_map(turn, H, W):
    """Merges before it compares: four equal maps."""
    x = _pixels(H, W)
    merged = cross_merge(cross_scan(turn(x)[None, None]), *turn(x).shape)[0, 0]
    same = merged.shape == (H, W) and torch.equal(merged, 4 * x)
    return [0, 1, 2, 3] if same else [-1] * 4


# The eight symmetries of the square, and some other rearrangements.


def identity(x: Tensor) -> Tensor:
    return x


def half_turn(x: Tensor) -> Tensor:
    return x.flip(-2, -1)


def transpose(x: Tensor) -> Tensor:
    return x.transpose(-2, -1)


def anti_transpose(x: Tensor) -> Tensor:
    return x.flip(-2, -1).transpose(-2, -1)


def mirror(x: Tensor) -> Tensor:
    return x.flip(-1)


def upside_down(x: Tensor) -> Tensor:
    return x.flip(-2)


def quarter_turn(x: Tensor) -> Tensor:
    return torch.rot90(x, 1, (-2, -1))


def quarter_turn_back(x: Tensor) -> Tensor:
    return torch.rot90(x, -1, (-2, -1))


def columns_into_rows(x: Tensor) -> Tensor:
    return x.transpose(-2, -1).reshape(x.shape)


def last_two_exchanged(x: Tensor) -> Tensor:
    flat = x.flatten(-2)
    return torch.cat([flat[..., :-2], flat[..., -2:].flip(-1)], dim=-1).unflatten(-1, x.shape[-2:])


def middle_exchanged(x: Tensor) -> Tensor:
    """Pixels 1 and 2: the corners of a map of three rows and columns stay."""
    order = torch.arange(x.shape[-2] * x.shape[-1])
    order[1:3] = order[1:3].flip(0)
    return x.flatten(-2)[..., order].unflatten(-1, x.shape[-2:])


SYMMETRIES = (
    identity,
    half_turn,
    transpose,
    anti_transpose,
    mirror,
    upside_down,
    quarter_turn,
    quarter_turn_back,
)


def _turns(draw: Draw):
    sizes = [(2, 3), (3, 3), (4, 2), (1, 5), (4, 1), (1, 1)]
    sizes.append((draw.integer(5, 7), draw.integer(8, 9)))
    cases = [(transpose, 2, 3), *((turn, H, W) for turn in SYMMETRIES for H, W in sizes)]
    others = (columns_into_rows, last_two_exchanged, middle_exchanged)
    return cases + [(turn, H, W) for turn in others for H, W in [(2, 4), (3, 4), (4, 3)]]


KEPT = Exercise(
    title="Which symmetries keep the routes?",
    difficulty=3,
    hints=(
        "Number the pixels, `x = torch.arange(H * W).view(1, 1, H, W)`, and scan both x and "
        "turn(x). Compare whole sequences: four with four.",
        "`before = minivmamba.cross_scan(x)[0, :, 0].tolist()` and the same of `turn(x)`. For each "
        "sequence of the turned map: `before.index(route) if route in before else -1`.",
    ),
    specification=_same_routes,
    alternatives=(_same_routes_with_lists, _same_routes_by_table),
    arguments=("turn", "H", "W"),
    cases=_turns,
    mistakes={
        "every route visits every pixel, so as sets they are all equal: compare the order": (
            _matching(lambda a, b: torch.equal(a.sort().values, b.sort().values)),
        ),
        "the first pixel alone does not tell a route: two routes start in the same corner": (
            _matching(lambda a, b: a[0] == b[0]),
        ),
        "the first and the last pixel do not tell a route: rows and columns share both corners": (
            _matching(lambda a, b: a[0] == b[0] and a[-1] == b[-1]),
        ),
        "a transposed map of 2 × 3 is 3 × 2, and it has four routes as well: compare the "
        "sequences, not the shapes": _only_of_one_shape,
        "a line run backwards is another route: here a sequence and its reverse pass for one": (
            _matching(lambda a, b: torch.equal(a, b) or torch.equal(a, b.flip(0))),
        ),
        "the most similar route is not the same route: where none agrees everywhere, the answer "
        "is −1": _most_alike,
        "this is the other way round: entry k belongs to route k of the *turned* map, and names "
        "the route of the original": _other_way,
        "routes are counted from 0": lambda turn, H, W: [
            k + 1 if k >= 0 else k for k in _same_routes(turn, H, W)
        ],
        "of several equal routes the smallest number is asked for": (
            _matching(torch.equal, first=False),
        ),
        "asked are four numbers, one for each route, not whether all of them are kept": (
            lambda turn, H, W: -1 not in _same_routes(turn, H, W),
            lambda turn, H, W: sorted(_same_routes(turn, H, W)) == [0, 1, 2, 3],
            lambda turn, H, W: sum(k >= 0 for k in _same_routes(turn, H, W)),
        ),
        "after the merge nothing is left of the routes: compare the sequences": _on_the_map,
        "compare each route with all four of the original, not only with the one of the same "
        "number: routes can change places": _in_place,
        "a number is missing: where no route of the original is the same, −1 stands in its place": (
            lambda turn, H, W: [k for k in _same_routes(turn, H, W) if k >= 0]
        ),
        "a symmetry can keep some routes and lose others: decide for each by itself": (
            lambda turn, H, W: [-1] * 4 if -1 in (found := _same_routes(turn, H, W)) else found
        ),
    },
)


EXERCISES = {"09.1": SCAN, "09.2": MERGE, "09.3": REACH, "09.4": KEPT}

"""The exercises of lesson 00, start here."""

import math

from minivmamba.classroom.exercise import Draw, Exercise

# 00.1 — the maps of VMamba-T


def _stages(H, W, grow=lambda side: -(-side // 2)):
    H, W, C = H // 4, W // 4, 96
    shapes = []
    for _ in range(4):
        shapes.append((C, H, W))
        H, W, C = grow(H), grow(W), 2 * C
    return shapes


def _stages_by_division(H, W):
    H, W = H // 4, W // 4
    return [(96 << k, math.ceil(H / 2**k), math.ceil(W / 2**k)) for k in range(4)]


def _stages_by_recursion(H, W, C=96, stage=1):
    if stage == 1:
        H, W = H // 4, W // 4
    rest = _stages_by_recursion(H + 1 >> 1, W + 1 >> 1, 2 * C, stage + 1) if stage < 4 else []
    return [[C, H, W], *rest]


def _sizes(draw: Draw):
    fixed = [(224, 224), (64, 96), (100, 36), (225, 130), (32, 32), (35, 47), (1025, 62)]
    one_side_odd = [(40, 56), (100, 64), (64, 100)]  # at some stage, the other side not
    drawn = [(draw.integer(32, 600), draw.integer(32, 600)) for _ in range(6)]
    return fixed + one_side_odd + drawn


SHAPES = Exercise(
    title="The maps of any image",
    difficulty=1,
    hints=(
        "Start from (96, H // 4, W // 4) and repeat one step three times.",
        "Half of an odd map with one row of zeros added is (H + 1) // 2. For 230 × 130 pixels the "
        "second map is (192, 29, 16).",
    ),
    specification=_stages,
    alternatives=(_stages_by_division, _stages_by_recursion),
    arguments=("H", "W"),
    cases=_sizes,
    mistakes={
        "an odd map grows by a row or column of zeros before it is halved, so halves are rounded "
        "up": lambda H, W: _stages(H, W, grow=lambda side: side // 2),
        "height and width are in the other order": lambda H, W: _stages(W, H),
        "the channels double at every stage": lambda H, W: [
            (96, h, w) for _, h, w in _stages(H, W)
        ],
        "this starts at stage 2: the first map has stride 4": lambda H, W: _stages(H, W)[1:],
        "the channels come first: (C, H, W)": lambda H, W: [(h, w, C) for C, h, w in _stages(H, W)],
        "the stem drops what exceeds a multiple of 4: H // 4, rounded down": lambda H, W: _stages(
            -(-H // 4) * 4, -(-W // 4) * 4
        ),
    },
)


# 00.2 — where a route is when it meets a pixel


def _position(route, row, column, H, W):
    order = row * W + column if route % 2 == 0 else column * H + row
    return order if route < 2 else H * W - 1 - order


def _strides_exchanged(route, row, column, H, W):
    return _position(route, column, row, W, H)


def _counted_from_one(route, row, column, H, W):
    return _position(route, row, column, H, W) + 1


def _wrong_stride(rows: bool, columns: bool):
    def position(route, row, column, H, W):
        along_rows = row * (H if rows else W) + column
        along_columns = column * (W if columns else H) + row
        order = along_rows if route % 2 == 0 else along_columns
        return order if route < 2 else H * W - 1 - order

    return position


def _off_by_one_at_the_end(route, row, column, H, W):
    order = _position(route % 2, row, column, H, W)
    return order if route < 2 else H * W - order


def _never_reversed(route, row, column, H, W):
    return _position(route % 2, row, column, H, W)


def _mirrored_rows(route, row, column, H, W):
    if route < 2:
        return _position(route, row, column, H, W)
    return _position(route - 2, row, W - 1 - column, H, W)


def _mirrored_lines(route, row, column, H, W):
    if route == 3:
        return _position(1, H - 1 - row, column, H, W)
    return _mirrored_rows(route, row, column, H, W)


def _last_line_first(route, row, column, H, W):
    if route < 2:
        return _position(route, row, column, H, W)
    if route == 2:
        return _position(0, H - 1 - row, column, H, W)
    return _position(1, row, W - 1 - column, H, W)


def _other_order(route, row, column, H, W):
    return _position([0, 2, 1, 3][route], row, column, H, W)


def _snake(route, row, column, H, W):
    if route % 2 == 0:
        order = row * W + (column if row % 2 == 0 else W - 1 - column)
    else:
        order = column * H + (row if column % 2 == 0 else H - 1 - row)
    return order if route < 2 else H * W - 1 - order


def _position_by_listing(route, row, column, H, W):
    cells = [(r, c) for r in range(H) for c in range(W)]
    if route in (1, 3):
        cells.sort(key=lambda cell: cell[::-1])
    if route >= 2:
        cells.reverse()
    return cells.index((row, column))


def _position_from_the_end(route, row, column, H, W):
    if route >= 2:  # the same line from the other corner
        row, column, route = H - 1 - row, W - 1 - column, route - 2
    return (row * W + column, column * H + row)[route]


def _pixels(draw: Draw):
    corners = [
        (route, row, column, H, W)
        for H, W in [(3, 5), (4, 2), (1, 7), (6, 1)]
        for route in range(4)
        for row, column in [(0, 0), (H - 1, W - 1), (H // 2, W // 3)]
    ]
    inside = [(route, row, column, 4, 5) for route in range(4) for row, column in [(2, 1), (1, 3)]]
    H, W = draw.integer(7, 12), draw.integer(13, 20)
    drawn = [
        (route, draw.integer(1, H - 2), draw.integer(1, W - 2), H, W)
        for route in range(4)
        for _ in range(2)
    ]
    real_map = [(route, 40, 17, 56, 56) for route in range(4)]
    return corners + inside + drawn + real_map


POSITION = Exercise(
    title="Where is the route now?",
    difficulty=2,
    hints=(
        "Route 0 has passed `row` whole rows of W pixels, and then `column` pixels of this one.",
        "Routes 2 and 3 are 0 and 1 backwards: what came first (0) comes last (H · W − 1).",
    ),
    specification=_position,
    alternatives=(_position_by_listing, _position_from_the_end),
    arguments=("route", "row", "column", "H", "W"),
    cases=_pixels,
    mistakes={
        "rows and columns are exchanged: routes 0 and 2 go along the rows": _strides_exchanged,
        "positions are counted from 0": _counted_from_one,
        "every row passed has W pixels, every column passed H: those are the factors": (
            _wrong_stride(rows=True, columns=True),
            _wrong_stride(rows=True, columns=False),
            _wrong_stride(rows=False, columns=True),
        ),
        "the last position is H·W − 1, not H·W": _off_by_one_at_the_end,
        "routes 2 and 3 run backwards": _never_reversed,
        "routes 2 and 3 reverse the whole sequence, from the bottom-right pixel, not each row": (
            _mirrored_rows,
            _mirrored_lines,
        ),
        "reversed means both: the last row (or column) first, and in it the last pixel first": (
            _last_line_first
        ),
        "route 1 goes along the columns and route 2 is route 0 reversed": _other_order,
        "every row is run in the same direction, and so is every column: a route jumps to the "
        "start of the next one": _snake,
    },
)


EXERCISES = {"00.1": SHAPES, "00.2": POSITION}

"""The exercises of lesson 00, start here."""

from minivmamba.classroom.checks import Exercise

# 00.1 — the maps of VMamba-T


def _stages(H, W, grow=lambda side: -(-side // 2)):
    H, W, C = H // 4, W // 4, 96
    shapes = []
    for _ in range(4):
        shapes.append((C, H, W))
        H, W, C = grow(H), grow(W), 2 * C
    return shapes


SHAPES = Exercise(
    specification=_stages,
    arguments=("H", "W"),
    cases=[
        *[(224, 224), (64, 96), (100, 36), (225, 130), (32, 32)],
        *[(40, 56), (100, 64), (64, 100)],  # one side odd at some stage, the other not
    ],
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


def _other_order(route, row, column, H, W):
    return _position([0, 2, 1, 3][route], row, column, H, W)


def _snake(route, row, column, H, W):
    if route % 2 == 0:
        order = row * W + (column if row % 2 == 0 else W - 1 - column)
    else:
        order = column * H + (row if column % 2 == 0 else H - 1 - row)
    return order if route < 2 else H * W - 1 - order


POSITION = Exercise(
    specification=_position,
    arguments=("route", "row", "column", "H", "W"),
    cases=[
        (route, row, column, H, W)
        for H, W in [(3, 5), (4, 2), (1, 7), (6, 1)]
        for route in range(4)
        for row, column in [(0, 0), (H - 1, W - 1), (H // 2, W // 3)]
    ]
    + [(route, row, column, 4, 5) for route in range(4) for row, column in [(2, 1), (1, 3)]],
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
        "route 1 goes along the columns and route 2 is route 0 reversed": _other_order,
        "every row is run in the same direction, and so is every column: a route jumps to the "
        "start of the next one": _snake,
    },
)


EXERCISES = {"00.1": SHAPES, "00.2": POSITION}

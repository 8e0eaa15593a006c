"""One picture of the whole table: a bar for every condition, in groups, beside the clean value."""

from __future__ import annotations

import math

from fusionocc_core.engine.robustness.delay import EGO_MOTION
from fusionocc_core.engine.robustness.results import MASK_TITLES, NOT_SUPPORTED, RobustnessTable, Row, number
from fusionocc_core.grids import Color
from fusionocc_core.viz.canvas import FAINT_INK, INK, PAPER, Picture, blank, text_size, write

COLORS: dict[str, Color] = {
    "clean": INK,
    "cameras": (58, 110, 178),
    "lidar": (196, 92, 40),
    "beams": (222, 142, 52),
    "delay": (122, 84, 168),
    "calibration": (38, 140, 122),
    "corruptions": (176, 66, 96),
}
"""Of the bars of each group."""

HEADINGS = {
    "cameras": "cameras dropped",
    "lidar": "LiDAR dropped",
    "beams": "fewer LiDAR beams",
    "delay": "delay",
    "calibration": "calibration error",
    "corruptions": "corruptions",
}

GRID: Color = (214, 218, 224)

_MARGIN = 24
_LEFT = 330
"""Where the bars begin."""
_WIDTH = 620
_RIGHT = 260
"""Beside the bars, for the figures ..."""
_EDGES = tuple(_LEFT + _WIDTH + offset for offset in (80, 150, 230))
"""... which end here: mIoU, change, mIoU without mask."""
_ROW = 24
_GAP = 34
"""Above a group, for its heading."""
_TOP = 124


def draw(table: RobustnessTable) -> Picture:
    """Bars of the mIoU under the main mask, paler and thinner ones without mask where there are both, RGB."""
    tops, bottom = _tops(table)
    picture = blank(bottom + _MARGIN + 44, _LEFT + _WIDTH + _RIGHT)
    most = _round_up(max(_values(table), default=1.0))
    _draw_head(picture, table)
    _draw_axis(picture, most, _TOP - 6, bottom)
    for row, top in zip(table.rows, tops, strict=True):
        first = row is table.clean or row.group != table.rows[table.rows.index(row) - 1].group
        if first and row is not table.clean:
            _draw_heading(picture, table, row.group, top - 26)
        _draw_row(picture, table, row, top, most)
    if not math.isnan(table.main(table.clean)):
        x = _LEFT + round(_WIDTH * table.main(table.clean) / most)
        for y in range(_TOP - 6, bottom, 6):
            picture[y : y + 3, x : x + 1] = INK
    _draw_foot(picture, table, bottom)
    return picture


def _tops(table: RobustnessTable) -> tuple[list[int], int]:
    """Where each row begins, and where the last one ends."""
    tops, y, group = [], _TOP, table.clean.group
    for row in table.rows:
        if row.group != group:
            y, group = y + _GAP, row.group
        tops.append(y)
        y += _ROW
    return tops, y


def _values(table: RobustnessTable) -> list[float]:
    found = (value for row in table.rows for value in (row.miou_camera, row.miou_none))
    return [value for value in found if not math.isnan(value)]


def _round_up(value: float) -> float:
    """The end of the axis: the next of 1, 2, 5, 10, 15 ... percent."""
    return next((edge for edge in (1.0, 2.0, 5.0) if value <= edge), 5.0 * math.ceil(value / 5))


def _draw_head(picture: Picture, table: RobustnessTable) -> None:
    write(picture, (_MARGIN, 14), f"mIoU with spoilt sensors, % ({MASK_TITLES[table.main_mask]})", 22)
    write(picture, (_MARGIN, 46), table.setting.in_a_line(), 14, FAINT_INK)
    write(picture, (_MARGIN, 66), f"weights: {table.setting.trained_on}", 14, FAINT_INK)
    headings = ["mIoU", "change", *(["no mask"] if table.main_mask == "camera" else [])]
    for heading, edge in zip(headings, _EDGES, strict=False):
        _write_right(picture, edge, _TOP - 28, heading, FAINT_INK, 13)


def _draw_axis(picture: Picture, most: float, top: int, bottom: int) -> None:
    step = most / 5
    for k in range(6):
        x = _LEFT + round(_WIDTH * k / 5)
        picture[top:bottom, x : x + 1] = GRID
        text = f"{step * k:g}"
        write(picture, (x - text_size(text, 13)[0] // 2, _TOP - 28), text, 13, FAINT_INK)


def _draw_heading(picture: Picture, table: RobustnessTable, group: str, top: int) -> None:
    write(picture, (_MARGIN, top), HEADINGS[group], 15, COLORS[group])
    mean = table.mean_relative(group)
    if not math.isnan(mean):
        text = f"keeps {100 * mean:.0f} %"
        write(picture, (_LEFT - 14 - text_size(text, 13)[0], top + 2), text, 13, COLORS[group])


def _draw_row(picture: Picture, table: RobustnessTable, row: Row, top: int, most: float) -> None:
    write(picture, (_MARGIN, top + 2), _label(row), 14)
    if not row.supported:
        write(picture, (_LEFT + 8, top + 2), NOT_SUPPORTED, 14, FAINT_INK)
        return
    value, color = table.main(row), COLORS[row.group]
    both = table.main_mask == "camera" and not math.isnan(row.miou_none)
    if both:
        _bar(picture, top + 15, 4, row.miou_none / most, _pale(color))
    _bar(picture, top + 3, 11 if both else 15, value / most, color)
    _write_right(picture, _EDGES[0], top + 2, number(value), INK)
    if row is not table.clean:
        _write_right(picture, _EDGES[1], top + 2, number(row.change, sign="+"), INK)
    if both:
        _write_right(picture, _EDGES[2], top + 2, number(row.miou_none), FAINT_INK)


def _draw_foot(picture: Picture, table: RobustnessTable, bottom: int) -> None:
    mean = table.mean_relative()
    if not math.isnan(mean):
        left_out = len(table.left_out())
        text = f"Mean relative robustness {100 * mean:.1f} % (mean of mIoU / clean mIoU over supported conditions"
        text += f"; {left_out} not supported)" if left_out else ")"
        write(picture, (_MARGIN, bottom + 14), text, 14)
    lines = "Dashed line: clean." + (" Thin bars: without mask." if table.main_mask == "camera" else "")
    if any(row.note == EGO_MOTION for row in table.rows):
        lines += " *: no older files in this data; only the ego motion is as if they were, moving things do not lag."
    write(picture, (_MARGIN, bottom + 36), lines, 13, FAINT_INK)


def _label(row: Row) -> str:
    """The title, with a star where a delay is made by ego motion alone; the foot explains it."""
    return f"{row.title} *" if row.note == EGO_MOTION else row.title


def _bar(picture: Picture, top: int, height: int, share: float, color: Color) -> None:
    if not math.isnan(share):
        picture[top : top + height, _LEFT : _LEFT + max(1, round(_WIDTH * share))] = color


def _write_right(picture: Picture, edge: int, top: int, text: str, color: Color, size: int = 14) -> None:
    """Text that ends at ``edge``."""
    write(picture, (edge - text_size(text, size)[0], top), text, size, color)


def _pale(color: Color) -> Color:
    red, green, blue = (round(0.45 * channel + 0.55 * paper) for channel, paper in zip(color, PAPER, strict=True))
    return red, green, blue

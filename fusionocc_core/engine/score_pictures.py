"""Pictures of an evaluation: bars of the classes, the confusion matrix, where the errors lie as seen from above."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import Color, VoxelGrid
from fusionocc_core.metrics import OccupancyReport, OccupancyTruth, VoxelScores
from fusionocc_core.structures import Occupancy
from fusionocc_core.viz.canvas import FAINT_INK, INK, Picture, blank, paste, text_size, write
from fusionocc_core.viz.export import write_picture

LIGHT: Color = (255, 250, 240)
DARK: Color = (150, 20, 40)
"""Colours of no error and of errors only; what lies between is mixed."""
UNSEEN: Color = (226, 229, 233)
MASK_TITLES = {"camera": "camera mask", "lidar": "LiDAR mask", "none": "no mask"}

_ROW = 26
_MARGIN = 20
_NAMES_WIDTH = 190
_BAR_WIDTH = 640
_CELL = 40


class ErrorMap:
    """How many voxels of each column were looked at, and how many of them were wrong.

    Args:
        grid: of predictions and labels.
    """

    def __init__(self, grid: VoxelGrid) -> None:
        self.grid = grid
        self.counts_2XY = np.zeros((2, *grid.shape[:2]), np.int64)
        """Looked at, wrong. Sums over processes are exact."""
        self.mask = "none"

    def add(self, prediction: Occupancy, truth: OccupancyTruth) -> None:
        """Count one frame: the voxels of the camera mask where the data has one, else all that are known."""
        self.mask = "none" if truth.mask_camera is None else "camera"
        known = truth.labels != truth.label_set.unknown
        if truth.mask_camera is not None:
            known = known & truth.mask_camera
        self.counts_2XY[0] += known.sum(axis=2)
        self.counts_2XY[1] += (known & (prediction.labels != truth.labels)).sum(axis=2)

    def draw(self, title: str) -> Picture:
        """The share of wrong voxels of each column, forward up, left on the left."""
        seen, wrong = self.counts_2XY
        share = wrong / np.maximum(seen, 1)
        colors = _mixed(share)
        colors[seen == 0] = UNSEEN
        scale = max(1, 800 // max(share.shape))
        # Rows run from the far end to the near one, columns from the left (large y) to the right.
        view = np.ascontiguousarray(colors[::-1, ::-1]).repeat(scale, axis=0).repeat(scale, axis=1)
        picture = blank(view.shape[0] + 110, view.shape[1] + 2 * _MARGIN)
        paste(picture, (_MARGIN, 60), view)
        write(picture, (_MARGIN, 12), f"Wrong voxels, share of each column ({MASK_TITLES[self.mask]})", 18)
        write(picture, (_MARGIN, 36), title, 13, FAINT_INK)
        _draw_vehicle(picture, self.grid, (_MARGIN, 60), scale)
        _draw_scale(picture, (_MARGIN, view.shape[0] + 72))
        return picture


def class_bars(report: OccupancyReport, title: str) -> Picture:
    """IoU of each class, in its colour, under each mask that the data has."""
    names = [name for k, name in enumerate(report.label_set.names) if k != report.label_set.free]
    count = len(report.voxels)
    block = 12 * count + 10
    picture = blank(90 + block * (len(names) + 1), _NAMES_WIDTH + _BAR_WIDTH + 190)
    write(picture, (_MARGIN, 12), "IoU by class, %", 18)
    write(picture, (_MARGIN, 36), title, 13, FAINT_INK)
    for row, name in enumerate([*names, "mean"]):
        top = 66 + block * row
        write(picture, (_MARGIN, top + block // 2 - 12), name, 14)
        for n, scores in enumerate(report.voxels):
            is_mean = row == len(names)
            value = scores.miou if is_mean else float(scores.iou_K[report.label_set.names.index(name)])
            color = INK if is_mean else report.label_set.colors[report.label_set.names.index(name)]
            _draw_bar(picture, top + 12 * n, value, _faded(color, n / max(count, 2)), MASK_TITLES[scores.mask])
    return picture


def confusion_matrix(scores: VoxelScores, title: str) -> Picture:
    """Rows: what is there. Columns: what was said. Percent of the row."""
    names = scores.label_set.names
    rows = scores.confusion_KK.sum(axis=1, keepdims=True)
    share = scores.confusion_KK / np.maximum(rows, 1)
    left, top = _NAMES_WIDTH, 210
    picture = blank(top + _CELL * len(names) + _MARGIN, left + _CELL * len(names) + _MARGIN)
    write(picture, (_MARGIN, 12), f"Confusion, % of the true class ({MASK_TITLES[scores.mask]})", 18)
    write(picture, (_MARGIN, 36), title, 13, FAINT_INK)
    for k, name in enumerate(names):
        write(picture, (_MARGIN, top + _CELL * k + 11), name, 14, INK if rows[k] else FAINT_INK)
        paste(picture, (left + _CELL * k + 10, top - 8 - text_size(name, 14)[0]), _upright(name))
        for j in range(len(names)):
            color = _mixed(share[k, j]) if rows[k, 0] else np.array(UNSEEN, np.uint8)
            y, x = top + _CELL * k, left + _CELL * j
            picture[y : y + _CELL - 1, x : x + _CELL - 1] = color
            if share[k, j] >= 0.005:
                text = f"{100 * share[k, j]:.0f}"
                ink = (255, 255, 255) if share[k, j] > 0.5 else INK
                write(picture, (x + (_CELL - text_size(text, 13)[0]) // 2, y + 12), text, 13, ink)
    return picture


def write_pictures(out: Path, report: OccupancyReport, errors: ErrorMap, title: str) -> None:
    """Write class_iou.png, confusion.png and error_map.png."""
    write_picture(out / "class_iou.png", class_bars(report, title))
    scores = report.of_mask("camera") or report.voxels[0]
    write_picture(out / "confusion.png", confusion_matrix(scores, title))
    write_picture(out / "error_map.png", errors.draw(title))


def _draw_bar(picture: Picture, top: int, value: float, color: Color, title: str) -> None:
    left = _NAMES_WIDTH
    picture[top : top + 10, left : left + _BAR_WIDTH] = (238, 240, 243)
    if math.isnan(value):
        write(picture, (left + 4, top - 3), f"not in this data ({title})", 11, FAINT_INK)
        return
    end = left + round(_BAR_WIDTH * value)
    picture[top : top + 10, left:end] = color
    write(picture, (left + _BAR_WIDTH + 8, top - 3), f"{100 * value:5.1f}  {title}", 12)


def _draw_vehicle(picture: Picture, grid: VoxelGrid, corner: tuple[int, int], scale: int) -> None:
    """A small arrow at the origin, pointing forward."""
    x = corner[0] + round(grid.upper[1] / grid.voxel_size[1] * scale)
    y = corner[1] + round(grid.upper[0] / grid.voxel_size[0] * scale)
    tip = np.array([[x, y - 14], [x - 8, y + 8], [x + 8, y + 8]], np.int32)
    cv2.fillPoly(picture, [tip], INK)


def _draw_scale(picture: Picture, at: tuple[int, int]) -> None:
    x, y = at
    bar = _mixed(np.linspace(0, 1, 200))[None].repeat(14, axis=0)
    write(picture, (x, y - 2), "0 %", 13)
    paste(picture, (x + 34, y), bar)
    write(picture, (x + 242, y - 2), "100 %", 13)
    picture[y : y + 14, x + 320 : x + 334] = UNSEEN
    write(picture, (x + 342, y - 2), "never looked at", 13)


def _upright(text: str) -> Picture:
    """Text that reads from below upwards."""
    width, height = text_size(text, 14)
    label = blank(height + 4, width)
    write(label, (0, 0), text, 14)
    return np.ascontiguousarray(np.rot90(label))


def _mixed(share: NDArray[np.floating] | np.floating) -> NDArray[np.uint8]:
    """Colours (..., 3) of shares."""
    part = np.asarray(share, dtype=np.float64)[..., None]
    return (np.array(LIGHT) * (1 - part) + np.array(DARK) * part).round().astype(np.uint8)


def _faded(color: Color, share: float) -> Color:
    red, green, blue = (round(channel + (255 - channel) * share * 0.7) for channel in color)
    return red, green, blue

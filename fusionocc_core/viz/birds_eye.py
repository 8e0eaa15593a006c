"""Occupancy from straight above: the topmost voxel of each column, forward up, left left."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.structures import Occupancy
from fusionocc_core.viz.canvas import INK, PAPER, Picture, text_size, write
from fusionocc_core.viz.volume import (
    CAR_LENGTH,
    CAR_REAR,
    CAR_WIDTH,
    ForwardVolume,
    forward_volume,
    light_volume,
    palette,
)

UNKNOWN_GROUND = (226, 228, 231)
"""Columns that hold nothing but unknown voxels."""

SHADE = 0.5
"""Brightness of a voxel top that neither sun nor sky reaches, relative to an open one."""

RING_SPACING = 10.0
"""Metres between the rings around the vehicle, and the length of the scale bar."""

SUBPIXEL = 4
"""Binary digits after the point in coordinates that OpenCV draws at."""


def birds_eye(occupancy: Occupancy, *, voxel_pixels: int = 4, marks: bool = True) -> Picture:
    """Picture (X * voxel_pixels, Y * voxel_pixels, 3) of the topmost voxels; X, Y along forward and left.

    A voxel top in the open has exactly its class colour; tops that others shade are darker. Columns without anything
    are paper-coloured where free and light grey where nothing is known.

    Args:
        occupancy: The grid to draw; in the "ego" frame, or in the "lidar" frame with nuScenes axes.
        voxel_pixels: Edge of a voxel in the picture.
        marks: Draw the vehicle, rings every 10 m and a scale bar.

    Raises:
        ValueError: voxel_pixels is not positive, or the grid's frame is unknown.
    """
    if voxel_pixels < 1:
        raise ValueError(f"voxel_pixels={voxel_pixels}: expected at least 1")
    volume = forward_volume(occupancy)
    upright = _column_colors(volume, occupancy)[::-1, ::-1]
    picture = np.ascontiguousarray(upright.repeat(voxel_pixels, axis=0).repeat(voxel_pixels, axis=1))
    if marks:
        draw_marks(picture, volume, voxel_pixels)
    return picture


def draw_marks(picture: Picture, volume: ForwardVolume, voxel_pixels: int) -> None:
    """Draw the vehicle, rings and a scale bar into a view from above with so many pixels a voxel."""
    _draw_rings(picture, volume, voxel_pixels)
    _draw_car(picture, volume, voxel_pixels)
    _draw_scale_bar(picture, volume, voxel_pixels)


def _column_colors(volume: ForwardVolume, occupancy: Occupancy) -> NDArray[np.uint8]:
    """(X, Y, 3) colour of each column from above."""
    top_XY = volume.solid.shape[2] - 1 - volume.solid[:, :, ::-1].argmax(axis=2)
    labels_XY = np.take_along_axis(volume.labels, top_XY[:, :, None], axis=2)[:, :, 0]
    light = light_volume(volume.solid, volume.voxel_size)
    reaching = 0.5 * light.sky + 0.5 * light.sun
    above_XY = np.take_along_axis(reaching[1:-1, 1:-1], top_XY[:, :, None] + 2, axis=2)[:, :, 0]
    shade_XY = SHADE + (1 - SHADE) * above_XY
    colors_XY3 = np.round(palette(occupancy.label_set.colors)[labels_XY] * shade_XY[:, :, None]).astype(np.uint8)
    colors_XY3[~volume.solid.any(axis=2)] = PAPER
    colors_XY3[(volume.labels == occupancy.label_set.unknown).all(axis=2)] = UNKNOWN_GROUND
    return colors_XY3


def _pixels(volume: ForwardVolume, points_xy: NDArray[np.float64], voxel_pixels: int) -> NDArray[np.int32]:
    """(P, 2) picture coordinates, with SUBPIXEL binary digits, of points (P, 2) = (forward, left) in metres."""
    uv = (volume.upper[:2] - points_xy)[:, ::-1] / volume.voxel_size[[1, 0]] * voxel_pixels - 0.5
    return np.round(uv * 2**SUBPIXEL).astype(np.int32)


def _draw_rings(picture: Picture, volume: ForwardVolume, voxel_pixels: int) -> None:
    """Thin circles every RING_SPACING metres, blended so that the classes stay readable below them."""
    overlay = picture.copy()
    reach = np.abs(np.stack([volume.lower, volume.upper])[:, :2] - volume.ego[:2]).max()
    turn = np.linspace(0, 2 * np.pi, 181)
    for radius in np.arange(RING_SPACING, reach * 1.42, RING_SPACING):
        circle = volume.ego[:2] + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        cv2.polylines(overlay, [_pixels(volume, circle, voxel_pixels)], True, INK, 1, cv2.LINE_AA, SUBPIXEL)
    cv2.addWeighted(overlay, 0.3, picture, 0.7, 0, dst=picture)


def _draw_car(picture: Picture, volume: ForwardVolume, voxel_pixels: int) -> None:
    """The vehicle's outline with a pointed nose."""
    front, half = CAR_REAR + CAR_LENGTH, CAR_WIDTH / 2
    outline = np.array([[CAR_REAR, -half], [CAR_REAR, half], [front - 1.2, half], [front, 0.0], [front - 1.2, -half]])
    points = _pixels(volume, outline + volume.ego[:2], voxel_pixels)
    cv2.fillPoly(picture, [points], (255, 255, 255), cv2.LINE_AA, SUBPIXEL)
    cv2.polylines(picture, [points], True, INK, max(1, voxel_pixels // 2), cv2.LINE_AA, SUBPIXEL)


def _draw_scale_bar(picture: Picture, volume: ForwardVolume, voxel_pixels: int) -> None:
    """A bar of RING_SPACING metres in the lower left corner; left out where the picture is too small for it."""
    length = round(RING_SPACING / volume.voxel_size[1] * voxel_pixels)
    height, width = picture.shape[:2]
    text = f"{RING_SPACING:g} m"
    size = 15
    text_width, text_height = text_size(text, size)
    box_width, box_height = max(length, text_width) + 20, text_height + 22
    if width < box_width + 20 or height < box_height + 20:
        return
    x, y = 10, height - 10 - box_height
    field = picture[y : y + box_height, x : x + box_width]
    field[:] = np.round(0.15 * field + 0.85 * np.asarray(PAPER)).astype(np.uint8)
    write(picture, (x + 10, y + 5), text, size)
    picture[y + box_height - 11 : y + box_height - 8, x + 10 : x + 10 + length] = INK

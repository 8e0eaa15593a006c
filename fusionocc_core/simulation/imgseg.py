"""Image segmentation labels painted from LiDAR points, by FusionOcc's rule."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CELL = 8
"""The stored map keeps every eighth pixel."""
NO_POINT = 17
_HALF_WIDTH, _HALF_HEIGHT = 4, 8


def paint(
    uv: NDArray[np.floating], depth: NDArray[np.floating], label: NDArray[np.uint8], image_size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The map (ceil(H / 8), ceil(W / 8)) of projected points (P, 2).

    Every point more than 0.1 m before the camera paints a block of 16 x 8 pixels with its class, later points over
    earlier ones, without a test of depth; the block ends one pixel short of the picture's right and lower edge. Only
    every eighth pixel of the canvas is kept, and each block covers one column and two rows of those at most, so these
    are set directly.

    Source: FusionOcc (imgseg generation), including its off-by-one at the edges.
    """
    h, w = image_size
    canvas = np.full((-(-h // CELL), -(-w // CELL)), NO_POINT, np.uint8)
    inside = (depth > 0.1) & (uv[:, 0] >= 0) & (uv[:, 0] < w) & (uv[:, 1] >= 0) & (uv[:, 1] < h)
    u, v, kept = uv[inside, 0].astype(np.int64), uv[inside, 1].astype(np.int64), label[inside]
    column = -(-np.maximum(u - _HALF_WIDTH, 0) // CELL)
    first_row = -(-np.maximum(v - _HALF_HEIGHT, 0) // CELL)
    column_ok = column * CELL < np.minimum(u + _HALF_WIDTH, w - 1)
    rows = np.stack([first_row, first_row + 1], axis=1)
    rows_ok = rows * CELL < np.minimum(v + _HALF_HEIGHT, h - 1)[:, None]
    ok = rows_ok & column_ok[:, None]
    columns = np.broadcast_to(column[:, None], rows.shape)
    flat = rows[ok] * canvas.shape[1] + columns[ok]
    values = np.broadcast_to(kept[:, None], rows.shape)[ok]
    last = len(flat) - 1 - np.unique(flat[::-1], return_index=True)[1]
    canvas.reshape(-1)[flat[last]] = values[last]
    return canvas

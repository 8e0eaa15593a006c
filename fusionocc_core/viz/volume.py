"""What the renderers share: a label volume turned so that forward is +x, and the light that reaches its cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import Color
from fusionocc_core.structures import Occupancy

SUN = (-0.45, 0.62, 1.0)
"""Direction towards the sun (forward, left, up): from behind and the left, so that faces and shadows show."""

SUN_SPREAD = ((0.0, 0.0), (0.13, 0.05), (-0.05, 0.13), (-0.08, -0.12))
"""Offsets of SUN's horizontal part that are averaged, for soft borders of shadows."""

SKY_STEPS = 5
"""How many voxels away something may still darken a cell's share of the sky."""


CAR_LENGTH, CAR_WIDTH, CAR_HEIGHT = 4.6, 1.9, 1.6
"""The vehicle in the pictures, metres."""

CAR_REAR = -1.0
"""Where its rear bumper is, metres ahead of the rear axle."""


@dataclass(frozen=True, kw_only=True)
class ForwardVolume:
    """Labels in a frame with x forward, y left, z up, whatever the grid's own axes are."""

    labels: NDArray[np.uint8]
    """(X, Y, Z)."""
    solid: NDArray[np.bool_]
    """(X, Y, Z): neither free nor unknown."""
    lower: NDArray[np.float64]
    """(3,) outer corner of voxel (0, 0, 0), metres."""
    voxel_size: NDArray[np.float64]
    """(3,) metres."""
    ego: NDArray[np.float64]
    """(3,) where the ground below the vehicle's rear axle is, metres."""

    @property
    def upper(self) -> NDArray[np.float64]:
        """(3,) the opposite corner, metres."""
        return self.lower + np.asarray(self.labels.shape) * self.voxel_size


LIDAR_TO_GROUND = (-0.94, 0.0, -1.84)
"""From a roof LiDAR to the ground below the rear axle (forward, left, up), metres: as on the nuScenes cars."""


def forward_volume(occupancy: Occupancy) -> ForwardVolume:
    """Turn an occupancy grid so that forward is +x.

    Grids in the "ego" frame are so already. Grids in the "lidar" frame follow nuScenes and SurroundOcc: x right, y
    forward.

    Raises:
        ValueError: the grid's frame is neither.
    """
    grid, labels = occupancy.grid, occupancy.labels
    lower, upper, size = np.asarray(grid.lower), np.asarray(grid.upper), np.asarray(grid.voxel_size)
    ego = np.zeros(3)
    if grid.frame == "lidar":
        labels = np.ascontiguousarray(labels.transpose(1, 0, 2)[:, ::-1])
        lower, size = np.array([lower[1], -upper[0], lower[2]]), size[[1, 0, 2]]
        ego = np.asarray(LIDAR_TO_GROUND)
    elif grid.frame != "ego":
        raise ValueError(
            f"occupancy.grid.frame={grid.frame!r}: pictures know where forward is in 'ego' and 'lidar' only"
        )
    solid = (labels != occupancy.label_set.free) & (labels != occupancy.label_set.unknown)
    return ForwardVolume(labels=labels, solid=solid, lower=lower, voxel_size=size, ego=ego)


def palette(colors: tuple[Color, ...]) -> NDArray[np.float32]:
    """(256, 3) float32 sRGB 0..255 by label; ids without a class are mid grey."""
    table = np.full((256, 3), 128, np.float32)
    table[: len(colors)] = colors
    return table


@dataclass(frozen=True, kw_only=True)
class Light:
    """What reaches the cells of a volume, 0..1, with a border of one cell all around; 0 in solid cells."""

    sky: NDArray[np.float32]
    """(X+2, Y+2, Z+2) share of the upper hemisphere that is not hidden by near voxels."""
    sun: NDArray[np.float32]
    """(X+2, Y+2, Z+2) share of the sun that is not hidden."""


def light_volume(solid: NDArray[np.bool_], voxel_size: NDArray[np.float64]) -> Light:
    """Light in every cell of a volume (X, Y, Z), by stepping the whole volume along a few directions at once.

    The last few volumes' light is kept: every volume is drawn from above and in perspective.
    """
    x, y, z = solid.shape
    width, depth, height = (float(size) for size in voxel_size)
    return _light(np.packbits(solid).tobytes(), (x, y, z), (width, depth, height))


@lru_cache(maxsize=4)
def _light(packed: bytes, shape: tuple[int, int, int], voxel_size: tuple[float, float, float]) -> Light:
    solid = np.unpackbits(np.frombuffer(packed, np.uint8), count=int(np.prod(shape))).reshape(shape)
    # Z first in memory: a volume is flat, and NumPy is quick along long rows only.
    padded_ZXY = np.ascontiguousarray(np.pad(solid.astype(bool), 1).transpose(2, 0, 1))
    size = np.asarray(voxel_size) / min(voxel_size)
    rise = np.arctan(1.0) * np.array([0.35, 1.1])
    around = np.arange(6) * np.pi / 3
    sky_directions = [
        np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)]) for e in rise for a in around + e
    ]
    suns = [np.array([SUN[0] + dx, SUN[1] + dy, SUN[2]]) for dx, dy in SUN_SPREAD]
    sky = _share_open(padded_ZXY, [direction / size for direction in sky_directions], SKY_STEPS)
    sun = _share_open(padded_ZXY, [direction / size for direction in suns], shape[2])
    return Light(sky=sky, sun=sun)


def _share_open(solid_ZXY: NDArray[np.bool_], directions: list[NDArray[np.float64]], steps: int) -> NDArray[np.float32]:
    """(X, Y, Z) in how many of the directions nothing solid is near, as a share; 0 in solid cells. Read only."""
    count_ZXY = np.zeros(solid_ZXY.shape, np.uint8)
    for direction in directions:
        count_ZXY += ~_hidden(solid_ZXY, direction[[2, 0, 1]], steps)
    count_ZXY[solid_ZXY] = 0
    share = np.ascontiguousarray(count_ZXY.transpose(1, 2, 0)) / np.float32(len(directions))
    share.setflags(write=False)
    return share


def _hidden(solid: NDArray[np.bool_], direction: NDArray[np.float64], steps: int) -> NDArray[np.bool_]:
    """Which cells see something solid within ``steps`` cells along ``direction`` (in cells)."""
    hidden = np.zeros_like(solid)
    direction = direction / np.abs(direction).max()
    for step in range(1, steps + 1):
        offset = np.round(direction * step).astype(int)
        if (np.abs(offset) >= solid.shape).any():
            break
        here = tuple(slice(max(0, -o), min(n, n - o)) for o, n in zip(offset, solid.shape, strict=True))
        there = tuple(slice(max(0, o), min(n, n + o)) for o, n in zip(offset, solid.shape, strict=True))
        hidden[here] |= solid[there]
    return hidden

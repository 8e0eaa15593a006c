"""RayIoU ray after ray (SparseOcc, Liu et al., ECCV 2024; the walk is Amanatides and Woo's, 1987)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.metrics.ray_iou import THRESHOLDS_M, RayCounts
from fusionocc_core.metrics.rays import make_rays

Cell = tuple[int, int, int]


def walk(occupied: NDArray[np.bool_], start: Sequence[float], direction: Sequence[float]) -> tuple[Cell, float]:
    """From voxel to voxel: the first occupied one, or the last in the grid, and how far away the ray leaves it.

    Args:
        occupied: (X, Y, Z).
        start: position in voxels, inside the grid.
        direction: of length 1.

    Returns:
        The voxel's indices and a distance in voxels.
    """
    cell = [math.trunc(v) for v in start]
    step = [1 if d >= 0 else -1 for d in direction]
    t = [math.inf if d == 0 else (c + (d >= 0) - s) / d for c, s, d in zip(cell, start, direction, strict=True)]
    dt = [math.inf if d == 0 else abs(1 / d) for d in direction]
    last, distance = tuple(cell), 0.0
    while all(0 <= c < n for c, n in zip(cell, occupied.shape, strict=True)):
        last, distance = tuple(cell), min(t)
        if occupied[last]:
            break
        # Of equal parameters the reference takes z before y before x.
        axis = 0 if t[0] < t[1] and t[0] < t[2] else 1 if t[0] >= t[1] and t[1] < t[2] else 2
        cell[axis] += step[axis]
        t[axis] += dt[axis]
    return last, distance


def count_rays_one_by_one(
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    origins: NDArray[np.floating],
    grid: VoxelGrid,
    label_set: LabelSet,
    thresholds: tuple[float, ...] = THRESHOLDS_M,
) -> RayCounts:
    """Class and distance where each ray ends, in the truth and in the prediction; as metrics.ray_iou.count_rays."""
    rays, counts = make_rays(origins, grid), RayCounts.zeros(label_set, thresholds)
    solid, said_solid = (truth != label_set.free) & (truth != label_set.unknown), prediction != label_set.free
    for start, direction in zip(rays.start.tolist(), rays.direction.tolist(), strict=True):
        cell, distance = walk(solid, start, direction)
        if not solid[cell]:
            continue
        said_cell, said_distance = walk(said_solid, start, direction)
        counts.truth_K[truth[cell]] += 1
        counts.prediction_K[prediction[said_cell]] += 1
        for row, most in enumerate(thresholds):
            right = truth[cell] == prediction[said_cell] and abs(distance - said_distance) * grid.voxel_size[0] < most
            counts.right_TK[row, truth[cell]] += right
    return counts

"""How far an answer agrees with the LiDAR sweep that it was made from: a check without labels.

It says nothing about the quality of a network that copies its input; it shows when one does not carry over to another
sensor, vehicle or country. Voxels are counted on the answer's own grid, in the ego frame at the reference time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fusionocc_core.geometry import apply, inverse
from fusionocc_core.structures import LidarSweep, Occupancy

EGO_HALF_SIZE = (2.5, 1.2)
"""Returns closer to the origin than this, along x and y, are the vehicle's own, metres."""
STEP = 0.2
"""Between the places on a ray that are looked at, metres."""


class AnnotatedBox(Protocol):
    """What is read of a box: data.nuscenes_tables.Box has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    def contains(self, points: NDArray[np.floating]) -> NDArray[np.bool_]: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class LidarAgreement:
    """Shares between 0 and 1."""

    points: int
    """Returns inside the grid that are not the vehicle's own."""
    points_occupied: float
    """Of these, how many lie in a voxel with a class, or in one of the 26 around it has one."""
    ray_free: float
    """Of the places along the rays, from the sensor to ``margin`` before the return, how many lie in a free voxel."""
    grid_occupied: float
    """Voxels of the grid with a class. An answer that calls everything occupied has 1 here."""
    box_points: int
    """Returns inside annotated boxes of a known class."""
    box_points_right: float
    """Of these, how many lie in a voxel of the box's class; nan without any."""
    box_classes: Mapping[str, tuple[int, float]]
    """By class name: returns in boxes, and the share that is right."""


def lidar_agreement(
    occupancy: Occupancy,
    sweep: LidarSweep,
    ego2global: NDArray[np.float64],
    boxes: Sequence[AnnotatedBox] = (),
    *,
    box_classes: Mapping[str, int],
    margin: float = 0.8,
) -> LidarAgreement:
    """Compare an answer with a sweep.

    Args:
        occupancy: the answer, in the ego frame at the reference time.
        sweep: by habit the one that the answer was made from.
        ego2global: (4, 4) at the reference time.
        boxes: annotated objects, in the same ego frame.
        box_classes: name of a box -> class id of the answer; boxes with other names are left out.
        margin: how far before a return a ray is still called free, metres; two voxels of 0.4 m by default, since the
            voxel of the surface reaches half its edge towards the sensor.

    Raises:
        ValueError: the sweep has no return inside the grid.
    """
    grid, label_set = occupancy.grid, occupancy.label_set
    lidar2ego = inverse(ego2global) @ sweep.ego2global @ sweep.lidar2ego
    points = apply(lidar2ego, sweep.points[:, :3].astype(np.float64))
    own = (np.abs(points[:, 0]) < EGO_HALF_SIZE[0]) & (np.abs(points[:, 1]) < EGO_HALF_SIZE[1])
    points = points[~own]
    indices = grid.indices(points)
    inside = grid.contains(indices)
    if not inside.any():
        raise ValueError(f"lidar_agreement: none of {len(points)} returns lies in the grid {grid}")
    occupied = (occupancy.labels != label_set.free) & (occupancy.labels != label_set.unknown)
    near = torch.max_pool3d(torch.from_numpy(occupied)[None].float(), 3, stride=1, padding=1)[0].numpy()
    hit = indices[inside]
    predicted = occupancy.labels[tuple(hit.T)]
    truth = _box_labels(points[inside], boxes, box_classes)
    known = truth >= 0
    right = predicted[known] == truth[known]
    return LidarAgreement(
        points=len(hit),
        points_occupied=float(near[tuple(hit.T)].mean()),
        ray_free=_free_share(occupancy, lidar2ego[:3, 3], points, margin),
        grid_occupied=float(occupied.mean()),
        box_points=int(known.sum()),
        box_points_right=float(right.mean()) if known.any() else float("nan"),
        box_classes={
            label_set.names[k]: (int((truth[known] == k).sum()), float(right[truth[known] == k].mean()))
            for k in np.unique(truth[known])
        },
    )


def _box_labels(
    points: NDArray[np.float64], boxes: Sequence[AnnotatedBox], box_classes: Mapping[str, int]
) -> NDArray[np.int64]:
    labels = np.full(len(points), -1)
    for box in boxes:
        if box.name in box_classes:
            labels[box.contains(points)] = box_classes[box.name]
    return labels


def _free_share(occupancy: Occupancy, origin: NDArray[np.float64], points: NDArray[np.float64], margin: float) -> float:
    """Every place on a ray counts once, so that a long ray counts more than a short one."""
    grid = occupancy.grid
    rays = points - origin
    lengths = np.linalg.norm(rays, axis=1)
    directions = rays / np.maximum(lengths, 1e-9)[:, None]
    free = looked_at = 0
    for distance in np.arange(STEP, float(lengths.max()), STEP):
        before = lengths - margin > distance
        places = grid.indices(origin + directions[before] * distance)
        places = places[grid.contains(places)]
        free += int((occupancy.labels[tuple(places.T)] == occupancy.label_set.free).sum())
        looked_at += len(places)
    if not looked_at:
        raise ValueError(f"lidar_agreement: no ray is longer than margin={margin} m inside the grid; choose a smaller")
    return free / looked_at

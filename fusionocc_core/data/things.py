"""Annotated boxes as objects of the label set: centres for training, and a number for every voxel of the truth.

Legend: M objects, X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes_tables import Box
from fusionocc_core.grids import LIDARSEG_TO_OCC3D, OCC3D_LABELS, LabelSet, VoxelGrid

MARGIN = 0.8
"""Metres by which a box is enlarged, all edges together, to claim voxels of its class that lie in no box."""


@dataclass(frozen=True, kw_only=True)
class Things:
    """Objects of the wanted classes."""

    centers_M3: NDArray[np.float64]
    """Middles of the boxes, metres."""
    sizes_M3: NDArray[np.float64]
    """Length, width, height, metres."""
    channels_M: NDArray[np.int64]
    """Position of the object's class among the wanted ones."""


def things_of(boxes: Sequence[Box], label_set: LabelSet, classes: Sequence[str]) -> Things:
    """The boxes of the wanted classes that the LiDAR saw, in their order; as in BEVDet, unseen ones are left out.

    Raises:
        ValueError: the label set is not Occ3D's, whose classes the categories of boxes belong to.
    """
    _check_labels(label_set)
    chosen = [
        (box, classes.index(name))
        for box in boxes
        if box.num_lidar_pts > 0 and (name := _class_name(box, label_set)) in classes
    ]
    return Things(
        centers_M3=np.array([box.center for box, _ in chosen]).reshape(-1, 3),
        sizes_M3=np.array([box.size_lwh for box, _ in chosen]).reshape(-1, 3),
        channels_M=np.array([channel for _, channel in chosen], dtype=np.int64),
    )


def instance_labels(
    labels_XYZ: NDArray[np.uint8],
    boxes: Sequence[Box],
    grid: VoxelGrid,
    label_set: LabelSet,
    classes: Sequence[str],
) -> NDArray[np.uint16]:
    """Numbers of the objects, from 1, for RayPQ: 1 + the box's position in ``boxes``; 0 where there is none.

    A voxel belongs to the last box of its class that holds its centre. Voxels in no box belong to the nearest box of
    their class whose enlarged version holds them (Panoptic-FlashOcc). What remains, and all other classes, keep 0.

    Args:
        labels_XYZ: the truth's classes.
        boxes: in the grid's frame.
        grid: of the labels.
        label_set: of the labels.
        classes: names of the classes whose objects are told apart.
    """
    _check_labels(label_set)
    instances = np.zeros(labels_XYZ.shape, np.uint16)
    for name in classes:
        numbers = [number for number, box in enumerate(boxes) if _class_name(box, label_set) == name]
        voxels_V3 = np.argwhere(labels_XYZ == label_set.names.index(name))
        instances[tuple(voxels_V3.T)] = _claim(grid.centers(voxels_V3), boxes, numbers)
    return instances


def _claim(points_V3: NDArray[np.float64], boxes: Sequence[Box], numbers: Sequence[int]) -> NDArray[np.uint16]:
    """1 + the number of the box that each point belongs to, 0 for none."""
    owner_V = np.zeros(len(points_V3), np.uint16)
    for number in numbers:
        owner_V[boxes[number].contains(points_V3)] = number + 1
    left_V, nearest_V = owner_V == 0, np.full(len(points_V3), np.inf)
    for number in numbers:
        box = boxes[number]
        distance_V = np.linalg.norm(points_V3 - box.center, axis=1)
        wins = left_V & replace(box, size_lwh=box.size_lwh + MARGIN).contains(points_V3) & (distance_V < nearest_V)
        owner_V[wins], nearest_V[wins] = number + 1, distance_V[wins]
    return owner_V


def _class_name(box: Box, label_set: LabelSet) -> str:
    class_id = LIDARSEG_TO_OCC3D.get(box.name)
    return "" if class_id is None else label_set.names[class_id]


def _check_labels(label_set: LabelSet) -> None:
    if label_set != OCC3D_LABELS:
        raise ValueError(
            f"label_set={label_set.name!r}: boxes have nuScenes' categories, which are mapped to {OCC3D_LABELS.name!r} "
            "alone"
        )

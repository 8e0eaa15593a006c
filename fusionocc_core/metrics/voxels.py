"""Confusion matrices of voxels, for every mask and distance ring in one pass, as exact integers.

Legend: M the four combinations of camera and LiDAR mask, R rings, K classes; rows are the truth, columns the
prediction.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.metrics.truth import OccupancyTruth

RING_EDGES = (10.0, 20.0, 30.0, 40.0)
"""Outer radii, metres, of all rings but the last, which holds the corners of the grid."""

_COMBINATIONS = {"camera": (1, 3), "lidar": (2, 3), "none": (0, 1, 2, 3)}
"""Combinations 0 neither, 1 camera only, 2 LiDAR only, 3 both."""


@lru_cache(maxsize=8)
def ring_of_voxel(grid: VoxelGrid, edges: tuple[float, ...]) -> NDArray[np.int64]:
    """(X, Y) number of the ring, by the horizontal distance of the voxel's centre from the frame's origin."""
    x, y = (
        lower + (np.arange(count) + 0.5) * size
        for lower, count, size in zip(grid.lower[:2], grid.shape[:2], grid.voxel_size[:2], strict=True)
    )
    return np.searchsorted(np.asarray(edges), np.hypot(x[:, None], y[None, :]), side="right").astype(np.int64)


def count_voxels(
    labels: NDArray[np.uint8], truth: OccupancyTruth, ring_edges: tuple[float, ...] = RING_EDGES
) -> NDArray[np.int64]:
    """How often each class was predicted for each true class, (M, R, K, K).

    Voxels whose true label is no class (unknown) are left out. ``labels`` must have passed check_comparable.
    """
    classes, rings = truth.label_set.num, len(ring_edges) + 1
    combination: NDArray[np.int32] | int = 0
    for bit, name in ((1, "camera"), (2, "lidar")):
        mask = truth.mask(name)
        if mask is not None:
            combination = combination + mask.astype(np.int32) * bit
    # One extra row takes the unknown voxels and is thrown away.
    row = np.minimum(truth.labels, classes).astype(np.int32)
    row += (classes + 1) * (ring_of_voxel(truth.grid, ring_edges).astype(np.int32)[:, :, None] + rings * combination)
    cells = row * classes + labels
    counts = np.bincount(cells.ravel(), minlength=4 * rings * (classes + 1) * classes)
    return counts.reshape(4, rings, classes + 1, classes)[:, :, :classes].astype(np.int64)


def counts_of_mask(counts_MRKK: NDArray[np.int64], mask: str) -> NDArray[np.int64]:
    """(R, K, K) of "camera", "lidar" or "none"."""
    return np.asarray(counts_MRKK[list(_COMBINATIONS[mask])].sum(axis=0))


def class_iou(confusion_KK: NDArray[np.integer]) -> NDArray[np.float64]:
    """Intersection over union (K,); NaN for a class that neither truth nor prediction holds."""
    diagonal = np.diagonal(confusion_KK).astype(np.float64)
    union = confusion_KK.sum(axis=0) + confusion_KK.sum(axis=1) - np.diagonal(confusion_KK)
    return np.divide(diagonal, union, out=np.full(len(diagonal), np.nan), where=union > 0)


def mean_over_classes(iou_K: NDArray[np.float64], label_set: LabelSet) -> float:
    """Mean over all classes but free; classes that are NaN (seen nowhere) do not count. NaN if none counts."""
    values = np.delete(iou_K, label_set.free)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def geometric_iou(confusion_KK: NDArray[np.integer], label_set: LabelSet) -> float:
    """Intersection over union of occupied against free, whatever the class; NaN if all is free in both."""
    free = label_set.free
    total, both_free = int(confusion_KK.sum()), int(confusion_KK[free, free])
    wrong = int(confusion_KK[free].sum() + confusion_KK[:, free].sum()) - 2 * both_free
    union = total - both_free
    return (union - wrong) / union if union else float("nan")

"""RayPQ: panoptic quality over the rays of RayIoU (SparseOcc; used by Panoptic-FlashOcc).

Legend: R rays, K classes, T distance thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.metrics.ray_iou import THRESHOLDS_M, cast_pair
from fusionocc_core.metrics.voxels import mean_over_classes

FEWEST_RAYS = 10
"""Segments that fewer rays meet are neither missed nor false."""
MATCH_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class PanopticLabels:
    """Classes and objects of one volume."""

    labels: NDArray[np.uint8]
    """(X, Y, Z) class ids."""
    instances: NDArray[np.integer]
    """(X, Y, Z) number of the object, 0 or more; equal for all voxels of a class that has no objects, such as road."""


@dataclass(frozen=True, kw_only=True)
class RayPanoptic:
    """Matches of segments; sums over frames. The counts add exactly, ``iou_TK`` to rounding."""

    matched_TK: NDArray[np.int64]
    false_TK: NDArray[np.int64]
    missed_TK: NDArray[np.int64]
    iou_TK: NDArray[np.float64]
    """Sum over the matched segments."""

    @classmethod
    def zeros(cls, label_set: LabelSet, thresholds: tuple[float, ...] = THRESHOLDS_M) -> RayPanoptic:
        """No segment yet."""
        shape = (len(thresholds), label_set.num)
        return cls(
            matched_TK=np.zeros(shape, np.int64),
            false_TK=np.zeros(shape, np.int64),
            missed_TK=np.zeros(shape, np.int64),
            iou_TK=np.zeros(shape),
        )

    def __add__(self, other: RayPanoptic) -> RayPanoptic:
        return RayPanoptic(
            matched_TK=self.matched_TK + other.matched_TK,
            false_TK=self.false_TK + other.false_TK,
            missed_TK=self.missed_TK + other.missed_TK,
            iou_TK=self.iou_TK + other.iou_TK,
        )

    @classmethod
    def stack(cls, rows: Sequence[RayPanoptic]) -> RayPanoptic:
        """Put the thresholds of several together."""
        return cls(**{f.name: np.concatenate([getattr(row, f.name) for row in rows]) for f in fields(cls)})

    def quality(self) -> NDArray[np.float64]:
        """Panoptic quality (T, K): sum of IoU / (matched + half of false and missed); NaN without segments."""
        weight = self.matched_TK + 0.5 * (self.false_TK + self.missed_TK)
        return np.divide(self.iou_TK, weight, out=np.full(weight.shape, np.nan), where=weight > 0)

    def ray_pq(self, label_set: LabelSet) -> NDArray[np.float64]:
        """(T,) mean over the classes that have segments, free space aside; RayPQ is the mean of these."""
        return np.array([mean_over_classes(row, label_set) for row in self.quality()])


def count_segments(
    truth: PanopticLabels,
    prediction: PanopticLabels,
    origins: NDArray[np.floating],
    grid: VoxelGrid,
    label_set: LabelSet,
    thresholds: tuple[float, ...] = THRESHOLDS_M,
) -> RayPanoptic:
    """Match the segments of one frame: the rays that end in one object of one class.

    Two segments of a class match if they share more than half of their union; a ray is shared if its two ends lie
    closer than the threshold, while the union takes all rays of both.
    """
    pair = cast_pair(truth.labels, prediction.labels, origins, grid, label_set)
    k, highest = label_set.num, int(max(truth.instances.max(initial=0), prediction.instances.max(initial=0)))
    # A segment's number is instance * K + class: equal numbers on both sides do not mean equal objects.
    true_R, said_R = (
        side.labels.ravel()[hits.voxel] + k * side.instances.ravel()[hits.voxel].astype(np.int64)
        for side, hits in ((truth, pair.truth), (prediction, pair.prediction))
    )
    size = k * (highest + 1)
    true_rays, said_rays = np.bincount(true_R, minlength=size), np.bincount(said_R, minlength=size)
    return RayPanoptic.stack(
        [
            _match(true_R[near], said_R[near], true_rays, said_rays, k)
            for near in pair.error < np.array(thresholds)[:, None]
        ]
    )


def _match(
    true_R: NDArray[np.int64],
    said_R: NDArray[np.int64],
    true_rays: NDArray[np.int64],
    said_rays: NDArray[np.int64],
    k: int,
) -> RayPanoptic:
    """The matches at one threshold: segment numbers of the rays that are near, and all rays of each segment."""
    size, same = len(true_rays), true_R % k == said_R % k
    combined, shared = np.unique(true_R[same] * size + said_R[same], return_counts=True)
    true, said = combined // size, combined % size
    iou = shared / (true_rays[true] + said_rays[said] - shared)
    match = iou > MATCH_IOU
    true, said, iou = true[match], said[match], iou[match]
    missed, false = true_rays >= FEWEST_RAYS, said_rays >= FEWEST_RAYS
    missed[true] = False
    false[said] = False
    return RayPanoptic(
        matched_TK=np.bincount(true % k, minlength=k)[None],
        false_TK=np.bincount(np.flatnonzero(false) % k, minlength=k)[None],
        missed_TK=np.bincount(np.flatnonzero(missed) % k, minlength=k)[None],
        iou_TK=np.bincount(true % k, weights=iou, minlength=k)[None].astype(np.float64),
    )

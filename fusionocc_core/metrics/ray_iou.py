"""RayIoU and RayPQ: what a volume says along the rays of a LiDAR (SparseOcc, Liu et al., ECCV 2024).

Legend: R rays, K classes, T distance thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.metrics.rays import RayHits, cast_rays, make_rays

THRESHOLDS_M = (1.0, 2.0, 4.0)
"""A ray is right if its class is and its distance is off by less than this."""


@dataclass(frozen=True, kw_only=True)
class RayPair:
    """The rays that meet something in the truth, and where they end there and in the prediction."""

    truth: RayHits
    prediction: RayHits

    @property
    def error(self) -> NDArray[np.float64]:
        """(R,) metres between the two ends."""
        return np.asarray(np.abs(self.truth.distance - self.prediction.distance))


def cast_pair(
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    origins: NDArray[np.floating],
    grid: VoxelGrid,
    label_set: LabelSet,
) -> RayPair:
    """Cast the rays of all origins (O, 3) into two volumes (X, Y, Z).

    Rays that meet nothing in the truth do not count, so they are not cast into the prediction. Unknown voxels of the
    truth let rays through as free ones do.
    """
    rays, size = make_rays(origins, grid), grid.voxel_size[0]
    hits = cast_rays((truth != label_set.free) & (truth != label_set.unknown), rays, size)
    met = truth.ravel()[hits.voxel]
    counts = (met != label_set.free) & (met != label_set.unknown)
    return RayPair(
        truth=RayHits(voxel=hits.voxel[counts], distance=hits.distance[counts]),
        prediction=cast_rays(prediction != label_set.free, rays[counts], size),
    )


@dataclass(frozen=True, kw_only=True)
class RayCounts:
    """Rays of each class; sums of these are exact."""

    truth_K: NDArray[np.int64]
    prediction_K: NDArray[np.int64]
    """Of the rays that meet something in the truth."""
    right_TK: NDArray[np.int64]

    @classmethod
    def zeros(cls, label_set: LabelSet, thresholds: tuple[float, ...] = THRESHOLDS_M) -> RayCounts:
        """No ray yet."""
        k = label_set.num
        return cls(
            truth_K=np.zeros(k, np.int64),
            prediction_K=np.zeros(k, np.int64),
            right_TK=np.zeros((len(thresholds), k), np.int64),
        )

    def __add__(self, other: RayCounts) -> RayCounts:
        return RayCounts(
            truth_K=self.truth_K + other.truth_K,
            prediction_K=self.prediction_K + other.prediction_K,
            right_TK=self.right_TK + other.right_TK,
        )

    def iou(self) -> NDArray[np.float64]:
        """(T, K) right / (truth + prediction - right); NaN for a class that no ray meets in either."""
        union = self.truth_K + self.prediction_K - self.right_TK
        return np.divide(self.right_TK, union, out=np.full(union.shape, np.nan), where=union > 0)


def count_rays(
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    origins: NDArray[np.floating],
    grid: VoxelGrid,
    label_set: LabelSet,
    thresholds: tuple[float, ...] = THRESHOLDS_M,
) -> RayCounts:
    """The counts of one frame, from labels (X, Y, Z) and origins (O, 3) in metres in the grid's frame."""
    pair = cast_pair(truth, prediction, origins, grid, label_set)
    true, said = truth.ravel()[pair.truth.voxel], prediction.ravel()[pair.prediction.voxel]
    right = (true == said) & (pair.error < np.asarray(thresholds)[:, None])
    k = label_set.num
    return RayCounts(
        truth_K=np.bincount(true, minlength=k),
        prediction_K=np.bincount(said, minlength=k),
        right_TK=np.stack([np.bincount(true[row], minlength=k) for row in right]),
    )

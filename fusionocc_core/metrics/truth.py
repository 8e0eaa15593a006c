"""What a prediction is compared with, and the check that the two may be compared at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.structures import Occupancy

MASKS = ("camera", "lidar", "none")
"""Which voxels count: those that a camera of the rig could see, those that the LiDAR saw, all."""


@dataclass(frozen=True, kw_only=True)
class OccupancyTruth:
    """The labels of one frame."""

    labels: NDArray[np.uint8]
    """(X, Y, Z) class ids; ``label_set.unknown`` where nothing is known. Unknown voxels never count."""
    grid: VoxelGrid
    label_set: LabelSet
    mask_camera: NDArray[np.bool_] | None = None
    """(X, Y, Z) true where a camera observed the voxel; None where the data set does not say."""
    mask_lidar: NDArray[np.bool_] | None = None
    """(X, Y, Z) true where the LiDAR did."""
    ray_origins: NDArray[np.float64] | None = None
    """(O, 3) metres in the grid's frame: where RayIoU looks from; see metrics.rays.ray_origins."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit the grid or hold ids that are no class."""
        if self.labels.shape != self.grid.shape or self.labels.dtype != np.uint8:
            raise ValueError(
                f"OccupancyTruth.labels: {self.labels.dtype} {self.labels.shape}; expected uint8 {self.grid.shape}"
            )
        strange = self.labels[(self.labels >= self.label_set.num) & (self.labels != self.label_set.unknown)]
        if len(strange):
            raise ValueError(
                f"OccupancyTruth.labels holds {strange[0]}; expected classes 0..{self.label_set.num - 1} of label set "
                f"{self.label_set.name!r} or {self.label_set.unknown} for unknown"
            )
        for name in ("mask_camera", "mask_lidar"):
            mask = getattr(self, name)
            if mask is not None and (mask.shape != self.grid.shape or mask.dtype != np.bool_):
                raise ValueError(f"OccupancyTruth.{name}: {mask.dtype} {mask.shape}; expected bool {self.grid.shape}")
        origins = self.ray_origins
        if origins is not None and (origins.ndim != 2 or origins.shape[1] != 3):
            raise ValueError(f"OccupancyTruth.ray_origins: shape {origins.shape}; expected (O, 3) in metres")

    def mask(self, name: str) -> NDArray[np.bool_] | None:
        """The mask of that name, one of "camera" and "lidar"; None where there is none."""
        return self.mask_camera if name == "camera" else self.mask_lidar


def check_comparable(prediction: Occupancy, grid: VoxelGrid, label_set: LabelSet) -> None:
    """Refuse a prediction on another grid or with other classes.

    Occ3D and SurroundOcc volumes have the same shape; comparing them would give a number that means nothing.

    Raises:
        ValueError: grids or label sets differ, or the prediction holds ids that are no class.
    """
    if prediction.grid != grid:
        raise ValueError(
            f"prediction.grid={prediction.grid} differs from {grid} of the labels; they cannot be compared"
        )
    if prediction.label_set != label_set:
        raise ValueError(
            f"prediction.label_set={prediction.label_set.name!r} differs from {label_set.name!r} of the labels "
            f"({', '.join(prediction.label_set.names)} against {', '.join(label_set.names)})"
        )
    highest = int(prediction.labels.max(initial=0))
    if highest >= label_set.num:
        raise ValueError(
            f"prediction.labels holds {highest}; expected classes 0..{label_set.num - 1}: "
            "a prediction says something about every voxel"
        )

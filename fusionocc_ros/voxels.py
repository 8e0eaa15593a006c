"""Which voxels to draw and in which colours. NumPy only, no ROS."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet
from fusionocc_core.structures import Occupancy


def occupied_mask(occupancy: Occupancy) -> NDArray[np.bool_]:
    """(X, Y, Z): neither free nor unknown."""
    labels, names = occupancy.labels, occupancy.label_set
    return (labels != names.free) & (labels != names.unknown)


def surface_mask(occupied: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The occupied voxels (X, Y, Z) with a face on a voxel that is not, or on the grid's border: the rest is hidden."""
    padded = np.pad(occupied, 1)
    hidden = occupied.copy()
    for axis in range(3):
        for step in (0, 2):
            window = [slice(1, -1)] * 3
            window[axis] = slice(step, step + occupied.shape[axis])
            hidden &= padded[tuple(window)]
    return occupied & ~hidden


def packed_colors(labels: LabelSet) -> NDArray[np.uint32]:
    """(256,) colour of every byte as 0x00RRGGBB, as in the rgb field of point clouds; 0 for bytes without a class."""
    out = np.zeros(256, dtype=np.uint32)
    rgb = np.asarray(labels.colors, dtype=np.uint32)
    out[: labels.num] = rgb[:, 0] << 16 | rgb[:, 1] << 8 | rgb[:, 2]
    return out

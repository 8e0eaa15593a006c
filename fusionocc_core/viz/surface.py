"""Which voxels can be seen at all: those with a side that no other covers. Most of a volume is not worth sending."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.structures import Occupancy


def solid_mask(occupancy: Occupancy) -> NDArray[np.bool_]:
    """(X, Y, Z): neither free nor unknown."""
    labels = occupancy.labels
    return np.asarray((labels != occupancy.label_set.free) & (labels != occupancy.label_set.unknown))


def surface_mask(solid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(X, Y, Z): solid with at least one of its six neighbours not; beyond the grid nothing is solid."""
    padded = np.pad(solid, 1)
    hidden = solid.copy()
    for axis in range(3):
        for start in (0, 2):
            part = [slice(1, -1)] * 3
            part[axis] = slice(start, start + solid.shape[axis])
            hidden &= padded[tuple(part)]
    return np.asarray(solid & ~hidden)


@dataclass(frozen=True, kw_only=True)
class SurfaceVoxels:
    """Visible voxels, class after class."""

    index_M: NDArray[np.int64]
    """Linear indices into the volume [x, y, z], z fastest; ascending within a class."""
    label_M: NDArray[np.uint8]
    """Ascending."""
    shape: tuple[int, int, int]

    def of_class(self, label: int) -> NDArray[np.int64]:
        """Linear indices of a class."""
        first, last = np.searchsorted(self.label_M, [label, label + 1])
        return self.index_M[first:last]

    def classes(self) -> list[int]:
        """Those that occur."""
        return [int(label) for label in np.unique(self.label_M)]

    def cells(self, index_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """(M, 3) voxel indices of linear ones."""
        return np.stack(np.unravel_index(index_M, self.shape), axis=1)


def surface_voxels(occupancy: Occupancy) -> SurfaceVoxels:
    """The visible voxels of a volume, sorted by class."""
    index_M = np.flatnonzero(surface_mask(solid_mask(occupancy)))
    label_M = occupancy.labels.reshape(-1)[index_M]
    order = np.argsort(label_M, kind="stable")
    return SurfaceVoxels(index_M=index_M[order], label_M=label_M[order], shape=occupancy.grid.shape)

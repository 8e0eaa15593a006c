"""F-score of occupied voxels: how many lie near an occupied voxel of the other volume."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import VoxelGrid

NEAR_M = 0.6
"""Two voxels are near if their centres are closer than this."""


@dataclass(frozen=True, kw_only=True)
class SurfaceCounts:
    """Occupied voxels and how many of them are near one of the other volume."""

    predicted: int
    predicted_near: int
    true: int
    true_near: int

    def __add__(self, other: SurfaceCounts) -> SurfaceCounts:
        return SurfaceCounts(
            predicted=self.predicted + other.predicted,
            predicted_near=self.predicted_near + other.predicted_near,
            true=self.true + other.true,
            true_near=self.true_near + other.true_near,
        )

    @property
    def accuracy(self) -> float:
        """Share of the predicted voxels that are near a true one; NaN without any."""
        return self.predicted_near / self.predicted if self.predicted else float("nan")

    @property
    def completeness(self) -> float:
        """Share of the true voxels that are near a predicted one; NaN without any."""
        return self.true_near / self.true if self.true else float("nan")

    @property
    def f_score(self) -> float:
        """Harmonic mean of the two; 0 if both are."""
        a, c = self.accuracy, self.completeness
        return 0.0 if a + c == 0 else 2 * a * c / (a + c)


def count_surface(
    predicted: NDArray[np.bool_], true: NDArray[np.bool_], grid: VoxelGrid, near: float = NEAR_M
) -> SurfaceCounts:
    """Compare occupied voxels (X, Y, Z) of two volumes over ``grid``; ``near`` in metres.

    Raises:
        ValueError: volumes that do not fit the grid.
    """
    if not predicted.shape == true.shape == grid.shape:
        raise ValueError(
            f"predicted {predicted.shape} and true {true.shape}: expected both {grid.shape} for their grid"
        )
    return SurfaceCounts(
        predicted=int(predicted.sum()),
        predicted_near=int((predicted & _spread(true, grid, near)).sum()),
        true=int(true.sum()),
        true_near=int((true & _spread(predicted, grid, near)).sum()),
    )


def _spread(occupied: NDArray[np.bool_], grid: VoxelGrid, near: float) -> NDArray[np.bool_]:
    """Voxels whose centre is closer than ``near`` to that of an occupied one."""
    size = np.asarray(grid.voxel_size)
    reach = np.ceil(near / size).astype(int)
    padded = np.pad(occupied, [(r, r) for r in reach])
    out = np.zeros_like(occupied)
    for offset in product(*(range(-r, r + 1) for r in reach)):
        if np.linalg.norm(offset * size) < near:
            start = reach + np.asarray(offset)
            x, y, z = (slice(s, s + n) for s, n in zip(start, occupied.shape, strict=True))
            out |= padded[x, y, z]
    return out

"""Cells to classes of voxels.

Legend: C cells, V voxels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import apply
from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.labelling.cells import Cells
from fusionocc_core.labelling.config import ALWAYS_STILL, FREE, GROUND, STRUCTURE

THING_VOTES = 4
"""Of a cell of a thing against one of ground, structure or vegetation: a floor fills 16 cells of a voxel, a pole, a leg
or a wheel two to six, so that without weights thin things would be lost."""
_VOTES = np.array([1 if c in ALWAYS_STILL else THING_VOTES for c in range(OCC3D_LABELS.num)])
_RANK = np.array([c if c in GROUND else 100 + c if c in STRUCTURE else 200 + c for c in range(OCC3D_LABELS.num)])
"""Who wins a tie: things before structures before ground, then the higher id."""


def moved(cells: Cells, a2b: NDArray[np.float64]) -> Cells:
    """Cells in frame b."""
    return Cells(points=apply(a2b, cells.points).astype(np.float32), label=cells.label)


def flat_voxels(points: NDArray[np.floating], grid: VoxelGrid) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Flat voxel indices of those points (P, 3) that lie in the grid, and which points these are."""
    ijk = grid.indices(points)
    inside = np.flatnonzero(grid.contains(ijk))
    i, j, k = ijk[inside].T
    return np.asarray((i * grid.shape[1] + j) * grid.shape[2] + k), inside


def voxelise(cells: Cells, grid: VoxelGrid) -> NDArray[np.uint8]:
    """The class (X, Y, Z) with most votes among the cells in each voxel; FREE where there is none.

    Args:
        cells: in the grid's frame, every one with a class.
        grid: the voxels.
    """
    voxel, inside = flat_voxels(cells.points, grid)
    pairs, count = np.unique(voxel * OCC3D_LABELS.num + cells.label[inside], return_counts=True)
    label = pairs % OCC3D_LABELS.num
    order = np.lexsort((_RANK[label], count * _VOTES[label]))
    out = np.full(grid.shape, FREE, np.uint8).reshape(-1)
    # Of several values for one voxel NumPy keeps the last: the one with most votes.
    out[pairs[order] // OCC3D_LABELS.num] = label[order]
    return out.reshape(grid.shape)


def inside_boxes(
    boxes2grid: list[tuple[NDArray[np.float64], NDArray[np.float64]]], grid: VoxelGrid
) -> NDArray[np.bool_]:
    """Voxels (X, Y, Z) whose centre lies in one of the boxes, each (box2grid (4, 4), size_lwh (3,))."""
    out = np.zeros(grid.shape, bool)
    for box2grid, size in boxes2grid:
        radius = float(np.linalg.norm(size)) / 2
        low = np.clip(grid.indices(box2grid[None, :3, 3] - radius)[0], 0, grid.shape)
        high = np.clip(grid.indices(box2grid[None, :3, 3] + radius)[0] + 1, 0, grid.shape)
        if (low >= high).any():
            continue
        block = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
        local = (grid.centers(block.reshape(-1, 3)) - box2grid[:3, 3]) @ box2grid[:3, :3]
        held = (np.abs(local) <= size / 2).all(axis=1).reshape(block.shape[:3])
        out[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] |= held
    return out

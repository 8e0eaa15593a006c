"""Filling what no pulse hit: the road between rings, walls between rings, the far side and the inside of vehicles.

SurroundOcc reconstructs a mesh (Poisson) and samples it. Here there is no mesh: holes of surfaces are closed in the
voxels themselves, and vehicles are completed by symmetry in the axes of their boxes. Deterministic, and quick.

Legend: X Y Z the grid, H holes, C cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.labelling.cells import Cells, thin
from fusionocc_core.labelling.config import FREE, GROUND, STRUCTURE

GRAZING = 3
"""Voxels around ground, at its level, in which a pulse that passes says nothing: it may have grazed the ground."""
GROUND_GAP, GROUND_RIM = 5, 2
"""Holes of ground up to twice the first in width, voxels, are filled, and a rim of the second around all ground."""
WALL_GAP = 1
"""Holes of structures up to twice this in width, voxels, are filled where no pulse passed."""
VEHICLES = tuple(OCC3D_LABELS.names.index(n) for n in ("bus", "car", "construction_vehicle", "trailer", "truck"))
"""Classes that are taken for symmetric and solid."""
FILL_SPACING = 0.2
"""Raster of the points inside vehicles, metres."""


@dataclass(frozen=True, kw_only=True)
class Holes:
    """Voxels in which a surface goes on that was hit around them."""

    index: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
    """x, y, z, each (H,)."""
    label: NDArray[np.uint8]
    """(H,) class of the surface."""


def grazed(semantics: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Voxels (X, Y, Z) where ground may lie that was not hit: within GRAZING voxels of ground, at its level.

    Only columns without ground count. A pulse that meets the road at 20 m is within a voxel's height of it for the last
    metres, so that passing through such a voxel does not show it to be free.
    """
    from scipy.ndimage import distance_transform_edt

    out = np.zeros(semantics.shape, bool)
    has_ground = np.isin(semantics, GROUND).any(axis=2)
    if has_ground.any():
        out[_continued(semantics, ~has_ground & (distance_transform_edt(~has_ground) <= GRAZING)).index] = True
    return out & (semantics == FREE)


def ground_holes(semantics: NDArray[np.uint8]) -> Holes:
    """Free voxels of columns without ground in which the ground around them goes on, at the nearest ground's level."""
    from scipy.ndimage import binary_closing, distance_transform_edt

    has_ground = np.isin(semantics, GROUND).any(axis=2)
    closed = binary_closing(np.pad(has_ground, GROUND_GAP), _disk(GROUND_GAP))
    closed = closed[GROUND_GAP:-GROUND_GAP, GROUND_GAP:-GROUND_GAP]
    if has_ground.any():
        closed |= distance_transform_edt(~has_ground) <= GROUND_RIM
    return _continued(semantics, closed & ~has_ground)


def _continued(semantics: NDArray[np.uint8], columns: NDArray[np.bool_]) -> Holes:
    """The free voxels of columns (X, Y) at the level, and with the class, of the nearest column with ground."""
    from scipy.ndimage import distance_transform_edt

    ground = np.isin(semantics, GROUND)
    top = semantics.shape[2] - 1 - ground[:, :, ::-1].argmax(axis=2)
    near_x, near_y = distance_transform_edt(~ground.any(axis=2), return_distances=False, return_indices=True)
    x, y = np.nonzero(columns)
    from_x, from_y = near_x[x, y], near_y[x, y]
    z = top[from_x, from_y]
    empty = semantics[x, y, z] == FREE
    label = semantics[from_x, from_y, z]
    return Holes(index=(x[empty], y[empty], z[empty]), label=label[empty])


def wall_holes(semantics: NDArray[np.uint8], seen_free: NDArray[np.bool_]) -> Holes:
    """Voxels that no pulse passed, between structures; with the class of the nearest one."""
    from scipy.ndimage import binary_closing, distance_transform_edt

    solid = np.isin(semantics, STRUCTURE)
    cube = np.ones((2 * WALL_GAP + 1,) * 3, bool)
    closed = binary_closing(np.pad(solid, WALL_GAP), cube)[(slice(WALL_GAP, -WALL_GAP),) * 3]
    index = np.nonzero(closed & ~seen_free & (semantics == FREE))
    if not len(index[0]):
        return Holes(index=(index[0], index[1], index[2]), label=np.zeros(0, np.uint8))
    nearest = distance_transform_edt(~solid, return_distances=False, return_indices=True)
    label = semantics[tuple(axis[index] for axis in nearest)]
    return Holes(index=(index[0], index[1], index[2]), label=label)


def _disk(radius: int) -> NDArray[np.bool_]:
    axis = np.arange(-radius, radius + 1)
    return np.asarray(axis[:, None] ** 2 + axis[None] ** 2 <= radius**2)


def solid_vehicle(cells: Cells, label: int, size: float) -> Cells:
    """Cells of a vehicle, mirrored left to right and filled between the two sides; others are returned as they are.

    Args:
        cells: in the axes of the box: x along its length, y across, the origin in the middle.
        label: the object's class.
        size: edge of the cells, metres.
    """
    if label not in VEHICLES or not len(cells.points):
        return cells
    skin = np.concatenate([cells.points, cells.points * np.array([1, -1, 1], np.float32)])
    points = np.concatenate([skin, _between(skin)])
    return thin(points, np.full(len(points), label, np.uint8), size)


def _between(skin: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points between the outermost points of every cell of a side view; the skin (P, 3) is symmetric in y."""
    cell = np.floor(skin[:, [0, 2]] / FILL_SPACING).astype(np.int64)
    unique, which = np.unique(cell, axis=0, return_inverse=True)
    half = np.zeros(len(unique))
    np.maximum.at(half, which, skin[:, 1])
    count = 2 * (half / FILL_SPACING).astype(np.int64) + 1
    row = np.repeat(np.arange(len(unique)), count)
    step = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) - count[row] // 2
    across = step * FILL_SPACING
    return np.stack([*((unique[row] + 0.5) * FILL_SPACING).T, across], axis=1)[:, [0, 2, 1]].astype(np.float32)

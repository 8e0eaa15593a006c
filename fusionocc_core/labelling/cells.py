"""Clouds thinned to one point a cell, each with a class: a cell is one vote, however many points fell into it.

Legend: P points, C cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.labelling.config import UNLABELLED


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Occupied cells, in some frame."""

    points: NDArray[np.float32]
    """(C, 3) the mean of each cell's points, metres."""
    label: NDArray[np.uint8]
    """(C,) class, or UNLABELLED."""

    @classmethod
    def empty(cls) -> Cells:
        """No cell."""
        return cls(points=np.zeros((0, 3), np.float32), label=np.zeros(0, np.uint8))


def join(parts: list[Cells]) -> Cells:
    """All cells of several sets."""
    if not parts:
        return Cells.empty()
    return Cells(points=np.concatenate([p.points for p in parts]), label=np.concatenate([p.label for p in parts]))


def cell_keys(points: NDArray[np.floating], size: float) -> NDArray[np.int64]:
    """(P,) one number for each cell of that size, the same for points in the same cell."""
    ijk = np.floor(points.astype(np.float64) / size).astype(np.int64)
    if not len(ijk):
        return np.zeros(0, np.int64)
    low = ijk.min(axis=0)
    extent = ijk.max(axis=0) - low + 1
    ijk -= low
    return np.asarray((ijk[:, 0] * extent[1] + ijk[:, 1]) * extent[2] + ijk[:, 2])


def thin(points: NDArray[np.float32], label: NDArray[np.uint8], size: float) -> Cells:
    """The cells that hold points (P, 3); the commonest class of a cell's labelled points is its class.

    Of classes with the same number of points the one with the higher id is taken.
    """
    if not len(points):
        return Cells.empty()
    _, cell, count = np.unique(cell_keys(points, size), return_inverse=True, return_counts=True)
    mean = np.stack([np.bincount(cell, points[:, axis], len(count)) / count for axis in range(3)], axis=1)
    classes = np.full(len(count), UNLABELLED, np.uint8)
    known = label != UNLABELLED
    pairs, votes = np.unique(cell[known] * OCC3D_LABELS.num + label[known], return_counts=True)
    order = np.argsort(votes, kind="stable")
    classes[pairs[order] // OCC3D_LABELS.num] = pairs[order] % OCC3D_LABELS.num
    return Cells(points=mean.astype(np.float32), label=classes)


def spread_classes(cells: Cells) -> Cells:
    """Cells without class take that of the nearest one that has one, however far it is.

    Raises:
        ValueError: no cell has a class.
    """
    unknown = cells.label == UNLABELLED
    if not unknown.any():
        return cells
    if unknown.all():
        raise ValueError("no labelled point of the static scene in any keyframe; are the lidarseg files those of it?")
    from scipy.spatial import cKDTree

    label = cells.label.copy()
    _, nearest = cKDTree(cells.points[~unknown]).query(cells.points[unknown])
    label[unknown] = cells.label[~unknown][nearest]
    return Cells(points=cells.points, label=label)

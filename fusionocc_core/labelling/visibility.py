"""Which voxels the LiDAR and the cameras have observed.

Legend: R rays, P points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.geometry import apply, inverse, project
from fusionocc_core.grids import VoxelGrid
from fusionocc_core.labelling.aggregate import Pulses
from fusionocc_core.metrics.rays import Rays, crossed_voxels

_DIAGONAL = 1.75
"""Rays to a voxel's face go on by this, voxels: to behind its farthest corner."""
_NEAREST = 0.1
"""Nothing nearer to a camera is in its picture, metres."""
_INSIDE = 1e-4
"""Rays begin so far inside the grid's faces, voxels."""


def clipped(
    start: NDArray[np.floating], end: NDArray[np.floating], grid: VoxelGrid
) -> tuple[Rays, NDArray[np.float64], NDArray[np.intp]]:
    """The parts of rays that lie in the grid: rays, their lengths in voxels, and which of the rays these are.

    Args:
        start: (R, 3) metres in the grid's frame.
        end: (R, 3).
        grid: voxels that are cubes.
    """
    lower, size = np.asarray(grid.lower), np.asarray(grid.voxel_size)
    begin = (start.astype(np.float64) - lower) / size
    along = (end.astype(np.float64) - lower) / size - begin
    if not len(begin):
        return Rays(start=begin, direction=along), np.zeros(0), np.zeros(0, np.intp)
    with np.errstate(divide="ignore", invalid="ignore"):
        faces = (np.stack([np.full(3, _INSIDE), np.asarray(grid.shape) - _INSIDE])[:, None] - begin) / along
    # A ray along a face has 0 / 0 there: whether it lies between the two is decided by where it begins.
    outside = (along == 0) & ((begin < 0) | (begin >= np.asarray(grid.shape)))
    first = np.nanmax(np.where(along == 0, -np.inf, faces.min(axis=0)), axis=1)
    last = np.nanmin(np.where(along == 0, np.inf, faces.max(axis=0)), axis=1)
    first, length = np.maximum(first, 0.0), np.linalg.norm(along, axis=1)
    kept = np.flatnonzero((first < np.minimum(last, 1.0)) & ~outside.any(axis=1) & (length > 0))
    entry = begin[kept] + first[kept, None] * along[kept]
    rays = Rays(start=entry, direction=along[kept] / length[kept, None])
    # A ray that ends beyond the grid runs on into the rim: its last voxel inside is crossed whole.
    stop = np.where(last[kept] < 1.0, np.inf, 1.0 - first[kept])
    return rays, stop * length[kept], kept


def crossed_by(pulses: Pulses, scene2grid: NDArray[np.float64], grid: VoxelGrid) -> NDArray[np.bool_]:
    """Voxels (X, Y, Z) that pulses passed through on their way; those where they ended are left out."""
    start, end = (apply(scene2grid, points.astype(np.float32)) for points in (pulses.eye, pulses.end))
    rays, length, _ = clipped(start, end, grid)
    return crossed_voxels(np.zeros(grid.shape, bool), rays, length)


def camera_mask(
    occupied: NDArray[np.bool_],
    candidates: NDArray[np.bool_],
    cameras: Sequence[SensorRecord],
    scene2grid: NDArray[np.float64],
    grid: VoxelGrid,
) -> NDArray[np.bool_]:
    """Those of the candidate voxels (X, Y, Z) that lie on a camera's ray, up to the first occupied one, inclusive.

    Rays are aimed at the middle of the three faces of every candidate that are turned to the camera, where these lie in
    its picture. A raster of pixels would miss far ground: at 30 m two rows of a 900-row picture are half a metre apart.
    Rays to the centres of voxels would never reach it: they end in the ground before.

    Args:
        occupied: (X, Y, Z).
        candidates: (X, Y, Z).
        cameras: records with intrinsics, picture size, and ``ego2global`` relative to the scene frame, each at its own
            stamp.
        scene2grid: (4, 4).
        grid: the voxels.
    """
    seen = np.zeros(grid.shape, bool)
    for camera in cameras:
        cam2grid = scene2grid @ camera.ego2global @ camera.sensor2ego
        for axis in (2, 0, 1):
            faces = facing_middles(candidates & ~seen, cam2grid[:3, 3], axis, grid)
            faces = faces[in_picture(apply(inverse(cam2grid), faces), camera)]
            eye = np.broadcast_to(cam2grid[:3, 3], faces.shape)
            away = np.linalg.norm(faces - eye, axis=1, keepdims=True)
            beyond = faces + (faces - eye) * (_DIAGONAL * max(grid.voxel_size) / away)
            rays, length, _ = clipped(eye, beyond, grid)
            seen |= crossed_voxels(occupied, rays, length)
    return seen & candidates


def facing_middles(
    voxels: NDArray[np.bool_], eye: NDArray[np.float64], axis: int, grid: VoxelGrid
) -> NDArray[np.float64]:
    """The middle (P, 3) of that face, of the two across ``axis``, that is nearer to the eye; a little inside of it."""
    middles = grid.centers(np.argwhere(voxels))
    middles[:, axis] += np.sign(eye[axis] - middles[:, axis]) * (0.5 - _INSIDE) * grid.voxel_size[axis]
    return middles


def in_picture(points_cam: NDArray[np.float64], camera: SensorRecord) -> NDArray[np.bool_]:
    """Which points (P, 3) in the camera's axes lie in its picture."""
    assert camera.intrinsics is not None, "Tables.record gives every camera its intrinsics"
    u, v, depth = project(camera.intrinsics, points_cam).T
    return np.asarray((depth > _NEAREST) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height))

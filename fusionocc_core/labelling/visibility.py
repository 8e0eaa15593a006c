"""Which voxels the LiDAR and the cameras have observed.

Legend: R rays, H W height and width of a picture in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.geometry import apply
from fusionocc_core.grids import VoxelGrid
from fusionocc_core.labelling.aggregate import Pulses
from fusionocc_core.metrics.rays import Rays, crossed_voxels

RAYS_PER_VOXEL = 2.0
"""Camera rays are so dense that the farthest voxel of the grid, seen square on, gets this many a side."""
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
    occupied: NDArray[np.bool_], cameras: Sequence[SensorRecord], scene2grid: NDArray[np.float64], grid: VoxelGrid
) -> NDArray[np.bool_]:
    """Voxels (X, Y, Z) on the way of a ray from a camera through its picture, up to the first occupied one, inclusive.

    Args:
        occupied: (X, Y, Z).
        cameras: records with intrinsics, picture size, and ``ego2global`` relative to the scene frame, each at its own
            stamp.
        scene2grid: (4, 4).
        grid: the voxels.
    """
    seen = np.zeros(grid.shape, bool)
    reach = float(np.linalg.norm(np.asarray(grid.upper) - np.asarray(grid.lower)))
    for camera in cameras:
        cam2grid = scene2grid @ camera.ego2global @ camera.sensor2ego
        directions = pixel_directions(camera, grid) @ cam2grid[:3, :3].T
        eye = np.broadcast_to(cam2grid[:3, 3], directions.shape)
        rays, length, _ = clipped(eye, eye + reach * directions, grid)
        seen |= crossed_voxels(occupied, rays, length)
    return seen


def pixel_directions(camera: SensorRecord, grid: VoxelGrid) -> NDArray[np.float64]:
    """Unit directions (R, 3) in the camera's axes, through a raster of the picture that reaches its edges."""
    assert camera.intrinsics is not None, "Tables.record gives every camera its intrinsics"
    farthest = float(np.hypot(*np.abs([grid.lower, grid.upper]).max(axis=0)[:2]))
    counts = []
    for axis, length in enumerate((camera.width, camera.height)):
        pixels = camera.intrinsics[axis, axis] * min(grid.voxel_size) / farthest / RAYS_PER_VOXEL
        counts.append(max(2, min(length, int(np.ceil(length / pixels)))))
    u, v = (
        (np.arange(count) + 0.5) * length / count
        for count, length in zip(counts, (camera.width, camera.height), strict=True)
    )
    pixel = np.stack([*np.meshgrid(u, v), np.ones((len(v), len(u)))], axis=-1).reshape(-1, 3)
    out = pixel @ np.linalg.inv(camera.intrinsics).T
    return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True))

"""The occupancy as a camera would see it: depth and confidence of the first occupied voxel at each pixel. No ROS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import inverse
from fusionocc_core.metrics.rays import Rays, cast_rays
from fusionocc_core.structures import CameraImage, Occupancy
from fusionocc_ros.voxels import occupied_mask


@dataclass(frozen=True, kw_only=True)
class View:
    """What a camera sees, H x W pixels."""

    depth: NDArray[np.float32]
    """Metres along the camera's z axis to where the ray enters the voxel; NaN where it meets none."""
    confidence: NDArray[np.uint8] | None
    """Of that voxel, 0..255; 0 where there is none. None where the network was not asked for it."""
    intrinsics: NDArray[np.float64]
    """(3, 3) of this picture."""


def look(occupancy: Occupancy, camera: CameraImage, cam2grid: NDArray[np.float64], *, width: int) -> View:
    """What the camera sees of the occupancy.

    Args:
        occupancy: the voxels.
        camera: its intrinsics and the size of its pictures.
        cam2grid: (4, 4) from the camera at its stamp to the grid's frame.
        width: of the view, pixels; the height keeps the picture's shape.

    Raises:
        ValueError: the camera is outside the grid.
    """
    rows, columns = camera.image.shape[:2]
    height = max(1, round(rows * width / columns))
    scale = np.diag([width / columns, height / rows, 1.0])
    offset = np.array([[0, 0, (width / columns - 1) / 2], [0, 0, (height / rows - 1) / 2], [0, 0, 0]])
    intrinsics = scale @ camera.intrinsics + offset
    grid, size = occupancy.grid, np.asarray(occupancy.grid.voxel_size)
    if not grid.contains(grid.indices(cam2grid[None, :3, 3]))[0]:
        raise ValueError(
            f"camera {camera.name} is at {np.round(cam2grid[:3, 3], 2).tolist()} m, outside the grid {grid.lower} to "
            f"{grid.upper}: what it sees cannot be told"
        )
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1)
    rays = pixels @ np.linalg.inv(intrinsics).T @ cam2grid[:3, :3].T / size  # voxels for each metre of depth
    start = (cam2grid[:3, 3] - np.asarray(grid.lower)) / size
    occupied = occupied_mask(occupancy)
    found = cast_rays(occupied, Rays(start=np.broadcast_to(start, rays.shape), direction=rays), 1.0).voxel
    hit = occupied.reshape(-1)[found]
    voxel = np.stack(np.unravel_index(found, grid.shape), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.where(rays == 0, -np.inf, np.minimum((voxel - start) / rays, (voxel + 1 - start) / rays))
    depth = np.where(hit, np.maximum(near.max(axis=1), 0.0), np.nan).astype(np.float32)
    confidence = None
    if occupancy.confidence is not None:
        confidence = np.where(hit, occupancy.confidence.reshape(-1)[found], 0).astype(np.uint8).reshape(height, width)
    return View(depth=depth.reshape(height, width), confidence=confidence, intrinsics=intrinsics)


def camera_to_reference(camera: CameraImage, ego2global: NDArray[np.float64]) -> NDArray[np.float64]:
    """cam2ego (4, 4) with the ego of the reference time: the vehicle's motion since the camera's stamp is in it."""
    return inverse(ego2global) @ camera.ego2global @ camera.cam2ego

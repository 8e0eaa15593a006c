"""Which voxels the LiDAR and the cameras have observed (Occ3D's mask_lidar and mask_camera)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.simulation.cameras import CameraView
from fusionocc_core.simulation.lidar import Scan
from fusionocc_core.simulation.rigs import CameraMount, LidarMount
from fusionocc_core.simulation.street import Snapshot

PROBE_DENSITY = 4
PROBE_REACH = 62.0
"""Farther points lie in no grid, metres."""
MIN_BEAMS = 6
"""Pulses that must pass through a voxel before it counts as seen to be free."""
_STEP = 0.2
"""Distance between samples along a beam, metres."""
_TOLERANCE = 0.3
"""A voxel's point may lie this far behind the surface that a pixel shows, metres."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What dense beams from the LiDAR's place at one keyframe hit."""

    points: NDArray[np.float32]
    """(P, 3), street frame."""
    instance: NDArray[np.int16]
    """(P,)."""


def probe(snapshot: Snapshot, mount: LidarMount, lidar2street: NDArray[np.float64]) -> Probe:
    """Cast PROBE_DENSITY times as many rings as the sensor has: what its sweeps hit in half a second of driving."""
    span = mount.step_deg * mount.rings
    rings = np.deg2rad(mount.lowest_deg + span * np.arange(mount.rings * PROBE_DENSITY) / (mount.rings * PROBE_DENSITY))
    azimuth = mount.azimuths[:, None]
    directions = np.stack(
        [np.cos(rings) * np.cos(azimuth), np.cos(rings) * np.sin(azimuth), np.sin(rings) + 0 * azimuth], axis=-1
    )
    world = (directions.reshape(-1, 3) @ lidar2street[:3, :3].T).astype(np.float32)
    origin = lidar2street[:3, 3].astype(np.float32)
    hits = snapshot.first_hits(np.broadcast_to(origin, world.shape), world)
    near = np.flatnonzero((hits.triangle >= 0) & (hits.distance < PROBE_REACH))
    points = origin + hits.distance[near, None] * world[near]
    return Probe(points=points, instance=snapshot.instance[hits.triangle[near]])


def lidar_mask(
    current: Scan,
    probes: Sequence[Probe],
    now: int,
    still: NDArray[np.bool_],
    street2ego: NDArray[np.float64],
    grid: VoxelGrid,
) -> NDArray[np.bool_]:
    """Voxels (X, Y, Z) that the LiDAR observed.

    Occupied ones count where the current sweep, the current probe, or (for what rests) the probe of another keyframe
    hits them; free ones where at least MIN_BEAMS pulses of the current sweep passed through. A cast of all beams of
    all sweeps would mark half of the grid; the genuine Occ3D label marks 9 %, about as many free voxels as occupied
    ones.

    Args:
        current: the sweep at the reference time.
        probes: of the current and neighbouring keyframes.
        now: which of them is the current one.
        still: (number of things + 1,) which things rest; the last entry, for NO_INSTANCE, is True.
        street2ego: (4, 4) at the reference time.
        grid: in the ego frame.
    """
    mask = np.zeros(int(np.prod(grid.shape)), bool)
    back = current.ranges > 0
    origin = current.origins[back] @ street2ego[:3, :3].T + street2ego[:3, 3]
    direction = current.directions[back] @ street2ego[:3, :3].T
    mask[_flat(origin + current.ranges[back, None] * direction, grid)] = True
    for k, hit in enumerate(probes):
        points = hit.points if k == now else hit.points[still[hit.instance]]
        mask[_flat(points @ street2ego[:3, :3].T.astype(np.float32) + street2ego[:3, 3].astype(np.float32), grid)] = (
            True
        )
    passed = np.zeros(len(mask), np.uint16)
    _count_beams(passed, origin, direction, current.ranges[back], grid)
    mask |= passed >= MIN_BEAMS
    return mask.reshape(grid.shape)


def _flat(points: NDArray[np.floating], grid: VoxelGrid) -> NDArray[np.intp]:
    ijk = grid.indices(points)
    ijk = ijk[grid.contains(ijk)]
    return np.ravel_multi_index(tuple(ijk.T), grid.shape)


def _count_beams(
    passed: NDArray[np.uint16],
    origin: NDArray[np.floating],
    direction: NDArray[np.floating],
    ranges: NDArray[np.float32],
    grid: VoxelGrid,
) -> None:
    """Count the beams through each voxel, step by step until all of them have ended or left the grid."""
    size = np.asarray(grid.voxel_size)
    position = ((origin - np.asarray(grid.lower)) / size).astype(np.float32)
    step = (direction * _STEP / size).astype(np.float32)
    left = np.floor((ranges - 0.5 * _STEP) / _STEP).astype(np.int32)
    shape = np.asarray(grid.shape)
    last = np.full(len(left), -1, np.int64)
    while len(left):
        inside = np.ones(len(left), bool)
        for axis in range(3):
            inside &= (position[:, axis] >= 0) & (position[:, axis] < shape[axis])
        i, j, k = (position[:, axis].astype(np.int64) for axis in range(3))
        voxel = (i * shape[1] + j) * shape[2] + k
        fresh = voxel[inside & (voxel != last)]
        passed += np.bincount(fresh, minlength=len(passed)).astype(np.uint16)
        on = inside & (left > 0)
        position, step, left, last = position[on] + step[on], step[on], left[on] - 1, voxel[on]


def camera_mask(
    views: Sequence[CameraView],
    mounts: Sequence[CameraMount],
    ego2cams: Sequence[NDArray[np.float64]],
    candidates: NDArray[np.bool_],
    grid: VoxelGrid,
) -> NDArray[np.bool_]:
    """Those of the candidate voxels (X, Y, Z) of which a camera sees the centre or a point towards a corner."""
    ijk = np.argwhere(candidates)
    centers = grid.centers(ijk).astype(np.float32)
    seen = np.zeros(len(ijk), bool)
    size = np.asarray(grid.voxel_size, np.float32)
    offsets = [(0, 0, 0), *((x, y, z) for x in (-0.35, 0.35) for y in (-0.35, 0.35) for z in (-0.35, 0.35))]
    for view, mount, ego2cam in zip(views, mounts, ego2cams, strict=True):
        for offset in offsets:
            todo = np.flatnonzero(~seen)
            points = centers[todo] + size * np.asarray(offset, np.float32)
            seen[todo] |= _visible(view, mount, ego2cam, points)
    mask = np.zeros(grid.shape, bool)
    mask[tuple(ijk[seen].T)] = True
    return mask


def _visible(
    view: CameraView, mount: CameraMount, ego2cam: NDArray[np.float64], points: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Whether nothing hides the points (P, 3), ego frame at the reference time."""
    h, w = mount.image_size
    cam = points @ ego2cam[:3, :3].T.astype(np.float32) + ego2cam[:3, 3].astype(np.float32)
    fx, fy, cx, cy = mount.intrinsics
    depth = np.maximum(cam[:, 2], 1e-3)
    u, v = cam[:, 0] / depth * fx + cx, cam[:, 1] / depth * fy + cy
    inside = (cam[:, 2] > 0.1) & (u >= 0) & (u < w) & (v >= 0) & (v < h)
    out = np.zeros(len(points), bool)
    at = np.flatnonzero(inside)
    out[at] = cam[at, 2] <= view.depth[v[at].astype(int), u[at].astype(int)] + _TOLERANCE
    return out

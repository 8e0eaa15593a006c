"""Query rays of RayIoU and the caster that finds the first occupied voxel along them.

RayIoU (SparseOcc, Liu et al., ECCV 2024) looks at a volume as a LiDAR would: a fixed fan of rays from every place
where the LiDAR stood in the scene. The caster walks from voxel to voxel (Amanatides and Woo, 1987), all rays at once
in NumPy.

Legend: R rays, O origins, F frames of a scene, S steps of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import inverse
from fusionocc_core.grids import VoxelGrid

AZIMUTHS = 360
GROUND_PITCHES = 10
"""Pitches that meet the ground at 1, 2, ... 10 times the LiDAR's height."""
HIGHEST_PITCH = 0.21
"""The first pitch at or above this, radians, is the last."""
MOST_ORIGINS = 8
BORDER_M = 1.0
"""Origins closer than this to the grid's sides are left out."""

_BLOCK = 8
"""Steps between two looks at who has arrived: sorting out the arrived costs time, and so do steps beyond the end."""
_CHUNK = 32_768
"""Rays that are marked at a time: their state then fits the processor's cache."""
_FAR = 1e30
"""Ray parameter of a face that is never reached; finite, so that 0 * _FAR is 0."""


@dataclass(frozen=True, kw_only=True)
class RayHits:
    """Where each ray ends."""

    voxel: NDArray[np.int64]
    """(R,) flat index into the (X, Y, Z) volume: the first occupied voxel, or the last one inside the grid."""
    distance: NDArray[np.float64]
    """(R,) metres from the origin to where the ray leaves that voxel."""


@cache
def ray_directions() -> NDArray[np.float32]:
    """The 14,040 unit directions (R, 3) of RayIoU in the ego frame: 39 pitches, lowest first, of 360 azimuths each."""
    pitches = [-(np.pi / 2 - np.arctan(k)) for k in range(1, GROUND_PITCHES + 1)]
    step = pitches[-1] - pitches[-2]
    while pitches[-1] < HIGHEST_PITCH:
        pitches.append(pitches[-1] + step)
    pitch, azimuth = np.meshgrid(pitches, np.deg2rad(np.arange(AZIMUTHS)), indexing="ij")
    columns = [np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch)]
    directions = np.stack(columns, axis=-1).reshape(-1, 3).astype(np.float32)
    directions.flags.writeable = False
    return directions


def ray_origins(
    lidar2global_F44: NDArray[np.floating], frame2global_44: NDArray[np.floating], grid: VoxelGrid
) -> NDArray[np.float64]:
    """Where the LiDAR stood in the frames of a scene, as origins for the rays of one frame.

    Args:
        lidar2global_F44: LiDAR poses of all keyframes of the scene, in the order of time.
        frame2global_44: pose of ``grid.frame`` at the reference time of the frame that is evaluated.
        grid: its voxels; positions nearer than 1 m to its sides, or outside, are left out.

    Returns:
        (O, 3) metres in ``grid.frame``; of more than 8, 8 that are spread evenly over the scene.
    """
    homogeneous = inverse(frame2global_44) @ np.asarray(lidar2global_F44, dtype=np.float64)[:, :, 3:]
    origins = homogeneous[:, :3, 0]
    lower, upper = np.asarray(grid.lower), np.asarray(grid.upper)
    flat = (origins[:, :2] > lower[:2] + BORDER_M) & (origins[:, :2] < upper[:2] - BORDER_M)
    high = (origins[:, 2] >= lower[2]) & (origins[:, 2] < upper[2])
    origins = origins[flat.all(axis=1) & high]
    if len(origins) > MOST_ORIGINS:
        origins = origins[np.round(np.linspace(0, len(origins) - 1, MOST_ORIGINS)).astype(np.int64)]
    return np.ascontiguousarray(origins)


@dataclass(frozen=True, kw_only=True)
class Rays:
    """Rays in voxel units of a grid."""

    start: NDArray[np.float64]
    """(R, 3) position in voxels from the grid's lower corner."""
    direction: NDArray[np.float64]
    """(R, 3) of length 1."""

    def __getitem__(self, chosen: NDArray[np.bool_] | slice) -> Rays:
        return replace(self, start=self.start[chosen], direction=self.direction[chosen])


def make_rays(origins: NDArray[np.floating], grid: VoxelGrid) -> Rays:
    """The rays of all directions from all origins (O, 3), metres in the grid's frame; origin after origin.

    The reference hands its caster the origin and the point 1 m along the ray as float32 numbers in voxels, with the
    voxel size as float32 too. A ray that grazes an edge then takes one voxel or its neighbour, so the same rounding
    is done here.

    Raises:
        ValueError: voxels that are not cubes, wrong shapes, or an origin outside the grid.
    """
    origins = np.asarray(origins, dtype=np.float64)
    size = np.float64(np.float32(grid.voxel_size[0]))
    if len(set(grid.voxel_size)) != 1:
        raise ValueError(f"grid: voxels of {grid.voxel_size} m; rays are defined for cubes")
    if origins.ndim != 2 or origins.shape[1] != 3 or not np.isfinite(origins).all():
        raise ValueError(f"origins: expected finite (O, 3) in metres, got shape {origins.shape}")
    outside = ~grid.contains(grid.indices(origins))
    if outside.any():
        raise ValueError(
            f"origins: {origins[outside][0].tolist()} m lies outside the grid {grid.lower} to {grid.upper} of frame "
            f"{grid.frame!r}; ray_origins() leaves such places out"
        )
    lower = np.asarray(grid.lower)
    start = ((origins - lower) / size).astype(np.float32).astype(np.float64)
    ahead = origins[:, None] + ray_directions().astype(np.float64)
    direction = ((ahead - lower) / size).astype(np.float32) - start[:, None]
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    return Rays(
        start=np.broadcast_to(start[:, None], direction.shape).reshape(-1, 3), direction=direction.reshape(-1, 3)
    )


def cast_rays(occupied: NDArray[np.bool_], rays: Rays, voxel_size: float) -> RayHits:
    """Walk each ray to the first occupied voxel, or out of the grid.

    The distance is that of the point where the ray leaves the occupied voxel, not where it enters: so RayIoU is
    defined.

    Args:
        occupied: (X, Y, Z).
        rays: start inside the volume.
        voxel_size: metres.
    """
    walk = _Walk(occupied, rays)
    while walk.remaining:
        walk.advance()
    return RayHits(voxel=walk.end_voxel, distance=walk.end_t * voxel_size)


def crossed_voxels(blocked: NDArray[np.bool_], rays: Rays, length: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The voxels (X, Y, Z) that rays pass through, up to the first blocked one.

    Args:
        blocked: (X, Y, Z) voxels that stop a ray; the one where it stops is marked, too.
        rays: start inside the volume; they end where they leave it.
        length: (R,) in voxels; the voxel that holds a ray's end is not left and so not marked, unless it is blocked.
    """
    marks: NDArray[np.bool_] | None = None
    for begin in range(0, len(length), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        walk = _MarkingWalk(blocked, rays[part], length[part], marks)
        marks = walk.marks
        while walk.remaining:
            walk.advance()
    if marks is None:
        return np.zeros(blocked.shape, dtype=bool)
    rim = (slice(_BLOCK, -_BLOCK),) * 3
    return marks.reshape(tuple(n + 2 * _BLOCK for n in blocked.shape))[rim].copy()


class _Walk:
    """The rays under way, one row each of ``t`` (parameter of the next face along x, y, z), ``at`` (voxel) and so on.

    The volume gets a rim of _BLOCK voxels that counts as occupied, so that every ray arrives and none leaves the array.
    """

    def __init__(self, occupied: NDArray[np.bool_], rays: Rays) -> None:
        self.shape = occupied.shape
        rim = np.ones(tuple(n + 2 * _BLOCK for n in occupied.shape), dtype=bool)
        inner = (slice(_BLOCK, -_BLOCK),) * 3
        rim[inner] = occupied
        inside = np.zeros_like(rim)
        inside[inner] = True
        self.arrived, self.inside, self.rim_shape = rim.ravel(), inside.ravel(), rim.shape
        strides = np.array([rim.shape[1] * rim.shape[2], rim.shape[2], 1])

        direction, cell = rays.direction, np.trunc(rays.start).astype(np.int64)
        forward = direction >= 0
        sign = np.where(forward, 1, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            first = np.where(direction != 0, (cell + forward - rays.start) / direction, _FAR)
            each = np.where(direction != 0, sign / direction, _FAR)
        count = len(direction)
        self.row = np.arange(count)
        self.t = np.ascontiguousarray(first.T)
        self.dt = np.ascontiguousarray(each.T)
        self.jump = np.ascontiguousarray((sign * strides).T.astype(np.int32))
        self.at = ((cell + _BLOCK) @ strides).astype(np.int32)
        self.t_before = np.zeros(count)
        self.at_before = self.at.copy()
        self.end_voxel = np.zeros(count, dtype=np.int64)
        self.end_t = np.zeros(count)

    @property
    def remaining(self) -> int:
        return len(self.row)

    def advance(self) -> None:
        """_BLOCK steps of every ray, then those that have arrived are written down and left behind."""
        at_SR, exit_SR = self._steps()
        stop_SR = np.take(self.arrived, at_SR[1:])
        found = stop_SR.any(axis=0)
        ray = np.flatnonzero(found)
        step = stop_SR[:, ray].argmax(axis=0) + 1
        left = ~self.inside[at_SR[step, ray]]
        step -= left  # a ray that left the grid ends in the voxel before
        self.end_voxel[self.row[ray]] = self._flat(at_SR[step, ray])
        self.end_t[self.row[ray]] = exit_SR[step, ray]
        keep = np.flatnonzero(~found)
        self.row, self.at = self.row[keep], self.at[keep]
        self.t, self.dt, self.jump = (np.take(a, keep, axis=1) for a in (self.t, self.dt, self.jump))
        self.t_before, self.at_before = exit_SR[-1, keep], at_SR[-1, keep]

    def _steps(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Voxels visited (S + 1, R) and parameters of leaving them; row 0 is the last voxel of the block before."""
        count = self.remaining
        at_SR, exit_SR = np.empty((_BLOCK + 1, count), np.int32), np.empty((_BLOCK + 1, count))
        at_SR[0], exit_SR[0] = self.at_before, self.t_before
        (tx, ty, tz), yz = self.t, np.empty(count)
        by_int, by_float = np.empty(count, np.int32), np.empty(count)
        for k in range(1, _BLOCK + 1):
            at_SR[k] = self.at
            np.minimum(ty, tz, out=yz)
            np.minimum(tx, yz, out=exit_SR[k])
            # Ties as in the reference: x only if it comes strictly first, then y if strictly before z, else z.
            go_x, go_y = tx < yz, ty < tz
            go_y &= ~go_x
            for axis, go in enumerate((go_x, go_y, ~(go_x | go_y))):
                self.at += np.multiply(self.jump[axis], go, out=by_int)
                self.t[axis] += np.multiply(self.dt[axis], go, out=by_float)
        return at_SR, exit_SR

    def _flat(self, at: NDArray[np.int32]) -> NDArray[np.int64]:
        """Flat indices into the volume without its rim."""
        x, y, z = np.unravel_index(at, self.rim_shape)
        return np.asarray(np.ravel_multi_index((x - _BLOCK, y - _BLOCK, z - _BLOCK), self.shape), dtype=np.int64)


class _MarkingWalk(_Walk):
    """A walk that marks the voxels on its way, in an array with the rim; see crossed_voxels."""

    def __init__(
        self,
        blocked: NDArray[np.bool_],
        rays: Rays,
        length: NDArray[np.floating],
        marks: NDArray[np.bool_] | None,
    ) -> None:
        super().__init__(blocked, rays)
        self.length = np.asarray(length, dtype=np.float64)
        self.marks = np.zeros(self.arrived.shape, dtype=bool) if marks is None else marks

    def advance(self) -> None:
        """_BLOCK steps of every ray; those that were stopped or have ended are left behind."""
        at_SR, exit_SR = self._steps()
        stop_SR = np.take(self.arrived, at_SR[1:])
        over_SR = exit_SR[1:] >= self.length
        going_SR = ~(over_SR | np.logical_or.accumulate(stop_SR, axis=0))
        first_stop_SR = stop_SR & (exit_SR[:-1] < self.length)
        first_stop_SR[1:] &= going_SR[:-1]
        self.marks[at_SR[1:][going_SR | first_stop_SR]] = True
        keep = np.flatnonzero(going_SR[-1])
        self.length, self.at = self.length[keep], self.at[keep]
        self.row = self.row[keep]
        self.t, self.dt, self.jump = (np.take(a, keep, axis=1) for a in (self.t, self.dt, self.jump))
        self.t_before, self.at_before = exit_SR[-1, keep], at_SR[-1, keep]

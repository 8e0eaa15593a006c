"""What a cloud says about each voxel, quantised: hits, rays that passed, ground, obstacles, local shape. No colour.

Legend: P points, X Y Z voxels, N candidate voxels, C connected obstacles.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fusionocc_core.geometry import inverse
from fusionocc_core.grids import VoxelGrid
from fusionocc_core.structures import SensorFrame

Floats = NDArray[np.float64]
Columns = NDArray[np.float64]
"""(X, Y)."""

OWN_VEHICLE_M = 2.6
"""Returns nearer to the sensor than this are the own roof and bonnet, or pulses without return."""
GROUND_BAND_M = 0.25
OBSTACLE_FROM_M = 0.3
"""Points this high above the ground belong to obstacles."""
HEIGHTS_M = (0.3, 0.6, 0.9, 1.2, 1.6, 2.0, 2.6, 3.4, 4.4)
KINDS = ("hit", "beside an obstacle", "near the ground", "air")
"""Which set of keys a voxel uses."""


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """One sweep in the ego frame of the key time."""

    points: Floats
    """(P, 3) metres."""
    intensity: Floats
    origin: Floats
    """(3,) where the sensor was."""


@dataclass(frozen=True, kw_only=True)
class LidarFeatures:
    """Quantised features, 0..15 each."""

    kind_XYZ: NDArray[np.uint8]
    """Index into KINDS."""
    columns: dict[str, NDArray[np.uint8]]
    """Name -> (X * Y,): the same for all voxels of a column."""
    voxels: dict[str, NDArray[np.uint8]]
    """Name -> (X * Y * Z,)."""
    height: int
    """Z."""

    def of(self, name: str, flat_N: NDArray[np.int64], column_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A feature at voxels, given by the flat indices of them and of their columns."""
        return self.voxels[name][flat_N] if name in self.voxels else self.columns[name][column_N]


def lidar_features(frame: SensorFrame, grid: VoxelGrid, history: int) -> LidarFeatures:
    """Features of the current sweep and ``history`` earlier keyframes' sweeps, brought to the key ego frame.

    Raises:
        ValueError: the frame has no LiDAR sweep, or the grid is not in the ego frame.
    """
    clouds = _clouds(frame, grid, history)
    points, intensity, voxel = _inside(clouds, grid)
    shape = grid.shape
    column = voxel[:, 0] * shape[1] + voxel[:, 1]
    flat = column * shape[2] + voxel[:, 2]
    hits = np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
    ground, columns = _ground(points, intensity, column, grid)
    obstacle_distance, of_obstacles = _obstacles(points, intensity, column, ground, grid)
    columns |= of_obstacles
    level = np.floor((ground - grid.lower[2]) / grid.voxel_size[2])
    above = np.clip(np.arange(shape[2]) - level[:, :, None] + 3, 0, 15).astype(np.uint8)
    passes_now = _passes(clouds[0], grid)
    passes = passes_now + sum(_passes(cloud, grid) for cloud in clouds[1:])
    hit = hits > 0
    mean = np.bincount(flat, intensity, minlength=hits.size).reshape(shape) / np.maximum(hits, 1)
    voxels = {
        "z": np.broadcast_to(np.minimum(np.arange(shape[2]), 15).astype(np.uint8), shape),
        "above_ground": above,
        "passes": _bins(passes, (1, 2, 4, 8, 16)),
        "passes_now": _bins(passes_now, (1, 2, 4, 6)),
        "hits_around": _bins(_box_sum(hit.astype(float)), (1, 2, 4, 7, 11, 16)),
        "hit_above_below": _above_below(hit),
        "intensity": np.where(hit, _bins(mean, (3, 8, 15, 25, 40, 80, 150)) + 1, 0).astype(np.uint8),
        **_shape_features(points, flat, hit),
    }
    kind = np.where(hit, 0, np.where(obstacle_distance[:, :, None] < 2.5, 1, np.where(above <= 6, 2, 3)))
    return LidarFeatures(
        kind_XYZ=kind.astype(np.uint8),
        columns={name: values.reshape(-1) for name, values in (columns | _position(grid)).items()},
        voxels={name: values.reshape(-1) for name, values in voxels.items()},
        height=shape[2],
    )


def _clouds(frame: SensorFrame, grid: VoxelGrid, history: int) -> list[Cloud]:
    if frame.lidar is None:
        raise ValueError(f"frame {frame.token or frame.stamp_ns} has no LiDAR sweep; the geometry baseline needs one")
    if grid.frame != "ego":
        raise ValueError(f'grid.frame={grid.frame!r}: the geometry baseline answers on grids in "ego" only')
    clouds = []
    for sweep in (frame.lidar, *frame.lidar_history[:history]):
        lidar2key = inverse(frame.ego2global) @ sweep.ego2global @ sweep.lidar2ego
        points = sweep.points[np.linalg.norm(sweep.points[:, :3], axis=1) > OWN_VEHICLE_M].astype(np.float64)
        in_key = points[:, :3] @ lidar2key[:3, :3].T + lidar2key[:3, 3]
        clouds.append(Cloud(points=in_key, intensity=points[:, 3], origin=lidar2key[:3, 3]))
    return clouds


def _inside(clouds: list[Cloud], grid: VoxelGrid) -> tuple[Floats, Floats, NDArray[np.int64]]:
    points: Floats = np.concatenate([cloud.points for cloud in clouds])
    intensity: Floats = np.concatenate([cloud.intensity for cloud in clouds])
    voxel = grid.indices(points)
    inside = grid.contains(voxel)
    return points[inside], intensity[inside], voxel[inside]


def _passes(cloud: Cloud, grid: VoxelGrid) -> NDArray[np.int64]:
    """(X, Y, Z) how many rays went through: one sample a voxel along each ray's longest axis, up to the hit."""
    size, shape = np.asarray(grid.voxel_size), grid.shape
    origin = ((cloud.origin - grid.lower) / size).astype(np.float32)
    ray = ((cloud.points - cloud.origin) / size).astype(np.float32)
    length = np.abs(ray).max(axis=1, initial=0.0)
    step = ray / length[:, None]
    length -= np.float32(0.8)
    if ((origin > 0) & (origin < shape)).all():  # no need to follow a ray that has left the grid
        with np.errstate(divide="ignore", invalid="ignore"):
            leaves = np.fmin.reduce(np.where(step > 0, (shape - origin) / step, -origin / step), axis=1)
        length = np.minimum(length, leaves + 1)
    order = np.argsort(-length, kind="stable")
    length, step = length[order], step[order]
    counts = np.zeros(int(np.prod(shape)), np.int64)
    for t in range(1, 2 * max(shape)):
        going = step[: np.searchsorted(-length, -t, side="right")]
        if not len(going):
            break
        x, y, z = np.floor(origin + going * np.float32(t)).astype(np.int64).T
        inside = (x >= 0) & (x < shape[0]) & (y >= 0) & (y < shape[1]) & (z >= 0) & (z < shape[2])
        counts += np.bincount(((x * shape[1] + y) * shape[2] + z)[inside], minlength=counts.size)
    return counts.reshape(shape)


def _ground(
    points: Floats, intensity: Floats, column: NDArray[np.int64], grid: VoxelGrid
) -> tuple[Columns, dict[str, NDArray[np.uint8]]]:
    """Height of the ground (X, Y), metres, and features of it; columns without ground points take the nearest's."""
    shape = grid.shape[:2]
    lowest = np.full(shape[0] * shape[1], np.inf)
    np.minimum.at(lowest, column, points[:, 2])
    around = cv2.erode(np.minimum(lowest, 99).reshape(shape).astype(np.float32), np.ones((9, 9), np.uint8)).ravel()
    chosen = (lowest < around + 0.45)[column] & (points[:, 2] < lowest[column] + GROUND_BAND_M)
    chosen_column = column[chosen]
    count = np.bincount(chosen_column, minlength=lowest.size).reshape(shape).astype(np.float64)
    if not count.any():
        nothing = {name: np.zeros(shape, np.uint8) for name in ("ground", "over_road", "ground_shine", "ground_rough")}
        return np.zeros(shape), nothing

    def mean_of(values: Floats) -> Columns:
        """Mean over the ground points of 3 x 3 columns."""
        total = _totals(chosen_column, values[chosen], lowest.size).reshape(shape)
        return np.asarray(_box_sum(total) / np.maximum(_box_sum(count), 0.5))

    nearest, _ = _nearest(count > 0)
    height = mean_of(points[:, 2])
    variance = mean_of(np.square(points[:, 2] - height.ravel()[column]))
    x, y = (np.abs(axis) for axis in _centers(grid))
    road = np.median(height[(count > 0) & (x < 8) & (y < 2)]) if ((count > 0) & (x < 8) & (y < 2)).any() else 0.0
    edges = (-0.3, -0.06, 0.03, 0.07, 0.1, 0.14, 0.2, 0.4)
    features = {
        "ground": _bins(height, edges),
        "over_road": _bins(height - road, edges),
        "ground_shine": _bins(mean_of(intensity), (4, 8, 12, 16, 22, 30, 45)),
        "ground_rough": _bins(np.sqrt(np.maximum(variance, 0)), (0.015, 0.02, 0.025, 0.03, 0.04, 0.06, 0.1)),
    }
    return height.ravel()[nearest], {name: values.ravel()[nearest] for name, values in features.items()}


def _obstacles(
    points: Floats, intensity: Floats, column: NDArray[np.int64], ground: Columns, grid: VoxelGrid
) -> tuple[Columns, dict[str, NDArray[np.uint8]]]:
    """Distance (X, Y) to the nearest column with an obstacle, in voxels, and features of columns and obstacles."""
    shape = grid.shape[:2]
    height = points[:, 2] - ground.ravel()[column]
    is_high = height > OBSTACLE_FROM_M
    height, high_column, shine = height[is_high], column[is_high], intensity[is_high]
    top, bottom = np.zeros(shape), np.full(shape, 9.0)
    np.maximum.at(top.ravel(), high_column, height)
    np.minimum.at(bottom.ravel(), high_column, height)
    occupied = top > 0
    obstacle = cv2.connectedComponents(occupied.astype(np.uint8), connectivity=8)[1].astype(np.int64)
    nearest, distance = _nearest(occupied)
    number = int(obstacle.max()) + 1
    length, width, area = _extents(obstacle.ravel(), number, shape[1], grid.voxel_size[0])
    tallest, lowest, brightest = np.zeros(number), np.full(number, 9.0), np.zeros(number)
    np.maximum.at(tallest, obstacle.ravel(), top.ravel())
    np.minimum.at(lowest, obstacle.ravel(), bottom.ravel())
    of_point = obstacle.ravel()[high_column]
    np.maximum.at(brightest, of_point, shine)
    count = np.bincount(of_point, minlength=number)
    mean_shine = np.bincount(of_point, shine, minlength=number) / np.maximum(count, 1)
    of_obstacle = {
        "length": _bins(length, (0.6, 1, 1.6, 2.6, 4, 5.5, 8, 12, 20)),
        "width": _bins(width, (0.5, 0.8, 1.3, 1.9, 2.6, 4, 7)),
        "tallest": _bins(tallest, HEIGHTS_M),
        "lowest": _bins(lowest, (0.4, 0.7, 1.2, 2)),
        "shine": _bins(mean_shine, (5, 10, 15, 20, 30, 45, 80)),
        "brightest": _bins(brightest, (30, 60, 120, 250)),
        "points": _bins(count / area, (1.5, 2.5, 4, 8, 16)),
    }
    return distance, {
        **{name: values[obstacle.ravel()[nearest]] for name, values in of_obstacle.items()},
        "top": _bins(top, HEIGHTS_M),
        "bottom": _bins(bottom, HEIGHTS_M),
        "top_3x3": _bins(cv2.dilate(top, np.ones((3, 3), np.uint8)), HEIGHTS_M),
        "top_7x7": _bins(cv2.dilate(top, np.ones((7, 7), np.uint8)), HEIGHTS_M),
        "nearest_top": _bins(top, HEIGHTS_M).ravel()[nearest],
        "obstacle_distance": _bins(distance, (0.5, 1.2, 1.6, 2.5, 4, 7)),
        "crowded": _bins(_box_sum(occupied.astype(float), 2), (1, 2, 4, 7, 11, 16)),
    }


def _extents(obstacle: NDArray[np.int64], number: int, row: int, size: float) -> tuple[Floats, Floats, Floats]:
    """Length and width (C,) of obstacles along their principal axes, metres, and columns of each."""
    x, y = np.divmod(np.arange(len(obstacle)), row)
    area = np.maximum(np.bincount(obstacle, minlength=number), 1)
    dx = x - (np.bincount(obstacle, x, minlength=number) / area)[obstacle]
    dy = y - (np.bincount(obstacle, y, minlength=number) / area)[obstacle]
    xx, yy, xy = (np.bincount(obstacle, v, minlength=number) / area for v in (dx * dx, dy * dy, dx * dy))
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    # A bar of n columns has a variance of (n * n - 1) / 12.
    length, width = (size * np.sqrt(12 * np.maximum(v, 0) + 1) for v in (middle + spread, middle - spread))
    return length, width, area.astype(np.float64)


def _shape_features(points: Floats, flat: NDArray[np.int64], hit: NDArray[np.bool_]) -> dict[str, NDArray[np.uint8]]:
    """How the points of the 3 x 3 x 3 voxels around each hit lie: flat as a wall, long as a pole, or scattered."""
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    sums = [None, *points.T, *(points[:, i] * points[:, j] for i, j in pairs)]
    moments = np.stack([_box_sum(np.bincount(flat, s, hit.size).reshape(hit.shape).astype(float))[hit] for s in sums])
    count, moments = moments[0], moments[1:] / np.maximum(moments[0], 0.5)
    covariance = np.zeros((len(count), 3, 3))
    for (i, j), second in zip(pairs, moments[3:], strict=True):
        covariance[:, i, j] = covariance[:, j, i] = second - moments[i] * moments[j]
    variances, axes = np.linalg.eigh(covariance)
    thin, mid, long = np.sqrt(np.maximum(variances, 1e-6)).T
    found = {
        "scattered": _bins(thin / long, (0.08, 0.15, 0.25, 0.4)),
        "flat": _bins((mid - thin) / long, (0.2, 0.4, 0.6)),
        "upright_normal": _bins(np.abs(axes[:, 2, 0]), (0.2, 0.5, 0.8, 0.95)),
        "thickness": _bins(thin, (0.02, 0.04, 0.07, 0.12)),
    }
    features = {}
    for name, values in found.items():
        features[name] = np.zeros(hit.shape, np.uint8)
        features[name][hit] = np.where(count < 5, 1, values + 2)
    return features


def _position(grid: VoxelGrid) -> dict[str, NDArray[np.uint8]]:
    x, y = _centers(grid)
    return {
        "x": _bins(x, (-20, -8, 8, 20)),
        "y": _bins(y, (-25, -15, -10, -6, -3.5, -1.5, 1.5, 3.5, 6, 10, 15, 25)),
        "beside": _bins(np.abs(y), (1.2, 2.4, 4, 6, 8, 10, 13, 18, 25)),
        "ring": _bins(np.hypot(x, y), (5, 10, 15, 20, 30, 40)),
    }


def _centers(grid: VoxelGrid) -> tuple[Columns, Columns]:
    x, y = (grid.lower[a] + (np.arange(grid.shape[a]) + 0.5) * grid.voxel_size[a] for a in (0, 1))
    return np.repeat(x[:, None], len(y), axis=1), np.repeat(y[None, :], len(x), axis=0)


def _above_below(hit: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """1: something at this height or higher in the column, 2: or lower, 3: both."""
    higher = np.maximum.accumulate(hit[:, :, ::-1], axis=2)[:, :, ::-1]
    return (higher + 2 * np.maximum.accumulate(hit, axis=2)).astype(np.uint8)


def _nearest(present: NDArray[np.bool_]) -> tuple[NDArray[np.int64], Columns]:
    """For each column the flat index (X, Y) of the nearest one that is present, and its distance in voxels."""
    if not present.any():
        return np.arange(present.size).reshape(present.shape), np.full(present.shape, 99.0)
    distance, number = cv2.distanceTransformWithLabels(
        (~present).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    place = np.zeros(int(number.max()) + 1, np.int64)
    place[number[present]] = np.flatnonzero(present)
    return place[number], distance.astype(np.float64)


def _box_sum(volume: Floats, radius: int = 1) -> Floats:
    """Sum over a box of 2 * radius + 1 cells along every axis."""
    for axis in range(volume.ndim):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(volume.ndim)]
        padded, count = np.pad(volume, pad), volume.shape[axis]
        volume = np.zeros_like(volume)
        for start in range(2 * radius + 1):
            place = tuple(slice(start, start + count) if a == axis else slice(None) for a in range(volume.ndim))
            volume += padded[place]
    return volume


def _totals(index: NDArray[np.integer], values: Floats, length: int) -> Floats:
    """Sum of the values (P,) at each index below ``length``."""
    return np.bincount(index, values, minlength=length).astype(np.float64)


def _bins(values: ArrayLike, edges: tuple[float, ...]) -> NDArray[np.uint8]:
    return np.searchsorted(np.asarray(edges, np.float64), np.asarray(values), side="right").astype(np.uint8)

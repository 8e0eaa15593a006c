"""Semantic voxels of the street at one moment, from dense samples of every surface.

Three layers: ground, structures on it, things that can be told apart. Within a layer the class with most samples takes
a voxel; a higher layer takes it from a lower one, so that thin objects (cones, legs, bicycles) are not lost in the
ground.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.simulation.materials import RAW, RAW_TO_OCC3D, Material
from fusionocc_core.simulation.mesh import Mesh, sample_surface
from fusionocc_core.simulation.street import NO_INSTANCE, Street
from fusionocc_core.simulation.things import Thing
from fusionocc_core.simulation.tracing import Tracer

FREE = 17
GROUND_SPACING, STRUCTURE_SPACING, THING_SPACING = 0.13, 0.12, 0.05
"""Distances between samples, metres."""
FILL_SPACING = 0.2
_KEY_BASE = 1 << 20
_FILLED = ("vehicle.car", "vehicle.bus.rigid", "vehicle.truck", "vehicle.trailer", "vehicle.construction")
"""Things whose inside is occupied: between the left and the right skin of every slice, as in Occ3D, where the
aggregation of many sweeps fills most of a car's inside."""
_REACH = 60.0
"""Farther than this from the driven line no grid looks, metres."""
_TOP = 6.5
_DOWN = np.array([0, 0, -1], np.float32)
_SKY = np.array([0, 0, 400], np.float32)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Points in some frame and their classes."""

    points: NDArray[np.float32]
    """(P, 3)."""
    label: NDArray[np.uint8]
    """(P,) Occ3D class."""


@dataclass(frozen=True, kw_only=True)
class SurfaceSamples:
    """All samples of a street, made once a scene."""

    ground: Samples
    structure: Samples
    resting: Samples
    """Things that rest, in the street frame."""
    moving: dict[int, tuple[Samples, ...]]
    """Things that move, each of their frames, in their own axes."""


def sample_street(street: Street, rng: np.random.Generator) -> SurfaceSamples:
    """Sample everything that a grid around the drive can hold."""
    first = street.ground.num
    roadside = (street.static_instance == NO_INSTANCE) & (np.arange(street.static.num) >= first)
    resting, moving = [], {}
    for k, thing in enumerate(street.things):
        frames = tuple(_sample_thing(thing, frame, rng) for frame in thing.frames)
        if thing.moving:
            moving[k] = frames
        else:
            pose = thing.motion(0.0)
            resting.append(_placed(frames[0], pose.x, pose.y, pose.z, pose.yaw))
    return SurfaceSamples(
        ground=_sample_ground(street),
        structure=_sample_structure(street, roadside, rng),
        resting=_concatenated(resting),
        moving=moving,
    )


def _concatenated(parts: list[Samples]) -> Samples:
    if not parts:
        return Samples(points=np.zeros((0, 3), np.float32), label=np.zeros(0, np.uint8))
    return Samples(points=np.concatenate([p.points for p in parts]), label=np.concatenate([p.label for p in parts]))


def _placed(samples: Samples, x: float, y: float, z: float, yaw: float) -> Samples:
    c, s = np.cos(yaw), np.sin(yaw)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)
    return Samples(points=samples.points @ rotation.T + np.array([x, y, z], np.float32), label=samples.label)


def _sample_ground(street: Street) -> Samples:
    """The topmost ground at every point of a raster, by rays straight down; none below houses."""
    near = street.drive.line.point(np.arange(0.0, street.plan.travelled + 1.0, 2.0))
    low, high = near.min(axis=0) - _REACH, near.max(axis=0) + _REACH
    axes = [np.arange(low[k], high[k], GROUND_SPACING, dtype=np.float32) for k in range(2)]
    tracer, roofs = Tracer(street.ground.corners), _roofs(street)
    kept: list[Samples] = []
    for x in axes[0]:
        origins = np.empty((len(axes[1]), 3), np.float32)
        origins[:, 0], origins[:, 1], origins[:, 2] = x, axes[1], 2.0
        hits = tracer.first_hits(origins, np.broadcast_to(_DOWN, origins.shape))
        origins[:, 2] -= hits.distance
        found = (hits.triangle >= 0) & ~roofs.blocked(origins + _SKY, np.broadcast_to(_DOWN, origins.shape))
        raw = street.ground.raw[hits.triangle[found]]
        kept.append(Samples(points=origins[found], label=RAW_TO_OCC3D[raw]))
    return _concatenated(kept)


def _roofs(street: Street) -> Tracer:
    """Roofs of houses: the ground below them can never be seen, and is no ground in the labels."""
    covers = (street.static.material == Material.ROOF) & (street.static.raw == RAW["static.manmade"])
    return Tracer(street.static.corners[covers])


def _sample_structure(street: Street, select: NDArray[np.bool_], rng: np.random.Generator) -> Samples:
    corners = street.static.corners
    bound = street.drive.line.point(np.arange(0.0, street.plan.travelled + 1.0, 2.0))
    low, high = bound.min(axis=0) - _REACH, bound.max(axis=0) + _REACH
    inside = (corners[..., :2].max(axis=1) > low).all(axis=1) & (corners[..., :2].min(axis=1) < high).all(axis=1)
    inside &= corners[..., 2].min(axis=1) < _TOP
    mesh = _selected(street.static, np.flatnonzero(select & inside))
    points, which = sample_surface(mesh, STRUCTURE_SPACING, rng)
    kept = (points[:, 2] < _TOP) & (points[:, 2] > -0.05)
    return Samples(points=points[kept], label=RAW_TO_OCC3D[mesh.raw[which[kept]]])


def _selected(mesh: Mesh, which: NDArray[np.intp]) -> Mesh:
    return Mesh(
        corners=mesh.corners[which],
        uv=mesh.uv[which],
        material=mesh.material[which],
        tint=mesh.tint[which],
        raw=mesh.raw[which],
        soft_normal=mesh.soft_normal[which],
    )


def _sample_thing(thing: Thing, mesh: Mesh, rng: np.random.Generator) -> Samples:
    points, _ = sample_surface(mesh, THING_SPACING, rng)
    if thing.category in _FILLED:
        points = np.concatenate([points, _filling(points)])
    points = points[points[:, 2] > -0.1]
    return Samples(points=points, label=np.full(len(points), RAW_TO_OCC3D[thing.raw], np.uint8))


def _filling(surface: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points between the left and the right skin, in every cell of a side view."""
    cell = np.floor(surface[:, [0, 2]] / FILL_SPACING).astype(np.int64)
    keys, inverse_ = np.unique(cell[:, 0] * _KEY_BASE + cell[:, 1] + _KEY_BASE // 2, return_inverse=True)
    unique = np.stack([keys // _KEY_BASE, keys % _KEY_BASE - _KEY_BASE // 2], axis=1)
    low, high = np.full(len(unique), np.inf), np.full(len(unique), -np.inf)
    np.minimum.at(low, inverse_, surface[:, 1])
    np.maximum.at(high, inverse_, surface[:, 1])
    count = np.maximum(((high - low) / FILL_SPACING).astype(int), 0)
    which = np.repeat(np.arange(len(unique)), count)
    step = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    out = np.empty((len(which), 3), np.float32)
    out[:, [0, 2]] = (unique[which] + 0.5) * FILL_SPACING
    out[:, 1] = low[which] + (step + 0.5) * FILL_SPACING
    return out


def things_at(samples: SurfaceSamples, street: Street, t: float) -> Samples:
    """Samples of all things at time t, street frame."""
    parts = [samples.resting]
    for k, frames in samples.moving.items():
        thing = street.things[k]
        pose = thing.motion(t)
        parts.append(_placed(frames[thing.frame_at(t)], pose.x, pose.y, pose.z, pose.yaw))
    return _concatenated(parts)


def voxelise(
    samples: SurfaceSamples, things: Samples, street2grid: NDArray[np.float64], grid: VoxelGrid
) -> NDArray[np.uint8]:
    """Classes (X, Y, Z) of a grid whose frame is reached by ``street2grid``; FREE where there is nothing."""
    labels = np.full(grid.shape, FREE, np.uint8).reshape(-1)
    for layer, classes in ((samples.ground, range(11, 15)), (samples.structure, (0, 15, 16)), (things, range(11))):
        voxel, label = _inside(layer, street2grid, grid)
        index = np.full(18, -1)
        index[list(classes)] = np.arange(len(classes))
        keys = voxel * len(classes) + index[label]
        if len(keys) < 400_000:
            unique, count = np.unique(keys, return_counts=True)
            order = np.lexsort((unique, count))
            labels[unique[order] // len(classes)] = np.asarray(classes, np.uint8)[unique[order] % len(classes)]
        else:
            count = np.bincount(keys, minlength=len(labels) * len(classes)).reshape(-1, len(classes))
            best = count.argmax(axis=1)
            hit = np.flatnonzero(count[np.arange(len(best)), best])
            labels[hit] = np.asarray(classes, np.uint8)[best[hit]]
    return labels.reshape(grid.shape)


def _inside(
    samples: Samples, street2grid: NDArray[np.float64], grid: VoxelGrid
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Flat voxel indices and classes of the samples that lie in the grid."""
    lower, size = np.asarray(grid.lower), np.asarray(grid.voxel_size)
    to_index = (street2grid[:3] - np.array([[0, 0, 0, v] for v in lower])) / size[:, None]
    scaled = samples.points @ to_index[:, :3].T.astype(np.float32) + to_index[:, 3].astype(np.float32)
    shape = np.asarray(grid.shape)
    inside = np.ones(len(scaled), bool)
    for axis in range(3):
        inside &= (scaled[:, axis] >= 0) & (scaled[:, axis] < shape[axis])
    keep = np.flatnonzero(inside)
    i, j, k = (scaled[keep, axis].astype(np.int64) for axis in range(3))
    return (i * shape[1] + j) * shape[2] + k, samples.label[keep]

"""The spinning LiDAR: rolling exposure, compensation to the end of the sweep, noise, lost returns, hits on the own car.

File order and conventions follow nuScenes: column after column, rings from the lowest up; a pulse without return is
written at the place of the sensor; the stamp is the end of the sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import inverse
from fusionocc_core.simulation.materials import RAW, RETRO, Material, column
from fusionocc_core.simulation.mesh import loft
from fusionocc_core.simulation.rigs import SWEEP_S, LidarMount
from fusionocc_core.simulation.street import NO_INSTANCE, Street
from fusionocc_core.simulation.tracing import FAR, Tracer

F32 = np.float32
RANGE_NOISE = 0.02
"""Standard deviation along the beam, metres."""
NEAREST = 0.5
"""Nothing nearer than this is measured, metres."""
DETECTION = 0.006
"""Reflectivity * cosine / (range / 50 m)^2 below which returns begin to be lost."""
_REFLECTIVITY = column("reflectivity")
_GLOSS_LOSS = 0.55
"""Share of pulses that glass mirrors away."""
_NOISE, _EGO = RAW["noise"], RAW["vehicle.ego"]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One sweep of C columns and R rings, C * R pulses in file order."""

    points: NDArray[np.float32]
    """(C * R, 5) x, y, z, intensity, ring in the sensor's axes at the end of the sweep."""
    category: NDArray[np.uint8]
    """(C * R,) lidarseg index; noise for missing returns, vehicle.ego for the own car."""
    instance: NDArray[np.int16]
    """(C * R,) index of a thing."""
    origins: NDArray[np.float32]
    """(C * R, 3) where each pulse left, street frame."""
    directions: NDArray[np.float32]
    """(C * R, 3) unit."""
    ranges: NDArray[np.float32]
    """(C * R,) metres; 0 for missing returns and hits on the own car."""


@lru_cache(maxsize=4)
def beam_directions(mount: LidarMount) -> NDArray[np.float64]:
    """Unit directions (C, R, 3) in the sensor's axes."""
    azimuth, elevation = mount.azimuths[:, None], mount.elevations[None]
    return np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation) + 0 * azimuth],
        axis=-1,
    )


@lru_cache(maxsize=4)
def own_body(mount: LidarMount) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which pulses (C * R,) meet the own car's roof and bonnet, and at which range; the same in every sweep.

    The roof lies below the sensor as on the nuScenes cars: from 1.1 m behind it to 1.8 m in front, 0.62 m to either
    side.
    """
    sections = [(-1.12, 0.55, -0.90), (-0.95, 0.6, -0.42), (0.5, 0.62, -0.40), (1.0, 0.6, -0.54), (1.81, 0.55, -0.92)]
    outline = ((-1, None), (1, None), (1, -0.06), (0.8, 0.0), (-0.8, 0.0), (-1, -0.06))
    rings = [[(f * w, y, -1.0 if dz is None else z + dz) for f, dz in outline] for y, w, z in sections]
    body = loft(np.asarray(rings), Material.CAR_PAINT)
    directions = beam_directions(mount).reshape(-1, 3).astype(F32)
    hits = Tracer(body.corners).first_hits(np.zeros_like(directions), directions)
    return hits.triangle >= 0, np.where(hits.triangle >= 0, hits.distance, 0).astype(F32)


def passing_times(street: Street, mount: LidarMount, end: float) -> dict[int, float]:
    """When the beam of the sweep that ends at ``end`` passes each moving thing; they are narrow: one moment does."""
    middle = end - SWEEP_S / 2
    street2lidar = inverse(street.drive.poses(middle)[0] @ mount.lidar2ego)
    times = {}
    for k in street.moving:
        pose = street.things[k].motion(middle)
        local = street2lidar @ (pose.x, pose.y, pose.z + 0.7, 1.0)
        turned = ((np.pi - np.arctan2(local[1], local[0])) % (2 * np.pi)) / (2 * np.pi)
        times[k] = end - SWEEP_S + SWEEP_S * float(turned)
    return times


def scan(street: Street, mount: LidarMount, end: float, rng: np.random.Generator) -> Scan:
    """The sweep that ends at ``end`` seconds after the scene's start."""
    rings, columns = mount.rings, mount.columns
    fired = end - SWEEP_S + SWEEP_S * (np.arange(columns) + 0.5) / columns
    lidar2street = street.drive.poses(fired) @ mount.lidar2ego
    directions = np.einsum("cij,crj->cri", lidar2street[:, :3, :3], beam_directions(mount)).reshape(-1, 3).astype(F32)
    origins = np.repeat(lidar2street[:, :3, 3], rings, axis=0)
    near = origins.astype(F32)
    snapshot = street.snapshot_at(passing_times(street, mount, end))
    hits = snapshot.first_hits(near, directions)
    own, own_range = own_body(mount)

    triangle = np.maximum(hits.triangle, 0)
    cosine = np.abs((snapshot.mesh_normals[triangle] * directions).sum(axis=1))
    material = snapshot.mesh.material[triangle]
    distance = np.where(own, own_range, hits.distance)
    seen = own | _returns(material, cosine, distance, mount.max_range, rng)
    distance = distance + rng.normal(0, RANGE_NOISE, len(distance)).astype(F32) * ~own
    ranges = np.where(seen, distance, 0).astype(F32)

    world = origins + ranges[:, None].astype(np.float64) * directions
    street2lidar = inverse(street.drive.poses(end)[0] @ mount.lidar2ego)
    points = np.empty((len(ranges), 5), F32)
    points[:, :3] = world @ street2lidar[:3, :3].T + street2lidar[:3, 3]
    points[:, 3] = np.where(seen, _intensity(material, snapshot.mesh.tint[triangle], cosine, own, rng), 0)
    points[:, 4] = np.tile(np.arange(rings), columns)
    category = np.where(seen, snapshot.mesh.raw[triangle], _NOISE).astype(np.uint8)
    category[own] = _EGO
    instance = np.where(seen & ~own, snapshot.instance[triangle], NO_INSTANCE).astype(np.int16)
    return Scan(
        points=points,
        category=category,
        instance=instance,
        origins=near,
        directions=directions,
        ranges=np.where(own, 0, ranges).astype(F32),
    )


def _returns(
    material: NDArray[np.uint8],
    cosine: NDArray[np.float32],
    distance: NDArray[np.float32],
    max_range: float,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Which pulses come back: dark, grazing and far surfaces and glass lose them."""
    signal = _REFLECTIVITY[material] * np.maximum(cosine, 0.01) / np.maximum(distance / 50.0, 0.05) ** 2
    chance = np.clip(signal / DETECTION, 0, 0.985)
    chance = np.where(RETRO[material], 0.985, chance)
    chance = np.where(material == Material.GLASS, chance * (1 - _GLOSS_LOSS), chance)
    inside = (distance < min(max_range, float(FAR) / 2)) & (distance > NEAREST)
    return inside & (rng.random(len(distance)) < chance)


def _intensity(
    material: NDArray[np.uint8],
    tint: NDArray[np.float32],
    cosine: NDArray[np.float32],
    own: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Whole numbers 0..255 from reflectivity, brightness and incidence, with speckle; retro-reflectors saturate."""
    bright = 0.4 + 0.6 * np.clip(tint.mean(axis=1), 0, 1.3)
    value = 255 * _REFLECTIVITY[material] * bright * (0.3 + 0.7 * cosine) * rng.lognormal(0, 0.55, len(material))
    value = np.where(own, rng.uniform(2, 40, len(material)), value)
    value = np.where(RETRO[material] & (cosine > 0.3) & ~own, 255, value)
    return np.clip(np.round(value), 0, 255).astype(F32)

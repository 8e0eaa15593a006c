"""What surfaces are made of: how cameras and the LiDAR see each material."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LIDARSEG_TO_OCC3D


class Material(IntEnum):
    """Index into MATERIALS and into a scene's textures."""

    ASPHALT = 0
    PAINT = 1
    CONCRETE = 2
    PAVER = 3
    GRASS = 4
    SOIL = 5
    FACADE_A = 6
    FACADE_B = 7
    FACADE_C = 8
    FACADE_D = 9
    SHOPFRONT = 10
    BRICK = 11
    ROOF = 12
    METAL = 13
    GLASS = 14
    CAR_PAINT = 15
    RUBBER = 16
    PLASTIC = 17
    CLOTH = 18
    SKIN = 19
    LEAF = 20
    BARK = 21
    SIGN = 22
    HEAD_LAMP = 23
    TAIL_LAMP = 24
    PLATE = 25
    POSTER = 26
    FENCE = 27


FACADES = (Material.FACADE_A, Material.FACADE_B, Material.FACADE_C, Material.FACADE_D)


@dataclass(frozen=True, kw_only=True)
class MaterialProperties:
    """How one material answers light and laser pulses."""

    repeat: float
    """Edge of one texture tile on the surface, metres."""
    texels: int
    """Edge of the texture, a power of two."""
    reflectivity: float
    """At the laser's wavelength, 0..1; median ground gives an intensity of about 12 of 255."""
    gloss: float = 0.0
    """Share of the sky mirrored at normal incidence (rises towards grazing)."""
    retro: bool = False
    """Retro-reflector: saturates the LiDAR."""
    glow: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Light that it gives off in the dark."""


MATERIALS: dict[Material, MaterialProperties] = {
    Material.ASPHALT: MaterialProperties(repeat=7.0, texels=512, reflectivity=0.09),
    Material.PAINT: MaterialProperties(repeat=3.0, texels=256, reflectivity=0.42),
    Material.CONCRETE: MaterialProperties(repeat=5.0, texels=256, reflectivity=0.15),
    Material.PAVER: MaterialProperties(repeat=3.0, texels=512, reflectivity=0.15),
    Material.GRASS: MaterialProperties(repeat=6.0, texels=512, reflectivity=0.19),
    Material.SOIL: MaterialProperties(repeat=5.0, texels=256, reflectivity=0.18),
    Material.FACADE_A: MaterialProperties(repeat=13.2, texels=512, reflectivity=0.16),
    Material.FACADE_B: MaterialProperties(repeat=13.2, texels=512, reflectivity=0.16),
    Material.FACADE_C: MaterialProperties(repeat=13.2, texels=512, reflectivity=0.16),
    Material.FACADE_D: MaterialProperties(repeat=13.2, texels=512, reflectivity=0.16),
    Material.SHOPFRONT: MaterialProperties(repeat=13.2, texels=512, reflectivity=0.16),
    Material.BRICK: MaterialProperties(repeat=2.4, texels=256, reflectivity=0.15),
    Material.ROOF: MaterialProperties(repeat=4.0, texels=128, reflectivity=0.20),
    Material.METAL: MaterialProperties(repeat=2.0, texels=64, reflectivity=0.26, gloss=0.10),
    Material.GLASS: MaterialProperties(repeat=2.0, texels=16, reflectivity=0.03, gloss=0.12),
    Material.CAR_PAINT: MaterialProperties(repeat=2.0, texels=16, reflectivity=0.20, gloss=0.06),
    Material.RUBBER: MaterialProperties(repeat=1.0, texels=32, reflectivity=0.05),
    Material.PLASTIC: MaterialProperties(repeat=1.5, texels=64, reflectivity=0.2, gloss=0.03),
    Material.CLOTH: MaterialProperties(repeat=0.8, texels=64, reflectivity=0.25),
    Material.SKIN: MaterialProperties(repeat=1.0, texels=16, reflectivity=0.30),
    Material.LEAF: MaterialProperties(repeat=1.6, texels=256, reflectivity=0.20),
    Material.BARK: MaterialProperties(repeat=1.2, texels=128, reflectivity=0.18),
    Material.SIGN: MaterialProperties(repeat=1.0, texels=16, reflectivity=0.9, retro=True),
    Material.HEAD_LAMP: MaterialProperties(
        repeat=1.0, texels=16, reflectivity=0.6, gloss=0.15, retro=True, glow=(3.0, 2.8, 2.2)
    ),
    Material.TAIL_LAMP: MaterialProperties(
        repeat=1.0, texels=16, reflectivity=0.6, gloss=0.08, retro=True, glow=(1.4, 0.08, 0.05)
    ),
    Material.PLATE: MaterialProperties(repeat=1.0, texels=32, reflectivity=0.9, retro=True),
    Material.POSTER: MaterialProperties(repeat=2.0, texels=256, reflectivity=0.3, gloss=0.02),
    Material.FENCE: MaterialProperties(repeat=1.5, texels=128, reflectivity=0.25),
}


def column(name: str) -> NDArray[np.float32]:
    """One property of all materials, indexed by Material."""
    return np.array([getattr(MATERIALS[m], name) for m in Material], np.float32)


RETRO = np.array([MATERIALS[m].retro for m in Material])
"""(M,) bool."""

CATEGORY_NAMES = (
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
)
"""nuScenes-lidarseg categories; the position is ``category.index``."""

RAW = {name: index for index, name in enumerate(CATEGORY_NAMES)}

RAW_TO_OCC3D = np.array([LIDARSEG_TO_OCC3D[name] for name in CATEGORY_NAMES], np.uint8)
"""(32,) lidarseg category -> Occ3D class: 0 others, 1 barrier ... 16 vegetation."""

"""Houses and towers.

Local axes: x along the street, y away from it, origin at the front's left corner on the ground.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusionocc_core.simulation.materials import FACADES, Material
from fusionocc_core.simulation.mesh import Color, Mesh, box, join, quads, tube

STOREY, BAY = 3.3, 3.3
"""Height of a storey and width of a window bay: a quarter of a facade texture each."""


@dataclass(frozen=True, kw_only=True)
class District:
    """What the houses of a scene have in common."""

    tall: float
    """Mean number of storeys."""
    houses: bool
    """Detached houses with pitched roofs instead of blocks."""
    tints: tuple[Color, ...]
    setback: float
    """Mean distance of fronts from the sidewalk, metres."""


def draw_district(rng: np.random.Generator) -> District:
    """A quarter."""
    tall = float(rng.choice([2.5, 4.0, 6.0, 9.0, 14.0]))
    tints = tuple(
        tuple(float(v) for v in np.clip(rng.uniform(0.75, 1.05) * (1 + rng.normal(0, 0.07, 3)), 0.4, 1.15))
        for _ in range(5)
    )
    return District(
        tall=tall, houses=bool(tall < 3 and rng.random() < 0.7), tints=tints, setback=float(rng.uniform(2.0, 9.0))
    )


def _walls(size: tuple[float, float], low: float, high: float, material: Material, tint: Color, shift: float) -> Mesh:
    """Four walls around (0..width, 0..depth); texture columns begin at the corners, moved by ``shift`` metres."""
    w, d = size
    base = [(0.0, 0.0), (w, 0.0), (w, d), (0.0, d)]
    corners, uv = [], []
    along = shift
    for k in range(4):
        (x0, y0), (x1, y1) = base[k], base[(k + 1) % 4]
        length = float(np.hypot(x1 - x0, y1 - y0))
        corners.append([(x0, y0, low), (x1, y1, low), (x1, y1, high), (x0, y0, high)])
        uv.append([(along, low), (along + length, low), (along + length, high), (along, high)])
        along += np.ceil(length / BAY) * BAY
    return quads(corners, material, tint, uv)


def _slab(size: tuple[float, float], z: float, thick: float, out: float, material: Material, tint: Color) -> Mesh:
    w, d = size
    return box((w + 2 * out, d + 2 * out, thick), material, tint, (w / 2, d / 2, z + thick / 2))


def block(rng: np.random.Generator, district: District, width: float, depth: float) -> Mesh:
    """A block or tower with a ground floor, ledges, a parapet and things on its roof."""
    w, d = (max(2, round(v / BAY)) * BAY for v in (width, depth))
    storeys = max(2, round(district.tall * float(rng.lognormal(0, 0.35))))
    tint = district.tints[int(rng.integers(len(district.tints)))]
    facade = FACADES[int(rng.integers(len(FACADES)))]
    shift = BAY * int(rng.integers(4))
    ground = STOREY if rng.random() < 0.6 else 0.0
    top = storeys * STOREY
    parts = []
    if ground:
        parts.append(_walls((w, d), 0.0, ground, Material.SHOPFRONT, (1, 1, 1), shift))
        parts.append(_slab((w, d), ground - 0.2, 0.3, float(rng.uniform(0.1, 1.2)), Material.CONCRETE, tint))
    upper = (w, d)
    if storeys > 6 and rng.random() < 0.5:  # a podium with a tower on it
        podium = STOREY * int(rng.integers(2, 4))
        parts += [
            _walls((w, d), ground, podium, facade, tint, shift),
            _slab((w, d), podium, 0.3, 0.1, Material.ROOF, tint),
        ]
        upper = (max(2 * BAY, w - 2 * BAY), max(2 * BAY, d - 2 * BAY))
        tower = [_walls(upper, podium, top, FACADES[int(rng.integers(len(FACADES)))], tint, shift)]
        tower += _roof(rng, upper, top, tint)
        parts += [part.placed(x=BAY * (w > 3 * BAY), y=BAY * (d > 3 * BAY)) for part in tower]
        return join(parts)
    parts.append(_walls(upper, ground, top, facade, tint, shift))
    if rng.random() < 0.5:
        ledge = tuple(0.9 * t for t in tint)
        parts += [_slab(upper, k * STOREY - 0.12, 0.14, 0.12, Material.CONCRETE, ledge) for k in range(2, storeys)]
    if rng.random() < 0.4:
        parts += _pilasters(rng, w, top, tint)
    if rng.random() < 0.5:
        parts += _balconies(rng, w, storeys, tint)
    parts += _roof(rng, upper, top, tint)
    return join(parts)


def _roof(rng: np.random.Generator, size: tuple[float, float], top: float, tint: Color) -> list[Mesh]:
    w, d = size
    parts = [
        quads([[(0, 0, top), (w, 0, top), (w, d, top), (0, d, top)]], Material.ROOF),
        _slab(size, top, 0.5, 0.12, Material.CONCRETE, tint),
    ]
    for _ in range(int(rng.integers(1, 4))):
        a, b, h = rng.uniform(1.5, 4), rng.uniform(1.5, 4), rng.uniform(1.2, 3)
        x, y = rng.uniform(0.2, 0.8) * w, rng.uniform(0.2, 0.8) * d
        parts.append(box((a, b, h), Material.METAL, (0.7, 0.7, 0.7), (x, y, top + 0.5 + h / 2)))
    return parts


def _pilasters(rng: np.random.Generator, width: float, top: float, tint: Color) -> list[Mesh]:
    out = float(rng.uniform(0.2, 0.5))
    shade = tuple(t * rng.uniform(0.85, 1.05) for t in tint)
    xs = np.arange(0.0, width + 0.1, BAY * int(rng.integers(1, 3)))
    return [box((0.35, out, top), Material.CONCRETE, shade, (x, -out / 2, top / 2)) for x in xs]


def _balconies(rng: np.random.Generator, width: float, storeys: int, tint: Color) -> list[Mesh]:
    parts = []
    every = int(rng.integers(1, 4))
    for storey in range(1, storeys):
        for bay in range(0, round(width / BAY), every):
            x, z = (bay + 0.5) * BAY, storey * STOREY
            parts.append(box((2.6, 1.1, 0.15), Material.CONCRETE, tint, (x, -0.55, z)))
            parts.append(box((2.6, 0.06, 0.95), Material.FENCE, tint, (x, -1.08, z + 0.5)))
    return parts


def tower(rng: np.random.Generator, district: District, width: float, depth: float) -> Mesh:
    """A plain block for the distance."""
    w, d = (max(2, round(v / BAY)) * BAY for v in (width, depth))
    top = STOREY * max(3, round(district.tall * float(rng.lognormal(0.2, 0.4))))
    tint = district.tints[int(rng.integers(len(district.tints)))]
    facade = FACADES[int(rng.integers(len(FACADES)))]
    roof = quads([[(0, 0, top), (w, 0, top), (w, d, top), (0, d, top)]], Material.ROOF)
    return join([_walls((w, d), 0.0, top, facade, tint, BAY * int(rng.integers(4))), roof])


def house(rng: np.random.Generator, district: District, width: float, depth: float) -> Mesh:
    """A detached house with a pitched roof and a porch."""
    w, d = (max(2, round(v / BAY)) * BAY for v in (min(width, 12.0), min(depth, 10.0)))
    storeys = int(rng.integers(1, 3))
    tint = district.tints[int(rng.integers(len(district.tints)))]
    material = FACADES[int(rng.integers(len(FACADES)))]
    top, ridge = storeys * STOREY, storeys * STOREY + float(rng.uniform(1.8, 3.2))
    parts = [_walls((w, d), 0.0, top, material, tint, BAY * int(rng.integers(4)))]
    e = 0.5
    roof_tint = tuple(rng.uniform(0.5, 1.0) * np.array([1.1, rng.uniform(0.6, 0.9), rng.uniform(0.5, 0.9)]))
    slopes = [
        [(-e, -e, top - 0.1), (w + e, -e, top - 0.1), (w + e, d / 2, ridge), (-e, d / 2, ridge)],
        [(w + e, d + e, top - 0.1), (-e, d + e, top - 0.1), (-e, d / 2, ridge), (w + e, d / 2, ridge)],
    ]
    parts.append(quads(slopes, Material.ROOF, roof_tint))
    gables = [[(x, 0, top), (x, d, top), (x, d / 2, ridge - 0.1), (x, d / 2, ridge - 0.1)] for x in (0.0, w)]
    parts.append(quads(gables, Material.CONCRETE, tint))
    porch = float(rng.uniform(0.2, 0.6)) * w
    parts.append(box((3.0, 1.6, 0.15), Material.METAL, roof_tint, (porch, -0.8, 2.7)))
    parts += [tube((porch + dx, -1.4, 0), (porch + dx, -1.4, 2.7), 0.08, Material.METAL) for dx in (-1.3, 1.3)]
    parts.append(box((0.9, 0.9, 1.5), Material.BRICK, center=(0.25 * w, 0.4 * d, ridge)))
    return join(parts)


def building(rng: np.random.Generator, district: District, width: float, depth: float) -> Mesh:
    """One building of the district."""
    make = house if district.houses and rng.random() < 0.85 else block
    return make(rng, district, width, depth)

"""What closes the view: houses along the crossing road, second rows, and a far ring of towers and woods."""

from __future__ import annotations

import numpy as np

from fusionocc_core.simulation import buildings, greenery
from fusionocc_core.simulation.materials import RAW, Material
from fusionocc_core.simulation.mesh import Mesh, join, lump
from fusionocc_core.simulation.paths import Centreline
from fusionocc_core.simulation.plan import StreetPlan, stand

MANMADE, VEGETATION = RAW["static.manmade"], RAW["static.vegetation"]
BASE = -0.05
"""Height of the ground far from the road, metres."""


def build_backdrop(
    plan: StreetPlan, species: list[greenery.TreeStyle], district: buildings.District, rng: np.random.Generator
) -> Mesh:
    """All of it, each triangle with its category."""
    parts = [_second_rows(plan, species, district, rng), _ring(plan, district, rng), _road_ends(plan, species, rng)]
    if plan.crossing is not None:
        parts.append(_crossing_fronts(plan, plan.crossing.line, district, species, rng))
    return join(parts)


def _second_rows(
    plan: StreetPlan, species: list[greenery.TreeStyle], district: buildings.District, rng: np.random.Generator
) -> Mesh:
    """Scattered houses and trees behind the first row."""
    parts = []
    for _ in range(60):
        s = float(rng.uniform(plan.line.s[0], plan.line.s[-1]))
        side = int(rng.choice([1, -1]))
        d = side * float(rng.uniform(48, 110))
        if not plan.reaches(side, abs(d)) or not plan.free_of_crossing(s, 42.0):
            continue
        if rng.random() < 0.5:
            mesh = buildings.block(rng, district, float(rng.uniform(14, 34)), float(rng.uniform(12, 22)))
            parts.append(stand(plan, mesh, s, d, z=BASE, turn=0.0 if side > 0 else np.pi).labelled(MANMADE))
        else:
            mesh, _ = greenery.tree(rng, species[int(rng.integers(len(species)))], detail=0.2)
            parts.append(stand(plan, mesh.scaled(1.5, 1.5, 1.5), s, d, z=BASE).labelled(VEGETATION))
    return join(parts)


def _crossing_fronts(
    plan: StreetPlan,
    line: Centreline,
    district: buildings.District,
    species: list[greenery.TreeStyle],
    rng: np.random.Generator,
) -> Mesh:
    """Houses and trees along the other road, beyond those of the main one."""
    parts = []
    assert plan.crossing is not None
    reach = plan.crossing.reach
    first = max(plan.yard_start(1), plan.yard_start(-1)) + district.setback + 21.0
    for way in (1, -1):
        for side in (1, -1):
            s = first
            while s < 150.0:
                width = float(rng.uniform(10, 26))
                back = reach + float(rng.uniform(1.5, 5.0))
                x, y = line.point(way * (s + width / 2), side * back)
                turn = float(line.heading_at(0.0)) + (0.0 if side > 0 else np.pi)
                if rng.random() < 0.8:
                    mesh = buildings.building(rng, district, width, float(rng.uniform(9, 16)))
                    width = float(mesh.corners[..., 0].max())
                    mesh = mesh.placed(x=-width / 2)
                    parts.append(mesh.placed(float(x), float(y), BASE, turn).labelled(MANMADE))
                else:
                    mesh, _ = greenery.tree(rng, species[int(rng.integers(len(species)))], detail=0.5)
                    parts.append(mesh.placed(float(x), float(y), BASE, turn).labelled(VEGETATION))
                s += width + float(rng.choice([1.0, 2.0, 6.0]))
    return join(parts)


def _ring(plan: StreetPlan, district: buildings.District, rng: np.random.Generator) -> Mesh:
    """Towers and woods 120 to 230 m from the drive, in every direction."""
    path = plan.line.point(np.arange(0.0, plan.travelled + 1.0, 10.0))
    middle, half = (path.max(axis=0) + path.min(axis=0)) / 2, np.ptp(path, axis=0) / 2
    parts = []
    for angle in np.linspace(0, 2 * np.pi, 110, endpoint=False):
        out = np.array([np.cos(angle), np.sin(angle)])
        wood = rng.random() < 0.5
        radius = float(rng.uniform(115, 165) if wood else rng.uniform(150, 230))
        x, y = (middle + half * np.sign(out) * np.abs(out) + radius * out).tolist()
        if _on_a_road(plan, x, y):
            continue
        if wood:
            size = (float(rng.uniform(5, 9)), float(rng.uniform(5, 9)), float(rng.uniform(4, 8)))
            tint = tuple(float(v) for v in rng.uniform(0.55, 0.85) * np.ones(3))
            for k in range(3):
                spot = (x + 7.0 * k * -out[1], y + 7.0 * k * out[0], size[2] * 0.8)
                parts.append(lump(rng, size, spot, Material.LEAF, tint, roughness=0.2).labelled(VEGETATION))
        else:
            width, depth = float(rng.uniform(14, 36)), float(rng.uniform(12, 24))
            mesh = buildings.tower(rng, district, width, depth)
            parts.append(mesh.placed(x, y, BASE, float(angle) + np.pi / 2).labelled(MANMADE))
    return join(parts)


def _on_a_road(plan: StreetPlan, x: float, y: float) -> bool:
    """Whether a far house would stand in the way of a road."""
    point = np.array([[x, y]])
    if abs(float(plan.line.nearest(point)[1][0])) < plan.half_width + 22:
        return True
    crossing = plan.crossing
    return crossing is not None and abs(float(crossing.line.nearest(point)[1][0])) < crossing.reach + 22


def _road_ends(plan: StreetPlan, species: list[greenery.TreeStyle], rng: np.random.Generator) -> Mesh:
    """Trees where the built road ends."""
    parts = []
    for s in (plan.line.s[-1] - 5.0, plan.line.s[0] + 5.0):
        for d in np.arange(-plan.half_width - 12, plan.half_width + 12, 5.0):
            mesh, _ = greenery.tree(rng, species[0], detail=0.25)
            parts.append(stand(plan, mesh.scaled(1.4, 1.4, 1.3), float(s), float(d), z=BASE).labelled(VEGETATION))
            wood = lump(rng, (4.0, 4.0, 4.5), (0, 0, 3.2), Material.LEAF, (0.6, 0.6, 0.6), roughness=0.2)
            parts.append(stand(plan, wood, float(s), float(d), z=BASE).labelled(VEGETATION))
    return join(parts)

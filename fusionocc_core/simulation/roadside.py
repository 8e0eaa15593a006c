"""What stands beside the road and never moves: houses, trees, hedges, walls, masts, signs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fusionocc_core.simulation import buildings, greenery, props
from fusionocc_core.simulation.backdrop import build_backdrop
from fusionocc_core.simulation.materials import RAW, Material
from fusionocc_core.simulation.mesh import Mesh, join
from fusionocc_core.simulation.plan import KERB_HEIGHT, StreetPlan, stand

MANMADE, VEGETATION, OTHER = RAW["static.manmade"], RAW["static.vegetation"], RAW["static.other"]


@dataclass
class Slots:
    """Which stretches of s are taken, a list for each band beside the road."""

    taken: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def block(self, band: str, low: float, high: float) -> None:
        """Take a stretch."""
        self.taken.setdefault(band, []).append((low, high))

    def is_free(self, band: str, low: float, high: float) -> bool:
        """Whether nothing of the stretch is taken."""
        return all(high <= a or low >= b for a, b in self.taken.get(band, ()))

    def claim(
        self, rng: np.random.Generator, band: str, length: float, s_range: tuple[float, float], tries: int = 30
    ) -> float | None:
        """The middle of a free stretch, now taken; None where there is no room."""
        for _ in range(tries):
            s = float(rng.uniform(*s_range))
            low, high = s - length / 2, s + length / 2
            if self.is_free(band, low, high):
                self.block(band, low, high)
                return s
        return None


def band_name(band: str, side: int) -> str:
    """The name of a band on the left (+1) or right (-1)."""
    return f"{band}{side:+d}"


def reserve_openings(plan: StreetPlan, slots: Slots) -> None:
    """Keep junctions and zebra crossings free."""
    for side in (1, -1):
        if plan.crossing is not None:
            reach = plan.crossing.reach + plan.crossing.corner + 4.0
            for band in ("parking", "kerb", "walk", "yard"):
                slots.block(band_name(band, side), plan.crossing.s - reach, plan.crossing.s + reach)
            wide = plan.crossing.reach + 3.0
            slots.block(band_name("front", side), plan.crossing.s - wide, plan.crossing.s + wide)
        if plan.zebra is not None:
            for band in ("parking", "kerb"):
                slots.block(band_name(band, side), plan.zebra - 6.0, plan.zebra + 6.0)


def facing_road(side: int) -> float:
    """Turn that points +y of an object at the left (+1) or right (-1) towards the road."""
    return np.pi if side > 0 else 0.0


def build_roadside(plan: StreetPlan, slots: Slots, rng: np.random.Generator) -> Mesh:
    """All of it, each triangle with its category."""
    district = buildings.draw_district(rng)
    species = [greenery.draw_tree_style(rng) for _ in range(3)]
    parts: list[Mesh] = []
    for side in (1, -1):
        parts.append(_fronts(plan, side, district, slots, rng))
        parts.append(_furniture(plan, side, slots, rng))
        parts.append(_street_trees(plan, side, species, slots, rng))
        parts.append(_yard(plan, side, species, slots, rng))
    parts.append(_signals(plan, rng))
    parts.append(build_backdrop(plan, species, district, rng))
    return join(parts)


def _fronts(plan: StreetPlan, side: int, district: buildings.District, slots: Slots, rng: np.random.Generator) -> Mesh:
    """A row of buildings, some gaps, on one side."""
    parts = []
    start = max(plan.yard_start(side), plan.sidewalk_band(side)[1]) + 0.6
    s = plan.begin - 30.0
    while s < plan.end + 30.0:
        width = float(rng.uniform(9, 30 if not district.houses else 14))
        setback = start + float(max(0.8, rng.normal(district.setback, 1.0)))
        depth = float(rng.uniform(9, 18))
        middle = s + width / 2
        fits = slots.is_free(band_name("front", side), s - 1.0, s + width + 1.0)
        if fits and rng.random() < 0.85 and plan.reaches(side, setback + depth):
            mesh = buildings.building(rng, district, width, depth)
            real_width = float(mesh.corners[..., 0].max())
            local = mesh.placed(x=-real_width / 2)
            turn = 0.0 if side > 0 else np.pi
            parts.append(stand(plan, local, middle, side * setback, turn=turn, z=KERB_HEIGHT - 0.02))
            bend = abs(float(plan.line.heading_at(s + real_width) - plan.line.heading_at(s)))
            s += real_width + bend * (setback + depth) + float(rng.choice([0.5, 1.0, 3.0, 8.0]))
        else:
            s += width * 0.6 + 2.0
    return join(parts).labelled(MANMADE)


def _furniture(plan: StreetPlan, side: int, slots: Slots, rng: np.random.Generator) -> Mesh:
    """Street lights, signs, bollards, hydrants, posters, cabinets and bus stops along the kerb."""
    parts = []
    kerb = band_name("kerb", side)
    d = side * (plan.half_width + 0.55)
    for s in np.arange(plan.begin, plan.end, float(rng.uniform(22, 36))) + rng.uniform(0, 15):
        if slots.is_free(kerb, s - 0.4, s + 0.4):
            slots.block(kerb, s - 0.4, s + 0.4)
            parts.append(stand(plan, props.street_light(rng), float(s), d, turn=facing_road(side)).labelled(MANMADE))
    area = (plan.begin, plan.end)
    to_traffic = 0.0 if side == plan.ego_side else np.pi
    makers: list[tuple[Callable[[], Mesh], int, float, float, int]] = [
        (lambda: props.sign(rng), int(rng.integers(3, 8)), 0.9, to_traffic, MANMADE),
        (lambda: props.bollard(rng), int(rng.integers(0, 9)), 0.4, 0.0, MANMADE),
        (props.hydrant, int(rng.integers(1, 3)), 0.6, 0.0, MANMADE),
        (lambda: props.billboard(rng), int(rng.integers(0, 3)), 1.0, to_traffic, MANMADE),
        (lambda: props.stall(rng), int(rng.integers(1, 4)), 1.6, facing_road(side) - np.pi / 2, OTHER),
        (props.bicycle_rack, int(rng.integers(0, 2)), 3.0, 0.0, RAW["static_object.bicycle_rack"]),
    ]
    for make, count, length, turn, raw in makers:
        for _ in range(count):
            s = slots.claim(rng, kerb, length, area)
            if s is not None:
                parts.append(stand(plan, make(), s, d, turn=turn).labelled(raw))
    if plan.yard_start(side) - plan.half_width > 3.0 and rng.random() < 0.5:
        s = slots.claim(rng, kerb, 6.0, (5.0, plan.travelled + 30))
        if s is not None:
            parts.append(
                stand(plan, props.shelter(rng), s, side * (plan.half_width + 1.3), turn=facing_road(side)).labelled(
                    MANMADE
                )
            )
    return join(parts)


def _street_trees(
    plan: StreetPlan, side: int, species: list[greenery.TreeStyle], slots: Slots, rng: np.random.Generator
) -> Mesh:
    """A row of one species along the kerb, on some streets."""
    if rng.random() < 0.35:
        return join([])
    parts = []
    kerb = band_name("kerb", side)
    style = species[int(rng.integers(len(species)))]
    gap = float(rng.uniform(8, 16))
    for s in np.arange(plan.begin, plan.end, gap) + rng.uniform(0, gap):
        if rng.random() < 0.85 and slots.is_free(kerb, s - 0.5, s + 0.5):
            slots.block(kerb, s - 0.5, s + 0.5)
            mesh, _ = greenery.tree(rng, style, detail=_detail(plan, float(s)))
            parts.append(stand(plan, mesh, float(s), side * (plan.half_width + 0.75), turn=float(rng.uniform(0, 6.3))))
    return join(parts).labelled(VEGETATION)


def _detail(plan: StreetPlan, s: float) -> float:
    """Trees beyond the reach of the occupancy grid need fewer leaves."""
    return 1.0 if -45 < s < plan.travelled + 45 else 0.4


def _yard(
    plan: StreetPlan, side: int, species: list[greenery.TreeStyle], slots: Slots, rng: np.random.Generator
) -> Mesh:
    """Bushes, hedges, walls, fences, weeds and single trees between the sidewalk and the houses."""
    parts = []
    yard = band_name("yard", side)
    outer = max(plan.yard_start(side), plan.sidewalk_band(side)[1])
    area = (plan.begin, plan.end)
    tint = tuple(float(v) for v in rng.uniform(0.8, 1.15, 3) * (1.0, 1.0, 0.9))
    for _ in range(int(rng.integers(3, 9))):
        length = float(rng.uniform(4, 16))
        s = slots.claim(rng, yard, length + 0.6, area)
        if s is None:
            continue
        kind = rng.choice(["hedge", "wall", "fence", "wall", "hedge"])
        shade = tuple(float(v) for v in rng.uniform(0.6, 1.05) * np.ones(3))
        height = float(rng.uniform(0.8, 2.0))
        for piece in np.arange(-length / 2, length / 2 - 0.5, 4.0):
            span = float(min(4.0, length / 2 - piece))
            if kind == "hedge":
                mesh = greenery.hedge(rng, span, height, tint).labelled(VEGETATION)
            elif kind == "wall":
                material = Material.BRICK if rng.random() < 0.5 else Material.CONCRETE
                mesh = props.wall(span, height, material, shade).labelled(MANMADE)
            else:
                mesh = props.fence(span, max(1.0, height * 0.8), shade).labelled(MANMADE)
            parts.append(stand(plan, mesh, s + float(piece) + span / 2, side * (outer + 0.45)))
    for _ in range(int(rng.integers(10, 30))):
        s = slots.claim(rng, yard, 1.8, area, tries=5)
        if s is not None:
            mesh = greenery.bush(rng, tint)
            parts.append(stand(plan, mesh, s, side * (outer + float(rng.uniform(0.8, 1.2)))).labelled(VEGETATION))
    for _ in range(int(rng.integers(4, 14))):
        s = slots.claim(rng, yard, 2.2, area, tries=5)
        if s is not None:
            style = species[int(rng.integers(len(species)))]
            mesh, _ = greenery.tree(rng, style, detail=_detail(plan, s))
            d = side * (outer + float(rng.uniform(0.8, 1.6)))
            parts.append(stand(plan, mesh, s, d, turn=float(rng.uniform(0, 6.3))).labelled(VEGETATION))
    for _ in range(40):
        s, d = float(rng.uniform(*area)), outer + abs(float(rng.normal(0.3, 0.8)))
        if plan.free_of_crossing(s) and plan.sides[0 if side > 0 else 1][-1].category == "flat.terrain":
            parts.append(stand(plan, greenery.tuft(rng, tint), s, side * d).labelled(VEGETATION))
    return join(parts)


def _signals(plan: StreetPlan, rng: np.random.Generator) -> Mesh:
    """Traffic lights at the junction's corners."""
    crossing = plan.crossing
    if crossing is None or not crossing.signals:
        return join([])
    parts = []
    along = crossing.half_width + crossing.corner + 0.6
    for way in (1, -1):
        side = way * plan.ego_side
        mesh = props.signal(rng, arm=min(4.0, 0.8 * plan.half_width))
        turn = 0.0 if way > 0 else np.pi
        if side * way > 0:
            mesh = mesh.scaled(1, -1, 1)
        parts.append(stand(plan, mesh, crossing.s + way * along, side * (plan.half_width + 0.6), turn=turn))
        mesh = props.signal(rng, arm=0.0)
        parts.append(stand(plan, mesh, crossing.s - way * along, side * (plan.half_width + 0.6), turn=turn))
    return join(parts).labelled(MANMADE)

"""The plan of a street: every number that its ground, houses and traffic are built from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusionocc_core.simulation.materials import Material
from fusionocc_core.simulation.mesh import Mesh
from fusionocc_core.simulation.paths import Centreline, SpeedProfile, draw_speed

BEHIND, AHEAD = 110.0, 140.0
"""How far the built street reaches behind the ego's start and ahead of its end, metres."""
KERB_WIDTH, KERB_HEIGHT = 0.15, 0.12
KINDS = ("straight", "curve", "crossing")


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One band beside the road, from the kerb outwards."""

    category: str
    """nuScenes-lidarseg name."""
    material: Material
    width: float
    tint: tuple[float, float, float]
    until_sidewalk: bool = True
    """At a crossing: ends where the corner begins (True) or where the other road's sidewalk ends (False)."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A second road, square to the first."""

    s: float
    """Where, on the main centreline."""
    lanes: int
    """In each direction."""
    corner: float
    """Radius of the kerb, metres."""
    line: Centreline
    """Its centreline; s = 0 in the middle of the main road, forward = the main road's left."""
    half_width: float
    sidewalk: float
    signals: bool

    @property
    def reach(self) -> float:
        """From the main road's point of view: half the width that the other road takes with its sidewalks."""
        return self.half_width + KERB_WIDTH + self.sidewalk


@dataclass(frozen=True, kw_only=True)
class StreetPlan:
    """A street with one driven line."""

    kind: str
    left_hand: bool
    line: Centreline
    profile: SpeedProfile
    """The ego's."""
    duration: float
    travelled: float
    """Metres that the ego drives."""
    lanes: int
    """In each direction."""
    lane_width: float
    parking: float
    """Width of a parking lane on each side; 0: none."""
    median: float
    """Width of a raised island in the middle; 0: none."""
    sides: tuple[tuple[Strip, ...], tuple[Strip, ...]]
    """Left and right."""
    crossing: Crossing | None
    zebra: float | None
    """s of a zebra crossing outside of junctions."""
    kerb_painted: bool
    ego_lane: int
    yellow_centre: bool
    inner_limit: tuple[float, float]
    """How far to the left and to the right of the line ground may be built (a curve's inside folds over), metres."""

    @property
    def half_width(self) -> float:
        """Of the carriageway."""
        return self.median / 2 + self.lanes * self.lane_width + self.parking

    @property
    def ego_side(self) -> int:
        """+1 if traffic keeps left."""
        return 1 if self.left_hand else -1

    @property
    def begin(self) -> float:
        """First s with full detail."""
        return -BEHIND

    @property
    def end(self) -> float:
        """Last s with full detail."""
        return self.travelled + AHEAD

    def lane_offset(self, lane: int, *, oncoming: bool = False) -> float:
        """D of a lane's middle; lane 0 is the innermost."""
        side = -self.ego_side if oncoming else self.ego_side
        return side * (self.median / 2 + (lane + 0.5) * self.lane_width)

    def sidewalk_band(self, side: int) -> tuple[float, float]:
        """|d| where the sidewalk of the left (+1) or right (-1) begins and ends."""
        start = self.half_width + KERB_WIDTH
        for strip in self.sides[0 if side > 0 else 1]:
            if strip.category == "flat.sidewalk":
                return start, start + strip.width
            start += strip.width
        return start, start + 1.5

    def yard_start(self, side: int) -> float:
        """|d| where the last, wide strip begins."""
        strips = self.sides[0 if side > 0 else 1]
        return self.half_width + KERB_WIDTH + sum(strip.width for strip in strips[:-1])

    def reaches(self, side: int, d: float) -> bool:
        """Whether ground is built as far as |d| on a side (not beyond a curve's centre)."""
        return d < self.inner_limit[0 if side > 0 else 1]

    def free_of_crossing(self, s: float, margin: float = 2.0) -> bool:
        """Whether s lies outside the other road and its sidewalks."""
        return self.crossing is None or abs(s - self.crossing.s) > self.crossing.reach + self.crossing.corner + margin


def stand(plan: StreetPlan, mesh: Mesh, s: float, d: float, *, z: float = KERB_HEIGHT, turn: float = 0.0) -> Mesh:
    """Put a mesh at (s, d), its x axis along the road, turned by ``turn``."""
    x, y = plan.line.point(s, d)
    return mesh.placed(float(x), float(y), z, float(plan.line.heading_at(s)) + turn)


def draw_plan(rng: np.random.Generator, *, kind: str, left_hand: bool, duration: float) -> StreetPlan:
    """A street of the given kind, long enough for a drive of ``duration`` seconds."""
    profile = draw_speed(rng, duration, stops=bool(rng.random() < 0.3))
    travelled = float(profile(duration))
    line, radius = _draw_line(rng, kind, travelled)
    lanes = int(rng.choice([1, 2, 2, 3]))
    lane_width = float(rng.uniform(3.1, 3.6))
    parking = float(rng.uniform(2.2, 2.6)) if lanes < 3 and rng.random() < 0.7 else 0.0
    median = float(rng.uniform(1.2, 3.2)) if rng.random() < 0.45 else 0.0
    half_width = median / 2 + lanes * lane_width + parking
    crossing = _draw_crossing(rng, line, half_width, lane_width, travelled) if kind == "crossing" else None
    zebra = float(rng.uniform(18, max(20.0, travelled + 25))) if crossing is None and rng.random() < 0.6 else None
    yards = rng.permutation(["grass", "grass" if median and rng.random() < 0.6 else "plaza"])
    limits = [75.0, 75.0]
    if radius is not None:
        limits[0 if radius > 0 else 1] = 0.72 * abs(radius)
    return StreetPlan(
        kind=kind,
        left_hand=left_hand,
        line=line,
        profile=profile,
        duration=duration,
        travelled=travelled,
        lanes=lanes,
        lane_width=lane_width,
        parking=parking,
        median=median,
        sides=(_draw_side(rng, crossing, yards[0]), _draw_side(rng, crossing, yards[1])),
        crossing=crossing,
        zebra=zebra,
        kerb_painted=bool(rng.random() < 0.5),
        ego_lane=int(rng.integers(lanes)),
        yellow_centre=bool(rng.random() < 0.5),
        inner_limit=(limits[0], limits[1]),
    )


def _draw_line(rng: np.random.Generator, kind: str, travelled: float) -> tuple[Centreline, float | None]:
    """The main centreline, and the radius of its tightest curve (positive: to the left; None: straight)."""
    heading = float(rng.uniform(-np.pi, np.pi))
    tail = 160.0
    if kind != "curve":
        return Centreline.from_curvature(-BEHIND - tail, [(BEHIND + AHEAD + travelled + 2 * tail, 0.0)], heading), None
    radius = float(rng.uniform(65, 140) * rng.choice([-1, 1]))
    bend_from = float(rng.uniform(-10, 0.5 * travelled + 10))
    arc = float(min(abs(radius) * rng.uniform(0.6, 1.3), 120.0))
    rest = max(20.0, travelled + AHEAD - bend_from - arc)
    pieces = [(BEHIND + tail + bend_from, 0.0), (arc, 1 / radius), (rest + tail, 0.0)]
    return Centreline.from_curvature(-BEHIND - tail, pieces, heading), radius


def _draw_crossing(
    rng: np.random.Generator, line: Centreline, half_width: float, lane_width: float, travelled: float
) -> Crossing:
    s = float(rng.uniform(15, max(20.0, travelled)))
    x, y = line.point(s)
    lanes = int(rng.choice([1, 1, 2]))
    return Crossing(
        s=s,
        lanes=lanes,
        corner=float(rng.uniform(3.5, 6.5)),
        line=Centreline.straight(float(x), float(y), float(line.heading_at(s)) + np.pi / 2, 170.0),
        half_width=lanes * lane_width,
        sidewalk=float(rng.uniform(2.6, 4.0)),
        signals=bool(rng.random() < 0.7),
    )


def _draw_side(rng: np.random.Generator, crossing: Crossing | None, yard: str) -> tuple[Strip, ...]:
    """From the kerb outwards: perhaps a verge, a sidewalk, perhaps another verge, the yard in front of the houses."""
    grey = float(rng.uniform(0.85, 1.05))
    sidewalk = Strip(
        category="flat.sidewalk",
        material=Material.PAVER if rng.random() < 0.6 else Material.CONCRETE,
        width=float(rng.uniform(1.8, 4.0)),
        tint=(grey, grey, grey),
    )
    green = Strip(
        category="flat.terrain", material=Material.GRASS, width=float(rng.uniform(1.0, 3.0)), tint=(1.0, 1.0, 1.0)
    )
    strips = [sidewalk]
    if crossing is None and rng.random() < 0.5:
        strips = [green, sidewalk]
    if rng.random() < 0.4:
        strips.append(
            Strip(
                category="flat.terrain",
                material=Material.SOIL if rng.random() < 0.4 else Material.GRASS,
                width=float(rng.uniform(1.5, 5.0)),
                tint=(1.0, 1.0, 1.0),
                until_sidewalk=False,
            )
        )
    yard_tint = float(rng.uniform(0.8, 1.0))
    strips.append(
        Strip(
            category="flat.terrain" if yard == "grass" else "flat.other",
            material=Material.GRASS if yard == "grass" else Material.CONCRETE,
            width=75.0,
            tint=(yard_tint, yard_tint, yard_tint),
            until_sidewalk=False,
        )
    )
    return tuple(strips)

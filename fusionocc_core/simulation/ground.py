"""The ground: carriageway, marks, kerbs, islands, sidewalks, verges and yards, as bands along centrelines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fusionocc_core.simulation.materials import RAW, Material
from fusionocc_core.simulation.mesh import Color, Mesh, join, quads, triangles
from fusionocc_core.simulation.paths import Centreline
from fusionocc_core.simulation.plan import KERB_HEIGHT, KERB_WIDTH, Crossing, StreetPlan

CORNER_RISE = 0.006
"""Paved corners lie this much above the yards that they may overlap, metres."""
MARK_Z = 0.004
"""Paint lies this high on the asphalt, metres."""
WHITE_PAINT: Color = (0.95, 0.95, 0.93)
YELLOW_PAINT: Color = (0.95, 0.78, 0.25)
ROAD, ISLAND, WALK, TERRAIN = (RAW[f"flat.{name}"] for name in ("driveable_surface", "other", "sidewalk", "terrain"))


def band(
    line: Centreline,
    s_range: tuple[float, float],
    d_range: tuple[float, float],
    material: Material,
    *,
    z: tuple[float, float] = (0.0, 0.0),
    tint: Color = (1.0, 1.0, 1.0),
    step: float = 4.0,
) -> Mesh:
    """A strip between two offsets; with equal offsets and two heights a vertical face."""
    count = max(1, int(np.ceil((s_range[1] - s_range[0]) / step)))
    s = np.linspace(*s_range, count + 1)
    sides = []
    for d, height in zip(d_range, z, strict=True):
        xy = line.point(s, d)
        sides.append(np.concatenate([xy, np.full((len(s), 1), height)], axis=1))
    right, left = sides
    corners = np.stack([right[:-1], right[1:], left[1:], left[:-1]], axis=1)
    across = d_range if d_range[0] != d_range[1] else z
    uv = np.empty((count, 4, 2))
    uv[:, (0, 3), 0], uv[:, (1, 2), 0] = s[:-1, None], s[1:, None]
    uv[:, :2, 1], uv[:, 2:, 1] = across
    return quads(corners, material, tint, uv)


def intervals(begin: float, end: float, gaps: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """What is left of [begin, end] without the gaps."""
    pieces, here = [], begin
    for low, high in sorted(gaps):
        if low > here:
            pieces.append((here, min(low, end)))
        here = max(here, high)
    if here < end:
        pieces.append((here, end))
    return [(a, b) for a, b in pieces if b - a > 0.05]


def kerb(line: Centreline, s_range: tuple[float, float], d: float, outward: int, *, painted: bool) -> Mesh:
    """The stone's face and top: ``d`` is the road's edge, ``outward`` the sign of the side; striped or plain."""
    outer = d + outward * KERB_WIDTH
    low, high = min(d, outer), max(d, outer)
    if not painted:
        face = band(line, s_range, (d, d), Material.CONCRETE, z=(0.0, KERB_HEIGHT), tint=(0.9, 0.9, 0.88))
        return join([face, band(line, s_range, (low, high), Material.CONCRETE, z=(KERB_HEIGHT, KERB_HEIGHT))])
    parts = []
    stones = np.arange(s_range[0], s_range[1], 1.0)
    for k, start in enumerate(stones):
        piece = (float(start), float(min(start + 1.0, s_range[1])))
        tint = (0.28, 0.28, 0.29) if k % 2 else (1.25, 1.25, 1.22)
        parts.append(band(line, piece, (d, d), Material.CONCRETE, z=(0.0, KERB_HEIGHT), tint=tint))
        parts.append(band(line, piece, (low, high), Material.CONCRETE, z=(KERB_HEIGHT, KERB_HEIGHT), tint=tint))
    return join(parts)


def build_ground(plan: StreetPlan, rng: np.random.Generator) -> Mesh:
    """Everything flat, each triangle with its category."""
    line, hw = plan.line, plan.half_width
    far = (float(line.s[0]), float(line.s[-1]))
    parts = [_base(plan), band(line, far, (-hw, hw), Material.ASPHALT, step=6.0).labelled(ROAD)]
    if plan.crossing is not None:
        parts += _crossing_road(plan, plan.crossing)
    parts += [_side(plan, side) for side in (1, -1)]
    if plan.median:
        parts.append(_median(plan))
    parts.append(_patches(plan, rng).labelled(ROAD))
    parts.append(_marks(plan).labelled(ROAD))
    return join(parts)


def _base(plan: StreetPlan) -> Mesh:
    """Terrain under and around everything."""
    x0, y0 = plan.line.x.min() - 250, plan.line.y.min() - 250
    x1, y1 = plan.line.x.max() + 250, plan.line.y.max() + 250
    z = -0.05
    corners = [[(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]]
    return quads(corners, Material.GRASS, (0.9, 0.9, 0.85)).labelled(TERRAIN)


def _side(plan: StreetPlan, side: int) -> Mesh:
    """Kerb and strips of the left (+1) or right (-1), with the opening for a crossing road."""
    line, begin, end = plan.line, float(plan.line.s[0]), float(plan.line.s[-1])
    crossing = plan.crossing
    corner_gap = [(crossing.s - g, crossing.s + g) for g in [crossing.half_width + crossing.corner]] if crossing else []
    reach_gap = [(crossing.s - crossing.reach, crossing.s + crossing.reach)] if crossing else []
    edge = side * plan.half_width
    parts = []
    for s_range in intervals(begin, end, corner_gap):
        near = (max(s_range[0], plan.begin), min(s_range[1], plan.end))
        for piece in intervals(*s_range, [near]):
            parts.append(kerb(line, piece, edge, side, painted=False).labelled(WALK))
        if near[1] > near[0]:
            parts.append(kerb(line, near, edge, side, painted=plan.kerb_painted).labelled(WALK))
    limit = plan.inner_limit[0 if side > 0 else 1]
    d = plan.half_width + KERB_WIDTH
    for strip in plan.sides[0 if side > 0 else 1]:
        outer = min(d + strip.width, limit)
        if outer <= d:
            break
        low, high = sorted((side * d, side * outer))
        for s_range in intervals(begin, end, corner_gap if strip.until_sidewalk else reach_gap):
            parts.append(
                band(
                    line, s_range, (low, high), strip.material, z=(KERB_HEIGHT, KERB_HEIGHT), tint=strip.tint, step=6.0
                ).labelled(RAW[strip.category])
            )
        d = outer
    return join(parts)


def _crossing_road(plan: StreetPlan, crossing: Crossing) -> list[Mesh]:
    """The second road, its kerbs and sidewalks, and the four rounded corners."""
    line, hw, half = crossing.line, plan.half_width, crossing.half_width
    first = hw + crossing.corner
    parts = []
    for sign in (1, -1):
        ends = sorted((sign * hw, sign * line.s[-1]))
        parts.append(band(line, (ends[0], ends[1]), (-half, half), Material.ASPHALT, step=10.0).labelled(ROAD))
        walk = sorted((sign * first, sign * line.s[-1]))
        top = KERB_HEIGHT - 0.004
        for side in (1, -1):
            parts.append(kerb(line, (walk[0], walk[1]), side * half, side, painted=False).labelled(WALK))
            d = sorted((side * (half + KERB_WIDTH), side * crossing.reach))
            parts.append(
                band(
                    line, (walk[0], walk[1]), (d[0], d[1]), plan.sides[0][0].material, z=(top, top), step=10.0
                ).labelled(WALK)
            )
            parts += _corner(plan, crossing, sign, side)
    return parts


def _corner(plan: StreetPlan, crossing: Crossing, sign: int, side: int) -> list[Mesh]:
    """Asphalt up to a quarter circle of kerb, sidewalk inside it."""
    r, x0, y0 = crossing.corner, sign * plan.half_width, side * crossing.half_width
    line = crossing.line

    def world(s: np.ndarray, d: np.ndarray, z: float) -> np.ndarray:
        xy = line.point(s, d)
        return np.concatenate([xy, np.full((len(xy), 1), z)], axis=1)

    square = world(
        np.array([x0, x0 + sign * r, x0 + sign * r, x0]), np.array([y0, y0, y0 + side * r, y0 + side * r]), 0
    )
    angle = np.linspace(0, np.pi / 2, 9)
    cx, cy = x0 + sign * r, y0 + side * r

    def arc(radius: float, z: float) -> np.ndarray:
        return world(cx - sign * radius * np.cos(angle), cy - side * radius * np.sin(angle), z)

    top = KERB_HEIGHT + CORNER_RISE
    bottom, rim, inner = arc(r, 0.0), arc(r, top), arc(r - KERB_WIDTH, top)
    middle = np.broadcast_to(world(np.array([cx]), np.array([cy]), top), inner[1:].shape)
    fan = np.stack([middle, inner[:-1], inner[1:]], axis=1)

    def skirt(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.stack([a[:-1], a[1:], b[1:], b[:-1]], axis=1)

    return [
        quads(square[None], Material.ASPHALT).labelled(ROAD),
        quads(skirt(bottom, rim), Material.CONCRETE).labelled(WALK),
        quads(skirt(rim, inner), Material.CONCRETE).labelled(WALK),
        triangles(fan, plan.sides[0][0].material).labelled(WALK),
    ]


def _median(plan: StreetPlan) -> Mesh:
    """A raised island between the directions."""
    half = plan.median / 2
    gaps = []
    if plan.crossing is not None:
        reach = plan.crossing.half_width + plan.crossing.corner + 4.0
        gaps.append((plan.crossing.s - reach, plan.crossing.s + reach))
    if plan.zebra is not None:
        gaps.append((plan.zebra - 2.5, plan.zebra + 2.5))
    parts = []
    top = (KERB_HEIGHT, KERB_HEIGHT)
    for s_range in intervals(float(plan.line.s[0]), float(plan.line.s[-1]), gaps):
        inner = half - KERB_WIDTH
        parts.append(band(plan.line, s_range, (-inner, inner), Material.PAVER, z=top))
        near = (max(s_range[0], plan.begin), min(s_range[1], plan.end))
        for piece in [*intervals(*s_range, [near]), near]:
            if piece[1] <= piece[0]:
                continue
            for side in (1, -1):
                parts.append(_island_kerb(plan, piece, side * half, side))
        for s in s_range:
            left, right = plan.line.point(s, half), plan.line.point(s, -half)
            face = [(*right, 0), (*left, 0), (*left, KERB_HEIGHT), (*right, KERB_HEIGHT)]
            parts.append(quads([face], Material.CONCRETE))
    return join(parts).labelled(ISLAND)


def _island_kerb(plan: StreetPlan, s_range: tuple[float, float], d: float, side: int) -> Mesh:
    """A kerb whose stone lies inside of ``d``."""
    mesh = kerb(plan.line, s_range, d - side * KERB_WIDTH, side, painted=plan.kerb_painted)
    face = band(plan.line, s_range, (d, d), Material.CONCRETE, z=(0.0, KERB_HEIGHT), tint=(0.9, 0.9, 0.88))
    return join([mesh, face])


def _patches(plan: StreetPlan, rng: np.random.Generator) -> Mesh:
    """Repaired rectangles, lids of manholes and wheel tracks: the road is not one colour."""
    parts = []
    for _ in range(int(rng.integers(8, 22))):
        s, d = rng.uniform(plan.begin, plan.end), rng.uniform(-plan.half_width + 1, plan.half_width - 1)
        tone = float(rng.choice([0.72, 0.8, 0.86, 1.1, 1.16]))
        size_s, size_d = rng.uniform(1.0, 14.0), rng.uniform(0.5, 1.6)
        d0, d1 = max(d - size_d, -plan.half_width), min(d + size_d, plan.half_width)
        parts.append(
            band(plan.line, (s, s + size_s), (d0, d1), Material.ASPHALT, z=(0.0015, 0.0015), tint=(tone, tone, tone))
        )
    for _ in range(int(rng.integers(3, 9))):
        x, y = plan.line.point(
            rng.uniform(plan.begin, plan.end), rng.uniform(-plan.half_width + 1, plan.half_width - 1)
        )
        angle = 2 * np.pi * np.arange(13) / 12
        ring = np.stack([x + 0.33 * np.cos(angle), y + 0.33 * np.sin(angle), np.full(13, 0.003)], axis=1)
        fan = np.stack([np.broadcast_to((x, y, 0.003), (12, 3)), ring[:-1], ring[1:]], axis=1)
        parts.append(triangles(fan, Material.METAL, (0.4, 0.39, 0.38)))
    return join(parts)


def _marks(plan: StreetPlan) -> Mesh:
    """Lane lines, stop lines, zebra crossings and arrows of the main road, and the centre line of the other."""
    keep_out: list[tuple[float, float]] = []
    if plan.crossing is not None:
        reach = plan.crossing.half_width + plan.crossing.corner + 5.5
        keep_out.append((plan.crossing.s - reach, plan.crossing.s + reach))
    if plan.zebra is not None:
        keep_out.append((plan.zebra - 3.5, plan.zebra + 3.5))
    pieces = intervals(plan.begin, plan.end, keep_out)
    parts = []
    for side in (1, -1):
        for lane in range(1, plan.lanes):
            d = side * (plan.median / 2 + lane * plan.lane_width)
            parts += [_dashes(plan.line, piece, d, 3.0, 5.0) for piece in pieces]
        edge = plan.median / 2 + plan.lanes * plan.lane_width - (0.0 if plan.parking else 0.3)
        parts += [_solid(plan.line, piece, side * edge, WHITE_PAINT) for piece in pieces]
    tint = YELLOW_PAINT if plan.yellow_centre else WHITE_PAINT
    centre = [plan.median / 2 + 0.25] if plan.median else [0.12]
    for d in centre:
        for side in (1, -1):
            parts += [_solid(plan.line, piece, side * d, tint) for piece in pieces]
    parts += [_arrow(plan.line, s, plan.lane_offset(k), 1) for s, k in _arrow_places(plan)]
    parts += _stop_and_zebra(plan)
    if plan.crossing is not None:
        first = plan.half_width + plan.crossing.corner + 6
        for a, b in ((-80.0, -first), (first, 80.0)):
            parts.append(_dashes(plan.crossing.line, (a, b), 0.0, 2.0, 3.0))
    return join(parts)


def _solid(line: Centreline, s_range: tuple[float, float], d: float, tint: Color) -> Mesh:
    return band(line, s_range, (d - 0.06, d + 0.06), Material.PAINT, z=(MARK_Z, MARK_Z), tint=tint)


def _dashes(line: Centreline, s_range: tuple[float, float], d: float, dash: float, gap: float) -> Mesh:
    starts = np.arange(s_range[0], s_range[1] - dash, dash + gap)
    return join([_solid(line, (float(s), float(s + dash)), d, WHITE_PAINT) for s in starts])


def _arrow_places(plan: StreetPlan) -> Sequence[tuple[float, int]]:
    """Before the junction or the zebra, one arrow a lane."""
    stop = plan.crossing.s - plan.crossing.reach - 16 if plan.crossing else (plan.zebra or 40.0) - 16
    return [(stop, lane) for lane in range(plan.lanes)]


def _arrow(line: Centreline, s: float, d: float, direction: int) -> Mesh:
    """Straight on, 5 m long."""
    shaft = band(line, (s, s + 3.2), (d - 0.08, d + 0.08), Material.PAINT, z=(MARK_Z, MARK_Z), tint=WHITE_PAINT)
    tip = [(*line.point(s + a, d + b), MARK_Z) for a, b in ((3.2, -0.35), (5.0, 0.0), (3.2, 0.35))]
    return join([shaft, triangles([tip], Material.PAINT, WHITE_PAINT)])


def _stop_and_zebra(plan: StreetPlan) -> list[Mesh]:
    """Bars across the road where people walk, and the line where traffic waits."""
    places: list[tuple[Centreline, float, float]] = []
    if plan.zebra is not None:
        places.append((plan.line, plan.zebra, plan.half_width))
    crossing = plan.crossing
    if crossing is not None:
        off = crossing.half_width + crossing.corner + 1.8
        places += [(plan.line, crossing.s + sign * off, plan.half_width) for sign in (1, -1)]
        off = plan.half_width + crossing.corner + 1.8
        places += [(crossing.line, sign * off, crossing.half_width) for sign in (1, -1)]
    parts = []
    for line, s, half in places:
        for d in np.arange(-half + 0.4, half - 0.4, 1.1):
            parts.append(
                band(line, (s - 1.5, s + 1.5), (d, d + 0.55), Material.PAINT, z=(MARK_Z, MARK_Z), tint=WHITE_PAINT)
            )
        low, high = sorted((0.2 * plan.ego_side, plan.ego_side * (half - 0.2)))
        parts.append(band(line, (s - 3.2, s - 2.9), (low, high), Material.PAINT, z=(MARK_Z, MARK_Z), tint=WHITE_PAINT))
    return parts

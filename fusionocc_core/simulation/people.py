"""Pedestrians, and bicycles and motorcycles with and without riders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusionocc_core.simulation.materials import Material
from fusionocc_core.simulation.mesh import Color, Mesh, box, join, loft, lump, tube

DARK: Color = (0.2, 0.2, 0.21)
PHASES = 8
"""Pictures of a gait."""


@dataclass(frozen=True, kw_only=True)
class PersonLook:
    """One person's size and clothes."""

    height: float
    top: Color
    trousers: Color
    skin: Color
    hair: Color
    stout: float
    bag: bool
    helmet: bool
    vest: bool


def draw_person(rng: np.random.Generator, *, child: bool = False, worker: bool = False) -> PersonLook:
    """A person."""
    tone = rng.uniform(0.55, 1.15)

    def cloth() -> Color:
        return tuple(float(v) for v in rng.uniform(0.1, 0.95) * rng.uniform(0.6, 1.1, 3))

    return PersonLook(
        height=float(rng.uniform(1.05, 1.4) if child else rng.uniform(1.55, 1.88)),
        top=(0.95, 0.55, 0.1) if worker else cloth(),
        trousers=tuple(float(v) for v in rng.uniform(0.15, 0.5) * rng.uniform(0.8, 1.1, 3)),
        skin=(tone, tone, tone),
        hair=(float(rng.uniform(0.1, 0.4)),) * 3,
        stout=float(rng.uniform(0.85, 1.2)),
        bag=bool(rng.random() < 0.35 and not worker),
        helmet=worker,
        vest=worker,
    )


def person(look: PersonLook, rng: np.random.Generator, phase: float | None) -> Mesh:
    """A standing person (phase None) or one step of a walk (phase 0..1)."""
    h = look.height
    hip, shoulder, head = 0.5 * h, 0.82 * h, 0.93 * h
    swing = 0.0 if phase is None else float(np.sin(2 * np.pi * phase))
    r = 0.065 * look.stout
    parts = []
    for side, way in ((-1, 1), (1, -1)):
        y, stride = side * 0.09, way * swing * 0.24 * h
        knee = (0.5 * stride + (0.04 * h if phase is not None else 0), y, 0.27 * h)
        foot_z = 0.05 + max(0.0, -way * swing) * 0.05
        parts.append(tube((0, y, hip), knee, r * 1.2, Material.CLOTH, look.trousers, end_radius=r, sides=6))
        parts.append(tube(knee, (stride, y, foot_z), r, Material.CLOTH, look.trousers, end_radius=0.75 * r, sides=6))
        parts.append(box((0.25, 0.09, 0.08), Material.RUBBER, (1.4, 1.3, 1.2), (stride + 0.05, y, foot_z - 0.01)))
        arm = 0.19 * look.stout
        elbow = (-0.35 * stride, side * (arm + 0.04), 0.64 * h)
        hand = (-0.75 * stride + 0.05, side * (arm + 0.03), 0.49 * h)
        parts.append(tube((0, side * arm, shoulder - 0.02), elbow, 0.05, Material.CLOTH, look.top, sides=6))
        parts.append(tube(elbow, hand, 0.042, Material.CLOTH, look.top, sides=6))
        parts.append(lump(rng, (0.05, 0.04, 0.07), hand, Material.SKIN, look.skin, rings=3, sides=5))
    parts.append(_torso(hip, shoulder, look))
    parts.append(
        lump(rng, (0.1, 0.085, 0.125), (0.01, 0, head), Material.SKIN, look.skin, roughness=0.03, rings=5, sides=8)
    )
    crown: tuple[Material, Color] = (
        (Material.PLASTIC, (0.95, 0.85, 0.2)) if look.helmet else (Material.CLOTH, look.hair)
    )
    parts.append(lump(rng, (0.115, 0.1, 0.09), (-0.02, 0, head + 0.06), *crown, roughness=0.05, rings=4, sides=8))
    if look.bag:
        parts.append(box((0.16, 0.28, 0.4), Material.CLOTH, look.trousers, (-0.19, 0, 0.68 * h)))
    if look.vest:
        parts.append(
            box((0.27 * look.stout, 0.4 * look.stout, 0.05), Material.SIGN, (0.9, 0.95, 0.5), (0, 0, 0.64 * h))
        )
    return join(parts)


def _torso(hip: float, shoulder: float, look: PersonLook) -> Mesh:
    sections = []
    for z, depth, width in (
        (hip - 0.06, 0.12, 0.16),
        (hip + 0.12, 0.11, 0.15),
        (0.7 * shoulder + 0.3 * hip, 0.125, 0.18),
        (shoulder, 0.1, 0.2),
        (shoulder + 0.07, 0.05, 0.06),
    ):
        angle = np.linspace(0, 2 * np.pi, 8, endpoint=False)
        wide = look.stout
        sections.append(np.stack([depth * wide * np.cos(angle), width * wide * np.sin(angle), np.full(8, z)], axis=1))
    return loft(np.stack(sections), Material.CLOTH, look.top)


def walker(rng: np.random.Generator, look: PersonLook) -> tuple[Mesh, ...]:
    """All steps of a walk."""
    seed = int(rng.integers(2**31))
    return tuple(person(look, np.random.default_rng(seed), phase / PHASES) for phase in range(PHASES))


def _hoop(x: float, radius: float, thick: float, material: Material, tint: Color, sides: int = 14) -> Mesh:
    """A tyre as a ring in the x-z plane that stands on the ground."""
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    sections = []
    for a in angle:
        c, s = np.cos(a), np.sin(a)
        inner, outer = radius - 2 * thick, radius
        sections.append(
            [
                (x + inner * c, -thick, radius + inner * s),
                (x + outer * c, -thick * 0.6, radius + outer * s),
                (x + outer * c, thick * 0.6, radius + outer * s),
                (x + inner * c, thick, radius + inner * s),
            ]
        )
    return loft(np.asarray(sections), material, tint, caps=False)


def _rods(
    points: dict[str, tuple[float, float, float]], pairs: Sequence[tuple[str, str]], radius: float, tint: Color
) -> Mesh:
    return join([tube(points[a], points[b], radius, Material.CAR_PAINT, tint, sides=5) for a, b in pairs])


def bicycle(rng: np.random.Generator, *, rider: bool) -> Mesh:
    """A bicycle, 1.7 m long."""
    color = tuple(float(v) for v in rng.uniform(0.1, 0.9, 3))
    r, wheelbase = 0.34, float(rng.uniform(1.0, 1.1))
    rear, front = -wheelbase / 2, wheelbase / 2
    parts = [_hoop(x, r, 0.022, Material.RUBBER, (1.0, 1.0, 1.0)) for x in (rear, front)]
    spokes = [
        tube((x, 0, r), (x + 0.3 * np.cos(a), 0, r + 0.3 * np.sin(a)), 0.008, Material.METAL, (0.7, 0.7, 0.7), sides=3)
        for x in (rear, front)
        for a in np.arange(6) * np.pi / 3
    ]
    points = {
        "rear": (rear, 0.0, r),
        "front": (front, 0.0, r),
        "crank": (-0.08, 0.0, 0.3),
        "seat": (-0.2, 0.0, 0.82),
        "head": (0.34, 0.0, 0.86),
        "bar": (0.33, 0.0, 1.0),
    }
    pairs = [
        ("rear", "crank"),
        ("rear", "seat"),
        ("crank", "seat"),
        ("crank", "head"),
        ("seat", "head"),
        ("front", "bar"),
    ]
    parts += [*spokes, _rods(points, pairs, 0.022, color)]
    parts.append(tube((0.36, -0.29, 1.02), (0.36, 0.29, 1.02), 0.018, Material.PLASTIC, DARK, sides=5))
    parts.append(box((0.26, 0.15, 0.06), Material.PLASTIC, DARK, (-0.24, 0, 0.9)))
    if rider:
        parts.append(_rider(rng, seat=(-0.22, 0.93), hands=(0.36, 1.04), feet=(-0.05, 0.25), lean=0.35))
    return join(parts)


def motorcycle(rng: np.random.Generator, *, rider: bool) -> Mesh:
    """A motorcycle or scooter, about 2 m long."""
    color = tuple(float(v) for v in rng.uniform(0.15, 0.85) * rng.uniform(0.3, 1.1, 3))
    r, base = float(rng.uniform(0.28, 0.32)), float(rng.uniform(1.3, 1.45))
    rear, front = -base / 2, base / 2
    parts = [_hoop(x, r, 0.055, Material.RUBBER, (1.0, 1.0, 1.0)) for x in (rear, front)]
    parts += [tube((x, -0.05, r), (x, 0.05, r), 0.16, Material.METAL, (0.5, 0.5, 0.5), sides=8) for x in (rear, front)]
    parts.append(box((0.5, 0.28, 0.35), Material.METAL, (0.3, 0.3, 0.31), (0.0, 0, 0.42)))
    tank = [(-0.1, 0.12, 0.66), (0.05, 0.16, 0.72), (0.3, 0.16, 0.78), (0.42, 0.1, 0.74)]
    parts.append(loft([_slab(x, w, z, 0.24) for x, w, z in tank], Material.CAR_PAINT, color))
    tail = [(-0.85, 0.08, 0.78), (-0.6, 0.13, 0.74), (-0.1, 0.14, 0.68)]
    parts.append(loft([_slab(x, w, z, 0.12) for x, w, z in tail], Material.PLASTIC, DARK))
    parts.append(tube((front, 0.1, r), (0.42, 0.1, 0.92), 0.03, Material.METAL, (0.6, 0.6, 0.6), sides=5))
    parts.append(tube((front, -0.1, r), (0.42, -0.1, 0.92), 0.03, Material.METAL, (0.6, 0.6, 0.6), sides=5))
    parts.append(tube((0.36, -0.36, 1.02), (0.36, 0.36, 1.02), 0.025, Material.PLASTIC, DARK, sides=5))
    parts.append(box((0.1, 0.2, 0.18), Material.HEAD_LAMP, center=(0.55, 0, 0.84)))
    parts.append(box((0.06, 0.16, 0.08), Material.TAIL_LAMP, center=(-0.88, 0, 0.72)))
    parts.append(box((0.02, 0.2, 0.14), Material.PLATE, center=(-0.86, 0, 0.56)))
    if rider:
        parts.append(_rider(rng, seat=(-0.25, 0.82), hands=(0.36, 1.04), feet=(0.0, 0.32), lean=0.2, helmet=True))
    return join(parts)


def _slab(x: float, half: float, z: float, tall: float) -> list[tuple[float, float, float]]:
    low = z - tall / 2
    return [(x, -half, low), (x, half, low), (x, half, low + tall), (x, -half, low + tall)]


def _rider(
    rng: np.random.Generator,
    *,
    seat: tuple[float, float],
    hands: tuple[float, float],
    feet: tuple[float, float],
    lean: float,
    helmet: bool = False,
) -> Mesh:
    """A sitting person; positions are (x, z)."""
    look = draw_person(rng)
    sx, sz = seat
    shoulder = (sx + lean, sz + 0.5)
    parts = [tube((sx, 0, sz), (shoulder[0], 0, shoulder[1]), 0.15, Material.CLOTH, look.top, end_radius=0.18, sides=8)]
    for side in (-1, 1):
        knee = (sx + 0.38, side * 0.15, (sz + feet[1]) / 2 + 0.16)
        parts.append(tube((sx, side * 0.1, sz), knee, 0.085, Material.CLOTH, look.trousers, sides=6))
        parts.append(tube(knee, (feet[0], side * 0.14, feet[1]), 0.06, Material.CLOTH, look.trousers, sides=6))
        parts.append(box((0.24, 0.09, 0.08), Material.RUBBER, (1.2, 1.2, 1.2), (feet[0] + 0.05, side * 0.14, feet[1])))
        start = (shoulder[0], side * 0.19, shoulder[1] - 0.05)
        parts.append(tube(start, (hands[0], side * 0.27, hands[1]), 0.05, Material.CLOTH, look.top, sides=6))
    head = (shoulder[0] + 0.06, 0.0, shoulder[1] + 0.2)
    parts.append(lump(rng, (0.1, 0.085, 0.12), head, Material.SKIN, look.skin, roughness=0.03, rings=4, sides=8))
    crown = (head[0] - 0.02, 0.0, head[2] + 0.05)
    size = (0.14, 0.125, 0.13) if helmet else (0.115, 0.1, 0.09)
    material, tint = (Material.CAR_PAINT, look.top) if helmet else (Material.CLOTH, look.hair)
    parts.append(lump(rng, size, crown, material, tint, roughness=0.03, rings=4, sides=8))
    return join(parts)

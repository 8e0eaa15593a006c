"""Small things of the street: barriers, cones, bins, racks, street lights, signs, signals, walls, fences, shelters."""

from __future__ import annotations

import itertools

import numpy as np

from fusionocc_core.simulation.materials import Material
from fusionocc_core.simulation.mesh import Color, Mesh, box, join, loft, lump, quads, tube

GREY: Color = (0.62, 0.63, 0.64)


def barrier(rng: np.random.Generator, tint: Color) -> Mesh:
    """A water-filled plastic barrier, 1.9 m long; its axis lies along x."""
    length, height = 1.9, float(rng.uniform(0.9, 1.05))
    half = [(0.24, 0.0), (0.24, 0.12), (0.11, 0.42), (0.09, height)]
    outline = half + [(-y, z) for y, z in reversed(half)]
    sections = [[(x, y, z) for y, z in outline] for x in (-length / 2, length / 2)]
    slots = [box((0.3, 0.27, 0.12), Material.PLASTIC, (0.15, 0.15, 0.15), (x, 0, 0.16)) for x in (-0.5, 0.5)]
    strip = box((0.5, 0.22, 0.1), Material.SIGN, (0.95, 0.9, 0.8), (0, 0, 0.8 * height))
    return join([loft(sections, Material.PLASTIC, tint), *slots, strip])


def cone(rng: np.random.Generator) -> Mesh:
    """A traffic cone with two reflecting bands."""
    h = float(rng.uniform(0.7, 0.95))
    orange = tuple(np.array([0.98, 0.36, 0.08]) * rng.uniform(0.85, 1.05))
    base = box((0.4, 0.4, 0.05), Material.RUBBER, (1.6, 1.3, 1.2))
    parts = [base]
    levels = [0.05, 0.35 * h, 0.5 * h, 0.62 * h, 0.77 * h, h]
    for k, (low, high) in enumerate(itertools.pairwise(levels)):
        r0, r1 = (0.15 * (1 - 0.82 * z / h) for z in (low, high))
        material, tint = (Material.SIGN, (1.0, 1.0, 1.0)) if k in (1, 3) else (Material.PLASTIC, orange)
        parts.append(tube((0, 0, low), (0, 0, high), r0, material, tint, end_radius=r1, sides=10, caps=False))
    return join(parts)


def litter_bin(rng: np.random.Generator) -> Mesh:
    """A wheeled bin (pushable)."""
    tint = tuple(rng.uniform(0.15, 0.6) * np.array([rng.uniform(0.5, 1), 1.0, rng.uniform(0.4, 1)]))
    w, h = float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.9, 1.25))
    levels = ((0.42 * w, 0.1), (0.5 * w, h), (0.54 * w, h + 0.06))
    sections = [[(x, y, z) for x, y in ((-e, -e), (e, -e), (e, e), (-e, e))] for e, z in levels]
    wheels = [tube((-0.3 * w, y, 0.1), (-0.3 * w, y + 0.06, 0.1), 0.1, Material.RUBBER) for y in (-0.4 * w, 0.34 * w)]
    return join([loft(sections, Material.PLASTIC, tint), *wheels])


def debris(rng: np.random.Generator) -> Mesh:
    """A heap of boards, bags and rubble."""
    parts = [
        lump(rng, rng.uniform(0.25, 0.6, 3) * (1, 1, 0.7), (x, y, 0.18), Material.SOIL, roughness=0.35)
        for x, y in rng.uniform(-0.5, 0.5, (4, 2))
    ]
    for _ in range(3):
        board = box((float(rng.uniform(0.8, 1.5)), 0.16, 0.05), Material.BARK, (1.5, 1.4, 1.2))
        x, y, z, yaw = rng.uniform((-0.3, -0.3, 0.3, 0.0), (0.3, 0.3, 0.6, 3.0)).tolist()
        parts.append(board.placed(x, y, z, yaw))
    return join(parts)


def stall(rng: np.random.Generator) -> Mesh:
    """A kiosk, electric cabinet or news stand (static.other)."""
    size = (float(rng.uniform(0.6, 1.4)), float(rng.uniform(0.5, 1.0)), float(rng.uniform(1.1, 2.0)))
    tint = tuple(rng.uniform(0.25, 0.85, 3))
    body = box(size, Material.PLASTIC, tint)
    roof = box((size[0] + 0.2, size[1] + 0.2, 0.08), Material.METAL, GREY, (0, 0, size[2] + 0.04))
    face = box((0.02, size[1] * 0.8, size[2] * 0.6), Material.POSTER, center=(size[0] / 2 + 0.01, 0, size[2] * 0.55))
    return join([body, roof, face])


def bicycle_rack() -> Mesh:
    """Five hoops of pipe."""
    parts = []
    for x in np.linspace(-1.2, 1.2, 5):
        points = [(x, -0.35, 0), (x, -0.35, 0.7), (x, -0.2, 0.85), (x, 0.2, 0.85), (x, 0.35, 0.7), (x, 0.35, 0)]
        parts += [tube(a, b, 0.03, Material.METAL, GREY, sides=5) for a, b in itertools.pairwise(points)]
    return join(parts)


def street_light(rng: np.random.Generator) -> Mesh:
    """A mast with an arm towards +y."""
    h, reach = float(rng.uniform(7.0, 9.5)), float(rng.uniform(1.2, 2.4))
    tint = tuple(rng.uniform(0.45, 0.75) * np.ones(3))
    parts = [
        tube((0, 0, 0), (0, 0, h - 0.6), 0.11, Material.METAL, tint, end_radius=0.07, sides=8),
        tube((0, 0, h - 0.6), (0, 0.5 * reach, h - 0.1), 0.05, Material.METAL, tint, sides=6),
        tube((0, 0.5 * reach, h - 0.1), (0, reach, h), 0.045, Material.METAL, tint, sides=6),
        box((0.28, 0.7, 0.12), Material.METAL, tint, (0, reach + 0.2, h)),
        box((0.2, 0.5, 0.03), Material.HEAD_LAMP, center=(0, reach + 0.2, h - 0.07)),
        tube((0, 0, 0), (0, 0, 0.35), 0.18, Material.METAL, tint, end_radius=0.12, sides=8),
    ]
    return join(parts)


def sign(rng: np.random.Generator) -> Mesh:
    """A traffic sign on a pole, facing -x."""
    h = float(rng.uniform(2.2, 2.8))
    parts = [tube((0, 0, 0), (0, 0, h + 0.3), 0.035, Material.METAL, GREY, sides=6)]
    kind = rng.choice(["round", "square", "triangle"])
    sides = {"round": 14, "square": 4, "triangle": 3}[str(kind)]
    turn = {"round": 0.0, "square": np.pi / 4, "triangle": np.pi / 2}[str(kind)]
    angle = turn + 2 * np.pi * np.arange(sides) / sides
    rim = [(0.8, 0.1, 0.1), (0.12, 0.25, 0.65), (0.85, 0.1, 0.1), (0.95, 0.85, 0.2)][int(rng.integers(4))]
    for radius, x, tint in ((0.4, -0.05, rim), (0.31, -0.07, (0.95, 0.95, 0.95))):
        disc = [[(x0, radius * np.cos(a), h + radius * np.sin(a)) for a in angle] for x0 in (x, x + 0.02)]
        parts.append(loft(disc, Material.SIGN, tint))
    parts.append(box((0.03, 0.1, 0.3), Material.PLASTIC, (0.1, 0.1, 0.1), (-0.075, 0, h)))
    return join(parts)


def signal(rng: np.random.Generator, *, arm: float) -> Mesh:
    """A traffic light facing -x, with a second head on an arm towards +y where ``arm`` > 0."""
    height = float(rng.uniform(5.2, 5.8)) if arm else 3.2
    parts = [tube((0, 0, 0), (0, 0, height), 0.09, Material.METAL, GREY, end_radius=0.07)]
    heads = [(0.0, 2.9)]
    if arm:
        parts.append(tube((0, 0, height - 0.1), (0, arm, height), 0.06, Material.METAL, GREY, sides=6))
        heads.append((arm - 0.2, height - 0.2))
    for y, z in heads:
        parts.append(box((0.22, 0.34, 1.0), Material.PLASTIC, (0.12, 0.12, 0.12), (-0.16, y, z)))
        for k, (material, tint) in enumerate(
            (
                (Material.PLASTIC, (0.1, 0.35, 0.15)),
                (Material.PLASTIC, (0.4, 0.3, 0.08)),
                (Material.TAIL_LAMP, (1, 1, 1)),
            )
        ):
            parts.append(
                tube((-0.27, y, z - 0.3 + 0.3 * k), (-0.3, y, z - 0.3 + 0.3 * k), 0.11, material, tint, sides=10)
            )
    return join(parts)


def bollard(rng: np.random.Generator) -> Mesh:
    """A steel post."""
    h = float(rng.uniform(0.8, 1.1))
    ring = tube((0, 0, 0.8 * h), (0, 0, 0.88 * h), 0.078, Material.SIGN, (0.9, 0.8, 0.3), sides=10)
    return join([tube((0, 0, 0), (0, 0, h), 0.075, Material.METAL, GREY, sides=10), ring])


def hydrant() -> Mesh:
    """A red hydrant."""
    red = (0.75, 0.12, 0.08)
    return join(
        [
            tube((0, 0, 0), (0, 0, 0.6), 0.12, Material.PLASTIC, red, sides=10),
            tube((0, 0, 0.6), (0, 0, 0.75), 0.14, Material.PLASTIC, red, end_radius=0.05, sides=10),
            tube((0, -0.2, 0.45), (0, 0.2, 0.45), 0.06, Material.PLASTIC, red, sides=8),
        ]
    )


def wall(length: float, height: float, material: Material, tint: Color) -> Mesh:
    """A garden wall along x with a coping."""
    body = box((length, 0.2, height), material, tint)
    coping = box((length, 0.28, 0.08), Material.CONCRETE, center=(0, 0, height + 0.04))
    return join([body, coping])


def fence(length: float, height: float, tint: Color) -> Mesh:
    """Rails and pickets along x."""
    parts = [box((length, 0.05, 0.05), Material.METAL, tint, (0, 0, z)) for z in (0.25, height - 0.08)]
    count = max(2, int(length / 0.28))
    for x in np.linspace(-length / 2, length / 2, count):
        parts.append(box((0.035, 0.035, height), Material.METAL, tint, (float(x), 0, height / 2)))
    return join(parts)


def shelter(rng: np.random.Generator) -> Mesh:
    """A bus stop's roof, back wall and bench; open towards +y."""
    length = float(rng.uniform(3.5, 5.0))
    tint = tuple(rng.uniform(0.3, 0.7) * np.ones(3))
    parts = [box((length + 0.4, 1.7, 0.12), Material.METAL, tint, (0, 0.1, 2.55))]
    for x in (-length / 2, 0.0, length / 2):
        parts.append(tube((x, -0.6, 0), (x, -0.6, 2.5), 0.05, Material.METAL, tint, sides=6))
    parts.append(box((length, 0.03, 1.7), Material.GLASS, (0.6, 0.65, 0.66), (0, -0.6, 1.35)))
    parts.append(box((0.05, 1.1, 1.7), Material.POSTER, center=(length / 2, -0.1, 1.3)))
    parts.append(box((0.7 * length, 0.4, 0.06), Material.BARK, (1.5, 1.3, 1.1), (0, -0.3, 0.5)))
    for x in (-0.25 * length, 0.25 * length):
        parts.append(box((0.06, 0.3, 0.47), Material.METAL, tint, (x, -0.3, 0.235)))
    return join(parts)


def billboard(rng: np.random.Generator) -> Mesh:
    """A poster on two legs, facing -x and +x."""
    w, h = float(rng.uniform(1.2, 3.0)), float(rng.uniform(1.0, 1.8))
    low = float(rng.uniform(0.6, 2.2))
    legs = [tube((0, y, 0), (0, y, low), 0.06, Material.METAL, GREY, sides=6) for y in (-0.4 * w, 0.4 * w)]
    return join([box((0.12, w, h), Material.POSTER, center=(0, 0, low + h / 2)), *legs])


def stroller(rng: np.random.Generator) -> Mesh:
    """A pram."""
    tint = tuple(rng.uniform(0.1, 0.8, 3))
    parts = [
        box((0.7, 0.42, 0.3), Material.CLOTH, tint, (0, 0, 0.62)),
        lump(rng, (0.3, 0.22, 0.28), (0.15, 0, 0.85), Material.CLOTH, tint, roughness=0.03),
        tube((-0.3, 0, 0.7), (-0.65, 0, 1.02), 0.025, Material.METAL, GREY, sides=5),
    ]
    for x in (-0.3, 0.3):
        for y in (-0.22, 0.22):
            parts.append(tube((x, y - 0.02, 0.15), (x, y + 0.02, 0.15), 0.15, Material.RUBBER, sides=8))
    parts.append(quads([[(-0.3, -0.2, 0.15), (0.3, -0.2, 0.15), (0.3, 0.2, 0.5), (-0.3, 0.2, 0.5)]], Material.METAL))
    return join(parts)

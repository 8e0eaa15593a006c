"""Cars, buses, trucks, trailers and construction vehicles as lofted bodies with wheels, glass, lamps and plates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusionocc_core.simulation.materials import Material
from fusionocc_core.simulation.mesh import Color, Mesh, box, join, loft, quads, tube, wheel

DARK: Color = (0.16, 0.16, 0.17)
_PAINTS: tuple[Color, ...] = (
    (0.92, 0.92, 0.91),
    (0.78, 0.79, 0.8),
    (0.5, 0.51, 0.53),
    (0.22, 0.22, 0.24),
    (0.62, 0.12, 0.1),
    (0.16, 0.26, 0.5),
    (0.3, 0.42, 0.55),
    (0.78, 0.68, 0.3),
    (0.24, 0.38, 0.28),
    (0.55, 0.45, 0.36),
)


def paint_color(rng: np.random.Generator) -> Color:
    """A car's colour: mostly white, grey and black, each a little different."""
    weights = np.array([4, 4, 3, 3, 1.2, 1.2, 0.8, 0.6, 0.4, 0.6])
    base = np.array(_PAINTS[int(rng.choice(len(_PAINTS), p=weights / weights.sum()))])
    return tuple(float(v) for v in np.clip(base * rng.uniform(0.85, 1.1) + rng.normal(0, 0.015, 3), 0.05, 1.0))


def _ring(x: float, half: float, low: float, high: float, *, tuck: float = 0.06) -> list[tuple[float, float, float]]:
    """A section of a body across x: eight points with bevelled edges."""
    t = min(tuck, 0.3 * (high - low))
    return [
        (x, -half + t, low),
        (x, half - t, low),
        (x, half, low + t),
        (x, half, high - t),
        (x, half - t, high),
        (x, -half + t, high),
        (x, -half, high - t),
        (x, -half, low + t),
    ]


@dataclass(frozen=True, kw_only=True)
class CarShape:
    """The side view of a car, as fractions of its length (from the rear) and heights in metres."""

    length: float
    width: float
    height: float
    belt: float
    """Height of the windows' lower edge."""
    cabin: tuple[float, float, float, float]
    """Where the rear glass begins, the roof begins, the roof ends, the windscreen ends (fractions from the rear)."""
    nose: float
    """Height of the bonnet's front edge."""
    tail: float
    """Height of the boot's rear edge."""
    wheel_radius: float
    clearance: float


def draw_car_shape(rng: np.random.Generator) -> CarShape:
    """A hatchback, saloon, SUV, van or minivan with its own proportions."""
    kind = rng.choice(["saloon", "hatch", "suv", "van"], p=[0.35, 0.25, 0.25, 0.15])
    length, width, height = {
        "saloon": (4.7, 1.82, 1.45),
        "hatch": (4.1, 1.76, 1.5),
        "suv": (4.6, 1.9, 1.72),
        "van": (4.9, 1.9, 1.95),
    }[str(kind)]
    cabin = {
        "saloon": (0.13, 0.27, 0.55, 0.72),
        "hatch": (0.02, 0.12, 0.6, 0.78),
        "suv": (0.02, 0.08, 0.6, 0.76),
        "van": (0.01, 0.03, 0.72, 0.88),
    }[str(kind)]
    shift = float(rng.uniform(-0.02, 0.02))
    scale = rng.uniform(0.94, 1.06)
    height *= rng.uniform(0.97, 1.05)
    return CarShape(
        length=float(length * scale),
        width=float(width * rng.uniform(0.97, 1.04)),
        height=float(height),
        belt=float(height * rng.uniform(0.58, 0.63)),
        cabin=(cabin[0], cabin[1] + shift, cabin[2] + shift, cabin[3]),
        nose=float(height * rng.uniform(0.44, 0.52)),
        tail=float(height * (0.58 if kind == "saloon" else 0.6)),
        wheel_radius=float(rng.uniform(0.3, 0.36)),
        clearance=float(rng.uniform(0.17, 0.24)),
    )


def car(rng: np.random.Generator, color: Color | None = None) -> Mesh:
    """A car."""
    shape = draw_car_shape(rng)
    color = paint_color(rng) if color is None else color
    length, half = shape.length, shape.width / 2
    rear = -length / 2
    body = _car_body(shape, color)
    cabin = _car_cabin(shape, color)
    r = shape.wheel_radius
    axles = (rear + 0.19 * length, rear + 0.81 * length)
    parts = [body, cabin]
    for x in axles:
        for side in (-1, 1):
            parts.append(wheel(x, side * (half - 0.10), r, 0.21))
            arch = tube((x, side * (half - 0.22), r), (x, side * (half + 0.004), r), r + 0.06, Material.RUBBER, DARK)
            parts.append(arch)
    parts += lamps(length, half, low=0.55 * shape.belt, high=0.80 * shape.belt, plate=0.45)
    for side in (-1, 1):
        x = rear + shape.cabin[3] * length - 0.25
        parts.append(box((0.16, 0.16, 0.12), Material.CAR_PAINT, color, (x, side * (half + 0.06), shape.belt + 0.06)))
    return join(parts)


def _car_body(shape: CarShape, color: Color) -> Mesh:
    """From bumper to bumper below the windows."""
    length, half, low = shape.length, shape.width / 2, shape.clearance
    stations = (
        (0.0, 0.86, 0.38, shape.tail - 0.12),
        (0.025, 0.95, low + 0.05, shape.tail),
        (0.10, 1.0, low, shape.belt - 0.02),
        (0.5, 1.0, low, shape.belt),
        (shape.cabin[3], 0.99, low, shape.belt - 0.01),
        (0.93, 0.95, low, shape.nose + 0.06),
        (0.985, 0.88, low + 0.05, shape.nose),
        (1.0, 0.78, 0.38, shape.nose - 0.14),
    )
    rings = [_ring((f - 0.5) * length, half * w, a, b, tuck=0.09) for f, w, a, b in stations]
    body = loft(rings, Material.CAR_PAINT, color)
    sill = box((0.62 * length, 2 * half + 0.01, 0.12), Material.PLASTIC, DARK, (0, 0, low + 0.06))
    bumpers = [
        box((0.06, 1.62 * half, 0.16), Material.PLASTIC, DARK, (sign * (length / 2 - 0.03), 0, 0.42))
        for sign in (-1, 1)
    ]
    return join([body, sill, *bumpers])


def _car_cabin(shape: CarShape, color: Color) -> Mesh:
    """Glass all round, a painted roof and pillars."""
    length, half = shape.length, shape.width / 2
    f0, f1, f2, f3 = ((f - 0.5) * length for f in shape.cabin)
    low, high, inset = shape.belt - 0.02, shape.height, 0.80
    wide, narrow = half * 0.95, half * inset
    base = [(f0, -wide, low), (f3, -wide, low), (f3, wide, low), (f0, wide, low)]
    top_z = high - 0.07
    top = [(f1, -narrow, top_z), (f2, -narrow, top_z), (f2, narrow, top_z), (f1, narrow, top_z)]
    sides = [[base[k], base[(k + 1) % 4], top[(k + 1) % 4], top[k]] for k in range(4)]
    glass = quads(sides, Material.GLASS, (0.35, 0.4, 0.42))
    edge = 0.06
    rim, crown = (f1 - edge, f2 + edge, narrow, top_z), (f1 + 0.1, f2 - 0.15, narrow - 0.1, high)
    layers = [[(a, -y, z), (b, -y, z), (b, y, z), (a, y, z)] for a, b, y, z in (rim, crown)]
    roof = loft(layers, Material.CAR_PAINT, color)
    pillars = []
    middle = 0.5 * (f1 + f2) - 0.1
    for side in (-1, 1):
        for x0, x1, radius in ((f0, f1, 0.045), (f3, f2, 0.035), (middle, middle, 0.05)):
            pillars.append(
                tube((x0, side * wide, low), (x1, side * narrow, top_z), radius, Material.CAR_PAINT, color, sides=4)
            )
    return join([glass, roof, *pillars])


def lamps(length: float, half: float, *, low: float, high: float, plate: float) -> list[Mesh]:
    """Head and tail lamps and number plates on the flat ends."""
    parts = []
    for sign, material in ((1, Material.HEAD_LAMP), (-1, Material.TAIL_LAMP)):
        x = sign * (length / 2 - 0.05)
        for side in (-1, 1):
            parts.append(box((0.14, 0.34, high - low), material, center=(x, side * (half * 0.74), (low + high) / 2)))
        parts.append(box((0.03, 0.48, 0.12), Material.PLATE, center=(sign * (length / 2 + 0.01), 0, plate)))
    return parts


def bus(rng: np.random.Generator) -> Mesh:
    """A city bus; some have two decks."""
    length, width = float(rng.uniform(10.5, 12.5)), float(rng.uniform(2.5, 2.62))
    double = rng.random() < 0.3
    height = float(4.3 if double else rng.uniform(3.0, 3.3))
    base, second = paint_color(rng), tuple(rng.uniform(0.2, 0.9, 3))
    half = width / 2
    stations = [(-0.5, 0.94), (-0.49, 1.0), (0.485, 1.0), (0.5, 0.95)]
    shell = loft([_ring(f * length, half * w, 0.32, height, tuck=0.12) for f, w in stations], Material.CAR_PAINT, base)
    skirt = box((0.97 * length, width + 0.01, 0.5), Material.CAR_PAINT, second, (0, 0, 0.62))
    parts = [shell, skirt]
    decks = [(1.15, 2.25)] + ([(2.75, 3.8)] if double else [])
    for low, high in decks:
        middle, tall = (low + high) / 2, high - low
        parts.append(box((0.92 * length, width + 0.02, tall), Material.GLASS, (0.3, 0.34, 0.36), (0, 0, middle)))
        for f in np.linspace(-0.44, 0.44, 7):
            parts.append(box((0.09, width + 0.04, tall), Material.CAR_PAINT, base, (f * length, 0, middle)))
        for sign in (-1, 1):
            x = sign * length / 2
            parts.append(box((0.04, 0.86 * width, tall * 1.1), Material.GLASS, (0.3, 0.34, 0.36), (x, 0, middle)))
    parts.append(box((0.05, 1.4, 0.3), Material.POSTER, (0.9, 0.7, 0.3), (length / 2, 0, height - 0.32)))
    for f in (-0.27, 0.30):
        parts += [wheel(f * length, side * (half - 0.15), 0.48, 0.3, sides=16) for side in (-1, 1)]
    parts += lamps(length, half, low=0.65, high=0.9, plate=0.5)
    parts += [
        box((0.1, 0.14, 0.35), Material.PLASTIC, DARK, (length / 2 + 0.1, s * (half + 0.1), 2.1)) for s in (-1, 1)
    ]
    return join(parts)


def truck(rng: np.random.Generator) -> Mesh:
    """A cab with a box, an open bed with tarpaulin, or a tipper."""
    length, width = float(rng.uniform(6.2, 9.0)), float(rng.uniform(2.2, 2.5))
    half, color = width / 2, paint_color(rng)
    cab_length = 1.9
    front = length / 2
    parts = [
        _cab(front, half, color, cab_length),
        box((length - 0.6, 0.9, 0.25), Material.METAL, DARK, (-0.2, 0, 0.72)),
    ]
    cargo_length = length - cab_length - 0.25
    cx = -length / 2 + cargo_length / 2
    kind = rng.choice(["box", "bed", "tipper"])
    tint = tuple(np.clip(np.array(paint_color(rng)) * 1.1, 0, 1))
    if kind == "box":
        tall = float(rng.uniform(2.1, 2.6))
        parts.append(box((cargo_length, width, tall), Material.METAL, tint, (cx, 0, 0.9 + tall / 2)))
        parts += [
            box((0.05, width + 0.03, 0.08), Material.METAL, DARK, (cx + f * cargo_length, 0, 0.94)) for f in (-0.5, 0.5)
        ]
        parts.append(box((0.7 * cargo_length, width + 0.02, 0.7), Material.POSTER, center=(cx, 0, 1.0 + 0.55 * tall)))
    else:
        side_z = 0.9 if kind == "bed" else 1.25
        for y in (-half + 0.04, half - 0.04):
            parts.append(box((cargo_length, 0.08, side_z), Material.METAL, tint, (cx, y, 0.9 + side_z / 2)))
        for x in (cx - cargo_length / 2 + 0.04, cx + cargo_length / 2 - 0.04):
            parts.append(box((0.08, width, side_z), Material.METAL, tint, (x, 0, 0.9 + side_z / 2)))
        load = box(
            (0.9 * cargo_length, 0.88 * width, side_z * 0.8),
            Material.SOIL,
            (0.8, 0.8, 0.8),
            (cx, 0, 0.9 + 0.4 * side_z),
        )
        parts.append(load)
        parts.append(box((cargo_length, width, 0.1), Material.METAL, DARK, (cx, 0, 0.9)))
    for x in (front - 1.0, -front + 0.9, -front + 2.0):
        parts += [wheel(x, side * (half - 0.16), 0.44, 0.3) for side in (-1, 1)]
    parts.append(box((0.08, width * 0.9, 0.12), Material.PLATE, (0.9, 0.35, 0.2), (-front - 0.02, 0, 0.62)))
    parts += lamps(length, half, low=0.62, high=0.86, plate=0.5)
    return join(parts)


def _cab(front: float, half: float, color: Color, length: float) -> Mesh:
    """A forward-control cab whose front lies at x = ``front``."""
    top = 2.55
    rings = [
        _ring(front - length, half, 0.6, top, tuck=0.08),
        _ring(front - 0.35, half, 0.45, top, tuck=0.08),
        _ring(front - 0.12, half, 0.45, 1.55, tuck=0.08),
        _ring(front, half * 0.97, 0.5, 1.4, tuck=0.08),
    ]
    shell = loft(rings, Material.CAR_PAINT, color)
    y, glass = half * 0.88, (0.3, 0.34, 0.36)
    a, b = (front - 0.10, 1.5), (front - 0.33, top - 0.15)
    screen = quads(
        [[(a[0] + 0.02, -y, a[1]), (a[0] + 0.02, y, a[1]), (b[0] + 0.03, y, b[1]), (b[0] + 0.03, -y, b[1])]],
        Material.GLASS,
        glass,
    )
    side_glass = box((0.8, 2 * half + 0.02, 0.7), Material.GLASS, glass, (front - 0.85, 0, 1.95))
    grille = box((0.06, 1.1 * half, 0.28), Material.PLASTIC, DARK, (front - 0.01, 0, 1.12))
    bumper = box((0.16, 1.96 * half, 0.2), Material.PLASTIC, DARK, (front - 0.04, 0, 0.5))
    mirrors = [box((0.1, 0.14, 0.4), Material.PLASTIC, DARK, (front - 0.2, s * (half + 0.12), 1.9)) for s in (-1, 1)]
    return join([shell, screen, side_glass, grille, bumper, *mirrors])


def trailer(rng: np.random.Generator) -> Mesh:
    """A box or a platform on axles, with a drawbar."""
    length, width = float(rng.uniform(6.5, 12.0)), float(rng.uniform(2.3, 2.5))
    half = width / 2
    tint = tuple(np.clip(np.array(paint_color(rng)) * 1.05, 0, 1))
    parts = []
    if rng.random() < 0.7:
        tall = float(rng.uniform(2.2, 2.7))
        parts.append(box((length, width, tall), Material.METAL, tint, (0, 0, 1.05 + tall / 2)))
        for f in np.linspace(-0.48, 0.48, 9):
            rib = box((0.06, width + 0.05, tall - 0.1), Material.METAL, tint, (f * length, 0, 1.05 + tall / 2))
            parts.append(rib.tinted((0.85, 0.85, 0.85)))
    else:
        parts.append(box((length, width, 0.25), Material.METAL, (0.4, 0.38, 0.36), (0, 0, 1.1)))
        for f in (-0.3, 0.0, 0.3):
            load = box((0.22 * length, 0.8 * width, float(rng.uniform(0.6, 1.3))), Material.CONCRETE, tint)
            parts.append(load.placed(x=f * length, z=1.22))
    parts.append(box((length * 0.95, 0.8, 0.2), Material.METAL, DARK, (0, 0, 0.95)))
    for x in (-length / 2 + 0.9, -length / 2 + 2.1):
        parts += [wheel(x, side * (half - 0.16), 0.45, 0.3) for side in (-1, 1)]
    parts.append(tube((length / 2 - 1.2, 0, 0.95), (length / 2 - 1.2, 0, 0.0), 0.09, Material.METAL, (0.5, 0.5, 0.5)))
    parts += lamps(length, half, low=0.8, high=1.0, plate=0.7)
    return join(parts)


def construction_vehicle(rng: np.random.Generator) -> Mesh:
    """An excavator on tracks or a wheel loader."""
    yellow = tuple(np.array([0.95, 0.72, 0.12]) * rng.uniform(0.85, 1.05))
    if rng.random() < 0.5:
        return _loader(rng, yellow)
    parts = []
    for side in (-1, 1):
        y = side * float(rng.uniform(0.95, 1.1))
        profile = [(-1.7, 0.35), (-1.45, 0.0), (1.45, 0.0), (1.7, 0.35), (1.45, 0.75), (-1.45, 0.75)]
        parts.append(
            loft([[(x, y + dy, z) for x, z in profile] for dy in (-0.28, 0.28)], Material.RUBBER, (1.3, 1.3, 1.3))
        )
    parts.append(box((2.9, 2.2, 0.9), Material.CAR_PAINT, yellow, (-0.35, 0, 1.45)))
    parts.append(box((1.4, 2.3, 0.7), Material.CAR_PAINT, DARK, (-1.3, 0, 1.5)))
    parts.append(box((1.3, 0.95, 1.5), Material.GLASS, (0.3, 0.34, 0.36), (0.5, 0.6, 2.35)))
    parts.append(box((1.35, 1.0, 0.1), Material.CAR_PAINT, yellow, (0.5, 0.6, 3.12)))
    knee, wrist = (3.0, -0.2, float(rng.uniform(3.3, 4.0))), (4.6, -0.2, float(rng.uniform(1.3, 2.2)))
    parts.append(tube((0.9, -0.2, 1.7), knee, 0.24, Material.CAR_PAINT, yellow, sides=4))
    parts.append(tube(knee, wrist, 0.18, Material.CAR_PAINT, yellow, sides=4))
    parts.append(box((0.8, 1.0, 0.7), Material.METAL, (0.35, 0.34, 0.33), (wrist[0] - 0.2, -0.2, wrist[2] - 0.4)))
    return join(parts)


def _loader(rng: np.random.Generator, yellow: Color) -> Mesh:
    length = float(rng.uniform(5.2, 6.2))
    parts = [box((0.62 * length, 1.5, 0.9), Material.CAR_PAINT, yellow, (-0.6, 0, 1.3))]
    parts.append(box((1.3, 1.4, 1.3), Material.GLASS, (0.3, 0.34, 0.36), (-0.1, 0, 2.4)))
    parts.append(box((1.4, 1.5, 0.1), Material.CAR_PAINT, yellow, (-0.1, 0, 3.1)))
    for x in (-0.33 * length, 0.16 * length):
        parts += [wheel(x, side * 0.95, 0.68, 0.5, rim=yellow, sides=16) for side in (-1, 1)]
    for side in (-1, 1):
        parts.append(
            tube((0.4, side * 0.55, 1.5), (0.42 * length, side * 0.55, 0.6), 0.12, Material.CAR_PAINT, yellow, sides=4)
        )
    x = 0.42 * length
    scoop = [(x, 0.1), (x + 0.9, 0.12), (x + 0.5, 0.2), (x + 0.2, 0.5), (x + 0.25, 1.05), (x, 1.0)]
    parts.append(loft([[(px, y, pz) for px, pz in scoop] for y in (-1.15, 1.15)], Material.METAL, (0.45, 0.43, 0.4)))
    return join(parts)

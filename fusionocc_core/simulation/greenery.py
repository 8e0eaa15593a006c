"""Trees, palms, bushes and hedges: dark cores with a skin of leaf clusters, lit as round bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.simulation.materials import Material
from fusionocc_core.simulation.mesh import Color, Mesh, join, lump, quads, tube

CORE_SHADE = 0.62
"""The inside of a crown is darker than its leaves."""


@dataclass(frozen=True, kw_only=True)
class TreeStyle:
    """One species; a scene has a few."""

    crown: float
    """Radius, metres."""
    height: float
    """Of the crown's middle."""
    flat: float
    """Vertical over horizontal radius of the crown's parts."""
    leaf: float
    """Edge of a leaf cluster, metres."""
    tint: Color
    palm: bool


def draw_tree_style(rng: np.random.Generator) -> TreeStyle:
    """A species."""
    tone = rng.uniform(0.8, 1.2)
    return TreeStyle(
        crown=float(rng.uniform(1.6, 3.4)),
        height=float(rng.uniform(4.0, 7.0)),
        flat=float(rng.uniform(0.6, 1.1)),
        leaf=float(rng.uniform(0.28, 0.42)),
        tint=(float(tone * rng.uniform(0.85, 1.15)), float(tone), float(tone * rng.uniform(0.7, 1.1))),
        palm=bool(rng.random() < 0.15),
    )


def leaf_clusters(
    rng: np.random.Generator, centers: NDArray[np.floating], outward: NDArray[np.floating], size: float, tint: Color
) -> Mesh:
    """Crooked quadrilaterals at ``centers`` (Q, 3) that face roughly ``outward`` (Q, 3) and are lit as if they did."""
    count = len(centers)
    facing = outward + rng.normal(0, 0.6, (count, 3))
    facing /= np.maximum(np.linalg.norm(facing, axis=1, keepdims=True), 1e-6)
    e1 = np.cross(facing, rng.normal(size=(count, 3)))
    e1 /= np.maximum(np.linalg.norm(e1, axis=1, keepdims=True), 1e-6)
    e2 = np.cross(facing, e1)
    turn = np.array([0, 1, 2, 3]) * np.pi / 2
    radius = size * rng.uniform(0.55, 1.15, (count, 4))
    corners = (
        centers[:, None]
        + (radius * np.cos(turn))[..., None] * e1[:, None]
        + (radius * np.sin(turn))[..., None] * e2[:, None]
    )
    mesh = quads(corners, Material.LEAF, tint)
    shade = np.repeat(rng.uniform(0.8, 1.18, (count, 1)), 2, axis=0).astype(np.float32)
    soft = outward + np.array([0, 0, 0.25])
    soft /= np.maximum(np.linalg.norm(soft, axis=1, keepdims=True), 1e-6)
    return replace(mesh, tint=mesh.tint * shade, soft_normal=np.repeat(soft, 2, axis=0).astype(np.float32))


def crown(
    rng: np.random.Generator,
    center: Sequence[float] | NDArray[np.floating],
    radii: Sequence[float] | NDArray[np.floating],
    leaf: float,
    tint: Color,
    *,
    density: float,
) -> Mesh:
    """One round part of a crown: a core and ``density`` leaf clusters a square metre around it."""
    r = np.asarray(radii, float)
    core_tint = tuple(CORE_SHADE * t for t in tint)
    core = lump(rng, 0.8 * r, center, Material.LEAF, core_tint, roughness=0.22, rings=5, sides=8)
    area = 4 * np.pi * float((r[0] * r[1] + r[1] * r[2] + r[0] * r[2]) / 3)
    count = max(8, int(density * area))
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    centers = np.asarray(center) + direction * r * rng.uniform(0.78, 1.06, (count, 1))
    return join([core, leaf_clusters(rng, centers, direction, leaf, tint)])


def tree(rng: np.random.Generator, style: TreeStyle, *, detail: float = 1.0) -> tuple[Mesh, float]:
    """A tree and the radius of its crown. ``detail`` scales the number of leaf clusters (far trees need few)."""
    if style.palm:
        return palm(rng, style), 2.4
    grow = float(rng.uniform(0.75, 1.2))
    height, radius = style.height * grow, style.crown * grow
    lean = rng.normal(0, 0.15, 2)
    base = float(rng.uniform(0.12, 0.2)) * grow
    fork = (float(lean[0]) * 0.6, float(lean[1]) * 0.6, height * 0.55)
    parts = [tube((0, 0, -0.1), fork, base, Material.BARK, end_radius=0.7 * base, sides=7, caps=False)]
    blobs = int(rng.integers(4, 7)) if detail >= 0.5 else 2
    for k in range(blobs):
        angle = 2 * np.pi * (k + rng.uniform(-0.3, 0.3)) / max(blobs - 1, 1)
        out = 0.0 if k == 0 else radius * rng.uniform(0.45, 0.65)
        size = radius * (0.75 if k == 0 else rng.uniform(0.45, 0.62))
        center = np.array(
            [lean[0] + out * np.cos(angle), lean[1] + out * np.sin(angle), height + rng.normal(0, 0.12 * radius)]
        )
        if k == 0:
            center[2] += 0.25 * radius
        radii = (size, size, size * style.flat)
        leaf = style.leaf / max(detail, 0.4) ** 0.5
        parts.append(crown(rng, center, radii, leaf, style.tint, density=6.5 * detail))
        if detail >= 0.5:
            parts.append(
                tube(fork, center.tolist(), 0.5 * base, Material.BARK, end_radius=0.2 * base, sides=5, caps=False)
            )
    return join(parts), radius


def palm(rng: np.random.Generator, style: TreeStyle) -> Mesh:
    """A palm: a bare trunk and arching fronds."""
    h = style.height * float(rng.uniform(0.9, 1.3))
    top = np.array([rng.normal(0, 0.3), rng.normal(0, 0.3), h])
    parts = [tube((0, 0, -0.1), top.tolist(), 0.16, Material.BARK, end_radius=0.11, sides=8, caps=False)]
    for angle in np.linspace(0, 2 * np.pi, 13, endpoint=False) + rng.uniform(0, 1):
        out = np.array([np.cos(angle), np.sin(angle), 0])
        side = np.array([-np.sin(angle), np.cos(angle), 0])
        rise = rng.uniform(0.2, 1.0)
        t = np.linspace(0, 1, 5)
        spine = top + np.outer(2.2 * t, out) + np.outer(rise * np.sin(2.2 * t) - 1.4 * t**2.5, (0, 0, 1))
        half = 0.3 * np.sin(np.pi * (0.12 + 0.86 * t))[:, None]
        for sign in (-1, 1):
            edge = spine + sign * half * side - np.array([0, 0, 0.12]) * half
            blade = np.stack([spine[:-1], spine[1:], edge[1:], edge[:-1]], axis=1)
            parts.append(quads(blade, Material.LEAF, style.tint))
    return join(parts)


def bush(rng: np.random.Generator, tint: Color) -> Mesh:
    """A shrub, 0.5 to 1.4 m high."""
    parts = []
    for _ in range(int(rng.integers(2, 4))):
        r = rng.uniform(0.35, 0.75, 3) * (1, 1, 0.85)
        x, y = rng.uniform(-0.4, 0.4, 2)
        parts.append(crown(rng, (float(x), float(y), float(0.7 * r[2])), r.tolist(), 0.14, tint, density=16.0))
    return join(parts)


def hedge(rng: np.random.Generator, length: float, height: float, tint: Color) -> Mesh:
    """A clipped hedge along x."""
    width = float(rng.uniform(0.6, 0.9))
    core_tint = tuple(CORE_SHADE * t for t in tint)
    parts = []
    step = 0.9
    for x in np.arange(-length / 2 + step / 2, length / 2, step):
        size = (0.62 * step, 0.46 * width, 0.48 * height)
        center = (float(x), 0.0, 0.48 * height)
        parts.append(lump(rng, size, center, Material.LEAF, core_tint, roughness=0.12, rings=4, sides=8))
    area = length * (2 * height + width)
    count = int(9 * area)
    u = rng.random(count) * (2 * height + width)
    top = (u > height) & (u < height + width)
    x = rng.uniform(-length / 2, length / 2, count)
    y = np.where(top, u - height - width / 2, np.where(u <= height, -width / 2, width / 2))
    z = np.where(top, height, np.where(u <= height, u, u - height - width))
    outward = np.stack([np.zeros(count), np.where(top, 0, np.sign(y)), np.where(top, 1.0, 0.15)], axis=1)
    centers = np.stack([x, y * 0.95, z * 0.97], axis=1) + rng.normal(0, 0.04, (count, 3))
    parts.append(leaf_clusters(rng, centers, outward, 0.16, tint))
    return join(parts)


def tuft(rng: np.random.Generator, tint: Color) -> Mesh:
    """Blades of grass or weeds, 0.1 to 0.3 m high."""
    count = int(rng.integers(6, 14))
    centers = np.concatenate([rng.normal(0, 0.14, (count, 2)), rng.uniform(0.03, 0.14, (count, 1))], axis=1)
    outward = np.concatenate([rng.normal(0, 0.5, (count, 2)), np.full((count, 1), 0.5)], axis=1)
    return leaf_clusters(rng, centers, outward, 0.1, tint)

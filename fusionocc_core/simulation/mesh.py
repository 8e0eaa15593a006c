"""Triangle soups with the attributes that sensors need, and the primitives from which the street is built.

Legend: T triangles, Q quadrilaterals, S sections, P points of a section. Local axes of an object: x forward, y left, z
up, origin on the ground below its centre; metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fusionocc_core.simulation.materials import Material

Color = Sequence[float]
"""Reflectance of red, green and blue, 0..1, as perceived (gamma 2); multiplied with the material's texture."""
WHITE: Color = (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """T triangles."""

    corners: NDArray[np.float32]
    """(T, 3, 3), metres."""
    uv: NDArray[np.float32]
    """(T, 3, 2) texture coordinates of the corners, metres on the surface."""
    material: NDArray[np.uint8]
    """(T,) see materials.Material."""
    tint: NDArray[np.float32]
    """(T, 3) colour factor."""
    raw: NDArray[np.uint8]
    """(T,) nuScenes-lidarseg category index."""
    soft_normal: NDArray[np.float32]
    """(T, 3) normal for shading; zeros: the triangle's own."""

    @property
    def num(self) -> int:
        """T."""
        return len(self.corners)

    def labelled(self, raw: int) -> Mesh:
        """The same with one category."""
        return replace(self, raw=np.full(self.num, raw, np.uint8))

    def tinted(self, tint: Color) -> Mesh:
        """The same with its colours multiplied."""
        return replace(self, tint=self.tint * np.asarray(tint, np.float32))

    def placed(self, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0) -> Mesh:
        """Turned about z by ``yaw`` radians, then moved."""
        c, s = np.cos(yaw), np.sin(yaw)
        rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        return self.transformed(rotation, (x, y, z))

    def transformed(self, rotation: ArrayLike, translation: ArrayLike = (0.0, 0.0, 0.0)) -> Mesh:
        """Turned by a matrix (3, 3), then moved; texture coordinates stay with the surface."""
        r = np.asarray(rotation, np.float32)
        return replace(
            self,
            corners=self.corners @ r.T + np.asarray(translation, np.float32),
            soft_normal=self.soft_normal @ r.T,
        )

    def scaled(self, x: float, y: float, z: float) -> Mesh:
        """Stretched along the axes."""
        return replace(self, corners=self.corners * np.array([x, y, z], np.float32))

    def normals(self) -> NDArray[np.float32]:
        """(T, 3) unit normals of the triangles; zeros for degenerate ones."""
        a, b, c = self.corners[:, 0], self.corners[:, 1], self.corners[:, 2]
        n = cross(b - a, c - a)
        return (n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def areas(self) -> NDArray[np.float32]:
        """(T,) square metres."""
        a, b, c = self.corners[:, 0], self.corners[:, 1], self.corners[:, 2]
        return (0.5 * np.linalg.norm(cross(b - a, c - a), axis=1)).astype(np.float32)


def empty() -> Mesh:
    """No triangles."""
    return triangles(np.zeros((0, 3, 3)), Material.CONCRETE)


def join(parts: Sequence[Mesh]) -> Mesh:
    """All parts as one mesh."""
    if not parts:
        return empty()
    names = ("corners", "uv", "material", "tint", "raw", "soft_normal")
    corners, uv, material, tint, raw, soft = (np.concatenate([getattr(p, name) for p in parts]) for name in names)
    return Mesh(corners=corners, uv=uv, material=material, tint=tint, raw=raw, soft_normal=soft)


def cross(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """Cross products (T, 3); np.cross spends most of its time on its arguments' axes when T is small."""
    out = np.empty_like(a)
    out[:, 0] = a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1]
    out[:, 1] = a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2]
    out[:, 2] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return out


_PROJECTED = np.array([[1, 2], [0, 2], [0, 1]])


def planar_uv(corners: NDArray[np.floating]) -> NDArray[np.float32]:
    """Texture coordinates (T, 3, 2) by projection along the axis nearest to each triangle's normal."""
    normal = np.abs(cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    axis = normal.argmax(axis=1)
    rows, points = np.arange(len(corners))[:, None, None], np.arange(3)[None, :, None]
    return np.asarray(corners[rows, points, _PROJECTED[axis][:, None]], np.float32)


def triangles(corners: ArrayLike, material: Material, tint: Color = WHITE, uv: ArrayLike | None = None) -> Mesh:
    """A mesh from corners (T, 3, 3)."""
    xyz = np.asarray(corners, np.float32).reshape(-1, 3, 3)
    count = len(xyz)
    return Mesh(
        corners=xyz,
        uv=planar_uv(xyz) if uv is None else np.asarray(uv, np.float32).reshape(-1, 3, 2),
        material=np.full(count, int(material), np.uint8),
        tint=np.broadcast_to(np.asarray(tint, np.float32), (count, 3)).copy(),
        raw=np.zeros(count, np.uint8),
        soft_normal=np.zeros((count, 3), np.float32),
    )


def quads(corners: ArrayLike, material: Material, tint: Color = WHITE, uv: ArrayLike | None = None) -> Mesh:
    """Quadrilaterals from corners (Q, 4, 3) in order around each; two triangles each."""
    q = np.asarray(corners, np.float32).reshape(-1, 4, 3)
    order = np.array([[0, 1, 2], [0, 2, 3]])
    xyz = q[:, order].reshape(-1, 3, 3)
    st = None if uv is None else np.asarray(uv, np.float32).reshape(-1, 4, 2)[:, order].reshape(-1, 3, 2)
    return triangles(xyz, material, tint, st)


def box(size: Sequence[float], material: Material, tint: Color = WHITE, center: Sequence[float] | None = None) -> Mesh:
    """An axis-aligned box (length, width, height) that stands on the ground, or around ``center``."""
    length, width, height = size
    cx, cy, cz = (0.0, 0.0, height / 2) if center is None else center
    x, y, z = length / 2, width / 2, height / 2
    v = np.array([(sx * x, sy * y, sz * z) for sz in (-1, 1) for sy in (-1, 1) for sx in (-1, 1)])
    v += np.array((cx, cy, cz))
    faces = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    return quads(v[np.array(faces)], material, tint)


def loft(
    sections: ArrayLike, material: Material, tint: Color = WHITE, *, closed: bool = True, caps: bool = True
) -> Mesh:
    """A skin over S sections (S, P, 3), each a polygon of P points in the same order; capped by fans at both ends."""
    rings = np.asarray(sections, np.float32)
    following = np.roll(rings, -1, axis=1) if closed else rings[:, 1:]
    here = rings if closed else rings[:, :-1]
    q = np.stack([here[:-1], here[1:], following[1:], following[:-1]], axis=2)
    parts = [quads(q.reshape(-1, 4, 3), material, tint)]
    if caps and closed:
        for ring in (rings[0], rings[-1][::-1]):
            middle = np.broadcast_to(ring.mean(axis=0), ring.shape)
            parts.append(triangles(np.stack([middle, ring, np.roll(ring, -1, axis=0)], axis=1), material, tint))
    return join(parts)


@dataclass(frozen=True, kw_only=True)
class _TubeTemplate:
    """Corners (T, 3) of a tube: along the axis (0 or 1), away from it (0 or 1), around it (radians); how it is lit."""

    along: NDArray[np.float32]
    away: NDArray[np.float32]
    around: NDArray[np.float32]
    lit: NDArray[np.float32]
    """(T,) direction around the axis of the shading normal; NaN: the triangle's own."""


@lru_cache(maxsize=64)
def _tube_template(sides: int, caps: bool) -> _TubeTemplate:
    step = 2 * np.pi / sides
    along, away, around, lit = [], [], [], []
    for k in range(sides):
        a, b = k * step, (k + 1) * step
        along += [(0, 1, 1), (0, 1, 0)]
        away += [(1, 1, 1)] * 2
        around += [(a, a, b), (a, b, b)]
        lit += [(k + 0.5) * step] * 2
    for end in (0, 1) if caps else ():
        along += [(end,) * 3] * sides
        away += [(0, 1, 1)] * sides
        around += [(0.0, k * step, (k + 1) * step) for k in range(sides)]
        lit += [np.nan] * sides
    return _TubeTemplate(
        along=np.array(along, np.float32),
        away=np.array(away, np.float32),
        around=np.array(around, np.float32),
        lit=np.array(lit, np.float32),
    )


def tube(
    start: Sequence[float],
    end: Sequence[float],
    radius: float,
    material: Material,
    tint: Color = WHITE,
    *,
    end_radius: float | None = None,
    sides: int = 8,
    caps: bool = True,
) -> Mesh:
    """A cylinder or cone between two points."""
    a, b = np.asarray(start, np.float32), np.asarray(end, np.float32)
    length = max(float(np.linalg.norm(b - a)), 1e-6)
    axis = (b - a) / length
    flat = float(np.hypot(axis[0], axis[1]))
    e1 = np.array([-axis[1] / flat, axis[0] / flat, 0] if flat > 1e-3 else [1, 0, 0], np.float32)
    e2 = cross(axis[None], e1[None])[0]
    form = _tube_template(sides, caps)
    last = radius if end_radius is None else end_radius
    reach = form.away * (radius + form.along * (last - radius))
    x, y = (reach * np.cos(form.around))[..., None], (reach * np.sin(form.around))[..., None]
    corners = a + form.along[..., None] * (b - a) + x * e1 + y * e2
    uv = np.stack([form.around * radius, form.along * length], axis=-1)
    lit = np.nan_to_num(np.cos(form.lit))[:, None] * e1 + np.nan_to_num(np.sin(form.lit))[:, None] * e2
    return replace(triangles(corners, material, tint, uv), soft_normal=lit.astype(np.float32))


def wheel(x: float, y: float, radius: float, width: float, *, rim: Color = (0.6, 0.6, 0.62), sides: int = 14) -> Mesh:
    """A wheel with its axle along y, standing on the ground."""
    half = width / 2
    tyre = tube((x, y - half, radius), (x, y + half, radius), radius, Material.RUBBER, sides=sides)
    hub = tube((x, y - half - 0.01, radius), (x, y + half + 0.01, radius), 0.62 * radius, Material.METAL, rim, sides=10)
    return join([tyre, hub])


def lump(
    rng: np.random.Generator,
    radii: Sequence[float] | NDArray[np.floating],
    center: Sequence[float] | NDArray[np.floating],
    material: Material,
    tint: Color = WHITE,
    *,
    roughness: float = 0.15,
    rings: int = 7,
    sides: int = 10,
) -> Mesh:
    """An ellipsoid with random bumps (a fraction ``roughness`` of its radii)."""
    unit, which = _ball_template(rings, sides)
    grow = 1 + roughness * rng.uniform(-1, 1, (rings + 1, sides))
    grow[0], grow[-1] = grow[0].mean(), grow[-1].mean()
    vertices = (unit * grow.reshape(-1, 1) * np.asarray(radii)).astype(np.float32)
    corners = vertices[which]
    soft = corners.mean(axis=1)
    soft /= np.maximum(np.linalg.norm(soft, axis=1, keepdims=True), 1e-6)
    corners = corners + np.asarray(center, np.float32)
    return replace(triangles(corners, material, tint), soft_normal=soft)


@lru_cache(maxsize=64)
def _ball_template(rings: int, sides: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Vertices ((rings + 1) * sides, 3) of a unit ball and the corners (T, 3) of its triangles."""
    lat = np.pi * (np.arange(rings + 1) / rings - 0.5)
    lon = 2 * np.pi * np.arange(sides) / sides
    circle = np.stack([np.cos(lon), np.sin(lon), np.zeros(sides)], axis=-1)
    unit = np.cos(lat)[:, None, None] * circle + np.sin(lat)[:, None, None] * np.array([0.0, 0.0, 1.0])
    row, column = np.mgrid[0:rings, 0:sides]
    here, beside = row * sides + column, row * sides + (column + 1) % sides
    square = np.stack([here, here + sides, beside + sides, beside], axis=-1).reshape(-1, 4)
    return unit.reshape(-1, 3), square[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)


def sample_surface(
    mesh: Mesh, spacing: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Points (P, 3) on the surface and their triangles (P,): one a ``spacing`` squared, at least one a triangle."""
    wanted = mesh.areas() / spacing**2
    count = np.floor(wanted).astype(np.intp)
    count += rng.random(len(count)) < wanted - count
    which = np.repeat(np.arange(mesh.num), np.maximum(count, 1))
    a, b = rng.random((2, len(which)), dtype=np.float32)
    flip = a + b > 1
    a[flip], b[flip] = 1 - a[flip], 1 - b[flip]
    corners = mesh.corners[which]
    points = corners[:, 0] + a[:, None] * (corners[:, 1] - corners[:, 0]) + b[:, None] * (corners[:, 2] - corners[:, 0])
    return points, which

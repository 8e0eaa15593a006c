"""From ray hits to light: textures, sun and sky, shadow, gloss, fog. All float32, in chunks that stay in the cache.

Legend: N pixels of a chunk, T triangles, M materials.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.simulation.materials import MATERIALS, Material, column
from fusionocc_core.simulation.mesh import Mesh
from fusionocc_core.simulation.textures import LIT, TextureSet
from fusionocc_core.simulation.weather import SKY_SIZE, Weather

F32 = np.float32
_WRAP = np.array([0.35 if m is Material.LEAF else 0.12 if m is Material.SKIN else 0.0 for m in Material], F32)
"""How far light reaches around an edge (leaves let it through)."""
_GLOW = np.array([MATERIALS[m].glow for m in Material], F32)
_TEXELS = column("texels")
_WINDOW_LIGHT = np.array([0.95, 0.72, 0.38], F32)
_SKYLINE = 0.14
"""Mirrored directions lower than this (sine of the elevation) meet houses and trees instead of the sky."""


@dataclass(frozen=True, kw_only=True)
class ShadeTable:
    """What shading needs of every triangle, one contiguous array a quantity."""

    uv: NDArray[np.float32]
    """(6, T): u, v of the first corner, then the differences of the second and third to it; texture tiles."""
    tint: NDArray[np.float32]
    """(3, T)."""
    normal: NDArray[np.float32]
    """(3, T) unit."""
    soft: NDArray[np.bool_]
    """(T,) the normal is not the triangle's own and must not be turned towards the viewer."""
    material: NDArray[np.uint8]
    """(T,)."""

    @classmethod
    def of(cls, mesh: Mesh, textures: TextureSet) -> ShadeTable:
        """The table of a mesh."""
        scale = textures.per_meter[mesh.material][:, None, None]
        uv = mesh.uv * scale
        flat = np.concatenate([uv[:, 0], uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]], axis=1)
        soft = (mesh.soft_normal != 0).any(axis=1)
        normal = np.where(soft[:, None], mesh.soft_normal, mesh.normals())
        return cls(
            uv=np.ascontiguousarray(flat.T, F32),
            tint=np.ascontiguousarray(mesh.tint.T, F32),
            normal=np.ascontiguousarray(normal.T, F32),
            soft=soft,
            material=mesh.material,
        )

    def joined(self, other: ShadeTable) -> ShadeTable:
        """Both, this one first."""
        return ShadeTable(
            uv=np.concatenate([self.uv, other.uv], axis=1),
            tint=np.concatenate([self.tint, other.tint], axis=1),
            normal=np.concatenate([self.normal, other.normal], axis=1),
            soft=np.concatenate([self.soft, other.soft]),
            material=np.concatenate([self.material, other.material]),
        )


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """N pixels that met something."""

    triangle: NDArray[np.int32]
    distance: NDArray[np.float32]
    b1: NDArray[np.float32]
    b2: NDArray[np.float32]
    direction: NDArray[np.float32]
    """(N, 3) unit, from the camera."""
    sun_seen: NDArray[np.float32]
    """(N,) 0 in the shadow, 1 in the sun."""
    openness: NDArray[np.float32]
    """(N,) share of the sky that nearby things leave open."""
    jitter: NDArray[np.float32]
    """(2, N) in texels: random texture lookup in place of interpolation."""


def facing_normals(
    table: ShadeTable, triangle: NDArray[np.int32], direction: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """x, y, z of the normals, turned towards the viewer."""
    n = [np.take(component, triangle) for component in table.normal]
    away = n[0] * direction[:, 0] + n[1] * direction[:, 1] + n[2] * direction[:, 2] > 0
    sign = np.where(away & ~np.take(table.soft, triangle), F32(-1), F32(1))
    return [component * sign for component in n]


def look_up(
    textures: TextureSet, table: ShadeTable, chunk: Chunk, pixel_angle: float, cosine: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Texels (N, 4) from the mip level that fits a pixel's footprint."""
    k, b1, b2 = chunk.triangle, chunk.b1, chunk.b2
    material = np.take(table.material, k)
    uv = table.uv
    u = np.take(uv[0], k) + b1 * np.take(uv[2], k) + b2 * np.take(uv[4], k)
    v = np.take(uv[1], k) + b1 * np.take(uv[3], k) + b2 * np.take(uv[5], k)
    density = np.take((_TEXELS * textures.per_meter).astype(F32), material)
    footprint = chunk.distance * F32(pixel_angle) * density / np.sqrt(np.maximum(cosine, F32(0.05)))
    finest = np.take(textures.log2_size, material)
    level = np.clip(np.log2(np.maximum(footprint, F32(1e-6))).astype(np.int32), 0, finest)
    size = np.left_shift(1, finest - level)
    size_f = size.astype(F32)
    iu = np.floor(u * size_f + chunk.jitter[0]).astype(np.int32) & (size - 1)
    iv = np.floor(v * size_f + chunk.jitter[1]).astype(np.int32) & (size - 1)
    index = textures.offset[material, level] + iv * size + iu
    return np.take(textures.texels, index).view(np.uint8).reshape(-1, 4)


def shade(
    chunk: Chunk, table: ShadeTable, textures: TextureSet, weather: Weather, pixel_angle: float
) -> NDArray[np.float32]:
    """Linear light (3, N) that reaches the camera."""
    d = chunk.direction
    material = np.take(table.material, chunk.triangle)
    nx, ny, nz = facing_normals(table, chunk.triangle, d)
    cosine = np.abs(nx * d[:, 0] + ny * d[:, 1] + nz * d[:, 2])
    texel = look_up(textures, table, chunk, pixel_angle, cosine)
    sun = np.asarray(weather.sun, F32)
    toward = nx * sun[0] + ny * sun[1] + nz * sun[2]
    wrap = np.take(_WRAP, material)
    lambert = np.maximum(toward * (1 - wrap) + wrap, 0) * chunk.sun_seen
    upward = (F32(0.5) + F32(0.5) * nz) * chunk.openness
    downward = (F32(0.5) - F32(0.5) * nz) * chunk.openness
    light = np.empty((3, len(material)), F32)
    for c in range(3):
        albedo = texel[:, c] * np.take(table.tint[c], chunk.triangle) * F32(1 / 255)
        light[c] = lambert * F32(weather.sun_color[c])
        light[c] += upward * F32(weather.ambient_up[c])
        light[c] += downward * F32(weather.ambient_down[c])
        light[c] *= albedo * albedo
    _add_gloss(light, texel[:, 3], chunk, (nx, ny, nz), cosine, weather)
    if weather.night > 0:
        _add_lamps(light, texel[:, 3], material, weather.night)
    haze = 1 - np.exp(F32(-weather.fog) * chunk.distance)
    for c in range(3):
        light[c] += haze * (F32(weather.fog_color[c]) - light[c])
    return light


def _add_gloss(
    light: NDArray[np.float32],
    alpha: NDArray[np.uint8],
    chunk: Chunk,
    normal: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    cosine: NDArray[np.float32],
    weather: Weather,
) -> None:
    """Mirror the sky and the sun in glass, paint and metal."""
    where = np.flatnonzero(alpha > 8)
    if len(where) == 0:
        return
    d = chunk.direction[where].T
    n = [component[where] for component in normal]
    twice = 2 * (d[0] * n[0] + d[1] * n[1] + d[2] * n[2])
    mirrored = np.stack([d[c] - twice * n[c] for c in range(3)])
    base = np.minimum(alpha[where], LIT).astype(F32) / 255 * F32(0.8)
    share = base + (1 - base) * F32(0.7) * _power(1 - cosine[where], 4)
    seen = sky_light(mirrored.T, weather)
    houses = np.asarray(weather.ambient_down, F32)[:, None] * 0.8
    blend = np.clip((mirrored[2] - F32(_SKYLINE)) * 8, 0, 1)
    seen = houses + (seen - houses) * blend
    sun = np.asarray(weather.sun, F32)
    towards = mirrored[0] * sun[0] + mirrored[1] * sun[1] + mirrored[2] * sun[2]
    spark = _power(np.maximum(towards, 0), 128) * chunk.sun_seen[where] * 6
    share *= F32(0.35) + F32(0.65) * chunk.openness[where]
    for c in range(3):
        light[c, where] = light[c, where] * (1 - share) + share * (seen[c] + spark * F32(weather.sun_color[c]))


def _power(x: NDArray[np.float32], exponent: int) -> NDArray[np.float32]:
    """To a power of two, by squaring (NumPy's own power is many times slower)."""
    for _ in range(exponent.bit_length() - 1):
        x = x * x
    return x


def _add_lamps(light: NDArray[np.float32], alpha: NDArray[np.uint8], material: NDArray[np.uint8], night: float) -> None:
    lit = alpha >= LIT
    glow = np.take(_GLOW, material, axis=0)
    for c in range(3):
        light[c] += F32(night) * (glow[:, c] + lit * (F32(0.5) * _WINDOW_LIGHT[c]))


def sky_light(direction: NDArray[np.float32], weather: Weather) -> NDArray[np.float32]:
    """Light (3, N) of the sky along N unit directions; below the horizon that of the horizon."""
    rows, columns = SKY_SIZE
    elevation = np.arcsin(np.clip(direction[:, 2], 0, 1))
    azimuth = np.arctan2(direction[:, 1], direction[:, 0])
    row = np.minimum((elevation * F32(rows / (np.pi / 2))).astype(np.int32), rows - 1)
    column_ = np.minimum(((azimuth + F32(np.pi)) * F32(columns / (2 * np.pi))).astype(np.int32), columns - 1)
    return np.ascontiguousarray(weather.sky.reshape(-1, 3)[row * columns + column_].T)

"""Pictures: one ray a pixel, shaded, with the depth, category and instance behind every pixel.

A pixel (u, v) looks along the continuous image point (u + 0.5, v + 0.5), so that the floor of a projected point is the
pixel that shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.simulation.rigs import CameraMount
from fusionocc_core.simulation.shading import Chunk, ShadeTable, facing_normals, shade, sky_light
from fusionocc_core.simulation.street import NO_INSTANCE, Snapshot
from fusionocc_core.simulation.tracing import FAR, Hits
from fusionocc_core.simulation.visibility import pixel_rays, trace_pixels

F32 = np.float32
SKY = 255
"""Category of pixels that show the sky."""
_CHUNK = 1 << 16
_NOISE_EDGE = 512
_AO_REACH = 2.2
"""Things nearer than this darken what lies beside and below them, metres."""
_FAINT_SUN = 0.16
"""A sun weaker than this casts no visible shadow."""


@dataclass(frozen=True, kw_only=True)
class CameraView:
    """What one camera saw."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    depth: NDArray[np.float32]
    """(H, W) along the optical axis, metres; FAR in the sky."""
    category: NDArray[np.uint8]
    """(H, W) lidarseg index; SKY in the sky."""
    instance: NDArray[np.int16]
    """(H, W) index of a thing; NO_INSTANCE elsewhere."""


@lru_cache(maxsize=1)
def _noise_tile() -> NDArray[np.float32]:
    """(3, E, E): two uniform fields in -0.5..0.5 and a normal one (grey levels); random, the same in every process."""
    rng = np.random.default_rng(20240229)
    tile = np.empty((3, _NOISE_EDGE, _NOISE_EDGE), F32)
    tile[:2] = rng.uniform(-0.5, 0.5, (2, _NOISE_EDGE, _NOISE_EDGE))
    tile[2] = np.round(2.2 * rng.standard_normal((_NOISE_EDGE, _NOISE_EDGE)))
    return tile


def _noise(layer: int, height: int, width: int, shift: tuple[int, int]) -> NDArray[np.float32]:
    """A field (height, width), the tile repeated and shifted."""
    rows = (np.arange(height) + shift[0]) % _NOISE_EDGE
    columns = (np.arange(width) + shift[1]) % _NOISE_EDGE
    return _noise_tile()[layer][rows][:, columns]


def take_picture(
    snapshot: Snapshot, mount: CameraMount, cam2street: NDArray[np.float64], rng: np.random.Generator
) -> CameraView:
    """Expose one camera at a moment."""
    h, w = mount.image_size
    rays = pixel_rays(mount)
    direction = rays @ cam2street[:3, :3].T.astype(F32)
    eye = cam2street[:3, 3].astype(F32)
    hits = trace_pixels(snapshot, mount, cam2street, direction)
    table = snapshot.shade_table
    sun_seen = _sun_map(snapshot, table, hits, direction, eye, (h, w))
    openness = _open_map(snapshot, table, hits, direction, eye, (h, w), rng)
    shift = (int(rng.integers(_NOISE_EDGE)), int(rng.integers(_NOISE_EDGE)))
    jitter = np.stack([_noise(k, h, w, shift).reshape(-1) for k in range(2)])
    image = _expose(snapshot, table, hits, direction, sun_seen, openness, jitter, 1.0 / mount.intrinsics[0])
    image = _finish(image.reshape(h, w, 3), _noise(2, h, w, shift).astype(np.int8))
    seen = hits.triangle >= 0
    category = np.where(seen, np.take(snapshot.mesh.raw, hits.triangle), SKY).astype(np.uint8)
    instance = np.where(seen, np.take(snapshot.instance, hits.triangle), NO_INSTANCE).astype(np.int16)
    depth = np.where(seen, hits.distance * rays[:, 2], FAR).astype(F32)
    return CameraView(
        image=image, depth=depth.reshape(h, w), category=category.reshape(h, w), instance=instance.reshape(h, w)
    )


def _expose(
    snapshot: Snapshot,
    table: ShadeTable,
    hits: Hits,
    direction: NDArray[np.float32],
    sun_seen: NDArray[np.float32],
    openness: NDArray[np.float32],
    jitter: NDArray[np.float32],
    pixel_angle: float,
) -> NDArray[np.uint8]:
    """RGB (H * W, 3) before softness and noise."""
    weather, textures = snapshot.street.weather, snapshot.street.textures
    image = np.empty((len(direction), 3), np.uint8)
    for start in range(0, len(direction), _CHUNK):
        part = slice(start, start + _CHUNK)
        triangle = hits.triangle[part]
        here = np.flatnonzero(triangle >= 0)
        out = np.empty((3, len(triangle)), F32)
        if len(here) < len(triangle):
            sky = np.flatnonzero(triangle < 0)
            out[:, sky] = sky_light(direction[part][sky], weather)
        if len(here):
            chunk = Chunk(
                triangle=triangle[here],
                distance=hits.distance[part][here],
                b1=hits.b1[part][here],
                b2=hits.b2[part][here],
                direction=direction[part][here],
                sun_seen=sun_seen[part][here],
                openness=openness[part][here],
                jitter=jitter[:, part][:, here],
            )
            out[:, here] = shade(chunk, table, textures, weather, pixel_angle)
        _develop(out, weather.exposure, image[part])
    return image


def _surface_points(
    table: ShadeTable, hits: Hits, direction: NDArray[np.float32], eye: NDArray[np.float32], pick: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Positions (P, 3) just above the surface of some pixels, and the normals (P, 3) there."""
    distance = hits.distance[pick]
    normal = np.stack(facing_normals(table, hits.triangle[pick], direction[pick]), axis=1)
    lift = (F32(0.01) + F32(0.0006) * distance)[:, None]
    return eye + distance[:, None] * direction[pick] + lift * normal, normal


def _grid(size: tuple[int, int], stride: int) -> NDArray[np.intp]:
    """Flat indices (h, w) of every stride-th pixel."""
    rows, columns = np.arange(0, size[0], stride), np.arange(0, size[1], stride)
    return rows[:, None] * size[1] + columns[None]


def _sun_map(
    snapshot: Snapshot,
    table: ShadeTable,
    hits: Hits,
    direction: NDArray[np.float32],
    eye: NDArray[np.float32],
    size: tuple[int, int],
) -> NDArray[np.float32]:
    """How much of the sun each pixel (H * W,) sees; traced at half resolution in large pictures."""
    weather = snapshot.street.weather
    if max(weather.sun_color) < _FAINT_SUN:
        return np.ones(size[0] * size[1], F32)
    grid = _grid(size, 2 if size[1] >= 640 else 1)
    small = np.ones(grid.shape, F32)
    flat = grid.reshape(-1)
    hit = np.flatnonzero(hits.triangle[flat] >= 0)
    points, normal = _surface_points(table, hits, direction, eye, flat[hit])
    sun = np.asarray(weather.sun, F32)
    lit = normal @ sun > -0.35
    hit, points = hit[lit], points[lit]
    blocked = snapshot.blocked(points, np.broadcast_to(sun, points.shape))
    small.reshape(-1)[hit[blocked]] = 0.0
    return np.asarray(cv2.resize(small, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), F32).reshape(-1)


def _open_map(
    snapshot: Snapshot,
    table: ShadeTable,
    hits: Hits,
    direction: NDArray[np.float32],
    eye: NDArray[np.float32],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """How much of the sky each pixel (H * W,) sees past things nearby: one random ray, smoothed over neighbours."""
    stride = 4 if size[1] >= 640 else 1
    grid = _grid(size, stride)
    small = np.ones(grid.shape, F32)
    flat = grid.reshape(-1)
    hit = np.flatnonzero((hits.triangle[flat] >= 0) & (hits.distance[flat] < 60))
    points, normal = _surface_points(table, hits, direction, eye, flat[hit])
    spread = rng.standard_normal(points.shape, dtype=F32) * F32(0.45)
    up = normal * F32(0.7) + np.array([0, 0, 0.7], F32) + spread
    up /= np.maximum(np.linalg.norm(up, axis=1, keepdims=True), F32(1e-6))
    blocked = snapshot.blocked(points, up.astype(F32), reach=_AO_REACH)
    small.reshape(-1)[hit[blocked]] = 0.0
    soft = cv2.blur(small, (7, 7))
    wide = cv2.resize(soft, (size[1], size[0]), interpolation=cv2.INTER_LINEAR).reshape(-1)
    return F32(0.25) + F32(0.75) * wide


def _develop(light: NDArray[np.float32], exposure: float, out: NDArray[np.uint8]) -> None:
    """Tone curve: linear light (3, N) to RGB (N, 3) uint8."""
    for c in range(3):
        x = light[c] * F32(exposure)
        np.sqrt(x / (F32(1.0) + F32(0.22) * x), out=x)
        x *= F32(255)
        np.clip(x, 0, 255, out=x)
        out[:, c] = x


def _finish(image: NDArray[np.uint8], grain: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Lens softness and sensor noise."""
    if image.shape[1] >= 320:
        image = np.asarray(cv2.GaussianBlur(image, (3, 3), 0.6), np.uint8)
    noisy = np.add(image, grain[..., None], dtype=np.int16)
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)

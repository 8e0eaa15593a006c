"""What every pixel of a camera shows: as few rays as the picture's content needs.

Half of the rows and columns are traced. Where two of those pixels show the same triangle, the one between them does
too (a triangle is convex; only something thinner than two pixels in front of it can be missed), and its place on the
triangle follows exactly, as 1/z and barycentric coordinates over z are linear in the picture. All other pixels are
traced.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.simulation.rigs import CameraMount
from fusionocc_core.simulation.street import Snapshot
from fusionocc_core.simulation.tracing import FAR, Hits

F32 = np.float32
_SPARSE_FROM = 640
"""Narrower pictures are traced pixel by pixel."""


@lru_cache(maxsize=16)
def pixel_rays(mount: CameraMount) -> NDArray[np.float32]:
    """Unit directions (H * W, 3) in the camera's axes, row by row."""
    h, w = mount.image_size
    fx, fy, cx, cy = mount.intrinsics
    x = ((np.arange(w) + 0.5 - cx) / fx).astype(F32)
    y = ((np.arange(h) + 0.5 - cy) / fy).astype(F32)
    rays = np.empty((h, w, 3), F32)
    rays[..., 0], rays[..., 1], rays[..., 2] = x[None, :], y[:, None], 1.0
    rays /= np.linalg.norm(rays, axis=2, keepdims=True)
    return rays.reshape(-1, 3)


def trace_pixels(
    snapshot: Snapshot, mount: CameraMount, cam2street: NDArray[np.float64], direction: NDArray[np.float32]
) -> Hits:
    """The surface behind each of H * W pixels, whose ``direction`` (H * W, 3) is given in the street frame."""
    h, w = mount.image_size
    eye = cam2street[:3, 3].astype(F32)
    near_moving = _moving_pixels(snapshot, mount, cam2street).reshape(-1)
    if w < _SPARSE_FROM:
        return snapshot.first_hits(np.broadcast_to(eye, direction.shape), direction, near_moving)
    out = Hits(
        distance=np.empty(h * w, F32),
        triangle=np.full(h * w, -2, np.int32),
        b1=np.empty(h * w, F32),
        b2=np.empty(h * w, F32),
    )
    coarse = (np.arange(0, h, 2)[:, None] * w + np.arange(0, w, 2)[None]).reshape(-1)
    _trace_into(out, snapshot, coarse, direction, eye, near_moving)
    _fill_between(out, pixel_rays(mount)[:, 2], (h, w))
    _trace_into(out, snapshot, np.flatnonzero(out.triangle == -2), direction, eye, near_moving)
    return out


def _trace_into(
    out: Hits,
    snapshot: Snapshot,
    pixels: NDArray[np.intp],
    direction: NDArray[np.float32],
    eye: NDArray[np.float32],
    near_moving: NDArray[np.bool_],
) -> None:
    rays = direction[pixels]
    hits = snapshot.first_hits(np.broadcast_to(eye, rays.shape), rays, near_moving[pixels])
    out.distance[pixels], out.triangle[pixels] = hits.distance, hits.triangle
    out.b1[pixels], out.b2[pixels] = hits.b1, hits.b2


def _fill_between(out: Hits, forward: NDArray[np.float32], size: tuple[int, int]) -> None:
    """Set the pixels between two traced ones with the same triangle: beside, below, and in the middle of four."""
    h, w = size
    triangle = out.triangle.reshape(h, w)
    distance, b1, b2, along = (array.reshape(h, w) for array in (out.distance, out.b1, out.b2, forward))
    known = triangle[::2, ::2]
    nearness = 1 / (distance[::2, ::2] * along[::2, ::2])
    weighted = (nearness, b1[::2, ::2] * nearness, b2[::2, ::2] * nearness)
    for rows, columns in ((0, 1), (1, 0), (1, 1)):
        first = (slice(0, known.shape[0] - rows), slice(0, known.shape[1] - columns))
        second = (slice(rows, None), slice(columns, None))
        target = (slice(rows, 2 * known.shape[0] - 1, 2), slice(columns, 2 * known.shape[1] - 1, 2))
        same = known[first] == known[second]
        mean, mean_b1, mean_b2 = (0.5 * (q[first] + q[second]) for q in weighted)
        np.copyto(triangle[target], known[first], where=same)
        np.copyto(distance[target], np.minimum(1 / (mean * along[target]), FAR), where=same)
        np.copyto(b1[target], mean_b1 / mean, where=same)
        np.copyto(b2[target], mean_b2 / mean, where=same)
    distance[triangle == -1] = FAR


def _moving_pixels(snapshot: Snapshot, mount: CameraMount, cam2street: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Pixels (H, W) within the outlines of the balls around moving things: only there can rays meet one."""
    h, w = mount.image_size
    fx, fy, cx, cy = mount.intrinsics
    mask = np.zeros((h, w), bool)
    for center, radius in snapshot.moving_balls:
        x, y, z = cam2street[:3, :3].T @ (center - cam2street[:3, 3])
        (u0, u1), (v0, v1) = _shadow(x, z, radius, fx, cx, w), _shadow(y, z, radius, fy, cy, h)
        mask[v0:v1, u0:u1] = True
    return mask


def _shadow(side: float, ahead: float, radius: float, focal: float, centre: float, edge: int) -> tuple[int, int]:
    """First and last + 1 pixel, along one axis, of a ball seen from the origin."""
    far = float(np.hypot(side, ahead))
    if far <= radius * 1.02:
        return 0, edge
    middle, half = np.arctan2(side, ahead), np.arcsin(radius / far)
    low, high = middle - half, middle + half
    limit = np.pi / 2 - 0.02
    if low > limit or high < -limit:
        return 0, 0
    first, last = (focal * np.tan(np.clip(angle, -limit, limit)) + centre for angle in (low, high))
    return int(np.clip(np.floor(first) - 1, 0, edge)), int(np.clip(np.ceil(last) + 2, 0, edge))

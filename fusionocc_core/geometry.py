"""Rigid transforms and projection, in NumPy.

Naming: ``a2b`` is a 4x4 matrix on column vectors that maps points from frame a to frame b, ``p_b = a2b @ p_a``.
Chains cancel: ``cam2global = ego2global @ cam2ego``. Pose algebra is float64; only finished relative transforms become
float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating]

RIGID_TOLERANCE = 1e-3
"""How far R @ R.T may be from the identity before a matrix is refused as not rigid (files carry 4 to 6 digits)."""
LAST_ROW_TOLERANCE = 1e-5
"""How far its last row may be from 0 0 0 1."""


def rotation_from_quaternion_wxyz(quaternion_wxyz: ArrayLike) -> Array:
    """Rotation matrix (3, 3) float64 from a quaternion in nuScenes order (w, x, y, z); it is normalised first.

    Raises:
        ValueError: not four finite numbers, or of length zero.
    """
    q = np.asarray(quaternion_wxyz, dtype=np.float64)
    if q.shape != (4,) or not np.isfinite(q).all():
        raise ValueError(f"quaternion_wxyz: expected 4 finite numbers (w, x, y, z), got {quaternion_wxyz!r}")
    norm = np.linalg.norm(q)
    if norm < 1e-9:
        raise ValueError(
            f"quaternion_wxyz: length is zero ({quaternion_wxyz!r}); the rotation is missing in the source"
        )
    w, x, y, z = q / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_wxyz_from_rotation(rotation: ArrayLike) -> Array:
    """Unit quaternion (w, x, y, z) float64 with w >= 0 from a rotation matrix (3, 3).

    Shepperd's method: the largest of the four squared components comes first, so that the division is always safe.
    """
    r = np.asarray(rotation, dtype=np.float64)
    if r.shape != (3, 3):
        raise ValueError(f"rotation: expected shape (3, 3), got {r.shape}")
    squared = np.array([r.trace(), r[0, 0], r[1, 1], r[2, 2]])
    k = int(squared.argmax())
    if k == 0:
        q = np.array([1 + r.trace(), r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
    else:
        i, j, m = (k - 1) % 3, k % 3, (k + 1) % 3
        q = np.zeros(4)
        q[0] = r[m, j] - r[j, m]
        q[1 + i] = 1 + r[i, i] - r[j, j] - r[m, m]
        q[1 + j] = r[j, i] + r[i, j]
        q[1 + m] = r[m, i] + r[i, m]
    q /= np.linalg.norm(q)
    return -q if q[0] < 0 else q


def rotation_from_quaternion_xyzw(quaternion_xyzw: ArrayLike) -> Array:
    """Rotation matrix (3, 3) float64 from a quaternion in ROS order (x, y, z, w)."""
    x, y, z, w = np.asarray(quaternion_xyzw, dtype=np.float64)
    return rotation_from_quaternion_wxyz((w, x, y, z))


def rotation_from_yaw(yaw: float) -> Array:
    """Rotation matrix (3, 3) float64 about +z by ``yaw`` radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def transform(rotation: ArrayLike, translation: ArrayLike) -> Array:
    """4x4 float64 transform from a rotation matrix (3, 3) and a translation (3,) in metres.

    Raises:
        ValueError: wrong shapes or numbers that are not finite.
    """
    r, t = np.asarray(rotation, dtype=np.float64), np.asarray(translation, dtype=np.float64)
    if r.shape != (3, 3):
        raise ValueError(f"rotation: expected shape (3, 3), got {r.shape}")
    if t.shape != (3,):
        raise ValueError(f"translation: expected shape (3,), got {t.shape}")
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = r, t
    if not np.isfinite(out).all():
        raise ValueError(f"transform: holds numbers that are not finite: {out.tolist()}")
    return out


def transform_from_wxyz(quaternion_wxyz: ArrayLike, translation: ArrayLike) -> Array:
    """4x4 float64 transform from a nuScenes quaternion (w, x, y, z) and a translation (3,) in metres."""
    return transform(rotation_from_quaternion_wxyz(quaternion_wxyz), translation)


def check_rigid(name: str, a2b: ArrayLike) -> Array:
    """Return ``a2b`` as (4, 4) float64, or raise ValueError naming it where it is not a finite rigid transform."""
    m = np.asarray(a2b, dtype=np.float64)
    if m.shape != (4, 4):
        raise ValueError(f"{name}: expected a 4x4 matrix, got shape {m.shape}")
    if not np.isfinite(m).all():
        raise ValueError(f"{name}: holds numbers that are not finite: {m.tolist()}")
    # Plain numbers: a node asks this of fifteen matrices a frame, and NumPy's calls are made for larger ones.
    x, y, z, last = m.tolist()
    error = max(abs(_dot3(a, b) - (a is b)) for a, b in ((x, x), (y, y), (z, z), (x, y), (x, z), (y, z)))
    determinant = _dot3(x, (y[1] * z[2] - y[2] * z[1], y[2] * z[0] - y[0] * z[2], y[0] * z[1] - y[1] * z[0]))
    off = max(abs(value - wanted) for value, wanted in zip(last, (0.0, 0.0, 0.0, 1.0), strict=True))
    if error > RIGID_TOLERANCE or determinant < 0 or off > LAST_ROW_TOLERANCE:
        raise ValueError(
            f"{name}: not a rigid transform (rotation off orthonormal by {error:.2g}, determinant "
            f"{determinant:.3f}, last row {m[3].tolist()}); expected rotation, translation, row 0 0 0 1"
        )
    return m


def _dot3(a: Sequence[float], b: Sequence[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def inverse(a2b: ArrayLike) -> Array:
    """``b2a`` (..., 4, 4) float64 of rigid ``a2b`` (..., 4, 4): transposed rotation, not a general inverse."""
    m = np.asarray(a2b, dtype=np.float64)
    out = np.zeros_like(m)
    rotation_t = np.swapaxes(m[..., :3, :3], -1, -2)
    out[..., :3, :3] = rotation_t
    out[..., :3, 3] = -(rotation_t @ m[..., :3, 3:])[..., 0]
    out[..., 3, 3] = 1.0
    return out


def apply(a2b: ArrayLike, points_a: ArrayLike) -> Array:
    """Map points (P, 3) from frame a to frame b; float64 in, float64 out, float32 stays float32."""
    points = np.asarray(points_a)
    m = np.asarray(a2b, dtype=np.float64).astype(points.dtype)
    return points @ m[:3, :3].T + m[:3, 3]


def project(intrinsics: ArrayLike, points_cam: ArrayLike) -> Array:
    """Pixels and depth (P, 3) = (u, v, z) of points (P, 3) in the optical frame (x right, y down, z forward).

    u and v of points at or behind the camera (z <= 0) are meaningless: select by z before use.
    """
    points = np.asarray(points_cam)
    uvz = points @ np.asarray(intrinsics, dtype=np.float64).astype(points.dtype).T
    depth = points[:, 2:3]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.concatenate([uvz[:, :2] / depth, depth], axis=1)

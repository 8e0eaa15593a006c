"""What goes wrong in clouds: pure functions from points and severity (1 to 5) to points.

Each returns the new points and, for every one of them, the row that it comes from (NEW for points that were not
there), so that labels can follow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Rows = NDArray[np.int64]
NEW = -1
LOST_RINGS = (0.125, 0.25, 0.375, 0.5, 0.75)
FOG_PER_M = (0.004, 0.008, 0.016, 0.03, 0.06)
CROSS_TALK = (0.01, 0.02, 0.04, 0.07, 0.10)
CROSS_TALK_M = 3.0
JITTER_M = (0.03, 0.06, 0.10, 0.16, 0.25)
WATER = (0.15, 0.3, 0.5, 0.7, 0.9)
"""How much of the light a wet road mirrors away at grazing incidence."""
_GROUND_M = 0.25


def beam_missing(points: Points, severity: int, rng: np.random.Generator) -> tuple[Points, Rows]:
    """Whole rings are lost."""
    rings = np.unique(points[:, 4])
    count = min(round(LOST_RINGS[severity - 1] * len(rings)), len(rings) - 1)
    lost = rng.choice(rings, size=count, replace=False)
    rows = np.flatnonzero(~np.isin(points[:, 4], lost))
    return points[rows], rows


def fog(points: Points, severity: int, rng: np.random.Generator) -> tuple[Points, Rows]:
    """Far returns are lost or replaced by the echo of near droplets; all are fainter."""
    alpha = FOG_PER_M[severity - 1]
    distance = np.linalg.norm(points[:, :3], axis=1)
    gone = rng.random(len(points)) > np.exp(-2 * alpha * distance)
    droplet = gone & (rng.random(len(points)) < 0.35 * min(1.0, 12 * alpha))
    out = points.copy()
    out[:, 3] = np.round(out[:, 3] * np.exp(-2 * alpha * distance))
    near = np.minimum(1.5 + rng.exponential(0.35 / alpha**0.5, len(points)), 0.95 * np.maximum(distance, 1e-3))
    scale = (near / np.maximum(distance, 1e-3))[droplet, None]
    out[droplet, :3] *= scale.astype(np.float32)
    out[droplet, 3] = rng.integers(1, 12, int(droplet.sum()))
    rows = _never_empty(np.flatnonzero(~gone | droplet), distance)
    return out[rows], np.where(droplet[rows], NEW, rows)


def cross_talk(points: Points, severity: int, rng: np.random.Generator) -> tuple[Points, Rows]:
    """Some returns are another sensor's: their range is wrong by metres."""
    distance = np.linalg.norm(points[:, :3], axis=1)
    wrong = (rng.random(len(points)) < CROSS_TALK[severity - 1]) & (distance > 1.0)
    out = points.copy()
    moved = np.maximum(distance[wrong] + rng.normal(0, CROSS_TALK_M, int(wrong.sum())), 0.8)
    out[wrong, :3] *= (moved / distance[wrong])[:, None].astype(np.float32)
    return out, np.where(wrong, NEW, np.arange(len(points)))


def motion_blur(points: Points, severity: int, rng: np.random.Generator) -> tuple[Points, Rows]:
    """Every point is off, as from a shaking mount or poor compensation of the sweep."""
    out = points.copy()
    out[:, :3] += rng.normal(0, JITTER_M[severity - 1], (len(points), 3)).astype(np.float32)
    return out, np.arange(len(points))


def wet_ground(
    points: Points, severity: int, rng: np.random.Generator, lidar2ego: NDArray[np.float64]
) -> tuple[Points, Rows]:
    """Ground (what lies near z = 0) is lost the more, the flatter the beam; what is left of it is fainter."""
    local = points[:, :3].astype(np.float64)
    z = local @ lidar2ego[2, :3] + lidar2ego[2, 3]
    distance = np.maximum(np.linalg.norm(local, axis=1), 1e-3)
    ground = (np.abs(z) < _GROUND_M + 0.004 * distance) & (distance > 2.5)
    grazing = 1 - np.clip(lidar2ego[2, 3] / distance, 0, 1)
    mirrored = WATER[severity - 1] * (0.4 + 0.6 * grazing**2)
    lost = ground & (rng.random(len(points)) < mirrored)
    out = points.copy()
    out[ground, 3] = np.round(out[ground, 3] * (1 - 0.8 * mirrored[ground]))
    rows = _never_empty(np.flatnonzero(~lost), distance)
    return out[rows], rows


def _never_empty(rows: Rows, distance: NDArray[np.floating]) -> Rows:
    """A cloud keeps at least its nearest point."""
    return rows if len(rows) else np.array([int(distance.argmin())])

"""Road centrelines, and how things move along them.

A centreline has an arc length s (metres, forward) and an offset d (metres, positive to the left).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Scalars = float | NDArray[np.floating]
STEP = 0.5
"""Spacing of a centreline's samples, metres."""


class Centreline:
    """A smooth curve in the plane."""

    def __init__(self, s: Floats, x: Floats, y: Floats, heading: Floats) -> None:
        self.s, self.x, self.y, self.heading = s, x, y, heading

    @classmethod
    def from_curvature(cls, start: float, pieces: Sequence[tuple[float, float]], heading: float = 0.0) -> Centreline:
        """From pieces (length, curvature), beginning at s = ``start``; s = 0 lies at the origin with ``heading`` there.

        Curvature is averaged over 12 m, so that steering does not jump.
        """
        curvature = np.concatenate([np.full(max(1, round(length / STEP)), value) for length, value in pieces])
        width = round(12 / STEP)
        padded = np.pad(curvature, width // 2, mode="edge")
        smooth = np.convolve(padded, np.ones(width) / width, mode="same")[width // 2 : width // 2 + len(curvature)]
        s = start + STEP * np.arange(len(smooth) + 1)
        turn = np.concatenate([[0.0], np.cumsum(smooth * STEP)])
        turn += heading - np.interp(0.0, s, turn)
        middle = 0.5 * (turn[1:] + turn[:-1])
        x = np.concatenate([[0.0], np.cumsum(np.cos(middle) * STEP)])
        y = np.concatenate([[0.0], np.cumsum(np.sin(middle) * STEP)])
        return cls(s, x - np.interp(0.0, s, x), y - np.interp(0.0, s, y), turn)

    @classmethod
    def straight(cls, x: float, y: float, heading: float, half_length: float) -> Centreline:
        """A straight one with s = 0 at (x, y)."""
        s = np.arange(-half_length, half_length + STEP / 2, STEP)
        return cls(s, x + s * np.cos(heading), y + s * np.sin(heading), np.full(len(s), heading))

    def heading_at(self, s: Scalars) -> Floats:
        """Direction of travel, radians."""
        return np.interp(s, self.s, self.heading)

    def point(self, s: Scalars, d: Scalars = 0.0) -> Floats:
        """Points (..., 2) at arc length s and offset d."""
        h = self.heading_at(s)
        x = np.interp(s, self.s, self.x) - np.sin(h) * d
        y = np.interp(s, self.s, self.y) + np.cos(h) * d
        return np.stack([x, y], axis=-1)

    def nearest(self, xy: Floats) -> tuple[Floats, Floats]:
        """Arc length and offset (P,) of points (P, 2), to the nearest sample (every 2 m)."""
        thin = slice(None, None, 4)
        curve = np.stack([self.x[thin], self.y[thin]], axis=1)
        gap = xy[:, None] - curve[None]
        k = (gap**2).sum(axis=2).argmin(axis=1)
        h = self.heading[thin][k]
        delta = gap[np.arange(len(xy)), k]
        s = self.s[thin][k] + np.cos(h) * delta[:, 0] + np.sin(h) * delta[:, 1]
        return s, -np.sin(h) * delta[:, 0] + np.cos(h) * delta[:, 1]


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where an object stands: on the plane, with a height of its base."""

    x: float
    y: float
    z: float
    yaw: float


Motion = Callable[[float], Pose]
"""Seconds since the scene's start -> pose."""


@dataclass(frozen=True, kw_only=True)
class Resting:
    """A motion that does not move."""

    pose: Pose

    def __call__(self, t: float) -> Pose:
        """The same pose at all times."""
        return self.pose


@dataclass(frozen=True, kw_only=True)
class Following:
    """Along a centreline at an offset."""

    line: Centreline
    start: float
    """s at t = 0."""
    offset: float
    speed: float
    """Metres a second; negative: against the centreline, facing that way."""
    z: float = 0.0

    def __call__(self, t: float) -> Pose:
        """The pose at time t."""
        return self.at(self.start + self.speed * t)

    def at(self, s: float) -> Pose:
        """The pose at arc length s."""
        x, y = self.line.point(s, self.offset)
        yaw = float(self.line.heading_at(s)) + (np.pi if self.speed < 0 else 0.0)
        return Pose(x=float(x), y=float(y), z=self.z, yaw=yaw)


@dataclass(frozen=True, kw_only=True)
class SpeedProfile:
    """Distance travelled over time, tabulated."""

    times: Floats
    distance: Floats

    def __call__(self, t: Scalars) -> Floats:
        """Metres since t = 0."""
        return np.interp(t, self.times, self.distance)


def draw_speed(rng: np.random.Generator, duration: float, *, stops: bool) -> SpeedProfile:
    """A drive of ``duration`` seconds: mean speed 4 to 8 m/s that swells and sinks, and perhaps a stop."""
    times = np.arange(-3.0, duration + 3.0, 0.01)
    mean = rng.uniform(4.5, 8.0)
    speed = mean + rng.uniform(0.2, 0.9) * np.sin(2 * np.pi * times / rng.uniform(6, 14) + rng.uniform(0, 6.3))
    if stops:
        middle, half = rng.uniform(0.3, 0.8) * duration, rng.uniform(1.0, 2.5)
        away = np.clip((np.abs(times - middle) - half) / 3.0, 0, 1)
        speed *= away * away * (3 - 2 * away)
    distance = np.cumsum(np.clip(speed, 0.0, 9.0)) * 0.01
    return SpeedProfile(times=times, distance=distance - np.interp(0.0, times, distance))


@dataclass(frozen=True, kw_only=True)
class Tailing:
    """In the ego's lane, keeping its distance to the ego."""

    line: Centreline
    lead: float
    """s ahead of the ego's start, metres."""
    offset: float
    profile: SpeedProfile

    def __call__(self, t: float) -> Pose:
        """The pose at time t."""
        s = self.lead + float(self.profile(t))
        x, y = self.line.point(s, self.offset)
        return Pose(x=float(x), y=float(y), z=0.0, yaw=float(self.line.heading_at(s)))


@dataclass(frozen=True, kw_only=True)
class EgoDrive:
    """The ego vehicle: z = 0 as nuScenes has it, with the roll and pitch of its suspension."""

    line: Centreline
    profile: SpeedProfile
    offset: float
    waves: tuple[tuple[float, float, float], ...]
    """(amplitude rad, period s, phase) of roll and of pitch, alternating."""

    def poses(self, times: Scalars) -> NDArray[np.float64]:
        """ego2street (N, 4, 4) at N times."""
        t = np.atleast_1d(np.asarray(times, np.float64))
        s = self.profile(t)
        xy, yaw = self.line.point(s, self.offset), self.line.heading_at(s)
        angles = [
            np.sum([a * np.sin(2 * np.pi * t / p + f) for a, p, f in self.waves[first::2]], axis=0) for first in (0, 1)
        ]
        roll, pitch = angles
        cy, sy, cp, sp, cr, sr = (f(v) for v in (yaw, pitch, roll) for f in (np.cos, np.sin))
        out = np.zeros((len(t), 4, 4))
        out[:, 0, :3] = np.stack([cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr], axis=1)
        out[:, 1, :3] = np.stack([sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr], axis=1)
        out[:, 2, :3] = np.stack([-sp, cp * sr, cp * cr], axis=1)
        out[:, :2, 3], out[:, 3, 3] = xy, 1.0
        return out


ROLL_SD, PITCH_SD = np.deg2rad(0.15), np.deg2rad(0.25)
"""Of the body over the road. nuScenes' poses vary more (0.55 and 1.6 degrees) because its roads slope while its map is
flat; this street is flat, and a larger tilt would take the road out of z = 0 in the ego frame, where real roads are."""


def draw_drive(rng: np.random.Generator, line: Centreline, profile: SpeedProfile, offset: float) -> EgoDrive:
    """An ego in its lane with a gently moving body."""
    waves = []
    for _ in range(3):
        for deviation in (ROLL_SD, PITCH_SD):
            amplitude = deviation * np.sqrt(2.0 / 3.0) * rng.uniform(0.6, 1.4)
            waves.append((float(amplitude), float(rng.uniform(0.9, 5.0)), float(rng.uniform(0, 2 * np.pi))))
    return EgoDrive(line=line, profile=profile, offset=offset, waves=tuple(waves))

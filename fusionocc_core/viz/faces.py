"""The rectangles that a picture of voxels is made of: only those between solid and empty that look at the camera.

Legend: F faces, M voxels, C = 4 corners of a face.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.viz.volume import (
    CAR_HEIGHT,
    CAR_LENGTH,
    CAR_REAR,
    CAR_WIDTH,
    SUN,
    ForwardVolume,
    Light,
    light_volume,
)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

TANGENTS = np.array([[1, 2], [0, 2], [0, 1]])
"""The two axes along a face's edges, by the axis that it is perpendicular to."""

AMBIENT = {(0, -1): 0.55, (0, 1): 0.5, (1, -1): 0.5, (1, 1): 0.55, (2, -1): 0.35, (2, 1): 0.62}
"""Brightness from the sky on a face in the open, by (axis, sign): upright faces see half of it."""

DIFFUSE = 0.5
"""Brightness from the sun on a face that looks straight at it."""

CONTACT = 0.45
"""Brightness that a solid neighbour adds to a corner, relative to an empty one in full light."""

OUTLINE = 0.14
"""How much darker the line around a voxel's face is."""

FLOOR_SQUARE = 10.0
"""Metres."""

FLOOR_COLORS = ((221, 224, 228), (230, 233, 236))

CAR_COLOR = (244, 246, 248)
GLASS_COLOR = (70, 82, 96)


@dataclass(frozen=True, kw_only=True)
class Faces:
    """Axis-aligned rectangles, in the order in which they are painted: far ones first."""

    axis_F: Ints
    """Which axis the face is perpendicular to."""
    origin_F3: Floats
    """The corner with the smallest coordinates, metres."""
    extent_F3: Floats
    """Edge lengths, metres; 0 along ``axis_F``."""
    color_F3: Floats
    """sRGB 0..255."""
    light_FC: Floats
    """Brightness at the corners (0, 0), (1, 0), (0, 1), (1, 1) along the two edges of TANGENTS."""
    outline_F: Floats
    """How much darker the line around the face is, 0..1."""

    def select(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> Faces:
        """Some of the faces, in the order of ``index``."""
        return Faces(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def join(*parts: Faces) -> Faces:
    """All faces of the parts, the first part's painted first."""
    return Faces(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Faces)})


def voxel_faces(volume: ForwardVolume, colors: Floats, eye: NDArray[np.float64]) -> Faces:
    """Visible faces of the solid voxels, sorted for painting as seen from ``eye`` (metres).

    The order is exact for a grid: a line of sight passes the slabs of each axis from near to far, so sorting voxels by
    their distance from the eye in slabs, one axis after the other, never paints a hidden face over what hides it.

    Args:
        volume: The labels.
        colors: (256, 3) by label.
        eye: (3,) in the volume's frame.
    """
    light = light_volume(volume.solid, volume.voxel_size)
    padded = np.pad(volume.solid, 1)
    parts: list[Faces] = []
    keys: list[Floats] = []
    eye_cell = (eye - volume.lower) / volume.voxel_size - 0.5
    for axis in range(3):
        for sign in (-1, 1):
            step = np.eye(3, dtype=np.int64)[axis] * sign
            around = padded[tuple(slice(1 + s, n + 1 + s) for s, n in zip(step, volume.solid.shape, strict=True))]
            voxels_M3 = np.argwhere(volume.solid & ~around)
            plane_M = voxels_M3[:, axis] + 0.5 * sign
            voxels_M3 = voxels_M3[sign * (eye_cell[axis] - plane_M) > 0]
            labels = volume.labels[tuple(voxels_M3.T)]
            brightness = _brightness(light, axis, sign)
            parts.append(_grid_faces(volume, voxels_M3, step, colors[labels], _corners(brightness, voxels_M3, step)))
            keys.append(np.abs(voxels_M3 - eye_cell).astype(np.float32))
    away_F3 = np.concatenate(keys)
    return join(*parts).select(np.lexsort((away_F3[:, 2], away_F3[:, 1], away_F3[:, 0]))[::-1])


def _brightness(light: Light, axis: int, sign: int) -> Floats:
    """(X+2, Y+2, Z+2) how bright a face that looks along ``sign`` of ``axis`` is in front of each cell."""
    sun = np.asarray(SUN) / np.linalg.norm(SUN)
    towards = max(0.0, float(sun[axis] * sign))
    ambient = AMBIENT[axis, sign]
    full = ambient + DIFFUSE * towards
    brightness = ambient * light.sky + DIFFUSE * towards * light.sun
    return np.maximum(brightness, CONTACT * full).astype(np.float32)


def _corners(brightness: Floats, voxels_M3: Ints, step: Ints) -> Floats:
    """(M, C) brightness at a face's corners: the mean of the four cells in front that meet there."""
    front = voxels_M3 + 1 + step
    along_u, along_v = np.eye(3, dtype=np.int64)[TANGENTS[int(np.abs(step).argmax())]]

    def at(u: int, v: int) -> Floats:
        return brightness[tuple((front + u * along_u + v * along_v).T)]

    middle, low_u, high_u, low_v, high_v = at(0, 0), at(-1, 0), at(1, 0), at(0, -1), at(0, 1)
    corners = [
        middle + low_u + low_v + at(-1, -1),
        middle + high_u + low_v + at(1, -1),
        middle + low_u + high_v + at(-1, 1),
        middle + high_u + high_v + at(1, 1),
    ]
    return np.stack(corners, axis=1) / 4


def _grid_faces(volume: ForwardVolume, voxels_M3: Ints, step: Ints, color_M3: Floats, light_MC: Floats) -> Faces:
    """The faces of voxels on the side that ``step`` points to."""
    axis = int(np.abs(step).argmax())
    extent = volume.voxel_size.copy()
    extent[axis] = 0.0
    origin = volume.lower + (voxels_M3 + np.maximum(step, 0)) * volume.voxel_size
    count = len(voxels_M3)
    return Faces(
        axis_F=np.full(count, axis),
        origin_F3=origin.astype(np.float32),
        extent_F3=np.tile(extent.astype(np.float32), (count, 1)),
        color_F3=color_M3,
        light_FC=light_MC,
        outline_F=np.full(count, OUTLINE, np.float32),
    )


def floor_faces(volume: ForwardVolume) -> Faces:
    """A plate under the volume, of squares whose corners lie at multiples of FLOOR_SQUARE from the vehicle."""
    lines = []
    for axis in range(2):
        lower, upper, ego = volume.lower[axis], volume.upper[axis], volume.ego[axis]
        first, last = np.ceil((lower - ego) / FLOOR_SQUARE), np.floor((upper - ego) / FLOOR_SQUARE)
        between = ego + np.arange(first, last + 1) * FLOOR_SQUARE
        lines.append(np.unique(np.concatenate([[lower], between, [upper]])))
    x, y = (line[:-1] for line in lines)
    square = np.stack(np.meshgrid(np.arange(len(x)), np.arange(len(y)), indexing="ij"), axis=-1).reshape(-1, 2)
    origin = np.stack([x[square[:, 0]], y[square[:, 1]], np.full(len(square), volume.lower[2])], axis=1)
    edges = [np.diff(line)[square[:, axis]] for axis, line in enumerate(lines)]
    return Faces(
        axis_F=np.full(len(square), 2),
        origin_F3=origin.astype(np.float32),
        extent_F3=np.stack([*edges, np.zeros(len(square))], axis=1).astype(np.float32),
        color_F3=np.asarray(FLOOR_COLORS, np.float32)[square.sum(axis=1) % 2],
        light_FC=np.ones((len(square), 4), np.float32),
        outline_F=np.zeros(len(square), np.float32),
    )


def car_faces(volume: ForwardVolume, eye: NDArray[np.float64]) -> Faces:
    """The vehicle as a body and a cabin, sorted for painting as seen from above."""
    body = ((CAR_REAR, -CAR_WIDTH / 2, 0.25), (CAR_LENGTH, CAR_WIDTH, 0.65), CAR_COLOR)
    cabin = ((CAR_REAR + 0.5, -CAR_WIDTH / 2 + 0.1, 0.9), (2.7, CAR_WIDTH - 0.2, CAR_HEIGHT - 1.0), GLASS_COLOR)
    roof = ((CAR_REAR + 0.5, -CAR_WIDTH / 2 + 0.1, CAR_HEIGHT - 0.1), (2.7, CAR_WIDTH - 0.2, 0.1), CAR_COLOR)
    parts = [
        _box_faces(np.asarray(lower) + volume.ego, np.asarray(size), color, eye)
        for lower, size, color in (body, cabin, roof)
    ]
    return join(*parts)


def _box_faces(
    lower: NDArray[np.float64], size: NDArray[np.float64], color: tuple[int, int, int], eye: NDArray[np.float64]
) -> Faces:
    """The faces of one box that look at the eye."""
    sun = np.asarray(SUN) / np.linalg.norm(SUN)
    axes, origins, extents, lights = [], [], [], []
    for axis in range(3):
        for sign in (-1, 1):
            origin, extent = lower.copy(), size.copy()
            extent[axis] = 0.0
            if sign > 0:
                origin[axis] += size[axis]
            if sign * (eye[axis] - origin[axis]) <= 0:
                continue
            axes.append(axis)
            origins.append(origin)
            extents.append(extent)
            lights.append(AMBIENT[axis, sign] + DIFFUSE * max(0.0, float(sun[axis] * sign)))
    count = len(axes)
    return Faces(
        axis_F=np.asarray(axes, np.int64),
        origin_F3=np.asarray(origins, np.float32).reshape(count, 3),
        extent_F3=np.asarray(extents, np.float32).reshape(count, 3),
        color_F3=np.tile(np.asarray(color, np.float32), (count, 1)),
        light_FC=np.tile(np.asarray(lights, np.float32)[:, None], (1, 4)),
        outline_F=np.full(count, OUTLINE, np.float32),
    )

"""One LiDAR sweep: its points in the scene's frame, their classes, and which object each belongs to.

Legend: P points.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.files import read_cloud
from fusionocc_core.data.imgseg import class_table, read_lidarseg
from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.geometry import apply
from fusionocc_core.labelling.config import ALWAYS_STILL, DROPPED, UNLABELLED, LabelConfig
from fusionocc_core.labelling.tracks import Pose

STILL, LEFT_OUT = -1, -2
"""Instead of an object: a point of the static scene; a point of which it is not known whose it is."""
OWN_BODY = ((-1.3, -1.3, -0.5), (4.2, 1.3, 2.6))
"""Box in the ego frame, metres, whose points are the own vehicle's; it holds nuScenes' car with half a metre around."""
REACH_BEYOND = 5.0
"""Points farther from the sensor than the grid's corners by more than this are left out, metres."""
_STILL_AROUND = 0.2
_LATE_S = 0.05
"""A box may be off by what the object moves during one sweep."""
_NOT_SURFACES = ("noise", "vehicle.ego")


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """One cloud on disk."""

    record: SensorRecord
    lidarseg: Path | None
    """Labels of its points, where there are any."""
    keyframe: int | None
    """Its position in the scene; None for a sweep between keyframes."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The points of one sweep that are surfaces."""

    points: NDArray[np.float32]
    """(P, 3) metres, scene frame: global, moved by the scene's origin."""
    label: NDArray[np.uint8]
    """(P,) Occ3D class, or UNLABELLED."""
    eye: NDArray[np.float32]
    """(3,) where the sensor stood at the sweep's stamp."""


def point_classes(root: Path, version: str) -> NDArray[np.uint8]:
    """(256,) Occ3D class of each value of a lidarseg file; DROPPED for what is no surface.

    Raises:
        ValueError: categories without index, or with names that nuScenes does not have.
    """
    table = class_table(root, version)
    for row in json.loads((root / version / "category.json").read_bytes()):
        if row["name"] in _NOT_SURFACES:
            table[row["index"]] = DROPPED
    return table


def read_points(file: SweepFile, classes: NDArray[np.uint8], origin: NDArray[np.float64], reach: float) -> Sweep:
    """Read a cloud without the own vehicle, lost pulses, noise, and what is far away.

    Args:
        file: the cloud, and its labels where it has any.
        classes: from ``point_classes``.
        origin: (3,) global, of the scene frame.
        reach: horizontal distance from the sensor up to which points are kept, metres.

    Raises:
        FileNotFoundError: the cloud or its labels are absent.
        ValueError: one of them is damaged.
    """
    record = file.record
    cloud = read_cloud(record.path, what=f"{record.channel} cloud (sample_data {record.token})")[:, :3]
    label = np.full(len(cloud), UNLABELLED, np.uint8)
    if file.lidarseg is not None:
        label = read_lidarseg(file.lidarseg, classes, len(cloud))
    in_ego = apply(record.sensor2ego, cloud)
    lower, upper = (np.asarray(corner, np.float32) for corner in OWN_BODY)
    own = ((in_ego >= lower) & (in_ego <= upper)).all(axis=1)
    kept = ~own & (label != DROPPED) & (np.hypot(cloud[:, 0], cloud[:, 1]) <= reach)
    ego2scene = record.ego2global.copy()
    ego2scene[:3, 3] -= origin
    return Sweep(
        points=apply(ego2scene, in_ego[kept]).astype(np.float32),
        label=label[kept],
        eye=(ego2scene @ record.sensor2ego)[:3, 3].astype(np.float32),
    )


def owners(sweep: Sweep, poses: Sequence[Pose], config: LabelConfig) -> NDArray[np.int32]:
    """For each point (P,) the index of its object in ``poses``, STILL, or LEFT_OUT.

    Boxes are enlarged by ``config.box_margin``. Where boxes overlap, the smaller one takes the point. A labelled point
    belongs to a box that holds it unless its class is ground, structure or vegetation. A point without label belongs to
    the box that holds it unless it is near the box's bottom, where it may be ground; such points, and those that are
    outside of a box by 0.2 m and what the object moves in 0.05 s, are left out.
    """
    out = np.full(len(sweep.points), STILL, np.int32)
    labelled = sweep.label != UNLABELLED
    still = np.isin(sweep.label, ALWAYS_STILL)
    by_x = np.argsort(sweep.points[:, 0], kind="stable")
    x = sweep.points[by_x, 0]
    for k in sorted(range(len(poses)), key=lambda k: -float(poses[k].size_lwh.prod())):
        half = poses[k].size_lwh.astype(np.float32) / 2
        around = config.box_margin + _STILL_AROUND + _LATE_S * poses[k].speed
        center = poses[k].box2frame[:2, 3].astype(np.float32)
        radius = np.float32(np.hypot(half[0], half[1]) + 1.5 * around)
        near = by_x[slice(*np.searchsorted(x, (center[0] - radius, center[0] + radius)))]
        near = near[np.abs(sweep.points[near, 1] - center[1]) < radius]
        local = poses[k].local(sweep.points[near])
        aside = (np.abs(local[:, :2]) - half[:2]).max(axis=1)
        above, height = local[:, 2] - half[2], local[:, 2] + half[2]
        inside = (aside <= config.box_margin) & (above <= config.box_margin) & (height >= -config.box_margin)
        out[near[inside & labelled[near] & ~still[near]]] = k
        unsure = (aside <= around) & (above <= around) & (height > config.feet) | inside
        unsure &= ~labelled[near]
        out[near[unsure & (out[near] == STILL)]] = LEFT_OUT
        out[near[unsure & inside & (height > config.feet)]] = k
    return out

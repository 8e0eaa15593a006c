"""Boxes of the things in view: where they are, how many points lie in them, how much of them the cameras see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import quaternion_wxyz_from_rotation, rotation_from_yaw
from fusionocc_core.simulation.cameras import CameraView
from fusionocc_core.simulation.lidar import Scan
from fusionocc_core.simulation.rigs import CameraMount
from fusionocc_core.simulation.street import Street
from fusionocc_core.simulation.things import box_pose

REACH = 75.0
"""Things farther from the ego than this get no box, metres."""
LEVELS = ((0.4, "1"), (0.6, "2"), (0.8, "3"), (1.01, "4"))
"""Upper limits of the visible share and nuScenes' visibility tokens."""
_SAMPLES = 160


def annotate(
    street: Street,
    t: float,
    ego2street: NDArray[np.float64],
    scan: Scan,
    points_street: NDArray[np.float64],
    views: Sequence[tuple[CameraView, CameraMount, NDArray[np.float64], float]],
) -> list[dict[str, Any]]:
    """One entry a thing that is near and that the LiDAR hit or a camera sees.

    Args:
        street: the scene.
        t: reference time, seconds.
        ego2street: (4, 4) at t.
        scan: the sweep that ends at t.
        points_street: (P, 3) its points as stored, in the street frame.
        views: picture, mount, cam2street (4, 4) and time of each camera.

    Returns:
        Entries with thing, center (street frame), size [w, l, h], rotation (wxyz), num_lidar_pts, visibility.
    """
    entries = []
    measured = points_street[scan.ranges > 0]
    for k, thing in enumerate(street.things):
        center, yaw = box_pose(thing, t)
        if np.hypot(*(center[:2] - ego2street[:2, 3])) > REACH:
            continue
        count = points_in_box(measured, center, yaw, thing.size)
        share = _visible_share(street, k, views)
        if count == 0 and share == 0.0:
            continue
        length, width, height = thing.size
        entries.append(
            {
                "thing": k,
                "center": center.tolist(),
                "size": [width, length, height],
                "rotation": quaternion_wxyz_from_rotation(rotation_from_yaw(yaw)).tolist(),
                "num_lidar_pts": count,
                "visibility": next(token for limit, token in LEVELS if share < limit),
            }
        )
    return entries


def points_in_box(
    points: NDArray[np.floating], center: NDArray[np.floating], yaw: float, size_lwh: tuple[float, float, float]
) -> int:
    """How many of the points (P, 3) lie in an upright box."""
    half = np.asarray(size_lwh) / 2
    delta = points - center
    near = delta[(np.abs(delta[:, :2]) <= np.hypot(half[0], half[1])).all(axis=1)]
    c, s = np.cos(yaw), np.sin(yaw)
    x, y = c * near[:, 0] + s * near[:, 1], -s * near[:, 0] + c * near[:, 1]
    return int(((np.abs(x) <= half[0]) & (np.abs(y) <= half[1]) & (np.abs(near[:, 2]) <= half[2])).sum())


def _visible_share(
    street: Street, k: int, views: Sequence[tuple[CameraView, CameraMount, NDArray[np.float64], float]]
) -> float:
    """The largest share, over the cameras, of a thing's outline whose pixels show it.

    The outline is that of points spread over its surface: the pixels that they fall on are counted once each.
    """
    thing = street.things[k]
    best = 0.0
    for view, mount, cam2street, t in views:
        pose = thing.motion(t)
        corners = thing.frames[thing.frame_at(t)].corners
        spread = corners[:: max(1, len(corners) // _SAMPLES)].mean(axis=1)
        c, s = np.cos(pose.yaw), np.sin(pose.yaw)
        x = c * spread[:, 0] - s * spread[:, 1] + pose.x
        y = s * spread[:, 0] + c * spread[:, 1] + pose.y
        local = np.stack([x, y, spread[:, 2] + pose.z], axis=1) - cam2street[:3, 3]
        cam = local @ cam2street[:3, :3]
        front = cam[:, 2] > 0.2
        if not front.any():
            continue
        fx, fy, cx, cy = mount.intrinsics
        h, w = mount.image_size
        u = np.floor(cam[front, 0] / cam[front, 2] * fx + cx).astype(np.int64)
        v = np.floor(cam[front, 1] / cam[front, 2] * fy + cy).astype(np.int64)
        inside = (u >= 0) & (u < w) & (v >= 0) & (v < h)
        pixels = np.unique(np.stack([u, v], axis=1), axis=0)
        u, v = np.unique(np.stack([u[inside], v[inside]], axis=1), axis=0).T
        shown = int((view.instance[v, u] == k).sum())
        best = max(best, shown / max(1, len(pixels)))
    return best

"""Label maps of pictures painted point by point, as FusionOcc's preparation describes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes_tables import SensorRecord


def paint_point_by_point(
    points: NDArray[np.float32], classes: NDArray[np.uint8], lidar: SensorRecord, cameras: Sequence[SensorRecord]
) -> list[NDArray[np.uint8]]:
    """The rule as it is written: a rectangle for each point that is seen, and every eighth pixel kept.

    Arguments and result as of data.imgseg.paint_pictures.
    """
    maps = []
    for camera in cameras:
        xyz = points[:, :3].T.copy()
        for pose in (lidar.sensor2ego, lidar.ego2global):
            xyz = (pose[:3, :3] @ xyz).astype(np.float32) + pose[:3, 3].astype(np.float32)[:, None]
        for pose in (camera.ego2global, camera.sensor2ego):
            xyz = (pose[:3, :3].T @ (xyz - pose[:3, 3].astype(np.float32)[:, None])).astype(np.float32)
        assert camera.intrinsics is not None, "a camera has intrinsics"
        u, v, z = camera.intrinsics @ xyz.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = u / z, v / z
            seen = (z > 0.1) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
        canvas = np.full((camera.height, camera.width), 17, np.uint8)
        for x, y, label in zip(u[seen].astype(int), v[seen].astype(int), classes[seen], strict=True):
            canvas[max(0, y - 8) : min(y + 8, camera.height - 1), max(0, x - 4) : min(x + 4, camera.width - 1)] = label
        maps.append(canvas[::8, ::8].copy())
    return maps

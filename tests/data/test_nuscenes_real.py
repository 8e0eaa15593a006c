"""The reader on one real nuScenes keyframe, where shared/ is beside the checkout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusionocc_core.data.nuscenes import CAMERA_ORDER, NuScenesFrames
from fusionocc_core.geometry import apply, inverse, project

pytestmark = pytest.mark.data

MEDIAN_SHIFT_PX = {
    "CAM_FRONT_LEFT": 38.5,
    "CAM_FRONT": 13.6,
    "CAM_FRONT_RIGHT": 18.6,
    "CAM_BACK_RIGHT": 14.3,
    "CAM_BACK": 2.8,
    "CAM_BACK_LEFT": 0.8,
}
"""How far projected points move when the ego poses of the two sensors are left out; measured on the original data."""


@pytest.fixture(scope="module")
def frames(shared: Path) -> NuScenesFrames:
    return NuScenesFrames(shared / "data" / "nuscenes_scene0061", camera_history=1, lidar_history=7)


def test_the_real_keyframe_loads(frames: NuScenesFrames) -> None:
    frame = frames[0]
    assert (len(frames), frames.version, frame.scene) == (1, "v1.0-mini", "scene-0061")
    assert tuple(c.name for c in frame.cameras) == CAMERA_ORDER
    assert {c.image.shape for c in frame.cameras} == {(900, 1600, 3)}
    assert frame.lidar.points.shape == (34_688, 5)
    assert frame.stamp_ns == 1532402927647951000
    assert (frame.camera_history, frame.lidar_history) == ((), ())


@pytest.mark.parametrize("channel", MEDIAN_SHIFT_PX)
def test_ego_motion_between_camera_and_lidar_moves_points_as_measured(frames: NuScenesFrames, channel: str) -> None:
    frame = frames[0]
    camera = next(c for c in frame.cameras if c.name == channel)
    xyz = frame.lidar.points[:, :3].astype(np.float64)
    lidar2global = frame.lidar.ego2global @ frame.lidar.lidar2ego
    with_poses = project(
        camera.intrinsics, apply(inverse(camera.cam2ego) @ inverse(camera.ego2global) @ lidar2global, xyz)
    )
    without = project(camera.intrinsics, apply(inverse(camera.cam2ego) @ frame.lidar.lidar2ego, xyz))
    height, width = camera.image.shape[:2]
    u, v, depth = with_poses.T
    seen = (depth > 1.0) & (u >= 0) & (u < width) & (v >= 0) & (v < height) & (without[:, 2] > 0)
    shift = np.median(np.linalg.norm((with_poses - without)[seen, :2], axis=1))
    assert seen.sum() > 2_500
    assert shift == pytest.approx(MEDIAN_SHIFT_PX[channel], abs=0.2)


def test_points_inside_the_boxes_are_as_annotated(frames: NuScenesFrames) -> None:
    points = frames[0].lidar.points
    boxes = frames.boxes(0, "lidar")
    counted = np.array([box.contains(points).sum() for box in boxes])
    annotated = np.array([box.num_lidar_pts for box in boxes])
    assert len(boxes) == 68
    assert (counted == annotated).sum() >= 60
    assert (counted.sum(), annotated.sum()) == (984, 999)

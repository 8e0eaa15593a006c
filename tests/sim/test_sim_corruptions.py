"""Each corruption spoils what it says, more with every grade, and nothing else."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from fusionocc_core.geometry import inverse, rotation_from_yaw, transform
from fusionocc_core.simulation import lidar_corruptions
from fusionocc_core.simulation.corruptions import (
    CAMERA_CORRUPTIONS,
    CORRUPTIONS,
    DELAY_S,
    LIDAR_CORRUPTIONS,
    Corruption,
    corrupt,
    rotation_from_vector,
    vector_from_rotation,
)

IMAGE_CORRUPTIONS = [n for n in CAMERA_CORRUPTIONS if n not in ("calibration_error", "camera_delay")]


@pytest.fixture(scope="module")
def frame(sim_frames):
    return next(f for f in sim_frames if np.linalg.norm((f.cameras[0].ego2global - f.ego2global)[:3, 3]) > 0.1)


def same_camera(a, b):
    return (
        np.array_equal(a.image, b.image)
        and np.array_equal(a.cam2ego, b.cam2ego)
        and np.array_equal(a.ego2global, b.ego2global)
        and a.stamp_ns == b.stamp_ns
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_only_what_is_named_changes_and_twice_the_same(frame, name):
    spoilt, again = corrupt(frame, name, 4, seed=3), corrupt(frame, name, 4, seed=3)
    assert spoilt.stamp_ns == frame.stamp_ns
    assert all(same_camera(a, b) for a, b in zip(spoilt.cameras, again.cameras, strict=True))
    np.testing.assert_array_equal(spoilt.lidar.points, again.lidar.points)
    cameras_changed = not all(same_camera(a, b) for a, b in zip(spoilt.cameras, frame.cameras, strict=True))
    lidar_changed = not np.array_equal(spoilt.lidar.points, frame.lidar.points)
    assert cameras_changed == (name in CAMERA_CORRUPTIONS)
    assert lidar_changed == (name in LIDAR_CORRUPTIONS)
    for camera, old in zip(spoilt.cameras, frame.cameras, strict=True):
        assert camera.image.shape == old.image.shape
        assert camera.image.dtype == np.uint8
        assert np.array_equal(camera.intrinsics, old.intrinsics)


@pytest.mark.parametrize("name", IMAGE_CORRUPTIONS)
def test_pictures_get_worse_with_the_grade(frame, name):
    def error(severity):
        spoilt = corrupt(frame, name, severity, seed=1)
        pairs = zip(spoilt.cameras, frame.cameras, strict=True)
        return np.mean([np.abs(a.image.astype(float) - b.image).mean() for a, b in pairs])

    errors = [error(severity) for severity in range(1, 6)]
    assert all(later >= earlier for earlier, later in itertools.pairwise(errors))
    assert errors[4] > 1.2 * errors[0] > 0


@pytest.mark.parametrize("severity", range(1, 6))
def test_camera_crash_blacks_out_cameras_for_the_whole_scene(frame, severity):
    later = replace(
        frame, cameras=tuple(replace(c, stamp_ns=c.stamp_ns + 500_000_000) for c in frame.cameras), token="later"
    )
    crashed = [
        {camera.name for camera in corrupt(f, "camera_crash", severity, seed=2).cameras if not camera.image.any()}
        for f in (frame, later)
    ]
    assert len(crashed[0]) == severity
    assert crashed[0] == crashed[1]


def test_frame_lost_changes_from_picture_to_picture(frame):
    lost = []
    for k in range(12):
        moved = replace(frame, cameras=tuple(replace(c, stamp_ns=c.stamp_ns + k) for c in frame.cameras))
        lost.append([not c.image.any() for c in corrupt(moved, "frame_lost", 3).cameras])
    assert 0.3 < np.mean(lost) < 0.7
    assert len({tuple(row) for row in lost}) > 5


def test_history_is_spoilt_like_the_frame_that_it_was(frame):
    with_past = replace(frame, camera_history=(frame.cameras,), lidar_history=(frame.lidar,))
    spoilt = corrupt(with_past, "snow", 3)
    assert all(same_camera(a, b) for a, b in zip(spoilt.cameras, spoilt.camera_history[0], strict=True))
    spoilt = corrupt(with_past, "lidar_fog", 3)
    np.testing.assert_array_equal(spoilt.lidar.points, spoilt.lidar_history[0].points)


def test_calibration_error_grows_and_is_constant_for_a_camera(frame):
    def tilt(severity):
        spoilt = corrupt(frame, "calibration_error", severity)
        wrong = [inverse(a.cam2ego) @ b.cam2ego for a, b in zip(frame.cameras, spoilt.cameras, strict=True)]
        return np.mean([np.degrees(np.linalg.norm(vector_from_rotation(w[:3, :3]))) for w in wrong])

    tilts = [tilt(severity) for severity in range(1, 6)]
    assert (np.diff(tilts) > 0).all()
    assert 0.1 < tilts[0] < 1
    assert 2 < tilts[4] < 10


def test_camera_delay_moves_stamp_and_pose_along_the_drive(frame):
    spoilt = corrupt(frame, "camera_delay", 3)
    span = (frame.stamp_ns - frame.cameras[0].stamp_ns) * 1e-9
    speed = np.linalg.norm((frame.ego2global - frame.cameras[0].ego2global)[:2, 3]) / span
    for late, camera in zip(spoilt.cameras, frame.cameras, strict=True):
        assert late.stamp_ns - camera.stamp_ns == round(DELAY_S[2] * 1e9)
        forward = (inverse(camera.ego2global) @ late.ego2global)[:3, 3]
        assert forward[0] == pytest.approx(speed * DELAY_S[2], rel=0.1)
    standing = replace(
        frame, cameras=tuple(replace(c, stamp_ns=frame.stamp_ns, ego2global=frame.ego2global) for c in frame.cameras)
    )
    with pytest.raises(ValueError, match="cannot be told"):
        corrupt(standing, "camera_delay", 3)


def test_beam_missing_takes_the_same_rings_everywhere(frame):
    counts = []
    for severity in range(1, 6):
        rings = np.unique(corrupt(frame, "beam_missing", severity).lidar.points[:, 4])
        counts.append(len(rings))
    assert counts == [28, 24, 20, 16, 8]


@pytest.mark.parametrize("name", ["beam_missing", "lidar_fog", "wet_ground"])
def test_clouds_thin_out(frame, name):
    counts = [len(corrupt(frame, name, severity).lidar.points) for severity in range(1, 6)]
    assert counts[0] < len(frame.lidar.points)
    assert (np.diff(counts) < 0).all()


def test_fog_takes_far_points_first(frame):
    before = np.linalg.norm(frame.lidar.points[:, :3], axis=1)
    after = np.linalg.norm(corrupt(frame, "lidar_fog", 4).lidar.points[:, :3], axis=1)
    assert (after > 30).sum() < 0.4 * (before > 30).sum()
    assert (after < 5).sum() > 0.7 * (before < 5).sum()


def test_wet_ground_leaves_walls_alone(frame):
    def high(points):
        z = points[:, :3] @ frame.lidar.lidar2ego[2, :3] + frame.lidar.lidar2ego[2, 3]
        return (z > 1.0).sum()

    assert high(corrupt(frame, "wet_ground", 5).lidar.points) == high(frame.lidar.points)


def test_cross_talk_keeps_directions(frame):
    spoilt = corrupt(frame, "cross_talk", 5).lidar.points
    moved = np.abs(spoilt[:, :3] - frame.lidar.points[:, :3]).max(axis=1) > 1e-3
    assert 0.03 < moved.mean() < 0.12
    unit = [p[moved, :3] / np.linalg.norm(p[moved, :3], axis=1, keepdims=True) for p in (spoilt, frame.lidar.points)]
    np.testing.assert_allclose(unit[0], unit[1], atol=1e-4)


@pytest.mark.parametrize("name", LIDAR_CORRUPTIONS)
def test_rows_say_where_points_come_from(frame, name):
    functions = {
        "beam_missing": lidar_corruptions.beam_missing,
        "lidar_fog": lidar_corruptions.fog,
        "cross_talk": lidar_corruptions.cross_talk,
        "lidar_motion_blur": lidar_corruptions.motion_blur,
    }
    rng = np.random.default_rng(0)
    if name == "wet_ground":
        out, rows = lidar_corruptions.wet_ground(frame.lidar.points, 3, rng, frame.lidar.lidar2ego)
    else:
        out, rows = functions[name](frame.lidar.points, 3, rng)
    assert len(out) == len(rows)
    kept = rows >= 0
    np.testing.assert_array_equal(out[kept, 4], frame.lidar.points[rows[kept], 4])
    np.testing.assert_allclose(out[kept, :3], frame.lidar.points[rows[kept], :3], atol=1.0)


def test_a_cloud_of_one_point_survives(frame):
    single = replace(frame, lidar=replace(frame.lidar, points=np.array([[0, 60, -1.8, 9, 3]], np.float32)))
    for name in LIDAR_CORRUPTIONS:
        for severity in range(1, 6):
            assert len(corrupt(single, name, severity).lidar.points) == 1


def test_mistakes_are_named(frame):
    with pytest.raises(ValueError, match=r"motion_blurr.*motion_blur"):
        corrupt(frame, "motion_blurr", 1)
    with pytest.raises(ValueError, match="severity=0"):
        corrupt(frame, "fog", 0)
    with pytest.raises(ValueError, match="no LiDAR"):
        corrupt(replace(frame, lidar=None), "lidar_fog", 1)
    with pytest.raises(ValueError, match="NAME:SEVERITY"):
        Corruption.parse("fog:hard")
    assert Corruption.parse("fog:3") == Corruption(name="fog", severity=3)


def test_rotation_vectors_go_back_and_forth():
    vector = np.array([0.1, -0.2, 0.3])
    np.testing.assert_allclose(vector_from_rotation(rotation_from_vector(vector)), vector, atol=1e-12)
    np.testing.assert_allclose(rotation_from_vector(np.array([0, 0, 0.7])), rotation_from_yaw(0.7), atol=1e-12)
    np.testing.assert_allclose(vector_from_rotation(np.eye(3)), 0, atol=1e-12)
    assert transform(rotation_from_vector(np.zeros(3)), np.zeros(3)) == pytest.approx(np.eye(4))


@pytest.mark.data
def test_corruptions_work_on_the_real_keyframe(shared):
    from fusionocc_core.data.nuscenes import NuScenesFrames

    frame = NuScenesFrames(shared / "data" / "nuscenes_scene0061")[0]
    for name in CORRUPTIONS:
        spoilt = corrupt(frame, name, 3)
        assert len(spoilt.cameras) == 6
        assert len(spoilt.lidar.points) > 10_000

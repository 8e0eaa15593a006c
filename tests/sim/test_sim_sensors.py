"""Clocks, clouds and poses behave as those of nuScenes; the same checks run on the real keyframe where they apply."""

import numpy as np
import pytest
import sim_checks

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.geometry import apply
from fusionocc_core.simulation import SimulationConfig
from fusionocc_core.simulation.config import VERSION, list_scenes, scene_clock
from fusionocc_core.simulation.materials import RAW

OFFSETS_MS = {
    "CAM_FRONT_LEFT": -42.8,
    "CAM_FRONT": -35.3,
    "CAM_FRONT_RIGHT": -27.3,
    "CAM_BACK_RIGHT": -19.7,
    "CAM_BACK": -10.1,
    "CAM_BACK_LEFT": -0.3,
}
"""Camera stamp minus LiDAR stamp, means over 81 real keyframes."""


@pytest.fixture(scope="module")
def real_frame(shared):
    return NuScenesFrames(shared / "data" / "nuscenes_scene0061")[0]


def columns_of(frame):
    """(C, 32, 5): the cloud by firing and ring."""
    return frame.lidar.points.reshape(-1, 32, 5)


def check_rings(frame, up_to_deg):
    """Ring index in file order, and elevations -30.67 + 4/3 a ring."""
    firings = columns_of(frame)
    assert (firings[..., 4] == np.arange(32)).all()
    distance = np.linalg.norm(firings[..., :3], axis=-1)
    for ring in range(6, 32):
        far = distance[:, ring] > 8
        if far.sum() > 50:
            elevation = np.degrees(np.arcsin(firings[far, ring, 2] / distance[far, ring]))
            assert abs(np.median(elevation) - (-30.67 + ring * 4 / 3)) < up_to_deg


def check_clockwise(frame):
    """Azimuth falls from 180 degrees, by about a third of a degree a column."""
    firings = columns_of(frame)
    distance = np.linalg.norm(firings[..., :3], axis=-1)
    azimuth = np.full(len(firings), np.nan)
    for k, far in enumerate(distance > 5):
        if far.sum() > 3:
            around = np.exp(1j * np.arctan2(firings[k, far, 1], firings[k, far, 0]))
            azimuth[k] = np.degrees(np.angle(around.sum()))
    step = np.diff(np.unwrap(azimuth[np.isfinite(azimuth)], period=360))
    assert -0.40 < np.median(step) < -0.28
    known = np.flatnonzero(np.isfinite(azimuth))
    assert abs(abs(azimuth[known[0]]) - 180) < 25


def check_road_height(frame):
    """Points on the lane before and behind the car lie at z = 0."""
    points = sim_checks.points_in_ego(frame)
    lane = (np.abs(points[:, 1]) < 1.5) & (points[:, 0] > 4) & (points[:, 0] < 9) & (np.abs(points[:, 2]) < 0.5)
    assert lane.sum() > 30
    assert abs(np.median(points[lane, 2])) < 0.08


def check_own_car(frame):
    """Hits on the own car lie within its roof and bonnet, in the lower rings."""
    points = frame.lidar.points
    near = (np.abs(points[:, 0]) < 0.7) & (points[:, 1] > -1.3) & (points[:, 1] < 1.9) & (points[:, 2] < -0.2)
    assert 1000 < near.sum() < 5000
    assert points[near, 4].max() <= 11
    assert points[near, 2].min() > -1.1


def check_no_returns(frame):
    """Pulses without return lie where the sensor was: behind the origin by what the car drove since."""
    points = frame.lidar.points[:, :3]
    empty = (np.abs(points[:, 0]) < 0.1) & (np.abs(points[:, 2]) < 0.1) & (points[:, 1] > -0.6) & (points[:, 1] < 0.05)
    assert 0.03 < empty.mean() < 0.35
    speed = np.linalg.norm((frame.cameras[0].ego2global - frame.ego2global)[:3, 3]) / (
        (frame.stamp_ns - frame.cameras[0].stamp_ns) * 1e-9
    )
    assert -points[empty, 1].min() == pytest.approx(0.05 * speed, abs=0.06)


def check_intensity(frame):
    """Whole numbers up to 255, dark on the whole."""
    intensity = frame.lidar.points[:, 3]
    assert (intensity == np.round(intensity)).all()
    assert intensity.min() >= 0
    assert intensity.max() == 255
    back = np.linalg.norm(frame.lidar.points[:, :3], axis=1) > 3
    assert 6 <= np.median(intensity[back]) <= 24
    assert 35 <= np.percentile(intensity[back], 95) <= 100


CHECKS = [check_rings, check_clockwise, check_road_height, check_own_car, check_no_returns, check_intensity]


@pytest.mark.parametrize("check", CHECKS[1:], ids=lambda c: c.__name__)
def test_simulated_clouds(sim_frames, check):
    for frame in sim_frames:
        check(frame)


def test_simulated_rings(sim_frames):
    for frame in sim_frames:
        check_rings(frame, 0.6)


@pytest.mark.data
@pytest.mark.parametrize("check", CHECKS[1:], ids=lambda c: c.__name__)
def test_the_same_checks_hold_for_the_real_keyframe(real_frame, check):
    check(real_frame)


@pytest.mark.data
def test_real_rings(real_frame):
    check_rings(real_frame, 0.6)


def test_camera_stamps_lead_as_in_nuscenes():
    """Means over many keyframes within 1 ms of the real ones, and never far from them."""
    config = SimulationConfig(scenes=1, keyframes=60, seed=11)
    clocks = scene_clock(config, list_scenes(config)[0])
    lead = np.array([[(stamp - clock.lidar_us) / 1000 for stamp in clock.cameras_us] for clock in clocks])
    for camera, mean, spread in zip(config.load_rig().cameras, lead.mean(axis=0), np.ptp(lead, axis=0), strict=True):
        assert mean == pytest.approx(OFFSETS_MS[camera.name], abs=1.0)
        assert 1.0 < spread <= 5.1
    gaps = np.diff([clock.lidar_us for clock in clocks]) / 1e6
    assert gaps.min() > 0.398
    assert gaps.max() < 0.602
    assert gaps.mean() == pytest.approx(0.4975, abs=0.015)


def test_stamps_of_the_written_frames(sim_frames):
    lead = {name: [] for name in OFFSETS_MS}
    for frame in sim_frames:
        for camera in frame.cameras:
            lead[camera.name].append((camera.stamp_ns - frame.stamp_ns) / 1e6)
    for name, values in lead.items():
        assert np.mean(values) == pytest.approx(OFFSETS_MS[name], abs=1.0)


@pytest.mark.data
def test_stamps_of_the_real_keyframe(real_frame):
    for camera in real_frame.cameras:
        assert (camera.stamp_ns - real_frame.stamp_ns) / 1e6 == pytest.approx(OFFSETS_MS[camera.name], abs=2.5)


def test_each_sensor_has_the_pose_of_its_own_stamp(sim_frames):
    for frame in sim_frames:
        assert frame.ego2global[2, 3] == 0
        moved = [np.linalg.norm((camera.ego2global - frame.ego2global)[:2, 3]) for camera in frame.cameras]
        waited = [(frame.stamp_ns - camera.stamp_ns) * 1e-9 for camera in frame.cameras]
        speed = moved[0] / waited[0]
        assert 0 <= speed < 9.5
        np.testing.assert_allclose(moved, np.abs(waited) * speed, atol=0.02)


def test_clouds_of_a_scene_fall_together_on_the_map(sim_root, sim_frames):
    """Compensation to the sweep's end and ego poses: the walls of two keyframes coincide in global coordinates."""
    first, second = sim_frames[0], sim_frames[1]
    clouds = []
    for frame in (first, second):
        category = sim_checks.lidarseg(sim_root, VERSION, frame.token)
        wall = category == RAW["static.manmade"]
        clouds.append(apply(frame.ego2global, sim_checks.points_in_ego(frame)[wall])[:, :2])
    cells = {tuple(cell) for cell in np.floor(clouds[0] / 0.3).astype(int)}
    cells |= {(x + dx, y + dy) for x, y in cells for dx in (-1, 0, 1) for dy in (-1, 0, 1)}
    met = np.mean([tuple(cell) in cells for cell in np.floor(clouds[1] / 0.3).astype(int)])
    assert met > 0.7


def test_global_coordinates_lie_on_the_map(nusc):
    for scene in nusc.scene:
        log = nusc.get("log", scene["log_token"])
        mask = nusc.get("map", log["map_token"])["mask"]
        sample = nusc.get("sample", scene["first_sample_token"])
        while sample:
            row = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
            x, y, _ = nusc.get("ego_pose", row["ego_pose_token"])["translation"]
            assert mask.is_on_mask(np.array([x]), np.array([y]))[0]
            sample = nusc.get("sample", sample["next"]) if sample["next"] else None

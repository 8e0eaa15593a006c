"""What every condition means, exactly, on a tiny data set with and without files between its keyframes."""

import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from nuscenes_tree import ego_pose_at, write_tree

from fusionocc_core.data.nuscenes import NuScenesFrames, read_camera, read_sweep
from fusionocc_core.data.pipeline import cam2keyego
from fusionocc_core.engine.robustness.conditions import (
    Around,
    CameraMiscalibration,
    CamerasDropped,
    Clean,
    LidarBeams,
    LidarDropped,
    LidarMiscalibration,
)
from fusionocc_core.engine.robustness.delay import Delay, note_of
from fusionocc_core.engine.robustness.scene_files import MS, EgoTrack, Inapplicable, SceneFiles
from fusionocc_core.engine.robustness.standard import Rig, chosen_conditions, rig_of, standard_conditions
from fusionocc_core.geometry import inverse, rotation_from_yaw, transform
from fusionocc_core.structures import InputConfig

SCENE = {"scene-0061": 4}
INDEX = 2
"""The keyframe that is spoilt: it has two earlier ones and a later one."""


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """Keyframes only."""
    return NuScenesFrames(write_tree(tmp_path_factory.mktemp("still") / "data", scenes=SCENE).root)


@pytest.fixture(scope="module")
def sweeping(tmp_path_factory):
    """Four files between two keyframes: one every 100 ms."""
    root = write_tree(tmp_path_factory.mktemp("sweeping") / "data", scenes=SCENE, sweeps=4, image_size=(64, 36)).root
    return NuScenesFrames(root)


def frozen(frame):
    """A frame whose arrays refuse to be written to."""
    cameras = [c for group in (frame.cameras, *frame.camera_history) for c in group]
    sweeps = [s for s in (frame.lidar, *frame.lidar_history) if s]
    arrays = [frame.ego2global, *(getattr(c, n) for c in cameras for n in ("image", "cam2ego", "ego2global"))]
    for array in [*arrays, *(getattr(s, n) for s in sweeps for n in ("points", "lidar2ego", "ego2global"))]:
        array.setflags(write=False)
    return frame


@pytest.fixture(scope="module")
def frame(still):
    return frozen(still.with_history(cameras=1, lidar=2)[INDEX])


def around(frames, seed=0, place=0):
    return Around(seed=seed, place=place, files=SceneFiles(frames))


def applied(condition, frame, frames, **kwargs):
    return condition.apply(frame, around(frames, **kwargs)).frame


def contents(frame):
    """Everything in a frame, for comparison bit by bit."""
    cameras = [c for group in (frame.cameras, *frame.camera_history) for c in group]
    sweeps = [s for s in (frame.lidar, *frame.lidar_history) if s]
    of_cameras = [(c.name, c.stamp_ns, *(a.tobytes() for a in (c.image, c.cam2ego, c.ego2global))) for c in cameras]
    return of_cameras, [(s.stamp_ns, *(a.tobytes() for a in (s.points, s.lidar2ego, s.ego2global))) for s in sweeps]


def angle_deg(a, b):
    turn = a[:3, :3].T @ b[:3, :3]
    return np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))


EVERYTHING = chosen_conditions(
    standard_conditions(Rig(cameras=6, rings=32, sweeping=frozenset({"camera", "lidar"})), (1, 5)), None
)


@pytest.mark.parametrize("condition", EVERYTHING, ids=lambda c: c.key)
def test_conditions_leave_their_frame_alone_and_follow_from_the_seed(condition, still, frame):
    try:
        spoiled = [applied(condition, frame, still, seed=seed) for seed in (3, 3, 4)]
    except Inapplicable:
        pytest.fail("possible with this data")
    assert contents(spoiled[0]) == contents(spoiled[1])
    assert (spoiled[0].stamp_ns, spoiled[0].token) == (frame.stamp_ns, frame.token)
    assert np.array_equal(spoiled[0].ego2global, frame.ego2global)
    # Without files between the keyframes a noticed delay has nothing to show.
    same = condition == Clean() or condition.key.endswith("noticed")
    assert (contents(spoiled[0]) == contents(frame)) == same
    drawn = condition.group == "calibration" or condition.key in ("cameras-3", "snow-5", "cross_talk-5")
    if drawn:
        assert contents(spoiled[0]) != contents(spoiled[2])


def test_dropped_cameras_are_nested_even_and_leave_the_others_untouched(still, frame):
    names = [camera.name for camera in frame.cameras]
    lost_by_count = []
    for count in range(1, 7):
        times = dict.fromkeys(names, 0)
        for place in range(12):
            left = applied(CamerasDropped(count=count, of=6), frame, still, place=place)
            assert len(left.cameras) == 6 - count
            assert all(any(camera is other for other in frame.cameras) for camera in left.cameras)
            assert [c.name for c in left.camera_history[0]] == [c.name for c in left.cameras]
            assert (left.lidar, left.lidar_history) == (frame.lidar, frame.lidar_history)
            for name in set(names) - {camera.name for camera in left.cameras}:
                times[name] += 1
            if place == 7:
                lost_by_count.append(set(names) - {camera.name for camera in left.cameras})
        assert set(times.values()) == {2 * count}, "every camera is lost equally often"
    assert all(fewer < more for fewer, more in pairwise(lost_by_count))


def test_no_lidar_keeps_cameras_and_reference(still, frame):
    left = applied(LidarDropped(), frame, still)
    assert left.lidar is None
    assert left.lidar_history == ()
    assert left.cameras is frame.cameras


def test_the_last_sensor_cannot_be_dropped(still, frame):
    with pytest.raises(Inapplicable, match="no LiDAR"):
        applied(CamerasDropped(count=6, of=6), replace(frame, lidar=None), still)
    with pytest.raises(Inapplicable, match="no camera"):
        applied(LidarDropped(), replace(frame, cameras=()), still)


@pytest.mark.parametrize(("keep", "rings"), [(16, range(0, 32, 2)), (8, range(0, 32, 4)), (3, (0, 10, 21))])
def test_beams_keep_exactly_their_rings(still, frame, keep, rings):
    left = applied(LidarBeams(keep=keep, of=32), frame, still)
    for clean, thin in zip((frame.lidar, *frame.lidar_history), (left.lidar, *left.lidar_history), strict=True):
        kept = [row for row in clean.points if row[4] in set(rings)]
        assert np.array_equal(thin.points, kept)
        assert set(thin.points[:, 4]) == set(rings)
    assert left.cameras is frame.cameras


def test_beams_that_cannot_be(still, frame):
    with pytest.raises(ValueError, match="keep=33 of 32 rings"):
        LidarBeams(keep=33, of=32)
    top = replace(frame.lidar, points=frame.lidar.points[frame.lidar.points[:, 4] == 31])
    with pytest.raises(Inapplicable, match=r"of the rings \(0, 8"):
        applied(LidarBeams(keep=4, of=32), replace(frame, lidar=top), still)


@pytest.mark.parametrize("degrees", [1.0, 2.0, 5.0])
def test_one_degree_is_one_degree_and_constant(still, frame, degrees):
    late = frozen(still.with_history(cameras=1, lidar=2)[INDEX + 1])
    turned, later = (applied(CameraMiscalibration(degrees=degrees), f, still) for f in (frame, late))
    double = applied(CameraMiscalibration(degrees=2 * degrees), frame, still)
    wrong = set()
    for n, (clean, bad) in enumerate(zip(frame.cameras, turned.cameras, strict=True)):
        assert angle_deg(clean.cam2ego, bad.cam2ego) == pytest.approx(degrees, abs=1e-5)
        assert np.array_equal(clean.cam2ego[:3, 3], bad.cam2ego[:3, 3]), "it stays where it is"
        assert clean.image is bad.image
        for other in (later.cameras[n], turned.camera_history[0][n], later.camera_history[0][n]):
            assert np.array_equal(other.cam2ego, bad.cam2ego)
        error = inverse(clean.cam2ego) @ bad.cam2ego
        assert np.allclose(error @ error, inverse(clean.cam2ego) @ double.cameras[n].cam2ego), "the same axis"
        wrong.add(error.round(9).tobytes())
    assert len(wrong) == 6, "every camera has its own axis"
    lidar = applied(LidarMiscalibration(degrees=degrees), frame, still)
    assert angle_deg(frame.lidar.lidar2ego, lidar.lidar.lidar2ego) == pytest.approx(degrees, abs=1e-5)
    assert all(np.array_equal(sweep.lidar2ego, lidar.lidar.lidar2ego) for sweep in lidar.lidar_history)
    assert lidar.cameras is frame.cameras


def record_at(frames, channel, stamp_ns):
    return next(r for r in frames.sensor_records("scene-0061") if (r.channel, r.stamp_ns) == (channel, stamp_ns))


@pytest.mark.parametrize("delay_ms", [100, 200])
def test_delay_shows_the_file_that_is_so_much_older_under_the_old_stamp(sweeping, delay_ms):
    frame = frozen(sweeping.with_history(cameras=1, lidar=1)[INDEX])
    spoiled = Delay(sensor="camera", delay_ms=delay_ms).apply(frame, around(sweeping))
    assert (spoiled.really_older, spoiled.files) == (12, 12)
    then = spoiled.frame.cameras + spoiled.frame.camera_history[0]
    for clean, late in zip(frame.cameras + frame.camera_history[0], then, strict=True):
        expected = read_camera(record_at(sweeping, clean.name, clean.stamp_ns - delay_ms * MS))
        assert np.array_equal(late.image, expected.image)
        assert not np.array_equal(late.image, clean.image)
        assert (late.stamp_ns, late.name) == (clean.stamp_ns, clean.name)
        assert np.array_equal(late.ego2global, clean.ego2global)
        assert np.array_equal(late.cam2ego, clean.cam2ego)
    assert spoiled.frame.lidar is frame.lidar
    spoiled = Delay(sensor="lidar", delay_ms=delay_ms).apply(frame, around(sweeping))
    sweeps = (spoiled.frame.lidar, *spoiled.frame.lidar_history)
    for clean, late in zip((frame.lidar, *frame.lidar_history), sweeps, strict=True):
        expected = read_sweep(record_at(sweeping, "LIDAR_TOP", clean.stamp_ns - delay_ms * MS))
        assert np.array_equal(late.points, expected.points)
        assert late.stamp_ns == clean.stamp_ns
        assert np.array_equal(late.lidar2ego, clean.lidar2ego)
    assert spoiled.frame.cameras is frame.cameras


@pytest.mark.parametrize("delay_ms", [50, 70, 100, 130, 200])
@pytest.mark.parametrize("with_files", [True, False])
def test_what_stands_still_is_off_by_the_ego_motion_of_the_delay(still, sweeping, with_files, delay_ms):
    """Whatever file was at hand, its content is believed to be seen from where the vehicle was ``delay`` later."""
    frames = sweeping if with_files else still
    frame = frozen(frames.with_history(cameras=1, lidar=1)[INDEX])
    spoiled = Delay(sensor="camera", delay_ms=delay_ms).apply(frame, around(frames))
    for clean, late in zip(frame.cameras, spoiled.frame.cameras, strict=True):
        taken = [r for r in frames.sensor_records("scene-0061") if r.channel == clean.name]
        taken = next(r for r in taken if np.array_equal(read_camera(r).image, late.image))
        assert abs(taken.stamp_ns + delay_ms * MS - clean.stamp_ns) <= (50 if with_files else delay_ms) * MS
        believed = ego_pose_at((taken.stamp_ns + delay_ms * MS) // 1000, 0) @ clean.cam2ego
        # Between two poses the way is straight; the true one is a curve.
        assert np.allclose(late.ego2global @ late.cam2ego, believed, atol=2e-3)
        assert late.stamp_ns == clean.stamp_ns
    lidar = Delay(sensor="lidar", delay_ms=delay_ms).apply(frame, around(frames)).frame.lidar
    if not with_files:
        later = ego_pose_at(frame.lidar.stamp_ns // 1000 + delay_ms * 1000, 0)
        assert np.allclose(lidar.ego2global @ lidar.lidar2ego, later @ frame.lidar.lidar2ego, atol=2e-3)
        ahead = (inverse(frame.lidar.lidar2ego) @ lidar.lidar2ego)[:3, 3]
        assert np.linalg.norm(ahead) == pytest.approx(8.0 * delay_ms / 1000, rel=0.02), "8 m/s"
        assert np.array_equal(lidar.points, frame.lidar.points)


@pytest.mark.parametrize("key_pose", ["reference", "first_camera"])
def test_the_error_does_not_depend_on_the_key_pose(still, frame, key_pose):
    """A network that calls the first camera's pose its own must see the same displacement."""
    inputs = InputConfig(image_size=(32, 64), key_pose=key_pose)
    late = applied(Delay(sensor="camera", delay_ms=200), frame, still)
    before, after = (cam2keyego(f, [f.cameras], inputs)[0].double().numpy() for f in (frame, late))
    shift = (after @ np.linalg.inv(before))[:, :3, 3]
    assert np.linalg.norm((after - before)[:, :3, 3], axis=1) == pytest.approx(1.6, rel=0.05)
    assert (shift[:, 0] > 1.4).all(), "forwards"


def test_noticed_delay_has_its_own_stamp_and_pose(sweeping):
    frame = sweeping.with_history(cameras=0, lidar=0)[INDEX]
    for late, clean in (
        (applied(Delay(sensor="camera", delay_ms=200, noticed=True), frame, sweeping).cameras[1], frame.cameras[1]),
        (applied(Delay(sensor="lidar", delay_ms=200, noticed=True), frame, sweeping).lidar, frame.lidar),
    ):
        assert late.stamp_ns == clean.stamp_ns - 200 * MS
        assert np.allclose(late.ego2global, ego_pose_at(late.stamp_ns // 1000, 0), atol=1e-9)


def test_the_first_keyframe_has_nothing_older(sweeping):
    spoiled = Delay(sensor="lidar", delay_ms=100).apply(sweeping[0], around(sweeping))
    assert (spoiled.really_older, spoiled.files) == (0, 1)
    assert np.array_equal(spoiled.frame.lidar.points, sweeping[0].lidar.points)
    assert [note_of(really_older=n, files=4) for n in (0, 3, 4)] == ["ego motion", "older files 3/4", "older files"]
    assert note_of(really_older=0, files=0) == ""


def test_a_damaged_older_file_is_no_excuse(tmp_path):
    """It ends the run with its own message instead of passing for a condition that the data cannot have."""
    frames = NuScenesFrames(write_tree(tmp_path / "data", scenes=SCENE, sweeps=4, cameras={"CAM_FRONT": 0.0}).root)
    older = record_at(frames, "LIDAR_TOP", frames[1].lidar.stamp_ns - 100 * MS)
    older.path.write_bytes(b"short")
    with pytest.raises(ValueError, match="bytes") as error:
        applied(Delay(sensor="lidar", delay_ms=100), frames[1], frames)
    assert not isinstance(error.value, Inapplicable)


def test_sweeps_that_are_only_in_the_tables(tmp_path):
    """As in copies of nuScenes that hold samples/ alone; poses of all stamps are still known."""
    tree = write_tree(tmp_path / "data", scenes=SCENE, sweeps=4, cameras={"CAM_FRONT": 0.0})
    frames = NuScenesFrames(tree.root)
    shutil.rmtree(tree.root / "sweeps" / "LIDAR_TOP")
    assert rig_of(frames).sweeping == {"camera"}
    spoiled = Delay(sensor="lidar", delay_ms=100).apply(frames[1], around(frames))
    assert (spoiled.really_older, spoiled.files) == (0, 1)
    later = ego_pose_at(frames[1].stamp_ns // 1000 + 100_000, 0)
    late = spoiled.frame.lidar
    assert np.allclose(late.ego2global @ late.lidar2ego, later @ frames[1].lidar.lidar2ego, atol=1e-9)


def test_delays_that_cannot_be(still, frame, tmp_path):
    with pytest.raises(ValueError, match="sensor='radar'"):
        Delay(sensor="radar", delay_ms=50)
    with pytest.raises(ValueError, match="delay_ms=0"):
        Delay(sensor="lidar", delay_ms=0)
    for condition in (Delay(sensor="lidar", delay_ms=50), LidarMiscalibration(degrees=1), LidarBeams(keep=8, of=32)):
        with pytest.raises(Inapplicable, match="no LiDAR"):
            applied(condition, replace(frame, lidar=None), still)
    for condition in (Delay(sensor="camera", delay_ms=50), CameraMiscalibration(degrees=1)):
        with pytest.raises(Inapplicable, match="no camera"):
            applied(condition, replace(frame, cameras=()), still)
    alone = NuScenesFrames(write_tree(tmp_path / "alone", scenes={"scene-0061": 1}, cameras={}).root)
    with pytest.raises(Inapplicable, match=r"lie within 0\.0 ms"):
        applied(Delay(sensor="lidar", delay_ms=50), alone[0], alone)


def test_ego_track_between_and_beyond_its_poses():
    poses = tuple(transform(rotation_from_yaw(0.1 * k), [float(k), 0.0, 0.0]) for k in range(3))
    # The last two are too close together to tell a velocity from.
    nearly = transform(rotation_from_yaw(0.2), [2.0, 5e-3, 0.0])
    track = EgoTrack(stamps_ns=(0, 100 * MS, 200 * MS, 201 * MS), ego2global=(*poses, nearly))
    assert track.pose(100 * MS) is poses[1]
    assert np.allclose(track.pose(150 * MS), transform(rotation_from_yaw(0.15), [1.5, 0.0, 0.0]))
    assert np.allclose(track.pose(-50 * MS), transform(rotation_from_yaw(-0.05), [-0.5, 0.0, 0.0]))
    beyond = track.pose(302 * MS)
    assert np.allclose(beyond[:3, 3], [3.0, 0.01, 0.0], atol=0.02)
    assert np.allclose(beyond[:3, :3], rotation_from_yaw(0.3), atol=2e-3)


def test_rigs_get_the_conditions_that_they_can_have(still, sweeping, tmp_path):
    assert rig_of(still) == Rig(cameras=6, rings=32, sweeping=frozenset())
    assert rig_of(sweeping) == Rig(cameras=6, rings=32, sweeping=frozenset({"camera", "lidar"}))
    keys = [c.key for c in standard_conditions(rig_of(still))]
    assert len(set(keys)) == len(keys) == 6 + 1 + 3 + 6 + 6 + 15
    assert [c.key for c in EVERYTHING if c.group == "cameras"][-2:] == ["cameras-5", "cameras-all"]
    eight = [c.key for c in standard_conditions(Rig(cameras=8, rings=0, sweeping=frozenset()))]
    assert eight[:7] == [*(f"cameras-{n}" for n in range(1, 7)), "cameras-all"]
    assert not [key for key in eight if "lidar" in key or "beams" in key]
    tree = write_tree(tmp_path / "late", scenes=SCENE, cameras={"CAM_FRONT": 0.0})
    first = min(
        (r for r in tree.rows("sample_data") if tree.channel_of(r) == "LIDAR_TOP"), key=lambda r: r["timestamp"]
    )
    tree.write("sample_data", [r for r in tree.rows("sample_data") if r["token"] != first["token"]])
    assert rig_of(NuScenesFrames(tree.root)).rings == 32, "the first keyframe has no sweep, the next one has"
    blind = NuScenesFrames(write_tree(tmp_path / "blind", cameras={}).root)
    assert rig_of(blind) == Rig(cameras=0, rings=32, sweeping=frozenset())
    assert "cameras-all" not in [c.key for c in standard_conditions(rig_of(blind))]
    deaf = NuScenesFrames(write_tree(tmp_path / "deaf", lidars=(), cameras={"CAM_FRONT": 0.0}).root)
    assert [c.key for c in standard_conditions(rig_of(deaf))][:2] == ["cameras-all", "camera-delay-50ms"]


def test_choosing_conditions():
    chosen = chosen_conditions(EVERYTHING[1:], ["beams", "fog-5"])
    assert [c.key for c in chosen] == ["clean", "beams-16", "beams-8", "beams-4", "fog-5"]
    with pytest.raises(ValueError, match=r"'camera' is not known.*nearest: cameras, .*groups: cameras, lidar"):
        chosen_conditions(EVERYTHING[1:], ["camera"])
    with pytest.raises(ValueError, match="'beams': this data has nothing"):
        chosen_conditions(standard_conditions(Rig(cameras=2, rings=1, sweeping=frozenset())), ["beams"])
    with pytest.raises(ValueError, match="no condition is chosen"):
        chosen_conditions(EVERYTHING[1:], [])
    with pytest.raises(ValueError, match="severity=6"):
        standard_conditions(Rig(cameras=6, rings=32, sweeping=frozenset()), (6,))

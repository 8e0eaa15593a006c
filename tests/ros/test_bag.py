"""Bags written from nuScenes-format data, read back with rosbags: nothing lost, nothing changed."""

import json

import numpy as np
import pytest
from nuscenes_tree import write_tree
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.geometry import apply, inverse, project, rotation_from_quaternion_xyzw, transform
from fusionocc_ros import commands
from fusionocc_ros.bag import choose_scene, write_bag
from fusionocc_ros.bag_messages import Trajectory, sensor_frame
from fusionocc_ros.bag_reader import Bag, offered_quality, stamp_of

STORE = get_typestore(Stores.ROS2_JAZZY)
CAMERAS = ("CAM_FRONT", "CAM_BACK")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two cameras, one LiDAR, two scenes, two sweeps between keyframes."""
    cameras = dict.fromkeys(CAMERAS, 0.0) | {"CAM_BACK": 180.0}
    return write_tree(tmp_path_factory.mktemp("data"), cameras=cameras, sweeps=2)


@pytest.fixture(scope="module", params=["mcap", "sqlite3"])
def bag(request, tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("bags") / "scene"
    return write_bag(tree.root, out, scene="scene-0061", storage=request.param)


def read(path):
    with Reader(path) as reader:
        return [(c.topic, t, STORE.deserialize_cdr(raw, c.msgtype)) for c, t, raw in reader.messages()]


def by_topic(path):
    topics = {}
    for topic, _, message in read(path):
        topics.setdefault(topic, []).append(message)
    return topics


def stamp(header):
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def matrix(t):
    q, v = t.rotation, t.translation
    return transform(rotation_from_quaternion_xyzw((q.x, q.y, q.z, q.w)), (v.x, v.y, v.z))


class TestContents:
    def test_every_file_is_there_byte_for_byte_with_its_stamp(self, bag, tree):
        records = list(NuScenesFrames(tree.root).sensor_records("scene-0061"))
        topics = by_topic(bag.path)
        for channel in (*CAMERAS, "LIDAR_TOP"):
            frame = sensor_frame(channel)
            topic = f"/{frame}" if channel == "LIDAR_TOP" else f"/{frame}/image_rect_compressed"
            expected = [r for r in records if r.channel == channel]
            assert len(topics[topic]) == len(expected) == 10
            for record, message in zip(expected, topics[topic], strict=True):
                assert message.data.tobytes() == record.path.read_bytes()
                assert stamp(message.header) == record.stamp_ns
                assert message.header.frame_id == frame
        assert all(message.format == "jpeg" for message in topics["/cam_front/image_rect_compressed"])

    def test_cloud_layout_reads_back_as_the_file(self, bag, tree):
        message = by_topic(bag.path)["/lidar_top"][0]
        assert [(f.name, f.offset, f.datatype, f.count) for f in message.fields] == [
            (name, 4 * n, 7, 1) for n, name in enumerate(("x", "y", "z", "intensity", "ring"))
        ]
        assert (message.height, message.point_step, message.row_step) == (1, 20, 20 * message.width)
        assert message.is_dense
        points = np.frombuffer(message.data, np.float32).reshape(-1, 5)
        np.testing.assert_array_equal(points, NuScenesFrames(tree.root)[0].lidar.points)

    def test_camera_info_is_the_calibration(self, bag, tree):
        camera = next(c for c in NuScenesFrames(tree.root)[0].cameras if c.name == "CAM_BACK")
        infos = by_topic(bag.path)["/cam_back/camera_info"]
        pictures = by_topic(bag.path)["/cam_back/image_rect_compressed"]
        assert [stamp(m.header) for m in infos] == [stamp(m.header) for m in pictures]
        info = infos[0]
        np.testing.assert_array_equal(info.k.reshape(3, 3), camera.intrinsics)
        np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], camera.intrinsics)
        np.testing.assert_array_equal(info.r.reshape(3, 3), np.eye(3))
        assert (info.width, info.height) == (160, 90)
        assert not info.d.any()

    def test_order_of_time_and_poses_before_the_sensors_that_need_them(self, bag):
        messages = read(bag.path)
        times = [t for _, t, _ in messages]
        assert times == sorted(times)
        assert messages[0][0] == "/tf_static"
        known = set()
        for topic, _, message in messages:
            if topic == "/tf":
                known.add(stamp(message.transforms[0].header))
            elif topic not in ("/tf_static", "/odom"):
                assert stamp(message.header) in known, topic

    def test_metadata_for_ros2_bag(self, bag):
        text = (bag.path / "metadata.yaml").read_text()
        with Reader(bag.path) as reader:
            assert reader.message_count == sum(bag.messages.values())
            assert all(c.digest.startswith("RIHS01_") for c in reader.connections)
            assert all(c.msgdef.data for c in reader.connections)
            quality = {c.topic: offered_quality(c) for c in reader.connections}
        # Humble reads versions below 9 only; with them QoS is a string of numbers.
        assert "version: 8" in text
        assert quality["/tf_static"].durability.name == "TRANSIENT_LOCAL"
        assert {q.reliability.name for q in quality.values()} == {"RELIABLE"}
        assert {q.durability.name for t, q in quality.items() if t != "/tf_static"} == {"VOLATILE"}

    def test_keyframes_are_marked(self, bag, tree):
        frames = NuScenesFrames(tree.root, scenes=["scene-0061"])
        stamps = [frames[i].stamp_ns for i in range(len(frames))]
        with Bag(bag.path) as opened:
            assert opened.keyframe_stamps_ns == frozenset(stamps)
        assert list(bag.keyframe_stamps_ns) == stamps


class TestGeometry:
    def test_the_chain_of_transforms_projects_as_the_data_set_does(self, bag, tree):
        frame = NuScenesFrames(tree.root)[1]
        topics = by_topic(bag.path)
        static = {t.child_frame_id: matrix(t.transform) for t in topics["/tf_static"][0].transforms}
        assert {t.header.frame_id for t in topics["/tf_static"][0].transforms} == {"base_link"}
        moving = {stamp(m.transforms[0].header): m.transforms[0] for m in topics["/tf"]}
        assert {(t.header.frame_id, t.child_frame_id) for t in moving.values()} == {("map", "base_link")}
        points = frame.lidar.points[:, :3].astype(np.float64)
        for camera in frame.cameras:
            base2map_lidar = matrix(moving[frame.stamp_ns].transform)
            base2map_camera = matrix(moving[camera.stamp_ns].transform)
            lidar2cam = (
                inverse(static[sensor_frame(camera.name)])
                @ inverse(base2map_camera)
                @ base2map_lidar
                @ static["lidar_top"]
            )
            expected = (
                inverse(camera.cam2ego) @ inverse(camera.ego2global) @ frame.lidar.ego2global @ frame.lidar.lidar2ego
            )
            seen, wanted = (project(camera.intrinsics, apply(m, points)) for m in (lidar2cam, expected))
            ahead = wanted[:, 2] > 1.0
            assert ahead.any()
            np.testing.assert_allclose(seen[ahead], wanted[ahead], atol=1e-6)

    def test_odometry_is_the_pose_and_its_derivative(self, bag, tree):
        topics = by_topic(bag.path)
        assert len(topics["/odom"]) == len(topics["/tf"])
        for odometry, tf in zip(topics["/odom"], topics["/tf"], strict=True):
            assert (odometry.header.frame_id, odometry.child_frame_id) == ("map", "base_link")
            assert stamp(odometry.header) == stamp(tf.transforms[0].header)
            assert odometry.pose.pose.position.x == tf.transforms[0].transform.translation.x
            # The car of the test data drives 8 m/s along map x while it turns left with 0.1 rad/s.
            # (Its path begins anew at the first keyframe's stamp.)
            if stamp(odometry.header) < bag.keyframe_stamps_ns[0] + 50_000_000:
                continue
            linear, angular = odometry.twist.twist.linear, odometry.twist.twist.angular
            assert np.hypot(linear.x, linear.y) == pytest.approx(8.0, abs=0.05)
            assert angular.z == pytest.approx(0.1, abs=0.01)

    def test_a_single_pose_stands_still(self, tree):
        record = next(iter(NuScenesFrames(tree.root).sensor_records("scene-0103")))
        linear, angular = Trajectory([record]).twist(record.stamp_ns)
        assert not linear.any()
        assert not angular.any()

    @pytest.mark.data
    def test_real_keyframe_moves_at_its_speed(self, shared):
        records = list(NuScenesFrames(shared / "data" / "nuscenes_scene0061").sensor_records("scene-0061"))
        linear, _ = Trajectory(records).twist(records[-1].stamp_ns)
        assert linear[0] == pytest.approx(9.0, abs=0.5)
        assert np.abs(linear[1:]).max() < 0.3


class TestSelection:
    def test_keyframes_only(self, tree, tmp_path):
        summary = write_bag(tree.root, tmp_path / "b", scene="scene-0061", keyframes_only=True)
        assert summary.messages["/lidar_top"] == summary.messages["/cam_front/image_rect_compressed"] == 4

    def test_most_keyframes_keeps_their_pictures_and_the_sweeps_between(self, tree, tmp_path):
        summary = write_bag(tree.root, tmp_path / "b", scene="scene-0061", most_keyframes=2)
        assert len(summary.keyframe_stamps_ns) == 2
        assert summary.messages["/lidar_top"] == summary.messages["/cam_front/image_rect_compressed"] == 4

    def test_raw_pictures_are_the_decoded_ones(self, tree, tmp_path):
        write_bag(tree.root, tmp_path / "b", scene="scene-0103", raw=True)
        topics = by_topic(tmp_path / "b")
        assert "/cam_front/image_rect_compressed" not in topics
        message = topics["/cam_front/image_rect"][0]
        frame = next(f for f in (NuScenesFrames(tree.root, scenes=["scene-0103"])[0],))
        picture = next(c.image for c in frame.cameras if c.name == "CAM_FRONT")
        assert (message.encoding, message.step) == ("rgb8", 3 * 160)
        np.testing.assert_array_equal(message.data.reshape(picture.shape), picture)

    def test_the_only_scene_needs_no_name(self):
        assert choose_scene(["scene-9001"], None) == "scene-9001"

    def test_other_channels_become_other_topics(self, tmp_path):
        other = write_tree(tmp_path / "d", scenes={"lot": 1}, cameras={"FISHEYE.left": 90.0}, lidars=("ROOF-LIDAR",))
        topics = by_topic(write_bag(other.root, tmp_path / "b").path)
        assert {"/fisheye_left/image_rect_compressed", "/fisheye_left/camera_info", "/roof_lidar"} <= set(topics)


class TestErrors:
    def test_unknown_scene_names_the_nearest(self, tree, tmp_path):
        with pytest.raises(ValueError, match=r"scene='scene-0016'.*did you mean scene-0061"):
            write_bag(tree.root, tmp_path / "b", scene="scene-0016")
        with pytest.raises(ValueError, match=r"there are scene-0061, scene-0103"):
            write_bag(tree.root, tmp_path / "b", scene="xyz")
        with pytest.raises(ValueError, match=r"2 scenes; choose one with --scene"):
            write_bag(tree.root, tmp_path / "b")

    def test_existing_output_is_left_alone(self, tree, tmp_path):
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "precious").write_text("x")
        with pytest.raises(FileExistsError, match="exists already"):
            write_bag(tree.root, tmp_path / "b", scene="scene-0103")
        assert (tmp_path / "b" / "precious").exists()

    def test_output_that_cannot_be_made(self, tree, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match=r"--out .*file/a: cannot be created: .*; choose a writable folder"):
            write_bag(tree.root, tmp_path / "file" / "a" / "b", scene="scene-0103")

    def test_missing_files_are_named_before_anything_is_written(self, tmp_path):
        broken = write_tree(tmp_path / "d", scenes={"lot": 2}, cameras={"CAM_FRONT": 0.0}, sweeps=1)
        sweep = next((broken.root / "sweeps" / "CAM_FRONT").iterdir())
        sweep.unlink()
        with pytest.raises(FileNotFoundError, match=rf"1 of 6 files are missing: .*{sweep.name}.*--keyframes-only"):
            write_bag(broken.root, tmp_path / "b")
        assert not (tmp_path / "b").exists()
        write_bag(broken.root, tmp_path / "b", keyframes_only=True)

    def test_a_truncated_cloud_stops_it_and_leaves_nothing(self, tmp_path):
        broken = write_tree(tmp_path / "d", scenes={"lot": 2}, cameras={"CAM_FRONT": 0.0})
        cloud = broken.file("LIDAR_TOP", 1)
        cloud.write_bytes(cloud.read_bytes()[:-3])
        with pytest.raises(ValueError, match=r"LIDAR_TOP cloud .* truncated"):
            write_bag(broken.root, tmp_path / "b")
        assert not (tmp_path / "b").exists()

    @pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"BM" + data])
    def test_a_damaged_picture_stops_it_and_leaves_nothing(self, tmp_path, damage):
        broken = write_tree(tmp_path / "d", scenes={"lot": 2}, cameras={"CAM_FRONT": 0.0})
        picture = broken.file("CAM_FRONT", 1)
        picture.write_bytes(damage(picture.read_bytes()))
        with pytest.raises(ValueError, match=rf"CAM_FRONT picture .*{picture.name}.* (is truncated|expected a JPEG)"):
            write_bag(broken.root, tmp_path / "b")
        assert not (tmp_path / "b").exists()

    def test_calibration_that_changes_within_a_scene_is_refused(self, tmp_path):
        tree = write_tree(tmp_path / "d", scenes={"lot": 2}, cameras={"CAM_FRONT": 0.0})
        calibrations, files = tree.rows("calibrated_sensor"), tree.rows("sample_data")
        moved = next(row for row in calibrations if row["camera_intrinsic"]) | {"token": "moved"}
        moved["translation"] = [0.0, 0.0, 9.0]
        last = max((row for row in files if "CAM_FRONT" in row["filename"]), key=lambda row: row["timestamp"])
        last["calibrated_sensor_token"] = "moved"
        tree.write("calibrated_sensor", [*calibrations, moved])
        tree.write("sample_data", files)
        with pytest.raises(ValueError, match="CAM_FRONT: its calibration changes within the scene"):
            write_bag(tree.root, tmp_path / "b")

    def test_arguments(self, tree, tmp_path):
        with pytest.raises(ValueError, match="storage='zip'"):
            write_bag(tree.root, tmp_path / "b", storage="zip")
        with pytest.raises(ValueError, match="most_keyframes=0"):
            write_bag(tree.root, tmp_path / "b", scene="scene-0061", most_keyframes=0)

    def test_reading_what_is_no_bag(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such bag"):
            Bag(tmp_path / "none")
        with pytest.raises(FileNotFoundError, match=rf"{tmp_path}: no bag, .* has no metadata\.yaml; name the folder"):
            Bag(tmp_path)
        (tmp_path / "metadata.yaml").write_text("{}")
        with pytest.raises(ValueError, match="cannot be read as a rosbag2"), Bag(tmp_path):
            pass


def test_stamp_of_reads_both_byte_orders():
    body = {"little": b"\x00\x01\x00\x00", "big": b"\x00\x00\x00\x00"}
    for order, head in body.items():
        data = head + (1_532_402_927).to_bytes(4, order) + (647_951_000).to_bytes(4, order) + b"rest"
        assert stamp_of(data) == 1_532_402_927_647_951_000
    with pytest.raises(ValueError, match="too short"):
        stamp_of(b"\x00\x01\x00\x00abc")


def test_custom_data_survives_long_scenes(tmp_path):
    tree = write_tree(tmp_path / "d", scenes={"long": 40}, cameras={"CAM_FRONT": 0.0}, image_size=(16, 9))
    summary = write_bag(tree.root, tmp_path / "b")
    with Bag(summary.path) as bag:
        assert sorted(bag.keyframe_stamps_ns) == sorted(summary.keyframe_stamps_ns)
    assert len(json.dumps(summary.keyframe_stamps_ns)) > 800


def test_command_line(tree, tmp_path, capsys):
    out = tmp_path / "b"
    arguments = ["bag", "from-nuscenes", str(tree.root), "--out", str(out), "--storage", "sqlite3"]
    assert commands.main([*arguments, "--scene", "scene-0016"]) == 2
    assert "did you mean scene-0061" in capsys.readouterr().err
    assert not out.exists()
    assert commands.main([*arguments, "--scene", "scene-0061", "--keyframes-only", "--most-keyframes", "3"]) == 0
    rows = {
        line.split("│")[1].strip(): line.split("│")[2].strip()
        for line in capsys.readouterr().out.splitlines()
        if "│" in line
    }
    assert rows["/lidar_top"] == rows["/cam_back/camera_info"] == "3"
    assert (out / "b.db3").is_file()

"""What `fusionocc view` reads from bags and topics: which topic is what, which messages belong together."""

import argparse
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from nuscenes_tree import write_tree
from rclpy.serialization import deserialize_message, serialize_message
from synthetic_sensors import SPEED, START, ego_pose, static_transforms
from synthetic_sensors import cloud as cloud_message
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray

from fusionocc_core.commands.view_sources import SourceOptions, add_source_arguments, open_source
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.gaussians import GaussianCloud
from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.structures import Occupancy
from fusionocc_ros.bag import write_bag
from fusionocc_ros.bag_view import OPENER as BAGS
from fusionocc_ros.gaussian_markers import gaussians_to_markers
from fusionocc_ros.live_view import OPENER as LIVE
from fusionocc_ros.occupancy_messages import Provenance, message_to_occupancy, occupancy_to_message
from fusionocc_ros.view_moments import GAUSSIANS_S, ViewMoments, message_stamp_ns
from fusionocc_ros.view_topics import (
    CLOUD,
    COMPRESSED,
    INFO,
    MARKERS,
    OCCUPANCY,
    RAW,
    TF,
    TF_STATIC,
    TRANSFORMS,
    CameraTopics,
    ViewTopics,
    find_topics,
    read_parameters,
)

S = 10**9


KINDS = {
    "/cam_front/image_rect": RAW,
    "/cam_front/image_rect_compressed": COMPRESSED,
    "/cam_front/image_raw": RAW,
    "/cam_front/camera_info": INFO,
    "/rear/left/camera_info": INFO,
    "/rear/left/image": RAW,
    "/lonely/camera_info": INFO,
    "/fusionocc/voxels": CLOUD,
    "/lidar_top": CLOUD,
    "/radar": CLOUD,
    "/tf": TRANSFORMS,
    "/fusionocc/occupancy": OCCUPANCY,
    "/fusionocc/gaussians": MARKERS,
    "/other/gaussians": MARKERS,
}


class TestFindTopics:
    def test_sensors_are_told_by_type_and_name(self):
        found = find_topics(KINDS)
        assert found.cameras == (
            CameraTopics(name="CAM_FRONT", picture="/cam_front/image_rect_compressed", info="/cam_front/camera_info"),
            CameraTopics(name="REAR_LEFT", picture="/rear/left/image", info="/rear/left/camera_info"),
        )
        assert (found.lidar, found.occupancy, found.odometry) == ("/lidar_top", "/fusionocc/occupancy", "")
        assert found.base_frame == "base_link"
        assert found.gaussians == "/fusionocc/gaussians"
        assert find_topics({**KINDS, "/fusionocc/gaussians": RAW}).gaussians == ""

    def test_parameters_go_before_what_is_found(self, tmp_path):
        (tmp_path / "node.yaml").write_text(
            "/**:\n  ros__parameters:\n    camera_names: [CAM_FRONT]\n    cameras:\n      CAM_FRONT:\n"
            "        image_topic: cam_front/image_raw\n    lidar.topic: radar\n    base_frame: body\n"
            "    gaussians.deviations: 1.5\n"
        )
        found = find_topics(KINDS, read_parameters(tmp_path / "node.yaml"))
        assert [camera.picture for camera in found.cameras] == ["/cam_front/image_raw"]
        assert (found.lidar, found.base_frame, found.deviations) == ("/radar", "body", 1.5)

    def test_nothing_to_look_at_is_said(self, tmp_path):
        with pytest.raises(ValueError, match=r"nothing to look at among 1 topics \(/tf "):
            find_topics({"/tf": TRANSFORMS})
        with pytest.raises(ValueError, match="camera CAM_X has no topics"):
            find_topics(KINDS, {"camera_names": ["CAM_X"]})
        (tmp_path / "bad.yaml").write_text("- 1\n")
        with pytest.raises(ValueError, match=r"--params .*bad\.yaml: expected a file with NODE"):
            read_parameters(tmp_path / "bad.yaml")


def answer(stamp_ns, **about):
    grid = VoxelGrid(frame="ego", lower=(0.0, 0.0, 0.0), upper=(4.0, 4.0, 2.0), voxel_size=(1.0, 1.0, 1.0))
    occupancy = Occupancy(
        labels=np.full(grid.shape, 4, np.uint8), grid=grid, label_set=OCC3D_LABELS, stamp_ns=stamp_ns, model="m"
    )
    about = Provenance(frame_id="base_link", times={"network": 0.25, "total": 0.5}, **about)
    return occupancy_to_message(occupancy, about, encoding="sparse")


def markers(stamp_ns, frame="base_link"):
    cloud = GaussianCloud(
        means_G3=np.array([[1, 2, 0.5], [3, 1, 1]], np.float32),
        scales_G3=np.array([[0.3, 0.2, 0.1], [0.4, 0.4, 0.4]], np.float32),
        rotations_G4=np.array([[0.6, 0, 0, 0.8], [1, 0, 0, 0]], np.float32),
        opacities_G=np.array([0.9, 0.4], np.float32),
        labels_G=np.array([4, 11], np.uint8),
    )
    shown = replace(message_to_occupancy(answer(stamp_ns)), gaussians=cloud)
    data = gaussians_to_markers(shown, frame, most=10, deviations=1.5)
    return cloud, deserialize_message(data, MarkerArray)


@pytest.fixture
def beside():
    """Moments of a LiDAR and a node's answers, of a vehicle whose poses are known."""
    topics = ViewTopics(lidar="/lidar_top", occupancy="/o", gaussians="/gaussians", deviations=1.5)
    moments = ViewMoments(topics, is_live=True)
    moments.take(TF_STATIC, 0, static_transforms)
    for k in range(-10, 200):
        moments.take(TF, 0, partial(pose, START + k * S // 10))
    yield moments
    moments.close()


def pose(stamp_ns):
    return TFMessage(transforms=[ego_pose(stamp_ns)])


def sweep(moments, *seconds):
    for second in seconds:
        stamp_ns = START + round(second * S)
        moments.take("/lidar_top", stamp_ns, partial(cloud_message, stamp_ns))


def reply(moments, second, **about):
    stamp_ns = START + round(second * S)
    moments.take("/o", stamp_ns, partial(answer, stamp_ns, **about))


def shown(moments):
    """(second, cloud there, prediction there) of the newest moment."""
    frame = moments.next(newest=True)
    if frame is None:
        return None
    with_cloud = frame.sensors is not None and frame.sensors.lidar is not None
    return ((frame.stamp_ns - START) / S, with_cloud, frame.prediction is not None)


class TestLateAnswers:
    def test_what_a_busy_node_leaves_out_is_not_waited_for(self, beside):
        sweep(beside, 0.0, 0.05, 0.1, 0.15)
        assert shown(beside) is None
        reply(beside, 0.1)
        assert shown(beside) == (0.1, True, True)
        assert shown(beside) is None
        sweep(beside, 2.2)
        assert shown(beside) == (0.15, True, False)  # nobody answers it any more

    def test_a_slow_nodes_answers_are_shown_when_they_come(self, beside):
        sweep(beside, 0.0, 3.0)
        assert shown(beside) == (0.0, True, False)
        reply(beside, 0.0)  # its moment has been shown
        assert shown(beside) is None
        sweep(beside, 6.0)  # 3 s later than 3.0, and as long as the first answer took
        reply(beside, 3.0)
        assert shown(beside) == (3.0, True, True)
        sweep(beside, 16.0)
        assert shown(beside) == (6.0, True, False)  # the node has ended

    def test_an_answer_without_a_sweep_is_shown_where_the_vehicle_was(self, beside):
        reply(beside, 1.0)
        frame = beside.next(newest=True)
        assert frame.sensors is None
        np.testing.assert_allclose(frame.ego2global[:3, 3], (SPEED, 2.0, 0.0), atol=1e-6)
        sweep(beside, 1.0)  # it comes later than its answer
        reply(beside, 2.0)
        assert shown(beside) == (2.0, False, True)

    def test_a_short_bag_in_a_loop_goes_on(self, beside):
        for turn in range(3):
            for second in (0.0, 0.5, 1.0, 1.5):
                sweep(beside, second)
                if second == 0.0 and turn:
                    reply(beside, 1.5)  # late, to the last sweep of the round before
                    assert shown(beside) is None
                reply(beside, second)
                assert shown(beside) == (second, True, True)

    def test_what_did_not_take_part_is_noted(self, beside):
        sweep(beside, 0.0)
        reply(beside, 0.0, missing={"CAM_FRONT": "no_message", "CAM_BACK": "bad_image"})
        first, second = beside.next().notes
        assert first == "CAM_FRONT: no message"
        assert second.startswith("CAM_BACK: bad_image, a picture is truncated")


class TestGaussians:
    def test_they_belong_to_the_answer_of_their_stamp(self, beside):
        cloud, message = markers(START)
        sweep(beside, 0.0)
        reply(beside, 0.0)
        beside.take("/gaussians", message_stamp_ns(message), lambda: message)
        found = beside.next(newest=True).prediction.gaussians
        for name in ("means_G3", "scales_G3", "rotations_G4", "opacities_G", "labels_G"):
            np.testing.assert_allclose(getattr(found, name), getattr(cloud, name), atol=1e-6)
        sweep(beside, 0.5)
        reply(beside, 0.5)
        assert beside.next(newest=True) is None  # they are under way ...
        sweep(beside, 0.9)
        assert beside.next(newest=True).prediction.gaussians is None  # ... or left out for their rate
        reply(beside, 0.9)
        time.sleep(GAUSSIANS_S)  # nothing else comes
        assert beside.next(newest=True).prediction.gaussians is None

    def test_markers_that_are_none_are_left_out_and_counted(self, beside):
        sweep(beside, 0.0, 1.0)
        for second, frame in ((0, "map"), (1, "base_link")):
            _, message = markers(START + second * S, frame)
            message.markers[1].type = Marker.CUBE
            beside.take("/gaussians", message_stamp_ns(message), partial(lambda m: m, message))
            reply(beside, second)
            assert beside.next(newest=True).prediction.gaussians is None
        assert any("in frame map: expected the answer's, base_link" in reason for reason in beside.refused)
        assert any("of type 1: expected spheres named by classes" in reason for reason in beside.refused)


class TestMoments:
    def test_answers_alone_are_shown_with_their_latencies(self):
        moments = ViewMoments(ViewTopics(occupancy="/o"))
        moments.take("/o", S, partial(answer, S))
        frame = moments.next()
        moments.close()
        assert frame.sensors is None
        assert (frame.prediction.labels == 4).all()
        assert (frame.prediction.grid.frame, frame.stamp_ns) == ("ego", S)
        assert (frame.latencies_s["network"], frame.latencies_s["total"]) == (0.25, 0.5)

    def test_the_newest_leaves_out_what_is_older(self):
        moments = ViewMoments(ViewTopics(occupancy="/o"))
        for k in range(1, 5):
            moments.take("/o", k * S, partial(answer, k * S))
        assert moments.next(newest=True).stamp_ns == 4 * S
        assert moments.next(newest=True) is None
        moments.take("/o", -20 * S, partial(answer, S))  # stamps jump back: a bag began anew
        assert moments.next() is not None
        moments.close()

    def test_a_message_that_cannot_be_read_is_counted(self):
        def broken():
            raise ValueError("torn")

        moments = ViewMoments(ViewTopics(occupancy="/o"))
        moments.take("/o", S, broken)
        assert moments.next() is None
        assert moments.refused == {"torn": 1}
        moments.close()


class TestBags:
    def options(self, source, *more):
        parser = argparse.ArgumentParser()
        add_source_arguments(parser)
        return parser.parse_args([str(source), *more])

    def test_its_moments_are_the_keyframes_of_the_data_set(self, tmp_path):
        write_tree(tmp_path / "data")
        frames = NuScenesFrames(tmp_path / "data")
        bag = write_bag(tmp_path / "data", tmp_path / "bag", scene=frames.scenes[0])
        source = open_source(self.options(bag.path))
        shown = list(source)
        expected = [frames[i] for i in frames.scene_indices(frames.scenes[0])]
        assert [frame.stamp_ns for frame in shown] == [frame.stamp_ns for frame in expected]
        for frame, truth in zip(shown, expected, strict=True):
            np.testing.assert_allclose(frame.ego2global, truth.ego2global, atol=1e-6)
            np.testing.assert_array_equal(frame.sensors.lidar.points, truth.lidar.points)
            by_name = {camera.name: camera for camera in frame.sensors.cameras}
            assert set(by_name) == {camera.name for camera in truth.cameras}
            for camera in truth.cameras:
                assert by_name[camera.name].stamp_ns == camera.stamp_ns
                np.testing.assert_array_equal(by_name[camera.name].image, camera.image)
                np.testing.assert_allclose(by_name[camera.name].cam2ego, camera.cam2ego, atol=1e-6)
        limited = list(open_source(self.options(bag.path, "--start", "1", "--limit", "1", "--cameras", "CAM_FRONT")))
        assert [frame.stamp_ns for frame in limited] == [shown[1].stamp_ns]
        assert [camera.name for camera in limited[0].sensors.cameras] == ["CAM_FRONT"]
        with pytest.raises(ValueError, match="--cameras CAM_X: the bag has CAM_"):
            open_source(self.options(bag.path, "--cameras", "CAM_X"))
        with pytest.raises(ValueError, match="--scene, --version and --data are for data sets"):
            open_source(self.options(bag.path, "--scene", "scene-0061"))
        with pytest.raises(ValueError, match="no moment to show"):
            list(open_source(self.options(bag.path, "--start", "99")))

    def test_recorded_answers_and_their_gaussians(self, tmp_path):
        from rosbags.rosbag2 import StoragePlugin, Writer

        with Writer(tmp_path / "answers", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            topics = {"/occ/occupancy": OCCUPANCY, "/occ/gaussians": MARKERS}
            connections = {
                topic: writer.add_connection(topic, kind, msgdef="-", rihs01="-") for topic, kind in topics.items()
            }
            for second in (1, 2):
                message = answer(second * S, missing={"lidar": "no_message"})
                writer.write(connections["/occ/occupancy"], second * S, serialize_message(message))
            cloud, message = markers(2 * S)  # a node publishes them after the answer
            writer.write(connections["/occ/gaussians"], 2 * S + 1, serialize_message(message))
        first, second = open_source(self.options(tmp_path / "answers"))
        assert first.prediction.gaussians is None
        np.testing.assert_allclose(second.prediction.gaussians.means_G3, cloud.means_G3)
        # --params says with how many deviations they were made.
        np.testing.assert_allclose(second.prediction.gaussians.scales_G3, 1.5 * cloud.scales_G3, rtol=1e-6)
        assert first.notes == ("lidar: no message",)

    def test_empty_and_missing_bags(self, tmp_path):
        from rosbags.rosbag2 import Writer

        with Writer(tmp_path / "empty", version=8):
            pass
        with pytest.raises(ValueError, match="the bag is empty"):
            BAGS.open(SourceOptions(source=str(tmp_path / "empty")))
        with pytest.raises(FileNotFoundError, match="no such bag"):
            BAGS.open(SourceOptions(source=str(tmp_path / "no.mcap")))
        assert not BAGS.accepts(str(tmp_path))
        assert LIVE.accepts("ros")
        assert not LIVE.accepts("./ros")

"""The node in one process with made-up sensors: sets, history, bad input, lifecycle. Real DDS, a fake network."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from synthetic_sensors import (
    MS,
    OFFICIAL_CAMERAS,
    START,
    FakeNetwork,
    S,
    Vehicle,
    World,
    cloud,
    points,
    static_transforms,
)
from visualization_msgs.msg import Marker, MarkerArray

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros import declared, outputs
from fusionocc_ros.causes import CAUSES
from fusionocc_ros.convert import ns_to_stamp, stamp_to_ns
from fusionocc_ros.inputs import Inputs
from fusionocc_ros.node import OccNode, RosHandler
from fusionocc_ros.occupancy_messages import message_to_occupancy

pytestmark = pytest.mark.ros


@pytest.fixture(autouse=True)
def localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


def parameters(**values: Any) -> list[Parameter]:
    return [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]


def start(world: World, network: FakeNetwork, **values: Any) -> OccNode:
    node = world.add(OccNode(engine_factory=network, context=world.context, parameter_overrides=parameters(**values)))
    assert node.start()
    return node


def connected(vehicle: Vehicle) -> Callable[[], bool]:
    publishers = [vehicle.lidar, vehicle.tf, vehicle.tf_static, *vehicle.pictures.values(), *vehicle.infos.values()]
    return lambda: all(p.get_subscription_count() for p in publishers)


def drive(world: World, vehicle: Vehicle, node: OccNode, keyframes: int, first: int = 0, **how: Any) -> None:
    """Send keyframes half a second apart and let each be answered or dropped before the next."""
    for k in range(first, first + keyframes):
        before = outcomes(node)
        vehicle.keyframe(START + k * S // 2, **how)
        assert world.spin_until(lambda b=before: outcomes(node) > b), f"keyframe {k} had no outcome"


def logged(capfd: pytest.CaptureFixture[str]) -> str:
    """The log: on stderr, or on stdout where RCUTILS_LOGGING_USE_STDOUT was set when this process began to log."""
    return "".join(capfd.readouterr())


def outcomes(node: OccNode) -> int:
    counters = node.statistics.snapshot()
    return counters.published + sum(counters.dropped.values()) + sum(node.inputs.sync.counters.dropped.values())


def test_a_set_becomes_occupancy(world: World) -> None:
    network, vehicle = FakeNetwork(), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network)
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 3)
    assert world.spin_until(lambda: len(got) == 3)
    message = got[-1]
    assert stamp_to_ns(message.header.stamp) == START + S
    assert message.header.frame_id == "base_link"
    assert message.cameras == list(OFFICIAL_CAMERAS)
    np.testing.assert_allclose(message.camera_ages, [0.0428, 0.0353, 0.0273, 0.0003, 0.0101, 0.0197], atol=1e-6)
    assert message.ego_motion == SemanticOccupancy.EGO_MOTION_TF
    assert (message.model, message.trained_on) == ("fake", "nothing")
    assert 0 < message.total_time < 20
    occupancy = message_to_occupancy(message)
    assert occupancy.labels[5, 4, 1] == 1
    frame = network.frames[-1]
    front = frame.cameras[1]
    assert front.name == "CAM_FRONT"
    np.testing.assert_allclose(front.ego2global[:3, 3], [8.0 * (1 - 0.0353), 2, 0], atol=1e-6)
    np.testing.assert_allclose(frame.ego2global[:3, 3], [8.0, 2, 0], atol=1e-6)
    np.testing.assert_allclose(front.cam2ego @ [0, 0, 10, 1], [11, 0, 1.5, 1], atol=1e-9)
    ledger(world, node)
    assert node.statistics.snapshot().dropped == {}


def ledger(world: World, node: OccNode) -> None:
    """Every sweep that came in is published, dropped under a name, or in hand."""

    def balanced() -> bool:
        work, sync = node.statistics.snapshot(), node.inputs.sync
        dropped = sync.counters.dropped + work.dropped
        assert set(dropped) <= set(CAUSES)
        return sync.counters.received == work.published + sum(dropped.values()) + sync.pending + node.work.in_hand

    # A set that was just published is in hand a moment longer.
    assert world.spin_until(balanced, 2.0)


def only(kind: type, camera: str | None, edit: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A change that touches one kind of message, of one camera."""

    def change(message: Any) -> Any:
        if isinstance(message, kind) and camera in (None, message.header.frame_id.upper()):
            return edit(message)
        return message

    return change


def edited(**values: Any) -> Callable[[Any], Any]:
    def edit(message: Any) -> Any:
        for name, value in values.items():
            setattr(message, name, value)
        return message

    return edit


def cut(message: Any) -> Any:
    message.data = message.data[: len(message.data) // 2]
    return message


def nan_cloud(message: Any) -> Any:
    values = points()
    values[:, 0] = np.nan
    return cloud(stamp_to_ns(message.header.stamp), values)


def some_nan(message: Any) -> Any:
    values = points()
    values[:7, 1] = np.inf
    return cloud(stamp_to_ns(message.header.stamp), values)


def no_z(message: Any) -> Any:
    return cloud(stamp_to_ns(message.header.stamp), points(), names="x y intensity")


def empty(message: Any) -> Any:
    return cloud(stamp_to_ns(message.header.stamp), points(0))


UNCALIBRATED_K = [0.0] * 9

BAD: dict[str, tuple[str, str, Callable[[Any], Any], str]] = {
    "camera_info_missing": ("compressed", "no_camera_info", only(CameraInfo, "CAM_BACK", lambda m: None), "CAM_BACK"),
    "k_is_zero": ("compressed", "uncalibrated", only(CameraInfo, "CAM_FRONT", edited(k=UNCALIBRATED_K)), r"K\[0\]=0"),
    "distortion": (
        "compressed",
        "distorted",
        only(CameraInfo, "CAM_FRONT", edited(d=[0.1, 0, 0, 0, 0.0])),
        "plumb_bob",
    ),
    "info_of_another_size": ("compressed", "bad_calibration", only(CameraInfo, None, edited(height=99)), "64x99"),
    "unknown_encoding": ("raw", "bad_encoding", only(Image, "CAM_FRONT", edited(encoding="32FC1")), "'32FC1'"),
    "unknown_format": (
        "compressed",
        "bad_encoding",
        only(CompressedImage, "CAM_FRONT", edited(data=b"GIF89a")),
        "47 49",
    ),
    "jpeg_truncated": ("compressed", "bad_image", only(CompressedImage, "CAM_BACK_LEFT", cut), "truncated"),
    "image_truncated": ("raw", "bad_image", only(Image, "CAM_FRONT", cut), "truncated"),
    "image_of_no_size": ("raw", "bad_image", only(Image, "CAM_FRONT", edited(height=0, width=0)), "0x0"),
    "cloud_truncated": ("compressed", "bad_cloud", only(PointCloud2, None, cut), "truncated"),
    "cloud_without_z": ("compressed", "bad_cloud", only(PointCloud2, None, no_z), "no field z"),
    "cloud_empty": ("compressed", "empty_cloud", only(PointCloud2, None, empty), "no points"),
    "cloud_of_nan": ("compressed", "empty_cloud", only(PointCloud2, None, nan_cloud), "is finite"),
    "frame_unknown": (
        "compressed",
        "no_transform",
        only(CompressedImage, "CAM_FRONT", lambda m: with_frame(m, "cam_moon")),
        "'cam_moon' to 'base_link'",
    ),
    "frame_of_the_lidar_unknown": (
        "compressed",
        "no_transform",
        only(PointCloud2, None, lambda m: with_frame(m, "lidar_moon")),
        "'lidar_moon' to 'base_link'",
    ),
    "frame_empty": (
        "compressed",
        "no_transform",
        only(PointCloud2, None, lambda m: with_frame(m, "")),
        "lidar.frame_id",
    ),
    "stamp_zero": ("compressed", "zero_stamp", only(PointCloud2, None, lambda m: with_stamp(m, 0)), ""),
}


def with_frame(message: Any, frame_id: str) -> Any:
    message.header.frame_id = frame_id
    return message


def with_stamp(message: Any, stamp_ns: int) -> Any:
    message.header.stamp = ns_to_stamp(stamp_ns)
    return message


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_dropped_counted_and_named_and_the_node_goes_on(
    world: World, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    transport, cause, change, text = BAD[case]
    network, vehicle = FakeNetwork(), Vehicle(world.context, transport=transport)
    world.add(vehicle.node)
    node = start(world, network, image_transport=transport, transform_timeout=0.05, bad_sensors="drop")
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 2, change=change)
    dropped = node.statistics.snapshot().dropped + node.inputs.sync.counters.dropped
    assert dropped == {cause: 2}
    assert got == []
    assert re.search(text, logged(capfd))
    drive(world, vehicle, node, 1, first=2)
    assert world.spin_until(lambda: len(got) == 1)
    assert stamp_to_ns(got[0].header.stamp) == START + S
    ledger(world, node)


def test_a_missing_transform_names_both_frames_and_comes_back_when_it_is_published(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    network, vehicle = FakeNetwork(), Vehicle(world.context, leave_out=("cam_back",))
    world.add(vehicle.node)
    node = start(world, network, transform_timeout=0.05, bad_sensors="drop")
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 2)
    assert node.statistics.snapshot().dropped == {"no_transform": 2}
    assert "CAM_BACK: no transform from 'cam_back' to 'base_link'" in logged(capfd)
    vehicle.tf_static.publish(static_transforms())
    drive(world, vehicle, node, 1, first=2)
    assert node.statistics.snapshot().published == 1


def test_points_that_are_not_finite_are_left_out_and_counted(world: World) -> None:
    network, vehicle = FakeNetwork(), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network)
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 1, change=only(PointCloud2, None, some_nan))
    assert len(network.frames[0].lidar.points) == 493
    assert np.isfinite(network.frames[0].lidar.points).all()
    assert node._assembler.counters["points_not_finite"] == 7


def test_a_cloud_without_ring_and_intensity_is_used_and_said_once(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    network, vehicle = FakeNetwork(), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network)
    logging.getLogger("fusionocc_ros").addHandler(handler := RosHandler(node))
    assert world.spin_until(connected(vehicle))
    bare = only(PointCloud2, None, lambda m: cloud(stamp_to_ns(m.header.stamp), points(), names="x y z"))
    drive(world, vehicle, node, 3, change=bare)
    logging.getLogger("fusionocc_ros").removeHandler(handler)
    text = logged(capfd)
    assert text.count("has no field 'ring'") == 1
    assert text.count("has no field 'intensity'") == 1
    assert len(network.frames) == 3
    assert set(np.unique(network.frames[0].lidar.points[:, 4])) <= set(range(32))


def test_a_camera_that_is_silent_is_left_out(world: World) -> None:
    network, vehicle = FakeNetwork(), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network)
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 3, cameras=OFFICIAL_CAMERAS[1:])
    assert world.spin_until(lambda: len(got) == 3)
    assert all(message.cameras == list(OFFICIAL_CAMERAS[1:]) for message in got)
    assert node.inputs.sync.counters.missing["CAM_FRONT_LEFT"] == 3


def test_a_network_that_is_slower_than_the_sensors_works_on_the_newest_set(world: World) -> None:
    network, vehicle = FakeNetwork(delay_s=0.3), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network)
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 2)
    for k in range(2, 12):
        vehicle.keyframe(START + k * S // 2)
        world.spin_for(0.05)
    assert world.spin_until(lambda: outcomes(node) == 12)
    counters = node.statistics.snapshot()
    assert counters.dropped["superseded"] >= 5
    assert counters.published + counters.dropped["superseded"] == 12
    assert network.frames[-1].stamp_ns == START + 11 * S // 2
    ledger(world, node)


def test_a_network_that_fails_costs_the_frame_only(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    network, vehicle = FakeNetwork(), Vehicle(world.context)
    good = network.predict
    errors = iter([ValueError("too narrow"), RuntimeError("out of memory"), KeyError("a bug")])

    def predict(frame: Any) -> Any:
        error = next(errors, None)
        if error is not None:
            raise error
        return good(frame)

    network.predict = predict
    world.add(vehicle.node)
    node = start(world, network)
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 4)
    counters = node.statistics.snapshot()
    assert counters.dropped == {"prediction_failed": 2, "internal_error": 1}
    assert counters.published == 1
    text = logged(capfd)
    assert "too narrow" in text
    assert "Traceback" in text
    assert "KeyError: 'a bug'" in text


# ---- memory and motion -----------------------------------------------------------------------------------------------


def test_a_network_with_memory_is_given_earlier_keyframes_in_their_places(world: World) -> None:
    network, vehicle = FakeNetwork(camera_history=1, lidar_history=3), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network)
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 5)
    lengths = [(len(f.camera_history), len(f.lidar_history)) for f in network.frames]
    assert lengths == [(0, 0), (1, 1), (1, 2), (1, 3), (1, 3)]
    last = network.frames[-1]
    assert [s.stamp_ns for s in last.lidar_history] == [START + k * S // 2 for k in (3, 2, 1)]
    np.testing.assert_allclose([s.ego2global[0, 3] for s in last.lidar_history], [12.0, 8.0, 4.0], atol=1e-6)
    assert [c.name for c in last.camera_history[0]] == list(OFFICIAL_CAMERAS)
    assert last.camera_history[0][1].stamp_ns == START + 3 * S // 2 + int(-35.3 * MS)
    assert world.spin_until(lambda: len(got) == 5)
    assert (got[-1].camera_history, got[-1].lidar_history) == (1, 3)


def test_memory_starts_anew_when_the_stamps_jump_back(world: World) -> None:
    network, vehicle = FakeNetwork(lidar_history=3), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network)
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 6)
    drive(world, vehicle, node, 3)
    assert [len(f.lidar_history) for f in network.frames] == [0, 1, 2, 3, 3, 3, 0, 1, 2]
    assert node.inputs.sync.counters.resets == 1


def test_without_ego_motion_it_goes_on_and_says_so(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    network, vehicle = FakeNetwork(camera_history=1, lidar_history=3), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network)
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    diagnostics = world.collect(DiagnosticArray, "/diagnostics")
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 3, poses=False)
    assert world.spin_until(lambda: len(got) == 3)
    assert [m.ego_motion for m in got] == [SemanticOccupancy.EGO_MOTION_NONE] * 3
    assert [m.lidar_history for m in got] == [0, 0, 0]
    assert logged(capfd).count("ego motion is not known") == 1
    assert world.spin_until(lambda: any(status(d, "ego motion").level != DiagnosticStatus.OK for d in diagnostics))
    drive(world, vehicle, node, 1, first=3)
    assert world.spin_until(lambda: len(got) == 4)
    assert got[-1].ego_motion == SemanticOccupancy.EGO_MOTION_TF
    assert "ego motion comes from tf" in logged(capfd)


def test_ego_motion_from_odometry(world: World) -> None:
    network, vehicle = FakeNetwork(), Vehicle(world.context)
    world.add(vehicle.node)
    odometry = vehicle.node.create_publisher(Odometry, "/odom", 10)
    node = start(world, network)
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    assert world.spin_until(lambda: connected(vehicle)() and odometry.get_subscription_count() > 0)
    for k in range(-3, 4):
        message = Odometry(child_frame_id="base_link")
        message.header.frame_id, message.header.stamp = "odom", ns_to_stamp(START + k * 20 * MS)
        message.pose.pose.position.x = 3.0 * k
        message.pose.pose.orientation.w = 1.0
        odometry.publish(message)
    world.spin_for(0.2)
    drive(world, vehicle, node, 1, poses=False)
    assert world.spin_until(lambda: len(got) == 1)
    assert got[0].ego_motion == SemanticOccupancy.EGO_MOTION_ODOMETRY
    frame = network.frames[0]
    np.testing.assert_allclose(frame.ego2global[0, 3], 0, atol=1e-9)
    np.testing.assert_allclose(frame.cameras[0].ego2global[0, 3], -42.8 / 20 * 3, atol=1e-6)


def test_a_pose_that_is_missing_at_a_stamp_drops_the_frame(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    network, vehicle = FakeNetwork(), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network, transform_timeout=0.05)
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 1)
    drive(world, vehicle, node, 1, first=1, poses=False)
    drive(world, vehicle, node, 1, first=2)
    counters = node.statistics.snapshot()
    assert (counters.published, counters.dropped) == (2, {"no_ego_pose": 1})
    assert "no transform from 'base_link' to 'map' at 1600000000.500 s" in logged(capfd)


@pytest.mark.parametrize("policy", ["tf", "odometry"])
def test_ego_motion_that_is_required_and_absent_drops_frames(world: World, policy: str) -> None:
    vehicle = Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, FakeNetwork(), ego_motion=policy, transform_timeout=0.05)
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 2, poses=False)
    assert node.statistics.snapshot().dropped == {"no_ego_pose": 2}


def test_a_rig_file_stands_in_for_tf_static_and_camera_info(world: World, tmp_path: Path) -> None:
    cameras = {
        name: {
            "frame_id": f"rig_{name.lower()}",
            "translation": [1.0, 0.0, 1.5],
            "rotation_xyzw": [-0.5, 0.5, -0.5, 0.5],
            "intrinsics": {"width": 128, "height": 72, "fx": 100.0, "fy": 100.0, "cx": 63.5, "cy": 35.5},
        }
        for name in OFFICIAL_CAMERAS
    }
    lidar = {"frame_id": "rig_lidar", "translation": [0.0, 0.0, 2.0], "rotation_xyzw": [0.0, 0.0, 0.0, 1.0]}
    path = tmp_path / "rig.yaml"
    path.write_text(yaml.safe_dump({"base_frame": "base_link", "lidar": lidar, "cameras": cameras}))
    network, vehicle = FakeNetwork(), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network, rig_file=str(path))
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 1, infos=False)
    frame = network.frames[0]
    np.testing.assert_allclose(frame.lidar.lidar2ego[:3, 3], [0, 0, 2])
    # Half the size: focal lengths halve, and so does the principal point about the picture's border.
    np.testing.assert_allclose(frame.cameras[0].intrinsics, [[50, 0, 31.5], [0, 50, 17.5], [0, 0, 1]])
    np.testing.assert_allclose(frame.cameras[0].cam2ego @ [0, 0, 10, 1], [11, 0, 1.5, 1], atol=1e-9)


# ---- outputs ---------------------------------------------------------------------------------------------------------


def test_markers_and_voxels_are_made_while_someone_listens(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for name in ("occupancy_to_cloud",):
        original = getattr(outputs, name)
        monkeypatch.setattr(outputs, name, lambda *a, _o=original, _n=name: (made.append(_n), _o(*a))[1])
    network, vehicle = FakeNetwork(), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network)
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 1)
    assert made == []
    markers = world.collect(MarkerArray, "/fusionocc/markers")
    voxels = world.collect(PointCloud2, "/fusionocc/voxels")
    assert world.spin_until(lambda: node.count_subscribers("/fusionocc/voxels") == 1)
    assert world.spin_until(lambda: node.count_subscribers("/fusionocc/markers") == 1)
    world.spin_for(0.2)
    drive(world, vehicle, node, 1, first=1)
    assert world.spin_until(lambda: len(markers) == 1 and len(voxels) == 1)
    assert made == ["occupancy_to_cloud"]
    actions = {m.id: (m.action, len(m.points)) for m in markers[0].markers}
    assert actions == {0: (Marker.DELETE, 0), 1: (Marker.ADD, 1), 2: (Marker.ADD, 64)}
    assert voxels[0].width == 65
    node.trigger_deactivate()
    assert world.spin_until(lambda: len(markers) == 2)
    assert [m.action for m in markers[1].markers] == [Marker.DELETEALL]


def test_sparse_encoding_with_confidence(world: World) -> None:
    network, vehicle = FakeNetwork(), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network, publish__encoding="sparse", publish__markers=False, publish__voxels=False)
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 1)
    assert world.spin_until(lambda: len(got) == 1)
    assert got[0].encoding == SemanticOccupancy.ENCODING_SPARSE
    assert len(got[0].labels) == len(got[0].indices) == len(got[0].confidence) == 65
    assert (message_to_occupancy(got[0]).labels == network.predict(network.frames[0]).labels).all()
    assert node.count_publishers("/fusionocc/markers") == 0


def status(message: DiagnosticArray, name: str) -> DiagnosticStatus:
    (found,) = [s for s in message.status if s.name == f"fusionocc: {name}"]
    return found


def test_diagnostics_tell_rates_latency_and_drops(world: World) -> None:
    network, vehicle = FakeNetwork(), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network, diagnostics_period=0.2, transform_timeout=0.05, bad_sensors="drop")
    got = world.collect(DiagnosticArray, "/diagnostics")
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 2)
    drive(world, vehicle, node, 1, first=2, change=only(CompressedImage, "CAM_BACK", cut))
    got.clear()
    assert world.spin_until(lambda: len(got) >= 2)
    values = {v.key: v.value for s in got[-1].status for v in s.values}
    assert values["sweeps received"] == "3"
    assert values["occupancy published"] == "2"
    assert values["dropped: bad_image"] == "1"
    assert values["CAM_BACK received"] == "3"
    assert values["model"] == "fake"
    assert values["trained on"] == "nothing"
    assert values["source"] == "tf"
    assert float(values["latency p50 [ms]"]) > 0
    assert float(values["lidar last message [s ago]"]) < 20
    assert values["state"] == "active"
    assert world.spin_until(lambda: status(got[-1], "inputs").level == DiagnosticStatus.ERROR)
    assert "nothing from lidar: /lidar_top has a publisher" in status(got[-1], "inputs").message


def test_sensors_that_are_silent_are_named_with_what_may_be_the_matter(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    vehicle = Vehicle(world.context)
    world.add(vehicle.node)
    elsewhere = World(world.domain_id)  # one process cannot have two types on one topic
    elsewhere.add(Node("raw_camera", context=elsewhere.context)).create_publisher(Image, "/raw", 1)
    topics = {"cameras__CAM_FRONT__image_topic": "/raw", "cameras__CAM_BACK__image_topic": "/nobody"}
    node = start(world, FakeNetwork(), diagnostics_period=0.2, **topics)
    got = world.collect(DiagnosticArray, "/diagnostics")
    wanted = "CAM_FRONT: /raw is sensor_msgs/msg/Image, not sensor_msgs/msg/CompressedImage; see image_tr"
    # Discovery takes its time: at first it may seem that nobody publishes.
    assert world.spin_until(lambda: bool(got) and wanted in status(got[-1], "inputs").message)
    message = status(got[-1], "inputs").message
    elsewhere.close()
    assert "CAM_BACK: nobody publishes /nobody" in message
    assert "lidar: /lidar_top" in message
    text = logged(capfd)
    assert "; nothing from CAM_BACK: nobody publishes /nobody; " in text
    assert node.inputs.explain_silence("CAM_BACK_LEFT").endswith("sends nothing, or all is lost on the way")


def test_a_player_that_holds_its_clock_is_not_a_silent_sensor(world: World) -> None:
    vehicle = Vehicle(world.context)
    clock = world.add(vehicle.node).create_publisher(Clock, "/clock", 10)
    node = start(world, FakeNetwork(), use_sim_time=True)
    assert world.spin_until(connected(vehicle))

    def tick(stamp_ns: int) -> None:
        def followed() -> bool:
            clock.publish(Clock(clock=ns_to_stamp(stamp_ns)))
            return node.get_clock().now().nanoseconds == stamp_ns

        assert world.spin_until(followed)

    tick(START)
    drive(world, vehicle, node, 1)
    time.sleep(0.3)
    assert node.inputs.silence_s()["lidar"] == 0
    tick(START + 5 * S)
    assert node.inputs.silence_s()["lidar"] == pytest.approx(5)
    tick(START)  # the bag began anew
    assert node.inputs.silence_s()["CAM_FRONT"] == pytest.approx(5)
    drive(world, vehicle, node, 1, cameras=OFFICIAL_CAMERAS[1:])
    tick(START + S)
    silence_s = node.inputs.silence_s()
    assert silence_s["CAM_FRONT"] == pytest.approx(1)
    assert silence_s["CAM_FRONT_LEFT"] == pytest.approx(6)


def test_a_clock_that_stands_still_is_said_once_and_not_while_the_network_is_at_work(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fusionocc_ros.node.CLOCK_STANDS_AFTER_S", 1.0)
    monkeypatch.setattr("fusionocc_ros.node.SILENT_AFTER_S", 0.1)
    network, vehicle = FakeNetwork(delay_s=2.5), Vehicle(world.context)
    clock = world.add(vehicle.node).create_publisher(Clock, "/clock", 10)
    node = start(world, network, use_sim_time=True, diagnostics_period=0.1)
    got = world.collect(DiagnosticArray, "/diagnostics")
    assert world.spin_until(connected(vehicle))

    def move(stamp_ns: int) -> None:
        def followed() -> bool:
            clock.publish(Clock(clock=ns_to_stamp(stamp_ns)))
            return node.get_clock().now().nanoseconds == stamp_ns

        assert world.spin_until(followed)

    def problems() -> list[str]:
        return [status(d, "inputs").message for d in got if "/clock" in status(d, "inputs").message]

    move(START)
    vehicle.keyframe(START)
    assert world.spin_until(lambda: node.work.in_hand == 1)
    got.clear()
    assert world.spin_until(lambda: outcomes(node) == 1)
    assert len(got) >= 5
    assert problems() == []
    for round_number in (1, 2):
        move(START + round_number * S)
        got.clear()
        assert world.spin_until(lambda: len(problems()) >= 5)
        # Not a line for every sensor as well.
        assert set(problems()) == {
            "use_sim_time is true and /clock stands still: the player or the simulation is paused, or stuck"
        }
        assert logged(capfd).count("/clock stands still") == 1


def test_an_activation_that_fails_is_logged_and_the_node_can_start_again(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    node = world.add(OccNode(engine_factory=FakeNetwork(), context=world.context))

    def fail(_inputs: Any) -> None:
        raise RuntimeError("no room on this topic")

    with monkeypatch.context() as patch:
        patch.setattr(Inputs, "start", fail)
        assert not node.start()
    assert "no room on this topic" in logged(capfd)
    assert node.inputs is None
    assert node.start()


# ---- lifecycle and parameters ----------------------------------------------------------------------------------------


def change_state(world: World, client: Any, transition: int) -> bool:
    future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
    assert world.spin_until(future.done)
    return bool(future.result().success)


def test_lifecycle_through_its_service(world: World) -> None:
    network, vehicle = FakeNetwork(lidar_history=1), Vehicle(world.context)
    world.add(vehicle.node)
    overrides = parameters(autostart=False)
    node = world.add(OccNode(engine_factory=network, context=world.context, parameter_overrides=overrides))
    assert not node.autostart
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    client = vehicle.node.create_client(ChangeState, "/fusionocc/change_state")
    assert world.spin_until(client.service_is_ready)
    for round_number in (1, 2):
        assert change_state(world, client, Transition.TRANSITION_CONFIGURE)
        assert vehicle.lidar.get_subscription_count() == 0
        assert change_state(world, client, Transition.TRANSITION_ACTIVATE)
        assert world.spin_until(connected(vehicle))
        drive(world, vehicle, node, 2)
        assert world.spin_until(lambda n=round_number: len(got) == 2 * n)
        assert change_state(world, client, Transition.TRANSITION_DEACTIVATE)
        assert world.spin_until(lambda: vehicle.lidar.get_subscription_count() == 0)
        vehicle.keyframe(START + 5 * S)
        world.spin_for(0.3)
        assert len(got) == 2 * round_number
        assert change_state(world, client, Transition.TRANSITION_CLEANUP)
    assert change_state(world, client, Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)


def test_a_result_that_is_ready_after_deactivation_is_dropped_and_counted(world: World) -> None:
    network, vehicle = FakeNetwork(delay_s=0.5), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network)
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    assert world.spin_until(connected(vehicle))
    vehicle.keyframe(START)
    assert world.spin_until(lambda: node.work.in_hand == 1)
    node.trigger_deactivate()
    assert world.spin_until(lambda: outcomes(node) == 1)
    assert node.statistics.snapshot().dropped == {"stopped_in_work": 1}
    assert got == []
    ledger(world, node)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"camera_names": ["CAM_FRONT", "CAM_FRONT"]}, "camera_names: names must differ"),
        ({"camera_names": [f"C{i}" for i in range(7)]}, "camera_names: 7 cameras, but fake takes at most 6"),
        ({"image_transport": "theora"}, "image_transport: 'theora' is not one of compressed, raw"),
        ({"distortion": "ignore"}, "distortion: 'ignore' is not one of"),
        ({"sync__min_cameras": 7}, r"sync\.min_cameras: 7 is more than the 6 cameras"),
        ({"rig_file": "/nowhere/rig.yaml"}, "/nowhere/rig.yaml"),
        ({"sync__policy": "approximate_time"}, "needs message_filters"),
        ({"lidar__lowest_beam": 20.0}, r"lidar\.highest_beam: 10\.67 must lie above"),
        ({"base_frame": ""}, "base_frame, and fixed_frame"),
        ({"image_decoder": "cv_bridge"}, "image_decoder: cv_bridge is not installed"),
        ({"camera_names": [""], "lidar__topic": ""}, "camera_names and lidar.topic: both are empty"),
        ({"sync__reference": "CAM_MOON"}, r"sync\.reference: 'CAM_MOON' is not one of lidar, CAM_FRONT_LEFT"),
        ({"other_lidar_names": ["CAM_FRONT"]}, "camera_names: names must differ, and from those of the LiDARs"),
        ({"lidar__reader": "sensor_msgs_py"}, r"lidar\.reader: sensor_msgs_py is not installed"),
    ],
)
def test_bad_parameters_fail_the_configuration_by_name(
    world: World, values: dict[str, Any], text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    node = world.add(
        OccNode(engine_factory=FakeNetwork(), context=world.context, parameter_overrides=parameters(**values))
    )
    assert not node.start()
    assert re.search(f"cannot configure: .*{text}", logged(capfd))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"sync__tolerance": -1.0}, r"sync\.tolerance"),
        ({"qos__depth": "ten"}, r"qos\.depth"),
        ({"num_threads": -1}, "num_"),
    ],
)
def test_values_of_the_wrong_type_or_out_of_range_are_refused(world: World, values: dict[str, Any], text: str) -> None:
    with pytest.raises(ParameterException, match=text):
        OccNode(engine_factory=FakeNetwork(), context=world.context, parameter_overrides=parameters(**values))


def test_a_parameter_that_does_not_exist_is_named_with_the_nearest_that_does(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    values = parameters(sync__tolerence=0.2)
    world.add(OccNode(engine_factory=FakeNetwork(), context=world.context, parameter_overrides=values))
    assert "sync.tolerence is set but not known; did you mean sync.tolerance?" in logged(capfd)


def test_parameters_cannot_be_changed_without_effect(world: World) -> None:
    node = world.add(OccNode(engine_factory=FakeNetwork(), context=world.context))
    assert node.set_parameters([Parameter("sync.tolerance", value=0.07)])[0].successful
    assert node.start()
    (result,) = node.set_parameters([Parameter("sync.tolerance", value=0.09)])
    assert not result.successful
    assert "sync.tolerance: read when the node is configured" in result.reason
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert node.set_parameters([Parameter("camera_names", value=["A", "B"])])[0].successful
    assert node.start()
    assert node.inputs.sync.config.tolerance_ns == 70 * MS
    assert node.inputs.sync.config.cameras == ("A", "B")


def test_parameters_of_cameras_follow_their_names(world: World) -> None:
    values = parameters(camera_names=["LEFT", "RIGHT"], cameras__LEFT__image_topic="/left/pictures")
    values.append(Parameter("cameras.RIGHT.time_offset", value=-0.02))
    node = world.add(OccNode(engine_factory=FakeNetwork(), context=world.context, parameter_overrides=values))
    read = declared.read(node)
    left, right = read.cameras
    assert (left.image_topic, left.info_topic) == ("/left/pictures", "left/camera_info")
    assert (right.image_topic, right.time_offset) == ("right/image_rect_compressed", -0.02)
    assert read.sync_config().time_offset_ns == {"LEFT": 0, "RIGHT": -20 * MS}


@pytest.mark.parametrize("how", ["qos.reliability", "qos_overrides./lidar_top.subscription.reliability"])
def test_qos_can_be_chosen_for_all_sensors_or_for_one_topic(world: World, how: str) -> None:
    overrides = [Parameter(how, value="reliable")]
    node = world.add(OccNode(engine_factory=FakeNetwork(), context=world.context, parameter_overrides=overrides))
    assert node.start()
    for topic, everywhere in (("/lidar_top", True), ("/cam_front/image_rect_compressed", how == "qos.reliability")):
        assert world.spin_until(lambda t=topic: len(node.get_subscriptions_info_by_topic(t)) == 1)
        (subscription,) = node.get_subscriptions_info_by_topic(topic)
        assert (subscription.qos_profile.reliability == ReliabilityPolicy.RELIABLE) == everywhere
    node.trigger_deactivate()
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS


def test_names_and_namespaces_move_the_topics(world: World) -> None:
    node = world.add(OccNode(engine_factory=FakeNetwork(), context=world.context, namespace="truck"))
    assert node.start()
    names = dict(node.get_topic_names_and_types())
    assert "/truck/fusionocc/occupancy" in names
    assert "/truck/lidar_top" in names
    assert "/truck/cam_front/image_rect_compressed" in names
    assert "/tf" in names
    assert "/diagnostics" in names

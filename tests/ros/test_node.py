"""The node in one process with made-up sensors: sets, bad input, slow networks. Real DDS, a fake network."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from node_cases import connected, cut, drive, ledger, logged, only, outcomes, start
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from synthetic_sensors import OFFICIAL_CAMERAS, START, FakeNetwork, S, Vehicle, World, cloud, points, static_transforms

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.convert import ns_to_stamp, stamp_to_ns
from fusionocc_ros.node import RosHandler
from fusionocc_ros.occupancy_messages import message_to_occupancy

pytestmark = pytest.mark.ros


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


def edited(**values: Any) -> Callable[[Any], Any]:
    def edit(message: Any) -> Any:
        for name, value in values.items():
            setattr(message, name, value)
        return message

    return edit


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

"""The node in one process: earlier keyframes, ego motion, rig files. Real DDS, a fake network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Odometry
from node_cases import connected, drive, logged, start, status
from synthetic_sensors import MS, OFFICIAL_CAMERAS, START, FakeNetwork, S, Vehicle, World

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.convert import ns_to_stamp

pytestmark = pytest.mark.ros


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

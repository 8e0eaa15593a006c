"""The four-camera robot of docs/your_robot.md: its files are what the page says, and the node answers with them."""

from __future__ import annotations

import array
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, PointCloud2
from synthetic_sensors import MS, RELIABLE, START, FakeNetwork, S, World, cloud, points

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.convert import ns_to_stamp
from fusionocc_ros.node import OccNode
from fusionocc_ros.rig import load_rig

pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "your_robot.md"
CAMERAS = ("front", "left", "back", "right")


def blocks() -> list[Any]:
    """The YAML on the page."""
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.S)]


def parameters_of(tree: Any) -> dict[str, Any]:
    def flat(entries: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in entries.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]

    return dict(flat(tree["/**"]["ros__parameters"]))


def test_the_page_shows_what_the_files_say() -> None:
    shipped = parameters_of(yaml.safe_load((ROOT / "config" / "four_cameras.yaml").read_text()))
    first, rig, times = blocks()
    for tree in (first, times):
        for name, value in parameters_of(tree).items():
            assert shipped[name] == value, name
    file = yaml.safe_load((ROOT / "config" / "rig_four_cameras.yaml").read_text())
    assert (rig["base_frame"], rig["lidar"]) == (file["base_frame"], file["lidar"])
    assert {k: file["cameras"]["front"][k] for k in rig["cameras"]["front"]} == rig["cameras"]["front"]


def test_its_cameras_look_where_the_page_says() -> None:
    rig = load_rig(ROOT / "config" / "rig_four_cameras.yaml")
    assert tuple(rig.cameras) == CAMERAS
    ahead = {name: mount.sensor2base[:3, :3] @ [0, 0, 1] for name, mount in rig.cameras.items()}
    expected = {"front": (1, 0, 0), "left": (0, 1, 0), "back": (-1, 0, 0), "right": (0, -1, 0)}
    for name, direction in expected.items():
        np.testing.assert_allclose(ahead[name], direction, atol=1e-6)
        np.testing.assert_allclose(rig.cameras[name].sensor2base[:3, :3] @ [0, -1, 0], (0, 0, 1), atol=1e-6)


class Robot:
    """Its drivers: Bayer pictures, a cloud with times, odometry."""

    def __init__(self, world: World) -> None:
        self.node = world.add(Node("robot", context=world.context))
        make = self.node.create_publisher
        self.pictures = {name: make(Image, f"/{name}/image_raw", RELIABLE) for name in CAMERAS}
        self.lidar, self.odometry = make(PointCloud2, "/points", RELIABLE), make(Odometry, "/odom", RELIABLE)
        self.publishers = [*self.pictures.values(), self.lidar, self.odometry]

    def turn(self, stamp_ns: int) -> None:
        """One turn of the LiDAR, and what the others send meanwhile; the robot drives at 2 m/s."""
        for k in range(-8, 3):
            at = stamp_ns + k * 20 * MS
            message = Odometry(child_frame_id="base_link")
            message.header.frame_id, message.header.stamp = "odom", ns_to_stamp(at)
            message.pose.pose.position.x = 2.0 * (at - START) / S
            message.pose.pose.orientation.w = 1.0
            self.odometry.publish(message)
        for name, offset_ms in zip(CAMERAS, (-50, -75, 0, -25), strict=True):
            picture = Image(height=72, width=128, encoding="bayer_rggb8", step=128)
            picture.data = array.array("B", bytes([120]) * (72 * 128))
            picture.header.stamp = ns_to_stamp(stamp_ns + offset_ms * MS)
            self.pictures[name].publish(picture)
        values = np.c_[points(400), np.linspace(-0.1, 0, 400)].astype(np.float32)
        sweep = cloud(stamp_ns, values, names="x y z intensity ring time")
        sweep.header.frame_id = "lidar_link"
        self.lidar.publish(sweep)


def test_the_robot_is_answered_with_all_its_sensors(world: World) -> None:
    network, robot = FakeNetwork(), Robot(world)
    values = parameters_of(yaml.safe_load((ROOT / "config" / "four_cameras.yaml").read_text()))
    values["rig_file"] = str(ROOT / "config" / "rig_four_cameras.yaml")
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    node = world.add(OccNode(engine_factory=network, context=world.context, parameter_overrides=overrides))
    assert node.start()
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    assert world.spin_until(lambda: all(p.get_subscription_count() for p in robot.publishers))
    for k in range(20):
        robot.turn(START + k * S // 10)
        if world.spin_until(lambda: bool(got) and not got[-1].missing, 1):
            break
    message, frame = got[-1], network.frames[-1]
    assert (list(message.cameras), list(message.missing)) == (list(CAMERAS), [])
    assert message.ego_motion == SemanticOccupancy.EGO_MOTION_ODOMETRY
    np.testing.assert_allclose(message.camera_ages, [0.05, 0.075, 0.0, 0.025], atol=1e-6)
    front = frame.cameras[0]
    np.testing.assert_allclose(front.cam2ego @ [0, 0, 1, 1], [1.35, 0, 0.45, 1], atol=1e-6)
    np.testing.assert_allclose(frame.ego2global[0, 3] - front.ego2global[0, 3], 0.1, atol=1e-6)
    np.testing.assert_allclose(front.intrinsics[0], [56, 0, 63.55], atol=1e-6)  # a tenth of the calibrated size
    # The first point is a tenth of a second old: the robot was 0.2 m further back.
    moved = frame.lidar.points[:, 0] - points(400)[:, 0]
    np.testing.assert_allclose(moved, np.linspace(-0.2, 0, 400), atol=1e-3)

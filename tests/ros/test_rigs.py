"""Rigs of all kinds on the node: without cameras, without a LiDAR, with several; policies of matching."""

from __future__ import annotations

import re
import sys
import types
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from sensor_msgs.msg import PointCloud2
from synthetic_sensors import (
    MS,
    OFFICIAL_CAMERAS,
    RELIABLE,
    START,
    FakeNetwork,
    S,
    Vehicle,
    World,
    cloud,
    jpeg,
    points,
    static_transforms,
    transform,
)
from tf2_msgs.msg import TFMessage

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.approximate_time import ApproximateTimeSync
from fusionocc_ros.assemble import Needs
from fusionocc_ros.convert import stamp_to_ns
from fusionocc_ros.inputs import sync_config
from fusionocc_ros.node import OccNode
from fusionocc_ros.parameters import LidarParameters, NodeParameters
from fusionocc_ros.sync import LIDAR, SyncConfig

pytestmark = pytest.mark.ros


class Drive:
    """A node with given parameters, the vehicle, and what came out."""

    def __init__(self, world: World, network: FakeNetwork | None = None, **values: Any) -> None:
        self.world, self.network = world, network or FakeNetwork()
        self.vehicle = Vehicle(world.context)
        world.add(self.vehicle.node)
        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]
        self.node = world.add(
            OccNode(engine_factory=self.network, context=world.context, parameter_overrides=overrides)
        )
        self.started = self.node.start()
        self.got: list[SemanticOccupancy] = world.collect(SemanticOccupancy, "/fusionocc/occupancy")

    def send(self, count: int = 20, *, until: Callable[[], bool], **how: Any) -> None:
        """Keyframes half a second apart, until something is so."""
        for k in range(count):
            self.vehicle.keyframe(START + k * S // 2, **how)
            if self.world.spin_until(until, 0.5):
                return
        raise AssertionError(f"not so after {count} keyframes; answers {[list(m.missing) for m in self.got]}")


def no_clouds(message: Any) -> Any:
    return None if isinstance(message, PointCloud2) else message


def test_a_lidar_without_cameras(world: World) -> None:
    drive = Drive(world, camera_names=[""])  # on a command line, [] does as well
    assert drive.started
    drive.send(until=lambda: bool(drive.got), cameras=())
    assert (list(drive.got[-1].cameras), list(drive.got[-1].missing)) == ([], [])
    assert drive.network.frames[-1].lidar is not None


def test_cameras_without_a_lidar(world: World) -> None:
    drive = Drive(world, lidar__topic="")
    assert drive.started
    drive.send(until=lambda: bool(drive.got) and not drive.got[-1].missing, change=no_clouds)
    message, frame = drive.got[-1], drive.network.frames[-1]
    assert list(message.cameras) == list(OFFICIAL_CAMERAS)
    assert frame.lidar is None
    assert stamp_to_ns(message.header.stamp) == frame.cameras[0].stamp_ns
    assert message.camera_ages[0] == 0


def test_a_lidar_that_is_silent_is_stood_in_for_only_where_the_network_allows_it(world: World) -> None:
    drive = Drive(world, sync__reference_timeout=0.4)
    drive.send(until=lambda: bool(drive.got), change=no_clouds)
    assert dict(zip(drive.got[-1].missing, drive.got[-1].missing_causes, strict=True))[LIDAR] == "no_message"
    config = NodeParameters().sync_config()
    assert config.reference_timeout_ns == S
    assert sync_config(NodeParameters(), Needs(lidar=True)).reference_timeout_ns == 0
    assert sync_config(NodeParameters(), Needs(cameras=1)).min_cameras == 1
    assert sync_config(NodeParameters(sync_reference="CAM_FRONT"), Needs(lidar=True)).reference == "CAM_FRONT"


def test_a_network_that_needs_a_camera_refuses_a_rig_without(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    drive = Drive(world, FakeNetwork(needs_all=True), camera_names=[""])
    assert not drive.started
    assert "camera_names: there is none, and fake needs one" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "rig_file has no camera CAM_FRONT_LEFT, .*; it has front, left, back, right"),
        ({"base_frame": "body"}, "rig_file is about base_frame 'base_link', but parameter base_frame is 'body'"),
        (
            {"camera_names": ["front"], "other_lidar_names": ["REAR"]},
            "rig_file has no LiDAR REAR; it has lidar",
        ),
    ],
)
def test_a_rig_file_of_another_vehicle_is_refused(
    world: World, values: dict[str, Any], text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = Path(__file__).resolve().parents[2] / "config" / "rig_four_cameras.yaml"
    assert not Drive(world, rig_file=str(file), **values).started
    assert re.search(f"cannot configure: {text}", "".join(capfd.readouterr()))


def test_transforms_and_odometry_that_cannot_be_are_ignored_and_said(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    drive = Drive(world)
    odometry = drive.vehicle.node.create_publisher(Odometry, "/odom", RELIABLE)
    nowhere = transform("map", "base_link", START, (float("nan"), 0.0, 0.0))
    bad = Odometry(child_frame_id="base_link")  # its quaternion is zero
    bad.header.frame_id = "odom"
    bad.pose.pose.orientation.w = 0.0
    said = ""

    def heard() -> bool:
        nonlocal said
        drive.vehicle.tf.publish(TFMessage(transforms=[nowhere]))
        odometry.publish(bad)
        drive.world.spin_for(0.1)
        said += "".join(capfd.readouterr())
        return "odometry of 'base_link' is ignored" in said and "from 'base_link' to 'map' is ignored" in said

    assert world.spin_until(heard)
    drive.send(until=lambda: bool(drive.got) and not drive.got[-1].missing)
    assert drive.got[-1].ego_motion == SemanticOccupancy.EGO_MOTION_TF


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (bytes(serialize_message(TFMessage(transforms=[TransformStamped()] * 5000))), "it has 400012 bytes; at most"),
        (bytes(serialize_message(static_transforms()))[:200], "failed to deserialize"),
    ],
)
def test_messages_of_transforms_that_are_damaged_or_endless_are_not_read(
    world: World, content: bytes, problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    drive = Drive(world)
    said = ""

    def heard() -> bool:
        nonlocal said
        drive.vehicle.tf.publish(content)
        drive.vehicle.tf_static.publish(content)
        drive.world.spin_for(0.1)
        said += "".join(capfd.readouterr())
        return f"a message of transforms is ignored: {problem}" in said

    assert world.spin_until(heard)
    drive.send(until=lambda: bool(drive.got) and not drive.got[-1].missing)


def test_clouds_of_two_lidars_are_one_cloud(world: World) -> None:
    names = {"other_lidar_names": ["REAR"], "lidars__REAR__topic": "rear/points", "lidars__REAR__time_offset": -0.01}
    drive = Drive(world, **names)
    rear = drive.vehicle.node.create_publisher(PointCloud2, "/rear/points", RELIABLE)
    drive.vehicle.tf_static.publish(TFMessage(transforms=[transform("base_link", "rear", START, (-1.0, 0.0, 0.5))]))

    def both(message: Any) -> Any:
        if isinstance(message, PointCloud2):
            second = cloud(stamp_to_ns(message.header.stamp) - 10 * MS, points(70))
            second.header.frame_id = "rear"
            rear.publish(second)
        return message

    drive.send(until=lambda: bool(drive.got) and not drive.got[-1].missing, change=both)
    sweep = drive.network.frames[-1].lidar
    assert len(sweep.points) == 570
    # 8 m/s for 10 ms, from the rear LiDAR's place to the vehicle's axes at the sweep's stamp.
    behind = (sweep.lidar2ego @ np.c_[sweep.points[500:, :3], np.ones(70)].T)[:3].T
    np.testing.assert_allclose(behind, points(70)[:, :3] + [-1.0 - 0.08, 0, 0.5], atol=1e-4)


def test_latest_takes_what_is_there_at_once(world: World) -> None:
    drive = Drive(world, sync__policy="latest")
    drive.send(until=lambda: bool(drive.got) and not drive.got[-1].missing)
    assert drive.got[-1].synchronization_time < 0.01
    assert drive.node.inputs.sync.counters.late == {}


def test_parameters_of_lidars_follow_their_names() -> None:
    rear = LidarParameters(name="REAR", topic="rear", time_offset=-0.02)
    parameters = NodeParameters(other_lidars=(rear,), lidar_frame_id="top")
    assert [lidar.frame_parameter for lidar in parameters.lidars] == ["lidar.frame_id", "lidars.REAR.frame_id"]
    config = parameters.sync_config()
    assert (config.lidars, config.reference, config.time_offset_ns["REAR"]) == ((LIDAR, "REAR"), LIDAR, -20 * MS)
    assert replace(parameters, lidar_topic="").sync_config().reference == "REAR"


# ---- message_filters -------------------------------------------------------------------------------------------------


class SimpleFilter:
    """As that of message_filters: hands on what it is given."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[Any], None]] = []

    def registerCallback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    def signalMessage(self, message: Any) -> None:
        for callback in self.callbacks:
            callback(message)


class Matcher(SimpleFilter):
    """In the place of ApproximateTimeSynchronizer: a set when the oldest of all queues lie within the slop."""

    def __init__(self, filters: list[SimpleFilter], queue: int, slop: float) -> None:
        super().__init__()
        self.slop_ns = slop * 1e9
        self.queues: list[deque[Any]] = [deque(maxlen=queue) for _ in filters]
        for one, waiting in zip(filters, self.queues, strict=True):
            one.registerCallback(lambda message, q=waiting: self.take(message, q))

    def take(self, message: Any, queue: deque[Any]) -> None:
        queue.append(message)
        while all(self.queues):
            stamps = [stamp_to_ns(q[0].header.stamp) for q in self.queues]
            if max(stamps) - min(stamps) <= self.slop_ns:
                for callback in self.callbacks:
                    callback(*(q.popleft() for q in self.queues))
            else:
                self.queues[stamps.index(min(stamps))].popleft()

    def registerCallback(self, callback: Callable[..., None]) -> None:
        self.callbacks.append(callback)


@pytest.fixture
def message_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("message_filters")
    module.SimpleFilter, module.ApproximateTimeSynchronizer = SimpleFilter, Matcher  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "message_filters", module)


@pytest.mark.usefixtures("message_filters")
def test_approximate_time_accounts_for_every_sweep() -> None:
    sync = ApproximateTimeSync(SyncConfig(cameras=("CAM_FRONT",), lidars=(LIDAR, "REAR")), lambda: 0)
    sets = []
    for k in range(1, 21):
        stamp = k * 100 * MS
        if k % 4:
            sets += sync.add("CAM_FRONT", stamp - 5 * MS, jpeg("CAM_FRONT", stamp - 5 * MS))
        sets += sync.add("REAR", stamp + 2 * MS, cloud(stamp + 2 * MS))
        sets += sync.add(LIDAR, stamp, cloud(stamp))
        counters = sync.counters
        assert counters.received == counters.released + sum(counters.dropped.values()) + sync.pending
    assert len(sets) >= 14
    assert all(set(s.clouds) == {LIDAR, "REAR"} and set(s.pictures) == {"CAM_FRONT"} for s in sets)
    assert all(s.sweep is s.clouds[LIDAR].item and s.stamp_ns == s.clouds[LIDAR].stamp_ns for s in sets)
    epoch = sync.epoch
    sync.add(LIDAR, 5 * MS, cloud(5 * MS))
    assert (sync.epoch, sync.counters.resets) == (epoch + 1, 1)
    assert sync.add(LIDAR, 0, cloud(0)) == sync.add("REAR", 0, cloud(0)) == []
    assert (sync.counters.dropped["zero_stamp"], sync.counters.not_kept["REAR", "zero_stamp"]) == (1, 1)
    sync.stop()
    assert sync.pending == 0
    assert sync.waited_for("CAM_FRONT")


@pytest.mark.usefixtures("message_filters")
def test_approximate_time_needs_a_lidar() -> None:
    with pytest.raises(ValueError, match=r"approximate_time needs a LiDAR, and sync\.reference is 'A'"):
        ApproximateTimeSync(SyncConfig(cameras=("A",), lidars=(), reference="A"), lambda: 0)

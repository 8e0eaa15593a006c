"""The node in one process with made-up sensors: sets, history, bad input, lifecycle. Real DDS, a fake network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from rclpy.parameter import Parameter
from synthetic_sensors import OFFICIAL_CAMERAS, START, FakeNetwork, S, Vehicle, World

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.convert import message_to_occupancy, stamp_to_ns
from fusionocc_ros.node import OccNode

pytestmark = pytest.mark.ros

_DOMAINS = count(os.getpid() % 90 + 10)


@pytest.fixture(autouse=True)
def localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


@pytest.fixture
def world(localhost: None) -> Iterator[World]:
    world = World(next(_DOMAINS) % 100)
    yield world
    world.close()


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

"""A node, its vehicle and what they are asked, for tests of the node in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.parameter import Parameter
from synthetic_sensors import START, FakeNetwork, S, Vehicle, World

from fusionocc_ros.causes import CAUSES
from fusionocc_ros.node import OccNode


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


def cut(message: Any) -> Any:
    message.data = message.data[: len(message.data) // 2]
    return message


def status(message: DiagnosticArray, name: str) -> DiagnosticStatus:
    (found,) = [s for s in message.status if s.name == f"fusionocc: {name}"]
    return found

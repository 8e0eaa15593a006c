"""The node in one process: what it publishes, diagnostics, silent sensors, clocks. Real DDS, a fake network."""

from __future__ import annotations

import time
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from node_cases import connected, cut, drive, logged, only, outcomes, start, status
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from synthetic_sensors import OFFICIAL_CAMERAS, START, FakeNetwork, S, Vehicle, World
from visualization_msgs.msg import Marker, MarkerArray

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros import outputs
from fusionocc_ros.convert import ns_to_stamp
from fusionocc_ros.inputs import Inputs
from fusionocc_ros.node import OccNode
from fusionocc_ros.occupancy_messages import message_to_occupancy

pytestmark = pytest.mark.ros


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

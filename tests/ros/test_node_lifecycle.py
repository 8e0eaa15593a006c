"""The node in one process: lifecycle, parameters, names. Real DDS, a fake network."""

from __future__ import annotations

import re
from typing import Any

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from node_cases import connected, drive, ledger, logged, outcomes, parameters, start
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from synthetic_sensors import MS, START, FakeNetwork, S, Vehicle, World

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros import declared
from fusionocc_ros.node import OccNode

pytestmark = pytest.mark.ros


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

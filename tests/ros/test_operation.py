"""Services, parameters that are live, start-up, diagnostics, latency topics: a node in this process, a fake network."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import OccupancyGrid
from node_cases import connected, drive, parameters, start
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Float64
from std_srvs.srv import Trigger
from synthetic_sensors import FakeNetwork, Vehicle, World

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_msgs.srv import SaveSnapshot, SetPalette
from fusionocc_ros.diagnostic_keys import KEYS, STATUSES
from fusionocc_ros.diagnostics import Report, WorkCounters, report_to_message
from fusionocc_ros.latency import LATENCIES
from fusionocc_ros.live import changed
from fusionocc_ros.model_hash import weights_hash
from fusionocc_ros.node import OccNode
from fusionocc_ros.operation import memory_mib
from fusionocc_ros.outputs import OUTPUTS
from fusionocc_ros.palettes import PALETTES
from fusionocc_ros.parameters import NodeParameters, table
from fusionocc_ros.services import SERVICES
from fusionocc_ros.spinning import spin
from fusionocc_ros.sync import SyncCounters
from fusionocc_ros.waiting import StartUp, missing_inputs

pytestmark = pytest.mark.ros


def call(world: World, vehicle: Vehicle, kind: type, service: str, **values: Any) -> Any:
    client = vehicle.node.create_client(kind, service)
    assert world.spin_until(client.service_is_ready)
    future = client.call_async(kind.Request(**values))
    assert world.spin_until(future.done)
    return future.result()


# ---- services on a running node --------------------------------------------------------------------------------------


def test_the_services_of_a_running_node(world: World, tmp_path: Path) -> None:
    network, vehicle = FakeNetwork(lidar_history=2), Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, network, snapshot__folder=str(tmp_path))
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    assert {f"/fusionocc/{name[2:]}" for name in SERVICES} <= {n for n, _ in node.get_service_names_and_types()}
    save = "/fusionocc/save_snapshot"
    early = call(world, vehicle, SaveSnapshot, save, name="a.npz")
    assert (early.success, early.message) == (False, "there is no result yet")
    colors = call(world, vehicle, SetPalette, "/fusionocc/set_palette", class_colors=bytes(12))
    assert not colors.success
    assert "there is no result yet" in colors.message
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 2)
    answer = call(world, vehicle, SaveSnapshot, save, name="a.npz")
    assert (answer.success, answer.message) == (True, str(tmp_path / "a.npz"))
    assert np.load(tmp_path / "a.npz")["labels"][5, 4, 1] == 1
    assert "File exists" in call(world, vehicle, SaveSnapshot, save, name="a.npz").message
    assert "not a plain file name" in call(world, vehicle, SaveSnapshot, save, name="../a.npz").message
    assert os.listdir(tmp_path) == ["a.npz"]

    assert call(world, vehicle, Trigger, "/fusionocc/reset_history").success
    drive(world, vehicle, node, 2, first=2)
    assert [len(f.lidar_history) for f in network.frames] == [0, 1, 0, 1]

    answer = call(world, vehicle, SetPalette, "/fusionocc/set_palette", palette="pink")
    assert not answer.success
    assert "palette: 'pink' is not one of default, " in answer.message
    assert call(world, vehicle, SetPalette, "/fusionocc/set_palette", palette="nuscenes").success
    assert node.get_parameter("palette").value == "nuscenes"
    drive(world, vehicle, node, 1, first=4)
    assert world.spin_until(lambda: len(got) == 5)
    assert list(got[-1].class_colors)[3:6] == list(PALETTES["nuscenes"]["car"])
    answer = call(world, vehicle, SetPalette, "/fusionocc/set_palette", class_colors=bytes(11))
    assert "class_colors: 11 bytes for 4 classes" in answer.message
    assert call(world, vehicle, SetPalette, "/fusionocc/set_palette", class_colors=bytes(range(12))).success
    drive(world, vehicle, node, 1, first=5)
    assert world.spin_until(lambda: len(got) == 6)
    assert list(got[-1].class_colors) == list(range(12))
    node.set_parameters([Parameter("palette", value="default")])
    drive(world, vehicle, node, 1, first=6)
    assert world.spin_until(lambda: len(got) == 7)
    assert list(got[-1].class_colors)[3:6] == [0, 150, 245]


# ---- parameters that are live ----------------------------------------------------------------------------------------


def test_what_is_live_is_taken_and_what_is_not_is_refused() -> None:
    before = NodeParameters()
    after = changed(before, [("markers.alpha", 0.5), ("grid.drivable_classes", ["road", "grass"]), ("use_sim_time", 1)])
    assert (after.markers_alpha, after.grid_drivable_classes) == (0.5, ("road", "grass"))
    assert changed(before, [("use_sim_time", True)]) is before
    for values, text in (
        ([("device", "cpu")], "device: read when the node is configured"),
        ([("cameras.CAM_FRONT.time_offset", 0.1)], r"cameras\.CAM_FRONT\.time_offset: read when"),
        ([("publish.encoding", "zip")], r"publish\.encoding: 'zip' is not one of dense, sparse, run_length"),
        ([("grid.max_height", 0.1)], r"grid\.max_height: 0\.1 must lie above"),
    ):
        with pytest.raises(ValueError, match=text):
            changed(before, values)
    assert {spec.name for spec in table() if spec.live} >= {"publish.encoding", "palette", "grid.max_rate"}


def test_live_parameters_take_effect_on_the_next_result(world: World) -> None:
    vehicle = Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, FakeNetwork())
    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    assert world.spin_until(connected(vehicle))
    drive(world, vehicle, node, 1)
    (result,) = node.set_parameters([Parameter("publish.encoding", value="run_length")])
    assert result.successful
    drive(world, vehicle, node, 1, first=1)
    (result,) = node.set_parameters([Parameter("publish.encoding", value="zip")])
    assert not result.successful
    drive(world, vehicle, node, 1, first=2)
    (result,) = node.set_parameters([Parameter("occupancy.max_rate", value=0.01)])
    assert result.successful
    drive(world, vehicle, node, 3, first=3)
    assert world.spin_until(lambda: len(got) == 4)
    world.spin_for(0.2)
    assert [m.encoding for m in got] == [0, 2, 2, 2]
    assert node.statistics.snapshot().published == 6
    (result,) = node.set_parameters([Parameter("occupancy.max_rate", value=-1.0)])
    assert not result.successful
    (result,) = node.set_parameters([Parameter("snapshot.folder", value="/")])
    assert not result.successful
    node.trigger_deactivate()
    node.trigger_cleanup()
    (result,) = node.set_parameters([Parameter("snapshot.folder", value="/")])
    assert not result.successful, "whoever can set parameters must not choose where files go"


def test_a_snapshot_folder_that_is_not_there_fails_the_configuration(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = parameters(snapshot__folder="/nowhere/at/all")
    node = world.add(OccNode(engine_factory=FakeNetwork(), context=world.context, parameter_overrides=overrides))
    assert not node.start()
    assert "cannot configure: snapshot.folder: /nowhere/at/all is not a folder" in "".join(capfd.readouterr())


# ---- outputs of a running node ---------------------------------------------------------------------------------------


def test_a_map_is_there_for_who_comes_late_and_is_unknown_when_the_node_stops(world: World) -> None:
    vehicle = Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, FakeNetwork(), grid__drivable_classes=["road"], grid__min_height=-0.3, grid__max_height=0.6)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    first = world.collect(OccupancyGrid, "/fusionocc/grid", latched)
    assert world.spin_until(connected(vehicle))
    assert world.spin_until(lambda: node.count_subscribers("/fusionocc/grid") == 1)
    world.spin_for(0.2)
    drive(world, vehicle, node, 1)
    assert world.spin_until(lambda: bool(first))
    assert (first[0].header.frame_id, first[0].info.resolution) == ("map", 1.0)
    late = world.collect(OccupancyGrid, "/fusionocc/grid", latched)
    assert world.spin_until(lambda: bool(late))
    cells = np.array(late[0].data, np.int8)
    assert set(cells.tolist()) == {0, 100}
    node.trigger_deactivate()
    assert world.spin_until(lambda: len(late) == 2)
    assert set(late[1].data) == {-1}


def test_an_output_that_cannot_be_made_costs_that_output_only(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    vehicle = Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, FakeNetwork(), publish__images=True, diagnostics_period=0.2)
    from sensor_msgs.msg import Image
    from visualization_msgs.msg import MarkerArray

    got = world.collect(SemanticOccupancy, "/fusionocc/occupancy")
    seen = world.collect(Image, "/fusionocc/images/cam_front/depth")
    world.collect(Image, "/fusionocc/images/cam_back/depth")
    ellipsoids = world.collect(MarkerArray, "/fusionocc/gaussians")  # the network has none: that is no fault
    diagnostics = world.collect(DiagnosticArray, "/diagnostics")
    assert world.spin_until(connected(vehicle))
    for topic in ("images/cam_back/depth", "gaussians"):
        assert world.spin_until(lambda topic=topic: node.count_subscribers(f"/fusionocc/{topic}") == 1)
    world.spin_for(0.2)
    drive(world, vehicle, node, 1, cameras=tuple(c for c in vehicle.pictures if c != "CAM_BACK"))
    assert world.spin_until(lambda: bool(got) and bool(diagnostics))
    assert node._outputs is not None
    # The camera sits above the small grid, so neither can be told; the occupancy is published all the same.
    assert set(node._outputs.failed) == {f"~/images/cam_{n}/depth" for n in ("front", "back")}
    assert seen == ellipsoids == []
    text = "".join(capfd.readouterr())
    assert "~/images/cam_back/depth cannot be made: camera CAM_BACK did not take part" in text
    diagnostics.clear()
    assert world.spin_until(lambda: bool(diagnostics))
    values = {v.key: v.value for s in diagnostics[-1].status for v in s.values}
    assert values["could not be made: ~/images/cam_back/depth"] == "1"
    assert values["messages on ~/occupancy"] == "1"
    assert float(values["resident memory [MiB]"]) > 10
    assert {f"latency p{p} [ms]" for p in (50, 95, 99)} <= set(values)
    assert values["model hash"] == ""


def test_latencies_are_published_under_autowares_names(world: World) -> None:
    vehicle = Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, FakeNetwork(delay_s=0.05))
    got = {topic: world.collect(Float64, topic.replace("~", "/fusionocc")) for topic in LATENCIES}
    assert world.spin_until(connected(vehicle))
    assert world.spin_until(lambda: all(node.count_subscribers(t.replace("~", "/fusionocc")) == 1 for t in LATENCIES))
    world.spin_for(0.2)
    drive(world, vehicle, node, 3)
    assert world.spin_until(lambda: all(len(v) == (2 if "cyclic" in t else 3) for t, v in got.items()))
    values = {topic.rpartition("/")[2]: [m.data for m in messages] for topic, messages in got.items()}
    assert min(values["inference_ms"]) >= 50
    for total, work, network in zip(
        values["total_ms"], values["processing_time_ms"], values["inference_ms"], strict=True
    ):
        assert total >= work >= network


# ---- what the documents say ------------------------------------------------------------------------------------------


def full_report() -> Report:
    sync = SyncCounters(received=3)
    sync.messages["CAM"], sync.missing["CAM"], sync.late["CAM"], sync.dropped["overflow"] = 1, 1, 1, 1
    sync.not_kept["CAM", "duplicate"] = 1
    return Report(
        node="n",
        stamp_ns=5,
        period_s=1.0,
        state="active",
        model="m",
        trained_on="t",
        device="cuda:0",
        sync=sync,
        sync_before=SyncCounters(),
        work=WorkCounters(published=2, total_s=(0.1,), network_s=(0.05,)),
        work_before=WorkCounters(),
        in_hand=0,
        silence_s={"CAM": 0.1},
        extra={"points_not_finite": 1, "keyframes_skipped": 1, "left out CAM: bad_image": 1},
        model_hash="0123",
        memory_mib={"resident": 1.0, "CUDA": 1.0},
        sent={"~/occupancy": 2},
        failed={"~/grid": 1},
    )


def test_every_value_on_diagnostics_is_documented_and_every_documented_value_is_there() -> None:
    found = set()
    message = report_to_message(full_report())
    assert [s.name for s in message.status] == [f"n: {name}" for name in STATUSES]
    for status in message.status:
        for value in status.values:
            key = re.sub(r" p(95|99) ", " p50 ", value.key)
            patterns = [k for s, k, _ in KEYS if s == status.name[3:] and re.fullmatch(_pattern(k), key)]
            assert len(patterns) == 1, (key, patterns)
            found |= {(status.name[3:], patterns[0])}
    assert found == {(status, key) for status, key, _ in KEYS}


def _pattern(key: str) -> str:
    return re.sub("<[a-z]+>", "[A-Za-z_~/]+", re.escape(key))


def test_the_sros2_policy_allows_what_the_node_does_and_nothing_else(world: World) -> None:
    vehicle = Vehicle(world.context)
    world.add(vehicle.node)
    node = start(world, FakeNetwork())
    policy = ElementTree.parse(Path(__file__).resolve().parents[2] / "config" / "sros2_policy.xml").getroot()
    profile = policy.find("./enclaves/enclave[@path='/vehicle/occ_node']//profile[@node='fusionocc']")
    assert profile is not None

    def allowed(expression: str) -> set[str]:
        return {str(e.text).replace("~", "/fusionocc") for e in profile.findall(expression)}

    me = ("fusionocc", "/")
    publishes = {name for name, _ in node.get_publisher_names_and_types_by_node(*me)}
    subscribes = {name for name, _ in node.get_subscriber_names_and_types_by_node(*me)}
    serves = {name for name, _ in node.get_service_names_and_types_by_node(*me)}
    optional = {output.topic.replace("~", "/fusionocc") for output in OUTPUTS if output.package}
    assert allowed("topics[@publish='ALLOW']/topic") - optional == publishes
    assert allowed("topics[@subscribe='ALLOW']/topic") - {"/clock"} == subscribes
    assert allowed("services[@reply='ALLOW']/service") == serves


# ---- start-up, memory, hash ------------------------------------------------------------------------------------------


def test_a_node_says_what_it_waits_for_and_when_it_has_all(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    vehicle = Vehicle(world.context, leave_out=("cam_back",))
    world.add(vehicle.node)
    node = start(world, FakeNetwork(), diagnostics_period=0.1, transform_timeout=0.0)
    said = ""

    def says(text: str) -> bool:
        nonlocal said
        said += "".join(capfd.readouterr())
        return text in said

    assert world.spin_until(lambda: says("CAM_BACK on /cam_back/image_rect_compressed (1 publisher, no message yet)"))
    assert "waiting for lidar on /lidar_top (1 publisher, no message yet)" in said
    assert "CameraInfo of CAM_FRONT" in said
    assert world.spin_until(connected(vehicle))
    for camera, publisher in vehicle.infos.items():
        from synthetic_sensors import camera_info

        publisher.publish(camera_info(camera))
    assert world.spin_until(lambda: says("transforms to base_link from cam_back"))
    drive(world, vehicle, node, 1)
    assert world.spin_until(lambda: says("first occupancy after "))
    world.spin_for(0.3)
    assert says("first occupancy after ")
    assert said.count("first occupancy after ") == 1


def test_what_is_waited_for_is_said_when_it_changes_and_not_again() -> None:
    said: list[str] = []
    now = [5.0]
    start_up = StartUp(said.append, lambda: now[0])
    start_up.look(("a", "b"), published=False)
    start_up.look(("a", "b"), published=False)
    start_up.look(("b",), published=False)
    start_up.look((), published=False)
    now[0] = 7.5
    start_up.look((), published=True)
    start_up.look(("a",), published=False)
    assert said == [
        "waiting for a; b",
        "waiting for b",
        "everything is there: waiting for a result",
        "first occupancy after 2.5 s",
    ]
    text = missing_inputs(
        unheard=("lidar",),
        topics={"lidar": "/l"},
        publishers=lambda topic: 2,
        no_info=("A",),
        no_place=("f", "g"),
        base_frame="base",
    )
    assert text == ("lidar on /l (2 publishers, no message yet)", "CameraInfo of A", "transforms to base from f, g")


def test_memory_is_measured_and_cuda_only_where_it_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(memory_mib()) <= {"resident", "CUDA"}
    cuda = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, memory_allocated=lambda: 3 * 2**20)
    monkeypatch.setitem(__import__("sys").modules, "torch", SimpleNamespace(cuda=cuda))
    assert memory_mib()["CUDA"] == 3


def test_the_hash_is_of_names_types_shapes_and_bytes() -> None:
    weights = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.int64), "c": torch.zeros(0)}
    same = {name: weights[name].clone() for name in ("c", "b", "a")}
    assert weights_hash(weights) == weights_hash(same)
    others = [
        weights | {"a": torch.arange(6.0).reshape(2, 3)},
        weights | {"a": torch.arange(6.0) + 1e-7},
        weights | {"b": torch.ones(2, dtype=torch.int32)},
        {**{n: weights[n] for n in "bc"}, "d": weights["a"]},
    ]
    assert len({weights_hash(w) for w in (weights, *others)}) == 5
    view = torch.arange(12.0).reshape(3, 4).t()
    assert weights_hash({"a": view}) == weights_hash({"a": view.contiguous()})


def test_a_message_that_rclpy_itself_cannot_take_does_not_end_the_node() -> None:
    outcomes: list[Any] = [ValueError("Seconds value must not be negative"), None, OverflowError("too large"), None]
    told: list[tuple[str, str]] = []

    def spin_once(timeout_sec: float) -> None:
        error = outcomes.pop(0)
        if error is not None:
            raise error

    spin(SimpleNamespace(spin_once=spin_once), lambda: bool(outcomes), lambda kind, text: told.append((kind, text)))
    assert [kind for kind, _ in told] == ["bad_message"] * 2
    assert told[0][1].endswith("Seconds value must not be negative")
    outcomes[:] = [KeyError("ours")]
    with pytest.raises(KeyError):
        spin(SimpleNamespace(spin_once=spin_once), lambda: bool(outcomes), lambda kind, text: None)

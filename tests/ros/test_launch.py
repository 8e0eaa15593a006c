"""Launch files, rviz configuration and parameter files against the node: names, files, topics, QoS, defaults.

`ros2 launch` and rviz2 come with a ROS installation and are not on PyPI: without them the files are read, not run.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from fusionocc_ros import drawing, reference
from fusionocc_ros.causes import CAUSES
from fusionocc_ros.dds import PROFILE_VARIABLES
from fusionocc_ros.inputs import sensor_qos
from fusionocc_ros.latency import LATENCIES
from fusionocc_ros.outputs import MAP_QOS, OUTPUT_QOS, OUTPUTS, image_outputs
from fusionocc_ros.parameters import OFFICIAL_CAMERAS, NodeParameters, camera_table, table
from fusionocc_ros.rig import load_rig

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = {name: ROOT / "launch" / f"{name}.launch.py" for name in ("occ", "replay", "fleet")}


@pytest.fixture(params=LAUNCH)
def tree(request: pytest.FixtureRequest) -> ast.Module:
    return parse(request.param)


def parse(name: str) -> ast.Module:
    source = LAUNCH[name].read_text()
    compile(source, LAUNCH[name], "exec")
    return ast.parse(source)


def constant(tree: ast.Module, name: str) -> ast.expr:
    (value,) = [
        n.value
        for n in tree.body
        if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in n.targets)
    ]
    return value


def keys(tree: ast.Module, name: str) -> list[str]:
    value = constant(tree, name)
    assert isinstance(value, ast.Dict)
    return [ast.literal_eval(key) for key in value.keys]


def calls(tree: ast.Module, function: str) -> list[dict[str, ast.expr]]:
    return [
        {k.arg: k.value for k in node.keywords if k.arg}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function
    ]


def share_paths(tree: ast.Module) -> set[str]:
    """Every SHARE / "a" / "b" of a file."""

    def path(node: ast.expr) -> str | None:
        if isinstance(node, ast.Name) and node.id == "SHARE":
            return ""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            left = path(node.left)
            return None if left is None else f"{left}/{ast.literal_eval(node.right)}"
        return None

    found = {path(node) for node in ast.walk(tree) if isinstance(node, ast.BinOp)}
    return {p.lstrip("/") for p in found if p and "." in p}


def test_files_that_launch_files_name_exist_and_are_installed(tree: ast.Module) -> None:
    setup = (ROOT / "setup.py").read_text()
    paths = share_paths(tree)
    assert paths
    for path in paths:
        assert (ROOT / path).is_file(), path
        folder, name = path.split("/")
        patterns = re.findall(rf'glob\("{folder}/([^"]+)"\)', setup)
        assert any(Path(name).match(pattern) for pattern in patterns), path


def test_packages_and_executables_that_launch_files_name_are_dependencies_and_exist(tree: ast.Module) -> None:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    depends = {e.text for tag in ("depend", "exec_depend") for e in package.findall(tag)}
    for node in calls(tree, "Node"):
        name, executable = ast.literal_eval(node["package"]), ast.literal_eval(node["executable"])
        if name == "fusionocc_ros":
            assert (ROOT / "resource" / executable).is_file()
            assert f"{executable} = fusionocc_ros.node:main" in (ROOT / "setup.py").read_text()
        else:
            assert name in depends
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            top = str(node.module).split(".")[0]
            assert top in depends or top in ("pathlib", "collections"), top


def test_arguments_that_are_handed_to_the_node_are_its_parameters() -> None:
    tree = parse("occ")
    overrides = ast.literal_eval(constant(tree, "OVERRIDES"))
    assert set(overrides) <= {spec.name for spec in table()}
    assert set(overrides) <= set(keys(tree, "ARGUMENTS"))
    used = {
        ast.literal_eval(n.slice)
        for n in ast.walk(tree)
        if isinstance(n, ast.Subscript)
        and isinstance(n.value, ast.Name)
        and n.value.id == "values"
        and isinstance(n.slice, ast.Constant)
    }
    assert used | set(overrides) == set(keys(tree, "ARGUMENTS"))
    assert ast.literal_eval(constant(tree, "DDS_PROFILE_VARIABLES")) == PROFILE_VARIABLES


@pytest.mark.parametrize("name", ["replay", "fleet"])
def test_arguments_that_are_passed_on_are_those_of_occ(name: str) -> None:
    assert set(keys(parse(name), "PASSED_ON")) <= set(keys(parse("occ"), "ARGUMENTS"))
    assert not set(keys(parse(name), "PASSED_ON")) & set(keys(parse(name), "ARGUMENTS"))


def test_replay_passes_on_arguments_that_occ_has_and_plays_with_arguments_that_the_player_has() -> None:
    from fusionocc_ros import commands

    tree = parse("replay")
    assert set(keys(tree, "PASSED_ON")) <= set(keys(parse("occ"), "ARGUMENTS"))
    parser = argparse.ArgumentParser()
    commands.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["bag", "play", "street_bag", "--rate", "0.5", "--clock", "100", "--loop"])
    assert (arguments.bag, arguments.rate, arguments.clock, arguments.loop) == (Path("street_bag"), 0.5, 100.0, True)
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert {"--rate", "--clock", "--loop"} <= strings


def expanded(path: Path, given: dict[str, str]) -> list[Any]:
    """Everything that a launch file would start, without starting it. Needs launch_ros."""
    from launch.actions import ExecuteProcess
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    from launch import LaunchContext

    context = LaunchContext()
    context.launch_configurations.update(given)
    waiting = [*PythonLaunchDescriptionSource(str(path)).get_launch_description(context).entities]
    processes = []
    while waiting:
        entity = waiting.pop(0)
        if isinstance(entity, ExecuteProcess):
            processes.append(entity)
        else:
            waiting = [*(entity.visit(context) or []), *waiting]
    return processes


def test_launch_files_start_their_processes() -> None:
    reason = "launch and launch_ros come with a ROS installation and are not on PyPI"
    pytest.importorskip("launch_ros", reason=reason)
    assert len(expanded(LAUNCH["occ"], {})) == 2
    assert len(expanded(LAUNCH["occ"], {"use_sim_time": "true", "namespace": "car", "preset": "fusionocc-tiny"})) == 2
    assert len(expanded(LAUNCH["replay"], {"bag": "street_bag"})) == 3
    assert len(expanded(LAUNCH["fleet"], {"vehicles": "one two"})) == 4
    with pytest.raises(ValueError, match="namespace:=car"):
        expanded(LAUNCH["replay"], {"bag": "street_bag", "namespace": "car"})


class Recorded:
    """In the place of a launch action: remembers its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    def perform(self, context: Any) -> str:
        """In the place of LaunchConfiguration's."""
        return str(context.launch_configurations[self.args[0]])


FAKES = {
    "ament_index_python.packages": ("get_package_share_directory",),
    "launch": ("LaunchContext", "LaunchDescription"),
    "launch.actions": (
        *("DeclareLaunchArgument", "ExecuteProcess", "IncludeLaunchDescription", "OpaqueFunction"),
        *("SetEnvironmentVariable", "Shutdown"),
    ),
    "launch.conditions": ("IfCondition",),
    "launch.launch_description_entity": ("LaunchDescriptionEntity",),
    "launch.launch_description_sources": ("PythonLaunchDescriptionSource",),
    "launch.substitutions": ("LaunchConfiguration",),
    "launch_ros": (),
    "launch_ros.actions": ("Node",),
}


@pytest.fixture
def fake_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """launch and launch_ros as far as our files use them."""
    for module, names in FAKES.items():
        fake = ModuleType(module)
        for name in names:
            setattr(fake, name, type(name, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, module, fake)
    sys.modules["ament_index_python.packages"].get_package_share_directory = lambda _name: str(ROOT)  # type: ignore


def started(name: str, function: str, **given: str) -> list[Any]:
    """What a function of a launch file returns, the other arguments being the defaults."""
    file = runpy.run_path(str(LAUNCH[name]))
    values = {key: default for key, (default, _) in file["ARGUMENTS"].items()} | given
    return list(file[function](SimpleNamespace(launch_configurations=values)))


def parameters_given(**given: str) -> list[list[Any]]:
    return [process.kwargs["parameters"] for process in started("occ", "start", **given)]


@pytest.mark.usefixtures("fake_launch")
def test_arguments_that_are_left_empty_do_not_override_the_parameter_file() -> None:
    assert parameters_given(params_file="my.yaml") == [["my.yaml"], []]
    assert parameters_given(params_file="my.yaml", use_sim_time="False", device="cpu") == [
        ["my.yaml", {"use_sim_time": False, "device": "cpu"}],
        [{"use_sim_time": False}],
    ]
    assert parameters_given(use_sim_time="1")[1] == [{"use_sim_time": True}]
    with pytest.raises(ValueError, match="use_sim_time:=yes: expected true or false"):
        parameters_given(use_sim_time="yes")


@pytest.mark.usefixtures("fake_launch")
def test_a_namespace_moves_what_rviz_shows() -> None:
    node, rviz = started("occ", "start", namespace="/car/")
    assert node.kwargs["namespace"] == "car"
    assert ("/lidar_top", "/car/lidar_top") in rviz.kwargs["remappings"]
    assert started("occ", "start")[1].kwargs["remappings"] == []


@pytest.mark.usefixtures("fake_launch")
def test_transforms_are_global_unless_a_vehicle_has_its_own() -> None:
    own = [("/tf", "/car/tf"), ("/tf_static", "/car/tf_static")]
    assert started("occ", "start", namespace="car", tf="own")[0].kwargs["remappings"] == own
    assert started("occ", "start", namespace="car", tf="own")[1].kwargs["remappings"][-2:] == own
    assert started("occ", "start", namespace="car")[0].kwargs["remappings"] == []
    assert started("occ", "start", tf="own")[0].kwargs["remappings"] == []
    with pytest.raises(ValueError, match="tf:=mine: expected global or own"):
        started("occ", "start", tf="mine")


@pytest.mark.usefixtures("fake_launch")
def test_every_vehicle_of_a_fleet_has_a_namespace_and_its_parameters() -> None:
    file = runpy.run_path(str(LAUNCH["fleet"]))
    passed_on = {name: default for name, (default, _) in file["PASSED_ON"].items()}
    included = started("fleet", "start", vehicles="one  two", **{**passed_on, "device": "cpu"}, params_folder="/robots")
    arguments = [dict(i.kwargs["launch_arguments"]) for i in included]
    assert [a["namespace"] for a in arguments] == ["one", "two"]
    assert [a["params_file"] for a in arguments] == ["/robots/one.yaml", "/robots/two.yaml"]
    assert {(a["device"], a["tf"]) for a in arguments} == {("cpu", "own")}
    (one,) = started("fleet", "start", vehicles="one", **passed_on)
    assert dict(one.kwargs["launch_arguments"])["params_file"].endswith("config/occ.yaml")
    for bad in ("", "one one", "one /two", "1st"):
        with pytest.raises(ValueError, match="expected names that differ"):
            started("fleet", "start", vehicles=bad, **passed_on)


@pytest.mark.usefixtures("fake_launch")
def test_a_replay_plays_the_bag_on_its_own_topics() -> None:
    (player,) = started("replay", "play", bag="street_bag", loop="true")
    assert player.kwargs["cmd"][:4] == ["fusionocc", "bag", "play", "street_bag"]
    assert player.kwargs["cmd"][4:] == ["--rate", "1.0", "--clock", "100", "--loop"]
    (player,) = started("replay", "play", bag="street_bag", player="ros2")
    assert player.kwargs["cmd"][:3] == ["ros2", "bag", "play"]
    with pytest.raises(ValueError, match="player:=vlc: expected fusionocc or ros2"):
        started("replay", "play", bag="street_bag", player="vlc")
    assert started("replay", "refuse_namespace", bag="street_bag") == []
    with pytest.raises(ValueError, match="namespace:=car: a bag is played on its own topics"):
        started("replay", "refuse_namespace", bag="street_bag", namespace="car")


@pytest.mark.usefixtures("fake_launch")
def test_a_replay_refuses_a_namespace_before_it_starts_anything() -> None:
    (entities,) = runpy.run_path(str(LAUNCH["replay"]))["generate_launch_description"]().args
    acting = [e for e in entities if type(e).__name__ != "DeclareLaunchArgument"]
    assert acting[0].kwargs["function"].__name__ == "refuse_namespace"
    (included,) = [e for e in acting if type(e).__name__ == "IncludeLaunchDescription"]
    assert dict(included.kwargs["launch_arguments"])["use_sim_time"] == "true"


def displays() -> dict[str, dict[str, Any]]:
    config = yaml.safe_load((ROOT / "rviz" / "occ.rviz").read_text())
    return {d["Name"]: d for d in config["Visualization Manager"]["Displays"]}


RVIZ_TOPICS = {
    "Voxels": ("rviz_default_plugins/PointCloud2", "/fusionocc/voxels", "Reliable"),
    "Voxels as markers": ("rviz_default_plugins/MarkerArray", "/fusionocc/markers", "Reliable"),
    "Gaussians": ("rviz_default_plugins/MarkerArray", "/fusionocc/gaussians", "Reliable"),
    "What blocks": ("rviz_default_plugins/Map", "/fusionocc/grid", "Reliable"),
    "LiDAR": ("rviz_default_plugins/PointCloud2", "/lidar_top", "Best Effort"),
}


def test_rviz_shows_the_topics_of_the_node_with_qos_that_match() -> None:
    config = yaml.safe_load((ROOT / "rviz" / "occ.rviz").read_text())
    with_topics = {name: d for name, d in displays().items() if "Topic" in d}
    assert set(with_topics) == set(RVIZ_TOPICS)
    for name, (kind, topic, reliability) in RVIZ_TOPICS.items():
        display = with_topics[name]
        assert display["Class"] == kind
        assert display["Topic"]["Value"] == topic
        # A subscriber may ask for less than the publisher offers, never for more.
        assert display["Topic"]["Reliability Policy"] == reliability
        assert display["Topic"]["Durability Policy"] == ("Transient Local" if name == "What blocks" else "Volatile")
    assert (MAP_QOS.reliability.name, MAP_QOS.durability.name) == ("RELIABLE", "TRANSIENT_LOCAL")
    offered = {f"/fusionocc/{output.topic[2:]}": output for output in OUTPUTS}
    for kind, topic, _ in RVIZ_TOPICS.values():
        if topic in offered:
            drawn_by = {"Map": "OccupancyGrid"}.get(kind.rpartition("/")[2], kind.rpartition("/")[2])
            assert offered[topic].load().__name__ == drawn_by
    assert OUTPUT_QOS.reliability.name == "RELIABLE"
    assert sensor_qos(NodeParameters()).reliability.name == "BEST_EFFORT"
    moved = ast.literal_eval(constant(parse("occ"), "OUTPUTS"))
    assert sorted(moved) == sorted(topic for _, topic, _ in RVIZ_TOPICS.values())
    assert config["Visualization Manager"]["Global Options"]["Fixed Frame"] == NodeParameters().base_frame
    assert NodeParameters().lidar_topic == "lidar_top"


FOXGLOVE_SETTINGS = {
    "/fusionocc/voxels": {"colorField": "rgb"},
    "/lidar_top": {"colorField": "intensity"},
}


def test_foxgloves_layout_shows_topics_of_the_node_and_of_the_vehicle() -> None:
    layout = json.loads((ROOT / "config" / "foxglove.json").read_text())
    panels = layout["configById"]

    def leaves(node: Any) -> list[str]:
        return [node] if isinstance(node, str) else leaves(node["first"]) + leaves(node["second"])

    assert sorted(leaves(layout["layout"])) == sorted(panels)
    three_d = panels["3D!occupancy"]
    ours = {f"/fusionocc/{output.topic[2:]}" for output in OUTPUTS}
    assert {"/fusionocc/voxels", "/fusionocc/gaussians"} <= set(three_d["topics"]) <= ours | {"/lidar_top"}
    assert three_d["followTf"] == NodeParameters().base_frame
    for topic, settings in FOXGLOVE_SETTINGS.items():
        assert settings.items() <= three_d["topics"][topic].items()
    assert three_d["topics"]["/fusionocc/voxels"]["colorField"] in drawing._VOXEL_OFFSETS
    latencies = {topic.replace("~", "/fusionocc") + ".data" for topic in LATENCIES}
    assert {path["value"] for path in panels["Plot!latency"]["paths"]} <= latencies
    front = camera_table("CAM_FRONT")
    assert panels["Image!front"]["imageMode"] == {
        "imageTopic": "/cam_front/image_rect_compressed",
        "calibrationTopic": f"/{next(spec.default for spec in front if spec.field == 'info_topic')}",
    }
    assert panels["DiagnosticSummary!all"]["topicToRender"] == "/diagnostics"


def flat(entries: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in entries.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def parameters_of(name: str) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "config" / name).read_text())
    assert list(content) == ["/**"]
    assert list(content["/**"]) == ["ros__parameters"]
    return flat(content["/**"]["ros__parameters"])


def declared() -> dict[str, Any]:
    rows = [*table(), *(row for camera in OFFICIAL_CAMERAS for row in camera_table(camera))]
    return {row.name: list(row.default) if isinstance(row.default, tuple) else row.default for row in rows}


def test_occ_yaml_equals_the_defaults_in_the_code() -> None:
    in_file, in_code = parameters_of("occ.yaml"), declared()
    assert in_file == in_code
    # ROS does not take 1 for 1.0.
    assert {k: type(v) for k, v in in_file.items()} == {k: type(v) for k, v in in_code.items()}


def test_nuscenes_yaml_only_sets_parameters_that_exist() -> None:
    in_code = declared()
    for name, value in parameters_of("nuscenes.yaml").items():
        assert isinstance(value, type(in_code[name])), name


def test_the_example_rig_can_be_read() -> None:
    rig = load_rig(ROOT / "config" / "rig_example.yaml")
    assert tuple(rig.cameras) == OFFICIAL_CAMERAS == tuple(rig.calibrations)
    assert rig.base_frame == NodeParameters().base_frame


def test_the_dds_profile_is_xml_with_shared_memory_for_every_participant() -> None:
    root = ElementTree.parse(ROOT / "config" / "fastdds_shm.xml").getroot()
    text = {e.tag.split("}")[1]: (e.text or "").strip() for e in root.iter()}
    assert int(text["segment_size"]) == 128 * 2**20
    assert int(text["maxMessageSize"]) > 1600 * 900 * 3
    assert text["useBuiltinTransports"] == "false"


# ---- docs ------------------------------------------------------------------------------------------------------------

DOCS = ROOT / "docs" / "ros.md"


def test_the_tables_of_the_docs_are_those_of_the_code() -> None:
    text = DOCS.read_text()
    assert reference.fill(text) == text, "run python fusionocc_ros/reference.py"
    for name in (spec.name for spec in table()):
        assert f"| `{name}` |" in text
    for cause, meaning in CAUSES.items():
        assert f"| `{cause}` | {meaning} |" in text
    for output in (*OUTPUTS, *image_outputs("<name>")):
        assert f"| `{output.topic}` |" in text
    with pytest.raises(ValueError, match=r"has the tables \['causes'\], expected each of"):
        reference.fill("<!-- table: causes -->\n\n<!-- end -->")


def test_occ_yaml_is_the_one_that_the_code_writes() -> None:
    assert (ROOT / "config" / "occ.yaml").read_text() == reference.occ_yaml(), "run python fusionocc_ros/reference.py"

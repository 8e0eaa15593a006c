"""`fusionocc view ros` as a user runs it: player, node and viewer are processes that talk over DDS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from live_processes import GAUSSIANS, playing
from nuscenes_tree import write_tree
from rclpy.node import Node
from rerun.dataframe import load_recording
from sensor_msgs.msg import PointCloud2
from synthetic_sensors import World

from fusionocc_core.commands.view_sources import SourceOptions
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_ros import live_view
from fusionocc_ros.bag import write_bag
from fusionocc_ros.view_topics import CLOUD, OCCUPANCY

pytestmark = pytest.mark.ros

FRAMES = 6
VOXELS = 4000


def view(env: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fusionocc_core.cli", "view", "ros", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)


class Recording:
    """What a viewer would show."""

    def __init__(self, path: Path) -> None:
        self._recording = load_recording(path)

    def column(self, entity: str, component: str) -> list[Any]:
        """(frame, value) of every time that something was logged there."""
        table = self._recording.view(index="frame", contents=f"/{entity}").select().read_all()
        values = table.column(f"/{entity}:{component}").to_pylist()
        rows = zip(table.column("frame").to_pylist(), values, strict=True)
        return [(frame, value) for frame, value in rows if value is not None]


def test_answers_cameras_latencies_and_what_is_missing_arrive(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "data", scenes={"street": 30}, cameras={"CAM_FRONT": 0.0, "CAM_BACK": 180.0})
    bag = write_bag(tree.root, tmp_path / "bag").path
    cameras = ("CAM_FRONT", "CAM_BACK", "CAM_FRONT_LEFT")  # the last one is silent
    with playing(bag, tmp_path / "logs", voxels=VOXELS, cameras=cameras) as env:
        done = view(env, "--save", tmp_path / "live.rrd", "--limit", FRAMES)
        said = "\n".join(path.read_text() for path in (tmp_path / "logs").glob("*.log"))
    assert done.returncode == 0, done.stderr + said
    assert "Traceback" not in said
    seen = Recording(tmp_path / "live.rrd")
    road = dict(seen.column("world/ego/prediction/driveable_surface", "PoseTranslation3D"))
    assert len(road) >= FRAMES - 2
    first, second = list(road.values())[:2]
    assert len(first) > VOXELS / 4
    assert not np.array_equal(first, second)  # it moves
    for camera in ("CAM_FRONT", "CAM_BACK"):
        pictures = seen.column(f"world/cameras/{camera}", "Blob")
        assert len(pictures) == FRAMES
        assert bytes(pictures[0][1][0][:2]) == b"\xff\xd8"  # JPEG
    for step in ("network", "total"):
        milliseconds = [value[0] for _, value in seen.column(f"latency/{step}", "Scalar")]
        assert len(milliseconds) >= FRAMES - 2
        assert all(0 <= ms < 10_000 for ms in milliseconds)
    notes = [value[0] for _, value in seen.column("notes", "Text")]
    assert set(notes) == {"CAM_FRONT_LEFT: no message"}
    ellipsoids = [value for _, value in seen.column("world/ego/gaussians", "HalfSize3D") if value]
    assert ellipsoids
    np.testing.assert_allclose(ellipsoids[-1], np.full((GAUSSIANS, 3), 0.4), rtol=1e-5)
    poses = np.array([value[0] for _, value in seen.column("world/ego", "Translation3D")])
    frames = NuScenesFrames(tree.root)
    true = np.array([frames[i].ego2global[:3, 3] for i in range(len(frames))])
    between = (true[:, None] - true[None]).reshape(-1, 1, 3)  # poses are counted from the first one that was shown
    assert np.linalg.norm(between - poses, axis=2).min(axis=0).max() < 1e-3


class Graph:
    """Stands in for a node that knows which topics there are."""

    def __init__(self) -> None:
        self.topics: dict[str, str] = {}

    def get_topic_names_and_types(self) -> list[tuple[str, list[str]]]:
        return [(topic, [kind]) for topic, kind in self.topics.items()]

    def count_publishers(self, topic: str) -> int:
        return int(topic in self.topics)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock; sleeping moves it on."""
    now = [0.0]

    def sleep(duration: float) -> None:
        now[0] += duration

    monkeypatch.setattr(live_view, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    return now


def test_topics_are_taken_when_they_have_settled_and_followed_when_they_change(seconds: list[float]) -> None:
    node = Graph()
    graph = live_view._Graph(node, None, None)
    node.topics = {"/lidar_top": CLOUD}
    found = graph.first()
    assert live_view.DISCOVERY_S < seconds[0] < live_view.DISCOVERY_S + 1
    assert (found.lidar, found.occupancy) == ("/lidar_top", "")
    node.topics["/fusionocc/occupancy"] = OCCUPANCY
    assert graph.look() is found
    for _ in range(50):
        seconds[0] += 0.1
        found = graph.look()
    assert (found.lidar, found.occupancy) == ("/lidar_top", "/fusionocc/occupancy")
    node.topics.clear()  # everything ended: the last topics are kept in case it comes back
    for _ in range(50):
        seconds[0] += 0.1
        assert graph.look() is found


@pytest.mark.usefixtures("seconds")
def test_without_anything_to_look_at_it_says_so() -> None:
    node = Graph()
    with pytest.raises(TimeoutError, match=r"after 30 s: nothing to look at among 0 topics .*same ROS_DOMAIN_ID"):
        live_view._Graph(node, None, None).first()
    node.topics = {"/lidar_top": CLOUD}
    with pytest.raises(TimeoutError, match="--cameras CAM_FRONT: the system has none"):
        live_view._Graph(node, None, ("CAM_FRONT",)).first()


def test_a_silent_system_and_options_of_recordings(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", str(world.domain_id))
    monkeypatch.setattr(live_view, "PATIENCE_S", 6.0)
    monkeypatch.setattr(live_view, "DISCOVERY_S", 0.3)
    driver = world.add(Node("driver", context=world.context))
    publisher = driver.create_publisher(PointCloud2, "/lidar_top", 1)
    source = live_view.OPENER.open(SourceOptions(source="ros"))
    with pytest.raises(TimeoutError, match=r"nothing has come within 6 s on /lidar_top, /tf, /tf_static: is the bag"):
        next(iter(source))
    driver.destroy_publisher(publisher)
    with pytest.raises(ValueError, match="--start and --scene are for recordings"):
        live_view.OPENER.open(SourceOptions(source="ros", start=3))

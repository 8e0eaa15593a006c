"""Which topics of a bag or of a running system are which sensor, told from names and types alone. No ROS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

COMPRESSED = "sensor_msgs/msg/CompressedImage"
RAW = "sensor_msgs/msg/Image"
INFO = "sensor_msgs/msg/CameraInfo"
CLOUD = "sensor_msgs/msg/PointCloud2"
ODOMETRY = "nav_msgs/msg/Odometry"
TRANSFORMS = "tf2_msgs/msg/TFMessage"
OCCUPANCY = "fusionocc_msgs/msg/SemanticOccupancy"
MARKERS = "visualization_msgs/msg/MarkerArray"

TF, TF_STATIC = "/tf", "/tf_static"


@dataclass(frozen=True, kw_only=True)
class CameraTopics:
    """Of one camera."""

    name: str
    picture: str
    info: str


@dataclass(frozen=True, kw_only=True)
class ViewTopics:
    """What is looked at; empty where there is none."""

    cameras: tuple[CameraTopics, ...] = ()
    lidar: str = ""
    odometry: str = ""
    occupancy: str = ""
    gaussians: str = ""
    """Beside ``occupancy``."""
    deviations: float = 1.0
    """Half an axis of the ellipsoids there, in standard deviations."""
    base_frame: str = "base_link"
    fixed_frame: str = "map"

    def all(self) -> tuple[str, ...]:
        """Every topic that is wanted, transforms included."""
        pairs = [topic for camera in self.cameras for topic in (camera.picture, camera.info)]
        others = (self.lidar, self.odometry, self.occupancy, self.gaussians, TF, TF_STATIC)
        return tuple(topic for topic in (*pairs, *others) if topic)


def find_topics(kinds: Mapping[str, str], parameters: Mapping[str, Any] | None = None) -> ViewTopics:
    """The topics to look at.

    A camera is a CameraInfo with a picture beside it (same name up to the last part), rather a rectified and a
    compressed one. The LiDAR is the cloud that the parameters name, or else the one whose name says so, or the only
    one; what a node makes of voxels is none. Gaussians are the markers of that name beside the answers.

    Args:
        kinds: type ("package/msg/Name") of each topic.
        parameters: the node's, by their ROS names; what they set goes before what is found.

    Raises:
        ValueError: neither a sensor nor an occupancy is among the topics.
    """
    chosen = dict(parameters or {})
    infos = sorted(topic for topic, kind in kinds.items() if kind == INFO)
    cameras = [one for info in infos if (one := _camera(info, kinds)) is not None]
    names = chosen.get("camera_names")
    if names:
        cameras = [_named(name, chosen, cameras, kinds) for name in names]
    lidar = _absolute(str(chosen.get("lidar.topic") or "")) or _lidar(kinds)
    occupancy = next((topic for topic, kind in sorted(kinds.items()) if kind == OCCUPANCY), "")
    gaussians = f"{occupancy.rpartition('/')[0]}/gaussians"
    found = ViewTopics(
        cameras=tuple(cameras),
        lidar=lidar if kinds.get(lidar) == CLOUD else "",
        odometry=next((topic for topic, kind in sorted(kinds.items()) if kind == ODOMETRY), ""),
        occupancy=occupancy,
        gaussians=gaussians if occupancy and kinds.get(gaussians) == MARKERS else "",
        deviations=float(chosen.get("gaussians.deviations") or 1.0),
        base_frame=str(chosen.get("base_frame") or "base_link"),
        fixed_frame=str(chosen.get("fixed_frame") or "map"),
    )
    if not (found.cameras or found.lidar or found.occupancy):
        listed = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(kinds.items())[:12])
        raise ValueError(
            f"nothing to look at among {len(kinds)} topics ({listed or 'none'}): expected a picture with a CameraInfo "
            f"beside it, a {CLOUD} or a {OCCUPANCY}; or name the topics with --params FILE.yaml"
        )
    return found


def with_cameras(topics: ViewTopics, names: Sequence[str] | None, where: str) -> ViewTopics:
    """Only these cameras; all of them for None.

    Raises:
        ValueError: one of them is not there.
    """
    if names is None:
        return topics
    known = {camera.name for camera in topics.cameras}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--cameras {' '.join(unknown)}: {where} has {', '.join(sorted(known)) or 'none'}")
    return replace(topics, cameras=tuple(camera for camera in topics.cameras if camera.name in names))


def read_parameters(path: Path) -> dict[str, Any]:
    """The node's parameters in a file as `ros2 launch` takes it, whatever node it names, by their full names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(path.read_text())
        nodes = [dict(node["ros__parameters"]) for node in content.values()]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"--params {path}: expected a file with NODE: ros__parameters: ...; {error}") from error
    return {name: value for node in nodes for name, value in _flat("", node)}


def _flat(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for name, value in values.items():
        out += _flat(f"{prefix}{name}.", value) if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return out


def _camera(info: str, kinds: Mapping[str, str]) -> CameraTopics | None:
    parent = info.rpartition("/")[0]
    beside = [t for t, kind in kinds.items() if t.startswith(f"{parent}/") and kind in (COMPRESSED, RAW)]
    if not beside:
        return None
    best = min(beside, key=lambda topic: ("rect" not in topic, kinds[topic] != COMPRESSED, topic))
    return CameraTopics(name=parent.strip("/").upper().replace("/", "_"), picture=best, info=info)


def _named(name: str, chosen: Mapping[str, Any], found: list[CameraTopics], kinds: Mapping[str, str]) -> CameraTopics:
    """A camera that the parameters name: its topics as they say, or as the node would take them."""
    known = next((camera for camera in found if camera.name == name.upper()), None)
    picture = _absolute(str(chosen.get(f"cameras.{name}.image_topic") or "")) or (known.picture if known else "")
    info = _absolute(str(chosen.get(f"cameras.{name}.info_topic") or "")) or (known.info if known else "")
    if not picture or not info:
        raise ValueError(f"--params: camera {name} has no topics there, and none of the topics belongs to it")
    return CameraTopics(name=name, picture=picture, info=info)


def _lidar(kinds: Mapping[str, str]) -> str:
    clouds = sorted(t for t, kind in kinds.items() if kind == CLOUD and not t.endswith("/voxels"))
    named = [topic for topic in clouds if "lidar" in topic or "velodyne" in topic or "points" in topic]
    return next(iter(named or clouds), "")


def _absolute(topic: str) -> str:
    return topic if not topic or topic.startswith("/") else f"/{topic}"

"""A scene of a data set in nuScenes format as a rosbag2, written with the rosbags library (no ROS needed).

Topics and frames are those of Foxglove's nuscenes2mcap, with ROS types:

    /cam_front/image_rect_compressed   sensor_msgs/CompressedImage   the file's bytes as they are
    /cam_front/image_rect              sensor_msgs/Image             instead, with ``raw``
    /cam_front/camera_info             sensor_msgs/CameraInfo        beside every picture, same stamp
    /lidar_top                         sensor_msgs/PointCloud2       x y z intensity ring, the file's bytes as they are
    /tf_static                         tf2_msgs/TFMessage            base_link -> sensors, latched
    /tf                                tf2_msgs/TFMessage            map -> base_link at every sensor stamp
    /odom                              nav_msgs/Odometry             the same poses, with velocities

Every message carries the sensor's true stamp and is recorded at it.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.viz.export import make_output_folder
from fusionocc_ros import bag_messages
from fusionocc_ros.bag_messages import BASE_FRAME, MAP_FRAME, MessageMaker, Trajectory, sensor_frame
from fusionocc_ros.requirements import require

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, Qos
    from rosbags.rosbag2 import Writer

Progress = Callable[[Sequence[SensorRecord]], Iterable[SensorRecord]]

STORAGES = ("mcap", "sqlite3")

METADATA_VERSION: Literal[8] = 8
"""Version 9 (Jazzy) writes QoS in a form that Humble and Iron cannot read; later releases read both."""

KEYFRAME_STAMPS = "keyframe_stamps_ns"
"""Key of the bag's custom data that holds the stamps of the LiDAR keyframes as a JSON list."""

SENSOR_DEPTH, TRANSFORM_DEPTH = 10, 100
"""History depths that the bag's topics offer."""

FILES_NAMED = 5
"""Missing files named in an error before the rest is only counted."""


@dataclass(frozen=True, kw_only=True)
class BagSummary:
    """What was written."""

    path: Path
    scene: str
    messages: dict[str, int]
    """By topic."""
    keyframe_stamps_ns: tuple[int, ...]
    """Of the LiDAR."""
    duration_s: float


def image_topic(channel: str, *, raw: bool = False) -> str:
    """The topic of a camera's pictures."""
    return f"/{sensor_frame(channel)}/image_rect" + ("" if raw else "_compressed")


def camera_info_topic(channel: str) -> str:
    """The topic of a camera's calibration."""
    return f"/{sensor_frame(channel)}/camera_info"


def lidar_topic(channel: str) -> str:
    """The topic of a LiDAR's clouds."""
    return f"/{sensor_frame(channel)}"


def write_bag(
    root: Path,
    out: Path,
    *,
    scene: str | None = None,
    version: str | None = None,
    cameras: Sequence[str] | None = None,
    storage: str = "mcap",
    raw: bool = False,
    keyframes_only: bool = False,
    most_keyframes: int | None = None,
    progress: Progress = iter,
) -> BagSummary:
    """Write one scene as a rosbag2.

    Args:
        root: A data set in nuScenes format.
        out: The bag's folder; must not exist.
        scene: Name of the scene; None takes the only one there is.
        version: Folder of tables, such as "v1.0-mini"; None takes the only one there is.
        cameras: Channels to write; None takes all cameras.
        storage: "mcap" or "sqlite3".
        raw: Decode the pictures and write sensor_msgs/Image instead of the compressed files.
        keyframes_only: Leave out the sweeps between keyframes.
        most_keyframes: Stop after so many keyframes.
        progress: Wraps the records, for a progress bar.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError: The data set, a table, or files that the scene lists are missing.
        ModuleNotFoundError: rosbags is not installed.
        ValueError: An unknown scene or storage, or data that cannot be written.
    """
    require("rosbags")
    if storage not in STORAGES:
        raise ValueError(f"storage={storage!r}: expected one of {STORAGES}")
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another folder for the bag or delete it first")
    frames = NuScenesFrames(root, version=version, cameras=cameras)
    scene = choose_scene(frames.scenes, scene)
    records = _select(frames, scene, keyframes_only, most_keyframes)
    messages = _write_records(records, out, storage, raw, progress)
    return BagSummary(
        path=out,
        scene=scene,
        messages=messages,
        keyframe_stamps_ns=tuple(_keyframe_stamps(records)),
        duration_s=(records[-1].stamp_ns - records[0].stamp_ns) / 1e9,
    )


def _write_records(
    records: Sequence[SensorRecord], out: Path, storage: str, raw: bool, progress: Progress
) -> dict[str, int]:
    """Write the bag, whole or not at all; the number of messages by topic."""
    make_output_folder(out.parent)
    try:
        with _SceneWriter(out, storage, records, raw) as writer:
            for record in progress(records):
                writer.write(record)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return writer.messages


def choose_scene(scenes: Sequence[str], scene: str | None) -> str:
    """The scene of that name, or the only one there is.

    Raises:
        ValueError: no such scene (the message names the nearest), or several and none chosen.
    """
    listed = ", ".join(scenes[:10]) + (f" and {len(scenes) - 10} more" if len(scenes) > 10 else "")
    if scene is None:
        if len(scenes) > 1:
            raise ValueError(f"the data set holds {len(scenes)} scenes; choose one with --scene: {listed}")
        return scenes[0]
    if scene not in scenes:
        near = difflib.get_close_matches(scene, scenes, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {listed}"
        raise ValueError(f"scene={scene!r} is not in the data set: {hint}")
    return scene


def _select(frames: NuScenesFrames, scene: str, keyframes_only: bool, most_keyframes: int | None) -> list[SensorRecord]:
    """The records to write, in the order of time.

    Raises:
        FileNotFoundError: files of theirs are missing.
        ValueError: there is none, or ``most_keyframes`` is not positive.
    """
    if most_keyframes is not None and most_keyframes < 1:
        raise ValueError(f"most_keyframes={most_keyframes}: expected at least 1, or None for all")
    records = [r for r in frames.sensor_records(scene) if r.is_key_frame or not keyframes_only]
    if most_keyframes is not None:
        keyframes = [frames.keyframe(i) for i in frames.scene_indices(scene)[:most_keyframes]]
        wanted = {record.token for keyframe in keyframes for record in keyframe.records.values()}
        end_ns = max(keyframe.stamp_ns for keyframe in keyframes)
        records = [r for r in records if r.token in wanted or (not r.is_key_frame and r.stamp_ns <= end_ns)]
    if not records:
        raise ValueError(f"scene {scene}: the tables list no file of any camera or LiDAR")
    _check_files(records, scene)
    return records


def _check_files(records: Sequence[SensorRecord], scene: str) -> None:
    """Refuse a scene with absent files before anything is written."""
    absent = [record for record in records if not record.path.is_file()]
    if not absent:
        return
    named = ", ".join(str(record.path) for record in absent[:FILES_NAMED])
    more = f" and {len(absent) - FILES_NAMED} more" if len(absent) > FILES_NAMED else ""
    advice = "extract the archives that hold them"
    if not any(record.is_key_frame for record in absent):
        advice += ", or leave the sweeps between keyframes out with --keyframes-only"
    raise FileNotFoundError(
        f"scene {scene}: {len(absent)} of {len(records)} files are missing: {named}{more}; {advice}"
    )


def _keyframe_stamps(records: Sequence[SensorRecord]) -> list[int]:
    return [record.stamp_ns for record in records if record.is_key_frame and record.modality == "lidar"]


def _static_transforms(records: Sequence[SensorRecord]) -> list[tuple[str, str, np.ndarray]]:
    """(parent, child, child2parent) of every sensor.

    Raises:
        ValueError: a sensor's calibration changes within the scene.
    """
    first: dict[str, SensorRecord] = {}
    for record in records:
        known = first.setdefault(record.channel, record)
        if not np.allclose(known.sensor2ego, record.sensor2ego, atol=1e-9):
            raise ValueError(
                f"{record.channel}: its calibration changes within the scene (sample_data {known.token} and "
                f"{record.token}); /tf_static cannot say so: give each part its own scene"
            )
    return [(BASE_FRAME, sensor_frame(channel), record.sensor2ego) for channel, record in sorted(first.items())]


class _SceneWriter:
    """Writes the records of one scene, each with the transforms that belong to its stamp."""

    def __init__(self, out: Path, storage: str, records: Sequence[SensorRecord], raw: bool) -> None:
        from rosbags.rosbag2 import StoragePlugin, Writer

        plugin = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}[storage]
        self._writer: Writer = Writer(out, version=METADATA_VERSION, storage_plugin=plugin)
        self._make = MessageMaker()
        self._trajectory = Trajectory(records)
        self._static = _static_transforms(records)
        self._start_ns = records[0].stamp_ns
        self._keyframe_stamps = _keyframe_stamps(records)
        self._raw = raw
        self._pose_stamp_ns = -1
        self._connections: dict[str, Connection] = {}
        self.messages: dict[str, int] = {}

    def __enter__(self) -> _SceneWriter:
        self._writer.open()
        self._writer.set_custom_data(KEYFRAME_STAMPS, json.dumps(self._keyframe_stamps))
        latched = self._make.transforms(self._start_ns, self._static)
        self._put("/tf_static", bag_messages.TF, self._start_ns, latched)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._writer.close()
        else:
            self._writer.abort()

    def write(self, record: SensorRecord) -> None:
        """Write the message of a record, before it the vehicle's pose at that stamp, and beside it the calibration."""
        stamp_ns = record.stamp_ns
        if stamp_ns != self._pose_stamp_ns:
            self._pose_stamp_ns = stamp_ns
            pose = self._make.transforms(stamp_ns, [(MAP_FRAME, BASE_FRAME, record.ego2global)])
            self._put("/tf", bag_messages.TF, stamp_ns, pose)
            odometry = self._make.odometry(stamp_ns, record.ego2global, self._trajectory)
            self._put("/odom", bag_messages.ODOMETRY, stamp_ns, odometry)
        if record.modality == "lidar":
            topic = lidar_topic(record.channel)
            self._put(topic, bag_messages.POINT_CLOUD, stamp_ns, self._make.point_cloud(record))
            return
        info = self._make.camera_info(record)
        self._put(camera_info_topic(record.channel), bag_messages.CAMERA_INFO, stamp_ns, info)
        topic = image_topic(record.channel, raw=self._raw)
        if self._raw:
            self._put(topic, bag_messages.IMAGE, stamp_ns, self._make.image(record))
        else:
            self._put(topic, bag_messages.COMPRESSED_IMAGE, stamp_ns, self._make.compressed_image(record))

    def _put(self, topic: str, kind: str, stamp_ns: int, data: bytes) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._make.typestore, offered_qos_profiles=[_quality(topic)]
            )
        self._writer.write(self._connections[topic], stamp_ns, data)
        self.messages[topic] = self.messages.get(topic, 0) + 1


def _quality(topic: str) -> Qos:
    """Reliable, so that every subscriber's QoS matches; /tf_static is latched, as tf2 wants it."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    latched = topic == "/tf_static"
    depth = {"/tf_static": 1, "/tf": TRANSFORM_DEPTH, "/odom": TRANSFORM_DEPTH}.get(topic, SENSOR_DEPTH)
    unspecified = QosTime(0, 0)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=depth,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        deadline=unspecified,
        lifespan=unspecified,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=unspecified,
        avoid_ros_namespace_conventions=False,
    )

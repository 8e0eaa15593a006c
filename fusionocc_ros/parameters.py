"""The node's parameters: one table of names, defaults, ranges and meanings, from which everything else is made.

declared.py declares them on a node and reads them back. config/occ.yaml and docs/ros.md repeat the table for people;
tests hold them equal to this one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.util import find_spec

from fusionocc_core import DEFAULT_PRESET
from fusionocc_ros.clouds import MAX_POINTS
from fusionocc_ros.lenses import DISTORTION_POLICIES
from fusionocc_ros.output_parameters import FIELDS as OUTPUT_FIELDS
from fusionocc_ros.output_parameters import OutputParameters
from fusionocc_ros.parameter_fields import Value, parameter
from fusionocc_ros.sync import LIDAR, SyncConfig

OFFICIAL_CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
"""nuScenes names in the order of the official checkpoints."""

COMPRESSED, RAW = "compressed", "raw"
LIDAR_ANCHORED, APPROXIMATE_TIME, LATEST = "lidar_anchored", "approximate_time", "latest"
LEAVE_OUT, DROP = "leave_out", "drop"
BUILTIN, CV_BRIDGE, SENSOR_MSGS_PY = "builtin", "cv_bridge", "sensor_msgs_py"
BEST_EFFORT, RELIABLE = "best_effort", "reliable"
AUTO, TF, ODOMETRY, NONE = "auto", "tf", "odometry", "none"
TORCH, COMPILED = "torch", "torch-compile"
RUNTIMES = (AUTO, TORCH, COMPILED, "onnx", "openvino", "torch-export", "tensorrt")
"""Those of fusionocc_core.export.runtimes; a test holds them equal."""

_SYNC = SyncConfig(cameras=("any",))
"""Where the synchroniser's defaults come from."""


@dataclass(frozen=True, kw_only=True)
class CameraParameters:
    """What is set for each camera, as parameters ``cameras.<NAME>.<field>``."""

    name: str
    image_topic: str
    info_topic: str
    frame_id: str = parameter("", "Optical frame of the camera; empty: header.frame_id of its pictures.")
    time_offset: float = parameter(
        0.0,
        "When its picture is expected relative to the sweep's stamp, seconds (earlier: negative).",
        low=-1.0,
        high=1.0,
    )


@dataclass(frozen=True, kw_only=True)
class LidarParameters:
    """What is set for each further LiDAR, as parameters ``lidars.<NAME>.<field>``; the first has ``lidar.<field>``."""

    name: str
    topic: str
    frame_id: str = parameter("", "Frame of this LiDAR; empty: header.frame_id of its clouds.")
    time_offset: float = parameter(
        0.0, "When its cloud is expected relative to the first LiDAR's stamp, seconds.", low=-1.0, high=1.0
    )

    @property
    def frame_parameter(self) -> str:
        """The name of the parameter that sets its frame."""
        return "lidar.frame_id" if self.name == LIDAR else f"lidars.{self.name}.frame_id"


@dataclass(frozen=True, kw_only=True)
class NodeParameters(OutputParameters):
    """Everything that can be set on the node. Times in seconds, lengths in metres."""

    autostart: bool = parameter(True, "Configure and activate at once; false: wait for lifecycle transitions.")
    preset: str = parameter(DEFAULT_PRESET, "Network: a name from `fusionocc presets`, or one of our own files.")
    checkpoint: str = parameter("", "File of weights, or folder of an exported network; empty: what ships, or fresh.")
    runtime: str = parameter(
        AUTO,
        "What runs the network: torch and torch-compile weights, others exported ones; auto: what checkpoint is for.",
        choices=RUNTIMES,
    )
    device: str = parameter("auto", "Where the network runs: auto (CUDA where there is one), cpu, cuda or cuda:N.")
    num_threads: int = parameter(0, "CPU threads of the network; 0: PyTorch decides.", low=0, high=1024)
    confidence: bool = parameter(False, "Publish the probability of each voxel's label as well.")

    camera_names: tuple[str, ...] = parameter(
        OFFICIAL_CAMERAS,
        "Cameras, in the network's order, or [] for none; each has parameters of its own under cameras.<name>.",
    )
    image_transport: str = parameter(
        COMPRESSED, "Type of the picture topics: CompressedImage or Image.", choices=(COMPRESSED, RAW)
    )
    image_decoder: str = parameter(
        BUILTIN, "Who decodes pictures; cv_bridge where installed.", choices=(BUILTIN, CV_BRIDGE)
    )
    reduce_pictures: bool = parameter(True, "Decode JPEGs at a fraction of their size where the network needs no more.")
    distortion: str = parameter(
        "refuse",
        "Distorted cameras: refuse them, undistort their pictures here, or take the pictures as rectified (P, not K).",
        choices=DISTORTION_POLICIES,
    )
    rig_file: str = parameter("", "YAML file with extrinsics (and intrinsics) instead of /tf_static (and CameraInfo).")

    bad_sensors: str = parameter(
        LEAVE_OUT,
        "What a picture or cloud that cannot be used costs: itself, as long as the network can do without, or the set.",
        choices=(LEAVE_OUT, DROP),
    )

    lidar_topic: str = parameter("lidar_top", "PointCloud2 of the LiDAR; empty: there is none.", name="lidar.topic")
    lidar_frame_id: str = parameter(
        "", "Frame of the LiDAR; empty: header.frame_id of its clouds.", name="lidar.frame_id"
    )
    lidar_reader: str = parameter(
        BUILTIN,
        "Who reads clouds; sensor_msgs_py where it is installed.",
        name="lidar.reader",
        choices=(BUILTIN, SENSOR_MSGS_PY),
    )
    lidar_intensity_scale: float = parameter(
        1.0, "Factor that brings the intensity to 0..255.", name="lidar.intensity_scale", low=0.0, high=1e6
    )
    lidar_beams: int = parameter(
        32, "Beams, where the cloud has no ring: rings come from the elevation.", name="lidar.beams", low=1, high=1024
    )
    lidar_lowest_beam: float = parameter(
        -30.67, "Elevation of the lowest beam, degrees.", name="lidar.lowest_beam", low=-90.0, high=90.0
    )
    lidar_highest_beam: float = parameter(
        10.67, "Elevation of the highest beam, degrees.", name="lidar.highest_beam", low=-90.0, high=90.0
    )

    lidar_deskew: bool = parameter(
        True,
        "Move points to where they would have been at the cloud's stamp, where the cloud has their times.",
        name="lidar.deskew",
    )
    lidar_max_points: int = parameter(
        MAX_POINTS, "A cloud with more points is not used.", name="lidar.max_points", low=1, high=100_000_000
    )
    other_lidar_names: tuple[str, ...] = parameter(
        ("",), "Further LiDARs, merged into the first; each has parameters of its own under lidars.<name>."
    )

    base_frame: str = parameter("base_link", "Frame of the vehicle: x forward, y left, z up.")
    fixed_frame: str = parameter("map", "Frame in which the vehicle moves, in /tf: map or odom.")
    ego_motion: str = parameter(
        AUTO,
        "Where the vehicle's motion between stamps comes from; auto: /tf, else odometry, else none (and says so).",
        choices=(AUTO, TF, ODOMETRY, NONE),
    )
    odometry_topic: str = parameter("odom", "Odometry, for ego_motion auto or odometry.")
    transform_timeout: float = parameter(
        0.2, "Longest wait for a transform or a CameraInfo that is not there yet.", low=0.0, high=10.0
    )
    transform_tolerance: float = parameter(
        0.05, "How far a moving transform may be continued beyond its newest stamp.", low=0.0, high=1.0
    )
    transform_gap: float = parameter(
        0.5, "Stamps of a moving transform further apart are not interpolated between.", low=0.01, high=10.0
    )
    keyframe_spacing: float = parameter(
        0.5, "Time between the earlier keyframes that a network with memory is given.", low=0.05, high=10.0
    )

    sync_policy: str = parameter(
        LIDAR_ANCHORED,
        "Who matches pictures to sweeps; latest waits for nothing, approximate_time is that of message_filters.",
        name="sync.policy",
        choices=(LIDAR_ANCHORED, LATEST, APPROXIMATE_TIME),
    )
    sync_reference: str = parameter(
        "",
        "The camera or LiDAR whose messages begin the sets; empty: the LiDAR, or where there is none the first camera.",
        name="sync.reference",
    )
    sync_reference_timeout: float = parameter(
        1.0,
        "After so long without the reference another sensor stands in, if the network can work so; 0: never.",
        name="sync.reference_timeout",
        low=0.0,
        high=60.0,
    )
    sync_tolerance: float = parameter(
        _SYNC.tolerance_ns / 1e9,
        "A picture further from its expected time is not used.",
        name="sync.tolerance",
        low=0.001,
        high=10.0,
    )
    sync_noise_window: float = parameter(
        _SYNC.noise_window_ns / 1e9,
        "A picture this near to its expected time is taken at once, without waiting for a nearer one.",
        name="sync.noise_window",
        low=0.0,
        high=1.0,
    )
    sync_deadline: float = parameter(
        _SYNC.deadline_ns / 1e9,
        "Longest wait for pictures after a sweep has come, in real time.",
        name="sync.deadline",
        low=0.001,
        high=60.0,
    )
    sync_min_cameras: int = parameter(
        _SYNC.min_cameras,
        "A set with fewer pictures is dropped; 0: the LiDAR may go alone.",
        name="sync.min_cameras",
        low=0,
        high=64,
    )
    sync_give_up_after: int = parameter(
        _SYNC.give_up_after,
        "A camera that missed so many sets in a row is not waited for until it speaks again.",
        name="sync.give_up_after",
        low=1,
        high=1_000_000,
    )
    sync_expect_pace: bool = parameter(
        _SYNC.expect_pace,
        "Do not wait for a picture that, at the camera's pace, cannot be nearer than the one at hand.",
        name="sync.expect_pace",
    )

    qos_reliability: str = parameter(
        BEST_EFFORT,
        "Of the sensor subscriptions; best_effort matches every publisher, reliable only reliable ones.",
        name="qos.reliability",
        choices=(BEST_EFFORT, RELIABLE),
    )
    qos_depth: int = parameter(20, "Pictures kept for each subscription.", name="qos.depth", low=1, high=1000)
    qos_lidar_depth: int = parameter(
        60,
        "Sweeps kept: more than pictures, for a sweep that is lost is a set that is lost.",
        name="qos.lidar_depth",
        low=1,
        high=1000,
    )

    diagnostics_period: float = parameter(1.0, "Time between messages on /diagnostics.", low=0.1, high=60.0)

    cameras: tuple[CameraParameters, ...] = ()
    """One for each of camera_names; made by ``read``."""
    other_lidars: tuple[LidarParameters, ...] = ()
    """One for each of other_lidar_names; made by ``read``."""

    @property
    def lidars(self) -> tuple[LidarParameters, ...]:
        """All of them, the first one first."""
        if not self.lidar_topic:
            return self.other_lidars
        first = LidarParameters(name=LIDAR, topic=self.lidar_topic, frame_id=self.lidar_frame_id)
        return (first, *self.other_lidars)

    def __post_init__(self) -> None:
        """Refuse combinations that cannot work, by the parameters' ROS names."""
        self.check_outputs()
        names = self.camera_names
        lidars = (*([LIDAR] if self.lidar_topic else []), *(lidar.name for lidar in self.other_lidars))
        if not all(names):
            raise ValueError(f"camera_names: none of them may be empty, got {list(names)}")
        if len({*names, *lidars}) != len(names) + len(lidars):
            raise ValueError(
                f"camera_names: names must differ, and from those of the LiDARs, got {list(names)} and {list(lidars)}"
            )
        if not names and not lidars:
            raise ValueError("camera_names and lidar.topic: both are empty, so there is no sensor; name at least one")
        if self.sync_reference and self.sync_reference not in (*names, *lidars):
            raise ValueError(f"sync.reference: {self.sync_reference!r} is not one of {', '.join((*lidars, *names))}")
        if self.sync_min_cameras > len(names):
            raise ValueError(
                f"sync.min_cameras: {self.sync_min_cameras} is more than the {len(names)} cameras of camera_names"
            )
        if self.lidar_highest_beam <= self.lidar_lowest_beam:
            raise ValueError(
                f"lidar.highest_beam: {self.lidar_highest_beam} must lie above lidar.lowest_beam, "
                f"{self.lidar_lowest_beam}"
            )
        if not self.base_frame or (self.ego_motion == TF and not self.fixed_frame):
            raise ValueError(
                "base_frame, and fixed_frame with ego_motion: tf, must be names of frames, got an empty one"
            )

    def check_installed(self) -> None:
        """Refuse choices that need packages of a ROS installation which are not there.

        Raises:
            ValueError: names the parameter, the package and what to choose instead.
        """
        needs = {"image_decoder": (self.image_decoder, CV_BRIDGE), "lidar.reader": (self.lidar_reader, SENSOR_MSGS_PY)}
        for name, (value, package) in needs.items():
            if value == package and find_spec(package) is None:
                raise ValueError(
                    f"{name}: {package} is not installed: it comes with a ROS installation (apt install "
                    f"ros-$ROS_DISTRO-{package.replace('_', '-')}) and is not on PyPI; use {BUILTIN}"
                )

    def sync_config(self) -> SyncConfig:
        """The synchroniser's settings."""
        lidars = tuple(lidar.name for lidar in self.lidars)
        sensors: tuple[CameraParameters | LidarParameters, ...] = (*self.cameras, *self.other_lidars)
        return SyncConfig(
            cameras=self.camera_names,
            lidars=lidars,
            reference=self.sync_reference or (*lidars, *self.camera_names)[0],
            time_offset_ns={sensor.name: round(sensor.time_offset * 1e9) for sensor in sensors},
            noise_window_ns=round(self.sync_noise_window * 1e9),
            reference_timeout_ns=round(self.sync_reference_timeout * 1e9),
            newest=self.sync_policy == LATEST,
            tolerance_ns=round(self.sync_tolerance * 1e9),
            deadline_ns=round(self.sync_deadline * 1e9),
            min_cameras=self.sync_min_cameras,
            give_up_after=self.sync_give_up_after,
            expect_pace=self.sync_expect_pace,
        )


@dataclass(frozen=True, kw_only=True)
class ParameterSpec:
    """One row of the table."""

    name: str
    field: str
    default: Value
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False
    """A change takes effect while the node runs."""
    read_only: bool = False
    """Set where the node is started, or never."""

    @property
    def full_description(self) -> str:
        """With the choices, which a ROS descriptor has no place for."""
        return f"{self.description} One of: {', '.join(self.choices)}." if self.choices else self.description


def table() -> list[ParameterSpec]:
    """Every parameter that does not belong to a camera; those of the outputs last."""
    ours = sorted((f for f in fields(NodeParameters) if f.metadata), key=lambda f: f.name in OUTPUT_FIELDS)
    return [
        ParameterSpec(
            name=f.metadata["name"] or f.name,
            field=f.name,
            default=f.default,  # type: ignore[arg-type]
            description=f.metadata["description"],
            low=f.metadata["low"],
            high=f.metadata["high"],
            choices=f.metadata["choices"],
            live=f.metadata["live"],
            read_only=f.metadata["read_only"],
        )
        for f in ours
    ]


def camera_table(camera: str) -> list[ParameterSpec]:
    """The parameters of one camera; its topics' defaults follow its name."""
    rows = [
        ParameterSpec(
            name=f"cameras.{camera}.image_topic",
            field="image_topic",
            default="",
            description="Its pictures; empty: <name>/image_rect_compressed, or <name>/image_rect where they are raw, "
            "the name in lower case.",
        ),
        ParameterSpec(
            name=f"cameras.{camera}.info_topic",
            field="info_topic",
            default=f"{camera.lower()}/camera_info",
            description="Its CameraInfo.",
        ),
    ]
    return rows + _own_rows(CameraParameters, f"cameras.{camera}")


def lidar_table(lidar: str) -> list[ParameterSpec]:
    """The parameters of one further LiDAR; its topic's default follows its name."""
    topic = ParameterSpec(
        name=f"lidars.{lidar}.topic", field="topic", default=lidar.lower(), description="Its PointCloud2."
    )
    return [topic, *_own_rows(LidarParameters, f"lidars.{lidar}")]


def _own_rows(kind: type[CameraParameters | LidarParameters], prefix: str) -> list[ParameterSpec]:
    return [
        ParameterSpec(
            name=f"{prefix}.{f.name}",
            field=f.name,
            default=f.default,  # type: ignore[arg-type]
            description=f.metadata["description"],
            low=f.metadata["low"],
            high=f.metadata["high"],
        )
        for f in fields(kind)
        if f.metadata
    ]

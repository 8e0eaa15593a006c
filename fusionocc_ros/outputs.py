"""Everything that the node can publish of a result: one row for each topic. A new output is a new row.

publishers.py makes publishers of the rows; docs/ros.md lists them.
"""

from __future__ import annotations

import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from nav_msgs.msg import OccupancyGrid
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from fusionocc_core.geometry import inverse
from fusionocc_core.structures import Occupancy
from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.camera_views import View, camera_to_reference, look
from fusionocc_ros.convert import ns_to_stamp
from fusionocc_ros.drawing import (
    clearing_markers,
    occupancy_to_cloud,
    occupancy_to_foxglove,
    occupancy_to_markers,
    picture_message,
)
from fusionocc_ros.gaussian_markers import gaussians_to_markers
from fusionocc_ros.navigation import UNKNOWN, Robot, flat_grid, judge_columns, nav2_columns
from fusionocc_ros.occupancy_messages import Provenance, occupancy_to_message
from fusionocc_ros.output_parameters import FIXED
from fusionocc_ros.parameters import NodeParameters

OUTPUT_QOS = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=5, reliability=QoSReliabilityPolicy.RELIABLE)
"""Reliable, volatile, the last five."""
MAP_QOS = QoSProfile(
    history=QoSHistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=QoSReliabilityPolicy.RELIABLE,
    durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
)
"""What Nav2 asks of a map: reliable, transient local, the last one."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an output is made of."""

    occupancy: Occupancy
    provenance: Provenance
    parameters: NodeParameters
    views: dict[str, View] = field(default_factory=dict)
    """By camera; filled by the first output that needs one."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One topic."""

    topic: str
    what: str
    """For the docs."""
    load: Callable[[], type]
    """The message's type; imports it where it may be missing."""
    make: Callable[[Result], Any]
    """The message, or its bytes.

    Raises:
        ValueError: this result cannot be shown in this form; the message says why.
    """
    offered: Callable[[NodeParameters], bool]
    max_rate: Callable[[NodeParameters], float]
    """Most messages a second; 0: one for every result."""
    package: str = ""
    """Of the message, where it is not among those that every installation has."""
    qos: QoSProfile = field(default_factory=lambda: OUTPUT_QOS)
    possible: Callable[[Result], bool] = lambda result: True
    """Whether this result has such a thing at all; nothing is sent, and nobody told, where it has not."""
    clear: Callable[[Any], Any] | None = None
    """What takes the last message off the screens, made of it; None: nothing has to."""


def _occupancy(result: Result) -> SemanticOccupancy:
    return occupancy_to_message(result.occupancy, result.provenance, encoding=result.parameters.encoding)


def _voxels(result: Result) -> PointCloud2:
    return occupancy_to_cloud(result.occupancy, result.provenance.frame_id)


def _markers(result: Result) -> bytes:
    parameters = result.parameters
    return occupancy_to_markers(
        result.occupancy,
        result.provenance.frame_id,
        alpha=parameters.markers_alpha,
        surface_only=parameters.markers_surface_only,
    )


def _gaussians(result: Result) -> bytes:
    parameters = result.parameters
    return gaussians_to_markers(
        result.occupancy,
        result.provenance.frame_id,
        most=parameters.gaussians_most,
        deviations=parameters.gaussians_deviations,
    )


def _grid2base(result: Result) -> np.ndarray[Any, np.dtype[np.float64]]:
    if result.occupancy.grid.frame == "ego":
        return np.eye(4)
    sensors = result.provenance.sensors
    if sensors is None or sensors.lidar is None:
        raise ValueError("the grid lies in the LiDAR's frame, and there is no LiDAR that says where that is")
    return sensors.lidar.lidar2ego


def _grid(result: Result) -> OccupancyGrid:
    """In fixed_frame where that is wanted and known, else in the vehicle's: Nav2 takes no other turns."""
    parameters, provenance = result.parameters, result.provenance
    robot = Robot(
        min_height=parameters.grid_min_height,
        max_height=parameters.grid_max_height,
        drivable=parameters.grid_drivable_classes,
        require_surface=parameters.grid_require_surface,
    )
    grid2base = _grid2base(result)
    fixed = parameters.grid_frame == FIXED and bool(provenance.fixed_frame) and provenance.sensors is not None
    base2target = provenance.sensors.ego2global if fixed and provenance.sensors else np.eye(4)
    cells = judge_columns(result.occupancy, grid2base, robot)
    flat = flat_grid(cells, result.occupancy.grid, base2target @ grid2base)
    out = OccupancyGrid()
    out.header.stamp = out.info.map_load_time = ns_to_stamp(result.occupancy.stamp_ns)
    out.header.frame_id = provenance.fixed_frame if fixed else provenance.base_frame
    out.info.resolution = float(flat.resolution)
    out.info.height, out.info.width = flat.cells_YX.shape
    out.info.origin.position.x, out.info.origin.position.y = flat.lower
    out.info.origin.position.z = float(base2target[2, 3])
    out.info.origin.orientation.w = 1.0
    out.data = array.array("b", flat.cells_YX.tobytes())
    return out


def _unknown_grid(last: OccupancyGrid) -> OccupancyGrid:
    last.data = array.array("b", [UNKNOWN]) * len(last.data)
    return last


def _load_voxel_grid() -> type:
    from nav2_msgs.msg import VoxelGrid

    return VoxelGrid


def _voxel_grid(result: Result) -> Any:
    grid, out = result.occupancy.grid, _load_voxel_grid()()
    columns = nav2_columns(result.occupancy)
    out.header.stamp, out.header.frame_id = ns_to_stamp(result.occupancy.stamp_ns), result.provenance.frame_id
    out.data = array.array("I", columns.tobytes())
    out.origin.x, out.origin.y, out.origin.z = (float(v) for v in grid.lower)
    out.resolutions.x, out.resolutions.y, out.resolutions.z = (float(v) for v in grid.voxel_size)
    out.size_x, out.size_y, out.size_z = grid.shape
    return out


def _load_foxglove() -> type:
    from foxglove_msgs.msg import VoxelGrid

    return VoxelGrid


def _foxglove(result: Result) -> Any:
    from foxglove_msgs import msg

    return occupancy_to_foxglove(result.occupancy, result.provenance.frame_id, msg)


def _view(result: Result, name: str) -> tuple[View, int]:
    """What a camera sees, and its stamp."""
    sensors = result.provenance.sensors
    camera = next((c for c in sensors.cameras if c.name == name), None) if sensors else None
    if sensors is None or camera is None:
        raise ValueError(f"camera {name} did not take part in this result")
    if name not in result.views:
        cam2grid = inverse(_grid2base(result)) @ camera_to_reference(camera, sensors.ego2global)
        result.views[name] = look(result.occupancy, camera, cam2grid, width=result.parameters.images_width)
    return result.views[name], camera.stamp_ns


def _depth(result: Result, name: str) -> Image:
    view, stamp_ns = _view(result, name)
    return picture_message(view.depth, stamp_ns=stamp_ns, frame_id=_frame_of(result, name))


def _confidence(result: Result, name: str) -> Image:
    view, stamp_ns = _view(result, name)
    if view.confidence is None:
        raise ValueError("the network was not asked for confidence: set parameter confidence")
    return picture_message(view.confidence, stamp_ns=stamp_ns, frame_id=_frame_of(result, name))


def _camera_info(result: Result, name: str) -> CameraInfo:
    view, stamp_ns = _view(result, name)
    k = view.intrinsics
    out = CameraInfo(height=view.depth.shape[0], width=view.depth.shape[1], distortion_model="plumb_bob")
    out.header.stamp, out.header.frame_id = ns_to_stamp(stamp_ns), _frame_of(result, name)
    out.d = [0.0] * 5
    out.k = k.reshape(-1).tolist()
    out.r = np.eye(3).reshape(-1).tolist()
    out.p = np.hstack([k, np.zeros((3, 1))]).reshape(-1).tolist()
    return out


def _frame_of(result: Result, name: str) -> str:
    return result.provenance.camera_frames.get(name, name.lower())


OUTPUTS: tuple[Output, ...] = (
    Output(
        topic="~/occupancy",
        what="the labels: [the message](../fusionocc_msgs/msg/SemanticOccupancy.msg) documents every field",
        load=lambda: SemanticOccupancy,
        make=_occupancy,
        offered=lambda p: True,
        max_rate=lambda p: p.occupancy_max_rate,
    ),
    Output(
        topic="~/voxels",
        what="centres of all occupied voxels: x y z rgb label confidence; rviz draws them as boxes",
        load=lambda: PointCloud2,
        make=_voxels,
        offered=lambda p: p.publish_voxels,
        max_rate=lambda p: p.voxels_max_rate,
    ),
    Output(
        topic="~/markers",
        what="one CUBE_LIST a class, voxels that can be seen; classes without voxels are deleted",
        load=lambda: MarkerArray,
        make=_markers,
        offered=lambda p: p.publish_markers,
        max_rate=lambda p: p.markers_max_rate,
        clear=lambda last: clearing_markers(),
    ),
    Output(
        topic="~/gaussians",
        what="ellipsoids of networks that have Gaussians, the most opaque ones: SPHEREs, named by class",
        load=lambda: MarkerArray,
        make=_gaussians,
        possible=lambda result: result.occupancy.gaussians is not None,
        offered=lambda p: p.publish_gaussians,
        max_rate=lambda p: p.gaussians_max_rate,
        clear=lambda last: clearing_markers(),
    ),
    Output(
        topic="~/grid",
        what="what blocks a robot: 0 free, 100 occupied, -1 unknown; see [Navigation](#navigation)",
        load=lambda: OccupancyGrid,
        make=_grid,
        offered=lambda p: p.publish_grid,
        max_rate=lambda p: p.grid_max_rate,
        qos=MAP_QOS,
        clear=_unknown_grid,
    ),
    Output(
        topic="~/voxel_grid",
        what="columns of at most 16 levels: occupied, free, unknown",
        load=_load_voxel_grid,
        make=_voxel_grid,
        offered=lambda p: p.publish_voxel_grid,
        max_rate=lambda p: p.voxel_grid_max_rate,
        package="nav2_msgs",
    ),
    Output(
        topic="~/foxglove",
        what="every voxel with red, green, blue, alpha and label",
        load=_load_foxglove,
        make=_foxglove,
        offered=lambda p: p.publish_foxglove,
        max_rate=lambda p: p.foxglove_max_rate,
        package="foxglove_msgs",
    ),
)
"""All outputs that belong to no camera."""

TYPE_NAMES = {"~/voxel_grid": "nav2_msgs/msg/VoxelGrid", "~/foxglove": "foxglove_msgs/msg/VoxelGrid"}
"""Of outputs whose type may not be installed."""

_IMAGES: tuple[tuple[str, type, Callable[[Result, str], Any], str], ...] = (
    ("depth", Image, _depth, "depth to the first occupied voxel behind each pixel, metres (32FC1, NaN: none)"),
    ("confidence", Image, _confidence, "confidence of that voxel, 0 to 255 (mono8); needs parameter `confidence`"),
    ("camera_info", CameraInfo, _camera_info, "calibration of these pictures"),
)


def image_outputs(camera: str) -> tuple[Output, ...]:
    """What is published as one camera would see it."""

    def bind(make: Callable[[Result, str], Any]) -> Callable[[Result], Any]:
        return lambda result: make(result, camera)

    def loader(kind: type) -> Callable[[], type]:
        return lambda: kind

    return tuple(
        Output(
            topic=f"~/images/{camera.lower()}/{name}",
            what=what,
            load=loader(kind),
            make=bind(make),
            offered=lambda p: p.publish_images,
            max_rate=lambda p: p.images_max_rate,
        )
        for name, kind, make, what in _IMAGES
    )


def without_sensors(provenance: Provenance) -> Provenance:
    """Without the pictures and the cloud, for keeping."""
    return replace(provenance, sensors=None)

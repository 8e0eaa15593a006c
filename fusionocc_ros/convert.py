"""Messages to core types and back: the only file that knows both worlds.

Message fields are never assigned NumPy arrays (rclpy would check or copy them element by element); ``array.array`` of
the right type is taken as it is, in every ROS 2 distribution.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from fusionocc_core.geometry import rotation_from_quaternion_xyzw, transform
from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.structures import Occupancy
from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros import pictures
from fusionocc_ros.causes import BAD_CALIBRATION, BAD_ENCODING, DropFrame
from fusionocc_ros.clouds import (
    MAX_POINTS,
    BeamLayout,
    Cloud,
    CloudLayout,
    check_for_sensor_msgs_py,
    points_from_records,
    read_cloud,
)
from fusionocc_ros.lenses import Calibration, Lens, choose_lens
from fusionocc_ros.voxels import occupied_mask, packed_colors, surface_mask

S = 1_000_000_000


def stamp_to_ns(stamp: Time) -> int:
    """Nanoseconds of a message's stamp."""
    return int(stamp.sec) * S + int(stamp.nanosec)


def ns_to_stamp(stamp_ns: int) -> Time:
    """A message's stamp from nanoseconds."""
    return Time(sec=stamp_ns // S, nanosec=stamp_ns % S)


def message_bytes(data: Any) -> NDArray[np.uint8]:
    """The bytes of a uint8[] field without a copy."""
    return np.frombuffer(data, dtype=np.uint8)


# ---- sensors in ------------------------------------------------------------------------------------------------------


def picture_to_rgb(message: Image | CompressedImage, *, name: str, decoder: str = "builtin") -> NDArray[np.uint8]:
    """RGB picture (H, W, 3) uint8 of an Image or CompressedImage.

    Args:
        message: the picture.
        name: the camera, for messages.
        decoder: "builtin", or "cv_bridge" for encodings that only it knows (needs a ROS installation).

    Raises:
        DropFrame: unknown encoding, truncated or damaged data.
    """
    if decoder == "cv_bridge":
        return _cv_bridge_to_rgb(message, name)
    if isinstance(message, CompressedImage):
        return pictures.decode_compressed(message_bytes(message.data), image_format=message.format, name=name)
    return pictures.decode_raw(
        message_bytes(message.data),
        height=message.height,
        width=message.width,
        step=message.step,
        encoding=message.encoding,
        name=name,
    )


def _cv_bridge_to_rgb(message: Image | CompressedImage, name: str) -> NDArray[np.uint8]:
    from cv_bridge import CvBridge, CvBridgeError

    bridge = CvBridge()
    try:
        if isinstance(message, CompressedImage):
            return np.asarray(bridge.compressed_imgmsg_to_cv2(message, "rgb8"), dtype=np.uint8)
        return np.asarray(bridge.imgmsg_to_cv2(message, "rgb8"), dtype=np.uint8)
    except (CvBridgeError, cv2.error) as error:  # the bridge lets some of OpenCV's errors through
        raise DropFrame(BAD_ENCODING, f"{name}: cv_bridge: {error}") from error


def camera_info_to_lens(info: CameraInfo, *, size: tuple[int, int], policy: str, name: str) -> Lens:
    """The lens behind a picture of ``size`` (height, width); see lenses.choose_lens for ``policy`` and errors."""
    roi = info.roi
    if roi.width and roi.height and (roi.height, roi.width) != (info.height, info.width):
        raise DropFrame(
            BAD_CALIBRATION,
            f"{name}: CameraInfo has a region of interest of {roi.width}x{roi.height} at "
            f"({roi.x_offset}, {roi.y_offset}), which is not handled; publish whole pictures, or CameraInfo for the "
            "pictures as they are",
        )
    calibration = Calibration(
        size=(info.height, info.width),
        k=np.array(info.k, dtype=np.float64).reshape(3, 3),
        p=np.array(info.p, dtype=np.float64).reshape(3, 4),
        r=np.array(info.r, dtype=np.float64).reshape(3, 3),
        model=str(info.distortion_model),
        distortion=tuple(float(v) for v in info.d),
    )
    return choose_lens(calibration, size=size, policy=policy, name=name)


def cloud_to_points(
    message: PointCloud2,
    *,
    beams: BeamLayout,
    intensity_scale: float,
    name: str,
    reader: str = "builtin",
    max_points: int = MAX_POINTS,
) -> Cloud:
    """Points (P, 5) float32 (x, y, z, intensity, ring) in the sensor's axes, metres; only finite ones.

    Args:
        message: the cloud.
        beams: from which rings are derived where the cloud has none.
        intensity_scale: factor that brings the sensor's intensity to 0..255.
        name: the topic, for messages.
        reader: "builtin", or "sensor_msgs_py" (needs a ROS installation); both give the same points.
        max_points: larger clouds are refused.

    Raises:
        DropFrame: no x, y, z; truncated; empty, without finite points, or too large.
    """
    layout = CloudLayout(
        fields=tuple((f.name, f.offset, f.datatype, f.count) for f in message.fields),
        height=message.height,
        width=message.width,
        point_step=message.point_step,
        row_step=message.row_step,
        is_bigendian=message.is_bigendian,
    )
    stamp_ns = stamp_to_ns(message.header.stamp)
    if reader == "sensor_msgs_py":
        records = _read_points(message, layout, name, max_points)
        return points_from_records(records, beams=beams, intensity_scale=intensity_scale, name=name, stamp_ns=stamp_ns)
    return read_cloud(
        message_bytes(message.data),
        layout,
        beams=beams,
        intensity_scale=intensity_scale,
        name=name,
        stamp_ns=stamp_ns,
        max_points=max_points,
    )


def _read_points(message: PointCloud2, layout: CloudLayout, name: str, max_points: int) -> NDArray[np.void]:
    from sensor_msgs_py import point_cloud2

    check_for_sensor_msgs_py(len(message.data), layout, name, max_points=max_points)
    records: NDArray[np.void] = point_cloud2.read_points(message)
    return records


def transform_to_matrix(message: Any) -> NDArray[np.float64]:
    """child2parent (4, 4) of a geometry_msgs/Transform.

    Raises:
        ValueError: numbers that are not finite, or a quaternion of length zero.
    """
    q, t = message.rotation, message.translation
    return transform(rotation_from_quaternion_xyzw((q.x, q.y, q.z, q.w)), (t.x, t.y, t.z))


def odometry_to_matrix(message: Odometry) -> NDArray[np.float64]:
    """child2parent (4, 4): from child_frame_id to header.frame_id at the message's stamp.

    Raises:
        ValueError: numbers that are not finite, or a quaternion of length zero.
    """
    q, t = message.pose.pose.orientation, message.pose.pose.position
    return transform(rotation_from_quaternion_xyzw((q.x, q.y, q.z, q.w)), (t.x, t.y, t.z))


# ---- occupancy out ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a SemanticOccupancy says about its making, besides the occupancy itself. Times in seconds."""

    frame_id: str
    cameras: tuple[str, ...] = ()
    camera_ages: tuple[float, ...] = ()
    ego_motion: int = SemanticOccupancy.EGO_MOTION_NONE
    camera_history: int = 0
    lidar_history: int = 0
    times: dict[str, float] = field(default_factory=dict)
    """By the message's field name, without the suffix ``_time``."""


def grid_to_pose(grid: VoxelGrid) -> Pose:
    """The outer corner of voxel (0, 0, 0), axes along the frame's."""
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = (float(v) for v in grid.lower)
    pose.orientation.w = 1.0
    return pose


def occupancy_to_message(occupancy: Occupancy, provenance: Provenance, *, sparse: bool) -> SemanticOccupancy:
    """The message, dense (a byte for every voxel) or sparse (only what is not free)."""
    grid, labels = occupancy.grid, occupancy.label_set
    out = SemanticOccupancy()
    out.header.stamp = ns_to_stamp(occupancy.stamp_ns)
    out.header.frame_id = provenance.frame_id
    out.origin = grid_to_pose(grid)
    out.voxel_size.x, out.voxel_size.y, out.voxel_size.z = (float(v) for v in grid.voxel_size)
    out.size_x, out.size_y, out.size_z = grid.shape
    flat = np.ascontiguousarray(occupancy.labels).reshape(-1)
    kept = np.flatnonzero(flat != labels.free) if sparse else slice(None)
    out.encoding = SemanticOccupancy.ENCODING_SPARSE if sparse else SemanticOccupancy.ENCODING_DENSE
    if sparse:
        out.indices = array.array("I", np.asarray(kept, dtype=np.uint32).tobytes())
    out.labels = array.array("B", flat[kept].tobytes())
    if occupancy.confidence is not None:
        out.confidence = array.array("B", np.ascontiguousarray(occupancy.confidence).reshape(-1)[kept].tobytes())
    out.free_label, out.unknown_label, out.label_set = labels.free, labels.unknown, labels.name
    out.class_names = list(labels.names)
    out.class_colors = array.array("B", np.asarray(labels.colors, dtype=np.uint8).tobytes())
    out.model, out.trained_on = occupancy.model, occupancy.trained_on
    out.cameras = list(provenance.cameras)
    out.camera_ages = array.array("f", provenance.camera_ages)
    out.ego_motion = provenance.ego_motion
    out.camera_history, out.lidar_history = provenance.camera_history, provenance.lidar_history
    for name, seconds in provenance.times.items():
        setattr(out, f"{name}_time", float(seconds))
    return out


def message_to_occupancy(message: SemanticOccupancy, *, frame: str = "ego") -> Occupancy:
    """The occupancy that a message carries.

    Args:
        message: dense or sparse.
        frame: what header.frame_id means to the core: "ego" or "lidar".

    Raises:
        ValueError: an encoding that is not handled, arrays whose lengths do not fit the sizes, or an origin that is
            turned.
    """
    q = message.origin.orientation
    if not np.allclose(np.abs((q.x, q.y, q.z, q.w)), (0, 0, 0, 1), rtol=0, atol=1e-6):
        raise ValueError(
            f"SemanticOccupancy.origin.orientation is (x={q.x:g}, y={q.y:g}, z={q.z:g}, w={q.w:g}): expected the "
            "identity (0, 0, 0, 1); a grid that is turned in its frame is not handled"
        )
    if len(message.class_colors) != 3 * len(message.class_names):
        raise ValueError(
            f"SemanticOccupancy.class_colors has {len(message.class_colors)} values for "
            f"{len(message.class_names)} class_names; expected three (red, green, blue) a class"
        )
    size = (message.voxel_size.x, message.voxel_size.y, message.voxel_size.z)
    shape = (message.size_x, message.size_y, message.size_z)
    origin = (message.origin.position.x, message.origin.position.y, message.origin.position.z)
    grid = VoxelGrid(
        frame=frame,
        lower=origin,
        upper=tuple(lo + n * s for lo, n, s in zip(origin, shape, size, strict=True)),
        voxel_size=size,
    )
    colors = message_bytes(message.class_colors).reshape(-1, 3)
    labels = LabelSet(
        name=message.label_set,
        names=tuple(message.class_names),
        colors=tuple((int(r), int(g), int(b)) for r, g, b in colors),
        free=message.free_label,
        unknown=message.unknown_label,
    )
    confidence = _unpack(message, message_bytes(message.confidence), 0) if len(message.confidence) else None
    return Occupancy(
        labels=_unpack(message, message_bytes(message.labels), labels.free),
        confidence=confidence,
        grid=grid,
        label_set=labels,
        stamp_ns=stamp_to_ns(message.header.stamp),
        model=message.model,
        trained_on=message.trained_on,
    )


def _unpack(message: SemanticOccupancy, values: NDArray[np.uint8], rest: int) -> NDArray[np.uint8]:
    shape = (message.size_x, message.size_y, message.size_z)
    count = int(np.prod(shape))
    if message.encoding == SemanticOccupancy.ENCODING_DENSE and len(values) == count:
        return values.reshape(shape).copy()
    indices = np.frombuffer(message.indices, dtype=np.uint32)
    sparse = message.encoding == SemanticOccupancy.ENCODING_SPARSE
    if not sparse or len(indices) != len(values) or (len(indices) and int(indices.max()) >= count):
        raise ValueError(
            f"SemanticOccupancy with encoding {message.encoding}, sizes {shape}, {len(values)} values and "
            f"{len(indices)} indices cannot be read: expected dense (0) with one value a voxel, or sparse (1) with one "
            "index a value"
        )
    flat = np.full(count, rest, dtype=np.uint8)
    flat[indices] = values
    return flat.reshape(shape)


_VOXEL_OFFSETS = {"x": 0, "y": 4, "z": 8, "rgb": 12, "label": 16, "confidence": 17}
_VOXEL_POINT = np.dtype(
    {
        "names": list(_VOXEL_OFFSETS),
        "formats": ["<f4", "<f4", "<f4", "<u4", "u1", "u1"],
        "offsets": list(_VOXEL_OFFSETS.values()),
        "itemsize": 20,
    }
)
_VOXEL_FIELDS = [
    # rgb is a float in name only: rviz and PCL read the bits of 0x00RRGGBB from it.
    PointField(name=name, offset=offset, datatype=PointField.FLOAT32 if offset < 16 else PointField.UINT8, count=1)
    for name, offset in _VOXEL_OFFSETS.items()
]


def occupancy_to_cloud(occupancy: Occupancy, frame_id: str) -> PointCloud2:
    """Centres of all occupied voxels, coloured by class; fields x y z rgb label confidence (255 where not computed)."""
    indices = np.argwhere(occupied_mask(occupancy))
    where = tuple(indices.T)
    points = np.zeros(len(indices), dtype=_VOXEL_POINT)
    for column, axis in enumerate("xyz"):
        points[axis] = occupancy.grid.centers(indices)[:, column]
    points["label"] = occupancy.labels[where]
    points["rgb"] = packed_colors(occupancy.label_set)[points["label"]]
    points["confidence"] = 255 if occupancy.confidence is None else occupancy.confidence[where]
    out = PointCloud2(
        height=1, width=len(points), point_step=_VOXEL_POINT.itemsize, is_dense=True, fields=_VOXEL_FIELDS
    )
    out.header.stamp, out.header.frame_id = ns_to_stamp(occupancy.stamp_ns), frame_id
    out.row_step = out.point_step * out.width
    out.data = array.array("B", points.tobytes())
    return out


class MarkerMaker:
    """Makes one CUBE_LIST a class; keeps the Point objects of voxels that it has drawn (they are most of the cost).

    Args:
        alpha: opacity, 0..1.
        surface_only: leave out voxels that are hidden on all six sides.
    """

    def __init__(self, *, alpha: float = 1.0, surface_only: bool = True) -> None:
        self.alpha = alpha
        self.surface_only = surface_only
        self._grid: tuple[Any, ...] = ()
        self._points: NDArray[np.object_] = np.empty(0, dtype=object)

    def __call__(self, occupancy: Occupancy, frame_id: str) -> MarkerArray:
        """A marker for every class but free: ADD where it has voxels, DELETE where not, so that none goes stale."""
        drawn = occupied_mask(occupancy)
        if self.surface_only:
            drawn = surface_mask(drawn)
        indices = np.flatnonzero(drawn)
        self._prepare(occupancy.grid, indices)
        labels = occupancy.labels.reshape(-1)[indices]
        out = MarkerArray()
        out.markers = [
            self._marker(occupancy, frame_id, label, self._points[indices[labels == label]].tolist())
            for label in range(occupancy.label_set.num)
            if label != occupancy.label_set.free
        ]
        return out

    def _marker(self, occupancy: Occupancy, frame_id: str, label: int, points: Sequence[Point]) -> Marker:
        marker = Marker(ns=occupancy.label_set.name, id=label, type=Marker.CUBE_LIST)
        marker.header.stamp, marker.header.frame_id = ns_to_stamp(occupancy.stamp_ns), frame_id
        marker.action = Marker.ADD if points else Marker.DELETE
        marker.pose = grid_to_pose(occupancy.grid)
        marker.scale.x, marker.scale.y, marker.scale.z = (float(v) for v in occupancy.grid.voxel_size)
        r, g, b = occupancy.label_set.colors[label]
        marker.color = ColorRGBA(r=r / 255, g=g / 255, b=b / 255, a=self.alpha)
        marker.points = points
        return marker

    def _prepare(self, grid: VoxelGrid, indices: NDArray[np.int64]) -> None:
        key = (grid.shape, grid.voxel_size)
        if key != self._grid:
            self._grid = key
            self._points = np.full(int(np.prod(grid.shape)), None, dtype=object)
        new = indices[self._points[indices] == None]  # noqa: E711 (elementwise)
        where = np.stack(np.unravel_index(new, grid.shape), axis=1)
        centers = (where + 0.5) * np.asarray(grid.voxel_size)
        for index, (x, y, z) in zip(new.tolist(), centers.tolist(), strict=True):
            self._points[index] = Point(x=x, y=y, z=z)

"""Messages of sensors to core types; occupancy_messages.py and drawing.py go the other way.

Message fields are never assigned NumPy arrays (rclpy would check or copy them element by element); ``array.array`` of
the right type is taken as it is, in every ROS 2 distribution.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from fusionocc_core.geometry import rotation_from_quaternion_xyzw, transform
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


def picture_to_rgb(
    message: Image | CompressedImage, *, name: str, decoder: str = "builtin", least_width: int = 0
) -> NDArray[np.uint8]:
    """RGB picture (H, W, 3) uint8 of an Image or CompressedImage.

    Args:
        message: the picture.
        name: the camera, for messages.
        decoder: "builtin", or "cv_bridge" for encodings that only it knows (needs a ROS installation).
        least_width: see pictures.decode_compressed; 0: whole pictures.

    Raises:
        DropFrame: unknown encoding, truncated or damaged data.
    """
    if decoder == "cv_bridge":
        return _cv_bridge_to_rgb(message, name)
    if isinstance(message, CompressedImage):
        data = message_bytes(message.data)
        return pictures.decode_compressed(data, image_format=message.format, name=name, least_width=least_width)
    return pictures.decode_raw(
        message_bytes(message.data),
        height=message.height,
        width=message.width,
        step=message.step,
        encoding=message.encoding,
        name=name,
    )


def is_view(message: Image | CompressedImage) -> bool:
    """Whether reading this picture copies nothing (with the builtin decoder)."""
    return isinstance(message, Image) and message.encoding in pictures.VIEWED


def picture_size(message: Image | CompressedImage) -> tuple[int, int]:
    """(height, width) of the whole picture, as its header says; zeros where a CompressedImage has no such header."""
    if isinstance(message, CompressedImage):
        width, height = pictures.size_in_header(message_bytes(message.data).tobytes())
        return height, width
    return int(message.height), int(message.width)


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

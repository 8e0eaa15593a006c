"""Records of a data set in nuScenes format as ROS 2 messages, serialised with the rosbags library (no ROS needed)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.files import POINT_BYTES, picture_kind, read_bytes, read_cloud_bytes, refuse_truncated
from fusionocc_core.data.nuscenes import read_camera
from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.geometry import inverse, quaternion_wxyz_from_rotation
from fusionocc_core.structures import POINT_COLUMNS

MAP_FRAME, BASE_FRAME = "map", "base_link"

FLOAT32 = 7
"""sensor_msgs/PointField.FLOAT32."""

VELOCITY_SPAN_NS = 25_000_000
"""Velocities are taken between poses at least this far before and after; nearer ones would magnify their rounding."""

COMPRESSED_IMAGE, IMAGE, CAMERA_INFO, POINT_CLOUD, TF, ODOMETRY = (
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CameraInfo",
    "sensor_msgs/msg/PointCloud2",
    "tf2_msgs/msg/TFMessage",
    "nav_msgs/msg/Odometry",
)


def sensor_frame(channel: str) -> str:
    """The tf frame, and the first part of the topics, of a nuScenes channel: CAM_FRONT -> cam_front."""
    name = re.sub(r"\W+", "_", channel.lower())
    return name if name[:1].isalpha() else f"sensor_{name}"


class Trajectory:
    """Ego poses of a scene at the stamps of its records, with velocities between them."""

    def __init__(self, records: Sequence[SensorRecord]) -> None:
        poses = {record.stamp_ns: record.ego2global for record in reversed(records)}
        self.stamps_ns = np.array(sorted(poses), np.int64)
        self.ego2global = np.stack([poses[int(stamp)] for stamp in self.stamps_ns])

    def twist(self, stamp_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Linear (m/s) and angular (rad/s) velocity in the ego frame; zeros where there is one pose only."""
        last = len(self.stamps_ns) - 1
        before = max(0, int(np.searchsorted(self.stamps_ns, stamp_ns - VELOCITY_SPAN_NS, side="right")) - 1)
        after = min(last, int(np.searchsorted(self.stamps_ns, stamp_ns + VELOCITY_SPAN_NS)))
        seconds = (self.stamps_ns[after] - self.stamps_ns[before]) * 1e-9
        if seconds == 0.0:
            return np.zeros(3), np.zeros(3)
        here = self.ego2global[int(np.searchsorted(self.stamps_ns, stamp_ns))]
        moved = self.ego2global[after][:3, 3] - self.ego2global[before][:3, 3]
        turned = (inverse(self.ego2global[before]) @ self.ego2global[after])[:3, :3]
        w, *xyz = quaternion_wxyz_from_rotation(turned)
        half_angle = np.arctan2(np.linalg.norm(xyz), w)
        # sin(a) / a = sinc(a / pi) stays exact for angles near zero.
        rotation_vector = 2.0 * np.asarray(xyz) / np.sinc(half_angle / np.pi)
        return here[:3, :3].T @ moved / seconds, rotation_vector / seconds


class MessageMaker:
    """Makes serialised messages (CDR bytes) of one ROS 2 distribution's types."""

    def __init__(self) -> None:
        from rosbags.typesys import Stores, get_typestore

        self.typestore = get_typestore(Stores.ROS2_JAZZY)

    def compressed_image(self, record: SensorRecord) -> bytes:
        """The picture's file as it is.

        Raises:
            ValueError: the file is truncated, or neither JPEG nor PNG: the node would drop the frame.
        """
        what = f"{record.channel} picture (sample_data {record.token})"
        data = read_bytes(record.path, what)
        refuse_truncated(data, f"{what}: {record.path}")
        return self._serialise(
            COMPRESSED_IMAGE,
            header=self._header(record.stamp_ns, sensor_frame(record.channel)),
            format=str(picture_kind(data)).lower(),
            data=np.frombuffer(data, np.uint8),
        )

    def image(self, record: SensorRecord) -> bytes:
        """The picture decoded, rgb8."""
        pixels = read_camera(record).image
        height, width = pixels.shape[:2]
        return self._serialise(
            IMAGE,
            header=self._header(record.stamp_ns, sensor_frame(record.channel)),
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * width,
            data=np.ascontiguousarray(pixels).reshape(-1),
        )

    def camera_info(self, record: SensorRecord) -> bytes:
        """The calibration: pictures of nuScenes are rectified, so distortion is zero and rectification the identity."""
        assert record.intrinsics is not None, "every camera's record has intrinsics"
        width, height = record.width, record.height
        if not (width and height):
            height, width = read_camera(record).image.shape[:2]
        projection = np.zeros((3, 4))
        projection[:, :3] = record.intrinsics
        return self._serialise(
            CAMERA_INFO,
            header=self._header(record.stamp_ns, sensor_frame(record.channel)),
            height=height,
            width=width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=np.asarray(record.intrinsics, np.float64).reshape(-1),
            r=np.eye(3).reshape(-1),
            p=projection.reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=self._make(
                "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
            ),
        )

    def point_cloud(self, record: SensorRecord) -> bytes:
        """The cloud's file as it is.

        Raises:
            ValueError: the file is no whole number of points.
        """
        data = read_cloud_bytes(record.path, f"{record.channel} cloud (sample_data {record.token})")
        points = np.frombuffer(data, np.float32)
        fields = [
            self._make("sensor_msgs/msg/PointField", name=name, offset=4 * n, datatype=FLOAT32, count=1)
            for n, name in enumerate(POINT_COLUMNS)
        ]
        return self._serialise(
            POINT_CLOUD,
            header=self._header(record.stamp_ns, sensor_frame(record.channel)),
            height=1,
            width=len(data) // POINT_BYTES,
            fields=fields,
            is_bigendian=False,
            point_step=POINT_BYTES,
            row_step=len(data),
            data=np.frombuffer(data, np.uint8),
            is_dense=bool(np.isfinite(points).all()),
        )

    def transforms(self, stamp_ns: int, child2parent: Sequence[tuple[str, str, NDArray[np.float64]]]) -> bytes:
        """A TFMessage of (parent frame, child frame, child2parent) entries."""
        entries = [
            self._make(
                "geometry_msgs/msg/TransformStamped",
                header=self._header(stamp_ns, parent),
                child_frame_id=child,
                transform=self._make(
                    "geometry_msgs/msg/Transform",
                    translation=self._vector("Vector3", matrix[:3, 3]),
                    rotation=self._quaternion(matrix),
                ),
            )
            for parent, child, matrix in child2parent
        ]
        return self._serialise(TF, transforms=entries)

    def odometry(self, stamp_ns: int, ego2global: NDArray[np.float64], trajectory: Trajectory) -> bytes:
        """Pose in the map and velocity in the vehicle's frame; covariances are zero, which ROS reads as unknown."""
        linear, angular = trajectory.twist(stamp_ns)
        pose = self._make(
            "geometry_msgs/msg/Pose",
            position=self._vector("Point", ego2global[:3, 3]),
            orientation=self._quaternion(ego2global),
        )
        twist = self._make(
            "geometry_msgs/msg/Twist",
            linear=self._vector("Vector3", linear),
            angular=self._vector("Vector3", angular),
        )
        return self._serialise(
            ODOMETRY,
            header=self._header(stamp_ns, MAP_FRAME),
            child_frame_id=BASE_FRAME,
            pose=self._make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=np.zeros(36)),
            twist=self._make("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=np.zeros(36)),
        )

    def _make(self, kind: str, /, **fields: Any) -> Any:
        return self.typestore.types[kind](**fields)

    def _serialise(self, kind: str, /, **fields: Any) -> bytes:
        return bytes(self.typestore.serialize_cdr(self._make(kind, **fields), kind))

    def _header(self, stamp_ns: int, frame: str) -> Any:
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        stamp = self._make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
        return self._make("std_msgs/msg/Header", stamp=stamp, frame_id=frame)

    def _vector(self, kind: str, values: NDArray[np.float64]) -> Any:
        x, y, z = np.asarray(values, np.float64).tolist()
        return self._make(f"geometry_msgs/msg/{kind}", x=x, y=y, z=z)

    def _quaternion(self, a2b: NDArray[np.float64]) -> Any:
        w, x, y, z = quaternion_wxyz_from_rotation(a2b[:3, :3]).tolist()
        return self._make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)

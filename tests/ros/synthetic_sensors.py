"""Messages of a made-up vehicle with six cameras and a LiDAR, for the ROS tests."""

from __future__ import annotations

import array
import math
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from tf2_msgs.msg import TFMessage

from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_ros.convert import ns_to_stamp
from fusionocc_ros.engine import Engine
from fusionocc_ros.parameters import OFFICIAL_CAMERAS

S = 1_000_000_000
MS = 1_000_000
START = 1_600_000_000 * S
HEIGHT, WIDTH = 36, 64
OFFSET_MS = dict(zip(OFFICIAL_CAMERAS, (-42.8, -35.3, -27.3, -0.3, -10.1, -19.7), strict=True))
YAW = dict(zip(OFFICIAL_CAMERAS, (55.0, 0.0, -55.0, 110.0, 180.0, -110.0), strict=True))
SPEED = 8.0
"""Of the vehicle along x of the map, metres a second."""

GRID = VoxelGrid(frame="ego", lower=(-4.0, -4.0, -1.0), upper=(4.0, 4.0, 1.0), voxel_size=(1.0, 1.0, 0.5))
LABELS = LabelSet(
    name="test",
    names=("others", "car", "road", "free"),
    colors=((9, 9, 9), (0, 150, 245), (190, 80, 190), (255,) * 3),
    free=3,
)

RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def camera_rotation(yaw_deg: float) -> tuple[float, float, float, float]:
    """Quaternion xyzw of an optical frame that looks along a heading of the vehicle."""
    half = math.radians(yaw_deg) / 2
    w, z = math.cos(half), math.sin(half)
    # Heading times the fixed turn from optical to body axes, (w, x, y, z) = (0.5, -0.5, 0.5, -0.5).
    return (-0.5 * w - 0.5 * z, 0.5 * w - 0.5 * z, -0.5 * w + 0.5 * z, 0.5 * w + 0.5 * z)


def static_transforms(leave_out: tuple[str, ...] = ()) -> TFMessage:
    message = TFMessage()
    mounts = {name.lower(): ((1.0, 0.0, 1.5), camera_rotation(YAW[name])) for name in OFFICIAL_CAMERAS}
    mounts["lidar_top"] = ((0.9, 0.0, 1.8), (0.0, 0.0, -math.sqrt(0.5), math.sqrt(0.5)))
    for frame, (translation, rotation) in mounts.items():
        if frame not in leave_out:
            message.transforms.append(transform("base_link", frame, START, translation, rotation))
    return message


def transform(
    parent: str, child: str, stamp_ns: int, translation: tuple[float, ...], rotation: tuple[float, ...] = (0, 0, 0, 1.0)
) -> TransformStamped:
    out = TransformStamped(child_frame_id=child)
    out.header.frame_id, out.header.stamp = parent, ns_to_stamp(stamp_ns)
    out.transform.translation.x, out.transform.translation.y, out.transform.translation.z = (
        float(v) for v in translation
    )
    q = out.transform.rotation
    q.x, q.y, q.z, q.w = (float(v) for v in rotation)
    return out


def ego_pose(stamp_ns: int) -> TransformStamped:
    return transform("map", "base_link", stamp_ns, (SPEED * (stamp_ns - START) / S, 2.0, 0.0))


def camera_info(camera: str, **changes: Any) -> CameraInfo:
    out = CameraInfo(height=HEIGHT, width=WIDTH, distortion_model="plumb_bob")
    out.header.frame_id = camera.lower()
    out.k = [50.0, 0.0, 32.0, 0.0, 50.0, 18.0, 0.0, 0.0, 1.0]
    out.p = [50.0, 0.0, 32.0, 0.0, 0.0, 50.0, 18.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    out.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    for name, value in changes.items():
        setattr(out, name, value)
    return out


def picture(camera: str) -> np.ndarray:
    """RGB, different for each camera, smooth so that JPEG keeps it."""
    ramp = np.linspace(0, 200, WIDTH)[None, :, None] * np.array([1.0, 0.5, 0.2])
    return (ramp + 10 * list(OFFICIAL_CAMERAS).index(camera) + np.zeros((HEIGHT, 1, 1))).clip(0, 255).astype(np.uint8)


def jpeg(camera: str, stamp_ns: int) -> CompressedImage:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture(camera), cv2.COLOR_RGB2BGR))
    out = CompressedImage(format="jpeg", data=array.array("B", data.tobytes()))
    out.header.frame_id, out.header.stamp = camera.lower(), ns_to_stamp(stamp_ns)
    return out


def raw(camera: str, stamp_ns: int, encoding: str = "bgr8") -> Image:
    rgb = picture(camera)
    out = Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=3 * WIDTH)
    out.data = array.array("B", (rgb[..., ::-1] if encoding == "bgr8" else rgb).tobytes())
    out.header.frame_id, out.header.stamp = camera.lower(), ns_to_stamp(stamp_ns)
    return out


def points(count: int = 500, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-20, 20, (count, 3))
    return np.c_[xyz, rng.integers(0, 256, count), rng.integers(0, 32, count)].astype(np.float32)


def cloud(stamp_ns: int, values: np.ndarray | None = None, names: str = "x y z intensity ring") -> PointCloud2:
    values = points() if values is None else values
    fields = names.split()
    out = PointCloud2(height=1, width=len(values), point_step=4 * len(fields), row_step=4 * len(fields) * len(values))
    out.fields = [PointField(name=n, offset=4 * i, datatype=7, count=1) for i, n in enumerate(fields)]
    out.data = array.array("B", np.ascontiguousarray(values[:, : len(fields)], dtype="<f4").tobytes())
    out.header.frame_id, out.header.stamp = "lidar_top", ns_to_stamp(stamp_ns)
    return out


class FakeNetwork:
    """In the place of the network: remembers the frames it was given and marks a voxel."""

    def __init__(
        self, *, camera_history: int = 0, lidar_history: int = 0, delay_s: float = 0.0, needs_all: bool = False
    ) -> None:
        self.needs_all = needs_all
        self.frames: list[SensorFrame] = []
        self.delay_s = delay_s
        self.camera_history = camera_history
        self.lidar_history = lidar_history

    def __call__(self, _parameters: object) -> Engine:
        return Engine(
            predict=self.predict,
            num_cameras=6,
            camera_history=self.camera_history,
            lidar_history=self.lidar_history,
            needs_camera=self.needs_all,
            needs_lidar=self.needs_all,
            model="fake",
            trained_on="nothing",
            device="cpu",
        )

    def predict(self, frame: SensorFrame) -> Occupancy:
        time.sleep(self.delay_s)
        self.frames.append(frame)
        labels = np.full(GRID.shape, LABELS.free, dtype=np.uint8)
        labels[:, :, 0] = 2
        labels[5, 4, 1] = 1
        return Occupancy(
            labels=labels,
            grid=GRID,
            label_set=LABELS,
            stamp_ns=frame.stamp_ns,
            model="fake",
            trained_on="nothing",
            confidence=np.full(GRID.shape, 200, dtype=np.uint8),
        )


class Vehicle:
    """Publishes the sensors of the made-up vehicle on a node of its own."""

    def __init__(self, context: Context, *, transport: str = "compressed", leave_out: tuple[str, ...] = ()) -> None:
        self.node = Node("vehicle", context=context)
        self.transport = transport
        kind, suffix = (CompressedImage, "_compressed") if transport == "compressed" else (Image, "")
        self.pictures = {
            c: self.node.create_publisher(kind, f"/{c.lower()}/image_rect{suffix}", RELIABLE) for c in OFFICIAL_CAMERAS
        }
        self.infos = {
            c: self.node.create_publisher(CameraInfo, f"/{c.lower()}/camera_info", RELIABLE) for c in OFFICIAL_CAMERAS
        }
        self.lidar = self.node.create_publisher(PointCloud2, "/lidar_top", RELIABLE)
        self.tf = self.node.create_publisher(TFMessage, "/tf", RELIABLE)
        self.tf_static = self.node.create_publisher(TFMessage, "/tf_static", LATCHED)
        self.tf_static.publish(static_transforms(leave_out))

    def keyframe(
        self,
        stamp_ns: int,
        *,
        cameras: tuple[str, ...] = OFFICIAL_CAMERAS,
        poses: bool = True,
        infos: bool = True,
        change: Callable[[Any], Any] = lambda message: message,
    ) -> None:
        """Send one set; ``change`` may replace any message before it goes (None: it does not go)."""

        def send(publisher: Any, message: Any) -> None:
            message = change(message)
            if message is not None:
                publisher.publish(message)

        if poses:
            stamps = sorted(stamp_ns + int(OFFSET_MS[c] * MS) for c in OFFICIAL_CAMERAS)
            self.tf.publish(TFMessage(transforms=[ego_pose(s) for s in [*stamps, stamp_ns]]))
        for camera in cameras:
            at = stamp_ns + int(OFFSET_MS[camera] * MS)
            if infos:
                info = camera_info(camera)
                info.header.stamp = ns_to_stamp(at)
                send(self.infos[camera], info)
            send(self.pictures[camera], (jpeg if self.transport == "compressed" else raw)(camera, at))
        send(self.lidar, cloud(stamp_ns))


class World:
    """One context with its own domain, spun by hand."""

    def __init__(self, domain_id: int) -> None:
        self.domain_id = domain_id
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain_id)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.nodes: list[Node] = []

    def add(self, node: Any) -> Any:
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def spin_until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.executor.spin_once(timeout_sec=0.02)
        return True

    def spin_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.spin_until(lambda: time.monotonic() > deadline, seconds + 1)

    def collect(self, message: type, topic: str, qos: QoSProfile = RELIABLE) -> list[Any]:
        got: list[Any] = []
        listener = self.add(Node(f"listener_{len(self.nodes)}", context=self.context))
        listener.create_subscription(message, topic, got.append, qos)
        return got

    def close(self) -> None:
        for node in self.nodes:
            if hasattr(node, "close"):
                node.close()
            self.executor.remove_node(node)
            node.destroy_node()
        self.executor.shutdown()
        rclpy.shutdown(context=self.context)

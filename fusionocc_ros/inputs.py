"""The node's subscriptions. Callbacks only store: decoding is left to the worker, and only for what was selected."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from fusionocc_ros.approximate_time import ApproximateTimeSync
from fusionocc_ros.assemble import CameraInfos, now_ns
from fusionocc_ros.convert import odometry_to_matrix, stamp_to_ns, transform_to_matrix
from fusionocc_ros.ego_motion import EgoMotion
from fusionocc_ros.parameters import AUTO, COMPRESSED, LIDAR_ANCHORED, ODOMETRY, RELIABLE, NodeParameters
from fusionocc_ros.rig import Rig
from fusionocc_ros.silence import Silence
from fusionocc_ros.sync import LidarAnchoredSync, SensorSet
from fusionocc_ros.tf_store import TfStore

if TYPE_CHECKING:
    from rclpy.node import Node

TF_QOS = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=100, reliability=QoSReliabilityPolicy.RELIABLE)
TF_STATIC_QOS = QoSProfile(
    history=QoSHistoryPolicy.KEEP_LAST,
    depth=100,
    reliability=QoSReliabilityPolicy.RELIABLE,
    durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
)
POLL_PERIOD_S = 0.02
"""How often the synchroniser is asked for sets whose deadline has passed."""


def sensor_qos(parameters: NodeParameters, *, lidar: bool = False) -> QoSProfile:
    """Of pictures, CameraInfo and odometry, or of clouds."""
    reliable = parameters.qos_reliability == RELIABLE
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=parameters.qos_lidar_depth if lidar else parameters.qos_depth,
        reliability=QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT,
    )


class Inputs:
    """Subscribes, feeds the synchroniser, hands out its sets.

    Calibration, transforms and odometry are followed from the beginning, pictures and sweeps between ``start`` and
    ``stop``.

    Args:
        node: to subscribe with.
        parameters: of the node.
        on_set: told of every set, in the executor's thread.
        on_bad_message: told of messages that cannot be used at all: kind and what is wrong.
        is_busy: whether sets are being worked on, for which a player may hold its clock.
    """

    def __init__(
        self,
        node: Node,
        parameters: NodeParameters,
        *,
        on_set: Callable[[SensorSet[Any]], None],
        on_bad_message: Callable[[str, str], None],
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._node = node
        self._parameters = parameters
        self._on_set = on_set
        self._on_bad_message = on_bad_message
        self._is_busy = is_busy
        tolerance_ns = round(parameters.transform_tolerance * 1e9)
        self.transforms = TfStore(tolerance_ns=tolerance_ns)
        self.odometry = TfStore(tolerance_ns=tolerance_ns)
        self.infos = CameraInfos()
        self.motion = EgoMotion(
            policy=parameters.ego_motion,
            base_frame=parameters.base_frame,
            fixed_frame=parameters.fixed_frame,
            transforms=self.transforms,
            odometry=self.odometry,
            timeout_s=parameters.transform_timeout,
        )
        policy = LidarAnchoredSync if parameters.sync_policy == LIDAR_ANCHORED else ApproximateTimeSync
        self.sync: LidarAnchoredSync[Any] | ApproximateTimeSync = policy(parameters.sync_config(), now_ns)
        self._picture = CompressedImage if parameters.image_transport == COMPRESSED else Image
        self._silence = Silence(self._simulated_ns, now_ns)
        self._sensors: list[Any] = []
        self._timer: Any = None
        self._others = [
            node.create_subscription(TFMessage, "/tf", self._on_tf, TF_QOS),
            node.create_subscription(TFMessage, "/tf_static", self._on_tf_static, TF_STATIC_QOS),
        ]
        for camera in parameters.cameras:
            self._others.append(self._subscribe(CameraInfo, camera.info_topic, _bound(self.infos.put, camera.name)))
        if parameters.ego_motion in (AUTO, ODOMETRY):
            self._others.append(self._subscribe(Odometry, parameters.odometry_topic, self._on_odometry))

    def use_rig(self, rig: Rig) -> None:
        """Take the sensors' places from a file, as if /tf_static had said them.

        Raises:
            ValueError: the file is about another base frame, or lacks a camera.
        """
        if rig.base_frame != self._parameters.base_frame:
            raise ValueError(
                f"rig_file is about base_frame {rig.base_frame!r}, but parameter base_frame is "
                f"{self._parameters.base_frame!r}"
            )
        missing = [name for name in self._parameters.camera_names if name not in rig.cameras]
        if missing:
            raise ValueError(f"rig_file has no camera {', '.join(missing)}; it has {', '.join(rig.cameras)}")
        for mount in (rig.lidar, *rig.cameras.values()):
            self.transforms.set_static(rig.base_frame, mount.frame_id, mount.sensor2base)

    def start(self) -> None:
        """Follow pictures and sweeps."""
        for camera in self._parameters.cameras:
            callback = _bound(self._on_picture, camera.name)
            self._sensors.append(self._subscribe(self._picture, camera.image_topic, callback))
        self._sensors.append(self._subscribe(PointCloud2, self._parameters.lidar_topic, self._on_sweep))
        self._timer = self._node.create_timer(POLL_PERIOD_S, self._poll, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def stop(self) -> None:
        """Leave pictures and sweeps alone; sweeps that wait are dropped and counted."""
        for subscription in self._sensors:
            self._node.destroy_subscription(subscription)
        self._sensors.clear()
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
        self.sync.stop()

    def close(self) -> None:
        """Take everything down."""
        self.stop()
        for subscription in self._others:
            self._node.destroy_subscription(subscription)
        self._others.clear()

    def silence_s(self) -> dict[str, float]:
        """Time since the last message of the LiDAR ("lidar") and of each camera; infinite where none came."""
        return self._silence.of(("lidar", *self._parameters.camera_names))

    def clock_stands_s(self) -> float:
        """Real time for which /clock has stood still while no set was worked on; 0 without simulated time."""
        return self._silence.clock_stands_s()

    def _simulated_ns(self) -> int | None:
        simulated = self._node.get_parameter("use_sim_time").value
        return int(self._node.get_clock().now().nanoseconds) if simulated else None

    def explain_clock(self) -> str:
        """Why simulated time may stand still."""
        if not self._node.get_publishers_info_by_topic("/clock"):
            return "use_sim_time is true and nobody publishes /clock: start the player or the simulation"
        return "use_sim_time is true and /clock stands still: the player or the simulation is paused, or stuck"

    def explain_silence(self, name: str) -> str:
        """Why nothing may come from the LiDAR ("lidar") or a camera: who publishes on its topic, and how."""
        lidar = name == "lidar"
        topics = {camera.name: camera.image_topic for camera in self._parameters.cameras}
        topic = self._node.resolve_topic_name(self._parameters.lidar_topic if lidar else topics[name])
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers:
            return f"nobody publishes {topic}"
        wanted = _type_name(PointCloud2 if lidar else self._picture)
        others = sorted({p.topic_type for p in publishers} - {wanted})
        if others:
            hint = "" if lidar else "; see image_transport"
            return f"{topic} is {', '.join(others)}, not {wanted}{hint}"
        best_effort = any(p.qos_profile.reliability == QoSReliabilityPolicy.BEST_EFFORT for p in publishers)
        if best_effort and self._parameters.qos_reliability == RELIABLE:
            return f"{topic} is published with best effort, which qos.reliability: reliable refuses"
        return f"{topic} has a publisher that sends nothing, or all is lost on the way"

    def _subscribe(self, message: type, topic: str, callback: Callable[[Any], None]) -> Any:
        return self._node.create_subscription(
            message,
            topic,
            callback,
            sensor_qos(self._parameters, lidar=message is PointCloud2),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _hand_out(self, sets: list[SensorSet[Any]]) -> None:
        for one in sets:
            self._on_set(one)

    def _poll(self) -> None:
        self._silence.observe()
        if self._is_busy():
            self._silence.excuse()
        self._hand_out(self.sync.poll())

    def _on_picture(self, camera: str, message: Any) -> None:
        self._silence.heard(camera)
        self._hand_out(self.sync.add(camera, stamp_to_ns(message.header.stamp), message))

    def _on_sweep(self, message: Any) -> None:
        self._silence.heard("lidar")
        self._hand_out(self.sync.add("lidar", stamp_to_ns(message.header.stamp), message))

    def _on_tf(self, message: Any) -> None:
        for entry in message.transforms:
            self._store(entry, partial(self.transforms.add, stamp_ns=stamp_to_ns(entry.header.stamp)))

    def _on_tf_static(self, message: Any) -> None:
        for entry in message.transforms:
            self._store(entry, self.transforms.set_static)

    def _store(self, entry: Any, put: Callable[..., None]) -> None:
        parent, child = entry.header.frame_id, entry.child_frame_id
        try:
            put(parent=parent, child=child, child2parent=transform_to_matrix(entry.transform))
        except ValueError as error:
            self._on_bad_message("bad_transform", f"transform from {child!r} to {parent!r} is ignored: {error}")

    def _on_odometry(self, message: Any) -> None:
        fixed, moved = message.header.frame_id or "odom", message.child_frame_id or self._parameters.base_frame
        try:
            self.odometry.add(fixed, moved, stamp_to_ns(message.header.stamp), odometry_to_matrix(message))
        except ValueError as error:
            self._on_bad_message("bad_odometry", f"odometry of {moved!r} is ignored: {error}")
            return
        self.motion.odometry_frames(moved, fixed)


def _type_name(message: type) -> str:
    return f"{message.__module__.split('.')[0]}/msg/{message.__name__}"


def _bound(callback: Callable[[str, Any], None], name: str) -> Callable[[Any], None]:
    """The callback with its first argument set; rclpy wants plain functions of one message."""

    def bound(message: Any) -> None:
        callback(name, message)

    return bound

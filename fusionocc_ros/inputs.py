"""The node's subscriptions. Callbacks only store: decoding is left to the worker, and only for what was selected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.qos import (
    QoSCompatibility,
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from fusionocc_ros.approximate_time import ApproximateTimeSync
from fusionocc_ros.assemble import Needs, now_ns
from fusionocc_ros.convert import odometry_to_matrix, stamp_to_ns, transform_to_matrix
from fusionocc_ros.ego_motion import EgoMotion
from fusionocc_ros.parameters import APPROXIMATE_TIME, AUTO, COMPRESSED, ODOMETRY, RELIABLE, NodeParameters
from fusionocc_ros.readers import CameraInfos
from fusionocc_ros.rig import Rig
from fusionocc_ros.silence import Silence
from fusionocc_ros.sync import LidarAnchoredSync, SensorSet, SyncConfig
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
MOST_TF_BYTES = 1 << 18
"""Of one message: 3,000 transforms, which take rclpy a quarter of a second. Sixty times as many would keep everything
else waiting for that much longer, so messages are looked at before they are read."""
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


def sync_config(parameters: NodeParameters, needs: Needs) -> SyncConfig:
    """The synchroniser's settings, for a network that cannot do without some sensors."""
    config = parameters.sync_config()
    least = min(max(config.min_cameras, needs.cameras), len(config.cameras))
    alone = not needs.lidar or config.reference not in config.lidars
    return replace(config, min_cameras=least, reference_timeout_ns=config.reference_timeout_ns if alone else 0)


class Inputs:
    """Subscribes, feeds the synchroniser, hands out its sets.

    Calibration, transforms and odometry are followed from the beginning, pictures and sweeps between ``start`` and
    ``stop``.

    Args:
        node: to subscribe with.
        parameters: of the node.
        on_set: told of every set, in the executor's thread.
        on_bad_message: told of messages that cannot be used at all: kind and what is wrong.
        needs: what the network cannot do without.
        is_busy: whether sets are being worked on, for which a player may hold its clock.
    """

    def __init__(
        self,
        node: Node,
        parameters: NodeParameters,
        *,
        on_set: Callable[[SensorSet[Any]], None],
        on_bad_message: Callable[[str, str], None],
        needs: Needs | None = None,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._node = node
        self._parameters = parameters
        self._on_set = on_set
        self._on_bad_message = on_bad_message
        self._is_busy = is_busy
        tolerance_ns = round(parameters.transform_tolerance * 1e9)
        gap_ns = round(parameters.transform_gap * 1e9)
        self.transforms = TfStore(tolerance_ns=tolerance_ns, gap_ns=gap_ns)
        self.odometry = TfStore(tolerance_ns=tolerance_ns, gap_ns=gap_ns)
        self.infos = CameraInfos()
        self.motion = EgoMotion(
            policy=parameters.ego_motion,
            base_frame=parameters.base_frame,
            fixed_frame=parameters.fixed_frame,
            transforms=self.transforms,
            odometry=self.odometry,
            timeout_s=parameters.transform_timeout,
        )
        policy = ApproximateTimeSync if parameters.sync_policy == APPROXIMATE_TIME else LidarAnchoredSync
        config = sync_config(parameters, needs or Needs())
        self.sync: LidarAnchoredSync[Any] | ApproximateTimeSync = policy(config, now_ns)
        self._picture = CompressedImage if parameters.image_transport == COMPRESSED else Image
        self._silence = Silence(self._simulated_ns, now_ns)
        self._sensors: list[Any] = []
        self._timer: Any = None
        self._others = [
            node.create_subscription(TFMessage, "/tf", self._on_tf, TF_QOS, raw=True),
            node.create_subscription(TFMessage, "/tf_static", self._on_tf_static, TF_STATIC_QOS, raw=True),
        ]
        for camera in parameters.cameras:
            self._others.append(self._subscribe(CameraInfo, camera.info_topic, _bound(self.infos.put, camera.name)))
        if parameters.ego_motion in (AUTO, ODOMETRY):
            self._others.append(self._subscribe(Odometry, parameters.odometry_topic, self._on_odometry))

    def use_rig(self, rig: Rig) -> None:
        """Take the sensors' places from a file, as if /tf_static had said them.

        Raises:
            ValueError: the file is about another base frame, or lacks a sensor.
        """
        if rig.base_frame != self._parameters.base_frame:
            raise ValueError(
                f"rig_file is about base_frame {rig.base_frame!r}, but parameter base_frame is "
                f"{self._parameters.base_frame!r}"
            )
        wanted = {"camera": (self._parameters.camera_names, rig.cameras)}
        wanted["LiDAR"] = (tuple(lidar.name for lidar in self._parameters.lidars), rig.lidars)
        for kind, (names, mounts) in wanted.items():
            missing = [name for name in names if name not in mounts]
            if missing:
                raise ValueError(f"rig_file has no {kind} {', '.join(missing)}; it has {', '.join(mounts) or 'none'}")
            for mount in mounts.values():
                self.transforms.set_static(rig.base_frame, mount.frame_id, mount.sensor2base)

    def start(self) -> None:
        """Follow pictures and sweeps."""
        for camera in self._parameters.cameras:
            self._sensors.append(
                self._subscribe(self._picture, camera.image_topic, _bound(self._on_message, camera.name))
            )
        for lidar in self._parameters.lidars:
            self._sensors.append(self._subscribe(PointCloud2, lidar.topic, _bound(self._on_message, lidar.name)))
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
        """Time since the last message of each LiDAR (the first is "lidar") and camera; infinite where none came."""
        return self._silence.of(self.sync.config.sensors)

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
        """Why nothing may come from a LiDAR (the first is "lidar") or a camera: who publishes on its topic, and how."""
        topics = {camera.name: camera.image_topic for camera in self._parameters.cameras}
        clouds = {lidar.name: lidar.topic for lidar in self._parameters.lidars}
        topic = self._node.resolve_topic_name({**topics, **clouds}[name])
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers:
            return f"nobody publishes {topic}"
        wanted = _type_name(PointCloud2 if name in clouds else self._picture)
        others = sorted({p.topic_type for p in publishers} - {wanted})
        if others:
            hint = "" if name in clouds else "; see image_transport"
            return f"{topic} is {', '.join(others)}, not {wanted}{hint}"
        return (
            self._explain_qos(topic, publishers)
            or f"{topic} has a publisher that sends nothing, or all is lost on the way"
        )

    def _explain_qos(self, topic: str, publishers: list[Any]) -> str:
        """Why a publisher of a topic does not match our subscription; empty where all do."""
        us = (self._node.get_name(), self._node.get_namespace())
        ours = self._node.get_subscriptions_info_by_topic(topic)
        for subscription in (s for s in ours if (s.node_name, s.node_namespace) == us):
            for publisher in publishers:
                match, reason = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
                if match != QoSCompatibility.ERROR:
                    continue
                best_effort = publisher.qos_profile.reliability == QoSReliabilityPolicy.BEST_EFFORT
                if best_effort and subscription.qos_profile.reliability == QoSReliabilityPolicy.RELIABLE:
                    return f"{topic} is published with best effort, which qos.reliability: reliable refuses"
                return f"{topic} is published with a quality of service that does not match: {reason}"
        return ""

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

    def _on_message(self, sensor: str, message: Any) -> None:
        self._silence.heard(sensor)
        self._hand_out(self.sync.add(sensor, stamp_to_ns(message.header.stamp), message))

    def _on_tf(self, content: bytes) -> None:
        for entry in self._read_transforms(content):
            self._store(entry, partial(self.transforms.add, stamp_ns=stamp_to_ns(entry.header.stamp)))

    def _on_tf_static(self, content: bytes) -> None:
        for entry in self._read_transforms(content):
            self._store(entry, self.transforms.set_static)

    def _read_transforms(self, content: bytes) -> Sequence[Any]:
        """The transforms of a TFMessage; none where it is damaged, or longer than anybody can mean it to be."""
        problem = f"it has {len(content)} bytes; at most {MOST_TF_BYTES} are taken"
        if len(content) <= MOST_TF_BYTES:
            try:
                return list(deserialize_message(content, TFMessage).transforms)
            except RuntimeError as error:
                problem = str(error)
        self._on_bad_message("bad_transform", f"a message of transforms is ignored: {problem}")
        return ()

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

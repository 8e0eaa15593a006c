"""A driver of one sensor as a process of its own: it sends what lies in files, at its pace, and can be told to fail.

python tests/ros/fault_sensor.py SPEC        SPEC is JSON: see Driver

It imports nothing but rclpy, to start quickly. Every line of JSON on its standard input changes attributes of the
driver; each is answered by a line of JSON with what it has sent.
"""

from __future__ import annotations

import importlib
import json
import math
import select
import struct
import sys
import time
from pathlib import Path
from typing import Any

import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message

S = 1_000_000_000


def stamped(serialized: bytes, stamp_ns: int) -> bytes:
    """The serialized message with another header.stamp, which follows the four bytes that name the encoding."""
    return serialized[:4] + struct.pack("<iI", stamp_ns // S, stamp_ns % S) + serialized[12:]


def place(stamp_ns: int) -> tuple[float, float, float]:
    """x, y (metres) and heading (radians) of the vehicle in the map; no straight line joins two far stamps."""
    t = (stamp_ns % (10_000 * S)) / S
    return 20.0 * math.sin(0.5 * t), 8.0 * math.sin(0.3 * t), 0.6 * math.sin(0.4 * t)


class Driver:
    """What it sends and how.

    Attributes that can be changed: ``file`` (which of the recorded messages; its name is the sensor's and this),
    ``delay_ms`` (messages leave so much later), ``offset_ns`` (added to stamps), ``stamps`` ("true", "zero", "same",
    "back"), ``paused``, ``latch`` (a file to be sent once, on the latched topic).
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name, self.kind = spec["name"], spec["kind"]
        self.period_ns, self.phase_ns, self.lag_ns = (
            round(S / spec["hz"]),
            spec["phase_ms"] * 10**6,
            spec["lag_ms"] * 10**6,
        )
        self.folder = Path(spec["folder"])
        self.file, self.delay_ms, self.offset_ns, self.stamps, self.paused = "good", 0, 0, "true", False
        self.latch = ""
        self.sent, self.last_ns, self.late_s = 0, 0, 0.0
        self.node = rclpy.create_node(f"{self.name.lower()}_driver")
        best_effort = spec.get("best_effort", False)
        reliability = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
        self.out = self.node.create_publisher(
            message_type(self.kind), spec["topic"], QoSProfile(depth=20, reliability=reliability)
        )
        self.side: Any = None
        if self.kind == "tf2_msgs/TFMessage":
            latched = QoSProfile(
                depth=50, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
            )
            self.side = self.node.create_publisher(message_type(self.kind), "/tf_static", latched)
            self.latch = spec["latch"]
        elif self.kind == "sensor_msgs/CompressedImage":
            info = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
            self.side = self.node.create_publisher(message_type("sensor_msgs/CameraInfo"), spec["info_topic"], info)
        self.next_ns = (time.time_ns() // self.period_ns + 1) * self.period_ns + self.phase_ns

    def recorded(self, what: str) -> bytes:
        """A message from its file."""
        return (self.folder / f"{self.name}.{what}").read_bytes()

    def due_s(self) -> float:
        """Until the next message leaves."""
        return (self.next_ns + self.lag_ns + self.delay_ms * 10**6 - time.time_ns()) / S

    def step(self) -> None:
        """Send what is due."""
        if self.latch:
            self.side.publish(self.recorded(self.latch))
            self.latch = ""
        while self.due_s() <= 0:
            self.late_s = max(self.late_s, -self.due_s())
            if not self.paused:
                self.send(self.next_ns + self.offset_ns)
            self.next_ns += self.period_ns

    def send(self, stamp_ns: int) -> None:
        """One message."""
        if self.stamps == "zero":
            stamp_ns = 0
        elif self.stamps == "same":
            stamp_ns = self.last_ns or stamp_ns
        elif self.stamps == "back" and self.sent % 2:
            stamp_ns = self.last_ns - self.period_ns // 2
        if self.kind == "tf2_msgs/TFMessage":
            self.out.publish(self.pose(stamp_ns))
        else:
            if self.side is not None:
                self.side.publish(stamped(self.recorded("info"), stamp_ns))
            self.out.publish(stamped(self.recorded(self.file), stamp_ns))
        self.sent, self.last_ns = self.sent + 1, stamp_ns

    def pose(self, stamp_ns: int) -> bytes:
        """map to base_link."""
        from geometry_msgs.msg import TransformStamped
        from tf2_msgs.msg import TFMessage

        entry = TransformStamped(child_frame_id="base_link")
        entry.header.frame_id = "map"
        entry.header.stamp.sec, entry.header.stamp.nanosec = stamp_ns // S, stamp_ns % S
        x, y, yaw = place(stamp_ns)
        entry.transform.translation.x, entry.transform.translation.y = x, y
        entry.transform.rotation.z, entry.transform.rotation.w = math.sin(yaw / 2), math.cos(yaw / 2)
        return bytes(serialize_message(TFMessage(transforms=[entry])))

    def answer(self) -> None:
        """What it has sent."""
        sys.stdout.write(json.dumps({"sent": self.sent, "last_ns": self.last_ns, "late_s": self.late_s}) + "\n")
        sys.stdout.flush()
        self.late_s = 0.0


def message_type(kind: str) -> Any:
    """The class of a name such as sensor_msgs/PointCloud2."""
    package, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def main() -> None:
    """Drive until the input ends."""
    rclpy.init()
    driver = Driver(json.loads(sys.argv[1]))
    driver.answer()
    while True:
        driver.step()
        # Unbuffered below: what select does not see must not lie in a buffer.
        if select.select([sys.stdin], [], [], max(min(driver.due_s(), 0.1), 0.0))[0]:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                return
            for name, value in json.loads(line).items():
                setattr(driver, name, value)
            driver.step()
            driver.answer()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        rclpy.try_shutdown()

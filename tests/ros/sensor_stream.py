"""A vehicle's sensors as a process of its own: pictures, sweeps, calibration, transforms, at their own rates.

python tests/ros/sensor_stream.py raw|compressed SECONDS [--lidar-hz 20] [--camera-hz 12] [--size 1600x900] [--together]

--together: the pictures of a sweep have its stamp and leave one after the other just before it, as a LiDAR that turns
past the cameras has them: every set is whole at once.
"""

from __future__ import annotations

import argparse
import array
import json
import sys
import time
from typing import Any

import cv2
import numpy as np
import rclpy
from dds_traffic import stamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from synthetic_sensors import LATCHED, MS, OFFICIAL_CAMERAS, OFFSET_MS, S, camera_info, cloud, ego_pose, points
from synthetic_sensors import static_transforms as statics
from tf2_msgs.msg import TFMessage

from fusionocc_ros.dds import use_shipped_profile

POINTS = 34_000
TF_HZ = 50
LAG_NS = 30 * MS
"""How long after its stamp a message leaves."""
TURN_NS = 5 * MS
"""Between one camera and the next where they are triggered by the turning LiDAR."""


def picture(transport: str, camera: str, size: tuple[int, int]) -> Image | CompressedImage:
    """Noise on a ramp, which makes a JPEG of about the size of a street's."""
    width, height = size
    rng = np.random.default_rng(sum(map(ord, camera)))
    coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    if transport == "raw":
        out = Image(height=height, width=width, encoding="bgr8", step=3 * width)
        out.data = array.array("B", pixels.tobytes())
    else:
        out = CompressedImage(format="jpeg", data=array.array("B", cv2.imencode(".jpg", pixels)[1].tobytes()))
    out.header.frame_id = camera.lower()
    return out


class Stream:
    """Publishers and the messages that they send, serialised once."""

    def __init__(self, transport: str, size: tuple[int, int]) -> None:
        self.node = Node("vehicle")
        best_effort = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        kind, suffix = (Image, "") if transport == "raw" else (CompressedImage, "_compressed")
        create = self.node.create_publisher
        self.publishers = {c: create(kind, f"/{c.lower()}/image_rect{suffix}", best_effort) for c in OFFICIAL_CAMERAS}
        self.publishers["LIDAR"] = create(PointCloud2, "/lidar_top", best_effort)
        self.messages = {c: serialize_message(picture(transport, c, size)) for c in OFFICIAL_CAMERAS}
        self.messages["LIDAR"] = serialize_message(cloud(0, points(POINTS)))
        self.infos = {c: create(CameraInfo, f"/{c.lower()}/camera_info", 5) for c in OFFICIAL_CAMERAS}
        fx = 0.8 * size[0]
        k = [fx, 0.0, size[0] / 2, 0.0, fx, size[1] / 2, 0.0, 0.0, 1.0]
        self.info = {c: camera_info(c, width=size[0], height=size[1], k=k) for c in OFFICIAL_CAMERAS}
        self.tf = create(TFMessage, "/tf", 100)
        self.tf_static = create(TFMessage, "/tf_static", LATCHED)
        self.tf_static.publish(statics())

    def send(self, source: str, stamp_ns: int) -> None:
        """One message, or what belongs to it."""
        if source == "TF":
            self.tf.publish(TFMessage(transforms=[ego_pose(stamp_ns)]))
        elif source == "INFO":
            for camera, publisher in self.infos.items():
                publisher.publish(self.info[camera])
        else:
            self.publishers[source].publish(stamped(self.messages[source], stamp_ns))

    def wait_for_listener(self) -> None:
        """Until the node listens to everything."""
        deadline = time.monotonic() + 120
        while any(p.get_subscription_count() == 0 for p in (*self.publishers.values(), *self.infos.values(), self.tf)):
            if time.monotonic() > deadline:
                raise RuntimeError("nobody listens")
            time.sleep(0.05)
        time.sleep(1.0)


def schedule(arguments: argparse.Namespace) -> list[tuple[int, int, str]]:
    """(when it leaves, stamp, source) in order, nanoseconds after the start."""
    events = [(k * S // TF_HZ, k * S // TF_HZ, "TF") for k in range(-TF_HZ, round((arguments.seconds + 1) * TF_HZ))]
    events += [(k * S, k * S, "INFO") for k in range(round(arguments.seconds) + 1)]
    for k in range(round(arguments.seconds * arguments.lidar_hz)):
        stamp = round(k * S / arguments.lidar_hz)
        if arguments.together:
            events += [(stamp + LAG_NS - (6 - n) * TURN_NS, stamp, c) for n, c in enumerate(OFFICIAL_CAMERAS)]
        events.append((stamp + LAG_NS, stamp, "LIDAR"))
    if not arguments.together:
        for camera in OFFICIAL_CAMERAS:
            stamps = (round(OFFSET_MS[camera] * MS + k * S / arguments.camera_hz) for k in range(1, 10**9))
            for stamp in stamps:
                if stamp > arguments.seconds * S:
                    break
                events.append((stamp + LAG_NS, stamp, camera))
    return sorted(events)


def stream(arguments: argparse.Namespace) -> dict[str, Any]:
    """Send everything; how many of each, and how late the sender was at most."""
    width, height = (int(v) for v in arguments.size.split("x"))
    out = Stream(arguments.transport, (width, height))
    events = schedule(arguments)
    out.send("INFO", 0)
    out.wait_for_listener()
    begin_ns = time.time_ns() + S
    sent: dict[str, int] = {}
    late_s = 0.0
    for leaves, stamp, source in events:
        wait_s = (begin_ns + leaves - time.time_ns()) / S
        if wait_s > 0:
            time.sleep(wait_s)
        elif stamp >= 0:
            late_s = max(late_s, -wait_s)
        out.send(source, begin_ns + stamp)
        sent[source] = sent.get(source, 0) + 1
    time.sleep(1.0)
    return {"sent": sent, "late_s": late_s}


def main() -> None:
    parser = argparse.ArgumentParser(description="A vehicle's sensors.")
    parser.add_argument("transport", choices=("raw", "compressed"))
    parser.add_argument("seconds", type=float)
    parser.add_argument("--lidar-hz", type=float, default=20.0)
    parser.add_argument("--camera-hz", type=float, default=12.0)
    parser.add_argument("--size", default="1600x900")
    parser.add_argument("--together", action="store_true")
    arguments = parser.parse_args()
    use_shipped_profile()
    rclpy.init()
    sys.stdout.write(json.dumps(stream(arguments)) + "\n")
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()

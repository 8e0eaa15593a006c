"""Two processes for test_dds_throughput.py: `send` publishes a vehicle's raw sensor traffic, `receive` runs the node.

python dds_traffic.py receive RAW|COMPRESSED SECONDS     prints READY, later one line of JSON
python dds_traffic.py send RAW|COMPRESSED SECONDS        prints one line of JSON
"""

from __future__ import annotations

import array
import json
import struct
import sys
import time

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from synthetic_sensors import MS, OFFICIAL_CAMERAS, OFFSET_MS, S, cloud, points

from fusionocc_ros.dds import use_shipped_profile
from fusionocc_ros.node import OccNode

HEIGHT, WIDTH = 900, 1600
JPEG_BYTES = 200_000
POINTS = 34_000
IDLE_S = 4.0
LATE_S = 0.02


def picture(transport: str, camera: str) -> Image | CompressedImage:
    if transport == "raw":
        out = Image(height=HEIGHT, width=WIDTH, encoding="bgr8", step=3 * WIDTH)
        out.data = array.array("B", np.random.default_rng(0).bytes(3 * HEIGHT * WIDTH))
    else:
        out = CompressedImage(format="jpeg", data=array.array("B", bytes(JPEG_BYTES)))
    out.header.frame_id = camera.lower()
    return out


def stamped(serialized: bytes, stamp_ns: int) -> bytes:
    """The serialized message with another header.stamp, which follows the four bytes that name the encoding."""
    return serialized[:4] + struct.pack("<iI", stamp_ns // S, stamp_ns % S) + serialized[12:]


def schedule(seconds: float) -> list[tuple[int, str]]:
    """(stamp after the start, source) in order: 20 Hz LiDAR, 12 Hz cameras with their phases."""
    events = [(k * 50 * MS, "LIDAR") for k in range(round(seconds * 20))]
    for camera in OFFICIAL_CAMERAS:
        events += [(int((OFFSET_MS[camera] + k * 1000 / 12) * MS), camera) for k in range(1, round(seconds * 12) + 1)]
    return sorted(events)


def send(transport: str, seconds: float) -> dict[str, object]:
    node = Node("sender")
    qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
    kind, suffix = (Image, "") if transport == "raw" else (CompressedImage, "_compressed")
    publishers = {c: node.create_publisher(kind, f"/{c.lower()}/image_rect{suffix}", qos) for c in OFFICIAL_CAMERAS}
    publishers["LIDAR"] = node.create_publisher(PointCloud2, "/lidar_top", qos)
    messages = {c: serialize_message(picture(transport, c)) for c in OFFICIAL_CAMERAS}
    messages["LIDAR"] = serialize_message(cloud(0, points(POINTS)))
    deadline = time.monotonic() + 30
    while any(p.get_subscription_count() == 0 for p in publishers.values()):
        if time.monotonic() > deadline:
            raise RuntimeError("nobody listens")
        time.sleep(0.05)
    time.sleep(1.0)
    begin, start_ns = time.monotonic(), time.time_ns()
    sent = dict.fromkeys(publishers, 0)
    late_s = 0.0
    for offset, source in schedule(seconds):
        # A message leaves when it would in a vehicle: a little after its stamp.
        wait = begin + offset / 1e9 + 0.05 - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        elif wait < -LATE_S:
            # No processor was free. What follows keeps its distance: sensors do not send faster after a pause.
            late_s = max(late_s, -wait)
            begin -= wait
        publishers[source].publish(stamped(messages[source], start_ns + offset))
        sent[source] += 1
    time.sleep(1.0)
    node.destroy_node()
    return {"sent": sent, "start_ns": start_ns, "latest_s": late_s}


def receive(transport: str, seconds: float) -> dict[str, object]:
    sets: list[tuple[int, int, float]] = []
    node = OccNode(
        on_set=lambda s: sets.append((s.stamp_ns, len(s.pictures), (s.released_ns - s.arrived_ns) / 1e9)),
        parameter_overrides=[Parameter("image_transport", value=transport)],
    )
    if not node.start():
        raise RuntimeError("the node did not start")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    began = time.monotonic()
    cpu = time.process_time()
    deadline = began + seconds + 60
    while time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.2)
        silence = min(node.inputs.silence_s().values())
        if silence == float("inf"):
            cpu, began = time.process_time(), time.monotonic()
        elif silence > IDLE_S:
            break
    counters = node.inputs.sync.counters
    result = {
        "pictures": dict(counters.pictures),
        "sweeps": counters.received,
        "released": counters.released,
        "dropped": dict(counters.dropped),
        "sets": sets,
        "cpu": (time.process_time() - cpu) / max(time.monotonic() - began - IDLE_S, 1e-3),
    }
    node.close()
    node.destroy_node()
    return result


def main() -> None:
    use_shipped_profile()
    rclpy.init()
    what, transport, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    sys.stdout.write(json.dumps((send if what == "send" else receive)(transport, seconds)) + "\n")
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()

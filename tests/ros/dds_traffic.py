"""A vehicle's raw sensor traffic between two processes: one publishes it, the other runs the node.

python tests/ros/dds_traffic.py both raw|compressed SECONDS [--no-profile]     prints what arrived

`send` and `receive` are the two processes; each prints one line of JSON, `receive` also READY before.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from synthetic_sensors import MS, OFFICIAL_CAMERAS, OFFSET_MS, S, cloud, points

from fusionocc_ros.dds import use_shipped_profile
from fusionocc_ros.domains import claimed_domain
from fusionocc_ros.node import OccNode
from fusionocc_ros.spinning import make_executor

HEIGHT, WIDTH = 900, 1600
JPEG_BYTES = 200_000
POINTS = 34_000
IDLE_S = 4.0
LATE_S = 0.02
SPIN_S = 0.2
ROOT = Path(__file__).resolve().parents[2]


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
    executor = make_executor()
    executor.add_node(node)
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    began = time.monotonic()
    cpu = time.process_time()
    deadline = began + seconds + 60
    paused_s = 0.0
    while (now := time.monotonic()) < deadline:
        executor.spin_once(timeout_sec=SPIN_S)
        paused_s = max(paused_s, time.monotonic() - now - SPIN_S)
        silence = min(node.inputs.silence_s().values())
        if silence == float("inf"):
            cpu, began = time.process_time(), time.monotonic()
        elif silence > IDLE_S:
            break
    counters = node.inputs.sync.counters
    result = {
        "pictures": {name: count for name, count in counters.messages.items() if name != "lidar"},
        "sweeps": counters.received,
        "released": counters.released,
        "dropped": dict(counters.dropped),
        "sets": sets,
        "paused_s": paused_s,
        "cpu": (time.process_time() - cpu) / max(time.monotonic() - began - IDLE_S, 1e-3),
    }
    node.close()
    node.destroy_node()
    return result


def environment(domain: int) -> dict[str, str]:
    """Of both processes: a domain of their own, no settings from outside."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FASTDDS_", "FASTRTPS_", "RMW_"))}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{env.get('PYTHONPATH', '')}"
    env["ROS_DOMAIN_ID"] = str(domain)
    env["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    return env


def exchange(transport: str, seconds: int, *, profile: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the sender sent and the receiver received.

    Raises:
        RuntimeError: one of the processes failed; with what it said.
    """
    processes: list[subprocess.Popen[str]] = []
    claim = contextlib.ExitStack()
    domain = claim.enter_context(claimed_domain())

    def run(what: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, what, transport, str(seconds), *([] if profile else ["--no-profile"])]
        process = subprocess.Popen(command, env=environment(domain), stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    def answer(process: subprocess.Popen[str], what: str) -> dict[str, Any]:
        text, _ = process.communicate(timeout=120)
        if process.returncode:
            raise RuntimeError(f"{what} ended with {process.returncode}; it printed {text!r}")
        return dict(json.loads(text))

    try:
        receiver = run("receive")
        assert receiver.stdout is not None
        ready = receiver.stdout.readline()
        if ready != "READY\n":
            raise RuntimeError(f"the receiver did not start: it printed {ready!r}")
        return answer(run("send"), "the sender"), answer(receiver, "the receiver")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        claim.close()


def complete_sets(sent: dict[str, Any], received: dict[str, Any], seconds: int) -> tuple[int, list[float]]:
    """Sets with six pictures among the sweeps half a second from either end, and how long each of the sets waited."""
    begin, end = sent["start_ns"] + S // 2, sent["start_ns"] + seconds * S - S // 2
    inner = [(cameras, waited) for stamp, cameras, waited in received["sets"] if begin <= stamp < end]
    return sum(cameras == len(OFFICIAL_CAMERAS) for cameras, _ in inner), sorted(waited for _, waited in inner)


def summary(transport: str, sent: dict[str, Any], received: dict[str, Any], seconds: int) -> str:
    """One line for people."""
    complete, waits = complete_sets(sent, received, seconds)
    pictures = sum(count for source, count in sent["sent"].items() if source != "LIDAR")
    waited = f"p50 {waits[len(waits) // 2] * 1e3:.0f} and max {waits[-1] * 1e3:.0f} ms" if waits else "nothing"
    return (
        f"{transport}: {sum(received['pictures'].values())} of {pictures} pictures and {received['sweeps']} of "
        f"{sent['sent']['LIDAR']} sweeps arrived, {complete} of {20 * (seconds - 1)} sets complete, waited {waited}; "
        f"receiver's CPU {100 * received['cpu']:.0f} %, longest pause {1e3 * received['paused_s']:.0f} ms; sender late "
        f"by {1e3 * sent['latest_s']:.0f} ms at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A vehicle's sensor traffic between two processes.")
    parser.add_argument("what", choices=("both", "send", "receive"))
    parser.add_argument("transport", choices=("raw", "compressed"))
    parser.add_argument("seconds", type=int)
    parser.add_argument("--no-profile", action="store_true", help="without the shipped Fast DDS profile")
    arguments = parser.parse_args()
    transport, seconds = arguments.transport, arguments.seconds
    if arguments.what == "both":
        sent, received = exchange(transport, seconds, profile=not arguments.no_profile)
        sys.stdout.write(summary(transport, sent, received, seconds) + "\n")
        return
    if not arguments.no_profile:
        use_shipped_profile()
    rclpy.init()
    sys.stdout.write(json.dumps((send if arguments.what == "send" else receive)(transport, seconds)) + "\n")
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()

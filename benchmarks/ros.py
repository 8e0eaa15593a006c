"""What the ROS layer costs beside the network: decoding, conversion, each output, and the whole over DDS.

python benchmarks/ros.py [--seconds 20] [--hz 10] [--report FILE]

The first table is processor time of one core, in this process. The second is taken over DDS with processes of their
own: six raw 1600x900 pictures, 5 ms apart, then a sweep of 34,000 points; the network answers at once with 30,000
occupied voxels; occupancy, voxels and map are listened to, and in the second run markers as well. The overhead is what
passes from the sweep's arrival to the last message, without the network. Wants two idle cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import in_words, machine, write_report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "ros"))  # sensors and a network that computes nothing

MOST_MS, MOST_WITH_MARKERS_MS = 15.0, 40.0
VOXELS = 30_000
WARM_UP_S = 1.0
"""Sets of the first second are left out: the node wakes up in them."""


def parts() -> dict[str, Callable[[], Any]]:
    """What is done for one set, each part by itself."""
    from fast_node import street
    from rclpy.serialization import serialize_message
    from sensor_stream import picture
    from synthetic_sensors import OFFICIAL_CAMERAS, cloud, points

    from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS
    from fusionocc_core.structures import LidarSweep, Occupancy, SensorFrame
    from fusionocc_ros.clouds import BeamLayout
    from fusionocc_ros.convert import cloud_to_points, picture_to_rgb
    from fusionocc_ros.occupancy_messages import Provenance
    from fusionocc_ros.outputs import OUTPUTS, Result
    from fusionocc_ros.parameters import NodeParameters

    size = (1600, 900)
    raw = [picture("raw", camera, size) for camera in OFFICIAL_CAMERAS]
    jpeg = [picture("compressed", camera, size) for camera in OFFICIAL_CAMERAS]
    sweep = cloud(10**18, points(34_000))
    labels = street(VOXELS)
    occupancy = Occupancy(labels=labels, grid=OCC3D_GRID, label_set=OCC3D_LABELS, stamp_ns=1)
    pose = np.eye(4)
    pose[:2, :2] = [[0.96, -0.28], [0.28, 0.96]]
    lidar = LidarSweep(points=np.zeros((1, 5), np.float32), lidar2ego=np.eye(4), ego2global=pose, stamp_ns=1)
    frame = SensorFrame(stamp_ns=1, ego2global=pose, cameras=(), lidar=lidar)
    outputs = {output.topic: output for output in OUTPUTS if not output.package}

    def sent(topic: str, **parameters: Any) -> Callable[[], Any]:
        result = Result(
            occupancy=occupancy,
            provenance=Provenance(frame_id="base_link", sensors=frame, fixed_frame="map"),
            parameters=NodeParameters(markers_surface_only=False, **parameters),
        )

        def made() -> bytes:
            message = outputs[topic].make(result)
            return message if isinstance(message, bytes) else bytes(serialize_message(message))

        return made

    return {
        "six JPEGs, decoded": lambda: [picture_to_rgb(p, name="c") for p in jpeg],
        "six raw pictures (views)": lambda: [picture_to_rgb(p, name="c") for p in raw],
        "cloud of 34,000 points": lambda: cloud_to_points(sweep, beams=BeamLayout(), intensity_scale=1.0, name="l"),
        "SemanticOccupancy, dense": sent("~/occupancy"),
        "SemanticOccupancy, sparse": sent("~/occupancy", encoding="sparse"),
        "SemanticOccupancy, run length": sent("~/occupancy", encoding="run_length"),
        "PointCloud2": sent("~/voxels"),
        "OccupancyGrid in a turned frame": sent("~/grid"),
        "OccupancyGrid in the vehicle's frame": sent("~/grid", grid_frame="base"),
        "MarkerArray": sent("~/markers"),
    }


def processor_ms(work: Callable[[], Any], rounds: int = 15) -> float:
    """The least processor time of one call, milliseconds."""
    work()
    costs = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        costs.append(time.process_time() - began)
    return 1e3 * min(costs)


def whole(seconds: float, hz: float, *, markers: bool) -> dict[str, float]:
    """Over DDS: percentiles of the overhead, and processor time of the node for one set."""
    from observed_run import HERE, observe

    node = [sys.executable, str(HERE / "fast_node.py"), str(VOXELS)]
    sensors = ["raw", str(seconds), "--lidar-hz", str(hz), "--together"]
    seen = observe(node, sensors, markers=markers)
    if seen.problems or not seen.total_ms:
        raise RuntimeError(f"the run failed: {seen.problems or 'no result was seen'}")
    pairs = zip(seen.total_ms, seen.inference_ms, strict=False)
    overhead = np.array([total - network for (_, total), network in pairs])[round(WARM_UP_S * hz) :]
    return {
        "results": float(len(overhead)),
        "p50": float(np.percentile(overhead, 50)),
        "p95": float(np.percentile(overhead, 95)),
        "p99": float(np.percentile(overhead, 99)),
        "processor": 1e3 * seen.cpu_s / max(len(overhead), 1),
        "sender late": 1e3 * seen.sent["late_s"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="What the ROS layer costs beside the network.")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run over DDS (default: %(default)g)")
    parser.add_argument("--hz", type=float, default=10.0, help="sets a second (default: %(default)g)")
    parser.add_argument("--parts-only", action="store_true", help="leave the runs over DDS out")
    parser.add_argument("--report", type=Path, help="where the numbers go, as JSON")
    arguments = parser.parse_args()
    about = machine()
    print(in_words(about))
    numbers: dict[str, object] = {}
    print("\nprocessor time, ms, one core")
    for name, work in parts().items():
        numbers[name] = processor_ms(work)
        print(f"  {name:38s} {numbers[name]:7.2f}")
    met = True
    for markers, most in () if arguments.parts_only else ((False, MOST_MS), (True, MOST_WITH_MARKERS_MS)):
        found = whole(arguments.seconds, arguments.hz, markers=markers)
        numbers["with markers" if markers else "without markers"] = found
        met &= found["p95"] <= most
        print(
            f"\nover DDS, {'with' if markers else 'without'} markers: {found['results']:.0f} sets, overhead p50 "
            f"{found['p50']:.1f}, p95 {found['p95']:.1f}, p99 {found['p99']:.1f} ms (p95 of {most:.0f} is asked: "
            f"{'met' if found['p95'] <= most else 'MISSED'}); processor time of the node for a set "
            f"{found['processor']:.1f} ms, DDS and six pictures included; sender late by "
            f"{found['sender late']:.0f} ms at most"
        )
    if arguments.report is not None:
        write_report(arguments.report, about, numbers)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())

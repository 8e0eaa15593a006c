"""A node and a vehicle's sensors as processes, watched from outside: results, latencies, memory, processor time."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from dds_traffic import environment
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import OccupancyGrid
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Float64
from synthetic_sensors import World
from visualization_msgs.msg import MarkerArray

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.dds import use_shipped_profile
from fusionocc_ros.domains import claimed_domain

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Observation:
    """What was seen."""

    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds after the start, MiB resident)."""
    total_ms: list[tuple[float, float]] = field(default_factory=list)
    """(seconds after the start, from the sweep's arrival to publishing)."""
    inference_ms: list[float] = field(default_factory=list)
    received: dict[str, int] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    """The last diagnostics."""
    sent: dict[str, Any] = field(default_factory=dict)
    cpu_s: float = 0.0
    """Processor time of the node while sensors spoke."""
    problems: list[str] = field(default_factory=list)

    @property
    def unaccounted(self) -> int:
        """Sweeps that are neither published nor dropped nor in hand."""
        values = self.values
        out = sum(int(value) for key, value in values.items() if key.startswith("dropped: "))
        return int(values["sweeps received"]) - out - int(values["occupancy published"]) - int(values["in hand"])


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def observe(node: Sequence[str], sensors: Sequence[str], *, markers: bool = False, every_s: float = 1.0) -> Observation:
    """Run the node until the sensors have ended.

    Args:
        node: command of the node, without ROS arguments.
        sensors: arguments of sensor_stream.py.
        markers: listen to ~/markers as well; to ~/voxels and ~/grid always.
        every_s: between two looks at memory.
    """
    seen = Observation()
    use_shipped_profile()
    with claimed_domain() as domain:
        env = environment(domain) | {"OMP_WAIT_POLICY": "PASSIVE"}
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        world = World(domain)
        _listen(world, seen, markers)
        rates = [a for name in ("markers", "voxels", "grid") for a in ("-p", f"{name}.max_rate:=0.0")]
        transport = ["-p", f"image_transport:={sensors[0]}", "-p", "diagnostics_period:=0.5"]
        process = subprocess.Popen([*node, "--ros-args", *transport, *rates], env=env)
        stream = subprocess.Popen(
            [sys.executable, str(HERE / "sensor_stream.py"), *sensors], env=env, stdout=subprocess.PIPE, text=True
        )
        try:
            _watch(world, seen, process, stream, every_s)
        finally:
            for child in (stream, process):
                child.terminate()
            for child in (stream, process):
                child.wait(30)
            world.close()
    return seen


def _watch(
    world: World, seen: Observation, process: subprocess.Popen[Any], stream: subprocess.Popen[str], every_s: float
) -> None:
    next_s, began_cpu_s = 0.0, None
    while stream.poll() is None and process.poll() is None:
        world.executor.spin_once(timeout_sec=0.05)
        if began_cpu_s is None and seen.total_ms:
            began_cpu_s = cpu_s(process.pid)
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + every_s
            seen.memory.append((time.monotonic(), resident_mib(process.pid)))
    if process.poll() is not None:
        seen.problems.append(f"the node ended with {process.returncode}")
        return
    seen.cpu_s = cpu_s(process.pid) - (began_cpu_s or 0.0)
    world.spin_for(2.0)
    output = stream.stdout.read() if stream.stdout else ""
    seen.sent = json.loads(output) if output.strip() else {}
    if stream.returncode:
        seen.problems.append(f"the sensors ended with {stream.returncode}")


def _listen(world: World, seen: Observation, markers: bool) -> None:
    listener = world.add(Node("observer", context=world.context))

    def count(name: str) -> Any:
        def counted(_content: bytes) -> None:
            seen.received[name] = seen.received.get(name, 0) + 1

        return counted

    def diagnosed(message: Any) -> None:
        seen.values = {v.key: v.value for status in message.status for v in status.values}

    kinds = {"occupancy": SemanticOccupancy, "voxels": PointCloud2, "grid": OccupancyGrid}
    kinds |= {"markers": MarkerArray} if markers else {}
    for name, kind in kinds.items():
        listener.create_subscription(kind, f"/fusionocc/{name}", count(name), 10, raw=True)
    times = "/fusionocc/debug/processing_time"
    listener.create_subscription(
        Float64, f"{times}/total_ms", lambda m: seen.total_ms.append((time.monotonic(), m.data)), 50
    )
    listener.create_subscription(Float64, f"{times}/inference_ms", lambda m: seen.inference_ms.append(m.data), 50)
    listener.create_subscription(DiagnosticArray, "/diagnostics", diagnosed, 10)


def slope_an_hour(samples: Sequence[tuple[float, float]]) -> float:
    """Median of the slopes between all pairs (Theil and Sen): a single jump does not decide it."""
    t, y = np.array(samples).T
    chosen = np.linspace(0, len(t) - 1, min(len(t), 600)).astype(int)
    t, y = t[chosen], y[chosen]
    first, second = np.triu_indices(len(t), 1)
    return float(np.median((y[second] - y[first]) / (t[second] - t[first])) * 3600)

"""A vehicle of processes: six cameras, a LiDAR and the transforms, each a process of its own, and the node among them.

Everything talks over DDS in a domain of its own. What comes out is checked against where the vehicle really was.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from fault_node import PROBE
from fault_sensor import S, place
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from synthetic_sensors import OFFICIAL_CAMERAS, START, camera_info, cloud, jpeg, points, static_transforms

from fusionocc_core.geometry import rotation_from_yaw, transform
from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.convert import stamp_to_ns, transform_to_matrix
from fusionocc_ros.dds import PROFILE_VARIABLES
from fusionocc_ros.domains import claimed_domain

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIDAR, TF = "lidar", "tf"
RECOVERY_S = 2.0
"""A fault that has ended is forgotten after this long."""
CLOSE_M = 0.05
"""Poses are interpolated between stamps 20 ms apart (200 ms where some are lost), and continued by up to 50 ms."""
MAX_POINTS = 20_000
PHASE_MS = dict(zip(OFFICIAL_CAMERAS, (7, 15, 22, 31, 40, 49), strict=True))
MOVED_M = 0.7
"""How far the back camera has been moved in the file static_moved."""


def write_messages(folder: Path) -> None:
    """Every message that a driver may send, serialised, as <sensor>.<what>."""

    def write(name: str, what: str, message: Any) -> None:
        (folder / f"{name}.{what}").write_bytes(bytes(serialize_message(message)))

    for camera in OFFICIAL_CAMERAS:
        good = jpeg(camera, START)
        write(camera, "good", good)
        write(camera, "info", camera_info(camera))
        good.header.frame_id = "cam_moon"
        write(camera, "wrong_frame", good)
        good.header.frame_id = f"{camera.lower()}_new"
        write(camera, "new_frame", good)
        cut = jpeg(camera, START)
        cut.data = cut.data[: len(cut.data) // 2]
        write(camera, "cut", cut)
    nan = points(300)
    nan[:, 1] = np.nan
    clouds = {"good": points(300), "nan": nan, "empty": points(0), "huge": points(10 * MAX_POINTS)}
    for what, values in clouds.items():
        write(LIDAR, what, cloud(START, values))
    lost = cloud(START, points(300))
    lost.header.frame_id = "lidar_moon"
    write(LIDAR, "wrong_frame", lost)
    write(TF, "static", static_transforms())
    for what, change in (("static_moved", _move_back_camera), ("static_new", _rename_back_camera)):
        message = static_transforms()
        change(message)
        write(TF, what, message)


def _back_camera(message: Any) -> Any:
    return next(entry for entry in message.transforms if entry.child_frame_id == "cam_back")


def _move_back_camera(message: Any) -> None:
    _back_camera(message).transform.translation.y += MOVED_M


def _rename_back_camera(message: Any) -> None:
    _back_camera(message).child_frame_id = "cam_back_new"


MOUNTS = {
    entry.child_frame_id.upper() if entry.child_frame_id.startswith("cam") else LIDAR: transform_to_matrix(
        entry.transform
    )
    for entry in static_transforms().transforms
}
MOUNTS["base"] = np.eye(4)


def truth(sensor: str, stamp_ns: int, *, moving: bool = True) -> np.ndarray:
    """Where the probe of a sensor lies in the map at a stamp, or for who knows of no motion in the vehicle."""
    x, y, yaw = place(stamp_ns) if moving else (0.0, 0.0, 0.0)
    base2map = transform(rotation_from_yaw(yaw), (x, y, 0.0))
    return np.asarray(base2map @ MOUNTS[sensor] @ PROBE)[:3]


class Message:
    """One answer of a node: what matters of it."""

    def __init__(self, raw: SemanticOccupancy) -> None:
        self.came = time.monotonic()
        self.stamp_ns = stamp_to_ns(raw.header.stamp)
        self.cameras = tuple(raw.cameras)
        self.missing = dict(zip(raw.missing, raw.missing_causes, strict=True))
        self.seen: dict[str, tuple[int, list[float]]] = json.loads(raw.model)
        self.lidar_history = int(raw.lidar_history)
        self.moving = raw.ego_motion != SemanticOccupancy.EGO_MOTION_NONE

    @property
    def full(self) -> bool:
        """Whether every sensor took part."""
        return not self.missing and len(self.cameras) == 6 and LIDAR in self.seen

    def errors_m(self) -> dict[str, float]:
        """How far each sensor's probe lies from where it truly is."""
        return {
            name: float(np.linalg.norm(truth(name, stamp, moving=self.moving) - probe))
            for name, (stamp, probe) in self.seen.items()
        }


class Ears:
    """Listens to nodes in a thread: their answers and their diagnostics."""

    def __init__(self, domain: int, nodes: tuple[str, ...]) -> None:
        self.messages: dict[str, list[Message]] = {node: [] for node in nodes}
        self.diagnostics: dict[str, dict[str, str]] = {}
        self.problems: dict[str, str] = {}
        self.reports: dict[str, int] = {}
        self.pause_s = 0.0
        """Longest time for which this thread, and so perhaps any other, was not given a processor."""
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain)
        self.node = rclpy.create_node("ears", context=self._context)
        everything = QoSProfile(history=HistoryPolicy.KEEP_ALL, reliability=ReliabilityPolicy.RELIABLE)
        for name in nodes:
            self.node.create_subscription(SemanticOccupancy, f"/{name}/occupancy", self._keeper(name), everything)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._follow, everything)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _keeper(self, name: str) -> Callable[[Any], None]:
        def keep(message: Any) -> None:
            with self._lock:
                self.messages[name].append(Message(message))

        return keep

    def _follow(self, message: Any) -> None:
        node = message.status[0].hardware_id
        with self._lock:
            self.diagnostics[node] = {v.key: v.value for status in message.status for v in status.values}
            self.problems[node] = " | ".join(status.message for status in message.status)
            self.reports[node] = self.reports.get(node, 0) + 1

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException, ShutdownException):
            while not self._ending.is_set():
                before = time.monotonic()
                self._executor.spin_once(timeout_sec=0.05)
                self.pause_s = max(self.pause_s, time.monotonic() - before - 0.05)

    def close(self) -> None:
        """Listen no more."""
        self._ending.set()
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()


class Process:
    """A child that is spoken to in lines of JSON."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._patience_s = 0.0
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )

    def read(self, patience_s: float = 30.0) -> str:
        """The next line that it says."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience_s)[0]:
            raise AssertionError(f"it says nothing; its log:\n{self.log.read_text()[-2000:]}")
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # the middleware may have something to say as well
                return line
        raise AssertionError(f"it has ended ({self._process.wait(5)}); its log:\n{self.log.read_text()[-2000:]}")

    def tell(self, **changes: Any) -> dict[str, Any]:
        """Change its attributes; what it has sent."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(changes) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self.read()))

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def interrupt(self) -> None:
        """Ask it to end."""
        self._process.send_signal(signal.SIGINT)
        self._patience_s = 5.0

    def kill(self) -> None:
        """End it at once, as a crash would; where it was asked before, it has some time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._patience_s)
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Street:
    """The processes, and what is asked of them."""

    def __init__(self, domain: int, folder: Path) -> None:
        self.folder = folder
        self.ears = Ears(domain, ("fusionocc", "second/fusionocc"))
        self._environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
        self._environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
        # The profiles that the docs advise; the node's with less memory, which stays behind when it is killed.
        shipped = (ROOT / "config" / "fastdds_shm.xml").read_text()
        profile = folder / "node.xml"
        profile.write_text(re.sub(r"<(segment_size|maxMessageSize)>\d+", rf"<\1>{8 * 2**20}", shipped))
        self._node_environment = self._environment | dict.fromkeys(PROFILE_VARIABLES, str(profile))
        small = str(ROOT / "config" / "fastdds_discovery.xml")
        self._environment |= dict.fromkeys(PROFILE_VARIABLES, small)
        self.processes: dict[str, Process] = {}
        self.checked = 0
        self.allowed_back_m: tuple[float, ...] = (0.0,)
        """How far off the back camera's file may say that it sits."""
        write_messages(folder)

    # ---- processes ---------------------------------------------------------------------------------------------------

    def start_node(self, name: str = "fusionocc", *, active: bool = True) -> None:
        """Start a node, and wait until it says that it is active."""
        arguments = [
            "-p",
            "diagnostics_period:=0.2",
            "-p",
            f"lidar.max_points:={MAX_POINTS}",
            "-p",
            "transform_gap:=0.2",
        ]
        arguments += ["-p", "qos_overrides./cam_back/image_rect_compressed.subscription.reliability:=reliable"]
        if name.startswith("second"):
            arguments += ["-r", "__ns:=/second", "-r", "/second/lidar_top:=/lidar_top"]
            for camera in OFFICIAL_CAMERAS:
                for topic in ("image_rect_compressed", "camera_info"):
                    arguments += ["-r", f"/second/{camera.lower()}/{topic}:=/{camera.lower()}/{topic}"]
        log = self.folder / f"{name.replace('/', '_')}.log"
        log.write_text("")
        command = [sys.executable, str(HERE / "fault_node.py"), "--ros-args", *arguments]
        self.processes[name] = Process(command, self._node_environment, log)
        if active:
            self.wait_for(lambda: ": active" in log.read_text(), 30, f"{name} is active")

    def start(self, *sensors: str, best_effort: bool = False) -> None:
        """Start drivers, and wait until they send."""
        for name in sensors:
            spec: dict[str, Any] = {"name": name, "folder": str(self.folder), "best_effort": best_effort}
            if name == LIDAR:
                spec |= {
                    "kind": "sensor_msgs/PointCloud2",
                    "topic": "/lidar_top",
                    "hz": 10,
                    "phase_ms": 50,
                    "lag_ms": 20,
                }
            elif name == TF:
                spec |= {"kind": "tf2_msgs/TFMessage", "topic": "/tf", "hz": 50, "phase_ms": 0, "lag_ms": 0}
                spec["latch"] = "static"
            else:
                topic = f"/{name.lower()}"
                spec |= {"kind": "sensor_msgs/CompressedImage", "topic": f"{topic}/image_rect_compressed", "hz": 10}
                spec |= {"info_topic": f"{topic}/camera_info", "phase_ms": PHASE_MS[name], "lag_ms": 10}
            command = [sys.executable, str(HERE / "fault_sensor.py"), json.dumps(spec)]
            self.processes[name] = Process(command, self._environment, self.folder / f"{name}.log")
        for name in sensors:
            self.processes[name].read()

    def kill(self, *names: str) -> None:
        """Kill processes."""
        for name in names:
            self.processes.pop(name).kill()

    def tell(self, *names: str, **changes: Any) -> None:
        """Change attributes of drivers; none named: of all."""
        for name in names or [n for n in self.processes if "fusionocc" not in n]:
            self.processes[name].tell(**changes)

    def heal(self) -> None:
        """Undo whatever a test that failed has left behind."""
        gone = [name for name in (TF, LIDAR, *OFFICIAL_CAMERAS) if name not in self.processes]
        self.start(*gone)
        self.tell(file="good", delay_ms=0, offset_ns=0, stamps="true", paused=False)
        if "fusionocc" not in self.processes:
            self.start_node()
        self.allowed_back_m = (0.0,)

    def close(self) -> None:
        """End everything."""
        for process in self.processes.values():
            process.interrupt()
        for process in self.processes.values():
            process.kill()
        self.ears.close()

    # ---- what came out -----------------------------------------------------------------------------------------------

    def wait_for(self, condition: Callable[[], Any], seconds: float, what: str) -> float:
        """Wait until something is so; how long it took, less the time for which the machine stood still.

        Where more programs want to run than there are processors, they get as much more time.
        """
        began, self.ears.pause_s = time.monotonic(), 0.0
        strain = max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)
        while not condition():
            if time.monotonic() - began > seconds * strain + 2 * self.ears.pause_s:
                raise AssertionError(f"after {seconds} s not so: {what}; {self.situation()}")
            time.sleep(0.01)
        return max(time.monotonic() - began - 2 * self.ears.pause_s, 0.0)

    def situation(self) -> str:
        """For messages of failed tests."""
        last = [(m.stamp_ns, m.missing) for m in self.messages()[-2:]]
        words = ("dropped", "left out", "in hand", "sweeps received", "published", "time jumps")
        values = {k: v for k, v in self.ears.diagnostics.get("fusionocc", {}).items() if any(w in k for w in words)}
        log = [line[:300] for line in (self.folder / "fusionocc.log").read_text().splitlines()[-4:]]
        return f"last answers {last}; diagnostics {values}; log {log}"

    def messages(self, node: str = "fusionocc") -> list[Message]:
        """All answers so far."""
        return self.ears.messages[node]

    def next(
        self, condition: Callable[[Message], bool], what: str, seconds: float = 5.0, node: str = "fusionocc"
    ) -> Message:
        """The next answer that is so."""
        messages = self.messages(node)
        first = len(messages)
        self.wait_for(lambda: any(condition(m) for m in messages[first:]), seconds, what)
        return next(m for m in messages[first:] if condition(m))

    def recovers(self) -> float:
        """Within two seconds every sensor takes part again, in a set of now; after how many."""
        began = time.monotonic()

        def whole(message: Message) -> bool:
            return message.full and abs(message.stamp_ns - time.time_ns()) < RECOVERY_S * S

        return self.next(whole, "an answer with every sensor", RECOVERY_S).came - began

    def counter(self, key: str, node: str = "fusionocc") -> int:
        """A value of the last diagnostics."""
        return int(self.ears.diagnostics.get(node, {}).get(key, "0"))

    def check_poses(self) -> None:
        """No answer so far says that a sensor was where it was not."""
        messages = self.messages()
        for message in messages[self.checked :]:
            for sensor, error in message.errors_m().items():
                near = min(abs(error - moved) for moved in (self.allowed_back_m if sensor == "CAM_BACK" else (0.0,)))
                assert near < CLOSE_M, (sensor, error, message.stamp_ns, message.missing)
        self.checked = len(messages)

    def ledger(self, node: str = "fusionocc") -> dict[str, int]:
        """Everything that the node has counted, once it has nothing in hand; sensors must be silent meanwhile."""

        def counts() -> dict[str, int]:
            keys = ("sweeps received", "occupancy published", "in hand")
            values = self.ears.diagnostics.get(node, {})
            named = {k: int(v) for k, v in values.items() if k.startswith("dropped: ")}
            return {**{key: int(values.get(key, "-1")) for key in keys}, **named}

        before: dict[str, int] = {}
        report = 0

        def settled() -> bool:
            nonlocal before, report
            if self.ears.reports.get(node, 0) == report:
                return False
            report, last, before = self.ears.reports[node], before, counts()
            return last == before and before["in hand"] == 0

        self.wait_for(settled, 5, "nothing in hand")
        return before

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Sensors send nothing for a while."""
        self.tell(paused=True)
        yield
        self.tell(paused=False)


@contextlib.contextmanager
def street() -> Iterator[Street]:
    """The whole vehicle, driving."""
    with claimed_domain() as domain, tempfile.TemporaryDirectory() as folder:
        made = Street(domain, Path(folder))
        try:
            made.start_node()
            made.start(TF, LIDAR, *OFFICIAL_CAMERAS)
            made.wait_for(lambda: any(m.full for m in made.messages()), 20, "an answer with every sensor")
            yield made
        finally:
            made.close()


def heading(stamp_ns: int) -> float:
    """Of the vehicle, degrees."""
    return math.degrees(place(stamp_ns)[2])

"""Mutated messages of every subscribed type against the node, which runs in a process of its own and must live on.

python tests/ros/fuzz.py [--messages 10000] [--seed N] [--kind PointCloud2 --first 120]

It prints a line for each type; exit code 1: it failed. After every batch a good set must be answered. At the end every
sweep must be accounted for, and memory must not have grown. A single message can be sent again with --kind, --first
and --messages 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from mutations import mutate, rng_of
from nav_msgs.msg import Odometry
from rosgraph_msgs.msg import Clock
from synthetic_sensors import MS, OFFICIAL_CAMERAS, S, Vehicle, World, camera_info, cloud, ego_pose, jpeg, raw
from synthetic_sensors import static_transforms as statics
from tf2_msgs.msg import TFMessage

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.convert import ns_to_stamp, stamp_to_ns
from fusionocc_ros.domains import claimed_domain

ROOT = Path(__file__).resolve().parents[2]
SEEDS = Path(__file__).with_name("fuzz_seeds.json")
KINDS = ("PointCloud2", "CompressedImage", "CameraInfo", "Odometry", "Clock", "TFMessage", "TFMessage latched", "Image")
"""Every type that the node subscribes to; /tf_static has another way through the node than /tf."""
BATCH = 20
STEP_NS = 120 * MS
ANSWER_S = 3.0
ATTEMPTS = 12
LEAK_MIB = 48.0
"""Growth after the first batches that is taken for a leak; what is in flight, and the allocator, take less."""


@dataclass
class Score:
    """What came of one type."""

    kind: str
    sent: int = 0
    seconds: float = 0.0
    grown_mib: float = 0.0
    refused: int = 0
    """By the middleware, which did not send them."""
    attempts: int = 0
    """Most good sets that it took until one was answered."""
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For people."""
        return (
            f"{self.kind:18s} {self.sent:6d} messages in {self.seconds:6.1f} s ({self.refused} not sent), memory "
            f"{self.grown_mib:+6.1f} MiB, good set answered at attempt {self.attempts} at the latest"
            f"{': ' if self.problems else ''}{'; '.join(self.problems)}"
        )


class Target:
    """The node in a process of its own, and a vehicle that talks to it.

    Args:
        raw_pictures: the node subscribes to Image in the place of CompressedImage.
    """

    def __init__(self, domain: int, log: Path, *, raw_pictures: bool) -> None:
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        env = {**os.environ, "ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{env.get('PYTHONPATH', '')}"
        transport = "raw" if raw_pictures else "compressed"
        command = [sys.executable, str(Path(__file__).with_name("fast_node.py")), "2000", "--ros-args"]
        for setting in (f"image_transport:={transport}", "transform_timeout:=0.0", "qos.reliability:=reliable"):
            command += ["-p", setting]
        command += ["-p", "diagnostics_period:=0.2", "-p", "sync.deadline:=0.05", "-p", "use_sim_time:=true"]
        self.log = log
        self._file = log.open("wb")
        self.process = subprocess.Popen(command, env=env, stdout=self._file, stderr=subprocess.STDOUT)
        self.world = World(domain)
        self.vehicle = Vehicle(self.world.context, transport=transport)
        self.world.add(self.vehicle.node)
        self.odometry = self.vehicle.node.create_publisher(Odometry, "/odom", 50)
        self.clock = self.vehicle.node.create_publisher(Clock, "/clock", 50)
        self.answers: set[int] = set()
        self.values: dict[str, str] = {}
        listener = self.vehicle.node
        listener.create_subscription(SemanticOccupancy, "/fusionocc/occupancy", self._answer, 50)
        listener.create_subscription(DiagnosticArray, "/diagnostics", self._report, 10)
        self.now_ns = (time.time_ns() // S) * S

    def _answer(self, message: Any) -> None:
        self.answers.add(stamp_to_ns(message.header.stamp))

    def _report(self, message: Any) -> None:
        self.values = {v.key: v.value for status in message.status for v in status.values}

    def starts(self) -> bool:
        """Wait until it is there and answers."""
        there = self.world.spin_until(lambda: self.vehicle.lidar.get_subscription_count() > 0 or self.dead, 120)
        return there and self.answered() > 0

    def good_set(self) -> int:
        """Send a whole set with its calibration; its stamp."""
        self.now_ns += STEP_NS
        self.clock.publish(Clock(clock=ns_to_stamp(self.now_ns)))
        self.vehicle.tf_static.publish(statics())
        self.vehicle.keyframe(self.now_ns)
        return self.now_ns

    def answered(self) -> int:
        """How many good sets it took until one was answered; 0: none was."""
        self.answers.clear()
        for attempt in range(1, ATTEMPTS + 1):
            stamp_ns = self.good_set()
            if self.world.spin_until(lambda s=stamp_ns: s in self.answers or self.dead, ANSWER_S) and not self.dead:
                return attempt
            if self.dead:
                break
        return 0

    @property
    def dead(self) -> bool:
        """The process has ended."""
        return self.process.poll() is not None

    def resident_mib(self) -> float:
        """Memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    def ledger(self) -> str:
        """What is wrong with the count of sweeps; empty: nothing."""

        def balance() -> int:
            values = self.values
            out = sum(int(value) for key, value in values.items() if key.startswith("dropped: "))
            out += int(values.get("occupancy published", 0)) + int(values.get("in hand", 0))
            return int(values.get("sweeps received", -1)) - out

        if self.world.spin_until(lambda: bool(self.values) and balance() == 0, 5.0):
            return ""
        return f"{balance()} sweeps are neither published nor dropped nor in hand: {self.values}"

    def close(self) -> None:
        """End the process."""
        self.world.close()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        if self.process.poll() is None:
            self.process.kill()
        self._file.close()


def sample(kind: str, number: int, stamp_ns: int, raw_pictures: bool) -> Any:
    """A good message of a type."""
    camera = OFFICIAL_CAMERAS[number % len(OFFICIAL_CAMERAS)]
    if kind == "PointCloud2":
        return cloud(stamp_ns)
    if kind in ("CompressedImage", "Image"):
        return (raw if raw_pictures else jpeg)(camera, stamp_ns)
    if kind == "CameraInfo":
        info = camera_info(camera)
        info.header.stamp = ns_to_stamp(stamp_ns)
        return info
    if kind == "Odometry":
        message = Odometry(child_frame_id="base_link")
        message.header.frame_id, message.header.stamp = "odom", ns_to_stamp(stamp_ns)
        message.pose.pose.orientation.w = 1.0
        return message
    if kind == "Clock":
        return Clock(clock=ns_to_stamp(stamp_ns))
    return statics() if kind == "TFMessage latched" else TFMessage(transforms=[ego_pose(stamp_ns)])


def publisher(target: Target, kind: str, number: int) -> Any:
    """Where it goes."""
    camera = OFFICIAL_CAMERAS[number % len(OFFICIAL_CAMERAS)]
    vehicle = target.vehicle
    return {
        "PointCloud2": vehicle.lidar,
        "CompressedImage": vehicle.pictures[camera],
        "Image": vehicle.pictures[camera],
        "CameraInfo": vehicle.infos[camera],
        "Odometry": target.odometry,
        "TFMessage": vehicle.tf,
        "TFMessage latched": vehicle.tf_static,
        "Clock": target.clock,
    }[kind]


def batches(first: int, count: int) -> Iterator[range]:
    """The numbers of the messages, batch by batch."""
    for begin in range(first, first + count, BATCH):
        yield range(begin, min(begin + BATCH, first + count))


def fuzz(target: Target, kind: str, *, seed: int, first: int, count: int) -> Score:
    """Send ``count`` mutated messages of a type, and look after every batch whether the node still works."""
    score = Score(kind)
    began, warm_mib = time.monotonic(), target.resident_mib()
    todo = list(batches(first, count))
    for k, batch in enumerate(todo):
        score.refused += _send(target, kind, seed, batch)
        score.sent += len(batch)
        attempts = target.answered()
        score.attempts = max(score.attempts, attempts)
        if not attempts:
            what = f"ended with {target.process.returncode}" if target.dead else "answers no more"
            score.problems.append(
                f"after messages {batch[0]} to {batch[-1]} of seed {seed} the node {what}; {target.log}"
            )
            return score
        if k == min(len(todo) // 4, 50):
            warm_mib = target.resident_mib()
    score.grown_mib = target.resident_mib() - warm_mib
    if score.grown_mib > LEAK_MIB:
        score.problems.append(f"memory has grown by {score.grown_mib:.0f} MiB")
    score.problems += [p for p in (target.ledger(),) if p]
    score.seconds = time.monotonic() - began
    return score


def fuzz_all(kinds: tuple[str, ...], *, seed: int, first: int, count: int, log: Path) -> list[Score]:
    """Several types against one node."""
    scores: list[Score] = []
    with claimed_domain() as domain:
        target = Target(domain, log, raw_pictures="Image" in kinds)
        try:
            if not target.starts():
                return [Score(kinds[0], problems=[f"the node did not start, or answered no good set; see {log}"])]
            for kind in kinds:
                scores.append(fuzz(target, kind, seed=seed, first=first, count=count))
                sys.stdout.write(f"{scores[-1].line()}\n")
                sys.stdout.flush()
                if target.dead:
                    break
        finally:
            target.close()
    if traceback := re.search(r"Traceback \(most recent call last\).*", log.read_text(errors="replace"), flags=re.S):
        scores[-1].problems.append(f"a traceback in {log}:\n{traceback.group(0)[:1500]}")
    if target.process.returncode != 0:
        scores[-1].problems.append(f"the node ended with {target.process.returncode}; see {log}")
    return scores


def run(*, seed: int, count: int, kinds: tuple[str, ...] = KINDS, first: int = 0, folder: Path) -> list[Score]:
    """Every type; pictures that are not compressed have a node of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = []
    for raw_pictures in (False, True):
        group = tuple(kind for kind in kinds if (kind == "Image") == raw_pictures)
        if group:
            log = folder / f"node_{'raw' if raw_pictures else 'compressed'}.log"
            scores += fuzz_all(group, seed=seed, first=first, count=count, log=log)
    return scores


def _send(target: Target, kind: str, seed: int, batch: range) -> int:
    """A batch, in which most messages lie so that the synchroniser finds a use for them; how many were not sent."""
    refused = 0
    target.now_ns += STEP_NS
    target.vehicle.keyframe(target.now_ns)
    for number in batch:
        stamp_ns = target.now_ns + (number - batch[0] + 1) * MS
        message = sample(kind, number, stamp_ns, raw_pictures=kind == "Image")
        try:
            publisher(target, kind, number).publish(mutate(message, rng_of(seed, kind, number)))
        except RuntimeError:  # shorter than the type can be: the middleware does not send it
            refused += 1
        if kind != "PointCloud2" and number % 6 == 5:
            target.vehicle.lidar.publish(cloud(stamp_ns))
        target.world.executor.spin_once(timeout_sec=0.0)
    return refused


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutated messages of every subscribed type against the node.")
    parser.add_argument("--messages", type=int, default=10_000, help="of each type (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="default: every seed of fuzz_seeds.json, the messages shared out")
    parser.add_argument("--kind", choices=KINDS, help="only this type")
    parser.add_argument("--first", type=int, default=0, help="number of the first message (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz", help="folder for logs")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the node must not outlive this process
    seeds = json.loads(SEEDS.read_text())["seeds"] if arguments.seed is None else [arguments.seed]
    kinds = KINDS if arguments.kind is None else (arguments.kind,)
    failed = False
    for seed in seeds:
        sys.stdout.write(f"seed {seed}\n")
        count = -(-arguments.messages // len(seeds))
        scores = run(seed=seed, count=count, kinds=kinds, first=arguments.first, folder=arguments.out)
        for score in scores:
            failed |= bool(score.problems) or score.sent < count
            sys.stdout.write("".join(f"{score.kind}: {problem}\n" for problem in score.problems))
    sys.stdout.write("failed\n" if failed else "the node has outlived all of them\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

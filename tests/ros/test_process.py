"""occ_node as a user starts it: a process of its own with a parameter file, the real network, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic_sensors import OFFICIAL_CAMERAS, START, S, Vehicle, World

from fusionocc_core import DEFAULT_PRESET
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.convert import stamp_to_ns
from fusionocc_ros.occupancy_messages import message_to_occupancy

pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parents[2]


def start(domain: int, *arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "2"}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{env.get('PYTHONPATH', '')}"
    return subprocess.Popen(
        [sys.executable, "-m", "fusionocc_ros.node", *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """What the process says, up to and including a line with ``text``."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"it ended without saying {text!r}:\n{said}")


def first_answered(world: World, vehicle: Vehicle, got: list[SemanticOccupancy]) -> int:
    """Stamp of the last keyframe sent when the first answer came.

    A publisher that counts a subscription knows of it; whether the subscription knows of the publisher, nobody tells,
    and what is sent before is lost.
    """
    for k in range(20):
        vehicle.keyframe(START + k * S // 2)
        if world.spin_until(lambda: bool(got), 3):
            return START + k * S // 2
    raise AssertionError("no keyframe was answered")


@pytest.mark.slow
def test_the_node_with_its_parameter_file_and_network_answers_and_ends_cleanly(world: World, domain: int) -> None:
    vehicle = Vehicle(world.context)
    world.add(vehicle.node)
    arguments = ["--ros-args", "--params-file", str(ROOT / "config" / "occ.yaml"), "-p", "confidence:=true"]
    arguments += ["-r", "__ns:=/car", "-r", "/car/lidar_top:=/lidar_top"]
    for camera in OFFICIAL_CAMERAS:
        for topic in ("image_rect_compressed", "camera_info"):
            arguments += ["-r", f"/car/{camera.lower()}/{topic}:=/{camera.lower()}/{topic}"]
    process = start(domain, *arguments)
    try:
        assert "simulated streets" in wait_for(process, "active")
        got = world.collect(SemanticOccupancy, "/car/fusionocc/occupancy")
        publishers = [vehicle.lidar, *vehicle.pictures.values(), *vehicle.infos.values(), vehicle.tf]
        assert world.spin_until(lambda: all(p.get_subscription_count() for p in publishers))
        begin = first_answered(world, vehicle, got)
        vehicle.keyframe(begin + S // 2)
        assert world.spin_until(lambda: stamp_to_ns(got[-1].header.stamp) == begin + S // 2, 60), process.poll()
        occupancy = message_to_occupancy(got[-1])
        assert occupancy.label_set == OCC3D_LABELS
        assert occupancy.labels.shape == (200, 200, 16)
        assert occupancy.confidence is not None
        assert got[-1].model == DEFAULT_PRESET
        assert "simulated streets" in got[-1].trained_on
        assert list(got[-1].cameras) == list(OFFICIAL_CAMERAS)
        vehicle.keyframe(begin + S)  # it ends in the middle of work
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == 0, rest
        assert "Traceback" not in rest
        assert "terminate called" not in rest
    finally:
        if process.poll() is None:
            process.kill()


def test_a_node_that_waits_to_be_configured_ends_cleanly_on_sigterm(domain: int) -> None:
    process = start(domain, "--ros-args", "-p", "autostart:=false", "-p", "sync.tolerence:=0.1")
    wait_for(process, "did you mean sync.tolerance?")
    time.sleep(0.3)
    process.terminate()
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    assert "Traceback" not in rest


def test_an_interrupt_while_the_network_is_loaded_ends_it_cleanly(domain: int) -> None:
    process = start(domain, "--ros-args", "-p", "sync.tolerence:=0.1")
    wait_for(process, "did you mean sync.tolerance?")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-p", "camera_names:=[]", "-p", "lidar.topic:=''"], "camera_names and lidar.topic: both are empty"),
        (["-p", "sync.tolerance:=-3.0"], r"sync\.tolerance"),
        (["-p", "checkpoint:=/nowhere/weights.pth"], "cannot configure: .*/nowhere/weights.pth"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_node_that_cannot_start_says_why_in_a_line_and_exits_with_an_error(
    domain: int, arguments: list[str], text: str
) -> None:
    process = start(domain, "--ros-args", *arguments)
    said, _ = process.communicate(timeout=60)
    assert process.returncode in (1, 2)
    assert re.search(text, said), said
    assert "Traceback" not in said

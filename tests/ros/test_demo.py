"""The demo's parts, and the demo as a whole: real node, real network, real DDS, nothing left running."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from nuscenes_tree import write_tree

pytest.importorskip("rclpy")

from rich.console import Console

from fusionocc_core import DEFAULT_PRESET
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.structures import UNTRAINED
from fusionocc_ros import commands, demo, processes, requirements
from fusionocc_ros.collector import Answers, Collector
from fusionocc_ros.demo import DemoPlan
from fusionocc_ros.demo_settings import write_parameters
from fusionocc_ros.domains import DOMAINS
from fusionocc_ros.processes import Processes, describe, failure

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("d"), scenes={"lot": 2, "road": 1}, sweeps=1)


def parse(*arguments):
    parser = argparse.ArgumentParser()
    demo.add_parser(parser.add_subparsers())
    return parser.parse_args(["demo", *map(str, arguments)])


def children(pid):
    """Processes whose parent is ``pid``, and theirs."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, _, rest = status.read_text().partition(" (")
            parents[int(number)] = int(rest.rpartition(") ")[2].split()[1])
    found, open_list = [], [pid]
    while open_list:
        parent = open_list.pop()
        below = [number for number, above in parents.items() if above == parent]
        found += below
        open_list += below
    return found


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0] != "Z"
    return False


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


class TestProcesses:
    def test_stops_what_runs_and_what_it_has_started(self, tmp_path):
        program = "import subprocess, time; print('up', flush=True); subprocess.run(['sleep', '60'])"
        with Processes(os.environ, tmp_path) as running:
            child = running.start("parent", [sys.executable, "-c", program])
            assert wait_until(lambda: child.tail() == "up" and len(children(child.process.pid)) >= 1)
            everyone = [child.process.pid, *children(child.process.pid)]
        assert not any(alive(pid) for pid in everyone)

    def test_the_stubborn_are_killed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(processes, "PATIENCE_S", 0.2)
        program = (
            "import signal as s, time; [s.signal(n, s.SIG_IGN) for n in (s.SIGINT, s.SIGTERM)]; "
            "print('up', flush=True); time.sleep(60)"
        )
        with Processes(os.environ, tmp_path) as running:
            child = running.start("stubborn", [sys.executable, "-c", program])
            assert wait_until(lambda: child.tail() == "up")
        assert describe(child.process.returncode) == "signal SIGKILL"

    def test_an_error_does_not_leave_them_behind(self, tmp_path):
        started = []

        def work():
            with Processes(os.environ, tmp_path) as running:
                started.append(running.start("sleeper", ["sleep", "60"]))
                raise RuntimeError("boom")

        with pytest.raises(RuntimeError, match="boom"):
            work()
        assert describe(started[0].process.returncode) == "signal SIGINT"

    def test_failure_shows_the_end_of_the_log(self, tmp_path):
        with Processes({**os.environ, "GREETING": "hello"}, tmp_path) as running:
            program = "import os, sys; [print(n) for n in range(40)]; print(os.environ['GREETING']); sys.exit(3)"
            child = running.start("talker", [sys.executable, "-c", program])
            child.process.wait()
        error = str(failure(child, f"ended with {describe(3)}"))
        assert error.startswith(f"the talker ended with exit code 3; the end of {tmp_path / 'talker.log'}:\n16\n17\n")
        assert error.endswith("39\nhello")


def test_the_rate_is_counted_from_the_first_answer_to_the_last(monkeypatch):
    collector = Collector("/answers")
    assert collector.answers() == Answers(messages={}, a_second=None)
    clock = iter((100.0, 100.2, 100.8))
    monkeypatch.setattr("fusionocc_ros.collector.time", argparse.Namespace(monotonic=lambda: next(clock)))
    for number in (1, 2, 3):
        stamp = argparse.Namespace(sec=number, nanosec=0)
        collector._keep(argparse.Namespace(header=argparse.Namespace(stamp=stamp)))
        assert (collector.answers().a_second is None) == (number == 1)
    assert collector.answers().a_second == pytest.approx(2 / 0.8)
    assert set(collector.answers().messages) == {1_000_000_000, 2_000_000_000, 3_000_000_000}


class TestPreparation:
    def test_environment_is_set_for_the_children_and_taken_back(self, monkeypatch):
        monkeypatch.setenv("ROS_DOMAIN_ID", "7")
        monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE", raising=False)
        before = dict(os.environ)
        with demo.ros_environment():
            assert int(os.environ["ROS_DOMAIN_ID"]) in DOMAINS
            assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
            assert Path(os.environ["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()
            # The wheels' bootstrapper needs both or neither in a child.
            for name in ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH"):
                assert os.environ.get(name) == before.get(name)
        assert dict(os.environ) == before

    def test_parameters_fit_the_bag_and_whatever_rig_it_has(self, tmp_path):
        other = write_tree(tmp_path / "d", scenes={"lot": 1}, cameras={"LEFT": 90.0, "RIGHT": -90.0}, lidars=("ROOF",))
        plan = DemoPlan(data=other.root, scene=None, out=tmp_path, model="fusionocc-base", checkpoint=Path("w.pth"))
        values = yaml.safe_load(write_parameters(plan, NuScenesFrames(other.root)).read_text())["/**"]
        assert values["ros__parameters"] == {
            "use_sim_time": True,
            "confidence": True,
            "camera_names": ["LEFT", "RIGHT"],
            "sync.deadline": 2.0,
            "bad_sensors": "drop",
            "sync.min_cameras": 1,
            "sync.reference_timeout": 0.0,
            "preset": "fusionocc-base",
            "checkpoint": str(Path("w.pth").resolve()),
            "lidar.topic": "/roof",
            "cameras.LEFT.image_topic": "/left/image_rect_compressed",
            "cameras.LEFT.info_topic": "/left/camera_info",
            "cameras.RIGHT.image_topic": "/right/image_rect_compressed",
            "cameras.RIGHT.info_topic": "/right/camera_info",
        }

    def test_a_file_of_ours_alone_says_which_network_it_is(self, tree, tmp_path):
        plan = DemoPlan(data=tree.root, scene=None, out=tmp_path, checkpoint=Path("mine.safetensors"))
        values = yaml.safe_load(write_parameters(plan, NuScenesFrames(tree.root)).read_text())["/**"]
        assert values["ros__parameters"]["preset"] == str(Path("mine.safetensors").resolve())
        assert "checkpoint" not in values["ros__parameters"]

    def test_an_exported_network_is_a_checkpoint_that_needs_no_name(self, tree, tmp_path):
        (tmp_path / "artefact").mkdir()
        (tmp_path / "artefact" / "artefact.json").write_text("{}")
        plan = DemoPlan(data=tree.root, scene=None, out=tmp_path, checkpoint=tmp_path / "artefact")
        values = yaml.safe_load(write_parameters(plan, NuScenesFrames(tree.root)).read_text())["/**"]
        assert values["ros__parameters"]["checkpoint"] == str(tmp_path / "artefact")
        assert values["ros__parameters"]["preset"] == DEFAULT_PRESET

    def test_the_street_is_simulated_once(self, tmp_path, monkeypatch):
        from fusionocc_core import simulation

        calls = []

        def generate(root, config, workers, progress):
            calls.append((root, config.scenes, config.keyframes))
            progress(1, config.keyframes)
            return root

        monkeypatch.setattr(simulation, "generate", generate)
        console = Console()
        assert demo.simulated_street(tmp_path, None, console) == tmp_path / f"street-{demo.SIMULATED_KEYFRAMES}"
        assert demo.simulated_street(tmp_path, 3, console) == tmp_path / "street-3"
        assert [(scenes, keyframes) for _, scenes, keyframes in calls] == [(1, demo.SIMULATED_KEYFRAMES), (1, 3)]


class TestErrors:
    def test_a_node_that_cannot_start_shows_its_log(self, tree, tmp_path):
        plan = DemoPlan(data=tree.root, scene="lot", out=tmp_path, model="fusionocc-tinny")
        with pytest.raises(
            ChildProcessError, match=r"node ended at once with exit code 1; (.|\n)*did you mean fusionocc"
        ):
            demo.demo(plan, Console())

    def test_missing_things_are_named_before_anything_starts(self, tree, tmp_path):
        args = parse("--data", tree.root, "--out", tmp_path, "--checkpoint", tmp_path / "none.pth")
        with pytest.raises(FileNotFoundError, match=r"--checkpoint .*none\.pth: no such file"):
            args.run(args)
        with pytest.raises(ValueError, match=r"scene='roads'.*did you mean road"):
            demo.demo(DemoPlan(data=tree.root, scene="roads", out=tmp_path), Console())
        assert not (tmp_path / "logs").exists()

    def test_output_that_cannot_be_made(self, tree, tmp_path):
        (tmp_path / "file").write_text("")
        out = tmp_path / "file" / "out"
        with pytest.raises(OSError, match=r"--out .*out: cannot be created: Not a directory; choose a writable folder"):
            demo.demo(DemoPlan(data=tree.root, scene="lot", out=out), Console())
        with pytest.raises(OSError, match=r"--out .*out: cannot be created"):
            demo.simulated_street(out, 1, Console())

    def test_a_rig_of_seven_cameras_is_reduced_by_an_option(self, tmp_path, monkeypatch):
        rig = {f"CAM_{n}": 360.0 * n / 7 for n in range(7)}
        seven = write_tree(tmp_path / "d", scenes={"lot": 1}, cameras=rig)
        args = parse("--data", seven.root, "--out", tmp_path / "out")
        with pytest.raises(ValueError, match=r"has 7 cameras .*at most 6; choose some with --cameras NAME"):
            args.run(args)
        played = []

        def play(plan, bag, settings, console):
            played.append((bag.messages, yaml.safe_load(settings.read_text())))
            raise ChildProcessError("enough")

        monkeypatch.setattr(demo, "_play", play)
        args = parse("--data", seven.root, "--out", tmp_path / "out", "--cameras", "CAM_3", "CAM_0")
        with pytest.raises(ChildProcessError, match="enough"):
            args.run(args)
        ((messages, values),) = played
        assert {topic for topic in messages if "image" in topic} == {
            "/cam_0/image_rect_compressed",
            "/cam_3/image_rect_compressed",
        }
        assert values["/**"]["ros__parameters"]["camera_names"] == ["CAM_3", "CAM_0"]

    def test_packages_that_are_missing_are_named_with_their_install_line(self, tree, tmp_path, monkeypatch):
        monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "rosbags" else object())
        with pytest.raises(ModuleNotFoundError, match=r'not installed: rosbags \(pip install "rosbags=='):
            demo.demo(DemoPlan(data=tree.root, scene="lot", out=tmp_path), Console())

    def test_data_without_a_lidar(self, tmp_path):
        blind = write_tree(tmp_path / "d", scenes={"lot": 1}, cameras={"CAM_FRONT": 0.0}, lidars=())
        with pytest.raises(ValueError, match="there is no LiDAR"):
            demo.demo(DemoPlan(data=blind.root, scene=None, out=tmp_path / "out"), Console())

    @pytest.mark.parametrize(
        ("logged", "reason"),
        [
            ("[WARN] [1.2] [occ]: frame dropped (bad_image): CAM: cut", r"\(frame dropped \(bad_image\): CAM: cut\)"),
            ("loaded", r"\(too_few_cameras: fewer than sync.min_cameras .*\)"),
        ],
    )
    def test_a_dropped_frame_ends_the_run_at_once(self, tmp_path, logged, reason):
        program = "import sys, time; print(sys.argv[1], flush=True); time.sleep(60)"
        bag = argparse.Namespace(keyframe_stamps_ns=(1, 2))
        collector = argparse.Namespace(stamps_ns=lambda: {1}, dropped=dict)
        with Processes(os.environ, tmp_path) as running:
            node = running.start("node", [sys.executable, "-c", program, logged])
            player = running.start("player", ["sleep", "60"])
            assert wait_until(lambda: node.tail() == logged)
            collector.dropped = lambda: {"too_few_cameras": 1}
            with pytest.raises(ChildProcessError, match=f"node dropped a keyframe, which will get no answer {reason}"):
                demo._follow(bag, node, player, collector, Console())

    @pytest.mark.slow
    def test_a_frame_that_the_node_drops_is_reported_without_waiting(self, tmp_path, capsys):
        broken = write_tree(tmp_path / "d", scenes={"lot": 1})
        # Its start and end are those of a JPEG, so it goes into the bag; what is between cannot be decoded.
        broken.file("CAM_BACK").write_bytes(b"\xff\xd8\xff\xda" + bytes(200) + b"\xff\xd9")
        command = ["demo", "--data", str(broken.root), "--out", str(tmp_path / "out"), "--runtime", "torch"]
        began = time.monotonic()
        assert commands.main(command) == 2
        assert time.monotonic() - began < 0.2 * demo.ANSWER_TIMEOUT_S
        errors = capsys.readouterr().err
        assert "dropped a keyframe, which will get no answer (frame dropped (bad_image): CAM_BACK" in errors
        assert "Traceback" not in errors

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupt_leaves_nothing_running(self, tree, tmp_path, number):
        command = [
            sys.executable,
            "-m",
            "fusionocc_ros.commands",
            "demo",
            "--data",
            str(tree.root),
            "--model",
            "fusionocc-tiny",  # slow enough to be interrupted
            "--out",
            str(tmp_path),
        ]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert wait_until((tmp_path / "logs" / "node.log").exists, 60.0)
            assert wait_until(lambda: len(children(running.pid)) >= 1)
            time.sleep(1.0)
            everyone = children(running.pid)
            running.send_signal(number)
            _, errors = running.communicate(timeout=40)
        finally:
            running.kill()
        assert running.returncode == 130
        assert "Traceback" not in errors
        assert everyone
        assert not any(alive(pid) for pid in everyone)


@pytest.mark.slow
def test_the_demo_answers_every_keyframe(tree, tmp_path, capsys):
    args = parse("--data", tree.root, "--scene", "lot", "--out", tmp_path / "out")
    before = set(children(os.getpid()))
    assert args.run(args) == 0
    assert not [pid for pid in set(children(os.getpid())) - before if alive(pid)]
    output = capsys.readouterr().out
    assert "flashfusion-mini exported to OpenVINO, " in output
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in output.splitlines() if "│" in line}
    assert rows["frames in"] == rows["frames out"] == "2"
    assert "simulated streets" in rows["weights"]
    assert UNTRAINED not in output
    assert any(name.startswith("latency") and "p95" in name for name in rows)
    frames = NuScenesFrames(tree.root, scenes=["lot"])
    for n in range(2):
        stem = tmp_path / "out" / "lot" / str(frames.stamp_ns(n))
        with np.load(f"{stem}.npz") as volume:
            assert set(volume.files) == {"labels", "confidence", "origin", "voxel_size"}
            assert volume["labels"].shape == volume["confidence"].shape == (200, 200, 16)
            np.testing.assert_allclose(volume["origin"], (-40.0, -40.0, -1.0))
            np.testing.assert_allclose(volume["voxel_size"], 0.4)
        assert Path(f"{stem}.png").stat().st_size > 10_000
    log = (tmp_path / "out" / "logs" / "node.log").read_text()
    assert "frame dropped" not in log, log
    assert "on OpenVINO" in log

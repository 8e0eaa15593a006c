"""`fusionocc demo`: a data set becomes a bag, a player plays it, the node answers, and pictures show the answers.

The node is the one that a user launches, with the parameters of the file that the demo leaves beside the results; it
knows nothing of the demo. Node and player are separate processes that talk over DDS on the loopback interface, in a
domain of their own, so that no robot on the network is disturbed and nothing has to be exported.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core import DEFAULT_PRESET
from fusionocc_ros.demo_network import AUTO, RUNTIMES, with_runtime
from fusionocc_ros.demo_settings import write_parameters
from fusionocc_ros.domains import claimed_domain
from fusionocc_ros.processes import Child, Processes, describe, failure
from fusionocc_ros.requirements import require

if TYPE_CHECKING:
    from rich.console import Console

    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.viz.summary import Summary
    from fusionocc_ros.bag import BagSummary
    from fusionocc_ros.collector import Answers, Collector

ANSWERS = "/fusionocc/occupancy"
"""Where the node publishes, under its own name."""

SIMULATED_KEYFRAMES = 8
"""Of the simulated street: a network with seven earlier sweeps sees full memory at the last one."""


START_TIMEOUT_S = 300.0
"""Longest wait for the node to load its network."""

ANSWER_TIMEOUT_S = 900.0
"""Longest wait for one answer; fusionocc-base takes minutes for a frame on two busy cores."""

LAST_WORDS_S = 5.0
"""Longest wait for messages that are still under way when the player has ended."""

USER_ERROR = 2
"""Exit code of a command that printed one line about what is wrong."""

DROP_LOGGED = "frame dropped"
"""Begins what the node logs of a frame that it could not use."""

POLL_S = 0.1

PLAY_RATE = 20.0
"""Bag seconds in a wall-clock second: keyframes lie half a second apart, and the node would wait for the player."""

LOOKAHEAD_S = 10.0
"""All that lies before the next sweep is sent before the answer is waited for: only when every camera has spoken after
a sweep does the node know that no nearer picture will come."""


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What the demo runs."""

    data: Path
    scene: str | None
    out: Path
    model: str | None = None
    checkpoint: Path | None = None
    runtime: str = AUTO
    """See demo_network.RUNTIMES."""
    version: str | None = None
    cameras: tuple[str, ...] | None = None
    """Channels; None: all cameras."""
    most_keyframes: int | None = None
    answer_timeout_s: float = ANSWER_TIMEOUT_S


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "demo",
        help="cameras and LiDAR to voxels over ROS 2, end to end",
        description="Plays a scene to the node over ROS 2 and shows what it answers: a table, pictures and .npz files.",
    )
    parser.add_argument("--data", type=Path, help="a data set in nuScenes format; none: a simulated street")
    parser.add_argument("--version", help="folder of tables, such as v1.0-mini; not needed where there is only one")
    parser.add_argument("--scene", help="name of the scene (default: the first)")
    parser.add_argument(
        "--cameras", nargs="+", metavar="NAME", help="only these cameras, such as CAM_FRONT (default: all)"
    )
    parser.add_argument("--keyframes", type=int, metavar="N", help="only the first N keyframes of the scene")
    parser.add_argument("--model", help=f"network, see `fusionocc presets` (default: {DEFAULT_PRESET})")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="its weights: an official file or one of ours, or an exported network (default: those that ship)",
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default=AUTO,
        help="what computes the network; auto: OpenVINO on a CPU where it is installed and can, else PyTorch",
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for results (default: %(default)s)")
    parser.add_argument(
        "--answer-timeout",
        type=float,
        default=ANSWER_TIMEOUT_S,
        metavar="S",
        help="longest wait for the answer to one keyframe (default: %(default)g)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    from rich.console import Console

    from fusionocc_core.export.artefact import is_artefact
    from fusionocc_core.structures import UNTRAINED

    require("rclpy", "rosbags", "fusionocc_msgs", "tf2_msgs")
    console = Console()
    if args.checkpoint is not None and not (args.checkpoint.is_file() or is_artefact(args.checkpoint)):
        raise FileNotFoundError(f"--checkpoint {args.checkpoint}: no such file")
    data = args.data if args.data is not None else simulated_street(args.out, args.keyframes, console)
    plan = DemoPlan(
        data=data,
        scene=args.scene,
        out=args.out,
        model=args.model,
        checkpoint=args.checkpoint,
        runtime=args.runtime,
        version=args.version,
        cameras=None if args.cameras is None else tuple(args.cameras),
        most_keyframes=args.keyframes,
        answer_timeout_s=args.answer_timeout,
    )
    began = time.monotonic()
    with terminate_as_interrupt():
        summary = demo(plan, console)
    console.print(f"{data} over ROS 2 in {time.monotonic() - began:.0f} s", highlight=False, soft_wrap=True)
    console.print(summary.render(latency_name="latency, sweep to answer,"))
    if summary.trained_on == UNTRAINED:
        console.print(
            f"{UNTRAINED}: this shows that everything runs, the labels mean nothing. Give CHECKPOINT=<file> "
            "(--checkpoint) for weights that know something.",
            style="bold red",
            highlight=False,
        )
    console.print(f"voxels and pictures: {plan.out.resolve()}", highlight=False, soft_wrap=True)
    return 0


def simulated_street(out: Path, keyframes: int | None, console: Console) -> Path:
    """A simulated scene under ``out``; made once, then reused."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fusionocc_core.simulation import SimulationConfig, generate
    from fusionocc_core.viz.export import make_output_folder

    make_output_folder(out)
    config = SimulationConfig(scenes=1, keyframes=keyframes or SIMULATED_KEYFRAMES)
    root = out / f"street-{config.keyframes}"
    columns = (TextColumn("simulating a street"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=config.keyframes)
        workers = min(config.keyframes, os.cpu_count() or 1)
        return generate(root, config, workers, lambda done, total: bar.update(task, completed=done, total=total))


def demo(plan: DemoPlan, console: Console) -> Summary:
    """Write the bag, run node and player, gather an answer for every LiDAR keyframe, write volumes and pictures.

    Raises:
        ChildProcessError: the node or the player failed, or answers are missing; with the end of the log.
        FileNotFoundError: files that the data set lists are missing.
        ValueError: a data set that cannot be played.
    """
    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.viz.export import make_output_folder
    from fusionocc_ros.bag import choose_scene

    frames = NuScenesFrames(plan.data, version=plan.version, cameras=plan.cameras)
    scene = choose_scene(frames.scenes, plan.scene or frames.scenes[0])
    if frames.lidar is None:
        raise ValueError(f"{plan.data}: there is no LiDAR, and every answer belongs to a sweep")
    _check_cameras(plan, frames)
    make_output_folder(plan.out)
    bag, answers = play_scene(plan, frames, scene, console)
    return _write_results(plan, frames, bag, answers, console)


def play_scene(plan: DemoPlan, frames: NuScenesFrames, scene: str, console: Console) -> tuple[BagSummary, Answers]:
    """Write a scene as a bag, and the node's parameters, into ``plan.out``; gather the answers. Errors as ``demo``."""
    bag = _write_bag(plan, scene)
    plan = with_runtime(plan, frames, console)
    settings = write_parameters(plan, frames)
    return bag, _play(plan, bag, settings, console)


def _check_cameras(plan: DemoPlan, frames: NuScenesFrames) -> None:
    from fusionocc_core.commands.predict import refuse_too_many_cameras
    from fusionocc_core.presets import PRESETS

    preset = plan.model or (None if plan.checkpoint else DEFAULT_PRESET)
    if preset in PRESETS:  # of other networks the node knows more, and says it
        refuse_too_many_cameras(frames.cameras, PRESETS[preset]().inputs.num_cameras)


def _write_bag(plan: DemoPlan, scene: str) -> BagSummary:
    from fusionocc_ros.bag import write_bag
    from fusionocc_ros.commands import track_records

    folder = plan.out / "bag"
    if (folder / "metadata.yaml").is_file():
        shutil.rmtree(folder)
    bag = write_bag(
        plan.data,
        folder,
        scene=scene,
        version=plan.version,
        cameras=plan.cameras,
        keyframes_only=True,
        most_keyframes=plan.most_keyframes,
        progress=track_records,
    )
    if not bag.keyframe_stamps_ns:
        raise ValueError(f"{plan.data}: scene {scene} has no LiDAR keyframe that could be answered")
    return bag


def _play(plan: DemoPlan, bag: BagSummary, settings: Path, console: Console) -> Answers:
    """Run node and player until every keyframe is answered."""
    from fusionocc_ros.collector import Collector

    with ros_environment(), Processes(os.environ, plan.out / "logs") as processes, Collector(ANSWERS) as collector:
        command = [sys.executable, "-m", "fusionocc_ros.node", "--ros-args", "--params-file", str(settings)]
        node = processes.start("node", command)
        _wait_for_node(node, collector, console)
        command = [sys.executable, "-m", "fusionocc_ros.commands", "bag", "play", str(bag.path), "--clock"]
        command += ["--wait-for", ANSWERS, "--wait-timeout", str(plan.answer_timeout_s), "--subscriber-timeout", "60"]
        command += ["--rate", str(PLAY_RATE), "--lookahead", str(LOOKAHEAD_S)]
        player = processes.start("player", command)
        _follow(bag, node, player, collector, console)
        return collector.answers()


def _wait_for_node(node: Child, collector: Collector, console: Console) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with console.status("starting the node and loading its network"):
        while not collector.offered:
            if node.process.poll() is not None:
                raise failure(node, f"ended at once with {describe(node.process.returncode)}")
            if time.monotonic() > deadline:
                raise failure(node, f"did not offer {ANSWERS} within {START_TIMEOUT_S:g} s")
            time.sleep(POLL_S)


def _follow(bag: BagSummary, node: Child, player: Child, collector: Collector, console: Console) -> None:
    """Show progress until everything has come and the player has ended.

    Raises:
        ChildProcessError: a process failed, a frame was dropped, or answers are missing.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    wanted = set(bag.keyframe_stamps_ns)
    columns = (TextColumn("keyframes answered"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    last_words = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(wanted))
        while True:
            missing = wanted - collector.stamps_ns()
            bar.update(task, completed=len(wanted) - len(missing))
            status = player.process.poll()
            if node.process.poll() is not None:
                raise failure(node, f"ended with {describe(node.process.returncode)} before the bag was played")
            if dropped := collector.dropped():
                raise failure(node, f"dropped a keyframe, which will get no answer ({_reason(node, dropped)})")
            if status is None:
                last_words = time.monotonic()
            elif status != 0:
                what = f"left keyframes unanswered ({player.tail(1)})"
                raise failure(node, what if status == USER_ERROR else f"lost its player to {describe(status)}")
            elif not missing:
                return
            elif time.monotonic() - last_words > LAST_WORDS_S:
                stamps = ", ".join(f"{stamp * 1e-9:.6f}" for stamp in sorted(missing))
                raise failure(node, f"did not answer {len(missing)} of {len(wanted)} keyframes ({stamps})")
            time.sleep(POLL_S)


def _reason(node: Child, dropped: dict[str, int]) -> str:
    """Why frames were dropped: what the node has logged, or else what the cause means."""
    from fusionocc_ros.causes import CAUSES

    logged = [line[line.index(DROP_LOGGED) :] for line in node.tail().splitlines() if DROP_LOGGED in line]
    return logged[0] if logged else "; ".join(f"{cause}: {CAUSES.get(cause, '')}" for cause in dropped)


def _write_results(
    plan: DemoPlan, frames: NuScenesFrames, bag: BagSummary, answers: Answers, console: Console
) -> Summary:
    from dataclasses import replace

    from rich.progress import track

    from fusionocc_core.structures import Timings
    from fusionocc_core.viz.export import remove_results, write_result
    from fusionocc_core.viz.summary import Summary
    from fusionocc_ros.bag_messages import BASE_FRAME
    from fusionocc_ros.occupancy_messages import message_to_occupancy

    played = set(bag.keyframe_stamps_ns)
    indices = [i for i in frames.scene_indices(bag.scene) if frames.stamp_ns(i) in played]
    summary = Summary(frames_in=len(played), frames_a_second=answers.a_second)
    remove_results(plan.out / bag.scene)
    for index in track(indices, "drawing", console=console, transient=True, disable=not console.is_terminal):
        message = answers.messages[frames.stamp_ns(index)]
        timings = Timings(
            prepare_s=message.preparation_time, network_s=message.network_time, decode_s=message.decoding_time
        )
        frame = "ego" if message.header.frame_id == BASE_FRAME else "lidar"
        occupancy = replace(message_to_occupancy(message, frame=frame), timings=timings)
        write_result(plan.out, frames[index], occupancy)
        summary.add(occupancy, message.total_time)
    return summary


@contextlib.contextmanager
def ros_environment() -> Iterator[None]:
    """A DDS domain of our own on the loopback interface with the shipped profile, for us and all children."""
    from fusionocc_ros.dds import PROFILE_VARIABLES, use_shipped_profile

    settings = {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        # Logs are read when something went wrong: they must be whole, in one file, and plain.
        "PYTHONUNBUFFERED": "1",
        "RCUTILS_LOGGING_USE_STDOUT": "1",
        "RCUTILS_COLORIZED_OUTPUT": "0",
        # Threads of the network that wait for work must not keep the player and us from ours.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    if os.environ.get("ROS_DISTRO") == "humble":
        # It does not know the discovery range yet.
        settings["ROS_LOCALHOST_ONLY"] = "1"
    before = {name: os.environ.get(name) for name in ("ROS_DOMAIN_ID", *settings, *PROFILE_VARIABLES)}
    os.environ.update(settings)
    use_shipped_profile()
    try:
        with claimed_domain() as domain:
            os.environ["ROS_DOMAIN_ID"] = str(domain)
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let a termination unwind the stack as Ctrl-C does, so that the children are stopped as well."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

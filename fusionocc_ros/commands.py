"""What this package adds to the command line: `fusionocc bag ...` and `fusionocc demo`.

``python -m fusionocc_ros.commands`` offers these alone, without looking for the commands of other packages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core.cli import run_command

if TYPE_CHECKING:
    from fusionocc_core.data.nuscenes_tables import SensorRecord
    from fusionocc_ros.player import PlayReport

Subparsers = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns

DEFAULT_CLOCK_HZ = 40.0


def add_parser(subparsers: Subparsers) -> None:
    """Add `bag` and `demo`."""
    from fusionocc_ros import demo

    bag = subparsers.add_parser("bag", help="write and play rosbag2 files", description="Write and play rosbag2 files.")
    actions = bag.add_subparsers(dest="bag_command", metavar="COMMAND", required=True)
    _add_from_nuscenes(actions)
    add_play(actions)
    demo.add_parser(subparsers)


def _add_from_nuscenes(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "from-nuscenes",
        help="write a scene of a data set in nuScenes format as a rosbag2",
        description="Write a scene of a data set in nuScenes format as a rosbag2: pictures, clouds, poses.",
    )
    parser.add_argument("root", type=Path, help="the data set: the folder that holds samples/ and v1.0-*/")
    parser.add_argument("--scene", help="name of the scene, such as scene-0061; not needed where there is only one")
    parser.add_argument("--out", type=Path, required=True, help="the bag's folder; must not exist")
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap", help="default: %(default)s")
    parser.add_argument("--version", help="folder of tables, such as v1.0-mini; not needed where there is only one")
    parser.add_argument("--raw", action="store_true", help="write sensor_msgs/Image instead of CompressedImage")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--keyframes-only", action="store_true", help="leave out the sweeps between keyframes")
    which.add_argument("--sweeps", action="store_true", help="keyframes and the sweeps between them (default)")
    parser.add_argument("--most-keyframes", type=int, metavar="N", help="stop after N keyframes")
    parser.set_defaults(run=run_from_nuscenes)


def add_play(actions: Subparsers) -> None:
    """Add `play`."""
    parser = actions.add_parser(
        "play",
        help="play a rosbag2 over ROS 2",
        description="Play a rosbag2 with the QoS that it was recorded with.",
    )
    parser.add_argument("bag", type=Path, help="folder with metadata.yaml, or an .mcap or .db3 file")
    parser.add_argument("--rate", type=float, default=1.0, help="bag seconds a second (default: %(default)s)")
    parser.add_argument("--loop", action="store_true", help="begin anew at the end, until interrupted")
    parser.add_argument(
        "--clock",
        type=float,
        nargs="?",
        const=DEFAULT_CLOCK_HZ,
        metavar="HZ",
        help=f"publish /clock, for nodes with use_sim_time (HZ: {DEFAULT_CLOCK_HZ:g})",
    )
    parser.add_argument("--topics", nargs="+", default=[], metavar="TOPIC", help="only these")
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="leave out the first S seconds")
    parser.add_argument("--duration", type=float, metavar="S", help="play S seconds")
    parser.add_argument(
        "--subscriber-timeout",
        type=float,
        default=10.0,
        metavar="S",
        help="wait so long for subscribers before the first message; 0: do not (default: %(default)s)",
    )
    waiting = parser.add_argument_group("waiting for answers, so that a slow node misses nothing")
    waiting.add_argument("--wait-for", metavar="TOPIC", help="after each LiDAR keyframe wait for its stamp here")
    waiting.add_argument(
        "--wait-after", nargs="+", default=[], metavar="TOPIC", help="topics that are answered (default: point clouds)"
    )
    waiting.add_argument(
        "--wait-timeout", type=float, default=120.0, metavar="S", help="give up on an answer (default: %(default)s)"
    )
    waiting.add_argument(
        "--lookahead",
        type=float,
        default=0.1,
        metavar="S",
        help="send the other topics so far beyond the sweep before waiting (default: %(default)s)",
    )
    parser.set_defaults(run=run_play)


def run_from_nuscenes(args: argparse.Namespace) -> int:
    """Write a bag and say what is in it."""
    from rich.console import Console
    from rich.table import Table

    from fusionocc_ros.bag import write_bag

    summary = write_bag(
        args.root,
        args.out,
        scene=args.scene,
        version=args.version,
        storage=args.storage,
        raw=args.raw,
        keyframes_only=args.keyframes_only,
        most_keyframes=args.most_keyframes,
        progress=track_records,
    )
    table = Table(title=f"{summary.path}: {summary.scene}, {summary.duration_s:.2f} s", title_justify="left")
    table.add_column("topic")
    table.add_column("messages", justify="right")
    for topic, count in sorted(summary.messages.items()):
        table.add_row(topic, str(count))
    Console().print(table)
    return 0


def track_records(records: Sequence[SensorRecord]) -> Iterable[SensorRecord]:
    """A progress bar over the files of a scene."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(records, "writing the bag", console=console, transient=True, disable=not console.is_terminal)


def run_play(args: argparse.Namespace) -> int:
    """Play a bag and say what was sent."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from fusionocc_ros.player import PlayOptions, play

    options = PlayOptions(
        rate=args.rate,
        loop=args.loop,
        clock_hz=args.clock,
        topics=tuple(args.topics),
        start_s=args.start,
        duration_s=args.duration,
        subscriber_timeout_s=args.subscriber_timeout,
        wait_for=args.wait_for,
        wait_after=tuple(args.wait_after),
        wait_timeout_s=args.wait_timeout,
        lookahead_s=args.lookahead,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f} / {task.total:.1f} s"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("waiting for subscribers", total=0.0)
        report = play(
            args.bag,
            options,
            lambda done, length: bar.update(task, completed=done, total=length, description="playing"),
        )
    _print_report(report)
    return 0


def _print_report(report: PlayReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"played in {report.wall_s:.1f} s", title_justify="left")
    table.add_column("topic, type", overflow="fold")  # whole on narrow terminals too
    for column in ("messages", "Hz", "subscribers"):
        table.add_column(column, justify="right", no_wrap=True)
    for topic, sent in sorted(report.topics.items()):
        rate = sent.sent / report.wall_s if report.wall_s > 0 else 0.0
        table.add_row(f"{topic}\n  {sent.kind}", str(sent.sent), f"{rate:.1f}", str(sent.subscribers))
    console = Console()
    console.print(table)
    for topic, reason in report.skipped.items():
        console.print(f"not played: {topic} ({reason})", markup=False)
    if report.awaited:
        console.print(f"{report.answered} of {report.awaited} sweeps answered")


def main(arguments: list[str] | None = None) -> int:
    """Run one of this package's commands."""
    parser = argparse.ArgumentParser(prog="fusionocc", allow_abbrev=False)
    add_parser(parser.add_subparsers(dest="command", metavar="COMMAND", required=True))
    return run_command(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())

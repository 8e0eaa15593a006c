"""`fusionocc simulate`: write a simulated street as a data set in nuScenes format."""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def _size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT as (height, width)."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 1600x900")
    return int(match[2]), int(match[1])


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "simulate",
        help="write a simulated street with exact labels as a nuScenes data set",
        description="Write a simulated street with exact labels as a data set that nuscenes-devkit reads. "
        "The same options give the same bytes. A run that was stopped is continued by running it again.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="ROOT", help="folder of the data set")
    parser.add_argument("--scenes", type=int, default=10, metavar="N", help="how many streets (default: 10)")
    parser.add_argument(
        "--keyframes", type=int, default=40, metavar="K", help="keyframes a scene, two a second (default: 40)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, another data set (default: 0)")
    parser.add_argument(
        "--rig",
        default="nuscenes-singapore",
        metavar="RIG",
        help="nuscenes-singapore (default), nuscenes-boston, or a rig file FILE.yaml",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="W", help="processes (default: 1)")
    parser.add_argument(
        "--image-size", type=_size, default=None, metavar="WxH", help="of all cameras (default: the rig's, 1600x900)"
    )
    parser.add_argument(
        "--val-scenes", type=int, default=None, metavar="N", help="scenes of the validation split (default: a fifth)"
    )
    parser.add_argument("--sweeps", action="store_true", help="also the LiDAR sweeps between keyframes")
    parser.add_argument("--test-truth", action="store_true", help="also depth, category and instance of every pixel")
    parser.add_argument("--ground-quirk", action="store_true", help="Occ3D labels with the road at the lowest level")
    parser.add_argument(
        "--official-names", action="store_true", help="scene names of nuScenes' own splits (v1.0-mini or v1.0-trainval)"
    )
    parser.add_argument(
        "--corrupt",
        action="append",
        default=[],
        metavar="NAME:SEVERITY",
        help="spoil what the sensors deliver, such as fog:3; may be repeated; a wrong name is answered with all",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the data set."""
    from rich.console import Console

    from fusionocc_core.commands.progress import make_progress
    from fusionocc_core.simulation import SimulationConfig, check_request, generate

    config = SimulationConfig(
        scenes=args.scenes,
        keyframes=args.keyframes,
        seed=args.seed,
        rig=args.rig,
        image_size=args.image_size,
        val_scenes=args.val_scenes,
        sweeps=args.sweeps,
        test_truth=args.test_truth,
        ground_quirk=args.ground_quirk,
        official_names=args.official_names,
        corruptions=tuple(args.corrupt),
    )
    check_request(args.out, config, args.workers)
    with make_progress() as bar:
        task = bar.add_task("keyframes", total=None)
        generate(args.out, config, args.workers, lambda done, total: bar.update(task, completed=done, total=total))
    Console().print(f"wrote {config.scenes} scenes of {config.keyframes} keyframes to {args.out}")
    return 0

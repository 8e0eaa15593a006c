"""`fusionocc robustness`: how well a network does with sensors that fail, lag or sit askew."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from fusionocc_core.engine.evaluation import LabelledFrames
    from fusionocc_core.engine.robustness.conditions import Condition
    from fusionocc_core.engine.robustness.measure import ConditionResult
    from fusionocc_core.engine.robustness.results import RobustnessTable
    from fusionocc_core.engine.scores import Setting
    from fusionocc_core.predictor import OccupancyModel

WIDTH = 110
"""The least that the table takes; narrower terminals wrap its lines."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "robustness",
        help="accuracy with dropped sensors, delays, calibration errors and corruptions",
        description="Measure a network on labelled keyframes while sensors fail, lag or sit askew: mIoU and geometric "
        "IoU under every condition beside the clean ones. Writes OUT/robustness.json, .csv and .png.",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="weights of ours, an official file, or the folder of a run"
    )
    parser.add_argument("--preset", help="what an official file belongs to, such as fusionocc-base")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="ROOT", help="the data set: samples/, v1.0-*/, gts/"
    )
    parser.add_argument("--version", help="folder of tables, such as v1.0-trainval; not needed where there is only one")
    parser.add_argument("--split", default="val", help="official split, or one in splits.json (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write table and picture there")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only N keyframes, spread evenly; the numbers are not final"
    )
    parser.add_argument(
        "--conditions",
        nargs="+",
        metavar="NAME",
        help="groups: cameras, lidar, beams, delay, calibration, corruptions; or single conditions, such as "
        "camera-delay-100ms or fog-3 (default: all)",
    )
    parser.add_argument(
        "--severities", nargs="+", type=int, default=[3], metavar="S", help="of corruptions, 1 to 5 (default: 3)"
    )
    parser.add_argument("--rays", action="store_true", help="also RayIoU, the slowest metric")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every random draw (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=2, help="that read, spoil and prepare keyframes (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table and write the files."""
    from rich.console import Console

    from fusionocc_core.engine.evaluation import LabelledFrames
    from fusionocc_core.engine.robustness.results import render, summary_lines, tabulate
    from fusionocc_core.engine.robustness.standard import chosen_conditions, rig_of, standard_conditions
    from fusionocc_core.engine.session import open_frames
    from fusionocc_core.engine.weights import load_weights
    from fusionocc_core.predictor import pick_device
    from fusionocc_core.structures import UNTRAINED
    from fusionocc_core.viz.export import make_output_folder

    if args.threads < 1:
        raise ValueError(f"--threads {args.threads}: expected 1 or more")
    device = pick_device(args.device)
    model = load_weights(args.checkpoint, preset=args.preset).to(device).eval()
    config = model.config
    frames = open_frames(args.data, config.inputs, split=args.split, version=args.version)
    labelled = LabelledFrames(frames, config.inputs, config.grid, config.label_set, rays=args.rays, seed=args.seed)
    conditions = chosen_conditions(standard_conditions(rig_of(frames), args.severities), args.conditions)
    if args.out:
        make_output_folder(args.out)
    console = Console(soft_wrap=True)
    console.width = max(console.width, WIDTH)
    if model.card.trained_on == UNTRAINED:
        console.print(f"{UNTRAINED}: the figures mean nothing", style="bold red")
    results = measure_with_bar(args, model, labelled, conditions, device)
    table = tabulate(results, setting_of(args, model, labelled, results))
    console.print(f"{args.checkpoint}: {model.card.preset}, trained on: {model.card.trained_on}", highlight=False)
    console.print(render(table))
    for line in summary_lines(table):
        console.print(line, highlight=False, markup=False)
    if args.out:
        write_all(args.out, table, results, console)
    return 0


def measure_with_bar(
    args: argparse.Namespace,
    model: OccupancyModel,
    labelled: LabelledFrames,
    conditions: tuple[Condition, ...],
    device: torch.device,
) -> tuple[ConditionResult, ...]:
    """The measurement with a progress bar."""
    from fusionocc_core.commands.prepare_check import make_progress
    from fusionocc_core.engine.robustness.measure import measure

    with make_progress() as bar, without_hints_of_lost_sensors():
        task = bar.add_task(f"predictions under {len(conditions)} conditions", total=None)
        return measure(
            model,
            labelled,
            conditions,
            device=device,
            precision=args.precision,
            limit=args.limit,
            threads=args.threads,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


@contextmanager
def without_hints_of_lost_sensors() -> Iterator[None]:
    """The pipeline warns of frames without LiDAR; here they are meant."""
    logger = logging.getLogger("fusionocc_core.data.pipeline")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def setting_of(
    args: argparse.Namespace, model: OccupancyModel, labelled: LabelledFrames, results: tuple[ConditionResult, ...]
) -> Setting:
    """What the numbers were measured with."""
    from fusionocc_core.engine.scores import Setting

    clean = results[0].report
    assert clean is not None, "measure raises where the clean keyframes are refused"
    grid = labelled.grid
    return Setting(
        checkpoint=str(args.checkpoint),
        preset=model.card.preset,
        trained_on=model.card.trained_on,
        data=str(args.data),
        version=labelled.frames.version,
        split=args.split if args.limit is None else f"{args.split} (limited to {args.limit})",
        frames=clean.frames,
        labels=labelled.label_set.name,
        grid=f"{grid.shape} voxels of {grid.voxel_size} m, {grid.frame} frame",
        precision=args.precision,
        seed=args.seed,
    )


def write_all(out: Path, table: RobustnessTable, results: tuple[ConditionResult, ...], console: Console) -> None:
    """The files and the picture."""
    from fusionocc_core.engine.robustness.picture import draw
    from fusionocc_core.engine.robustness.results import write_files
    from fusionocc_core.viz.export import write_picture

    write_files(out, table, results)
    write_picture(out / "robustness.png", draw(table))
    console.print(f"written to {out}: robustness.json, robustness.csv, robustness.png", highlight=False)

"""Measure a network on labelled keyframes.

    python training/evaluate.py CHECKPOINT --data ROOT --split val [--out DIR] [--expect 56.6 --tol 0.1]
    torchrun --nproc-per-node N training/evaluate.py CHECKPOINT --data ROOT --split val

Always prints mIoU with the camera mask, with the LiDAR mask and without, geometric IoU, and RayIoU, each with its
setting, beside those of three baselines that are fitted on the training split: see docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from fusionocc_core.engine.baseline_scores import BaselineScores
    from fusionocc_core.engine.distributed import World
    from fusionocc_core.engine.evaluation import LabelledFrames
    from fusionocc_core.engine.score_pictures import ErrorMap
    from fusionocc_core.engine.scores import Setting
    from fusionocc_core.metrics import OccupancyReport

WIDTH = 120
"""Of the tables where the output is no terminal."""

METRICS = ("miou_camera", "miou_lidar", "miou_none", "iou_camera", "iou_lidar", "iou_none", "ray_iou")


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description="Measure a network on labelled keyframes.", allow_abbrev=False)
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="weights of ours, an official file, or the folder of a run"
    )
    parser.add_argument("--preset", help="what an official file belongs to, such as fusionocc-base")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="ROOT", help="the data set: samples/, v1.0-*/, gts/"
    )
    parser.add_argument("--version", help="folder of tables, such as v1.0-trainval; not needed where there is only one")
    parser.add_argument("--split", default="val", help="official split, or one in splits.json (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write metrics.json, metrics.csv and pictures there")
    parser.add_argument("--no-rays", action="store_true", help="leave out RayIoU, the slowest metric")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only N keyframes, spread evenly; the numbers are not final"
    )
    parser.add_argument(
        "--baselines",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also score the baselines: majority, position, geometry (default: on)",
    )
    parser.add_argument(
        "--baseline-split",
        metavar="SPLIT",
        help="what the baselines are fitted on (default: train for val, sim_train for sim_val, and so on)",
    )
    parser.add_argument("--expect", type=float, metavar="PERCENT", help="exit with 1 unless the metric is this ...")
    parser.add_argument("--tol", type=float, default=0.1, help="... within this, percent (default: %(default)s)")
    parser.add_argument("--metric", choices=METRICS, default="miou_camera", help="for --expect (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of random draws at test time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes that read frames (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Evaluate; 0, 1 where --expect is missed, 2 for a mistake of the user's."""
    args = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        return run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if args.verbose:
            logging.getLogger(__name__).exception("the evaluation failed")
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]evaluate: error:[/] {escape(str(error))}", highlight=False
        )
        return 2


def run(args: argparse.Namespace) -> int:
    """What the options ask for."""
    from fusionocc_core.engine.distributed import joined_world
    from fusionocc_core.engine.evaluation import LabelledFrames, summary
    from fusionocc_core.engine.score_pictures import ErrorMap
    from fusionocc_core.engine.session import open_frames
    from fusionocc_core.engine.weights import load_weights

    if args.tol < 0 or args.workers < 0:
        raise ValueError(f"--tol {args.tol} and --workers {args.workers} must not be negative")
    if args.baseline_split and not args.baselines:
        raise ValueError("--baseline-split cannot go with --no-baselines")
    if args.no_rays and args.expect is not None and args.metric == "ray_iou":
        raise ValueError("--metric ray_iou cannot be expected with --no-rays")
    with joined_world(args.device) as world:
        model: Any = load_weights(args.checkpoint, preset=args.preset).to(world.device).eval()
        frames = open_frames(args.data, model.config.inputs, split=args.split, version=args.version)
        labelled = LabelledFrames(
            frames,
            model.config.inputs,
            model.config.grid,
            model.config.label_set,
            rays=not args.no_rays,
            seed=args.seed,
        )
        errors = ErrorMap(model.config.grid)
        report = measure(args, model, labelled, world, errors)
        baselines = held_against(args, labelled, world) if args.baselines else None
        if world.is_main:
            tell(args, report, errors, setting_of(args, model, frames.version, report), baselines)
        return judge(args, summary(report), quiet=not world.is_main)


def measure(
    args: argparse.Namespace, model: Any, labelled: LabelledFrames, world: World, errors: ErrorMap
) -> OccupancyReport:
    """The evaluation with a progress bar."""
    import torch
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from fusionocc_core.engine.evaluation import evaluate

    columns = (TextColumn("keyframes of this process"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not world.is_main, transient=True) as bar:
        task = bar.add_task("evaluating", total=None)
        report = evaluate(
            model,
            labelled,
            world=world,
            workers=args.workers,
            precision=args.precision,
            limit=args.limit,
            on_frame=errors.add,
            progress=lambda count: bar.update(task, advance=1, total=math.ceil(count / world.size)),
        )
    errors.counts_2XY = world.total(torch.from_numpy(errors.counts_2XY)).numpy()
    return report


def held_against(args: argparse.Namespace, labelled: LabelledFrames, world: World) -> BaselineScores | None:
    """What the baselines score; None, said in one line, where there is nothing to fit them on."""
    from fusionocc_core.engine.baseline_scores import CACHE, NoBaselinesError, score_baselines, training_split_of

    console = Console(stderr=True, soft_wrap=True)
    shown = console.status("baselines ...") if world.is_main and console.is_terminal else None
    try:
        with shown or nullcontext():
            return score_baselines(
                labelled,
                split=args.baseline_split or training_split_of(args.split),
                world=world,
                cache=args.data / CACHE,
                limit=args.limit,
                workers=args.workers,
                progress=(lambda what, done, of: shown.update(f"{what}: {done} of {of} keyframes")) if shown else None,
            )
    except NoBaselinesError as error:
        if world.is_main:
            console.print(f"no baselines: {escape(str(error))}", highlight=False)
        return None


def setting_of(args: argparse.Namespace, model: Any, version: str, report: OccupancyReport) -> Setting:
    """What the numbers were measured with."""
    from fusionocc_core.engine.scores import Setting

    grid = model.config.grid
    return Setting(
        checkpoint=str(args.checkpoint),
        preset=model.card.preset,
        trained_on=model.card.trained_on,
        data=str(args.data),
        version=version,
        split=args.split if args.limit is None else f"{args.split} (limited to {args.limit})",
        frames=report.frames,
        labels=report.label_set.name,
        grid=f"{grid.shape} voxels of {grid.voxel_size} m, {grid.frame} frame",
        precision=args.precision,
        seed=args.seed,
    )


def tell(
    args: argparse.Namespace,
    report: OccupancyReport,
    errors: ErrorMap,
    setting: Setting,
    baselines: BaselineScores | None,
) -> None:
    """Print and write the results."""
    from fusionocc_core.engine.score_pictures import write_pictures
    from fusionocc_core.engine.scores import class_table, comparison_table, lines, ring_table, write_files

    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(f"{setting.checkpoint}: {setting.preset}, trained on: {setting.trained_on}", highlight=False)
    for line in lines(report, setting):
        console.print(line, highlight=False)
    if baselines:
        console.print(comparison_table(report, baselines.reports, setting, baselines.trained_on))
    console.print(class_table(report, setting))
    console.print(ring_table(report, setting))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_files(args.out, report, setting, baselines)
        write_pictures(args.out, report, errors, setting.in_a_line())
        console.print(f"written to {args.out}", highlight=False)


def judge(args: argparse.Namespace, metrics: dict[str, float], *, quiet: bool) -> int:
    """0, or 1 where the metric is not what was expected."""
    if args.expect is None:
        return 0
    if args.metric not in metrics or math.isnan(metrics[args.metric]):
        raise ValueError(f"--expect: this data gives no {args.metric}; it gives {', '.join(metrics)}")
    percent = 100 * metrics[args.metric]
    hit = abs(percent - args.expect) <= args.tol
    if not quiet:
        verdict = "as expected" if hit else "MISSED"
        print(f"{args.metric} {percent:.2f} %, expected {args.expect:g} within {args.tol:g}: {verdict}")
    return 0 if hit else 1


if __name__ == "__main__":
    sys.exit(main())

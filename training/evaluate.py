"""Measure a network on labelled keyframes.

    python training/evaluate.py CHECKPOINT --data ROOT --split val [--out DIR] [--expect 56.6 --tol 0.1]
    torchrun --nproc-per-node N training/evaluate.py CHECKPOINT --data ROOT --split val

CHECKPOINT may be an exported network. Always prints mIoU with the camera mask, with the LiDAR mask and without,
geometric IoU, and RayIoU (and RayPQ of networks that tell objects apart), each with its setting, beside those of three
baselines that are fitted on the training split: see docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from fusionocc_core.commands.evaluated import add_options, check_precision, open_labelled, setting_of
from fusionocc_core.commands.weights import load_network_or_artefact
from fusionocc_core.process import arrange_process

if TYPE_CHECKING:
    from fusionocc_core.engine.baseline_scores import BaselineScores
    from fusionocc_core.engine.distributed import World
    from fusionocc_core.engine.evaluation import LabelledFrames
    from fusionocc_core.engine.score_pictures import ErrorMap
    from fusionocc_core.engine.scores import Setting
    from fusionocc_core.engine.worst_frames import WorstFrames
    from fusionocc_core.metrics import OccupancyReport, OccupancyTruth
    from fusionocc_core.predictor import OccupancyModel
    from fusionocc_core.structures import Occupancy

WIDTH = 120
"""Of the tables where the output is no terminal."""

METRICS = ("miou_camera", "miou_lidar", "miou_none", "iou_camera", "iou_lidar", "iou_none", "ray_iou", "ray_pq")


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description="Measure a network on labelled keyframes.", allow_abbrev=False)
    add_options(parser, written="metrics.json, metrics.csv and pictures")
    parser.add_argument("--no-rays", action="store_true", help="leave out RayIoU, the slowest metric")
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
    parser.add_argument("--workers", type=int, default=4, help="processes that read frames (default: %(default)s)")
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
    from fusionocc_core.engine.evaluation import summary, things_of_network
    from fusionocc_core.engine.evaluation_report import write_report
    from fusionocc_core.engine.score_pictures import ErrorMap
    from fusionocc_core.engine.worst_frames import WorstFrames
    from fusionocc_core.viz.report_page import check_report_path

    if args.report:
        check_report_path(args.report)
    if args.tol < 0 or args.workers < 0:
        raise ValueError(f"--tol {args.tol} and --workers {args.workers} must not be negative")
    if args.baseline_split and not args.baselines:
        raise ValueError("--baseline-split cannot go with --no-baselines")
    if args.no_rays and args.expect is not None and args.metric.startswith("ray"):
        raise ValueError(f"--metric {args.metric} cannot be expected with --no-rays")
    precision = check_precision(args)
    with joined_world(args.device) as world:
        model = load_network_or_artefact(args).to(world.device).eval()
        things = () if args.no_rays else things_of_network(model.config)
        labelled = open_labelled(args, model, rays=not args.no_rays, things=things)
        errors = ErrorMap(model.config.grid)
        worst = WorstFrames(labelled, world, limit=args.limit) if args.report else None
        report = measure(args, model, labelled, world, errors, precision, worst)
        frames = worst.gathered() if worst else []
        baselines = held_against(args, labelled, world) if args.baselines else None
        if world.is_main:
            setting = setting_of(args, model, labelled, report.frames)
            tell(args, report, errors, setting, baselines)
            if args.report:
                write_report(args.report, report, setting, labelled, errors=errors, frames=frames, baselines=baselines)
                Console(soft_wrap=True).print(f"report: {args.report}", highlight=False)
        return judge(args, summary(report), quiet=not world.is_main)


def measure(
    args: argparse.Namespace,
    model: OccupancyModel,
    labelled: LabelledFrames,
    world: World,
    errors: ErrorMap,
    precision: str,
    worst: WorstFrames | None = None,
) -> OccupancyReport:
    """The evaluation with a progress bar."""
    import torch

    from fusionocc_core.commands.progress import make_progress
    from fusionocc_core.engine.evaluation import evaluate

    def on_frame(prediction: Occupancy, truth: OccupancyTruth) -> None:
        errors.add(prediction, truth)
        if worst:
            worst.add(prediction, truth)

    with make_progress() as bar:
        task = bar.add_task("keyframes of this process", total=None, visible=world.is_main)
        report = evaluate(
            model,
            labelled,
            world=world,
            workers=args.workers,
            precision=precision,
            limit=args.limit,
            on_frame=on_frame,
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
    arrange_process()
    sys.exit(main())

"""`fusionocc robustness`: how well a network does with sensors that fail, lag or sit askew."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core.commands.evaluated import add_options, check_precision, open_labelled, setting_of
from fusionocc_core.commands.weights import load_network_or_artefact

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from fusionocc_core.engine.evaluation import LabelledFrames
    from fusionocc_core.engine.robustness.conditions import Condition
    from fusionocc_core.engine.robustness.measure import ConditionResult, OnPrediction
    from fusionocc_core.engine.robustness.results import RobustnessTable
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
    add_options(parser, written="table and picture")
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
    parser.add_argument(
        "--threads", type=int, default=2, help="that read, spoil and prepare keyframes (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table and write the files."""
    from rich.console import Console

    from fusionocc_core.engine.robustness.report import WorstMoments, write_report
    from fusionocc_core.engine.robustness.results import render, summary_lines, tabulate
    from fusionocc_core.engine.robustness.standard import chosen_conditions, rig_of, standard_conditions
    from fusionocc_core.predictor import pick_device
    from fusionocc_core.structures import UNTRAINED
    from fusionocc_core.viz.export import make_output_folder
    from fusionocc_core.viz.report_page import check_report_path

    if args.report:
        check_report_path(args.report)
    if args.threads < 1:
        raise ValueError(f"--threads {args.threads}: expected 1 or more")
    device = pick_device(args.device)
    precision = check_precision(args)
    model = load_network_or_artefact(args).to(device).eval()
    labelled = open_labelled(args, model, rays=args.rays)
    conditions = chosen_conditions(standard_conditions(rig_of(labelled.frames), args.severities), args.conditions)
    if args.out:
        make_output_folder(args.out)
    console = Console(soft_wrap=True)
    console.width = max(console.width, WIDTH)
    if model.card.trained_on == UNTRAINED:
        console.print(f"{UNTRAINED}: the figures mean nothing", style="bold red")
    moments = WorstMoments()
    watch = moments.add if args.report else None
    results = measure_with_bar(args, model, labelled, conditions, device, precision, watch)
    clean = results[0].report
    assert clean is not None, "measure raises where the clean keyframes are refused"
    setting = setting_of(args, model, labelled, clean.frames)
    table = tabulate(results, setting)
    console.print(f"{setting.checkpoint}: {model.card.preset}, trained on: {model.card.trained_on}", highlight=False)
    console.print(render(table))
    for line in summary_lines(table):
        console.print(line, highlight=False, markup=False)
    if args.out:
        write_all(args.out, table, results, console)
    if args.report:
        write_report(args.report, table, labelled, moments.costliest(), limit=args.limit)
        console.print(f"report: {args.report}", highlight=False)
    return 0


def measure_with_bar(
    args: argparse.Namespace,
    model: OccupancyModel,
    labelled: LabelledFrames,
    conditions: tuple[Condition, ...],
    device: torch.device,
    precision: str,
    on_prediction: OnPrediction | None = None,
) -> tuple[ConditionResult, ...]:
    """The measurement with a progress bar."""
    from fusionocc_core.commands.progress import make_progress
    from fusionocc_core.engine.robustness.measure import measure

    with make_progress() as bar, without_hints_of_lost_sensors():
        task = bar.add_task(f"predictions under {len(conditions)} conditions", total=None)
        return measure(
            model,
            labelled,
            conditions,
            device=device,
            precision=precision,
            limit=args.limit,
            threads=args.threads,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            on_prediction=on_prediction,
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


def write_all(out: Path, table: RobustnessTable, results: tuple[ConditionResult, ...], console: Console) -> None:
    """The files and the picture."""
    from fusionocc_core.engine.robustness.picture import draw
    from fusionocc_core.engine.robustness.results import write_files
    from fusionocc_core.viz.export import write_picture

    write_files(out, table, results)
    write_picture(out / "robustness.png", draw(table))
    console.print(f"written to {out}: robustness.json, robustness.csv, robustness.png", highlight=False)

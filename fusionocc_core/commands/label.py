"""`fusionocc label`: occupancy labels and visibility masks for data that has none."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core.commands.prepare import missing_lidarseg
from fusionocc_core.commands.progress import make_progress

if TYPE_CHECKING:
    from rich.console import Console

    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.labelling.compare import Agreement
    from fusionocc_core.labelling.config import LabelConfig

COMPARISON = "label_comparison.json"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "label",
        help="occupancy labels and visibility masks from sweeps, boxes and point labels",
        description="Make occupancy labels and masks of what was observed, as Occ3D's, from the LiDAR sweeps, boxes "
        "and point labels (lidarseg) of a data set in nuScenes format. A run that was stopped is continued by running "
        "it again. Existing labels are never overwritten.",
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="the data set: the folder with samples/ and v1.0-*/")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where gts/ (or surroundocc/) goes (default: ROOT)")
    parser.add_argument("--version", help="folder of tables, such as v1.0-mini; not needed where there is only one")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--split", help="only the scenes of this split, such as train or mini_val")
    chosen.add_argument("--scenes", nargs="+", metavar="NAME", help="only these scenes")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes, a scene each (default: 1)")
    parser.add_argument(
        "--layout", choices=("occ3d", "surroundocc"), default="occ3d", help="grid and files (default: occ3d)"
    )
    parser.add_argument("--densify", action="store_true", help="fill holes of surfaces and the inside of vehicles")
    parser.add_argument(
        "--boxes-only", action="store_true", help='without point labels: what lies outside of boxes becomes "others"'
    )
    parser.add_argument("--keyframes-only", action="store_true", help="leave out the sweeps between keyframes")
    parser.add_argument(
        "--free-space",
        choices=("scene", "keyframe"),
        default="scene",
        help="whose pulses show what is free: all sweeps of the scene (default), or the keyframe's own alone",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="?",
        const=True,
        metavar="DIR",
        help=f"afterwards compare with the labels in DIR (default: ROOT), and write {COMPARISON} into that of --out",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Label, and compare where that is asked for."""
    from rich.console import Console

    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.data.nuscenes_tables import find_version
    from fusionocc_core.labelling.compare import check_truth
    from fusionocc_core.labelling.config import LabelConfig

    config = LabelConfig(
        layout=args.layout,
        boxes_only=args.boxes_only,
        keyframes_only=args.keyframes_only,
        free_space=args.free_space,
        densify=args.densify,
    )
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers}: expected 1 or more")
    version = find_version(args.root, args.version)
    missing = missing_lidarseg(args.root, version)
    if missing:
        raise FileNotFoundError(
            f"lidarseg: {len(missing)} files that {args.root / version / 'lidarseg.json'} lists are missing, such as "
            f"{missing[0]}; extract nuScenes-lidarseg again, or remove lidarseg.json and take --boxes-only"
        )
    out = args.root if args.out is None else args.out
    truth = args.root if args.compare is True else args.compare
    with Console(stderr=True).status("reading the tables"):
        frames = NuScenesFrames(args.root, version=version, split=args.split, scenes=args.scenes)
    if truth is not None:
        check_truth(frames, out, truth, config)
    console = Console()
    _label(frames, out, config, args.workers, console)
    if truth is not None:
        _compare(frames, out, truth, config, console)
    return 0


def _label(frames: NuScenesFrames, out: Path, config: LabelConfig, workers: int, console: Console) -> None:
    from fusionocc_core.labelling.files import labels_folder
    from fusionocc_core.labelling.run import label_data, labelled_keyframes

    began = time.perf_counter()
    with make_progress() as progress:
        bar = progress.add_task(
            "labelling keyframes", total=len(frames), completed=labelled_keyframes(frames, out, config)
        )
        done = label_data(frames, out, config, workers, lambda: progress.advance(bar))
    took = time.perf_counter() - began
    pace = f", {took / done:.2f} s each" if done else ""
    console.print(
        f"keyframes: {len(frames)}, labelled: {done}{pace}, there already: {len(frames) - done}; "
        f"labels: {labels_folder(out, config).resolve()}",
        highlight=False,
        soft_wrap=True,
    )


def _compare(frames: NuScenesFrames, out: Path, truth: Path, config: LabelConfig, console: Console) -> None:
    from fusionocc_core.labelling.compare import compare
    from fusionocc_core.labelling.files import write_whole

    agreement = compare(frames, out, truth, config)
    _print_agreement(agreement, truth, console)
    path = out / COMPARISON
    write_whole(path, json.dumps({"truth": str(truth.resolve()), **agreement.as_json()}, indent=1).encode())
    console.print(f"comparison: {path.resolve()}", highlight=False, soft_wrap=True)


def _print_agreement(agreement: Agreement, truth: Path, console: Console) -> None:
    from rich.table import Table

    numbers = agreement.as_json()
    truth_scores, own_scores = numbers["under_masks_of_truth"], numbers["under_masks_of_labels"]
    columns = {f"{mask}, there": scores for mask, scores in truth_scores.items() if mask != "none"}
    columns |= {f"{mask}, here": scores for mask, scores in own_scores.items()}
    columns |= {"all": truth_scores["none"]}
    table = Table(
        title=f"IoU in percent with the labels in {truth}, keyframes: {agreement.keyframes}",
        caption="columns: the mask whose voxels count, there or here (of the new labels)",
    )
    for name in ("", *columns):
        table.add_column(name, justify="right" if name else "left", no_wrap=not name)
    rows = {"occupied": "geometric_iou", "mean of classes": "miou", "free, but occupied": "free_that_is_occupied"}
    for name, key in rows.items():
        table.add_row(name, *(_percent(scores[key]) for scores in columns.values()))
    table.add_section()
    for name in agreement.label_set.names:
        table.add_row(name, *(_percent(scores["class_iou"][name]) for scores in columns.values()))
    console.print(table)
    if not numbers["masks"]:
        return
    masks = Table("mask", "precision", "recall", title="masks, percent")
    for name, values in numbers["masks"].items():
        masks.add_row(name, _percent(values["precision"]), _percent(values["recall"]))
    console.print(masks)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"

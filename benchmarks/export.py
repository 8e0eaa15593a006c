"""A network in PyTorch and in every runtime and precision side by side: labels, mIoU, milliseconds, as ratios.

    python benchmarks/export.py --data ROOT [--checkpoint FILE] [--split sim_val] [--calibration-split sim_train]
        [--only onnx-fp32 openvino-bf16 ...] [--threads 1 2] [--frames 12] [--timed-frames 3] [--repeats 3]
        [--artefacts out/benchmarks/export] [--out out/benchmarks/export.json]

Exports what is not there yet (the rest is taken as it is), compares labels and mIoU with PyTorch's on some keyframes,
and times some of them: each goes through all candidates in turn, again and again, so that whatever else the machine
does hits all of them alike. From batch to labels: what lies outside of the graph (the LiDAR's raster) is counted,
reading and preparing files are not. CPU time is that of the whole process, which sleeps while it waits: on a busy
machine it is the better figure.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from machine import in_words, installed, machine, write_report
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fusionocc_core.commands.export import megabytes
from fusionocc_core.engine.evaluation import summary
from fusionocc_core.engine.weights import load_weights
from fusionocc_core.export.artefact import Artefact, is_artefact, read_artefact
from fusionocc_core.export.model import ExportedModel, load_exported
from fusionocc_core.export.parity import Keyframe, timed
from fusionocc_core.export.run import Exporter, calibration_batches, frames_of, keyframes_to_compare
from fusionocc_core.metrics import OccupancyScore
from fusionocc_core.models.network import OccupancyNetwork
from fusionocc_core.predictor import HasBfloat16Parts, LabelsDirectly, network_for_inference
from fusionocc_core.presets import load_model
from fusionocc_core.structures import Batch, LabelOutputs, Occupancy, Outputs

CANDIDATES = (
    "torch-export-fp32",
    "onnx-fp32",
    "onnx-int8",
    "openvino-fp32",
    "openvino-fp16",
    "openvino-bf16",
    "openvino-int8",
)
PYTORCH = "PyTorch fp32"
"""The network itself, with all scores: what labels are compared with, and times."""
PREDICTOR = {"PyTorch fp32, Predictor": "float32", "PyTorch bf16, Predictor": "bfloat16"}
"""As Predictor runs it: norms folded, labels without all scores."""
CALIBRATION_FRAMES = 24

WIDTH = 120
"""The least that the tables take."""


@dataclass(kw_only=True)
class Row:
    """What is known of a candidate."""

    labels_equal: float = 1.0
    labels_equal_worst: float = 1.0
    occupied_equal: float = 1.0
    scores: dict[str, float] = field(default_factory=dict)
    megabytes: float | None = None
    runtime: str = f"PyTorch {torch.__version__}"
    computes_in: str = "fp32"
    timings: dict[str, dict[str, float]] = field(default_factory=dict)
    """Threads to milliseconds and ratios."""


class AsPredictor:
    """The network as Predictor runs it."""

    def __init__(self, network: OccupancyNetwork, precision: str) -> None:
        self._network = network_for_inference(network, torch.device("cpu"), precision)

    def __call__(self, batch: Batch) -> Outputs | LabelOutputs:
        """The labels of a batch."""
        if isinstance(self._network, LabelsDirectly):
            return self._network.label(batch, confidence=False)
        return self._network(batch)


Model = OccupancyNetwork | AsPredictor | ExportedModel


def main() -> None:
    args = make_parser().parse_args()
    console = Console(soft_wrap=True)
    console.width = max(console.width, WIDTH)
    torch.set_num_threads(max(args.threads))
    network = load_weights(args.checkpoint) if args.checkpoint else load_model()
    artefacts = export_missing(network, args)
    frames = frames_of(args.data, network, split=args.split, version=None)
    keyframes = list(keyframes_to_compare(frames, network, args.frames))
    rows = compare_labels(network, artefacts, keyframes)
    few = keyframes[:: max(1, len(keyframes) // args.timed_frames)][: args.timed_frames]
    for threads in args.threads:
        time_all(network, artefacts, few, rows, threads=threads, repeats=args.repeats)
    about = {**machine(), **{name: installed(name) for name in ("onnxruntime", "openvino", "nncf")}}
    for table in tables(network, rows, args):
        console.print(table)
    console.print(in_words(about), highlight=False)
    if args.out:
        setting = {k: str(v) for k, v in vars(args).items()}
        write_report(args.out, about, {"setting": setting, **{name: vars(row) for name, row in rows.items()}})


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="weights (default: those that ship)")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="sim_val")
    parser.add_argument("--calibration-split", default="sim_train")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=CANDIDATES, metavar="NAME")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--frames", type=int, default=12, help="for labels and mIoU")
    parser.add_argument("--timed-frames", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--artefacts", type=Path, default=Path("out/benchmarks/export"))
    parser.add_argument("--out", type=Path, help="write a JSON file")
    return parser


def export_missing(network: OccupancyNetwork, args: argparse.Namespace) -> dict[str, Artefact]:
    """All artefacts, those that are not there made now, with one tracing."""
    missing = [name for name in args.only if not is_artefact(args.artefacts / name)]
    if missing:
        frames = frames_of(args.data, network, split=args.calibration_split, version=None)
        batches = calibration_batches(frames, network, CALIBRATION_FRAMES)
        exporter = Exporter(network, batches, batches_are=f"{len(batches)} keyframes of {args.calibration_split}")
        for name in track(missing, "exporting", console=Console(stderr=True)):
            exporter.write(args.artefacts / name, *name.rsplit("-", 1))
    return {name: read_artefact(args.artefacts / name) for name in args.only}


def compare_labels(
    network: OccupancyNetwork, artefacts: dict[str, Artefact], keyframes: Sequence[Keyframe]
) -> dict[str, Row]:
    """Labels and scores of all."""
    expected = [timed(network, one.batch)[0] for one in keyframes]
    rows = {PYTORCH: Row(scores=scores_of(network, keyframes, expected))}
    for name, model in track(others(network, artefacts), "comparing", console=Console(stderr=True)):
        found = [timed(model, one.batch)[0] for one in keyframes]
        same = [a == b for a, b in zip(found, expected, strict=True)]
        free = network.config.label_set.free
        occupied = np.concatenate([s[e != free] for s, e in zip(same, expected, strict=True)])
        rows[name] = Row(
            labels_equal=float(np.mean([s.mean() for s in same])),
            labels_equal_worst=float(min(s.mean() for s in same)),
            occupied_equal=float(occupied.mean()),
            scores=scores_of(network, keyframes, found),
        )
        if isinstance(model, ExportedModel):
            rows[name].megabytes = megabytes(model.artefact)
            rows[name].runtime, rows[name].computes_in = model.runtime.name, model.runtime.computes_in
        elif name in PREDICTOR:
            rows[name].computes_in = name.split(",")[0].removeprefix("PyTorch ")
    return rows


def others(network: OccupancyNetwork, artefacts: dict[str, Artefact]) -> list[tuple[str, Model]]:
    """All but the network itself, by name."""
    possible = {k: v for k, v in PREDICTOR.items() if v == "float32" or isinstance(network, HasBfloat16Parts)}
    folded = [(name, AsPredictor(network, precision)) for name, precision in possible.items()]
    return [*folded, *((name, load_exported(artefact.folder)) for name, artefact in artefacts.items())]


def scores_of(
    network: OccupancyNetwork, keyframes: Sequence[Keyframe], labels: Sequence[np.ndarray]
) -> dict[str, float]:
    """Mean and geometric IoU; nothing where the data have no labels."""
    grid, label_set = network.config.grid, network.config.label_set
    score = OccupancyScore(grid, label_set, rays=False)
    for one, found in zip(keyframes, labels, strict=True):
        if one.truth:
            score.add(Occupancy(labels=found, grid=grid, label_set=label_set, stamp_ns=0), one.truth)
    return summary(score.report()) if score.frames else {}


def time_all(
    network: OccupancyNetwork,
    artefacts: dict[str, Artefact],
    keyframes: Sequence[Keyframe],
    rows: dict[str, Row],
    *,
    threads: int,
    repeats: int,
) -> None:
    """Milliseconds of all candidates, in turn."""
    torch.set_num_threads(threads)
    models: dict[str, Model] = {PYTORCH: network, **dict(others(network, artefacts))}
    wall, cpu = defaultdict(list), defaultdict(list)
    for one in track(keyframes, f"timing with {threads} threads", console=Console(stderr=True)):
        for repeat in range(repeats + 1):
            for name, model in models.items():
                began = time.process_time()
                _, seconds = timed(model, one.batch)
                if repeat:  # the first one warms up
                    wall[name].append(seconds)
                    cpu[name].append(time.process_time() - began)
    for name in models:
        rows[name].timings[str(threads)] = {
            "best_ms": 1e3 * min(wall[name]),
            "median_ms": 1e3 * median(wall[name]),
            "cpu_ms": 1e3 * median(cpu[name]),
            "times_as_fast": median(a / b for a, b in zip(wall[PYTORCH], wall[name], strict=True)),
            "cpu_ratio": median(a / b for a, b in zip(cpu[PYTORCH], cpu[name], strict=True)),
        }


def tables(network: OccupancyNetwork, rows: dict[str, Row], args: argparse.Namespace) -> list[Table]:
    """For the terminal."""
    about = Table(title=f"{network.card.preset}, {args.frames} keyframes of {args.split}", box=None)
    for column in ("", "MB", "computes in", "labels as PyTorch's, %", "worst keyframe", "not free", "mIoU camera, %"):
        about.add_column(column, justify="left" if column in ("", "computes in") else "right", no_wrap=not column)
    for name, row in rows.items():
        miou = row.scores.get("miou_camera")
        about.add_row(
            name,
            f"{row.megabytes:.1f}" if row.megabytes else "",
            row.computes_in,
            *(f"{100 * v:.3f}" for v in (row.labels_equal, row.labels_equal_worst, row.occupied_equal)),
            "" if miou is None else f"{100 * miou:.2f}",
        )
    return [about, *(speeds(rows, threads, args) for threads in args.threads)]


def speeds(rows: dict[str, Row], threads: int, args: argparse.Namespace) -> Table:
    """With one number of threads."""
    title = f"From batch to labels, {threads} threads, {args.timed_frames} keyframes, {args.repeats} times each"
    table = Table(title=title, box=None)
    for column in ("", "best ms", "median ms", "CPU ms", "times as fast", "by CPU time"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, row in rows.items():
        timing = row.timings[str(threads)]
        milliseconds = [f"{timing[key]:.0f}" for key in ("best_ms", "median_ms", "cpu_ms")]
        table.add_row(name, *milliseconds, *(f"{timing[key]:.2f}" for key in ("times_as_fast", "cpu_ratio")))
    return table


if __name__ == "__main__":
    main()

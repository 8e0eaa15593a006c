"""A network in PyTorch and its exported forms side by side: milliseconds, as ratios, and labels.

    python benchmarks/export.py CHECKPOINT --artefacts out/export/* --data ROOT [--split NAME] [--threads 2]
        [--frames 8] [--repeats 3] [--out out/benchmarks/export.json]

Each keyframe goes through all candidates in turn, again and again, so that whatever else the machine does hits all of
them alike. From batch to labels: what lies outside of the graph (the LiDAR's raster) is counted, reading and preparing
files are not.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np
import torch
from machine import in_words, machine, write_report
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fusionocc_core.commands.export import megabytes
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.engine.evaluation import spread
from fusionocc_core.engine.weights import load_weights
from fusionocc_core.export.model import load_exported
from fusionocc_core.export.parity import timed
from fusionocc_core.export.run import frames_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--artefacts", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network = load_weights(args.checkpoint)
    models = {"PyTorch fp32": network}
    sizes = {}
    for folder in args.artefacts:
        model = load_exported(folder, threads=args.threads)
        name = f"{model.runtime.name}, {model.artefact.precision}"
        models[name], sizes[name] = model, megabytes(model.artefact)
    config, frames = network.config, frames_of(args.data, network, split=args.split, version=None)
    seconds, equal = defaultdict(list), defaultdict(list)
    for index in track(spread(len(frames), args.frames), console=Console(stderr=True)):
        batch = prepare(frames[index], config.inputs, config.grid)
        for repeat in range(args.repeats + 1):
            expected = None
            for name, model in models.items():
                labels, took = timed(model, batch)
                expected = labels if expected is None else expected
                if repeat:  # the first one warms up
                    seconds[name].append(took)
                else:
                    equal[name].append(float((labels == expected).mean()))
    table = Table(title=f"{network.card.preset}, {args.frames} keyframes, {args.threads} threads", box=None)
    for column in ("", "MB", "labels as PyTorch's, %", "best ms", "median ms", "times as fast"):
        table.add_column(column, justify="right" if column else "left")
    numbers = {}
    for name, all_seconds in seconds.items():
        ratio = median(a / b for a, b in zip(seconds["PyTorch fp32"], all_seconds, strict=True))
        numbers[name] = {
            "labels_equal": float(np.mean(equal[name])),
            "best_ms": 1e3 * min(all_seconds),
            "median_ms": 1e3 * median(all_seconds),
            "times_as_fast": ratio,
        }
        table.add_row(
            name,
            f"{sizes[name]:.1f}" if name in sizes else "",
            f"{100 * np.mean(equal[name]):.3f}",
            f"{1e3 * min(all_seconds):.0f}",
            f"{1e3 * median(all_seconds):.0f}",
            f"{ratio:.2f}",
        )
    console = Console()
    console.print(table)
    console.print(in_words(machine()), highlight=False, soft_wrap=True)
    if args.out:
        write_report(args.out, machine(), numbers)


if __name__ == "__main__":
    main()

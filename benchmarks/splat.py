"""Times splatting of Gaussians into 200 x 200 x 16 voxels, and its memory: ``python benchmarks/splat.py``.

Scales as GaussianFormer starts with: "solid" 25,600 Gaussians, additive; "prob" 25,600, probabilistic. Tiles and
listed pairs take turns. Times are processor time, the least of the repeats after one that warms up. Memory (Linux) is
what a fresh process needs at its peak beyond what it held once the arguments were made; results are part of it.

``--sweep`` measures time and memory against the number of Gaussians and against their scales instead, once each and all
in one process.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from machine import Machine, in_words, machine, write_report
from op_inputs import OFFICIAL
from op_inputs import gaussians as made_up
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import peak_bytes
from torch import Tensor

from fusionocc_core.gaussians import Gaussians
from fusionocc_core.ops.gaussian_splat import SplatOptions, splat_additive, splat_probabilistic
from fusionocc_core.ops.gaussian_splat_boxes import boxes_of

GRID = OFFICIAL.gaussian_grid


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table."""

    kind: str
    options: SplatOptions
    backward: bool = False
    num: int = 25600
    scale: float = 1.0
    """Factor on all scales."""

    @property
    def name(self) -> str:
        """In words."""
        what = "forward and backward" if self.backward else "forward"
        return f"{self.kind}, {self.options.boxes}, {what}, {self.options.backend}"


SOLID = SplatOptions(reach=3.0, boxes="cube", backend="tiles")
PROB = SplatOptions(reach=4.0, boxes="cube", backend="tiles")
CASES = (
    Case(kind="solid", options=replace(SOLID, backend="pairs")),
    Case(kind="solid", options=SOLID),
    Case(kind="solid", options=replace(SOLID, boxes="exact")),
    Case(kind="solid", options=SOLID, backward=True),
    Case(kind="prob", options=PROB),
    Case(kind="prob", options=replace(PROB, boxes="exact")),
    Case(kind="prob", options=replace(PROB, boxes="exact"), backward=True),
)
SWEPT = (
    ("tiles", Case(kind="solid", options=replace(SOLID, boxes="exact"))),
    ("tiles with backward", Case(kind="solid", options=replace(SOLID, boxes="exact"), backward=True)),
    ("pairs", Case(kind="solid", options=replace(SOLID, boxes="exact", backend="pairs"))),
)
NUMBERS = (1600, 6400, 25600)
SCALES = (0.5, 1.0, 2.0)
MOST_PAIRS = 15.0
"""Millions of pairs beyond which the sweep leaves the backend "pairs" out: it would take longer than all the rest."""


def make(case: Case) -> Gaussians:
    """Anywhere in the grid, turned in any direction."""
    return made_up(case.kind, case.num, case.scale, GRID)


def splat(case: Case, gaussians: Gaussians) -> list[Tensor]:
    """The volumes, after the backward pass where the case has one."""
    if case.kind == "solid":
        volumes = [splat_additive(gaussians, GRID, case.options)]
    else:
        probable = splat_probabilistic(gaussians, GRID, case.options)
        volumes = [probable.semantics_BCZYX, probable.occupancy_BZYX]
    if case.backward:
        sum(volume.sum() for volume in volumes).backward()
    return volumes


def ready(case: Case) -> Callable[[], list[Tensor]]:
    """Everything made but the splat itself."""
    gaussians = make(case)
    for tensor in vars(gaussians).values():
        tensor.requires_grad_(case.backward)
    return lambda: splat(case, gaussians)


def once(case: Case) -> tuple[float, float]:
    """Processor seconds and peak megabytes of one run on one thread, beyond what the process holds before."""
    torch.set_num_threads(1)
    ready(replace(case, num=10, scale=1.0))()
    run = ready(case)
    spent = [0.0]

    def timed() -> object:
        start = time.process_time()
        result = run()
        spent[0] = time.process_time() - start
        return result

    peak = peak_bytes(timed)
    assert peak is not None, "memory is read on Linux only"
    return spent[0], peak / 1e6


def measured(cases: Sequence[Case], *, fresh: bool) -> Iterator[tuple[float, float]]:
    """``once`` of every case, each in a process of its own, or all in one after the other."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1 if fresh else None) as pool:
        yield from pool.imap(once, cases)


def seconds(cases: Sequence[Case], repeats: int) -> list[float]:
    """Processor time of each case, the least of the repeats; the cases take turns."""
    runs, best = [ready(case) for case in cases], [math.inf] * len(cases)
    for repeat in track(range(repeats + 1), "time", transient=True):
        for place, run in enumerate(runs):
            gc.collect()
            start = time.process_time()
            run()
            if repeat:
                best[place] = min(best[place], time.process_time() - start)
    return best


def pairs(case: Case) -> float:
    """Millions of (Gaussian, voxel)."""
    (boxes,) = boxes_of(make(case), GRID, case.options.reach, case.options.boxes)
    return float((boxes.last_G3 - boxes.first_G3 + 1).clamp(min=0).prod(dim=1).sum()) / 1e6


def compare(cases: Sequence[Case], repeats: int, console: Console) -> dict[str, object]:
    """Every case beside the others, as a table."""
    peaks = [peak for _, peak in track(measured(cases, fresh=True), "memory", total=len(cases), transient=True)]
    times = seconds(cases, repeats)
    table = Table("case", "million pairs", "CPU s", "peak MB", title=f"{cases[0].num} Gaussians")
    numbers: dict[str, object] = {}
    for case, spent, peak in zip(cases, times, peaks, strict=True):
        table.add_row(case.name, f"{pairs(case):.1f}", f"{spent:.2f}", f"{peak:.0f}")
        numbers[case.name] = {"million pairs": pairs(case), "CPU seconds": spent, "peak megabytes": peak}
    console.print(table)
    if cases[0].kind == "solid":
        console.print(f"solid, cube, forward: tiles are {times[0] / times[1]:.1f} times as fast as pairs")
    return numbers


def sweep(console: Console) -> dict[str, object]:
    """Time and memory against number and scale, a line each as soon as it is there."""
    todo = [("number", name, replace(case, num=num)) for num in NUMBERS for name, case in SWEPT]
    todo += [("scale", name, replace(case, scale=scale)) for scale in SCALES for name, case in SWEPT]
    todo = [entry for entry in todo if entry[2].options.backend != "pairs" or pairs(entry[2]) < MOST_PAIRS]
    rows, known = [], {}
    cases = list(dict.fromkeys(case for *_, case in todo))  # one is in both halves
    for case, (spent, peak) in zip(cases, measured(cases, fresh=False), strict=True):
        known[case] = round(pairs(case), 1), round(spent, 3), round(peak)
        console.print(case.name, case.num, f"x{case.scale:g}: {known[case][1]} s, {known[case][2]} MB", highlight=False)
    for against, name, case in todo:
        rows.append((against, name, case.num, case.scale, *known[case]))
    return {"sweep": [dict(zip(COLUMNS, row, strict=True)) for row in rows]}


COLUMNS = ("against", "case", "Gaussians", "scale", "million pairs", "CPU seconds", "peak megabytes")


def plot(path: Path, rows: Sequence[dict[str, float]], about: Machine) -> None:
    """Four panels, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex="col", sharey="row", layout="constrained")
    for column, (against, key) in enumerate((("number", "Gaussians"), ("scale", "scale"))):
        for line, quantity in enumerate(("CPU seconds", "peak megabytes")):
            panel = axes[line, column]
            for name, _ in SWEPT:
                mine = [row for row in rows if row["against"] == against and row["case"] == name]
                panel.loglog([row[key] for row in mine], [row[quantity] for row in mine], "o-", label=name)
            panel.grid(True, which="both", color="0.92")
            panel.set_ylabel(quantity if column == 0 else "")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
        axes[1, column].set_xlabel("Gaussians" if key == "Gaussians" else "factor on the scales (25,600 Gaussians)")
        axes[1, column].set_xticks([row[key] for row in rows if row["against"] == against])
        axes[1, column].xaxis.set_major_formatter("{x:g}")
        axes[1, column].xaxis.set_minor_formatter("")
    axes[0, 0].legend()
    figure.suptitle(f"Additive splat, exact boxes, 200 x 200 x 16 voxels, one thread, commit {about['commit']}")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=25600, help="Gaussians (default: 25600)")
    parser.add_argument("--repeats", type=int, default=2, help="of the times, after one that warms up (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="of the times; memory is measured on one (default: 1)")
    parser.add_argument("--kind", choices=("solid", "prob"), help="one of the two only")
    parser.add_argument("--sweep", action="store_true", help="against the number of Gaussians and their scales")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="with --sweep: draw it (needs matplotlib)")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    if args.plot and not args.sweep:
        parser.error("--plot draws a sweep: add --sweep")
    torch.set_num_threads(args.threads)
    about, console = machine(), Console()
    console.print(in_words(about))
    if args.sweep:
        numbers = sweep(console)
    else:
        cases = [replace(case, num=args.num) for case in CASES if args.kind in (None, case.kind)]
        numbers = compare(cases, args.repeats, console)
    if args.out:
        write_report(args.out, about, numbers)
    if args.plot:
        plot(args.plot, numbers["sweep"], about)


if __name__ == "__main__":
    main()

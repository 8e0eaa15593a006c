"""Times splatting of Gaussians into 200 x 200 x 16 voxels, and its memory: ``python benchmarks/splat.py``.

Scales as GaussianFormer starts with: "solid" 25,600 Gaussians, additive; "prob" 25,600, probabilistic. Tiles and
listed pairs take turns. Times are processor time, the least of the repeats after one that warms up. Memory (Linux) is
what a fresh process needs at its peak beyond what it held once the arguments were made; results are part of it.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from machine import in_words, machine, write_report
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fusionocc_core.gaussians import Gaussians
from fusionocc_core.ops.gaussian_splat import SplatOptions, splat_additive, splat_probabilistic
from fusionocc_core.ops.gaussian_splat_boxes import SplatGrid, boxes_of

GRID = SplatGrid(lower=(-50.0, -50.0, -5.0), voxel_size=(0.5, 0.5, 0.5), shape_xyz=(200, 200, 16))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table."""

    kind: str
    options: SplatOptions
    backward: bool = False

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
    Case(kind="prob", options=PROB, backward=True),
    Case(kind="prob", options=replace(PROB, boxes="exact"), backward=True),
)


def make(kind: str, num: int) -> Gaussians:
    """Anywhere in the grid, turned in any direction."""
    generator = torch.Generator().manual_seed(0)
    lower = torch.tensor(GRID.lower)
    size = torch.tensor(GRID.shape_xyz) * torch.tensor(GRID.voxel_size)
    if kind == "solid":
        scales = 0.08 + 0.56 * torch.rand(1, num, 3, generator=generator)
    else:
        scales = 0.01 + 1.79 * torch.randn(1, num, 3, generator=generator).sigmoid()
    return Gaussians(
        means_BG3=lower + size * torch.rand(1, num, 3, generator=generator),
        scales_BG3=scales,
        rotations_BG4=torch.randn(1, num, 4, generator=generator),
        opacities_BG=torch.rand(1, num, generator=generator),
        semantics_BGC=torch.randn(1, num, 18 if kind == "solid" else 17, generator=generator).softmax(dim=2),
    )


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


def ready(case: Case, num: int) -> Callable[[], list[Tensor]]:
    """Everything made but the splat itself."""
    gaussians = make(case.kind, num)
    for tensor in vars(gaussians).values():
        tensor.requires_grad_(case.backward)
    return lambda: splat(case, gaussians)


def peak_megabytes(case: Case, num: int) -> float:
    """In a fresh process, on one thread."""
    torch.set_num_threads(1)
    ready(case, 10)()
    run = ready(case, num)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    before = resident_kilobytes("VmRSS")
    run()
    return (resident_kilobytes("VmHWM") - before) / 1024


def resident_kilobytes(field: str) -> int:
    """Memory of this process: "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def seconds(cases: list[Case], num: int, repeats: int) -> list[float]:
    """Processor time of each case, the least of the repeats."""
    runs, best = [ready(case, num) for case in cases], [math.inf] * len(cases)
    for repeat in range(repeats + 1):
        for place, run in enumerate(runs):
            gc.collect()
            start = time.process_time()
            run()
            if repeat:
                best[place] = min(best[place], time.process_time() - start)
    return best


def pairs(case: Case, num: int) -> float:
    """Millions of (Gaussian, voxel)."""
    (boxes,) = boxes_of(make(case.kind, num), GRID, case.options.reach, case.options.boxes)
    return float((boxes.last_G3 - boxes.first_G3 + 1).clamp(min=0).prod(dim=1).sum()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=25600, help="Gaussians (default: 25600)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kind", choices=("solid", "prob"), help="one of the two only")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = machine()
    cases = [case for case in CASES if args.kind in (None, case.kind)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = [pool.apply(peak_megabytes, (case, args.num)) for case in cases]
    times = seconds(cases, args.num, args.repeats)
    table = Table("case", "million pairs", "CPU s", "peak MB", title=f"{args.num} Gaussians, {args.threads} threads")
    numbers: dict[str, object] = {}
    for case, spent, peak in zip(cases, times, memory, strict=True):
        table.add_row(case.name, f"{pairs(case, args.num):.1f}", f"{spent:.2f}", f"{peak:.0f}")
        numbers[case.name] = {"million pairs": pairs(case, args.num), "CPU seconds": spent, "peak megabytes": peak}
    console = Console()
    console.print(in_words(about))
    console.print(table)
    if args.kind != "prob":
        console.print(f"solid, cube, forward: tiles are {times[0] / times[1]:.1f} times as fast as pairs")
    if args.out:
        write_report(args.out, about, numbers)


if __name__ == "__main__":
    main()

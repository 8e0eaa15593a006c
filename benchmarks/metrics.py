"""What a frame costs in an evaluation, as ratios measured side by side.

    python benchmarks/metrics.py [--repeats 5] [--out out/benchmarks/metrics.json]

One process, CPU time of one thread (other programs may share the machine), a made-up street on the Occ3D grid
(200 x 200 x 16) with eight ray origins. "One ray at a time" is the plain Python walk that the tests hold the caster to;
it runs on every 200th ray and is multiplied by 200.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is loaded

import numpy as np
from baselines.ray_iou import walk
from machine import in_words, machine, write_report
from numpy.typing import NDArray
from op_inputs import a_voxel_off, street
from rich.console import Console
from rich.table import Table

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS
from fusionocc_core.metrics import MASKS, OccupancyScore, OccupancyTruth
from fusionocc_core.metrics.ray_iou import count_rays
from fusionocc_core.metrics.ray_pq import PanopticLabels, count_segments
from fusionocc_core.metrics.rays import Rays, cast_rays, make_rays
from fusionocc_core.metrics.voxels import RING_EDGES, count_voxels, ring_of_voxel
from fusionocc_core.structures import Occupancy

FREE, EVERY = OCC3D_LABELS.free, 200
VALIDATION_FRAMES = 6019
"""Of nuScenes."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One row of the table."""

    row: str
    ours_best_ms: float
    other: str
    other_best_ms: float
    ratio: float


def case() -> tuple[Occupancy, OccupancyTruth]:
    """Labels with masks and origins, and a prediction that is a voxel off in places."""
    rng = np.random.default_rng(0)
    truth = street(0)
    said = a_voxel_off(truth)
    origins = np.stack([np.linspace(-35, 35, 8), np.full(8, 0.13), np.full(8, 1.84)], axis=1)
    labels = OccupancyTruth(
        labels=truth,
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        mask_camera=rng.random(truth.shape) < 0.07,
        mask_lidar=rng.random(truth.shape) < 0.09,
        ray_origins=origins,
    )
    return Occupancy(labels=said, grid=OCC3D_GRID, label_set=OCC3D_LABELS, stamp_ns=0), labels


def count_mask_by_mask(said: NDArray[np.uint8], truth: OccupancyTruth) -> list[NDArray[np.int64]]:
    """One histogram after the other: select the voxels of a mask and ring, count pairs."""
    rings, k, out = ring_of_voxel(OCC3D_GRID, RING_EDGES), OCC3D_LABELS.num, []
    for mask in MASKS:
        for ring in range(len(RING_EDGES) + 1):
            chosen = np.broadcast_to((rings == ring)[:, :, None], said.shape)
            wanted = truth.mask(mask) if mask != "none" else None
            chosen = chosen if wanted is None else chosen & wanted
            pairs = truth.labels[chosen].astype(int) * k + said[chosen]
            out.append(np.bincount(pairs, minlength=k * k).reshape(k, k))
    return out


def walk_one_by_one(occupied: NDArray[np.bool_], rays: Rays) -> list[float]:
    """Distances in voxels."""
    return [walk(occupied, *ray)[1] for ray in zip(rays.start.tolist(), rays.direction.tolist(), strict=True)]


def compare(
    row: str, ours: Callable[[], object], name: str, other: Callable[[], object], repeats: int, scale: float = 1.0
) -> Timing:
    """Run both in turn; one unmeasured round first. The other's time is multiplied by ``scale``."""
    times: list[list[float]] = [[], []]
    for attempt in range(repeats + 1):
        for run, factor, taken in ((ours, 1.0, times[0]), (other, scale, times[1])):
            start = time.process_time()
            run()
            if attempt:
                taken.append((time.process_time() - start) * 1e3 * factor)
    ratio = median(b / a for a, b in zip(*times, strict=True))
    return Timing(row=row, ours_best_ms=min(times[0]), other=name, other_best_ms=min(times[1]), ratio=ratio)


def measure(repeats: int) -> list[Timing]:
    """Every row; the results of both sides are compared first."""
    prediction, truth = case()
    said, origins = prediction.labels, truth.ray_origins
    assert origins is not None, "case() gives origins"
    rays = make_rays(origins, OCC3D_GRID)
    some = Rays(start=rays.start[::EVERY], direction=rays.direction[::EVERY])
    occupied = truth.labels != FREE
    np.testing.assert_allclose(cast_rays(occupied, some, 1.0).distance, walk_one_by_one(occupied, some), atol=1e-9)
    np.testing.assert_array_equal(count_voxels(said, truth).sum(axis=(0, 1)), sum(count_mask_by_mask(said, truth)[10:]))

    def whole_frame(with_rays: bool) -> None:
        OccupancyScore(OCC3D_GRID, OCC3D_LABELS, rays=with_rays).add(prediction, truth)

    panoptic = [PanopticLabels(labels=volume, instances=np.zeros_like(volume)) for volume in (truth.labels, said)]
    return [
        compare(
            "confusion under 3 masks in 5 rings",
            lambda: count_voxels(said, truth),
            "one mask and ring at a time",
            lambda: count_mask_by_mask(said, truth),
            repeats,
        ),
        compare(
            f"cast {len(rays.start):,} rays",
            lambda: cast_rays(occupied, rays, 0.4),
            f"one ray at a time (every {EVERY}th)",
            lambda: walk_one_by_one(occupied, some),
            repeats,
            scale=EVERY,
        ),
        compare(
            "RayIoU of a frame",
            lambda: count_rays(truth.labels, said, origins, OCC3D_GRID, OCC3D_LABELS),
            "RayPQ of a frame",
            lambda: count_segments(*panoptic, origins, OCC3D_GRID, OCC3D_LABELS),
            repeats,
        ),
        compare("scores without rays", lambda: whole_frame(False), "all scores", lambda: whole_frame(True), repeats),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    timings = measure(args.repeats)
    table = Table(title="metrics of one frame, CPU time of one thread")
    for heading in ("", "ours, best ms", "compared with", "best ms", "ratio (median)"):
        table.add_column(heading, justify="right" if "ms" in heading or "ratio" in heading else "left")
    for t in timings:
        table.add_row(t.row, f"{t.ours_best_ms:.1f}", t.other, f"{t.other_best_ms:.1f}", f"{t.ratio:.2f}x")
    console, about = Console(), machine()
    console.print(table)
    minutes = timings[-1].other_best_ms * VALIDATION_FRAMES / 60e3
    console.print(f"all scores of the {VALIDATION_FRAMES} frames of nuScenes' val: {minutes:.1f} CPU minutes")
    console.print(in_words(about), highlight=False, soft_wrap=True)
    if args.out:
        write_report(args.out, about, {"timings": [asdict(t) for t in timings]})


if __name__ == "__main__":
    main()

"""How fast the ops are, as ratios measured side by side.

    python benchmarks/ops.py [--points CLOUD.bin ...] [--threads 2] [--repeats 7] [--out out/benchmarks/ops.json]

Each row runs its candidates in turn, again and again, so that whatever else the machine does hits all of them alike.
The table shows the best time of each and the ratio of those best times. Without --points the LiDAR cloud is simulated:
seven sweeps of a 32-beam scanner in a street, thinned as FusionOcc's pipeline thins them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from machine import Machine, in_words, installed, machine, write_report
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fusionocc_core.grids import OCC3D_GRID, VoxelGrid
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig, SparseLidarEncoder
from fusionocc_core.ops.bev_pool import BevPoolPlan, bev_pool, plan_bev_pool
from fusionocc_core.ops.scatter import scatter_max, scatter_mean
from fusionocc_core.ops.sparse_conv import plan_submanifold_conv3d, sparse_conv3d, submanifold_conv3d
from fusionocc_core.ops.sparse_volume import SparseVolume
from fusionocc_core.ops.voxelize import voxelize

LIDAR_GRID: VoxelGrid = replace(OCC3D_GRID, voxel_size=(0.05, 0.05, 0.05))
KERNEL = (3, 3, 3)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to compute a row's result."""

    label: str
    run: Callable[[], object]
    threads: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """Candidates for the same result; the first is ours, and ratios say how many times longer the others take."""

    name: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one candidate took, milliseconds."""

    row: str
    candidate: str
    threads: int
    best_ms: float
    median_ms: float
    best_cpu_ms: float
    """Of all threads together; on a busy machine the steadier number, with OMP_WAIT_POLICY=PASSIVE."""
    ratio_to_first: float


def measure(row: Row, repeats: int) -> list[Timing]:
    """Run the candidates of a row in turn; one unmeasured round first."""
    runs: list[list[tuple[float, float]]] = [[] for _ in row.candidates]
    for _ in range(repeats + 1):
        for candidate, times in zip(row.candidates, runs, strict=True):
            torch.set_num_threads(candidate.threads)
            start, cpu_start = time.perf_counter(), time.process_time()
            candidate.run()
            times.append(((time.perf_counter() - start) * 1e3, (time.process_time() - cpu_start) * 1e3))
    walls = [[wall for wall, _ in times[1:]] for times in runs]
    cpus = [[cpu for _, cpu in times[1:]] for times in runs]
    return [
        Timing(
            row=row.name,
            candidate=candidate.label,
            threads=candidate.threads,
            best_ms=min(wall),
            median_ms=median(wall),
            best_cpu_ms=min(cpu),
            ratio_to_first=min(wall) / min(walls[0]),
        )
        for candidate, wall, cpu in zip(row.candidates, walls, cpus, strict=True)
    ]


def simulated_cloud(sweeps: int = 7) -> Tensor:
    """(P, 5) x y z intensity ring of a 32-beam scanner 1.84 m above a street with walls, driven 3 m a sweep."""
    rng = np.random.default_rng(0)
    elevation = np.deg2rad(np.linspace(-30.67, 10.67, 32))[:, None]
    azimuth = np.deg2rad(np.arange(0, 360, 0.33))[None, :]
    # What stands in each direction: house fronts along the street, nearer things here and there.
    front = np.minimum(9.0 / np.maximum(np.abs(np.sin(azimuth)), 1e-3), 70.0)
    nearer = np.repeat(rng.choice([1.0, 0.3, 0.6], p=[0.6, 0.2, 0.2], size=(1, 91)), 12, axis=1)[:, : azimuth.size]
    clouds = []
    for sweep in range(sweeps):
        ground = np.where(elevation < -0.01, 1.84 / np.maximum(np.sin(-elevation), 1e-3), np.inf)
        distance = np.minimum(front * nearer / np.cos(elevation), ground) + rng.normal(0, 0.02, (32, azimuth.size))
        x = distance * np.cos(elevation) * np.cos(azimuth) - 3.0 * sweep
        y = distance * np.cos(elevation) * np.sin(azimuth) + rng.normal(0, 0.2)
        z = distance * np.sin(elevation) + 1.84 + 0 * azimuth
        ring = np.broadcast_to(np.arange(32.0)[:, None], x.shape)
        intensity = np.broadcast_to(rng.uniform(0, 255, (1, azimuth.size)), x.shape)
        clouds.append(np.stack([x, y, z, intensity, ring], axis=-1).reshape(-1, 5))
    return thinned(np.concatenate(clouds).astype(np.float32))


def thinned(points: NDArray[np.float32]) -> Tensor:
    """A fifth of the points of rings 0 to 16, all of the others: what FusionOcc's LiDAR branch gets."""
    kept = (points[:, 4] > 16) | (np.random.default_rng(1).random(len(points)) < 0.2)
    return torch.from_numpy(points[kept])


def cloud_from_files(paths: list[Path], sweeps: int = 7) -> Tensor:
    """Sweeps of nuScenes (x right, y forward, z up, intensity, ring) in ego axes; repeated, moved, to ``sweeps``."""
    clouds = []
    for sweep in range(sweeps):
        lidar = np.fromfile(paths[sweep % len(paths)], dtype=np.float32).reshape(-1, 5)
        x, y, z, intensity, ring = lidar.T
        clouds.append(np.stack([y - 3.0 * sweep, -x + 0.1 * sweep, z + 1.84, intensity, ring], axis=-1))
    return thinned(np.concatenate(clouds))


def backward(run: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], object]:
    """Forward and backward of ``run``."""

    def forward_backward() -> None:
        torch.autograd.grad(run().sum(), leaves)

    return forward_backward


def sparse_rows(cloud: Tensor, threads: int) -> Iterator[Row]:
    """Every convolution shape of the official encoder, on its own voxels."""
    volume = voxelize((cloud,), LIDAR_GRID.lower, LIDAR_GRID.voxel_size, LIDAR_GRID.shape)
    widths = LidarEncoderConfig(grid=LIDAR_GRID).stage_channels
    for stage, width in enumerate(widths):
        volume = volume.with_features(torch.randn(len(volume.coords_M4), width))
        name = f"stage {stage + 1}, {len(volume.coords_M4):,} voxels"
        yield submanifold_row(f"submanifold {width}, {name}", volume, width, threads, gradient=False)
        yield submanifold_row(f"submanifold {width}, {name}, with backward", volume, width, threads, gradient=True)
        if stage + 1 < len(widths):
            weight = torch.randn(widths[stage + 1], *KERNEL, width) * 0.05
            yield strided_row(f"strided {width} to {widths[stage + 1]}, {name}", volume, weight, threads)
            volume = sparse_conv3d(volume, weight, 2, 1)


def backends(threads: int) -> list[tuple[str, str, int]]:
    """(label, backend, threads) of the sparse convolution; spconv is correct on a CPU with one thread only."""
    rows = [("torch", "torch", threads), ("torch, 1 thread", "torch", 1)]
    return [*rows, ("spconv, 1 thread", "spconv", 1)] if installed("spconv") else rows


def submanifold_row(name: str, volume: SparseVolume, width: int, threads: int, gradient: bool) -> Row:
    """Index tables made before, as in the encoder, where two convolutions share them."""
    weight = (torch.randn(width, *KERNEL, width) * 0.05).requires_grad_(gradient)
    volume = volume.with_features(volume.features_MC.clone().requires_grad_(gradient))
    candidates = []
    for label, backend, count in backends(threads):
        plan = plan_submanifold_conv3d(volume, KERNEL, backend)

        def run(plan: object = plan) -> Tensor:
            return submanifold_conv3d(volume, weight, plan).features_MC  # type: ignore[arg-type]

        timed = backward(run, [volume.features_MC, weight]) if gradient else run
        candidates.append(Candidate(label=label, run=timed, threads=count))
    return Row(name=name, candidates=tuple(candidates))


def strided_row(name: str, volume: SparseVolume, weight: Tensor, threads: int) -> Row:
    """Index tables included: each strided convolution makes its own."""
    candidates = tuple(
        Candidate(label=label, run=partial(sparse_conv3d, volume, weight, 2, 1, backend), threads=count)
        for label, backend, count in backends(threads)
    )
    return Row(name=f"{name}, with index tables", candidates=candidates)


def encoder_row(cloud: Tensor, threads: int) -> Row:
    """The whole LiDAR branch of the official model, points to dense volume."""
    candidates = []
    for label, backend, count in backends(threads):
        encoder = SparseLidarEncoder(LidarEncoderConfig(grid=LIDAR_GRID, backend=backend)).eval()

        @torch.no_grad()
        def run(encoder: SparseLidarEncoder = encoder) -> Tensor:
            volume: Tensor = encoder((cloud,))
            return volume

        candidates.append(Candidate(label=label, run=run, threads=count))
    return Row(name=f"LiDAR encoder of fusionocc-base, {len(cloud):,} points", candidates=tuple(candidates))


def official_frustum() -> BevPoolPlan:
    """Six cameras around the car, 88 depths x 32 x 88 pixels, 16 m deep to 44.5 m: the size of the official model."""
    u, v, depth = np.meshgrid(np.linspace(-0.63, 0.63, 88), np.linspace(-0.22, 0.35, 32), np.arange(1, 45, 0.5))
    forward, left, up = (np.moveaxis(a, -1, 0) for a in (depth, -u * depth, 1.5 - v * depth))
    lower, size = np.array(OCC3D_GRID.lower), np.array(OCC3D_GRID.voxel_size)
    cameras = []
    for yaw in np.deg2rad([55, 0, -55, 110, 180, -110]):
        x, y = np.cos(yaw) * forward - np.sin(yaw) * left, np.sin(yaw) * forward + np.cos(yaw) * left
        cameras.append(np.floor((np.stack([x, y, up], axis=-1) - lower) / size).astype(np.int64))
    return plan_bev_pool(torch.from_numpy(np.stack(cameras)[None]), OCC3D_GRID.shape_zyx)


def bev_rows(threads: int) -> Iterator[Row]:
    """Pooling at the size of the official model."""
    plan = official_frustum()
    for gradient in (False, True):
        depth = torch.rand(plan.frustum_shape).requires_grad_(gradient)
        feat = torch.randn(1, 6, 32, 32, 88).requires_grad_(gradient)
        candidates = []
        for backend in ("embedding_bag", "index_add"):

            def run(backend: str = backend, depth: Tensor = depth, feat: Tensor = feat) -> Tensor:
                return bev_pool(depth, feat, plan, backend)

            timed = backward(run, [depth, feat]) if gradient else run
            candidates.append(Candidate(label=backend, run=timed, threads=threads))
        name = f"BEV pooling, {len(plan.voxels_P):,} points, 32 channels{', with backward' if gradient else ''}"
        yield Row(name=name, candidates=tuple(candidates))


def scatter_rows(threads: int) -> Iterator[Row]:
    """300,000 rows of 16 channels into 150,000 segments."""
    index = torch.randint(0, 150_000, (300_000,))
    chosen = ("torch", "torch_scatter") if installed("torch-scatter") else ("torch",)
    for name, op in (("mean", scatter_mean), ("maximum", scatter_max)):
        for gradient in (False, True):
            values = torch.randn(300_000, 16).requires_grad_(gradient)
            candidates = []
            for backend in chosen:

                def run(backend: str = backend, values: Tensor = values, op: Callable[..., Tensor] = op) -> Tensor:
                    return op(values, index, 150_000, backend)

                timed = backward(run, [values]) if gradient else run
                candidates.append(Candidate(label=backend, run=timed, threads=threads))
            title = f"scatter {name}, 300,000 rows, 16 channels{', with backward' if gradient else ''}"
            yield Row(name=title, candidates=tuple(candidates))


def show(timings: list[Timing], about: Machine) -> None:
    """The table on the terminal."""
    console = Console()
    table = Table(title="fusionocc ops on the CPU")
    table.add_column("what")
    table.add_column("candidate", no_wrap=True)
    table.add_column("best ms", justify="right", no_wrap=True)
    table.add_column("CPU ms", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    previous = ""
    for timing in timings:
        if timing.row != previous and previous:
            table.add_section()
        what = timing.row if timing.row != previous else ""
        table.add_row(
            what, timing.candidate, f"{timing.best_ms:.1f}", f"{timing.best_cpu_ms:.1f}", f"{timing.ratio_to_first:.2f}"
        )
        previous = timing.row
    console.print(table)
    console.print(in_words(about), highlight=False, soft_wrap=True)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Speed of the ops, as ratios measured side by side.")
    parser.add_argument("--points", type=Path, nargs="+", help="nuScenes LiDAR sweeps (.bin); default: simulated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/ops.json"))
    options = parser.parse_args()

    torch.manual_seed(0)
    cloud = cloud_from_files(options.points) if options.points else simulated_cloud()
    rows = [
        *sparse_rows(cloud, options.threads),
        encoder_row(cloud, options.threads),
        *bev_rows(options.threads),
        *scatter_rows(options.threads),
    ]
    timings = [timing for row in track(rows, "measuring") for timing in measure(row, options.repeats)]
    about = machine()
    show(timings, about)
    numbers = {"threads": options.threads, "timings": [asdict(timing) for timing in timings]}
    write_report(options.out, about, numbers)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()

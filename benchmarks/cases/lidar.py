"""Voxelisation, sparse convolution, scatter: what a LiDAR branch is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from baselines.sparse_conv import submanifold_by_searches
from floors import Work
from machine import installed
from timing import Candidate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cases.case import Case, Setting, with_backward
from fusionocc_core.grids import VoxelGrid
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig, SparseLidarEncoder
from fusionocc_core.ops.rulebook import Rulebook, strided_rulebook
from fusionocc_core.ops.scatter import scatter_max, scatter_mean
from fusionocc_core.ops.sparse_conv import plan_submanifold_conv3d, sparse_conv3d, submanifold_conv3d
from fusionocc_core.ops.sparse_volume import SparseVolume
from fusionocc_core.ops.voxelize import voxelize

KERNEL = (3, 3, 3)
CONVOLUTIONS = 2
"""Over the same voxels, as in a stage of the official encoder: they share what tells neighbours."""


def voxelize_cases(given: Setting) -> Iterator[Case]:
    """Points to the means of the occupied voxels."""
    cloud, grid = given.cloud, given.size.lidar_grid
    volume = voxelize((cloud,), grid.lower, grid.voxel_size, grid.shape)
    candidates = [
        Candidate(
            label="ours",
            kind="ours",
            run=lambda: voxelize((cloud,), grid.lower, grid.voxel_size, grid.shape).features_MC,
        )
    ]
    if installed("spconv") and given.device == "cpu":
        most = int(torch.unique(voxel_of_point(cloud, grid), return_counts=True)[1].max())
        candidates.append(
            Candidate(
                label="spconv",
                kind="alternative",
                run=spconv_voxelizer(cloud, grid, len(volume.coords_M4), most),
                threads=1,
            )
        )
    points, width = cloud.shape
    moved = 4 * cloud.numel() + len(volume.coords_M4) * (4 * width + 8 * 4)
    yield Case(
        op="voxelise",
        name=f"voxelise {points:,} points into {len(volume.coords_M4):,} voxels",
        candidates=tuple(candidates),
        work=Work(bytes=moved, operations=points * (6 + width)),
    )


def voxel_of_point(cloud: Tensor, grid: VoxelGrid) -> Tensor:
    """One number a voxel, of the points inside the grid."""
    lower, size, shape = (cloud.new_tensor(v) for v in (grid.lower, grid.voxel_size, grid.shape))
    index = ((cloud[:, :3] - lower) / size).floor()
    index = index[((index >= 0) & (index < shape)).all(dim=1)].long()
    return (index[:, 0] * grid.shape[1] + index[:, 1]) * grid.shape[2] + index[:, 2]


def spconv_voxelizer(cloud: Tensor, grid: VoxelGrid, voxels: int, most: int) -> Callable[[], Tensor]:
    """The points of each voxel, up to ``most``, listed by spconv; their mean, in the order of our voxels."""
    from spconv.pytorch.utils import PointToVoxel

    bounds = [*grid.lower, *grid.upper]
    sort = PointToVoxel(list(grid.voxel_size), bounds, cloud.shape[1], voxels, most)
    _, y, z = grid.shape

    def run() -> Tensor:
        listed, index_zyx, counts = sort(cloud)
        mean = listed.sum(dim=1) / counts[:, None]
        key = (index_zyx[:, 2].long() * y + index_zyx[:, 1]) * z + index_zyx[:, 0]
        return mean[key.argsort()]

    return run


def sparse_conv_cases(given: Setting) -> Iterator[Case]:
    """Every convolution shape of the official encoder, on its own voxels."""
    cloud, grid = given.cloud, given.size.lidar_grid
    volume = voxelize((cloud,), grid.lower, grid.voxel_size, grid.shape)
    widths = LidarEncoderConfig(grid=grid).stage_channels
    for stage, width in enumerate(widths):
        volume = volume.with_features(torch.randn(len(volume.coords_M4), width, device=given.device))
        if stage == 1 or not given.short:
            yield submanifold_case(volume, width, backward=False)
            yield submanifold_case(volume, width, backward=True)
        if stage + 1 < len(widths):
            weight = torch.randn(widths[stage + 1], *KERNEL, width, device=given.device) * 0.05
            if stage == 1 or not given.short:
                yield strided_case(volume, weight)
            volume = sparse_conv3d(volume, weight, 2, 1)


def backends() -> list[tuple[str, str, str, int | None]]:
    """(label, kind, backend, threads); spconv is correct on a CPU with one thread only."""
    ours = [("ours", "ours", "torch", None)]
    threads = None if torch.cuda.is_available() else 1
    return [*ours, ("spconv", "alternative", "spconv", threads)] if installed("spconv") else ours


def submanifold_case(volume: SparseVolume, width: int, backward: bool) -> Case:
    """Two convolutions over the same voxels, finding neighbours included: a stage of the encoder without its norms."""
    weights = [
        (torch.randn(width, *KERNEL, width, device=volume.features_MC.device) * 0.05).requires_grad_(backward)
        for _ in range(CONVOLUTIONS)
    ]
    volume = volume.with_features(volume.features_MC.clone().requires_grad_(backward))

    def planned(backend: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            result, plan = volume, plan_submanifold_conv3d(volume, KERNEL, backend)
            for weight in weights:
                result = submanifold_conv3d(result, weight, plan, backend)
            return result.features_MC

        return run

    def searched() -> Tensor:
        result = volume
        for weight in weights:
            result = submanifold_by_searches(result, weight)
        return result.features_MC

    candidates = [
        Candidate(label=label, kind=kind, run=planned(backend), threads=threads)
        for label, kind, backend, threads in backends()
    ]
    candidates.append(Candidate(label="27 searches a convolution", kind="baseline", run=searched))
    plan = plan_submanifold_conv3d(volume, KERNEL, "torch")
    assert isinstance(plan, Rulebook), "backend torch makes rulebooks"
    pairs, rows = sum(map(len, plan.in_rows)), len(volume.coords_M4)
    # Forward: one product a pair. Backward: one for the features and one for the weight.
    operations = CONVOLUTIONS * 2 * pairs * width * width * (3 if backward else 1)
    features = CONVOLUTIONS * 2 * rows * width * (2 if backward else 1)
    leaves = [volume.features_MC, *weights]
    return Case(
        op="sparse_conv",
        name=f"2 submanifold convolutions of {width}, {rows:,} voxels{', with backward' if backward else ''}",
        candidates=with_backward(candidates, leaves) if backward else tuple(candidates),
        work=Work(bytes=4 * features + 8 * rows, operations=operations),
        tolerance=1e-4,
    )


def strided_case(volume: SparseVolume, weight: Tensor) -> Case:
    """Index tables included: each strided convolution makes its own."""

    def convolve(backend: str) -> Callable[[], Tensor]:
        return lambda: sparse_conv3d(volume, weight, 2, 1, backend).features_MC

    candidates = [
        Candidate(label=label, kind=kind, run=convolve(backend), threads=threads)
        for label, kind, backend, threads in backends()
    ]
    result = sparse_conv3d(volume, weight, 2, 1, "torch")
    outputs, width_in, width_out = len(result.coords_M4), weight.shape[4], weight.shape[0]
    pairs = sum(map(len, strided_rulebook(volume, KERNEL, (2, 2, 2), (1, 1, 1)).in_rows))
    rows = len(volume.coords_M4)
    return Case(
        op="sparse_conv",
        name=f"strided convolution {width_in} to {width_out}, {rows:,} voxels",
        candidates=tuple(candidates),
        work=Work(
            bytes=4 * (rows * width_in + outputs * width_out) + 8 * (rows + outputs),
            operations=2 * pairs * width_in * width_out,
        ),
        tolerance=1e-4,
    )


def encoder_cases(given: Setting) -> Iterator[Case]:
    """The whole LiDAR branch of the official model, points to dense volume."""
    if given.short:
        return
    candidates, weights = [], None
    for label, kind, backend, threads in backends():
        encoder = (
            SparseLidarEncoder(LidarEncoderConfig(grid=given.size.lidar_grid, backend=backend)).eval().to(given.device)
        )
        weights = weights or encoder.state_dict()
        encoder.load_state_dict(weights)

        @torch.no_grad()
        def run(encoder: SparseLidarEncoder = encoder) -> Tensor:
            volume: Tensor = encoder((given.cloud,))
            return volume

        candidates.append(Candidate(label=label, kind=kind, run=run, threads=threads))
    dense = candidates[0].run()
    yield Case(
        op="encoder",
        name=f"LiDAR encoder of fusionocc-base, {len(given.cloud):,} points",
        candidates=tuple(candidates),
        work=Work(bytes=4 * (given.cloud.numel() + dense.numel()), operations=encoder_operations(given)),
        tolerance=1e-3,
    )


def encoder_operations(given: Setting) -> float:
    """Multiply-adds of the matrix products, twice."""
    config = LidarEncoderConfig(grid=given.size.lidar_grid, backend="torch")
    encoder = SparseLidarEncoder(config).eval().to(given.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads also multiply zeros
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder((given.cloud,))
    torch.set_num_threads(threads)
    return counter.get_total_flops()


def scatter_cases(given: Setting) -> Iterator[Case]:
    """Rows of 16 channels into half as many segments."""
    rows, channels = given.size.scattered, 16
    index = torch.randint(0, rows // 2, (rows,), device=given.device)
    ops = (("mean", scatter_mean), ("maximum", scatter_max))
    for (name, op), backward in product(ops, (False,) if given.short else (False, True)):
        values = torch.randn(rows, channels, device=given.device).requires_grad_(backward)
        candidates = []
        for label, kind, backend in (("ours", "ours", "torch"), ("torch-scatter", "alternative", "torch_scatter")):
            if kind == "ours" or installed("torch-scatter"):

                def run(backend: str = backend, values: Tensor = values, op: Callable[..., Tensor] = op) -> Tensor:
                    return op(values, index, rows // 2, backend)

                candidates.append(Candidate(label=label, kind=kind, run=run))
        moved = 4 * channels * (rows + rows // 2) * (2 if backward else 1) + 8 * rows
        yield Case(
            op="scatter",
            name=f"scatter {name}, {rows:,} rows of {channels}{', with backward' if backward else ''}",
            candidates=with_backward(candidates, [values]) if backward else tuple(candidates),
            work=Work(bytes=moved, operations=rows * channels * (2 if backward else 1)),
            # Where rows share a maximum the gradients differ; random rows do not.
        )

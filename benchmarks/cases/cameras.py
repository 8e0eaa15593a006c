"""Lift-splat pooling, and label maps of pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from baselines.bev_pool import pool_by_cumsum
from baselines.imgseg import paint_point_by_point
from floors import Work
from imgseg import made_up_keyframe
from machine import installed
from op_inputs import OFFICIAL, frustum_voxels
from timing import Candidate
from torch import Tensor

from cases.case import Case, Setting, with_backward
from fusionocc_core.data.imgseg import paint_pictures
from fusionocc_core.ops.bev_pool import BevPoolPlan, bev_pool, plan_bev_pool


def bev_pool_cases(given: Setting) -> Iterator[Case]:
    """Pooling at the size of the official model, with its 32 channels."""
    voxels = frustum_voxels(given.size).to(given.device)
    shape = given.size.grid.shape_zyx
    plan = plan_bev_pool(voxels, shape)
    cameras, _, rows, columns = given.size.frustum
    channels, points = 32, len(plan.voxels_P)
    for backward in (False, True):
        depth = torch.rand(plan.frustum_shape, device=given.device).requires_grad_(backward)
        feat = torch.randn(1, cameras, channels, rows, columns, device=given.device).requires_grad_(backward)
        candidates = pool_candidates(depth, feat, voxels, plan, alone=backward)
        volume = 4 * channels * plan.starts_V1.numel()
        read = 4 * (points + feat.numel())
        # Backward: the gradient of the volume in, those of depth and features out, two products a point and channel.
        moved = read + 8 * points + volume + (volume + read + 4 * points if backward else 0)
        yield Case(
            op="bev_pool",
            name=f"BEV pooling, {points:,} points, {channels} channels{', with backward' if backward else ''}",
            candidates=with_backward(candidates, [depth, feat]) if backward else tuple(candidates),
            work=Work(bytes=moved, operations=2 * points * channels * (3 if backward else 1)),
            tolerance=1e-3,  # of the differences of cumulative sums; ours are within 1e-6 of each other
        )


def pool_candidates(depth: Tensor, feat: Tensor, voxels: Tensor, plan: BevPoolPlan, *, alone: bool) -> list[Candidate]:
    """Ours with a plan that is kept and one that is made anew, the published way, a sparse matrix, numba."""
    shape = plan.shape_zyx
    candidates = [
        Candidate(label="ours, calibration kept", kind="ours", run=lambda: bev_pool(depth, feat, plan)),
        Candidate(
            label="ours, calibration anew",
            kind="other",
            run=lambda: bev_pool(depth, feat, plan_bev_pool(voxels, shape)),
        ),
        Candidate(
            label="sort and cumsum (LSS)", kind="baseline", run=lambda: pool_by_cumsum(depth, feat, voxels, shape)
        ),
        Candidate(label="index_add", kind="alternative", run=lambda: bev_pool(depth, feat, plan, "index_add")),
    ]
    if not alone:
        candidates.append(Candidate(label="sparse matrix (CSR)", kind="alternative", run=csr_pool(depth, feat, plan)))
    if not alone and installed("numba") and depth.device.type == "cpu":
        candidates.append(Candidate(label="numba", kind="alternative", run=numba_pool(depth, feat, plan)))
    return candidates


def csr_pool(depth: Tensor, feat: Tensor, plan: BevPoolPlan) -> Callable[[], Tensor]:
    """A sparse matrix of the depths times the features; its gradient would be dense."""
    b, _, _, _, _ = plan.frustum_shape
    channels, rows = feat.shape[2], feat.shape[0] * feat.shape[1] * feat.shape[3] * feat.shape[4]

    def run() -> Tensor:
        values = depth.flatten()[plan.depth_rows_P]
        size = (plan.starts_V1.numel() - 1, rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the format is in beta
            matrix = torch.sparse_csr_tensor(plan.starts_V1, plan.feat_rows_P, values, size)
        volume = matrix @ feat.permute(0, 1, 3, 4, 2).reshape(-1, channels)
        return volume.view(b, *plan.shape_zyx, channels).permute(0, 4, 1, 2, 3)

    return run


def numba_pool(depth: Tensor, feat: Tensor, plan: BevPoolPlan) -> Callable[[], Tensor]:
    """A compiled loop over the voxels, spread over PyTorch's number of threads."""
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def pool(depth, feat, depth_rows, feat_rows, starts, out):  # type: ignore[no-untyped-def]
        for voxel in numba.prange(len(starts) - 1):
            for point in range(starts[voxel], starts[voxel + 1]):
                share, row = depth[depth_rows[point]], feat_rows[point]
                for channel in range(feat.shape[1]):
                    out[voxel, channel] += share * feat[row, channel]

    tables = [t.numpy() for t in (plan.depth_rows_P, plan.feat_rows_P, plan.starts_V1)]
    b, channels = plan.frustum_shape[0], feat.shape[2]

    def run() -> Tensor:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        out = np.zeros((len(tables[2]) - 1, channels), np.float32)
        rows = feat.permute(0, 1, 3, 4, 2).reshape(-1, channels).numpy()
        pool(depth.flatten().numpy(), rows, *tables, out)
        return torch.from_numpy(out).view(b, *plan.shape_zyx, channels).permute(0, 4, 1, 2, 3)

    return run


def imgseg_cases(given: Setting) -> Iterator[Case]:
    """Label maps of six pictures."""
    if given.device != "cpu":
        return
    points, classes, lidar, cameras = made_up_keyframe()
    if given.size is not OFFICIAL:
        points, classes = points[::50], classes[::50]

    def candidate(label: str, kind: str, paint: Callable[..., list[np.ndarray]]) -> Candidate:
        return Candidate(
            label=label,
            kind=kind,
            run=lambda: torch.from_numpy(np.stack(paint(points, classes, lidar, cameras))),
        )

    cells = sum(-(-c.width // 8) * -(-c.height // 8) for c in cameras)
    yield Case(
        op="imgseg",
        name=f"label maps of {len(cameras)} pictures, {len(points):,} points",
        candidates=(
            candidate("ours", "ours", paint_pictures),
            candidate("point by point", "baseline", paint_point_by_point),
        ),
        # Every point is tried in every picture: a row of its z, and two of its column.
        work=Work(bytes=13 * len(points) + cells, operations=12 * len(points) * len(cameras)),
        tolerance=0.0,
    )

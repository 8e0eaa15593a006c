"""BEV pooling in Triton kernels: the sums of bev_pool over the same plan, for CUDA and float32.

One program a voxel (or, backward, an image position or a block of points) adds up its own points in their order, so
that nothing is added atomically and results repeat bit by bit. Weights and features are read where they lie: no list
of weighted points is written down. Triton's interpreter (TRITON_INTERPRET=1) runs the kernels on a CPU, for tests.

In kernels: K points at a time, C channels (padded to a power of two).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

    from fusionocc_core.ops.bev_pool import BevPoolPlan

AT_ONCE = 16
"""Points of a voxel that a program works on at a time."""
BLOCK = 64
"""Points whose depths one program of the backward pass works on."""


def weighted_sums(
    weight_R: Tensor, table_RC: Tensor, weight_rows_P: Tensor, table_rows_P: Tensor, starts_S1: Tensor
) -> Tensor:
    """(S, C) float32: of each segment of points, the sum of weight times row of the table."""
    out_SC = table_RC.new_zeros(len(starts_S1) - 1, table_RC.shape[1])
    filled_L = (starts_S1.diff() > 0).nonzero()[:, 0]
    if len(filled_L):
        channels = table_RC.shape[1]
        _kernels()[0][(len(filled_L),)](
            weight_R, table_RC, weight_rows_P, table_rows_P, starts_S1, filled_L, out_SC,
            channels, K=AT_ONCE, C=_padded(channels),
        )  # fmt: skip
    return out_SC


def depth_gradient(depth_R: Tensor, feat_RC: Tensor, grad_VC: Tensor, plan: BevPoolPlan) -> Tensor:
    """(R,) float32: of every depth, zero where no point of the grid is."""
    grad_depth_R = torch.zeros_like(depth_R)
    points, channels = len(plan.depth_rows_P), feat_RC.shape[1]
    if points:
        _kernels()[1][(-(-points // BLOCK),)](
            feat_RC, grad_VC, plan.depth_rows_P, plan.feat_rows_P, plan.voxels_P, grad_depth_R,
            points, channels, K=BLOCK, C=_padded(channels),
        )  # fmt: skip
    return grad_depth_R


def _padded(channels: int) -> int:
    return 1 << max(channels - 1, 0).bit_length()


@functools.cache
def _kernels() -> tuple[Any, Any]:
    """The kernels, compiled at their first call; importing this module must not need Triton."""
    global tl
    import triton
    import triton.language

    tl = triton.language
    return triton.jit(_sum_kernel), triton.jit(_depth_kernel)


def _sum_kernel(  # type: ignore[no-untyped-def]
    weights, table, weight_rows, table_rows, starts, filled, out, channels, K: tl.constexpr, C: tl.constexpr
):
    """The sum of one segment that has points."""
    segment = tl.load(filled + tl.program_id(0))
    start, end = tl.load(starts + segment), tl.load(starts + segment + 1)
    column = tl.arange(0, C)
    used = column < channels
    total = tl.zeros((C,), dtype=tl.float32)
    for first in range(start, end, K):
        k = first + tl.arange(0, K)
        here = k < end
        weight = tl.load(weights + tl.load(weight_rows + k, mask=here, other=0), mask=here, other=0.0)
        row = tl.load(table_rows + k, mask=here, other=0).to(tl.int64)
        told = tl.load(table + row[:, None] * channels + column[None, :], mask=here[:, None] & used[None, :], other=0.0)
        total += tl.sum(weight[:, None] * told, axis=0)
    tl.store(out + segment.to(tl.int64) * channels + column, total, mask=used)


def _depth_kernel(  # type: ignore[no-untyped-def]
    feat, grad, depth_rows, feat_rows, voxels, grad_depth, points, channels, K: tl.constexpr, C: tl.constexpr
):
    """Gradients of the depths of K points, each of which is that of one point alone."""
    k = tl.program_id(0) * K + tl.arange(0, K)
    here = k < points
    column = tl.arange(0, C)
    used = here[:, None] & (column < channels)[None, :]
    row = tl.load(feat_rows + k, mask=here, other=0).to(tl.int64)
    voxel = tl.load(voxels + k, mask=here, other=0).to(tl.int64)
    told = tl.load(feat + row[:, None] * channels + column[None, :], mask=used, other=0.0)
    pulled = tl.load(grad + voxel[:, None] * channels + column[None, :], mask=used, other=0.0)
    tl.store(grad_depth + tl.load(depth_rows + k, mask=here, other=0), tl.sum(told * pulled, axis=1), mask=here)

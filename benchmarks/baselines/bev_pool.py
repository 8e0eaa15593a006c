"""Lift-splat pooling by sorting and cumulative sums (Philion and Fidler, ECCV 2020).

Shape suffixes as in fusionocc_core.ops.bev_pool; G groups, that is voxels with a point in them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusionocc_core.ops.sparse_volume import Shape3


def pool_by_cumsum(depth_BNDhw: Tensor, feat_BNChw: Tensor, voxel_BNDhw3: Tensor, shape_zyx: Shape3) -> Tensor:
    """Every step in every call: the frustum's features are written down, filtered, sorted and summed.

    Args:
        depth_BNDhw: weight of each frustum point.
        feat_BNChw: feature of each image position.
        voxel_BNDhw3: integer (ix, iy, iz); points outside the grid are left out.
        shape_zyx: voxels along z, y, x.

    Returns:
        (B, C, Z, Y, X); differentiable in depth and features. A sum is the difference of two cumulative sums over
        all points, so its rounding error is that of the largest of them.
    """
    b, channels = len(depth_BNDhw), feat_BNChw.shape[2]
    z, y, x = shape_zyx
    points_PC = (depth_BNDhw.unsqueeze(5) * feat_BNChw.permute(0, 1, 3, 4, 2).unsqueeze(2)).flatten(0, 4)
    sample_P = torch.arange(b, device=depth_BNDhw.device).repeat_interleave(depth_BNDhw[0].numel())
    ix_P, iy_P, iz_P = voxel_BNDhw3.reshape(-1, 3).long().unbind(1)
    inside_P = (ix_P >= 0) & (ix_P < x) & (iy_P >= 0) & (iy_P < y) & (iz_P >= 0) & (iz_P < z)
    rank_P = (((sample_P * z + iz_P) * y + iy_P) * x + ix_P)[inside_P]
    order_P = rank_P.argsort(stable=True)
    sums_GC, rank_G = _SumOfGroups.apply(points_PC[inside_P][order_P], rank_P[order_P])
    volume_VC = points_PC.new_zeros(b * z * y * x, channels).index_copy(0, rank_G, sums_GC)
    return volume_VC.view(b, z, y, x, channels).permute(0, 4, 1, 2, 3)


class _SumOfGroups(torch.autograd.Function):
    """Rows of the same rank summed; the gradient of a sum goes to each of its rows, without that of the cumsum."""

    @staticmethod
    def forward(ctx: Any, rows_PC: Tensor, rank_P: Tensor) -> tuple[Tensor, Tensor]:
        last_P = torch.ones_like(rank_P, dtype=torch.bool)
        last_P[:-1] = rank_P[1:] != rank_P[:-1]
        ctx.save_for_backward(last_P)
        until_GC = rows_PC.cumsum(0)[last_P]
        sums_GC = torch.cat([until_GC[:1], until_GC[1:] - until_GC[:-1]])
        rank_G = rank_P[last_P]
        ctx.mark_non_differentiable(rank_G)
        return sums_GC, rank_G

    @staticmethod
    def backward(ctx: Any, grad_GC: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (last_P,) = ctx.saved_tensors
        group_P = last_P.cumsum(0) - last_P.long()
        return grad_GC[group_P], None

"""Lift-splat pooling: features of camera frustums summed into voxels.

Shape suffixes: B batch, N cameras, D depth bins, h w feature map, C channels, Z Y X voxels, P frustum points inside the
grid (sorted by voxel), V = B * Z * Y * X voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fusionocc_core.ops.sparse_volume import Shape3
from fusionocc_core.ops.triton_device import unavailable

BACKENDS = ("auto", "embedding_bag", "index_add", "triton")


CHUNK_POINTS = 16_384
"""Whose features the backward pass writes down at a time: they fit a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class PointsByFeature:
    """The points of a plan, image position after image position; F = B * N * h * w of these."""

    depth_rows_P: Tensor
    """(P,) integer position in depth (B, N, D, h, w), flattened."""
    voxels_P: Tensor
    """(P,) integer position in the volume (B, Z, Y, X), flattened."""
    starts_F1: Tensor
    """(F + 1,) integer: points of image position f are starts[f] to starts[f + 1]."""


@dataclass(frozen=True, kw_only=True)
class BevPoolPlan:
    """Which frustum point falls into which voxel. Depends on calibration alone: keep it while that does not change."""

    depth_rows_P: Tensor
    """(P,) integer position in depth (B, N, D, h, w), flattened."""
    feat_rows_P: Tensor
    """(P,) integer position in features (B, N, h, w), flattened."""
    voxels_P: Tensor
    """(P,) int64 position in the volume (B, Z, Y, X), flattened; not decreasing."""
    starts_V1: Tensor
    """(V + 1,) integer: points of voxel v are starts[v] to starts[v + 1]."""
    frustum_shape: tuple[int, int, int, int, int]
    """(B, N, D, h, w)."""
    shape_zyx: Shape3
    """Voxels along z, y, x."""

    @cached_property
    def by_feature(self) -> PointsByFeature:
        """The same points for the backward pass, which sums over those of each feature."""
        b, n, _, h, w = self.frustum_shape
        order_P = self.feat_rows_P.argsort(stable=True)
        counts_F = torch.bincount(self.feat_rows_P, minlength=b * n * h * w)
        return PointsByFeature(
            depth_rows_P=self.depth_rows_P[order_P],
            voxels_P=self.voxels_P[order_P].to(self.starts_V1.dtype),
            starts_F1=F.pad(counts_F.cumsum(0), (1, 0)).to(self.starts_V1.dtype),
        )

    def to(self, device: torch.device | str) -> BevPoolPlan:
        """The same plan on another device."""
        return BevPoolPlan(
            depth_rows_P=self.depth_rows_P.to(device),
            feat_rows_P=self.feat_rows_P.to(device),
            voxels_P=self.voxels_P.to(device),
            starts_V1=self.starts_V1.to(device),
            frustum_shape=self.frustum_shape,
            shape_zyx=self.shape_zyx,
        )


def plan_bev_pool(voxel_BNDhw3: Tensor, shape_zyx: Shape3, valid_BNDhw: Tensor | None = None) -> BevPoolPlan:
    """Sort frustum points by voxel.

    Args:
        voxel_BNDhw3: (B, N, D, h, w, 3) integer voxel indices (ix, iy, iz); points outside the grid are left out.
        shape_zyx: voxels along z, y, x.
        valid_BNDhw: optional bool; False leaves a point out as well.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    if voxel_BNDhw3.ndim != 6 or voxel_BNDhw3.shape[-1] != 3 or voxel_BNDhw3.is_floating_point():
        raise ValueError(
            f"plan_bev_pool: voxel is {voxel_BNDhw3.dtype} {tuple(voxel_BNDhw3.shape)}; expected integers "
            "(B, N, D, h, w, 3) = (ix, iy, iz): round the points to voxels first"
        )
    b, n, d, h, w = frustum_shape = tuple(voxel_BNDhw3.shape[:5])
    if valid_BNDhw is not None and valid_BNDhw.shape != frustum_shape:
        raise ValueError(f"plan_bev_pool: valid is {tuple(valid_BNDhw.shape)}, expected {frustum_shape} as voxel")
    z, y, x = shape_zyx
    size_3 = torch.tensor((x, y, z), device=voxel_BNDhw3.device)
    inside_BNDhw = ((voxel_BNDhw3 >= 0) & (voxel_BNDhw3 < size_3)).all(dim=-1)
    if valid_BNDhw is not None:
        inside_BNDhw = inside_BNDhw & valid_BNDhw

    depth_rows_P = inside_BNDhw.flatten().nonzero().squeeze(1)
    ix_P, iy_P, iz_P = voxel_BNDhw3.reshape(-1, 3)[depth_rows_P].long().unbind(1)
    camera_P = depth_rows_P // (d * h * w)
    voxels_P = (((camera_P // n) * z + iz_P) * y + iy_P) * x + ix_P
    voxels_P, order_P = voxels_P.sort(stable=True)
    depth_rows_P = depth_rows_P[order_P]
    feat_rows_P = camera_P[order_P] * (h * w) + depth_rows_P % (h * w)
    counts_V = torch.bincount(voxels_P, minlength=b * z * y * x)
    starts_V1 = F.pad(counts_V.cumsum(0), (1, 0))
    # embedding_bag is fastest on int32, and the largest rig is far below its range.
    rows = torch.int32 if max(b * n * d * h * w, b * z * y * x) < 2**31 else torch.int64
    return BevPoolPlan(
        depth_rows_P=depth_rows_P.to(rows),
        feat_rows_P=feat_rows_P.to(rows),
        voxels_P=voxels_P,
        starts_V1=starts_V1.to(rows),
        frustum_shape=(b, n, d, h, w),
        shape_zyx=shape_zyx,
    )


def bev_pool(depth_BNDhw: Tensor, feat_BNChw: Tensor, plan: BevPoolPlan, backend: str = "auto") -> Tensor:
    """Sum depth probability times feature over the frustum points of each voxel (Philion and Fidler, ECCV 2020).

    Half-precision inputs are summed in float32; the result has the wider dtype of the two inputs.

    Args:
        depth_BNDhw: (B, N, D, h, w) weight of each frustum point.
        feat_BNChw: (B, N, C, h, w) feature of each image position.
        plan: from :func:`plan_bev_pool` for the same B, N, D, h, w.
        backend: "embedding_bag" (what "auto" takes: fastest, no intermediate the size of the frustum), "index_add"
            (the readable form; it exports to ONNX, where embedding_bag becomes a loop), or "triton" (kernels for CUDA,
            see bev_pool_triton.py; not yet run on a GPU, which is why "auto" does not take them).

    Returns:
        (B, C, Z, Y, X) in channels_last_3d memory format; differentiable in depth and features.

    Raises:
        ValueError: inputs that do not fit the plan, an unknown backend, or one that cannot run here.
    """
    b, n, _, h, w = plan.frustum_shape
    if tuple(depth_BNDhw.shape) != plan.frustum_shape:
        raise ValueError(f"bev_pool: depth is {tuple(depth_BNDhw.shape)}, the plan was made for {plan.frustum_shape}")
    channels = feat_BNChw.shape[2] if feat_BNChw.ndim == 5 else 0
    if tuple(feat_BNChw.shape) != (b, n, channels, h, w):
        raise ValueError(f"bev_pool: feat is {tuple(feat_BNChw.shape)}, the plan was made for {(b, n, 'C', h, w)}")
    if backend not in BACKENDS:
        raise ValueError(f"bev_pool: backend={backend!r}; expected one of {BACKENDS}")
    if backend == "triton" and (problem := unavailable(depth_BNDhw.device.type)):
        raise ValueError(f"bev_pool: backend='triton': {problem}; take backend='auto'")

    dtype = torch.promote_types(depth_BNDhw.dtype, feat_BNChw.dtype)
    sum_dtype = torch.promote_types(dtype, torch.float32)
    if backend == "triton" and sum_dtype != torch.float32:
        raise ValueError(f"bev_pool: backend='triton' sums in float32, the inputs are {dtype}; take backend='auto'")
    depth_R = depth_BNDhw.flatten().to(sum_dtype)
    feat_RC = feat_BNChw.permute(0, 1, 3, 4, 2).reshape(-1, channels).to(sum_dtype)
    return _POOLS[backend](depth_R, feat_RC, plan).to(dtype).view(b, *plan.shape_zyx, channels).permute(0, 4, 1, 2, 3)


def _pool_index_add(depth_R: Tensor, feat_RC: Tensor, plan: BevPoolPlan) -> Tensor:
    weighted_PC = depth_R[plan.depth_rows_P].unsqueeze(1) * feat_RC[plan.feat_rows_P]
    return feat_RC.new_zeros(len(plan.starts_V1) - 1, feat_RC.shape[1]).index_add(0, plan.voxels_P, weighted_PC)


def _pool_embedding_bag(depth_R: Tensor, feat_RC: Tensor, plan: BevPoolPlan) -> Tensor:
    if torch.is_grad_enabled() and (depth_R.requires_grad or feat_RC.requires_grad):
        volume_VC: Tensor = _Pool.apply(depth_R, feat_RC, plan, _weighted_sums, _depth_gradient)
        return volume_VC
    return _weighted_sums(depth_R, feat_RC, plan.depth_rows_P, plan.feat_rows_P, plan.starts_V1)


def _pool_triton(depth_R: Tensor, feat_RC: Tensor, plan: BevPoolPlan) -> Tensor:
    from fusionocc_core.ops.bev_pool_triton import depth_gradient, weighted_sums

    volume_VC: Tensor = _Pool.apply(depth_R.contiguous(), feat_RC.contiguous(), plan, weighted_sums, depth_gradient)
    return volume_VC


_POOLS = {
    "auto": _pool_embedding_bag,
    "embedding_bag": _pool_embedding_bag,
    "index_add": _pool_index_add,
    "triton": _pool_triton,
}


class _Pool(torch.autograd.Function):
    """Sums forward and backward: embedding_bag's own backward pass would sort the points in every call."""

    @staticmethod
    def forward(
        ctx: Any,
        depth_R: Tensor,
        feat_RC: Tensor,
        plan: BevPoolPlan,
        sums: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
        depth_gradient: Callable[[Tensor, Tensor, Tensor, BevPoolPlan], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(depth_R, feat_RC)
        ctx.plan, ctx.sums, ctx.depth_gradient = plan, sums, depth_gradient
        return sums(depth_R, feat_RC, plan.depth_rows_P, plan.feat_rows_P, plan.starts_V1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_VC: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        depth_R, feat_RC = ctx.saved_tensors
        plan: BevPoolPlan = ctx.plan
        grad_VC, grad_depth_R, grad_feat_RC = grad_VC.contiguous(), None, None
        if ctx.needs_input_grad[0]:
            grad_depth_R = ctx.depth_gradient(depth_R, feat_RC, grad_VC, plan)
        if ctx.needs_input_grad[1]:
            points = plan.by_feature
            grad_feat_RC = ctx.sums(depth_R, grad_VC, points.depth_rows_P, points.voxels_P, points.starts_F1)
        return grad_depth_R, grad_feat_RC, None, None, None


def _weighted_sums(
    weight_R: Tensor, table_RC: Tensor, weight_rows_P: Tensor, table_rows_P: Tensor, starts_S1: Tensor
) -> Tensor:
    return F.embedding_bag(
        table_rows_P,
        table_RC,
        starts_S1,
        mode="sum",
        per_sample_weights=weight_R[weight_rows_P],
        include_last_offset=True,
    )


def _depth_gradient(depth_R: Tensor, feat_RC: Tensor, grad_VC: Tensor, plan: BevPoolPlan) -> Tensor:
    grad_depth_R = torch.zeros_like(depth_R)  # where no point of the grid is
    parts = (rows.split(CHUNK_POINTS) for rows in (plan.depth_rows_P, plan.feat_rows_P, plan.voxels_P))
    for depth_rows, feat_rows, voxels in zip(*parts, strict=True):
        products = feat_RC.index_select(0, feat_rows).mul_(grad_VC.index_select(0, voxels))
        grad_depth_R[depth_rows] = products.sum(dim=1)  # a depth belongs to one point
    return grad_depth_R

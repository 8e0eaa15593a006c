"""Voxelisation in Triton kernels: the same voxels and means as ``voxelize``, for CUDA and float32.

One program finds the voxels of a block of points, and after sorting one program a voxel adds up its own points where
they lie: nothing is added atomically and results repeat bit by bit. Triton's interpreter (TRITON_INTERPRET=1) runs the
kernels on a CPU, for tests.

Shape suffixes: P points, C columns, M active voxels. In the kernel: K points at a time.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fusionocc_core.ops.bev_pool_triton import weighted_sums

if TYPE_CHECKING:
    import triton.language as tl

    from fusionocc_core.ops.sparse_volume import Shape3

    Vector3 = tuple[float, float, float]

BLOCK = 256
"""Points whose voxels one program finds."""
OUTSIDE = -1
"""Key of points outside of the grid."""


def voxel_means(
    cloud_PC: Tensor, batch_P: Tensor, grid_lower: Vector3, voxel_size: Vector3, shape_xyz: Shape3
) -> tuple[Tensor, Tensor]:
    """Keys (M,) of the voxels that hold points, ascending, and the means (M, C) of these.

    Args:
        cloud_PC: float32, all clouds after each other; the first three columns are x, y, z.
        batch_P: int64, the sample of each point.
        grid_lower: see ``voxelize``, like the next two.
        voxel_size: likewise.
        shape_xyz: likewise.
    """
    keys_P, order_P = point_keys(cloud_PC.detach(), batch_P, grid_lower, voxel_size, shape_xyz).sort(stable=True)
    inside_P = keys_P > OUTSIDE
    keys_M, voxel_P, counts_M = torch.unique_consecutive(keys_P[inside_P], return_inverse=True, return_counts=True)
    means_MC: Tensor = _Means.apply(cloud_PC.contiguous(), order_P[inside_P], voxel_P, counts_M)
    return keys_M, means_MC


def point_keys(
    cloud_PC: Tensor, batch_P: Tensor, grid_lower: Vector3, voxel_size: Vector3, shape_xyz: Shape3
) -> Tensor:
    """(P,) int64: place of each point's voxel in (B, X, Y, Z), flattened; OUTSIDE where there is none."""
    keys_P = torch.empty_like(batch_P)
    if len(cloud_PC):
        _kernel()[(-(-len(cloud_PC) // BLOCK),)](
            cloud_PC.contiguous(), batch_P, keys_P, len(cloud_PC), cloud_PC.shape[1],
            *grid_lower, *voxel_size, *shape_xyz, OUT=OUTSIDE, K=BLOCK,
        )  # fmt: skip
    return keys_P


class _Means(torch.autograd.Function):
    """The mean of the points of each voxel; backward every point gets its share of its voxel's gradient."""

    @staticmethod
    def forward(ctx: Any, cloud_PC: Tensor, order_P: Tensor, voxel_P: Tensor, counts_M: Tensor) -> Tensor:
        share_M = counts_M.to(cloud_PC.dtype).reciprocal()
        ctx.save_for_backward(order_P, voxel_P, share_M)
        ctx.points = len(cloud_PC)
        return weighted_sums(share_M, cloud_PC, voxel_P, order_P, F.pad(counts_M.cumsum(0), (1, 0)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MC: Tensor) -> tuple[Tensor, None, None, None]:
        order_P, voxel_P, share_M = ctx.saved_tensors
        grad_PC = grad_MC.new_zeros(ctx.points, grad_MC.shape[1])
        grad_PC[order_P] = (grad_MC * share_M[:, None])[voxel_P]
        return grad_PC, None, None, None


@functools.cache
def _kernel() -> Any:
    """The kernel, compiled at its first call; importing this module must not need Triton."""
    global tl
    import triton
    import triton.language

    tl = triton.language
    return triton.jit(_key_kernel)


def _key_kernel(  # type: ignore[no-untyped-def]
    cloud, batch, keys, points, columns,
    lower_x, lower_y, lower_z, size_x, size_y, size_z, shape_x, shape_y, shape_z,
    OUT: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Keys of K points. The division is rounded as PyTorch rounds it: on faces of voxels that decides."""
    k = tl.program_id(0) * K + tl.arange(0, K)
    here = k < points
    first = cloud + k.to(tl.int64) * columns
    x = tl.floor(tl.div_rn(tl.load(first, mask=here, other=0.0) - lower_x, size_x))
    y = tl.floor(tl.div_rn(tl.load(first + 1, mask=here, other=0.0) - lower_y, size_y))
    z = tl.floor(tl.div_rn(tl.load(first + 2, mask=here, other=0.0) - lower_z, size_z))
    inside = (x >= 0) & (x < shape_x) & (y >= 0) & (y < shape_y) & (z >= 0) & (z < shape_z)
    row = tl.load(batch + k, mask=here, other=0) * shape_x + tl.where(inside, x, 0.0).to(tl.int64)
    column = row * shape_y + tl.where(inside, y, 0.0).to(tl.int64)
    key = column * shape_z + tl.where(inside, z, 0.0).to(tl.int64)
    tl.store(keys + k, tl.where(inside, key, OUT), mask=here)

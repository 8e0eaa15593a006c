"""Point clouds to voxels: the mean of the points in each.

Shape suffixes: P points, C columns, M active voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusionocc_core.ops.scatter import scatter_mean
from fusionocc_core.ops.sparse_volume import Shape3, SparseVolume, coords_from_keys
from fusionocc_core.ops.triton_device import unavailable

Vector3 = tuple[float, float, float]


BACKENDS = ("auto", "torch", "triton")


def voxelize(
    points: Sequence[Tensor], grid_lower: Vector3, voxel_size: Vector3, shape_xyz: Shape3, backend: str = "auto"
) -> SparseVolume:
    """Sort points into voxels; a voxel's features are the mean of all columns of its points.

    The voxel of a point is ``floor((xyz - grid_lower) / voxel_size)``, computed in float32 as in mmcv's voxelisation,
    so that points on a voxel's face fall on the same side as in networks trained with it. Points outside the grid (and
    any whose coordinates are not finite) are dropped. A sample without points has no voxels.

    Args:
        points: B clouds (P, C), float32; the first three columns are x, y, z in metres in the grid's frame.
        grid_lower: the outer corner of voxel (0, 0, 0), metres.
        voxel_size: edge lengths, metres.
        shape_xyz: voxels along x, y, z.
        backend: "torch" (what "auto" takes), or "triton" (kernels for CUDA and float32, see voxelize_triton.py; not yet
            run on a GPU, which is why "auto" does not take them).

    Returns:
        Volume with C channels; differentiable in the columns (not in which voxel a point belongs to).

    Raises:
        ValueError: no cloud at all, or clouds whose columns differ or are fewer than three; an unknown backend, or one
            that cannot run here.
    """
    _check(points, backend)
    cloud_PC = torch.cat(list(points))
    counts_B = torch.tensor([len(cloud) for cloud in points], device=cloud_PC.device)
    batch_P = torch.repeat_interleave(torch.arange(len(points), device=cloud_PC.device), counts_B)
    if backend == "triton":
        from fusionocc_core.ops.voxelize_triton import voxel_means
    else:
        voxel_means = _voxel_means
    keys_M, features_MC = voxel_means(cloud_PC, batch_P, grid_lower, voxel_size, shape_xyz)
    return SparseVolume(
        features_MC=features_MC,
        coords_M4=coords_from_keys(keys_M, shape_xyz),
        shape=shape_xyz,
        batch_size=len(points),
    )


def _check(points: Sequence[Tensor], backend: str) -> None:
    if not points:
        raise ValueError(
            "voxelize: points holds no cloud; expected one (P, C) tensor a sample, (0, C) where it is empty"
        )
    widths = {tuple(cloud.shape[1:]) for cloud in points}
    if len(widths) != 1 or len(width := widths.pop()) != 1 or width[0] < 3:
        raise ValueError(
            f"voxelize: clouds have shapes {[tuple(cloud.shape) for cloud in points]}; "
            "expected (P, C) each, with the same C of at least 3"
        )
    if backend not in BACKENDS:
        raise ValueError(f"voxelize: backend={backend!r}; expected one of {BACKENDS}")
    if backend == "triton" and (problem := unavailable(points[0].device.type)):
        raise ValueError(f"voxelize: backend='triton': {problem}; take backend='auto'")
    if backend == "triton" and points[0].dtype != torch.float32:
        raise ValueError(f"voxelize: backend='triton' takes float32, points are {points[0].dtype}; take backend='auto'")


def _voxel_means(
    cloud_PC: Tensor, batch_P: Tensor, grid_lower: Vector3, voxel_size: Vector3, shape_xyz: Shape3
) -> tuple[Tensor, Tensor]:
    """Keys (M,) of the voxels that hold points, ascending, and the means (M, C) of these."""
    xyz_P3 = cloud_PC[:, :3].detach().float()
    lower_3, size_3, shape_3 = (xyz_P3.new_tensor(v) for v in (grid_lower, voxel_size, shape_xyz))
    position_P3 = torch.floor((xyz_P3 - lower_3) / size_3)
    inside_P = ((position_P3 >= 0) & (position_P3 < shape_3)).all(dim=1)
    index_P3, batch_P, cloud_PC = position_P3[inside_P].long(), batch_P[inside_P], cloud_PC[inside_P]
    x_P, y_P, z_P = index_P3.unbind(1)
    keys_P = ((batch_P * shape_xyz[0] + x_P) * shape_xyz[1] + y_P) * shape_xyz[2] + z_P
    keys_M, voxel_P = torch.unique(keys_P, return_inverse=True)
    return keys_M, scatter_mean(cloud_PC, voxel_P, len(keys_M))

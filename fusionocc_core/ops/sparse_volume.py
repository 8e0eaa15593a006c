"""A voxel volume of which only the occupied voxels are stored.

Shape suffixes: M active voxels, C channels, B batch, X Y Z voxels of the grid, 4 = (b, ix, iy, iz).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

Shape3 = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class SparseVolume:
    """Features at the active voxels of a batch of grids; every other voxel counts as zero.

    Code that already knows its coordinates to be sorted, unique and inside the grid constructs the class itself;
    anything else goes through :func:`sparse_volume`, which checks and sorts.
    """

    features_MC: Tensor
    """(M, C) floating point."""
    coords_M4: Tensor
    """(M, 4) int64 (b, ix, iy, iz), unique and sorted in that order."""
    shape: Shape3
    """Voxels along x, y, z."""
    batch_size: int

    def with_features(self, features_MC: Tensor) -> SparseVolume:
        """The same voxels with other features (M, C')."""
        return replace(self, features_MC=features_MC)


def voxel_keys(coords_M4: Tensor, shape: Shape3) -> Tensor:
    """(M,) int64 position of voxels (b, ix, iy, iz) in a dense (B, X, Y, Z) array."""
    b, x, y, z = coords_M4.unbind(1)
    return ((b * shape[0] + x) * shape[1] + y) * shape[2] + z


def coords_from_keys(keys_M: Tensor, shape: Shape3) -> Tensor:
    """Inverse of :func:`voxel_keys`: (M, 4) int64 (b, ix, iy, iz)."""
    rest, z = keys_M // shape[2], keys_M % shape[2]
    rest, y = rest // shape[1], rest % shape[1]
    return torch.stack((rest // shape[0], rest % shape[0], y, z), dim=1)


def sparse_volume(features_MC: Tensor, coords_M4: Tensor, shape: Shape3, batch_size: int) -> SparseVolume:
    """Make a SparseVolume from voxels in any order.

    Args:
        features_MC: (M, C) floating point.
        coords_M4: (M, 4) integers (b, ix, iy, iz).
        shape: voxels along x, y, z.
        batch_size: how many grids; some may have no active voxel.

    Raises:
        ValueError: shapes that do not fit together, a voxel outside the grid, or one that occurs twice.
    """
    if features_MC.ndim != 2 or coords_M4.shape != (len(features_MC), 4):
        raise ValueError(
            f"sparse_volume: features {tuple(features_MC.shape)} and coords {tuple(coords_M4.shape)} do not fit; "
            "expected (M, C) and (M, 4)"
        )
    if batch_size < 1 or len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"sparse_volume: batch_size={batch_size} and shape={shape} must be positive, shape = (X, Y, Z)"
        )
    if coords_M4.is_floating_point():
        raise ValueError(f"sparse_volume: coords are {coords_M4.dtype}; expected integer voxel indices (b, ix, iy, iz)")
    coords_M4 = coords_M4.long()
    limits = torch.tensor((batch_size, *shape), device=coords_M4.device)
    outside = ((coords_M4 < 0) | (coords_M4 >= limits)).any(dim=1)
    if outside.any():
        first = coords_M4[outside][0].tolist()
        raise ValueError(
            f"sparse_volume: {int(outside.sum())} voxels lie outside batch_size={batch_size}, shape={shape}, "
            f"the first is (b, ix, iy, iz) = {first}; drop them or enlarge the grid"
        )
    keys_M, order_M = voxel_keys(coords_M4, shape).sort()
    twice = keys_M[1:] == keys_M[:-1]
    if twice.any():
        first = coords_M4[order_M[1:][twice][0]].tolist()
        raise ValueError(
            f"sparse_volume: {int(twice.sum())} voxels occur more than once, the first is (b, ix, iy, iz) = {first}; "
            "merge their features first (ops.voxelize does, for points)"
        )
    return SparseVolume(
        features_MC=features_MC[order_M], coords_M4=coords_M4[order_M], shape=shape, batch_size=batch_size
    )


def densify(volume: SparseVolume) -> Tensor:
    """Dense (B, C, Z, Y, X) of a SparseVolume, zero where no voxel is active. Differentiable in the features.

    The memory format is channels_last_3d (each voxel's channels lie together), which is how the features are stored and
    what CPU convolutions like best.
    """
    x, y, z = volume.shape
    channels = volume.features_MC.shape[1]
    b_M, x_M, y_M, z_M = volume.coords_M4.unbind(1)
    rows_M = ((b_M * z + z_M) * y + y_M) * x + x_M
    dense_VC = volume.features_MC.new_zeros(volume.batch_size * z * y * x, channels)
    dense_VC = dense_VC.index_copy(0, rows_M, volume.features_MC)
    return dense_VC.view(volume.batch_size, z, y, x, channels).permute(0, 4, 1, 2, 3)

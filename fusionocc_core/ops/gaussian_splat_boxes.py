"""Which voxels each Gaussian reaches: a box around its mean, beyond which it counts as zero.

Shape suffixes: G Gaussians, 3 = (x, y, z).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fusionocc_core.gaussians import Gaussians
from fusionocc_core.ops.sparse_volume import Shape3

BOXES = ("exact", "cube", "unrotated")


@dataclass(frozen=True, kw_only=True)
class SplatGrid:
    """The voxels that Gaussians are splatted into, in the Gaussians' frame."""

    lower: tuple[float, float, float]
    """Outer corner of voxel (0, 0, 0), metres."""
    voxel_size: tuple[float, float, float]
    """Edge lengths, metres."""
    shape_xyz: Shape3
    """Voxels along x, y, z."""

    def __post_init__(self) -> None:
        """Refuse grids without voxels."""
        if not all(size > 0 for size in self.voxel_size) or not all(count > 0 for count in self.shape_xyz):
            raise ValueError(
                f"SplatGrid: voxel_size={self.voxel_size}, shape_xyz={self.shape_xyz}; expected positive lengths in "
                "metres and at least one voxel along each axis"
            )

    def centers(self, voxels: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
        """Coordinates along one axis of the centres of voxels with these indices, metres."""
        return self.lower[axis] + (voxels.to(dtype) + 0.5) * self.voxel_size[axis]


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Voxels ``first`` to ``last``, both included, along each axis; no voxel at all where last < first."""

    first_G3: Tensor
    """(G, 3) int64, 0 or above."""
    last_G3: Tensor
    """(G, 3) int64, below the grid's shape."""


@torch.no_grad()
def boxes_of(gaussians: Gaussians, grid: SplatGrid, reach: float, kind: str) -> list[Boxes]:
    """The box of each Gaussian, one :class:`Boxes` a sample.

    A box is centred on the voxel that holds the mean and goes r voxels to either side, cut off at the grid's faces.
    Means may lie outside the grid. Computed in float32 as in GaussianFormer, so that its rounding is met.

    Args:
        gaussians: in the grid's frame.
        grid: the voxels.
        reach: in standard deviations.
        kind: what r comes from. "exact": the extent of the ellipsoid at ``reach`` along each axis of the frame.
            "cube": the largest scale on all axes (official). "unrotated": each scale along the frame's axis of the same
            number (official "prob_fast"; too small or too large for rotated Gaussians, for comparison only).
    """
    dtype = torch.promote_types(gaussians.dtype, torch.float32)
    means, scales = gaussians.means_BG3.to(dtype), gaussians.scales_BG3.to(dtype)
    if kind == "exact":
        scales = gaussians.to(torch.float64).covariances_BG33().diagonal(dim1=-2, dim2=-1).sqrt().to(dtype)
    elif kind == "cube":
        scales = scales.amax(dim=-1, keepdim=True).expand_as(scales)
    shape = torch.tensor(grid.shape_xyz, device=means.device)
    # Far beyond the grid is all the same, and float beyond int64 is not defined.
    limit = 4.0 * max(grid.shape_xyz)
    middle = ((means - means.new_tensor(grid.lower)) / means.new_tensor(grid.voxel_size)).floor()
    middle = middle.clamp(-limit, limit).long()
    radius = (scales * reach / means.new_tensor(grid.voxel_size)).ceil().clamp(1, 2 * limit).long()
    first, last = (middle - radius).clamp(min=0), torch.minimum(middle + radius, shape - 1)
    return [Boxes(first_G3=f, last_G3=t) for f, t in zip(first, last, strict=True)]

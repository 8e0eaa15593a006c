"""Which points along the rays of pixels are occupied: what GaussianFormer-2 learns where to put Gaussians from.

Legend: B samples, N cameras, h w cells of a picture, D depths, E = D and "none", X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fusionocc_core.ops.pixel_rays import points_along_rays, voxels_of_points

ALMOST_ONE = 1 - 2**-24
"""Largest probability below one in float32: in 1 - p, so that its logarithm stays finite."""

LOWEST_LOG = -100.0
"""The logarithm of zero, as torch's binary cross-entropy has it."""


class Grid(Protocol):
    """The part of a voxel grid that is needed here."""

    @property
    def lower(self) -> tuple[float, float, float]: ...  # noqa: D102
    @property
    def voxel_size(self) -> tuple[float, float, float]: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, int, int]: ...  # noqa: D102


class RayPredictions(Protocol):
    """What a network says about its rays; see structures.RayOutputs."""

    @property
    def logits_BNhwE(self) -> Tensor: ...  # noqa: D102
    @property
    def projection_BN44(self) -> Tensor: ...  # noqa: D102
    @property
    def depths(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def image_size(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def grid(self) -> Grid: ...  # noqa: D102


@torch.no_grad()
def occupied_points(rays: RayPredictions, labels_BXYZ: Tensor, *, free: int, unknown: int) -> tuple[Tensor, Tensor]:
    """Whether each point lies in an occupied voxel (and last, whether none of a ray does), and whether that is known.

    Points outside the grid are known not to be occupied; "none" is known where all points of the ray are, or one of
    them is occupied.

    Returns:
        Two bool tensors (B, N, h, w, E).
    """
    grid, cells = rays.grid, (rays.logits_BNhwE.shape[2], rays.logits_BNhwE.shape[3])
    points = points_along_rays(rays.projection_BN44, rays.depths, rays.image_size, cells)
    voxels, inside = voxels_of_points(points, grid.lower, grid.voxel_size, grid.shape)
    x, y, z = voxels.unbind(-1)
    sample = torch.arange(len(labels_BXYZ), device=labels_BXYZ.device).view(-1, 1, 1, 1, 1)
    label_BNhwD = labels_BXYZ[sample, x, y, z]
    known_BNhwD = (label_BNhwD != unknown) | ~inside
    occupied_BNhwD = inside & known_BNhwD & (label_BNhwD != free)
    hits_BNhw1 = occupied_BNhwD.any(dim=-1, keepdim=True)
    known_none = known_BNhwD.all(dim=-1, keepdim=True) | hits_BNhw1
    return torch.cat([occupied_BNhwD, ~hits_BNhw1], dim=-1), torch.cat([known_BNhwD, known_none], dim=-1)


def ray_occupancy(rays: RayPredictions, labels_BXYZ: Tensor, *, free: int, unknown: int) -> Tensor:
    """Mean binary cross-entropy between each ray's probabilities, which sum to one, and what is occupied.

    The official PixelDistributionLoss, which counts unknown voxels (its noise) as empty; here they do not count.

    Args:
        rays: scores of the points.
        labels_BXYZ: uint8 or int64 class ids.
        free: id of free space.
        unknown: label of voxels that do not count.
    """
    occupied, known = occupied_points(rays, labels_BXYZ, free=free, unknown=unknown)
    return shares_along_rays(rays.logits_BNhwE, occupied, known)


def shares_along_rays(logits_BNhwE: Tensor, occupied: Tensor, known: Tensor) -> Tensor:
    """Mean binary cross-entropy between the softmax over a ray's entries and which of them are right, where known."""
    log_own = logits_BNhwE.float().log_softmax(dim=-1)
    share = log_own.exp()
    # A share that rounds to one has no logarithm of the rest; the official operator takes a constant there.
    log_others = torch.where(share < 1, torch.log1p(-share.clamp(max=ALMOST_ONE)), LOWEST_LOG)
    return -(torch.where(occupied, log_own, log_others) * known).sum() / known.sum().clamp(min=1)

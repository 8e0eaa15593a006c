"""The part of GaussianFormer-2 that is trained first, by itself: which points along the rays of pixels are occupied.

Huang et al., "GaussianFormer-2" (CVPR 2025), give its loss but neither a config nor a recipe. Its weights are those of
``lifter`` in a GaussianFormer, under the same names. Legend: B samples, N cameras, h w cells of a picture, D depths,
K classes, X Y Z voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from fusionocc_core.grids import DepthBins, LabelSet, VoxelGrid
from fusionocc_core.layers.gaussian_lifter import RayLifterConfig, RayScores
from fusionocc_core.models.gaussianformer import GaussianFormerConfig, camera_projections
from fusionocc_core.models.network import OccupancyNetwork, refuse_presence_masks
from fusionocc_core.ops.pixel_rays import points_along_rays, voxels_of_points
from fusionocc_core.structures import Batch, InputConfig, Outputs, RayOutputs

LEAST_PROBABILITY = 1e-6
"""Probabilities closer to 0 or 1 count as this in a logarithm."""


@dataclass(frozen=True, kw_only=True)
class GaussianInitialiserConfig:
    """Everything that decides what a GaussianInitialiser computes."""

    inputs: InputConfig
    grid: VoxelGrid
    label_set: LabelSet
    lifter: RayLifterConfig
    """With an image backbone of its own."""

    def __post_init__(self) -> None:
        """Refuse a lifter that cannot be trained alone."""
        if self.lifter.backbone is None or not self.lifter.trained:
            raise ValueError(
                "GaussianInitialiserConfig.lifter: it needs an image backbone of its own and trained=True; a lifter on "
                "the network's backbone learns with the network (LossConfig.ray_occupancy)"
            )
        refuse_presence_masks("GaussianInitialiserConfig", self.inputs)

    @property
    def feature_stride(self) -> int:
        """Pixels of the network's picture a cell of its rays."""
        return 8

    @property
    def depth_bins(self) -> DepthBins:
        """A single one: the rays have scores of their own."""
        near, far = self.inputs.depth_range
        return DepthBins(start=near, stop=far, step=far - near)

    @property
    def num_frames(self) -> int:
        """Pictures a camera."""
        return 1


def initialiser_of(config: GaussianFormerConfig) -> GaussianInitialiserConfig:
    """What a GaussianFormer-2's lifter is trained as.

    Raises:
        ValueError: its lifter draws nothing along rays.
    """
    if not isinstance(config.lifter, RayLifterConfig):
        raise ValueError(f"initialiser_of: {config.lifter} draws nothing along rays; expected a RayLifterConfig")
    return GaussianInitialiserConfig(
        inputs=config.inputs,
        grid=config.grid,
        label_set=config.label_set,
        lifter=replace(config.lifter, trained=True),
    )


class GaussianInitialiser(OccupancyNetwork):
    """Scores of points along rays, and from them which voxels are occupied. Classes are not told apart."""

    config: GaussianInitialiserConfig

    def __init__(self, config: GaussianInitialiserConfig) -> None:
        super().__init__(config)
        self.lifter = RayScores(config.lifter, config.grid, ())

    def forward(self, batch: Batch) -> Outputs:
        """Scores of the rays; of the voxels, only class 0 ("occupied") and free space have any."""
        images_BNCHW = batch.images_BTNCHW[:, 0]
        with torch.autocast(images_BNCHW.device.type, enabled=False):
            projection_BN44 = camera_projections(batch)
        rays = self.lifter.rays(images_BNCHW, (), projection_BN44, self.config.inputs.image_size)
        return Outputs(logits_BKXYZ=self._logits(occupied_voxels(rays)), rays=rays)

    def _logits(self, occupied_BXYZ: Tensor) -> Tensor:
        sure = occupied_BXYZ.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        logits_BKXYZ = torch.full_like(sure, LEAST_PROBABILITY).log()
        logits_BKXYZ = logits_BKXYZ.unsqueeze(1).repeat(1, self.config.label_set.num, 1, 1, 1)
        logits_BKXYZ[:, 0], logits_BKXYZ[:, self.config.label_set.free] = sure.log(), (1 - sure).log()
        return logits_BKXYZ


@torch.no_grad()
def occupied_voxels(rays: RayOutputs) -> Tensor:
    """The chance (B, X, Y, Z) that a voxel is occupied, from the best of the points in it.

    A ray's likeliest point is occupied unless none of its points is; others are less so by how much less likely they
    are.
    """
    probability_BNhwE = rays.logits_BNhwE.softmax(dim=-1)
    along_BNhwD, none_BNhw1 = probability_BNhwE[..., :-1], probability_BNhwE[..., -1:]
    chance_BNhwD = along_BNhwD / along_BNhwD.amax(dim=-1, keepdim=True).clamp(min=1e-12) * (1 - none_BNhw1)
    cells = (chance_BNhwD.shape[2], chance_BNhwD.shape[3])
    points = points_along_rays(rays.projection_BN44, rays.depths, rays.image_size, cells)
    shape = rays.grid.shape
    voxels, inside = voxels_of_points(points, rays.grid.lower, rays.grid.voxel_size, shape)
    x, y, z = voxels.unbind(-1)
    places_BP = ((x * shape[1] + y) * shape[2] + z).flatten(1)
    zeros_BV = chance_BNhwD.new_zeros(len(places_BP), prod(shape))
    best_BV = zeros_BV.scatter_reduce(1, places_BP, (chance_BNhwD * inside).flatten(1), "amax")
    return best_BV.view(-1, *shape)

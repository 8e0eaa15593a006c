"""What Gaussians see in the LiDAR's features: the same key points as in the pictures, with weights of their own.

Shape suffixes: B batch, G Gaussians, K key points of each, M groups of channels, C channels, Z Y X voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.grids import VoxelGrid


@dataclass(frozen=True, kw_only=True)
class LidarFeatures:
    """What the LiDAR branch knows of each voxel; zero in samples without a LiDAR."""

    volume_BCZYX: Tensor
    grid: VoxelGrid

    def at(self, points_BGK3: Tensor) -> Tensor:
        """Features (B, G, K, C) at points in the grid's frame, interpolated between the eight voxels around each.

        What lies outside counts as zero.
        """
        with torch.autocast(points_BGK3.device.type, enabled=False):
            lower, upper = (points_BGK3.new_tensor(corner) for corner in (self.grid.lower, self.grid.upper))
            place_BGK13 = (2 * (points_BGK3.float() - lower) / (upper - lower) - 1).unsqueeze(3)
            volume = self.volume_BCZYX.float()
            return F.grid_sample(volume, place_BGK13, align_corners=False)[..., 0].permute(0, 2, 3, 1)

    def inside(self, points_BGK3: Tensor) -> Tensor:
        """Bool (B, G, K): points in the grid."""
        lower, upper = (points_BGK3.new_tensor(corner) for corner in (self.grid.lower, self.grid.upper))
        return ((points_BGK3 >= lower) & (points_BGK3 <= upper)).all(dim=-1)


class LidarAttention(nn.Module):
    """Each Gaussian gathers features of the LiDAR branch at its key points."""

    def __init__(self, channels: int, lidar_channels: int, points: int, groups: int) -> None:
        super().__init__()
        if lidar_channels % groups:
            raise ValueError(f"LidarAttention: {groups} groups do not divide the LiDAR's {lidar_channels} channels")
        self.points, self.groups = points, groups
        self.weights_fc = nn.Linear(channels, points * groups)
        # No bias: where there is no LiDAR, nothing is added.
        self.output_proj = nn.Linear(lidar_channels, channels, bias=False)
        nn.init.zeros_(self.weights_fc.weight)  # equal weights to begin with
        nn.init.zeros_(self.weights_fc.bias)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(self, told_BGC: Tensor, points_BGK3: Tensor, lidar: LidarFeatures) -> Tensor:
        """(B, G, C) of what is known of each Gaussian and its key points in the lidar's frame, metres, to (B, G, C)."""
        seen_BGKMc = lidar.at(points_BGK3).unflatten(-1, (self.groups, -1))
        logits_BGKM = self.weights_fc(told_BGC).float().unflatten(-1, (self.points, self.groups))
        outside_BGK1 = ~lidar.inside(points_BGK3).unsqueeze(-1)
        lonely = outside_BGK1.all(dim=2, keepdim=True)
        logits_BGKM = logits_BGKM.masked_fill(outside_BGK1 & ~lonely, -torch.inf)
        weights_BGKM = logits_BGKM.softmax(dim=2)  # of a lonely one: of zeros
        out: Tensor = self.output_proj((weights_BGKM.unsqueeze(-1) * seen_BGKMc).sum(dim=2).flatten(2))
        return out

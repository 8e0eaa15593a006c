"""Gaussians that begin where something was measured: at points of the LiDAR, or at what pictures say about depth.

Shape suffixes: B batch, G Gaussians, A numbers of a row, C channels, P points, S cells that hold points, Z Y X voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.layers.gaussian_anchors import AnchorSpace, safe_logit
from fusionocc_core.layers.gaussian_encoder import GaussianState
from fusionocc_core.layers.gaussian_lidar import LidarFeatures
from fusionocc_core.ops.scatter import scatter_mean

MORTON_BITS = 10
"""Of each axis: cells of at most 1024 along one."""


@dataclass(frozen=True, kw_only=True)
class PointLifterConfig:
    """How many Gaussians begin where."""

    measured: int
    """Gaussians in cells that hold points; where a sample has fewer such cells, the rest begin at learned places."""
    learned: int
    """Gaussians that always begin at learned places."""
    cell: float = 0.8
    """Edge of the cells, metres; must divide the grid."""
    width: float = 0.5
    """Standard deviation of a Gaussian in a cell, in edges of the cell."""

    def __post_init__(self) -> None:
        """Refuse what gives no Gaussians."""
        if min(self.measured, self.learned) < 0 or self.gaussians < 1 or not (self.cell > 0 and self.width > 0):
            raise ValueError(
                f"PointLifterConfig: measured={self.measured} and learned={self.learned} must not be negative and one "
                f"of them positive; cell={self.cell} and width={self.width} must be positive"
            )

    @property
    def gaussians(self) -> int:
        """Of a sample."""
        return self.measured + self.learned


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells that were chosen, in no order that means anything."""

    means_S3: Tensor
    """Mean of the points in each, metres."""
    hits_S: Tensor
    """How many points that are."""


class PointLifter(nn.Module):
    """Rows and features of the Gaussians that the first block starts from.

    A Gaussian in a cell stands at the mean of its points, is as wide as a cell, the more opaque the more points there
    are, and knows what the LiDAR branch knows of its place. Nothing is drawn at random.
    """

    def __init__(
        self, config: PointLifterConfig, space: AnchorSpace, grid: VoxelGrid, channels: int, lidar_channels: int
    ) -> None:
        super().__init__()
        self.config, self.space = config, space
        self.cells = replace(grid, voxel_size=(config.cell,) * 3)
        if max(self.cells.shape) > 2**MORTON_BITS:
            raise ValueError(f"PointLifterConfig.cell={config.cell}: {self.cells.shape} cells; take larger ones")
        low, high = space.config.scale_range
        if not low < config.cell * config.width < high:
            raise ValueError(
                f"PointLifterConfig: cell={config.cell} times width={config.width} must lie within the scales "
                f"{space.config.scale_range} of AnchorConfig"
            )
        self.anchors = nn.Parameter(space.fresh_rows(config.gaussians, scale=0.5))
        self.features = nn.Parameter(torch.zeros(config.gaussians, channels))
        self.measured_semantics = nn.Parameter(torch.zeros(space.config.classes))
        self.measured_feature = nn.Parameter(torch.zeros(channels))
        self.lidar_feature = nn.Linear(lidar_channels, channels, bias=False)

    def forward(self, clouds: Sequence[Tensor], lidar: LidarFeatures) -> GaussianState:
        """Begin.

        Args:
            clouds: B clouds (P, 3 or more), metres in the grid's frame; points outside the grid do not count.
            lidar: of the same samples.
        """
        rows, features = zip(*(self._sample(cloud) for cloud in clouds), strict=True)
        rows_BGA, feature_BGC = torch.stack(rows), torch.stack(features)
        known_BGC = lidar.at(self.space.means(rows_BGA).unsqueeze(2))[:, :, 0]
        return GaussianState(rows_BGA=rows_BGA, feature_BGC=feature_BGC + self.lidar_feature(known_BGC))

    def _sample(self, cloud_PC: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (G, A) and features (G, C) of one sample: cells, then learned places."""
        cells = choose_cells(cloud_PC, self.cells, self.config.measured)
        count = len(cells.hits_S)
        rows_GA = torch.cat([self._rows(cells), self.anchors[count:]])
        return rows_GA, torch.cat([self.measured_feature.expand(count, -1), self.features[count:]])

    def _rows(self, cells: Cells) -> Tensor:
        count, (low, high) = len(cells.hits_S), self.space.config.scale_range
        hits_S1 = cells.hits_S.unsqueeze(1)
        share = (self.config.cell * self.config.width - low) / (high - low)
        parts = [
            self.space.positions(cells.means_S3),
            safe_logit(hits_S1.new_full((count, 3), share)),
            hits_S1.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4),
            safe_logit(hits_S1 / (hits_S1 + 1))[:, : int(self.space.config.opacity)],
            self.measured_semantics.expand(count, -1),
        ]
        return torch.cat(parts, dim=1)


@torch.no_grad()
def choose_cells(cloud_PC: Tensor, grid: VoxelGrid, most: int) -> Cells:
    """Cells that hold points: all of them, or ``most`` that are spread evenly over them.

    Even means every so-manieth along a Morton curve, which visits neighbours one after the other.

    Args:
        cloud_PC: points (P, 3 or more), metres in the grid's frame; those outside, or not finite, do not count.
        grid: the cells.
        most: how many to choose.
    """
    xyz_P3 = cloud_PC[:, :3].float()
    place_P3 = ((xyz_P3 - xyz_P3.new_tensor(grid.lower)) / xyz_P3.new_tensor(grid.voxel_size)).floor()
    inside_P = ((place_P3 >= 0) & (place_P3 < place_P3.new_tensor(grid.shape))).all(dim=1)
    xyz_P3, place_P3 = xyz_P3[inside_P], place_P3[inside_P].long()
    keys_S, cell_P, hits_S = morton_keys(place_P3).unique(return_inverse=True, return_counts=True)
    means_S3 = scatter_mean(xyz_P3, cell_P, len(keys_S))
    if len(keys_S) > most:
        every = torch.arange(most, device=keys_S.device) * len(keys_S) // max(most, 1)
        means_S3, hits_S = means_S3[every], hits_S[every]
    return Cells(means_S3=means_S3, hits_S=hits_S.float())


def morton_keys(place_P3: Tensor) -> Tensor:
    """The bits of three cell numbers (P, 3), each below 1024, in turn: neighbours have near keys."""
    key_P = torch.zeros_like(place_P3[:, 0])
    for bit in range(MORTON_BITS):
        for axis in range(3):
            key_P = key_P | ((place_P3[:, axis] >> bit & 1) << (3 * bit + axis))
    return key_P

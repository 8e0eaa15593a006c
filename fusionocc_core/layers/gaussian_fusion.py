"""Gaussians that look at pictures and at the LiDAR's features, block after block.

Built from the parts of GaussianFormer-2 (layers/gaussian_encoder.py); a block differs in where it looks. Shape
suffixes: B batch, N cameras, G Gaussians, C channels, A numbers of a row, D depth bins, h w cells of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.layers.gaussian_anchors import AnchorSpace
from fusionocc_core.layers.gaussian_attention import DeformableAttention, Views
from fusionocc_core.layers.gaussian_encoder import (
    AnchorEncoder,
    FeedForward,
    GaussianEncoderConfig,
    GaussianState,
    Refine,
)
from fusionocc_core.layers.gaussian_lidar import LidarAttention, LidarFeatures
from fusionocc_core.layers.gaussian_sparse_conv import GaussianSparseConv
from fusionocc_core.layers.presence import unused


@dataclass(frozen=True, kw_only=True)
class Sensors:
    """What Gaussians look at."""

    pictures: Views | None
    """None: no sample of the batch has a camera."""
    lidar: LidarFeatures
    """Zero where a sample has no LiDAR."""


class FusedAttention(nn.Module):
    """What a Gaussian's key points show in the pictures, plus what the LiDAR knows of them.

    The sum of two linear layers is one linear layer of both side by side: the sensors are weighed against each other
    there, and a sensor that is absent adds nothing.
    """

    def __init__(self, config: GaussianEncoderConfig, levels: int, space: AnchorSpace, lidar_channels: int) -> None:
        super().__init__()
        attention, c = config.attention, config.channels
        self.pictures = DeformableAttention(attention, c, levels, space)
        self.lidar = LidarAttention(c, lidar_channels, attention.points, attention.groups)
        for name, weight in self.pictures.named_parameters():
            if name.startswith("weights_fc") or name == "output_proj.bias":
                nn.init.zeros_(weight)
            elif weight.ndim > 1:
                nn.init.xavier_uniform_(weight)

    def forward(self, feature_BGC: Tensor, embedding_BGC: Tensor, rows_BGA: Tensor, sensors: Sensors) -> Tensor:
        """(B, G, C)."""
        points_BGK3 = self.pictures.kps_generator(feature_BGC, rows_BGA)
        known_BGC: Tensor = self.lidar(feature_BGC + embedding_BGC, points_BGK3, sensors.lidar)
        if sensors.pictures is not None:
            seen_BGC: Tensor = self.pictures(feature_BGC, embedding_BGC, rows_BGA, sensors.pictures)
        else:  # as of a sample that no camera sees
            seen_BGC = self.pictures.output_proj(torch.zeros_like(feature_BGC)) + unused(self.pictures)
        return seen_BGC + known_BGC


class FusionBlock(nn.Module):
    """Looks at the sensors, thinks, looks at neighbours, thinks; each part adds to the feature."""

    def __init__(
        self, config: GaussianEncoderConfig, space: AnchorSpace, grid: VoxelGrid, levels: int, lidar_channels: int
    ) -> None:
        super().__init__()
        c = config.channels
        self.attention = FusedAttention(config, levels, space, lidar_channels)
        self.spconv = GaussianSparseConv(config.sparse_conv, c, grid)
        self.ffns = nn.ModuleList(FeedForward(c, c, config.hidden, config.dropout, residual=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(4))
        self.refine = Refine(config, space)

    def forward(self, state: GaussianState, embedding_BGC: Tensor, sensors: Sensors) -> GaussianState:
        """The Gaussians after the block."""
        rows_BGA, x_BGC = state.rows_BGA, state.feature_BGC
        looked, thought, met, concluded = self.norms
        x_BGC = looked(x_BGC + self.attention(x_BGC, embedding_BGC, rows_BGA, sensors))
        x_BGC = thought(x_BGC + self.ffns[0](x_BGC))
        x_BGC = met(x_BGC + self.spconv(x_BGC, self.refine.space.means(rows_BGA)))
        x_BGC = concluded(x_BGC + self.ffns[1](x_BGC))
        return GaussianState(rows_BGA=self.refine(x_BGC, embedding_BGC, rows_BGA), feature_BGC=x_BGC)


class FusionEncoder(nn.Module):
    """All blocks; each ends with a whole new set of Gaussians."""

    def __init__(
        self, config: GaussianEncoderConfig, space: AnchorSpace, grid: VoxelGrid, *, levels: int, lidar_channels: int
    ) -> None:
        super().__init__()
        self.anchor_encoder = AnchorEncoder(config.channels, space)
        self.blocks = nn.ModuleList(
            FusionBlock(config, space, grid, levels, lidar_channels) for _ in range(config.blocks)
        )

    def forward(self, state: GaussianState, sensors: Sensors) -> GaussianState:
        """The Gaussians after the last block."""
        for block in self.blocks:
            state = block(state, self.anchor_encoder(state.rows_BGA), sensors)
        return state

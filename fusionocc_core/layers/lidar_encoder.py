"""The sparse LiDAR encoder of FusionOcc: points to a dense feature volume.

After FusionOcc (Zhang et al., ACM MM 2024) and SECOND (Yan et al., Sensors 2018). Weights are kept in spconv 2's
layout; official files have mmcv's (see ops.sparse_conv.sparse_weight_from_official).

Shape suffixes: P points, C channels, M active voxels, B batch, Z Y X voxels of the output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.ops.rulebook import submanifold_rulebook
from fusionocc_core.ops.sparse_conv import sparse_conv3d, submanifold_conv3d
from fusionocc_core.ops.sparse_volume import SparseVolume, densify
from fusionocc_core.ops.voxelize import voxelize


@dataclass(frozen=True, kw_only=True)
class LidarEncoderConfig:
    """What a SparseLidarEncoder looks like."""

    grid: VoxelGrid
    """The fine voxels that points are sorted into."""
    in_channels: int = 5
    """Columns of a point: x, y, z, intensity, ring."""
    stage_channels: tuple[int, ...] = (16, 32, 48, 64)
    """Width of each stage; the volume is halved between two stages."""
    out_channels: int = 32
    norm_eps: float = 1e-3
    norm_momentum: float = 0.01
    backend: str = "auto"
    """Of the sparse convolutions: "auto", "torch" or "spconv"."""

    def __post_init__(self) -> None:
        """Refuse grids that the strides do not divide."""
        if not self.stage_channels or min(self.in_channels, self.out_channels, *self.stage_channels) < 1:
            raise ValueError(
                f"LidarEncoderConfig: in_channels={self.in_channels}, stage_channels={self.stage_channels}, "
                f"out_channels={self.out_channels} must be positive, with at least one stage"
            )
        if any(n % self.stride for n in self.grid.shape):
            raise ValueError(
                f"LidarEncoderConfig: {len(self.stage_channels)} stages reduce the grid {self.grid.shape} by "
                f"{self.stride}, which does not divide it; choose another voxel_size or number of stages"
            )

    @property
    def stride(self) -> int:
        """Edge length of an output voxel in fine voxels."""
        return 2 ** (len(self.stage_channels) - 1)

    @property
    def output_grid(self) -> VoxelGrid:
        """The voxels of the dense output."""
        x, y, z = (size * self.stride for size in self.grid.voxel_size)
        return VoxelGrid(frame=self.grid.frame, lower=self.grid.lower, upper=self.grid.upper, voxel_size=(x, y, z))


class SparseConvWeight(nn.Module):
    """The weight of a sparse convolution without bias, [out, kx, ky, kz, in]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, kernel_size, kernel_size, kernel_size, in_channels))
        bound = 1 / math.sqrt(in_channels * kernel_size**3)
        nn.init.uniform_(self.weight, -bound, bound)


class SparseLidarEncoder(nn.Module):
    """Point clouds -> (B, C, Z, Y, X) over ``config.output_grid``."""

    def __init__(self, config: LidarEncoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.stage_channels
        self.conv_input = nn.Sequential(SparseConvWeight(config.in_channels, widths[0], 1))
        self.encoder_layers = nn.ModuleDict()
        for stage, width in enumerate(widths):
            next_widths = [width, width, *widths[stage + 1 : stage + 2]]
            self.encoder_layers[f"encoder_layer{stage + 1}"] = nn.ModuleList(
                nn.Sequential(
                    SparseConvWeight(width, out, 3),
                    nn.BatchNorm1d(out, eps=config.norm_eps, momentum=config.norm_momentum),
                )
                for out in next_widths
            )
        self.conv_out = nn.Sequential(SparseConvWeight(widths[-1], config.out_channels, 1))

    def forward(self, points: tuple[Tensor, ...]) -> Tensor:
        """Encode B clouds (P, in_channels) in the grid's frame to (B, out_channels, Z, Y, X)."""
        grid = self.config.grid
        volume = voxelize(points, grid.lower, grid.voxel_size, grid.shape)
        volume = submanifold_conv3d(volume, self.conv_input.get_parameter("0.weight"))
        for stage in self.encoder_layers.values():
            volume = self._stage(volume, stage)
        return densify(submanifold_conv3d(volume, self.conv_out.get_parameter("0.weight")))

    def _stage(self, volume: SparseVolume, stage: nn.Module) -> SparseVolume:
        rulebook = submanifold_rulebook(volume, (3, 3, 3))
        for i, block in enumerate(stage.children()):
            weight, norm = block.get_parameter("0.weight"), block.get_submodule("1")
            if i < 2:
                volume = submanifold_conv3d(volume, weight, rulebook, self.config.backend)
            else:
                volume = sparse_conv3d(volume, weight, stride=2, padding=1, backend=self.config.backend)
            volume = volume.with_features(F.relu(norm(volume.features_MC)))
        return volume

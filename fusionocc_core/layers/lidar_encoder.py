"""The sparse LiDAR encoder of FusionOcc: points to a dense feature volume.

After FusionOcc (Zhang et al., ACM MM 2024; https://github.com/ShuoZhang-code/FusionOcc), whose encoder follows SECOND
(Yan et al., Sensors 2018). Parameter names are the official ones. Weights are kept in spconv 2's layout; official files
have mmcv's, and ops.sparse_conv.sparse_weight_from_official turns them.

Shape suffixes: P points, C channels, M active voxels, B batch, Z Y X voxels of the output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.ops.sparse_conv import BACKENDS, plan_submanifold_conv3d, sparse_conv3d, submanifold_conv3d
from fusionocc_core.ops.sparse_volume import SparseVolume, densify
from fusionocc_core.ops.voxelize import voxelize

SUBMANIFOLD_BLOCKS = 2
"""Submanifold convolutions at the head of each stage."""


@dataclass(frozen=True, kw_only=True)
class LidarEncoderConfig:
    """What a SparseLidarEncoder looks like. The defaults are the official model's."""

    grid: VoxelGrid
    """The fine voxels that points are sorted into."""
    in_channels: int = 5
    """Columns of a point: x, y, z, intensity, ring."""
    stage_channels: tuple[int, ...] = (16, 32, 48, 64)
    """Width of each stage. Between two stages the volume is halved along every axis."""
    out_channels: int = 32
    norm_eps: float = 1e-3
    norm_momentum: float = 0.01
    backend: str = "auto"
    """Of the sparse convolutions: "auto", "torch" or "spconv"."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no network and grids that the strides do not divide."""
        if not self.stage_channels or min(self.in_channels, self.out_channels, *self.stage_channels) < 1:
            raise ValueError(
                f"LidarEncoderConfig: in_channels={self.in_channels}, stage_channels={self.stage_channels}, "
                f"out_channels={self.out_channels}; expected positive numbers and at least one stage"
            )
        if self.in_channels < 3:
            raise ValueError(f"LidarEncoderConfig: in_channels={self.in_channels}; a point has at least x, y, z")
        if self.backend not in BACKENDS:
            raise ValueError(f"LidarEncoderConfig: backend={self.backend!r}; expected one of {BACKENDS}")
        if any(n % self.stride for n in self.grid.shape):
            raise ValueError(
                f"LidarEncoderConfig: {len(self.stage_channels)} stages reduce the grid of {self.grid.shape} voxels by "
                f"{self.stride}, which does not divide it; choose another voxel_size or fewer stage_channels"
            )

    @property
    def stride(self) -> int:
        """Edge length of an output voxel, in fine voxels."""
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
        bound = 1 / math.sqrt(in_channels * kernel_size**3)  # Kaiming-uniform with a = sqrt(5), as nn.Conv3d
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
            outs = [width] * SUBMANIFOLD_BLOCKS + list(widths[stage + 1 : stage + 2])
            blocks = [
                nn.Sequential(
                    SparseConvWeight(width, out, 3),
                    nn.BatchNorm1d(out, eps=config.norm_eps, momentum=config.norm_momentum),
                )
                for out in outs
            ]
            self.encoder_layers[f"encoder_layer{stage + 1}"] = nn.ModuleList(blocks)
        self.conv_out = nn.Sequential(SparseConvWeight(widths[-1], config.out_channels, 1))

    def forward(self, points: tuple[Tensor, ...]) -> Tensor:
        """Encode B clouds (P, in_channels), in metres in the grid's frame, to (B, out_channels, Z, Y, X).

        Voxels without a point in reach are zero; so is the whole volume of a sample without points. The volume has the
        dtype of the weights.

        Raises:
            ValueError: no cloud at all, or clouds with another number of columns.
        """
        volume, weight = self._voxelize(points), self.conv_input.get_parameter("0.weight")
        volume = submanifold_conv3d(volume.with_features(volume.features_MC.to(weight.dtype)), weight)
        for stage in self.encoder_layers.values():
            volume = self._run_stage(volume, stage)
        return densify(submanifold_conv3d(volume, self.conv_out.get_parameter("0.weight")))

    def _voxelize(self, points: tuple[Tensor, ...]) -> SparseVolume:
        grid, columns = self.config.grid, self.config.in_channels
        if any(cloud.ndim != 2 or cloud.shape[1] != columns for cloud in points):
            raise ValueError(
                f"SparseLidarEncoder: clouds have shapes {[tuple(cloud.shape) for cloud in points]}; "
                f"expected (P, {columns}) each, or another LidarEncoderConfig.in_channels"
            )
        return voxelize(points, grid.lower, grid.voxel_size, grid.shape)

    def _run_stage(self, volume: SparseVolume, stage: nn.Module) -> SparseVolume:
        backend = self.config.backend
        rulebook = plan_submanifold_conv3d(volume, (3, 3, 3), backend)
        for i, block in enumerate(stage.children()):
            weight = block.get_parameter("0.weight")
            if i < SUBMANIFOLD_BLOCKS:
                volume = submanifold_conv3d(volume, weight, rulebook)
            else:
                volume = sparse_conv3d(volume, weight, stride=2, padding=1, backend=backend)
            volume = volume.with_features(_normalise(volume.features_MC, block.get_submodule("1")).relu_())
        return volume


def _normalise(features_MC: Tensor, norm: nn.Module) -> Tensor:
    """Batch norm over active voxels; a batch without any has no statistics to learn from."""
    if len(features_MC) == 0 and isinstance(norm, nn.BatchNorm1d):
        return F.batch_norm(features_MC, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    normed_MC: Tensor = norm(features_MC)
    return normed_MC

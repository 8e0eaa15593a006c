"""Gaussians to class scores of voxels: added up (v1), or as a mixture in front of which each may be missed (v2).

Shape suffixes: B batch, G Gaussians, K classes, X Y Z voxels, C columns of a Gaussian's semantics.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fusionocc_core.gaussians import Gaussians
from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.ops.gaussian_splat import SplatOptions, splat_additive, splat_probabilistic
from fusionocc_core.ops.gaussian_splat_boxes import SplatGrid

LEAST_PROBABILITY = 1e-6
"""Probabilities closer to 0 or 1 count as this, and get no gradient (official)."""


@dataclass(frozen=True, kw_only=True)
class EmptyGaussianConfig:
    """One fixed Gaussian that says "free", larger than the grid."""

    mean: tuple[float, float, float] = (0.0, 0.0, -1.0)
    scales: tuple[float, float, float] = (100.0, 100.0, 8.0)
    """Along the frame's axes, metres."""
    start: float = 10.0
    """What it says about free space to begin with; learned."""


@dataclass(frozen=True, kw_only=True)
class AdditiveHeadConfig:
    """v1: scores are sums of what the Gaussians say, each weighted by its value at the voxel's centre."""

    splat: SplatOptions = field(default_factory=SplatOptions)
    empty: EmptyGaussianConfig | None = None
    """With it Gaussians say nothing about free space; without, free space is one of their classes."""


@dataclass(frozen=True, kw_only=True)
class ProbabilisticHeadConfig:
    """v2: a voxel is occupied unless every Gaussian misses it; its class comes from the mixture."""

    splat: SplatOptions = field(default_factory=lambda: SplatOptions(reach=4.0))


GaussianHeadConfig = AdditiveHeadConfig | ProbabilisticHeadConfig


def semantic_columns(config: GaussianHeadConfig, label_set: LabelSet) -> int:
    """Numbers that each Gaussian has to say about classes.

    Raises:
        ValueError: free space is not the last class.
    """
    if label_set.free != label_set.num - 1:
        raise ValueError(
            f"GaussianHead: free={label_set.free} of the label set {label_set.name!r} must be its last class, "
            f"{label_set.num - 1}: Gaussians hold columns for the classes before it"
        )
    speaks_of_free = isinstance(config, AdditiveHeadConfig) and config.empty is None
    return label_set.num if speaks_of_free else label_set.num - 1


class AdditiveHead(nn.Module):
    """Sums of Gaussians."""

    def __init__(self, config: AdditiveHeadConfig, grid: VoxelGrid, label_set: LabelSet) -> None:
        super().__init__()
        self.config, self.grid = config, splat_grid(grid)
        self.columns = semantic_columns(config, label_set)
        if config.empty is not None:
            self.empty_scalar = nn.Parameter(torch.full((1,), config.empty.start))

    def forward(self, gaussians: Gaussians) -> Tensor:
        """Scores (B, K, X, Y, Z), free space last."""
        scores_BKZYX = splat_additive(gaussians, self.grid, self.config.splat)
        if self.config.empty is not None:
            free_ZYX = self.empty_scalar * self._empty(self.config.empty, scores_BKZYX)
            free_B1ZYX = free_ZYX.expand(len(scores_BKZYX), 1, -1, -1, -1)
            scores_BKZYX = torch.cat([scores_BKZYX, free_B1ZYX], dim=1)
        return scores_BKZYX.permute(0, 1, 4, 3, 2)

    def _empty(self, config: EmptyGaussianConfig, like: Tensor) -> Tensor:
        """The value (Z, Y, X) of the fixed Gaussian, which no box cuts off."""
        axes = []
        for axis, count in enumerate(self.grid.shape_xyz):
            centers = self.grid.centers(torch.arange(count, device=like.device), axis, like.dtype)
            axes.append((-0.5 * ((centers - config.mean[axis]) / config.scales[axis]).square()).exp())
        x_X, y_Y, z_Z = axes
        return z_Z[:, None, None] * y_Y[:, None] * x_X


class ProbabilisticHead(nn.Module):
    """A mixture of Gaussians, and the chance that at least one of them fills the voxel."""

    def __init__(self, config: ProbabilisticHeadConfig, grid: VoxelGrid, label_set: LabelSet) -> None:
        super().__init__()
        self.config, self.grid = config, splat_grid(grid)
        self.columns = semantic_columns(config, label_set)

    def forward(self, gaussians: Gaussians) -> Tensor:
        """Logarithms of probabilities (B, K, X, Y, Z), free space last: scores whose softmax they are themselves."""
        splat = splat_probabilistic(gaussians, self.grid, self.config.splat)
        occupied_B1ZYX = splat.occupancy_BZYX.unsqueeze(1)
        probability_BKZYX = torch.cat([splat.semantics_BCZYX * occupied_B1ZYX, 1 - occupied_B1ZYX], dim=1)
        return probability_BKZYX.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY).log().permute(0, 1, 4, 3, 2)


def make_gaussian_head(
    config: GaussianHeadConfig, grid: VoxelGrid, label_set: LabelSet
) -> AdditiveHead | ProbabilisticHead:
    """The head that the configuration describes."""
    if isinstance(config, AdditiveHeadConfig):
        return AdditiveHead(config, grid, label_set)
    return ProbabilisticHead(config, grid, label_set)


def splat_grid(grid: VoxelGrid) -> SplatGrid:
    """The voxels of a grid for the splatting operators."""
    return SplatGrid(lower=grid.lower, voxel_size=grid.voxel_size, shape_xyz=grid.shape)

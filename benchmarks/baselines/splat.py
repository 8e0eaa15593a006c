"""Gaussian splatting that lists every pair of Gaussian and voxel and adds them up (GaussianFormer, ECCV 2024).

The package keeps that form as its reference, backend "pairs"; here it has the boxes of the official code.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fusionocc_core.gaussians import Gaussians
from fusionocc_core.ops.gaussian_splat import ProbabilisticSplat, SplatOptions, splat_additive, splat_probabilistic
from fusionocc_core.ops.gaussian_splat_boxes import SplatGrid


def additive_by_pairs(gaussians: Gaussians, grid: SplatGrid, options: SplatOptions) -> Tensor:
    """As splat_additive with the same options, whatever backend they name."""
    return splat_additive(gaussians, grid, replace(options, backend="pairs"))


def probabilistic_by_pairs(gaussians: Gaussians, grid: SplatGrid, options: SplatOptions) -> ProbabilisticSplat:
    """As splat_probabilistic with the same options, whatever backend they name."""
    return splat_probabilistic(gaussians, grid, replace(options, backend="pairs"))

"""Pictures are believed at the depth where they show something: a factor for each place along a ray.

Shape suffixes: B samples, N cameras, D depth bins, P points, h w cells of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionocc_core.grids import DepthBins


@dataclass(frozen=True, kw_only=True)
class DepthGate:
    """How probable each depth is beside the most probable one of the same cell."""

    probability_BNDhw: Tensor
    """Sums to one over D, or is zero where nothing is known."""
    bins: DepthBins
    """Of equal width."""

    def __post_init__(self) -> None:
        """Refuse bins between which nothing can be interpolated."""
        if self.bins.spacing != "linear" or self.bins.num != self.probability_BNDhw.shape[2]:
            raise ValueError(
                f"DepthGate: {self.probability_BNDhw.shape[2]} probabilities for {self.bins}; expected one for each of "
                "linear bins"
            )

    def at(self, points_BP3: Tensor, uv_BNP2: Tensor, projection_BN44: Tensor) -> Tensor:
        """Factors (B, N, P), 0 to 1: 1 where a point lies at the most probable depth of its pixel.

        Interpolated between cells and bins; 0 outside of the bins.

        Args:
            points_BP3: in the projection's frame, metres.
            uv_BNP2: where they lie in the pictures, 0 to 1.
            projection_BN44: frame2image, as ops.pixel_rays has it.
        """
        with torch.autocast(points_BP3.device.type, enabled=False):
            probability = self.probability_BNDhw.float()
            relative = probability / probability.amax(dim=2, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            depth_BNP = (projection_BN44[:, :, None, 2, :3] * points_BP3.unsqueeze(1)).sum(dim=-1)
            depth_BNP = depth_BNP + projection_BN44[:, :, None, 2, 3]
            along = (depth_BNP - self.bins.start) / (self.bins.stop - self.bins.start)
            place_BNP3 = 2 * torch.cat([uv_BNP2, along.unsqueeze(-1)], dim=-1) - 1
            place_MP113 = place_BNP3.clamp(-2, 2).flatten(0, 1)[:, :, None, None]
            found = F.grid_sample(relative.flatten(0, 1).unsqueeze(1), place_MP113, align_corners=False)
            return found[:, 0, :, 0, 0].unflatten(0, relative.shape[:2])

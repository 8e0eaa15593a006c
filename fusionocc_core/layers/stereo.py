"""Depth from two moments: the pictures are matched with those of the frame before (BEVStereo, Li et al., AAAI 2023).

Legend: B samples, N cameras, M all pictures (B * N), D depth bins, C channels, H W map of the backbone's first stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fusionocc_core.grids import DepthBins
from fusionocc_core.layers.camera_depth import StereoConfig
from fusionocc_core.layers.temporal import matching_cells
from fusionocc_core.layers.view_transform import Cameras, LiftConfig, frustum_samples
from fusionocc_core.ops.cost_volume import cost_volume

STRIDE = 4
"""Pixels a cell of the maps that are matched."""


@dataclass(frozen=True, kw_only=True)
class StereoReference:
    """What the next frame's pictures are matched with."""

    map_MCHW: Tensor
    """First stage of the backbone, without gradient."""
    cameras: Cameras
    """In the key ego frame of the frame that is matched."""


class StereoMatcher(nn.Module):
    """Cost volumes, along the same rays and depths as the lift. Has no parameters."""

    def __init__(self, config: StereoConfig, lift: LiftConfig, *, bins: DepthBins, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.lift, self.bins, self.image_size = config, lift, bins, image_size

    def forward(self, map_MCHW: Tensor, cameras: Cameras, reference: StereoReference) -> Tensor:
        """How well each cell matches at each depth, (M, D, H, W); sums to one over D. No gradient flows."""
        samples = frustum_samples(self.lift, self.bins, self.image_size, STRIDE).to(cameras.intrinsics_BN33)
        cells_BNDHW2 = matching_cells(
            samples, cameras, reference.cameras, image_size=self.image_size, pixels=self.lift.frustum_pixels
        )
        return cost_volume(
            map_MCHW,
            reference.map_MCHW,
            cells_BNDHW2.flatten(0, 1),
            out_of_view=self.config.out_of_view,
            penalty=self.config.penalty,
        )

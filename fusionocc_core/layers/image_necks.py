"""Two feature maps of an image backbone to one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.layers.conv_blocks import conv_bn_relu_2d


@dataclass(frozen=True, kw_only=True)
class FpnLssConfig:
    """The neck of LSS and BEVDet."""

    channels: int = 256
    """Channels of the result."""


class FpnLss(nn.Module):
    """Upsamples the coarse map to the fine one, joins both, two convolutions (FPN_LSS of BEVDet).

    The upsampling aligns the corner cells' centres (align_corners), which shifts the coarse map by up to half a cell
    towards the border; the official checkpoint was trained with it.
    """

    def __init__(self, config: FpnLssConfig, in_channels: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *conv_bn_relu_2d(sum(in_channels), config.channels, bias=False),
            *conv_bn_relu_2d(config.channels, config.channels, bias=False),
        )

    def forward(self, fine_BChw: Tensor, coarse_BChw: Tensor) -> Tensor:
        """(B, C1, h, w) and (B, C2, h/2, w/2) to (B, channels, h, w)."""
        upsampled = F.interpolate(coarse_BChw, size=fine_BChw.shape[2:], mode="bilinear", align_corners=True)
        return self.conv(torch.cat([fine_BChw, upsampled], dim=1))

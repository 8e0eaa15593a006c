"""Two feature maps of an image backbone to one."""

from __future__ import annotations

from collections import OrderedDict
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


@dataclass(frozen=True, kw_only=True)
class FpnConfig:
    """The neck of BEVDet with a ResNet: a feature pyramid of which only the finest level is kept."""

    channels: int = 256
    """Channels of the result."""


ImageNeckConfig = FpnLssConfig | FpnConfig


def make_image_neck(config: ImageNeckConfig, in_channels: tuple[int, int]) -> FpnLss | Fpn:
    """The neck that the configuration describes, with fresh weights."""
    return FpnLss(config, in_channels) if isinstance(config, FpnLssConfig) else Fpn(config, in_channels)


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


class Fpn(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017) without norms and activations: CustomFPN of BEVDet.

    Submodules carry the names of the official checkpoints.
    """

    def __init__(self, config: FpnConfig, in_channels: tuple[int, int]) -> None:
        super().__init__()
        width = config.channels
        self.lateral_convs = nn.ModuleList(_named_conv(channels, width, kernel=1) for channels in in_channels)
        self.fpn_convs = nn.ModuleList([_named_conv(width, width, kernel=3)])

    def forward(self, fine_BChw: Tensor, coarse_BChw: Tensor) -> Tensor:
        """(B, C1, h, w) and (B, C2, h/2, w/2) to (B, channels, h, w)."""
        fine, coarse = self.lateral_convs[0](fine_BChw), self.lateral_convs[1](coarse_BChw)
        upsampled = F.interpolate(coarse, size=fine.shape[2:], mode="nearest")
        joined: Tensor = self.fpn_convs[0](fine + upsampled)
        return joined


def _named_conv(in_channels: int, channels: int, *, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(OrderedDict(conv=conv))

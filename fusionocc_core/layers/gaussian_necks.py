"""Four feature maps of a backbone to a pyramid of one width, or to one map.

Submodules carry the names of the official checkpoints. Legend: B pictures, C channels, h w map size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PyramidConfig:
    """A feature pyramid over all stages but the first, with further levels below."""

    channels: int = 128
    """Of every level."""
    extra_levels: int = 1
    """Coarser levels, each a convolution with stride 2 on the one before."""


class FeaturePyramid(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017) without norms and activations, as mmdet builds it."""

    def __init__(self, config: PyramidConfig, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.used = len(in_channels) - 1
        width = config.channels
        self.lateral_convs = nn.ModuleList(_named_conv(channels, width, kernel=1) for channels in in_channels[1:])
        strides = [1] * self.used + [2] * config.extra_levels
        self.fpn_convs = nn.ModuleList(_named_conv(width, width, kernel=3, stride=stride) for stride in strides)

    def forward(self, maps_BChw: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps, finest first, to levels (B, channels, h, w) at strides 8, 16, 32, 64."""
        levels = [lateral(m) for lateral, m in zip(self.lateral_convs, maps_BChw[1:], strict=True)]
        for fine in reversed(range(self.used - 1)):
            levels[fine] = levels[fine] + F.interpolate(levels[fine + 1], size=levels[fine].shape[2:], mode="nearest")
        out = [conv(level) for conv, level in zip(self.fpn_convs[: self.used], levels, strict=True)]
        for conv in self.fpn_convs[self.used :]:
            out.append(conv(out[-1]))
        return out


@dataclass(frozen=True, kw_only=True)
class JoinedMapConfig:
    """All stages brought to a stride of 8 and laid side by side (SECONDFPN of mmdet3d)."""

    channels: int = 128
    """That each stage contributes."""


class JoinedMap(nn.Module):
    """Stages at strides 4, 8, 16, 32 to one map at stride 8."""

    def __init__(self, config: JoinedMapConfig, in_channels: Sequence[int]) -> None:
        super().__init__()
        width = config.channels
        first, second, third, fourth = in_channels
        resizing = (
            nn.Conv2d(first, width, 2, stride=2, bias=False),
            nn.ConvTranspose2d(second, width, 1, stride=1, bias=False),
            nn.ConvTranspose2d(third, width, 2, stride=2, bias=False),
            nn.ConvTranspose2d(fourth, width, 4, stride=4, bias=False),
        )
        self.deblocks = nn.ModuleList(
            nn.Sequential(conv, nn.BatchNorm2d(width, eps=1e-3, momentum=0.01), nn.ReLU(inplace=True))
            for conv in resizing
        )

    def forward(self, maps_BChw: Sequence[Tensor]) -> Tensor:
        """Maps of the four stages to (B, 4 * channels, h, w); pictures must be multiples of 32 pixels."""
        return torch.cat([block(m) for block, m in zip(self.deblocks, maps_BChw, strict=True)], dim=1)


def _named_conv(in_channels: int, channels: int, *, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(OrderedDict(conv=conv))

"""2D convolutions over the bird's-eye view. Legend: B samples, C channels, Y X cells.

CustomResNet and FPN_LSS of BEVDet, as FlashOcc uses them. Submodules carry the names of the official checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionocc_core.layers.image_necks import FpnLss, FpnLssConfig


@dataclass(frozen=True, kw_only=True)
class BevResNetConfig:
    """Stages of a small 2D ResNet; each gives one map."""

    channels: tuple[int, ...] = (128, 256, 512)
    blocks: tuple[int, ...] = (2, 2, 2)
    strides: tuple[int, ...] = (2, 2, 2)

    def __post_init__(self) -> None:
        """Refuse stages that do not fit together."""
        if not len(self.channels) == len(self.blocks) == len(self.strides) >= 1 or min(self.blocks) < 1:
            raise ValueError(
                f"BevResNetConfig: channels={self.channels}, blocks={self.blocks}, strides={self.strides} "
                "must hold one positive number a stage"
            )


class BevBlock(nn.Module):
    """Residual block of 3x3 convolutions; the first of a stage has one on the shortcut, with bias and without norm."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1) if first else None

    def forward(self, x_BCYX: Tensor) -> Tensor:
        """(B, in_channels, Y, X) to (B, channels, Y/stride, X/stride)."""
        shortcut = x_BCYX if self.downsample is None else self.downsample(x_BCYX)
        inner = torch.relu(self.bn1(self.conv1(x_BCYX)))
        return torch.relu(self.bn2(self.conv2(inner)) + shortcut)


class BevResNet(nn.Module):
    """The maps of all stages, finest first."""

    def __init__(self, config: BevResNetConfig, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for channels, blocks, stride in zip(config.channels, config.blocks, config.strides, strict=True):
            stage = [BevBlock(in_channels, channels, stride, first=True)]
            stage += [BevBlock(channels, channels, 1, first=False) for _ in range(blocks - 1)]
            self.layers.append(nn.Sequential(*stage))
            in_channels = channels

    def forward(self, x_BCYX: Tensor) -> list[Tensor]:
        """(B, C, Y, X) to one map a stage."""
        maps = []
        x_BCYX = x_BCYX.contiguous(memory_format=torch.channels_last)
        for stage in self.layers:
            x_BCYX = stage(x_BCYX)
            maps.append(x_BCYX)
        return maps


class BevFpnLss(FpnLss):
    """Joins the first and the last map of a BevResNet and brings the result to the resolution of the grid.

    As its base it aligns the corner cells' centres when it upsamples.
    """

    def __init__(self, in_channels: tuple[int, ...], channels: int, *, upsampling: int) -> None:
        super().__init__(FpnLssConfig(channels=2 * channels), (in_channels[0], in_channels[-1]))
        self.up2 = nn.Sequential(
            nn.Upsample(scale_factor=upsampling, mode="bilinear", align_corners=True),
            nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, fine_BCYX: Tensor, coarse_BCYX: Tensor) -> Tensor:
        """The first and the last map to (B, channels, Y, X) of the grid."""
        upsampled: Tensor = self.up2(super().forward(fine_BCYX, coarse_BCYX))
        return upsampled

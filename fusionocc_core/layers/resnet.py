"""The residual network of the official image encoders (He et al., CVPR 2016), at any width.

The blocks are timm's; the names of all tensors are those of torchvision and mmdet. timm's own networks have a stem of
fixed width. Legend: B pictures, C channels, H W picture size, h w map size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionocc_core.layers.conv_blocks import init_conv
from fusionocc_core.layers.torchvision_shim import import_timm

EXPANSION = 4
"""Channels of a bottleneck's result, in multiples of those inside."""


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Bottleneck blocks with the stride on the 3x3 convolution; the defaults are ResNet-50."""

    base_channels: int = 64
    """Channels behind the stem and inside the blocks of the first stage; each further stage has twice as many."""
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    """A stage."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, more time in training. Batch norms then take each
    batch's statistics twice into their running averages."""

    def __post_init__(self) -> None:
        """Refuse stages without blocks."""
        if self.base_channels < 1 or len(self.blocks) != 4 or min(self.blocks) < 1:
            raise ValueError(
                f"ResNetConfig: base_channels={self.base_channels} and the four blocks={self.blocks} must be positive"
            )

    def stage_channels(self, stage: int) -> int:
        """Channels of a stage's map, counted from 0."""
        return EXPANSION * self.base_channels * 2**stage

    @property
    def out_channels(self) -> tuple[int, int]:
        """Channels of the two maps, finest first."""
        return self.stage_channels(2), self.stage_channels(3)

    @property
    def stride(self) -> int:
        """Pixels a cell of the finer map."""
        return 16


class ResNetBackbone(nn.Module):
    """The maps of the last two stages, at strides 16 and 32."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        timm_resnet = import_timm("timm.models.resnet")
        base = config.base_channels
        self.conv1 = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, _ = timm_resnet.make_blocks(
            (timm_resnet.Bottleneck,) * 4, tuple(base * 2**stage for stage in range(4)), config.blocks, base
        )
        for name, stage in stages:  # layer1 to layer4
            self.add_module(name, stage)
        self.apply(init_conv)
        for module in self.modules():
            if isinstance(module, timm_resnet.Bottleneck):
                module.zero_init_last()

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps (B, C, h, w), finest first."""
        maps = self.stage_maps(images_BCHW)
        return maps[2], maps[3]

    def stage_maps(self, images_BCHW: Tensor, *, count: int | None = None) -> list[Tensor]:
        """Maps of the first ``count`` stages (None: all), at strides 4, 8, 16, 32."""
        recompute = self.config.checkpoint_activations and self.training and torch.is_grad_enabled()
        x_BChw = images_BCHW.contiguous(memory_format=torch.channels_last)
        x_BChw = self.maxpool(torch.relu(self.bn1(self.conv1(x_BChw))))
        maps = []
        for stage in range(1, 5)[:count]:
            for block in self.get_submodule(f"layer{stage}").children():
                x_BChw = checkpoint(block, x_BChw, use_reentrant=False) if recompute else block(x_BChw)
            maps.append(x_BChw)
        return maps

"""A residual network whose later stages look where they choose: ResNet with modulated deformable convolutions.

The image encoder of GaussianFormer, as FCOS3D trained it (ResNet-101, strides on the first convolution of a stage as in
Caffe). Names of all tensors are those of mmdet. Legend: B pictures, C channels, H W picture size, h w map size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionocc_core.layers.conv_blocks import init_conv
from fusionocc_core.ops.deformable_conv import deformable_conv2d

EXPANSION = 4
"""Channels of a bottleneck's result, in multiples of those inside."""
TAPS = 9
"""Of a 3x3 kernel."""


@dataclass(frozen=True, kw_only=True)
class DcnResNetConfig:
    """The defaults are the official ResNet-101."""

    base_channels: int = 64
    """Channels behind the stem and inside the blocks of the first stage; each further stage has twice as many."""
    blocks: tuple[int, int, int, int] = (3, 4, 23, 3)
    """A stage."""
    deformable: tuple[bool, bool, bool, bool] = (False, False, True, True)
    """Stages whose 3x3 convolutions are deformable."""
    frozen_stages: int = 1
    """The stem and so many stages keep their weights; -1 freezes nothing."""
    frozen_norms: bool = True
    """Batch norms keep statistics, scale and shift: for weights that were trained before."""
    checkpoint_activations: bool = True
    """Recompute each block in the backward pass: less memory, more time in training. Batch norms that are not frozen
    then take each batch's statistics twice into their running averages."""
    operator: str = "auto"
    """Backend of the deformable convolution: "auto", "torch" or "torchvision"."""

    def __post_init__(self) -> None:
        """Refuse stages without blocks."""
        if self.base_channels < 1 or len(self.blocks) != 4 or min(self.blocks) < 1 or len(self.deformable) != 4:
            raise ValueError(
                f"DcnResNetConfig: base_channels={self.base_channels} and the four blocks={self.blocks} must be "
                f"positive, deformable={self.deformable} holds one answer a stage"
            )
        if not -1 <= self.frozen_stages <= 4:
            raise ValueError(f"DcnResNetConfig.frozen_stages={self.frozen_stages}: expected -1 to 4")

    @property
    def out_channels(self) -> tuple[int, int, int, int]:
        """Channels of the four maps, finest first."""
        first, second, third, fourth = (EXPANSION * self.base_channels * 2**stage for stage in range(4))
        return first, second, third, fourth

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """Pixels a cell of the four maps."""
        return 4, 8, 16, 32


class DeformableConv(nn.Module):
    """A 3x3 convolution without bias that finds out from its own input where to look, and how much each look counts."""

    def __init__(self, channels: int, operator: str) -> None:
        super().__init__()
        self.operator = operator
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.conv_offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)
        nn.init.zeros_(self.conv_offset.weight)  # an ordinary convolution, halved, to begin with
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        told = self.conv_offset(x_BChw)
        offset_BThw2 = told[:, : 2 * TAPS].unflatten(1, (TAPS, 2)).movedim(2, -1)
        mask_BThw = told[:, 2 * TAPS :].sigmoid()
        return deformable_conv2d(x_BChw, offset_BThw2, mask_BThw, self.weight.to(x_BChw.dtype), backend=self.operator)


class CaffeBottleneck(nn.Module):
    """The block of ResNet-50 and deeper (He et al., CVPR 2016) with the stride on its first convolution."""

    def __init__(self, in_channels: int, width: int, *, stride: int, deformable: bool, operator: str) -> None:
        super().__init__()
        channels = EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2: nn.Module = nn.Conv2d(width, width, 3, padding=1, bias=False)
        if deformable:
            self.conv2 = DeformableConv(width, operator)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride > 1 or in_channels != channels:
            shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 4 * width, h / stride, w / stride)."""
        inner = torch.relu(self.bn1(self.conv1(x_BChw)))
        inner = torch.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        return torch.relu(inner + (x_BChw if self.downsample is None else self.downsample(x_BChw)))


class DcnResNet(nn.Module):
    """The maps of all four stages."""

    def __init__(self, config: DcnResNetConfig) -> None:
        super().__init__()
        self.config = config
        base = config.base_channels
        self.conv1 = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = base
        for stage, blocks in enumerate(config.blocks):
            self.add_module(f"layer{stage + 1}", self._stage(channels, stage, blocks))
            channels = config.out_channels[stage]
        for name, module in self.named_modules():
            if not name.endswith("conv_offset"):
                init_conv(module)
            if isinstance(module, CaffeBottleneck) and not config.frozen_norms:
                nn.init.zeros_(module.bn3.weight)  # every block begins as the identity
        self._freeze()

    def _stage(self, in_channels: int, stage: int, blocks: int) -> nn.Sequential:
        config, width = self.config, self.config.base_channels * 2**stage
        return nn.Sequential(
            *(
                CaffeBottleneck(
                    in_channels if block == 0 else EXPANSION * width,
                    width,
                    stride=2 if stage and block == 0 else 1,
                    deformable=config.deformable[stage],
                    operator=config.operator,
                )
                for block in range(blocks)
            )
        )

    def _freeze(self) -> None:
        frozen: list[nn.Module] = [self.conv1, self.bn1] if self.config.frozen_stages >= 0 else []
        frozen += [self.get_submodule(f"layer{stage}") for stage in range(1, self.config.frozen_stages + 1)]
        if self.config.frozen_norms:
            frozen += [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> DcnResNet:
        """As usual, but what is frozen keeps its statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w) at strides 4, 8, 16, 32."""
        recompute = self.config.checkpoint_activations and self.training and torch.is_grad_enabled()
        x_BChw = images_BCHW.contiguous(memory_format=torch.channels_last)
        x_BChw = self.maxpool(torch.relu(self.bn1(self.conv1(x_BChw))))
        maps = []
        for stage in range(1, 5):
            for block in self.get_submodule(f"layer{stage}").children():
                x_BChw = checkpoint(block, x_BChw, use_reentrant=False) if recompute else block(x_BChw)
            maps.append(x_BChw)
        return maps

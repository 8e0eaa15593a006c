"""Convolution blocks that several parts of the networks share. Names of submodules follow the official checkpoints."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


def init_conv(module: nn.Module) -> None:
    """Kaiming-normal over the fan-out for convolutions, as the official code starts its convolution modules."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def conv_bn_relu_2d(in_channels: int, out_channels: int, *, bias: bool) -> list[nn.Module]:
    """3x3 convolution, batch norm and ReLU, to be put into an nn.Sequential."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class BasicBlock2d(nn.Module):
    """The residual block of ResNet-18 (He et al., CVPR 2016) at constant width and resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        inner = torch.relu(self.bn1(self.conv1(x_BChw)))
        return torch.relu(self.bn2(self.conv2(inner)) + x_BChw)


def conv_bn_3d(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, relu: bool) -> nn.Sequential:
    """3D convolution and batch norm, with or without ReLU, as submodules ``conv`` and ``bn``."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv3d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    parts["bn"] = nn.BatchNorm3d(out_channels)
    if relu:
        parts["relu"] = nn.ReLU(inplace=True)
    init_conv(parts["conv"])
    return nn.Sequential(parts)

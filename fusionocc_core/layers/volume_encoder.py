"""3D convolutions over the fused volume. Legend: B samples, C channels, Z Y X voxels, K classes.

CustomResNet3D and LSSFPN3D of BEVDet-Occ, as FusionOcc uses them. Submodules carry the names of the official
checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionocc_core.layers.conv_blocks import conv_bn_3d


@dataclass(frozen=True, kw_only=True)
class ResNet3dConfig:
    """Stages of a small 3D ResNet; each gives one map."""

    channels: tuple[int, ...] = (64, 128, 256)
    blocks: tuple[int, ...] = (1, 2, 3)
    strides: tuple[int, ...] = (1, 2, 2)
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, more time in training."""

    def __post_init__(self) -> None:
        """Refuse stages that do not fit together."""
        if not len(self.channels) == len(self.blocks) == len(self.strides) >= 1 or min(self.blocks) < 1:
            raise ValueError(
                f"ResNet3dConfig: channels={self.channels}, blocks={self.blocks}, strides={self.strides} "
                "must hold one positive number a stage"
            )


class BasicBlock3d(nn.Module):
    """Residual block of 3x3x3 convolutions; the first block of a stage has a convolution on the shortcut too."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.conv1 = conv_bn_3d(in_channels, channels, stride=stride, relu=True)
        self.conv2 = conv_bn_3d(channels, channels, relu=False)
        self.downsample = conv_bn_3d(in_channels, channels, stride=stride, relu=False) if first else None

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        """(B, in_channels, Z, Y, X) to (B, channels, Z/stride, Y/stride, X/stride)."""
        shortcut = x_BCZYX if self.downsample is None else self.downsample(x_BCZYX)
        return self.conv2(self.conv1(x_BCZYX)).add_(shortcut).relu_()  # in place: the volumes are large


class ResNet3d(nn.Module):
    """The maps of all stages, finest first."""

    def __init__(self, config: ResNet3dConfig, in_channels: int) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList()
        for channels, blocks, stride in zip(config.channels, config.blocks, config.strides, strict=True):
            stage = [BasicBlock3d(in_channels, channels, stride, first=True)]
            stage += [BasicBlock3d(channels, channels, 1, first=False) for _ in range(blocks - 1)]
            self.layers.append(nn.Sequential(*stage))
            in_channels = channels

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        """(B, C, Z, Y, X) to one map a stage."""
        recompute = self.config.checkpoint_activations and self.training and torch.is_grad_enabled()
        maps = []
        x_BCZYX = x_BCZYX.contiguous(memory_format=torch.channels_last_3d)
        for stage in self.layers:
            for block in stage.children():
                x_BCZYX = checkpoint(block, x_BCZYX, use_reentrant=False) if recompute else block(x_BCZYX)
            maps.append(x_BCZYX)
        return maps


class LssFpn3d(nn.Module):
    """Joins the maps of a 3D ResNet at the resolution of the first: upsampling, 1x1x1 convolution, norm, ReLU.

    The convolution is applied before the (trilinear) upsampling, map by map: both are linear and act on different axes,
    so the result is the official one (which joins the upsampled maps first) up to rounding, at a fraction of the memory
    and time.
    """

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.conv = conv_bn_3d(sum(in_channels), channels, kernel=1, relu=True)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, C, Z, Y, X) of decreasing size to one (B, channels, Z, Y, X) of the size of the first."""
        conv = self.conv.get_submodule("conv")
        assert isinstance(conv, nn.Conv3d)
        weights = conv.weight.flatten(1).split(self.in_channels, dim=1)
        joined = mix_channels(maps[0], weights[0], conv.bias)  # it has a bias once the norm is folded into it
        for coarse, weight in zip(maps[1:], weights[1:], strict=True):
            mixed = mix_channels(coarse, weight)
            joined = joined + F.interpolate(mixed, size=joined.shape[2:], mode="trilinear", align_corners=True)
        return torch.relu(self.conv.get_submodule("bn")(joined))


def mix_channels(x_BCZYX: Tensor, weight_OC: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """A 1x1x1 convolution, as a product of matrices: PyTorch's own takes a slow path on CPU with one thread."""
    return F.linear(x_BCZYX.permute(0, 2, 3, 4, 1), weight_OC, bias_O).permute(0, 4, 1, 2, 3)


SLICE = 10
"""Voxels along X whose classes are found at a time: of Occ3D's grid, a twentieth."""


class OccupancyHead(nn.Sequential):
    """Class scores of every voxel: two linear layers with a Softplus between. Turns Z Y X into the public X Y Z."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(
            nn.Linear(in_channels, 2 * in_channels), nn.Softplus(), nn.Linear(2 * in_channels, num_classes)
        )

    def forward(self, volume_BCZYX: Tensor) -> Tensor:
        """(B, C, Z, Y, X) to logits (B, K, X, Y, Z), contiguous with the classes last.

        Without gradients, slices along X come one after the other: what lies between the layers is the largest tensor
        of the whole network.
        """
        volume_BXYZC = volume_BCZYX.permute(0, 4, 3, 2, 1)
        if torch.is_grad_enabled():
            return super().forward(volume_BXYZC).permute(0, 4, 1, 2, 3)
        slices = [super(OccupancyHead, self).forward(part) for part in volume_BXYZC.split(SLICE, dim=1)]
        return torch.cat(slices, dim=1).permute(0, 4, 1, 2, 3)

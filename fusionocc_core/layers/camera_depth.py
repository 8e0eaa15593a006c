"""Depth and context from one feature map and the camera's calibration (BEVDepth, BEVStereo, BEVDet's DepthNet).

Li et al., "BEVDepth", AAAI 2023; Li et al., "BEVStereo", AAAI 2023. Legend: B pictures (samples times cameras),
C channels, h w feature map, H W the finer map of the stereo features (4 h x 4 w), D depth bins, V the camera vector.
Submodules carry the names of the official checkpoints, "cost_volumn_net" included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionocc_core.layers.conv_blocks import BasicBlock2d, conv_bn_relu_2d
from fusionocc_core.layers.cross_modal import CAMERA_VECTOR, Aspp, CameraGate, CameraMlp
from fusionocc_core.ops.cost_volume import OUT_OF_VIEW


@dataclass(frozen=True, kw_only=True)
class StereoConfig:
    """How pictures are matched with those of the frame before: see ops.cost_volume."""

    out_of_view: str = "position"
    """"position", or "zero_channel" (official)."""
    penalty: float = 5.0
    """Added to the cost of what the earlier picture does not show."""

    def __post_init__(self) -> None:
        """Refuse a choice that does not exist."""
        if self.out_of_view not in OUT_OF_VIEW:
            raise ValueError(f"StereoConfig.out_of_view={self.out_of_view!r}: expected one of {OUT_OF_VIEW}")


@dataclass(frozen=True, kw_only=True)
class CameraDepthConfig:
    """Widths of the depth network."""

    mid_channels: int = 256
    """Channels behind the first convolution; officially those of the neck."""
    context_channels: int = 80
    """Channels of what is lifted."""
    aspp_channels: int = 96
    """Channels of each branch of the atrous pyramid."""
    aspp_dilations: tuple[int, int, int] = (6, 12, 18)
    """In feature cells."""
    dropout: float = 0.5
    """Behind the atrous pyramid."""
    depth_blocks: int = 3
    """Residual blocks in front of the pyramid."""
    stereo: StereoConfig | None = None
    """Depth is also judged by how well the picture matches the one before."""

    def __post_init__(self) -> None:
        """Refuse a network without channels or blocks."""
        if min(self.mid_channels, self.context_channels, self.aspp_channels, self.depth_blocks) < 1:
            raise ValueError(f"CameraDepthConfig: channels and depth_blocks must be positive: {self}")


@dataclass(frozen=True, kw_only=True)
class CameraDepthOutputs:
    """What the network says about each feature cell."""

    depth_logits_BDhw: Tensor
    context_BChw: Tensor


class JoiningBlock2d(BasicBlock2d):
    """A residual block that takes more channels than it gives; its shortcut is a plain 1x1 convolution with bias."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.downsample = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, channels, h, w)."""
        inner = torch.relu(self.bn1(self.conv1(x_BChw)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.downsample(x_BChw))


class CameraDepthNet(nn.Module):
    """Depth scores and context, each gated by what the camera is; with stereo, a cost volume joins the depth branch.

    Args:
        config: widths.
        in_channels: of the neck's feature map.
        num_depths: D.
    """

    def __init__(self, config: CameraDepthConfig, in_channels: int, *, num_depths: int) -> None:
        super().__init__()
        mid, stereo = config.mid_channels, config.stereo is not None
        self.stereo = stereo
        self.reduce_conv = nn.Sequential(*conv_bn_relu_2d(in_channels, mid, bias=True))
        self.context_conv = nn.Conv2d(mid, config.context_channels, 1)
        self.bn = nn.BatchNorm1d(CAMERA_VECTOR)
        self.depth_mlp, self.depth_se = CameraMlp(mid), CameraGate(mid)
        self.context_mlp, self.context_se = CameraMlp(mid), CameraGate(mid)
        if stereo:
            self.cost_volumn_net = nn.Sequential(*_halving(num_depths), *_halving(num_depths))
        first = JoiningBlock2d(mid + num_depths, mid) if stereo else BasicBlock2d(mid)
        blocks = [first, *(BasicBlock2d(mid) for _ in range(config.depth_blocks - 1))]
        self.depth_conv = nn.Sequential(*blocks, Aspp(mid, config), nn.Conv2d(mid, num_depths, 1))

    def forward(self, x_BChw: Tensor, vectors_BV: Tensor, cost_BDHW: Tensor | None = None) -> CameraDepthOutputs:
        """Depth scores and context of every feature cell.

        Args:
            x_BChw: the neck's feature map.
            vectors_BV: view_transform.camera_vectors.
            cost_BDHW: with stereo, ops.cost_volume at four times the resolution; zeros where no earlier frame is known.

        Raises:
            ValueError: a cost volume is missing, or nobody asked for one.
        """
        if (cost_BDHW is not None) != self.stereo:
            raise ValueError(
                f"CameraDepthNet: cost_BDHW is {'missing' if self.stereo else 'given'}, but the network was built with "
                f"{'a' if self.stereo else 'no'} config.stereo"
            )
        cameras = self.bn(vectors_BV)
        x_BChw = self.reduce_conv(x_BChw)
        context = self.context_conv(self.context_se(x_BChw, self.context_mlp(cameras)))
        depth = self.depth_se(x_BChw, self.depth_mlp(cameras))
        if cost_BDHW is not None:
            depth = torch.cat([depth, self.cost_volumn_net(cost_BDHW)], dim=1)
        return CameraDepthOutputs(depth_logits_BDhw=self.depth_conv(depth), context_BChw=context)


def _halving(channels: int) -> list[nn.Module]:
    """Strided convolution and batch norm; officially without an activation in between."""
    return [nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels)]

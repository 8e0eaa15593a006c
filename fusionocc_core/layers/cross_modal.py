"""Fuses camera features with sparse LiDAR depth in the picture, and predicts depth, segmentation and context from them.

CrossModalFusion and DepthSegNet of FusionOcc (Zhang et al., ACM MM 2024). Legend: B pictures (samples times cameras),
C channels, h w feature map, D depth bins, V the camera vector. Submodules carry the names of the official checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.layers.conv_blocks import BasicBlock2d, conv_bn_relu_2d

CAMERA_VECTOR = 27
"""Numbers that describe a camera to the network: see view_transform.camera_vectors."""


@dataclass(frozen=True, kw_only=True)
class DepthSegConfig:
    """Widths of the fusion in the picture and of the three branches behind it."""

    mid_channels: int = 128
    """Channels of the camera features and of the depth features before they are fused."""
    feature_channels: int = 32
    """Channels of what is lifted into the volume: half from the segmentation branch, half from the context branch."""
    aspp_channels: int = 96
    """Channels of each branch of the atrous pyramid."""
    aspp_dilations: tuple[int, int, int] = (6, 12, 18)
    """In feature cells."""
    dropout: float = 0.5
    """Behind the atrous pyramid."""
    depth_label_drop: float = 0.49
    """Share of the feature cells whose measured depth is hidden from the network in training, whole percent. The loss
    still uses all of them, so that the network learns dense depth from sparse points."""

    def __post_init__(self) -> None:
        """Refuse feature channels that cannot be halved and shares that are not shares."""
        if self.feature_channels % 2 or self.mid_channels % 2:
            raise ValueError(
                f"DepthSegConfig: feature_channels={self.feature_channels} and mid_channels={self.mid_channels} "
                "must be even"
            )
        if not 0 <= self.depth_label_drop <= 1:
            raise ValueError(f"DepthSegConfig: depth_label_drop={self.depth_label_drop} must lie in 0..1")


@dataclass(frozen=True, kw_only=True)
class DepthSegOutputs:
    """What the network in the picture gives to the lift and to the losses."""

    depth_logits_BDhw: Tensor
    feature_BChw: Tensor
    seg_logits_BKhw: Tensor


class CrossModalFusion(nn.Module):
    """Camera and depth features gate each other, first by channel and then by place.

    Both gates are crossed: each modality is scaled by what the other one says. The last activation of the spatial gates
    is a ReLU, so that a gate can only raise a feature.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.channel_mlp_c = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())
        self.channel_mlp_d = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())
        self.spatial_c = _spatial_gate(channels // 2)
        self.spatial_d = _spatial_gate(channels // 2)
        self.fuse_conv = nn.Sequential(*conv_bn_relu_2d(2 * channels, 2 * channels, bias=True))

    def forward(self, camera_BChw: Tensor, depth_BChw: Tensor) -> Tensor:
        """Two maps (B, C, h, w) to one (B, 2C, h, w), camera channels first."""
        weight_camera = self.channel_mlp_c(camera_BChw.mean(dim=(2, 3)))[:, :, None, None]
        weight_depth = self.channel_mlp_d(depth_BChw.mean(dim=(2, 3)))[:, :, None, None]
        fused = self.fuse_conv(torch.cat([weight_depth * camera_BChw, weight_camera * depth_BChw], dim=1))
        place_camera = self.spatial_c(fused[:, : self.channels].mean(dim=1, keepdim=True))
        place_depth = self.spatial_d(fused[:, self.channels :].mean(dim=1, keepdim=True))
        return torch.cat([camera_BChw * (1 + place_depth), depth_BChw * (1 + place_camera)], dim=1)


def _spatial_gate(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, 1, 1), nn.ReLU(inplace=True))


class CameraMlp(nn.Module):
    """The camera vector to one number a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(CAMERA_VECTOR, channels)
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, vectors_BV: Tensor) -> Tensor:
        """(B, V) to (B, C, 1, 1)."""
        return self.fc2(torch.relu(self.fc1(vectors_BV)))[:, :, None, None]


class CameraGate(nn.Module):
    """Scales each channel of a map by what the camera is (squeeze-and-excitation on the camera, not on the map)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, channels, 1)
        self.conv_expand = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BChw: Tensor, camera_BC11: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return x_BChw * torch.sigmoid(self.conv_expand(torch.relu(self.conv_reduce(camera_BC11))))


class AtrousBranch(nn.Module):
    """One branch of the pyramid: a dilated convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, channels: int, dilation: int | None) -> None:
        super().__init__()
        kernel, padding, step = (1, 0, 1) if dilation is None else (3, dilation, dilation)
        self.atrous_conv = nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=step, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to (B, channels, h, w)."""
        return torch.relu(self.bn(self.atrous_conv(x_BChw)))

    def norm_pairs(self) -> list[tuple[tuple[str, ...], str]]:
        """For folding: the norm takes the convolution's result."""
        return [(("atrous_conv",), "bn")]


class AsppConfig(Protocol):
    """What the pyramid reads of the config of the network that it is part of."""

    @property
    def aspp_channels(self) -> int: ...  # noqa: D102
    @property
    def aspp_dilations(self) -> tuple[int, int, int]: ...  # noqa: D102
    @property
    def dropout(self) -> float: ...  # noqa: D102


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., DeepLabv3, 2017) with the input's width as its output's."""

    def __init__(self, in_channels: int, config: AsppConfig) -> None:
        super().__init__()
        channels = config.aspp_channels
        first, second, third = config.aspp_dilations
        self.aspp1 = AtrousBranch(in_channels, channels, None)
        self.aspp2 = AtrousBranch(in_channels, channels, first)
        self.aspp3 = AtrousBranch(in_channels, channels, second)
        self.aspp4 = AtrousBranch(in_channels, channels, third)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.conv1 = nn.Conv2d(5 * channels, in_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.dropout = nn.Dropout(config.dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        branches = [branch(x_BChw) for branch in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)]
        overall = self.global_avg_pool(x_BChw).expand(-1, -1, *x_BChw.shape[2:])
        joined = self.conv1(torch.cat([*branches, overall], dim=1))
        return self.dropout(torch.relu(self.bn1(joined)))


class DepthSegNet(nn.Module):
    """Three branches on the fused map, each gated by the camera vector: depth, 2D segmentation, context."""

    def __init__(self, config: DepthSegConfig, *, num_depths: int, num_classes: int) -> None:
        super().__init__()
        mid, half = config.mid_channels, config.feature_channels // 2
        self.bn = nn.BatchNorm1d(CAMERA_VECTOR)
        self.reduce_conv_depth = nn.Sequential(*conv_bn_relu_2d(2 * mid, mid, bias=True))
        self.reduce_conv_seg = nn.Sequential(*conv_bn_relu_2d(2 * mid, mid, bias=True))
        self.reduce_conv_context = nn.Sequential(*conv_bn_relu_2d(2 * mid, mid, bias=True))
        self.depth_mlp, self.depth_se = CameraMlp(mid), CameraGate(mid)
        self.seg_mlp, self.seg_se = CameraMlp(mid), CameraGate(mid)
        self.context_mlp, self.context_se = CameraMlp(mid), CameraGate(mid)
        self.depth_conv = nn.Sequential(
            BasicBlock2d(mid), BasicBlock2d(mid), Aspp(mid, config), nn.Conv2d(mid, num_depths, 1)
        )
        self.seg_conv = nn.Sequential(nn.Conv2d(mid, half, 3, padding=1), BasicBlock2d(half))
        self.seg_out = nn.Conv2d(half, num_classes, 1)
        self.context_conv = nn.Conv2d(mid, half, 3, padding=1)

    def forward(self, fused_BChw: Tensor, vectors_BV: Tensor) -> DepthSegOutputs:
        """(B, 2 * mid, h, w) and the cameras (B, V) to depth and segmentation scores and the features to be lifted."""
        cameras = self.bn(vectors_BV)
        seg = self.seg_se(self.reduce_conv_seg(fused_BChw), self.seg_mlp(cameras))
        context = self.context_se(self.reduce_conv_context(fused_BChw), self.context_mlp(cameras))
        depth = self.depth_se(self.reduce_conv_depth(fused_BChw), self.depth_mlp(cameras))
        seg_feature = self.seg_conv(seg)
        return DepthSegOutputs(
            depth_logits_BDhw=self.depth_conv(depth),
            feature_BChw=torch.cat([seg_feature, self.context_conv(context)], dim=1),
            seg_logits_BKhw=self.seg_out(seg_feature),
        )


class CrossModalNet(nn.Module):
    """Everything that happens in the picture between the neck and the lift."""

    def __init__(self, config: DepthSegConfig, in_channels: int, *, num_depths: int, num_classes: int) -> None:
        super().__init__()
        mid = config.mid_channels
        self.num_depths = num_depths
        self.depth_label_drop = config.depth_label_drop
        self.depth_encoder = nn.Sequential(
            *conv_bn_relu_2d(num_depths, mid, bias=True), *conv_bn_relu_2d(mid, mid, bias=True)
        )
        self.img_reduce_conv = nn.Sequential(*conv_bn_relu_2d(in_channels, mid, bias=True))
        self.cross_model_fusion = CrossModalFusion(mid)
        self.further_fuse = BasicBlock2d(2 * mid)
        self.depth_seg_net = DepthSegNet(config, num_depths=num_depths, num_classes=num_classes)

    def forward(self, image_BChw: Tensor, bins_Bhw: Tensor, vectors_BV: Tensor) -> DepthSegOutputs:
        """The three branches, from camera features and measured depth.

        Args:
            image_BChw: The neck's feature map.
            bins_Bhw: view_transform.measured_depth_bins: 0 = nothing measured, k = bin k - 1. In training a share of
                them, drawn anew in every call from torch's CPU generator, is taken as not measured.
            vectors_BV: view_transform.camera_vectors.
        """
        if self.training and self.depth_label_drop > 0:
            bins_Bhw = bins_Bhw * kept_cells(bins_Bhw.shape, self.depth_label_drop).to(bins_Bhw.device)
        one_hot = F.one_hot(bins_Bhw, self.num_depths + 1)[..., 1:].permute(0, 3, 1, 2).to(image_BChw.dtype)
        fused = self.cross_model_fusion(self.img_reduce_conv(image_BChw), self.depth_encoder(one_hot))
        return self.depth_seg_net(self.further_fuse(fused), vectors_BV)


def kept_cells(shape: torch.Size, drop: float) -> Tensor:
    """Bool: False for each cell with the probability ``drop``, in whole percent, drawn from torch's CPU generator.

    The draw is the reference's (integers below 100 against a threshold), so that a seed gives the reference's mask.
    """
    return torch.randint(0, 100, (shape.numel(),), device="cpu").view(shape) < 100 - round(100 * drop)

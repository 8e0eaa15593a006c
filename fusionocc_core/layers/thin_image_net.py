"""A thin residual network for pictures, its neck, and what it says about each feature cell.

Legend: M pictures, C channels, D depth bins, K classes, H W picture, h w feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.layers.conv_blocks import BasicBlock2d
from fusionocc_core.layers.image_backbones import TimmBackboneConfig, make_image_backbone
from fusionocc_core.layers.resnet import ResNetConfig


@dataclass(frozen=True, kw_only=True)
class ThinImageNetConfig:
    """A residual network of basic blocks; the last two stages are given out."""

    stem_channels: int = 16
    """After the first halving."""
    channels: tuple[int, ...] = (32, 64, 128)
    """Of the stages; the first one works at a quarter of the picture's resolution, each further one at half of that."""
    blocks: tuple[int, ...] = (1, 2, 2)
    """Residual blocks a stage."""

    def __post_init__(self) -> None:
        """Refuse stages that do not fit together."""
        if len(self.channels) != len(self.blocks) or len(self.channels) < 2:
            raise ValueError(
                f"ThinImageNetConfig: channels={self.channels} and blocks={self.blocks} must be two or more, as many "
                "each"
            )

    @property
    def stride(self) -> int:
        """Pixels a cell of the finer map."""
        return 4 * 2 ** (len(self.channels) - 2)

    @property
    def out_channels(self) -> tuple[int, int]:
        """Channels of the two maps, finest first."""
        return self.channels[-2], self.channels[-1]


PictureBackboneConfig = ThinImageNetConfig | ResNetConfig | TimmBackboneConfig


def pixels_off_middle(backbone: PictureBackboneConfig) -> int:
    """By how many pixels a feature lies left of, and above, the middle of its cell (rounded up).

    The halvings of ThinImageNet keep the middle. Those of ResNets, and of networks built like them, have kernels of odd
    size around the first of two pixels: behind all of them a feature stands for the first pixel of its cell.
    """
    return 0 if isinstance(backbone, ThinImageNetConfig) else backbone.stride // 2


class ThinImageNet(nn.Module):
    """Two feature maps, at ``config.stride`` and twice that.

    Every halving has an even kernel, so that the middle of a cell is the middle of its pixels (a 3x3 convolution of
    stride 2 moves it by half a pixel of its input each time).
    """

    def __init__(self, config: ThinImageNetConfig) -> None:
        super().__init__()
        self.stem = conv_norm(3, config.stem_channels, kernel=4, stride=2)
        self.stages = nn.ModuleList()
        width = config.stem_channels
        for number, (channels, blocks) in enumerate(zip(config.channels, config.blocks, strict=True)):
            down = conv_norm(width, channels, kernel=4 if number == 0 else 2, stride=2)
            self.stages.append(nn.Sequential(down, *(BasicBlock2d(channels) for _ in range(blocks))))
            width = channels

    def forward(self, images_MCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps (M, C, h, w), finest first."""
        x = self.stem(images_MCHW.contiguous(memory_format=torch.channels_last))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[-2], maps[-1]


@dataclass(frozen=True)
class PictureFeatures:
    """What the network says about each feature cell of M pictures."""

    context_MChw: Tensor
    depth_logits_MDhw: Tensor
    seg_logits_MKhw: Tensor

    def followed_by(self, others: PictureFeatures) -> PictureFeatures:
        """Of these pictures and then of others."""
        pairs = zip(vars(self).values(), vars(others).values(), strict=True)
        return PictureFeatures(*(torch.cat(pair) for pair in pairs))


class PictureNet(nn.Module):
    """Pictures to features, depth and classes of each cell at ``stride``.

    The two maps of the backbone are joined, and each cell is told how its ray lies (see ``ray_channels``), because a
    picture alone does not say how large a pixel is.

    Lift, measured depth and labels take a feature for the middle of its cell. Where the backbone's stand for the first
    pixel of their cells, it is shown the picture moved by half a cell to the left and up (so that it does not see the
    outermost half cell there), and the coarser map, whose features then lie on every second one of the finer map and
    not between two, is enlarged accordingly.
    """

    RAY_CHANNELS = 4

    def __init__(
        self,
        backbone: PictureBackboneConfig,
        *,
        neck_channels: int,
        context_channels: int,
        num_depths: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        if isinstance(backbone, ThinImageNetConfig):
            self.backbone: nn.Module = ThinImageNet(backbone)
        else:
            self.backbone = make_image_backbone(backbone)
        fine, coarse = backbone.out_channels
        self.lateral_fine = nn.Conv2d(fine, neck_channels, 1, bias=False)
        self.lateral_coarse = nn.Conv2d(coarse, neck_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(neck_channels)
        self.join = conv_norm(neck_channels + self.RAY_CHANNELS, neck_channels)
        self.moved = pixels_off_middle(backbone)
        self.outputs = (context_channels, num_depths, num_classes)
        self.out = nn.Conv2d(neck_channels, sum(self.outputs), 1)

    def norm_pairs(self) -> list[tuple[tuple[str, ...], str]]:
        """For layers.folding: what the norm takes."""
        return [(("lateral_fine", "lateral_coarse"), "norm")]

    def forward(self, images_MCHW: Tensor, rays_MRhw: Tensor) -> PictureFeatures:
        """(M, 3, H, W) and (M, RAY_CHANNELS, h, w) to maps at (h, w)."""
        if self.moved:
            images_MCHW = F.pad(images_MCHW, (-self.moved, self.moved, -self.moved, self.moved))
        fine, coarse = self.backbone(images_MCHW)
        coarse = doubled(self.lateral_coarse(coarse), on_cells=self.moved > 0)
        joined = torch.relu(self.norm(self.lateral_fine(fine) + coarse))
        out = self.out(self.join(torch.cat([joined, rays_MRhw.to(joined)], dim=1)))
        return PictureFeatures(*out.split(self.outputs, dim=1))


def doubled(map_MChw: Tensor, *, on_cells: bool) -> Tensor:
    """A map of twice the size, bilinear.

    Args:
        map_MChw: the map.
        on_cells: its cell i lies on cell 2 i of the result; else between cells 2 i and 2 i + 1.
    """
    if not on_cells:
        return F.interpolate(map_MChw, scale_factor=2, mode="bilinear", align_corners=False)
    h, w = map_MChw.shape[2:]
    padded = F.pad(map_MChw, (0, 1, 0, 1), mode="replicate")
    return F.interpolate(padded, size=(2 * h + 1, 2 * w + 1), mode="bilinear", align_corners=True)[..., :-1, :-1]


def conv_norm(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU. An even kernel goes with stride 2, an odd one with stride 1."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=(kernel - stride + 1) // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def zero_last_norms(modules: Sequence[nn.Module]) -> None:
    """Residual blocks begin as the identity: the scale of their last norm starts at zero."""
    for module in modules:
        if isinstance(module, BasicBlock2d):
            nn.init.zeros_(module.bn2.weight)

"""RenderOcc and UniOcc: cameras to a volume of densities and classes that can be rendered.

RenderOcc: Pan et al., ICRA 2024. UniOcc: Pan et al., 2023, whose own code was never published; what is known of it is
RenderOcc's network, and that of the fork FlashOCC_on_UniOcc_and_RenderOCC, which works in the bird's-eye view as
FlashOcc does. The losses are in losses/rendering.py and losses/occupied.py. Legend: B samples, C channels, K classes
without free space, S scores, Z Y X voxels. Submodules carry the names of the official checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor, nn

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.layers.bev_encoder import BevFpnLss, BevResNet, BevResNetConfig
from fusionocc_core.layers.density_head import (
    DensityHeadConfig,
    density_mlp,
    density_outputs,
    semantic_mlp,
    two_step_logits,
)
from fusionocc_core.layers.view_transform import Cameras, collapse_height
from fusionocc_core.layers.volume_encoder import LssFpn3d, ResNet3d, ResNet3dConfig
from fusionocc_core.models.fusionocc_official import check_official_grid
from fusionocc_core.models.lifted_frames import FramesConfig, LiftedFrames, SeenFrame
from fusionocc_core.models.renderocc_official import from_official
from fusionocc_core.structures import DensityOutputs, Outputs


@dataclass(frozen=True, kw_only=True)
class VolumeDecoderConfig:
    """3D convolutions over the voxels (BEVStereo-Occ)."""

    encoder: ResNet3dConfig = field(
        default_factory=lambda: ResNet3dConfig(channels=(32, 64, 128), blocks=(1, 2, 4), strides=(1, 2, 2))
    )
    channels: int = 32
    """Of each voxel in front of the heads."""

    @property
    def shrink(self) -> tuple[int, int, int]:
        """By how many the voxels along x, y, z must be divisible: by any number."""
        return 1, 1, 1


@dataclass(frozen=True, kw_only=True)
class PlaneDecoderConfig:
    """2D convolutions over the bird's-eye view, whose channels become columns of voxels (FlashOcc)."""

    encoder: BevResNetConfig = field(default_factory=lambda: BevResNetConfig(channels=(160, 320, 640)))
    channels: int = 256
    """Of each column in front of the heads."""

    @property
    def shrink(self) -> tuple[int, int, int]:
        """By how many the voxels along x, y, z must be divisible."""
        strides = prod(self.encoder.strides)
        return strides, strides, 1


@dataclass(frozen=True, kw_only=True)
class RenderOccConfig(FramesConfig):
    """Everything that decides what a RenderOcc or UniOcc network computes."""

    decoder: VolumeDecoderConfig | PlaneDecoderConfig
    head: DensityHeadConfig = field(default_factory=DensityHeadConfig)

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        super().__post_init__()
        if any(edge % shrink for edge, shrink in zip(self.grid.shape, self.decoder.shrink, strict=True)):
            raise ValueError(
                f"RenderOccConfig: the grid's {self.grid.shape} voxels must be multiples of {self.decoder.shrink}"
            )

    @property
    def lift_grid(self) -> VoxelGrid:
        """Voxels, or for a plane one layer of their whole height."""
        if isinstance(self.decoder, VolumeDecoderConfig):
            return self.grid
        x, y, _ = self.grid.voxel_size
        return replace(self.grid, voxel_size=(x, y, self.grid.upper[2] - self.grid.lower[2]))


class RenderOcc(LiftedFrames):
    """Frames are lifted and joined, encoded in 3D or in the bird's-eye view, and read by two small networks."""

    config: RenderOccConfig

    def __init__(self, config: RenderOccConfig) -> None:
        super().__init__(config, config.lift_grid)
        decoder, context, classes = config.decoder, config.view.context_channels, config.label_set.num - 1
        self.pre_process_net: nn.Module | None = None
        if isinstance(decoder, VolumeDecoderConfig):
            self.img_bev_encoder_backbone: nn.Module = ResNet3d(decoder.encoder, config.joined_channels)
            self.img_bev_encoder_neck: nn.Module = LssFpn3d(decoder.encoder.channels, decoder.channels)
            if config.frame_blocks:
                single = ResNet3dConfig(channels=(context,), blocks=(config.frame_blocks,), strides=(1,))
                self.pre_process_net = ResNet3d(single, context)
            conv: nn.Module = nn.Conv3d(decoder.channels, decoder.channels, 3, padding=1)
            heights = 1
        else:
            self.img_bev_encoder_backbone = BevResNet(decoder.encoder, config.joined_channels)
            upsampling = decoder.encoder.strides[0]
            self.img_bev_encoder_neck = BevFpnLss(decoder.encoder.channels, decoder.channels, upsampling=upsampling)
            if config.frame_blocks:
                flat = BevResNetConfig(channels=(context,), blocks=(config.frame_blocks,), strides=(1,))
                self.pre_process_net = BevResNet(flat, context)
            conv = nn.Conv2d(decoder.channels, decoder.channels, 3, padding=1)
            heights = config.grid.shape[2]
        self.final_conv = nn.Sequential(OrderedDict(conv=conv))
        self.density_mlp = density_mlp(config.head, decoder.channels, heights=heights)
        self.semantic_mlp = semantic_mlp(decoder.channels, classes=classes, heights=heights)

    def to_space(self, seen: SeenFrame, cameras: Cameras) -> Tensor:
        """The context of one frame: (B, C, Z, Y, X), or (B, C, Y, X) for a plane."""
        space = self.lifted(seen, cameras)
        if isinstance(self.config.decoder, PlaneDecoderConfig):
            space = collapse_height(space)
        return space if self.pre_process_net is None else self.pre_process_net(space)[0]

    def answer(self, views: Sequence[Tensor], seen: SeenFrame) -> Outputs:
        """The outputs, from what ``to_space`` gave of the frames, newest first, and what the current pictures show."""
        maps = self.img_bev_encoder_backbone(self.joined(views))
        if isinstance(self.config.decoder, VolumeDecoderConfig):
            space = self.img_bev_encoder_neck(maps)
        else:
            space = self.img_bev_encoder_neck(maps[0], maps[-1])
        density = self.densities(torch.relu(self.final_conv(space)))
        return Outputs(
            logits_BKXYZ=two_step_logits(self.config.head, density, free=self.config.label_set.free),
            depth_logits_BNDhw=seen.depth_and_context.depth_logits_BDhw.unflatten(0, (len(space), -1)),
            density=density,
        )

    def densities(self, features: Tensor) -> DensityOutputs:
        """What the two small networks say of features (B, C, Z, Y, X), or (B, C, Y, X) of a plane."""
        head, classes = self.config.head, self.config.label_set.num - 1
        if isinstance(self.config.decoder, VolumeDecoderConfig):
            cells_BXYZC = features.permute(0, 4, 3, 2, 1)
            scores_BXYZS, semantic_BXYZK = self.density_mlp(cells_BXYZC), self.semantic_mlp(cells_BXYZC)
        else:
            cells_BXYC = features.permute(0, 3, 2, 1)
            scores_BXYZS = self.density_mlp(cells_BXYC).unflatten(-1, (-1, head.scores))
            semantic_BXYZK = self.semantic_mlp(cells_BXYC).unflatten(-1, (-1, classes))
        return density_outputs(head, scores_BXYZS, semantic_BXYZK, edge=self.config.grid.voxel_size[0])

    @classmethod
    def state_from_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See models/renderocc_official.py."""
        return from_official(state)

    def check_official_config(self, config_text: str, source: str) -> None:
        """The grid of the checkpoint must be the one that pictures are lifted to."""
        check_official_grid(config_text, self.config.lift_grid, source)

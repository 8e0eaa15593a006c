"""FlashOcc: cameras to semantic voxels with 2D convolutions alone (Yu et al., "FlashOcc", 2023).

The pictures are lifted into a bird's-eye view of one layer; a head turns its channels into heights. Legend: B samples,
T frames in time (0 = now), N cameras, M pictures (B * N), C channels, K classes, D depth bins, V camera vector, H W
picture, h w feature map, Z Y X voxels. Submodules carry the names of the official checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.layers.bev_encoder import BevFpnLss, BevResNet, BevResNetConfig
from fusionocc_core.layers.center_head import CenterHead, CenterHeadConfig
from fusionocc_core.layers.height_head import ChannelToHeight
from fusionocc_core.layers.view_transform import Cameras, collapse_height
from fusionocc_core.models.flashocc_official import check_official_grid, from_official
from fusionocc_core.models.lifted_frames import FramesConfig, LiftedFrames
from fusionocc_core.models.lifted_frames import SeenFrame as SeenFrame
from fusionocc_core.structures import Outputs


@dataclass(frozen=True, kw_only=True)
class FlashOccConfig(FramesConfig):
    """Everything that decides what a FlashOcc network computes. The frames are joined in the bird's-eye view."""

    bev_encoder: BevResNetConfig
    bev_channels: int = 256
    """In front of the head."""
    centers: CenterHeadConfig | None = None
    """Finds objects, to tell those of one class apart (Panoptic-FlashOcc)."""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        super().__post_init__()
        cells, shrink = self.grid.shape[:2], prod(self.bev_encoder.strides)
        if any(edge % shrink for edge in cells):
            raise ValueError(f"FlashOccConfig: the grid's {cells} cells along x and y must be multiples of {shrink}")

    @property
    def bev_grid(self) -> VoxelGrid:
        """The bird's-eye view: the grid of the answer as one layer of its whole height."""
        x, y, _ = self.grid.voxel_size
        return replace(self.grid, voxel_size=(x, y, self.grid.upper[2] - self.grid.lower[2]))


class FlashOcc(LiftedFrames):
    """Pictures are lifted into a bird's-eye view, encoded there in 2D, and every cell's channels become a column."""

    config: FlashOccConfig
    compiled_parts = ("img_backbone", "img_neck", "img_bev_encoder_backbone", "img_bev_encoder_neck", "occ_head")
    """Not the view transform, whose points depend on the calibration."""

    def __init__(self, config: FlashOccConfig) -> None:
        super().__init__(config, config.bev_grid)
        context, encoder = config.view.context_channels, config.bev_encoder
        self.img_bev_encoder_backbone = BevResNet(encoder, config.joined_channels)
        self.img_bev_encoder_neck = BevFpnLss(encoder.channels, config.bev_channels, upsampling=encoder.strides[0])
        self.pre_process_net = None
        if config.frame_blocks:
            single = BevResNetConfig(channels=(context,), blocks=(config.frame_blocks,), strides=(1,))
            self.pre_process_net = BevResNet(single, context)
        self.occ_head = ChannelToHeight(
            config.bev_channels, heights=config.grid.shape[2], num_classes=config.label_set.num
        )
        self.aux_centerness_head = None
        if config.centers:
            self.aux_centerness_head = CenterHead(config.centers, config.bev_channels, config.label_set)

    def to_space(self, seen: SeenFrame, cameras: Cameras) -> Tensor:
        """The context of one frame in the bird's-eye view, (B, C, Y, X)."""
        bev_BCYX = collapse_height(self.lifted(seen, cameras))
        return bev_BCYX if self.pre_process_net is None else self.pre_process_net(bev_BCYX)[0]

    def answer(self, views: Sequence[Tensor], seen: SeenFrame) -> Outputs:
        """The outputs, from the bird's-eye views of the frames, newest first, and what the current pictures showed."""
        maps = self.img_bev_encoder_backbone(self.joined(views))
        bev_BCYX = self.img_bev_encoder_neck(maps[0], maps[-1])
        depth_MDhw = seen.depth_and_context.depth_logits_BDhw
        return Outputs(
            logits_BKXYZ=self.occ_head(bev_BCYX),
            depth_logits_BNDhw=depth_MDhw.unflatten(0, (len(bev_BCYX), -1)),
            centers=self.aux_centerness_head(bev_BCYX) if self.aux_centerness_head else None,
        )

    @classmethod
    def state_from_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See models/flashocc_official.py."""
        return from_official(state)

    def check_official_config(self, config_text: str, source: str) -> None:
        """The grid of the checkpoint must be this network's bird's-eye view."""
        check_official_grid(config_text, self.config.bev_grid, source)

"""FlashOcc: cameras to semantic voxels with 2D convolutions alone (Yu et al., "FlashOcc", 2023).

The pictures are lifted into a bird's-eye view of one layer; a head turns its channels into heights. Legend: B samples,
T frames in time (0 = now), N cameras, M pictures (B * N), C channels, K classes, D depth bins, V camera vector, H W
picture, h w feature map, Z Y X voxels. Submodules carry the names of the official checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from fusionocc_core.grids import DepthBins, LabelSet, VoxelGrid
from fusionocc_core.layers.bev_encoder import BevFpnLss, BevResNet, BevResNetConfig
from fusionocc_core.layers.camera_depth import CameraDepthConfig, StereoConfig
from fusionocc_core.layers.center_head import CenterHead, CenterHeadConfig
from fusionocc_core.layers.height_head import ChannelToHeight
from fusionocc_core.layers.image_backbones import (
    ImageBackboneConfig,
    TimmBackbone,
    TimmBackboneConfig,
    make_image_backbone,
)
from fusionocc_core.layers.image_necks import ImageNeckConfig, make_image_neck
from fusionocc_core.layers.lss import DepthAndContext, ViewConfig, make_view
from fusionocc_core.layers.stereo import StereoMatcher, StereoReference
from fusionocc_core.layers.view_transform import (
    Cameras,
    Lift,
    LiftConfig,
    camera_vectors,
    cameras_at,
    collapse_height,
)
from fusionocc_core.models.flashocc_official import check_official_grid, from_official
from fusionocc_core.models.network import OccupancyNetwork, check_depth_range, refuse_presence_masks
from fusionocc_core.structures import Batch, InputConfig, Outputs


@dataclass(frozen=True, kw_only=True)
class FlashOccConfig:
    """Everything that decides what a FlashOcc network computes.

    ``lift`` and several fields of ``inputs`` name habits of the official checkpoints; their defaults are the correct
    behaviour.
    """

    inputs: InputConfig
    grid: VoxelGrid
    """The voxels of the answer; the bird's-eye view has its cells along x and y."""
    label_set: LabelSet
    depth_bins: DepthBins
    image_backbone: ImageBackboneConfig
    image_neck: ImageNeckConfig
    view: ViewConfig
    lift: LiftConfig
    bev_encoder: BevResNetConfig
    bev_channels: int = 256
    """In front of the head."""
    frame_blocks: int = 0
    """Residual blocks on the bird's-eye view of each frame, before the frames are joined."""
    frame_order: str = "newest_first"
    """Order of the frames in the channels of the joined view: "newest_first" or "oldest_first"."""
    history_gradient: bool = True
    """False: earlier pictures get no gradient (official: saves memory; their batch norms still learn statistics)."""
    history_camera_pose: str = "own"
    """Pose in the camera vector of earlier pictures: their "own", or the "current" one (official). The lift itself
    always uses their own."""
    centers: CenterHeadConfig | None = None
    """Finds objects, to tell those of one class apart (Panoptic-FlashOcc)."""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        choices = {"frame_order": ("newest_first", "oldest_first"), "history_camera_pose": ("own", "current")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"FlashOccConfig.{name}={getattr(self, name)!r}: expected one of {allowed}")
        if self.stereo and self.lifted_frames < 1:
            raise ValueError(
                "FlashOccConfig: view.stereo matches with an earlier picture: inputs.camera_history=0 is none"
            )
        if self.stereo and isinstance(self.image_backbone, TimmBackboneConfig):
            raise ValueError(
                f"FlashOccConfig: view.stereo needs a SwinConfig or a ResNetConfig, which give maps at a quarter of "
                f"the picture's size; image_backbone={self.image_backbone}"
            )
        if any(edge % self.feature_stride for edge in self.inputs.image_size):
            raise ValueError(
                f"FlashOccConfig: inputs.image_size={self.inputs.image_size} must be multiples of {self.feature_stride}"
            )
        cells, shrink = self.grid.shape[:2], prod(self.bev_encoder.strides)
        if any(edge % shrink for edge in cells):
            raise ValueError(f"FlashOccConfig: the grid's {cells} cells along x and y must be multiples of {shrink}")
        check_depth_range("FlashOccConfig", self.inputs, self.depth_bins)
        refuse_presence_masks("FlashOccConfig", self.inputs)

    @property
    def feature_stride(self) -> int:
        """Pixels of the network's picture a feature cell."""
        return self.image_backbone.stride

    @property
    def num_frames(self) -> int:
        """Pictures a camera: now and the earlier keyframes."""
        return 1 + self.inputs.camera_history

    @property
    def stereo(self) -> StereoConfig | None:
        """How pictures are matched with earlier ones; None where they are not."""
        return self.view.stereo if isinstance(self.view, CameraDepthConfig) else None

    @property
    def lifted_frames(self) -> int:
        """Frames in the bird's-eye view; with stereo, the oldest pictures are only there to be matched with."""
        return self.num_frames - (1 if self.stereo else 0)

    @property
    def joined_channels(self) -> int:
        """Channels of the bird's-eye view that joins the frames."""
        return self.lifted_frames * self.view.context_channels

    @property
    def bev_grid(self) -> VoxelGrid:
        """The bird's-eye view: the grid of the answer as one layer of its whole height."""
        x, y, _ = self.grid.voxel_size
        return replace(self.grid, voxel_size=(x, y, self.grid.upper[2] - self.grid.lower[2]))


@dataclass(frozen=True, kw_only=True)
class SeenFrame:
    """What is in the pictures of one frame; the cameras of all samples lie along the first axis."""

    depth_and_context: DepthAndContext
    reference: StereoReference | None
    """With stereo: what the pictures of the next frame are matched with."""


class FlashOcc(OccupancyNetwork):
    """Pictures are lifted into a bird's-eye view, encoded there in 2D, and every cell's channels become a column."""

    config: FlashOccConfig

    def __init__(self, config: FlashOccConfig) -> None:
        super().__init__(config)
        context, encoder = config.view.context_channels, config.bev_encoder
        self.img_backbone = make_image_backbone(config.image_backbone)
        self.img_neck = make_image_neck(config.image_neck, config.image_backbone.out_channels)
        self.img_view_transformer = make_view(config.view, config.image_neck.channels, num_depths=config.depth_bins.num)
        self.lift = Lift(
            config.lift,
            bins=config.depth_bins,
            grid=config.bev_grid,
            image_size=config.inputs.image_size,
            stride=config.image_backbone.stride,
        )
        self.stereo = None
        if config.stereo:
            self.stereo = StereoMatcher(
                config.stereo, config.lift, bins=config.depth_bins, image_size=config.inputs.image_size
            )
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

    def forward(self, batch: Batch) -> Outputs:
        """Class scores of every voxel, and the depth scores of the current pictures.

        Raises:
            ValueError: the batch holds no camera, or another number of frames or another picture size than configured.
        """
        self._check(batch)
        views, reference = [], self.reference(batch, self.config.lifted_frames) if self.stereo else None
        for time in reversed(range(self.config.lifted_frames)):  # oldest first
            learn = torch.is_grad_enabled() and (time == 0 or self.config.history_gradient)
            with torch.set_grad_enabled(learn):
                seen = self.see(batch, time, reference)
                views.append(self.to_bev(seen, cameras_at(batch, time)))
            reference = seen.reference
        return self.answer(views[::-1], seen)

    def see(self, batch: Batch, time: int, reference: StereoReference | None) -> SeenFrame:
        """Depth and context in the pictures of one frame; with stereo, ``reference`` is the frame before."""
        cameras = cameras_at(batch, time)
        pose_time = 0 if self.config.history_camera_pose == "current" else time
        vectors_MV = camera_vectors(cameras, batch.cam2keyego_BTN44[:, pose_time]).flatten(0, 1)
        images_MCHW = batch.images_BTNCHW[:, time].flatten(0, 1)
        if self.stereo is None or reference is None:
            features_MChw = self.img_neck(*self.img_backbone(images_MCHW))
            return SeenFrame(depth_and_context=self.img_view_transformer(features_MChw, vectors_MV), reference=None)
        maps = self._stages(images_MCHW, None)
        cost_MDHW = self.stereo(maps[0], cameras, reference)
        return SeenFrame(
            depth_and_context=self.img_view_transformer(self.img_neck(*maps[-2:]), vectors_MV, cost_MDHW),
            reference=StereoReference(map_MCHW=maps[0].detach(), cameras=cameras),
        )

    @torch.no_grad()
    def reference(self, batch: Batch, time: int) -> StereoReference:
        """What the frame after ``time`` is matched with: the first stage of the backbone alone."""
        (map_MCHW,) = self._stages(batch.images_BTNCHW[:, time].flatten(0, 1), 1)
        return StereoReference(map_MCHW=map_MCHW, cameras=cameras_at(batch, time))

    def _stages(self, images_MCHW: Tensor, count: int | None) -> list[Tensor]:
        assert not isinstance(self.img_backbone, TimmBackbone)  # the config refuses it for stereo
        return self.img_backbone.stage_maps(images_MCHW, count=count)

    def to_bev(self, seen: SeenFrame, cameras: Cameras) -> Tensor:
        """The context of one frame in the bird's-eye view, (B, C, Y, X)."""
        shape_BN = cameras.intrinsics_BN33.shape[:2]
        depth_BNDhw = seen.depth_and_context.depth_logits_BDhw.softmax(dim=1).unflatten(0, shape_BN)
        context_BNChw = seen.depth_and_context.context_BChw.unflatten(0, shape_BN)
        bev_BCYX = collapse_height(self.lift(depth_BNDhw, context_BNChw, cameras))
        return bev_BCYX if self.pre_process_net is None else self.pre_process_net(bev_BCYX)[0]

    def answer(self, views: Sequence[Tensor], seen: SeenFrame) -> Outputs:
        """The outputs, from the bird's-eye views of the frames, newest first, and what the current pictures showed."""
        ordered = views if self.config.frame_order == "newest_first" else views[::-1]
        maps = self.img_bev_encoder_backbone(torch.cat(list(ordered), dim=1))
        bev_BCYX = self.img_bev_encoder_neck(maps[0], maps[-1])
        depth_MDhw = seen.depth_and_context.depth_logits_BDhw
        return Outputs(
            logits_BKXYZ=self.occ_head(bev_BCYX),
            depth_logits_BNDhw=depth_MDhw.unflatten(0, (len(bev_BCYX), -1)),
            centers=self.aux_centerness_head(bev_BCYX) if self.aux_centerness_head else None,
        )

    def _check(self, batch: Batch) -> None:
        frames, cameras = batch.images_BTNCHW.shape[1:3]
        size = tuple(batch.images_BTNCHW.shape[4:])
        if frames != self.config.num_frames or size != self.config.inputs.image_size or cameras < 1:
            raise ValueError(
                f"FlashOcc: the batch holds {frames} frames of {cameras} pictures of {size} pixels; this network "
                f"takes {self.config.num_frames} frames of at least one picture of {self.config.inputs.image_size}"
            )

    @classmethod
    def state_from_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See models/flashocc_official.py."""
        return from_official(state)

    def check_official_config(self, config_text: str, source: str) -> None:
        """The grid of the checkpoint must be this network's bird's-eye view."""
        check_official_grid(config_text, self.config.bev_grid, source)

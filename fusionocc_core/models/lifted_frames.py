"""What FlashOcc and RenderOcc share: the pictures of several frames, each lifted into the space around the vehicle.

Legend: B samples, T frames in time (0 = now), N cameras, M pictures (B * N), C channels, D depth bins, V camera vector,
H W picture, h w feature map, Z Y X voxels. Submodules carry the names of the official checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionocc_core.grids import DepthBins, LabelSet, VoxelGrid
from fusionocc_core.layers.camera_depth import CameraDepthConfig, StereoConfig
from fusionocc_core.layers.image_backbones import (
    ImageBackboneConfig,
    ResNetBackbone,
    SwinBackbone,
    TimmBackboneConfig,
    make_image_backbone,
)
from fusionocc_core.layers.image_necks import ImageNeckConfig, make_image_neck
from fusionocc_core.layers.lss import DepthAndContext, ViewConfig, make_view
from fusionocc_core.layers.measured_depth import override_depth
from fusionocc_core.layers.stereo import StereoMatcher, StereoReference
from fusionocc_core.layers.thin_image_net import ThinImageNet, ThinImageNetConfig
from fusionocc_core.layers.view_transform import (
    Cameras,
    Lift,
    LiftConfig,
    camera_vectors,
    cameras_at,
    measured_depth_bins,
)
from fusionocc_core.models.network import OccupancyNetwork, check_depth_range, refuse_presence_masks
from fusionocc_core.structures import Batch, InputConfig, Outputs

DEPTH_SOURCES = ("predicted", "measured")


@dataclass(frozen=True, kw_only=True)
class FramesConfig:
    """How pictures become features in space.

    ``lift`` and several fields of ``inputs`` name habits of the official checkpoints; their defaults are the correct
    behaviour.
    """

    inputs: InputConfig
    grid: VoxelGrid
    """The voxels of the answer."""
    label_set: LabelSet
    depth_bins: DepthBins
    image_backbone: ImageBackboneConfig | ThinImageNetConfig
    image_neck: ImageNeckConfig
    view: ViewConfig
    lift: LiftConfig
    frame_blocks: int = 0
    """Residual blocks on what each frame gives, before the frames are joined."""
    frame_order: str = "newest_first"
    """Order of the frames in the joined channels: "newest_first" or "oldest_first"."""
    history_gradient: bool = True
    """False: earlier pictures get no gradient (official: saves memory; their batch norms still learn statistics)."""
    history_camera_pose: str = "own"
    """Pose in the camera vector of earlier pictures: their "own", or the "current" one (official). The lift itself
    always uses their own."""
    depth_source: str = "predicted"
    """"measured": where the LiDAR has a point, a current picture's feature cell lies in that point's depth bin alone,
    and elsewhere where the network predicts it (UniOcc's teacher). "predicted": everywhere the latter."""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        name = type(self).__name__
        choices = {
            "frame_order": ("newest_first", "oldest_first"),
            "history_camera_pose": ("own", "current"),
            "depth_source": DEPTH_SOURCES,
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{name}.{field}={getattr(self, field)!r}: expected one of {allowed}")
        if self.stereo and self.lifted_frames < 1:
            raise ValueError(f"{name}: view.stereo matches with an earlier picture: inputs.camera_history=0 is none")
        if self.stereo and isinstance(self.image_backbone, TimmBackboneConfig | ThinImageNetConfig):
            raise ValueError(
                f"{name}: view.stereo needs a SwinConfig or a ResNetConfig, which give maps at a quarter of "
                f"the picture's size; image_backbone={self.image_backbone}"
            )
        if any(edge % self.feature_stride for edge in self.inputs.image_size):
            raise ValueError(
                f"{name}: inputs.image_size={self.inputs.image_size} must be multiples of {self.feature_stride}"
            )
        check_depth_range(name, self.inputs, self.depth_bins)
        refuse_presence_masks(name, self.inputs)

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
        """Frames that are lifted; with stereo, the oldest pictures are only there to be matched with."""
        return self.num_frames - (1 if self.stereo else 0)

    @property
    def joined_channels(self) -> int:
        """Channels of all frames together."""
        return self.lifted_frames * self.view.context_channels


@dataclass(frozen=True, kw_only=True)
class SeenFrame:
    """What is in the pictures of one frame; the cameras of all samples lie along the first axis."""

    depth_and_context: DepthAndContext
    reference: StereoReference | None
    """With stereo: what the pictures of the next frame are matched with."""
    measured_Mhw: Tensor | None = None
    """int64 (M, h, w): depth bins of points that replace what is predicted (see layers/measured_depth.py)."""


class LiftedFrames(OccupancyNetwork):
    """Pictures frame by frame, oldest first, to depth and features, to space; what follows is the networks' own."""

    config: FramesConfig

    def __init__(self, config: FramesConfig, lift_grid: VoxelGrid) -> None:
        super().__init__(config)
        backbone = config.image_backbone
        self.img_backbone: nn.Module = (
            ThinImageNet(backbone) if isinstance(backbone, ThinImageNetConfig) else make_image_backbone(backbone)
        )
        self.img_neck = make_image_neck(config.image_neck, backbone.out_channels)
        self.img_view_transformer = make_view(config.view, config.image_neck.channels, num_depths=config.depth_bins.num)
        size = config.inputs.image_size
        self.lift = Lift(
            config.lift, bins=config.depth_bins, grid=lift_grid, image_size=size, stride=config.feature_stride
        )
        self.stereo = None
        if config.stereo:
            self.stereo = StereoMatcher(config.stereo, config.lift, bins=config.depth_bins, image_size=size)

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
                views.append(self.to_space(seen, cameras_at(batch, time)))
            reference = seen.reference
        return self.answer(views[::-1], seen)

    def to_space(self, seen: SeenFrame, cameras: Cameras) -> Tensor:
        """What one frame shows, lifted, ready to be joined with the other frames."""
        raise NotImplementedError

    def answer(self, views: Sequence[Tensor], seen: SeenFrame) -> Outputs:
        """The outputs, from what ``to_space`` gave of the frames, newest first, and what the current pictures show."""
        raise NotImplementedError

    def see(self, batch: Batch, time: int, reference: StereoReference | None) -> SeenFrame:
        """Depth and context in the pictures of one frame; with stereo, ``reference`` is the frame before."""
        cameras = cameras_at(batch, time)
        pose_time = 0 if self.config.history_camera_pose == "current" else time
        vectors_MV = camera_vectors(cameras, batch.cam2keyego_BTN44[:, pose_time]).flatten(0, 1)
        images_MCHW = batch.images_BTNCHW[:, time].flatten(0, 1)
        measured_Mhw = self._measured(batch) if time == 0 else None
        if self.stereo is None or reference is None:
            features_MChw = self.img_neck(*self.img_backbone(images_MCHW))
            both = self.img_view_transformer(features_MChw, vectors_MV)
            return SeenFrame(depth_and_context=both, reference=None, measured_Mhw=measured_Mhw)
        maps = self._stages(images_MCHW, None)
        cost_MDHW = self.stereo(maps[0], cameras, reference)
        return SeenFrame(
            depth_and_context=self.img_view_transformer(self.img_neck(*maps[-2:]), vectors_MV, cost_MDHW),
            reference=StereoReference(map_MCHW=maps[0].detach(), cameras=cameras),
            measured_Mhw=measured_Mhw,
        )

    def _measured(self, batch: Batch) -> Tensor | None:
        if self.config.depth_source == "predicted":
            return None
        return measured_depth_bins(batch.depth_BNHW, self.config.depth_bins, self.config.feature_stride).flatten(0, 1)

    @torch.no_grad()
    def reference(self, batch: Batch, time: int) -> StereoReference:
        """What the frame after ``time`` is matched with: the first stage of the backbone alone."""
        (map_MCHW,) = self._stages(batch.images_BTNCHW[:, time].flatten(0, 1), 1)
        return StereoReference(map_MCHW=map_MCHW, cameras=cameras_at(batch, time))

    def _stages(self, images_MCHW: Tensor, count: int | None) -> list[Tensor]:
        assert isinstance(self.img_backbone, SwinBackbone | ResNetBackbone)  # the config sees to it for stereo
        return self.img_backbone.stage_maps(images_MCHW, count=count)

    def lifted(self, seen: SeenFrame, cameras: Cameras) -> Tensor:
        """The context of one frame in space, (B, C, Z, Y, X)."""
        shape_BN = cameras.intrinsics_BN33.shape[:2]
        depth_MDhw = seen.depth_and_context.depth_logits_BDhw.softmax(dim=1)
        if seen.measured_Mhw is not None:
            depth_MDhw = override_depth(depth_MDhw, seen.measured_Mhw)
        context_BNChw = seen.depth_and_context.context_BChw.unflatten(0, shape_BN)
        volume_BCZYX: Tensor = self.lift(depth_MDhw.unflatten(0, shape_BN), context_BNChw, cameras)
        return volume_BCZYX

    def joined(self, views: Sequence[Tensor]) -> Tensor:
        """The frames, newest first, in the order of channels that the configuration says."""
        ordered = views if self.config.frame_order == "newest_first" else views[::-1]
        return torch.cat(list(ordered), dim=1)

    def _check(self, batch: Batch) -> None:
        frames, cameras = batch.images_BTNCHW.shape[1:3]
        size = tuple(batch.images_BTNCHW.shape[4:])
        if frames != self.config.num_frames or size != self.config.inputs.image_size or cameras < 1:
            raise ValueError(
                f"{type(self).__name__}: the batch holds {frames} frames of {cameras} pictures of {size} pixels; this "
                f"network takes {self.config.num_frames} frames of at least one picture of "
                f"{self.config.inputs.image_size}"
            )

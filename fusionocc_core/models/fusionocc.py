"""FusionOcc: six cameras and a LiDAR to semantic voxels (Zhang et al., ACM MM 2024).

Legend: B samples, T frames in time (0 = now), N cameras, C channels, K classes, D depth bins, V camera vector, H W
picture, h w feature map, Z Y X voxels. Submodules carry the names of the official checkpoint, "predicter" included.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionocc_core.grids import DepthBins, LabelSet, VoxelGrid
from fusionocc_core.layers.conv_blocks import init_conv
from fusionocc_core.layers.cross_modal import CrossModalNet, DepthSegConfig, DepthSegOutputs
from fusionocc_core.layers.image_backbones import ImageBackboneConfig, SwinBackbone, make_image_backbone
from fusionocc_core.layers.image_necks import FpnLss, FpnLssConfig
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig, SparseLidarEncoder
from fusionocc_core.layers.swin_inference import SwinInferenceBlock
from fusionocc_core.layers.view_transform import (
    Cameras,
    Lift,
    LiftConfig,
    camera_vectors,
    cameras_at,
    measured_depth_bins,
)
from fusionocc_core.layers.volume_encoder import LssFpn3d, OccupancyHead, ResNet3d, ResNet3dConfig
from fusionocc_core.models.fusionocc_official import check_official_grid, from_official
from fusionocc_core.models.network import OccupancyNetwork, check_depth_range, refuse_presence_masks
from fusionocc_core.structures import Batch, InputConfig, Outputs


@dataclass(frozen=True, kw_only=True)
class FusionOccConfig:
    """Everything that decides what a FusionOcc network computes.

    The fields from ``history_depth`` on, those of ``lift``, and several of ``inputs`` name habits of the official
    checkpoint; their defaults are the correct behaviour.
    """

    inputs: InputConfig
    grid: VoxelGrid
    """The voxels of the answer."""
    label_set: LabelSet
    depth_bins: DepthBins
    image_backbone: ImageBackboneConfig
    image_neck: FpnLssConfig
    depth_seg: DepthSegConfig
    lift: LiftConfig
    lidar: LidarEncoderConfig
    """Its output grid is ``grid``."""
    volume_encoder: ResNet3dConfig
    """On the fused volume; its first stage keeps the resolution."""
    lifted_blocks: int = 1
    """Residual 3D blocks on the lifted volume of each frame, before frames and LiDAR are joined."""
    volume_channels: int = 64
    """Channels in front of the head."""
    history_depth: str = "none"
    """Measured depth that earlier pictures are fused with: "none", or "current" (official: the current sweep in the
    current cameras, although the earlier pictures were taken elsewhere)."""
    history_camera_pose: str = "own"
    """Pose in the camera vector of earlier pictures: their "own", or the "current" one (official). The lift itself
    always uses their own."""
    history_gradient: bool = True
    """False: earlier pictures get no gradient (official: saves memory; their batch norms still learn statistics)."""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        choices = {"history_depth": ("none", "current"), "history_camera_pose": ("own", "current")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"FusionOccConfig.{name}={getattr(self, name)!r}: expected one of {allowed}")
        coarse = 2 * self.image_backbone.stride
        if any(edge % coarse for edge in self.inputs.image_size):
            raise ValueError(
                f"FusionOccConfig: inputs.image_size={self.inputs.image_size} must be multiples of {coarse}"
            )
        out = self.lidar.output_grid
        if (out.shape, out.lower, out.upper, out.frame) != (
            self.grid.shape,
            self.grid.lower,
            self.grid.upper,
            self.grid.frame,
        ):
            raise ValueError(
                f"FusionOccConfig: the LiDAR encoder gives {out}, the answer is {self.grid}; choose lidar.grid so that "
                f"its voxels are 1/{self.lidar.stride} of the answer's"
            )
        if self.volume_encoder.strides[0] != 1:
            raise ValueError(f"FusionOccConfig: volume_encoder.strides={self.volume_encoder.strides} must begin with 1")
        check_depth_range("FusionOccConfig", self.inputs, self.depth_bins)
        refuse_presence_masks("FusionOccConfig", self.inputs)

    @property
    def feature_stride(self) -> int:
        """Pixels of the network's picture a feature cell."""
        return self.image_backbone.stride

    @property
    def num_frames(self) -> int:
        """Pictures a camera: now and the earlier keyframes."""
        return 1 + self.inputs.camera_history

    @property
    def fused_channels(self) -> int:
        """Channels of the volume that joins the frames and the LiDAR."""
        return self.num_frames * self.depth_seg.feature_channels + self.lidar.out_channels


BFLOAT16_PARTS = (
    "img_neck",
    *(f"img_view_transformer.{part}" for part in ("depth_encoder", "img_reduce_conv", "cross_model_fusion.fuse_conv")),
    "img_view_transformer.further_fuse",
    *(f"img_view_transformer.depth_seg_net.reduce_conv_{branch}" for branch in ("depth", "seg", "context")),
    *(f"img_view_transformer.depth_seg_net.depth_conv.{number}" for number in range(3)),
    *(f"img_view_transformer.depth_seg_net.{branch}_conv" for branch in ("seg", "context")),
    "pre_process_net",
    "img_bev_encoder_backbone",
    "img_bev_encoder_neck.conv",
    "final_conv",
)
"""Parts behind the image backbone that may compute in bfloat16. What is never called by itself (the convolution of the
last neck) casts nothing: the neck's maps come and go as they are, and the large ones stay in bfloat16."""


@dataclass(frozen=True, kw_only=True)
class KeptPictures:
    """Pictures and what the backbone and neck made of them, for the keyframes after (``FusionOcc.next_keyframe``)."""

    images_BTNCHW: Tensor
    """Newest first; as many frames as the network looks back."""
    features: tuple[Tensor, ...]
    """(B, N, C, h, w) of each of these frames."""

    def known(self, images_BTNCHW: Tensor) -> dict[int, Tensor]:
        """Features (B * N, C, h, w) of those earlier frames (1, 2, ...) of a batch whose pictures are all kept here."""
        found = {}
        for time in range(1, images_BTNCHW.shape[1]):
            for kept, features_BNChw in enumerate(self.features):
                if torch.equal(images_BTNCHW[:, time], self.images_BTNCHW[:, kept]):
                    found[time] = features_BNChw.flatten(0, 1)
                    break
        return found


class FusionOcc(OccupancyNetwork):
    """Pictures and LiDAR depth are fused in the picture, lifted into voxels, and fused there with LiDAR features."""

    config: FusionOccConfig

    def __init__(self, config: FusionOccConfig) -> None:
        super().__init__(config)
        features, width = config.depth_seg.feature_channels, config.volume_channels
        num_classes, encoder = config.label_set.num, config.volume_encoder
        self.img_backbone = make_image_backbone(config.image_backbone)
        self.img_neck = FpnLss(config.image_neck, config.image_backbone.out_channels)
        self.img_view_transformer = CrossModalNet(
            config.depth_seg, config.image_neck.channels, num_depths=config.depth_bins.num, num_classes=num_classes
        )
        self.lift = Lift(
            config.lift,
            bins=config.depth_bins,
            grid=config.grid,
            image_size=config.inputs.image_size,
            stride=config.image_backbone.stride,
        )
        lifted = ResNet3dConfig(channels=(features,), blocks=(config.lifted_blocks,), strides=(1,))
        self.pre_process_net = ResNet3d(lifted, features)
        self.lidar_encoder = SparseLidarEncoder(config.lidar)
        self.img_bev_encoder_backbone = ResNet3d(encoder, config.fused_channels)
        self.img_bev_encoder_neck = LssFpn3d(encoder.channels, width)
        self.final_conv = nn.Sequential(OrderedDict(conv=nn.Conv3d(width, width, 3, padding=1), relu=nn.ReLU()))
        self.predicter = OccupancyHead(width, num_classes)
        self.final_conv.apply(init_conv)

    def forward(self, batch: Batch) -> Outputs:
        """Class scores of every voxel, and the depth and segmentation scores of the current pictures.

        Raises:
            ValueError: the batch holds no camera, or another number of frames or another picture size than configured.
        """
        self._check(batch)
        return self._run(batch, {})[0]

    @torch.no_grad()
    def next_keyframe(self, batch: Batch, kept: KeptPictures | None) -> tuple[Outputs, KeptPictures]:
        """As ``forward``, and the same answer, but earlier pictures that are kept are not looked at again.

        What is kept is compared with the pictures of the batch, number by number: after a skipped keyframe, with other
        cameras or another drive, nothing fits, and everything is computed. Poses, points, measured depth and
        augmentation always come from the batch, so that the vehicle and the grid may move as they like.

        Args:
            batch: as for ``forward``, with its earlier keyframes.
            kept: what the previous call returned; None at the start. It must be forgotten when the weights change.

        Returns:
            The answer, and what to pass with the next keyframe.

        Raises:
            ValueError: as ``forward``; or the network is in training mode, or what is kept is another network's.
        """
        self._check(batch)
        self._check_kept(kept)
        outputs, features = self._run(batch, {} if kept is None else kept.known(batch.images_BTNCHW))
        earlier = self.config.num_frames - 1
        shape_BN = batch.depth_BNHW.shape[:2]
        return (
            outputs,
            KeptPictures(
                images_BTNCHW=batch.images_BTNCHW[:, :earlier].clone(),  # the batch's own may be written over
                features=tuple(features_BChw.unflatten(0, shape_BN) for features_BChw in features[:earlier]),
            ),
        )

    @property
    def bfloat16_parts(self) -> tuple[str, ...]:
        """What may compute in bfloat16.

        Not the numbers of the cameras, the layers that choose depths and classes, the lift, and the sparse
        convolutions. Nothing with a small convolutional backbone: a trained fusionocc-tiny kept 99.2 % of its labels.
        """
        if not isinstance(self.img_backbone, SwinBackbone):
            return ()
        blocks = [name for name, part in self.img_backbone.named_modules() if isinstance(part, SwinInferenceBlock)]
        if not blocks:
            return "img_backbone", *BFLOAT16_PARTS
        merging = [name for name, _ in self.img_backbone.named_modules() if name.endswith("downsample.reduction")]
        inside = [f"{name}.products" for name in blocks] + merging
        return *(f"img_backbone.{name}" for name in inside), *BFLOAT16_PARTS

    def _run(self, batch: Batch, known: Mapping[int, Tensor]) -> tuple[Outputs, list[Tensor]]:
        """The answer, and the features of the pictures of all frames, newest first; ``known`` are those of some."""
        volumes: list[Tensor] = []
        features: list[Tensor] = []
        for time in reversed(range(self.config.num_frames)):  # oldest first: the order of the channels
            learn = torch.is_grad_enabled() and (time == 0 or self.config.history_gradient)
            with torch.set_grad_enabled(learn):
                features.append(known[time] if time in known else self._features(batch, time))
                seen = self._see(batch, time, features[-1])
                volumes.append(self._to_volume(seen, cameras_at(batch, time)))
        volumes.append(self.lidar_encoder(batch.points).to(volumes[0].dtype))
        maps = self.img_bev_encoder_backbone(torch.cat(volumes, dim=1))
        volume_BCZYX = self.final_conv(self.img_bev_encoder_neck(maps))
        shape_BN = batch.depth_BNHW.shape[:2]
        outputs = Outputs(
            logits_BKXYZ=self.predicter(volume_BCZYX),
            depth_logits_BNDhw=seen.depth_logits_BDhw.unflatten(0, shape_BN),
            seg_logits_BNKhw=seen.seg_logits_BKhw.unflatten(0, shape_BN),
        )
        return outputs, features[::-1]

    def _features(self, batch: Batch, time: int) -> Tensor:
        """What backbone and neck make of the pictures of one frame; all samples' cameras lie along the first axis.

        Without gradients a CPU takes one picture after the other: less memory, and what it works on stays in its cache.
        """
        images_BCHW = batch.images_BTNCHW[:, time].flatten(0, 1)
        alone = images_BCHW.device.type == "cpu" and not torch.is_grad_enabled() and not self.training
        parts = images_BCHW.split(1) if alone else (images_BCHW,)
        return torch.cat([self.img_neck(*self.img_backbone(part)) for part in parts])

    def _see(self, batch: Batch, time: int, features_BChw: Tensor) -> DepthSegOutputs:
        """Depth, segmentation and features to be lifted, of the pictures of one frame."""
        depth_BNHW = batch.depth_BNHW
        if time > 0 and self.config.history_depth == "none":
            depth_BNHW = torch.zeros_like(depth_BNHW)
        bins_BNhw = measured_depth_bins(depth_BNHW, self.config.depth_bins, self.config.image_backbone.stride)
        pose_time = 0 if self.config.history_camera_pose == "current" else time
        vectors_BNV = camera_vectors(cameras_at(batch, time), batch.cam2keyego_BTN44[:, pose_time])
        return self.img_view_transformer(features_BChw, bins_BNhw.flatten(0, 1), vectors_BNV.flatten(0, 1))

    def _to_volume(self, seen: DepthSegOutputs, cameras: Cameras) -> Tensor:
        """The features of one frame in the volume, (B, C, Z, Y, X)."""
        shape_BN = cameras.intrinsics_BN33.shape[:2]
        depth_BNDhw = seen.depth_logits_BDhw.softmax(dim=1).unflatten(0, shape_BN)
        volume_BCZYX = self.lift(depth_BNDhw, seen.feature_BChw.unflatten(0, shape_BN), cameras)
        return self.pre_process_net(volume_BCZYX)[0]

    def _check(self, batch: Batch) -> None:
        frames, cameras = batch.images_BTNCHW.shape[1:3]
        size = tuple(batch.images_BTNCHW.shape[4:])
        if frames != self.config.num_frames or size != self.config.inputs.image_size or cameras < 1:
            raise ValueError(
                f"FusionOcc: the batch holds {frames} frames of {cameras} pictures of {size} pixels; this network "
                f"takes {self.config.num_frames} frames of at least one picture of {self.config.inputs.image_size}"
            )

    def _check_kept(self, kept: KeptPictures | None) -> None:
        if self.training:
            raise ValueError("FusionOcc.next_keyframe: the network is in training mode; call eval() on it first")
        channels, frames = self.config.image_neck.channels, self.config.num_frames - 1
        found = [] if kept is None else [features_BNChw.shape[2] for features_BNChw in kept.features]
        if kept is not None and found != [channels] * frames:
            raise ValueError(
                f"FusionOcc.next_keyframe: kept features have {found} channels, expected {frames} frames of "
                f"{channels}: they are another network's; start with kept=None"
            )

    @classmethod
    def state_from_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See models/fusionocc_official.py."""
        return from_official(state)

    def check_official_config(self, config_text: str, source: str) -> None:
        """The grid of the checkpoint must be this network's."""
        check_official_grid(config_text, self.config.grid, source)

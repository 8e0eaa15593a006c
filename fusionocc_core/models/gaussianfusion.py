"""GaussianFusion: pictures and LiDAR to semantic voxels, by way of Gaussians that begin where something was measured.

GaussianFormer-2 (Huang et al., CVPR 2025) without its second backbone: Gaussians start in cells that hold LiDAR points
with what the LiDAR branch knows of them, their key points look into the pictures, gated by depth, and into the LiDAR's
features. Whatever sensor is absent has no influence at all. See docs/gaussianfusion.md.

Legend: B samples, N cameras, M present cameras of all samples, C channels, D depth bins, K classes, H W picture, h w
feature map, Z Y X voxels of the LiDAR branch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fusionocc_core.grids import DepthBins, LabelSet, VoxelGrid
from fusionocc_core.layers.dcn_resnet import DcnResNet, DcnResNetConfig
from fusionocc_core.layers.depth_gate import DepthGate
from fusionocc_core.layers.gaussian_anchors import AnchorConfig, AnchorSpace
from fusionocc_core.layers.gaussian_attention import Views
from fusionocc_core.layers.gaussian_encoder import GaussianEncoderConfig
from fusionocc_core.layers.gaussian_fusion import FusionEncoder, Sensors
from fusionocc_core.layers.gaussian_head import ProbabilisticHead, ProbabilisticHeadConfig, semantic_columns
from fusionocc_core.layers.gaussian_lidar import LidarFeatures
from fusionocc_core.layers.gaussian_necks import FeaturePyramid, PyramidConfig
from fusionocc_core.layers.gaussian_points import PointLifter, PointLifterConfig
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig, SparseLidarEncoder
from fusionocc_core.layers.measured_depth import override_depth
from fusionocc_core.layers.presence import only_present, spread, unused
from fusionocc_core.layers.view_transform import cameras_at, measured_depth_bins
from fusionocc_core.models.gaussianformer import camera_projections
from fusionocc_core.models.network import OccupancyNetwork, check_depth_range
from fusionocc_core.ops.pixel_rays import points_along_rays
from fusionocc_core.structures import Batch, InputConfig, Outputs, cameras_present, lidar_present


@dataclass(frozen=True, kw_only=True)
class GaussianFusionConfig:
    """Everything that decides what a GaussianFusion network computes."""

    inputs: InputConfig
    grid: VoxelGrid
    """The voxels of the answer; Gaussians lie in them."""
    label_set: LabelSet
    """Free space must be its last class."""
    depth_bins: DepthBins
    """Of the pictures' depth: it says where they are believed, and where Gaussians begin without a LiDAR."""
    image_backbone: DcnResNetConfig
    pyramid: PyramidConfig
    lidar: LidarEncoderConfig
    anchors: AnchorConfig
    points: PointLifterConfig
    encoder: GaussianEncoderConfig
    head: ProbabilisticHeadConfig
    depth_gate: bool = True
    """Pictures count only near the depth at which they show something."""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        if self.anchors.classes != (columns := semantic_columns(self.head, self.label_set)):
            raise ValueError(
                f"GaussianFusionConfig: anchors.classes={self.anchors.classes}, but the label set "
                f"{self.label_set.name!r} wants {columns}"
            )
        if self.pyramid.channels != self.encoder.channels or self.encoder.layout != "v2":
            raise ValueError(
                f"GaussianFusionConfig: encoder.layout={self.encoder.layout!r} must be 'v2', its channels "
                f"({self.encoder.channels}) those of the pyramid ({self.pyramid.channels})"
            )
        if any(edge % self.image_backbone.strides[-1] for edge in self.inputs.image_size):
            raise ValueError(
                f"GaussianFusionConfig: inputs.image_size={self.inputs.image_size} must be multiples of "
                f"{self.image_backbone.strides[-1]}"
            )
        if self.inputs.camera_history or not self.inputs.presence_masks:
            raise ValueError(
                f"GaussianFusionConfig: expected inputs.camera_history=0 (it is {self.inputs.camera_history}) and "
                f"inputs.presence_masks=True ({self.inputs.presence_masks})"
            )
        if (self.lidar.grid.lower, self.lidar.grid.upper) != (self.grid.lower, self.grid.upper):
            raise ValueError(f"GaussianFusionConfig: lidar.grid={self.lidar.grid} does not span grid={self.grid}")
        if self.depth_bins.spacing != "linear":
            raise ValueError(f"GaussianFusionConfig: depth_bins.spacing={self.depth_bins.spacing!r} must be 'linear'")
        check_depth_range("GaussianFusionConfig", self.inputs, self.depth_bins)

    @property
    def feature_stride(self) -> int:
        """Pixels of the network's picture a cell of its finest level, and of its depth."""
        return self.image_backbone.strides[1]

    @property
    def levels(self) -> int:
        """Levels of the pyramid."""
        return len(self.image_backbone.out_channels) - 1 + self.pyramid.extra_levels


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the present pictures say."""

    views: Views | None
    """None: there is no picture."""
    depth_logits_BNDhw: Tensor
    """Zero for absent cameras."""


class GaussianFusion(OccupancyNetwork):
    """Gaussians that begin at measured points and look at whatever sensors there are."""

    config: GaussianFusionConfig

    def __init__(self, config: GaussianFusionConfig) -> None:
        super().__init__(config)
        channels, known = config.encoder.channels, config.lidar.out_channels
        self.space = AnchorSpace(config.anchors, config.grid)
        self.img_backbone = DcnResNet(config.image_backbone)
        self.img_neck = FeaturePyramid(config.pyramid, config.image_backbone.out_channels)
        self.depth_net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, config.depth_bins.num, 1),
        )
        self.lidar_encoder = SparseLidarEncoder(config.lidar)
        self.lifter = PointLifter(config.points, self.space, config.grid, channels, known)
        self.encoder = FusionEncoder(
            config.encoder, self.space, config.grid, levels=config.levels, lidar_channels=known
        )
        self.head = ProbabilisticHead(config.head, config.grid, config.label_set)

    def forward(self, batch: Batch) -> Outputs:
        """Class scores of every voxel, the Gaussians that they come from, and the depth scores of the pictures.

        Sensors that the batch calls absent have no influence; the scores of their pictures are zero.

        Raises:
            ValueError: another number of frames or another picture size than configured.
        """
        self._check(batch)
        camera_BN, lidar_B = cameras_present(batch), lidar_present(batch)
        seen = self._see(batch, camera_BN, lidar_B)
        lidar = self._lidar(batch, lidar_B)
        state = self.lifter(self._clouds(batch, seen, camera_BN, lidar_B), lidar)
        gaussians = self.space.gaussians(self.encoder(state, Sensors(pictures=seen.views, lidar=lidar)).rows_BGA)
        return Outputs(
            logits_BKXYZ=self.head(gaussians),
            depth_logits_BNDhw=seen.depth_logits_BNDhw,
            observed_B=lidar_B | camera_BN.any(dim=1),
            gaussians=gaussians,
        )

    def _see(self, batch: Batch, camera_BN: Tensor, lidar_B: Tensor) -> Seen:
        """What the present pictures show."""
        images_BNCHW, bins = batch.images_BTNCHW[:, 0], self.config.depth_bins
        if not bool(camera_BN.any()):
            parts = (self.img_backbone, self.img_neck, self.depth_net)
            nothing = torch.stack([unused(part) for part in parts]).sum()
            h, w = (edge // self.config.feature_stride for edge in self.config.inputs.image_size)
            return Seen(views=None, depth_logits_BNDhw=nothing.expand(*camera_BN.shape, bins.num, h, w))
        maps_MChw = self.img_neck(self.img_backbone(images_BNCHW[camera_BN]))
        depth_BNDhw = spread(self.depth_net(maps_MChw[0]), camera_BN)
        views = Views(
            maps_BNChw=tuple(spread(m, camera_BN) for m in maps_MChw),
            projection_BN44=camera_projections(_without_absent(batch, camera_BN)),
            image_size=self.config.inputs.image_size,
            present_BN=camera_BN,
            gate=self._gate(batch, depth_BNDhw, lidar_B) if self.config.depth_gate else None,
        )
        return Seen(views=views, depth_logits_BNDhw=depth_BNDhw)

    def _gate(self, batch: Batch, depth_logits_BNDhw: Tensor, lidar_B: Tensor) -> DepthGate:
        """The pictures' depth, and that of the LiDAR where it met something."""
        depth_BNHW = torch.where(lidar_B[:, None, None, None], batch.depth_BNHW, 0.0)
        measured_BNhw = measured_depth_bins(depth_BNHW, self.config.depth_bins, self.config.feature_stride)
        probability_MDhw = override_depth(
            depth_logits_BNDhw.float().softmax(dim=2).flatten(0, 1), measured_BNhw.flatten(0, 1)
        )
        return DepthGate(probability_BNDhw=probability_MDhw.view_as(depth_logits_BNDhw), bins=self.config.depth_bins)

    def _lidar(self, batch: Batch, lidar_B: Tensor) -> LidarFeatures:
        """What the LiDAR branch knows; zero in samples without."""
        grid = self.config.lidar.output_grid
        clouds = [cloud for cloud, present in zip(batch.points, lidar_B.tolist(), strict=True) if present]
        if clouds:
            return LidarFeatures(volume_BCZYX=spread(self.lidar_encoder(tuple(clouds)), lidar_B), grid=grid)
        nothing = unused(self.lidar_encoder)
        shape = (len(lidar_B), self.config.lidar.out_channels, *grid.shape_zyx)
        return LidarFeatures(volume_BCZYX=nothing.expand(shape), grid=grid)

    @torch.no_grad()
    def _clouds(self, batch: Batch, seen: Seen, camera_BN: Tensor, lidar_B: Tensor) -> list[Tensor]:
        """Where Gaussians begin: LiDAR points; without a LiDAR, the pictures' cells at their likeliest depths."""
        clouds = []
        for b, present in enumerate(lidar_B.tolist()):
            if present:
                clouds.append(batch.points[b])
            elif seen.views is not None and bool(camera_BN[b].any()):
                projection_N44 = seen.views.projection_BN44[b][camera_BN[b]]
                clouds.append(self._likeliest(projection_N44, seen.depth_logits_BNDhw[b][camera_BN[b]]))
            else:
                clouds.append(batch.depth_BNHW.new_zeros(0, 3))
        return clouds

    def _likeliest(self, projection_N44: Tensor, depth_logits_NDhw: Tensor) -> Tensor:
        """(P, 3) a point for each cell of the pictures of one sample."""
        bins, image_size = self.config.depth_bins, self.config.inputs.image_size
        middles = [bins.start + (k + 0.5) * bins.step for k in range(bins.num)]
        cells = (depth_logits_NDhw.shape[2], depth_logits_NDhw.shape[3])
        points_NhwD3 = points_along_rays(projection_N44[None], middles, image_size, cells)[0]
        best_Nhw = depth_logits_NDhw.argmax(dim=1)
        return points_NhwD3.gather(3, best_Nhw[..., None, None].expand(*best_Nhw.shape, 1, 3)).flatten(0, 3)

    def _check(self, batch: Batch) -> None:
        frames, size = batch.images_BTNCHW.shape[1], tuple(batch.images_BTNCHW.shape[4:])
        if frames != 1 or size != self.config.inputs.image_size:
            raise ValueError(
                f"GaussianFusion: the batch holds {frames} frames of pictures of {size} pixels; this network takes one "
                f"frame of pictures of {self.config.inputs.image_size}"
            )


def _without_absent(batch: Batch, camera_BN: Tensor) -> Batch:
    """The batch with unit matrices in place of the calibration of absent cameras, which may hold anything."""
    cameras = only_present(cameras_at(batch, 0), camera_BN)
    return replace(
        batch,
        intrinsics_BTN33=cameras.intrinsics_BN33.unsqueeze(1),
        image_aug_BTN44=cameras.image_aug_BN44.unsqueeze(1),
        cam2keyego_BTN44=cameras.cam2keyego_BN44.unsqueeze(1),
    )

"""FlashFusion: cameras and LiDAR to semantic voxels in real time, with 2D convolutions only.

LiDAR points become a dense map of height slices, pictures are pulled into a map seen from above, both are joined by
gates, and the height comes back at the very end, as channels. Whatever sensor is absent has no influence at all. See
docs/flashfusion.md.

Legend: B samples, N cameras, M present cameras of all samples, G samples with a present LiDAR, C channels, D depth
bins, K classes, H W picture, h w feature map, Y X cells of the map (y x: at half its resolution).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fusionocc_core.grids import DepthBins, LabelSet, VoxelGrid
from fusionocc_core.layers.bev_fusion import (
    BevNet,
    BevNetConfig,
    GatedFusion,
    HeightHead,
    LidarBevNet,
    LidarRaster,
)
from fusionocc_core.layers.conv_blocks import BasicBlock2d
from fusionocc_core.layers.measured_depth import certain_depth
from fusionocc_core.layers.presence import only_present, spread, unused
from fusionocc_core.layers.pull_lift import BevMap, LiftGeometry, PullLift
from fusionocc_core.layers.recurrent_bev import BevMemory, BevState, StreamLimits
from fusionocc_core.layers.thin_image_net import PictureBackboneConfig, PictureFeatures, PictureNet, zero_last_norms
from fusionocc_core.layers.view_transform import cameras_at
from fusionocc_core.models.network import OccupancyNetwork, check_depth_range
from fusionocc_core.side_by_side import RunTwo, two_in_turn, two_on, two_side_by_side
from fusionocc_core.stream_pose import StreamPose, known
from fusionocc_core.structures import Batch, InputConfig, LabelOutputs, Outputs, cameras_present, lidar_present

MAP_STRIDE = 2
"""Voxels an edge of a cell of the fused map."""
PICTURES_APART = 2 / 3
"""Of the pictures, beside the LiDAR with the rest: in flashfusion-mini the LiDAR costs as much as two pictures."""


@dataclass(frozen=True, kw_only=True)
class FlashFusionConfig:
    """Everything that decides what a FlashFusion network computes."""

    inputs: InputConfig
    grid: VoxelGrid
    """The voxels of the answer."""
    label_set: LabelSet
    depth_bins: DepthBins
    image_backbone: PictureBackboneConfig
    margin: int = 12
    """Voxels by which the maps reach beyond the grid on every side, so that its border has neighbours, too."""
    neck_channels: int = 64
    """Of the pictures' feature maps."""
    context_channels: int = 32
    """What is lifted from each feature cell."""
    lift_heights: tuple[float, ...] = (0.0, 0.8, 2.0, 4.0)
    """Heights above the ego frame's origin at which pictures are sampled, metres."""
    raster_scale: int = 1
    """Cells of the LiDAR's raster an edge of a voxel."""
    skip_channels: int = 24
    """What the LiDAR says at full resolution; the head gets it directly."""
    skip_blocks: int = 0
    """Residual blocks on it."""
    lidar_channels: int = 32
    """Of the LiDAR's map at half of that."""
    lidar_blocks: int = 1
    """Residual blocks on it."""
    camera_channels: int = 32
    """Of the pictures' map seen from above."""
    camera_blocks: int = 0
    """Residual blocks on it."""
    bev: BevNetConfig = field(default_factory=BevNetConfig)
    """Its first width is that of the fused map."""
    head_channels: int = 32
    head_hidden_channels: int = 80
    free_prior: float = 0.9
    """Share of free voxels that fresh weights assume."""
    memory: StreamLimits | None = None
    """Remember the fused map from frame to frame; None has no weights for it. ``inputs.remembered`` keyframes are run
    through first where no state is handed on (``forward``, ``label``)."""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        stride = MAP_STRIDE * self.bev.stride
        for axis, count in zip("xy", self.grid.shape, strict=False):
            if self.margin < 0 or (count + 2 * self.margin) % stride:
                raise ValueError(
                    f"FlashFusionConfig: grid not divisible by the encoder's stride: {count} voxels along {axis} and a "
                    f"margin of {self.margin} on both sides are not a multiple of {stride}; choose a margin such as "
                    f"{_fitting_margin(count, self.margin, stride)}, or another grid"
                )
        if any(edge % (2 * self.image_backbone.stride) for edge in self.inputs.image_size):
            raise ValueError(
                f"FlashFusionConfig: inputs.image_size={self.inputs.image_size} must be multiples of "
                f"{2 * self.image_backbone.stride}"
            )
        check_depth_range("FlashFusionConfig", self.inputs, self.depth_bins)
        if self.depth_bins.spacing != "linear":
            raise ValueError(
                f"FlashFusionConfig: depth_bins.spacing={self.depth_bins.spacing!r}: the lift reads between bins of "
                "equal width; choose 'linear'"
            )
        self._check_reach()
        if self.inputs.remembered and self.memory is None:
            raise ValueError(
                f"FlashFusionConfig: inputs.remembered={self.inputs.remembered} keyframes, and memory is None; set "
                "memory=StreamLimits(), or remembered=0"
            )
        if self.inputs.camera_history or not self.inputs.presence_masks or not 0 < self.free_prior < 1:
            raise ValueError(
                f"FlashFusionConfig: expected inputs.camera_history=0 (it is {self.inputs.camera_history}), "
                f"inputs.presence_masks=True ({self.inputs.presence_masks}) and free_prior between 0 and 1 "
                f"({self.free_prior})"
            )

    def _check_reach(self) -> None:
        """Points must reach the rim of the maps, or the network learns that nothing is there."""
        rim = self.margin * max(self.grid.voxel_size[:2])
        if self.margin and self.inputs.range_margin > 1e-6 - rim:
            raise ValueError(
                f"FlashFusionConfig: inputs.range_margin={self.inputs.range_margin} drops points in the rim of "
                f"margin={self.margin} voxels; expected {-rim:g} or less"
            )

    @property
    def feature_stride(self) -> int:
        """Pixels of the network's picture a feature cell."""
        return self.image_backbone.stride

    @property
    def full_shape(self) -> tuple[int, int]:
        """Cells along x and y at full resolution, margin included."""
        x, y, _ = self.grid.shape
        return x + 2 * self.margin, y + 2 * self.margin

    @property
    def bev_map(self) -> BevMap:
        """Cells of the fused map."""
        (x, y), size = self.full_shape, self.grid.voxel_size
        return BevMap(
            lower=self.raster_lower[:2],
            cell_size=(MAP_STRIDE * size[0], MAP_STRIDE * size[1]),
            shape=(x // MAP_STRIDE, y // MAP_STRIDE),
        )

    @property
    def raster_shape(self) -> tuple[int, int, int]:
        """Cells of the LiDAR's raster along x and y, and its height slices (without the two outer ones)."""
        x, y = self.full_shape
        return x * self.raster_scale, y * self.raster_scale, self.grid.shape[2]

    @property
    def raster_lower(self) -> tuple[float, float, float]:
        """The outer corner of all maps, and the bottom of the lowest slice, metres."""
        (x, y, z), size = self.grid.lower, self.grid.voxel_size
        return x - self.margin * size[0], y - self.margin * size[1], z

    @property
    def raster_cell(self) -> tuple[float, float, float]:
        """Edges of a cell of the raster and height of its slices, metres."""
        x, y, z = self.grid.voxel_size
        return x / self.raster_scale, y / self.raster_scale, z


def _fitting_margin(count: int, margin: int, stride: int) -> int | str:
    fitting = [m for m in range(max(margin, 0), max(margin, 0) + stride) if (count + 2 * m) % stride == 0]
    return fitting[0] if fitting else "none (the number of voxels is odd)"


@dataclass(frozen=True, kw_only=True)
class Fused:
    """What the network has in its middle."""

    map_BCyx: Tensor
    here_B1yx: Tensor
    """Bool: cells where a present sensor looked."""
    skip_BCYX: Tensor
    """The LiDAR's channels at full resolution."""
    depth_logits_BNDhw: Tensor
    seg_logits_BNKhw: Tensor
    observed_B: Tensor


class FlashFusion(OccupancyNetwork):
    """Pictures and LiDAR points meet in a map seen from above, joined by gates; the height comes back in the head."""

    config: FlashFusionConfig
    bfloat16_parts = ("pictures", "lidar_map", "fusion.mix", "bev", "head.mix")
    """What may compute in bfloat16; not the lift's coordinates, the gates, and the layers that choose the class."""
    compiled_parts = ("pictures", "camera_map", "lidar_map", "bev", "head.mix")
    """Not fusion.mix: a memory keeps what it returns, and a CUDA graph would write the next frame over that."""

    def __init__(self, config: FlashFusionConfig) -> None:
        super().__init__(config)
        num_classes, size_z = config.label_set.num, config.grid.shape[2]
        self.pictures = PictureNet(
            config.image_backbone,
            neck_channels=config.neck_channels,
            context_channels=config.context_channels,
            num_depths=config.depth_bins.num,
            num_classes=num_classes,
        )
        self.lift = PullLift(
            bev=config.bev_map,
            heights=config.lift_heights,
            bins=config.depth_bins,
            image_size=config.inputs.image_size,
            stride=config.feature_stride,
        )
        lifted = len(config.lift_heights) * config.context_channels
        self.camera_map = nn.Conv2d(lifted + 1, config.camera_channels, 1)
        self.camera_blocks = nn.Sequential(*(BasicBlock2d(config.camera_channels) for _ in range(config.camera_blocks)))
        self.raster = LidarRaster(config.raster_lower, config.raster_cell, config.raster_shape)
        self.lidar_map = LidarBevNet(
            self.raster.channels,
            scale=config.raster_scale,
            skip_channels=config.skip_channels,
            skip_blocks=config.skip_blocks,
            channels=config.lidar_channels,
            blocks=config.lidar_blocks,
        )
        fused = config.bev.channels[0]
        self.fusion = GatedFusion((config.lidar_channels, config.camera_channels), fused)
        self.memory = BevMemory(fused, config.bev_map, config.memory) if config.memory else None
        self.bev = BevNet(config.bev, fused, fused)
        self.head = HeightHead(
            fused,
            config.skip_channels,
            config.head_channels,
            config.head_hidden_channels,
            size_z=size_z,
            num_classes=num_classes,
            free=config.label_set.free,
            free_prior=config.free_prior,
        )
        zero_last_norms(list(self.modules()))

    def forward(self, batch: Batch) -> Outputs:
        """Class scores of every voxel, and the depth and segmentation scores of the pictures.

        Sensors that the batch calls absent have no influence; the scores of their pictures are zero.

        Raises:
            ValueError: another number of frames or another picture size than configured.
        """
        fused = self._fuse(batch)
        return self._answer(replace(fused, map_BCyx=self._recalled(batch, fused)))

    @torch.no_grad()
    def label(self, batch: Batch, *, confidence: bool) -> LabelOutputs:
        """As decoding the scores of ``forward``, up to their rounding, but they never exist all at once.

        Args:
            batch: as for ``forward``.
            confidence: also give the probability of each label.
        """
        fused = self._fuse(batch, two_on(batch.depth_BNHW.device))
        return self._label(replace(fused, map_BCyx=self._recalled(batch, fused)), confidence)

    @torch.no_grad()
    def label_next(
        self, batch: Batch, state: BevState | None, *, confidence: bool
    ) -> tuple[LabelOutputs, BevState | None]:
        """As ``label``, with a memory that is handed on, see ``step``; without weights for one, as ``label``.

        Earlier keyframes in the batch are not looked at. ``state`` is what the previous call returned; None forgets.
        """
        fused = self._fuse(batch, two_on(batch.depth_BNHW.device))
        if self.memory is None:
            return self._label(fused, confidence), None
        map_BCyx, after = self.memory(fused.map_BCyx, fused.here_B1yx, state, known(batch.pose), batch.bev_aug_B44)
        return self._label(replace(fused, map_BCyx=map_BCyx), confidence), after

    def step(self, batch: Batch, state: BevState | None, pose: StreamPose) -> tuple[Outputs, BevState]:
        """As ``forward``, with what is remembered of each sample's stream: (inputs, state) to (outputs, state').

        Without a state, and in cells and samples whose memory does not belong to the same drive (see StreamLimits) or
        is not finite, the answer is that of ``forward`` to the bit. A sensor that drops out does not end a memory, but
        a sample without any sensor is still called unobserved.

        Args:
            batch: as for ``forward``; one sample a stream.
            state: what the previous call returned; None at the start, or to forget. It must be forgotten when the
                calibration changes.
            pose: when and where the samples were taken.

        Raises:
            ValueError: as ``forward``; or this network has no memory, or the state is of other streams.
        """
        if self.memory is None:
            raise ValueError("FlashFusion.step: this network has no memory; build it with FlashFusionConfig.memory")
        fused = self._fuse(batch)
        map_BCyx, after = self.memory(fused.map_BCyx, fused.here_B1yx, state, pose, batch.bev_aug_B44)
        return self._answer(replace(fused, map_BCyx=map_BCyx)), after

    def _fuse(self, batch: Batch, run_two: RunTwo = two_in_turn) -> Fused:
        """Everything up to the fused map.

        Args:
            batch: as for ``forward``.
            run_two: what runs pictures and LiDAR, which do not need each other until the lift. Side by side the LiDAR
                takes some pictures along, so that both end together.
        """
        self._check(batch)
        camera_BN, lidar_B = cameras_present(batch), lidar_present(batch)
        cameras = only_present(cameras_at(batch, 0), camera_BN)
        rays, pictures = self.lift.rays(cameras)[camera_BN], batch.images_BTNCHW[:, 0]
        pictures = pictures.flatten(0, 1) if len(rays) == camera_BN.numel() else pictures[camera_BN]
        apart = round(PICTURES_APART * len(rays)) if run_two is two_side_by_side else len(rays)
        seen, ((lidar_BCyx, skip_BCYX), geometry, depth, others) = run_two(
            lambda: self._see(pictures[:apart], rays[:apart]),
            lambda: (
                self._lidar(batch, lidar_B),
                self.lift.geometry(cameras, camera_BN),
                certain_depth(batch.depth_BNHW, camera_BN, lidar_B, self.config.depth_bins, self.config.feature_stride),
                self._see(pictures[apart:], rays[apart:]) if apart < len(rays) else None,
            ),
        )
        seen = seen.followed_by(others) if others else seen
        camera_BCyx = self._from_above(seen, geometry, depth)
        here = [lidar_B[:, None, None, None].expand_as(lidar_BCyx[:, :1]), geometry.covered_BYX[:, None] > 0]
        return Fused(
            map_BCyx=self.fusion([lidar_BCyx, camera_BCyx], here),
            here_B1yx=here[0] | here[1],
            skip_BCYX=skip_BCYX,
            depth_logits_BNDhw=spread(seen.depth_logits_MDhw, camera_BN),
            seg_logits_BNKhw=spread(seen.seg_logits_MKhw, camera_BN),
            observed_B=lidar_B | camera_BN.any(dim=1),
        )

    def _recalled(self, batch: Batch, fused: Fused) -> Tensor:
        """The fused map after the earlier keyframes of the batch, which teach nothing but the memory's reading."""
        if self.memory is None:
            return fused.map_BCyx
        if not batch.earlier:
            return fused.map_BCyx + unused(self.memory)
        state: BevState | None = None
        with torch.no_grad():
            for earlier in batch.earlier:
                then = self._fuse(earlier, two_on(earlier.depth_BNHW.device))
                _, state = self.memory(then.map_BCyx, then.here_B1yx, state, known(earlier.pose), earlier.bev_aug_B44)
        map_BCyx: Tensor = self.memory(fused.map_BCyx, fused.here_B1yx, state, known(batch.pose), batch.bev_aug_B44)[0]
        return map_BCyx

    def _label(self, fused: Fused, confidence: bool) -> LabelOutputs:
        map_BCyx = self.bev(fused.map_BCyx)
        labels, sure = self.head.labels(map_BCyx, fused.skip_BCYX, self.config.margin, confidence=confidence)
        return LabelOutputs(labels_BXYZ=labels, confidence_BXYZ=sure, observed_B=fused.observed_B)

    def _answer(self, fused: Fused) -> Outputs:
        """Everything behind the fused map."""
        return Outputs(
            logits_BKXYZ=self.head(self.bev(fused.map_BCyx), fused.skip_BCYX, self.config.margin),
            depth_logits_BNDhw=fused.depth_logits_BNDhw,
            seg_logits_BNKhw=fused.seg_logits_BNKhw,
            observed_B=fused.observed_B,
        )

    def _lidar(self, batch: Batch, lidar_B: Tensor) -> tuple[Tensor, Tensor]:
        """The LiDAR's maps at half and at full resolution; zero in samples without."""
        config, (x, y) = self.config, self.config.full_shape
        clouds = [cloud for cloud, present in zip(batch.points, lidar_B.tolist(), strict=True) if present]
        if clouds:
            skip_GCYX, lidar_GCyx = self.lidar_map(self.raster(clouds))
            return spread(lidar_GCyx, lidar_B), spread(skip_GCYX, lidar_B)
        nothing = unused(self.lidar_map).to(batch.depth_BNHW)
        shape = (len(lidar_B), config.lidar_channels, y // MAP_STRIDE, x // MAP_STRIDE)
        return nothing.expand(shape), nothing.expand(len(lidar_B), config.skip_channels, y, x)

    def _see(self, images_MCHW: Tensor, rays_MRhw: Tensor) -> PictureFeatures:
        """What pictures show."""
        if len(images_MCHW):
            features: PictureFeatures = self.pictures(images_MCHW, rays_MRhw)
            return features
        h, w = (edge // self.config.feature_stride for edge in self.config.inputs.image_size)
        nothing = unused(self.pictures).to(images_MCHW)
        return PictureFeatures(*(nothing.expand(0, channels, h, w) for channels in self.pictures.outputs))

    def _from_above(self, seen: PictureFeatures, geometry: LiftGeometry, measured: tuple[Tensor, Tensor]) -> Tensor:
        """The pictures' map (B, C, y, x), with measured depth where there is some, see ``certain_depth``."""
        measured_MDhw, hit_M1hw = measured
        depth_MDhw = torch.where(hit_M1hw, measured_MDhw, seen.depth_logits_MDhw.float().softmax(dim=1))
        lifted_BCyx = self.lift(seen.context_MChw, depth_MDhw, geometry.tables)
        # Joined along the last axis of memory: along the channels all of it would be copied out of this order and back.
        joined_ByxC = torch.cat([lifted_BCyx.permute(0, 2, 3, 1), geometry.covered_BYX[..., None]], dim=3)
        camera_BCyx = self.camera_blocks(self.camera_map(joined_ByxC.permute(0, 3, 1, 2)))
        return camera_BCyx if len(depth_MDhw) else camera_BCyx + unused(self.pictures)

    def _check(self, batch: Batch) -> None:
        frames, size = batch.images_BTNCHW.shape[1], tuple(batch.images_BTNCHW.shape[4:])
        if frames != 1 or size != self.config.inputs.image_size:
            raise ValueError(
                f"FlashFusion: the batch holds {frames} frames of pictures of {size} pixels; this network takes one "
                f"frame of pictures of {self.config.inputs.image_size}"
            )

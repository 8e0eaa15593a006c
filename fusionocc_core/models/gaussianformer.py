"""GaussianFormer: pictures to Gaussians, and Gaussians to voxels (Huang et al., ECCV 2024 and CVPR 2025).

A lifter says where Gaussians begin, an encoder lets them look at the pictures and at each other and moves them, a head
splats them into the voxels. Legend: B samples, N cameras, M pictures (B * N), C channels, K classes, G Gaussians,
A numbers of a Gaussian, H W picture, h w feature map, X Y Z voxels. Submodules carry the names of the official
checkpoints; the blocks of the encoder have names of their own (models/gaussianformer_official.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionocc_core.grids import DepthBins, LabelSet, VoxelGrid
from fusionocc_core.layers.dcn_resnet import DcnResNet, DcnResNetConfig
from fusionocc_core.layers.gaussian_anchors import AnchorConfig, AnchorSpace
from fusionocc_core.layers.gaussian_attention import Views
from fusionocc_core.layers.gaussian_encoder import GaussianEncoder, GaussianEncoderConfig, GaussianState
from fusionocc_core.layers.gaussian_head import GaussianHeadConfig, make_gaussian_head, semantic_columns
from fusionocc_core.layers.gaussian_lifter import GaussianLifterConfig, Lifted, make_gaussian_lifter
from fusionocc_core.layers.gaussian_necks import FeaturePyramid, PyramidConfig
from fusionocc_core.models.gaussianformer_official import from_official
from fusionocc_core.models.network import OccupancyNetwork, refuse_presence_masks
from fusionocc_core.structures import Batch, InputConfig, Outputs

SUPERVISED = ("last", "all")


@dataclass(frozen=True, kw_only=True)
class GaussianFormerConfig:
    """Everything that decides what a GaussianFormer computes."""

    inputs: InputConfig
    grid: VoxelGrid
    """The voxels of the answer; Gaussians lie in them."""
    label_set: LabelSet
    """Free space must be its last class."""
    image_backbone: DcnResNetConfig
    pyramid: PyramidConfig
    anchors: AnchorConfig
    lifter: GaussianLifterConfig
    encoder: GaussianEncoderConfig
    head: GaussianHeadConfig
    supervised: str = "last"
    """Whose scores learn: those of the "last" set of Gaussians, or of "all" of them."""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        if self.supervised not in SUPERVISED:
            raise ValueError(f"GaussianFormerConfig.supervised={self.supervised!r}: expected one of {SUPERVISED}")
        if self.anchors.classes != (columns := semantic_columns(self.head, self.label_set)):
            raise ValueError(
                f"GaussianFormerConfig: anchors.classes={self.anchors.classes}, but this head and the label set "
                f"{self.label_set.name!r} want {columns}"
            )
        if self.pyramid.channels != self.encoder.channels:
            raise ValueError(
                f"GaussianFormerConfig: pyramid.channels={self.pyramid.channels} must be those of the encoder, "
                f"{self.encoder.channels}"
            )
        if any(edge % self.image_backbone.strides[-1] for edge in self.inputs.image_size):
            raise ValueError(
                f"GaussianFormerConfig: inputs.image_size={self.inputs.image_size} must be multiples of "
                f"{self.image_backbone.strides[-1]}"
            )
        if self.inputs.camera_history:
            raise ValueError(
                f"GaussianFormerConfig: inputs.camera_history={self.inputs.camera_history}: this network looks at the "
                "current pictures alone; expected 0"
            )
        refuse_presence_masks("GaussianFormerConfig", self.inputs)

    @property
    def num_frames(self) -> int:
        """Pictures a camera."""
        return 1 + self.inputs.camera_history

    @property
    def feature_stride(self) -> int:
        """Pixels of the network's picture a cell of its finest level."""
        return self.image_backbone.strides[1]

    @property
    def depth_bins(self) -> DepthBins:
        """A single one: this network has no depth scores to supervise."""
        near, far = self.inputs.depth_range
        return DepthBins(start=near, stop=far, step=far - near)

    @property
    def levels(self) -> int:
        """Levels of the pyramid."""
        return len(self.image_backbone.out_channels) - 1 + self.pyramid.extra_levels


def camera_projections(batch: Batch) -> Tensor:
    """(B, N, 4, 4) float32: (x, y, z, 1) of the (augmented) key frame to (u d, v d, d, 1), pixels of the picture.

    Composed in float64: the product of intrinsics and poses is inverted later.
    """
    aug_BN44 = batch.image_aug_BTN44[:, 0].double()
    frame2cam_BN44 = torch.linalg.inv(batch.bev_aug_B44.double()[:, None] @ batch.cam2keyego_BTN44[:, 0].double())
    pixels_BN44 = torch.eye(4, dtype=torch.float64, device=aug_BN44.device).repeat(*aug_BN44.shape[:2], 1, 1)
    pixels_BN44[..., :2, :2] = aug_BN44[..., :2, :2]
    pixels_BN44[..., :2, 2] = aug_BN44[..., :2, 3]  # acts on u d, v d: the shift is times the depth
    pixels_BN44[..., :3, :3] = pixels_BN44[..., :3, :3] @ batch.intrinsics_BTN33[:, 0].double()
    return (pixels_BN44 @ frame2cam_BN44).float()


class GaussianFormer(OccupancyNetwork):
    """Lifter, encoder and head around one image backbone."""

    config: GaussianFormerConfig

    def __init__(self, config: GaussianFormerConfig) -> None:
        super().__init__(config)
        space = AnchorSpace(config.anchors, config.grid)
        stages = config.image_backbone.out_channels
        self.img_backbone = DcnResNet(config.image_backbone)
        self.img_neck = FeaturePyramid(config.pyramid, stages)
        self.lifter = make_gaussian_lifter(config.lifter, space, config.grid, config.encoder.channels, stages)
        self.encoder = GaussianEncoder(config.encoder, space, config.grid, levels=config.levels)
        self.head = make_gaussian_head(config.head, config.grid, config.label_set)

    def forward(self, batch: Batch) -> Outputs:
        """Class scores of every voxel, the Gaussians that they come from, and what rays believe to be occupied.

        Raises:
            ValueError: the batch holds no camera, more than one frame, or another picture size than configured.
        """
        self._check(batch)
        lifted, views = self.lift(batch)
        return self.answer(self.encoder(lifted.state, views), lifted)

    def lift(self, batch: Batch) -> tuple[Lifted, Views]:
        """Where the Gaussians begin, and what they look at."""
        images_BNCHW = batch.images_BTNCHW[:, 0]
        stages_MChw = self.img_backbone(images_BNCHW.flatten(0, 1))
        with torch.autocast(images_BNCHW.device.type, enabled=False):
            projection_BN44 = camera_projections(batch)
        views = Views(
            maps_BNChw=tuple(m.unflatten(0, images_BNCHW.shape[:2]) for m in self.img_neck(stages_MChw)),
            projection_BN44=projection_BN44,
            image_size=self.config.inputs.image_size,
        )
        return self.lifter(images_BNCHW, stages_MChw, views), views

    def answer(self, states: Sequence[GaussianState], lifted: Lifted) -> Outputs:
        """The outputs, from the Gaussians after each block."""
        sets = [self.encoder.gaussians(state) for state in states]
        learning = self.training and self.config.supervised == "all"
        return Outputs(
            logits_BKXYZ=self.head(sets[-1]),
            gaussians=sets[-1],
            earlier_logits=tuple(self.head(gaussians) for gaussians in sets[:-1]) if learning else (),
            rays=lifted.rays,
        )

    def _check(self, batch: Batch) -> None:
        frames, cameras = batch.images_BTNCHW.shape[1:3]
        size = tuple(batch.images_BTNCHW.shape[4:])
        if frames != 1 or size != self.config.inputs.image_size or cameras < 1:
            raise ValueError(
                f"GaussianFormer: the batch holds {frames} frames of {cameras} pictures of {size} pixels; this network "
                f"takes 1 frame of at least one picture of {self.config.inputs.image_size}"
            )

    def state_from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        """See models/gaussianformer_official.py; which block a name belongs to follows from the config."""
        return from_official(state, self.config)

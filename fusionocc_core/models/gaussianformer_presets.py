"""The presets of GaussianFormer: official networks, and two small enough for a CPU."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.data.surroundocc import SURROUNDOCC_LABELS
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, SURROUNDOCC_GRID
from fusionocc_core.layers.dcn_resnet import DcnResNetConfig
from fusionocc_core.layers.gaussian_anchors import AnchorConfig
from fusionocc_core.layers.gaussian_attention import AttentionConfig
from fusionocc_core.layers.gaussian_encoder import GaussianEncoderConfig
from fusionocc_core.layers.gaussian_head import AdditiveHeadConfig, EmptyGaussianConfig, ProbabilisticHeadConfig
from fusionocc_core.layers.gaussian_lifter import LearnedLifterConfig, RayLifterConfig
from fusionocc_core.layers.gaussian_necks import JoinedMapConfig, PyramidConfig
from fusionocc_core.layers.gaussian_sparse_conv import SparseConvConfig
from fusionocc_core.models.gaussianformer import GaussianFormerConfig
from fusionocc_core.ops.gaussian_splat import SplatOptions
from fusionocc_core.structures import InputConfig

OFFICIAL_INPUTS = InputConfig(image_size=(864, 1600), num_cameras=6, depth_range=(1.0, 72.0), key_pose="lidar")
"""nuScenes at full size without the upper 36 rows; SurroundOcc's grid lies in the LiDAR's frame."""
OFFICIAL_SPARSE_CONV = SparseConvConfig(cell=0.5, output_layer=False, duplicate="spconv")


def gaussianformer_25600_solid() -> GaussianFormerConfig:
    """The official GaussianFormer with 25,600 Gaussians and one that stands for empty space, 57.09 M parameters."""
    return GaussianFormerConfig(
        inputs=OFFICIAL_INPUTS,
        grid=SURROUNDOCC_GRID,
        label_set=SURROUNDOCC_LABELS,
        image_backbone=DcnResNetConfig(),
        pyramid=PyramidConfig(),
        anchors=AnchorConfig(classes=SURROUNDOCC_LABELS.num - 1, scale_range=(0.08, 0.64), semantics="softplus"),
        lifter=LearnedLifterConfig(gaussians=25600),
        encoder=GaussianEncoderConfig(
            layout="v1",
            attention=AttentionConfig(joined=True),
            sparse_conv=replace(OFFICIAL_SPARSE_CONV, output_layer=True),
            step="logit",
        ),
        head=AdditiveHeadConfig(splat=SplatOptions(reach=3.0, boxes="cube"), empty=EmptyGaussianConfig()),
    )


def gaussianformer_144000() -> GaussianFormerConfig:
    """The official GaussianFormer with 144,000 small Gaussians that also speak of empty space, 75.49 M parameters."""
    solid = gaussianformer_25600_solid()
    return replace(
        solid,
        anchors=AnchorConfig(classes=SURROUNDOCC_LABELS.num, scale_range=(0.08, 0.32), opacity=False),
        lifter=LearnedLifterConfig(gaussians=144000),
        encoder=replace(solid.encoder, sparse_conv=OFFICIAL_SPARSE_CONV, largest_step=(2.0, 2.0, 0.5)),
        head=AdditiveHeadConfig(splat=SplatOptions(reach=3.0, boxes="cube")),
        supervised="all",
    )


def gaussianformer2_6400() -> GaussianFormerConfig:
    """The official GaussianFormer-2 with 6,400 Gaussians, 4,000 of them along rays, 121.99 M parameters."""
    return GaussianFormerConfig(
        inputs=OFFICIAL_INPUTS,
        grid=SURROUNDOCC_GRID,
        label_set=SURROUNDOCC_LABELS,
        image_backbone=DcnResNetConfig(),
        pyramid=PyramidConfig(),
        anchors=AnchorConfig(classes=SURROUNDOCC_LABELS.num - 1, scale_range=(0.01, 3.2), semantics="softmax"),
        lifter=RayLifterConfig(drawn=4000, learned=2400, trained=False, draws="global"),
        encoder=GaussianEncoderConfig(
            layout="v2",
            attention=AttentionConfig(learned_points=6, learned_reach=6.0),
            sparse_conv=SparseConvConfig(cell=1.0, layers=3, duplicate="spconv"),
        ),
        head=ProbabilisticHeadConfig(splat=SplatOptions(reach=4.0, boxes="cube")),
    )


def gaussianformer2_12800() -> GaussianFormerConfig:
    """The official GaussianFormer-2 with 12,800 Gaussians that reach farther, 123.0 M parameters."""
    small = gaussianformer2_6400()
    return replace(
        small,
        anchors=replace(small.anchors, scale_range=(0.01, 2.5)),
        lifter=RayLifterConfig(drawn=6400, learned=6400, trained=False, draws="global"),
        head=ProbabilisticHeadConfig(splat=SplatOptions(reach=5.0, boxes="cube")),
    )


def gaussianformer2_25600() -> GaussianFormerConfig:
    """The official GaussianFormer-2 with 25,600 Gaussians, 124.9 M parameters."""
    small = gaussianformer2_6400()
    return replace(
        small,
        anchors=replace(small.anchors, scale_range=(0.01, 1.8)),
        lifter=RayLifterConfig(drawn=19200, learned=6400, trained=False, draws="global"),
    )


def gaussianformer2_tiny() -> GaussianFormerConfig:
    """GaussianFormer-2 small enough for two CPU cores, on Occ3D's grid; same input, same output.

    What was chosen, and why:

    * One backbone instead of two, half as wide as ResNet-50 and a third as deep, at 256 x 704: pictures are most of the
      work. What looks for occupied points learns beside the rest, from its own loss.
    * Ordinary instead of deformable convolutions in it: those start to pay where weights come from a detector.
    * 1,600 Gaussians of at least 0.1 m: a quarter of a voxel; thinner ones are seen by no voxel's centre.
    * Exact boxes, the mean of Gaussians that share a cell, seeded draws.
    """
    return GaussianFormerConfig(
        inputs=InputConfig(image_size=(256, 704), num_cameras=6, depth_range=(1.0, 60.0)),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        image_backbone=DcnResNetConfig(
            base_channels=32,
            blocks=(1, 2, 2, 1),
            deformable=(False,) * 4,
            frozen_stages=-1,
            frozen_norms=False,
            checkpoint_activations=False,
        ),
        pyramid=PyramidConfig(channels=64),
        anchors=AnchorConfig(classes=OCC3D_LABELS.num - 1, scale_range=(0.1, 2.0), semantics="softmax"),
        lifter=RayLifterConfig(
            drawn=1200,
            learned=400,
            depths=(1.0, 60.0),
            num_depths=64,
            backbone=None,
            joined_map=JoinedMapConfig(channels=32),
        ),
        encoder=GaussianEncoderConfig(
            layout="v2",
            attention=AttentionConfig(learned_points=6, learned_reach=6.0),
            sparse_conv=SparseConvConfig(cell=0.8, layers=1),
            channels=64,
            blocks=3,
            hidden=256,
        ),
        head=ProbabilisticHeadConfig(splat=SplatOptions(reach=3.0)),
    )


def gaussianformer_tiny() -> GaussianFormerConfig:
    """GaussianFormer with learned places and one empty Gaussian, small enough for two CPU cores, on Occ3D's grid."""
    second = gaussianformer2_tiny()
    return replace(
        second,
        anchors=AnchorConfig(classes=OCC3D_LABELS.num - 1, scale_range=(0.1, 1.0), semantics="softplus"),
        lifter=LearnedLifterConfig(gaussians=3200),
        encoder=replace(second.encoder, layout="v1", attention=AttentionConfig(joined=True), step="logit"),
        head=AdditiveHeadConfig(splat=SplatOptions(reach=3.0), empty=EmptyGaussianConfig(mean=(0.0, 0.0, 2.2))),
    )

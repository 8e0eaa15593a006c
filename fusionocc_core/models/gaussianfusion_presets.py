"""The presets of GaussianFusion: one of the size of GaussianFormer-2, one for a CPU."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.grids import DepthBins
from fusionocc_core.layers.gaussian_head import ProbabilisticHeadConfig
from fusionocc_core.layers.gaussian_points import PointLifterConfig
from fusionocc_core.layers.gaussian_sparse_conv import SparseConvConfig
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig
from fusionocc_core.models.gaussianformer_presets import gaussianformer2_6400, gaussianformer2_tiny
from fusionocc_core.models.gaussianfusion import GaussianFusionConfig
from fusionocc_core.ops.gaussian_splat import SplatOptions


def gaussianfusion_6400() -> GaussianFusionConfig:
    """GaussianFormer-2's 6,400 Gaussians with a LiDAR, on SurroundOcc's grid; meant for a GPU.

    Backbone, pyramid and decoder are those of gaussianformer2-6400 (weights of its image backbone fit with `--init FILE
    --init-matching`). What differs, and why:

    * No second backbone: the LiDAR says where Gaussians begin. That is half of the work.
    * Gaussians that share a cell have their mean, instead of what the official library makes of them: the answer is the
      same each time.
    * Exact boxes: fewer voxels a Gaussian, and what is left out is below 0.0004.
    * The current sweep and two earlier keyframes: one second of points. More would smear what moves.
    """
    cameras = gaussianformer2_6400()
    bins = DepthBins(start=1.0, stop=61.0, step=1.0)
    return GaussianFusionConfig(
        inputs=replace(cameras.inputs, lidar_history=2, depth_range=(bins.start, bins.stop), presence_masks=True),
        grid=cameras.grid,
        label_set=cameras.label_set,
        depth_bins=bins,
        image_backbone=cameras.image_backbone,
        pyramid=cameras.pyramid,
        lidar=LidarEncoderConfig(
            grid=replace(cameras.grid, voxel_size=(0.125, 0.125, 0.125)), stage_channels=(16, 32, 64), out_channels=64
        ),
        anchors=cameras.anchors,
        points=PointLifterConfig(measured=4000, learned=2400, cell=1.0),
        encoder=replace(cameras.encoder, sparse_conv=SparseConvConfig(cell=1.0, layers=3)),
        head=ProbabilisticHeadConfig(splat=SplatOptions(reach=4.0)),
    )


def gaussianfusion_tiny() -> GaussianFusionConfig:
    """The same small enough for two CPU cores, on Occ3D's grid.

    Backbone, decoder and number of Gaussians are those of gaussianformer2-tiny, so that the difference between the two
    is the LiDAR. Its voxels are 0.2 m, halved once to the answer's 0.4 m, as in fusionocc-tiny.
    """
    cameras = gaussianformer2_tiny()
    bins = DepthBins(start=1.0, stop=61.0, step=1.0)
    return GaussianFusionConfig(
        inputs=replace(cameras.inputs, lidar_history=2, depth_range=(bins.start, bins.stop), presence_masks=True),
        grid=cameras.grid,
        label_set=cameras.label_set,
        depth_bins=bins,
        image_backbone=cameras.image_backbone,
        pyramid=cameras.pyramid,
        lidar=LidarEncoderConfig(
            grid=replace(cameras.grid, voxel_size=(0.2, 0.2, 0.2)), stage_channels=(16, 32), out_channels=16
        ),
        anchors=cameras.anchors,
        points=PointLifterConfig(measured=1200, learned=400, cell=0.8),
        encoder=cameras.encoder,
        head=ProbabilisticHeadConfig(splat=SplatOptions(reach=3.0)),
    )

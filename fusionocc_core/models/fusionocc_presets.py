"""The presets of FusionOcc: the official network, and one small enough for a CPU."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, DepthBins
from fusionocc_core.layers.cross_modal import DepthSegConfig
from fusionocc_core.layers.image_backbones import SwinConfig, TimmBackboneConfig
from fusionocc_core.layers.image_necks import FpnLssConfig
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.layers.volume_encoder import ResNet3dConfig
from fusionocc_core.models.fusionocc import FusionOccConfig
from fusionocc_core.structures import InputConfig


def fusionocc_base() -> FusionOccConfig:
    """The official FusionOcc: Swin-B at 512 x 1408, two picture keyframes, seven earlier sweeps, 109 M parameters.

    Computes what the official checkpoint was trained with, habits included: see docs/fusionocc.md for each of them.
    """
    return FusionOccConfig(
        inputs=InputConfig(
            image_size=(512, 1408),
            num_cameras=6,
            camera_history=1,
            lidar_history=7,
            depth_range=(1.0, 45.0),
            resampling="pillow",
            channel_order="bgr",
            key_pose="first_camera",
            include_current_sweep=False,
            repeat_current_sweep=True,
            thin_rings_up_to=16,
            thin_keep=0.2,
            float32_poses=True,
        ),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=45.0, step=0.5),
        image_backbone=SwinConfig(),
        image_neck=FpnLssConfig(channels=256),
        depth_seg=DepthSegConfig(),
        lift=LiftConfig(frustum_pixels="corner_aligned", frustum_depths="lower_edges", voxel_rounding="truncate"),
        lidar=LidarEncoderConfig(grid=replace(OCC3D_GRID, voxel_size=(0.05, 0.05, 0.05))),
        volume_encoder=ResNet3dConfig(),
        history_depth="current",
        history_camera_pose="current",
        history_gradient=False,
    )


def fusionocc_tiny() -> FusionOccConfig:
    """The same network small enough for two CPU cores: about 1.5 s a frame of six cameras, 14 million parameters.

    Every official habit that is a mistake is switched off, and the current sweep enters the LiDAR branch. What was
    chosen, and why:

    * ResNet-18 at 256 x 704, the customary small setting of this field, whose C4 and C5 feed the same neck; a
      convolutional network with batch norm learns from scratch, on little data, what a Swin would not.
    * One picture keyframe: a second one doubles the time in the pictures, and the LiDAR already gives the depth that it
      is for.
    * The current sweep and two earlier keyframes: one second of points fills the gaps between 32 beams. More would
      smear what moves, since points carry no time.
    * LiDAR voxels of 0.2 m, halved once: an eighth of the sites of 0.1 m, and still two voxels an edge of the answer's
      0.4 m.
    * 16 channels at full resolution: there a 3D convolution costs 640,000 positions, more than all else together.
    """
    return FusionOccConfig(
        inputs=InputConfig(image_size=(256, 704), num_cameras=6, lidar_history=2, depth_range=(1.0, 45.0)),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=45.0, step=0.5),
        image_backbone=TimmBackboneConfig(name="resnet18", stride=16, out_channels=(256, 512)),
        image_neck=FpnLssConfig(channels=128),
        depth_seg=DepthSegConfig(mid_channels=64, feature_channels=16, aspp_channels=32),
        lift=LiftConfig(),
        lidar=LidarEncoderConfig(
            grid=replace(OCC3D_GRID, voxel_size=(0.2, 0.2, 0.2)), stage_channels=(16, 32), out_channels=16
        ),
        volume_encoder=ResNet3dConfig(channels=(16, 32, 64), blocks=(1, 1, 1), strides=(1, 2, 2)),
        volume_channels=16,
    )

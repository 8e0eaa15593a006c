"""The presets of UniOcc: RenderOcc's network with a ResNet-50 on the 3D volume or on FlashOcc's, and one for CPUs."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, DepthBins
from fusionocc_core.layers.bev_encoder import BevResNetConfig
from fusionocc_core.layers.camera_depth import CameraDepthConfig, StereoConfig
from fusionocc_core.layers.density_head import DensityHeadConfig
from fusionocc_core.layers.image_necks import FpnConfig, FpnLssConfig
from fusionocc_core.layers.lss import LssConfig
from fusionocc_core.layers.resnet import ResNetConfig
from fusionocc_core.layers.thin_image_net import ThinImageNetConfig
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.models.flashocc_temporal_presets import flashocc_m2
from fusionocc_core.models.renderocc import PlaneDecoderConfig, RenderOccConfig, VolumeDecoderConfig
from fusionocc_core.structures import InputConfig


def uniocc_r50() -> RenderOccConfig:
    """UniOcc on the 3D volume: ResNet-50 at 256 x 704, stereo depth, one earlier keyframe.

    UniOcc's code and exact sizes were never published: this is RenderOcc's network with the smaller backbone that the
    paper's first rows have, and without the official habits that are mistakes (docs/uniocc.md).
    """
    return RenderOccConfig(
        inputs=InputConfig(image_size=(256, 704), num_cameras=6, depth_range=(1.0, 45.0), camera_history=2),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=45.0, step=0.5),
        image_backbone=ResNetConfig(),
        image_neck=FpnConfig(channels=256),
        view=CameraDepthConfig(context_channels=32, stereo=StereoConfig()),
        lift=LiftConfig(),
        frame_blocks=1,
        frame_order="oldest_first",
        history_gradient=False,
        decoder=VolumeDecoderConfig(),
    )


def uniocc_flash_r50() -> RenderOccConfig:
    """UniOcc in FlashOcc's bird's-eye view: the network of the fork that trains it, official habits included.

    ResNet-50 at 256 x 704, stereo depth, one earlier keyframe, two blocks on each frame, densities as RenderOcc has
    them, a voxel occupied by comparing two scores.
    """
    m2 = flashocc_m2()
    return RenderOccConfig(
        inputs=m2.inputs,
        grid=m2.grid,
        label_set=m2.label_set,
        depth_bins=replace(m2.depth_bins, spacing="linear"),
        image_backbone=m2.image_backbone,
        image_neck=m2.image_neck,
        view=m2.view,
        lift=m2.lift,
        frame_blocks=2,
        frame_order=m2.frame_order,
        history_gradient=m2.history_gradient,
        history_camera_pose=m2.history_camera_pose,
        decoder=PlaneDecoderConfig(encoder=m2.bev_encoder, channels=m2.bev_channels),
        head=DensityHeadConfig(density="official", decision="score"),
    )


def uniocc_tiny() -> RenderOccConfig:
    """UniOcc small enough to be trained on a CPU: six pictures of 192 x 512, nothing else.

    What was chosen, and why:

    * FlashFusion's thin picture network, whose cells are eight pixels: at 20 m as wide as two voxels.
    * The bird's-eye view instead of the volume: 3D convolutions over 640,000 voxels are most of the work otherwise.
    * One frame, and depth from one 1x1 convolution that the LiDAR teaches: stereo costs twice the pictures.
    """
    return RenderOccConfig(
        inputs=InputConfig(image_size=(192, 512), num_cameras=6, depth_range=(1.0, 45.0)),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=45.0, step=1.0),
        image_backbone=ThinImageNetConfig(),
        image_neck=FpnLssConfig(channels=64),
        view=LssConfig(context_channels=32),
        lift=LiftConfig(),
        decoder=PlaneDecoderConfig(encoder=BevResNetConfig(channels=(48, 96, 192), blocks=(1, 1, 1)), channels=32),
    )

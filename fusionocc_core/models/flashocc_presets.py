"""The presets of FlashOcc: official networks, and one small enough for a CPU."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, DepthBins
from fusionocc_core.layers.bev_encoder import BevResNetConfig
from fusionocc_core.layers.camera_depth import CameraDepthConfig
from fusionocc_core.layers.center_head import CenterHeadConfig
from fusionocc_core.layers.image_backbones import TimmBackboneConfig
from fusionocc_core.layers.image_necks import FpnConfig
from fusionocc_core.layers.lss import LssConfig
from fusionocc_core.layers.resnet import ResNetConfig
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.models.flashocc import FlashOccConfig
from fusionocc_core.structures import InputConfig

OFFICIAL_LIFT = LiftConfig(frustum_pixels="corner_aligned", frustum_depths="lower_edges", voxel_rounding="truncate")
"""The geometry that the official checkpoints were trained with."""


def flashocc_m0() -> FlashOccConfig:
    """The official FlashOcc M0: ResNet-50 at 256 x 704, one keyframe, bins of 1 m, 39.94 M parameters.

    Computes what the official checkpoint was trained with, habits included: see docs/flashocc.md for each of them.
    """
    return FlashOccConfig(
        inputs=InputConfig(
            image_size=(256, 704),
            num_cameras=6,
            depth_range=(1.0, 45.0),
            resampling="pillow",
            channel_order="bgr",
            key_pose="first_camera",
            float32_poses=True,
        ),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=45.0, step=1.0),
        image_backbone=ResNetConfig(),
        image_neck=FpnConfig(channels=256),
        view=LssConfig(context_channels=64),
        lift=OFFICIAL_LIFT,
        bev_encoder=BevResNetConfig(),
        bev_channels=128,
    )


def flashocc_m1() -> FlashOccConfig:
    """The official FlashOcc M1: M0 with bins of half a metre and twice the channels in front of the head, 44.74 M."""
    m0 = flashocc_m0()
    return replace(m0, depth_bins=replace(m0.depth_bins, step=0.5), bev_channels=256)


def flashocc_tiny() -> FlashOccConfig:
    """The same network small enough for two CPU cores.

    Every official habit that is a mistake is switched off. What was chosen, and why:

    * ResNet-18 at 256 x 704: the pictures are most of the work, and it learns from scratch on little data.
    * Bins of 1 m, as M0: without measured depth finer ones are not told apart.
    * Half the channels of M0 everywhere behind the pictures: the convolutions at 200 x 200 cells cost most there.
    """
    return FlashOccConfig(
        inputs=InputConfig(image_size=(256, 704), num_cameras=6, depth_range=(1.0, 45.0)),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=45.0, step=1.0),
        image_backbone=TimmBackboneConfig(name="resnet18", stride=16, out_channels=(256, 512)),
        image_neck=FpnConfig(channels=128),
        view=LssConfig(context_channels=32),
        lift=LiftConfig(),
        bev_encoder=BevResNetConfig(channels=(64, 128, 256)),
        bev_channels=64,
    )


def panoptic_flashocc_tiny() -> FlashOccConfig:
    """The official Panoptic-FlashOcc "tiny": M0 with a depth network that knows the camera, and a head for centres.

    45.32 M parameters without the head for centres, as published; 45.63 M with it.
    """
    return replace(
        flashocc_m0(),
        view=CameraDepthConfig(context_channels=64),
        centers=CenterHeadConfig(untrained_branches=True),
    )


def panoptic_flashocc_depth() -> FlashOccConfig:
    """The official Panoptic-FlashOcc with finer depth and twice the channels in front of the heads.

    80 channels are lifted, as in the config that was released; the published 50.12 M parameters belong to 64.
    """
    return replace(
        flashocc_m1(),
        view=CameraDepthConfig(context_channels=80),
        bev_encoder=BevResNetConfig(channels=(160, 320, 640)),
        centers=CenterHeadConfig(untrained_branches=True),
    )


def flashocc_tiny_panoptic() -> FlashOccConfig:
    """flashocc-tiny that tells objects apart: ours, for CPUs."""
    return replace(flashocc_tiny(), centers=CenterHeadConfig(channels=32))

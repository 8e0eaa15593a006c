"""The presets of FlashOcc that look back: official networks with stereo depth, and with many earlier frames."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.layers.bev_encoder import BevResNetConfig
from fusionocc_core.layers.camera_depth import CameraDepthConfig, StereoConfig
from fusionocc_core.layers.image_backbones import SwinConfig
from fusionocc_core.layers.image_necks import FpnConfig, FpnLssConfig
from fusionocc_core.models.flashocc import FlashOccConfig
from fusionocc_core.models.flashocc_presets import flashocc_m1, panoptic_flashocc_depth

OFFICIAL_STEREO = StereoConfig(out_of_view="zero_channel")
"""What the official checkpoints were trained with."""


def flashocc_m2() -> FlashOccConfig:
    """The official FlashOcc M2: M1 with stereo depth and one earlier keyframe, 58.67 M parameters.

    Three keyframes of pictures: the third is only there to be matched with. 88 bins that grow with depth. Computes what
    the official checkpoint was trained with, habits included: see docs/flashocc.md.
    """
    m1 = flashocc_m1()
    return replace(
        m1,
        inputs=replace(m1.inputs, camera_history=2),
        depth_bins=replace(m1.depth_bins, spacing="log_official"),
        view=CameraDepthConfig(context_channels=80, stereo=OFFICIAL_STEREO),
        bev_encoder=BevResNetConfig(channels=(160, 320, 640)),
        frame_blocks=1,
        frame_order="oldest_first",
        history_gradient=False,
        history_camera_pose="current",
    )


def flashocc_m3() -> FlashOccConfig:
    """The official FlashOcc M3: M2 with Swin-B at 512 x 1408 and bins of equal width, 144.99 M parameters."""
    m2 = flashocc_m2()
    return replace(
        m2,
        inputs=replace(m2.inputs, image_size=(512, 1408)),
        depth_bins=replace(m2.depth_bins, spacing="linear"),
        image_backbone=SwinConfig(),
        image_neck=FpnLssConfig(channels=512),
        view=CameraDepthConfig(context_channels=80, mid_channels=512, stereo=OFFICIAL_STEREO),
    )


def panoptic_flashocc_depth4d() -> FlashOccConfig:
    """The official Panoptic-FlashOcc with one earlier keyframe.

    75.26 M parameters without the head for centres.
    """
    depth = panoptic_flashocc_depth()
    return replace(
        depth,
        inputs=replace(depth.inputs, camera_history=1),
        image_neck=FpnConfig(channels=512),
        view=CameraDepthConfig(context_channels=80, mid_channels=512),
        frame_blocks=1,
        frame_order="newest_first",
        history_gradient=False,
        history_camera_pose="current",
    )


def panoptic_flashocc_longterm8f() -> FlashOccConfig:
    """The official Panoptic-FlashOcc with eight earlier keyframes; on a vehicle, see models/flashocc_stream.py.

    76.87 M parameters without the head for centres.
    """
    shorter = panoptic_flashocc_depth4d()
    return replace(shorter, inputs=replace(shorter.inputs, camera_history=8))

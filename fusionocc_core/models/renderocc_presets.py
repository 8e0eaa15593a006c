"""The preset of RenderOcc's official network."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.layers.camera_depth import CameraDepthConfig
from fusionocc_core.layers.density_head import DensityHeadConfig
from fusionocc_core.layers.image_backbones import SwinConfig
from fusionocc_core.layers.image_necks import FpnLssConfig
from fusionocc_core.models.flashocc_presets import OFFICIAL_LIFT, flashocc_m1
from fusionocc_core.models.flashocc_temporal_presets import OFFICIAL_STEREO
from fusionocc_core.models.renderocc import RenderOccConfig, VolumeDecoderConfig


def renderocc_swinb() -> RenderOccConfig:
    """The official RenderOcc: Swin-B at 512 x 1408, BEVStereo's volume, one earlier keyframe, 121.28 M parameters.

    Three keyframes of pictures: the third is only there to be matched with. Computes what the official checkpoint was
    trained with, habits included: see docs/renderocc.md. Its checkpoint was trained without labels of voxels, hence
    the decision by density.
    """
    m1 = flashocc_m1()
    return RenderOccConfig(
        inputs=replace(m1.inputs, image_size=(512, 1408), camera_history=2),
        grid=m1.grid,
        label_set=m1.label_set,
        depth_bins=m1.depth_bins,
        image_backbone=SwinConfig(),
        image_neck=FpnLssConfig(channels=512),
        view=CameraDepthConfig(context_channels=32, mid_channels=512, stereo=OFFICIAL_STEREO),
        lift=OFFICIAL_LIFT,
        frame_blocks=1,
        frame_order="oldest_first",
        history_gradient=False,
        history_camera_pose="current",
        decoder=VolumeDecoderConfig(),
        head=DensityHeadConfig(density="official", decision="density"),
    )

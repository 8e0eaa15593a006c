"""Configs and weights that the RenderOcc tests share."""

from dataclasses import replace
from pathlib import Path

import torch
from flashocc_cases import weights_of
from flashocc_temporal_cases import SMALL_DEPTH

from fusionocc_core.grids import OCC3D_LABELS, DepthBins, VoxelGrid
from fusionocc_core.layers.bev_encoder import BevResNetConfig
from fusionocc_core.layers.density_head import DensityHeadConfig
from fusionocc_core.layers.image_necks import FpnConfig, FpnLssConfig
from fusionocc_core.layers.lss import LssConfig
from fusionocc_core.layers.resnet import ResNetConfig
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.layers.volume_encoder import ResNet3dConfig
from fusionocc_core.models.renderocc import PlaneDecoderConfig, RenderOcc, RenderOccConfig, VolumeDecoderConfig
from fusionocc_core.models.renderocc_presets import renderocc_swinb
from fusionocc_core.ops.volume_render_rays import Rays
from fusionocc_core.presets import load_official
from fusionocc_core.structures import InputConfig


def reference_config(kind: str) -> RenderOccConfig:
    """Our config of a reduced official network: "volume" (RenderOcc) or "plane" (the fork that is called UniOcc)."""
    official = renderocc_swinb()
    stereo, volume = official.view.stereo, kind == "volume"
    encoder = ResNet3dConfig(channels=(8, 16, 32), blocks=(1, 2, 4))
    bev = BevResNetConfig(channels=(32, 64, 128))
    return replace(
        official,
        inputs=replace(official.inputs, image_size=(64, 192) if volume else (64, 176)),
        grid=replace(official.grid, voxel_size=(2.0, 2.0, 0.4)),
        depth_bins=DepthBins(start=1.0, stop=45.0, step=1.0),
        image_backbone=ResNetConfig(base_channels=8),
        image_neck=FpnLssConfig(channels=32) if volume else FpnConfig(channels=32),
        view=replace(SMALL_DEPTH, context_channels=8 if volume else 16, stereo=stereo),
        frame_blocks=1 if volume else 2,
        decoder=VolumeDecoderConfig(encoder=encoder, channels=8)
        if volume
        else PlaneDecoderConfig(encoder=bev, channels=32),
        head=DensityHeadConfig(density="official", decision="density" if volume else "score"),
    )


def reference_model(config: RenderOccConfig, tensors: dict[str, torch.Tensor], folder: Path) -> RenderOcc:
    """A network with the reference run's weights, read as an official file."""
    model = RenderOcc(config)
    torch.save({"state_dict": weights_of(tensors)}, folder / "official.pth")
    load_official(model, folder / "official.pth")
    return model.eval()


def recorded_rays(tensors: dict[str, torch.Tensor]) -> Rays:
    """The rays that the official losses look at, in the augmented frame."""
    raw = tensors["rays"]
    rays = Rays(
        origin_R3=raw[:, 4:7],
        direction_R3=raw[:, 7:10],
        depth_R=raw[:, 2],
        label_R=raw[:, 3].long(),
        sample_R=torch.zeros(len(raw), dtype=torch.int64),
        current_R=torch.ones(len(raw), dtype=torch.bool),
    )
    aug = torch.eye(4)
    aug[:3, :3] = tensors["in/bda"][0]
    return rays.within(52.0).transformed(aug)


def little_config(decoder: str = "plane", **changes) -> RenderOccConfig:
    """A network that runs in a tenth of a second, with the correct behaviour everywhere."""
    grid = VoxelGrid(frame="ego", lower=(-16.0, -8.0, -1.0), upper=(16.0, 8.0, 5.4), voxel_size=(1.0, 1.0, 0.8))
    plane = PlaneDecoderConfig(encoder=BevResNetConfig(channels=(12, 16, 20), blocks=(1, 1, 1)), channels=12)
    volume = VolumeDecoderConfig(encoder=ResNet3dConfig(channels=(8, 8), blocks=(1, 1), strides=(1, 2)), channels=8)
    config = RenderOccConfig(
        inputs=InputConfig(image_size=(64, 96), depth_range=(1.0, 17.0)),
        grid=grid,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=17.0, step=1.0),
        image_backbone=ResNetConfig(base_channels=4, blocks=(1, 1, 1, 1)),
        image_neck=FpnConfig(channels=16),
        view=LssConfig(context_channels=8),
        lift=LiftConfig(),
        decoder=plane if decoder == "plane" else volume,
    )
    return replace(config, **changes)

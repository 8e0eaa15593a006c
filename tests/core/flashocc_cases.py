"""Configs and batches that the FlashOcc tests share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fusionocc_core.grids import OCC3D_LABELS, DepthBins, VoxelGrid
from fusionocc_core.layers.bev_encoder import BevResNetConfig
from fusionocc_core.layers.image_necks import FpnConfig
from fusionocc_core.layers.lss import LssConfig
from fusionocc_core.layers.resnet import ResNetConfig
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.models.flashocc import FlashOcc, FlashOccConfig
from fusionocc_core.models.flashocc_presets import flashocc_m0
from fusionocc_core.presets import load_official
from fusionocc_core.structures import Batch, InputConfig


def reference_config() -> FlashOccConfig:
    """Our config of the reduced official M1 that the reference tensors were made with."""
    m0 = flashocc_m0()
    return replace(
        m0,
        inputs=replace(m0.inputs, image_size=(64, 176)),
        grid=replace(m0.grid, voxel_size=(2.0, 2.0, 0.4)),
        image_backbone=ResNetConfig(base_channels=8),
        image_neck=FpnConfig(channels=32),
        view=LssConfig(context_channels=16),
        bev_encoder=BevResNetConfig(channels=(32, 64, 128)),
        bev_channels=32,
    )


def golden(path: Path) -> dict[str, torch.Tensor]:
    """Every array of a file of reference tensors."""
    with np.load(path) as arrays:
        return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}


def weights_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict among them, under official names."""
    return {name.removeprefix("sd/"): tensor for name, tensor in tensors.items() if name.startswith("sd/")}


def reference_model(tensors: dict[str, torch.Tensor], folder: Path) -> FlashOcc:
    """A network with the reference run's weights, read as an official file."""
    model = FlashOcc(reference_config())
    torch.save({"state_dict": weights_of(tensors)}, folder / "official.pth")
    load_official(model, folder / "official.pth")
    return model.eval()


def reference_batch(tensors: dict[str, torch.Tensor]) -> Batch:
    """Our Batch of the recorded inputs, of one frame."""
    samples, cameras, _, height, width = tensors["in/imgs"].shape
    ego2global, cam2ego = tensors["in/ego2globals"].double(), tensors["in/sensor2egos"].double()
    key2global = ego2global[:, :1]  # the official network's key pose is the first camera's
    aug = torch.eye(4).repeat(samples, 1, cameras, 1, 1)
    aug[..., :3, :3] = tensors["in/post_rots"][:, None]
    aug[..., :3, 3] = tensors["in/post_trans"][:, None]
    bev = torch.eye(4).repeat(samples, 1, 1)
    bev[:, :3, :3] = tensors["in/bda"]
    return Batch(
        images_BTNCHW=tensors["in/imgs"][:, None],
        intrinsics_BTN33=tensors["in/intrins"][:, None],
        image_aug_BTN44=aug,
        cam2keyego_BTN44=(torch.linalg.inv(key2global) @ ego2global @ cam2ego).float()[:, None],
        bev_aug_B44=bev,
        points=tuple(torch.zeros(0, 5) for _ in range(samples)),
        depth_BNHW=torch.zeros(samples, cameras, height, width),
    )


def little_config(**changes) -> FlashOccConfig:
    """A network that runs in a tenth of a second, with the correct behaviour everywhere."""
    grid = VoxelGrid(frame="ego", lower=(-16.0, -8.0, -1.0), upper=(16.0, 8.0, 5.4), voxel_size=(1.0, 1.0, 0.8))
    config = FlashOccConfig(
        inputs=InputConfig(image_size=(64, 96), depth_range=(1.0, 17.0)),
        grid=grid,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=17.0, step=1.0),
        image_backbone=ResNetConfig(base_channels=4, blocks=(1, 1, 1, 1)),
        image_neck=FpnConfig(channels=16),
        view=LssConfig(context_channels=8),
        lift=LiftConfig(),
        bev_encoder=BevResNetConfig(channels=(12, 16, 20), blocks=(1, 1, 1)),
        bev_channels=12,
    )
    return replace(config, **changes)

"""Configs, weights and batches that the GaussianFormer tests share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fusionocc_core.grids import SURROUNDOCC_GRID, VoxelGrid
from fusionocc_core.layers.dcn_resnet import DcnResNetConfig
from fusionocc_core.layers.gaussian_lifter import LearnedLifterConfig
from fusionocc_core.layers.gaussian_necks import JoinedMapConfig, PyramidConfig
from fusionocc_core.models.gaussianformer import GaussianFormer, GaussianFormerConfig
from fusionocc_core.models.gaussianformer_presets import (
    gaussianformer2_6400,
    gaussianformer2_tiny,
    gaussianformer_25600_solid,
    gaussianformer_144000,
    gaussianformer_tiny,
)
from fusionocc_core.presets import load_official
from fusionocc_core.structures import Batch, InputConfig

REFERENCE_PRESETS = {
    "v1_solid_small": gaussianformer_25600_solid,
    "v1_base_small": gaussianformer_144000,
    "v2_prob_small": gaussianformer2_6400,
}


def reference_config(name: str) -> GaussianFormerConfig:
    """Our config of a reduced official network that the reference tensors were made with."""
    preset = REFERENCE_PRESETS[name]()
    backbone = DcnResNetConfig(base_channels=8, blocks=(3, 4, 6, 3))
    encoder = replace(
        preset.encoder,
        channels=32,
        hidden=128,
        blocks=2,
        sparse_conv=replace(preset.encoder.sparse_conv, cell=1.0, layers=3 if name.startswith("v2") else 1),
    )
    lifter = preset.lifter
    if isinstance(lifter, LearnedLifterConfig):
        lifter = LearnedLifterConfig(gaussians=512)
    else:
        lifter = replace(
            lifter, drawn=160, learned=352, num_depths=24, backbone=backbone, joined_map=JoinedMapConfig(channels=32)
        )
    return replace(
        preset,
        inputs=replace(preset.inputs, image_size=(96, 192)),
        grid=replace(SURROUNDOCC_GRID, lower=(-20.0, -20.0, -5.0), upper=(20.0, 20.0, 3.0), voxel_size=(1.0, 1.0, 1.0)),
        image_backbone=backbone,
        pyramid=PyramidConfig(channels=32),
        lifter=lifter,
        encoder=encoder,
    )


def golden(path: Path) -> dict[str, torch.Tensor]:
    """Every numeric array of a file of reference tensors."""
    with np.load(path) as arrays:
        return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files if "json" not in name}


def weights_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict among them, under official names."""
    return {name.removeprefix("sd."): tensor for name, tensor in tensors.items() if name.startswith("sd.")}


def reference_model(name: str, tensors: dict[str, torch.Tensor], folder: Path) -> GaussianFormer:
    """A network with the reference run's weights, read as an official file."""
    model = GaussianFormer(reference_config(name))
    torch.save({"state_dict": weights_of(tensors)}, folder / "official.pth")
    load_official(model, folder / "official.pth")
    return model.eval()


def reference_batch(tensors: dict[str, torch.Tensor]) -> Batch:
    """Our Batch of the recorded inputs: each projection taken apart into intrinsics and a pose."""
    images = tensors["in.imgs"].float()
    samples, cameras, _, height, width = images.shape
    intrinsics, pose = decomposed(tensors["in.projection_mat"].double())
    eye = torch.eye(4).repeat(samples, 1, cameras, 1, 1)
    return Batch(
        images_BTNCHW=images[:, None],
        intrinsics_BTN33=intrinsics.float()[:, None],
        image_aug_BTN44=eye,
        cam2keyego_BTN44=pose.float()[:, None],
        bev_aug_B44=torch.eye(4).repeat(samples, 1, 1),
        points=tuple(torch.zeros(0, 5) for _ in range(samples)),
        depth_BNHW=torch.zeros(samples, cameras, height, width),
    )


def decomposed(projection_BN44: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Intrinsics (upper triangular) and cam2frame of a projection, whose left part is their product."""
    swap = torch.eye(3, dtype=projection_BN44.dtype).flip(0)
    q, r = torch.linalg.qr((swap @ projection_BN44[..., :3, :3]).mT)
    intrinsics, rotation = swap @ r.mT @ swap, swap @ q.mT
    signs = torch.diag_embed(intrinsics.diagonal(dim1=-2, dim2=-1).sign())
    intrinsics, rotation = intrinsics @ signs, signs @ rotation
    pose = torch.eye(4, dtype=projection_BN44.dtype).repeat(*projection_BN44.shape[:2], 1, 1)
    pose[..., :3, :3] = rotation.mT
    shift = torch.linalg.solve(intrinsics, projection_BN44[..., :3, 3:])
    pose[..., :3, 3:] = -rotation.mT @ shift
    return intrinsics, pose


def little_config(version: int = 2, **changes) -> GaussianFormerConfig:
    """A network that runs in a tenth of a second, of either version, with the correct behaviour everywhere."""
    config = gaussianformer2_tiny() if version == 2 else gaussianformer_tiny()
    grid = VoxelGrid(frame="ego", lower=(-16.0, -8.0, -1.0), upper=(16.0, 8.0, 5.4), voxel_size=(1.0, 1.0, 0.8))
    lifter = config.lifter
    if isinstance(lifter, LearnedLifterConfig):
        lifter = LearnedLifterConfig(gaussians=60)
    else:
        lifter = replace(
            lifter, drawn=40, learned=20, depths=(1.0, 17.0), num_depths=8, joined_map=JoinedMapConfig(channels=4)
        )
    little = replace(
        config,
        inputs=InputConfig(image_size=(64, 96), depth_range=(1.0, 17.0)),
        grid=grid,
        image_backbone=replace(config.image_backbone, base_channels=4, blocks=(1, 1, 1, 1)),
        pyramid=PyramidConfig(channels=16),
        lifter=lifter,
        anchors=replace(config.anchors, scale_range=(0.2, 2.0)),
        encoder=replace(
            config.encoder, channels=16, hidden=32, blocks=2, sparse_conv=replace(config.encoder.sparse_conv, cell=1.6)
        ),
    )
    return replace(little, **changes)

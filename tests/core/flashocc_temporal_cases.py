"""Configs and batches that the tests of FlashOcc's depth, stereo and earlier frames share."""

import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from flashocc_cases import reference_config, weights_of
from fusionocc_cases import camera_ring

from fusionocc_core.grids import DepthBins
from fusionocc_core.layers.camera_depth import CameraDepthConfig
from fusionocc_core.models.flashocc import FlashOcc, FlashOccConfig
from fusionocc_core.models.flashocc_temporal_presets import flashocc_m2
from fusionocc_core.presets import load_official
from fusionocc_core.structures import Batch

SMALL_DEPTH = CameraDepthConfig(mid_channels=32, context_channels=16, aspp_channels=8)


def depth_config() -> FlashOccConfig:
    """Our config of the reduced network with a depth net and one frame."""
    return replace(reference_config(), view=SMALL_DEPTH)


def stereo_config(*, spacing: str = "linear") -> FlashOccConfig:
    """Our config of the reduced M2: one frame and the one before, and one more to match with."""
    small, m2 = reference_config(), flashocc_m2()
    bins = DepthBins(start=1.0, stop=45.0, step=1.0, spacing=spacing)
    return replace(
        m2,
        inputs=replace(small.inputs, camera_history=2),
        grid=small.grid,
        depth_bins=bins,
        image_backbone=small.image_backbone,
        image_neck=small.image_neck,
        view=replace(SMALL_DEPTH, stereo=m2.view.stereo),
        bev_encoder=small.bev_encoder,
        bev_channels=small.bev_channels,
    )


def read(path: Path) -> dict[str, torch.Tensor]:
    """Every array of a file of reference tensors; texts are left out."""
    with np.load(path) as arrays:
        return {
            name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files if arrays[name].dtype.kind != "U"
        }


def official_model(config: FlashOccConfig, tensors: dict[str, torch.Tensor], folder: Path) -> FlashOcc:
    """A network with the reference run's weights, read as an official file."""
    model = FlashOcc(config)
    torch.save({"state_dict": weights_of(tensors)}, folder / "official.pth")
    load_official(model, folder / "official.pth")
    return model.eval()


def recorded_batch(tensors: dict[str, torch.Tensor], frames: int) -> Batch:
    """Our Batch of the recorded inputs: pictures lie camera by camera there, matrices frame by frame."""
    samples, pictures, _, height, width = tensors["in/imgs"].shape
    cameras = pictures // frames
    by_frame = {
        name: tensors[f"in/{name}"].view(samples, frames, cameras, *tensors[f"in/{name}"].shape[2:])
        for name in ("sensor2egos", "ego2globals", "intrins", "post_rots", "post_trans")
    }
    ego2global, cam2ego = by_frame["ego2globals"].double(), by_frame["sensor2egos"].double()
    key2global = ego2global[:, :1, :1]  # the official network's key pose is the first camera's
    aug = torch.eye(4).repeat(samples, frames, cameras, 1, 1)
    aug[..., :3, :3], aug[..., :3, 3] = by_frame["post_rots"], by_frame["post_trans"]
    bev = torch.eye(4).repeat(samples, 1, 1)
    bev[:, :3, :3] = tensors["in/bda"]
    return Batch(
        images_BTNCHW=tensors["in/imgs"].view(samples, cameras, frames, 3, height, width).transpose(1, 2),
        intrinsics_BTN33=by_frame["intrins"],
        image_aug_BTN44=aug,
        cam2keyego_BTN44=(torch.linalg.inv(key2global) @ ego2global @ cam2ego).float(),
        bev_aug_B44=bev,
        points=tuple(torch.zeros(0, 5) for _ in range(samples)),
        depth_BNHW=torch.zeros(samples, cameras, height, width),
    )


def drive(config: FlashOccConfig, poses: torch.Tensor, *, samples: int = 1, cameras: int = 2) -> tuple[Batch, ...]:
    """Pictures of coloured squares along a drive, one Batch of one frame for each pose."""
    generator = torch.Generator().manual_seed(len(poses))
    height, width = config.inputs.image_size
    k = torch.tensor([[1266.0, 0.0, 816.0], [0.0, 1266.0, 491.0], [0.0, 0.0, 1.0]]).repeat(samples, 1, cameras, 1, 1)
    scale = width / 1600
    aug = torch.diag(torch.tensor([scale, scale, 1.0, 1.0])).repeat(samples, 1, cameras, 1, 1)
    aug[..., 1, 3] = height - 900 * scale

    def squares() -> torch.Tensor:
        colors = 3 * torch.randn(samples, 1, cameras, 3, height // 16, width // 16, generator=generator)
        return colors.repeat_interleave(16, dim=-2).repeat_interleave(16, dim=-1)

    rig = camera_ring(cameras).float().repeat(samples, 1, 1, 1, 1)
    return tuple(
        Batch(
            images_BTNCHW=squares(),
            intrinsics_BTN33=k,
            image_aug_BTN44=aug,
            cam2keyego_BTN44=rig,
            bev_aug_B44=torch.eye(4).repeat(samples, 1, 1),
            points=tuple(torch.zeros(0, 5) for _ in range(samples)),
            depth_BNHW=torch.zeros(samples, cameras, height, width),
        )
        for _ in poses
    )


def stacked(batches: tuple[Batch, ...], poses: torch.Tensor, time: int, history: int) -> Batch:
    """The frame ``time`` with its history; the current frame stands for what lies before the first."""
    frames = [time - back if time >= back else time for back in range(history + 1)]
    moved = [
        (torch.linalg.inv(poses[time]) @ poses[frame] @ batches[frame].cam2keyego_BTN44.double()).float()
        for frame in frames
    ]
    joined = {
        name: torch.cat([getattr(batches[frame], name) for frame in frames], dim=1)
        for name in ("images_BTNCHW", "intrinsics_BTN33", "image_aug_BTN44")
    }
    return replace(batches[time], cam2keyego_BTN44=torch.cat(moved, dim=1), **joined)


def strong_model(config: FlashOccConfig) -> FlashOcc:
    """A network whose outputs depend on every input, drawn like the reference run's weights; fresh ones hardly do."""
    model = FlashOcc(config).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            value = random.uniform(0.7, 1.3, tensor.shape)
        elif tensor.ndim < 2:
            value = random.normal(0, 0.1, tensor.shape)
        else:
            value = random.normal(0, 1 / math.sqrt(math.prod(tensor.shape[1:])), tensor.shape)
        state[name] = torch.from_numpy(np.asarray(value)).to(tensor.dtype)
    model.load_state_dict(state)
    return model

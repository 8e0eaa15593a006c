"""Configs, weights and batches that the FlashOcc tests share.

``python tests/core/flashocc_cases.py`` writes tests/goldens/flashocc_{official,correct}.safetensors anew: only after
test_flashocc_reference.py has passed, and only where a change of the results is meant.
"""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fusionocc_cases import random_batch
from safetensors.torch import save_file

from fusionocc_core.grids import OCC3D_LABELS, DepthBins, VoxelGrid
from fusionocc_core.layers.bev_encoder import BevResNetConfig
from fusionocc_core.layers.center_head import CenterHeadConfig
from fusionocc_core.layers.image_necks import FpnConfig
from fusionocc_core.layers.lss import LssConfig
from fusionocc_core.layers.resnet import ResNetConfig
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.models.flashocc import FlashOcc, FlashOccConfig
from fusionocc_core.models.flashocc_official import from_official, official_state_dict
from fusionocc_core.models.flashocc_presets import OFFICIAL_LIFT, flashocc_m0
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


def reference_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A value that follows from a tensor's name alone, of the sizes that the reference run drew."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        value = random.uniform(0.6, 1.4, shape)
    elif name.endswith("running_mean"):
        value = random.normal(0.0, 0.2, shape)
    elif name.endswith("bias"):
        value = random.normal(0.0, 0.1, shape)
    elif len(shape) == 1:
        value = random.uniform(0.7, 1.3, shape)
    else:
        value = random.normal(0.0, 1.0 / np.sqrt(np.prod(shape[1:])), shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def golden_model(habits: str) -> FlashOcc:
    """The little network whose results are kept in tests/goldens: with "official" habits or the "correct" behaviour."""
    config = little_config(centers=CenterHeadConfig(channels=8))
    model = FlashOcc(replace(config, lift=OFFICIAL_LIFT) if habits == "official" else config)
    weights = {
        name: reference_weight(name, tuple(tensor.shape)) if tensor.is_floating_point() else tensor
        for name, tensor in official_state_dict(model).items()
    }
    model.load_state_dict(from_official(weights), strict=True)
    return model.eval()


def golden_results(model: FlashOcc) -> dict[str, torch.Tensor]:
    """What is kept of one forward pass over two samples of three cameras, one of them mirrored."""
    batch = random_batch(model.config, samples=2, cameras=3, seed=7)
    batch.bev_aug_B44[1, 1, 1] = -1.0
    lifted = []
    hook = model.lift.register_forward_hook(lambda module, inputs, output: lifted.append(output))
    with torch.no_grad():
        outputs = model(batch)
    hook.remove()
    results = {
        "lifted_BCYX": lifted[0][:, :, 0],
        "logits_BKXY": outputs.logits_BKXYZ[..., 2],
        "depth_logits_BNDhw": outputs.depth_logits_BNDhw,
        "heatmap_logits_BKXY": outputs.centers.heatmap_logits_BKXY,
    }
    return {name: tensor.contiguous() for name, tensor in results.items()}


if __name__ == "__main__":
    folder = Path(__file__).resolve().parents[1] / "goldens"
    for habits in ("official", "correct"):
        save_file(golden_results(golden_model(habits)), folder / f"flashocc_{habits}.safetensors")

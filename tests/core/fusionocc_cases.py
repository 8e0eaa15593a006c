"""Configs, weights and batches that the FusionOcc tests share.

``python tests/core/fusionocc_cases.py`` writes tests/goldens/fusionocc_*.safetensors anew: only after
test_fusionocc_reference.py has passed, and only where a change of the results is meant.
"""

import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from fusionocc_core.grids import OCC3D_LABELS, DepthBins, VoxelGrid
from fusionocc_core.layers.cross_modal import DepthSegConfig
from fusionocc_core.layers.image_backbones import SwinConfig
from fusionocc_core.layers.image_necks import FpnLssConfig
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.layers.volume_encoder import ResNet3dConfig
from fusionocc_core.models.fusionocc import FusionOcc, FusionOccConfig
from fusionocc_core.models.fusionocc_official import from_official, official_state_dict
from fusionocc_core.presets import fusionocc_base
from fusionocc_core.structures import Batch, InputConfig


def reference_config(small: dict) -> FusionOccConfig:
    """Our config of the reduced official network that the reference tensors were made with."""
    swin, lift, lidar = small["img_backbone"], small["img_view_transformer"], small["voxel_size"]
    ranges = [lift["grid_config"][axis] for axis in "xyz"]
    grid = VoxelGrid(
        frame="ego",
        lower=tuple(r[0] for r in ranges),
        upper=tuple(r[1] for r in ranges),
        voxel_size=tuple(r[2] for r in ranges),
    )
    start, stop, step = lift["grid_config"]["depth"]
    encoder, base = small["occ_encoder_backbone"], fusionocc_base()
    return replace(
        base,
        inputs=replace(base.inputs, image_size=tuple(lift["input_size"])),
        grid=grid,
        depth_bins=DepthBins(start=start, stop=stop, step=step),
        image_backbone=SwinConfig(
            embed_channels=swin["embed_dims"],
            depths=tuple(swin["depths"]),
            heads=tuple(swin["num_heads"]),
            window=swin["window_size"],
            drop_path=swin["drop_path_rate"],
            checkpoint_activations=swin["with_cp"],
        ),
        image_neck=FpnLssConfig(channels=small["img_neck"]["out_channels"]),
        depth_seg=DepthSegConfig(
            mid_channels=lift["mid_channels"],
            feature_channels=lift["feature_channels"],
            aspp_channels=lift["depthnet_cfg"]["aspp_mid_channels"],
        ),
        lidar=LidarEncoderConfig(grid=replace(grid, voxel_size=tuple(lidar)), out_channels=small["lidar_out_channel"]),
        volume_encoder=ResNet3dConfig(
            channels=tuple(encoder["num_channels"]),
            blocks=tuple(encoder["num_layer"]),
            strides=tuple(encoder["stride"]),
        ),
        volume_channels=small["out_dim"],
    )


def recorded_batch(golden: dict[str, torch.Tensor]) -> Batch:
    """Our Batch of the two recorded samples of small_io.safetensors."""
    samples, cameras, frames = 2, 6, 2
    ego2global = golden["in.ego2global"].double().view(samples, frames, cameras, 4, 4)
    cam2ego = golden["in.sensor2ego"].double().view(samples, frames, cameras, 4, 4)
    key = ego2global[:, 0, 0]  # the official network's key pose is the first camera's
    aug = torch.eye(4).repeat(samples, frames, cameras, 1, 1)
    aug[..., :3, :3] = golden["in.post_rots"].view(samples, frames, cameras, 3, 3)
    aug[..., :3, 3] = golden["in.post_trans"].view(samples, frames, cameras, 3)
    bev = torch.eye(4).repeat(samples, 1, 1)
    bev[:, :3, :3] = golden["in.bda"]
    return Batch(
        images_BTNCHW=golden["in.imgs"].view(samples, cameras, frames, 3, 128, 352).transpose(1, 2),
        intrinsics_BTN33=golden["in.intrins"].view(samples, frames, cameras, 3, 3),
        image_aug_BTN44=aug,
        cam2keyego_BTN44=(torch.linalg.inv(key)[:, None, None] @ ego2global @ cam2ego).float(),
        bev_aug_B44=bev,
        points=(golden["in.points0"], golden["in.points1"]),
        depth_BNHW=golden["in.sparse_depth"],
    )


def little_config(**changes) -> FusionOccConfig:
    """A network that runs in a tenth of a second, with the correct behaviour everywhere."""
    grid = VoxelGrid(frame="ego", lower=(-16.0, -12.0, -1.0), upper=(16.0, 12.0, 5.4), voxel_size=(2.0, 2.0, 1.6))
    config = FusionOccConfig(
        inputs=InputConfig(image_size=(64, 96), camera_history=1, lidar_history=0, depth_range=(1.0, 17.0)),
        grid=grid,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=17.0, step=1.0),
        image_backbone=SwinConfig(
            embed_channels=8,
            depths=(2, 2, 2, 2),
            heads=(1, 2, 2, 4),
            window=3,
            drop_path=0.0,
            checkpoint_activations=False,
        ),
        image_neck=FpnLssConfig(channels=16),
        depth_seg=DepthSegConfig(mid_channels=12, feature_channels=8, aspp_channels=6),
        lift=LiftConfig(),
        lidar=LidarEncoderConfig(
            grid=replace(grid, voxel_size=(0.5, 0.5, 0.4)), stage_channels=(8, 12, 16), out_channels=8
        ),
        volume_encoder=ResNet3dConfig(channels=(12, 16, 20), blocks=(1, 1, 1)),
        volume_channels=12,
    )
    return replace(config, **changes)


def official_habits(config: FusionOccConfig) -> FusionOccConfig:
    """The same network with the habits of the official checkpoint."""
    base = fusionocc_base()
    habits = ("history_depth", "history_camera_pose", "history_gradient", "lift")
    return replace(config, **{name: getattr(base, name) for name in habits})


def reference_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value that the reference run gave a tensor, from the tensor's official name and layout alone."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if ".spatial_c." in name or ".spatial_d." in name:
        value = np.abs(0.5 * random.randn(*shape))
    elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        value = random.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", "bias")):
        value = 0.1 * random.randn(*shape)
    elif name.endswith("relative_position_bias_table"):
        value = 0.5 * random.randn(*shape)
    else:
        sparse = name.startswith("lidar_encoder.")
        fan_in = math.prod(shape[:-1] if sparse else shape[1:])
        value = random.randn(*shape) * math.sqrt((3.0 if sparse else 1.6) / fan_in)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def with_reference_weights(model: FusionOcc) -> FusionOcc:
    """Fill a Swin network with the reference run's rule; strong, deterministic signals at every stage.

    Two exceptions, so that every input counts: the norm of the camera vectors gets the statistics of random_batch's
    intrinsics, as training would give it (with the rule's own, all gates behind it are fully open or shut), and the
    lifted volumes are scaled to the size of the LiDAR's.
    """
    weights = {
        name: tensor if not tensor.is_floating_point() else reference_weight(name, tuple(tensor.shape))
        for name, tensor in official_state_dict(model).items()
    }
    norm = "img_view_transformer.depth_seg_net.bn.running_"
    weights[f"{norm}mean"][:4] = torch.tensor([1266.0, 1266.0, 816.0, 491.0])
    weights[f"{norm}var"][:4] = 100.0**2
    for norm in ("conv2", "downsample"):
        weights[f"pre_process_net.layers.0.0.{norm}.bn.weight"] *= 30.0
    model.load_state_dict(from_official(weights), strict=True)
    return model.eval()


def camera_ring(count: int) -> torch.Tensor:
    """cam2ego (N, 4, 4) of cameras that look outwards, evenly spaced from straight ahead to the left, 1.6 m up."""
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    for pose, yaw in zip(poses, np.arange(count) * 2 * np.pi / count, strict=True):
        ahead = torch.tensor([math.cos(yaw), math.sin(yaw), 0.0], dtype=torch.float64)
        right = torch.tensor([math.sin(yaw), -math.cos(yaw), 0.0], dtype=torch.float64)
        down = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
        pose[:3, :3] = torch.stack([right, down, ahead], dim=1)
        pose[:3, 3] = 0.3 * ahead + torch.tensor([0.0, 0.0, 1.6], dtype=torch.float64)
    return poses


def random_batch(
    config: FusionOccConfig, samples: int = 1, cameras: int = 3, points: int = 600, seed: int = 0
) -> Batch:
    """Noise in pictures and clouds, a plausible rig that differs a little from sample to sample and moves 1.3 m a
    keyframe."""
    random = np.random.RandomState(seed)
    frames, (height, width) = config.num_frames, config.inputs.image_size
    scale = width / 1600
    intrinsics = torch.tensor([[1266.0, 0.0, 816.0], [0.0, 1266.0, 491.0], [0.0, 0.0, 1.0]])
    aug = torch.diag(torch.tensor([scale, scale, 1.0, 1.0]))
    aug[1, 3] = height - 900 * scale
    poses = camera_ring(cameras).repeat(samples, frames, 1, 1, 1)
    poses[..., 0, 3] -= 1.3 * torch.arange(frames)[None, :, None]
    poses[..., 1, 3] += 0.11 * torch.arange(samples)[:, None, None]
    lower, upper = (np.array(corner) for corner in (config.grid.lower, config.grid.upper))
    clouds = []
    for _ in range(samples):
        xyz = lower + random.rand(points, 3) ** (1.0, 1.0, 2.0) * (upper - lower)
        rest = np.stack([random.rand(points) * 255, random.randint(0, 32, points)], axis=1)
        clouds.append(torch.from_numpy(np.concatenate([xyz, rest], axis=1).astype(np.float32)))
    depth = config.depth_bins.start + random.rand(samples, cameras, height, width) * 14.0
    depth[random.rand(*depth.shape) > 0.02] = 0.0
    return Batch(
        images_BTNCHW=torch.from_numpy(random.randn(samples, frames, cameras, 3, height, width).astype(np.float32)),
        intrinsics_BTN33=intrinsics.expand(samples, frames, cameras, 3, 3).contiguous(),
        image_aug_BTN44=aug.expand(samples, frames, cameras, 4, 4).contiguous(),
        cam2keyego_BTN44=poses.float(),
        bev_aug_B44=torch.eye(4).repeat(samples, 1, 1),
        points=tuple(clouds),
        depth_BNHW=torch.from_numpy(depth.astype(np.float32)),
    )


def golden_model(habits: str) -> FusionOcc:
    """The little network whose results are kept in tests/goldens: with "official" habits or the "correct" behaviour."""
    config = little_config()
    return with_reference_weights(FusionOcc(official_habits(config) if habits == "official" else config))


def golden_results(model: FusionOcc) -> dict[str, torch.Tensor]:
    """What is kept of one forward pass over two samples of three cameras, one of them mirrored."""
    batch = random_batch(model.config, samples=2, cameras=3, seed=7)
    batch.bev_aug_B44[1, 1, 1] = -1.0
    fused = []
    hook = model.img_bev_encoder_backbone.register_forward_hook(lambda module, inputs, output: fused.append(inputs[0]))
    with torch.no_grad():
        outputs = model(batch)
    hook.remove()
    results = {"fused_BCZYX": fused[0], "logits_BKXYZ": outputs.logits_BKXYZ}
    results |= {"depth_logits_BNDhw": outputs.depth_logits_BNDhw, "seg_logits_BNKhw": outputs.seg_logits_BNKhw}
    return {name: tensor.contiguous() for name, tensor in results.items()}


if __name__ == "__main__":
    folder = Path(__file__).resolve().parents[1] / "goldens"
    for habits in ("official", "correct"):
        save_file(golden_results(golden_model(habits)), folder / f"fusionocc_{habits}.safetensors")

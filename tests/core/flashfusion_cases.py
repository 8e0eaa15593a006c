"""A little FlashFusion and batches for it."""

import math
from dataclasses import replace

import torch

from fusionocc_core.grids import OCC3D_LABELS, DepthBins, VoxelGrid
from fusionocc_core.layers.bev_fusion import BevNetConfig
from fusionocc_core.layers.thin_image_net import ThinImageNetConfig
from fusionocc_core.models.flashfusion import FlashFusion, FlashFusionConfig
from fusionocc_core.structures import Batch, InputConfig

GRID = VoxelGrid(frame="ego", lower=(-6.4, -4.8, -1.0), upper=(6.4, 4.8, 2.2), voxel_size=(0.4, 0.4, 0.4))
HEIGHT, WIDTH = 64, 128


def little_config(**changes) -> FlashFusionConfig:
    """A network that runs in some hundredths of a second."""
    config = FlashFusionConfig(
        inputs=InputConfig(image_size=(HEIGHT, WIDTH), depth_range=(1.0, 9.0), range_margin=-1.6, presence_masks=True),
        grid=GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=9.0, step=0.5),
        image_backbone=ThinImageNetConfig(stem_channels=4, channels=(8, 12, 16), blocks=(1, 1, 1)),
        margin=4,
        neck_channels=12,
        context_channels=8,
        lift_heights=(0.0, 1.0),
        skip_channels=8,
        lidar_channels=8,
        camera_channels=8,
        bev=BevNetConfig(channels=(12, 16, 16), blocks=(1, 1, 1)),
        head_channels=12,
        head_hidden_channels=24,
    )
    return replace(config, **changes)


def little_network(config: FlashFusionConfig | None = None, *, seed: int = 0) -> FlashFusion:
    """In inference mode, with weights and norms that let every part matter."""
    torch.manual_seed(seed)
    model = FlashFusion(config or little_config())
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def ring(cameras: int) -> torch.Tensor:
    """cam2ego (N, 4, 4): cameras 1.6 m above the ground that look outwards, the first one forward."""
    poses = torch.eye(4).repeat(cameras, 1, 1)
    for i, pose in enumerate(poses):
        cos, sin = math.cos(2 * math.pi * i / cameras), math.sin(2 * math.pi * i / cameras)
        pose[:3, :3] = torch.tensor([[sin, 0.0, cos], [-cos, 0.0, sin], [0.0, -1.0, 0.0]])
        pose[:3, 3] = torch.tensor([0.3 * cos, 0.3 * sin, 1.6])
    return poses


def little_batch(samples: int = 2, cameras: int = 4, *, seed: int = 0, points: int = 400) -> Batch:
    """Random pictures and points, every sample another calibration, depth measured in a tenth of the pixels."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    intrinsics = torch.tensor([[90.0, 0.0, 130.0], [0.0, 90.0, 70.0], [0.0, 0.0, 1.0]])
    image_aug = torch.diag(torch.tensor([0.5, 0.5, 1.0, 1.0]))
    image_aug[1, 3] = -3.0
    pose = ring(cameras).repeat(samples, 1, 1, 1, 1)
    pose[..., :3, 3] += 0.2 * rand(samples, 1, cameras, 3)
    depth = 1 + 9 * rand(samples, cameras, HEIGHT, WIDTH)
    depth[rand(*depth.shape) > 0.02] = 0
    low, high = torch.tensor([-8.0, -6.4, -3.0]), torch.tensor([8.0, 6.4, 4.0])
    clouds = []
    for _ in range(samples):
        xyz = low + (high - low) * rand(points, 3)
        clouds.append(torch.cat([xyz, 255 * rand(points, 1), torch.zeros(points, 1)], dim=1))
    return Batch(
        images_BTNCHW=torch.randn(samples, 1, cameras, 3, HEIGHT, WIDTH, generator=generator),
        intrinsics_BTN33=intrinsics.repeat(samples, 1, cameras, 1, 1),
        image_aug_BTN44=image_aug.repeat(samples, 1, cameras, 1, 1),
        cam2keyego_BTN44=pose,
        bev_aug_B44=torch.eye(4).repeat(samples, 1, 1),
        points=tuple(clouds),
        depth_BNHW=depth,
    )


def with_cameras(batch: Batch, order: list[int]) -> Batch:
    """The cameras of these numbers, in this order."""
    per_camera = ("images_BTNCHW", "intrinsics_BTN33", "image_aug_BTN44", "cam2keyego_BTN44")
    changed = {name: getattr(batch, name)[:, :, order] for name in per_camera}
    present = None if batch.camera_present_BN is None else batch.camera_present_BN[:, order]
    return replace(batch, depth_BNHW=batch.depth_BNHW[:, order], camera_present_BN=present, **changed)


def sample_of(batch: Batch, number: int) -> Batch:
    """One sample, as a batch of one."""
    per_sample = ("images_BTNCHW", "intrinsics_BTN33", "image_aug_BTN44", "cam2keyego_BTN44", "bev_aug_B44")
    changed = {name: getattr(batch, name)[number : number + 1] for name in (*per_sample, "depth_BNHW")}
    masks = {
        name: None if getattr(batch, name) is None else getattr(batch, name)[number : number + 1]
        for name in ("camera_present_BN", "lidar_present_B")
    }
    return Batch(points=batch.points[number : number + 1], **changed, **masks)

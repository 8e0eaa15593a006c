"""A GaussianFusion of a few thousand voxels, and batches for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fusionocc_core.grids import OCC3D_LABELS, DepthBins, VoxelGrid
from fusionocc_core.layers.dcn_resnet import DcnResNetConfig
from fusionocc_core.layers.gaussian_anchors import AnchorConfig
from fusionocc_core.layers.gaussian_attention import AttentionConfig
from fusionocc_core.layers.gaussian_encoder import GaussianEncoderConfig
from fusionocc_core.layers.gaussian_head import ProbabilisticHeadConfig
from fusionocc_core.layers.gaussian_necks import PyramidConfig
from fusionocc_core.layers.gaussian_points import PointLifterConfig
from fusionocc_core.layers.gaussian_sparse_conv import SparseConvConfig
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig
from fusionocc_core.models.gaussianfusion import GaussianFusion, GaussianFusionConfig
from fusionocc_core.ops.gaussian_splat import SplatOptions
from fusionocc_core.structures import Batch, InputConfig

GRID = VoxelGrid(frame="ego", lower=(-6.4, -6.4, -1.6), upper=(6.4, 6.4, 1.6), voxel_size=(0.8, 0.8, 0.8))
BINS = DepthBins(start=1.0, stop=13.0, step=1.0)
SIZE = (64, 96)


def small_config() -> GaussianFusionConfig:
    return GaussianFusionConfig(
        inputs=InputConfig(image_size=SIZE, num_cameras=3, depth_range=(1.0, 13.0), presence_masks=True),
        grid=GRID,
        label_set=OCC3D_LABELS,
        depth_bins=BINS,
        image_backbone=DcnResNetConfig(
            base_channels=4,
            blocks=(1, 1, 1, 1),
            deformable=(False,) * 4,
            frozen_stages=-1,
            frozen_norms=False,
            checkpoint_activations=False,
        ),
        pyramid=PyramidConfig(channels=16),
        lidar=LidarEncoderConfig(grid=replace(GRID, voxel_size=(0.4, 0.4, 0.4)), stage_channels=(8, 8), out_channels=8),
        anchors=AnchorConfig(classes=17, scale_range=(0.1, 2.0), semantics="softmax"),
        points=PointLifterConfig(measured=40, learned=20, cell=0.8),
        encoder=GaussianEncoderConfig(
            layout="v2",
            attention=AttentionConfig(learned_points=2, learned_reach=6.0),
            sparse_conv=SparseConvConfig(cell=0.8, layers=1),
            channels=16,
            blocks=2,
            hidden=32,
        ),
        head=ProbabilisticHeadConfig(splat=SplatOptions(reach=3.0)),
    )


def small_network(config: GaussianFusionConfig | None = None) -> GaussianFusion:
    torch.manual_seed(0)
    return GaussianFusion(config or small_config()).eval()


def small_batch(samples=2, cameras=3, seed=0) -> Batch:
    """Cameras that look around from one metre above the ground, and a LiDAR."""
    generator = torch.Generator().manual_seed(seed)
    h, w = SIZE
    poses = np.tile(np.eye(4, dtype=np.float32), (cameras, 1, 1))
    for n in range(cameras):
        yaw = 2 * np.pi * n / 3
        forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        poses[n, :3, :3] = np.stack([np.cross(forward, (0, 0, 1)), (0, 0, -1), forward], axis=1)
        poses[n, :3, 3] = 0.3 * forward
    depth = 20 * torch.rand(samples, cameras, h, w, generator=generator) - 15
    eye = torch.eye(4)
    points = [
        torch.rand(200 + 50 * b, 5, generator=generator) * torch.tensor([12.0, 12, 3, 255, 31])
        - torch.tensor([6.0, 6, 1.5, 0, 0])
        for b in range(samples)
    ]
    return Batch(
        images_BTNCHW=torch.randn(samples, 1, cameras, 3, h, w, generator=generator),
        intrinsics_BTN33=torch.tensor([[50.0, 0, w / 2], [0, 50, h / 2], [0, 0, 1]]).expand(samples, 1, cameras, 3, 3),
        image_aug_BTN44=eye.expand(samples, 1, cameras, 4, 4),
        cam2keyego_BTN44=torch.from_numpy(poses).expand(samples, 1, cameras, 4, 4),
        bev_aug_B44=eye.expand(samples, 4, 4),
        points=tuple(points),
        depth_BNHW=depth.clamp(min=0),
        camera_present_BN=torch.ones(samples, cameras, dtype=torch.bool),
        lidar_present_B=torch.ones(samples, dtype=torch.bool),
    )

"""From pictures to the volume: where each cell of a feature map lies at each depth, and which voxel that is.

Lift, Splat, Shoot (Philion and Fidler, ECCV 2020) with the geometry of BEVDet. Legend: B samples, N cameras, D depth
bins, C channels, H W picture, h w feature map, Z Y X voxels, V the camera vector.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from fusionocc_core.grids import DepthBins, VoxelGrid
from fusionocc_core.ops.bev_pool import BevPoolPlan, bev_pool, plan_bev_pool
from fusionocc_core.structures import Batch

Plan = TypeVar("Plan")


@dataclass(frozen=True, kw_only=True)
class LiftConfig:
    """Where the samples of the frustum lie. The defaults are correct; official checkpoints need the opposites."""

    frustum_pixels: str = "cell_centers"
    """"cell_centers": a feature cell stands for the middle of its pixels. "corner_aligned": the cells spread evenly
    from the first to the last pixel of the picture (official: up to half a cell off, growing towards the border)."""
    frustum_depths: str = "bin_centers"
    """"bin_centers" or "lower_edges" of the depth bins (official: half a bin too near)."""
    voxel_rounding: str = "floor"
    """"floor" or "truncate" (official: points up to one voxel below the grid's lower faces fall into its first
    voxels)."""

    def __post_init__(self) -> None:
        """Refuse choices that do not exist."""
        choices = {
            "frustum_pixels": ("cell_centers", "corner_aligned"),
            "frustum_depths": ("bin_centers", "lower_edges"),
            "voxel_rounding": ("floor", "truncate"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"LiftConfig.{name}={getattr(self, name)!r}: expected one of {allowed}")


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """The calibration of the cameras of one frame, float32 (see Batch for the frames)."""

    intrinsics_BN33: Tensor
    image_aug_BN44: Tensor
    cam2keyego_BN44: Tensor
    bev_aug_B44: Tensor


def cameras_at(batch: Batch, time: int) -> Cameras:
    """The cameras of one frame of a batch: 0 is now, 1 the keyframe before."""
    return Cameras(
        intrinsics_BN33=batch.intrinsics_BTN33[:, time],
        image_aug_BN44=batch.image_aug_BTN44[:, time],
        cam2keyego_BN44=batch.cam2keyego_BTN44[:, time],
        bev_aug_B44=batch.bev_aug_B44,
    )


def camera_vectors(cameras: Cameras, pose_BN44: Tensor) -> Tensor:
    """What the network is told about each camera, (B, N, 27) float32.

    fx, fy, cx, cy; the first two rows of the picture augmentation (two rotation columns, translation); five entries of
    the BEV augmentation; the upper 3x4 of ``pose_BN44`` (camera to key ego) row by row. As in BEVDepth and BEVDet.
    """
    k, aug, bev = cameras.intrinsics_BN33, cameras.image_aug_BN44, cameras.bev_aug_B44[:, None]
    columns = [k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]]
    columns += [aug[..., row, column] for row in (0, 1) for column in (0, 1, 3)]
    n = k.shape[1]
    columns += [bev[..., i, j].expand(-1, n) for i, j in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2))]
    return torch.cat([torch.stack(columns, dim=-1), pose_BN44[..., :3, :].flatten(2)], dim=-1)


def measured_depth_bins(depth_BNHW: Tensor, bins: DepthBins, stride: int) -> Tensor:
    """The bin of the nearest measured point of each feature cell.

    Args:
        depth_BNHW: Depth map, metres; 0 where nothing was measured. H and W are multiples of ``stride``.
        bins: The depth bins.
        stride: Pixels a cell.

    Returns:
        (B, N, h, w) int64: 0 where the cell holds no point within the bins, else 1 + the index of the bin.
    """
    b, n, height, width = depth_BNHW.shape
    if height % stride or width % stride:
        raise ValueError(f"depth_BNHW: {height} x {width} pixels are not a whole number of cells of {stride}")
    measured = depth_BNHW.where(depth_BNHW > 0, torch.inf)
    nearest = measured.view(b, n, height // stride, stride, width // stride, stride).amin(dim=(3, 5))
    if bins.spacing == "linear":
        position = (nearest - (bins.start - bins.step)) / bins.step
    else:
        position = (nearest / bins.start).log() / bins.log_step + 1
    inside = (position >= 1) & (position < bins.num + 1)
    return position.where(inside, 0).long()


def frustum_samples(config: LiftConfig, bins: DepthBins, image_size: tuple[int, int], stride: int) -> Tensor:
    """(D, h, w, 3) float32: u, v (pixels of the network's picture) and depth (metres) of every sample."""
    height, width = image_size
    h, w = height // stride, width // stride
    if config.frustum_pixels == "corner_aligned":
        u, v = torch.linspace(0, width - 1, w), torch.linspace(0, height - 1, h)
    else:
        u, v = torch.arange(w) * stride + (stride - 1) / 2, torch.arange(h) * stride + (stride - 1) / 2
    edges = torch.tensor(bins.edges, dtype=torch.float64)
    depth = (edges[:-1] + edges[1:]) / 2 if config.frustum_depths == "bin_centers" else edges[:-1]
    grid = torch.meshgrid(depth.float(), v.float(), u.float(), indexing="ij")
    return torch.stack([grid[2], grid[1], grid[0]], dim=-1)


def frustum_points(samples_Dhw3: Tensor, cameras: Cameras) -> Tensor:
    """Positions (B, N, D, h, w, 3) of the samples in the augmented key ego frame, metres, float32.

    The 3x3 products are written as in the reference network (inverse of the augmentation, then one product for rotation
    and inverse intrinsics), so that samples on the face between two voxels fall on the same side.
    """
    shape = samples_Dhw3.shape
    aug, pose, bev = cameras.image_aug_BN44, cameras.cam2keyego_BN44, cameras.bev_aug_B44[:, None]
    with torch.autocast(samples_Dhw3.device.type, enabled=False):  # a product in bfloat16 is half a metre off
        pixels = samples_Dhw3.reshape(1, 1, -1, 3) - aug[:, :, None, :3, 3]
        pixels = pixels @ torch.linalg.inv(aug[..., :3, :3]).transpose(-1, -2)
        rays = torch.cat([pixels[..., :2] * pixels[..., 2:], pixels[..., 2:]], dim=-1)
        camera = pose[..., :3, :3] @ torch.linalg.inv(cameras.intrinsics_BN33)
        points = rays @ camera.transpose(-1, -2) + pose[:, :, None, :3, 3]
        points = points @ bev[..., :3, :3].transpose(-1, -2) + bev[:, :, None, :3, 3]
    return points.view(*points.shape[:2], *shape)


def voxel_indices(points: Tensor, grid: VoxelGrid, rounding: str) -> Tensor:
    """Voxel (x, y, z) of points (..., 3), int64; outside the grid where a point is. ``rounding`` as in LiftConfig."""
    lower = torch.tensor(grid.lower, dtype=points.dtype, device=points.device)
    size = torch.tensor(grid.voxel_size, dtype=points.dtype, device=points.device)
    position = (points - lower) / size
    return (position.floor() if rounding == "floor" else position.trunc()).long()


class Lift(nn.Module):
    """Spreads feature maps along their rays into the volume, weighted by the depth distribution. Has no parameters.

    Which sample falls into which voxel depends on the calibration alone. The last plans are kept, keyed by the
    calibration's exact values, and used again while nothing has moved; in training, where augmentation changes
    everything, none is kept.
    """

    KEPT_PLANS = 4

    def __init__(
        self, config: LiftConfig, *, bins: DepthBins, grid: VoxelGrid, image_size: tuple[int, int], stride: int
    ) -> None:
        super().__init__()
        self.config, self.bins, self.grid, self.image_size, self.stride = config, bins, grid, image_size, stride
        self._plans: OrderedDict[tuple[object, ...], BevPoolPlan] = OrderedDict()

    def plan(self, cameras: Cameras) -> BevPoolPlan:
        """Which sample of which camera falls into which voxel."""
        samples = frustum_samples(self.config, self.bins, self.image_size, self.stride).to(cameras.intrinsics_BN33)
        indices = voxel_indices(frustum_points(samples, cameras), self.grid, self.config.voxel_rounding)
        return plan_bev_pool(indices, self.grid.shape_zyx)

    def forward(self, depth_BNDhw: Tensor, feature_BNChw: Tensor, cameras: Cameras) -> Tensor:
        """Depth distribution (sums to one over D) and features to a volume (B, C, Z, Y, X)."""
        plan = self.plan(cameras) if self.training else self._kept(cameras)
        return bev_pool(depth_BNDhw, feature_BNChw, plan)

    def _kept(self, cameras: Cameras) -> BevPoolPlan:
        return keep_last(self._plans, calibration_key(cameras), lambda: self.plan(cameras), self.KEPT_PLANS)


def collapse_height(volume_BCZYX: Tensor) -> Tensor:
    """The heights of a volume one after the other in the channels of a bird's-eye view, (B, Z * C, Y, X)."""
    return volume_BCZYX.transpose(1, 2).flatten(1, 2)


def calibration_key(cameras: Cameras) -> tuple[object, ...]:
    """A hashable value that is equal for two frames exactly when every number of their calibration is."""
    tensors = (cameras.intrinsics_BN33, cameras.image_aug_BN44, cameras.cam2keyego_BN44, cameras.bev_aug_B44)
    values = tuple(t.detach().cpu().contiguous().numpy().tobytes() for t in tensors)
    return (*values, cameras.intrinsics_BN33.shape[:2], str(cameras.intrinsics_BN33.device))


def keep_last(
    kept: OrderedDict[tuple[object, ...], Plan], key: tuple[object, ...], make: Callable[[], Plan], count: int
) -> Plan:
    """The value kept under ``key``, made now if it is new; the least recently used one gives way."""
    if key not in kept:
        # A plan made in inference mode could not be used in a later forward pass with gradients.
        with torch.inference_mode(False), torch.no_grad():
            kept[key] = make()
    kept.move_to_end(key)
    while len(kept) > count:
        kept.popitem(last=False)
    return kept[key]

"""Where the cells of a bird's-eye map appear in the pictures, and the lift that collects what is seen there.

Legend: B samples, N cameras, M present cameras of all samples, P points, L heights, C channels, D depth bins, h w
feature map, Y X cells of the map.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionocc_core.grids import DepthBins
from fusionocc_core.layers.view_transform import Cameras, calibration_key, keep_last
from fusionocc_core.ops.pull_lift import PullPlan, PullTables, pull_lift, tabulate


@dataclass(frozen=True, kw_only=True)
class BevMap:
    """Cells of a map seen from above, in the (augmented) key ego frame."""

    lower: tuple[float, float]
    """x and y of the outer corner of cell (0, 0), metres."""
    cell_size: tuple[float, float]
    """Edges along x and y, metres."""
    shape: tuple[int, int]
    """Cells along x and y."""

    def middles(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(X,) and (Y,): where the middles of the cells lie, metres."""
        x, y = (
            lower + (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * size
            for lower, size, count in zip(self.lower, self.cell_size, self.shape, strict=True)
        )
        return x, y

    def centers(self, heights: tuple[float, ...], like: Tensor) -> Tensor:
        """(Y, X, L, 3) points over the middle of each cell, metres."""
        x, y = self.middles(like)
        grid = torch.meshgrid(y, x, like.new_tensor(heights), indexing="ij")
        return torch.stack([grid[1], grid[0], grid[2]], dim=-1)


@dataclass(frozen=True, kw_only=True)
class LiftGeometry:
    """What the network must know of the present cameras; depends on calibration alone."""

    tables: PullTables
    covered_BYX: Tensor
    """float32: the share of a cell's heights that a present camera sees."""


class PullLift(nn.Module):
    """Features of all present cameras at each cell and height of a map. Has no parameters.

    What is seen where depends on the calibration alone. In inference the last geometries are kept, keyed by the
    calibration's exact values, and used again while nothing has moved; in training, where augmentation changes
    everything, none is.

    Args:
        bev: the map.
        heights: at which it is lifted, metres.
        bins: of depth.
        image_size: (H, W) of the pictures, pixels.
        stride: pixels a feature cell.
    """

    KEPT = 4

    def __init__(
        self,
        *,
        bev: BevMap,
        heights: tuple[float, ...],
        bins: DepthBins,
        image_size: tuple[int, int],
        stride: int,
    ) -> None:
        super().__init__()
        self.bev, self.heights, self.bins, self.image_size, self.stride = bev, heights, bins, image_size, stride
        self._kept: OrderedDict[tuple[object, ...], LiftGeometry] = OrderedDict()

    def geometry(self, cameras: Cameras, present_BN: Tensor) -> LiftGeometry:
        """What the present cameras see, and how their rays lie."""
        if self.training:
            return self._make_geometry(cameras, present_BN)
        key = (*calibration_key(cameras), present_BN.cpu().numpy().tobytes())
        return keep_last(self._kept, key, lambda: self._make_geometry(cameras, present_BN), self.KEPT)

    def forward(self, feature_MChw: Tensor, depth_MDhw: Tensor, tables: PullTables) -> Tensor:
        """Features and depth distributions of the present cameras to (B, L * C, Y, X), channels last in memory."""
        x_size, y_size = self.bev.shape
        out_RC = pull_lift(feature_MChw, depth_MDhw, tables)
        return out_RC.view(-1, y_size, x_size, len(self.heights) * out_RC.shape[1]).permute(0, 3, 1, 2)

    def _make_geometry(self, cameras: Cameras, present_BN: Tensor) -> LiftGeometry:
        plan, (x_size, y_size) = self.plan(cameras, present_BN), self.bev.shape
        seen_R = torch.bincount(plan.point_Q, minlength=plan.num_points) > 0
        return LiftGeometry(
            tables=tabulate(plan, self.bins.num, *(edge // self.stride for edge in self.image_size)),
            covered_BYX=seen_R.float().view(-1, y_size, x_size, len(self.heights)).mean(dim=3),
        )

    def rays(self, cameras: Cameras) -> Tensor:
        """(B, N, 4, h, w), see ray_channels."""
        return ray_channels(cameras, self.image_size, self.stride)

    def plan(self, cameras: Cameras, present_BN: Tensor) -> PullPlan:
        """Which cells are seen by which of the present cameras, and where."""
        u, v, depth = project_map(self.bev, self.heights, cameras)
        height, width = self.image_size
        first = self.bins.start - self.bins.step / 2
        seen_BNP = (depth > first) & (depth < self.bins.stop + self.bins.step / 2) & (depth > 0)
        seen_BNP = seen_BNP & (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5)
        seen_BPN = (seen_BNP & present_BN[:, :, None]).transpose(1, 2)
        sample_Q, point_Q, camera_Q = seen_BPN.nonzero(as_tuple=True)
        u_Q, v_Q, depth_Q = (plane_BNP[sample_Q, camera_Q, point_Q] for plane_BNP in (u, v, depth))
        compact_BN = (present_BN.flatten().cumsum(0) - 1).view(present_BN.shape)
        return PullPlan(
            point_Q=sample_Q * seen_BPN.shape[1] + point_Q,
            camera_Q=compact_BN[sample_Q, camera_Q],
            uv_Q2=(torch.stack([u_Q, v_Q], dim=1) - (self.stride - 1) / 2) / self.stride,
            depth_bin_Q=(depth_Q - self.bins.start) / self.bins.step - 0.5,
            weight_Q=1.0 / seen_BPN.sum(dim=2)[sample_Q, point_Q],
            num_points=seen_BPN.shape[0] * seen_BPN.shape[1],
        )


def project_map(bev: BevMap, heights: tuple[float, ...], cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Where the points over a map's cells appear: u, v (pixels of the network's picture) and depth (metres).

    Each (B, N, Y * X * L). u and v of a point whose depth is not positive mean nothing. The points are a grid, so that
    each of the three is a sum of one share for the column, one for the row and one for the height.
    """
    # Autocast would round metres and pixels to 8 bits.
    with torch.autocast(cameras.intrinsics_BN33.device.type, enabled=False):
        aug2pixel_BN34 = _to_pixels(cameras)
        x, y = bev.middles(aug2pixel_BN34)
        z = aug2pixel_BN34.new_tensor(heights)
        planes = []
        for share_BN4 in aug2pixel_BN34.unbind(dim=2):
            of_x, of_y, of_z, rest = (part_BN[..., None, None] for part_BN in share_BN4.unbind(dim=2))
            row_BNP = (of_x * x[:, None] + of_z * z + rest).flatten(2)  # long rows: sums of short ones are slow
            planes.append((of_y * y[:, None] + row_BNP[:, :, None]).flatten(2))
        u, v, depth = planes
        return u / depth, v / depth, depth


def project_reference(points_P3: Tensor, cameras: Cameras) -> Tensor:
    """The same for any points in the augmented key ego frame, (B, N, P, 3), to read and to test against."""
    aug2cam_BN44 = torch.linalg.inv(cameras.bev_aug_B44[:, None] @ cameras.cam2keyego_BN44)
    cam_BNP3 = points_P3 @ aug2cam_BN44[..., :3, :3].transpose(-1, -2) + aug2cam_BN44[..., None, :3, 3]
    uvd_BNP3 = cam_BNP3 @ cameras.intrinsics_BN33.transpose(-1, -2)
    depth_BNP1 = uvd_BNP3[..., 2:]
    uvd_BNP3 = torch.cat([uvd_BNP3[..., :2] / depth_BNP1, depth_BNP1], dim=-1)
    aug = cameras.image_aug_BN44
    return uvd_BNP3 @ aug[..., :3, :3].transpose(-1, -2) + aug[..., None, :3, 3]


def _to_pixels(cameras: Cameras) -> Tensor:
    """(B, N, 3, 4) from the augmented key ego frame to (u * depth, v * depth, depth)."""
    aug2cam_BN44 = torch.linalg.inv(cameras.bev_aug_B44[:, None] @ cameras.cam2keyego_BN44)
    pixels_BN34: Tensor = _picture_augmentation(cameras) @ cameras.intrinsics_BN33 @ aug2cam_BN44[..., :3, :]
    return pixels_BN34


def _picture_augmentation(cameras: Cameras) -> Tensor:
    """(B, N, 3, 3) of pixels (u, v, 1): the part of image_aug_BN44 that says something."""
    aug_BN33 = cameras.image_aug_BN44[..., :3, :3].clone()
    aug_BN33[..., :2, 2] = cameras.image_aug_BN44[..., :2, 3]
    return aug_BN33


def ray_channels(cameras: Cameras, image_size: tuple[int, int], stride: int) -> Tensor:
    """(B, N, 4, h, w): how the ray of each feature cell lies, in the ego frame without augmentation.

    Rise of the ray (metres a metre of depth), height of the camera (2 m), inverse of the depth at which the ray meets
    the plane z = 0 (1/m, 0 where it does not, at most 1), and focal length (in widths of the picture).
    """
    height, width = image_size
    like = cameras.intrinsics_BN33
    u = torch.arange(width // stride, device=like.device, dtype=like.dtype) * stride + (stride - 1) / 2
    v = torch.arange(height // stride, device=like.device, dtype=like.dtype) * stride + (stride - 1) / 2
    rows, columns = torch.meshgrid(v, u, indexing="ij")
    pixels_hw3 = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)
    with torch.autocast(like.device.type, enabled=False):
        to_pixels_BN33 = _picture_augmentation(cameras) @ cameras.intrinsics_BN33
        rise_BN13 = cameras.cam2keyego_BN44[..., 2:3, :3] @ torch.linalg.inv(to_pixels_BN33)
        rise_BNhw = torch.einsum("hwi,bni->bnhw", pixels_hw3, rise_BN13[..., 0, :])
    camera_height = cameras.cam2keyego_BN44[..., 2, 3, None, None]
    nearness_BNhw = (-rise_BNhw / camera_height.clamp(min=0.1)).clamp(0, 1)
    aug = cameras.image_aug_BN44
    # Not linalg.det, which takes a millisecond for six 2 x 2 matrices.
    scale = (aug[..., 0, 0] * aug[..., 1, 1] - aug[..., 0, 1] * aug[..., 1, 0]).abs().sqrt()
    focal = (scale * cameras.intrinsics_BN33[..., 0, 0] / width)[..., None, None]
    maps = [rise_BNhw, (camera_height / 2).expand_as(rise_BNhw), nearness_BNhw, focal.expand_as(rise_BNhw)]
    return torch.stack(maps, dim=2)

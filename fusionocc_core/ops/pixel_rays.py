"""Where the pixels of pictures look: their points at given depths.

Shape suffixes: B samples, N cameras, h w cells of a picture, D depths, P points, 3 = (x, y, z), 2 = (u, v).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEAREST = 1e-5
"""Metres in front of the camera up to which a point counts as behind it."""


@torch.no_grad()
def points_along_rays(
    projection_BN44: Tensor, depths: Sequence[float], image_size: tuple[int, int], cells: tuple[int, int]
) -> Tensor:
    """The points that the middle of each cell sees at each depth, (B, N, h, w, D, 3), in the projection's frame.

    Args:
        projection_BN44: frame2image: (x, y, z, 1) to (u d, v d, d, 1), pixels of the picture.
        depths: along the camera's z axis, metres.
        image_size: (H, W), pixels.
        cells: (h, w), cells that the picture is cut into.
    """
    (height, width), (h, w) = image_size, cells
    u_w = (torch.arange(w).to(projection_BN44) + 0.5) / w * width
    v_h = (torch.arange(h).to(projection_BN44) + 0.5) / h * height
    d_D = projection_BN44.new_tensor(tuple(depths))
    v_hwD, u_hwD, d_hwD = torch.meshgrid(v_h, u_w, d_D, indexing="ij")
    image_hwD4 = torch.stack([u_hwD * d_hwD, v_hwD * d_hwD, d_hwD, torch.ones_like(d_hwD)], dim=-1)
    with torch.autocast(projection_BN44.device.type, enabled=False):
        image2frame_BN44 = torch.linalg.inv(projection_BN44)
        points = torch.einsum("bnij,hwdj->bnhwdi", image2frame_BN44, image_hwD4)
    return points[..., :3]


def voxels_of_points(
    points: Tensor, lower: Sequence[float], voxel_size: Sequence[float], shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The voxels (..., 3) int64 that points (..., 3) lie in, and whether they lie in any (...) bool.

    Points outside get the nearest voxel of the grid. Its lower faces belong to the grid, its upper ones do not.
    """
    position = (points - points.new_tensor(lower)) / points.new_tensor(voxel_size)
    count = torch.tensor(tuple(shape), device=points.device)
    inside = ((position >= 0) & (position < count)).all(dim=-1)
    return torch.minimum(position.clamp(min=0).long(), count - 1), inside


def project_points(points_BP3: Tensor, projection_BN44: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where points lie in each picture, and whether they are in it.

    Args:
        points_BP3: in the projection's frame, metres.
        projection_BN44: frame2image, as in :func:`points_along_rays`.
        image_size: (H, W), pixels.

    Returns:
        (B, N, P, 2), 0 to 1 from the left and upper to the other edge, and bool (B, N, P): in front of the camera and
        strictly inside the picture.
    """
    height, width = image_size
    with torch.autocast(points_BP3.device.type, enabled=False):
        turned_BNP3 = points_BP3.float().unsqueeze(1) @ projection_BN44[..., :3, :3].mT
        image_BNP3 = turned_BNP3 + projection_BN44[..., None, :3, 3]
        depth_BNP1 = image_BNP3[..., 2:]
        uv_BNP2 = image_BNP3[..., :2] / depth_BNP1.clamp(min=NEAREST) / projection_BN44.new_tensor([width, height])
    inside = ((uv_BNP2 > 0) & (uv_BNP2 < 1)).all(dim=-1) & (depth_BNP1[..., 0] > NEAREST)
    return uv_BNP2, inside

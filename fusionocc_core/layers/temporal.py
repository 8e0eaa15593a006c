"""Two moments: where a cell of a picture lies in an earlier one, and of the bird's-eye view in an earlier view.

Legend: B samples, N cameras, D depth bins, C channels, H W feature map, Y X cells of the bird's-eye view.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.layers.view_transform import Cameras

BEV_CELLS = ("centers", "lower_corners")

NEAREST_DEPTH = 1e-3
"""Metres in front of the earlier camera; what is nearer or behind is not in its picture."""

FAR_OUTSIDE = -1e4
"""A position, in cells, that lies in no picture."""


def matching_cells(
    samples_DHW3: Tensor, now: Cameras, earlier: Cameras, *, image_size: tuple[int, int], pixels: str
) -> Tensor:
    """Where each cell of the current feature maps, were it at each depth, lies in the earlier maps.

    The scene is taken as still. Unlike the official code, which projects with the current intrinsics and picture
    augmentation, the earlier ones are used; they differ only where a camera was replaced or zoomed in between.

    Args:
        samples_DHW3: view_transform.frustum_samples at the resolution of the maps: u, v, depth.
        now: calibration of the current pictures.
        earlier: of the earlier ones, in the same key ego frame.
        image_size: (H, W) of the network's picture, pixels.
        pixels: LiftConfig.frustum_pixels, with which the samples were made: says which pixel a cell stands for.

    Returns:
        (B, N, D, H, W, 2) float32: x, y in cells, 0 = the first; FAR_OUTSIDE behind the earlier camera.
    """
    depths, height, width, _ = samples_DHW3.shape
    b, n = now.intrinsics_BN33.shape[:2]
    to_now, to_earlier = now.image_aug_BN44, earlier.image_aug_BN44
    with torch.autocast(samples_DHW3.device.type, enabled=False):  # geometry is no place for bfloat16
        points = samples_DHW3.reshape(1, 1, -1, 3) - to_now[:, :, None, :3, 3]
        points = points @ torch.linalg.inv(to_now[..., :3, :3]).transpose(-1, -2)
        rays = torch.cat([points[..., :2] * points[..., 2:], points[..., 2:]], dim=-1)
        # The two poses nearly cancel: in float64, rounded when they have.
        now2earlier = (torch.linalg.inv(earlier.cam2keyego_BN44.double()) @ now.cam2keyego_BN44.double()).float()
        camera = now2earlier[..., :3, :3] @ torch.linalg.inv(now.intrinsics_BN33)
        points = rays @ camera.transpose(-1, -2) + now2earlier[:, :, None, :3, 3]
        behind = points[..., 2] < NEAREST_DEPTH
        pixel = points @ earlier.intrinsics_BN33.transpose(-1, -2)
        pixel = pixel[..., :2] / pixel[..., 2:].where(~behind[..., None], 1.0)
        pixel = pixel @ to_earlier[..., :2, :2].transpose(-1, -2) + to_earlier[:, :, None, :2, 3]
    cells = _cells_of_pixels(pixel, image_size, (height, width), pixels)
    return cells.masked_fill(behind[..., None], FAR_OUTSIDE).view(b, n, depths, height, width, 2)


def _cells_of_pixels(pixel: Tensor, image_size: tuple[int, int], map_size: tuple[int, int], pixels: str) -> Tensor:
    """(..., 2): u, v to x, y; the inverse of what frustum_samples does."""
    picture, cells = pixel.new_tensor(image_size[::-1]), pixel.new_tensor(map_size[::-1])
    if pixels == "corner_aligned":
        return pixel * ((cells - 1) / (picture - 1))
    stride = picture / cells
    return (pixel - (stride - 1) / 2) / stride


def align_bev(earlier_BCYX: Tensor, now2earlier_B44: Tensor, grid: VoxelGrid, *, cells: str = "centers") -> Tensor:
    """An earlier bird's-eye view as it would lie on the current grid: read bilinearly, zero where it did not reach.

    Rotation about z and translation along x and y count; height, roll and pitch do not.

    Args:
        earlier_BCYX: features on ``grid`` around the earlier ego.
        now2earlier_B44: maps points of the current (augmented) ego frame to the earlier one.
        grid: whose cells along x and y the view has.
        cells: which point of a cell its features belong to: "centers", or "lower_corners" (official: each turn shifts
            the view by up to half a cell).

    Raises:
        ValueError: the view is not on the grid, or a name that does not exist.
    """
    columns, rows = grid.shape[:2]
    if earlier_BCYX.shape[2:] != (rows, columns):
        raise ValueError(
            f"align_bev: the view has {tuple(earlier_BCYX.shape[2:])} cells along y and x, the grid {(rows, columns)}"
        )
    if cells not in BEV_CELLS:
        raise ValueError(f"align_bev: cells={cells!r}; expected one of {BEV_CELLS}")
    offset = 0.5 if cells == "centers" else 0.0
    device = earlier_BCYX.device
    cell2ego = torch.eye(3, dtype=torch.float64, device=device)
    for axis in (0, 1):
        cell2ego[axis, axis] = grid.voxel_size[axis]
        cell2ego[axis, 2] = grid.lower[axis] + offset * grid.voxel_size[axis]
    now2earlier = now2earlier_B44.to(cell2ego)[:, [0, 1, 3]][..., [0, 1, 3]]
    step = torch.linalg.inv(cell2ego) @ now2earlier @ cell2ego  # cells to cells
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1).to(step).flatten(0, 1) @ step.transpose(-1, -2)
    lookup = (2 * places[..., :2] + 1) / places.new_tensor([columns, rows]) - 1
    lookup = lookup.view(-1, rows, columns, 2).float()  # in half precision a place would be off by parts of a cell
    out = F.grid_sample(earlier_BCYX.float(), lookup, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out.to(earlier_BCYX.dtype)

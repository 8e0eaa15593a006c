"""Point clouds to dense maps of height slices: what 2D convolutions take of a LiDAR.

Shape suffixes: B samples, P points, C columns, F features, S height slices, Y X cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RASTER_FEATURES = 3
"""A slice of a cell: log(1 + points), their mean intensity (0..1), their mean height in the slice (-0.5..0.5)."""

Vector3 = tuple[float, float, float]
Shape3 = tuple[int, int, int]


def rasterize(points: Sequence[Tensor], lower: Vector3, cell_size: Vector3, shape_xyz: Shape3) -> Tensor:
    """Sort points into the cells and height slices of a map and describe each slice.

    Below and above the slices lies one more each for all that is lower or higher, so that a map has S = Z + 2 slices
    from the lowest up; the height in these two is clamped to 0.5 cells off their middle. Points beside the map (and any
    whose coordinates are not finite) are dropped. Not differentiable: points carry no gradient.

    Args:
        points: B clouds (P, C), float32; the first four columns are x, y, z in metres and the intensity, 0..255.
        lower: the outer corner of the first cell of the lowest slice, metres.
        cell_size: edge lengths of a cell and the height of a slice, metres.
        shape_xyz: cells along x and y, slices along z (without the two outer ones).

    Returns:
        (B, S * F, Y, X) float32 in channels-last memory, channel ``slice * RASTER_FEATURES + feature``; zero where no
        point lies.

    Raises:
        ValueError: no cloud at all, or one with fewer than four columns.
    """
    if not points or any(cloud.dim() != 2 or cloud.shape[1] < 4 for cloud in points):
        raise ValueError(
            f"rasterize: clouds have shapes {[tuple(cloud.shape) for cloud in points]}; expected at least one, each "
            "(P, 4 or more): x, y, z, intensity; (0, C) where it is empty"
        )
    x_size, y_size, z_size = shape_xyz
    slices = z_size + 2
    place_P, height_P, intensity_P = _places(points, lower, cell_size, shape_xyz)
    out = height_P.new_zeros(len(points) * y_size * x_size * slices * RASTER_FEATURES)
    count_P = torch.bincount(place_P, minlength=len(points) * y_size * x_size * slices)[place_P].to(out.dtype)
    first_P = place_P * RASTER_FEATURES
    out[first_P] = count_P.log1p()  # the same value from every point of a slice
    out.index_add_(0, first_P + 1, intensity_P / (255 * count_P))
    out.index_add_(0, first_P + 2, height_P / count_P)
    return out.view(len(points), y_size, x_size, slices * RASTER_FEATURES).permute(0, 3, 1, 2)


def _places(
    points: Sequence[Tensor], lower: Vector3, cell_size: Vector3, shape_xyz: Shape3
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the points on the map: index into (B, Y, X, S), height in the slice (cells off its middle), intensity."""
    x_size, y_size, z_size = shape_xyz
    cloud_P4 = torch.cat([cloud[:, :4] for cloud in points])
    counts_B = torch.tensor([len(cloud) for cloud in points], device=cloud_P4.device)
    sample_P = torch.repeat_interleave(torch.arange(len(points), device=cloud_P4.device), counts_B)
    position_P3 = (cloud_P4[:, :3] - cloud_P4.new_tensor(lower)) / cloud_P4.new_tensor(cell_size)
    x_P, y_P, z_P = position_P3.unbind(dim=1)
    inside_P = (x_P >= 0) & (x_P < x_size) & (y_P >= 0) & (y_P < y_size) & z_P.isfinite()
    sample_P, x_P, y_P, z_P = sample_P[inside_P], x_P[inside_P].long(), y_P[inside_P].long(), z_P[inside_P]
    slice_P = z_P.floor().clamp(-1, z_size)
    height_P = (z_P - slice_P - 0.5).clamp(-0.5, 0.5)
    place_P = ((sample_P * y_size + y_P) * x_size + x_P) * (z_size + 2) + slice_P.long() + 1
    return place_P, height_P, cloud_P4[inside_P, 3]


def rasterize_reference(points: Sequence[Tensor], lower: Vector3, cell_size: Vector3, shape_xyz: Shape3) -> Tensor:
    """The same point by point, to read and to test against."""
    x_size, y_size, z_size = shape_xyz
    out = torch.zeros(len(points), z_size + 2, RASTER_FEATURES, y_size, x_size)
    for sample, cloud in enumerate(points):
        slices: dict[tuple[int, int, int], list[tuple[float, float]]] = {}
        position_P3 = (cloud[:, :3] - cloud.new_tensor(lower)) / cloud.new_tensor(cell_size)
        for (x, y, z), intensity in zip(position_P3.tolist(), cloud[:, 3].tolist(), strict=True):
            if 0 <= x < x_size and 0 <= y < y_size and abs(z) < float("inf"):
                level = min(max(int(z // 1), -1), z_size)
                height = min(max(z - level - 0.5, -0.5), 0.5)
                slices.setdefault((level + 1, int(y), int(x)), []).append((intensity / 255, height))
        for (level, y, x), found in slices.items():
            mean = torch.tensor(found).mean(dim=0)
            out[sample, level, :, y, x] = torch.stack([torch.tensor(float(len(found))).log1p(), *mean])
    return out.flatten(1, 2)

"""Feature maps of cameras to points in space: each point collects what the cameras that see it say about it.

The model is that of Lift, Splat, Shoot (Philion and Fidler, ECCV 2020), a feature times the probability that its ray
ends at the point's depth, but points pull instead of pixels pushing: nothing is sorted or added atomically, and the
cost does not grow with the number of depth bins.

Shape suffixes: M cameras (of all samples), D depth bins, C channels, h w feature map, Q seen pairs of point and camera,
R points (of all samples), 4 the feature cells around a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PullPlan:
    """Which points are seen by which cameras, and where. Depends on calibration alone; rows are sorted by point."""

    point_Q: Tensor
    """int64, 0 <= point < num_points; ascending."""
    camera_Q: Tensor
    """int64 index of the feature map."""
    uv_Q2: Tensor
    """float32 column and row in cells; 0 is the middle of the first cell."""
    depth_bin_Q: Tensor
    """float32 depth in bins; 0 is the middle of the first bin."""
    weight_Q: Tensor
    """float32 share of this camera in the point: 1 over the number of cameras that see it."""
    num_points: int


@dataclass(frozen=True, kw_only=True)
class PullTables:
    """A plan for feature maps of one size: where to look, and with which weight. Depends on calibration alone."""

    map_shape: tuple[int, int, int]
    """Depth bins, rows and columns of the maps."""
    cell_Q4: Tensor
    """int64 index into (M * h * w): the cells around a pixel."""
    near_Q4: Tensor
    """int64 index into (M * h * w * D): the probability, in each of the cells, of the depth bin before the point."""
    far_Q4: Tensor
    """Of the bin behind it."""
    near_share_Q4: Tensor
    """float32: bilinear weight of the cell x share of the camera x that of the bin; zero outside the maps."""
    far_share_Q4: Tensor
    first_R: Tensor
    """int64: the first entry of each point in the flat Q4 tables."""


def tabulate(plan: PullPlan, depth_bins: int, rows: int, columns: int) -> PullTables:
    """A plan for maps of ``rows`` x ``columns`` cells and ``depth_bins`` bins."""
    cell_Q4, share_Q4 = _four_cells(plan, rows, columns)
    share_Q4 = share_Q4 * plan.weight_Q[:, None]
    bin_Q1 = plan.depth_bin_Q.floor()[:, None]
    between_Q1 = plan.depth_bin_Q[:, None] - bin_Q1
    near_Q1 = bin_Q1.long()
    index_Q4, inside_Q1 = [], []
    for number_Q1 in (near_Q1, near_Q1 + 1):
        index_Q4.append(cell_Q4 * depth_bins + number_Q1.clamp(0, depth_bins - 1))
        inside_Q1.append((number_Q1 >= 0) & (number_Q1 < depth_bins))
    seen_R = torch.bincount(plan.point_Q, minlength=plan.num_points)
    return PullTables(
        map_shape=(depth_bins, rows, columns),
        cell_Q4=cell_Q4,
        near_Q4=index_Q4[0],
        far_Q4=index_Q4[1],
        near_share_Q4=share_Q4 * (1 - between_Q1) * inside_Q1[0],
        far_share_Q4=share_Q4 * between_Q1 * inside_Q1[1],
        first_R=4 * (seen_R.cumsum(0) - seen_R),
    )


def pull_lift(feature_MChw: Tensor, depth_MDhw: Tensor, plan: PullPlan | PullTables) -> Tensor:
    """What the cameras say about each point.

    For a point that one camera sees at depth d: the sum over the four feature cells around its pixel of bilinear weight
    x probability at d (interpolated between two bins) x features. Cells and bins outside count as zero. Over several
    cameras: the mean.

    Args:
        feature_MChw: Features.
        depth_MDhw: Probability of each depth bin.
        plan: What is seen where; as tables, where it is used more than once.

    Returns:
        (R, C) float32; zero where no camera sees the point. Differentiable in features and probabilities.

    Raises:
        ValueError: maps that do not fit together.
    """
    m, channels, h, w = feature_MChw.shape
    if depth_MDhw.shape[0] != m or depth_MDhw.shape[2:] != (h, w):
        raise ValueError(
            f"pull_lift: features {tuple(feature_MChw.shape)} and depths {tuple(depth_MDhw.shape)} differ in cameras "
            "or cells"
        )
    tables = tabulate(plan, depth_MDhw.shape[1], h, w) if isinstance(plan, PullPlan) else plan
    if tables.map_shape != tuple(depth_MDhw.shape[1:]):
        raise ValueError(f"pull_lift: tables for {tables.map_shape}, depths are {tuple(depth_MDhw.shape[1:])}")
    if not len(tables.cell_Q4):
        return feature_MChw.new_zeros(len(tables.first_R), channels, dtype=torch.float32)
    probability = depth_MDhw.permute(0, 2, 3, 1).reshape(-1).float()
    weight_Q4 = probability[tables.near_Q4] * tables.near_share_Q4
    weight_Q4 = weight_Q4 + probability[tables.far_Q4] * tables.far_share_Q4
    return F.embedding_bag(
        tables.cell_Q4.flatten(),
        feature_MChw.permute(0, 2, 3, 1).reshape(-1, channels).float(),
        offsets=tables.first_R,
        mode="sum",
        per_sample_weights=weight_Q4.flatten(),
    )


def _four_cells(plan: PullPlan, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Index of the cells around each pixel into (M * h * w), and their bilinear weights; zero outside the map."""
    # Columns and rows one by one and joined at the end: operations over rows of four are slow.
    (left, right), (share_left, share_right) = two_cells(plan.uv_Q2[:, 0], w)
    (above, below), (share_above, share_below) = two_cells(plan.uv_Q2[:, 1], h)
    first_Q = plan.camera_Q * (h * w)
    above, below = first_Q + above * w, first_Q + below * w
    cells = [above + left, above + right, below + left, below + right]
    shares = [
        share_above * share_left,
        share_above * share_right,
        share_below * share_left,
        share_below * share_right,
    ]
    return torch.stack(cells, dim=1), torch.stack(shares, dim=1)


def two_cells(place_Q: Tensor, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """The cells before and behind each place along an axis, and their linear weights; zero outside the map."""
    base_Q = place_Q.floor()
    part_Q, cell_Q = place_Q - base_Q, base_Q.long()
    cells, shares = [cell_Q, cell_Q + 1], [1 - part_Q, part_Q]
    weights = [share * ((cell >= 0) & (cell < count)) for cell, share in zip(cells, shares, strict=True)]
    return [cell.clamp(0, count - 1) for cell in cells], weights


def pull_lift_reference(feature_MChw: Tensor, depth_MDhw: Tensor, plan: PullPlan) -> Tensor:
    """The same from the whole frustum, pair by pair, to read and to test against."""
    bins, (h, w) = depth_MDhw.shape[1], feature_MChw.shape[2:]
    out_RC = feature_MChw.new_zeros(plan.num_points, feature_MChw.shape[1])
    for q in range(len(plan.point_Q)):
        camera, (u, v) = plan.camera_Q[q], plan.uv_Q2[q]
        frustum_CDhw = feature_MChw[camera, :, None] * depth_MDhw[camera]
        share_D, share_h, share_w = (
            (1 - (torch.arange(count) - place).abs()).clamp(min=0)  # of the two neighbours of a place on an axis
            for count, place in ((bins, plan.depth_bin_Q[q]), (h, v), (w, u))
        )
        said_C = torch.einsum("cdhw,d,h,w->c", frustum_CDhw, share_D, share_h, share_w)
        out_RC = out_RC.index_add(0, plan.point_Q[q : q + 1], (plan.weight_Q[q] * said_C)[None])
    return out_RC

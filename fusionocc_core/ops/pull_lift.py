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


def pull_lift(feature_MChw: Tensor, depth_MDhw: Tensor, plan: PullPlan) -> Tensor:
    """What the cameras say about each point.

    For a point that one camera sees at depth d: the sum over the four feature cells around its pixel of bilinear weight
    x probability at d (interpolated between two bins) x features. Cells and bins outside count as zero. Over several
    cameras: the mean.

    Args:
        feature_MChw: Features.
        depth_MDhw: Probability of each depth bin.
        plan: What is seen where.

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
    if not len(plan.point_Q):
        return feature_MChw.new_zeros(plan.num_points, channels, dtype=torch.float32)
    bins = depth_MDhw.shape[1]
    cell_Q4, share_Q4 = _four_cells(plan, h, w)
    table = depth_MDhw.permute(0, 2, 3, 1).reshape(-1).float()
    near_Q = plan.depth_bin_Q.floor()
    between_Q1 = (plan.depth_bin_Q - near_Q)[:, None]
    near_Q = near_Q.long()
    probability_Q4 = _take(table, cell_Q4, near_Q, bins) * (1 - between_Q1)
    probability_Q4 = probability_Q4 + _take(table, cell_Q4, near_Q + 1, bins) * between_Q1
    weight_Q4 = share_Q4 * plan.weight_Q[:, None] * probability_Q4
    seen_R = torch.bincount(plan.point_Q, minlength=plan.num_points)
    return F.embedding_bag(
        cell_Q4.flatten(),
        feature_MChw.permute(0, 2, 3, 1).reshape(-1, channels).float(),
        offsets=4 * (seen_R.cumsum(0) - seen_R),
        mode="sum",
        per_sample_weights=weight_Q4.flatten(),
    )


def _four_cells(plan: PullPlan, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Index of the cells around each pixel into (M * h * w), and their bilinear weights; zero outside the map."""
    base_Q2 = plan.uv_Q2.floor()
    part_Q2 = plan.uv_Q2 - base_Q2
    u_Q4 = base_Q2[:, :1].long() + plan.point_Q.new_tensor([0, 1, 0, 1])
    v_Q4 = base_Q2[:, 1:].long() + plan.point_Q.new_tensor([0, 0, 1, 1])
    share_u = torch.stack([1 - part_Q2[:, 0], part_Q2[:, 0]], dim=1)
    share_v = torch.stack([1 - part_Q2[:, 1], part_Q2[:, 1]], dim=1)
    share_Q4 = (share_v[:, :, None] * share_u[:, None, :]).flatten(1)
    inside_Q4 = (u_Q4 >= 0) & (u_Q4 < w) & (v_Q4 >= 0) & (v_Q4 < h)
    cell_Q4 = (plan.camera_Q[:, None] * h + v_Q4.clamp(0, h - 1)) * w + u_Q4.clamp(0, w - 1)
    return cell_Q4, share_Q4 * inside_Q4


def _take(table: Tensor, cell_Q4: Tensor, bin_Q: Tensor, bins: int) -> Tensor:
    """Probability of a depth bin in each cell; zero outside the bins."""
    inside_Q1 = ((bin_Q >= 0) & (bin_Q < bins))[:, None]
    return table[cell_Q4 * bins + bin_Q.clamp(0, bins - 1)[:, None]] * inside_Q1


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

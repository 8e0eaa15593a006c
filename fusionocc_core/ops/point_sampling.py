"""A number of points out of many: spread evenly, or drawn along rays.

Shape suffixes: P points, S points taken, 3 = (x, y, z), D bins along a ray.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def farthest_points(points_P3: Tensor, count: int) -> Tensor:
    """Indices of points of which each is the farthest from those before it; the first is the first of the list.

    Where several are equally far, the earliest in the list is taken. Points on a lattice are full of such ties, so that
    other rounding of the points may give another selection from some place on.

    Args:
        points_P3: floating point.
        count: how many to take.

    Returns:
        (count,) int64.

    Raises:
        ValueError: fewer points than ``count``, or none wanted.
    """
    if points_P3.ndim != 2 or not 1 <= count <= len(points_P3):
        raise ValueError(
            f"farthest_points: count={count} of points {tuple(points_P3.shape)}; expected 1 to as many as there are"
        )
    coordinates_3P = points_P3.T.contiguous()
    nearest_P = points_P3.new_full((len(points_P3),), torch.inf)
    chosen_S = torch.zeros(count, dtype=torch.int64, device=points_P3.device)
    for step in range(1, count):
        offset_3P = coordinates_3P - coordinates_3P[:, chosen_S[step - 1]].unsqueeze(1)
        nearest_P = torch.minimum(nearest_P, offset_3P.square_().sum(dim=0))
        chosen_S[step] = nearest_P.argmax()
    return chosen_S


@torch.no_grad()
def inverse_cdf_bins(probability_xD: Tensor, uniform_x: Tensor) -> Tensor:
    """The bin that each uniform number falls into when bins follow each other with their probabilities as widths.

    Args:
        probability_xD: not negative; any leading axes; need not sum to one.
        uniform_x: numbers of 0 to 1, one a distribution.

    Returns:
        int64, 0 to D - 1.
    """
    total_x1 = probability_xD.sum(dim=-1, keepdim=True) + torch.finfo(torch.float32).eps
    cumulative_xD = (probability_xD / total_x1).cumsum(dim=-1).contiguous()
    index_x1 = torch.searchsorted(cumulative_xD, uniform_x.unsqueeze(-1).contiguous(), right=True)
    return index_x1.squeeze(-1).clamp(max=probability_xD.shape[-1] - 1)

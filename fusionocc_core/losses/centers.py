"""Heatmaps of objects' centres: how labels are drawn, and the losses (CenterPoint; Panoptic-FlashOcc).

Legend: B samples, K classes of objects, M objects, X Y columns of the grid. Losses are computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_OBJECTS = 500
"""Objects of a sample; those beyond are left out."""
LEAST_RADIUS = 2
"""Of a peak in the heatmap, columns."""
OVERLAP = 0.1
"""IoU that a box of the right size has with the object's at the edge of the peak."""
_CLOSE_TO_CERTAIN = 1e-4


class CenterPredictions(Protocol):
    """The part of a network's centres that losses look at; see structures.CenterOutputs."""

    @property
    def heatmap_logits_BKXY(self) -> Tensor: ...  # noqa: D102
    @property
    def offset_B2XY(self) -> Tensor: ...  # noqa: D102
    @property
    def height_BXY(self) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class CenterTargets:
    """What the centres of a batch should be."""

    heatmap_BKXY: Tensor
    """float32: 1 in the columns of centres, falling off around them."""
    columns_BM2: Tensor
    """int64: the column (x, y) of each object; -1 where there are fewer objects than M."""
    position_BM3: Tensor
    """float32: x and y from the lower corner of that column, in columns, and z in metres."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> CenterTargets:
        """The same targets on another device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        return CenterTargets(**moved)


def collate_centers(samples: list[CenterTargets]) -> CenterTargets:
    """One batch out of several, sample after sample."""
    return CenterTargets(**{f.name: torch.cat([getattr(s, f.name) for s in samples]) for f in fields(CenterTargets)})


def draw_centers(
    centers_M3: NDArray[np.floating],
    sizes_M2: NDArray[np.floating],
    channels_M: NDArray[np.integer],
    *,
    num_classes: int,
    lower_xy: tuple[float, float],
    column_size: tuple[float, float],
    shape_xy: tuple[int, int],
) -> CenterTargets:
    """The targets of one sample. Objects whose centre lies outside the columns are left out.

    Args:
        centers_M3: middles of the objects' boxes in the grid's frame, metres.
        sizes_M2: length and width of the boxes, metres.
        channels_M: the heatmap of each object.
        num_classes: how many heatmaps there are.
        lower_xy: the grid's lower corner, metres.
        column_size: along x and y, metres.
        shape_xy: columns along x and y.
    """
    place_M2 = (centers_M3[:, :2] - np.asarray(lower_xy)) / np.asarray(column_size)
    column_M2 = np.floor(place_M2).astype(np.int64)
    inside = ((column_M2 >= 0) & (column_M2 < shape_xy)).all(axis=1) & (sizes_M2 > 0).all(axis=1)
    chosen = np.flatnonzero(inside)[:MOST_OBJECTS]
    heatmap_KXY = np.zeros((num_classes, *shape_xy), np.float32)
    columns, positions = np.full((MOST_OBJECTS, 2), -1), np.zeros((MOST_OBJECTS, 3), np.float32)
    columns[: len(chosen)] = column_M2[chosen]
    positions[: len(chosen), :2] = place_M2[chosen] - column_M2[chosen]
    positions[: len(chosen), 2] = centers_M3[chosen, 2]
    for m in chosen:
        radius = max(LEAST_RADIUS, int(peak_radius(*(sizes_M2[m] / np.asarray(column_size)))))
        _draw_peak(heatmap_KXY[channels_M[m]], column_M2[m], radius)
    return CenterTargets(
        heatmap_BKXY=torch.from_numpy(heatmap_KXY)[None],
        columns_BM2=torch.from_numpy(columns)[None],
        position_BM3=torch.from_numpy(positions)[None],
    )


def peak_radius(length: float, width: float, overlap: float = OVERLAP) -> float:
    """How far the centre of a box may be off, in columns, for the IoU with the right box to stay above ``overlap``.

    The smallest of the three cases of CornerNet (Law and Deng, ECCV 2018), with the roots as its code takes them, which
    all later detectors have kept: divided by 2 instead of by twice the leading coefficient.
    """
    area, edges = length * width, length + width
    cases = (
        (1.0, edges, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * edges, (1 - overlap) * area),
        (4 * overlap, -2 * overlap * edges, (overlap - 1) * area),
    )
    return float(min((b + np.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in cases))


def _draw_peak(heatmap_XY: NDArray[np.float32], column: NDArray[np.int64], radius: int) -> None:
    """Raise the heatmap to a Gaussian around a column; its deviation is a sixth of the window's edge."""
    x0, y0 = (int(c) for c in column)
    x = np.arange(max(x0 - radius, 0), min(x0 + radius + 1, heatmap_XY.shape[0]))
    y = np.arange(max(y0 - radius, 0), min(y0 + radius + 1, heatmap_XY.shape[1]))
    deviation = (2 * radius + 1) / 6
    peak = np.exp(-((x[:, None] - x0) ** 2 + (y[None, :] - y0) ** 2) / (2 * deviation**2)).astype(np.float32)
    window = heatmap_XY[x[0] : x[-1] + 1, y[0] : y[-1] + 1]
    np.maximum(window, peak, out=window)


def heatmap_loss(logits_BKXY: Tensor, heatmap_BKXY: Tensor) -> Tensor:
    """Focal loss of heatmaps, summed over everything, divided by the number of centres (at least 1).

    At a centre -(1 - p)^2 ln p, elsewhere -(1 - target)^4 p^2 ln(1 - p), with p in 0.0001..0.9999 (CornerNet).
    """
    p = logits_BKXY.float().sigmoid().clamp(_CLOSE_TO_CERTAIN, 1 - _CLOSE_TO_CERTAIN)
    center = heatmap_BKXY == 1
    at_centers = (1 - p) ** 2 * p.log()
    elsewhere = (1 - heatmap_BKXY) ** 4 * p**2 * (1 - p).log()
    return -torch.where(center, at_centers, elsewhere).sum() / center.sum().clamp(min=1)


def position_loss(predictions: CenterPredictions, targets: CenterTargets) -> Tensor:
    """Absolute errors of x, y (columns) and z (metres) at the objects' columns, summed, mean over objects.

    Zero, with zero gradients, where there is no object.
    """
    sample_L, object_L = (targets.columns_BM2[..., 0] >= 0).nonzero(as_tuple=True)
    x_L, y_L = targets.columns_BM2[sample_L, object_L].unbind(1)
    offset_L2 = predictions.offset_B2XY[sample_L, :, x_L, y_L]
    height_L1 = predictions.height_BXY[sample_L, x_L, y_L][:, None]
    error_L3 = torch.cat([offset_L2, height_L1], dim=1).float() - targets.position_BM3[sample_L, object_L]
    return error_L3.abs().sum() / max(len(error_L3), 1)

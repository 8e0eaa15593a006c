"""From centres of objects and classes of voxels to a number for each object (Panoptic-FlashOcc, 2024).

Legend: B samples, K classes of objects, M objects, X Y Z voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.structures import CenterOutputs

MOST_CENTERS = 500
LEAST_SCORE = 0.3
"""Centres below are no objects."""


@dataclass(frozen=True, kw_only=True)
class Centers:
    """Objects that were found in one sample, the surest first."""

    positions_M3: NDArray[np.float32]
    """Metres, in the grid's frame."""
    class_ids_M: NDArray[np.int64]
    scores_M: NDArray[np.float32]
    """Probabilities."""


def find_centers(
    outputs: CenterOutputs, grid: VoxelGrid, *, most: int = MOST_CENTERS, least_score: float = LEAST_SCORE
) -> list[Centers]:
    """The peaks of the heatmaps, a list entry a sample.

    A peak is a column that no neighbour of the eight around it surpasses in the same class.
    """
    scores_BKXY = outputs.heatmap_logits_BKXY.float().sigmoid()
    peaks_BKXY = scores_BKXY.where(scores_BKXY == F.max_pool2d(scores_BKXY, 3, stride=1, padding=1), 0)
    x_y = peaks_BKXY.shape[2:]
    found = []
    for b, scores_KXY in enumerate(peaks_BKXY):
        score_M, place_M = scores_KXY.flatten().topk(min(most, scores_KXY.numel()))
        place_M = place_M[score_M > least_score]
        channel_M, x_M, y_M = (i for i in torch.unravel_index(place_M, (scores_KXY.shape[0], *x_y)))
        columns_M2 = torch.stack([x_M, y_M], dim=1) + outputs.offset_B2XY[b, :, x_M, y_M].T.float()
        size, lower = (columns_M2.new_tensor(value[:2]) for value in (grid.voxel_size, grid.lower))
        height_M1 = outputs.height_BXY[b, x_M, y_M].float()[:, None]
        ids = torch.tensor(outputs.class_ids, device=channel_M.device)
        found.append(
            Centers(
                positions_M3=torch.cat([columns_M2 * size + lower, height_M1], dim=1).cpu().numpy(),
                class_ids_M=ids[channel_M].cpu().numpy(),
                scores_M=score_M[: len(place_M)].cpu().numpy(),
            )
        )
    return found


def assign_instances(
    labels_XYZ: NDArray[np.uint8], voxels_M3: NDArray[np.integer], class_ids_M: NDArray[np.integer]
) -> NDArray[np.uint16]:
    """The number of the nearest centre of the same class for every voxel, counted from 1; 0 where its class has none.

    Nearest by the squared distance between voxel indices; of two equally near the first. The official code looks the
    classes of its heatmaps up in a table that was made for another order of the classes (construction vehicles are
    trailers there, barriers bicycles, and so on); here every centre carries its own class.

    Args:
        labels_XYZ: classes.
        voxels_M3: indices of the centres' voxels; they may lie outside the grid.
        class_ids_M: classes of the centres.
    """
    if len(voxels_M3) >= np.iinfo(np.uint16).max:
        raise ValueError(f"assign_instances: {len(voxels_M3)} centres; expected at most {np.iinfo(np.uint16).max - 1}")
    instances = np.zeros(labels_XYZ.shape, np.uint16)
    for class_id in np.unique(class_ids_M):
        voxels_V3 = np.argwhere(labels_XYZ == class_id)
        nearest_V = np.full(len(voxels_V3), np.iinfo(np.int64).max)
        number_V = np.zeros(len(voxels_V3), np.uint16)
        for m in np.flatnonzero(class_ids_M == class_id):
            distance_V = ((voxels_V3 - voxels_M3[m]) ** 2).sum(axis=1)
            closer = distance_V < nearest_V
            nearest_V[closer], number_V[closer] = distance_V[closer], m + 1
        instances[tuple(voxels_V3.T)] = number_V
    return instances


def decode_instances(outputs: CenterOutputs, labels_XYZ: NDArray[np.uint8], grid: VoxelGrid) -> NDArray[np.uint16]:
    """Numbers of the objects of the first sample, whose voxels' classes are ``labels_XYZ``."""
    centers = find_centers(outputs, grid)[0]
    return assign_instances(labels_XYZ, grid.indices(centers.positions_M3), centers.class_ids_M)

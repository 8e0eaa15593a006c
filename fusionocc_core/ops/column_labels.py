"""From the channels of a column of voxels to the labels of its voxels, without the scores of all voxels at once.

The scores of 200 x 200 columns of 16 voxels and 18 classes are 46 MB that would be written, read and thrown away. Here
they are made and used up for a tile of columns at a time, which stays in the processor's cache.

Shape suffixes: V columns, C channels, S scores of a column, Z voxels of a column, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.side_by_side import shares, side_by_side

LOG2_E = math.log2(math.e)
TILE_CPU = 1000
"""Columns at a time: their scores take 1.2 MB."""
TILE_ELSEWHERE = 65536
"""On a GPU the launches cost more than the memory."""


def column_labels(
    parts_VC: Sequence[Tensor], hidden: nn.Linear, scores: nn.Linear, num_classes: int, *, confidence: bool
) -> tuple[Tensor, Tensor | None]:
    """The class with the highest score in each voxel, ``scores(relu(hidden(column)))`` being the scores of a column.

    Not differentiable. Where scores are equal, or not numbers, the first of the classes in question wins.

    Args:
        parts_VC: the channels of the columns, in parts that follow each other; not joined here, only multiplied.
        hidden: from all channels to the hidden layer.
        scores: from there to K scores a voxel, output ``z * K + class``.
        num_classes: K.
        confidence: also give the probability (softmax) of the label.

    Returns:
        Labels (Z, V) uint8 and their probabilities (Z, V) uint8, 0..255, or None.

    Raises:
        ValueError: parts that do not fit the hidden layer, or scores that are not K a voxel.
    """
    widths = [part.shape[1] for part in parts_VC]
    if not widths or sum(widths) != hidden.in_features or scores.out_features % num_classes:
        raise ValueError(
            f"column_labels: parts of {widths} channels for a hidden layer of {hidden.in_features}, and "
            f"{scores.out_features} scores for {num_classes} classes; expected all channels, and K scores a voxel"
        )
    # In half precision the highest scores would be equal too often.
    with torch.no_grad(), torch.autocast(parts_VC[0].device.type, enabled=False):
        if parts_VC[0].device.type != "cpu":
            return _by_tiles(parts_VC, hidden, scores, num_classes, confidence)
        found = side_by_side(
            [
                partial(_by_tiles, [part[rows] for part in parts_VC], hidden, scores, num_classes, confidence)
                for rows in shares(len(parts_VC[0]))
            ]
        )
        sure = [part_ZV for _, part_ZV in found if part_ZV is not None]
        return torch.cat([labels_ZV for labels_ZV, _ in found], dim=1), torch.cat(sure, dim=1) if sure else None


def _by_tiles(
    parts_VC: Sequence[Tensor], hidden: nn.Linear, scores: nn.Linear, num_classes: int, confidence: bool
) -> tuple[Tensor, Tensor | None]:
    columns, size_z = len(parts_VC[0]), scores.out_features // num_classes
    labels_ZV = torch.empty(size_z, columns, dtype=torch.uint8, device=parts_VC[0].device)
    sure_ZV = torch.empty_like(labels_ZV) if confidence else None
    weights_CH = hidden.weight.t().split([part.shape[1] for part in parts_VC])
    # Classes first: planes of Z * V numbers are compared at once, instead of K numbers at a time. To the base of 2: the
    # highest score stays the highest, and powers of 2 take a third of the time.
    weight_SH = (scores.weight * LOG2_E).unflatten(0, (size_z, num_classes)).transpose(0, 1).flatten(0, 1).contiguous()
    bias_S1 = (scores.bias * LOG2_E).view(size_z, num_classes).t().reshape(-1, 1)
    step = TILE_CPU if labels_ZV.device.type == "cpu" else TILE_ELSEWHERE
    for begin in range(0, columns, step):
        tile = slice(begin, begin + step)
        hidden_VH = torch.addmm(hidden.bias, parts_VC[0][tile].to(weight_SH), weights_CH[0])
        for part_VC, weight_CH in zip(parts_VC[1:], weights_CH[1:], strict=True):
            hidden_VH.addmm_(part_VC[tile].to(weight_SH), weight_CH)
        scores_KZV = torch.addmm(bias_S1, weight_SH, hidden_VH.relu_().t()).view(num_classes, size_z, -1)
        highest_ZV = scores_KZV.amax(dim=0)
        labels_ZV[:, tile] = _first_highest(scores_KZV, highest_ZV)
        if sure_ZV is not None:
            total_ZV = scores_KZV.sub_(highest_ZV).exp2_().sum(dim=0)
            sure_ZV[:, tile] = total_ZV.reciprocal_().mul_(255).round_()
    return labels_ZV, sure_ZV


def _first_highest(scores_KZV: Tensor, highest_ZV: Tensor) -> Tensor:
    """The first class whose score is not lower than the highest; argmax, whose loop over classes is not vectorised."""
    classes_K11 = torch.arange(len(scores_KZV), dtype=torch.uint8, device=scores_KZV.device)[:, None, None]
    # 255 where lower, else 0; joined with the class, the smallest is the first that is not lower.
    lower_KZV = (scores_KZV < highest_ZV).view(torch.uint8).neg_()
    return lower_KZV.bitwise_or_(classes_K11).amin(dim=0)


def column_labels_reference(
    parts_VC: Sequence[Tensor], hidden: nn.Linear, scores: nn.Linear, num_classes: int
) -> tuple[Tensor, Tensor]:
    """The same from all scores at once, to read and to test against."""
    scores_VS = scores(torch.relu(hidden(torch.cat(list(parts_VC), dim=1))))
    scores_VZK = scores_VS.unflatten(1, (-1, num_classes))
    probability_VZ = F.softmax(scores_VZK, dim=2).amax(dim=2)
    return scores_VZK.argmax(dim=2).to(torch.uint8).t(), (probability_VZ * 255).round().to(torch.uint8).t()

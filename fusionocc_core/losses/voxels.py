"""Cross-entropy and focal loss of voxels.

Legend: B samples, K classes, X Y Z voxels, V voxels in one row. Everything is computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

OCC3D_VOXEL_COUNTS = (
    944004,
    1897170,
    152386,
    2391677,
    16957802,
    724139,
    189027,
    2074468,
    413451,
    2384460,
    5916653,
    175883646,
    4275424,
    51393615,
    61411620,
    105975596,
    116424404,
    1892500630,
)
"""Voxels of each of the 18 classes in the training split of Occ3D-nuScenes, as FlashOcc uses them."""


def balancing_weights(voxel_counts: Sequence[int]) -> tuple[float, ...]:
    """Weights 1 / ln(count + 0.001), as in MonoScene and FlashOcc: rare classes get a little more.

    Raises:
        ValueError: a count below 2, whose logarithm is no use as a weight.
    """
    if min(voxel_counts) < 2:
        raise ValueError(f"voxel_counts={tuple(voxel_counts)}: expected at least 2 voxels of every class")
    return tuple(1.0 / math.log(count + 0.001) for count in voxel_counts)


def distance_weights(size_x: int, size_y: int, *, device: torch.device | None = None) -> Tensor:
    """(X, Y) float32 weights from 1 in the middle of the grid to 2 in its farthest corner (Panoptic-FlashOcc)."""
    x = torch.arange(size_x, dtype=torch.float32, device=device) - size_x / 2
    y = torch.arange(size_y, dtype=torch.float32, device=device) - size_y / 2
    distance = torch.hypot(x[:, None], y[None, :])
    return 1 + distance / distance.max()


def voxel_cross_entropy(
    logits_BKXYZ: Tensor,
    labels_BXYZ: Tensor,
    *,
    unknown: int,
    mask_BXYZ: Tensor | None = None,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Mean cross-entropy over the voxels whose label is known and that lie in the mask.

    With ``class_weights`` the mean is weighted (the weights of the counted voxels are in the denominator too). Without
    any counted voxel it is zero, with zero gradients. FusionOcc and FlashOcc; they would count unknown voxels in the
    denominator, but Occ3D has none.

    Args:
        logits_BKXYZ: Unnormalised scores.
        labels_BXYZ: uint8 or int64 class ids.
        unknown: Label of voxels that do not count.
        mask_BXYZ: Bool or 0/1; None counts every known voxel.
        class_weights: One for each of the K classes.
    """
    known = labels_BXYZ != unknown
    counted = known if mask_BXYZ is None else known & mask_BXYZ.bool()
    # Classes last and one row a voxel: heads compute them so, and CUDA's volume kernel does not give repeatable sums.
    # Only what counts: of a camera's mask that is a tenth of the voxels.
    logits_VK = logits_BKXYZ.movedim(1, -1)[counted].float()
    label_V = labels_BXYZ[counted].long()
    weight_V = torch.ones_like(logits_VK[:, 0])
    if class_weights is not None:
        weight_V = logits_VK.new_tensor(class_weights)[label_V]
    entropy_V = F.cross_entropy(logits_VK, label_V, reduction="none")
    return (entropy_V * weight_V).sum() / (weight_V.sum() + torch.finfo(torch.float32).eps)


def voxel_focal(
    logits_BKXYZ: Tensor,
    labels_BXYZ: Tensor,
    *,
    unknown: int,
    class_weights: Sequence[float] | None = None,
    column_weights_XY: Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017), summed over classes, mean over known voxels (Panoptic-FlashOcc).

    ``class_weights`` belong to the channel of the score, not to the class of the voxel, as in the reference.

    Args:
        logits_BKXYZ: Unnormalised scores, one sigmoid each.
        labels_BXYZ: uint8 or int64 class ids.
        unknown: Label of voxels that do not count.
        class_weights: One for each of the K channels.
        column_weights_XY: One for each column of voxels; see distance_weights.
        alpha: Weight of the voxel's own class; the others get 1 - alpha.
        gamma: How fast the weight falls for scores that are right already.
    """
    known = labels_BXYZ != unknown
    logits_VK = logits_BKXYZ.float().movedim(1, -1)[known]
    own_VK = F.one_hot(labels_BXYZ[known].long(), logits_VK.shape[1]).float()
    wrong_VK = torch.where(own_VK > 0, 1 - logits_VK.sigmoid(), logits_VK.sigmoid())
    weight_VK = torch.where(own_VK > 0, alpha, 1 - alpha) * wrong_VK**gamma
    if class_weights is not None:
        weight_VK = weight_VK * logits_VK.new_tensor(class_weights)
    if column_weights_XY is not None:
        weight_VK = weight_VK * column_weights_XY[:, :, None].expand(labels_BXYZ.shape)[known][:, None]
    entropy_VK = F.binary_cross_entropy_with_logits(logits_VK, own_VK, reduction="none")
    return (entropy_VK * weight_VK).sum() / max(len(logits_VK), 1)

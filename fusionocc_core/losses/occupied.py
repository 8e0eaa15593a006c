"""Losses of networks that answer in two steps: is a voxel occupied, and by what (RenderOcc, UniOcc).

Legend: B samples, K classes without free space, X Y Z voxels, L voxels that count. Everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def occupied_loss(occupied_logits_BXYZ: Tensor, occupied_BXYZ: Tensor, counts_BXYZ: Tensor) -> Tensor:
    """Mean binary cross-entropy over the voxels that count; zero, with zero gradients, where there is none."""
    entropy = F.binary_cross_entropy_with_logits(
        occupied_logits_BXYZ.float(), occupied_BXYZ.float(), weight=counts_BXYZ.float(), reduction="sum"
    )
    return entropy / counts_BXYZ.sum().clamp(min=1)


def occupied_class_loss(
    semantic_BXYZK: Tensor,
    labels_BXYZ: Tensor,
    counts_BXYZ: Tensor,
    *,
    free: int,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """(Weighted) mean cross-entropy over the occupied voxels that count; zero where there is none.

    Args:
        semantic_BXYZK: scores of the classes that are not free, in the order of their ids.
        labels_BXYZ: uint8 class ids.
        counts_BXYZ: bool.
        free: id of free space; the ids above it move down by one.
        class_weights: one for each class, free included.
    """
    chosen = counts_BXYZ & (labels_BXYZ != free)
    labels_L = labels_BXYZ[chosen].long()
    labels_L = labels_L - (labels_L > free).long()
    entropy_L = F.cross_entropy(semantic_BXYZK[chosen].float(), labels_L, reduction="none")
    if class_weights is None:
        return entropy_L.sum() / max(len(entropy_L), 1)
    occupied = [weight for k, weight in enumerate(class_weights) if k != free]
    weight_L = entropy_L.new_tensor(occupied)[labels_L]
    return (entropy_L * weight_L).sum() / weight_L.sum().clamp(min=torch.finfo(torch.float32).tiny)

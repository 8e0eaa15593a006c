"""Lovász-softmax (Berman et al., CVPR 2018): a smooth stand-in for one minus IoU.

Legend: B samples, K classes, X Y Z voxels, V voxels whose label is known.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lovasz_softmax(logits_BKXYZ: Tensor, labels_BXYZ: Tensor, *, unknown: int) -> Tensor:
    """Mean over the classes that the labels hold, free space included; all samples are one set of voxels.

    Zero, with zero gradients, without any known voxel. The order in which equal errors are taken is open, and gradients
    depend on it.

    Args:
        logits_BKXYZ: Unnormalised scores.
        labels_BXYZ: uint8 or int64 class ids.
        unknown: Label of voxels that do not count.
    """
    known = labels_BXYZ != unknown
    probability_VK = logits_BKXYZ.movedim(1, -1)[known].float().softmax(dim=1)
    label_V = labels_BXYZ[known].long()
    present = torch.bincount(label_V, minlength=probability_VK.shape[1]).nonzero().flatten().tolist()
    terms = [_lovasz_of_class(probability_VK[:, k], label_V == k) for k in present]
    return torch.stack(terms).mean() if terms else probability_VK.sum()


def _lovasz_of_class(probability_V: Tensor, own_V: Tensor) -> Tensor:
    """Errors from the largest down, each weighted by how much it lowers the IoU."""
    error_V, order = (own_V.float() - probability_V).abs().sort(descending=True)
    own_V = own_V[order]
    size = own_V.sum()
    # Whole numbers: exact beyond 2**24 voxels, and CUDA has no repeatable cumulative sum of floats.
    left_V, union_V = size - own_V.cumsum(0), size + (~own_V).cumsum(0)
    loss_V = 1 - left_V.float() / union_V.float()
    return torch.dot(error_V, torch.diff(loss_V, prepend=loss_V.new_zeros(1)))

"""Losses on feature cells of the pictures: depth and segmentation.

Legend: B samples, N cameras, D depth bins, K classes, H W picture, h w feature map, L cells that carry a label.
Everything is computed in float32, with autocast off.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def depth_loss(logits_BNDhw: Tensor, bins_BNhw: Tensor) -> Tensor:
    """Binary cross-entropy between the softmax over depth and the measured bin (BEVDepth, FusionOcc).

    Summed over the bins, mean over the cells with a measurement; zero, with zero gradients, where there is none.
    Logarithms are clamped at -100, as PyTorch does.

    Args:
        logits_BNDhw: Unnormalised scores of the bins.
        bins_BNhw: int64: 0 where nothing was measured, else 1 + the index of the bin.
    """
    measured = bins_BNhw > 0
    logits_LD = logits_BNDhw.movedim(2, -1)[measured].float()
    target_LD = F.one_hot(bins_BNhw[measured] - 1, logits_LD.shape[1]).float()
    with torch.autocast(logits_LD.device.type, enabled=False):
        entropy_LD = F.binary_cross_entropy(logits_LD.softmax(dim=1), target_LD, reduction="none")
    return entropy_LD.sum() / max(len(logits_LD), 1)


def segmentation_loss(logits_BNKhw: Tensor, labels_BNHW: Tensor, *, ignored: tuple[int, ...]) -> Tensor:
    """Mean cross-entropy over the cells that carry a label (FusionOcc).

    A cell's label is that of its upper left pixel. Zero, with zero gradients, where no cell has one; the reference
    gives NaN.

    Args:
        logits_BNKhw: Unnormalised scores of the classes.
        labels_BNHW: uint8 or int64, one a pixel; H and W are multiples of h and w by the same factor.
        ignored: Ids that mean "no label".
    """
    labels_BNhw = cell_labels(labels_BNHW, tuple(logits_BNKhw.shape[-2:]))
    labelled = ~torch.isin(labels_BNhw, labels_BNhw.new_tensor(ignored))
    logits_LK = logits_BNKhw.movedim(2, -1)[labelled].float()
    return F.cross_entropy(logits_LK, labels_BNhw[labelled], reduction="sum") / max(len(logits_LK), 1)


def cell_labels(labels_BNHW: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    """(B, N, h, w) int64: the label of each feature cell's upper left pixel.

    Raises:
        ValueError: the picture is not the same whole multiple of the feature map both ways.
    """
    h, w = size_hw
    stride, rest = divmod(labels_BNHW.shape[-2], h)
    if rest or labels_BNHW.shape[-1] != stride * w:
        raise ValueError(
            f"labels_BNHW: {labels_BNHW.shape[-2]} x {labels_BNHW.shape[-1]} pixels are not a whole multiple of the "
            f"{h} x {w} feature cells; bring the label maps to the size of the network's pictures"
        )
    return labels_BNHW[..., ::stride, ::stride].long()

"""Scene-class affinity losses (MonoScene, Cao and de Charette, CVPR 2022): precision, recall, specificity of a scene.

They look at a class as a whole instead of at single voxels. Legend: B samples, K classes, X Y Z voxels, V voxels whose
label is known.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-5


def semantic_affinity(logits_BKXYZ: Tensor, labels_BXYZ: Tensor, *, unknown: int, free: int) -> Tensor:
    """-ln precision - ln recall - ln specificity of each class but free that the labels hold, mean over these classes.

    Zero, with zero gradients, where the labels hold none.

    Args:
        logits_BKXYZ: Unnormalised scores.
        labels_BXYZ: uint8 or int64 class ids.
        unknown: Label of voxels that do not count.
        free: Class of empty space.
    """
    probability_VK, label_V = _known(logits_BKXYZ, labels_BXYZ, unknown)
    own_VK = F.one_hot(label_V, probability_VK.shape[1]).to(probability_VK.dtype)
    wanted = own_VK.any(dim=0)
    wanted[free] = False
    terms_K = _affinity(probability_VK[:, wanted], own_VK[:, wanted])
    return terms_K.sum() / max(len(terms_K), 1)


def geometric_affinity(logits_BKXYZ: Tensor, labels_BXYZ: Tensor, *, unknown: int, free: int) -> Tensor:
    """The same three terms for occupied against free, whatever the class.

    Terms without meaning are zero, with zero gradients: precision and recall where nothing is occupied, specificity
    where nothing is free. The reference gives NaN there.
    """
    probability_VK, label_V = _known(logits_BKXYZ, labels_BXYZ, unknown)
    occupied_V1 = (label_V != free).to(probability_VK.dtype)[:, None]
    return _affinity(1 - probability_VK[:, free, None], occupied_V1).sum()


def _known(logits_BKXYZ: Tensor, labels_BXYZ: Tensor, unknown: int) -> tuple[Tensor, Tensor]:
    known = labels_BXYZ != unknown
    return logits_BKXYZ.float().softmax(dim=1).movedim(1, -1)[known], labels_BXYZ[known].long()


def _affinity(probability_VK: Tensor, own_VK: Tensor) -> Tensor:
    """(K,) sum of the terms of each class, from its probability and 0 or 1 for its membership."""
    said_K, own_K = probability_VK.sum(dim=0), own_VK.sum(dim=0)
    both_K = (probability_VK * own_VK).sum(dim=0)
    other_K = len(own_VK) - own_K
    neither_K = other_K - said_K + both_K
    has_own, has_other = own_K > 0, other_K > 0
    return (
        _minus_log(both_K / (said_K + _EPS)).where(has_own, 0)
        + _minus_log(both_K / (own_K + _EPS)).where(has_own, 0)
        + _minus_log(neither_K / (other_K + _EPS)).where(has_other, 0)
    )


def _minus_log(ratio: Tensor) -> Tensor:
    """-ln of a ratio brought into (0, 1). The gradient passes where the value is clamped, as in the reference."""
    clamped = ratio.detach().clamp(_EPS, 1 - _EPS)
    return -(ratio + (clamped - ratio.detach())).log()

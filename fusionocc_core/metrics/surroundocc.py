"""The two numbers of SurroundOcc's benchmark, with its conventions, from a confusion matrix.

Legend: K classes, free space last; rows are the truth, columns the prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SurroundOccScores:
    """Fractions."""

    miou: float
    """Mean over the classes but noise and free space; a class that the truth does not hold counts as 1."""
    iou: float
    """Occupied against free, whatever the class."""


def surroundocc_scores(confusion_KK: NDArray[np.integer]) -> SurroundOccScores:
    """Both numbers as GaussianFormer's code computes them (and SurroundOcc's).

    Differs from our usual mean in two ways: class 0 (noise) has no part in it, and a class that is in no frame counts
    as found, whatever was predicted. Voxels whose truth is noise must be left out already, as read_surroundocc's
    labels leave them.

    Args:
        confusion_KK: voxels of the whole split, such as ``VoxelScores.confusion_KK`` without mask.

    Raises:
        ValueError: no square matrix of three or more classes.
    """
    if confusion_KK.ndim != 2 or confusion_KK.shape[0] != confusion_KK.shape[1] or len(confusion_KK) < 3:
        raise ValueError(f"surroundocc_scores: confusion of shape {confusion_KK.shape}; expected (K, K), K 3 or more")
    hits, truth, predicted = confusion_KK.diagonal(), confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)
    classes = slice(1, len(confusion_KK) - 1)
    union = (truth + predicted - hits)[classes]
    iou = np.divide(hits[classes], union, out=np.ones(len(union)), where=truth[classes] > 0)
    occupied = confusion_KK[:-1, :-1].sum()
    either = confusion_KK.sum() - confusion_KK[-1, -1]
    return SurroundOccScores(miou=float(iou.mean()), iou=float(occupied / either) if truth[:-1].any() else 1.0)

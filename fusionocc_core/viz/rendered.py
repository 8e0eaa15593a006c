"""Pictures of what is rendered through a volume: depth and classes, beside the photograph where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet
from fusionocc_core.viz.canvas import PAPER, Picture, blank, fit, paste, write

GAP = 8
"""Pixels between the pictures."""
CAPTION = 26
"""Pixels above each."""
FARTHEST = 60.0
"""Metres; farther depths have the colour of this one."""


@dataclass(frozen=True, kw_only=True)
class RenderedView:
    """What one camera sees of an answer."""

    distance_HW: NDArray[np.float32]
    """Along the ray, metres; NaN where a ray sees nothing."""
    labels_HW: NDArray[np.uint8]
    """Classes; ``free`` where a ray sees nothing."""


def depth_picture(depth_HW: NDArray[np.floating], *, farthest: float = FARTHEST) -> Picture:
    """Metres as colours, near red to far blue, even in 1 / depth; paper where the depth is not finite."""
    seen = np.isfinite(depth_HW)
    nearness = 1 / np.maximum(np.where(seen, depth_HW, farthest), 1.0)
    share = (nearness - 1 / farthest) / (1 - 1 / farthest)
    # The square root spreads what is far away, where a street picture has most of its pixels.
    levels = (np.sqrt(share.clip(0, 1)) * 255).round().astype(np.uint8)
    picture = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[..., ::-1].copy()
    picture[~seen] = PAPER
    return cast(Picture, picture)


def class_picture(labels_HW: NDArray[np.integer], label_set: LabelSet) -> Picture:
    """Classes in their colours; paper for ``free`` and ``unknown``."""
    colors = np.full((256, 3), PAPER, np.uint8)
    colors[: label_set.num] = label_set.colors
    colors[[label_set.free, label_set.unknown]] = PAPER
    return colors[labels_HW]


def side_by_side(parts: Sequence[tuple[str, Picture]], *, width: int) -> Picture:
    """Pictures of one size next to each other, each ``width`` pixels wide, under their captions.

    Raises:
        ValueError: no picture.
    """
    if not parts:
        raise ValueError("side_by_side: expected one picture or more")
    height = round(width * parts[0][1].shape[0] / parts[0][1].shape[1])
    out = blank(CAPTION + height + GAP, len(parts) * (width + GAP) + GAP)
    for number, (caption, picture) in enumerate(parts):
        left = GAP + number * (width + GAP)
        write(out, (left, 5), caption)
        paste(out, (left, CAPTION), fit(_enlarged(picture, height, width), height, width))
    return out


def below_each_other(photograph: Picture, view: RenderedView, label_set: LabelSet) -> Picture:
    """The photograph, and below it distance and classes at half its width."""
    height, width = photograph.shape[:2]
    half = (height // 2, width // 2)
    parts = (depth_picture(view.distance_HW), class_picture(view.labels_HW, label_set))
    out = blank(height + half[0], width)
    out[:height] = photograph
    for column, part in enumerate(parts):
        paste(out, (column * (width - half[1]), height), fit(_enlarged(part, *half), *half))
    return out


def _enlarged(picture: Picture, height: int, width: int) -> Picture:
    """Small pictures at this size: rays are squares, not smeared."""
    if picture.shape[1] >= width:
        return picture
    rows = (np.arange(height) * picture.shape[0]) // height
    columns = (np.arange(width) * picture.shape[1]) // width
    return picture[rows][:, columns]

"""How labels agree with others of the same keyframes that are taken for the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.nuscenes_tables import Keyframe
from fusionocc_core.data.occ3d import read_occ3d
from fusionocc_core.data.surroundocc import SURROUNDOCC_LABELS, read_surroundocc
from fusionocc_core.grids import OCC3D_LABELS, LabelSet
from fusionocc_core.labelling.config import LabelConfig
from fusionocc_core.labelling.files import labels_path
from fusionocc_core.metrics.truth import MASKS, OccupancyTruth
from fusionocc_core.metrics.voxels import class_iou, count_voxels, counts_of_mask, geometric_iou, mean_over_classes


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement over all keyframes."""

    keyframes: int
    label_set: LabelSet
    confusion: dict[str, NDArray[np.int64]]
    """Mask of the truth -> (K, K) voxels, rows the truth, columns the labels."""
    own_confusion: dict[str, NDArray[np.int64]]
    """The same under the masks of the labels, which is what a network would be trained on."""
    masks: dict[str, tuple[int, int, int]]
    """Mask -> voxels in both masks, in that of the labels, in that of the truth; empty where there are none."""

    def as_json(self) -> dict[str, Any]:
        """Numbers for a file: IoUs 0..1, None where a class is in neither."""
        out: dict[str, Any] = {
            "keyframes": self.keyframes,
            "under_masks_of_truth": {mask: self._scores(found) for mask, found in self.confusion.items()},
            "under_masks_of_labels": {mask: self._scores(found) for mask, found in self.own_confusion.items()},
            "masks": {},
        }
        for mask, (both, ours, truth) in self.masks.items():
            out["masks"][mask] = {"precision": _number(_share(both, ours)), "recall": _number(_share(both, truth))}
        return out

    def _scores(self, confusion: NDArray[np.int64]) -> dict[str, Any]:
        iou, free = class_iou(confusion), self.label_set.free
        return {
            "geometric_iou": _number(geometric_iou(confusion, self.label_set)),
            "miou": _number(mean_over_classes(iou, self.label_set)),
            "free_that_is_occupied": _number(1 - _share(int(confusion[free, free]), int(confusion[:, free].sum()))),
            "class_iou": {name: _number(value) for name, value in zip(self.label_set.names, iou, strict=True)},
        }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 5)


def check_truth(frames: NuScenesFrames, out: Path, truth: Path, config: LabelConfig) -> None:
    """Refuse a comparison that cannot be made.

    Raises:
        FileNotFoundError: keyframes without truth.
        ValueError: the truth is the folder that the labels go to.
    """
    if out.resolve() == truth.resolve():
        raise ValueError(f"--compare: {truth} is where the labels go; write them elsewhere with --out")
    pairs = [(frames.keyframe(k), frames.lidar or "") for k in range(len(frames))]
    missing = [path for keyframe, lidar in pairs if not (path := labels_path(truth, keyframe, lidar, config)).is_file()]
    if missing:
        raise FileNotFoundError(
            f"--compare: {len(missing)} of {len(pairs)} keyframes have no labels in {truth}, such as {missing[0]}"
        )


def compare(frames: NuScenesFrames, out: Path, truth: Path, config: LabelConfig) -> Agreement:
    """Compare the labels in ``out`` with those in ``truth``, both folders that hold ``gts`` or ``surroundocc``.

    Raises:
        FileNotFoundError: labels of a keyframe are absent.
        ValueError: they are damaged.
    """
    label_set = OCC3D_LABELS if config.layout == "occ3d" else SURROUNDOCC_LABELS
    kinds = MASKS if config.layout == "occ3d" else ("none",)
    zero = np.zeros((label_set.num, label_set.num), np.int64)
    confusion, own = dict.fromkeys(kinds, zero), dict.fromkeys(kinds[:-1], zero)
    masks = dict.fromkeys(kinds[:-1], (0, 0, 0))
    for index in range(len(frames)):
        ours, true = (_read(root, frames.keyframe(index), frames.lidar or "", config) for root in (out, truth))
        labels = np.where(ours.labels == label_set.unknown, 0, ours.labels).astype(np.uint8)
        under_own = replace(true, mask_camera=ours.mask_camera, mask_lidar=ours.mask_lidar)
        for tally, reference in ((confusion, true), (own, under_own)):
            counts = count_voxels(labels, reference)
            tally.update({mask: tally[mask] + counts_of_mask(counts, mask).sum(axis=0) for mask in tally})
        for name, sizes in masks.items():
            masks[name] = _add(sizes, ours.mask(name), true.mask(name))
    return Agreement(keyframes=len(frames), label_set=label_set, confusion=confusion, own_confusion=own, masks=masks)


def _add(
    tally: tuple[int, int, int], ours: NDArray[np.bool_] | None, true: NDArray[np.bool_] | None
) -> tuple[int, int, int]:
    assert ours is not None, "read_occ3d gives both masks"
    assert true is not None, "read_occ3d gives both masks"
    found = (int((ours & true).sum()), int(ours.sum()), int(true.sum()))
    return tally[0] + found[0], tally[1] + found[1], tally[2] + found[2]


def _read(root: Path, keyframe: Keyframe, lidar: str, config: LabelConfig) -> OccupancyTruth:
    path = labels_path(root, keyframe, lidar, config)
    return read_occ3d(path) if config.layout == "occ3d" else read_surroundocc(path)

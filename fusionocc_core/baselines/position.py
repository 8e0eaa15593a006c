"""The two baselines that look at nothing: the most frequent class, and the most frequent class of each place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.metrics import OccupancyTruth
from fusionocc_core.metrics.voxels import mean_over_classes
from fusionocc_core.structures import Occupancy, SensorFrame

BALANCES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Powers of a class's share by which its probability may be divided; 0 leaves it, 1 makes all classes as likely."""
SPREADS = (0, 1, 3)
"""Voxels to each side over which counts may be summed."""


class MajorityBaseline:
    """Says the same class everywhere."""

    def __init__(self, label: int, grid: VoxelGrid, label_set: LabelSet, trained_on: str) -> None:
        self.label, self.grid, self.label_set, self.trained_on = label, grid, label_set, trained_on

    def __call__(self, frame: SensorFrame) -> Occupancy:
        """The answer for a frame, of which only the stamp is used."""
        labels = np.full(self.grid.shape, self.label, np.uint8)
        return _occupancy(labels, "majority baseline", frame, self)


class PositionBaseline:
    """Says for each voxel of the ego frame what was most frequent there."""

    def __init__(self, labels_XYZ: NDArray[np.uint8], grid: VoxelGrid, label_set: LabelSet, trained_on: str) -> None:
        self.labels_XYZ, self.grid, self.label_set, self.trained_on = labels_XYZ, grid, label_set, trained_on

    def __call__(self, frame: SensorFrame) -> Occupancy:
        """The answer for a frame, of which only the stamp is used."""
        return _occupancy(self.labels_XYZ.copy(), "position baseline", frame, self)


@dataclass(frozen=True, kw_only=True)
class PositionChoice:
    """How counts become labels; chosen on scenes of the training split that were held back."""

    balance: float = 0.2
    mirror: bool = False
    """Also count what was seen on the other side, left and right swapped."""
    spread: int = 0


class PlaceCounts:
    """How often each class was seen at each voxel: inside the camera mask (where the labels have one), and at all."""

    def __init__(self, grid: VoxelGrid, label_set: LabelSet) -> None:
        self.grid, self.label_set = grid, label_set
        self.masked_KXYZ = np.zeros((label_set.num, *grid.shape), np.uint16)
        self.all_KXYZ = np.zeros_like(self.masked_KXYZ)

    def add(self, truth: OccupancyTruth) -> None:
        """Count one keyframe."""
        places = np.flatnonzero(truth.labels != self.label_set.unknown)
        cells = truth.labels.ravel()[places].astype(np.int64) * truth.labels.size + places
        self.all_KXYZ.reshape(-1)[cells] += 1
        if truth.mask_camera is not None:
            cells = cells[truth.mask_camera.ravel()[places]]
        self.masked_KXYZ.reshape(-1)[cells] += 1

    def merge(self, other: PlaceCounts) -> None:
        """Take over the counts of another."""
        self.masked_KXYZ += other.masked_KXYZ
        self.all_KXYZ += other.all_KXYZ

    def majority(self) -> int:
        """The most frequent class."""
        return int(self.masked_KXYZ.sum(axis=(1, 2, 3), dtype=np.int64).argmax())

    def labels(self, choice: PositionChoice, hidden_weight: float) -> NDArray[np.uint8]:
        """The label (X, Y, Z) of each place; voxels outside the camera mask count ``hidden_weight``."""
        totals = self.masked_KXYZ.sum(axis=(1, 2, 3), dtype=np.int64)
        scale = class_scale(totals, choice.balance)
        best, labels = np.full(self.grid.shape, -1.0, np.float32), np.zeros(self.grid.shape, np.uint8)
        for k in np.argsort(-totals, kind="stable"):
            count = self.masked_KXYZ[k] + np.float32(hidden_weight) * (self.all_KXYZ[k] - self.masked_KXYZ[k])
            if choice.mirror:
                count = count + count[:, ::-1]
            count = _spread(count, choice.spread) * np.float32(scale[k])
            better = count > best
            best[better], labels[better] = count[better], k
        return labels

    def choose(self, held_back: PlaceCounts, hidden_weight: float) -> PositionChoice:
        """The way of counting with the best mIoU under the camera mask on scenes that are not counted here."""
        symmetric = abs(self.grid.lower[1] + self.grid.upper[1]) < 1e-6
        choices = [
            PositionChoice(balance=balance, mirror=mirror, spread=spread)
            for balance, mirror, spread in product(BALANCES, (False, True) if symmetric else (False,), SPREADS)
        ]
        return max(choices, key=lambda choice: held_back.miou(self.labels(choice, hidden_weight)))

    def miou(self, labels_XYZ: NDArray[np.uint8]) -> float:
        """The mIoU that these labels reach on the keyframes that are counted here, under the camera mask."""
        count = self.label_set.num
        confusion = np.stack(
            [np.bincount(labels_XYZ.ravel(), self.masked_KXYZ[k].ravel(), minlength=count) for k in range(count)]
        )
        return miou(confusion, self.label_set)


def class_scale(totals_K: NDArray[np.integer] | NDArray[np.floating], balance: float) -> NDArray[np.float64]:
    """What to multiply each class's probability with before the largest is taken; classes never seen get 0."""
    share = totals_K / max(totals_K.sum(), 1)
    return np.where(share > 0, np.maximum(share, 1e-12) ** -balance, 0.0)


def miou(confusion_KK: NDArray[np.floating] | NDArray[np.integer], label_set: LabelSet) -> float:
    """The mIoU of weighted counts, -1 where there is nothing to measure."""
    right = np.diagonal(confusion_KK)
    union = confusion_KK.sum(axis=0) + confusion_KK.sum(axis=1) - right
    iou = np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0)
    value = mean_over_classes(iou, label_set)
    return -1.0 if np.isnan(value) else value


def _spread(count_XYZ: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Sums over a square of columns; the place itself decides between equals."""
    if radius == 0:
        return count_XYZ
    total = count_XYZ
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded, length = np.pad(total, pad), total.shape[axis]
        shifted: Sequence[NDArray[np.float32]] = [
            np.take(padded, range(s, s + length), axis=axis) for s in range(2 * radius + 1)
        ]
        total = np.sum(shifted, axis=0)
    return np.asarray(total + np.float32(1e-3) * count_XYZ)


def _occupancy(
    labels: NDArray[np.uint8], name: str, frame: SensorFrame, by: MajorityBaseline | PositionBaseline
) -> Occupancy:
    return Occupancy(
        labels=labels,
        grid=by.grid,
        label_set=by.label_set,
        stamp_ns=frame.stamp_ns,
        model=name,
        trained_on=by.trained_on,
    )

"""The baseline that ignores colour: four sets of keys made of LiDAR features, each with its table, vote on each voxel.

No pictures, no network: a voxel's features (lidar_features.py) are written one after the other into a key, and the
table knows how often each class was seen with that key (tables.py). The sets differ in what they ask first, so that one
of them has seen something like the voxel even where another has not. Votes are sums of log probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.baselines.lidar_features import KINDS, LidarFeatures, lidar_features
from fusionocc_core.baselines.position import BALANCES, class_scale, miou
from fusionocc_core.baselines.tables import BackoffTable, KeyCounts, Keys
from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.metrics import OccupancyTruth
from fusionocc_core.structures import Occupancy, SensorFrame

_AIR = ""
"""One histogram for all: keys made no difference there (measured), and half of all voxels are air."""

_ORDERS = (
    (
        "top_3x3 length z y ground_shine thickness passes",
        "z top_3x3 passes_now y length brightest tallest",
        "above_ground y ground_shine ground tallest",
        _AIR,
    ),
    (
        "tallest bottom width over_road brightest scattered z passes_now",
        "above_ground tallest passes width shine bottom over_road hits_around",
        "z over_road ground_shine passes beside nearest_top",
        _AIR,
    ),
    (
        "z top width shine intensity ground ring upright_normal",
        "z nearest_top length obstacle_distance beside ground_shine hit_above_below ring",
        "above_ground ground beside ring ground_shine length",
        _AIR,
    ),
    (
        "length width top_7x7 above_ground bottom points flat beside",
        "length width z top_7x7 passes_now lowest ground_shine crowded",
        "above_ground x over_road ground_rough ground_shine beside",
        _AIR,
    ),
)
ORDERS = tuple(tuple(tuple(names.split()) for names in of_kinds) for of_kinds in _ORDERS)
"""[vote][kind] -> the features of the key, the most telling first. Chosen on simulated training scenes: the first set
greedily by the loss on held-back scenes, the others by hand to differ from it."""
DEFAULT_BALANCE = 0.2


class GeometryCounts:
    """What the tables are made from.

    Args:
        label_set: of the labels.
    """

    def __init__(self, label_set: LabelSet) -> None:
        self.label_set = label_set
        self.tables = [[KeyCounts(label_set.num) for _ in KINDS] for _ in ORDERS]
        self.totals_K = np.zeros(label_set.num)

    def add(self, features: LidarFeatures, truth: OccupancyTruth, hidden_weight: float) -> None:
        """Count a keyframe: voxels of the camera mask, and every 32nd outside with the weight of the 32."""
        flat, weight = _counted(truth, hidden_weight)
        labels, kinds = truth.labels.ravel()[flat], features.kind_XYZ.ravel()[flat]
        self.totals_K += np.bincount(labels, weight, minlength=self.label_set.num)
        for kind, chosen, of_votes in _keys(features, flat, kinds):
            for vote, keys in enumerate(of_votes):
                self.tables[vote][kind].add(keys, labels[chosen], weight[chosen])

    def merge(self, other: GeometryCounts) -> None:
        """Take over the counts of another."""
        self.totals_K += other.totals_K
        for mine, theirs in zip(self.tables, other.tables, strict=True):
            for one, another in zip(mine, theirs, strict=True):
                one.merge(another)

    def fit(self) -> list[list[BackoffTable]]:
        """The tables, [vote][kind]."""
        return [
            [BackoffTable.fit(self.tables[vote][kind], len(ORDERS[vote][kind])) for kind in range(len(KINDS))]
            for vote in range(len(ORDERS))
        ]


class GeometryBaseline:
    """Labels from the LiDAR alone.

    Args:
        tables: [vote][kind].
        totals_K: how often each class was counted.
        balance: see position.BALANCES.
        history: earlier keyframes' sweeps that are used.
        grid: in the ego frame.
        label_set: of the answers.
        trained_on: for the answers.
    """

    def __init__(
        self,
        tables: list[list[BackoffTable]],
        *,
        totals_K: NDArray[np.float64],
        balance: float,
        history: int,
        grid: VoxelGrid,
        label_set: LabelSet,
        trained_on: str,
    ) -> None:
        self.tables, self.totals_K, self.balance, self.history = tables, totals_K, balance, history
        self.grid, self.label_set, self.trained_on = grid, label_set, trained_on

    def __call__(self, frame: SensorFrame) -> Occupancy:
        """The answer for a frame with a LiDAR sweep and, where there are any, earlier ones.

        Raises:
            ValueError: the frame has no LiDAR sweep.
        """
        features = lidar_features(frame, self.grid, self.history)
        flat = np.arange(features.kind_XYZ.size)
        labels = self._labels(self.log_p(features, flat), self.balance)
        return Occupancy(
            labels=labels.reshape(self.grid.shape),
            grid=self.grid,
            label_set=self.label_set,
            stamp_ns=frame.stamp_ns,
            model="geometry baseline",
            trained_on=self.trained_on,
        )

    def log_p(self, features: LidarFeatures, flat_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Mean log probabilities (N, K) of the votes at voxels."""
        mean = np.empty((len(flat_N), self.label_set.num), np.float32)
        for kind, chosen, of_votes in _keys(features, flat_N, features.kind_XYZ.ravel()[flat_N]):
            votes = (self.tables[vote][kind].look_up(keys) for vote, keys in enumerate(of_votes))
            mean[chosen] = sum(votes, np.float32(0)) / np.float32(len(ORDERS))
        return mean

    def _labels(self, log_p_NK: NDArray[np.float32], balance: float) -> NDArray[np.uint8]:
        scale = class_scale(self.totals_K, balance)
        with np.errstate(divide="ignore"):  # a class that was never seen is never said
            return (log_p_NK + np.log(scale).astype(np.float32)).argmax(axis=1).astype(np.uint8)

    def choose_balance(self, samples: list[tuple[NDArray[np.float32], NDArray[np.uint8]]]) -> float:
        """The balance with the best mIoU on voxels, given as (log_p, labels)."""

        def score(balance: float) -> float:
            count = self.label_set.num
            cells = [labels.astype(np.int64) * count + self._labels(log_p, balance) for log_p, labels in samples]
            confusion = np.bincount(np.concatenate(cells), minlength=count * count).reshape(count, count)
            return miou(confusion.astype(np.float64), self.label_set)

        return max(BALANCES, key=score)


def _counted(truth: OccupancyTruth, hidden_weight: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    known = (truth.labels != truth.label_set.unknown).ravel()
    seen = known if truth.mask_camera is None else known & truth.mask_camera.ravel()
    hidden = np.flatnonzero(known & ~seen)[::32]
    flat = np.concatenate([np.flatnonzero(seen), hidden])
    weight = np.ones(len(flat))
    weight[len(flat) - len(hidden) :] = 32 * hidden_weight
    return flat, weight


def judged(truth: OccupancyTruth) -> NDArray[np.int64]:
    """Voxels that a choice is judged by: every eighth of those that count under the camera mask."""
    flat, weight = _counted(truth, 0.0)
    return np.asarray(flat[weight > 0][::8])


def _keys(
    features: LidarFeatures, flat_N: NDArray[np.int64], kinds_N: NDArray[np.uint8]
) -> Iterator[tuple[int, NDArray[np.int64], list[Keys]]]:
    """For every kind: which of the voxels are of that kind, and their keys for each vote."""
    for kind in range(len(KINDS)):
        chosen = np.flatnonzero(kinds_N == kind)
        flat, column = flat_N[chosen], flat_N[chosen] // features.height
        of_votes = []
        for of_kinds in ORDERS:
            keys = np.zeros(len(chosen), np.int64)
            for name in of_kinds[kind]:
                keys = keys << 4 | features.of(name, flat, column)
            of_votes.append(keys)
        yield kind, chosen, of_votes

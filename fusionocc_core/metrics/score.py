"""All metrics of one evaluation: add frames, merge processes, read the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.metrics.ray_iou import THRESHOLDS_M, RayCounts, count_rays
from fusionocc_core.metrics.truth import MASKS, OccupancyTruth, check_comparable
from fusionocc_core.metrics.voxels import (
    RING_EDGES,
    class_iou,
    count_voxels,
    counts_of_mask,
    geometric_iou,
    mean_over_classes,
)
from fusionocc_core.structures import Occupancy

SETTINGS = {"camera": "camera mask", "lidar": "LiDAR mask", "none": "no mask"}


@dataclass(frozen=True, kw_only=True)
class VoxelScores:
    """What follows from one confusion matrix. IoUs are fractions; NaN where there is nothing to measure."""

    mask: str
    """"camera", "lidar" or "none"."""
    ring: tuple[float, float] | None
    """Inner and outer radius of the distance ring, metres (outer may be infinite); None: the whole grid."""
    confusion_KK: NDArray[np.int64]
    """Rows are the truth, columns the prediction; voxels."""
    label_set: LabelSet

    @property
    def voxels(self) -> int:
        """How many voxels counted."""
        return int(self.confusion_KK.sum())

    @property
    def iou_K(self) -> NDArray[np.float64]:
        """Per class."""
        return class_iou(self.confusion_KK)

    @property
    def miou(self) -> float:
        """Mean over the classes but free that truth or prediction holds."""
        return mean_over_classes(self.iou_K, self.label_set)

    @property
    def geometric_iou(self) -> float:
        """Occupied against free."""
        return geometric_iou(self.confusion_KK, self.label_set)


@dataclass(frozen=True, kw_only=True)
class RayScores:
    """RayIoU. Fractions; NaN where no ray met anything."""

    thresholds: tuple[float, ...]
    """Metres."""
    iou_TK: NDArray[np.float64]
    label_set: LabelSet

    @property
    def per_threshold(self) -> tuple[float, ...]:
        """RayIoU at each threshold: mean over the classes but free."""
        return tuple(mean_over_classes(row, self.label_set) for row in self.iou_TK)

    @property
    def ray_iou(self) -> float:
        """Mean over the thresholds."""
        return _mean(self.per_threshold)


@dataclass(frozen=True, kw_only=True)
class PanopticScores:
    """RayPQ. Fractions; NaN where there is no segment."""

    thresholds: tuple[float, ...]
    """Metres."""
    quality_TK: NDArray[np.float64]
    label_set: LabelSet

    @property
    def per_threshold(self) -> tuple[float, ...]:
        """RayPQ at each threshold: mean over the classes but free."""
        return tuple(mean_over_classes(row, self.label_set) for row in self.quality_TK)

    @property
    def ray_pq(self) -> float:
        """Mean over the thresholds."""
        return _mean(self.per_threshold)


@dataclass(frozen=True, kw_only=True)
class ScoreLine:
    """One number with what it means."""

    metric: str
    setting: str
    value: float
    """A fraction; NaN where the data does not have what it takes."""


@dataclass(frozen=True, kw_only=True)
class OccupancyReport:
    """The result of an evaluation."""

    frames: int
    label_set: LabelSet
    voxels: tuple[VoxelScores, ...]
    """Over the whole grid, one for each mask that the data has."""
    rings: tuple[VoxelScores, ...]
    """For each of these masks, from the inside out."""
    rays: RayScores | None
    """None where rays were switched off."""
    panoptic: PanopticScores | None = None
    """None where objects were not told apart."""

    def of_mask(self, mask: str) -> VoxelScores | None:
        """The scores under a mask; None where the data has no such mask."""
        return next((v for v in self.voxels if v.mask == mask), None)

    def lines(self) -> list[ScoreLine]:
        """Always the same lines, each with its setting: every mask's mIoU, geometric IoU, RayIoU at each threshold.

        Where objects are told apart RayPQ follows, in the same way.
        """
        out = []
        for mask in MASKS:
            scores, where = self.of_mask(mask), SETTINGS[mask]
            note = where if scores else f"{where}: not in this data"
            out.append(ScoreLine(metric="mIoU", setting=note, value=scores.miou if scores else float("nan")))
        for mask in MASKS:
            scores = self.of_mask(mask)
            if scores:
                out.append(ScoreLine(metric="geometric IoU", setting=SETTINGS[mask], value=scores.geometric_iou))
        if self.rays is not None:
            out += _ray_lines("RayIoU", self.rays, self.rays.ray_iou)
        if self.panoptic is not None:
            out += _ray_lines("RayPQ", self.panoptic, self.panoptic.ray_pq)
        return out

    def as_dict(self) -> dict[str, Any]:
        """Everything for a JSON file: fractions, None for NaN, and the confusion matrices."""
        names = self.label_set.names
        return {
            "frames": self.frames,
            "label_set": self.label_set.name,
            "lines": [{"metric": v.metric, "setting": v.setting, "value": _number(v.value)} for v in self.lines()],
            "per_class": {
                v.mask: {n: _number(float(i)) for n, i in zip(names, v.iou_K, strict=True)} for v in self.voxels
            },
            "rings": [
                {
                    "mask": v.mask,
                    "from_m": v.ring[0],
                    "to_m": _number(v.ring[1]),
                    "voxels": v.voxels,
                    "miou": _number(v.miou),
                    "geometric_iou": _number(v.geometric_iou),
                }
                for v in self.rings
                if v.ring is not None
            ],
            "ray_per_class": {}
            if self.rays is None
            else _by_class(names, zip(self.rays.thresholds, self.rays.iou_TK, strict=True)),
            "ray_pq_per_class": {}
            if self.panoptic is None
            else _by_class(names, zip(self.panoptic.thresholds, self.panoptic.quality_TK, strict=True)),
            "confusion": {v.mask: v.confusion_KK.tolist() for v in self.voxels},
        }


def _mean(values: Sequence[float]) -> float:
    """NaN where there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _ray_lines(metric: str, scores: RayScores | PanopticScores, mean: float) -> list[ScoreLine]:
    fan = "rays from the LiDAR's places in the scene, no mask"
    lines = [
        ScoreLine(metric=f"{metric}@{threshold:g}", setting=f"{threshold:g} m, {fan}", value=value)
        for threshold, value in zip(scores.thresholds, scores.per_threshold, strict=True)
    ]
    spread = ", ".join(f"{threshold:g}" for threshold in scores.thresholds)
    return [*lines, ScoreLine(metric=metric, setting=f"mean of {spread} m, {fan}", value=mean)]


def _by_class(names: Sequence[str], rows: Iterable[tuple[float, NDArray[np.float64]]]) -> dict[str, Any]:
    """Threshold to class to value."""
    return {f"{t:g}": {n: _number(float(v)) for n, v in zip(names, row, strict=True)} for t, row in rows}


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


class OccupancyScore:
    """Counts of an evaluation, frame by frame. All are integers, so sums over processes are exact in any order.

    Args:
        grid: that all predictions and labels are on.
        label_set: that all of them use.
        ring_edges: outer radii of the distance rings, metres, increasing; what lies beyond the last is one more ring.
        ray_thresholds: of RayIoU, metres.
        rays: False leaves RayIoU out, which takes most of the time.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        label_set: LabelSet,
        *,
        ring_edges: tuple[float, ...] = RING_EDGES,
        ray_thresholds: tuple[float, ...] = THRESHOLDS_M,
        rays: bool = True,
    ) -> None:
        if any(e <= 0 for e in ring_edges) or list(ring_edges) != sorted(set(ring_edges)):
            raise ValueError(f"ring_edges={ring_edges}: expected increasing radii in metres")
        if not ray_thresholds or min(ray_thresholds) <= 0:
            raise ValueError(f"ray_thresholds={ray_thresholds}: expected positive distances in metres")
        self.grid, self.label_set = grid, label_set
        self.ring_edges, self.ray_thresholds, self.rays = ring_edges, ray_thresholds, rays
        k, rings = label_set.num, len(ring_edges) + 1
        self._voxels = np.zeros((4, rings, k, k), np.int64)
        self._rays = RayCounts.zeros(label_set, ray_thresholds)
        self._frames = dict.fromkeys(MASKS, 0)

    @property
    def frames(self) -> int:
        """How many were added."""
        return self._frames["none"]

    def add(self, prediction: Occupancy, truth: OccupancyTruth) -> None:
        """Count one frame.

        Raises:
            ValueError: another grid or label set, a prediction with ids that are no class, masks that earlier frames
                had and this one lacks (or the other way), or labels without ray origins where rays are wanted.
        """
        check_comparable(prediction, truth.grid, truth.label_set)
        check_comparable(prediction, self.grid, self.label_set)
        self._check_parts(truth)
        self._voxels += count_voxels(prediction.labels, truth, self.ring_edges)
        if self.rays:
            assert truth.ray_origins is not None, "_check_parts refuses labels without origins"
            self._rays += count_rays(
                truth.labels, prediction.labels, truth.ray_origins, self.grid, self.label_set, self.ray_thresholds
            )
        for mask in MASKS:
            self._frames[mask] += mask == "none" or truth.mask(mask) is not None

    def _check_parts(self, truth: OccupancyTruth) -> None:
        for mask in ("camera", "lidar"):
            if self.frames and (truth.mask(mask) is not None) != (self._frames[mask] > 0):
                raise ValueError(
                    f"truth.mask_{mask}: {self._frames[mask]} of {self.frames} earlier frames have it, this one "
                    f"{'has' if truth.mask(mask) is not None else 'lacks'} it; a score over both would mean nothing: "
                    "evaluate them apart"
                )
        if self.rays and truth.ray_origins is None:
            raise ValueError(
                "truth.ray_origins is None: RayIoU needs the LiDAR's places in the scene "
                "(fusionocc_core.metrics.rays.ray_origins), or OccupancyScore(rays=False)"
            )

    def counts(self) -> NDArray[np.int64]:
        """All counts as one vector, to be summed over processes (an all-reduce of int64 is exact)."""
        parts = [self._rays.truth_K, self._rays.prediction_K, self._rays.right_TK.ravel()]
        return np.concatenate([np.array([self._frames[m] for m in MASKS]), self._voxels.ravel(), *parts])

    def set_counts(self, counts: NDArray[np.int64]) -> None:
        """Replace the counts by a vector that ``counts`` gave, or by a sum of such.

        Raises:
            ValueError: a vector of another length: the other side used other rings, thresholds or classes.
        """
        if counts.shape != self.counts().shape or counts.dtype != np.int64:
            raise ValueError(
                f"counts: {counts.dtype} {counts.shape}; expected int64 {self.counts().shape} from an "
                "OccupancyScore with the same classes, rings and thresholds"
            )
        k, thresholds = self.label_set.num, len(self.ray_thresholds)
        sizes = [len(MASKS), self._voxels.size, k, k, thresholds * k]
        frames, voxels, true, said, right = np.split(counts, np.cumsum(sizes)[:-1])
        self._frames = {mask: int(n) for mask, n in zip(MASKS, frames, strict=True)}
        self._voxels = voxels.reshape(self._voxels.shape).copy()
        self._rays = RayCounts(
            truth_K=true.copy(), prediction_K=said.copy(), right_TK=right.reshape(thresholds, k).copy()
        )

    def merge(self, other: OccupancyScore) -> None:
        """Add the counts of another process's frames.

        Raises:
            ValueError: it was made with other settings.
        """
        for name in ("grid", "label_set", "ring_edges", "ray_thresholds", "rays"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"other.{name}={getattr(other, name)} differs from {getattr(self, name)} here")
        self.set_counts(self.counts() + other.counts())

    def report(self) -> OccupancyReport:
        """The scores of what was added.

        Raises:
            ValueError: nothing was added, or only a part of the frames has some mask.
        """
        if not self.frames:
            raise ValueError("OccupancyScore.report: no frame was added")
        partial = {m: n for m, n in self._frames.items() if n not in (0, self.frames)}
        if partial:
            raise ValueError(f"only a part of the {self.frames} frames has a mask: {partial}; evaluate them apart")
        masks = [mask for mask in MASKS if self._frames[mask]]
        counts = {mask: counts_of_mask(self._voxels, mask) for mask in masks}
        bounds = [0.0, *self.ring_edges, float("inf")]
        return OccupancyReport(
            frames=self.frames,
            label_set=self.label_set,
            voxels=tuple(self._scores(m, None, counts[m].sum(axis=0)) for m in masks),
            rings=tuple(
                self._scores(m, (bounds[r], bounds[r + 1]), counts[m][r]) for m in masks for r in range(len(bounds) - 1)
            ),
            rays=RayScores(thresholds=self.ray_thresholds, iou_TK=self._rays.iou(), label_set=self.label_set)
            if self.rays
            else None,
        )

    def _scores(self, mask: str, ring: tuple[float, float] | None, confusion_KK: NDArray[np.int64]) -> VoxelScores:
        return VoxelScores(mask=mask, ring=ring, confusion_KK=confusion_KK, label_set=self.label_set)

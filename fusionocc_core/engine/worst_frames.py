"""Which keyframes a network does worst on, kept while an evaluation runs, for its report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.evaluation import LabelledFrames, spread
from fusionocc_core.engine.sampler import shard
from fusionocc_core.metrics import OccupancyTruth
from fusionocc_core.metrics.voxels import class_iou, count_voxels, counts_of_mask, geometric_iou, mean_over_classes
from fusionocc_core.structures import Occupancy
from fusionocc_core.viz.view_frame import ViewFrame


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameScore:
    """How one keyframe did. Fractions; NaN where nothing counts."""

    index: int
    """Of ``LabelledFrames``."""
    stamp_ns: int
    miou: float
    iou: float
    """Geometric."""
    labels: NDArray[np.uint8] | None = None
    """What was predicted; None for keyframes that are not among the worst."""


def score_frame(index: int, prediction: Occupancy, truth: OccupancyTruth) -> FrameScore:
    """Scores of one keyframe under the camera mask, or without one where the labels have none."""
    mask = "none" if truth.mask_camera is None else "camera"
    confusion_KK = counts_of_mask(count_voxels(prediction.labels, truth), mask).sum(axis=0)
    return FrameScore(
        index=index,
        stamp_ns=prediction.stamp_ns,
        miou=mean_over_classes(class_iou(confusion_KK), truth.label_set),
        iou=geometric_iou(confusion_KK, truth.label_set),
        labels=prediction.labels,
    )


def rank(scores: Sequence[FrameScore]) -> list[FrameScore]:
    """Worst first; those without a score last."""
    return sorted(scores, key=lambda score: (math.isnan(score.miou), score.miou, score.index))


class WorstFrames:
    """Told of every frame of an evaluation, in this process's order.

    Args:
        labelled: the keyframes.
        world: the processes.
        limit: that the evaluation was given.
        keep: how many keep their prediction.
    """

    def __init__(self, labelled: LabelledFrames, world: World, *, limit: int | None, keep: int = 4) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: expected at least 1")
        indices = spread(len(labelled), limit)
        self._mine = [indices[place] for place in shard(len(indices), world.rank, world.size)]
        self._labelled, self._world, self._keep = labelled, world, keep
        self._scores: list[FrameScore] = []
        self._worst: list[FrameScore] = []

    def add(self, prediction: Occupancy, truth: OccupancyTruth) -> None:
        """Score a frame; OnFrame of ``evaluate``.

        Raises:
            ValueError: it is not the frame whose turn it is.
        """
        index = self._mine[len(self._scores)]
        if self._labelled.frames.stamp_ns(index) != prediction.stamp_ns:
            raise ValueError(
                f"prediction.stamp_ns={prediction.stamp_ns}: keyframe {index} is of "
                f"{self._labelled.frames.stamp_ns(index)}; frames must come in the order of the evaluation"
            )
        score = score_frame(index, prediction, truth)
        self._scores.append(replace(score, labels=None))
        self._worst = rank([*self._worst, score])[: self._keep]

    def gathered(self) -> list[FrameScore]:
        """The frames of all processes, worst first, the first ``keep`` with their predictions; all must call this."""
        everybody = rank([score for part in self._world.gather(self._scores) for score in part])
        worst = rank([score for part in self._world.gather(self._worst) for score in part])[: self._keep]
        return worst + everybody[len(worst) :]


def view_of(labelled: LabelledFrames, score: FrameScore, *, model: str) -> ViewFrame:
    """A keyframe with its prediction, to be drawn.

    Raises:
        ValueError: the prediction was not kept.
    """
    if score.labels is None:
        raise ValueError(f"score.labels is None: the prediction of keyframe {score.index} was not kept")
    frames = labelled.frames
    sensors = frames[score.index]
    prediction = Occupancy(
        labels=score.labels,
        grid=labelled.grid,
        label_set=labelled.label_set,
        stamp_ns=score.stamp_ns,
        model=model,
    )
    return ViewFrame(
        stamp_ns=score.stamp_ns,
        ego2global=sensors.ego2global,
        scene=sensors.scene,
        sensors=sensors,
        prediction=prediction,
        truth=labelled.truth(score.index),
        boxes=tuple(frames.boxes(score.index)),
    )

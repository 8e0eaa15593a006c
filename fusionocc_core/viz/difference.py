"""Prediction against truth, as an occupancy with classes of its own, so that every picture can draw it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusionocc_core.grids import LabelSet
from fusionocc_core.metrics.truth import OccupancyTruth, check_comparable
from fusionocc_core.structures import Occupancy

RIGHT, WRONG_CLASS, MISSED, INVENTED, FREE = range(5)

DIFFERENCE_LABELS = LabelSet(
    name="difference",
    names=("right", "wrong_class", "missed", "invented", "free"),
    colors=((178, 186, 194), (230, 159, 0), (0, 90, 181), (220, 50, 32), (255, 255, 255)),
    free=FREE,
)
"""What a voxel of ``difference`` is; the colours stay apart for readers who are colour-blind."""


def difference(prediction: Occupancy, truth: OccupancyTruth, *, masked: bool = True) -> Occupancy:
    """What is right, of the wrong class, missed (solid, said to be free) and invented (free, said to be solid).

    Args:
        prediction: On the truth's grid, with its label set; unknown voxels of it count as free.
        truth: Voxels that it does not know are unknown in the result.
        masked: Also leave out what no camera observed, where the truth says so: the voxels that evaluations count.

    Raises:
        ValueError: the two cannot be compared.
    """
    silent = prediction.labels == prediction.label_set.unknown
    checked = prediction
    if silent.any():
        known = np.where(silent, np.uint8(prediction.label_set.free), prediction.labels)
        checked = replace(prediction, labels=known)
    check_comparable(checked, truth.grid, truth.label_set)
    said, there = checked.labels != truth.label_set.free, truth.labels != truth.label_set.free
    labels = np.full(truth.grid.shape, FREE, np.uint8)
    both = said & there
    labels[both & (checked.labels == truth.labels)] = RIGHT
    labels[both & (checked.labels != truth.labels)] = WRONG_CLASS
    labels[there & ~said] = MISSED
    labels[said & ~there] = INVENTED
    labels[truth.labels == truth.label_set.unknown] = DIFFERENCE_LABELS.unknown
    if masked and truth.mask_camera is not None:
        labels[~truth.mask_camera] = DIFFERENCE_LABELS.unknown
    return Occupancy(
        labels=labels,
        grid=prediction.grid,
        label_set=DIFFERENCE_LABELS,
        stamp_ns=prediction.stamp_ns,
        model="difference",
    )


def truth_as_occupancy(truth: OccupancyTruth, stamp_ns: int) -> Occupancy:
    """The labels as an occupancy, to be drawn as predictions are."""
    return Occupancy(labels=truth.labels, grid=truth.grid, label_set=truth.label_set, stamp_ns=stamp_ns, model="truth")

"""One moment to look at: what the sensors saw, what was predicted, what is true. Viewer, video and pictures take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes_tables import Box
from fusionocc_core.metrics.truth import OccupancyTruth
from fusionocc_core.structures import Occupancy, SensorFrame, Timings
from fusionocc_core.viz.difference import difference
from fusionocc_core.viz.rendered import RenderedView


@dataclass(frozen=True, kw_only=True)
class ViewFrame:
    """Whatever there is at one reference time; None or empty where a source has no such thing."""

    stamp_ns: int
    ego2global: NDArray[np.float64]
    """(4, 4) at ``stamp_ns``; the identity where the vehicle's motion is not known."""
    scene: str = ""
    sensors: SensorFrame | None = None
    prediction: Occupancy | None = None
    truth: OccupancyTruth | None = None
    boxes: tuple[Box, ...] = ()
    """Annotated objects in the ego frame."""
    latencies_s: Mapping[str, float] = field(default_factory=dict)
    """How long each step took, by name, seconds."""
    rendered: Mapping[str, RenderedView] = field(default_factory=dict)
    """By camera: what the prediction looks like from there."""
    notes: tuple[str, ...] = ()
    """What is not as it should be, such as sensors that said nothing; a line each."""

    def __post_init__(self) -> None:
        """Refuse moments without anything to show."""
        if self.sensors is None and self.prediction is None and self.truth is None:
            raise ValueError("ViewFrame: neither sensors nor prediction nor truth; there is nothing to show")

    def compared(self) -> Occupancy | None:
        """Prediction against truth; None where one is missing, or they are of different grids or classes."""
        return self._compared

    @cached_property
    def _compared(self) -> Occupancy | None:
        if self.prediction is None or self.truth is None:
            return None
        if (self.prediction.grid, self.prediction.label_set.names) != (self.truth.grid, self.truth.label_set.names):
            return None
        return difference(self.prediction, self.truth)


class ViewSource(Protocol):
    """Where moments come from: a data set, a folder of predictions, a bag, a running system."""

    @property
    def name(self) -> str:
        """For titles."""

    @property
    def total(self) -> int | None:
        """How many frames will come; None where nobody knows."""

    def __iter__(self) -> Iterator[ViewFrame]:
        """The frames in the order of time."""


def latencies_of(timings: Timings | None) -> dict[str, float]:
    """The steps of a prediction, by name, seconds."""
    if timings is None:
        return {}
    return {
        "prepare": timings.prepare_s,
        "network": timings.network_s,
        "decode": timings.decode_s,
        "total": timings.total_s,
    }

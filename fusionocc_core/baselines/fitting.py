"""Fit the three baselines on the keyframes of a training split, and keep them in arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.baselines.geometry import (
    DEFAULT_BALANCE,
    ORDERS,
    GeometryBaseline,
    GeometryCounts,
    judged,
)
from fusionocc_core.baselines.lidar_features import KINDS, lidar_features
from fusionocc_core.baselines.position import MajorityBaseline, PlaceCounts, PositionBaseline, PositionChoice
from fusionocc_core.baselines.tables import BackoffTable
from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.metrics import OccupancyTruth
from fusionocc_core.structures import Occupancy, SensorFrame

Arrays = dict[str, NDArray[Any]]
Predict = Callable[[SensorFrame], Occupancy]


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """How much of the training split is used: with the defaults a fit takes about two minutes of CPU."""

    label_keyframes: int = 1000
    """Spread evenly over the split, for majority and position, which need labels only."""
    cloud_keyframes: int = 120
    """The same for the geometry."""
    cloud_history: int = 2
    """Earlier keyframes' sweeps, as FusionOcc-tiny takes."""
    hidden_weight: float = 0.02
    """What a voxel outside the camera mask counts, so that there is an answer for places that no camera ever saw."""
    held_back_every: int = 4
    """Every so many scenes, one is held back to choose how counts become labels; then all are counted."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if min(self.label_keyframes, self.cloud_keyframes) < 1 or self.held_back_every < 2 or self.cloud_history < 0:
            raise ValueError(
                f"{self}: expected at least 1 keyframe, held_back_every of at least 2, cloud_history not negative"
            )


class LabelledSource(Protocol):
    """Keyframes to fit on."""

    def __len__(self) -> int: ...
    def scene(self, index: int) -> str: ...  # noqa: D102
    def truth(self, index: int) -> OccupancyTruth: ...  # noqa: D102
    def frame(self, index: int) -> SensorFrame:
        """With LiDAR and its history; pictures are not needed."""


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """The fitted predictors."""

    majority: MajorityBaseline
    position: PositionBaseline
    geometry: GeometryBaseline | None
    """None where the data has no LiDAR."""
    choices: Mapping[str, Any]
    """What was chosen on the scenes that were held back."""

    def predictors(self) -> dict[str, Predict]:
        """By name, the simplest first."""
        named: dict[str, Predict] = {"majority": self.majority, "position": self.position}
        return named if self.geometry is None else {**named, "geometry": self.geometry}

    def arrays(self) -> Arrays:
        """Everything, for one .npz file."""
        about = {"choices": dict(self.choices), "trained_on": self.majority.trained_on}
        arrays: Arrays = {
            "about": np.array(json.dumps(about)),
            "majority": np.array(self.majority.label),
            "position": self.position.labels_XYZ,
        }
        if self.geometry is None:
            return arrays
        arrays["totals"] = self.geometry.totals_K
        for vote, of_kinds in enumerate(self.geometry.tables):
            for kind, table in enumerate(of_kinds):
                for length, (keys, log_p) in enumerate(zip(table.keys, table.log_p, strict=True)):
                    arrays[f"keys_{vote}_{kind}_{length}"], arrays[f"log_p_{vote}_{kind}_{length}"] = keys, log_p
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], grid: VoxelGrid, label_set: LabelSet) -> Baselines:
        """What ``arrays`` gave."""
        about = json.loads(str(arrays["about"]))
        choices, trained_on = about["choices"], about["trained_on"]
        geometry = None
        if "totals" in arrays:
            geometry = GeometryBaseline(
                [[_table(arrays, vote, kind) for kind in range(len(KINDS))] for vote in range(len(ORDERS))],
                totals_K=arrays["totals"],
                balance=choices["geometry"]["balance"],
                history=choices["geometry"]["history"],
                grid=grid,
                label_set=label_set,
                trained_on=trained_on,
            )
        return cls(
            majority=MajorityBaseline(int(arrays["majority"]), grid, label_set, trained_on),
            position=PositionBaseline(np.asarray(arrays["position"]), grid, label_set, trained_on),
            geometry=geometry,
            choices=choices,
        )


def fit(
    source: LabelledSource,
    grid: VoxelGrid,
    label_set: LabelSet,
    config: BaselineConfig,
    *,
    name: str,
    lidar: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Baselines:
    """Fit all three; the same keyframes give the same baselines.

    Args:
        source: the training split.
        grid: of the labels; in the ego frame.
        label_set: of the labels.
        config: how much is used.
        name: of the split, for ``Occupancy.trained_on``.
        lidar: False leaves the geometry out.
        progress: told of finished and all keyframes.

    Raises:
        ValueError: there is no keyframe.
    """
    if not len(source):
        raise ValueError(f"{name}: no keyframe to fit the baselines on")
    labels, clouds = (_evenly(len(source), count) for count in (config.label_keyframes, config.cloud_keyframes))
    total = len(labels) + (len(clouds) if lidar else 0)
    tell = (lambda done: progress(done, total)) if progress else (lambda done: None)
    trained_on = f"{name}, {len(labels)} keyframes" + (f" ({len(clouds)} with their clouds)" if lidar else "")
    majority, position, choice = _fit_places(source, labels, grid, label_set, config, tell)
    choices: dict[str, Any] = {"position": asdict(choice)}
    geometry = None
    if lidar:
        geometry = _fit_geometry(
            source, clouds, grid, label_set, config, trained_on, lambda done: tell(len(labels) + done)
        )
        choices["geometry"] = {"balance": geometry.balance, "history": geometry.history}
    return Baselines(
        majority=MajorityBaseline(majority, grid, label_set, trained_on),
        position=PositionBaseline(position, grid, label_set, trained_on),
        geometry=geometry,
        choices=choices,
    )


def _table(arrays: Mapping[str, NDArray[Any]], vote: int, kind: int) -> BackoffTable:
    lengths = range(len(ORDERS[vote][kind]) + 1)
    return BackoffTable(
        keys=tuple(arrays[f"keys_{vote}_{kind}_{length}"] for length in lengths),
        log_p=tuple(arrays[f"log_p_{vote}_{kind}_{length}"] for length in lengths),
    )


def _evenly(length: int, count: int) -> list[int]:
    """At most ``count`` indices below ``length``, spread evenly."""
    return [int(place) for place in np.linspace(0, length - 1, min(count, length)).round()]


def _held_back(source: LabelledSource, indices: list[int], every: int) -> set[str]:
    """Scenes for the choices: none where there is only one, the last where there are too few to take every n-th."""
    scenes = list(dict.fromkeys(source.scene(index) for index in indices))
    return set(scenes[every - 1 :: every] or (scenes[-1:] if len(scenes) > 1 else []))


def _fit_places(
    source: LabelledSource,
    indices: list[int],
    grid: VoxelGrid,
    label_set: LabelSet,
    config: BaselineConfig,
    tell: Callable[[int], None],
) -> tuple[int, NDArray[np.uint8], PositionChoice]:
    counts, held = PlaceCounts(grid, label_set), PlaceCounts(grid, label_set)
    scenes = _held_back(source, indices, config.held_back_every)
    for done, index in enumerate(indices):
        (held if source.scene(index) in scenes else counts).add(source.truth(index))
        tell(done + 1)
    choice = counts.choose(held, config.hidden_weight) if scenes else PositionChoice()
    counts.merge(held)
    return counts.majority(), counts.labels(choice, config.hidden_weight), choice


def _fit_geometry(
    source: LabelledSource,
    indices: list[int],
    grid: VoxelGrid,
    label_set: LabelSet,
    config: BaselineConfig,
    trained_on: str,
    tell: Callable[[int], None],
) -> GeometryBaseline:
    counts = GeometryCounts(label_set)

    def baseline(balance: float) -> GeometryBaseline:
        return GeometryBaseline(
            counts.fit(),
            totals_K=counts.totals_K.copy(),
            balance=balance,
            history=config.cloud_history,
            grid=grid,
            label_set=label_set,
            trained_on=trained_on,
        )

    scenes = _held_back(source, indices, config.held_back_every)
    first: GeometryBaseline | None = None
    samples = []
    # The scenes that are held back come last, when the tables that they judge are complete.
    for done, index in enumerate(sorted(indices, key=lambda i: source.scene(i) in scenes)):
        features, truth = lidar_features(source.frame(index), grid, config.cloud_history), source.truth(index)
        if source.scene(index) in scenes:
            first = first or baseline(DEFAULT_BALANCE)
            flat = judged(truth)
            samples.append((first.log_p(features, flat), truth.labels.ravel()[flat]))
        counts.add(features, truth, config.hidden_weight)
        tell(done + 1)
    return baseline(first.choose_balance(samples) if first else DEFAULT_BALANCE)

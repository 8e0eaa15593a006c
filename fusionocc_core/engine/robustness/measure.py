"""Measure a network under many conditions in one pass over the keyframes: each is read once and spoilt in every way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch

from fusionocc_core.data.pipeline import prepare
from fusionocc_core.engine.evaluation import LabelledFrames, spread
from fusionocc_core.engine.robustness.conditions import Around, Clean, Condition
from fusionocc_core.engine.robustness.delay import note_of
from fusionocc_core.engine.robustness.scene_files import Inapplicable, SceneFiles
from fusionocc_core.engine.trainer import PRECISIONS
from fusionocc_core.metrics import OccupancyReport, OccupancyScore, OccupancyTruth
from fusionocc_core.predictor import OccupancyModel, read_labels
from fusionocc_core.structures import Batch, Occupancy, SensorFrame

_AHEAD = 2
"""Batches that are ready besides those being made, and predictions that wait for being scored."""

OnPrediction = Callable[[Condition, int, Occupancy, OccupancyTruth], None]
"""Told of every prediction: under which condition, of which keyframe."""

Job = Callable[[], "_Made"]


@dataclass(frozen=True, kw_only=True)
class ConditionResult:
    """How a network does under one condition."""

    condition: Condition
    report: OccupancyReport | None
    """None where the condition cannot be made from the data, or the network does not take what is left."""
    reason: str = ""
    """Why there is no report."""
    note: str = ""
    """How the condition was made, where that depends on the data."""


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A keyframe as it lies on disk."""

    frame: SensorFrame
    truth: OccupancyTruth
    index: int
    place: int


@dataclass(kw_only=True, eq=False)
class _Tally:
    """What has been counted for a condition so far."""

    condition: Condition
    score: OccupancyScore
    reason: str = ""
    really_older: int = 0
    files: int = 0

    def refuse(self, frame: SensorFrame, error: ValueError) -> None:
        """The condition gets no figures, on account of this frame.

        Raises:
            ValueError: it is the clean one, for which there is no excuse.
        """
        if isinstance(self.condition, Clean):
            raise error
        # Messages begin with the frame where they are the pipeline's.
        where = f"frame {frame.token or frame.stamp_ns}"
        self.reason = str(error) if where in str(error) else f"{where}: {error}"

    def result(self) -> ConditionResult:
        if self.reason:
            return ConditionResult(condition=self.condition, report=None, reason=self.reason)
        note = note_of(really_older=self.really_older, files=self.files)
        return ConditionResult(condition=self.condition, report=self.score.report(), note=note)


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A spoilt keyframe, ready for the network, or the reason why there is none."""

    read: _Read
    tally: _Tally
    batch: Batch | None = None
    refusal: ValueError | None = None
    really_older: int = 0
    files: int = 0


@dataclass(frozen=True, kw_only=True)
class _Kitchen:
    """Makes batches, in threads."""

    labelled: LabelledFrames
    files: SceneFiles
    tallies: Sequence[_Tally]
    pool: ThreadPoolExecutor = field(repr=False)

    def jobs(self, indices: Sequence[int]) -> Iterator[Job]:
        """One for each keyframe and condition. The keyframe's reading is queued before whatever waits for it."""
        for place, index in enumerate(indices):
            reading = self.pool.submit(self._read, index, place)
            for tally in self.tallies:
                if not tally.reason:
                    yield partial(self._make, reading, tally)

    def _read(self, index: int, place: int) -> _Read:
        truth = self.labelled.truth(index)
        return _Read(frame=self.labelled.frames[index], truth=truth, index=index, place=place)

    def _make(self, reading: Future[_Read], tally: _Tally) -> _Made:
        read = reading.result()
        labelled = self.labelled
        around = Around(seed=labelled.seed, place=read.place, files=self.files)
        try:
            spoiled = tally.condition.apply(read.frame, around)
        except Inapplicable as error:
            return _Made(read=read, tally=tally, refusal=error)
        try:
            batch = prepare(spoiled.frame, labelled.inputs, labelled.grid, labelled.generator(read.index))
        except ValueError as error:
            return _Made(read=read, tally=tally, refusal=error)
        return _Made(read=read, tally=tally, batch=batch, really_older=spoiled.really_older, files=spoiled.files)


def measure(
    model: OccupancyModel,
    labelled: LabelledFrames,
    conditions: Sequence[Condition],
    *,
    device: torch.device,
    precision: str = "fp32",
    limit: int | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    on_prediction: OnPrediction | None = None,
) -> tuple[ConditionResult, ...]:
    """Predict every keyframe under every condition and score it.

    A condition that cannot be made from some keyframe, or leaves what the network refuses with a ValueError, gets no
    figures at all, and the rest of its keyframes are left out. Memory holds one score a condition and a few batches.

    Args:
        model: the network, on the device, in evaluation mode.
        labelled: the keyframes; their seed is that of all draws.
        conditions: see standard.chosen_conditions.
        device: where the network is.
        precision: what it computes in; see trainer.PRECISIONS.
        limit: only this many keyframes, spread evenly.
        threads: that read, spoil and prepare.
        progress: told (done, all) after every prediction.
        on_prediction: told of every prediction, in another thread, in order.

    Raises:
        FileNotFoundError, ValueError: a file cannot be read, or the network refuses the keyframes as they are.
    """
    indices = spread(len(labelled), limit)
    tallies = [
        _Tally(condition=c, score=OccupancyScore(labelled.grid, labelled.label_set, rays=labelled.rays))
        for c in conditions
    ]
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as scorer:
        kitchen = _Kitchen(labelled=labelled, files=SceneFiles(labelled.frames), tallies=tallies, pool=pool)
        scoring: deque[Future[None]] = deque()
        for made in _ahead(pool, kitchen.jobs(indices), threads + _AHEAD):
            prediction = _predict(model, made, device, precision)
            if prediction is not None:
                scoring.append(scorer.submit(_score, made, prediction, on_prediction))
            while len(scoring) > _AHEAD:
                scoring.popleft().result()
            if progress:
                done = made.read.place * len(tallies) + tallies.index(made.tally) + 1
                progress(done, len(indices) * len(tallies))
        for future in scoring:
            future.result()
    return tuple(tally.result() for tally in tallies)


def _score(made: _Made, prediction: Occupancy, on_prediction: OnPrediction | None) -> None:
    made.tally.score.add(prediction, made.read.truth)
    if on_prediction:
        on_prediction(made.tally.condition, made.read.index, prediction, made.read.truth)


def _ahead(pool: ThreadPoolExecutor, jobs: Iterator[Job], count: int) -> Iterator[_Made]:
    """The results in order, up to ``count`` of them made in advance."""
    waiting: deque[Future[_Made]] = deque()
    for job in jobs:
        waiting.append(pool.submit(job))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _predict(model: OccupancyModel, made: _Made, device: torch.device, precision: str) -> Occupancy | None:
    """None where there is nothing to predict from, or the network refuses; the tally then has the reason."""
    tally, frame = made.tally, made.read.frame
    if tally.reason:  # refused while this one was being made
        return None
    if made.batch is None:
        assert made.refusal is not None, "either a batch or the reason why not"
        tally.refuse(frame, made.refusal)
        return None
    dtype = PRECISIONS[precision]
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            outputs = model(made.batch.to(device))
    except ValueError as error:
        tally.refuse(frame, error)
        return None
    tally.really_older += made.really_older
    tally.files += made.files
    labels, _ = read_labels(outputs, confidence=False)
    config = model.config
    return Occupancy(labels=labels, grid=config.grid, label_set=config.label_set, stamp_ns=frame.stamp_ns)

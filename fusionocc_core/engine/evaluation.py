"""Measure a network on labelled keyframes, with exact sums over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.data.things import instance_labels
from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.examples import worker_options
from fusionocc_core.engine.labels import check_labels, read_truth
from fusionocc_core.engine.sampler import draw_seed, shard
from fusionocc_core.engine.trainer import PRECISIONS
from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.metrics import OccupancyReport, OccupancyScore, OccupancyTruth, PanopticScores
from fusionocc_core.metrics.ray_iou import THRESHOLDS_M
from fusionocc_core.metrics.ray_pq import PanopticLabels, RayPanoptic, count_segments
from fusionocc_core.metrics.rays import ray_origins
from fusionocc_core.models.flashocc import FlashOccConfig
from fusionocc_core.models.panoptic import decode_instances
from fusionocc_core.predictor import ModelConfig, read_labels
from fusionocc_core.structures import Batch, InputConfig, LabelOutputs, Occupancy, Outputs

Item = TypeVar("Item", covariant=True)

OnFrame = Callable[[Occupancy, OccupancyTruth], None]
"""Told of every frame of this process, in order."""

_AHEAD = 2
"""Frames whose prediction is there while an earlier one is still being scored."""


@dataclass(frozen=True, kw_only=True)
class LabelledFrame:
    """One frame, ready for the network, and its truth."""

    batch: Batch
    truth: OccupancyTruth
    stamp_ns: int
    instances: NDArray[np.uint16] | None = None
    """(X, Y, Z) numbers of the truth's objects, see data.things.instance_labels; None where they are not wanted."""


class LabelledFrames(Dataset[LabelledFrame]):
    """Keyframes for an evaluation, prepared as at test time.

    Where a preset thins points at random, the draw follows from the seed and the frame's index.

    Args:
        frames: the keyframes, with the history that the network wants.
        inputs: what the network wants of a frame.
        grid: the network's.
        label_set: the network's.
        rays: also find where the rays of RayIoU start: the LiDAR's places in all keyframes of the scene in ``frames``.
        seed: of the draws.
        things: classes whose objects are told apart, for RayPQ; see ``things_of_network``.

    Raises:
        FileNotFoundError: labels are missing.
        ValueError: there is no frame, the labels do not fit the network, or objects are to be told apart without rays.
    """

    def __init__(
        self,
        frames: NuScenesFrames,
        inputs: InputConfig,
        grid: VoxelGrid,
        label_set: LabelSet,
        *,
        rays: bool,
        seed: int,
        things: tuple[str, ...] = (),
    ) -> None:
        if not len(frames):
            raise ValueError("there is no keyframe to evaluate on")
        check_labels(frames, segmentation=False, grid=grid)
        read_truth(frames, 0, grid, label_set)
        self.frames, self.inputs, self.grid, self.label_set = frames, inputs, grid, label_set
        self.rays, self.seed, self.things = rays, seed, things
        if things and not rays:
            raise ValueError("things: RayPQ follows the rays of RayIoU; evaluate with rays=True, or without things")

    def __len__(self) -> int:
        """How many keyframes."""
        return len(self.frames)

    def __getitem__(self, index: int) -> LabelledFrame:
        """Read and prepare one."""
        frame, truth = self.frames[index], self.truth(index)
        return LabelledFrame(
            batch=prepare(frame, self.inputs, self.grid, self.generator(index)),
            truth=truth,
            stamp_ns=frame.stamp_ns,
            instances=self._instances(index, truth) if self.things else None,
        )

    def generator(self, index: int) -> torch.Generator:
        """Of the random thinning of one keyframe's points: the same at every call."""
        return torch.Generator().manual_seed(draw_seed(self.seed, 0, index))

    def truth(self, index: int) -> OccupancyTruth:
        """The labels of one keyframe, with the rays' origins where they are wanted."""
        truth = read_truth(self.frames, index, self.grid, self.label_set)
        return replace(truth, ray_origins=self._origins(index)) if self.rays else truth

    def _instances(self, index: int, truth: OccupancyTruth) -> NDArray[np.uint16]:
        boxes = self.frames.boxes(index, frame=self.grid.frame)
        return instance_labels(truth.labels, boxes, self.grid, self.label_set, self.things)

    def _origins(self, index: int) -> np.ndarray:
        frames = self.frames
        channel = frames.lidar
        if channel is None:
            raise ValueError(
                "RayIoU looks from the LiDAR's places, and this data has no LiDAR: evaluate with rays=False"
            )
        scene = [frames.keyframe(k) for k in frames.scene_indices(frames.keyframe(index).scene)]
        sweeps = [keyframe.records[channel] for keyframe in scene if channel in keyframe.records]
        lidar2global = np.stack([sweep.ego2global @ sweep.sensor2ego for sweep in sweeps])
        reference = frames.keyframe(index).records[channel]
        return ray_origins(lidar2global, reference.ego2global, self.grid)


def things_of_network(config: ModelConfig) -> tuple[str, ...]:
    """Classes whose objects a network tells apart; none where it gives classes alone."""
    centers = config.centers if isinstance(config, FlashOccConfig) else None
    return centers.classes if centers else ()


def evaluate(
    model: Callable[[Batch], Outputs | LabelOutputs],
    labelled: LabelledFrames,
    *,
    world: World,
    workers: int = 0,
    precision: str = "fp32",
    limit: int | None = None,
    on_frame: OnFrame | None = None,
    progress: Callable[[int], None] | None = None,
) -> OccupancyReport:
    """Predict every frame and score it.

    Each frame is seen once, by one process; the counts are integers, so the result is the same for any number of
    processes (up to what the network computes differently on other devices).

    Args:
        model: the network, on the world's device, in evaluation mode; or an exported one.
        labelled: the frames.
        world: the processes; every one must call this.
        workers: processes of each that read and prepare frames.
        precision: what the network computes in; see trainer.PRECISIONS.
        limit: only this many frames, spread evenly.
        on_frame: told of this process's frames.
        progress: told of each finished frame of this process, with the number of frames of all.
    """
    indices = spread(len(labelled), limit)
    mine = [indices[place] for place in shard(len(indices), world.rank, world.size)]
    tally = _Tally(labelled, on_frame)
    dtype = PRECISIONS[precision]
    with ThreadPoolExecutor(1) as scorer:  # scores while the network computes the next frame
        pending: list[Future[None]] = []
        for one in load_in_workers(labelled, mine, workers):
            with torch.no_grad(), torch.autocast(world.device.type, dtype=dtype, enabled=dtype is not None):
                outputs = model(one.batch.to(world.device))
            pending.append(scorer.submit(tally.add, outputs, one))
            if progress:
                progress(len(indices))
            while len(pending) > _AHEAD:
                pending.pop(0).result()
        for future in pending:
            future.result()
    return tally.report(world)


def total_report(score: OccupancyScore, world: World) -> OccupancyReport:
    """The report over the frames of all processes, whose counts ``score`` then holds; every one must call this."""
    score.set_counts(world.total(torch.from_numpy(score.counts())).numpy())
    return score.report()


def load_in_workers(items: Dataset[Item], indices: Sequence[int], workers: int) -> Iterable[Item]:
    """The items of these indices in this order, made by worker processes; by this one where there are none."""
    return DataLoader(
        items,
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        generator=torch.Generator(),
        **worker_options(workers),
    )


def summary(report: OccupancyReport) -> dict[str, float]:
    """The metrics that training follows: mIoU and geometric IoU under each mask that the data has, fractions."""
    named = {}
    for scores in report.voxels:
        named[f"miou_{scores.mask}"] = scores.miou
        named[f"iou_{scores.mask}"] = scores.geometric_iou
    if report.rays:
        named["ray_iou"] = report.rays.ray_iou
    if report.panoptic:
        named["ray_pq"] = report.panoptic.ray_pq
    return named


class _Tally:
    """What the frames of this process have given so far."""

    def __init__(self, labelled: LabelledFrames, on_frame: OnFrame | None) -> None:
        self.labelled, self.on_frame = labelled, on_frame
        self.score = OccupancyScore(labelled.grid, labelled.label_set, rays=labelled.rays)
        self.segments = RayPanoptic.zeros(labelled.label_set)

    def add(self, outputs: Outputs | LabelOutputs, one: LabelledFrame) -> None:
        """Read the network's answer to a frame and score it."""
        grid, label_set = self.labelled.grid, self.labelled.label_set
        labels, _ = read_labels(outputs, confidence=False)
        centers = outputs.centers if isinstance(outputs, Outputs) else None
        prediction = Occupancy(
            labels=labels,
            instances=None if centers is None else decode_instances(centers, labels, grid),
            grid=grid,
            label_set=label_set,
            stamp_ns=one.stamp_ns,
        )
        self.score.add(prediction, one.truth)
        if one.instances is not None:
            if prediction.instances is None or one.truth.ray_origins is None:
                raise ValueError("things: the network tells no objects apart; evaluate it with things=()")
            true = PanopticLabels(labels=one.truth.labels, instances=one.instances)
            said = PanopticLabels(labels=labels, instances=prediction.instances)
            self.segments += count_segments(true, said, one.truth.ray_origins, grid, label_set)
        if self.on_frame:
            self.on_frame(prediction, one.truth)

    def report(self, world: World) -> OccupancyReport:
        """Over the frames of all processes; every one must call this."""
        report = total_report(self.score, world)
        if not self.labelled.things:
            return report
        sums = {
            f.name: world.total(torch.from_numpy(getattr(self.segments, f.name))).numpy() for f in fields(RayPanoptic)
        }
        quality_TK = RayPanoptic(**sums).quality()
        scores = PanopticScores(thresholds=THRESHOLDS_M, quality_TK=quality_TK, label_set=self.labelled.label_set)
        return replace(report, panoptic=scores)


def spread(length: int, limit: int | None) -> Sequence[int]:
    """Up to ``limit`` of the indices of a sequence, evenly spread from the first to the last; None: all.

    Raises:
        ValueError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1 frame")
    if limit is None or limit >= length:
        return range(length)
    return [int(place) for place in np.linspace(0, length - 1, limit).round()]

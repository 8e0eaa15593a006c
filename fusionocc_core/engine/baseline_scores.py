"""The baselines of a data set, fitted on its training split, and what they score on another; both kept on disk."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from fusionocc_core.baselines import BaselineConfig, Baselines, fit
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.occ3d import occ3d_path
from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.evaluation import LabelledFrames, load_in_workers, spread, total_report
from fusionocc_core.engine.labels import check_labels, read_truth
from fusionocc_core.engine.run_folder import whole_file
from fusionocc_core.engine.sampler import shard
from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.metrics import OccupancyReport, OccupancyScore, OccupancyTruth
from fusionocc_core.structures import SensorFrame

logger = logging.getLogger(__name__)

FORMAT = "fusionocc-baselines-2"
"""Part of every key: a change of what is computed or stored needs a new one."""
CACHE = ".fusionocc"
"""Folder in a data set's root for what can be made again."""

_DIGEST = hashlib.sha256().digest_size

Arrays = Mapping[str, NDArray[Any]]
Progress = Callable[[str, int, int], None]
"""Told what is going on, and how many keyframes of how many are done."""


class NoBaselinesError(ValueError):
    """There is nothing to fit baselines on; the message says what is missing and how to get it."""


@dataclass(frozen=True, kw_only=True)
class BaselineScores:
    """What the baselines reach on the keyframes of an evaluation."""

    split: str
    """That they were fitted on."""
    trained_on: str
    choices: Mapping[str, Any]
    reports: Mapping[str, OccupancyReport]
    """By name: majority, position, geometry."""

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        about = {"split": self.split, "trained_on": self.trained_on, "choices": dict(self.choices)}
        return {**about, **{name: report.as_dict() for name, report in self.reports.items()}}


class CloudsAndLabels:
    """Keyframes as baselines want them: the LiDAR with its history, no pictures.

    Args:
        frames: the keyframes.
        grid: of the labels.
        label_set: of the labels.
        history: earlier keyframes' sweeps.
    """

    def __init__(self, frames: NuScenesFrames, grid: VoxelGrid, label_set: LabelSet, history: int) -> None:
        self.frames, self.grid, self.label_set = frames.with_history(cameras=0, lidar=history), grid, label_set
        if frames.lidar is not None:
            self.frames.cameras = ()

    def __len__(self) -> int:
        """How many keyframes."""
        return len(self.frames)

    def scene(self, index: int) -> str:
        """The scene of a keyframe."""
        return self.frames.keyframe(index).scene

    def truth(self, index: int) -> OccupancyTruth:
        """Its labels."""
        return read_truth(self.frames, index, self.grid, self.label_set)

    def frame(self, index: int) -> SensorFrame:
        """Its sensors."""
        return self.frames[index]

    def fingerprint(self) -> str:
        """Changes with every keyframe, pose, calibration, and file of a cloud or of labels.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: data with a LiDAR, and keyframes without its cloud.
        """
        keyframes = [self.frames.keyframe(index) for index in range(len(self))]
        bare = [k.token for k in keyframes if self.frames.lidar is not None and self.frames.lidar not in k.records]
        if bare:
            raise ValueError(
                f"{len(bare)} of {len(self)} keyframes have no {self.frames.lidar} cloud, such as {bare[0]}"
            )
        digest = hashlib.sha256()
        for keyframe in keyframes:
            files = [occ3d_path(self.frames.root, keyframe.scene, keyframe.token)]
            digest.update(f"{keyframe.scene} {keyframe.token} {keyframe.stamp_ns}".encode())
            if self.frames.lidar is not None:
                sweep = keyframe.records[self.frames.lidar]
                files.append(sweep.path)
                digest.update(sweep.sensor2ego.tobytes() + sweep.ego2global.tobytes())
            for path in files:
                state = path.stat()
                digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
        return digest.hexdigest()


def training_split_of(split: str) -> str:
    """The training split that belongs to a validation split: "val" -> "train", "sim_val" -> "sim_train".

    Raises:
        NoBaselinesError: the name does not say.
    """
    parts = split.split("_")
    if parts[-1] != "val":
        raise NoBaselinesError(f"which split belongs to {split!r}? Say --baseline-split SPLIT")
    return "_".join([*parts[:-1], "train"])


def score_baselines(
    labelled: LabelledFrames,
    *,
    split: str,
    world: World,
    cache: Path | None,
    limit: int | None = None,
    workers: int = 0,
    config: BaselineConfig | None = None,
    progress: Progress | None = None,
) -> BaselineScores:
    """Fit the baselines on a split of the same data and score them on the keyframes of an evaluation.

    Args:
        labelled: the keyframes of the evaluation; with or without rays.
        split: to fit on.
        world: the processes; every one must call this. The main one fits.
        cache: folder for the fit and the counts, used again as long as nothing has changed.
        limit: as in ``evaluate``.
        workers: processes of each that score.
        config: how much of the split is used.
        progress: told of this process's keyframes.

    Raises:
        NoBaselinesError: the split is not on the disk, or shares scenes with the evaluation; or one of the two lacks
            clouds.
    """
    config = config or BaselineConfig()
    source = _open(labelled, split, config)
    target = CloudsAndLabels(labelled.frames, labelled.grid, labelled.label_set, config.cloud_history)
    evaluated = _fingerprint_of_evaluation(target)
    name = f"{source.frames.version} {split}"
    fit_key = {
        **{"format": FORMAT, "name": name, "config": asdict(config), "data": source.fingerprint()},
        **{"grid": repr(labelled.grid), "label_set": repr(labelled.label_set)},
    }
    indices = spread(len(labelled), limit)
    key = {**fit_key, "evaluated": evaluated, "indices": list(indices), "rays": labelled.rays}
    counts = world.gather(_read(cache, "scores", key) if world.is_main else None)[0]
    if counts is None:
        fitted = partial(_fit, source, config, name, progress)
        arrays = world.gather(_cached(cache, "fit", fit_key, fitted) if world.is_main else None)[0]
        baselines = Baselines.from_arrays(arrays, labelled.grid, labelled.label_set)
        counts = _count(labelled, baselines, target, indices, world, workers, progress)
        counts["about"] = np.array(json.dumps({"trained_on": baselines.majority.trained_on, **baselines.choices}))
        if world.is_main:
            _write(cache, "scores", key, counts)
    about = json.loads(str(counts["about"]))
    reports = {which: _report(labelled, vector) for which, vector in counts.items() if which != "about"}
    return BaselineScores(split=split, trained_on=about.pop("trained_on"), choices=about, reports=reports)


def _fit(source: CloudsAndLabels, config: BaselineConfig, name: str, progress: Progress | None) -> Arrays:
    tell = partial(progress, "fitting baselines") if progress else None
    lidar = source.frames.lidar is not None
    return fit(source, source.grid, source.label_set, config, name=name, lidar=lidar, progress=tell).arrays()


def _open(labelled: LabelledFrames, split: str, config: BaselineConfig) -> CloudsAndLabels:
    frames = labelled.frames
    hint = (
        f"the baselines learn from the labels and clouds of {split!r}; put them into {frames.root}, name another split "
        "with --baseline-split, or leave them out with --no-baselines"
    )
    try:
        cameras = None if frames.lidar is None else ()
        training = NuScenesFrames(frames.root, version=frames.version, split=split, cameras=cameras, lidar=frames.lidar)
        check_labels(training, segmentation=False)
        source = CloudsAndLabels(training, labelled.grid, labelled.label_set, config.cloud_history)
        source.truth(0)
        source.fingerprint()
    except (FileNotFoundError, ValueError) as error:
        raise NoBaselinesError(f"{error}; {hint}") from error
    shared = sorted(set(training.scenes) & set(frames.scenes))
    if shared:
        raise NoBaselinesError(
            f"{split!r} shares {len(shared)} scenes with the evaluation, such as {shared[0]}; name a split that has "
            "none of them with --baseline-split"
        )
    return source


def _fingerprint_of_evaluation(target: CloudsAndLabels) -> str:
    try:
        return target.fingerprint()
    except (FileNotFoundError, ValueError) as error:
        raise NoBaselinesError(f"keyframes of the evaluation: {error}; leave them out with --no-baselines") from error


class _Counts(Dataset[dict[str, NDArray[np.int64]]]):
    """The counts of every baseline for one keyframe; made in worker processes."""

    def __init__(self, labelled: LabelledFrames, baselines: Baselines, target: CloudsAndLabels) -> None:
        self.labelled, self.baselines, self.target = labelled, baselines, target

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        frame, truth = self.target.frame(index), self.labelled.truth(index)
        counts = {}
        for name, predict in self.baselines.predictors().items():
            score = _empty_score(self.labelled)
            score.add(predict(frame), truth)
            counts[name] = score.counts()
        return counts


def _count(
    labelled: LabelledFrames,
    baselines: Baselines,
    target: CloudsAndLabels,
    indices: Any,
    world: World,
    workers: int,
    progress: Progress | None,
) -> dict[str, NDArray[Any]]:
    mine = [indices[place] for place in shard(len(indices), world.rank, world.size)]
    empty = _empty_score(labelled).counts()
    totals = {name: empty.copy() for name in baselines.predictors()}
    for done, counts in enumerate(load_in_workers(_Counts(labelled, baselines, target), mine, workers)):
        for name, vector in counts.items():
            totals[name] += np.asarray(vector)
        if progress:
            progress("scoring baselines", done + 1, len(mine))
    scores = {}
    for name, vector in totals.items():
        score = _empty_score(labelled)
        score.set_counts(vector)
        total_report(score, world)
        scores[name] = score.counts()
    return scores


def _empty_score(labelled: LabelledFrames) -> OccupancyScore:
    return OccupancyScore(labelled.grid, labelled.label_set, rays=labelled.rays)


def _report(labelled: LabelledFrames, counts: NDArray[np.int64]) -> OccupancyReport:
    score = _empty_score(labelled)
    score.set_counts(counts)
    return score.report()


def _path(folder: Path, what: str, key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / f"baseline-{what}-{digest[:20]}.cache"


def _cached(folder: Path | None, what: str, key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    arrays = _read(folder, what, key)
    if arrays is None:
        arrays = make()
        _write(folder, what, key, arrays)
    return arrays


def _read(folder: Path | None, what: str, key: Mapping[str, Any]) -> Arrays | None:
    """What was kept under this key, or None."""
    if folder is None or not (path := _path(folder, what, key)).is_file():
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        logger.warning("%s cannot be read and is made again (%s)", path, error)
        return None
    # NumPy fails in a dozen ways on a damaged file; the digest in front tells first.
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        logger.warning("%s is damaged and made again", path)
        return None
    with np.load(io.BytesIO(content[_DIGEST:]), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays if str(arrays.pop("key", "")) == json.dumps(key, sort_keys=True) else None


def _write(folder: Path | None, what: str, key: Mapping[str, Any], arrays: Arrays) -> None:
    """Keep arrays under a key; without a place to write, they are made anew next time."""
    if folder is None:
        return
    buffer = io.BytesIO()
    named: dict[str, Any] = {"key": np.array(json.dumps(key, sort_keys=True)), **arrays}
    np.savez_compressed(buffer, **named)
    content = buffer.getvalue()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(_path(folder, what, key)) as file:
            file.write(hashlib.sha256(content).digest() + content)
    except OSError as error:
        logger.warning("baselines are not kept for the next time: %s", error)

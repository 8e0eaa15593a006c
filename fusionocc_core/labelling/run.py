"""A whole run: scene after scene, in this process or in several; a run that was stopped goes on where it was."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.labelling.aggregate import SceneJob, aggregate
from fusionocc_core.labelling.config import LabelConfig
from fusionocc_core.labelling.files import claim, labels_bytes, labels_path, write_index, write_whole
from fusionocc_core.labelling.jobs import check_data, scene_jobs
from fusionocc_core.labelling.keyframes import label_keyframe

Report = Callable[[], None]
"""Called once for each finished keyframe."""


def missing_positions(job: SceneJob, out: Path) -> list[int]:
    """Positions of the scene's keyframes that have no labels yet."""
    paths = (labels_path(out, keyframe, job.lidar, job.config) for keyframe in job.keyframes)
    return [position for position, path in enumerate(paths) if not path.is_file()]


def labelled_keyframes(frames: NuScenesFrames, out: Path, config: LabelConfig) -> int:
    """How many keyframes have a file of labels."""
    keyframes = (frames.keyframe(index) for index in range(len(frames)))
    return sum(
        labels_path(out, keyframe, frames.lidar, config).is_file()
        for keyframe in keyframes
        if frames.lidar is not None and frames.lidar in keyframe.records
    )


def label_scene(job: SceneJob, out: Path, report: Report, stopped: Callable[[], bool] = lambda: False) -> None:
    """Write the labels of those keyframes of a scene that have none.

    Args:
        job: the scene.
        out: the folder that holds ``gts`` or ``surroundocc``.
        report: called after each keyframe.
        stopped: asked before each; True ends the work.

    Raises:
        FileNotFoundError: a cloud or its labels are absent.
        ValueError: one of them is damaged.
    """
    todo = missing_positions(job, out)
    if not todo or stopped():
        return
    scene = aggregate(job)
    for position in todo:
        if stopped():
            return
        labels = label_keyframe(job, scene, position)
        path = labels_path(out, job.keyframes[position], job.lidar, job.config)
        write_whole(path, labels_bytes(labels, job.config))
        report()


def label_data(frames: NuScenesFrames, out: Path, config: LabelConfig, workers: int, progress: Report) -> int:
    """Label all keyframes of ``frames`` that have no labels in ``out`` yet; returns how many there were.

    Scenes are shared out to ``workers`` processes, as a scene is put together once for all of its keyframes. The labels
    do not depend on their number.

    Raises:
        FileExistsError: ``out`` holds labels of another origin, or made with other settings.
        FileNotFoundError: files are absent; nothing has been written then.
        ValueError: data that cannot be labelled, or a damaged file.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: expected 1 or more")
    check_data(frames, config)
    claim(out, frames, config)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress()

    jobs = scene_jobs(frames, config)
    if workers == 1 or len(frames.scenes) == 1:
        for job in jobs:
            label_scene(job, out, count)
    else:
        _in_processes(jobs, out, min(workers, len(frames.scenes)), count)
    if config.layout == "occ3d":
        write_index(out, frames, config)
    return done


_results: Any = None
_stop: Any = None


def _start_worker(results: Any, stop: Any) -> None:
    """Keep the queue that a worker reports to and the event that ends its work."""
    global _results, _stop
    _results, _stop = results, stop


def _work(job: SceneJob, out: Path) -> None:
    parent = os.getppid()
    label_scene(job, out, lambda: _results.put(None), lambda: _stop.is_set() or os.getppid() != parent)


def _in_processes(jobs: Iterator[SceneJob], out: Path, workers: int, report: Report) -> None:
    """Run the jobs in fresh processes (a fork of a process with threads may hang); the first failure ends the rest.

    Jobs are made when a worker is nearly free for them, since those of a large data set would not fit into memory.
    """
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    stop = context.Event()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(results, stop)) as pool:
        waiting: set[Future[None]] = set()
        try:
            for job in jobs:
                waiting.add(pool.submit(_work, job, out))
                while len(waiting) > workers:
                    waiting = _collect(waiting, results, report)
            while waiting:
                waiting = _collect(waiting, results, report)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    _drain(results, report)


def _collect(waiting: set[Future[None]], results: Any, report: Report) -> set[Future[None]]:
    """Those futures that are not done after a moment; raises what a finished one raised."""
    finished, rest = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
    _drain(results, report)
    for future in finished:
        future.result()
    return rest


def _drain(results: Any, report: Report) -> None:
    while True:
        try:
            results.get(timeout=0.02)
        except queue.Empty:
            return
        report()

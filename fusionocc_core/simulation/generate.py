"""Write a data set: check the request, share the keyframes out to workers, make the tables."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusionocc_core.simulation.config import SceneSpec, SimulationConfig, list_scenes
from fusionocc_core.simulation.files import HIDDEN, atomic_write, json_bytes, read_record
from fusionocc_core.simulation.keyframe import write_keyframe
from fusionocc_core.simulation.rigs import Rig
from fusionocc_core.simulation.stage import stage_scene
from fusionocc_core.simulation.tables import TableWriter, clear_staging, write_map

Progress = Callable[[int, int], None]
"""Called with finished and all keyframes."""
_GROWING = ("scenes", "val_scenes")
"""Settings that may differ when a data set is continued: more scenes are added to those that are there."""


def generate(root: Path | str, config: SimulationConfig, workers: int = 1, progress: Progress | None = None) -> Path:
    """Write a data set in nuScenes format, or continue one that was begun.

    The folder gets the tables (``v1.0-sim``), ``samples``, ``lidarseg``, ``gts`` (Occ3D), ``surroundocc``, ``imgseg``
    and ``maps``; docs/simulation.md describes them. Finished keyframes are kept, so that a killed run can be
    continued; the tables are written last.

    Args:
        root: the folder, made if missing.
        config: what to simulate.
        workers: processes; the result does not depend on it.
        progress: told after every keyframe.

    Returns:
        The root.

    Raises:
        ValueError: something in the request is wrong, or the folder holds other data.
        PermissionError: the folder cannot be written.
    """
    root = Path(root)
    rig = check_request(root, config, workers)
    clear_staging(root)
    blocks, done, total = _missing_blocks(root, config, workers)
    if progress:
        progress(done, total)
    if workers == 1 or len(blocks) <= 1:
        for scene, keyframes in blocks:
            for k in keyframes:
                write_keyframe(root, stage_scene(config, scene), k)
                done += 1
                if progress:
                    progress(done, total)
            write_map(root, config, scene)
    else:
        _run_pool(root, config, blocks, workers, lambda count: progress(done + count, total) if progress else None)
    TableWriter(root, config, rig).write()
    return root


def check_request(root: Path, config: SimulationConfig, workers: int = 1) -> Rig:
    """Find every mistake before work starts; claims the folder by writing its manifest."""
    if workers < 1:
        raise ValueError(f"workers={workers}: at least one process is needed")
    rig = config.load_rig()
    scenes = list_scenes(config)
    from fusionocc_core.simulation.tracing import require_embree

    require_embree()
    manifest = root / HIDDEN / "manifest.json"
    settings = json.loads(json.dumps({**asdict(config), "rig_sensors": repr(rig)}))
    if manifest.is_file():
        _compare(root, json.loads(manifest.read_bytes()), settings)
    elif (root / scenes[0].version).exists():
        raise ValueError(
            f"{root / scenes[0].version} exists and was not written by the simulation; choose another folder"
        )
    try:
        atomic_write(manifest, json_bytes(settings))
    except OSError as error:
        raise PermissionError(f"{root}: cannot be written ({error.strerror}); choose another folder") from error
    return rig


def _compare(root: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to mix two data sets in one folder."""
    changed = [name for name, value in wanted.items() if name not in _GROWING and there.get(name) != value]
    if changed == ["rig_sensors"]:
        raise ValueError(f"{root} holds a simulated data set whose rig file has changed since; choose another folder")
    if changed:
        what = "; ".join(f"{n}: {there.get(n)!r}, not {wanted[n]!r}" for n in changed if n != "rig_sensors")
        raise ValueError(
            f"{root} already holds a simulated data set with other settings ({what}); "
            "choose another folder, or delete it"
        )
    counts = [SimulationConfig(scenes=s["scenes"], val_scenes=s["val_scenes"]) for s in (there, wanted)]
    old, new = ((c.scenes - c.num_val, c.num_val) for c in counts)
    if new[0] < old[0] or new[1] < old[1]:
        raise ValueError(
            f"{root} already holds {old[0]} training and {old[1]} validation scenes; "
            f"{new[0]} and {new[1]} would be fewer; choose another folder"
        )


def _missing_blocks(
    root: Path, config: SimulationConfig, workers: int
) -> tuple[list[tuple[SceneSpec, list[int]]], int, int]:
    """Runs of keyframes that are still to be made, one scene each, and how many are done already, of how many."""
    scenes = list_scenes(config)
    missing = {
        scene: [k for k in range(config.keyframes) if read_record(root, scene.name, k) is None] for scene in scenes
    }
    total = config.keyframes * len(scenes)
    count = sum(len(keyframes) for keyframes in missing.values())
    per_scene = max(1, -(-workers // len(scenes)))
    blocks = []
    for scene, keyframes in missing.items():
        size = max(4, -(-len(keyframes) // per_scene))
        blocks += [(scene, keyframes[k : k + size]) for k in range(0, len(keyframes), size)]
    return blocks, total - count, total


_results: Any = None
_stop: Any = None


def _start_worker(results: Any, stop: Any) -> None:
    """Set up a worker process: one thread, the queue that it reports to, and the event that ends its work."""
    import cv2

    global _results, _stop
    _results, _stop = results, stop
    cv2.setNumThreads(1)


def _run_block(root: Path, config: SimulationConfig, scene: SceneSpec, keyframes: list[int]) -> None:
    parent = os.getppid()
    for k in keyframes:
        if _stop.is_set() or os.getppid() != parent:
            return
        write_keyframe(root, stage_scene(config, scene), k)
        _results.put(k)
    write_map(root, config, scene)


def _run_pool(
    root: Path,
    config: SimulationConfig,
    blocks: list[tuple[SceneSpec, list[int]]],
    workers: int,
    report: Callable[[int], None],
) -> None:
    """Run the blocks in worker processes; the first failure stops the rest."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    stop = context.Event()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(results, stop))
    with pool:
        futures: list[Future[None]] = [pool.submit(_run_block, root, config, *block) for block in blocks]
        count = 0
        try:
            while not all(future.done() for future in futures) or not results.empty():
                failed = [future for future in futures if future.done() and future.exception() is not None]
                if failed:
                    failed[0].result()
                try:
                    results.get(timeout=0.2)
                except queue.Empty:
                    continue
                count += 1
                report(count)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        for future in futures:
            future.result()

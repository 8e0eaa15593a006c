"""From a data set to what is to be labelled, with every complaint about it before the work starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.imgseg import LIDARSEG_DOWNLOAD, lidarseg_files
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.nuscenes_tables import Keyframe, shorten
from fusionocc_core.labelling.aggregate import SceneJob
from fusionocc_core.labelling.clouds import SweepFile, point_classes
from fusionocc_core.labelling.config import LabelConfig

_BLIND = np.full(256, 255, np.uint8)


def check_data(frames: NuScenesFrames, config: LabelConfig) -> None:
    """Refuse a data set that cannot be labelled.

    Raises:
        FileNotFoundError: clouds that are listed are not on disk, or there is no table of point labels.
        ValueError: no LiDAR, no camera, a keyframe without cloud, no boxes, or a scene without point labels.
    """
    if frames.lidar is None:
        raise ValueError(f"{frames.root / frames.version}: no LiDAR; labels are made from LiDAR sweeps")
    if not frames.cameras and config.layout == "occ3d":
        raise ValueError(f"{frames.root / frames.version}: no camera, so no camera mask; choose layout surroundocc")
    keyframes = [frames.keyframe(index) for index in range(len(frames))]
    bare = [keyframe.token for keyframe in keyframes if frames.lidar not in keyframe.records]
    if bare:
        raise ValueError(f"{len(bare)} keyframes have no {frames.lidar} sweep, the first is sample {bare[0]}")
    if not any(frames.boxes(index, "global") for index in range(len(frames))):
        raise ValueError(
            f"{frames.root / frames.version}: no boxes in the chosen scenes (sample_annotation is empty for them), so "
            "what moves cannot be told from what rests; choose annotated scenes (nuScenes' test split has none)"
        )
    if not config.boxes_only:
        _check_point_labels(frames, keyframes)
    files = [file for scene in frames.scenes for file in _sweep_files(frames, scene, {}, config)]
    missing = [str(file.record.path) for file in files if not file.record.path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} clouds that the tables list are not on disk, such as {missing[0]}; "
            "extract the archives that hold them, or label from keyframes alone (--keyframes-only)"
        )


def _check_point_labels(frames: NuScenesFrames, keyframes: list[Keyframe]) -> None:
    table = frames.root / frames.version / "lidarseg.json"
    if not table.is_file():
        raise FileNotFoundError(
            f"{table} is not there: without labels of points the classes of road, walls and plants are unknown; get "
            f'{LIDARSEG_DOWNLOAD}, or take --boxes-only, which labels everything outside of boxes as "others"'
        )
    labelled = lidarseg_files(frames.root, frames.version)
    with_labels = {keyframe.scene for keyframe in keyframes if keyframe.records[frames.lidar or ""].token in labelled}
    without = [scene for scene in frames.scenes if scene not in with_labels]
    if without:
        raise ValueError(
            f"{table} has no row for any cloud of {shorten(without)}; choose scenes that are labelled, or --boxes-only"
        )
    point_classes(frames.root, frames.version)


def scene_jobs(frames: NuScenesFrames, config: LabelConfig) -> Iterator[SceneJob]:
    """The scenes of a data set that passed ``check_data``, one after the other as they are asked for."""
    labels: dict[str, Path] = {}
    classes: NDArray[np.uint8] = _BLIND
    if not config.boxes_only:
        labels, classes = lidarseg_files(frames.root, frames.version), point_classes(frames.root, frames.version)
    assert frames.lidar is not None, "check_data refuses data without LiDAR"
    for scene in frames.scenes:
        indices = frames.scene_indices(scene)
        yield SceneJob(
            scene=scene,
            keyframes=tuple(frames.keyframe(index) for index in indices),
            lidar=frames.lidar,
            sweeps=tuple(_sweep_files(frames, scene, labels, config)),
            boxes=tuple(tuple(frames.boxes(index, "global")) for index in indices),
            classes=classes,
            config=config,
        )


def _sweep_files(
    frames: NuScenesFrames, scene: str, labels: dict[str, Path], config: LabelConfig
) -> Iterator[SweepFile]:
    """The clouds of a scene in the order of time."""
    keyframes = [frames.keyframe(index) for index in frames.scene_indices(scene)]
    position = {keyframe.records[frames.lidar or ""].token: k for k, keyframe in enumerate(keyframes)}
    for record in frames.sensor_records(scene, ("lidar",)):
        keyframe = position.get(record.token)
        if keyframe is not None or not config.keyframes_only:
            yield SweepFile(record=record, lidarseg=labels.get(record.token), keyframe=keyframe)

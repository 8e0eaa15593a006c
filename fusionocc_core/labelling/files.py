"""Where labels go: one file a keyframe, written whole or not at all, and a note of how they were made."""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.nuscenes_tables import Keyframe, SensorRecord
from fusionocc_core.data.occ3d import occ3d_path
from fusionocc_core.data.surroundocc import surroundocc_path
from fusionocc_core.geometry import quaternion_wxyz_from_rotation
from fusionocc_core.labelling.config import FREE, LabelConfig
from fusionocc_core.labelling.keyframes import KeyframeLabels

NOTE = "labelling.json"
"""Beside the labels: the settings that they were made with. A folder of labels without it is not ours."""
_END = "EOF"
"""Occ3D's word for "no keyframe before" and "none after"."""


def labels_folder(out: Path, config: LabelConfig) -> Path:
    """The folder of all labels."""
    return out / ("gts" if config.layout == "occ3d" else "surroundocc")


def labels_path(out: Path, keyframe: Keyframe, lidar: str, config: LabelConfig) -> Path:
    """The file of a keyframe's labels."""
    if config.layout == "occ3d":
        return occ3d_path(out, keyframe.scene, keyframe.token)
    return surroundocc_path(out, keyframe.records[lidar].path)


def claim(out: Path, frames: NuScenesFrames, config: LabelConfig) -> None:
    """Make the folder of labels, or go on with one that was begun with the same settings.

    Raises:
        FileExistsError: it holds labels of another origin, or made with other settings.
        OSError: it cannot be written.
    """
    folder = labels_folder(out, config)
    settings = {**asdict(config), "version": frames.version}
    note = folder / NOTE
    if note.is_file():
        there: dict[str, Any] = json.loads(note.read_bytes())
        changed = [f"{k}: {there.get(k)!r}, not {v!r}" for k, v in settings.items() if there.get(k) != v]
        if changed:
            raise FileExistsError(
                f"{folder} holds labels made with other settings ({'; '.join(changed)}); "
                "choose another folder with --out, or delete it"
            )
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise FileExistsError(
            f"{folder} holds labels that this command did not make; it overwrites none: choose a folder with --out"
        )
    write_whole(note, json.dumps(settings, indent=1).encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write next to the target and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def labels_bytes(labels: KeyframeLabels, config: LabelConfig) -> bytes:
    """The file of a keyframe; the same bytes for the same labels."""
    buffer = io.BytesIO()
    if config.layout == "surroundocc":
        np.save(buffer, _rows(labels.semantics), allow_pickle=False)
    else:
        masks = {name: getattr(labels, name).astype(np.uint8) for name in ("mask_lidar", "mask_camera")}
        np.savez_compressed(buffer, semantics=labels.semantics, **masks)
    return buffer.getvalue()


def _rows(semantics: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Rows (x, y, z, class) of the occupied voxels; class 0, "others", is SurroundOcc's "unknown"."""
    occupied = np.argwhere(semantics != FREE)
    return np.concatenate([occupied, semantics[tuple(occupied.T)][:, None]], axis=1).astype(np.int16)


def write_index(out: Path, frames: NuScenesFrames, config: LabelConfig) -> None:
    """Write Occ3D's ``gts/annotations.json``; scenes that an earlier run put there stay."""
    path = labels_folder(out, config) / "annotations.json"
    index: dict[str, Any] = {"train_split": [], "val_split": [], "scene_infos": {}}
    if path.is_file():
        index = json.loads(path.read_bytes())
    validation = _validation_scenes(frames)
    for scene in frames.scenes:
        split = "val_split" if scene in validation else "train_split"
        index[split] = sorted({*index[split], scene})
        keyframes = [frames.keyframe(k) for k in frames.scene_indices(scene)]
        index["scene_infos"][scene] = _scene_info(keyframes, frames)
    write_whole(path, json.dumps(index, indent=1).encode())


def _validation_scenes(frames: NuScenesFrames) -> set[str]:
    """The scenes of nuScenes' own validation split, and of splits of the data set that end in "val"."""
    from nuscenes.utils.splits import create_splits_scenes

    found = set(create_splits_scenes()["val"])
    own = frames.root / frames.version / "splits.json"
    if own.is_file():
        for name, scenes in json.loads(own.read_bytes()).items():
            found |= set(scenes) if name.endswith("val") else set()
    return found


def _scene_info(keyframes: list[Keyframe], frames: NuScenesFrames) -> dict[str, Any]:
    tokens = [keyframe.token for keyframe in keyframes]
    return {
        keyframe.token: {
            "timestamp": str(keyframe.stamp_ns // 1000),
            "camera_sensor": {
                channel: _camera_info(keyframe.records[channel], frames.root)
                for channel in frames.cameras
                if channel in keyframe.records
            },
            "ego_pose": _pose(keyframe.records[frames.lidar or ""].ego2global),
            "gt_path": str(occ3d_path("", keyframe.scene, keyframe.token)),
            "prev": tokens[k - 1] if k else _END,
            "next": tokens[k + 1] if k + 1 < len(tokens) else _END,
        }
        for k, keyframe in enumerate(keyframes)
    }


def _camera_info(record: SensorRecord, root: Path) -> dict[str, Any]:
    assert record.intrinsics is not None, "Tables.record gives every camera its intrinsics"
    return {
        "img_path": str(record.path.relative_to(root)).removeprefix("samples/"),
        "intrinsics": record.intrinsics.tolist(),
        "extrinsic": _pose(record.sensor2ego),
        "ego_pose": _pose(record.ego2global),
    }


def _pose(a2b: NDArray[np.float64]) -> dict[str, list[float]]:
    return {
        "translation": a2b[:3, 3].tolist(),
        "rotation": quaternion_wxyz_from_rotation(a2b[:3, :3]).tolist(),
    }

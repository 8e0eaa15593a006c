"""Where files go, and writing them so that a killed run leaves no half-written one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

HIDDEN = ".simulation"
"""Folder with the manifest, the records of finished keyframes, and what is being written."""


def atomic_write(path: Path, data: bytes) -> None:
    """Write next to the target and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def json_bytes(value: Any) -> bytes:
    """JSON as nuScenes' tables have it."""
    return json.dumps(value, indent=1).encode()


@dataclass
class KeyframeFiles:
    """Files of one keyframe: collected in a staging folder, then moved into the data set together."""

    root: Path
    scene: str
    keyframe: int
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with an empty staging folder."""
        self.staging = self.root / HIDDEN / "partial" / f"{self.scene}-{self.keyframe:03d}"
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)

    def add(self, name: str, data: bytes) -> None:
        """Stage a file; ``name`` is its path below the root."""
        self.staging.joinpath(str(len(self.names))).write_bytes(data)
        self.names.append(name)

    def add_array(self, name: str, array: NDArray[Any]) -> None:
        """Stage a .npy file."""
        with self.staging.joinpath(str(len(self.names))).open("wb") as stream:
            np.save(stream, array)
        self.names.append(name)

    def add_arrays(self, name: str, **arrays: NDArray[Any]) -> None:
        """Stage a compressed .npz file, the same bytes for the same arrays (zip entries carry a fixed date)."""
        with self.staging.joinpath(str(len(self.names))).open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        self.names.append(name)

    def add_jpeg(self, name: str, rgb: NDArray[np.uint8], quality: int) -> None:
        """Stage a picture (H, W, 3)."""
        ok, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not ok:
            raise ValueError(f"{name}: OpenCV could not encode a picture of shape {rgb.shape}")
        self.add(name, data.tobytes())

    def publish(self, record: dict[str, Any]) -> None:
        """Move all files to their places; the record comes last and says that the keyframe is whole."""
        for k, name in enumerate(self.names):
            target = _place(self.root, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.staging / str(k), target)
        atomic_write(record_path(self.root, self.scene, self.keyframe), json_bytes({**record, "files": self.names}))
        shutil.rmtree(self.staging)


def record_path(root: Path, scene: str, keyframe: int) -> Path:
    """Where the record of a finished keyframe lies."""
    return root / HIDDEN / "records" / scene / f"{keyframe:03d}.json"


def read_record(root: Path, scene: str, keyframe: int) -> dict[str, Any] | None:
    """The record of a keyframe; None where it, or one of its files, is missing."""
    path = record_path(root, scene, keyframe)
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_bytes())
    whole = all((root / name).is_file() or _place(root, name).is_file() for name in record["files"])
    return record if whole else None


def _place(root: Path, name: str) -> Path:
    """Where a finished file goes; lidarseg labels wait aside, as the devkit counts them against its table."""
    return root / HIDDEN / name if name.startswith("lidarseg/") else root / name

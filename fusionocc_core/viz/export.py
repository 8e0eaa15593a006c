"""Occupancy on disk: the .npz that other programs read and the picture that people look at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_core.viz.canvas import Picture
from fusionocc_core.viz.overview import overview


@dataclass(frozen=True, kw_only=True)
class ResultPaths:
    """Where the results of one frame go: ``<folder>/<scene>/<stamp in nanoseconds>.npz`` and ``.png``."""

    volume: Path
    picture: Path

    def complete(self, *, pictures: bool) -> bool:
        """Whether everything that is wanted is there. Files appear whole or not at all, so existing means finished."""
        return self.volume.is_file() and (self.picture.is_file() or not pictures)


def result_paths(folder: Path, scene: str, stamp_ns: int) -> ResultPaths:
    """The files of a frame; frames of a scene without a name lie directly in ``folder``."""
    stem = folder / scene / str(stamp_ns)
    return ResultPaths(volume=stem.with_name(f"{stem.name}.npz"), picture=stem.with_name(f"{stem.name}.png"))


def make_output_folder(folder: Path) -> None:
    """Make the folder that a command's option ``--out`` names, with those above it; it may be there already.

    Raises:
        OSError: it cannot be made; the message names the option.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {folder}: cannot be created: {error.strerror}; choose a writable folder") from error


def results_in(folder: Path) -> list[Path]:
    """The volumes and pictures of every scene under a folder of results; nothing else that lies there."""
    return [path for path in folder.glob("*/[0-9]*") if _is_result(path)]


def remove_results(scene: Path) -> None:
    """Take away the volumes and pictures in the folder of one scene: they may be of another network or other data."""
    for path in scene.glob("[0-9]*"):
        if _is_result(path):
            path.unlink()


def _is_result(path: Path) -> bool:
    return path.stem.isdecimal() and path.suffix in (".npz", ".png")


def write_result(folder: Path, frame: SensorFrame, occupancy: Occupancy, *, pictures: bool = True) -> ResultPaths:
    """Write the volume of a frame and, unless told otherwise, its overview.

    Raises:
        ValueError: the occupancy is of another time than the frame, or has no confidence.
        OSError: the folder cannot be written.
    """
    if frame.stamp_ns != occupancy.stamp_ns:
        raise ValueError(f"occupancy.stamp_ns={occupancy.stamp_ns} belongs to another frame than {frame.stamp_ns}")
    paths = result_paths(folder, frame.scene, frame.stamp_ns)
    paths.volume.parent.mkdir(parents=True, exist_ok=True)
    if pictures:
        write_picture(paths.picture, overview(frame, occupancy))
    write_volume(paths.volume, occupancy)
    return paths


def write_volume(path: Path, occupancy: Occupancy) -> None:
    """Write a compressed .npz; it appears whole or not at all.

    Keys: ``labels`` and ``confidence`` uint8 (X, Y, Z) indexed [x, y, z]; ``origin`` float64 (3,), the outer corner of
    voxel (0, 0, 0) in metres; ``voxel_size`` float64 (3,), metres. Both in the grid's frame (ego: x forward, y left,
    z up).

    Raises:
        ValueError: the occupancy has no confidence.
    """
    if occupancy.confidence is None:
        raise ValueError(
            f"{path.name}: the occupancy has no confidence, which the file holds; "
            "predict with Predictor(model, confidence=True), or with the node's parameter for it"
        )
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("wb") as file:
        np.savez_compressed(
            file,
            labels=occupancy.labels,
            confidence=occupancy.confidence,
            origin=np.asarray(occupancy.grid.lower, np.float64),
            voxel_size=np.asarray(occupancy.grid.voxel_size, np.float64),
        )
    unfinished.replace(path)


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture as PNG; it appears whole or not at all."""
    encoded, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not encoded:
        raise ValueError(f"{path}: OpenCV cannot encode a picture of {picture.dtype} {picture.shape} as PNG")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(data.tobytes())
    unfinished.replace(path)

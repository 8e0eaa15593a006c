"""Occupancy on disk: the .npz that other programs read and the picture that people look at."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, SURROUNDOCC_GRID, LabelSet, VoxelGrid
from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_core.viz.canvas import Picture
from fusionocc_core.viz.gaussian_files import write_ply
from fusionocc_core.viz.overview import overview


@dataclass(frozen=True, kw_only=True)
class ResultPaths:
    """Where the results of one frame go: ``<folder>/<scene>/<stamp in nanoseconds>.npz``, ``.png`` and ``.ply``."""

    volume: Path
    picture: Path
    gaussians: Path
    """Of networks that have Gaussians."""

    def complete(self, *, pictures: bool) -> bool:
        """Whether everything that is wanted is there. Files appear whole or not at all, so existing means finished."""
        return self.volume.is_file() and (self.picture.is_file() or not pictures)


def result_paths(folder: Path, scene: str, stamp_ns: int) -> ResultPaths:
    """The files of a frame; frames of a scene without a name lie directly in ``folder``."""
    stem = folder / scene / str(stamp_ns)
    return ResultPaths(
        volume=stem.with_name(f"{stem.name}.npz"),
        picture=stem.with_name(f"{stem.name}.png"),
        gaussians=stem.with_name(f"{stem.name}.ply"),
    )


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
    """The volumes, pictures and Gaussians of every scene under a folder of results; nothing else that lies there."""
    return [path for path in folder.glob("*/[0-9]*") if _is_result(path)]


def remove_results(scene: Path) -> None:
    """Take away the results in the folder of one scene: they may be of another network or other data."""
    for path in scene.glob("[0-9]*"):
        if _is_result(path):
            path.unlink()


def _is_result(path: Path) -> bool:
    return path.stem.isdecimal() and path.suffix in (".npz", ".png", ".ply")


def write_result(folder: Path, frame: SensorFrame, occupancy: Occupancy, *, pictures: bool = True) -> ResultPaths:
    """Write the volume of a frame, its Gaussians where it has any and, unless told otherwise, its overview.

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
    if occupancy.gaussians is not None:
        write_ply(paths.gaussians, occupancy.gaussians, occupancy.label_set, occupancy.grid.frame)
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
    """Write a picture as PNG, or as JPEG where the name says so; it appears whole or not at all."""
    jpeg = path.suffix == ".jpg"
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if jpeg else [cv2.IMWRITE_PNG_COMPRESSION, 4]
    encoded, data = cv2.imencode(".jpg" if jpeg else ".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    if not encoded:
        raise ValueError(f"{path}: OpenCV cannot encode a picture of {picture.dtype} {picture.shape}")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(data.tobytes())
    unfinished.replace(path)


def read_volume(path: Path, *, stamp_ns: int, label_set: LabelSet = OCC3D_LABELS) -> Occupancy:
    """Read back what ``write_volume`` wrote.

    Args:
        path: the .npz.
        stamp_ns: its time, which the file does not hold (its name does, see ``result_paths``).
        label_set: its classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, lacks an array, or holds labels that are no class.
    """
    try:
        with np.load(path, allow_pickle=False) as volume:
            arrays = {name: volume[name] for name in ("labels", "confidence", "origin", "voxel_size")}
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(
            f"{path}: not a whole volume ({error}); expected labels, confidence, origin and voxel_size as "
            "`fusionocc predict` writes them"
        ) from error
    labels, lower = arrays["labels"], tuple(float(v) for v in arrays["origin"])
    size = tuple(float(v) for v in arrays["voxel_size"])
    upper = tuple(lo + n * s for lo, n, s in zip(lower, labels.shape, size, strict=True))
    strange = labels[(labels >= label_set.num) & (labels != label_set.unknown)]
    if len(strange):
        raise ValueError(
            f"{path}: label {strange[0]} is no class of {label_set.name!r} (0..{label_set.num - 1}): it has no colour"
        )
    grid = VoxelGrid(frame="ego", lower=_three(lower), upper=_three(upper), voxel_size=_three(size))
    known = next((one for one in (OCC3D_GRID, SURROUNDOCC_GRID) if _same_place(one, grid)), grid)
    return Occupancy(labels=labels, confidence=arrays["confidence"], grid=known, label_set=label_set, stamp_ns=stamp_ns)


def _same_place(known: VoxelGrid, found: VoxelGrid) -> bool:
    """Whether two grids cover the same numbers; of SurroundOcc's only the numbers say that they are the LiDAR's."""
    return known.shape == found.shape and np.allclose(
        (*known.lower, *known.voxel_size), (*found.lower, *found.voxel_size), rtol=0, atol=1e-6
    )


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    x, y, z = values
    return x, y, z

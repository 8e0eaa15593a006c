"""Labels of pictures, painted from the labelled LiDAR points of nuScenes-lidarseg.

FusionOcc trains its picture branch on them: ``<root>/imgseg/samples/<camera>/<picture>.npy``, uint8, one cell every 8
pixels, 0 others to 16 vegetation, 17 where no point was painted.

Legend: P points, C cameras.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.files import read_bytes, read_cloud
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.geometry import inverse
from fusionocc_core.grids import LIDARSEG_TO_OCC3D, OCC3D_LABELS

CELL = 8
"""Pixels a cell, both ways."""
UNPAINTED = OCC3D_LABELS.free
_ABOVE, _BELOW, _LEFT, _RIGHT = 8, 8, 4, 4
"""A point paints this many pixels around its own (those below and to the right: exclusive)."""
_NEAREST_M = 0.1
_FAR_MAP_M = 1e5
"""Beyond this, map coordinates in float32 are off by centimetres."""
LIDARSEG_DOWNLOAD = (
    "nuScenes-lidarseg from https://www.nuscenes.org/nuscenes#download (nuScenes-lidarseg-all-v1.0.tar.bz2, or "
    "nuScenes-lidarseg-mini-v1.0.tar.bz2), extracted over the data set"
)


@dataclass(frozen=True, kw_only=True)
class ImgsegJob:
    """The pictures of one keyframe and the cloud that they are painted from."""

    token: str
    """Of the sample, for messages."""
    lidar: SensorRecord
    lidarseg: Path
    cameras: tuple[SensorRecord, ...]
    outputs: tuple[Path, ...]
    """One for each camera."""


def imgseg_path(root: Path, camera: SensorRecord) -> Path:
    """Where the label map of a picture lies."""
    return root / "imgseg" / "samples" / camera.channel / f"{camera.path.name}.npy"


def map_shape(camera: SensorRecord) -> tuple[int, int]:
    """Cells of the label map of a picture, down and across: 113 x 200 for 900 x 1600 pixels."""
    return -(-camera.height // CELL), -(-camera.width // CELL)


def lidarseg_files(root: Path, version: str) -> dict[str, Path]:
    """sample_data token of each labelled cloud -> file of its labels, existing or not.

    Raises:
        FileNotFoundError: the data set has no table of lidarseg files.
        ValueError: the table is damaged.
    """
    table = root / version / "lidarseg.json"
    if not table.is_file():
        raise FileNotFoundError(f"{table} is not there: the data set has no labels of points; get {LIDARSEG_DOWNLOAD}")
    try:
        return {row["sample_data_token"]: root / row["filename"] for row in json.loads(table.read_bytes())}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{table} is damaged ({error!r}); expected rows of token, filename, sample_data_token"
        ) from error


def class_table(root: Path, version: str) -> NDArray[np.uint8]:
    """(256,) Occ3D class of each value of a lidarseg file, by the names and indices of the data set's own table.

    Raises:
        ValueError: categories without index (a release without lidarseg), or with names that nuScenes does not have.
    """
    path = root / version / "category.json"
    rows = json.loads(path.read_bytes())
    table = np.full(256, OCC3D_LABELS.unknown, np.uint8)
    for row in rows:
        if "index" not in row:
            raise ValueError(
                f"{path}: category {row['name']!r} has no index; the table is of a release without lidarseg: "
                f"get {LIDARSEG_DOWNLOAD}"
            )
        if row["name"] not in LIDARSEG_TO_OCC3D:
            raise ValueError(f"{path}: category {row['name']!r} is none of the {len(LIDARSEG_TO_OCC3D)} of lidarseg")
        table[row["index"]] = LIDARSEG_TO_OCC3D[row["name"]]
    return table


def read_lidarseg(path: Path, table: NDArray[np.uint8], points: int) -> NDArray[np.uint8]:
    """The Occ3D class (P,) of every point of a cloud.

    Args:
        path: one byte a point, in the order of the cloud.
        table: from class_table.
        points: how many the cloud has.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another number of labels than points, or values without category.
    """
    raw = np.frombuffer(read_bytes(path, "lidarseg labels"), np.uint8)
    if len(raw) != points:
        raise ValueError(f"lidarseg labels: {path} holds {len(raw)} labels, the cloud {points} points; copy it again")
    classes = table[raw]
    if (classes == OCC3D_LABELS.unknown).any():
        raise ValueError(
            f"lidarseg labels: {path} holds {int(raw[classes == OCC3D_LABELS.unknown][0])}, an index that "
            "category.json does not have; labels and tables are of different releases"
        )
    return classes


def paint_pictures(
    points: NDArray[np.float32], classes: NDArray[np.uint8], lidar: SensorRecord, cameras: Sequence[SensorRecord]
) -> list[NDArray[np.uint8]]:
    """The label map of each camera's picture, from one labelled cloud.

    In the order of the cloud, every point that falls into the picture paints a rectangle over what is there: from 4
    pixels left of it to 4 right, from 8 above to 8 below. Occluded points paint as well, and so do "others"; a
    rectangle ends one pixel before the picture's right and lower edge. Then every eighth pixel both ways is kept. Of
    these a rectangle covers at most one column and two rows, so they are set without painting. Equal to FusionOcc's
    painter in every cell, its rounding included.

    Args:
        points: (P, 3 or more) in the LiDAR's axes, metres.
        classes: (P,).
        lidar: the sweep's record: sensor2ego and ego2global.
        cameras: with intrinsics, and width and height of the pictures.
    """
    near = _maybe_seen(points, lidar, cameras)
    return [
        _paint(_project(points[rows], lidar, camera), classes[rows], camera)
        for rows, camera in zip(near, cameras, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """Points in one picture."""

    inside: NDArray[np.bool_]
    """(P,) which fall into it."""
    u: NDArray[np.int32]
    """Of these, truncated."""
    v: NDArray[np.int32]


def _paint(pixels: _Pixels, classes: NDArray[np.uint8], camera: SensorRecord) -> NDArray[np.uint8]:
    """Set the one column and two rows of cells that each rectangle covers."""
    (height, width), u, v = map_shape(camera), pixels.u, pixels.v
    row = np.maximum(v - (_ABOVE - CELL + 1), 0) // CELL
    column = np.maximum(u - (_LEFT - CELL + 1), 0) // CELL
    across = column * CELL < np.minimum(u + _RIGHT, camera.width - 1)
    last_row = np.minimum(v + _BELOW, camera.height - 1)
    # What a rectangle does not reach goes to one spare cell at the end.
    spare = height * width
    first = row * width + column
    cells = np.empty((len(row), 2), np.int32)
    cells[:, 0] = np.where(across & (row * CELL < last_row), first, spare)
    cells[:, 1] = np.where(across & ((row + 1) * CELL < last_row), first + width, spare)
    canvas = np.full(spare + 1, UNPAINTED, np.uint8)
    # Of several values for one cell NumPy keeps the last, which is the rule.
    canvas[cells.ravel()] = np.repeat(classes[pixels.inside], 2)
    return canvas[:spare].reshape(height, width)


def _project(points: NDArray[np.float32], lidar: SensorRecord, camera: SensorRecord) -> _Pixels:
    """Where the points (P, 3) fall in the picture.

    The reference carries points through map coordinates in float32, which moves some to the next pixel; so do we, but
    where the map's origin is so far that this would be useless.
    """
    origin = lidar.ego2global[:3, 3]
    origin = np.round(origin) if np.abs(origin).max() > _FAR_MAP_M else np.zeros(3)
    xyz = np.ascontiguousarray(points[:, :3].T)
    none = np.zeros(3)
    for a2b, shift in ((lidar.sensor2ego, none), (lidar.ego2global, origin)):
        xyz = (a2b[:3, :3] @ xyz).astype(np.float32)
        xyz += (a2b[:3, 3] - shift).astype(np.float32)[:, None]
    for a2b, shift in ((camera.ego2global, origin), (camera.sensor2ego, none)):
        xyz += (shift - a2b[:3, 3]).astype(np.float32)[:, None]
        xyz = (a2b[:3, :3].T @ xyz).astype(np.float32)
    u, v, z = _intrinsics(camera) @ xyz.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = u / z, v / z
        inside = (z > _NEAREST_M) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    return _Pixels(inside=inside, u=u[inside].astype(np.int32), v=v[inside].astype(np.int32))


def _intrinsics(camera: SensorRecord) -> NDArray[np.float64]:
    assert camera.intrinsics is not None, "Tables.record gives every camera its intrinsics"
    return camera.intrinsics


def _maybe_seen(
    points: NDArray[np.float32], lidar: SensorRecord, cameras: Sequence[SensorRecord]
) -> list[NDArray[np.int64]]:
    """For each camera the rows of the points in its picture and in a margin around it, by one quick product for all.

    In the picture means |u z - z W / 2| < z W / 2 and the same for v and H: four rows of a product for each camera.
    """
    lidar2global = lidar.ego2global @ lidar.sensor2ego
    cams2global = np.stack([camera.ego2global @ camera.sensor2ego for camera in cameras])
    lidar2cams = (inverse(cams2global) @ lidar2global)[:, :3]
    halves = [(camera.width / 2, camera.height / 2) for camera in cameras]
    bounds = np.array([[(1, 0, -w), (0, 0, w), (0, 1, -h), (0, 0, h)] for w, h in halves])
    intrinsics = np.stack([_intrinsics(camera) for camera in cameras])
    rows = bounds @ intrinsics @ lidar2cams
    # Metres; the way through float32 map coordinates costs 1e-7 of their size a few times over.
    margin = 0.02 + 1e-6 * min(np.abs(lidar.ego2global[:3, 3]).max(), _FAR_MAP_M)
    # Errors of z count with cx and cy, too, which are less than the picture's size.
    rows[:, (1, 3), 3] += margin * (intrinsics[:, (0, 1), (0, 1)] + 2 * bounds[:, (1, 3), 2])
    rows = rows.astype(np.float32)
    xyz = np.ascontiguousarray(points[:, :3].T)
    product = (rows[:, :, :3].reshape(-1, 3) @ xyz).reshape(len(cameras), 4, -1)
    product += rows[:, :, 3:]
    near = (np.abs(product[:, 0]) < product[:, 1]) & (np.abs(product[:, 2]) < product[:, 3])
    return [np.flatnonzero(row) for row in near]


def imgseg_jobs(frames: NuScenesFrames) -> list[ImgsegJob]:
    """What is to be painted for each keyframe that has a cloud.

    Raises:
        FileNotFoundError: the data set has no table of lidarseg files.
        ValueError: clouds without labels.
    """
    files = lidarseg_files(frames.root, frames.version)
    jobs = []
    for keyframe in (frames.keyframe(index) for index in range(len(frames))):
        lidar = keyframe.records.get(frames.lidar or "")
        cameras = tuple(keyframe.records[channel] for channel in frames.cameras if channel in keyframe.records)
        if lidar is None or not cameras:
            continue
        if lidar.token not in files:
            raise ValueError(
                f"{frames.root / frames.version / 'lidarseg.json'} has no row for cloud {lidar.token} of sample "
                f"{keyframe.token} ({keyframe.scene}); choose scenes that are labelled (nuScenes' test split is not)"
            )
        outputs = tuple(imgseg_path(frames.root, camera) for camera in cameras)
        jobs.append(
            ImgsegJob(token=keyframe.token, lidar=lidar, lidarseg=files[lidar.token], cameras=cameras, outputs=outputs)
        )
    return jobs


def is_painted(path: Path, camera: SensorRecord) -> bool:
    """Whether the label map of a picture is there and whole."""
    head, size = _npy_head(map_shape(camera))
    try:
        with path.open("rb") as file:
            return file.read(len(head)) == head and file.seek(0, os.SEEK_END) == size
    except FileNotFoundError:
        return False


def run_job(job: ImgsegJob, table: NDArray[np.uint8]) -> int:
    """Paint and write the label maps of one keyframe; returns how many.

    A file appears under its name only when it is whole.

    Raises:
        FileNotFoundError: the cloud or its labels are absent.
        ValueError: one of them is damaged.
    """
    points = read_cloud(job.lidar.path, what=f"{job.lidar.channel} cloud (sample {job.token})")
    classes = read_lidarseg(job.lidarseg, table, len(points))
    maps = paint_pictures(points, classes, job.lidar, job.cameras)
    for path, labels in zip(job.outputs, maps, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            waiting.write_bytes(_npy_bytes(labels))
            waiting.replace(path)
        finally:
            waiting.unlink(missing_ok=True)
    return len(maps)


def _npy_bytes(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@lru_cache(maxsize=64)
def _npy_head(shape: tuple[int, int]) -> tuple[bytes, int]:
    """The first bytes of the file of such a map, and the size of the file."""
    whole = _npy_bytes(np.zeros(shape, np.uint8))
    return whole[: len(whole) - shape[0] * shape[1]], len(whole)

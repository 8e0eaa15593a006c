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
_BELOW, _LEFT, _RIGHT = 8, 4, 4
"""A point paints this many pixels around its own, as many above as below; below and to the right exclusive."""
NEAREST_M = 0.1
"""Points nearer than this to a camera, along its axis, paint nothing."""
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
    xyz = np.ascontiguousarray(points[:, :3].T)
    origin = lidar.ego2global[:3, 3]
    origin = np.round(origin) if np.abs(origin).max() > _FAR_MAP_M else np.zeros(3)
    to_map = [(lidar.sensor2ego, lidar.sensor2ego[:3, 3]), (lidar.ego2global, lidar.ego2global[:3, 3] - origin)]
    to_map = [(a2b[:3, :3], shift.astype(np.float32)[:, None]) for a2b, shift in to_map]
    maps, scratch = [], np.empty((2, len(points)), np.float32)
    for camera, bounds in zip(cameras, _bounds(lidar, cameras), strict=True):
        near = _maybe_seen(xyz, bounds, scratch)
        pixels = _project(np.take(xyz, near, axis=1), to_map, camera, origin)
        maps.append(paint_cells(pixels.u, pixels.v, classes[near][pixels.inside], (camera.height, camera.width)))
    return maps


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """Points in one picture."""

    inside: NDArray[np.bool_]
    """(P,) which fall into it."""
    u: NDArray[np.intp]
    """Of these, truncated."""
    v: NDArray[np.intp]


def paint_cells(
    u: NDArray[np.intp], v: NDArray[np.intp], classes: NDArray[np.uint8], image_size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The label map (ceil(H / 8), ceil(W / 8)) of points whose pixels are known; see paint_pictures for the rule.

    Of the rows v - 8 ... v + 7 two are multiples of 8, of the columns u - 4 ... u + 3 one is. What falls off the
    picture goes to a rim that is cut off: one row above, and what begins at its last row or column or beyond.

    Args:
        u: (P,) columns of points in the picture, whole pixels, 0 to W - 1.
        v: (P,) rows, 0 to H - 1.
        classes: (P,); of points that paint the same cell the last one counts.
        image_size: (H, W) of the picture.
    """
    height, width = image_size
    wide, high = (width + _RIGHT) // CELL + 1, (height + _BELOW) // CELL + 2
    cells = np.empty((len(u), 2), np.intp)
    row_below_rim = (v + (CELL - 1)) // CELL
    np.add(row_below_rim * wide, (u + (CELL - 1 - _LEFT)) // CELL, out=cells[:, 0])
    np.add(cells[:, 0], wide, out=cells[:, 1])
    canvas = np.full(high * wide, UNPAINTED, np.uint8)
    # Of several values for one cell NumPy keeps the last, which is the rule.
    canvas[cells.ravel()] = np.repeat(classes, 2)
    painted = canvas.reshape(high, wide)[1 : 1 + -(-(height - 1) // CELL), : -(-(width - 1) // CELL)]
    out = np.full((-(-height // CELL), -(-width // CELL)), UNPAINTED, np.uint8)
    out[: painted.shape[0], : painted.shape[1]] = painted
    return out


def _project(
    xyz: NDArray[np.float32],
    to_map: Sequence[tuple[NDArray[np.float64], NDArray[np.float32]]],
    camera: SensorRecord,
    origin: NDArray[np.float64],
) -> _Pixels:
    """Where points (3, P) in the LiDAR's axes fall in the picture.

    The reference carries points through map coordinates in float32, which moves some to the next pixel; so do we, but
    from another origin where the map's is so far that this would be useless.

    Args:
        xyz: the points.
        to_map: rotations and translations from the LiDAR to the ego vehicle and on to the map, from ``origin``.
        camera: with intrinsics.
        origin: map coordinates, metres.
    """
    for rotation, shift in to_map:
        xyz = (rotation @ xyz).astype(np.float32)
        xyz += shift
    for a2b, towards in ((camera.ego2global, origin), (camera.sensor2ego, 0.0)):
        xyz += (towards - a2b[:3, 3]).astype(np.float32)[:, None]
        xyz = (a2b[:3, :3].T @ xyz).astype(np.float32)
    u, v, z = _intrinsics(camera) @ xyz
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = u / z, v / z
        inside = (z > NEAREST_M) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    return _Pixels(inside=inside, u=u[inside].astype(np.intp), v=v[inside].astype(np.intp))


def _intrinsics(camera: SensorRecord) -> NDArray[np.float64]:
    assert camera.intrinsics is not None, "Tables.record gives every camera its intrinsics"
    return camera.intrinsics


def _bounds(lidar: SensorRecord, cameras: Sequence[SensorRecord]) -> NDArray[np.float32]:
    """(C, 2, 4) that takes (x, y, z, 1) in the LiDAR's axes to z (u - W / 2) and z W / 2, enlarged by a margin.

    A point between the left and right edge of the picture gives less in the first, in size, than in the second.
    """
    lidar2global = lidar.ego2global @ lidar.sensor2ego
    # The way through float32 map coordinates costs 1e-7 of their size, metres, a few times over. An error across counts
    # with the focal length, one along the view with cx, which is less than the picture's width.
    metres = 0.02 + 1e-6 * min(np.abs(lidar2global[:3, 3]).max(), _FAR_MAP_M)
    out = np.empty((len(cameras), 2, 4))
    for rows, camera in zip(out, cameras, strict=True):
        lidar2cam = inverse(camera.ego2global @ camera.sensor2ego) @ lidar2global
        k = _intrinsics(camera)
        rows[:] = np.stack([k[0] - (0, 0, camera.width / 2), (0, 0, camera.width / 2)]) @ lidar2cam[:3]
        rows[1, 3] += metres * (k[0, 0] + camera.width)
    return out.astype(np.float32)


def _maybe_seen(
    xyz: NDArray[np.float32], bounds: NDArray[np.float32], scratch: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Which of the points (3, P) in the LiDAR's axes may lie in a picture; see _bounds."""
    np.matmul(bounds[:, :3], xyz, out=scratch)
    scratch += bounds[:, 3:]
    return np.flatnonzero(np.abs(scratch[0], out=scratch[0]) < scratch[1])


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
        _write_whole(path, _npy_bytes(labels))
    return len(maps)


def _write_whole(path: Path, data: bytes) -> None:
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        waiting.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting.write_bytes(data)
    except OSError:
        waiting.unlink(missing_ok=True)
        raise
    waiting.replace(path)


def _npy_bytes(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@lru_cache(maxsize=64)
def _npy_head(shape: tuple[int, int]) -> tuple[bytes, int]:
    """The first bytes of the file of such a map, and the size of the file."""
    whole = _npy_bytes(np.zeros(shape, np.uint8))
    return whole[: len(whole) - shape[0] * shape[1]], len(whole)

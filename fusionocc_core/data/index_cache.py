"""Two files that hold what training takes out of the tables of a data set in nuScenes format.

nuscenes-devkit parses and links every row of 13 JSON tables, also of the sweeps between keyframes, which training never
asks for. The index holds the keyframes of all scenes with the records of cameras and LiDARs; a second file, read when
the first box is asked for, the annotated boxes. Sweeps are still read from the tables.

Both are safetensors files: nothing in them is ever executed. The header says which layout a file has and which size and
time of change each table had; a file that does not fit is not used. A digest over the content tells damage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fusionocc_core.data.nuscenes_tables import TABLES, Box, Keyframe, SensorRecord, Tables, box_in_frame

logger = logging.getLogger(__name__)

LAYOUT = 2
"""Raised whenever what the arrays mean changes."""
INDEXED = ("camera", "lidar")
"""Modalities whose records the index holds."""

Arrays = dict[str, NDArray[np.generic]]


def index_path(root: Path, version: str) -> Path:
    """Where the index of a version lies."""
    return root / "cache" / f"index-{version}.safetensors"


def boxes_path(root: Path, version: str) -> Path:
    """Where the boxes of a version lie."""
    return root / "cache" / f"boxes-{version}.safetensors"


def table_state(root: Path, version: str) -> dict[str, list[int]]:
    """Size in bytes and time of change in nanoseconds of each table: what an index is valid for."""
    states = {table: (root / version / f"{table}.json").stat() for table in TABLES}
    return {table: [state.st_size, state.st_mtime_ns] for table, state in states.items()}


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a valid file holds; ``channels``, ``scene_names`` and ``keyframes`` are those of Tables."""

    root: Path
    channels: dict[str, str]
    """Channel -> modality of every sensor in the data set."""
    scene_names: list[str]
    """Names of all scenes, in the table's order."""
    calibrations: list[tuple[NDArray[np.float64], NDArray[np.float64] | None]]
    """sensor2ego and intrinsics; records of one sensor share the arrays."""
    arrays: Arrays

    def keyframes(self, scenes: list[str], channels: set[str]) -> list[Keyframe]:
        """The keyframes of the scenes with the records of the channels, scene after scene, in the order of time."""
        chosen = set(scenes)
        wanted = {n for n, name in enumerate(self.scene_names) if name in chosen}
        numbers = {n for n, channel in enumerate(self.channels) if channel in channels}
        first, end = self.arrays["keyframe.records"].T.tolist()
        columns = [self.arrays[f"keyframe.{name}"].tolist() for name in ("scene", "position", "stamp_ns")]
        rows = zip(_texts(self.arrays["keyframe.token"]), *columns, first, end, strict=True)
        records = self._records()
        return [
            Keyframe(
                token=token,
                scene=self.scene_names[scene],
                position=position,
                stamp_ns=stamp_ns,
                records={r.channel: r for r in records(first, end, numbers)},
            )
            for token, scene, position, stamp_ns, first, end in rows
            if scene in wanted
        ]

    def _records(self) -> Callable[[int, int, set[int]], Iterator[SensorRecord]]:
        """Makes the records of a range of rows, those of some channels only."""
        channels = list(self.channels.items())
        tokens, files = _texts(self.arrays["record.token"]), _texts(self.arrays["record.file"])
        numbers = self.arrays["record.numbers"].tolist()
        poses: NDArray[np.float64] = np.asarray(self.arrays["record.ego2global"], dtype=np.float64)

        def make(first: int, end: int, wanted: set[int]) -> Iterator[SensorRecord]:
            for n in range(first, end):
                channel, calibration, stamp_ns, width, height = numbers[n]
                if channel in wanted:
                    sensor2ego, intrinsics = self.calibrations[calibration]
                    yield SensorRecord(
                        token=tokens[n],
                        channel=channels[channel][0],
                        modality=channels[channel][1],
                        path=self.root / files[n],
                        stamp_ns=stamp_ns,
                        is_key_frame=True,
                        sensor2ego=sensor2ego,
                        ego2global=poses[n].copy(),
                        intrinsics=intrinsics,
                        width=width,
                        height=height,
                    )

        return make


@dataclass(frozen=True, kw_only=True)
class BoxIndex:
    """The annotated boxes of all keyframes; ``boxes`` is that of Tables."""

    categories: list[str]
    ranges: dict[str, tuple[int, int]]
    """Sample token -> first row and the one after the last."""
    arrays: Arrays

    def boxes(self, sample_token: str, global2frame: NDArray[np.float64]) -> list[Box]:
        """The annotated boxes of a keyframe, brought from the global frame to another."""
        rows = range(*self.ranges[sample_token])
        return [box_in_frame(self._row(n), global2frame) for n in rows]

    def _row(self, n: int) -> dict[str, Any]:
        category, num_lidar_pts = self.arrays["box.numbers"][n].tolist()
        pose = self.arrays["box.pose"][n].tolist()
        return {
            "token": _text(self.arrays, "box.token", n),
            "instance_token": _text(self.arrays, "box.instance", n),
            "category_name": self.categories[category],
            "rotation": pose[:4],
            "translation": pose[4:],
            "size": self.arrays["box.size"][n].tolist(),
            "num_lidar_pts": num_lidar_pts,
        }


def read_index(root: Path, version: str) -> Index | None:
    """The index of a data set; None where there is none that is whole and up to date, which is logged."""
    found = _read_valid(index_path(root, version), root, version)
    if found is None:
        return None
    header, arrays = found
    return Index(
        root=root,
        channels=dict(header["channels"]),
        scene_names=list(header["scenes"]),
        calibrations=[
            (np.array(sensor2ego, dtype=np.float64), None if k is None else np.array(k, dtype=np.float64))
            for sensor2ego, k in header["calibrations"]
        ],
        arrays=arrays,
    )


def read_boxes(root: Path, version: str) -> BoxIndex | None:
    """The boxes of a data set; None where there is no file that is whole and up to date, which is logged."""
    found = _read_valid(boxes_path(root, version), root, version)
    if found is None:
        return None
    header, arrays = found
    ranges = [(first, end) for first, end in arrays["sample.boxes"].tolist()]
    tokens = _texts(arrays["sample.token"])
    return BoxIndex(categories=header["categories"], ranges=dict(zip(tokens, ranges, strict=True)), arrays=arrays)


def write_index(tables: Tables, state: dict[str, list[int]]) -> Path:
    """Write the boxes and the index of a data set; each appears under its name only when it is whole.

    Args:
        tables: of the data set.
        state: of the files that the tables were read from, taken before they were.

    Returns:
        The file of the index.

    Raises:
        OSError: the folder cannot be written.
        ValueError: a record is broken, or a text holds a zero byte.
    """
    channels = {channel for channel, modality in tables.channels.items() if modality in INDEXED}
    arrays, calibrations = _arrays(tables, tables.keyframes(tables.scene_names, channels))
    header = {"layout": LAYOUT, "version": tables.version, "tables": state}
    boxes, categories = _box_arrays(tables)
    _write(boxes_path(tables.root, tables.version), {**header, "categories": categories}, boxes)
    header |= {
        "channels": list(tables.channels.items()),
        "scenes": tables.scene_names,
        "calibrations": calibrations,
    }
    path = index_path(tables.root, tables.version)
    _write(path, header, arrays)
    return path


def _write(path: Path, header: dict[str, Any], arrays: Arrays) -> None:
    text = json.dumps(header)
    path.parent.mkdir(exist_ok=True)
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        waiting.write_bytes(save(arrays, {"index": text, "digest": _digest(text, arrays)}))
        waiting.replace(path)
    except OSError:
        waiting.unlink(missing_ok=True)
        raise


def _box_arrays(tables: Tables) -> tuple[Arrays, list[str]]:
    """The columns of all boxes, sample after sample, and the names of their categories."""
    samples = list(tables.annotations())
    rows = [row for _, of_sample in samples for row in of_sample]
    ends = np.cumsum([len(of_sample) for _, of_sample in samples], dtype=np.int64)
    categories = {name: n for n, name in enumerate(dict.fromkeys(row["category_name"] for row in rows))}
    numbers = [(categories[row["category_name"]], int(row["num_lidar_pts"])) for row in rows]
    arrays: Arrays = {
        "sample.token": _bytes(token for token, _ in samples),
        "sample.boxes": _ranges(ends),
        "box.numbers": np.array(numbers, np.int64).reshape(-1, 2),
        "box.pose": np.array([[*r["rotation"], *r["translation"]] for r in rows], np.float64).reshape(-1, 7),
        "box.size": np.array([r["size"] for r in rows], np.float64).reshape(-1, 3),
    }
    for name, key in (("box.token", "token"), ("box.instance", "instance_token")):
        arrays[name] = _bytes(row[key] for row in rows)
        arrays[f"{name}.zeros"] = np.flatnonzero(arrays[name] == 0).astype(np.int64)
    return arrays, list(categories)


def _arrays(tables: Tables, keyframes: Sequence[Keyframe]) -> tuple[Arrays, list[list[object]]]:
    """The columns of all keyframes and records, and the calibrations as rows of numbers."""
    channels = {channel: n for n, channel in enumerate(tables.channels)}
    scenes = {name: n for n, name in enumerate(tables.scene_names)}
    records = [record for keyframe in keyframes for record in keyframe.records.values()]
    ends = np.cumsum([len(keyframe.records) for keyframe in keyframes], dtype=np.int64)
    # Tables gives all records of one calibration the same array.
    calibrated = {id(record.sensor2ego): record for record in records}
    number = {key: n for n, key in enumerate(calibrated)}
    calibrations: list[list[object]] = [
        [r.sensor2ego.tolist(), None if r.intrinsics is None else r.intrinsics.tolist()] for r in calibrated.values()
    ]
    numbers = [(channels[r.channel], number[id(r.sensor2ego)], r.stamp_ns, r.width, r.height) for r in records]
    arrays: Arrays = {
        "keyframe.token": _bytes(k.token for k in keyframes),
        "keyframe.scene": np.array([scenes[k.scene] for k in keyframes], np.int64),
        "keyframe.position": np.array([k.position for k in keyframes], np.int64),
        "keyframe.stamp_ns": np.array([k.stamp_ns for k in keyframes], np.int64),
        "keyframe.records": _ranges(ends),
        "record.token": _bytes(r.token for r in records),
        "record.file": _bytes(r.path.relative_to(tables.root).as_posix() for r in records),
        "record.numbers": np.array(numbers, np.int64).reshape(-1, 5),
        "record.ego2global": np.array([r.ego2global for r in records], np.float64).reshape(-1, 4, 4),
    }
    return arrays, calibrations


def _read_valid(path: Path, root: Path, version: str) -> tuple[dict[str, Any], Arrays] | None:
    if not path.is_file():
        logger.info("no index %s: reading the tables; `fusionocc prepare` makes one for quick opening", path)
        return None
    try:
        header, arrays = _read(path)
        stale = _reason_not_to_use(header, root, version)
        if stale is None:
            return header, arrays
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        stale = f"it is damaged ({error})"
    logger.warning("index %s is not used: %s; reading the tables. `fusionocc prepare` makes a new one", path, stale)
    return None


def _read(path: Path) -> tuple[dict[str, Any], Arrays]:
    with safe_open(path, framework="numpy") as file:
        told = file.metadata() or {}
        arrays: Arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if told["digest"] != _digest(told["index"], arrays):
        raise ValueError("content and digest differ")
    return json.loads(told["index"]), arrays


def _reason_not_to_use(header: dict[str, Any], root: Path, version: str) -> str | None:
    if header["layout"] != LAYOUT:
        return f"it has layout {header['layout']}, this program reads {LAYOUT}"
    if header["version"] != version:
        return f"it is of {header['version']}"
    state = table_state(root, version)
    changed = [table for table in TABLES if state[table] != header["tables"].get(table)]
    return f"changed since: {', '.join(f'{table}.json' for table in changed)}" if changed else None


def _digest(text: str, arrays: Arrays) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _bytes(texts: Iterable[str]) -> NDArray[np.uint8]:
    """The texts, each ended by a zero byte."""
    parts = list(texts)
    if any("\0" in part for part in parts):
        raise ValueError("a token or file name in the tables holds a zero byte")
    return np.frombuffer("".join(f"{part}\0" for part in parts).encode(), np.uint8)


def _texts(array: NDArray[np.generic]) -> list[str]:
    return array.tobytes().decode().split("\0")[:-1]


def _text(arrays: Arrays, name: str, n: int) -> str:
    """One of the texts, where all of them as objects would take much memory."""
    zeros = arrays[f"{name}.zeros"]
    first = int(zeros[n - 1]) + 1 if n else 0
    return arrays[name][first : int(zeros[n])].tobytes().decode()


def _ranges(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K, 2) first rows and ends of parts that follow each other."""
    return np.stack([np.concatenate([np.zeros(1, np.int64), ends])[: len(ends)], ends], axis=1)

"""nuScenes tables, checked and turned into plain records that need no devkit object.

The format is that of nuscenes-devkit (schema v1.0). Quaternions are wxyz, stamps in the tables are microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import transform_from_wxyz

TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)
"""The 13 tables that nuscenes-devkit loads, each ``<root>/<version>/<table>.json``."""

INSTALL = 'pip install "nuscenes-devkit==1.2.0" "numpy<2"'


@dataclass(frozen=True, kw_only=True, slots=True)
class SensorRecord:
    """One file that one sensor wrote, with its calibration and the ego pose at its own stamp."""

    token: str
    channel: str
    modality: str
    """"camera", "lidar" or "radar"."""
    path: Path
    stamp_ns: int
    is_key_frame: bool
    sensor2ego: NDArray[np.float64]
    """(4, 4); a camera's own frame is optical (x right, y down, z forward)."""
    ego2global: NDArray[np.float64]
    """(4, 4) at ``stamp_ns``."""
    intrinsics: NDArray[np.float64] | None
    """(3, 3) pixels; None for what is not a camera."""
    width: int
    """Of the picture, pixels; 0 where the table does not say."""
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Keyframe:
    """One annotated moment: a row of the table ``sample`` with the records of its cameras and LiDARs."""

    token: str
    scene: str
    position: int
    """0 for the first keyframe of its scene."""
    stamp_ns: int
    records: dict[str, SensorRecord]
    """Channel -> record, of the channels that were asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """An annotated object, as an oriented box in the frame that was asked for."""

    center: NDArray[np.float64]
    """(3,) metres."""
    size_lwh: NDArray[np.float64]
    """(3,) length along the box's x, width along y, height along z, metres."""
    rotation: NDArray[np.float64]
    """(3, 3), box axes -> frame."""
    name: str
    """Category name, such as "vehicle.car"."""
    token: str
    instance: str
    """The same for one object over all keyframes of a scene."""
    num_lidar_pts: int
    """How many points of the keyframe's LiDAR sweep the annotators counted inside."""

    def contains(self, points: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which of the points (P, 3 or more), in the box's frame of reference, lie inside or on the box."""
        local = (np.asarray(points, dtype=np.float64)[:, :3] - self.center) @ self.rotation
        return np.asarray((np.abs(local) <= self.size_lwh / 2).all(axis=1))


def find_version(root: Path, version: str | None) -> str:
    """The name of the folder under ``root`` that holds the tables.

    Raises:
        FileNotFoundError: root or the version's folder is absent, or a table is.
        ValueError: version is None and root holds several.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root={str(root)!r}: no such folder; expected a data set in nuScenes format")
    if version is None:
        version = _only_version(root)
    folder = root / version
    if not folder.is_dir():
        raise FileNotFoundError(
            f"version={version!r}: no folder {folder}; {root} holds tables in {_versions(root) or 'no folder'}"
        )
    missing = [f"{table}.json" for table in TABLES if not (folder / f"{table}.json").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of the {len(TABLES)} tables are missing: {', '.join(missing)}; "
            "extract the metadata archive of the data set again"
        )
    return version


def _versions(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/sample_data.json"))


def _only_version(root: Path) -> str:
    found = _versions(root)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"root={str(root)!r} holds several versions: {', '.join(found)}; choose one with version=")
    if (root / "sample_data.json").is_file():
        raise ValueError(
            f"root={str(root)!r} is itself a folder of tables; give its parent as root and version={root.name!r}"
        )
    entries = sorted(path.name for path in root.iterdir())
    raise FileNotFoundError(
        f"root={str(root)!r}: no folder in it holds nuScenes tables (<version>/sample_data.json and 12 more); "
        f"it holds {', '.join(entries[:12]) or 'nothing'}"
    )


class Tables:
    """The tables of one version, through nuscenes-devkit.

    Raises:
        ModuleNotFoundError: nuscenes-devkit is not installed.
        FileNotFoundError: a table or a map picture is missing.
        ValueError: a table is not valid JSON or does not fit the others.
    """

    def __init__(self, root: Path, version: str) -> None:
        self.root, self.version = root, version
        self._devkit = _open_devkit(root, version)
        self._calibrations: dict[str, tuple[NDArray[np.float64], NDArray[np.float64] | None]] = {}

    @property
    def channels(self) -> dict[str, str]:
        """Channel -> modality of every sensor in the data set."""
        return {row["channel"]: row["modality"] for row in self._devkit.sensor}

    @property
    def scene_names(self) -> list[str]:
        """Names of all scenes, in the table's order."""
        return [row["name"] for row in self._devkit.scene]

    def keyframes(self, scenes: list[str], channels: set[str]) -> list[Keyframe]:
        """The keyframes of the scenes with the records of the channels, scene after scene, in the order of time."""
        wanted = set(scenes)
        names = {row["token"]: row["name"] for row in self._devkit.scene if row["name"] in wanted}
        samples: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
        for row in self._devkit.sample:
            if row["scene_token"] in names:
                samples[names[row["scene_token"]]].append(row)
        for rows in samples.values():
            rows.sort(key=lambda row: row["timestamp"])
        ordered = sorted((rows[0]["timestamp"], name) for name, rows in samples.items() if rows)
        return [
            self._keyframe(name, position, row, channels)
            for _, name in ordered
            for position, row in enumerate(samples[name])
        ]

    def _keyframe(self, scene: str, position: int, row: dict[str, Any], channels: set[str]) -> Keyframe:
        tokens = (token for channel, token in row["data"].items() if channel in channels)
        records = [self.record(self._get("sample_data", token, f"sample {row['token']}")) for token in tokens]
        return Keyframe(
            token=row["token"],
            scene=scene,
            position=position,
            stamp_ns=int(row["timestamp"]) * 1000,
            records={record.channel: record for record in records},
        )

    def _get(self, table: str, token: str, of: str) -> dict[str, Any]:
        try:
            return dict(self._devkit.get(table, token))
        except KeyError as error:
            raise ValueError(
                f"{of} names {table} {token}, which {self.root / self.version / table}.json does not hold; "
                "extract the data set's metadata again"
            ) from error

    def record(self, row: dict[str, Any]) -> SensorRecord:
        """The plain record of a row of ``sample_data``."""
        pose = self._get("ego_pose", row["ego_pose_token"], f"sample_data {row['token']}")
        sensor2ego, intrinsics = self._calibration(
            row["calibrated_sensor_token"], row["channel"], row["sensor_modality"]
        )
        return SensorRecord(
            token=row["token"],
            channel=row["channel"],
            modality=row["sensor_modality"],
            path=self.root / row["filename"],
            stamp_ns=int(row["timestamp"]) * 1000,
            is_key_frame=bool(row["is_key_frame"]),
            sensor2ego=sensor2ego,
            ego2global=_pose(f"ego_pose {pose['token']} of {row['channel']}", pose),
            intrinsics=intrinsics,
            width=int(row.get("width") or 0),
            height=int(row.get("height") or 0),
        )

    def _calibration(
        self, token: str, channel: str, modality: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """sensor2ego and intrinsics; records of one sensor share the arrays."""
        if token not in self._calibrations:
            row = self._devkit.get("calibrated_sensor", token)
            name = f"calibrated_sensor {token} of {channel}"
            intrinsics = _intrinsics(name, row["camera_intrinsic"]) if modality == "camera" else None
            self._calibrations[token] = (_pose(name, row), intrinsics)
        return self._calibrations[token]

    @cached_property
    def _rows_of_scene(self) -> dict[str, list[dict[str, Any]]]:
        names = {row["token"]: row["name"] for row in self._devkit.scene}
        scene_of = {row["token"]: names[row["scene_token"]] for row in self._devkit.sample}
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
        for row in self._devkit.sample_data:
            rows[scene_of[row["sample_token"]]].append(row)
        return rows

    def sensor_records(self, scene: str, channels: set[str]) -> Iterator[SensorRecord]:
        """Every file of the channels in the scene, keyframes and the sweeps between them, in the order of time."""
        for row in sorted(self._rows_of_scene[scene], key=lambda row: (row["timestamp"], row["channel"])):
            if row["channel"] in channels:
                yield self.record(row)

    def boxes(self, sample_token: str, global2frame: NDArray[np.float64]) -> list[Box]:
        """The annotated boxes of a keyframe, brought from the global frame to another."""
        rows = [self._devkit.get("sample_annotation", t) for t in self._devkit.get("sample", sample_token)["anns"]]
        return [box_in_frame(row, global2frame) for row in rows]

    def annotations(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The token of every sample with the rows of its boxes."""
        for row in self._devkit.sample:
            yield row["token"], [self._devkit.get("sample_annotation", token) for token in row["anns"]]


def box_in_frame(row: dict[str, Any], global2frame: NDArray[np.float64]) -> Box:
    """The box of a row of ``sample_annotation``, brought from the global frame to another."""
    box2frame = global2frame @ _pose(f"sample_annotation {row['token']}", row)
    width, length, height = row["size"]
    return Box(
        center=box2frame[:3, 3],
        size_lwh=np.array([length, width, height], dtype=np.float64),
        rotation=box2frame[:3, :3],
        name=row["category_name"],
        token=row["token"],
        instance=row["instance_token"],
        num_lidar_pts=int(row["num_lidar_pts"]),
    )


def _pose(name: str, row: dict[str, Any]) -> NDArray[np.float64]:
    try:
        return np.asarray(transform_from_wxyz(row["rotation"], row["translation"]), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _intrinsics(name: str, rows: list[list[float]]) -> NDArray[np.float64]:
    k = np.asarray(rows, dtype=np.float64)
    if k.shape != (3, 3) or not np.isfinite(k).all() or k[0, 0] <= 0 or k[1, 1] <= 0:
        raise ValueError(
            f"{name}: camera_intrinsic={rows}; expected a 3x3 matrix with positive focal lengths (pixels) in "
            "[0][0] and [1][1]: calibrate the camera, or leave it out with cameras="
        )
    return k


def _open_devkit(root: Path, version: str) -> Any:
    try:
        from nuscenes.nuscenes import NuScenes
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"reading nuScenes data needs nuscenes-devkit ({error}): {INSTALL}") from error
    folder = root / version
    maps = _read_json(folder / "map.json")
    absent = [row["filename"] for row in maps if not (root / row["filename"]).is_file()]
    if absent or not maps:
        raise FileNotFoundError(
            f"{folder / 'map.json'} lists {absent[0] if absent else 'no map'}"
            + (f", which is not under {root}" if absent else "")
            + "; nuscenes-devkit needs a map picture for every log (a blank PNG is enough)"
        )
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except ValueError:
        for table in TABLES:
            _read_json(folder / f"{table}.json")
        raise
    except (KeyError, AssertionError) as error:
        raise ValueError(
            f"{folder}: the tables do not fit together ({type(error).__name__}: {error}); a token that one table names "
            "is missing in another, or lidarseg files and their table differ: extract the data set's archives again"
        ) from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not valid JSON ({error}); "
            "it is truncated or damaged: extract it again"
        ) from error


def scenes_of_split(folder: Path, scene_names: list[str], split: str) -> list[str]:
    """Those of the scenes that are in an official split, or in one of the tables' ``splits.json``.

    Args:
        folder: of the tables.
        scene_names: of the data set.
        split: name.

    Raises:
        ModuleNotFoundError: nuscenes-devkit, which knows the official splits, is not installed.
        ValueError: no such split, or none of its scenes is here.
    """
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the official splits need nuscenes-devkit ({error}): {INSTALL}") from error

    splits: dict[str, list[str]] = dict(create_splits_scenes())
    custom = folder / "splits.json"
    if custom.is_file():
        splits.update(_read_json(custom))
    if split not in splits:
        raise ValueError(
            f"split={split!r}: expected one of {', '.join(splits)}; own splits go to {custom} as "
            '{"name": ["scene", ...]}'
        )
    members = set(splits[split])
    chosen = [name for name in scene_names if name in members]
    if not chosen:
        raise ValueError(
            f"split={split!r}: none of its {len(members)} scenes is in {folder}, which holds "
            f"{shorten(scene_names)}; leave split out, or list scenes="
        )
    return chosen


def shorten(names: list[str], most: int = 12) -> str:
    """The names for a message, the first ``most`` of them."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

"""Calibration from a YAML file, for rigs without /tf_static (or with a CameraInfo that is not to be trusted).

    base_frame: base_link
    lidar: {frame_id: lidar_top, translation: [0.94, 0.0, 1.84], rotation_xyzw: [0.0, 0.0, -0.7071, 0.7071]}
    cameras:
      CAM_FRONT:
        frame_id: cam_front
        translation: [1.7, 0.0, 1.5]
        rotation_xyzw: [-0.5, 0.5, -0.5, 0.5]
        intrinsics: {width: 1600, height: 900, fx: 1266.0, fy: 1266.0, cx: 800.0, cy: 450.0}
    lidars:
      LIDAR_REAR: {frame_id: lidar_rear, translation: [-0.5, 0.0, 0.6], rotation_xyzw: [0.0, 0.0, 0.0, 1.0]}

Translation (metres) and rotation map points from the sensor to ``base_frame``; a camera's frame is optical (x right, y
down, z forward). ``intrinsics`` may be left out: then CameraInfo is asked. Where the pictures are distorted, it also
holds ``distortion_model`` (plumb_bob, rational_polynomial, equidistant) and the coefficients ``distortion: [...]``;
what is done about it is parameter ``distortion``. ``lidar``, ``cameras`` and ``lidars`` (further LiDARs) may be left
out by those that have none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray

from fusionocc_core.geometry import rotation_from_quaternion_xyzw, transform
from fusionocc_ros.lenses import Calibration
from fusionocc_ros.sync import LIDAR

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Mount:
    """Where a sensor sits."""

    frame_id: str
    sensor2base: Matrix


@dataclass(frozen=True, kw_only=True)
class Rig:
    """The sensors of a vehicle."""

    base_frame: str
    lidars: dict[str, Mount]
    """By name; that of the first is sync.LIDAR."""
    cameras: dict[str, Mount]
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    """Of the cameras whose intrinsics the file gives."""


def load_rig(path: str | Path) -> Rig:
    """Read a rig file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not of the form above; names the file, the entry and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"rig_file: there is no file {path.absolute()}")
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    entries = _keys(tree, f"{path}", required=("base_frame",), optional=("lidar", "cameras", "lidars"))
    if len(entries) < 2:
        raise ValueError(f"{path}: expected lidar, cameras or lidars beside base_frame: it places no sensor")
    cameras, calibrations = {}, {}
    lidars = {LIDAR: _mount(entries["lidar"], f"{path}: lidar")} if "lidar" in entries else {}
    for name, entry in _named(entries, "lidars", path).items():
        lidars[str(name)] = _mount(entry, f"{path}: lidars.{name}")
    for name, entry in _named(entries, "cameras", path).items():
        where = f"{path}: cameras.{name}"
        cameras[str(name)] = _mount(entry, where, optional=("intrinsics",))
        if "intrinsics" in entry:
            calibrations[str(name)] = _calibration(entry["intrinsics"], f"{where}.intrinsics")
    return Rig(
        base_frame=str(entries["base_frame"]),
        lidars=lidars,
        cameras=cameras,
        calibrations=calibrations,
    )


def _named(entries: dict[str, Any], key: str, path: Path) -> dict[Any, Any]:
    if key not in entries:
        return {}
    if not isinstance(entries[key], dict) or not entries[key]:
        raise ValueError(f"{path}: {key}: expected names with an entry each, got {entries[key]!r}")
    return dict(entries[key])


def _keys(entry: Any, where: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected the keys {', '.join(required)}, got {entry!r}")
    missing = [key for key in required if key not in entry]
    unknown = [key for key in entry if key not in (*required, *optional)]
    if missing or unknown:
        raise ValueError(
            f"{where}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}; expected "
            f"{', '.join(required)}" + (f" and perhaps {', '.join(optional)}" if optional else "")
        )
    return entry


def _numbers(value: Any, count: int, where: str) -> list[float]:
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != count:
        raise ValueError(f"{where}: expected {count} numbers, got {value!r}")
    return [float(v) for v in value]


def _mount(entry: Any, where: str, *, optional: tuple[str, ...] = ()) -> Mount:
    entry = _keys(entry, where, required=("frame_id", "translation", "rotation_xyzw"), optional=optional)
    try:
        rotation = rotation_from_quaternion_xyzw(_numbers(entry["rotation_xyzw"], 4, f"{where}.rotation_xyzw"))
        matrix = transform(rotation, _numbers(entry["translation"], 3, f"{where}.translation"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where not in str(error) else str(error)) from error
    return Mount(frame_id=str(entry["frame_id"]), sensor2base=matrix)


def _calibration(entry: Any, where: str) -> Calibration:
    needed = ("width", "height", "fx", "fy", "cx", "cy")
    entry = _keys(entry, where, required=needed, optional=("distortion_model", "distortion"))
    width, height, fx, fy, cx, cy = _numbers([entry[k] for k in needed], 6, where)
    if min(width, height, fx, fy) <= 0:
        raise ValueError(f"{where}: width, height, fx and fy must be positive, got {entry!r}")
    model, distortion = str(entry.get("distortion_model", "")), entry.get("distortion", [])
    if bool(model) != bool(distortion):
        raise ValueError(f"{where}: distortion_model and distortion belong together, got {entry!r}")
    k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    return Calibration(
        size=(int(height), int(width)),
        k=k,
        p=np.c_[k, np.zeros(3)],
        r=np.eye(3),
        model=model,
        distortion=tuple(_numbers(distortion, len(distortion), f"{where}.distortion")) if distortion else (),
    )

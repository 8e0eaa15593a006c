"""Sensor rigs: the two nuScenes vehicles, and rigs from a YAML file.

Calibration numbers: nuScenes calibrated_sensor rows of the vehicles n015 (Singapore) and n008 (Boston), rounded to the
digits below. Timing model: nuScenes' LiDAR head turns clockwise from its own left at 20 Hz and each camera is triggered
when the beam passes the centre of its picture.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import transform_from_wxyz

SWEEP_S = 0.05
"""One turn of the LiDAR's head, seconds."""
CAMERA_LATENCY_S = 0.0023
"""Mean delay between the beam passing a camera's axis and the camera's stamp, seconds."""
NUSCENES_SIZE = (900, 1600)


@dataclass(frozen=True, kw_only=True)
class CameraMount:
    """One camera: where it sits and how it projects."""

    name: str
    image_size: tuple[int, int]
    """(H, W), pixels."""
    intrinsics: tuple[float, float, float, float]
    """fx, fy, cx, cy, pixels at ``image_size``."""
    translation: tuple[float, float, float]
    """Of the optical centre in the ego frame, metres."""
    rotation_wxyz: tuple[float, float, float, float]
    """Camera (x right, y down, z forward) to ego."""

    @property
    def cam2ego(self) -> NDArray[np.float64]:
        """(4, 4)."""
        return transform_from_wxyz(self.rotation_wxyz, self.translation)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Intrinsic matrix (3, 3)."""
        fx, fy, cx, cy = self.intrinsics
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])

    def resized(self, image_size: tuple[int, int]) -> CameraMount:
        """The same field of view on another number of pixels."""
        sy, sx = image_size[0] / self.image_size[0], image_size[1] / self.image_size[1]
        fx, fy, cx, cy = self.intrinsics
        return replace(self, image_size=image_size, intrinsics=(fx * sx, fy * sy, cx * sx, cy * sy))


@dataclass(frozen=True, kw_only=True)
class LidarMount:
    """A spinning LiDAR: where it sits and its beams. Its axes: x right, y forward, z up (as LIDAR_TOP)."""

    name: str = "LIDAR_TOP"
    translation: tuple[float, float, float]
    """In the ego frame, metres."""
    rotation_wxyz: tuple[float, float, float, float]
    """LiDAR to ego."""
    rings: int = 32
    lowest_deg: float = -30.67
    """Elevation of ring 0."""
    step_deg: float = 4.0 / 3.0
    """Elevation from one ring to the next."""
    columns: int = 1084
    """Firings in one turn."""
    max_range: float = 105.0

    @property
    def lidar2ego(self) -> NDArray[np.float64]:
        """(4, 4)."""
        return transform_from_wxyz(self.rotation_wxyz, self.translation)

    @property
    def elevations(self) -> NDArray[np.float64]:
        """(rings,) radians, lowest first."""
        return np.deg2rad(self.lowest_deg + self.step_deg * np.arange(self.rings))

    @property
    def azimuths(self) -> NDArray[np.float64]:
        """(columns,) radians from the LiDAR's +x towards +y; the head starts at its left (-x) and turns clockwise."""
        return np.pi - 2 * np.pi * (np.arange(self.columns) + 0.5) / self.columns


@dataclass(frozen=True, kw_only=True)
class Rig:
    """All sensors of a vehicle."""

    name: str
    cameras: tuple[CameraMount, ...]
    lidar: LidarMount
    left_hand_traffic: bool = False
    location: str = "simulated-street"

    def camera_lead_s(self, camera: CameraMount) -> float:
        """Mean of (camera stamp - LiDAR stamp), seconds; negative, as the LiDAR is stamped at the end of its turn."""
        axis = np.linalg.inv(self.lidar.lidar2ego)[:3, :3] @ camera.cam2ego[:3, :3] @ np.array([0.0, 0.0, 1.0])
        turned = ((180.0 - np.degrees(np.arctan2(axis[1], axis[0]))) % 360.0) / 360.0
        return float(SWEEP_S * (turned - 1.0) + CAMERA_LATENCY_S)

    def resized(self, image_size: tuple[int, int] | None) -> Rig:
        """All cameras at (H, W), or unchanged for None."""
        if image_size is None:
            return self
        return replace(self, cameras=tuple(camera.resized(image_size) for camera in self.cameras))


_Row = tuple[str, tuple[float, ...], tuple[float, ...], float, float, float]
_SINGAPORE: tuple[_Row, ...] = (
    (
        "FRONT_LEFT",
        (1.52388, 0.49463, 1.50933),
        (0.675727, -0.673627, 0.212140, -0.211228),
        1272.5979,
        826.6155,
        479.7517,
    ),
    ("FRONT", (1.70079, 0.01595, 1.51096), (0.499802, -0.503032, 0.499780, -0.497371), 1266.4172, 816.2670, 491.5071),
    (
        "FRONT_RIGHT",
        (1.55085, -0.49340, 1.49575),
        (0.206035, -0.202694, 0.682451, -0.671361),
        1260.8474,
        807.9682,
        495.3344,
    ),
    (
        "BACK_RIGHT",
        (1.01488, -0.48057, 1.56240),
        (0.122810, -0.132401, -0.700431, 0.690496),
        1259.5137,
        807.2529,
        501.1958,
    ),
    ("BACK", (0.02833, 0.00345, 1.57910), (0.503787, -0.497402, -0.494185, 0.504550), 809.2210, 829.2196, 481.7784),
    (
        "BACK_LEFT",
        (1.03569, 0.48480, 1.59097),
        (0.692419, -0.703162, -0.116483, 0.112033),
        1256.7415,
        792.1126,
        492.7757,
    ),
)
_BOSTON: tuple[_Row, ...] = (
    (
        "FRONT_LEFT",
        (1.57528, 0.50052, 1.50696),
        (0.681209, -0.668751, 0.210170, -0.211082),
        1257.8625,
        827.2411,
        450.9155,
    ),
    ("FRONT", (1.72201, 0.00475, 1.49491), (0.507724, -0.497339, 0.498372, -0.496483), 1252.8131, 826.5881, 469.9847),
    (
        "FRONT_RIGHT",
        (1.58083, -0.49908, 1.51749),
        (0.203352, -0.191463, 0.678571, -0.679361),
        1256.7485,
        817.7888,
        451.9542,
    ),
    (
        "BACK_RIGHT",
        (1.05945, -0.46720, 1.55051),
        (0.138192, -0.137967, -0.689333, 0.697630),
        1249.9629,
        825.3768,
        462.5482,
    ),
    ("BACK", (0.05525, 0.01079, 1.56794), (0.506800, -0.497757, -0.498785, 0.496594), 796.8911, 857.7774, 476.8849),
    (
        "BACK_LEFT",
        (1.04852, 0.48306, 1.56210),
        (0.704862, -0.690730, -0.112091, 0.116173),
        1254.9861,
        829.5769,
        467.1681,
    ),
)
"""Camera, translation, rotation (wxyz), focal length, principal point of the vehicles n015 and n008."""


def _camera(
    name: str, translation: Sequence[float], wxyz: Sequence[float], f: float, cx: float, cy: float
) -> CameraMount:
    """A nuScenes camera: square pixels, 1600x900."""
    tx, ty, tz = translation
    w, x, y, z = wxyz
    return CameraMount(
        name=f"CAM_{name}",
        image_size=NUSCENES_SIZE,
        intrinsics=(f, f, cx, cy),
        translation=(tx, ty, tz),
        rotation_wxyz=(w, x, y, z),
    )


def nuscenes_singapore() -> Rig:
    """Vehicle n015."""
    cameras = tuple(_camera(*row) for row in _SINGAPORE)
    lidar = LidarMount(translation=(0.943713, 0.0, 1.84023), rotation_wxyz=(0.707796, -0.006492, 0.010646, -0.706307))
    return Rig(
        name="nuscenes-singapore", cameras=cameras, lidar=lidar, left_hand_traffic=True, location="singapore-simulated"
    )


def nuscenes_boston() -> Rig:
    """Vehicle n008."""
    cameras = tuple(_camera(*row) for row in _BOSTON)
    lidar = LidarMount(translation=(0.985793, 0.0, 1.84019), rotation_wxyz=(0.706749, -0.015301, 0.017397, -0.707085))
    return Rig(name="nuscenes-boston", cameras=cameras, lidar=lidar, location="boston-simulated")


BUILT_IN_RIGS = ("nuscenes-singapore", "nuscenes-boston")


def load_rig(rig: str) -> Rig:
    """A built-in rig by name, or one from a YAML file.

    Raises:
        ValueError: unknown name (the nearest ones are named), or a file whose content is not a rig.
        FileNotFoundError: a path ending in .yaml or .yml that does not exist.
    """
    if rig == "nuscenes-singapore":
        return nuscenes_singapore()
    if rig == "nuscenes-boston":
        return nuscenes_boston()
    path = Path(rig)
    if path.suffix.lower() in (".yaml", ".yml"):
        if not path.is_file():
            raise FileNotFoundError(f"rig file {path} does not exist")
        return rig_from_yaml(path)
    near = difflib.get_close_matches(rig, BUILT_IN_RIGS, n=2, cutoff=0.3) or list(BUILT_IN_RIGS)
    raise ValueError(f"rig {rig!r} is not known; nearest: {', '.join(near)}; or give a rig file FILE.yaml")


def rig_from_yaml(path: Path) -> Rig:
    """Read a rig file; the keys are described in docs/simulation.md.

    Raises:
        ValueError: no cameras, a missing key, or a value of the wrong shape; names the file and the key.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise ValueError(f"{path}: expected a mapping with the keys cameras and lidar, got {type(data).__name__}")
    entries = data.get("cameras") or []
    if not entries:
        raise ValueError(f"{path}: zero cameras; a rig needs at least one entry under `cameras`")
    cameras = tuple(_camera_from_yaml(path, k, entry) for k, entry in enumerate(entries))
    names = [camera.name for camera in cameras]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: camera names must differ, got {names}")
    return Rig(
        name=str(data.get("name", path.stem)),
        cameras=cameras,
        lidar=_lidar_from_yaml(path, data.get("lidar")),
        left_hand_traffic=bool(data.get("left_hand_traffic", False)),
        location=str(data.get("location", "simulated-street")),
    )


def _numbers(where: str, entry: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    """``count`` finite numbers under ``key``."""
    value = entry.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        raise ValueError(f"{where}: {key} must be a list of {count} numbers, got {value!r}")
    numbers = tuple(float(number) for number in value)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{where}: {key} holds numbers that are not finite: {value!r}")
    return numbers


def _camera_from_yaml(path: Path, index: int, entry: Any) -> CameraMount:
    where = f"{path}: cameras[{index}]"
    if not isinstance(entry, Mapping) or not entry.get("name"):
        raise ValueError(f"{where}: expected a mapping with name, size, intrinsics, translation and rotation")
    where = f"{path}: camera {entry['name']}"
    width, height = _numbers(where, entry, "size", 2)
    fx, fy, cx, cy = _numbers(where, entry, "intrinsics", 4)
    if min(width, height) < 8 or min(fx, fy) <= 0:
        raise ValueError(f"{where}: size [{width}, {height}] and focal lengths [{fx}, {fy}] must be positive pixels")
    tx, ty, tz = _numbers(where, entry, "translation", 3)
    w, x, y, z = _numbers(where, entry, "rotation", 4)
    mount = CameraMount(
        name=str(entry["name"]),
        image_size=(int(height), int(width)),
        intrinsics=(fx, fy, cx, cy),
        translation=(tx, ty, tz),
        rotation_wxyz=(w, x, y, z),
    )
    _ = mount.cam2ego
    return mount


def _lidar_from_yaml(path: Path, entry: Any) -> LidarMount:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{path}: expected a mapping under `lidar` with translation and rotation, got {entry!r}")
    where = f"{path}: lidar"
    tx, ty, tz = _numbers(where, entry, "translation", 3)
    w, x, y, z = _numbers(where, entry, "rotation", 4)
    default = LidarMount(translation=(tx, ty, tz), rotation_wxyz=(w, x, y, z))
    mount = replace(
        default,
        name=str(entry.get("name", default.name)),
        rings=int(entry.get("rings", default.rings)),
        lowest_deg=float(entry.get("lowest_deg", default.lowest_deg)),
        step_deg=float(entry.get("step_deg", default.step_deg)),
        columns=int(entry.get("columns", default.columns)),
        max_range=float(entry.get("max_range", default.max_range)),
    )
    if min(mount.rings, mount.columns) < 1 or mount.max_range <= 0:
        raise ValueError(
            f"{where}: rings={mount.rings}, columns={mount.columns}, max_range={mount.max_range} must be positive"
        )
    _ = mount.lidar2ego
    return mount

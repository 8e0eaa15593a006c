"""Writes a tiny data set in nuScenes format: 13 tables, small pictures and clouds, for tests of whatever reads one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fusionocc_core.geometry import apply, quaternion_wxyz_from_rotation, rotation_from_yaw, transform

SIX_CAMERAS = {
    "CAM_FRONT": 0.0,
    "CAM_FRONT_LEFT": 55.0,
    "CAM_FRONT_RIGHT": -55.0,
    "CAM_BACK_LEFT": 110.0,
    "CAM_BACK_RIGHT": -110.0,
    "CAM_BACK": 180.0,
}
"""Channel -> yaw of the optical axis in the ego frame, degrees."""

TWO_SCENES = {"scene-0061": 4, "scene-0103": 1}
"""Scene name -> number of keyframes."""

KEYFRAME_US = 500_000
OPTICAL2EGO = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def token(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


@dataclass
class Tree:
    """A data set on disk, with handles to read and damage it."""

    root: Path
    version: str

    def table_path(self, table: str) -> Path:
        return self.root / self.version / f"{table}.json"

    def rows(self, table: str) -> list[dict[str, Any]]:
        return json.loads(self.table_path(table).read_text())

    def write(self, table: str, rows: list[dict[str, Any]]) -> None:
        self.table_path(table).write_text(json.dumps(rows))

    def channel_of(self, sample_data: dict[str, Any]) -> str:
        return sample_data["filename"].split("/")[1]

    def file(self, channel: str, keyframe: int = 0) -> Path:
        """The file of a channel in the n-th keyframe of the whole data set, by time."""
        rows = [r for r in self.rows("sample_data") if self.channel_of(r) == channel and r["is_key_frame"]]
        return self.root / sorted(rows, key=lambda r: r["timestamp"])[keyframe]["filename"]


def ego_pose_at(timestamp_us: int, scene_index: int) -> np.ndarray:
    """ego2global of a car that drives 8 m/s on a slight curve, with a little roll."""
    t = (timestamp_us % 100_000_000) * 1e-6
    roll = transform([[1, 0, 0], [0, np.cos(0.01), -np.sin(0.01)], [0, np.sin(0.01), np.cos(0.01)]], np.zeros(3))
    heading = rotation_from_yaw(0.3 * scene_index + 0.1 * t)
    return transform(heading, [600.0 + 8.0 * t, 1600.0 + 50.0 * scene_index, 0.0]) @ roll


def camera_pose(yaw_degrees: float) -> np.ndarray:
    """cam2ego of a camera 1.5 m above the ground that looks along ``yaw_degrees``."""
    heading = rotation_from_yaw(np.deg2rad(yaw_degrees))
    return transform(heading @ OPTICAL2EGO, heading @ [0.8, 0.0, 0.0] + [0.8, 0.0, 1.5])


LIDAR2EGO = transform(rotation_from_yaw(np.deg2rad(-90.0)), [0.94, 0.0, 1.84])
BOX_SIZE_WLH = (2.0, 4.0, 1.5)


def write_tree(
    root: Path,
    *,
    version: str = "v1.0-mini",
    scenes: dict[str, int] = TWO_SCENES,
    cameras: dict[str, float] = SIX_CAMERAS,
    lidars: tuple[str, ...] = ("LIDAR_TOP",),
    image_size: tuple[int, int] = (160, 90),
    sweeps: int = 0,
    seed: int = 0,
) -> Tree:
    """Write the data set; one box with counted points stands 10 m ahead of every keyframe.

    Args:
        root: the data set's folder, made if absent.
        version: name of the folder of tables.
        scenes: name -> number of keyframes.
        cameras: channel -> yaw in degrees.
        lidars: channels of the LiDARs.
        image_size: (width, height), pixels.
        sweeps: extra files of every sensor between two keyframes.
        seed: of the pictures and clouds.
    """
    builder = _Builder(root, cameras, lidars, image_size, sweeps, np.random.default_rng(seed))
    for index, (name, count) in enumerate(scenes.items()):
        builder.add_scene(index, name, count)
    tree = Tree(root, version)
    (root / version).mkdir(parents=True, exist_ok=True)
    (root / "maps").mkdir(exist_ok=True)
    cv2.imwrite(str(root / "maps" / "empty.png"), np.zeros((4, 4), np.uint8))
    for table, rows in builder.tables.items():
        tree.write(table, rows)
    return tree


class _Builder:
    def __init__(self, root, cameras, lidars, image_size, sweeps, rng) -> None:
        self.root, self.cameras, self.lidars, self.image_size = root, cameras, lidars, image_size
        self.sweeps, self.rng = sweeps, rng
        sensors = dict.fromkeys(cameras, "camera") | dict.fromkeys(lidars, "lidar") | {"RADAR_FRONT": "radar"}
        self.tables: dict[str, list[dict[str, Any]]] = {
            "attribute": [],
            "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
            "category": [{"token": token("category"), "name": "vehicle.car", "description": "", "index": 17}],
            "map": [
                {"token": token("map"), "log_tokens": [token("log")], "category": "", "filename": "maps/empty.png"}
            ],
            "log": [{"token": token("log"), "logfile": "n000", "vehicle": "n000", "date_captured": "", "location": ""}],
            "sensor": [{"token": token("sensor", c), "channel": c, "modality": m} for c, m in sensors.items()],
        }
        for table in ("scene", "sample", "sample_data", "sample_annotation", "instance", "ego_pose"):
            self.tables[table] = []
        self.tables["calibrated_sensor"] = [self.calibration(c, m) for c, m in sensors.items()]

    def calibration(self, channel: str, modality: str) -> dict[str, Any]:
        sensor2ego = camera_pose(self.cameras[channel]) if modality == "camera" else LIDAR2EGO
        width, height = self.image_size
        k = [[0.79 * width, 0.0, 0.51 * width], [0.0, 0.79 * width, 0.54 * height], [0.0, 0.0, 1.0]]
        return {
            "token": token("calibrated", channel),
            "sensor_token": token("sensor", channel),
            **pose_fields(sensor2ego),
            "camera_intrinsic": k if modality == "camera" else [],
        }

    def add_scene(self, index: int, name: str, count: int) -> None:
        start = 1_532_402_900_000_000 + index * 20_000_000
        samples = [token("sample", name, n) for n in range(count)]
        self.tables["scene"].append(
            {
                "token": token("scene", name),
                "name": name,
                "description": "",
                "log_token": token("log"),
                "nbr_samples": count,
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
            }
        )
        annotations = [token("annotation", name, n) for n in range(count)]
        self.tables["instance"].append(
            {
                "token": token("instance", name),
                "category_token": token("category"),
                "nbr_annotations": count,
                "first_annotation_token": annotations[0],
                "last_annotation_token": annotations[-1],
            }
        )
        for n in range(count):
            stamp = start + n * KEYFRAME_US
            links = {"prev": samples[n - 1] if n else "", "next": samples[n + 1] if n + 1 < count else ""}
            row = {"token": samples[n], "timestamp": stamp, "scene_token": token("scene", name), **links}
            self.tables["sample"].append(row)
            cloud = self.add_files(index, name, samples[n], stamp, is_key_frame=True)
            self.add_box(index, name, samples[n], annotations[n], stamp, cloud)
            for k in range(self.sweeps if n + 1 < count else 0):
                between = stamp + (k + 1) * KEYFRAME_US // (self.sweeps + 1)
                self.add_files(index, name, samples[n], between, is_key_frame=False)

    def add_files(self, index: int, scene: str, sample: str, stamp: int, *, is_key_frame: bool) -> np.ndarray | None:
        for n, channel in enumerate(self.cameras):
            # Cameras are exposed before the sweep ends, each at its own time.
            row = self.sample_data(index, scene, sample, channel, stamp - 5_000 * (n + 1), is_key_frame)
            self.write_picture(self.root / row["filename"])
        cloud = None
        for channel in self.lidars:
            row = self.sample_data(index, scene, sample, channel, stamp, is_key_frame)
            cloud = self.cloud()
            (self.root / row["filename"]).write_bytes(cloud.tobytes())
        row = self.sample_data(index, scene, sample, "RADAR_FRONT", stamp + 3_000, is_key_frame)
        (self.root / row["filename"]).write_bytes(b"radar")
        return cloud

    def sample_data(
        self, index: int, scene: str, sample: str, channel: str, stamp: int, is_key_frame: bool
    ) -> dict[str, Any]:
        name = token("sample_data", scene, channel, stamp)
        camera = channel in self.cameras
        suffix = "jpg" if camera else "pcd.bin" if channel in self.lidars else "pcd"
        folder = "samples" if is_key_frame else "sweeps"
        row = {
            "token": name,
            "sample_token": sample,
            "ego_pose_token": name,
            "calibrated_sensor_token": token("calibrated", channel),
            "filename": f"{folder}/{channel}/n000__{channel}__{stamp}.{suffix}",
            "fileformat": "jpg" if camera else "pcd",
            "width": self.image_size[0] if camera else 0,
            "height": self.image_size[1] if camera else 0,
            "timestamp": stamp,
            "is_key_frame": is_key_frame,
            "prev": "",
            "next": "",
        }
        self.tables["sample_data"].append(row)
        self.tables["ego_pose"].append({"token": name, "timestamp": stamp, **pose_fields(ego_pose_at(stamp, index))})
        (self.root / row["filename"]).parent.mkdir(parents=True, exist_ok=True)
        return row

    def write_picture(self, path: Path) -> None:
        width, height = self.image_size
        blocks = self.rng.integers(0, 256, (5, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(blocks, (width, height), interpolation=cv2.INTER_LINEAR))

    def cloud(self) -> np.ndarray:
        """Points on the ground and on walls around, in the LiDAR's axes, rings counted from below."""
        count = 32 * 40
        ring = np.arange(count) % 32
        azimuth = np.arange(count) // 32 * (2 * np.pi / 40)
        distance = self.rng.uniform(4.0, 35.0, count)
        height = np.tan(np.deg2rad(-30.0 + 1.33 * ring)) * distance
        columns = [
            distance * np.cos(azimuth),
            distance * np.sin(azimuth),
            height,
            self.rng.integers(0, 256, count),
            ring,
        ]
        return np.stack(columns, axis=1).astype("<f4")

    def add_box(
        self, index: int, scene: str, sample: str, annotation: str, stamp: int, cloud: np.ndarray | None
    ) -> None:
        box2ego = transform(rotation_from_yaw(0.5), [10.0, 1.0, 0.75])
        width, length, height = BOX_SIZE_WLH
        points = 0
        if cloud is not None:
            local = apply(np.linalg.inv(box2ego) @ LIDAR2EGO, cloud[:, :3].astype(np.float64))
            points = int((np.abs(local) <= np.array([length, width, height]) / 2).all(axis=1).sum())
        self.tables["sample_annotation"].append(
            {
                "token": annotation,
                "sample_token": sample,
                "instance_token": token("instance", scene),
                "attribute_tokens": [],
                "visibility_token": "4",
                **pose_fields(ego_pose_at(stamp, index) @ box2ego),
                "size": list(BOX_SIZE_WLH),
                "num_lidar_pts": points,
                "num_radar_pts": 0,
                "prev": "",
                "next": "",
            }
        )


def pose_fields(a2b: np.ndarray) -> dict[str, list[float]]:
    return {
        "translation": a2b[:3, 3].tolist(),
        "rotation": quaternion_wxyz_from_rotation(a2b[:3, :3]).tolist(),
    }

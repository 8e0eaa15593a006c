"""nuScenes' tables from the records of finished keyframes."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fusionocc_core.geometry import quaternion_wxyz_from_rotation
from fusionocc_core.simulation.config import SceneSpec, SimulationConfig, list_scenes
from fusionocc_core.simulation.files import HIDDEN, atomic_write, json_bytes, read_record
from fusionocc_core.simulation.keyframe import lidarseg_name
from fusionocc_core.simulation.materials import CATEGORY_NAMES, RAW
from fusionocc_core.simulation.randomness import token_for
from fusionocc_core.simulation.rigs import CameraMount, Rig
from fusionocc_core.simulation.spoil import written_cam2ego
from fusionocc_core.simulation.stage import MARGIN, log_name, stage_scene
from fusionocc_core.simulation.tracing import Tracer

Row = dict[str, Any]
ATTRIBUTES = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
VISIBILITY = (("1", "v0-40"), ("2", "v40-60"), ("3", "v60-80"), ("4", "v80-100"))
MAP_RESOLUTION = 0.1
"""Metres a pixel of a map mask, as nuscenes-devkit expects."""


class TableWriter:
    """Collects the rows of a whole data set."""

    def __init__(self, root: Path, config: SimulationConfig, rig: Rig) -> None:
        self.root, self.config, self.rig = root, config, rig
        self.rows: dict[str, list[Row]] = defaultdict(list)
        self.seed = config.seed
        self.occ3d: Row = {"train_split": [], "val_split": [], "scene_infos": {}}

    def token(self, kind: str, *index: object) -> str:
        """A token that belongs to no scene."""
        return token_for(self.seed, kind, *index)

    def write(self) -> None:
        """Make all tables and put them in place, the version folder last."""
        scenes = list_scenes(self.config)
        self._fixed_tables()
        for scene in scenes:
            self._scene(scene)
        version = scenes[0].version
        splits = {"sim_train": [s.name for s in scenes if s.split == "train"]}
        splits["sim_val"] = [s.name for s in scenes if s.split == "val"]
        self._publish_lidarseg()
        for name in TABLE_NAMES:
            atomic_write(self.root / version / f"{name}.json", json_bytes(self.rows[name]))
        atomic_write(self.root / version / "splits.json", json_bytes(splits))
        atomic_write(self.root / "gts" / "annotations.json", json_bytes(self.occ3d))

    def _publish_lidarseg(self) -> None:
        """Labels wait aside until the table that counts them is written."""
        for row in self.rows["lidarseg"]:
            waiting, target = self.root / HIDDEN / row["filename"], self.root / row["filename"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if waiting.is_file():
                waiting.replace(target)

    def _fixed_tables(self) -> None:
        add = self.rows
        for name in ATTRIBUTES:
            add["attribute"].append({"token": self.token("attribute", name), "name": name, "description": ""})
        for index, name in enumerate(CATEGORY_NAMES):
            row = {"token": self.token("category", name), "name": name, "description": "", "index": index}
            add["category"].append(row)
        for token, level in VISIBILITY:
            low, high = level[1:].split("-")
            description = f"visibility of whole object is between {low} and {high}%"
            add["visibility"].append({"token": token, "level": level, "description": description})
        for mount in self.rig.cameras:
            sensor = self._sensor(mount.name, "camera")
            self._calibration(mount.name, sensor, self._extrinsics(mount), mount.matrix.tolist())
        lidar = self.rig.lidar
        fixed = {"translation": list(lidar.translation), "rotation": _unit(lidar.rotation_wxyz)}
        self._calibration(lidar.name, self._sensor(lidar.name, "lidar"), fixed, [])

    def _extrinsics(self, mount: CameraMount) -> Row:
        """Translation and rotation as written: the rig's own digits, unless a calibration error is wanted."""
        if not any(text.startswith("calibration_error") for text in self.config.corruptions):
            return {"translation": list(mount.translation), "rotation": _unit(mount.rotation_wxyz)}
        cam2ego = written_cam2ego(self.config.corruptions, self.seed, mount)
        rotation = quaternion_wxyz_from_rotation(cam2ego[:3, :3]).tolist()
        return {"translation": cam2ego[:3, 3].tolist(), "rotation": rotation}

    def _sensor(self, channel: str, modality: str) -> str:
        token = self.token("sensor", channel)
        self.rows["sensor"].append({"token": token, "channel": channel, "modality": modality})
        return token

    def _calibration(self, channel: str, sensor: str, extrinsics: Row, matrix: list[Any]) -> None:
        token = self.token("calibrated_sensor", channel)
        row = {"token": token, "sensor_token": sensor, **extrinsics, "camera_intrinsic": matrix}
        self.rows["calibrated_sensor"].append(row)

    def _scene(self, scene: SceneSpec) -> None:
        records = []
        for k in range(self.config.keyframes):
            record = read_record(self.root, scene.name, k)
            if record is None:
                raise ValueError(f"{self.root}: keyframe {k} of {scene.name} is missing; run the simulation again")
            records.append(record)
        scene_token = token_for(self.seed, "scene", scene.name)
        log_token = token_for(self.seed, "log", scene.name)
        self._log_and_map(scene, log_token)
        samples = [record["sample"] for record in records]
        self.rows["scene"].append(
            {
                "token": scene_token,
                "name": scene.name,
                "description": f"Simulated street, {scene.split} {scene.index}",
                "log_token": log_token,
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
            }
        )
        for record, prev, next_ in zip(records, ["", *samples], [*samples[1:], ""], strict=False):
            row = {"token": record["sample"], "timestamp": record["timestamp"], "scene_token": scene_token}
            self.rows["sample"].append({**row, "prev": prev, "next": next_})
        self._sample_data(scene, records)
        self._annotations(records)
        self._occ3d(scene, records)

    def _log_and_map(self, scene: SceneSpec, log_token: str) -> None:
        self.rows["log"].append(
            {
                "token": log_token,
                "logfile": log_name(self.config, scene),
                "vehicle": self.rig.name,
                "date_captured": "2023-11-14",
                "location": self.rig.location,
            }
        )
        self.rows["map"].append(
            {
                "token": token_for(self.seed, "map", scene.name),
                "log_tokens": [log_token],
                "category": "semantic_prior",
                "filename": map_name(self.config, scene),
            }
        )

    def _sample_data(self, scene: SceneSpec, records: list[Row]) -> None:
        sizes = {mount.name: mount.image_size for mount in self.rig.cameras}
        chains: dict[str, list[Row]] = defaultdict(list)
        for record in records:
            for item in record["sample_data"]:
                height, width = sizes.get(item["channel"], (0, 0))
                row = {
                    "token": item["token"],
                    "sample_token": record["sample"],
                    "ego_pose_token": item["token"],
                    "calibrated_sensor_token": self.token("calibrated_sensor", item["channel"]),
                    "timestamp": item["timestamp"],
                    "fileformat": "jpg" if item["channel"] in sizes else "pcd",
                    "is_key_frame": item["key"],
                    "height": height,
                    "width": width,
                    "filename": item["filename"],
                }
                chains[item["channel"]].append(row)
                pose = {key: item[key] for key in ("token", "timestamp", "rotation", "translation")}
                self.rows["ego_pose"].append(pose)
                if item["key"] and item["channel"] == self.rig.lidar.name:
                    name = lidarseg_name(scene.version, item["token"])
                    label = {"token": item["token"], "sample_data_token": item["token"], "filename": name}
                    self.rows["lidarseg"].append(label)
        for chain in chains.values():
            chain.sort(key=lambda row: row["timestamp"])
            _link(chain)
            self.rows["sample_data"] += chain

    def _annotations(self, records: list[Row]) -> None:
        chains: dict[str, list[Row]] = defaultdict(list)
        category: dict[str, str] = {}
        for record in records:
            for item in record["annotations"]:
                attribute = [self.token("attribute", item["attribute"])] if item["attribute"] else []
                chains[item["instance"]].append(
                    {
                        "token": item["token"],
                        "sample_token": record["sample"],
                        "instance_token": item["instance"],
                        "visibility_token": item["visibility"],
                        "attribute_tokens": attribute,
                        "translation": item["translation"],
                        "size": item["size"],
                        "rotation": item["rotation"],
                        "num_lidar_pts": item["num_lidar_pts"],
                        "num_radar_pts": 0,
                    }
                )
                category[item["instance"]] = item["category"]
        for token, chain in chains.items():
            _link(chain)
            self.rows["sample_annotation"] += chain
            self.rows["instance"].append(
                {
                    "token": token,
                    "category_token": self.token("category", category[token]),
                    "nbr_annotations": len(chain),
                    "first_annotation_token": chain[0]["token"],
                    "last_annotation_token": chain[-1]["token"],
                }
            )

    def _occ3d(self, scene: SceneSpec, records: list[Row]) -> None:
        """Occ3D's index of labels."""
        self.occ3d[f"{scene.split}_split"].append(scene.name)
        mounts = {mount.name: mount for mount in self.rig.cameras}
        samples = [record["sample"] for record in records]
        infos = {}
        for k, record in enumerate(records):
            cameras = {}
            for item in record["sample_data"]:
                pose = {"translation": item["translation"], "rotation": item["rotation"]}
                if item["channel"] == self.rig.lidar.name and item["key"]:
                    ego_pose = pose
                elif item["channel"] in mounts:
                    mount = mounts[item["channel"]]
                    extrinsic = self._extrinsics(mount)
                    cameras[mount.name] = {
                        "img_path": item["filename"].removeprefix("samples/"),
                        "intrinsics": mount.matrix.tolist(),
                        "extrinsic": extrinsic,
                        "ego_pose": pose,
                    }
            infos[record["sample"]] = {
                "timestamp": str(record["timestamp"]),
                "camera_sensor": cameras,
                "ego_pose": ego_pose,
                "gt_path": f"gts/{scene.name}/{record['sample']}/labels.npz",
                "prev": samples[k - 1] if k else "EOF",
                "next": samples[k + 1] if k + 1 < len(samples) else "EOF",
            }
        self.occ3d["scene_infos"][scene.name] = infos


TABLE_NAMES = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
    "lidarseg",
)


def _unit(quaternion: tuple[float, ...]) -> list[float]:
    norm = float(np.linalg.norm(quaternion))
    return [value / norm for value in quaternion]


def _link(chain: list[Row]) -> None:
    """Fill prev and next of rows in order of time."""
    for k, row in enumerate(chain):
        row["prev"] = chain[k - 1]["token"] if k else ""
        row["next"] = chain[k + 1]["token"] if k + 1 < len(chain) else ""


def map_name(config: SimulationConfig, scene: SceneSpec) -> str:
    """Path of a scene's map mask below the root."""
    return f"maps/{token_for(config.seed, 'map', scene.name)}.png"


def write_map(root: Path, config: SimulationConfig, scene: SceneSpec) -> None:
    """The mask of road and sidewalk around a scene's drive (nuScenes' semantic prior): 255 on them, north up."""
    target = root / map_name(config, scene)
    if target.is_file():
        return
    stage = stage_scene(config, scene)
    path = stage.street.drive.line.point(np.arange(0.0, stage.street.plan.travelled + 1.0, 1.0))
    extent = np.ceil(path.max(axis=0) + stage.street2global[:2, 3] + MARGIN)
    step = 5 * MAP_RESOLUTION
    x, y = (np.arange(0, edge, step) + step / 2 for edge in extent)
    origins = np.empty((len(y), len(x), 3), np.float32)
    origins[..., 0], origins[..., 1] = x - stage.street2global[0, 3], (y - stage.street2global[1, 3])[::-1, None]
    origins[..., 2] = 2.0
    flat = origins.reshape(-1, 3)
    hits = Tracer(stage.street.ground.corners).first_hits(
        flat, np.broadcast_to(np.array([0, 0, -1], np.float32), flat.shape)
    )
    raw = stage.street.ground.raw[hits.triangle]
    walked = np.isin(raw, [RAW["flat.driveable_surface"], RAW["flat.sidewalk"]]) & (hits.triangle >= 0)
    mask = walked.reshape(len(y), len(x)).astype(np.uint8) * 255
    fine = cv2.resize(mask, None, fx=5, fy=5, interpolation=cv2.INTER_NEAREST)
    ok, data = cv2.imencode(".png", fine)
    if not ok:
        raise ValueError(f"{target}: OpenCV could not encode a mask of shape {fine.shape}")
    atomic_write(target, data.tobytes())


def clear_staging(root: Path) -> None:
    """Remove what a killed run left in the staging folder."""
    shutil.rmtree(root / HIDDEN / "partial", ignore_errors=True)

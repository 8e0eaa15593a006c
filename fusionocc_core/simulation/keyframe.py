"""One keyframe: expose all sensors, work out the truth, write the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import inverse, quaternion_wxyz_from_rotation
from fusionocc_core.grids import OCC3D_GRID, SURROUNDOCC_GRID
from fusionocc_core.simulation import imgseg, lidar, masks, truth
from fusionocc_core.simulation.annotations import annotate
from fusionocc_core.simulation.cameras import CameraView, take_picture
from fusionocc_core.simulation.config import scene_clock
from fusionocc_core.simulation.files import KeyframeFiles
from fusionocc_core.simulation.materials import RAW_TO_OCC3D
from fusionocc_core.simulation.quirk import lowered_ground
from fusionocc_core.simulation.rigs import CameraMount
from fusionocc_core.simulation.spoil import spoil_cloud, spoil_picture
from fusionocc_core.simulation.stage import NEIGHBOURS, Stage, file_name
from fusionocc_core.simulation.street import NO_INSTANCE


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One camera's part of a keyframe."""

    mount: CameraMount
    image: NDArray[np.uint8]
    """As written: spoilt where corruptions were asked for."""
    stamp_us: int
    """As written: late where the pictures are to be late."""
    t: float
    """When it was taken, seconds."""
    ego2street: NDArray[np.float64]
    view: CameraView

    @property
    def cam2street(self) -> NDArray[np.float64]:
        """(4, 4) at the camera's own stamp."""
        return self.ego2street @ self.mount.cam2ego


def write_keyframe(root: Path, stage: Stage, keyframe: int) -> None:
    """Simulate one keyframe and publish its files."""
    clock = scene_clock(stage.config, stage.scene)[keyframe]
    files = KeyframeFiles(root, stage.scene.name, keyframe)
    t = stage.seconds(clock.lidar_us)
    ego2street = stage.street.drive.poses(t)[0]
    shots = [_shoot(stage, keyframe, k, stamp) for k, stamp in enumerate(clock.cameras_us)]
    clean = lidar.scan(stage.street, stage.rig.lidar, t, stage.rng("lidar", keyframe))
    scan = spoil_cloud(stage, clean, clock.lidar_us)
    lidar2street = ego2street @ stage.rig.lidar.lidar2ego
    points_street = scan.points[:, :3].astype(np.float64) @ lidar2street[:3, :3].T + lidar2street[:3, 3]
    data = [_write_picture(stage, files, shot) for shot in shots]
    data.append(_write_cloud(stage, files, scan.points, clock.lidar_us, key=True))
    if stage.config.sweeps:
        data += [_write_sweep(stage, files, keyframe, k, stamp) for k, stamp in enumerate(clock.sweeps_us)]
    files.add(lidarseg_name(stage.scene.version, data[len(shots)]["token"]), scan.category.tobytes())
    _write_image_labels(stage, files, shots, scan, points_street)
    _write_occupancy(stage, files, keyframe, t, shots, clean)
    if stage.config.test_truth:
        _write_test_truth(files, stage, shots)
    views = [(shot.view, shot.mount, shot.cam2street, shot.t) for shot in shots]
    annotations = annotate(stage.street, t, ego2street, scan, points_street, views)
    files.publish(
        {
            "sample": stage.token("sample", keyframe),
            "timestamp": clock.lidar_us,
            "sample_data": data,
            "annotations": [_annotation(stage, keyframe, entry) for entry in annotations],
        }
    )


def lidarseg_name(version: str, token: str) -> str:
    """Path of a lidarseg file below the root."""
    return f"lidarseg/{version}/{token}_lidarseg.bin"


def _shoot(stage: Stage, keyframe: int, number: int, stamp_us: int) -> Shot:
    mount = stage.rig.cameras[number]
    t = stage.seconds(stamp_us)
    ego2street = stage.street.drive.poses(t)[0]
    rng = stage.rng("camera", mount.name, keyframe)
    view = take_picture(stage.street.snapshot(t), mount, ego2street @ mount.cam2ego, rng)
    image, written_us = spoil_picture(stage, mount, view.image, stamp_us)
    return Shot(mount=mount, image=image, stamp_us=written_us, t=t, ego2street=ego2street, view=view)


def _sensor_data(stage: Stage, channel: str, stamp_us: int, name: str, key: bool) -> dict[str, Any]:
    """What the tables say about one file."""
    ego2global = stage.street2global @ stage.street.drive.poses(stage.seconds(stamp_us))[0]
    return {
        "token": stage.token("sample_data", channel, stamp_us),
        "channel": channel,
        "timestamp": stamp_us,
        "filename": name,
        "key": key,
        "translation": ego2global[:3, 3].tolist(),
        "rotation": quaternion_wxyz_from_rotation(ego2global[:3, :3]).tolist(),
    }


def _write_picture(stage: Stage, files: KeyframeFiles, shot: Shot) -> dict[str, Any]:
    name = file_name(stage, "samples", shot.mount.name, shot.stamp_us, ".jpg")
    files.add_jpeg(name, shot.image, stage.config.jpeg_quality)
    return _sensor_data(stage, shot.mount.name, shot.stamp_us, name, True)


def _write_cloud(
    stage: Stage, files: KeyframeFiles, points: NDArray[np.float32], stamp_us: int, *, key: bool
) -> dict[str, Any]:
    channel = stage.rig.lidar.name
    name = file_name(stage, "samples" if key else "sweeps", channel, stamp_us, ".pcd.bin")
    files.add(name, points.astype("<f4").tobytes())
    return _sensor_data(stage, channel, stamp_us, name, key)


def _write_sweep(stage: Stage, files: KeyframeFiles, keyframe: int, number: int, stamp_us: int) -> dict[str, Any]:
    rng = stage.rng("sweep", keyframe, number)
    scan = spoil_cloud(stage, lidar.scan(stage.street, stage.rig.lidar, stage.seconds(stamp_us), rng), stamp_us)
    return _write_cloud(stage, files, scan.points, stamp_us, key=False)


def _write_image_labels(
    stage: Stage, files: KeyframeFiles, shots: list[Shot], scan: lidar.Scan, points_street: NDArray[np.float64]
) -> None:
    """Image segmentation maps painted from the cloud."""
    label = RAW_TO_OCC3D[scan.category]
    for shot in shots:
        cam = (points_street - shot.cam2street[:3, 3]) @ shot.cam2street[:3, :3]
        fx, fy, cx, cy = shot.mount.intrinsics
        with np.errstate(divide="ignore", invalid="ignore"):
            uv = cam[:, :2] / cam[:, 2:] * (fx, fy) + (cx, cy)
        uv[cam[:, 2] <= 0] = -1
        painted = imgseg.paint(uv, cam[:, 2], label, shot.mount.image_size)
        picture = file_name(stage, "samples", shot.mount.name, shot.stamp_us, ".jpg")
        files.add_array(f"imgseg/{picture}.npy", painted)


def _write_occupancy(
    stage: Stage, files: KeyframeFiles, keyframe: int, t: float, shots: list[Shot], scan: lidar.Scan
) -> None:
    """Occ3D and SurroundOcc labels."""
    street = stage.street
    ego2street = street.drive.poses(t)[0]
    things = truth.things_at(stage.samples, street, t)
    semantics = truth.voxelise(stage.samples, things, inverse(ego2street), OCC3D_GRID)
    total = stage.config.keyframes
    around = range(max(0, keyframe - NEIGHBOURS), min(total, keyframe + NEIGHBOURS + 1))
    probes = [stage.probe(k) for k in around]
    still = np.ones(len(street.things) + 1, bool)
    still[street.moving] = False
    observed = masks.lidar_mask(scan, probes, around.index(keyframe), still, inverse(ego2street), OCC3D_GRID)
    seen = masks.camera_mask(
        [shot.view for shot in shots],
        [shot.mount for shot in shots],
        [inverse(shot.cam2street) @ ego2street for shot in shots],
        observed,
        OCC3D_GRID,
    )
    if stage.config.test_truth:
        name = f"test_truth/volumes/{stage.token('sample', keyframe)}.npz"
        files.add_arrays(name, semantics=semantics)
    if stage.config.ground_quirk:
        semantics, observed, seen = lowered_ground(semantics, observed, seen)
    folder = f"gts/{stage.scene.name}/{stage.token('sample', keyframe)}"
    files.add_arrays(
        f"{folder}/labels.npz",
        semantics=semantics,
        mask_lidar=observed.astype(np.uint8),
        mask_camera=seen.astype(np.uint8),
    )
    lidar2street = ego2street @ stage.rig.lidar.lidar2ego
    dense = truth.voxelise(stage.samples, things, inverse(lidar2street), SURROUNDOCC_GRID)
    occupied = np.argwhere(dense != truth.FREE)
    rows = np.concatenate([occupied, dense[tuple(occupied.T)][:, None]], axis=1).astype(np.int16)
    stamp = scene_clock(stage.config, stage.scene)[keyframe].lidar_us
    cloud = file_name(stage, "samples", stage.rig.lidar.name, stamp, ".pcd.bin").rsplit("/", 1)[1]
    files.add_array(f"surroundocc/samples/{cloud}.npy", rows)


def _write_test_truth(files: KeyframeFiles, stage: Stage, shots: list[Shot]) -> None:
    """Per pixel: depth (float16, metres, inf in the sky), category (255 in the sky), instance (-1 where none)."""
    for shot in shots:
        picture = file_name(stage, "samples", shot.mount.name, shot.stamp_us, "")
        view = shot.view
        depth = np.where(view.depth < 6e4, view.depth, np.inf).astype(np.float16)
        files.add_arrays(
            f"test_truth/{picture}.npz", depth=depth, category=view.category, instance=view.instance.astype(np.int16)
        )


def _annotation(stage: Stage, keyframe: int, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of annotations.annotate in global coordinates."""
    thing = stage.street.things[entry["thing"]]
    center = np.asarray(entry["center"]) + stage.street2global[:3, 3]
    return {
        "token": stage.token("annotation", keyframe, entry["thing"]),
        "instance": stage.token("instance", entry["thing"]),
        "category": thing.category,
        "attribute": thing.attribute,
        "translation": center.tolist(),
        "size": entry["size"],
        "rotation": entry["rotation"],
        "num_lidar_pts": entry["num_lidar_pts"],
        "visibility": entry["visibility"],
    }


assert NO_INSTANCE == -1, "scan.instance indexes arrays whose last entry stands for no instance"

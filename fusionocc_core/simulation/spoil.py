"""Corruptions on the way to the disk: the sensors' files are spoilt, the truth beside them is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.simulation.corruptions import (
    LIDAR_CORRUPTIONS,
    Corruption,
    Surroundings,
    corrupt_camera,
    corrupt_lidar,
    miscalibrated,
)
from fusionocc_core.simulation.lidar import Scan
from fusionocc_core.simulation.lidar_corruptions import NEW
from fusionocc_core.simulation.materials import RAW
from fusionocc_core.simulation.rigs import CameraMount
from fusionocc_core.simulation.stage import Stage
from fusionocc_core.simulation.street import NO_INSTANCE
from fusionocc_core.structures import CameraImage, LidarSweep


def wanted(stage: Stage, *, of_lidar: bool) -> list[Corruption]:
    """The corruptions that the data set is to have, of the LiDAR or of the cameras."""
    every = [Corruption.parse(text) for text in stage.config.corruptions]
    return [corruption for corruption in every if (corruption.name in LIDAR_CORRUPTIONS) == of_lidar]


def spoil_picture(
    stage: Stage, mount: CameraMount, image: NDArray[np.uint8], stamp_us: int
) -> tuple[NDArray[np.uint8], int]:
    """The picture and the stamp (microseconds) that are written; a wrong calibration is written with the tables."""
    corruptions = wanted(stage, of_lidar=False)
    if not corruptions:
        return image, stamp_us
    around = Surroundings(
        seed=stage.config.seed,
        scene=stage.scene.name,
        names=tuple(camera.name for camera in stage.rig.cameras),
        pose_after=lambda camera, late: stage.street.drive.poses(stage.seconds(camera.stamp_ns // 1000) + late)[0],
    )
    camera = CameraImage(
        name=mount.name,
        image=image,
        intrinsics=mount.matrix,
        cam2ego=mount.cam2ego,
        ego2global=stage.street.drive.poses(stage.seconds(stamp_us))[0],
        stamp_ns=stamp_us * 1000,
    )
    for corruption in corruptions:
        camera = corrupt_camera(camera, corruption, around)
    return camera.image, camera.stamp_ns // 1000


def spoil_cloud(stage: Stage, scan: Scan, stamp_us: int) -> Scan:
    """The sweep that is written; points that were not there before belong to no category and no thing."""
    corruptions = wanted(stage, of_lidar=True)
    if not corruptions:
        return scan
    sweep = LidarSweep(
        points=scan.points,
        lidar2ego=stage.rig.lidar.lidar2ego,
        ego2global=stage.street.drive.poses(stage.seconds(stamp_us))[0],
        stamp_ns=stamp_us * 1000,
    )
    for corruption in corruptions:
        sweep, rows = corrupt_lidar(sweep, corruption, stage.config.seed)
        fresh = rows == NEW
        scan = replace(
            scan,
            points=sweep.points,
            category=np.where(fresh, RAW["noise"], scan.category[rows]).astype(np.uint8),
            instance=np.where(fresh, NO_INSTANCE, scan.instance[rows]).astype(np.int16),
            origins=scan.origins[rows],
            directions=scan.directions[rows],
            ranges=np.where(fresh, np.linalg.norm(sweep.points[:, :3], axis=1), scan.ranges[rows]).astype(np.float32),
        )
    return scan


def written_cam2ego(config_corruptions: tuple[str, ...], seed: int, mount: CameraMount) -> NDArray[np.float64]:
    """The cam2ego (4, 4) that the tables give for a camera: wrong where a calibration error was asked for."""
    cam2ego = mount.cam2ego
    for text in config_corruptions:
        corruption = Corruption.parse(text)
        if corruption.name == "calibration_error":
            cam2ego = miscalibrated(cam2ego, mount.name, corruption.severity, seed)
    return cam2ego

"""Labels of keyframes: where they lie, whether they are all there, whether they fit a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fusionocc_core.data.imgseg import imgseg_path
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.occ3d import occ3d_path, read_occ3d
from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.metrics import OccupancyTruth


def read_truth(frames: NuScenesFrames, index: int, grid: VoxelGrid, label_set: LabelSet) -> OccupancyTruth:
    """The Occ3D labels of a keyframe on a network's grid.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the file is damaged, or the labels do not fit the network.
    """
    keyframe = frames.keyframe(index)
    truth = read_occ3d(occ3d_path(frames.root, keyframe.scene, keyframe.token))
    if truth.label_set != label_set:
        raise ValueError(
            f"the labels have the classes {truth.label_set.name!r}, the network has {label_set.name!r}: choose another "
            "recipe or other labels"
        )
    return crop_truth(truth, grid)


def crop_truth(truth: OccupancyTruth, grid: VoxelGrid) -> OccupancyTruth:
    """The part of the labels that a grid of the same voxels covers: for networks with a smaller range.

    Raises:
        ValueError: the grid is not a part of the labels' grid, voxel by voxel.
    """
    whole = truth.grid
    if grid == whole:
        return truth
    offset = (np.array(grid.lower) - whole.lower) / np.array(whole.voxel_size)
    first = np.round(offset).astype(int)
    inside = (first >= 0).all() and (first + grid.shape <= np.array(whole.shape)).all()
    if (
        (grid.frame, grid.voxel_size) != (whole.frame, whole.voxel_size)
        or not inside
        or abs(offset - first).max() > 1e-4
    ):
        raise ValueError(
            f"the labels are on {whole}, the network answers on {grid}, which is no part of it, voxel by voxel: choose "
            "another recipe or other labels"
        )
    x, y, z = (slice(start, start + count) for start, count in zip(first, grid.shape, strict=True))
    return replace(
        truth,
        labels=truth.labels[x, y, z],
        mask_camera=None if truth.mask_camera is None else truth.mask_camera[x, y, z],
        mask_lidar=None if truth.mask_lidar is None else truth.mask_lidar[x, y, z],
        grid=grid,
        ray_origins=None,
    )


def check_labels(
    frames: NuScenesFrames, *, segmentation: bool, voxels: bool = True, indices: Sequence[int] | None = None
) -> None:
    """Look for every file of labels before anything is trained, or for those of some keyframes.

    Raises:
        FileNotFoundError: some are missing.
    """
    keyframes = [frames.keyframe(index) for index in (range(len(frames)) if indices is None else indices)]
    occupancy = [occ3d_path(frames.root, keyframe.scene, keyframe.token) for keyframe in keyframes] if voxels else []
    report_missing(
        "Occ3D labels",
        occupancy,
        "they come with the Occ3D-nuScenes download (gts/); `fusionocc prepare ROOT --check` lists what is missing",
    )
    if segmentation:
        maps = [
            imgseg_path(frames.root, keyframe.records[camera])
            for keyframe in keyframes
            for camera in frames.cameras
            if camera in keyframe.records
        ]
        report_missing(
            "label maps of pictures",
            maps,
            "make them with `fusionocc prepare`, or do without: --set loss.segmentation=0",
        )


def report_missing(what: str, paths: Sequence[Path], hint: str) -> None:
    """Refuse to begin where files are missing: how many, and what to do about it.

    Raises:
        FileNotFoundError: some are.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{what}: {len(missing)} of {len(paths)} files are missing, such as {missing[0]}; {hint}"
        )

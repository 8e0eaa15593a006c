"""Labels of keyframes: where they lie, whether they are all there, whether they fit a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fusionocc_core.data.imgseg import imgseg_path
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.occ3d import occ3d_path, read_occ3d
from fusionocc_core.data.surroundocc import read_surroundocc, surroundocc_path
from fusionocc_core.grids import OCC3D_GRID, LabelSet, VoxelGrid
from fusionocc_core.metrics import OccupancyTruth


def read_truth(frames: NuScenesFrames, index: int, grid: VoxelGrid, label_set: LabelSet) -> OccupancyTruth:
    """The labels of a keyframe on a network's grid: Occ3D's, or SurroundOcc's where the grid is in the LiDAR's frame.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the file is damaged, or the labels do not fit the network.
    """
    path = label_path(frames, index, grid)
    truth = read_surroundocc(path) if grid.frame == "lidar" else read_occ3d(path)
    if truth.label_set != label_set:
        raise ValueError(
            f"the labels have the classes {truth.label_set.name!r}, the network has {label_set.name!r}: choose another "
            "recipe or other labels"
        )
    return crop_truth(truth, grid)


def label_path(frames: NuScenesFrames, index: int, grid: VoxelGrid) -> Path:
    """Where the labels of a keyframe lie for networks that answer on a grid.

    Raises:
        ValueError: the keyframe has no LiDAR sweep, whose file SurroundOcc's labels are named after.
    """
    keyframe = frames.keyframe(index)
    if grid.frame != "lidar":
        return occ3d_path(frames.root, keyframe.scene, keyframe.token)
    if frames.lidar is None or frames.lidar not in keyframe.records:
        raise ValueError(f"keyframe {keyframe.token} has no LiDAR sweep: SurroundOcc's labels are named after its file")
    return surroundocc_path(frames.root, keyframe.records[frames.lidar].path)


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
    frames: NuScenesFrames,
    *,
    segmentation: bool,
    voxels: bool = True,
    indices: Sequence[int] | None = None,
    grid: VoxelGrid = OCC3D_GRID,
) -> None:
    """Look for every file of labels before anything is trained, or for those of some keyframes.

    Raises:
        FileNotFoundError: some are missing.
    """
    chosen = range(len(frames)) if indices is None else indices
    what, hint = (
        (
            "SurroundOcc labels",
            "they come with the SurroundOcc download (surroundocc/samples/), or from `fusionocc label`",
        )
        if grid.frame == "lidar"
        else (
            "Occ3D labels",
            "they come with the Occ3D-nuScenes download (gts/); `fusionocc prepare ROOT --check` lists all",
        )
    )
    report_missing(what, [label_path(frames, index, grid) for index in chosen] if voxels else [], hint)
    if segmentation:
        keyframes = [frames.keyframe(index) for index in chosen]
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

"""The labels of one keyframe, from the aggregated scene."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.geometry import inverse
from fusionocc_core.labelling.aggregate import Aggregate, SceneJob
from fusionocc_core.labelling.cells import Cells, join
from fusionocc_core.labelling.config import FREE
from fusionocc_core.labelling.densify import grazed, ground_holes, solid_vehicle, wall_holes
from fusionocc_core.labelling.tracks import Pose
from fusionocc_core.labelling.visibility import camera_mask, crossed_by
from fusionocc_core.labelling.voxels import inside_boxes, moved, voxelise


@dataclass(frozen=True, kw_only=True)
class KeyframeLabels:
    """What is written for one keyframe."""

    semantics: NDArray[np.uint8]
    """(X, Y, Z) classes; free also where nothing is known."""
    mask_lidar: NDArray[np.bool_]
    """(X, Y, Z) observed by the LiDAR: something was hit there, or a pulse passed through."""
    mask_camera: NDArray[np.bool_]
    """(X, Y, Z) of these, in sight of a camera."""


def label_keyframe(job: SceneJob, scene: Aggregate, position: int) -> KeyframeLabels:
    """Classes and masks of a keyframe.

    The static scene and every object, in the place that its box has now, are put into voxels. Free is what a pulse
    passed through; inside the boxes of now only pulses of the keyframe's own sweep count, since at other times the
    object was elsewhere. An occupied voxel is never free, nor is one in which the ground around it may go on. With
    ``densify`` holes are filled, and what fills them counts as observed.
    """
    grid = job.config.grid
    frame2scene = grid_pose(job, position)
    scene2grid = inverse(frame2scene)
    poses = scene.poses(job.keyframes[position].records[job.lidar].stamp_ns)
    semantics = voxelise(_cells(job, scene, position, poses, scene2grid), grid)
    seen_free = crossed_by(scene.own_pulses[position], scene2grid, grid)
    if job.config.free_space == "scene":
        boxes = inside_boxes([(scene2grid @ pose.box2frame, pose.size_lwh) for pose in poses], grid)
        seen_free |= crossed_by(scene.pulses, scene2grid, grid) & ~boxes
    seen_free &= ~grazed(semantics)
    if job.config.densify:
        for holes in (ground_holes(semantics), wall_holes(semantics, seen_free)):
            semantics[holes.index] = holes.label
    observed = seen_free | (semantics != FREE)
    mask = camera_mask(semantics != FREE, observed, _cameras(job, position), scene2grid, grid)
    return KeyframeLabels(semantics=semantics, mask_lidar=observed, mask_camera=mask)


def _cells(job: SceneJob, scene: Aggregate, position: int, poses: list[Pose], scene2grid: NDArray[np.float64]) -> Cells:
    """All cells of a keyframe in the grid's frame."""
    parts = [moved(scene.static, scene2grid), moved(scene.loose.get(position, Cells.empty()), scene2grid)]
    for pose in poses:
        if pose.instance in scene.objects:
            cells = scene.objects[pose.instance]
            if job.config.densify:
                cells = solid_vehicle(cells, pose.label, job.config.cell)
            parts.append(moved(cells, scene2grid @ pose.box2frame))
    return join(parts)


def grid_pose(job: SceneJob, position: int) -> NDArray[np.float64]:
    """(4, 4) from the grid's frame at a keyframe to the scene frame."""
    lidar = _in_scene(job.keyframes[position].records[job.lidar], job.origin)
    return lidar.ego2global if job.config.grid.frame == "ego" else lidar.ego2global @ lidar.sensor2ego


def _cameras(job: SceneJob, position: int) -> list[SensorRecord]:
    records = job.keyframes[position].records.values()
    return [_in_scene(record, job.origin) for record in records if record.modality == "camera"]


def _in_scene(record: SensorRecord, origin: NDArray[np.float64]) -> SensorRecord:
    ego2scene = record.ego2global.copy()
    ego2scene[:3, 3] -= origin
    return replace(record, ego2global=ego2scene)

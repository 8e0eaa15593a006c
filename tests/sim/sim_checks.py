"""Measurements on a data set in nuScenes format, simulated or real; the tests compare them with limits."""

import json

import numpy as np

from fusionocc_core.geometry import apply, inverse, project
from fusionocc_core.grids import OCC3D_GRID
from fusionocc_core.simulation.materials import RAW, RAW_TO_OCC3D
from fusionocc_core.simulation.truth import FREE

UNLABELLED = (RAW["noise"], RAW["vehicle.ego"])


def lidarseg(root, version, frame_token):
    """Category of every point of a keyframe's cloud."""
    rows = json.loads((root / version / "sample_data.json").read_text())
    token = next(
        row["token"]
        for row in rows
        if row["sample_token"] == frame_token and row["is_key_frame"] and row["fileformat"] == "pcd"
    )
    return np.fromfile(root / "lidarseg" / version / f"{token}_lidarseg.bin", np.uint8)


def occupancy(root, frame):
    """Labels and masks of a keyframe."""
    with np.load(root / "gts" / frame.scene / frame.token / "labels.npz") as file:
        return {name: file[name] for name in ("semantics", "mask_lidar", "mask_camera")}


def points_in_ego(frame):
    """The cloud in the ego frame at its stamp."""
    return apply(frame.lidar.lidar2ego, frame.lidar.points[:, :3].astype(np.float64))


def voxel_agreement(root, frame, category):
    """Share of the labelled points in range whose voxel has their class, and whose voxel or a touching one has it."""
    labelled = ~np.isin(category, UNLABELLED)
    ijk = OCC3D_GRID.indices(points_in_ego(frame)[labelled])
    inside = OCC3D_GRID.contains(ijk)
    ijk, label = ijk[inside], RAW_TO_OCC3D[category[labelled][inside]]
    semantics = np.pad(occupancy(root, frame)["semantics"], 1, constant_values=FREE)
    near = np.zeros(len(label), bool)
    for dx, dy, dz in np.ndindex(3, 3, 3):
        near |= semantics[ijk[:, 0] + dx, ijk[:, 1] + dy, ijk[:, 2] + dz] == label
    exact = semantics[tuple(ijk.T + 1)] == label
    return float(exact.mean()), float(near.mean())


def pixels(frame, camera):
    """u, v, depth of every point in a camera, through the ego poses at both stamps; and which fall into the picture."""
    lidar2cam = inverse(camera.ego2global @ camera.cam2ego) @ frame.lidar.ego2global @ frame.lidar.lidar2ego
    uvd = project(camera.intrinsics, apply(lidar2cam, frame.lidar.points[:, :3].astype(np.float64)))
    height, width = camera.image.shape[:2]
    inside = (uvd[:, 2] > 0.5) & (uvd[:, 0] >= 0) & (uvd[:, 0] < width) & (uvd[:, 1] >= 0) & (uvd[:, 1] < height)
    return uvd, inside


def pixel_agreement(root, frame, category, tolerance=0.3):
    """Share of the projected points, not hidden by something nearer, that fall on a pixel of their class; their number.

    A point counts as not hidden where the depth picture is not nearer than the point by more than ``tolerance`` metres
    plus two percent, in all of the 3 x 3 pixels around it.
    """
    right = total = 0
    for camera in frame.cameras:
        (path,) = (root / "test_truth" / "samples" / camera.name).glob(f"*__{camera.stamp_ns // 1000}.npz")
        with np.load(path) as file:
            depth, shown = file["depth"].astype(np.float64), file["category"]
        uvd, inside = pixels(frame, camera)
        inside &= ~np.isin(category, UNLABELLED)
        u, v, d = uvd[inside, 0].astype(int), uvd[inside, 1].astype(int), uvd[inside, 2]
        padded = np.pad(depth, 1, mode="edge")
        nearest = np.min([padded[v + dv, u + du] for dv, du in np.ndindex(3, 3)], axis=0)
        free = d < nearest + tolerance + 0.02 * d
        same = RAW_TO_OCC3D[np.minimum(shown[v, u], 31)] == RAW_TO_OCC3D[category[inside]]
        right += int((same & (shown[v, u] < 32) & free).sum())
        total += int(free.sum())
    return right / total, total


def class_counts(root, frames):
    """Voxels of each of the 18 classes over some frames."""
    return sum(np.bincount(occupancy(root, frame)["semantics"].ravel(), minlength=18) for frame in frames)


def lidarseg_of(nusc, sample):
    """Category of every point of a devkit sample's cloud."""
    row = nusc.get("lidarseg", sample["data"]["LIDAR_TOP"])
    return np.fromfile(f"{nusc.dataroot}/{row['filename']}", np.uint8)

"""The tiny nuScenes tree of tests/nuscenes_tree.py with Occ3D labels and label maps of pictures."""

from pathlib import Path

import numpy as np
from nuscenes_tree import Tree, write_tree

from fusionocc_core.data.imgseg import imgseg_path
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.occ3d import occ3d_path
from fusionocc_core.grids import OCC3D_GRID


def write_labelled_tree(root: Path, seed: int = 0) -> Tree:
    """scene-0061 (in mini_train) has four keyframes, scene-0103 (in mini_val) three."""
    tree = write_tree(root, scenes={"scene-0061": 4, "scene-0103": 3}, image_size=(192, 108))
    rng = np.random.default_rng(seed)
    frames = NuScenesFrames(root)
    for index in range(len(frames)):
        keyframe = frames.keyframe(index)
        path = occ3d_path(root, keyframe.scene, keyframe.token)
        path.parent.mkdir(parents=True)
        observed = rng.random(OCC3D_GRID.shape) < 0.5
        by_camera = observed & (rng.random(OCC3D_GRID.shape) < 0.5)
        np.savez(path, semantics=labels(rng), mask_lidar=observed.astype("u1"), mask_camera=by_camera.astype("u1"))
        for camera in frames.cameras:
            path = imgseg_path(root, keyframe.records[camera])
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rng.integers(0, 18, (14, 24), dtype=np.uint8))
    return tree


def labels(rng: np.random.Generator) -> np.ndarray:
    """A floor, walls in front, and clutter, so that a network has something to learn and classes differ."""
    volume = np.full(OCC3D_GRID.shape, 17, np.uint8)
    volume[:, :, 2] = 11
    volume[110:, :, 2:8] = 15
    spots = rng.integers(0, (200, 200, 16), (4000, 3))
    volume[tuple(spots.T)] = rng.integers(0, 17, 4000)
    return volume

"""SurroundOcc labels: ``<root>/surroundocc/samples/<name of the LiDAR file>.npy``.

The format is that of the data set's authors (Wei et al., "SurroundOcc", ICCV 2023): rows (x, y, z, class) of occupied
voxels, in the LiDAR's frame at 0.5 m. A volume has Occ3D's shape and nothing else in common with it; its grid says so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fusionocc_core.grids import OCC3D_LABELS, SURROUNDOCC_GRID, LabelSet
from fusionocc_core.metrics.truth import OccupancyTruth

SURROUNDOCC_LABELS: LabelSet = replace(OCC3D_LABELS, name="surroundocc")
"""The same ids and names; class 0 (noise) never occurs in the labels: such voxels are unknown."""

_NOISE, _LAST_CLASS = 0, 16


def surroundocc_path(root: str | Path, lidar_path: str | Path) -> Path:
    """Where the labels of a keyframe lie under the data set's folder, by the path or name of its LiDAR file."""
    return Path(root) / "surroundocc" / "samples" / f"{Path(lidar_path).name}.npy"


def read_surroundocc(path: str | Path) -> OccupancyTruth:
    """Read one keyframe's labels: voxels that are not listed are free, those of class 0 are unknown.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or rows lie outside the grid or hold no class.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"SurroundOcc labels: {path} is not there; expected <root>/surroundocc/samples/<LiDAR file name>.npy"
        )
    try:
        rows = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(
            f"SurroundOcc labels: {path} ({path.stat().st_size} bytes) is not a whole .npy file ({error}); "
            "download it again"
        ) from error
    if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "uif":
        raise ValueError(f"SurroundOcc labels: {path} is {rows.dtype} {rows.shape}; expected rows (x, y, z, class)")
    indices, classes = rows[:, :3].astype(np.int64), rows[:, 3].astype(np.int64)
    outside = ~SURROUNDOCC_GRID.contains(indices) | (classes < _NOISE) | (classes > _LAST_CLASS)
    if outside.any():
        raise ValueError(
            f"SurroundOcc labels: {path}: {int(outside.sum())} of {len(rows)} rows, the first "
            f"{rows[outside][0].tolist()}, are no voxel of {SURROUNDOCC_GRID.shape} with a class of 0..{_LAST_CLASS}"
        )
    labels = np.full(SURROUNDOCC_GRID.shape, SURROUNDOCC_LABELS.free, dtype=np.uint8)
    labels[tuple(indices.T)] = np.where(classes == _NOISE, SURROUNDOCC_LABELS.unknown, classes)
    return OccupancyTruth(labels=labels, grid=SURROUNDOCC_GRID, label_set=SURROUNDOCC_LABELS)

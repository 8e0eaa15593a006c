"""Occ3D-nuScenes labels: ``<root>/gts/<scene name>/<sample token>/labels.npz``.

The format is that of the data set's authors (Tian et al., "Occ3D", NeurIPS 2023): uint8 volumes (200, 200, 16) indexed
[x, y, z] in the ego frame at the LiDAR keyframe's time, 0 others to 16 vegetation, 17 free, and two masks of what
cameras and LiDAR observed. See docs/conventions.md for a doubt about the vertical position of its ground.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS
from fusionocc_core.metrics.truth import OccupancyTruth


def occ3d_path(root: str | Path, scene: str, token: str) -> Path:
    """Where the labels of a keyframe lie under the data set's folder."""
    return Path(root) / "gts" / scene / token / "labels.npz"


def read_occ3d(path: str | Path) -> OccupancyTruth:
    """Read one keyframe's labels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, an array is missing or of another shape, a label is no class, or a mask holds more
            than 0 and 1.
    """
    path = Path(path)
    arrays = _read_arrays(path)
    missing = [name for name in ("semantics", "mask_lidar", "mask_camera") if name not in arrays]
    if missing:
        raise ValueError(
            f"Occ3D labels: {path} lacks {', '.join(missing)} (it holds {', '.join(arrays) or 'nothing'}); "
            "expected semantics, mask_lidar and mask_camera"
        )
    return OccupancyTruth(
        labels=_volume(path, "semantics", arrays["semantics"], OCC3D_LABELS.num - 1).astype(np.uint8),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        mask_camera=_volume(path, "mask_camera", arrays["mask_camera"], 1).astype(bool),
        mask_lidar=_volume(path, "mask_lidar", arrays["mask_lidar"], 1).astype(bool),
    )


def _read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"Occ3D labels: {path} is not there; expected <root>/gts/<scene name>/<sample token>/labels.npz "
            "from the Occ3D-nuScenes download"
        )
    try:
        archive = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array")
        return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(
            f"Occ3D labels: {path} ({path.stat().st_size} bytes) is not a whole .npz file ({error}); download it again"
        ) from error


def _volume(path: Path, name: str, array: NDArray[np.generic], highest: int) -> NDArray[np.generic]:
    if array.shape != OCC3D_GRID.shape or array.dtype.kind not in "uib":
        raise ValueError(
            f"Occ3D labels: {path}: {name} is {array.dtype} {array.shape}; expected whole numbers {OCC3D_GRID.shape}"
        )
    lowest_found, highest_found = int(array.min()), int(array.max())
    if lowest_found < 0 or highest_found > highest:
        raise ValueError(
            f"Occ3D labels: {path}: {name} holds {lowest_found} to {highest_found}; expected 0 to {highest}"
        )
    return array

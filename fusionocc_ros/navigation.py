"""What blocks a robot: a flat grid for Nav2 (nav_msgs/OccupancyGrid) and Nav2's own columns. NumPy only, no ROS.

A cell is judged by its column of voxels. In the band of heights that the robot takes up, every class blocks but those
that it may drive on; below the band lies the ground.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.structures import Occupancy

FREE, OCCUPIED, UNKNOWN = 0, 100, -1
"""Values of nav_msgs/OccupancyGrid."""

NAV2_LEVELS = 16
"""Of a column in nav2_msgs/VoxelGrid."""

_BLOCKS, _GROUND, _DRIVABLE, _UNSEEN = 1, 2, 4, 8
_IN_BAND, _BELOW, _ABOVE = 15, _GROUND | _DRIVABLE, 0
"""Which of the bits above count at a height."""

Cells = NDArray[np.int8]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Robot:
    """What blocks it. Heights in metres above the base frame's origin."""

    min_height: float
    max_height: float
    drivable: tuple[str, ...]
    """Classes that it may drive on; classes that a label set does not have are left aside."""
    require_surface: bool
    """Free is only where a drivable class is seen: other ground blocks, and a column of nothing is unknown."""


@dataclass(frozen=True, kw_only=True)
class FlatGrid:
    """Square cells along the axes of a frame."""

    cells_YX: Cells
    """FREE, OCCUPIED or UNKNOWN, rows along y: the order of nav_msgs/OccupancyGrid.data."""
    resolution: float
    """Edge of a cell, metres."""
    lower: tuple[float, float]
    """The outer corner of cell (0, 0), metres."""


def _bits(labels: LabelSet, drivable: tuple[str, ...]) -> NDArray[np.uint8]:
    """(256,) what a voxel of each label means; a byte that is no class counts as not seen."""
    out = np.full(256, _UNSEEN, dtype=np.uint8)
    out[: labels.num] = _BLOCKS | _GROUND
    out[[k for k, name in enumerate(labels.names) if name in drivable]] = _DRIVABLE
    out[labels.free], out[labels.unknown] = 0, _UNSEEN
    return out


def judge_columns(occupancy: Occupancy, grid2base: Matrix, robot: Robot) -> Cells:
    """(X, Y): FREE, OCCUPIED or UNKNOWN for every column of the grid, in the grid's own axes.

    Args:
        occupancy: the voxels.
        grid2base: (4, 4) from the grid's frame to the vehicle's, whose z axis heights are measured along.
        robot: what blocks.
    """
    shape, bits = occupancy.grid.shape, _bits(occupancy.label_set, robot.drivable)
    x, y, z = (low + (np.arange(n) + 0.5) * size for low, n, size in _axes(occupancy.grid))
    tilt = np.abs(grid2base[2, :2]).max() > 1e-9
    plane = grid2base[2, 0] * x[:, None] + grid2base[2, 1] * y if tilt else np.zeros((1, 1))
    column = np.zeros(shape[:2], dtype=np.uint8)
    for level in range(shape[2]):
        height = plane + grid2base[2, 2] * z[level] + grid2base[2, 3]
        counts = np.where(height < robot.min_height, _BELOW, np.where(height > robot.max_height, _ABOVE, _IN_BAND))
        if counts.any():
            column |= bits[occupancy.labels[:, :, level]] & counts.astype(np.uint8)
    return _VERDICTS[robot.require_surface][column]


def _axes(grid: VoxelGrid) -> list[tuple[float, int, float]]:
    return list(zip(grid.lower, grid.shape, grid.voxel_size, strict=True))


def _verdict(column: int, require_surface: bool) -> int:
    if column & _BLOCKS:
        return OCCUPIED
    if column & _UNSEEN:
        return UNKNOWN
    if not require_surface or column & _DRIVABLE:
        return FREE
    return OCCUPIED if column & _GROUND else UNKNOWN


_VERDICTS = {flag: np.array([_verdict(c, flag) for c in range(16)], dtype=np.int8) for flag in (False, True)}


def flat_grid(cells_XY: Cells, grid: VoxelGrid, grid2target: Matrix) -> FlatGrid:
    """The columns of a grid as square cells along the axes of another frame; nearest cell, UNKNOWN outside.

    Where the frame has the grid's axes and cells are square, the cells are passed on as they are. Otherwise corners
    are multiples of the cell's edge, so that the cells of one message lie on those of the next.

    Args:
        cells_XY: of judge_columns.
        grid: theirs.
        grid2target: (4, 4) from the grid's frame; only its turn about z and its shift along x and y are used.
    """
    size = grid.voxel_size[:2]
    turn, shift = grid2target[:2, :2], grid2target[:2, 3]
    if np.allclose(turn, np.eye(2), atol=1e-9) and not shift.any() and np.isclose(size[0], size[1]):
        return FlatGrid(
            cells_YX=np.ascontiguousarray(cells_XY.T), resolution=size[0], lower=(grid.lower[0], grid.lower[1])
        )
    edge = min(size)
    ends = [(grid.lower[k], grid.upper[k]) for k in (0, 1)]
    corners = np.array([(x, y) for x in ends[0] for y in ends[1]]) @ turn.T + shift
    first = np.floor(corners.min(axis=0) / edge + 1e-6).astype(np.int64)
    width, height = np.ceil(corners.max(axis=0) / edge - 1e-6).astype(np.int64) - first
    # Cell of the target -> place in the grid, in voxels, as one affine map of each axis.
    back = np.linalg.inv(turn)
    x = (first[0] + np.arange(width) + 0.5) * edge - shift[0]
    y = (first[1] + np.arange(height) + 0.5) * edge - shift[1]
    index = []
    for k in (0, 1):
        place = back[k, 0] * x + (back[k, 1] * y)[:, None] - grid.lower[k]
        index.append(np.floor(place / size[k]).astype(np.int32))
    inside = (index[0] >= 0) & (index[0] < cells_XY.shape[0]) & (index[1] >= 0) & (index[1] < cells_XY.shape[1])
    cells = np.full((int(height), int(width)), UNKNOWN, dtype=np.int8)
    cells[inside] = cells_XY[index[0][inside], index[1][inside]]
    return FlatGrid(cells_YX=cells, resolution=edge, lower=(float(first[0] * edge), float(first[1] * edge)))


def nav2_columns(occupancy: Occupancy) -> NDArray[np.uint32]:
    """(Y * X,) columns of nav2_msgs/VoxelGrid, x running fastest.

    Of each level, bit z says that it is not known to be free, bit 16 + z that it is occupied.

    Raises:
        ValueError: more levels than a column holds.
    """
    levels = occupancy.grid.shape[2]
    if levels > NAV2_LEVELS:
        raise ValueError(
            f"nav2_msgs/VoxelGrid holds {NAV2_LEVELS} levels a column, the grid has {levels}; set "
            "publish.voxel_grid: false, or use ~/grid"
        )
    labels = occupancy.label_set
    table = np.full(256, 1 | 1 << NAV2_LEVELS, dtype=np.uint32)
    table[labels.free], table[labels.unknown] = 0, 1
    columns = np.zeros(occupancy.grid.shape[:2], dtype=np.uint32)
    for level in range(levels):
        columns |= table[occupancy.labels[:, :, level]] << np.uint32(level)
    return np.ascontiguousarray(columns.T).reshape(-1)

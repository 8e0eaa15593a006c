"""Occupancies, and what becomes of them, for tests of messages."""

from __future__ import annotations

import numpy as np
from synthetic_sensors import GRID, LABELS

from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.structures import Occupancy
from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.occupancy_messages import Provenance


def occupancy(grid: VoxelGrid = GRID, seed: int = 0, confidence: bool = True, fill: float = 0.3) -> Occupancy:
    rng = np.random.default_rng(seed)
    labels = LABELS if grid is GRID else OCC3D_LABELS
    values = rng.integers(0, labels.free, grid.shape, dtype=np.uint8)
    values[rng.random(grid.shape) > fill] = labels.free
    values[0, 0, 0] = labels.unknown
    return Occupancy(
        labels=values,
        grid=grid,
        label_set=labels,
        stamp_ns=1_600_000_000_123_456_789,
        confidence=rng.integers(0, 256, grid.shape, dtype=np.uint8) if confidence else None,
        model="m",
        trained_on="untrained weights",
    )


PROVENANCE = Provenance(
    frame_id="base_link",
    cameras=("A", "B"),
    camera_ages=(0.04, -0.001),
    missing={"C": "no_message"},
    ego_motion=SemanticOccupancy.EGO_MOTION_TF,
    camera_history=1,
    lidar_history=7,
    times={"total": 0.25, "network": 0.125},
)

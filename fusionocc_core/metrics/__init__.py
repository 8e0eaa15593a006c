"""How good an occupancy prediction is: by voxels, by rays, by objects. NumPy only; counts are exact integers."""

from fusionocc_core.metrics.score import (
    OccupancyReport,
    OccupancyScore,
    PanopticScores,
    RayScores,
    ScoreLine,
    VoxelScores,
)
from fusionocc_core.metrics.truth import MASKS, OccupancyTruth

__all__ = [
    "MASKS",
    "OccupancyReport",
    "OccupancyScore",
    "OccupancyTruth",
    "PanopticScores",
    "RayScores",
    "ScoreLine",
    "VoxelScores",
]

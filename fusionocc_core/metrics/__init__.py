"""How good an occupancy prediction is: by voxels, by rays, by objects. NumPy only; counts are exact integers."""

from fusionocc_core.metrics.score import OccupancyReport, OccupancyScore, RayScores, ScoreLine, VoxelScores
from fusionocc_core.metrics.truth import MASKS, OccupancyTruth

__all__ = [
    "MASKS",
    "OccupancyReport",
    "OccupancyScore",
    "OccupancyTruth",
    "RayScores",
    "ScoreLine",
    "VoxelScores",
]

"""Predictors without networks, which every result is held against; see docs/evaluation.md."""

from fusionocc_core.baselines.fitting import BaselineConfig, Baselines, LabelledSource, fit
from fusionocc_core.baselines.geometry import GeometryBaseline
from fusionocc_core.baselines.position import MajorityBaseline, PositionBaseline

__all__ = [
    "BaselineConfig",
    "Baselines",
    "GeometryBaseline",
    "LabelledSource",
    "MajorityBaseline",
    "PositionBaseline",
    "fit",
]

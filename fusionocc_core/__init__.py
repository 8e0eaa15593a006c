"""3D semantic occupancy from cameras and LiDAR: networks, data, training.

Knows nothing of ROS; importing does nothing. The names in ``__all__`` are the public interface; each is loaded at its
first use, so that `fusionocc --help` and ROS launch files do not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

DEFAULT_PRESET = "flashfusion-mini"
"""The network that is taken where none is named; its trained weights come with the package."""

_HOME = {
    "CameraImage": "structures",
    "InputConfig": "structures",
    "LidarSweep": "structures",
    "Occupancy": "structures",
    "SensorFrame": "structures",
    "DepthBins": "grids",
    "LabelSet": "grids",
    "OCC3D_GRID": "grids",
    "OCC3D_LABELS": "grids",
    "SURROUNDOCC_GRID": "grids",
    "VoxelGrid": "grids",
    "NuScenesFrames": "data.nuscenes",
    "Predictor": "predictor",
    "list_presets": "presets",
    "load_model": "presets",
    "save_model": "checkpoints",
}

__all__ = [*_HOME, "DEFAULT_PRESET", "__version__"]

if TYPE_CHECKING:
    from fusionocc_core.checkpoints import save_model as save_model
    from fusionocc_core.data.nuscenes import NuScenesFrames as NuScenesFrames
    from fusionocc_core.grids import OCC3D_GRID as OCC3D_GRID
    from fusionocc_core.grids import OCC3D_LABELS as OCC3D_LABELS
    from fusionocc_core.grids import SURROUNDOCC_GRID as SURROUNDOCC_GRID
    from fusionocc_core.grids import DepthBins as DepthBins
    from fusionocc_core.grids import LabelSet as LabelSet
    from fusionocc_core.grids import VoxelGrid as VoxelGrid
    from fusionocc_core.predictor import Predictor as Predictor
    from fusionocc_core.presets import list_presets as list_presets
    from fusionocc_core.presets import load_model as load_model
    from fusionocc_core.structures import CameraImage as CameraImage
    from fusionocc_core.structures import InputConfig as InputConfig
    from fusionocc_core.structures import LidarSweep as LidarSweep
    from fusionocc_core.structures import Occupancy as Occupancy
    from fusionocc_core.structures import SensorFrame as SensorFrame


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'fusionocc_core' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"fusionocc_core.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

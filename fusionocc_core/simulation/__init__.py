"""The procedural street that writes data sets in nuScenes format."""

from fusionocc_core.simulation.config import SimulationConfig
from fusionocc_core.simulation.generate import check_request, generate

__all__ = ["SimulationConfig", "check_request", "generate"]

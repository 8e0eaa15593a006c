"""The node's parameters in the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionocc_core import DEFAULT_PRESET

if TYPE_CHECKING:
    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_ros.demo import DemoPlan

SYNC_DEADLINE_S = 2.0
"""The player waits for the node, so the node may wait for pictures, however busy the machine is."""


def write_parameters(plan: DemoPlan, frames: NuScenesFrames) -> Path:
    """The node's parameters that differ from its defaults, as a file that `ros2 launch` takes as well."""
    import yaml  # type: ignore[import-untyped]

    from fusionocc_ros.bag import camera_info_topic, image_topic, lidar_topic

    values: dict[str, Any] = {"use_sim_time": True, "confidence": True, "camera_names": list(frames.cameras)}
    values["sync.deadline"] = SYNC_DEADLINE_S
    # Of a recording every sensor is there: what is not is a fault of the recording, and said.
    values |= {"bad_sensors": "drop", "sync.min_cameras": 1, "sync.reference_timeout": 0.0}
    values |= _network(plan)
    values["lidar.topic"] = lidar_topic(str(frames.lidar))
    for camera in frames.cameras:
        values[f"cameras.{camera}.image_topic"] = image_topic(camera)
        values[f"cameras.{camera}.info_topic"] = camera_info_topic(camera)
    path = plan.out / "node.yaml"
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}, sort_keys=False))
    return path


def _network(plan: DemoPlan) -> dict[str, str]:
    """A file of ours says which network it is for, and a preset named beside it must fit; an exported one knows."""
    from fusionocc_core.export.artefact import is_artefact

    if plan.checkpoint is None:
        return {"preset": plan.model or DEFAULT_PRESET}
    checkpoint = str(plan.checkpoint.resolve())
    if plan.model is None and not is_artefact(plan.checkpoint):
        return {"preset": checkpoint}
    return {"preset": plan.model or DEFAULT_PRESET, "checkpoint": checkpoint}

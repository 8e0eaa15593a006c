"""occ_node as it is, with a network that computes nothing: its answer says from where it was told that sensors saw.

Arguments are those of occ_node.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from synthetic_sensors import GRID, LABELS

from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_ros.engine import Engine
from fusionocc_ros.node import main

PROBE = (0.3, -0.2, 5.0, 1.0)
"""A point in every sensor's axes; where it lies in the map tells the sensor's whole pose."""


def testimony(frame: SensorFrame) -> dict[str, Any]:
    """Stamp of each sensor and the place of its probe in the map."""
    seen = {
        camera.name: (camera.stamp_ns, (camera.ego2global @ camera.cam2ego @ PROBE)[:3].tolist())
        for camera in frame.cameras
    }
    if frame.lidar is not None:
        sweep = frame.lidar
        seen["lidar"] = (sweep.stamp_ns, (sweep.ego2global @ sweep.lidar2ego @ PROBE)[:3].tolist())
    seen["base"] = (frame.stamp_ns, (frame.ego2global @ PROBE)[:3].tolist())
    return seen


def predict(frame: SensorFrame) -> Occupancy:
    """Free space, and a testimony in the place of the model's name."""
    labels = np.full(GRID.shape, LABELS.free, dtype=np.uint8)
    return Occupancy(
        labels=labels,
        grid=GRID,
        label_set=LABELS,
        stamp_ns=frame.stamp_ns,
        model=json.dumps(testimony(frame)),
        trained_on="nothing",
    )


def witness(_parameters: object) -> Engine:
    """In the place of load_engine."""
    return Engine(
        predict=predict,
        num_cameras=6,
        camera_history=1,
        lidar_history=2,
        needs_camera=False,
        needs_lidar=False,
        model="witness",
        trained_on="nothing",
        device="cpu",
    )


if __name__ == "__main__":
    sys.exit(main(engine_factory=witness))

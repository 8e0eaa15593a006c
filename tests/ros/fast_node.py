"""occ_node as it is, with a network that computes nothing: for fuzzing, soaking and measuring what lies around it.

python tests/ros/fast_node.py VOXELS [ARGUMENTS OF occ_node]      VOXELS occupied voxels of 640,000
"""

from __future__ import annotations

import sys

import numpy as np

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS
from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_ros.engine import Engine
from fusionocc_ros.node import main
from fusionocc_ros.parameters import NodeParameters


def street(voxels: int) -> np.ndarray:
    """Labels of OCC3D_GRID: a ground, and on it blocks of every class, ``voxels`` in all."""
    shape, rng = OCC3D_GRID.shape, np.random.default_rng(0)
    labels = np.full(shape, OCC3D_LABELS.free, dtype=np.uint8)
    ground = np.argwhere(np.ones(shape[:2], bool))[: voxels // 2]
    labels[ground[:, 0], ground[:, 1], 1] = 11
    columns = rng.permutation(shape[0] * shape[1])
    rest = voxels - len(ground)
    for k, column in enumerate(columns[: -(-rest // 4)]):
        x, y = divmod(int(column), shape[1])
        labels[x, y, 2 : 2 + min(4, rest - 4 * k)] = k % OCC3D_LABELS.free
    assert int((labels != OCC3D_LABELS.free).sum()) == voxels
    return labels


class Idle:
    """In the place of load_engine.

    Args:
        voxels: occupied in every answer.
        memory: earlier keyframes that it wants.
    """

    def __init__(self, voxels: int, memory: int = 0) -> None:
        self.labels, self.memory = street(voxels), memory

    def __call__(self, _parameters: NodeParameters) -> Engine:
        return Engine(
            predict=self.predict,
            num_cameras=6,
            camera_history=self.memory,
            lidar_history=self.memory,
            needs_camera=False,
            needs_lidar=False,
            model="idle",
            trained_on="nothing",
            device="cpu",
        )

    def predict(self, frame: SensorFrame) -> Occupancy:
        return Occupancy(
            labels=self.labels.copy(), grid=OCC3D_GRID, label_set=OCC3D_LABELS, stamp_ns=frame.stamp_ns, model="idle"
        )


if __name__ == "__main__":
    sys.exit(main(args=[sys.argv[0], *sys.argv[2:]], engine_factory=Idle(int(sys.argv[1]), memory=1)))

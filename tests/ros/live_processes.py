"""What a live view looks at, as processes: a bag that is played in a loop, and a node that answers at once.

python tests/ros/live_processes.py VOXELS [ARGUMENTS OF occ_node]      the node; its street moves on with every answer
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from dds_traffic import environment
from fast_node import Idle

from fusionocc_core.gaussians import GaussianCloud
from fusionocc_core.grids import OCC3D_GRID
from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_ros.domains import claimed_domain
from fusionocc_ros.node import main
from fusionocc_ros.processes import Processes

GAUSSIANS = 200
STEP = 5
"""Voxels that the street moves from answer to answer: 2 m, as at 4 m/s."""


class Moving(Idle):
    """In the place of load_engine: every voxel of an answer is elsewhere in the next one."""

    count = 0

    def predict(self, frame: SensorFrame) -> Occupancy:
        self.count += 1
        street = replace(super().predict(frame), labels=np.roll(self.labels, -STEP * self.count, axis=0))
        voxels = street.occupied()[:: len(street.occupied()) // GAUSSIANS][:GAUSSIANS]
        cloud = GaussianCloud(
            means_G3=OCC3D_GRID.centers(voxels).astype(np.float32),
            scales_G3=np.full((GAUSSIANS, 3), 0.4, np.float32),
            rotations_G4=np.tile(np.array([1, 0, 0, 0], np.float32), (GAUSSIANS, 1)),
            opacities_G=np.full(GAUSSIANS, 0.9, np.float32),
            labels_G=street.labels[tuple(voxels.T)],
        )
        return replace(street, gaussians=cloud)


@contextlib.contextmanager
def playing(bag: Path, logs: Path, *, voxels: int, cameras: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Player and node until the end of the block, in a DDS domain of their own; gives the environment of others in it.

    Args:
        bag: what is played, at its own pace, again and again.
        logs: folder for ``player.log`` and ``node.log``.
        voxels: in every answer.
        cameras: that the node expects.
    """
    with claimed_domain() as domain:
        env = environment(domain) | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
        names = ", ".join(f"'{name}'" for name in cameras)
        settings = ["use_sim_time:=true", f"camera_names:=[{names}]"]
        with Processes(env, logs) as processes:
            node = [sys.executable, str(Path(__file__)), str(voxels), "--ros-args"]
            processes.start("node", [*node, *(word for setting in settings for word in ("-p", setting))])
            player = [sys.executable, "-m", "fusionocc_core.cli", "bag", "play", str(bag), "--loop", "--clock"]
            processes.start("player", player)
            yield env


if __name__ == "__main__":
    # A process of its own: nothing of the tests is around it.
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    sys.exit(main(args=[sys.argv[0], *sys.argv[2:]], engine_factory=Moving(int(sys.argv[1]))))

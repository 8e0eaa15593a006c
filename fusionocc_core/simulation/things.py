"""Things that can be told apart: everything that gets a box, with its shape, its motion and its category."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.simulation.materials import RAW
from fusionocc_core.simulation.mesh import Mesh
from fusionocc_core.simulation.paths import Motion, Pose, Resting

STEP_LENGTH = 1.3
"""A walking person's full gait cycle, metres."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """An instance."""

    category: str
    """nuScenes name."""
    frames: tuple[Mesh, ...]
    """In its own axes; more than one: the pictures of a gait."""
    motion: Motion
    size: tuple[float, float, float]
    """Length, width, height of its box, metres; the box stands on z = 0 of its axes."""
    attribute: str
    """nuScenes attribute name, or empty."""
    moving: bool
    cycle_s: float = 0.0
    """Duration of a gait, seconds; 0: one picture."""

    @property
    def raw(self) -> int:
        """Lidarseg category index."""
        return RAW[self.category]

    def frame_at(self, t: float) -> int:
        """Which of its frames it shows at time t."""
        return int(np.floor(t / self.cycle_s * len(self.frames))) % len(self.frames) if self.cycle_s > 0 else 0

    def placed_at(self, t: float) -> Mesh:
        """Its shape at time t, in the street."""
        pose = self.motion(t)
        return self.frames[self.frame_at(t)].placed(pose.x, pose.y, pose.z, pose.yaw)


def make_thing(
    category: str,
    frames: Mesh | tuple[Mesh, ...],
    motion: Motion | Pose,
    *,
    attribute: str = "",
    speed: float = 0.0,
) -> Thing:
    """A thing whose frames are moved so that the origin lies below the middle of its box."""
    meshes = (frames,) if isinstance(frames, Mesh) else frames
    low = np.min([mesh.corners.min(axis=(0, 1)) for mesh in meshes], axis=0)
    high = np.max([mesh.corners.max(axis=(0, 1)) for mesh in meshes], axis=0)
    middle = (low + high) / 2
    offset = np.array([middle[0], middle[1], 0.0], np.float32)
    raw = RAW[category]
    still = isinstance(motion, Pose)
    return Thing(
        category=category,
        frames=tuple(replace(mesh, corners=mesh.corners - offset).labelled(raw) for mesh in meshes),
        motion=Resting(pose=motion) if isinstance(motion, Pose) else motion,
        size=(float(high[0] - low[0]), float(high[1] - low[1]), float(high[2])),
        attribute=attribute,
        moving=not still,
        cycle_s=STEP_LENGTH / speed if speed and len(meshes) > 1 else 0.0,
    )


def box_pose(thing: Thing, t: float) -> tuple[NDArray[np.float64], float]:
    """Centre (3,) of its box in the street and its yaw."""
    pose = thing.motion(t)
    return np.array([pose.x, pose.y, pose.z + thing.size[2] / 2]), pose.yaw

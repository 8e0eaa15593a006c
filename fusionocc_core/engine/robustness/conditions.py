"""Conditions: what can be wrong with the sensors, each as ``condition.apply(frame, around) -> Spoiled``.

A condition never changes the frame that it is given; what it leaves alone is the same object in the new frame. Every
draw follows from the seed. Earlier pictures and clouds of a frame (its history) suffer what the current ones suffer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.engine.robustness.scene_files import Inapplicable, SceneFiles
from fusionocc_core.geometry import transform
from fusionocc_core.simulation.corruptions import LIDAR_CORRUPTIONS, Corruption, corrupt, rotation_from_vector
from fusionocc_core.simulation.randomness import rng_for
from fusionocc_core.structures import CameraImage, LidarSweep, SensorFrame

RING = 4
"""Column of LidarSweep.points that holds the ring."""


@dataclass(frozen=True, kw_only=True)
class Around:
    """What a condition may need to know besides the frame."""

    seed: int
    place: int
    """Which of the evaluated keyframes it is, counted from 0."""
    files: SceneFiles
    """Of the data set that the frame is from."""


@dataclass(frozen=True, kw_only=True)
class Spoiled:
    """What is left of a frame."""

    frame: SensorFrame
    really_older: int = 0
    """Of a delay: pictures or clouds that were replaced by older ones ..."""
    files: int = 0
    """... of how many; for the others only the ego motion is as if they were older."""


class Condition(Protocol):
    """Something that can be wrong with the sensors."""

    @property
    def group(self) -> str:
        """One of standard.GROUPS."""

    @property
    def key(self) -> str:
        """Short and unique: for files and for the command line."""

    @property
    def title(self) -> str:
        """For people."""

    def apply(self, frame: SensorFrame, around: Around) -> Spoiled:
        """What is left of a frame.

        Raises:
            Inapplicable: this cannot be made from the frame.
        """


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Nothing is wrong: what all others are compared with."""

    group = "clean"
    key = "clean"
    title = "clean"

    def apply(self, frame: SensorFrame, around: Around) -> Spoiled:
        """The frame itself."""
        return Spoiled(frame=frame)


@dataclass(frozen=True, kw_only=True)
class CamerasDropped:
    """Some cameras are gone, with their earlier pictures.

    Trying every choice would be too much. For each run of as many keyframes as there are cameras, the seed puts the
    cameras in a circle; each keyframe loses ``count`` neighbours on the circle, and the next keyframe begins one
    further. So all cameras are lost equally often, and whoever is lost with ``count`` is lost with ``count + 1`` too.
    """

    count: int
    of: int
    """Cameras of the rig; all of them may go."""

    group = "cameras"

    @property
    def key(self) -> str:
        """Such as cameras-2."""
        return f"cameras-{'all' if self.count == self.of else self.count}"

    @property
    def title(self) -> str:
        """Such as "2 of 6 cameras dropped"."""
        return (
            f"all {self.of} cameras dropped" if self.count == self.of else f"{self.count} of {self.of} cameras dropped"
        )

    def lost(self, names: tuple[str, ...], around: Around) -> frozenset[str]:
        """Which of a frame's cameras go."""
        if not names:
            return frozenset()
        turn, start = divmod(around.place, len(names))
        circle = rng_for(around.seed, "cameras dropped", turn).permutation(sorted(names))
        return frozenset(str(name) for name in np.roll(circle, -start)[: self.count])

    def apply(self, frame: SensorFrame, around: Around) -> Spoiled:
        """Without those cameras."""
        lost = self.lost(tuple(camera.name for camera in frame.cameras), around)

        def left(group: tuple[CameraImage, ...]) -> tuple[CameraImage, ...]:
            return tuple(camera for camera in group if camera.name not in lost)

        if not left(frame.cameras) and frame.lidar is None:
            raise Inapplicable("there is no LiDAR, so that no sensor is left")
        past = tuple(left(group) for group in frame.camera_history)
        return Spoiled(frame=replace(frame, cameras=left(frame.cameras), camera_history=past))


@dataclass(frozen=True, kw_only=True)
class LidarDropped:
    """There is no LiDAR, nor was there one before. The reference time and pose stay."""

    group = "lidar"
    key = "no-lidar"
    title = "no LiDAR"

    def apply(self, frame: SensorFrame, around: Around) -> Spoiled:
        """Without clouds."""
        if not frame.cameras:
            raise Inapplicable("there is no camera, so that no sensor is left")
        return Spoiled(frame=replace(frame, lidar=None, lidar_history=()))


@dataclass(frozen=True, kw_only=True)
class LidarBeams:
    """A LiDAR with fewer beams, evenly spread over the real ones: of 32, 16 are 0, 2, 4 ... and 8 are 0, 4, 8 ..."""

    keep: int
    of: int
    """Rings of the real one."""

    group = "beams"

    def __post_init__(self) -> None:
        """Refuse a number that is none."""
        if not 1 <= self.keep <= self.of:
            raise ValueError(f"LidarBeams: keep={self.keep} of {self.of} rings; expected 1 to all of them")

    @property
    def key(self) -> str:
        """Such as beams-16."""
        return f"beams-{self.keep}"

    @property
    def title(self) -> str:
        """Such as "16 of 32 LiDAR beams"."""
        return f"{self.keep} of {self.of} LiDAR beams"

    @property
    def rings(self) -> tuple[int, ...]:
        """Which rings are kept."""
        return tuple(k * self.of // self.keep for k in range(self.keep))

    def apply(self, frame: SensorFrame, around: Around) -> Spoiled:
        """With the points of these rings only, in their order."""

        def thinned(sweep: LidarSweep) -> LidarSweep:
            points = sweep.points[np.isin(sweep.points[:, RING], self.rings)]
            if not len(points):
                raise Inapplicable(f"no point of the sweep at {sweep.stamp_ns} is of the rings {self.rings}")
            return replace(sweep, points=points)

        return Spoiled(frame=_with_sweeps(frame, thinned))


@dataclass(frozen=True, kw_only=True)
class CameraMiscalibration:
    """Every camera is turned by so many degrees about its own centre, and nobody has noticed.

    The axis is drawn for each camera (evenly over all directions) and is the same in the whole run and for every angle.
    """

    degrees: float

    group = "calibration"

    @property
    def key(self) -> str:
        """Such as camera-calibration-1deg."""
        return f"camera-calibration-{self.degrees:g}deg"

    @property
    def title(self) -> str:
        """Such as "cameras turned by 1 degree"."""
        return f"cameras turned by {_angle(self.degrees)}"

    def apply(self, frame: SensorFrame, around: Around) -> Spoiled:
        """With a wrong cam2ego."""

        def turned(camera: CameraImage) -> CameraImage:
            wrong = random_turn(self.degrees, around.seed, "camera", camera.name)
            return replace(camera, cam2ego=camera.cam2ego @ wrong)

        return Spoiled(frame=_with_cameras(frame, turned))


@dataclass(frozen=True, kw_only=True)
class LidarMiscalibration:
    """The LiDAR is turned by so many degrees about its own centre, and nobody has noticed; see CameraMiscalibration."""

    degrees: float

    group = "calibration"

    @property
    def key(self) -> str:
        """Such as lidar-calibration-1deg."""
        return f"lidar-calibration-{self.degrees:g}deg"

    @property
    def title(self) -> str:
        """Such as "LiDAR turned by 1 degree"."""
        return f"LiDAR turned by {_angle(self.degrees)}"

    def apply(self, frame: SensorFrame, around: Around) -> Spoiled:
        """With a wrong lidar2ego."""
        wrong = random_turn(self.degrees, around.seed, "lidar", "")
        return Spoiled(frame=_with_sweeps(frame, lambda sweep: replace(sweep, lidar2ego=sweep.lidar2ego @ wrong)))


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """A corruption of simulation.corruptions."""

    corruption: Corruption

    group = "corruptions"

    @property
    def key(self) -> str:
        """Such as fog-3."""
        return f"{self.corruption.name}-{self.corruption.severity}"

    @property
    def title(self) -> str:
        """Such as "fog, severity 3"."""
        return f"{self.corruption.name}, severity {self.corruption.severity}"

    def apply(self, frame: SensorFrame, around: Around) -> Spoiled:
        """Spoilt."""
        name = self.corruption.name
        if name in LIDAR_CORRUPTIONS and frame.lidar is None:
            raise Inapplicable("the keyframe has no LiDAR sweep")
        try:
            spoilt = corrupt(frame, name, self.corruption.severity, around.seed)
        except ValueError as error:  # poses of one time only: no motion to delay by
            raise Inapplicable(str(error)) from error
        return Spoiled(frame=spoilt)


def random_turn(degrees: float, seed: int, kind: str, name: str) -> NDArray[np.float64]:
    """A rotation (4, 4) by exactly this angle about an axis that the seed draws for a sensor, whatever the angle."""
    axis = rng_for(seed, "calibration", kind, name).standard_normal(3)
    return transform(rotation_from_vector(np.deg2rad(degrees) * axis / np.linalg.norm(axis)), np.zeros(3))


def _angle(degrees: float) -> str:
    return f"{degrees:g} degree{'' if degrees == 1 else 's'}"


def _with_cameras(frame: SensorFrame, change: Callable[[CameraImage], CameraImage]) -> SensorFrame:
    if not frame.cameras:
        raise Inapplicable("the keyframe has no camera")
    past = tuple(tuple(change(camera) for camera in group) for group in frame.camera_history)
    return replace(frame, cameras=tuple(change(camera) for camera in frame.cameras), camera_history=past)


def _with_sweeps(frame: SensorFrame, change: Callable[[LidarSweep], LidarSweep]) -> SensorFrame:
    if frame.lidar is None:
        raise Inapplicable("the keyframe has no LiDAR sweep")
    past = tuple(change(sweep) for sweep in frame.lidar_history)
    return replace(frame, lidar=change(frame.lidar), lidar_history=past)

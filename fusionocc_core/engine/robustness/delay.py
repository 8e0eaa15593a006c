"""Delays: what a sensor shows is older than the rest.

**Unnoticed** (an error of synchronisation): the content is older than its stamp says. The stamp and the ego pose that
belongs to it stay as they are; so whatever stands still appears where it would be had the vehicle not moved meanwhile.

Let P(t) be the ego pose (ego -> global) and d the delay. The content of a file was taken at t' and is taken for that of
t' + d. A picture of stamp t is replaced by that file of the same camera for which t' + d is nearest to t. Where the
data set has files between the keyframes, that is one about d older. Where it has none, it is the keyframe's own, and
moving things stay where they are. Either way the rest, r = t' + d - t (at most half the time between two files, or else
d), is made up for by ego motion: the sensor is taken to sit at inverse(P(t)) P(t + r) sensor2ego. So the error of what
stands still is that of exactly d in every case, whatever pose a network takes for its key pose.

**Noticed**: the file that is nearest to d older, with its own stamp and pose. What stands still is where it belongs,
what moves and what comes into view lags. Only for sensors with files between the keyframes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes import read_camera, read_sweep
from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.engine.robustness.conditions import Around, Spoiled
from fusionocc_core.engine.robustness.scene_files import MS, Inapplicable
from fusionocc_core.geometry import inverse
from fusionocc_core.structures import CameraImage, LidarSweep, SensorFrame

SENSORS = ("camera", "lidar")

EGO_MOTION = "ego motion"
"""Note of a delay for which there were no older files."""


@dataclass(frozen=True, kw_only=True)
class Delay:
    """All cameras lag behind the LiDAR, or the LiDAR behind the cameras; see above."""

    sensor: str
    """One of SENSORS."""
    delay_ms: int
    noticed: bool = False
    """The stamps tell the truth."""

    group = "delay"

    def __post_init__(self) -> None:
        """Refuse other sensors and delays that are none."""
        if self.sensor not in SENSORS or self.delay_ms <= 0:
            raise ValueError(
                f"Delay: sensor={self.sensor!r}, delay_ms={self.delay_ms}; expected one of {SENSORS} and more than 0"
            )

    @property
    def key(self) -> str:
        """Such as camera-delay-100ms, or camera-delay-100ms-noticed."""
        return f"{self.sensor}-delay-{self.delay_ms}ms{'-noticed' if self.noticed else ''}"

    @property
    def title(self) -> str:
        """Such as "cameras 100 ms late"."""
        who = "cameras" if self.sensor == "camera" else "LiDAR"
        return f"{who} {self.delay_ms} ms late{', stamps right' if self.noticed else ''}"

    def apply(self, frame: SensorFrame, around: Around) -> Spoiled:
        """With older pictures, or older clouds.

        Raises:
            Inapplicable: there is no such sensor, or the ego's motion is not known.
        """
        work = _Work(delay=self, frame=frame, around=around)
        if self.sensor == "camera":
            if not frame.cameras:
                raise Inapplicable("the keyframe has no camera")
            cameras = tuple(work.camera(camera) for camera in frame.cameras)
            past = tuple(tuple(work.camera(camera) for camera in group) for group in frame.camera_history)
            late = replace(frame, cameras=cameras, camera_history=past)
        else:
            if frame.lidar is None:
                raise Inapplicable("the keyframe has no LiDAR sweep")
            sweeps = tuple(work.sweep(sweep) for sweep in frame.lidar_history)
            late = replace(frame, lidar=work.sweep(frame.lidar), lidar_history=sweeps)
        return Spoiled(frame=late, really_older=work.really_older, files=work.files)


@dataclass(kw_only=True)
class _Work:
    """One frame's delay, and how many of its files have been replaced."""

    delay: Delay
    frame: SensorFrame
    around: Around
    really_older: int = 0
    files: int = 0

    def camera(self, camera: CameraImage) -> CameraImage:
        record = self._older(camera.name, camera.stamp_ns)
        shown = camera
        if record is not None:
            shown = read_camera(record, reduce=self.around.files.frames.reduce)
            _check_same_size(camera, shown)
        if self.delay.noticed:
            return shown
        moved = self._moved(shown.cam2ego, shown.stamp_ns, camera.stamp_ns, camera.ego2global)
        return replace(shown, cam2ego=moved, ego2global=camera.ego2global, stamp_ns=camera.stamp_ns)

    def sweep(self, sweep: LidarSweep) -> LidarSweep:
        channel = self.around.files.frames.lidar
        assert channel is not None, "the frame has a sweep"
        record = self._older(channel, sweep.stamp_ns)
        shown = sweep if record is None else read_sweep(record)
        if self.delay.noticed:
            return shown
        moved = self._moved(shown.lidar2ego, shown.stamp_ns, sweep.stamp_ns, sweep.ego2global)
        return replace(shown, lidar2ego=moved, ego2global=sweep.ego2global, stamp_ns=sweep.stamp_ns)

    def _older(self, channel: str, stamp_ns: int) -> SensorRecord | None:
        """The file to show instead; None: the one that is there."""
        self.files += 1
        files = self.around.files
        record = files.record_before(self.frame.scene, channel, stamp_ns, self.delay.delay_ms * MS)
        if record is None or record.stamp_ns == stamp_ns:
            return None
        self.really_older += 1
        return record

    def _moved(
        self, sensor2ego: NDArray[np.float64], taken_ns: int, stamp_ns: int, ego2global: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Where the sensor is taken to sit, so that its content seems ``delay`` older than the stamp, not more."""
        seems_ns = taken_ns + self.delay.delay_ms * MS
        if seems_ns == stamp_ns:
            return sensor2ego
        seems2global = self.around.files.track(self.frame.scene).pose(seems_ns)
        return np.asarray(inverse(ego2global) @ seems2global @ sensor2ego)


def _check_same_size(camera: CameraImage, older: CameraImage) -> None:
    if camera.image.shape != older.image.shape:
        raise Inapplicable(
            f"{camera.name}: the older picture is {older.image.shape[1]}x{older.image.shape[0]} pixels, the keyframe's "
            f"{camera.image.shape[1]}x{camera.image.shape[0]}"
        )


def note_of(*, really_older: int, files: int) -> str:
    """Which of the two ways a delay was made in, for the table: older files, or the ego motion alone."""
    if not files:
        return ""
    if really_older == 0:
        return EGO_MOTION
    return "older files" if really_older == files else f"older files {really_older}/{files}"

"""From the messages of one set to a SensorFrame: what can be read, what must be left out, and earlier keyframes."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fusionocc_core.structures import CameraImage, LidarSweep, SensorFrame
from fusionocc_ros.causes import NO_MESSAGE, NO_TRANSFORM, DropFrame
from fusionocc_ros.diagnostics import LEFT_OUT
from fusionocc_ros.ego_motion import EgoMotion, Source
from fusionocc_ros.history import KeyframeRing
from fusionocc_ros.parameters import DROP, NodeParameters
from fusionocc_ros.readers import NAN_POINTS, CameraInfos, CameraReader, LidarReader, Mounts, Patience
from fusionocc_ros.rig import Rig
from fusionocc_ros.sync import TOO_FEW_CAMERAS, SensorSet, Stamped
from fusionocc_ros.tf_store import TfStore

__all__ = ["NAN_POINTS", "Assembled", "Assembler", "CameraInfos", "Moment", "Needs", "now_ns"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")

HISTORY_SKIPPED = "keyframes_skipped"


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Without what the network cannot work."""

    cameras: int = 0
    """Fewest pictures."""
    lidar: bool = False


@dataclass
class Reading(Generic[Result]):
    """Messages of several sensors that are read when they are needed, once."""

    raw: Mapping[str, Stamped[Any]] | None
    """The messages by sensor; None once they have been read."""
    result: Result | None = None
    failed: dict[str, DropFrame] = field(default_factory=dict)
    """Sensors whose message cannot be used, and why."""
    source: Source = Source.NONE
    """Where the ego poses in ``result`` come from."""
    mounts: int = 0
    """Which version of the sensors' places is in ``result``."""


Pictures = Reading[tuple[CameraImage, ...]]
Clouds = Reading[LidarSweep | None]


class Moment:
    """One set of the synchroniser on its way through the worker, and later as an earlier keyframe."""

    def __init__(self, sensors: SensorSet[Any]) -> None:
        self.stamp_ns = sensors.stamp_ns
        self.arrived_ns = sensors.arrived_ns
        self.released_ns = sensors.released_ns
        self.epoch = sensors.epoch
        self.missing = sensors.missing
        self.pictures: Pictures = Reading(sensors.pictures)
        self.clouds: Clouds = Reading(sensors.clouds)


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A frame for the network, and what its message says about it."""

    frame: SensorFrame
    source: Source
    lidar_frame_id: str
    camera_frames: dict[str, str] = field(default_factory=dict)
    """Optical frame of each camera."""
    mounts: int = 0
    """Grows when a sensor is found to sit elsewhere than before."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why each sensor that is not in the frame is not: NO_MESSAGE, or a cause of causes.py."""


class Assembler:
    """Turns moments into frames.

    Args:
        parameters: of the node.
        infos: calibrations from CameraInfo.
        transforms: from /tf and /tf_static.
        motion: the vehicle's poses.
        rig: calibration from a file, in place of the first two, or None.
        needs: what the network cannot do without.
        on_left_out: told of a sensor that a frame goes without: sensor, cause and what is wrong.
    """

    def __init__(
        self,
        parameters: NodeParameters,
        infos: CameraInfos,
        transforms: TfStore,
        motion: EgoMotion,
        rig: Rig | None,
        *,
        needs: Needs | None = None,
        on_left_out: Callable[[str, str, str], None] = lambda _sensor, _cause, _message: None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._parameters = parameters
        self._motion = motion
        self._needs = needs or Needs()
        self._on_left_out = on_left_out
        self._mounts = Mounts(parameters, transforms, Patience(parameters.transform_timeout))
        self._read_camera = CameraReader(parameters, infos, self._mounts, motion, rig)
        self._read_lidars = LidarReader(parameters, self._mounts, motion, rig, self.counters)
        self.camera_history: KeyframeRing[Pictures] = self._ring(0)
        self.lidar_history: KeyframeRing[Clouds] = self._ring(0)
        self._pool = ThreadPoolExecutor(
            max_workers=max(1, min(len(parameters.cameras), os.cpu_count() or 1)), thread_name_prefix="decode"
        )

    def _ring(self, depth: int) -> KeyframeRing[Any]:
        return KeyframeRing(spacing_ns=round(self._parameters.keyframe_spacing * 1e9), depth=depth)

    def serve(self, *, camera_history: int, lidar_history: int, least_width: int) -> None:
        """Say how many earlier keyframes the network wants, and how small pictures may be decoded (0: not smaller)."""
        self._read_camera.least_width = least_width
        self.camera_history, self.lidar_history = self._ring(camera_history), self._ring(lidar_history)

    def forget(self) -> None:
        """Forget all earlier keyframes."""
        self.camera_history.clear()
        self.lidar_history.clear()

    def offer(self, moment: Moment) -> None:
        """Let a moment become an earlier keyframe of later ones, whether or not it is worked on itself."""
        if moment.pictures.raw:
            self.camera_history.offer(moment.stamp_ns, moment.epoch, moment.pictures)
        if moment.clouds.raw:
            self.lidar_history.offer(moment.stamp_ns, moment.epoch, moment.clouds)

    def close(self) -> None:
        """End the decoding threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def assemble(self, moment: Moment) -> Assembled:
        """The frame of a moment.

        Raises:
            DropFrame: too little of it can be read; the message says what is wrong, and what to do.
        """
        # First, so that a pose that does not come is waited for once, not by every sensor.
        source, ego2global = self._motion.locate(moment.stamp_ns)
        cameras = self._cameras(moment.pictures, source)
        sweep = self._sweep(moment.clouds, source)
        failed = {**moment.clouds.failed, **moment.pictures.failed}
        self._check_enough(cameras, sweep, failed)
        for sensor, error in failed.items():
            self.counters[f"{LEFT_OUT}{sensor}: {error.cause}"] += 1
            self._on_left_out(sensor, error.cause, str(error))
        frame = SensorFrame(
            stamp_ns=moment.stamp_ns,
            ego2global=ego2global,
            cameras=cameras,
            lidar=sweep,
            camera_history=tuple(self._earlier(self.camera_history, moment, source, self._cameras)),
            lidar_history=tuple(self._earlier(self.lidar_history, moment, source, self._sweep)),
        )
        return Assembled(
            frame=frame,
            source=source,
            lidar_frame_id=self._read_lidars.frame_id or self._parameters.lidar_frame_id,
            camera_frames=dict(self._read_camera.frames),
            mounts=self._mounts.changes,
            missing={
                **dict.fromkeys(moment.missing, NO_MESSAGE),
                **{sensor: error.cause for sensor, error in failed.items()},
            },
        )

    def _check_enough(
        self, cameras: tuple[CameraImage, ...], sweep: LidarSweep | None, failed: dict[str, DropFrame]
    ) -> None:
        """Refuse a frame from which too much has to be left out, for the first reason."""
        lidars = {lidar.name for lidar in self._parameters.lidars}
        first_of_all = next(iter(failed.values()), None)
        if first_of_all is not None and self._parameters.bad_sensors == DROP:
            raise first_of_all
        if sweep is None and (self._needs.lidar or not cameras):
            no_lidar = DropFrame(NO_TRANSFORM, "no cloud and no picture") if first_of_all is None else first_of_all
            raise next((error for sensor, error in failed.items() if sensor in lidars), no_lidar)
        least = max(self._needs.cameras, self._parameters.sync_min_cameras)
        if len(cameras) < least:
            too_few = DropFrame(TOO_FEW_CAMERAS, f"{len(cameras)} pictures, and {least} are needed")
            raise next((error for sensor, error in failed.items() if sensor not in lidars), too_few)

    def _earlier(self, ring: KeyframeRing[Any], moment: Moment, source: Source, read: Any) -> list[Any]:
        """Earlier keyframes, newest first; none without ego motion: they would lie in the wrong place."""
        if source is Source.NONE:
            return []
        results = []
        for reading in ring.before(moment.stamp_ns, moment.epoch):
            result = read(reading, source)
            if result:
                results.append(result)
            else:
                ring.discard(reading)
                self.counters[HISTORY_SKIPPED] += 1
                log.debug("an earlier keyframe is left out: %s", "; ".join(map(str, reading.failed.values())))
        return results

    def _is_read(self, reading: Reading[Any], source: Source) -> bool:
        """Whether the result is there and holds; where it does not hold any more, it is taken away."""
        if reading.raw is not None:
            return False
        if reading.source is not source or reading.mounts != self._mounts.changes:
            error = DropFrame(NO_TRANSFORM, "its poses, or the place of a sensor, have been corrected since")
            reading.result, reading.failed = None, {"keyframe": error}
        return True

    def _cameras(self, reading: Pictures, source: Source) -> tuple[CameraImage, ...]:
        if not self._is_read(reading, source):
            items = list((reading.raw or {}).items())
            reading.source, reading.mounts, reading.raw = source, self._mounts.changes, None
            each = self._pool.map if self._read_camera.takes_time(picture for _, picture in items) else map
            read = list(each(lambda item: self._camera(item[0], item[1], source), items))
            reading.result = tuple(one for one in read if isinstance(one, CameraImage))
            reading.failed = {
                name: one for (name, _), one in zip(items, read, strict=True) if isinstance(one, DropFrame)
            }
        return reading.result or ()

    def _camera(self, name: str, picture: Stamped[Any], source: Source) -> CameraImage | DropFrame:
        try:
            return self._read_camera(name, picture, source)
        except DropFrame as error:
            return error

    def _sweep(self, reading: Clouds, source: Source) -> LidarSweep | None:
        if not self._is_read(reading, source):
            clouds = reading.raw or {}
            reading.source, reading.mounts, reading.raw = source, self._mounts.changes, None
            reading.result, reading.failed = self._read_lidars(clouds, source)
        return reading.result


def now_ns() -> int:
    """The clock on which waiting is measured: it never runs backwards and has nothing to do with stamps."""
    return time.monotonic_ns()

"""From the messages of one set to a SensorFrame: decoding, calibration, transforms, ego motion, earlier keyframes."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fusionocc_core.structures import CameraImage, LidarSweep, SensorFrame
from fusionocc_ros.causes import NO_CAMERA_INFO, NO_TRANSFORM, DropFrame
from fusionocc_ros.clouds import BeamLayout
from fusionocc_ros.convert import camera_info_to_lens, cloud_to_points, picture_to_rgb
from fusionocc_ros.ego_motion import EgoMotion, Source
from fusionocc_ros.history import KeyframeRing
from fusionocc_ros.lenses import REFUSE, Lens, choose_lens
from fusionocc_ros.parameters import CameraParameters, NodeParameters
from fusionocc_ros.pictures import undistort
from fusionocc_ros.rig import Rig
from fusionocc_ros.sync import SensorSet, Stamped
from fusionocc_ros.tf_store import Matrix, TfStore, TransformError

log = logging.getLogger(__name__)

Raw = TypeVar("Raw")
Result = TypeVar("Result")

NAN_POINTS = "points_not_finite"
HISTORY_SKIPPED = "keyframes_skipped"


class CameraInfos:
    """The latest CameraInfo of each camera; filled from one thread, read from another."""

    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}
        self._changed = threading.Condition()

    def put(self, camera: str, message: Any) -> None:
        """Keep a camera's CameraInfo."""
        with self._changed:
            self._latest[camera] = message
            self._changed.notify_all()

    def get(self, camera: str, timeout_s: float) -> Any | None:
        """A camera's CameraInfo, waiting for the first one; None where none came."""
        with self._changed:
            self._changed.wait_for(lambda: camera in self._latest, timeout_s)
            return self._latest.get(camera)


@dataclass
class Reading(Generic[Raw, Result]):
    """Messages that are read when they are needed, once."""

    raw: Raw | None
    """The messages; None once they have been read."""
    result: Result | None = None
    source: Source = Source.NONE
    """Where the ego poses in ``result`` come from."""


class Moment:
    """One set of the synchroniser on its way through the worker, and later as an earlier keyframe."""

    def __init__(self, sensors: SensorSet[Any]) -> None:
        self.stamp_ns = sensors.stamp_ns
        self.arrived_ns = sensors.arrived_ns
        self.released_ns = sensors.released_ns
        self.epoch = sensors.epoch
        self.pictures: Reading[Mapping[str, Stamped[Any]], tuple[CameraImage, ...]] = Reading(sensors.pictures)
        self.sweep: Reading[Stamped[Any], LidarSweep] = Reading(Stamped(stamp_ns=sensors.stamp_ns, item=sensors.sweep))


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A frame for the network, and what its message says about it."""

    frame: SensorFrame
    source: Source
    lidar_frame_id: str


class Assembler:
    """Turns moments into frames.

    Args:
        parameters: of the node.
        infos: calibrations from CameraInfo.
        transforms: from /tf and /tf_static.
        motion: the vehicle's poses.
        rig: calibration from a file, in place of the two above, or None.
    """

    def __init__(
        self, parameters: NodeParameters, infos: CameraInfos, transforms: TfStore, motion: EgoMotion, rig: Rig | None
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._parameters = parameters
        self._cameras = {camera.name: camera for camera in parameters.cameras}
        self._infos = infos
        self._transforms = transforms
        self._motion = motion
        self._rig = rig
        self._beams = BeamLayout(
            beams=parameters.lidar_beams,
            lowest_deg=parameters.lidar_lowest_beam,
            highest_deg=parameters.lidar_highest_beam,
        )
        self._filled_said: set[str] = set()
        self._lidar_frame_id = ""
        self.camera_history: KeyframeRing[Reading[Any, Any]] = self._ring(0)
        self.lidar_history: KeyframeRing[Reading[Any, Any]] = self._ring(0)
        self._pool = ThreadPoolExecutor(
            max_workers=max(1, min(len(self._cameras), os.cpu_count() or 1)), thread_name_prefix="decode"
        )

    def _ring(self, depth: int) -> KeyframeRing[Reading[Any, Any]]:
        return KeyframeRing(spacing_ns=round(self._parameters.keyframe_spacing * 1e9), depth=depth)

    def remember(self, *, camera_history: int, lidar_history: int) -> None:
        """Say how many earlier keyframes the network wants."""
        self.camera_history, self.lidar_history = self._ring(camera_history), self._ring(lidar_history)

    def offer(self, moment: Moment) -> None:
        """Let a moment become an earlier keyframe of later ones, whether or not it is worked on itself."""
        self.camera_history.offer(moment.stamp_ns, moment.epoch, moment.pictures)
        self.lidar_history.offer(moment.stamp_ns, moment.epoch, moment.sweep)

    def close(self) -> None:
        """End the decoding threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def assemble(self, moment: Moment) -> Assembled:
        """The frame of a moment.

        Raises:
            DropFrame: something in it cannot be read; the message says what, and what to do.
        """
        source = self._motion.source()
        cameras = self._read_pictures(moment.pictures, source)
        sweep = self._read_sweep(moment.sweep, source)
        frame = SensorFrame(
            stamp_ns=moment.stamp_ns,
            ego2global=sweep.ego2global,
            cameras=cameras,
            lidar=sweep,
            camera_history=tuple(self._earlier(self.camera_history, moment, source, self._read_pictures)),
            lidar_history=tuple(self._earlier(self.lidar_history, moment, source, self._read_sweep)),
        )
        return Assembled(frame=frame, source=source, lidar_frame_id=self._lidar_frame_id)

    def _earlier(self, ring: KeyframeRing[Any], moment: Moment, source: Source, read: Any) -> list[Any]:
        """Earlier keyframes, newest first; none without ego motion: they would lie in the wrong place."""
        if source is Source.NONE:
            return []
        results = []
        for reading in ring.before(moment.stamp_ns, moment.epoch):
            try:
                results.append(read(reading, source))
            except DropFrame as error:
                ring.discard(reading)
                self.counters[HISTORY_SKIPPED] += 1
                log.debug("an earlier keyframe is left out: %s", error)
        return results

    def _read_pictures(
        self, reading: Reading[Mapping[str, Stamped[Any]], tuple[CameraImage, ...]], source: Source
    ) -> tuple[CameraImage, ...]:
        if reading.result is None or reading.source is not source:
            if reading.raw is None:
                raise DropFrame(NO_TRANSFORM, "its ego poses came from another source")
            items = list(reading.raw.items())
            reading.result = tuple(
                self._pool.map(lambda item: self._camera(self._cameras[item[0]], item[1], source), items)
            )
            reading.source, reading.raw = source, None
        return reading.result

    def _read_sweep(self, reading: Reading[Stamped[Any], LidarSweep], source: Source) -> LidarSweep:
        if reading.result is None or reading.source is not source:
            if reading.raw is None:
                raise DropFrame(NO_TRANSFORM, "its ego poses came from another source")
            reading.result = self._sweep(reading.raw, source)
            reading.source, reading.raw = source, None
        return reading.result

    def _camera(self, camera: CameraParameters, picture: Stamped[Any], source: Source) -> CameraImage:
        image = picture_to_rgb(picture.item, name=camera.name, decoder=self._parameters.image_decoder)
        info_frame, lens = self._lens(camera.name, (image.shape[0], image.shape[1]))
        if lens.distortion:
            image = undistort(image, lens.intrinsics, lens.model, lens.distortion, name=camera.name)
        mount = self._rig.cameras.get(camera.name) if self._rig else None
        named = camera.frame_id or (mount.frame_id if mount else "") or picture.item.header.frame_id or info_frame
        return CameraImage(
            name=camera.name,
            image=image,
            intrinsics=lens.intrinsics,
            cam2ego=self._sensor2base(camera.name, named, picture.stamp_ns, f"cameras.{camera.name}.frame_id"),
            ego2global=self._motion.base2fixed(source, picture.stamp_ns),
            stamp_ns=picture.stamp_ns,
        )

    def _lens(self, camera: str, size: tuple[int, int]) -> tuple[str, Lens]:
        """The frame that CameraInfo names, and the lens."""
        if self._rig and camera in self._rig.calibrations:
            return "", choose_lens(self._rig.calibrations[camera], size=size, policy=REFUSE, name=camera)
        info = self._infos.get(camera, self._parameters.transform_timeout)
        if info is None:
            topic = self._cameras[camera].info_topic
            raise DropFrame(
                NO_CAMERA_INFO,
                f"{camera}: no CameraInfo has come on {topic!r}: publish it, set cameras.{camera}.info_topic, or give "
                "the camera's intrinsics in rig_file",
            )
        lens = camera_info_to_lens(info, size=size, policy=self._parameters.distortion, name=camera)
        return str(info.header.frame_id), lens

    def _sweep(self, cloud: Stamped[Any], source: Source) -> LidarSweep:
        topic, parameters = self._parameters.lidar_topic, self._parameters
        read = cloud_to_points(
            cloud.item,
            beams=self._beams,
            intensity_scale=parameters.lidar_intensity_scale,
            name=topic,
            reader=parameters.lidar_reader,
        )
        self.counters[NAN_POINTS] += read.dropped
        self._say_filled(read.filled)
        mounted = self._rig.lidar.frame_id if self._rig else ""
        self._lidar_frame_id = parameters.lidar_frame_id or mounted or cloud.item.header.frame_id
        return LidarSweep(
            points=read.points,
            lidar2ego=self._sensor2base(topic, self._lidar_frame_id, cloud.stamp_ns, "lidar.frame_id"),
            ego2global=self._motion.base2fixed(source, cloud.stamp_ns),
            stamp_ns=cloud.stamp_ns,
        )

    def _say_filled(self, filled: tuple[str, ...]) -> None:
        how = {
            "ring": f"derived from the elevation for {self._beams.beams} beams (parameters lidar.*_beam*)",
            "intensity": "taken as 0",
        }
        for column in set(filled) - self._filled_said:
            self._filled_said.add(column)
            log.warning("%s has no field %r: it is %s", self._parameters.lidar_topic, column, how[column])

    def _sensor2base(self, sensor: str, frame_id: str, stamp_ns: int, parameter: str) -> Matrix:
        base = self._parameters.base_frame
        if not frame_id:
            raise DropFrame(
                NO_TRANSFORM,
                f"{sensor}: header.frame_id is empty, so its transform to {base!r} is not known: set it in the driver, "
                f"or set parameter {parameter}",
            )
        try:
            return self._transforms.lookup(frame_id, base, stamp_ns, timeout_s=self._parameters.transform_timeout)
        except TransformError as error:
            raise DropFrame(NO_TRANSFORM, f"{sensor}: {error}") from error


def now_ns() -> int:
    """The clock on which waiting is measured: it never runs backwards and has nothing to do with stamps."""
    return time.monotonic_ns()

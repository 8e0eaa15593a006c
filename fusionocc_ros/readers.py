"""From the messages of one sensor to what the core takes: decoding, calibration, transforms, motion within a sweep."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes import scale_intrinsics
from fusionocc_core.structures import CameraImage, LidarSweep
from fusionocc_ros.causes import NO_CAMERA_INFO, NO_TRANSFORM, DropFrame
from fusionocc_ros.clouds import BeamLayout, Cloud
from fusionocc_ros.convert import camera_info_to_lens, cloud_to_points, is_view, picture_size, picture_to_rgb
from fusionocc_ros.deskew import bring_points
from fusionocc_ros.ego_motion import EgoMotion, Source
from fusionocc_ros.lenses import UNDISTORT, Lens, choose_lens, lens_of_reduced
from fusionocc_ros.parameters import BUILTIN, CameraParameters, LidarParameters, NodeParameters
from fusionocc_ros.pictures import undistort
from fusionocc_ros.rig import Rig
from fusionocc_ros.streams import Stamped
from fusionocc_ros.tf_store import Matrix, TfStore, TransformError

log = logging.getLogger(__name__)

NAN_POINTS = "points_not_finite"
PATIENCE_S = 1.0
"""A sensor whose CameraInfo or transform was waited for in vain is not waited for again this long: it would cost every
set the time."""


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


class Patience:
    """How long to wait for what a sensor lacks. Safe to use from several threads.

    Args:
        timeout_s: longest wait.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._vain: dict[str, float] = {}

    def timeout_s(self, sensor: str) -> float:
        """The longest wait, or 0 shortly after one in vain."""
        return 0.0 if time.monotonic() - self._vain.get(sensor, -PATIENCE_S) < PATIENCE_S else self._timeout_s

    def in_vain(self, sensor: str) -> None:
        """A wait has just been in vain."""
        if self.timeout_s(sensor):
            self._vain[sensor] = time.monotonic()


class Mounts:
    """Where the sensors sit.

    Args:
        parameters: of the node.
        transforms: from /tf and /tf_static, or from a rig file.
        patience: for transforms that are not there yet.
    """

    def __init__(self, parameters: NodeParameters, transforms: TfStore, patience: Patience) -> None:
        self._parameters = parameters
        self._transforms = transforms
        self._patience = patience

    @property
    def changes(self) -> int:
        """Grows when a sensor is found to sit elsewhere than was said before."""
        return self._transforms.static_changes

    def sensor2base(self, sensor: str, frame_id: str, stamp_ns: int, parameter: str) -> Matrix:
        """The transform (4, 4) from a sensor's frame to the base frame.

        Raises:
            DropFrame: it is not known; names both frames.
        """
        base = self._parameters.base_frame
        if not frame_id:
            raise DropFrame(
                NO_TRANSFORM,
                f"{sensor}: header.frame_id is empty, so its transform to {base!r} is not known: set it in the driver, "
                f"or set parameter {parameter}",
            )
        try:
            timeout_s = self._patience.timeout_s(sensor)
            return self._transforms.lookup(frame_id, base, stamp_ns, timeout_s=timeout_s)
        except TransformError as error:
            self._patience.in_vain(sensor)
            raise DropFrame(NO_TRANSFORM, f"{sensor}: {error}") from error


class CameraReader:
    """Reads pictures. Safe to use from several threads.

    Args:
        parameters: of the node.
        infos: calibrations from CameraInfo.
        mounts: where the cameras sit.
        motion: the vehicle's poses.
        rig: calibration from a file, in place of the first two, or None.
    """

    def __init__(
        self, parameters: NodeParameters, infos: CameraInfos, mounts: Mounts, motion: EgoMotion, rig: Rig | None
    ) -> None:
        self.frames: dict[str, str] = {}
        """Optical frame of each camera that was read."""
        self.least_width = 0
        """Columns below which no picture is decoded at a fraction of its size; 0: none is at all."""
        self._parameters = parameters
        self._cameras = {camera.name: camera for camera in parameters.cameras}
        self._infos = infos
        self._mounts = mounts
        self._motion = motion
        self._rig = rig
        self._patience = Patience(parameters.transform_timeout)

    def __call__(self, camera: str, picture: Stamped[Any], source: Source) -> CameraImage:
        """One picture.

        Raises:
            DropFrame: it cannot be used; says why, and what to do.
        """
        settings = self._cameras[camera]
        decoder = self._parameters.image_decoder
        image = picture_to_rgb(picture.item, name=camera, decoder=decoder, least_width=self.least_width)
        size = (image.shape[0], image.shape[1])
        whole = picture_size(picture.item) if self.least_width else size
        info_frame, lens = self._lens(settings, whole)
        if lens.distortion:
            seen = lens_of_reduced(lens, whole, size)
            image = undistort(image, seen.intrinsics, seen.model, seen.distortion, name=camera)
        mount = self._rig.cameras.get(camera) if self._rig else None
        named = settings.frame_id or (mount.frame_id if mount else "") or picture.item.header.frame_id or info_frame
        self.frames[camera] = named
        return CameraImage(
            name=camera,
            image=image,
            intrinsics=scale_intrinsics(lens.intrinsics, size[1] / whole[1]),
            cam2ego=self._mounts.sensor2base(camera, named, picture.stamp_ns, f"cameras.{camera}.frame_id"),
            ego2global=self._motion.base2fixed(source, picture.stamp_ns),
            stamp_ns=picture.stamp_ns,
        )

    def takes_time(self, pictures: Iterable[Stamped[Any]]) -> bool:
        """Whether reading them is more than looking at bytes, and so worth threads."""
        parameters = self._parameters
        views = parameters.image_decoder == BUILTIN and all(is_view(picture.item) for picture in pictures)
        return not views or parameters.distortion == UNDISTORT

    def _lens(self, camera: CameraParameters, size: tuple[int, int]) -> tuple[str, Lens]:
        """The frame that CameraInfo names, and the lens."""
        name = camera.name
        if self._rig and name in self._rig.calibrations:
            policy = self._parameters.distortion
            return "", choose_lens(self._rig.calibrations[name], size=size, policy=policy, name=name)
        info = self._infos.get(name, self._patience.timeout_s(name))
        if info is None:
            self._patience.in_vain(name)
            raise DropFrame(
                NO_CAMERA_INFO,
                f"{name}: no CameraInfo has come on {camera.info_topic!r}: publish it, set cameras.{name}.info_topic, "
                "or give the camera's intrinsics in rig_file",
            )
        lens = camera_info_to_lens(info, size=size, policy=self._parameters.distortion, name=name)
        return str(info.header.frame_id), lens


class LidarReader:
    """Reads clouds and merges those of several LiDARs, as if the first of them had seen everything at its own stamp.

    Args:
        parameters: of the node.
        mounts: where the LiDARs sit.
        motion: the vehicle's poses.
        rig: frames from a file, or None.
        counters: where points that were left out are counted.
    """

    def __init__(
        self,
        parameters: NodeParameters,
        mounts: Mounts,
        motion: EgoMotion,
        rig: Rig | None,
        counters: Counter[str],
    ) -> None:
        self.frame_id = ""
        """Of the last sweep."""
        self._parameters = parameters
        self._lidars = {lidar.name: lidar for lidar in parameters.lidars}
        self._mounts = mounts
        self._motion = motion
        self._rig_frames = {name: mount.frame_id for name, mount in rig.lidars.items()} if rig else {}
        self._counters = counters
        self._said: set[tuple[str, str]] = set()
        self._beams = BeamLayout(
            beams=parameters.lidar_beams,
            lowest_deg=parameters.lidar_lowest_beam,
            highest_deg=parameters.lidar_highest_beam,
        )

    def __call__(
        self, clouds: Mapping[str, Stamped[Any]], source: Source
    ) -> tuple[LidarSweep | None, dict[str, DropFrame]]:
        """One sweep of all clouds that can be read, None where there is none; and why the others cannot."""
        sweep: LidarSweep | None = None
        parts: list[NDArray[np.float32]] = []
        failed: dict[str, DropFrame] = {}
        for name, cloud in clouds.items():
            try:
                if sweep is None:
                    sweep = self._first(self._lidars[name], cloud, source)
                else:
                    parts.append(self._other(self._lidars[name], cloud, source, sweep))
            except DropFrame as error:
                failed[name] = error
        if sweep is None or not parts:
            return sweep, failed
        merged = LidarSweep(
            points=np.concatenate([sweep.points, *parts]),
            lidar2ego=sweep.lidar2ego,
            ego2global=sweep.ego2global,
            stamp_ns=sweep.stamp_ns,
        )
        return merged, failed

    def _first(self, lidar: LidarParameters, cloud: Stamped[Any], source: Source) -> LidarSweep:
        read, frame_id = self._read(lidar, cloud)
        lidar2ego = self._sensor2base(lidar, frame_id, cloud.stamp_ns)
        ego2global = self._motion.base2fixed(source, cloud.stamp_ns)
        points = read.points
        if self._is_smeared(read, source):
            points = self._bring(lidar, frame_id, read, cloud.stamp_ns, source, np.asarray(ego2global @ lidar2ego))
        self.frame_id = frame_id
        return LidarSweep(points=points, lidar2ego=lidar2ego, ego2global=ego2global, stamp_ns=cloud.stamp_ns)

    def _other(
        self, lidar: LidarParameters, cloud: Stamped[Any], source: Source, first: LidarSweep
    ) -> NDArray[np.float32]:
        read, frame_id = self._read(lidar, cloud)
        return self._bring(
            lidar, frame_id, read, cloud.stamp_ns, source, np.asarray(first.ego2global @ first.lidar2ego)
        )

    def _is_smeared(self, read: Cloud, source: Source) -> bool:
        """Whether the points were measured at different times, and what the vehicle did meanwhile is known."""
        moved = self._parameters.lidar_deskew and source is not Source.NONE
        return moved and read.times_ns is not None and bool(read.times_ns.any())

    def _bring(
        self,
        lidar: LidarParameters,
        frame_id: str,
        read: Cloud,
        stamp_ns: int,
        source: Source,
        target2fixed: Matrix,
    ) -> NDArray[np.float32]:
        """The points in the axes of the first LiDAR at its stamp."""

        def sensor2fixed_at(at_ns: int) -> Matrix:
            sensor2base = self._sensor2base(lidar, frame_id, at_ns)
            return np.asarray(self._motion.base2fixed(source, at_ns) @ sensor2base)

        times_ns = (
            stamp_ns + read.times_ns if self._is_smeared(read, source) and read.times_ns is not None else stamp_ns
        )
        return bring_points(read.points, times_ns, sensor2fixed_at, target2fixed)

    def _read(self, lidar: LidarParameters, cloud: Stamped[Any]) -> tuple[Cloud, str]:
        parameters = self._parameters
        read = cloud_to_points(
            cloud.item,
            beams=self._beams,
            intensity_scale=parameters.lidar_intensity_scale,
            name=lidar.topic,
            reader=parameters.lidar_reader,
            max_points=parameters.lidar_max_points,
        )
        self._counters[NAN_POINTS] += read.dropped
        for column in read.filled:
            self._say(lidar, f"has no field {column!r}: it is {self._filled(column)}")
        if read.odd_times and parameters.lidar_deskew:
            self._say(lidar, "has times of points in a unit that is not known: its points are taken as of one moment")
        return read, lidar.frame_id or self._rig_frames.get(lidar.name, "") or str(cloud.item.header.frame_id)

    def _filled(self, column: str) -> str:
        if column == "intensity":
            return "taken as 0"
        return f"derived from the elevation for {self._beams.beams} beams (parameters lidar.*_beam*)"

    def _say(self, lidar: LidarParameters, text: str) -> None:
        """Into the log, once."""
        if (lidar.name, text) not in self._said:
            self._said.add((lidar.name, text))
            log.warning("%s %s", lidar.topic, text)

    def _sensor2base(self, lidar: LidarParameters, frame_id: str, stamp_ns: int) -> Matrix:
        return self._mounts.sensor2base(lidar.topic, frame_id, stamp_ns, lidar.frame_parameter)

"""Messages, in whatever order they come, to moments to look at: a sweep, the pictures nearest to it, the answer to it.

Used for bags and for live topics alike. Messages are kept as they come and read only when their moment is shown.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusionocc_core.structures import Occupancy
from fusionocc_core.viz.view_frame import ViewFrame
from fusionocc_ros.assemble import Assembler, Moment
from fusionocc_ros.causes import DropFrame
from fusionocc_ros.convert import odometry_to_matrix, stamp_to_ns, transform_to_matrix
from fusionocc_ros.ego_motion import EgoMotion
from fusionocc_ros.occupancy_messages import message_to_occupancy
from fusionocc_ros.parameters import CameraParameters, NodeParameters
from fusionocc_ros.readers import CameraInfos
from fusionocc_ros.sync import SensorSet, Stamped
from fusionocc_ros.sync_types import LIDAR
from fusionocc_ros.tf_store import TfStore
from fusionocc_ros.view_topics import TF, TF_STATIC, ViewTopics

S = 1_000_000_000

NEAR_NS = S // 10
"""A picture further than this from the sweep does not belong to it."""

LOOKAHEAD_NS = 12 * S // 100
"""A sweep is shown when messages of this much later have come, so that none of its pictures is still under way ..."""

ANSWER_NS = 2 * S
"""... or, where a node answers, when its answer has come or messages of this much later."""

KEPT = 64
"""Messages of each sensor, and sweeps that wait."""

FOREVER_NS = 10**18

Load = Callable[[], Any]
"""Gives a message: as it is, or by reading its bytes."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    stamp_ns: int
    load: Load


class ViewMoments:
    """Collects messages and hands out moments. Fill it from one thread, read from another.

    Args:
        topics: what is looked at.
        keep_poses: keep transforms for ever, as for a bag that is read in two passes.
        camera_history: earlier keyframes of pictures that a network wants.
        lidar_history: the same of sweeps.
    """

    def __init__(
        self, topics: ViewTopics, *, keep_poses: bool = False, camera_history: int = 0, lidar_history: int = 0
    ) -> None:
        self.topics = topics
        buffer_ns = FOREVER_NS if keep_poses else 20 * S
        self._transforms = TfStore(buffer_ns=buffer_ns, tolerance_ns=S // 5)
        self._odometry = TfStore(buffer_ns=buffer_ns, tolerance_ns=S // 5)
        self._infos = CameraInfos()
        self._motion = EgoMotion(
            policy="auto",
            base_frame=topics.base_frame,
            fixed_frame=topics.fixed_frame,
            transforms=self._transforms,
            odometry=self._odometry,
            timeout_s=0.05,
        )
        self._assembler = Assembler(_parameters(topics), self._infos, self._transforms, self._motion, None)
        self._assembler.remember(camera_history=camera_history, lidar_history=lidar_history)
        self._pictures: dict[str, deque[_Kept]] = {camera.name: deque(maxlen=KEPT) for camera in topics.cameras}
        self._camera_of = {camera.picture: camera.name for camera in topics.cameras}
        self._info_of = {camera.info: camera.name for camera in topics.cameras}
        self._waiting: deque[_Kept] = deque(maxlen=KEPT)
        self._answers: dict[int, _Kept] = {}
        self._latest_ns = 0
        self._lock = threading.Lock()
        self.refused: dict[str, int] = {}
        """Why moments could not be shown, and how many."""

    def close(self) -> None:
        """End the decoding threads."""
        self._assembler.close()

    def take(self, topic: str, stamp_ns: int, load: Load) -> None:
        """Keep a message; of poses and calibration, use it at once."""
        if topic in (TF, TF_STATIC):
            self._take_transforms(load(), static=topic == TF_STATIC)
        elif topic in self._info_of:
            self._infos.put(self._info_of[topic], load())
        elif topic == self.topics.odometry:
            self._take_odometry(load())
        else:
            self._take_sensor(topic, _Kept(stamp_ns=stamp_ns, load=load))

    def _take_sensor(self, topic: str, kept: _Kept) -> None:
        with self._lock:
            if kept.stamp_ns < self._latest_ns - 5 * S:  # a bag that began anew, a restarted simulation
                self._waiting.clear()
                self._answers.clear()
                self._latest_ns = 0
                for pictures in self._pictures.values():
                    pictures.clear()
            self._latest_ns = max(self._latest_ns, kept.stamp_ns)
            if topic in self._camera_of:
                self._pictures[self._camera_of[topic]].append(kept)
                if not self.topics.lidar and topic == self.topics.cameras[0].picture:
                    self._waiting.append(kept)
            elif topic == self.topics.lidar:
                self._waiting.append(kept)
            elif topic == self.topics.occupancy:
                self._answers[kept.stamp_ns] = kept
                if not self.topics.lidar and not self.topics.cameras:
                    self._waiting.append(kept)
                while len(self._answers) > KEPT:
                    del self._answers[min(self._answers)]

    def next(self, *, newest: bool = False, at_end: bool = False) -> ViewFrame | None:
        """The next moment whose messages are there; None while there is none.

        Args:
            newest: leave out all but the last that is ready, to keep up with a running system.
            at_end: nothing more will come: do not wait for later messages.
        """
        while True:
            with self._lock:
                kept = self._pop(newest, at_end)
                if kept is None:
                    return None
                answer = self._answers.pop(kept.stamp_ns, None)
                chosen = {name: one for name in self._pictures if (one := self._nearest(name, kept.stamp_ns))}
            try:
                return self._show(kept, chosen, answer)
            except (DropFrame, ValueError) as error:
                self.refused[str(error)] = self.refused.get(str(error), 0) + 1

    def _pop(self, newest: bool, at_end: bool) -> _Kept | None:
        ready = None
        while self._waiting and (at_end or self._is_ready(self._waiting[0])):
            ready = self._waiting.popleft()
            if not newest:
                break
        return ready

    def _is_ready(self, kept: _Kept) -> bool:
        passed_ns = self._latest_ns - kept.stamp_ns
        if not self.topics.occupancy:
            return passed_ns >= LOOKAHEAD_NS
        return kept.stamp_ns in self._answers or passed_ns >= ANSWER_NS

    def _nearest(self, camera: str, stamp_ns: int) -> _Kept | None:
        best = min(self._pictures[camera], key=lambda one: abs(one.stamp_ns - stamp_ns), default=None)
        return best if best is not None and abs(best.stamp_ns - stamp_ns) <= NEAR_NS else None

    def _show(self, kept: _Kept, chosen: dict[str, _Kept], answer: _Kept | None) -> ViewFrame:
        """Read what belongs to a moment.

        Raises:
            DropFrame, ValueError: nothing of it can be read.
        """
        message = None if answer is None else answer.load()
        prediction = None if message is None else self._occupancy(message)
        latencies = {} if message is None else _latencies(message)
        if not self.topics.lidar and not chosen:
            return ViewFrame(stamp_ns=kept.stamp_ns, ego2global=np.eye(4), prediction=prediction, latencies_s=latencies)
        clouds = {LIDAR: Stamped(stamp_ns=kept.stamp_ns, item=kept.load())} if self.topics.lidar else {}
        pictures = {name: Stamped(stamp_ns=one.stamp_ns, item=one.load()) for name, one in chosen.items()}
        moment = Moment(
            SensorSet(stamp_ns=kept.stamp_ns, pictures=pictures, clouds=clouds, arrived_ns=0, released_ns=0, epoch=0)
        )
        self._assembler.offer(moment)
        frame = self._assembler.assemble(moment).frame
        return ViewFrame(
            stamp_ns=frame.stamp_ns,
            ego2global=frame.ego2global,
            sensors=frame,
            prediction=prediction,
            latencies_s=latencies,
        )

    def _occupancy(self, message: Any) -> Occupancy:
        in_ego = message.header.frame_id.lstrip("/") == self.topics.base_frame
        return replace(message_to_occupancy(message, frame="ego" if in_ego else "lidar"), confidence=None)

    def _take_transforms(self, message: Any, *, static: bool) -> None:
        for entry in message.transforms:
            parent, child = entry.header.frame_id, entry.child_frame_id
            matrix = transform_to_matrix(entry.transform)
            if static:
                self._transforms.set_static(parent, child, matrix)
            else:
                self._transforms.add(parent, child, stamp_to_ns(entry.header.stamp), matrix)

    def _take_odometry(self, message: Any) -> None:
        fixed, moved = message.header.frame_id or "odom", message.child_frame_id or self.topics.base_frame
        self._odometry.add(fixed, moved, stamp_to_ns(message.header.stamp), odometry_to_matrix(message))
        self._motion.odometry_frames(moved, fixed)


def _latencies(message: Any) -> dict[str, float]:
    """What the node says of its own speed, seconds."""
    steps = ("synchronization", "queue", "preparation", "network", "decoding", "total")
    return {step: float(getattr(message, f"{step}_time")) for step in steps}


def _parameters(topics: ViewTopics) -> NodeParameters:
    """The node's defaults with these topics; pictures are taken as they are, and nothing is waited for."""
    return NodeParameters(
        camera_names=tuple(camera.name for camera in topics.cameras),
        cameras=tuple(
            CameraParameters(name=camera.name, image_topic=camera.picture, info_topic=camera.info)
            for camera in topics.cameras
        ),
        lidar_topic=topics.lidar or ("" if topics.cameras else "lidar_top"),
        sync_min_cameras=0,
        distortion="undistort",
        base_frame=topics.base_frame,
        fixed_frame=topics.fixed_frame,
        transform_timeout=0.05,
    )

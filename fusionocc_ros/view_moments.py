"""Messages, in whatever order they come, to moments to look at: a sweep, the pictures nearest to it, the answer to it.

Used for bags and for live topics alike. Messages are kept as they come and read only when their moment is shown.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fusionocc_core.gaussians import GaussianCloud
from fusionocc_core.structures import Occupancy
from fusionocc_core.viz.view_frame import ViewFrame
from fusionocc_ros.assemble import Assembler, Moment
from fusionocc_ros.causes import CAUSES, NO_MESSAGE, DropFrame
from fusionocc_ros.convert import odometry_to_matrix, stamp_to_ns, transform_to_matrix
from fusionocc_ros.ego_motion import EgoMotion
from fusionocc_ros.gaussian_markers import markers_to_gaussians
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
"""... or, where a node answers, when its answer has come, the answer to a later one, or messages of this much later."""

QUIET = 3
"""A node whose answers come later than that has ended when none has come for so many times as long as they took."""

RESTART_NS = S
"""A topic whose stamps go back further is of a bag that began anew, or of a simulation that was restarted."""

GAUSSIANS_NS, GAUSSIANS_S = 3 * S // 10, 0.1
"""An answer is shown without its Gaussians when messages of this much later have come since; of a running system also
when so much time has passed."""

KEPT = 64
"""Messages of each sensor, and sweeps that wait."""

FOREVER_NS = 10**18
NEVER_NS = -FOREVER_NS

Load = Callable[[], Any]
"""Gives a message: as it is, or by reading its bytes."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    stamp_ns: int
    load: Load
    seen_ns: int = 0
    """The latest stamp of all messages when it came."""
    seen_s: float = field(default_factory=time.monotonic)
    """When it came."""
    is_sensor: bool = True


class ViewMoments:
    """Collects messages and hands out moments. Fill it from one thread, read from another.

    Args:
        topics: what is looked at.
        keep_poses: keep transforms for ever, as for a bag that is read in two passes.
        camera_history: earlier keyframes of pictures that a network wants.
        lidar_history: the same of sweeps.
        is_live: messages come as they are made, so that time passes between them.
    """

    def __init__(
        self,
        topics: ViewTopics,
        *,
        keep_poses: bool = False,
        camera_history: int = 0,
        lidar_history: int = 0,
        is_live: bool = False,
    ) -> None:
        self._is_live = is_live
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
        self._assembler.serve(camera_history=camera_history, lidar_history=lidar_history, least_width=0)
        self._pictures: dict[str, deque[_Kept]] = {camera.name: deque(maxlen=KEPT) for camera in topics.cameras}
        self._camera_of = {camera.picture: camera.name for camera in topics.cameras}
        self._info_of = {camera.info: camera.name for camera in topics.cameras}
        self._waiting: deque[_Kept] = deque(maxlen=KEPT)
        self._answers: dict[int, _Kept] = {}
        self._gaussians: dict[int, _Kept] = {}
        # A running node offers them whatever its network has; a bag has the topic because something was recorded.
        self._has_gaussians = bool(topics.gaussians) and not is_live
        self._last_ns: dict[str, int] = {}
        self._restart_ns = NEVER_NS
        self._latest_ns = self._answered_ns = 0
        self._shown_ns = NEVER_NS
        self._late_ns = self._last_answer_ns = 0
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
        elif topic == self.topics.gaussians:
            self._take_gaussians(_Kept(stamp_ns=stamp_ns, load=load))
        else:
            with self._lock:
                self._take_sensor(topic, stamp_ns, load)

    def _take_sensor(self, topic: str, stamp_ns: int, load: Load) -> None:
        is_answer = topic == self.topics.occupancy
        if stamp_ns < self._last_ns.get(topic, stamp_ns) - RESTART_NS:
            self._forget(stamp_ns)
            self._restart_ns = stamp_ns
        is_recent = self._latest_ns < self._restart_ns + 3 * RESTART_NS
        if is_answer and is_recent and 0 < self._latest_ns < stamp_ns - RESTART_NS // 2:
            return  # to a sweep of the round before
        self._last_ns[topic] = stamp_ns
        self._latest_ns = max(self._latest_ns, stamp_ns)
        kept = _Kept(stamp_ns=stamp_ns, load=load, seen_ns=self._latest_ns, is_sensor=not is_answer)
        if topic in self._camera_of:
            self._pictures[self._camera_of[topic]].append(kept)
            if not self.topics.lidar and topic == self.topics.cameras[0].picture:
                self._waiting.append(kept)
        elif topic == self.topics.lidar:
            self._waiting.append(kept)
        elif is_answer:
            self._take_answer(kept)

    def _forget(self, stamp_ns: int) -> None:
        """Drop what is later: it is of the round before. Topics begin anew one after the other, out of order."""
        self._last_ns.clear()  # the other topics will go back as well
        until_ns = stamp_ns + RESTART_NS // 2
        for queue in (self._waiting, *self._pictures.values()):
            kept = [one for one in queue if one.stamp_ns <= until_ns]
            queue.clear()
            queue.extend(kept)
        for stored in (self._answers, self._gaussians):
            for late in [stamp for stamp in stored if stamp > until_ns]:
                del stored[late]
        self._latest_ns = stamp_ns
        self._answered_ns = 0
        self._shown_ns = NEVER_NS
        self._late_ns = self._last_answer_ns = 0

    def _take_answer(self, kept: _Kept) -> None:
        took_ns = self._latest_ns - kept.stamp_ns
        self._late_ns, self._last_answer_ns = took_ns if took_ns > ANSWER_NS else 0, self._latest_ns
        if kept.stamp_ns <= self._shown_ns:
            return  # its moment has been shown: only the next ones are waited for
        self._answers[kept.stamp_ns] = kept
        self._answered_ns = max(self._answered_ns, kept.stamp_ns)
        while len(self._answers) > KEPT:
            del self._answers[min(self._answers)]
        if all(kept.stamp_ns != one.stamp_ns for one in self._waiting):
            # A LiDAR that is silent, or a node so slow that the sweep is not kept any more: shown by itself.
            if len(self._waiting) == KEPT:
                self._waiting.popleft()
            self._waiting.insert(sum(one.stamp_ns < kept.stamp_ns for one in self._waiting), kept)

    def _take_gaussians(self, kept: _Kept) -> None:
        with self._lock:
            self._has_gaussians = True
            self._gaussians[kept.stamp_ns] = kept
            while len(self._gaussians) > KEPT:
                del self._gaussians[min(self._gaussians)]

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
                self._shown_ns = kept.stamp_ns
                answer = self._answers.pop(kept.stamp_ns, None)
                gaussians = self._gaussians.pop(kept.stamp_ns, None)
                chosen = {name: one for name in self._pictures if (one := self._nearest(name, kept.stamp_ns))}
            try:
                return self._show(kept, chosen, answer, gaussians)
            except (DropFrame, ValueError) as error:
                self.refused[str(error)] = self.refused.get(str(error), 0) + 1

    def _pop(self, newest: bool, at_end: bool) -> _Kept | None:
        ready = None
        while self._waiting and (at_end or self._is_ready(self._waiting[0])):
            first = self._waiting.popleft()
            if first.stamp_ns <= self._shown_ns:
                continue
            ready = first
            if not newest:
                break
        return ready

    def _is_ready(self, kept: _Kept) -> bool:
        passed_ns = self._latest_ns - kept.stamp_ns
        if not self.topics.occupancy:
            return passed_ns >= LOOKAHEAD_NS
        answer = self._answers.get(kept.stamp_ns)
        if answer is None:
            is_quiet = self._latest_ns - self._last_answer_ns >= QUIET * self._late_ns
            # Nodes answer in the order of time: what lies before an answer gets none any more.
            return kept.stamp_ns < self._answered_ns or (passed_ns >= ANSWER_NS and is_quiet)
        complete = not self._has_gaussians or kept.stamp_ns in self._gaussians
        late = self._is_live and time.monotonic() - answer.seen_s >= GAUSSIANS_S
        return complete or late or self._latest_ns - answer.seen_ns >= GAUSSIANS_NS

    def _nearest(self, camera: str, stamp_ns: int) -> _Kept | None:
        best = min(self._pictures[camera], key=lambda one: abs(one.stamp_ns - stamp_ns), default=None)
        return best if best is not None and abs(best.stamp_ns - stamp_ns) <= NEAR_NS else None

    def _show(self, kept: _Kept, chosen: dict[str, _Kept], answer: _Kept | None, gaussians: _Kept | None) -> ViewFrame:
        """Read what belongs to a moment.

        Raises:
            DropFrame, ValueError: nothing of it can be read.
        """
        message = None if answer is None else answer.load()
        prediction = None if message is None else self._occupancy(message, gaussians)
        latencies = {} if message is None else _latencies(message)
        with_cloud = bool(self.topics.lidar) and kept.is_sensor
        if not with_cloud and not chosen:
            beside = self.topics.lidar or self.topics.cameras
            return ViewFrame(
                stamp_ns=kept.stamp_ns,
                ego2global=self._motion.locate(kept.stamp_ns)[1] if beside else np.eye(4),
                prediction=prediction,
                latencies_s=latencies,
                notes=_notes(message),
            )
        clouds = {LIDAR: Stamped(stamp_ns=kept.stamp_ns, item=kept.load())} if with_cloud else {}
        pictures = {name: Stamped(stamp_ns=one.stamp_ns, item=one.load()) for name, one in chosen.items()}
        moment = Moment(
            SensorSet(stamp_ns=kept.stamp_ns, pictures=pictures, clouds=clouds, arrived_ns=0, released_ns=0, epoch=0)
        )
        self._assembler.offer(moment)
        assembled = self._assembler.assemble(moment)
        frame = assembled.frame
        absent = {name: NO_MESSAGE for name in self._pictures if name not in chosen}
        return ViewFrame(
            stamp_ns=frame.stamp_ns,
            ego2global=frame.ego2global,
            sensors=frame,
            prediction=prediction,
            latencies_s=latencies,
            notes=_notes(message, {**absent, **assembled.missing}),
        )

    def _occupancy(self, message: Any, gaussians: _Kept | None) -> Occupancy:
        in_ego = message.header.frame_id.lstrip("/") == self.topics.base_frame
        occupancy = message_to_occupancy(message, frame="ego" if in_ego else "lidar")
        return replace(occupancy, confidence=None, gaussians=self._cloud(gaussians, occupancy, message.header.frame_id))

    def _cloud(self, kept: _Kept | None, occupancy: Occupancy, frame_id: str) -> GaussianCloud | None:
        """The Gaussians of an answer; None where there are none, or none that can be read."""
        if kept is None:
            return None
        try:
            message = kept.load()
            strange = {marker.header.frame_id for marker in message.markers} - {frame_id}
            if strange:
                raise ValueError(f"markers in frame {', '.join(sorted(strange))}: expected the answer's, {frame_id}")
            return markers_to_gaussians(message, occupancy.label_set, deviations=self.topics.deviations)
        except ValueError as error:
            reason = f"{self.topics.gaussians}: {error}"
            self.refused[reason] = self.refused.get(reason, 0) + 1
            return None

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


def message_stamp_ns(message: Any) -> int:
    """The stamp of a message, or of the first marker of several; 0 where it has none."""
    headed: Any = next(iter(message.markers), None) if hasattr(message, "markers") else message
    return stamp_to_ns(headed.header.stamp) if hasattr(headed, "header") else 0


def _notes(message: Any, absent: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Which sensors did not take part in an answer, and why; without an answer, which ones we have nothing of."""
    missing = dict(zip(message.missing, message.missing_causes, strict=False)) if message is not None else absent or {}
    return tuple(
        f"{sensor}: no message" if cause == NO_MESSAGE else f"{sensor}: {cause}, {CAUSES.get(cause, 'cause unknown')}"
        for sensor, cause in missing.items()
    )


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

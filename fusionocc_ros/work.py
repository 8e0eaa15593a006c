"""What the worker does with a set: frame, network, messages; and what becomes of a set that fails."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_ros.assemble import Assembled, Assembler, Moment, now_ns
from fusionocc_ros.causes import INTERNAL_ERROR, PREDICTION_FAILED, STOPPED_IN_WORK, SUPERSEDED, DropFrame
from fusionocc_ros.diagnostics import Statistics
from fusionocc_ros.ego_motion import Source
from fusionocc_ros.engine import Engine
from fusionocc_ros.occupancy_messages import Provenance
from fusionocc_ros.parameters import NodeParameters
from fusionocc_ros.sync import SensorSet
from fusionocc_ros.worker import LatestWorker


class Publisher(Protocol):
    """Where results go."""

    def publish(self, occupancy: Occupancy, provenance: Provenance) -> None:
        """Publish one result."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    moment: Moment
    generation: int
    """How many pauses had been before it was offered."""


class Work:
    """Runs the network in a thread of its own on the newest set, publishes, counts.

    Args:
        parameters: of the node.
        engine: the network.
        assembler: makes frames.
        outputs: where results go.
        statistics: where they are counted.
        on_drop: told why a set gave nothing: cause and message; called from any thread.
        on_source: told when the source of ego motion has changed.
    """

    def __init__(
        self,
        parameters: NodeParameters,
        *,
        engine: Engine,
        assembler: Assembler,
        outputs: Publisher,
        statistics: Statistics,
        on_drop: Callable[[str, str], None],
        on_source: Callable[[Source], None],
    ) -> None:
        self._parameters = parameters
        self._engine = engine
        self._assembler = assembler
        self._outputs = outputs
        self._statistics = statistics
        self._on_drop = on_drop
        self._on_source = on_source
        self._publishing = threading.Lock()
        self._active = False
        self._generation = 0
        self._mounts = 0
        assembler.serve(
            camera_history=engine.camera_history,
            lidar_history=engine.lidar_history,
            least_width=engine.least_width if parameters.reduce_pictures else 0,
        )
        self._worker: LatestWorker[_Task] = LatestWorker(self._run, self._overtaken, name="fusionocc")

    @property
    def in_hand(self) -> int:
        """Sets that wait or are worked on."""
        return self._worker.in_hand

    def start(self) -> None:
        """Publish from now on."""
        with self._publishing:
            self._active = True

    def pause(self) -> None:
        """Publish nothing of what was offered so far, even after a new ``start``: it is dropped and counted."""
        with self._publishing:
            self._active = False
            self._generation += 1

    def offer(self, sensors: SensorSet[Any]) -> None:
        """Hand a set to the worker; also keeps it as an earlier keyframe of those to come."""
        moment = Moment(sensors)
        self._assembler.offer(moment)
        with self._publishing:
            task = _Task(moment=moment, generation=self._generation)
        self._worker.offer(task)

    def forget(self) -> None:
        """Forget all earlier keyframes, and what the network remembers of them."""
        self._assembler.forget()
        self._engine.forget()

    def close(self, timeout_s: float) -> bool:
        """End the thread; False where the network is still at work after ``timeout_s``."""
        self.pause()
        self._worker.stop()
        ended = self._worker.join(timeout_s)
        self._assembler.close()
        return ended

    def _wanted(self, task: _Task) -> bool:
        """Whether the result may be published; holds only as long as the lock is held."""
        return self._active and task.generation == self._generation

    def _overtaken(self, task: _Task) -> None:
        with self._publishing:
            cause = SUPERSEDED if self._wanted(task) else STOPPED_IN_WORK
        self._statistics.drop(cause)

    def _run(self, task: _Task) -> None:
        taken_ns, moment = now_ns(), task.moment
        with self._publishing:
            wanted = self._wanted(task)
        if not wanted:
            self._statistics.drop(STOPPED_IN_WORK)
            return
        try:
            assembled = self._assembler.assemble(moment)
            read_ns = now_ns()
            if self._statistics.follow(assembled.source):
                self._on_source(assembled.source)
                self._engine.forget()  # the poses are in another frame from now on
            if assembled.source is Source.NONE or assembled.mounts != self._mounts:
                self._engine.forget()
            self._mounts = assembled.mounts
            occupancy = self._predict(assembled.frame)
            self._publish(task, assembled, occupancy, taken_ns, read_ns)
        except DropFrame as error:
            self._drop(error.cause, str(error))
        except Exception:  # noqa: BLE001 (one bad frame must not end the thread, and the traceback is logged)
            self._drop(INTERNAL_ERROR, traceback.format_exc())

    def _predict(self, frame: SensorFrame) -> Occupancy:
        try:
            return self._engine.predict(frame)
        except (ValueError, RuntimeError) as error:
            raise DropFrame(PREDICTION_FAILED, f"the network failed: {error}") from error

    def _drop(self, cause: str, message: str) -> None:
        self._on_drop(cause, message)
        self._statistics.drop(cause)

    def _publish(self, task: _Task, assembled: Assembled, occupancy: Occupancy, taken_ns: int, read_ns: int) -> None:
        moment, frame, timings = task.moment, assembled.frame, occupancy.timings
        times = {
            "synchronization": (moment.released_ns - moment.arrived_ns) / 1e9,
            "queue": (taken_ns - moment.released_ns) / 1e9,
            "preparation": (read_ns - taken_ns) / 1e9 + (timings.prepare_s if timings else 0.0),
            "network": timings.network_s if timings else (now_ns() - read_ns) / 1e9,
            "decoding": timings.decode_s if timings else 0.0,
        }
        in_ego = occupancy.grid.frame == "ego"
        with self._publishing:
            if not self._wanted(task):
                self._statistics.drop(STOPPED_IN_WORK)
                return
            times["total"] = (now_ns() - moment.arrived_ns) / 1e9
            provenance = Provenance(
                frame_id=self._parameters.base_frame if in_ego else assembled.lidar_frame_id,
                cameras=tuple(camera.name for camera in frame.cameras),
                camera_ages=tuple((frame.stamp_ns - camera.stamp_ns) / 1e9 for camera in frame.cameras),
                missing=assembled.missing,
                ego_motion=assembled.source.value,
                camera_history=len(frame.camera_history),
                lidar_history=len(frame.lidar_history),
                times=times,
                sensors=frame,
                camera_frames=assembled.camera_frames,
                base_frame=self._parameters.base_frame,
                fixed_frame=self._parameters.fixed_frame if assembled.source is Source.TF else "",
            )
            self._outputs.publish(occupancy, provenance)
            self._statistics.publish(total_s=times["total"], network_s=times["network"])

"""One worker: takes units until all are done, by itself or by others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import torch

from fusionocc_core.fleet.claims import LEASE_S, Claim, Claims, Heartbeat
from fusionocc_core.fleet.store import KeyframeRecord, Store, UnitRecord
from fusionocc_core.fleet.units import DataSet, Unit
from fusionocc_core.structures import Occupancy, SensorFrame

logger = logging.getLogger(__name__)

BAD_KEYFRAME = (ValueError, OSError, RuntimeError)
"""What reading or predicting a keyframe may end with; anything else is a bug of ours and ends the worker."""

LONGEST_WAIT_S = 1.0
"""Between two looks at what the others do."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a worker has to know; goes to other processes by pickle."""

    out: Path
    data: tuple[DataSet, ...]
    units: tuple[Unit, ...]
    predictor: Callable[[str], Callable[[SensorFrame], Occupancy]]
    """Makes a predictor (with confidence) on a device: called once in each worker."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; with auto and several GPUs each worker of a machine takes the next one."""
    pictures: bool = True
    threads: int = 1
    """Of PyTorch and of OpenCV in each worker."""
    lease_s: float = LEASE_S

    @property
    def keyframes(self) -> int:
        """How many there are."""
        return sum(map(len, self.units))


def predictor_of(job: Job, local_number: int) -> Callable[[SensorFrame], Occupancy]:
    """The predictor of a worker process, whose number of threads is set as well.

    Args:
        job: says how it is made.
        local_number: of the worker among those of this machine, by which it chooses a GPU.
    """
    torch.set_num_threads(job.threads)
    cv2.setNumThreads(job.threads)
    devices = torch.cuda.device_count() if job.device == "auto" else 0
    return job.predictor(f"cuda:{local_number % devices}" if devices else job.device)


class Stopped(Exception):
    """The worker was asked to stop before everything was done."""


class Worker:
    """Takes units and predicts their keyframes.

    Args:
        job: what is to be done.
        predictor: SensorFrame -> Occupancy with confidence.
        place: which worker this is, and of how many: each begins in another part of the list.
        asked_to_stop: looked at between keyframes.
    """

    def __init__(
        self,
        job: Job,
        predictor: Callable[[SensorFrame], Occupancy],
        *,
        place: tuple[int, int] = (0, 1),
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.job, self.predictor, self.asked_to_stop = job, predictor, asked_to_stop
        self.store = Store(job.out)
        self.claims = Claims(self.store.claims, lease_s=job.lease_s)
        begin = len(job.units) * place[0] // place[1]
        self._order = (*job.units[begin:], *job.units[:begin])

    def run(self) -> None:
        """Until every unit is done.

        Raises:
            Stopped: ``asked_to_stop``; the unit in work has been given back.
            OSError: results cannot be written.
        """
        while open_units := self._open_units():
            if sum(self._try(unit) for unit in open_units) == 0:
                self._wait()
        self.store.tidy()

    def do(self, unit: Unit) -> UnitRecord:
        """One unit, by this worker or by whoever has it.

        Raises:
            Stopped, OSError: as ``run``.
        """
        while not self.store.is_done(unit.name):
            if not self._try(unit):
                self._wait()
        return self.store.record(unit.name)

    def _open_units(self) -> tuple[Unit, ...]:
        done = self.store.done()
        return tuple(unit for unit in self._order if unit.name not in done)

    def _wait(self) -> None:
        if self.asked_to_stop():
            raise Stopped
        time.sleep(min(LONGEST_WAIT_S, self.job.lease_s / 4))

    def _try(self, unit: Unit) -> bool:
        """Do a unit unless somebody else has it or has done it; True where it was this worker's turn."""
        claim = None if self.store.is_done(unit.name) else self.claims.take(unit.name)
        if claim is None:
            return False
        try:
            if not self.store.is_done(unit.name):  # by another between the two lines above
                self._work(unit, claim)
        finally:
            claim.release()
        return True

    def _work(self, unit: Unit, claim: Claim) -> None:
        began, began_cpu_s, keyframes = time.time(), time.process_time(), []
        with Heartbeat(claim, lease_s=self.job.lease_s) as heart:
            for index in range(unit.first, unit.stop):
                if self.asked_to_stop():
                    raise Stopped
                if not claim.is_newest():
                    logger.warning("%s was taken over by another worker; left to it", unit.name)
                    return
                keyframes.append(self._keyframe(self.job.data[unit.data], index))
                heart.keyframes = len(keyframes)
        self.store.add(
            UnitRecord(
                unit=unit.name,
                worker=str(self.claims.owner),
                began_unix_s=began,
                ended_unix_s=time.time(),
                cpu_s=time.process_time() - began_cpu_s,
                keyframes=tuple(keyframes),
            )
        )

    def _keyframe(self, data: DataSet, index: int) -> KeyframeRecord:
        """The results of a keyframe, or why there are none."""
        keyframe, pictures = data.frames.keyframe(index), self.job.pictures
        known = KeyframeRecord(token=keyframe.token, data=data.name, scene=keyframe.scene, stamp_ns=keyframe.stamp_ns)
        try:
            stamp_ns = data.frames.stamp_ns(index)
        except ValueError as error:  # no sensor at all
            return replace(known, error=_in_one_line(error))
        earlier = self.store.paths(data.name, keyframe.scene, stamp_ns).complete(pictures=pictures)
        error_text = "" if earlier else self._predict(data, index)
        if error_text:
            return replace(known, stamp_ns=stamp_ns, error=error_text)
        written = self.store.written(data.name, keyframe.scene, stamp_ns, pictures=pictures)
        return replace(known, stamp_ns=stamp_ns, files=written, earlier=earlier)

    def _predict(self, data: DataSet, index: int) -> str:
        """Predict and publish; gives the reason where that is impossible."""
        try:
            frame = data.frames[index]
            occupancy = self.predictor(frame)
        except BAD_KEYFRAME as error:
            return _in_one_line(error)
        self.store.publish(data.name, frame, occupancy, pictures=self.job.pictures)
        return ""


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

"""The approximate-time policy of message_filters in the place of our own synchroniser, where a ROS installation has it.

It looks for sets of messages that lie close together, without an anchor: every message is used once, every camera is
needed, and a sweep without a set of its own is dropped (cause ``unmatched``). docs/ros.md compares the two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from fusionocc_ros.sync import STOPPED, UNMATCHED, ZERO_STAMP, SensorSet, Stamped, SyncConfig, SyncCounters

QUEUE = 20
"""Messages that message_filters keeps of each sensor."""
MOST_WAITING = 100
"""Sweeps whose fate may be open."""


class ApproximateTimeSync:
    """The same interface as LidarAnchoredSync. Items must be messages with a header.

    Args:
        config: cameras and tolerance; the rest has no meaning to this policy.
        clock: as for LidarAnchoredSync.

    Raises:
        ValueError: message_filters is not installed.
    """

    def __init__(self, config: SyncConfig, clock: Callable[[], int]) -> None:
        try:
            from message_filters import ApproximateTimeSynchronizer, SimpleFilter
        except ImportError as error:
            raise ValueError(
                "sync.policy: approximate_time needs message_filters, which comes with a ROS installation (apt install "
                "ros-$ROS_DISTRO-message-filters) and is not on PyPI; use lidar_anchored"
            ) from error
        self.config = config
        self.counters = SyncCounters()
        self.epoch = 0
        self._clock = clock
        self._waiting: deque[tuple[int, int]] = deque()
        self._ready: list[SensorSet[Any]] = []
        self._lidar = SimpleFilter()
        self._cameras = {name: SimpleFilter() for name in config.cameras}
        self._matcher = ApproximateTimeSynchronizer(
            [self._lidar, *self._cameras.values()], QUEUE, config.tolerance_ns / 1e9
        )
        self._matcher.registerCallback(self._matched)

    @property
    def pending(self) -> int:
        """Sweeps whose fate is open."""
        return len(self._waiting)

    def add_picture(self, camera: str, stamp_ns: int, item: Any) -> list[SensorSet[Any]]:
        """Take in a picture; returns the sets that it completes."""
        self.counters.pictures[camera] += 1
        if stamp_ns <= 0:
            self.counters.pictures_dropped[camera, ZERO_STAMP] += 1
        else:
            self._cameras[camera].signalMessage(item)
        return self.poll()

    def add_sweep(self, stamp_ns: int, item: Any) -> list[SensorSet[Any]]:
        """Take in a sweep; returns the sets that it completes."""
        self.counters.received += 1
        if stamp_ns <= 0:
            self.counters.dropped[ZERO_STAMP] += 1
            return self.poll()
        if self._waiting and stamp_ns <= self._waiting[-1][0]:
            self._give_up(len(self._waiting), UNMATCHED)
            self.counters.resets += 1
            self.epoch += 1
        self._waiting.append((stamp_ns, self._clock()))
        self._give_up(len(self._waiting) - MOST_WAITING, UNMATCHED)
        self._lidar.signalMessage(item)
        return self.poll()

    def poll(self) -> list[SensorSet[Any]]:
        """The sets that were completed since the last call."""
        ready, self._ready = self._ready, []
        return ready

    def stop(self) -> None:
        """Give up what waits."""
        self._give_up(len(self._waiting), STOPPED)
        self.epoch += 1

    def waited_for(self, camera: str) -> bool:
        """Every camera is needed, always."""
        return camera in self._cameras

    def _give_up(self, count: int, cause: str) -> None:
        for _ in range(count):
            self._waiting.popleft()
            self.counters.dropped[cause] += 1

    def _matched(self, sweep: Any, *pictures: Any) -> None:
        stamp_ns = _stamp_ns(sweep)
        self._give_up(sum(waiting < stamp_ns for waiting, _ in self._waiting), UNMATCHED)
        if not self._waiting or self._waiting[0][0] != stamp_ns:
            return  # Given up before: it is in the counters already.
        _, arrived_ns = self._waiting.popleft()
        self.counters.released += 1
        self.counters.complete += 1
        items = {
            name: Stamped(stamp_ns=_stamp_ns(picture), item=picture)
            for name, picture in zip(self.config.cameras, pictures, strict=True)
        }
        self._ready.append(
            SensorSet(
                stamp_ns=stamp_ns,
                sweep=sweep,
                pictures=items,
                arrived_ns=arrived_ns,
                released_ns=self._clock(),
                epoch=self.epoch,
            )
        )


def _stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)

"""The approximate-time policy of message_filters in the place of our own synchroniser, where a ROS installation has it.

It looks for sets of messages that lie close together, without an anchor: every message is used once, every sensor is
needed, and a sweep without a set of its own is dropped (cause ``unmatched``). docs/ros.md compares the two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from fusionocc_ros.sync import LIDAR, STOPPED, UNMATCHED, ZERO_STAMP, SensorSet, Stamped, SyncConfig, SyncCounters

QUEUE = 20
"""Messages that message_filters keeps of each sensor."""
MOST_WAITING = 100
"""Sweeps whose fate may be open."""


class ApproximateTimeSync:
    """The same interface as LidarAnchoredSync. Items must be messages with a header.

    Args:
        config: sensors, the first LiDAR among them, and tolerance; the rest has no meaning to this policy.
        clock: as for LidarAnchoredSync.

    Raises:
        ValueError: message_filters is not installed, or there is no LiDAR.
    """

    def __init__(self, config: SyncConfig, clock: Callable[[], int]) -> None:
        try:
            from message_filters import ApproximateTimeSynchronizer, SimpleFilter
        except ImportError as error:
            raise ValueError(
                "sync.policy: approximate_time needs message_filters, which comes with a ROS installation (apt install "
                "ros-$ROS_DISTRO-message-filters) and is not on PyPI; use lidar_anchored"
            ) from error
        if config.reference != LIDAR:
            raise ValueError(f"sync.policy: approximate_time needs a LiDAR, and sync.reference is {config.reference!r}")
        self.config = config
        self.counters = SyncCounters()
        self.epoch = 0
        self._clock = clock
        self._waiting: deque[tuple[int, int]] = deque()
        self._ready: list[SensorSet[Any]] = []
        self._sensors = {name: SimpleFilter() for name in (LIDAR, *(n for n in config.sensors if n != LIDAR))}
        self._matcher = ApproximateTimeSynchronizer(list(self._sensors.values()), QUEUE, config.tolerance_ns / 1e9)
        self._matcher.registerCallback(self._matched)

    @property
    def pending(self) -> int:
        """Sweeps whose fate is open."""
        return len(self._waiting)

    def add(self, sensor: str, stamp_ns: int, item: Any) -> list[SensorSet[Any]]:
        """Take in a message of any sensor; returns the sets that it completes."""
        self.counters.messages[sensor] += 1
        if sensor == LIDAR:
            self.counters.received += 1
        if stamp_ns <= 0:
            if sensor == LIDAR:
                self.counters.dropped[ZERO_STAMP] += 1
            else:
                self.counters.not_kept[sensor, ZERO_STAMP] += 1
            return self.poll()
        if sensor == LIDAR:
            self._await(stamp_ns)
        self._sensors[sensor].signalMessage(item)
        return self.poll()

    def _await(self, stamp_ns: int) -> None:
        if self._waiting and stamp_ns <= self._waiting[-1][0]:
            self._give_up(len(self._waiting), UNMATCHED)
            self.counters.resets += 1
            self.epoch += 1
        self._waiting.append((stamp_ns, self._clock()))
        self._give_up(len(self._waiting) - MOST_WAITING, UNMATCHED)

    def poll(self) -> list[SensorSet[Any]]:
        """The sets that were completed since the last call."""
        ready, self._ready = self._ready, []
        return ready

    def stop(self) -> None:
        """Give up what waits."""
        self._give_up(len(self._waiting), STOPPED)
        self.epoch += 1

    def waited_for(self, sensor: str) -> bool:
        """Every sensor is needed, always."""
        return sensor in self._sensors

    def _give_up(self, count: int, cause: str) -> None:
        for _ in range(count):
            self._waiting.popleft()
            self.counters.dropped[cause] += 1

    def _matched(self, *messages: Any) -> None:
        stamp_ns = _stamp_ns(messages[0])
        self._give_up(sum(waiting < stamp_ns for waiting, _ in self._waiting), UNMATCHED)
        if not self._waiting or self._waiting[0][0] != stamp_ns:
            return  # Given up before: it is in the counters already.
        _, arrived_ns = self._waiting.popleft()
        self.counters.released += 1
        self.counters.complete += 1
        items = {
            name: Stamped(stamp_ns=_stamp_ns(message), item=message)
            for name, message in zip(self._sensors, messages, strict=True)
        }
        self._ready.append(
            SensorSet(
                stamp_ns=stamp_ns,
                pictures={name: items[name] for name in self.config.cameras},
                clouds={name: items[name] for name in self.config.lidars},
                arrived_ns=arrived_ns,
                released_ns=self._clock(),
                epoch=self.epoch,
            )
        )


def _stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)

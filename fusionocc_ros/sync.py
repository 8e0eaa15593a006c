"""Which messages belong together: a synchroniser anchored at one sensor, mostly the LiDAR. Pure Python, no ROS.

Every message of the reference sensor begins a set and asks each other sensor for the message nearest to its stamp (plus
that sensor's time offset); a message may serve several sets. A set leaves when no sensor can offer a better one any
more, or when the deadline has passed. Where the reference falls silent, another sensor may stand in for it. Stamps are
integer nanoseconds of the sensors' time; the clock is that of arrival and only measures waiting.

Every set that is begun is accounted for: ``received == released + sum(dropped) + pending`` at any time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from fusionocc_ros.streams import PACE_SAMPLES, Stamped, Stream
from fusionocc_ros.sync_types import (
    DUPLICATE,
    LIDAR,
    MS,
    OUT_OF_ORDER,
    OVERFLOW,
    STOPPED,
    SYNC_CAUSES,
    TIME_JUMP,
    TOO_FEW_CAMERAS,
    UNMATCHED,
    ZERO_STAMP,
    Item,
    S,
    SensorSet,
    SyncConfig,
    SyncCounters,
)

__all__ = [
    "DUPLICATE",
    "LIDAR",
    "MS",
    "OUT_OF_ORDER",
    "OVERFLOW",
    "STOPPED",
    "SYNC_CAUSES",
    "TIME_JUMP",
    "TOO_FEW_CAMERAS",
    "UNMATCHED",
    "ZERO_STAMP",
    "LidarAnchoredSync",
    "S",
    "SensorSet",
    "Stamped",
    "SyncConfig",
    "SyncCounters",
]

RESTART_GAP_NS = 300 * MS
"""A repeated or older stamp that comes this long after the last sweep is a restart (a bag of one keyframe, looped)."""
RESTART_INTERVALS = 3
"""It must also come after so many of the reference's own intervals: a slow LiDAR may repeat a message, or be late."""
STAND_IN_LEAD_NS = S
"""A sweep further behind the sets of a stand-in than this has other stamps than it; one that is less is only late."""


@dataclass(frozen=True, kw_only=True)
class _Pending(Generic[Item]):
    anchor: str
    stamp_ns: int
    item: Item
    arrived_ns: int


class LidarAnchoredSync(Generic[Item]):
    """Collects messages and hands out sets, oldest first. Not thread-safe: call it from one thread.

    Args:
        config: matching rules.
        clock: nanoseconds that never run backwards, for example time.monotonic_ns.
    """

    def __init__(self, config: SyncConfig, clock: Callable[[], int]) -> None:
        self.config = config
        self.counters = SyncCounters()
        self.epoch = 0
        self._clock = clock
        self._pending: deque[_Pending[Item]] = deque()
        self._start_anew()

    def _start_anew(self) -> None:
        others = [name for name in self.config.sensors if name != self.config.reference]
        self._streams: dict[str, Stream[Item]] = {name: Stream() for name in others}
        self._last_set_ns, self._last_anchor = 0, self.config.reference
        """Stamp of the newest set, and who began it."""
        self._last_stamp_ns = 0
        """Stamp of the reference's last message."""
        self._last_arrival_ns = 0
        self._intervals_ns: deque[int] = deque(maxlen=PACE_SAMPLES)
        """Between arrivals of the reference's messages, since the stamps last jumped back."""
        self._silent_since: tuple[int, int] | None = None
        """When the reference was last heard, and the stamp; before its first message, those of the first message."""

    @property
    def pending(self) -> int:
        """Sets that wait."""
        return len(self._pending)

    def add_picture(self, camera: str, stamp_ns: int, item: Item) -> list[SensorSet[Item]]:
        """Take in a picture; returns the sets that it completes, oldest first.

        Raises:
            ValueError: a camera that the configuration does not name.
        """
        return self.add(camera, stamp_ns, item)

    def add_sweep(self, stamp_ns: int, item: Item) -> list[SensorSet[Item]]:
        """Take in a cloud of the first LiDAR; returns the sets that are ready, oldest first."""
        return self.add(LIDAR, stamp_ns, item)

    def add(self, sensor: str, stamp_ns: int, item: Item) -> list[SensorSet[Item]]:
        """Take in a message of any sensor; returns the sets that are ready, oldest first.

        Raises:
            ValueError: a sensor that the configuration does not name.
        """
        if sensor not in self.config.sensors:
            raise ValueError(f"camera {sensor!r} is not one of {list(self.config.sensors)}")
        now = self._clock()
        self.counters.messages[sensor] += 1
        self._silent_since = self._silent_since or (now, stamp_ns)
        if sensor == self.config.reference:
            self._take_reference(stamp_ns, item, now)
        elif self._keep(sensor, stamp_ns, item, now) and self._stands_in(sensor, stamp_ns, now):
            self.counters.stood_in += 1
            self._begin(sensor, stamp_ns, item, now)
        return self.poll()

    def poll(self) -> list[SensorSet[Item]]:
        """The sets that are ready by now, oldest first; call it at least every few milliseconds for the deadline."""
        ready: list[SensorSet[Item]] = []
        now = self._clock()
        while self._pending:
            sweep = self._pending[0]
            late = [] if self.config.newest else self._waits_for(sweep)
            if late and now - sweep.arrived_ns < self.config.deadline_ns:
                break
            self.counters.late.update(late)
            released = self._release(self._pending.popleft(), now)
            if released is not None:
                ready.append(released)
        self._forget_unusable()
        return ready

    def stop(self) -> None:
        """Give up what waits and forget all messages; the counters stay."""
        self._drop_pending(STOPPED)
        self._start_anew()
        self.epoch += 1

    def waited_for(self, sensor: str) -> bool:
        """False for a sensor that has been silent for give_up_after sets."""
        return self._streams[sensor].missed < self.config.give_up_after

    # ---- what comes in -----------------------------------------------------------------------------------------------

    def _take_reference(self, stamp_ns: int, item: Item, now: int) -> None:
        epoch = self.epoch
        cause = self._refuse(stamp_ns, now)
        if cause is not None:
            self.counters.received += 1
            self.counters.dropped[cause] += 1
            return
        if self._last_stamp_ns and self.epoch == epoch:
            self._intervals_ns.append(now - self._last_arrival_ns)
        self._last_stamp_ns, self._last_arrival_ns = stamp_ns, now
        self._silent_since = (now, stamp_ns)
        self._begin(self.config.reference, stamp_ns, item, now)

    def _refuse(self, stamp_ns: int, now: int) -> str | None:
        """Why this message of the reference cannot be used; starts a new epoch where the stamps jumped back."""
        if stamp_ns <= 0:
            return ZERO_STAMP
        if stamp_ns <= self._last_stamp_ns:
            restarted = now - self._last_arrival_ns >= max(RESTART_GAP_NS, RESTART_INTERVALS * self._pace_ns())
            if restarted or self._last_stamp_ns - stamp_ns > self.config.jump_back_ns:
                self._jump_back(stamp_ns)
                return None
            return DUPLICATE if stamp_ns == self._last_stamp_ns else OUT_OF_ORDER
        if stamp_ns <= self._last_set_ns:  # another sensor has stood in, further than this
            if self._last_set_ns - stamp_ns > STAND_IN_LEAD_NS:
                self._jump_back(stamp_ns)
                return None
            self._last_stamp_ns, self._last_arrival_ns = stamp_ns, now
            self._silent_since = (now, stamp_ns)
            return OUT_OF_ORDER
        return None

    def _keep(self, sensor: str, stamp_ns: int, item: Item, now: int) -> bool:
        stream = self._streams[sensor]
        if stamp_ns <= 0:
            self.counters.not_kept[sensor, ZERO_STAMP] += 1
            return False
        if stream.newest_ns - stamp_ns > self.config.jump_back_ns:
            self.counters.not_kept[sensor, TIME_JUMP] += len(stream.stamps)
            stream.forget_after(0)
            stream.jumped = True
        if stream.holds(stamp_ns):
            self.counters.not_kept[sensor, DUPLICATE] += 1
            return False
        stream.insert(stamp_ns, item, now)
        if len(stream.stamps) > self.config.max_pictures:
            stream.forget_before(stream.stamps[1])
            self.counters.not_kept[sensor, OVERFLOW] += 1
        return stream.holds(stamp_ns)

    def _stands_in(self, sensor: str, stamp_ns: int, now: int) -> bool:
        """Whether this message begins a set because the reference is silent: in real time and by the stamps.

        By the stamps as well, for a player may hold its bag.
        """
        limit = self.config.reference_timeout_ns
        if not limit or self._silent_since is None:
            return False
        heard_ns, heard_stamp_ns = self._silent_since
        limit = max(limit, RESTART_INTERVALS * self._pace_ns())
        if now - heard_ns < limit or abs(stamp_ns - heard_stamp_ns) < limit:
            return False
        alive = (name for name, s in self._streams.items() if s.heard_ns is not None and now - s.heard_ns < limit)
        if sensor != next(alive, None):
            return False
        if self._streams[sensor].jumped:
            self._jump_back(stamp_ns)
            self._silent_since = (heard_ns, stamp_ns - limit)
        return stamp_ns > self._last_set_ns

    def _begin(self, anchor: str, stamp_ns: int, item: Item, now: int) -> None:
        self.counters.received += 1
        self._last_set_ns, self._last_anchor = stamp_ns, anchor
        self._pending.append(_Pending(anchor=anchor, stamp_ns=stamp_ns, item=item, arrived_ns=now))
        if len(self._pending) > self.config.max_pending:
            self._pending.popleft()
            self.counters.dropped[OVERFLOW] += 1

    def _pace_ns(self) -> int:
        return sorted(self._intervals_ns)[len(self._intervals_ns) // 2] if self._intervals_ns else 0

    def _jump_back(self, stamp_ns: int) -> None:
        self._drop_pending(TIME_JUMP)
        self._intervals_ns.clear()
        # Sensors may have jumped before the reference did: their messages lie near the new stamp and are kept.
        before_ns = max(self._last_stamp_ns, self._last_set_ns)
        boundary = max((stamp_ns + before_ns) // 2, stamp_ns + self.config.tolerance_ns)
        for sensor, stream in self._streams.items():
            before = len(stream.stamps)
            stream.forget_after(boundary)
            self.counters.not_kept[sensor, TIME_JUMP] += before - len(stream.stamps)
            stream.jumped = False
        self._last_stamp_ns = self._last_set_ns = 0
        self.counters.resets += 1
        self.epoch += 1

    def _drop_pending(self, cause: str) -> None:
        if self._pending:
            self.counters.dropped[cause] += len(self._pending)
            self._pending.clear()

    # ---- what goes out -----------------------------------------------------------------------------------------------

    def _target(self, sensor: str, anchor: str, stamp_ns: int) -> int:
        offsets = self.config.time_offset_ns
        return stamp_ns + offsets.get(sensor, 0) - offsets.get(anchor, 0)

    def _waits_for(self, sweep: _Pending[Item]) -> list[str]:
        """The sensors that may still send something better for a set."""
        config = self.config
        return [
            sensor
            for sensor, stream in self._streams.items()
            if self.waited_for(sensor)
            and not stream.settled(
                self._target(sensor, sweep.anchor, sweep.stamp_ns),
                tolerance_ns=config.tolerance_ns,
                noise_ns=config.noise_window_ns,
                expect_pace=config.expect_pace,
            )
        ]

    def _choose(self, sensor: str, sweep: _Pending[Item]) -> Stamped[Item] | None:
        if sensor == sweep.anchor:
            return Stamped(stamp_ns=sweep.stamp_ns, item=sweep.item)
        if sensor == self.config.reference:
            return None  # it is silent
        stream, target_ns = self._streams[sensor], self._target(sensor, sweep.anchor, sweep.stamp_ns)
        found = (stream.latest if self.config.newest else stream.nearest)(target_ns, self.config.tolerance_ns)
        stream.missed = stream.missed + 1 if found is None else 0
        return found

    def _release(self, sweep: _Pending[Item], now: int) -> SensorSet[Item] | None:
        chosen = {sensor: self._choose(sensor, sweep) for sensor in self.config.sensors}
        missing = tuple(sensor for sensor, found in chosen.items() if found is None)
        self.counters.missing.update(missing)
        pictures = {name: found for name in self.config.cameras if (found := chosen[name]) is not None}
        if len(pictures) < self.config.min_cameras:
            self.counters.dropped[TOO_FEW_CAMERAS] += 1
            return None
        self.counters.released += 1
        self.counters.complete += not missing
        return SensorSet(
            stamp_ns=sweep.stamp_ns,
            pictures=pictures,
            clouds={name: found for name in self.config.lidars if (found := chosen[name]) is not None},
            arrived_ns=sweep.arrived_ns,
            released_ns=now,
            epoch=self.epoch,
            missing=missing,
        )

    def _forget_unusable(self) -> None:
        """Free messages that no set to come can use: sets only get newer."""
        first = self._pending[0] if self._pending else None
        oldest, anchor = (first.stamp_ns, first.anchor) if first else (self._last_set_ns, self._last_anchor)
        for sensor, stream in self._streams.items():
            usable_from = self._target(sensor, anchor, oldest) - self.config.tolerance_ns
            stream.jumped = stream.jumped and stream.newest_ns < usable_from
            if not stream.jumped:
                stream.forget_before(usable_from)

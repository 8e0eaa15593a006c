"""Which pictures belong to which sweep: a synchroniser anchored at the LiDAR. Pure Python, no ROS.

Every sweep asks each camera for the picture nearest to the sweep's stamp (plus that camera's time offset); a picture
may serve several sweeps. A set leaves when no camera can offer a better picture any more, or when the deadline has
passed. Stamps are integer nanoseconds of the sensors' time; the clock is that of arrival and only measures waiting.

Every sweep that enters is accounted for: ``received == released + sum(dropped) + pending`` at any time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = 1_000_000_000
MS = 1_000_000

Item = TypeVar("Item")

ZERO_STAMP = "zero_stamp"
DUPLICATE = "duplicate"
OUT_OF_ORDER = "out_of_order"
TOO_FEW_CAMERAS = "too_few_cameras"
OVERFLOW = "overflow"
TIME_JUMP = "time_jump"
STOPPED = "stopped"
UNMATCHED = "unmatched"
SYNC_CAUSES: dict[str, str] = {
    ZERO_STAMP: "the sweep's stamp is zero or negative: the driver does not stamp its messages",
    DUPLICATE: "a second sweep with the stamp of the one before",
    OUT_OF_ORDER: "the sweep is older than one that came before it",
    TOO_FEW_CAMERAS: "fewer than sync.min_cameras cameras had a picture within sync.tolerance by the deadline",
    OVERFLOW: "more than sync.max_pending sweeps were waiting for pictures: the oldest gave way",
    TIME_JUMP: "the stamps jumped back (a bag looped, a simulation restarted) while the sweep was waiting",
    STOPPED: "the node was deactivated while the sweep was waiting",
    UNMATCHED: "sync.policy approximate_time found no set for the sweep",
}
"""Why a sweep was dropped here, and what each word means."""

RESTART_GAP_NS = 300 * MS
"""A repeated or older stamp that comes this long after the last sweep is a restart (a bag of one keyframe, looped)."""
RESTART_INTERVALS = 3
"""It must also come after so many of the LiDAR's own intervals: a slow LiDAR may repeat a message, or send it late."""
PACE_SAMPLES = 8
"""Intervals from which a camera's, or the LiDAR's, pace is taken."""
PACE_MARGIN = 0.9
"""The next picture is expected no earlier than this share of the shortest recent interval."""


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """How pictures are matched to sweeps."""

    cameras: tuple[str, ...]
    time_offset_ns: Mapping[str, int] = field(default_factory=dict)
    """Where a camera's picture is expected relative to the sweep's stamp; 0 for cameras that are not listed."""
    tolerance_ns: int = 100 * MS
    """A picture further than this from where it is expected is not used."""
    deadline_ns: int = 150 * MS
    """Longest wait for pictures after the sweep's arrival."""
    min_cameras: int = 1
    """A set with fewer pictures is dropped; 0 lets the LiDAR through alone."""
    give_up_after: int = 5
    """A camera that missed so many sets in a row is no longer waited for until it speaks again."""
    expect_pace: bool = True
    """Do not wait for a picture that, at the camera's pace, cannot be nearer than the one at hand."""
    max_pictures: int = 20
    """Pictures kept for each camera."""
    max_pending: int = 20
    """Sweeps that may wait at the same time."""
    jump_back_ns: int = 200 * MS
    """A stamp further back than this is a jump in time (everything starts anew), not a late message."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"SyncConfig.cameras: names must differ, got {list(self.cameras)}")
        unknown = sorted(set(self.time_offset_ns) - set(self.cameras))
        if unknown:
            raise ValueError(f"SyncConfig.time_offset_ns names {unknown}; the cameras are {list(self.cameras)}")
        if not 0 <= self.min_cameras <= len(self.cameras):
            raise ValueError(
                f"SyncConfig.min_cameras={self.min_cameras}: expected 0 to {len(self.cameras)}, the number of cameras"
            )
        for name in ("tolerance_ns", "deadline_ns", "give_up_after", "max_pictures", "max_pending", "jump_back_ns"):
            if getattr(self, name) < 1:
                raise ValueError(f"SyncConfig.{name}={getattr(self, name)}: must be positive")


@dataclass(frozen=True, kw_only=True)
class Stamped(Generic[Item]):
    """A message and its stamp."""

    stamp_ns: int
    item: Item


@dataclass(frozen=True, kw_only=True)
class SensorSet(Generic[Item]):
    """One sweep with the pictures that belong to it."""

    stamp_ns: int
    """The sweep's stamp."""
    sweep: Item
    pictures: Mapping[str, Stamped[Item]]
    """By camera, in the order of SyncConfig.cameras; cameras without a picture are absent."""
    arrived_ns: int
    """When the sweep came, on the synchroniser's clock."""
    released_ns: int
    """When the set left."""
    epoch: int
    """Grows by one each time the stamps jump back: sets of different epochs must not be combined."""


@dataclass(kw_only=True)
class SyncCounters:
    """What went in and where it went."""

    received: int = 0
    released: int = 0
    complete: int = 0
    """Released sets that hold every camera."""
    resets: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    pictures: Counter[str] = field(default_factory=Counter)
    """Pictures received, by camera."""
    pictures_dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Pictures not kept, by (camera, cause)."""
    missing: Counter[str] = field(default_factory=Counter)
    """Released or dropped sets that lacked this camera."""


class _Stream(Generic[Item]):
    """The recent pictures of one camera, ordered by stamp."""

    def __init__(self) -> None:
        self.stamps: list[int] = []
        self.items: list[Item] = []
        self.newest_ns = 0
        self.intervals: deque[int] = deque(maxlen=PACE_SAMPLES)
        self.missed = 0
        self.jumped = False
        """The stamps jumped back and those of the LiDAR have not followed yet."""

    def insert(self, stamp_ns: int, item: Item) -> None:
        at = bisect_left(self.stamps, stamp_ns)
        if stamp_ns > self.newest_ns:
            if self.newest_ns:
                self.intervals.append(stamp_ns - self.newest_ns)
            self.newest_ns = stamp_ns
        self.stamps.insert(at, stamp_ns)
        self.items.insert(at, item)
        self.missed = 0

    def nearest(self, target_ns: int, tolerance_ns: int) -> Stamped[Item] | None:
        at = bisect_left(self.stamps, target_ns)
        around = [i for i in (at - 1, at) if 0 <= i < len(self.stamps)]
        if not around:
            return None
        best = min(around, key=lambda i: abs(self.stamps[i] - target_ns))
        if abs(self.stamps[best] - target_ns) > tolerance_ns:
            return None
        return Stamped(stamp_ns=self.stamps[best], item=self.items[best])

    def settled(self, target_ns: int, tolerance_ns: int, expect_pace: bool) -> bool:
        """Whether no picture to come can be nearer to the target than what is here."""
        if self.newest_ns >= target_ns:
            return True
        if not (expect_pace and self.intervals and self.stamps):
            return False
        lag = target_ns - self.newest_ns
        lead = self.newest_ns + int(PACE_MARGIN * min(self.intervals)) - target_ns
        return lag <= tolerance_ns and lead >= lag

    def forget_before(self, stamp_ns: int) -> None:
        count = bisect_left(self.stamps, stamp_ns)
        del self.stamps[:count], self.items[:count]

    def forget_after(self, stamp_ns: int) -> None:
        count = bisect_left(self.stamps, stamp_ns + 1)
        if count < len(self.stamps):
            del self.stamps[count:], self.items[count:]
            self.intervals.clear()
        self.newest_ns = self.stamps[-1] if self.stamps else 0


@dataclass(frozen=True, kw_only=True)
class _Pending(Generic[Item]):
    stamp_ns: int
    item: Item
    arrived_ns: int


class LidarAnchoredSync(Generic[Item]):
    """Collects sweeps and pictures and hands out sets, oldest first. Not thread-safe: call it from one thread.

    Args:
        config: matching rules.
        clock: nanoseconds that never run backwards, for example time.monotonic_ns.
    """

    def __init__(self, config: SyncConfig, clock: Callable[[], int]) -> None:
        self.config = config
        self.counters = SyncCounters()
        self.epoch = 0
        self._clock = clock
        self._streams: dict[str, _Stream[Item]] = {name: _Stream() for name in config.cameras}
        self._pending: deque[_Pending[Item]] = deque()
        self._last_stamp_ns = 0
        self._last_arrival_ns = 0
        self._intervals_ns: deque[int] = deque(maxlen=PACE_SAMPLES)
        """Between arrivals of sweeps, since the stamps last jumped back."""

    @property
    def pending(self) -> int:
        """Sweeps that wait for pictures."""
        return len(self._pending)

    def add_picture(self, camera: str, stamp_ns: int, item: Item) -> list[SensorSet[Item]]:
        """Take in a picture; returns the sets that it completes, oldest first.

        Raises:
            ValueError: a camera that the configuration does not name.
        """
        stream = self._streams.get(camera)
        if stream is None:
            raise ValueError(f"camera {camera!r} is not one of {list(self._streams)}")
        self.counters.pictures[camera] += 1
        if stamp_ns <= 0:
            self.counters.pictures_dropped[camera, ZERO_STAMP] += 1
            return self.poll()
        if stream.newest_ns - stamp_ns > self.config.jump_back_ns:
            self.counters.pictures_dropped[camera, TIME_JUMP] += len(stream.stamps)
            stream.forget_after(0)
            stream.jumped = True
        if self._holds(stream, stamp_ns):
            self.counters.pictures_dropped[camera, DUPLICATE] += 1
            return self.poll()
        stream.insert(stamp_ns, item)
        if len(stream.stamps) > self.config.max_pictures:
            stream.forget_before(stream.stamps[1])
            self.counters.pictures_dropped[camera, OVERFLOW] += 1
        return self.poll()

    def add_sweep(self, stamp_ns: int, item: Item) -> list[SensorSet[Item]]:
        """Take in a sweep; returns the sets that are ready, oldest first."""
        now = self._clock()
        self.counters.received += 1
        epoch = self.epoch
        cause = self._refuse(stamp_ns, now)
        if cause is not None:
            self.counters.dropped[cause] += 1
            return self.poll()
        if self._last_stamp_ns and self.epoch == epoch:
            self._intervals_ns.append(now - self._last_arrival_ns)
        self._last_stamp_ns, self._last_arrival_ns = stamp_ns, now
        self._pending.append(_Pending(stamp_ns=stamp_ns, item=item, arrived_ns=now))
        if len(self._pending) > self.config.max_pending:
            self._pending.popleft()
            self.counters.dropped[OVERFLOW] += 1
        return self.poll()

    def poll(self) -> list[SensorSet[Item]]:
        """The sets that are ready by now, oldest first; call it at least every few milliseconds for the deadline."""
        ready: list[SensorSet[Item]] = []
        now = self._clock()
        while self._pending and self._is_ready(self._pending[0], now):
            released = self._release(self._pending.popleft(), now)
            if released is not None:
                ready.append(released)
        self._forget_unusable()
        return ready

    def stop(self) -> None:
        """Give up what waits and forget all pictures; the counters stay."""
        self._drop_pending(STOPPED)
        self._streams = {name: _Stream() for name in self._streams}
        self._last_stamp_ns = 0
        self._intervals_ns.clear()
        self.epoch += 1

    def waited_for(self, camera: str) -> bool:
        """False for a camera that has been silent for give_up_after sets."""
        return self._streams[camera].missed < self.config.give_up_after

    def _refuse(self, stamp_ns: int, now: int) -> str | None:
        """Why this sweep cannot be used; starts a new epoch where the stamps jumped back."""
        if stamp_ns <= 0:
            return ZERO_STAMP
        if stamp_ns > self._last_stamp_ns:
            return None
        pace_ns = sorted(self._intervals_ns)[len(self._intervals_ns) // 2] if self._intervals_ns else 0
        restarted = now - self._last_arrival_ns >= max(RESTART_GAP_NS, RESTART_INTERVALS * pace_ns)
        if restarted or self._last_stamp_ns - stamp_ns > self.config.jump_back_ns:
            self._jump_back(stamp_ns)
            return None
        return DUPLICATE if stamp_ns == self._last_stamp_ns else OUT_OF_ORDER

    def _jump_back(self, stamp_ns: int) -> None:
        self._drop_pending(TIME_JUMP)
        self._intervals_ns.clear()
        # Cameras may have jumped before the LiDAR did: their pictures lie near the new stamp and are kept.
        boundary = max((stamp_ns + self._last_stamp_ns) // 2, stamp_ns + self.config.tolerance_ns)
        for camera, stream in self._streams.items():
            before = len(stream.stamps)
            stream.forget_after(boundary)
            self.counters.pictures_dropped[camera, TIME_JUMP] += before - len(stream.stamps)
            stream.jumped = False
        self.counters.resets += 1
        self.epoch += 1

    def _drop_pending(self, cause: str) -> None:
        if self._pending:
            self.counters.dropped[cause] += len(self._pending)
            self._pending.clear()

    def _target(self, camera: str, stamp_ns: int) -> int:
        return stamp_ns + self.config.time_offset_ns.get(camera, 0)

    def _is_ready(self, sweep: _Pending[Item], now: int) -> bool:
        if now - sweep.arrived_ns >= self.config.deadline_ns:
            return True
        return all(
            stream.settled(self._target(camera, sweep.stamp_ns), self.config.tolerance_ns, self.config.expect_pace)
            or not self.waited_for(camera)
            for camera, stream in self._streams.items()
        )

    def _release(self, sweep: _Pending[Item], now: int) -> SensorSet[Item] | None:
        pictures: dict[str, Stamped[Item]] = {}
        for camera, stream in self._streams.items():
            found = stream.nearest(self._target(camera, sweep.stamp_ns), self.config.tolerance_ns)
            if found is None:
                stream.missed += 1
                self.counters.missing[camera] += 1
            else:
                stream.missed = 0
                pictures[camera] = found
        if len(pictures) < self.config.min_cameras:
            self.counters.dropped[TOO_FEW_CAMERAS] += 1
            return None
        self.counters.released += 1
        self.counters.complete += len(pictures) == len(self._streams)
        return SensorSet(
            stamp_ns=sweep.stamp_ns,
            sweep=sweep.item,
            pictures=pictures,
            arrived_ns=sweep.arrived_ns,
            released_ns=now,
            epoch=self.epoch,
        )

    def _forget_unusable(self) -> None:
        """Free pictures that no sweep to come can use: sweeps only get newer."""
        oldest = self._pending[0].stamp_ns if self._pending else self._last_stamp_ns
        for camera, stream in self._streams.items():
            usable_from = self._target(camera, oldest) - self.config.tolerance_ns
            stream.jumped = stream.jumped and stream.newest_ns < usable_from
            if not stream.jumped:
                stream.forget_before(usable_from)

    @staticmethod
    def _holds(stream: _Stream[Item], stamp_ns: int) -> bool:
        at = bisect_left(stream.stamps, stamp_ns)
        return at < len(stream.stamps) and stream.stamps[at] == stamp_ns

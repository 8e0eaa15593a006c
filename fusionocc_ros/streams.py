"""What one sensor has sent lately, ordered by stamp: a part of the synchroniser. Pure Python, no ROS."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

PACE_SAMPLES = 8
"""Intervals from which a sensor's pace is taken."""
PACE_MARGIN = 0.9
"""The next message is expected no earlier than this share of the shortest recent interval."""


@dataclass(frozen=True, kw_only=True)
class Stamped(Generic[Item]):
    """A message and its stamp."""

    stamp_ns: int
    item: Item


class Stream(Generic[Item]):
    """The recent messages of one sensor, ordered by stamp."""

    def __init__(self) -> None:
        self.stamps: list[int] = []
        self.items: list[Item] = []
        self.newest_ns = 0
        self.heard_ns: int | None = None
        """When the last message that was kept came, on the synchroniser's clock; None before the first."""
        self.intervals: deque[int] = deque(maxlen=PACE_SAMPLES)
        self.missed = 0
        """Sets in a row that have gone without this sensor."""
        self.jumped = False
        """The stamps jumped back and those of the reference have not followed yet."""

    def insert(self, stamp_ns: int, item: Item, now_ns: int) -> None:
        """Take in a message whose stamp is not among those here."""
        at = bisect_left(self.stamps, stamp_ns)
        if stamp_ns > self.newest_ns:
            if self.newest_ns:
                self.intervals.append(stamp_ns - self.newest_ns)
            self.newest_ns = stamp_ns
        self.stamps.insert(at, stamp_ns)
        self.items.insert(at, item)
        self.heard_ns = now_ns
        self.missed = 0

    def holds(self, stamp_ns: int) -> bool:
        """Whether a message of this stamp is here."""
        at = bisect_left(self.stamps, stamp_ns)
        return at < len(self.stamps) and self.stamps[at] == stamp_ns

    def nearest(self, target_ns: int, tolerance_ns: int) -> Stamped[Item] | None:
        """The message nearest to a stamp, or None where none lies within the tolerance."""
        at = bisect_left(self.stamps, target_ns)
        around = [i for i in (at - 1, at) if 0 <= i < len(self.stamps)]
        return self._within(
            min(around, key=lambda i: abs(self.stamps[i] - target_ns), default=None), target_ns, tolerance_ns
        )

    def latest(self, target_ns: int, tolerance_ns: int) -> Stamped[Item] | None:
        """The newest message, or None where it lies further than the tolerance from a stamp."""
        return self._within(len(self.stamps) - 1 if self.stamps else None, target_ns, tolerance_ns)

    def _within(self, index: int | None, target_ns: int, tolerance_ns: int) -> Stamped[Item] | None:
        if index is None or abs(self.stamps[index] - target_ns) > tolerance_ns:
            return None
        return Stamped(stamp_ns=self.stamps[index], item=self.items[index])

    def settled(self, target_ns: int, *, tolerance_ns: int, noise_ns: int, expect_pace: bool) -> bool:
        """Whether no message to come is worth waiting for: it cannot be nearer, or what is here is near enough."""
        if self.newest_ns >= target_ns or (noise_ns and self.nearest(target_ns, noise_ns) is not None):
            return True
        if not (expect_pace and self.intervals and self.stamps):
            return False
        lag = target_ns - self.newest_ns
        lead = self.newest_ns + int(PACE_MARGIN * min(self.intervals)) - target_ns
        return lag <= tolerance_ns and lead >= lag

    def forget_before(self, stamp_ns: int) -> None:
        """Forget what is older than a stamp."""
        count = bisect_left(self.stamps, stamp_ns)
        del self.stamps[:count], self.items[:count]

    def forget_after(self, stamp_ns: int) -> None:
        """Forget what is newer than a stamp."""
        count = bisect_left(self.stamps, stamp_ns + 1)
        if count < len(self.stamps):
            del self.stamps[count:], self.items[count:]
            self.intervals.clear()
        self.newest_ns = self.stamps[-1] if self.stamps else 0

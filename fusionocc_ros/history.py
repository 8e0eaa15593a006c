"""Earlier keyframes for networks with memory, at the spacing that they were trained with. Pure Python, no ROS."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")

STRIDE = 0.4
"""Items are kept at least this share of the spacing apart, so that one lies near every multiple of the spacing."""
REACH = 0.5
"""How far from its place, as a share of the spacing, an item may lie and still be chosen."""


class KeyframeRing(Generic[Item]):
    """Keeps recent items by stamp and finds those one, two, three ... spacings before a given stamp.

    Safe to fill from one thread and read from another.

    Args:
        spacing_ns: time between keyframes.
        depth: most keyframes that are asked for; with 0 nothing is kept.
    """

    def __init__(self, *, spacing_ns: int, depth: int) -> None:
        self._spacing_ns = spacing_ns
        self._depth = depth
        self._items: deque[tuple[int, Item]] = deque()
        self._epoch = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Items kept."""
        return len(self._items)

    def offer(self, stamp_ns: int, epoch: int, item: Item) -> None:
        """Keep an item, unless one was kept shortly before; an item of another epoch clears the ring first."""
        if self._depth == 0:
            return
        with self._lock:
            if epoch != self._epoch:
                self._items.clear()
                self._epoch = epoch
            if self._items and stamp_ns - self._items[-1][0] < STRIDE * self._spacing_ns:
                return
            self._items.append((stamp_ns, item))
            # A chain of keyframes may be stretched by REACH at every step.
            horizon = stamp_ns - int((1 + REACH) * (self._depth + 1) * self._spacing_ns)
            while self._items[0][0] < horizon:
                self._items.popleft()

    def before(self, stamp_ns: int, epoch: int) -> list[Item]:
        """Up to ``depth`` items before a stamp, newest first: each the nearest to one spacing before the last."""
        with self._lock:
            items = list(self._items) if epoch == self._epoch else []
        chosen: list[Item] = []
        last_ns = stamp_ns
        while len(chosen) < self._depth:
            target_ns = last_ns - self._spacing_ns
            near = [(abs(s - target_ns), s, item) for s, item in items if s < last_ns]
            best = min(near, key=lambda entry: entry[:2], default=None)
            if best is None or best[0] > REACH * self._spacing_ns:
                break
            chosen.append(best[2])
            last_ns = best[1]
        return chosen

    def discard(self, item: Item) -> None:
        """Forget an item that turned out to be of no use."""
        with self._lock:
            self._items = deque(entry for entry in self._items if entry[1] is not item)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._items.clear()

"""One thread that works on the newest thing it was given. Pure Python, no ROS."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class LatestWorker(Generic[Item]):
    """Calls ``work`` in a thread of its own with the newest item offered; items that are overtaken are given back.

    Args:
        work: what to do with an item; must not raise.
        overtaken: told of every item that is not worked on, from the thread that offers or stops.
        name: of the thread.
    """

    def __init__(self, work: Callable[[Item], None], overtaken: Callable[[Item], None], *, name: str) -> None:
        self._work = work
        self._overtaken = overtaken
        self._slot: list[Item] = []
        self._busy = False
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def in_hand(self) -> int:
        """Items that wait (at most one) or are being worked on (at most one)."""
        with self._changed:
            return len(self._slot) + self._busy

    def offer(self, item: Item) -> None:
        """Put an item into the slot; one that still waits there is overtaken. After ``stop`` the item itself is."""
        with self._changed:
            if self._stopping:
                old = [item]
            else:
                old, self._slot = self._slot, [item]
                self._changed.notify_all()
        for waiting in old:
            self._overtaken(waiting)

    def stop(self) -> None:
        """Take nothing new; what waits counts as overtaken, what is in work is finished. Returns at once."""
        with self._changed:
            self._stopping = True
            old, self._slot = self._slot, []
            self._changed.notify_all()
        for waiting in old:
            self._overtaken(waiting)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end after ``stop``; False where it is still at work."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._slot and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                item = self._slot.pop()
                self._busy = True
            try:
                self._work(item)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

"""A thread that does something now and then while a block runs."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

logger = logging.getLogger(__name__)

Me = TypeVar("Me", bound="NowAndThen")


class NowAndThen(ABC):
    """Calls ``act`` every ``every_s`` seconds in a thread, from the beginning of the block to its end.

    An OSError of it, such as a file server that was away for a moment, is logged.

    Args:
        every_s: seconds between two calls.
        what: is told in the log.
    """

    def __init__(self, every_s: float, *, what: str) -> None:
        self._every_s, self._what = every_s, what
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)

    @abstractmethod
    def act(self) -> None:
        """What to do."""

    def __enter__(self: Me) -> Me:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; no call of the thread comes later."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self.act()
            except OSError as error:
                logger.warning("%s: %s", self._what, error)

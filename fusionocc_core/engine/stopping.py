"""Ctrl-C and SIGTERM as a wish: the loop saves first, then stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """Inside the block the first SIGINT or SIGTERM only sets ``signal_number``; a second SIGINT interrupts at once."""

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal_number = 0

    def __enter__(self) -> StopRequest:
        """Take over the signals (only the main thread may; elsewhere nothing is taken over)."""
        main = threading.current_thread() is threading.main_thread()
        self._former = {number: signal.signal(number, self._note) for number in self.signals} if main else {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

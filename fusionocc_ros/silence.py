"""How long each sensor has been silent, on the time that the sensors live in. Pure Python, no ROS."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable


class Silence:
    """Remembers when each sensor was heard.

    Where time is simulated, silence is measured in it: a player that holds its bag is not a silent sensor. Only its
    steps forward count, so a sensor that died stays silent when a bag begins anew. That the simulated time itself
    stands still is told apart, in real time.

    Args:
        simulated_ns: the simulated time, 0 before it is known; None where the sensors live in real time.
        real_ns: a clock that never runs backwards.
    """

    def __init__(self, simulated_ns: Callable[[], int | None], real_ns: Callable[[], int]) -> None:
        self._simulated_ns = simulated_ns
        self._real_ns = real_ns
        self._heard: dict[str, int] = {}
        self._lived_ns = 0
        self._last: tuple[int | None, int] = (simulated_ns(), real_ns())
        self._moved_ns = self._last[1]

    def observe(self) -> None:
        """Follow the clocks; call it often."""
        simulated, real = self._simulated_ns(), self._real_ns()
        simulated_before, real_before = self._last
        self._last = (simulated, real)
        if simulated is None:
            self._lived_ns += real - real_before
        elif simulated_before:
            self._lived_ns += max(simulated - simulated_before, 0)
        if simulated is None or simulated != simulated_before:
            self._moved_ns = real

    def heard(self, sensor: str) -> None:
        """A message of this sensor has come."""
        self.observe()
        self._heard[sensor] = self._lived_ns

    def excuse(self) -> None:
        """The simulated time may stand still now, for example because its source waits for an answer."""
        self._moved_ns = self._real_ns()

    def of(self, sensors: Iterable[str]) -> dict[str, float]:
        """Seconds since each sensor's last message; infinite where none came."""
        self.observe()
        return {s: (self._lived_ns - self._heard[s]) / 1e9 if s in self._heard else math.inf for s in sensors}

    def clock_stands_s(self) -> float:
        """Real seconds for which the simulated time has stood still without excuse; 0 where time is not simulated."""
        self.observe()
        return (self._real_ns() - self._moved_ns) / 1e9 if self._last[0] is not None else 0.0

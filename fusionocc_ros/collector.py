"""Gathers the messages of ~/occupancy, and what the node says of dropped frames, in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionocc_msgs.msg import SemanticOccupancy

DROPPED = "dropped: "
"""How keys on /diagnostics begin whose values count dropped frames; the cause follows."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the node has answered."""

    messages: dict[int, SemanticOccupancy]
    """By stamp."""
    a_second: float | None
    """How many came in a second of the wall clock, from the first to the last; None where there is only one."""


class Collector:
    """Subscribes to a topic of SemanticOccupancy and keeps what comes, by stamp. Use as a context manager.

    Also follows /diagnostics, where a node says how many frames it has dropped for which cause.

    Args:
        topic: full name.
        domain_id: the DDS domain; None takes ROS_DOMAIN_ID.
    """

    def __init__(self, topic: str, domain_id: int | None = None) -> None:
        self.topic = topic
        self._domain_id = domain_id
        self._messages: dict[int, SemanticOccupancy] = {}
        self._arrived_s: list[float] = []
        self._dropped: dict[str, int] = {}
        self._lock = threading.Lock()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Collector:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy

        from fusionocc_msgs.msg import SemanticOccupancy
        from fusionocc_ros.spinning import node_in_thread

        self._node = self._open.enter_context(node_in_thread("fusionocc_collector", domain_id=self._domain_id))
        quality = QoSProfile(history=HistoryPolicy.KEEP_ALL, reliability=ReliabilityPolicy.RELIABLE)
        self._node.create_subscription(SemanticOccupancy, self.topic, self._keep, quality)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._count_drops, 10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def offered(self) -> bool:
        """Whether somebody publishes the topic."""
        return bool(self._node.count_publishers(self.topic))

    def stamps_ns(self) -> set[int]:
        """Of the messages that came."""
        with self._lock:
            return set(self._messages)

    def answers(self) -> Answers:
        """The messages, and how fast they came."""
        with self._lock:
            first_s, last_s = (self._arrived_s[i] if self._arrived_s else 0.0 for i in (0, -1))
            several = last_s > first_s
            return Answers(
                messages=dict(self._messages),
                a_second=(len(self._arrived_s) - 1) / (last_s - first_s) if several else None,
            )

    def dropped(self) -> dict[str, int]:
        """How many frames the node has dropped, by cause; see causes.CAUSES."""
        with self._lock:
            return dict(self._dropped)

    def _count_drops(self, message: Any) -> None:
        found = {
            entry.key.removeprefix(DROPPED): int(entry.value)
            for status in message.status
            for entry in status.values
            if entry.key.startswith(DROPPED)
        }
        with self._lock:
            self._dropped.update(found)

    def _keep(self, message: Any) -> None:
        from fusionocc_ros.convert import stamp_to_ns

        with self._lock:
            self._arrived_s.append(time.monotonic())
            self._messages[stamp_to_ns(message.header.stamp)] = message

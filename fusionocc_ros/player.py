"""Plays a rosbag2 through rclpy: serialised messages as they are, with the bag's QoS, /clock, loops, and waiting.

In the waiting mode every sweep that counts is followed by a wait for the message that answers it (same stamp on another
topic). What the synchroniser behind may still want for the sweep is sent first: everything up to ``lookahead_s`` after
the sweep, but no further sweep, so that none takes the place of the one that is waited for. While the player waits, bag
time stands still; wall-clock deadlines of the nodes keep running.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionocc_ros.bag_messages import POINT_CLOUD
from fusionocc_ros.bag_reader import Bag, begins_with_header, is_latched, message_class, offered_quality, stamp_of
from fusionocc_ros.dds import use_shipped_profile
from fusionocc_ros.playback import Answers, BagClock, Ticker, publisher_quality
from fusionocc_ros.requirements import require

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

log = logging.getLogger(__name__)

SETTLE_S = 1.0
"""The matches must not have changed for so long before the first message: a publisher learns of a subscriber earlier
than the subscriber of the publisher, and what is sent between the two is lost."""

FLUSH_S = 2.0
"""Longest wait at the end for subscribers to acknowledge."""

STEP_S = 0.05
"""Longest wait at a time."""


@dataclass(frozen=True, kw_only=True)
class PlayOptions:
    """How to play a bag."""

    rate: float = 1.0
    """Bag seconds in a wall-clock second."""
    loop: bool = False
    clock_hz: float | None = None
    """Publish /clock so often in a wall-clock second; None: not at all."""
    topics: tuple[str, ...] = ()
    """Only these; empty: all."""
    start_s: float = 0.0
    """Left out at the bag's beginning; latched messages from there are sent all the same."""
    duration_s: float | None = None
    """None: to the end."""
    subscriber_timeout_s: float = 10.0
    """Longest wait for subscribers before the first message; 0: start at once."""
    wait_for: str | None = None
    """Topic of the answers; None: do not wait."""
    wait_after: tuple[str, ...] = ()
    """Topics whose messages are answered; empty: the bag's point clouds."""
    wait_timeout_s: float = 120.0
    """Longest wait for one answer."""
    lookahead_s: float = 0.1
    """How far beyond a sweep the other topics go on before its answer is waited for."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be played."""
        positive = {"rate": self.rate, "wait_timeout_s": self.wait_timeout_s}
        positive |= {name: value for name in ("duration_s", "clock_hz") if (value := getattr(self, name)) is not None}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name}={value}: expected a positive number")
        for name in ("start_s", "subscriber_timeout_s", "lookahead_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected seconds, 0 or more")


@dataclass(kw_only=True)
class TopicReport:
    """What became of one topic."""

    kind: str
    sent: int = 0
    subscribers: int = 0
    """When playing began."""


@dataclass(kw_only=True)
class PlayReport:
    """What was played."""

    topics: dict[str, TopicReport] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    """Topics that were not played, and why."""
    rounds: int = 0
    awaited: int = 0
    answered: int = 0
    wall_s: float = 0.0


class Player:
    """Publishes a bag; made by ``play``."""

    def __init__(self, bag: Bag, options: PlayOptions, node: Any, executor: Any) -> None:
        self._bag, self._options, self._node, self._executor = bag, options, node, executor
        self.report = PlayReport()
        self._clock = BagClock(options.rate)
        self._ticker = Ticker(node, options.clock_hz, self._clock) if options.clock_hz is not None else None
        self._publishers: dict[str, Any] = {}
        self._connections = self._open_topics()
        self._begin_ns = bag.start_ns + int(options.start_s * 1e9)
        self._end_ns = bag.end_ns + 1
        if options.duration_s is not None:
            self._end_ns = min(self._end_ns, self._begin_ns + int(options.duration_s * 1e9))
        if self._begin_ns >= bag.end_ns:
            length_s = (bag.end_ns - bag.start_ns) * 1e-9
            raise ValueError(f"start_s={options.start_s}: the bag is only {length_s:.3f} s long")
        self._wait_after = self._choose_awaited()
        self._answers: Answers | None = None
        self._keyframes = bag.keyframe_stamps_ns

    def run(self, progress: Callable[[float, float], None] | None = None) -> PlayReport:
        """Play; returns when the bag ends, or never with ``loop``.

        Args:
            progress: Called with the bag seconds played and those to play.

        Raises:
            TimeoutError: nobody to answer, or an answer that did not come.
        """
        self._wait_for_subscribers()
        began = time.monotonic()
        while True:
            self._play_once(progress)
            self.report.rounds += 1
            self.report.wall_s = time.monotonic() - began
            if not self._options.loop:
                self._flush()
                return self.report

    def _open_topics(self) -> list[Connection]:
        opened = []
        known = {connection.topic for connection in self._bag.connections}
        unknown = sorted(set(self._options.topics) - known)
        if unknown:
            raise ValueError(f"topics {', '.join(unknown)}: not in the bag; it has {', '.join(sorted(known))}")
        for connection in self._bag.connections:
            topic = connection.topic
            if self._options.topics and topic not in self._options.topics:
                continue
            if topic == "/clock" and self._ticker is not None:
                self.report.skipped[topic] = "the player publishes it itself"
                continue
            try:
                message = message_class(connection.msgtype)
            except ModuleNotFoundError as error:
                self.report.skipped[topic] = f"{connection.msgtype} cannot be imported: {error}"
                log.warning("%s is not played: %s", topic, self.report.skipped[topic])
                continue
            if topic not in self._publishers:
                quality = publisher_quality(offered_quality(connection))
                self._publishers[topic] = self._node.create_publisher(message, topic, quality)
                self.report.topics[topic] = TopicReport(kind=connection.msgtype)
            opened.append(connection)
        if not opened:
            raise ValueError(f"{self._bag.path}: no topic that can be played; left out: {self.report.skipped}")
        return opened

    def _choose_awaited(self) -> frozenset[str]:
        if self._options.wait_for is None:
            return frozenset()
        kinds = {topic: report.kind for topic, report in self.report.topics.items()}
        chosen = self._options.wait_after or tuple(topic for topic, kind in kinds.items() if kind == POINT_CLOUD)
        unknown = [topic for topic in chosen if topic not in kinds]
        if unknown or not chosen:
            raise ValueError(
                f"wait_after={list(self._options.wait_after)}: expected topics that are played ({', '.join(kinds)}); "
                "without it, the bag must hold a PointCloud2 topic"
            )
        for topic in chosen:
            if not begins_with_header(message_class(kinds[topic])):
                raise ValueError(
                    f"wait_after: {topic} is {kinds[topic]}, which has no header whose stamp an answer could carry"
                )
        return frozenset(chosen)

    def _wait_for_subscribers(self) -> None:
        timeout_s = self._options.subscriber_timeout_s
        deadline = time.monotonic() + timeout_s
        if self._options.wait_for is not None:
            self._answers = Answers(self._node, self._options.wait_for)
        matched: set[str] = set()
        since = time.monotonic()
        while time.monotonic() < deadline:
            if self._answers is not None:
                self._answers.subscribe_if_offered()
            now = {topic for topic, publisher in self._publishers.items() if publisher.get_subscription_count() > 0}
            if now != matched:
                matched, since = now, time.monotonic()
            complete = self._wait_after <= matched and (self._answers is None or self._answers.ready_for(SETTLE_S))
            if matched and complete and time.monotonic() - since >= SETTLE_S:
                break
            self._executor.spin_once(timeout_sec=STEP_S)
        for topic, publisher in self._publishers.items():
            self.report.topics[topic].subscribers = publisher.get_subscription_count()
        if self._answers is not None:
            self._refuse_without_answers(matched)
        elif not matched and timeout_s > 0:
            log.warning("nobody subscribes to any of the bag's topics after %g s; playing all the same", timeout_s)

    def _refuse_without_answers(self, matched: set[str]) -> None:
        assert self._answers is not None
        waited = f"within {self._options.subscriber_timeout_s:g} s"
        deaf = sorted(self._wait_after - matched)
        if deaf:
            raise TimeoutError(
                f"nobody subscribes to {', '.join(deaf)} {waited}, so no answer on {self._answers.topic} can come; "
                "is the node running and active, on the same ROS_DOMAIN_ID, with matching topics and QoS?"
            )
        if not self._answers.subscribed:
            raise TimeoutError(
                f"nobody publishes {self._answers.topic} {waited}; is the node running and active, and the name full?"
            )

    def _play_once(self, progress: Callable[[float, float], None] | None) -> None:
        self._send_latched()
        self._clock.start(self._begin_ns)
        if self._answers is not None:
            self._answers.stamps_ns.clear()
        length_s = (self._end_ns - self._begin_ns) * 1e-9
        awaited: tuple[int, int] | None = None
        for connection, time_ns, data in self._bag.messages(self._connections, self._begin_ns, self._end_ns):
            sweep = connection.topic in self._wait_after
            if awaited is not None and (sweep or time_ns > awaited[0] + self._options.lookahead_s * 1e9):
                self._wait_for_answer(*awaited)
                awaited = None
            self._wait_until(time_ns)
            self._publishers[connection.topic].publish(data)
            self.report.topics[connection.topic].sent += 1
            if sweep and (self._keyframes is None or stamp_of(data) in self._keyframes):
                awaited = time_ns, stamp_of(data)
            if progress is not None:
                progress((time_ns - self._begin_ns) * 1e-9, length_s)
        if awaited is not None:
            self._wait_for_answer(*awaited)

    def _flush(self) -> None:
        """Let reliable subscribers take what was sent last before the publishers go."""
        from rclpy.duration import Duration

        deadline = time.monotonic() + FLUSH_S
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=max(0.0, deadline - time.monotonic())))

    def _send_latched(self) -> None:
        """What a subscriber that joins at the beginning would have received from before ``start_s``."""
        latched = [c for c in self._connections if is_latched(offered_quality(c))]
        for connection, _, data in self._bag.messages(latched, self._bag.start_ns, self._begin_ns):
            self._publishers[connection.topic].publish(data)

    def _wait_until(self, bag_ns: int) -> None:
        while True:
            if self._ticker is not None:
                self._ticker.tick()
            remaining = self._clock.seconds_until(bag_ns)
            if remaining <= 0:
                return
            self._executor.spin_once(timeout_sec=min(remaining, self._step()))

    def _wait_for_answer(self, time_ns: int, stamp_ns: int) -> None:
        assert self._answers is not None
        self.report.awaited += 1
        self._clock.hold_at(time_ns + int(self._options.lookahead_s * 1e9))
        deadline = time.monotonic() + self._options.wait_timeout_s
        while stamp_ns not in self._answers.stamps_ns:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"no answer on {self._answers.topic} with the stamp {stamp_ns * 1e-9:.6f} of a sweep within "
                    f"{self._options.wait_timeout_s:g} s ({self.report.answered} of {self.report.awaited} answered); "
                    "either the node dropped it (its log and /diagnostics say why), or it is slow: allow more time"
                )
            if self._ticker is not None:
                self._ticker.tick()
            self._executor.spin_once(timeout_sec=self._step())
        self.report.answered += 1
        self._clock.release()

    def _step(self) -> float:
        return STEP_S if self._ticker is None else min(STEP_S, self._ticker.seconds_left())


def play(
    path: Path,
    options: PlayOptions,
    progress: Callable[[float, float], None] | None = None,
    *,
    domain_id: int | None = None,
) -> PlayReport:
    """Play a bag; see PlayOptions.

    Args:
        path: The bag.
        options: How.
        progress: Called with the bag seconds played and those to play.
        domain_id: The DDS domain; None takes ROS_DOMAIN_ID.

    Raises:
        FileNotFoundError: there is no bag.
        ModuleNotFoundError: rclpy or rosbags is not installed.
        TimeoutError: in the waiting mode: nobody to answer, or an answer that did not come.
        ValueError: the bag cannot be read or played as wanted.
    """
    require("rclpy", "rosbags")
    import rclpy
    from rclpy.context import Context
    from rclpy.executors import SingleThreadedExecutor

    use_shipped_profile()
    with Bag(path) as bag:
        context = Context()
        rclpy.init(context=context, domain_id=domain_id)
        node = rclpy.create_node("fusionocc_player", context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        try:
            return Player(bag, options, node, executor).run(progress)
        finally:
            executor.shutdown()
            node.destroy_node()
            context.try_shutdown()

"""Parts of the player: bag time, /clock, and the stamps of the answers that it waits for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fusionocc_ros.bag_reader import begins_with_header, is_latched, message_class, stamp_of

if TYPE_CHECKING:
    from rclpy.qos import QoSProfile
    from rosbags.interfaces import Qos


class BagClock:
    """Bag time: runs ``rate`` times as fast as the wall clock and can be held."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._bag_ns = 0
        self._wall_ns = 0
        self._ceiling_ns: int | None = None

    def start(self, bag_ns: int) -> None:
        """Let it be ``bag_ns`` now."""
        self._bag_ns, self._wall_ns, self._ceiling_ns = bag_ns, time.monotonic_ns(), None

    def now_ns(self) -> int:
        """Bag time."""
        now_ns = self._bag_ns + int((time.monotonic_ns() - self._wall_ns) * self._rate)
        return now_ns if self._ceiling_ns is None else min(now_ns, self._ceiling_ns)

    def hold_at(self, bag_ns: int) -> None:
        """Stand still when ``bag_ns`` is reached; at once where it is past."""
        self._ceiling_ns = max(bag_ns, self.now_ns())

    def release(self) -> None:
        """Go on from where it stands."""
        self.start(self.now_ns())

    def seconds_until(self, bag_ns: int) -> float:
        """Wall-clock seconds until ``bag_ns``; negative where it is past."""
        return (bag_ns - self.now_ns()) / self._rate * 1e-9


class Ticker:
    """Publishes /clock at a steady pace."""

    def __init__(self, node: Any, hz: float, clock: BagClock) -> None:
        from builtin_interfaces.msg import Time
        from rosgraph_msgs.msg import Clock

        self._make = lambda seconds, nanoseconds: Clock(clock=Time(sec=seconds, nanosec=nanoseconds))
        self._publisher = node.create_publisher(Clock, "/clock", 10)
        self._period_s = 1.0 / hz
        self._clock = clock
        self._next = 0.0

    def seconds_left(self) -> float:
        """Until the next tick."""
        return max(0.0, self._next - time.monotonic())

    def tick(self) -> None:
        """Publish if it is time."""
        now = time.monotonic()
        if now >= self._next:
            self._publisher.publish(self._make(*divmod(self._clock.now_ns(), 1_000_000_000)))
            self._next = now + self._period_s


class Answers:
    """Collects the stamps of the messages on a topic, whatever their type, as soon as somebody offers it."""

    def __init__(self, node: Any, topic: str) -> None:
        self._node = node
        self.topic = node.resolve_topic_name(topic)
        self.stamps_ns: set[int] = set()
        self.subscribed = False
        self._since = 0.0

    def ready_for(self, seconds: float) -> bool:
        """Whether it has listened for so long."""
        return self.subscribed and time.monotonic() - self._since >= seconds

    def subscribe_if_offered(self) -> None:
        """Listen, once somebody publishes the topic."""
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

        offers = [] if self.subscribed else self._node.get_publishers_info_by_topic(self.topic)
        if not offers:
            return
        message = message_class(offers[0].topic_type)
        if not begins_with_header(message):
            raise ValueError(f"wait_for: {self.topic} is {offers[0].topic_type}, which has no header with a stamp")
        reliable = all(offer.qos_profile.reliability == ReliabilityPolicy.RELIABLE for offer in offers)
        quality = QoSProfile(
            depth=100,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.VOLATILE,
        )
        self._node.create_subscription(
            message, self.topic, lambda data: self.stamps_ns.add(stamp_of(data)), quality, raw=True
        )
        self.subscribed, self._since = True, time.monotonic()


def publisher_quality(quality: Qos | None) -> QoSProfile:
    """The rclpy profile of a bag's QoS; reliable and volatile, depth 10, where the bag does not say."""
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    if quality is None:
        return QoSProfile(depth=10)
    keep_all = quality.history.name == "KEEP_ALL"
    best_effort = quality.reliability.name == "BEST_EFFORT"
    return QoSProfile(
        history=HistoryPolicy.KEEP_ALL if keep_all else HistoryPolicy.KEEP_LAST,
        depth=max(1, quality.depth),
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if is_latched(quality) else DurabilityPolicy.VOLATILE,
    )

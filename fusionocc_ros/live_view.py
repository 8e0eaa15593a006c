"""Live topics as a source of `fusionocc view`: found by their types, shown as they come, the newest first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from fusionocc_core.commands.view_sources import SourceOptions
from fusionocc_core.viz.view_frame import ViewFrame, ViewSource
from fusionocc_ros.requirements import require
from fusionocc_ros.view_topics import TF_STATIC, ViewTopics, find_topics, read_parameters

SOURCE = "ros"

DISCOVERY_S = 3.0
"""The topics are looked at when their number has not changed for this long ..."""

PATIENCE_S = 30.0
"""... and given up when after this long there is nothing to look at, or nothing has come."""

POLL_S = 0.02

QUEUE = 20
"""Messages that wait for us on each topic."""


class LiveOpener:
    """The word ``ros``."""

    def accepts(self, source: str) -> bool:
        """Whether it is that word."""
        return source == SOURCE

    def open(self, options: SourceOptions) -> ViewSource:
        """Open it; see LiveSource."""
        return LiveSource(options)


class LiveSource:
    """What runs in this DDS domain: cameras, a LiDAR, transforms, and the answers of a node.

    Raises:
        ModuleNotFoundError: ROS's Python packages are not installed.
    """

    name = "live"
    total: int | None

    def __init__(self, options: SourceOptions) -> None:
        require("rclpy", "fusionocc_msgs", "tf2_msgs")
        self._options = options
        self._parameters = read_parameters(options.params) if options.params else None
        self.total = options.limit

    def __iter__(self) -> Iterator[ViewFrame]:
        """The newest moment, again and again, until nobody wants any more.

        Raises:
            TimeoutError: nothing to look at is published, or nothing comes.
        """
        from fusionocc_ros.dds import use_shipped_profile
        from fusionocc_ros.spinning import node_in_thread
        from fusionocc_ros.view_moments import ViewMoments

        use_shipped_profile()
        with node_in_thread("fusionocc_view") as node:
            topics = self._find(node)
            moments = ViewMoments(
                topics,
                camera_history=self._options.camera_history,
                lidar_history=self._options.lidar_history,
            )
            _subscribe(node, topics, moments)
            shown, last = 0, time.monotonic()
            try:
                while shown != self._options.limit:
                    frame = moments.next(newest=True)
                    if frame is not None:
                        shown, last = shown + 1, time.monotonic()
                        yield frame
                    elif shown == 0 and time.monotonic() - last > PATIENCE_S:
                        raise TimeoutError(_silence(topics, moments.refused))
                    else:
                        time.sleep(POLL_S)
            finally:
                moments.close()

    def _find(self, node: Any) -> ViewTopics:
        """Wait until the topics are known."""
        began = changed = time.monotonic()
        known: dict[str, str] = {}
        while True:
            kinds = {topic: types[0] for topic, types in node.get_topic_names_and_types() if types}
            published = {topic: kind for topic, kind in kinds.items() if node.count_publishers(topic)}
            if published != known:
                known, changed = published, time.monotonic()
            now = time.monotonic()
            try:
                topics = find_topics(known, self._parameters)
            except ValueError as error:
                if now - began > PATIENCE_S:
                    raise TimeoutError(
                        f"after {PATIENCE_S:g} s: {error}; is the system in the same ROS_DOMAIN_ID, and running?"
                    ) from error
            else:
                if now - changed > DISCOVERY_S:
                    return topics
            time.sleep(10 * POLL_S)


def _subscribe(node: Any, topics: ViewTopics, moments: Any) -> None:
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    from fusionocc_ros.bag_reader import message_class

    kinds = {topic: types[0] for topic, types in node.get_topic_names_and_types() if types}
    for topic in topics.all():
        if topic not in kinds:
            continue
        offered = [p.qos_profile.reliability for p in node.get_publishers_info_by_topic(topic)]
        reliable = all(one == ReliabilityPolicy.RELIABLE for one in offered)
        quality = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=100 if topic.startswith("/tf") else QUEUE,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if topic == TF_STATIC else DurabilityPolicy.VOLATILE,
        )
        node.create_subscription(message_class(kinds[topic]), topic, _callback(topic, moments), quality)


def _callback(topic: str, moments: Any) -> Any:
    from fusionocc_ros.view_moments import message_stamp_ns

    def take(message: Any) -> None:
        moments.take(topic, message_stamp_ns(message), partial(_itself, message))

    return take


def _itself(message: Any) -> Any:
    return message


def _silence(topics: ViewTopics, refused: dict[str, int]) -> str:
    if refused:
        return f"nothing can be shown: {next(iter(refused))}"
    return (
        f"nothing has come within {PATIENCE_S:g} s on {', '.join(topics.all())}: is the bag paused, the driver running?"
    )


OPENER = LiveOpener()

"""Live topics as a source of `fusionocc view`: found by their types, shown as they come, the newest first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from fusionocc_core.commands.view_sources import SourceOptions
from fusionocc_core.viz.view_frame import ViewFrame, ViewSource
from fusionocc_ros.requirements import require
from fusionocc_ros.view_topics import TF_STATIC, ViewTopics, find_topics, read_parameters, with_cameras

SOURCE = "ros"

LOOK_S = 0.2
"""Between two looks at which topics there are."""

DISCOVERY_S = 3.0
"""They are taken when they have not changed for this long ..."""

PATIENCE_S = 30.0
"""... and given up when after this long there is nothing to look at, or nothing has come."""

OWN_TOPICS = ("/rosout", "/parameter_events")
"""What every node publishes, the viewer too."""

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

    Topics that come or go later, such as those of a node that is started after the viewer, are followed.

    Raises:
        ModuleNotFoundError: ROS's Python packages are not installed.
        ValueError: options that only recordings have.
    """

    name = "live"
    total: int | None

    def __init__(self, options: SourceOptions) -> None:
        require("rclpy", "fusionocc_msgs", "tf2_msgs")
        if options.start or options.scenes:
            raise ValueError("--start and --scene are for recordings: live topics have no beginning and no scenes")
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

        use_shipped_profile()
        with node_in_thread("fusionocc_view") as node:
            graph = _Graph(node, self._parameters, self._options.cameras)
            topics, shown = graph.first(), 0
            while True:
                for frame in self._moments(node, topics, graph, is_first=shown == 0):
                    shown += 1
                    yield frame
                    if shown == self._options.limit:
                        return
                topics = graph.topics or topics

    def _moments(self, node: Any, topics: ViewTopics, graph: _Graph, *, is_first: bool) -> Iterator[ViewFrame]:
        """What comes on these topics, until there are others."""
        from fusionocc_ros.view_moments import ViewMoments

        options = self._options
        moments = ViewMoments(
            topics, camera_history=options.camera_history, lidar_history=options.lidar_history, is_live=True
        )
        subscriptions = _subscribe(node, topics, moments)
        began = time.monotonic()
        try:
            while graph.look() in (None, topics):
                frame = moments.next(newest=True)
                if frame is not None:
                    is_first = False
                    yield frame
                elif is_first and time.monotonic() - began > PATIENCE_S:
                    raise TimeoutError(_silence(topics, moments.refused))
                else:
                    time.sleep(POLL_S)
        finally:
            for subscription in subscriptions:
                node.destroy_subscription(subscription)
            moments.close()


class _Graph:
    """Which topics are published, looked at now and then."""

    def __init__(self, node: Any, parameters: Mapping[str, Any] | None, cameras: tuple[str, ...] | None) -> None:
        self._node, self._parameters, self._cameras = node, parameters, cameras
        self._known: dict[str, str] = {}
        self._changed_s = time.monotonic()
        self._looked_s = -LOOK_S
        self._problem = "there are no topics"
        self.topics: ViewTopics | None = None
        """What there is to look at, once nothing has changed for DISCOVERY_S."""

    def look(self) -> ViewTopics | None:
        """The topics as they are now; as they were where that is not known yet, or there is nothing to look at."""
        now = time.monotonic()
        if now - self._looked_s < LOOK_S:
            return self.topics
        self._looked_s = now
        kinds = {topic: types[0] for topic, types in self._node.get_topic_names_and_types() if types}
        others = {topic: kind for topic, kind in kinds.items() if topic not in OWN_TOPICS}
        published = {topic: kind for topic, kind in others.items() if self._node.count_publishers(topic)}
        if published != self._known:
            self._known, self._changed_s = published, now
        if now - self._changed_s > DISCOVERY_S or self.topics is None:
            try:
                found = with_cameras(find_topics(published, self._parameters), self._cameras, "the system")
            except ValueError as error:
                self._problem = str(error)
            else:
                if now - self._changed_s > DISCOVERY_S:
                    self.topics = found
        return self.topics

    def first(self) -> ViewTopics:
        """Wait until there is something to look at.

        Raises:
            TimeoutError: there is nothing.
        """
        began = time.monotonic()
        while (topics := self.look()) is None:
            if time.monotonic() - began > PATIENCE_S:
                raise TimeoutError(
                    f"after {PATIENCE_S:g} s: {self._problem}; is the system in the same ROS_DOMAIN_ID, and running?"
                )
            time.sleep(POLL_S)
        return topics


def _subscribe(node: Any, topics: ViewTopics, moments: Any) -> list[Any]:
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    from fusionocc_ros.bag_reader import message_class

    kinds = {topic: types[0] for topic, types in node.get_topic_names_and_types() if types}
    made: list[Any] = []
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
        made.append(node.create_subscription(message_class(kinds[topic]), topic, _callback(topic, moments), quality))
    return made


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

"""A bag as a source of `fusionocc view` and `fusionocc video`: read from disk, without a player and without DDS."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionocc_core.commands.view_sources import SourceOptions
from fusionocc_core.viz.view_frame import ViewFrame, ViewSource
from fusionocc_ros.requirements import require
from fusionocc_ros.view_topics import TF, TF_STATIC, find_topics, read_parameters, with_cameras

if TYPE_CHECKING:
    from fusionocc_ros.bag_reader import Bag

SUFFIXES = (".mcap", ".db3")


class BagOpener:
    """Bags, by what they look like on disk."""

    def accepts(self, source: str) -> bool:
        """A folder with metadata.yaml, or a file with a bag's ending."""
        path = Path(source)
        return path.suffix in SUFFIXES or (path / "metadata.yaml").is_file()

    def open(self, options: SourceOptions) -> ViewSource:
        """Open it; see BagSource."""
        return BagSource(options)


class BagSource:
    """The sweeps of a bag with their pictures, poses and, where it was recorded, the answers of a node.

    Raises:
        FileNotFoundError: there is no such bag.
        ModuleNotFoundError: ROS's Python packages or rosbags are not installed.
        ValueError: it cannot be read, is empty, or has no topic to look at.
    """

    def __init__(self, options: SourceOptions) -> None:
        require("rclpy", "rosbags", "fusionocc_msgs", "tf2_msgs")
        from fusionocc_ros.bag_reader import Bag

        if options.scenes or options.version or options.data:
            raise ValueError("--scene, --version and --data are for data sets and predictions: a bag is one drive")
        self._path, self._options = Path(options.source), options
        parameters = read_parameters(options.params) if options.params else None
        with Bag(self._path) as bag:
            kinds = {connection.topic: connection.msgtype for connection in bag.connections}
            if not kinds or bag.end_ns <= bag.start_ns:
                raise ValueError(f"{self._path}: the bag is empty: it holds no message")
            self._topics = with_cameras(find_topics(kinds, parameters), options.cameras, "the bag")
        self.name = self._path.resolve().stem
        self.total = options.limit

    def __iter__(self) -> Iterator[ViewFrame]:
        """Read moment after moment.

        Raises:
            ValueError: no moment can be shown; says why.
        """
        from fusionocc_ros.bag_reader import Bag
        from fusionocc_ros.view_moments import ViewMoments

        options = self._options
        moments = ViewMoments(
            self._topics,
            keep_poses=True,
            camera_history=options.camera_history,
            lidar_history=options.lidar_history,
        )
        shown = 0
        stop = None if options.limit is None else options.start + options.limit
        try:
            with Bag(self._path) as bag:
                _read_poses(bag, moments)
                for frame in _moments_of(bag, moments):
                    shown += 1
                    if shown > options.start:
                        yield frame
                    if shown == stop:
                        return
        finally:
            moments.close()
        if shown <= options.start:
            reasons = "; ".join(f"{count} times: {reason}" for reason, count in list(moments.refused.items())[:3])
            raise ValueError(f"{self._path}: no moment to show{f' ({reasons})' if reasons else ''}")


def _read_poses(bag: Bag, moments: Any) -> None:
    """Transforms, odometry and calibration first: they are small, and a bag may hold them later than needed."""
    topics = moments.topics
    first = {TF, TF_STATIC, topics.odometry, *(camera.info for camera in topics.cameras)}
    connections = [one for one in bag.connections if one.topic in first]
    for connection, time_ns, data in bag.messages(connections, bag.start_ns, bag.end_ns + 1):
        moments.take(connection.topic, time_ns, partial(_load, connection.msgtype, data))


def _moments_of(bag: Bag, moments: Any) -> Iterator[ViewFrame]:
    from fusionocc_ros.bag_reader import stamp_of
    from fusionocc_ros.view_moments import message_stamp_ns

    topics = moments.topics
    keyframes = bag.keyframe_stamps_ns
    wanted = {topics.lidar, topics.occupancy, topics.gaussians, *(camera.picture for camera in topics.cameras)}
    connections = [one for one in bag.connections if one.topic in wanted]
    for connection, _, data in bag.messages(connections, bag.start_ns, bag.end_ns + 1):
        has_header = connection.topic != topics.gaussians
        stamp_ns = stamp_of(data) if has_header else message_stamp_ns(_load(connection.msgtype, data))
        if connection.topic == topics.lidar and keyframes is not None and stamp_ns not in keyframes:
            continue
        moments.take(connection.topic, stamp_ns, partial(_load, connection.msgtype, data))
        while (frame := moments.next()) is not None:
            yield frame
    while (frame := moments.next(at_end=True)) is not None:
        yield frame


def _load(kind: str, data: bytes) -> Any:
    from rclpy.serialization import deserialize_message

    from fusionocc_ros.bag_reader import message_class

    return deserialize_message(data, message_class(kind))


OPENER = BagOpener()

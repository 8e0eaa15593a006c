"""Reading a rosbag2 without ROS: topics, QoS, serialised messages, and what they say without being deserialised."""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fusionocc_ros.bag import KEYFRAME_STAMPS

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, Qos

HEADER = "std_msgs/Header"


class Bag:
    """A rosbag2 on disk: a folder with metadata.yaml, or a single .mcap or .db3 file. Use as a context manager.

    Raises:
        FileNotFoundError: there is no bag.
        ValueError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        from rosbags.rosbag2 import Reader, ReaderError

        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no such bag; expected a folder with metadata.yaml, an .mcap or a .db3 file"
            )
        if path.is_dir() and not (path / "metadata.yaml").is_file():
            raise FileNotFoundError(
                f"{path}: no bag, since the folder has no metadata.yaml; name the folder that has it, or an .mcap or "
                ".db3 file (a recording that was broken off: ros2 bag reindex)"
            )
        self._refused = (ReaderError, OSError)
        self.path = path
        try:
            self._reader = Reader(path)
        except self._refused as error:
            raise ValueError(f"{path}: cannot be read as a rosbag2: {error}") from error

    def __enter__(self) -> Bag:
        try:
            self._reader.open()
        except self._refused as error:
            raise ValueError(f"{self.path}: cannot be read as a rosbag2: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    @property
    def connections(self) -> list[Connection]:
        """Topics with their types and QoS."""
        return list(self._reader.connections)

    @property
    def start_ns(self) -> int:
        """Time of the first message."""
        return self._reader.start_time

    @property
    def end_ns(self) -> int:
        """Just after the last message."""
        return self._reader.end_time

    @property
    def keyframe_stamps_ns(self) -> frozenset[int] | None:
        """Stamps of the LiDAR keyframes, or None where the bag does not say which sweeps those are."""
        listed = (self._reader.storage.metadata.custom or {}).get(KEYFRAME_STAMPS)
        return None if listed is None else frozenset(json.loads(listed))

    def messages(
        self, connections: Sequence[Connection], start_ns: int, stop_ns: int
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """(connection, time, serialised message) from ``start_ns`` on and before ``stop_ns``, in the order of time."""
        if not connections:
            return
        for connection, time_ns, data in self._reader.messages(connections, start=start_ns, stop=stop_ns):
            yield connection, time_ns, bytes(data)


def offered_quality(connection: Connection) -> Qos | None:
    """The QoS of the topic's publisher; of the first where several were recorded, None where the bag has none."""
    profiles = getattr(connection.ext, "offered_qos_profiles", None) or [None]
    return profiles[0]


def is_latched(quality: Qos | None) -> bool:
    """Whether late subscribers receive the last message."""
    return quality is not None and quality.durability.name == "TRANSIENT_LOCAL"


def stamp_of(data: bytes) -> int:
    """Nanoseconds of a serialised message that begins with a std_msgs/Header; the rest is not deserialised.

    Raises:
        ValueError: too short to hold a header.
    """
    if len(data) < 12:
        raise ValueError(f"serialised message of {len(data)} bytes: too short to begin with a header")
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def message_class(kind: str) -> Any:
    """The Python class of "package/msg/Name".

    Raises:
        ModuleNotFoundError: the package is not installed, or has no such message.
    """
    package, _, name = kind.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except AttributeError as error:
        raise ModuleNotFoundError(f"package {package} has no message {name}") from error


def begins_with_header(message: Any) -> bool:
    """Whether ``stamp_of`` applies to serialised messages of this class."""
    fields = list(message.get_fields_and_field_types().values())
    return bool(fields) and fields[0] == HEADER

"""A MarkerArray written as CDR, the bytes that go over the wire, with its points straight from NumPy.

rclpy would make an object of every point and then serialise them one by one: 30,000 points cost tens of milliseconds.
The layout is that of visualization_msgs/Marker since ROS 2 Galactic. Where the installed message differs, a look at a
small example finds out, once, and the slow way is taken.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from functools import cache

import numpy as np
from geometry_msgs.msg import Point
from numpy.typing import NDArray
from rclpy.serialization import deserialize_message, serialize_message
from visualization_msgs.msg import Marker, MarkerArray

log = logging.getLogger(__name__)

Parts = Sequence[tuple[Marker, NDArray[np.float64]]]
"""Markers without points or colours of points, and the points (P, 3) of each."""

_LITTLE_ENDIAN = b"\x00\x01\x00\x00"


class _Cdr:
    """Bytes in the order of a message's fields; numbers begin at multiples of their size."""

    def __init__(self) -> None:
        self.out = bytearray(_LITTLE_ENDIAN)

    def align(self, size: int) -> None:
        self.out += bytes(-(len(self.out) - len(_LITTLE_ENDIAN)) % size)

    def numbers(self, kind: str, *values: float) -> None:
        """Values of one kind, a letter of the module struct."""
        self.align(struct.calcsize(f"<{kind}"))
        self.out += struct.pack(f"<{len(values)}{kind}", *values)

    def text(self, value: str) -> None:
        content = value.encode() + b"\0"
        self.numbers("I", len(content))
        self.out += content

    def raw(self, content: bytes) -> None:
        """A sequence of bytes."""
        self.numbers("I", len(content))
        self.out += content


def markers_to_bytes(parts: Parts) -> bytes:
    """The serialised MarkerArray of markers and their points; a publisher takes it in the place of the message."""
    return _write(parts) if _layout_fits() else _serialise(parts)


def _write(parts: Parts) -> bytes:
    cdr = _Cdr()
    cdr.numbers("I", len(parts))
    for marker, points in parts:
        _write_marker(cdr, marker, points)
    return bytes(cdr.out)


def _write_marker(cdr: _Cdr, marker: Marker, points: NDArray[np.float64]) -> None:
    cdr.numbers("i", marker.header.stamp.sec)
    cdr.numbers("I", marker.header.stamp.nanosec)
    cdr.text(marker.header.frame_id)
    cdr.text(marker.ns)
    cdr.numbers("i", marker.id, marker.type, marker.action)
    p, q, s, c = marker.pose.position, marker.pose.orientation, marker.scale, marker.color
    cdr.numbers("d", p.x, p.y, p.z, q.x, q.y, q.z, q.w, s.x, s.y, s.z)
    cdr.numbers("f", c.r, c.g, c.b, c.a)
    cdr.numbers("i", marker.lifetime.sec)
    cdr.numbers("I", marker.lifetime.nanosec)
    cdr.numbers("?", marker.frame_locked)
    cdr.numbers("I", len(points))
    if len(points):
        cdr.align(8)
        cdr.out += np.ascontiguousarray(points, dtype="<f8").data.cast("B")
    cdr.numbers("I", 0)  # colours of points
    cdr.text(marker.texture_resource)
    cdr.numbers("i", marker.texture.header.stamp.sec)
    cdr.numbers("I", marker.texture.header.stamp.nanosec)
    cdr.text(marker.texture.header.frame_id)
    cdr.text(marker.texture.format)
    cdr.raw(b"")
    cdr.numbers("I", 0)  # uv_coordinates
    cdr.text(marker.text)
    cdr.text(marker.mesh_resource)
    cdr.text(marker.mesh_file.filename)
    cdr.raw(b"")
    cdr.numbers("?", marker.mesh_use_embedded_materials)


def _serialise(parts: Parts) -> bytes:
    out = MarkerArray()
    for marker, points in parts:
        marker.points = [Point(x=x, y=y, z=z) for x, y, z in points.tolist()]
        out.markers.append(marker)
    return bytes(serialize_message(out))


def _example() -> Parts:
    marker = Marker(ns="ab", id=-7, type=Marker.CUBE_LIST, text="t", frame_locked=True)
    marker.header.frame_id, marker.header.stamp.sec, marker.lifetime.nanosec = "f", 3, 5
    marker.scale.y, marker.color.g, marker.pose.orientation.w = 2.0, 0.5, 1.0
    return [(marker, np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])), (Marker(id=4), np.zeros((0, 3)))]


@cache
def _layout_fits() -> bool:
    """Whether what is written here is what the installed message reads."""
    example = _example()
    try:
        ours = deserialize_message(_write(example), MarkerArray)
    except (AttributeError, RuntimeError) as error:
        ours = error
    fits = bool(ours == deserialize_message(_serialise(example), MarkerArray))
    if not fits:
        log.warning("visualization_msgs/Marker has another layout here: markers are made the slow way")
    return fits

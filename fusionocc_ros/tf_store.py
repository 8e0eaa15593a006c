"""Transforms between named frames over time: a static tree, moving edges, interpolation. Pure NumPy, no ROS.

Every frame has at most one parent, as in tf. An edge is stored as ``child2parent``; ``lookup`` composes the chain from
a source frame to a target frame at a stamp. Safe to fill from one thread and read from another.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, insort
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import (
    check_rigid,
    inverse,
    quaternion_wxyz_from_rotation,
    rotation_from_quaternion_wxyz,
    transform,
)

Matrix = NDArray[np.float64]

S = 1_000_000_000
FARTHEST_M = 1e12
"""Longest edge: further than the planets. Sums and squares of longer ones might not be finite."""
FAR_BACK_NS = S
"""A stamp further back than this is a message that comes late, or the first after a jump in time (a bag looped)."""


class TransformError(ValueError):
    """A transform that is not known; the message names both frames."""


class TransformNotYetError(TransformError):
    """A transform that may still come: its frames are not known yet, or the stamp lies after the newest one."""


def interpolate(a: Matrix, b: Matrix, fraction: float) -> Matrix:
    """The rigid transform on the way from ``a`` (fraction 0) to ``b`` (1): linear translation, slerp rotation.

    Fractions outside 0..1 continue the motion at constant speed.
    """
    w, *axis = quaternion_wxyz_from_rotation(a[:3, :3].T @ b[:3, :3])
    half = float(np.arctan2(np.linalg.norm(axis), w))
    if half < 1e-12:
        rotation = a[:3, :3]
    else:
        direction = np.asarray(axis) / np.sin(half)
        part = np.concatenate([[np.cos(fraction * half)], np.sin(fraction * half) * direction])
        rotation = a[:3, :3] @ rotation_from_quaternion_wxyz(part)
    return transform(rotation, a[:3, 3] + fraction * (b[:3, 3] - a[:3, 3]))


@dataclass
class Track:
    """One moving edge: transforms by stamp, oldest first."""

    buffer_ns: int
    stamps: list[int] = field(default_factory=list)
    matrices: dict[int, Matrix] = field(default_factory=dict)
    far_back: dict[int, Matrix] = field(default_factory=dict)
    """What came just before, where that was far behind the newest: at most one entry."""

    def add(self, stamp_ns: int, matrix: Matrix) -> None:
        """Insert one; where the stamps have jumped back, the track starts anew.

        A stamp behind the whole buffer is a jump. One that is only far behind the newest may come late and is sorted
        in; it was a jump when another stamp far back follows it.
        """
        behind_ns = self.stamps[-1] - stamp_ns if self.stamps else 0
        before = {s: m for s, m in self.far_back.items() if s != stamp_ns}
        if behind_ns > self.buffer_ns:
            self.stamps, self.matrices, self.far_back = [], {}, {}
        elif behind_ns > FAR_BACK_NS and before:
            self.stamps, self.matrices, self.far_back = list(before), before, {}
        else:
            self.far_back = {stamp_ns: matrix} if behind_ns > FAR_BACK_NS else {}
        if stamp_ns not in self.matrices:
            insort(self.stamps, stamp_ns)
        self.matrices[stamp_ns] = matrix
        while self.stamps[-1] - self.stamps[0] > self.buffer_ns:
            del self.matrices[self.stamps.pop(0)]

    def at(self, stamp_ns: int, tolerance_ns: int, gap_ns: int) -> Matrix | None:
        """The transform at a stamp, or None where it lies further than the tolerance outside of what is known.

        Within the tolerance the motion goes on at constant speed, where the track is at least as long as the stretch.
        Also None where the stamps around it lie further apart than ``gap_ns``: what happened between is not known.
        """
        first, last = self.stamps[0], self.stamps[-1]
        if stamp_ns in self.matrices:
            return self.matrices[stamp_ns]
        if not first - tolerance_ns <= stamp_ns <= last + tolerance_ns:
            return None
        after = bisect_left(self.stamps, stamp_ns)
        before_ns, after_ns = self.stamps[max(after - 1, 0)], self.stamps[min(after, len(self.stamps) - 1)]
        # Continuing from two stamps closer together than the stretch to cover would blow up their noise.
        if stamp_ns > last:
            before_ns = next((s for s in reversed(self.stamps) if last - s >= tolerance_ns), first)
        elif stamp_ns < first:
            after_ns = next((s for s in self.stamps if s - first >= tolerance_ns), last)
        if not first <= stamp_ns <= last and after_ns - before_ns < max(stamp_ns - last, first - stamp_ns):
            return None
        if before_ns < stamp_ns < after_ns and after_ns - before_ns > gap_ns:
            return None
        fraction = (stamp_ns - before_ns) / (after_ns - before_ns)
        return interpolate(self.matrices[before_ns], self.matrices[after_ns], fraction)


class TfStore:
    """Static and moving transforms, looked up by frame names and stamp.

    The edges never form a loop. A static edge that would close one is refused; a moving edge, which is said again and
    again, takes the place of the edge of the loop that was the last to come: a wrong message is outlived.

    Args:
        buffer_ns: how far back moving edges are kept.
        tolerance_ns: how far outside of the stamps at hand a moving edge may be continued.
        gap_ns: how far apart two stamps may lie for what is between them to be interpolated.
    """

    def __init__(self, *, buffer_ns: int = 10 * S, tolerance_ns: int = 50_000_000, gap_ns: int = S) -> None:
        self._buffer_ns = buffer_ns
        self._tolerance_ns = tolerance_ns
        self._gap_ns = gap_ns
        self.static_changes = 0
        """How many edges that were known have been given another value by ``set_static``."""
        self._parents: dict[str, str] = {}
        self._static: dict[str, Matrix] = {}
        self._tracks: dict[str, Track] = {}
        self._order: dict[str, int] = {}
        """When each child was given its parent: a number that grows."""
        self._changed = threading.Condition()

    def set_static(self, parent: str, child: str, child2parent: Matrix) -> None:
        """Set an edge that does not move; replaces what was known about this child.

        Raises:
            ValueError: not a rigid transform, an edge from a frame to itself, or one that closes a loop.
        """
        parent, child = _checked(parent, child)
        matrix = _plausible(f"transform from {child!r} to {parent!r}", child2parent)
        with self._changed:
            if loop := self._below(parent, child):
                raise ValueError(f"it would close a loop: {' -> '.join([child, *loop, child])}")
            self._establish(parent, child)
            before = self._static.get(child)
            moved = before is not None and (self._parents[child] != parent or not np.array_equal(before, matrix))
            self.static_changes += moved
            self._parents[child] = parent
            self._static[child] = matrix
            self._tracks.pop(child, None)
            self._changed.notify_all()

    def add(self, parent: str, child: str, stamp_ns: int, child2parent: Matrix) -> None:
        """Add an edge as it is at a stamp.

        Raises:
            ValueError: not a rigid transform, or an edge from a frame to itself.
        """
        parent, child = _checked(parent, child)
        matrix = _plausible(f"transform from {child!r} to {parent!r}", child2parent)
        with self._changed:
            if loop := self._below(parent, child):
                self._forget(max(loop, key=self._order.__getitem__))
            if self._parents.get(child) != parent:
                self._tracks.pop(child, None)
            self._establish(parent, child)
            self._parents[child] = parent
            self._static.pop(child, None)
            self._tracks.setdefault(child, Track(self._buffer_ns)).add(stamp_ns, matrix)
            self._changed.notify_all()

    def lookup(self, source: str, target: str, stamp_ns: int, *, timeout_s: float = 0.0) -> Matrix:
        """``source2target`` (4, 4) at a stamp, waiting up to ``timeout_s`` for it to become known.

        Raises:
            TransformNotYetError: it did not become known in time.
            TransformError: it cannot become known: the stamp lies before the oldest one kept.
        """
        source, target = source.lstrip("/"), target.lstrip("/")
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                try:
                    return self._lookup(source, target, stamp_ns)
                except TransformNotYetError:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        raise
                    self._changed.wait(remaining)

    def connected(self, source: str, target: str) -> bool:
        """Whether a chain of edges joins two frames, at whatever stamp."""
        with self._changed:
            return self._chain(source.lstrip("/"))[-1] == self._chain(target.lstrip("/"))[-1]

    def frames(self) -> list[str]:
        """All frames known, sorted."""
        with self._changed:
            return sorted(set(self._parents) | set(self._parents.values()))

    def clear(self) -> None:
        """Forget everything."""
        with self._changed:
            self._parents.clear()
            self._static.clear()
            self._tracks.clear()
            self._order.clear()

    def _below(self, frame: str, ancestor: str) -> list[str]:
        """The frames from ``frame`` up to the last one below ``ancestor``; empty where it is no ancestor."""
        chain = self._chain(frame)
        return chain[: chain.index(ancestor)] if ancestor in chain else []

    def _establish(self, parent: str, child: str) -> None:
        if self._parents.get(child) != parent:
            self._order[child] = max(self._order.values(), default=0) + 1

    def _forget(self, child: str) -> None:
        del self._parents[child], self._order[child]
        self._static.pop(child, None)
        self._tracks.pop(child, None)

    def _lookup(self, source: str, target: str, stamp_ns: int) -> Matrix:
        if source == target:
            return np.eye(4)
        up, down = self._chain(source), self._chain(target)
        common = next((frame for frame in up if frame in down), None)
        if common is None:
            raise TransformNotYetError(self._not_connected(source, target))
        source2common = self._compose(up[: up.index(common)], source, target, stamp_ns)
        target2common = self._compose(down[: down.index(common)], source, target, stamp_ns)
        return np.asarray(inverse(target2common) @ source2common)

    def _chain(self, frame: str) -> list[str]:
        chain = [frame]
        while (parent := self._parents.get(chain[-1])) is not None:
            chain.append(parent)
        return chain

    def _compose(self, children: list[str], source: str, target: str, stamp_ns: int) -> Matrix:
        out: Matrix = np.eye(4)
        for child in children:
            out = self._edge(child, source, target, stamp_ns) @ out
        return out

    def _edge(self, child: str, source: str, target: str, stamp_ns: int) -> Matrix:
        if child in self._static:
            return self._static[child]
        track = self._tracks[child]
        found = track.at(stamp_ns, self._tolerance_ns, self._gap_ns)
        if found is not None:
            return found
        first, last = track.stamps[0], track.stamps[-1]
        if first < stamp_ns < last:
            raise TransformError(
                f"no transform from {source!r} to {target!r} at {stamp_ns / S:.3f} s: {child!r} to "
                f"{self._parents[child]!r} is known before and after, but not within {self._gap_ns / S:g} s of each "
                "other; publish it more often, or set transform_gap"
            )
        message = (
            f"no transform from {source!r} to {target!r} at {stamp_ns / S:.3f} s: {child!r} to "
            f"{self._parents[child]!r} is known from {first / S:.3f} to {last / S:.3f} s"
        )
        raise TransformNotYetError(message) if stamp_ns > last else TransformError(message)

    def _not_connected(self, source: str, target: str) -> str:
        known = sorted(set(self._parents) | set(self._parents.values()))
        missing = [frame for frame in (source, target) if frame not in known]
        reason = (
            f"no transform message named {' or '.join(repr(frame) for frame in missing)}"
            if missing
            else "no chain of transforms joins them"
        )
        return (
            f"no transform from {source!r} to {target!r}: {reason}; known frames: "
            f"{', '.join(known) if known else 'none (is /tf_static published?)'}"
        )


def _plausible(name: str, child2parent: Matrix) -> Matrix:
    matrix = check_rigid(name, child2parent)
    if np.abs(matrix[:3, 3]).max() > FARTHEST_M:
        raise ValueError(f"{name}: a translation of {matrix[:3, 3].tolist()} m; at most {FARTHEST_M:g} is believed")
    return matrix


def _checked(parent: str, child: str) -> tuple[str, str]:
    parent, child = parent.lstrip("/"), child.lstrip("/")
    if not parent or not child or parent == child:
        raise ValueError(f"transform from child {child!r} to parent {parent!r}: two different names are needed")
    return parent, child

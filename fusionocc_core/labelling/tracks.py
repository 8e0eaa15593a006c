"""Where each annotated object is at any moment: boxes of keyframes, interpolated in between.

Legend: K keyframes in which the object is annotated, P points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes_tables import Box
from fusionocc_core.geometry import (
    quaternion_wxyz_from_rotation,
    rotation_from_quaternion_wxyz,
    transform,
)
from fusionocc_core.grids import LIDARSEG_TO_OCC3D

BEYOND_NS = 600_000_000
"""When points are shared out, boxes are carried on so long beyond their first and last annotation."""
_SPEED_OVER_NS = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Pose:
    """An object at one moment."""

    box2frame: NDArray[np.float64]
    """(4, 4); the box's x is its length, y its width, its origin the box's centre."""
    size_lwh: NDArray[np.float64]
    """(3,) metres."""
    label: int
    """Occ3D class."""
    instance: str
    speed: float
    """m/s, horizontally."""

    def local(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Points (P, 3) in the box's axes."""
        rotation = self.box2frame[:3, :3].astype(points.dtype)
        return (points - self.box2frame[:3, 3].astype(points.dtype)) @ rotation


@dataclass(frozen=True, kw_only=True)
class Track:
    """The annotations of one object over a scene, in the order of time."""

    instance: str
    label: int
    stamps_ns: NDArray[np.int64]
    """(K,)."""
    centers: NDArray[np.float64]
    """(K, 3)."""
    quaternions_wxyz: NDArray[np.float64]
    """(K, 4), each on the same side of the sphere as the one before."""
    sizes_lwh: NDArray[np.float64]
    """(K, 3)."""

    def at(self, stamp_ns: int, beyond_ns: int = 0) -> Pose | None:
        """The object at some moment; None where nothing is known of it.

        Between two annotations place and heading are interpolated.

        Args:
            stamp_ns: the moment.
            beyond_ns: so long before its first and after its last annotation the object goes on at the speed it had.
        """
        first, last = int(self.stamps_ns[0]), int(self.stamps_ns[-1])
        if not first - beyond_ns <= stamp_ns <= last + beyond_ns:
            return None
        center = self._center(stamp_ns)
        ahead, behind = self._center(stamp_ns + _SPEED_OVER_NS), self._center(stamp_ns - _SPEED_OVER_NS)
        nearest = int(np.abs(self.stamps_ns - stamp_ns).argmin())
        return Pose(
            box2frame=transform(rotation_from_quaternion_wxyz(self._quaternion(stamp_ns)), center),
            size_lwh=self.sizes_lwh[nearest],
            label=self.label,
            instance=self.instance,
            speed=float(np.hypot(*(ahead - behind)[:2]) / (2e-9 * _SPEED_OVER_NS)),
        )

    def _segment(self, stamp_ns: int) -> tuple[int, float]:
        """The annotation before the moment, and the share of the way to the next; below 0, above 1 beyond the ends."""
        k = int(np.clip(np.searchsorted(self.stamps_ns, stamp_ns, side="right") - 1, 0, len(self.stamps_ns) - 2))
        start, stop = int(self.stamps_ns[k]), int(self.stamps_ns[k + 1])
        return k, (stamp_ns - start) / (stop - start)

    def _center(self, stamp_ns: int) -> NDArray[np.float64]:
        if len(self.stamps_ns) == 1:
            return self.centers[0]
        k, share = self._segment(stamp_ns)
        return np.asarray(self.centers[k] + share * (self.centers[k + 1] - self.centers[k]))

    def _quaternion(self, stamp_ns: int) -> NDArray[np.float64]:
        if len(self.stamps_ns) == 1:
            return self.quaternions_wxyz[0]
        k, share = self._segment(stamp_ns)
        share = float(np.clip(share, 0.0, 1.0))
        return np.asarray((1 - share) * self.quaternions_wxyz[k] + share * self.quaternions_wxyz[k + 1])


def make_tracks(boxes: Iterable[tuple[int, Sequence[Box]]], origin: NDArray[np.float64]) -> list[Track]:
    """Tracks of all objects of a scene.

    Args:
        boxes: (stamp in nanoseconds, boxes in the global frame) of each keyframe.
        origin: (3,) global, metres; tracks are relative to it.

    Raises:
        ValueError: a box of a category that nuScenes does not have.
    """
    found: dict[str, list[tuple[int, Box]]] = {}
    for stamp_ns, of_keyframe in boxes:
        for box in of_keyframe:
            found.setdefault(box.instance, []).append((stamp_ns, box))
    return [_track(entries, origin) for _, entries in sorted(found.items())]


def _track(entries: list[tuple[int, Box]], origin: NDArray[np.float64]) -> Track:
    entries = sorted(entries, key=lambda entry: entry[0])
    name = entries[0][1].name
    if name not in LIDARSEG_TO_OCC3D:
        raise ValueError(f"box {entries[0][1].token}: category {name!r} is none of nuScenes' {len(LIDARSEG_TO_OCC3D)}")
    quaternions = np.stack([quaternion_wxyz_from_rotation(box.rotation) for _, box in entries])
    for k in range(1, len(quaternions)):
        if quaternions[k] @ quaternions[k - 1] < 0:
            quaternions[k] *= -1
    return Track(
        instance=entries[0][1].instance,
        label=LIDARSEG_TO_OCC3D[name],
        stamps_ns=np.array([stamp for stamp, _ in entries], np.int64),
        centers=np.stack([box.center for _, box in entries]) - origin,
        quaternions_wxyz=quaternions,
        sizes_lwh=np.stack([box.size_lwh for _, box in entries]),
    )

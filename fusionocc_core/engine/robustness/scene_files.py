"""What a delay needs to know beyond one frame: the other files of a scene, and where the ego vehicle was when."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.geometry import inverse, transform
from fusionocc_core.simulation.corruptions import rotation_from_vector, vector_from_rotation

MS = 1_000_000
"""Nanoseconds."""

_SHORTEST_NS = 20 * MS
"""Poses closer together than this are not used to tell a velocity from: their noise would be blown up."""

_SCENES_KEPT = 2


class Inapplicable(ValueError):
    """A condition cannot be made from a frame; the message says why."""


@dataclass(frozen=True, kw_only=True)
class EgoTrack:
    """Where the ego vehicle was at the stamps of a scene's files.

    Args:
        stamps_ns: increasing.
        ego2global: (4, 4), one for each stamp.
    """

    stamps_ns: tuple[int, ...]
    ego2global: tuple[NDArray[np.float64], ...]

    def pose(self, stamp_ns: int) -> NDArray[np.float64]:
        """ego2global (4, 4) at any time: on the straight way between two known poses, at an even turn rate.

        Beyond the last pose (or before the first one) the motion goes on as it was.

        Raises:
            Inapplicable: all poses are of nearly the same time, so that no motion can be told.
        """
        after = bisect_left(self.stamps_ns, stamp_ns)
        if after < len(self.stamps_ns) and self.stamps_ns[after] == stamp_ns:
            return self.ego2global[after]
        first, second = self._around(after)
        span = self.stamps_ns[second] - self.stamps_ns[first]
        step = inverse(self.ego2global[first]) @ self.ego2global[second]
        share = (stamp_ns - self.stamps_ns[first]) / span
        turn = rotation_from_vector(share * vector_from_rotation(step[:3, :3]))
        shift = share * (self.ego2global[second][:3, 3] - self.ego2global[first][:3, 3])
        return transform(self.ego2global[first][:3, :3] @ turn, self.ego2global[first][:3, 3] + shift)

    def _around(self, after: int) -> tuple[int, int]:
        """Two stamps to go by: the neighbours, or at an end the last (first) one and one far enough from it."""
        last = len(self.stamps_ns) - 1
        if 0 < after <= last:
            return after - 1, after
        end, others = (0, range(1, last + 1)) if after == 0 else (last, range(last - 1, -1, -1))
        far = (k for k in others if abs(self.stamps_ns[k] - self.stamps_ns[end]) >= _SHORTEST_NS)
        other = next(far, None)
        if other is None:
            raise Inapplicable(
                f"all ego poses of the scene lie within {(self.stamps_ns[-1] - self.stamps_ns[0]) / MS:.1f} ms; the "
                "ego's motion cannot be told from them"
            )
        return min(end, other), max(end, other)


@dataclass(frozen=True, kw_only=True)
class _Scene:
    records: dict[str, list[SensorRecord]] = field(default_factory=dict)
    """Channel -> its files in the order of time."""
    track: EgoTrack


class SceneFiles:
    """The files between the keyframes, and the ego motion, of the scenes of a data set. Safe to use from threads.

    Files between keyframes that the tables list but the disk lacks are taken for not there; their poses still count.

    Args:
        frames: the data set.
    """

    def __init__(self, frames: NuScenesFrames) -> None:
        self.frames = frames
        self._scenes: OrderedDict[str, _Scene] = OrderedDict()
        self._lock = threading.Lock()

    def track(self, scene: str) -> EgoTrack:
        """Where the ego vehicle was."""
        return self._scene(scene).track

    def record_before(self, scene: str, channel: str, stamp_ns: int, age_ns: int) -> SensorRecord | None:
        """The file of a sensor whose content is closest to ``age_ns`` older than a stamp, and not younger than it.

        None where the sensor has no file that old; the file of the stamp itself counts.
        """
        records = self._scene(scene).records.get(channel, [])
        candidates = [record for record in records if record.stamp_ns <= stamp_ns]
        return min(candidates, key=lambda record: abs(record.stamp_ns + age_ns - stamp_ns), default=None)

    def has_files_between_keyframes(self, scene: str, channel: str) -> bool:
        """Whether a sensor has more files than the annotated ones."""
        return any(not record.is_key_frame for record in self._scene(scene).records.get(channel, []))

    def _scene(self, name: str) -> _Scene:
        with self._lock:
            if name not in self._scenes:
                self._scenes[name] = self._read(name)
                while len(self._scenes) > _SCENES_KEPT:
                    self._scenes.popitem(last=False)
            self._scenes.move_to_end(name)
            return self._scenes[name]

    def _read(self, name: str) -> _Scene:
        records: dict[str, list[SensorRecord]] = {}
        poses: dict[int, NDArray[np.float64]] = {}
        for record in self.frames.sensor_records(name):
            # Many copies of nuScenes have samples/ only, with tables that list the sweeps all the same.
            if record.is_key_frame or record.path.is_file():
                records.setdefault(record.channel, []).append(record)
            poses.setdefault(record.stamp_ns, record.ego2global)
        stamps = tuple(sorted(poses))
        return _Scene(records=records, track=EgoTrack(stamps_ns=stamps, ego2global=tuple(poses[s] for s in stamps)))

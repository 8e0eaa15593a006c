"""All sweeps of a scene in one: the static scene in the scene's frame, each object in the axes of its own box."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes_tables import Box, Keyframe
from fusionocc_core.labelling.cells import Cells, cell_keys, spread_classes, thin
from fusionocc_core.labelling.clouds import REACH_BEYOND, STILL, Sweep, SweepFile, owners, read_points
from fusionocc_core.labelling.config import MAY_MOVE, OTHERS, UNLABELLED, LabelConfig
from fusionocc_core.labelling.tracks import BEYOND_NS, Pose, Track, make_tracks

RAY_CELL = 0.4
"""Of pulses from the same place (by this raster) to the same cell of this edge one is kept, metres."""


@dataclass(frozen=True, kw_only=True)
class SceneJob:
    """All that is needed to label one scene; no tables, so that it can be sent to another process."""

    scene: str
    keyframes: tuple[Keyframe, ...]
    lidar: str
    """Channel."""
    sweeps: tuple[SweepFile, ...]
    boxes: tuple[tuple[Box, ...], ...]
    """Of each keyframe, global frame."""
    classes: NDArray[np.uint8]
    """(256,) from clouds.point_classes; not looked at where there are no labels."""
    config: LabelConfig

    @property
    def origin(self) -> NDArray[np.float64]:
        """(3,) global place of the scene frame: the first keyframe's, in whole metres, so that float32 will do."""
        return np.round(self.keyframes[0].records[self.lidar].ego2global[:3, 3])


@dataclass(frozen=True, kw_only=True)
class Pulses:
    """LiDAR pulses that came back, scene frame."""

    eye: NDArray[np.float32]
    """(R, 3) where they began."""
    end: NDArray[np.float32]
    """(R, 3) what they hit."""


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """A scene, put together."""

    static: Cells
    objects: dict[str, Cells]
    """Instance -> cells in its box's axes."""
    loose: dict[int, Cells]
    """Keyframe -> points of classes that may move, outside of all boxes; scene frame."""
    tracks: tuple[Track, ...]
    pulses: Pulses
    """Of all sweeps, thinned."""
    own_pulses: dict[int, Pulses]
    """Keyframe -> those of its own sweep."""

    def poses(self, stamp_ns: int) -> list[Pose]:
        """The objects at a moment."""
        return [pose for track in self.tracks if (pose := track.at(stamp_ns))]


@dataclass(kw_only=True)
class _Bins:
    points: dict[str, list[NDArray[np.float32]]] = field(default_factory=lambda: defaultdict(list))
    label: dict[str, list[NDArray[np.uint8]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, points: NDArray[np.float32], label: NDArray[np.uint8]) -> None:
        self.points[name].append(points)
        self.label[name].append(label)

    def thinned(self, name: str, size: float) -> Cells:
        if name not in self.points:
            return Cells.empty()
        return thin(np.concatenate(self.points.pop(name)), np.concatenate(self.label.pop(name)), size)


def aggregate(job: SceneJob) -> Aggregate:
    """Read all sweeps of a scene and put them together.

    Raises:
        FileNotFoundError: a cloud or its labels are absent.
        ValueError: one of them is damaged, or no static point has a label.
    """
    config = job.config
    stamps = [keyframe.records[job.lidar].stamp_ns for keyframe in job.keyframes]
    tracks = make_tracks(zip(stamps, job.boxes, strict=True), job.origin)
    reach = float(np.hypot(*np.abs([config.grid.lower, config.grid.upper]).max(axis=0)[:2])) + REACH_BEYOND
    still, moving = _Bins(), _Bins()
    loose: dict[int, Cells] = {}
    pulses: list[Pulses] = []
    own: dict[int, Pulses] = {}
    for file in job.sweeps:
        sweep = read_points(file, job.classes, job.origin, reach)
        poses = [pose for track in tracks if (pose := track.at(file.record.stamp_ns, BEYOND_NS))]
        owner = owners(sweep, poses, config)
        for k in np.unique(owner[owner >= 0]):
            mine = owner == k
            label = np.full(int(mine.sum()), poses[k].label, np.uint8)
            moving.add(poses[k].instance, poses[k].local(sweep.points[mine]).astype(np.float32), label)
        rest = owner == STILL
        if file.keyframe is not None:
            outside = rest & np.isin(sweep.label, MAY_MOVE)
            loose[file.keyframe] = thin(sweep.points[outside], sweep.label[outside], config.cell)
            own[file.keyframe] = Pulses(eye=_repeated(sweep), end=sweep.points)
            rest &= ~outside
        label = sweep.label[rest]
        still.add("", sweep.points[rest], np.full_like(label, OTHERS) if config.boxes_only else label)
        pulses.append(_thinned(Pulses(eye=_repeated(sweep), end=sweep.points)))
    static = still.thinned("", config.cell)
    return Aggregate(
        static=spread_classes(static),
        objects={name: moving.thinned(name, config.cell) for name in sorted(moving.points)},
        loose=loose,
        tracks=tuple(tracks),
        pulses=_thinned(_joined(pulses)),
        own_pulses=own,
    )


def _repeated(sweep: Sweep) -> NDArray[np.float32]:
    return np.broadcast_to(sweep.eye, sweep.points.shape)


def _joined(parts: Sequence[Pulses]) -> Pulses:
    return Pulses(eye=np.concatenate([p.eye for p in parts]), end=np.concatenate([p.end for p in parts]))


def _thinned(pulses: Pulses) -> Pulses:
    """One pulse of those that begin and end in the same cells."""
    begin, stop = (np.unique(cell_keys(p, RAY_CELL), return_inverse=True)[1] for p in (pulses.eye, pulses.end))
    _, first = np.unique(begin.astype(np.int64) * (len(stop) + 1) + stop, return_index=True)
    first.sort()
    return Pulses(eye=pulses.eye[first], end=pulses.end[first])


assert UNLABELLED not in MAY_MOVE, "sweeps between keyframes have no loose points"

"""Which conditions are tried: those of the table, as far as the data has what it takes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from fusionocc_core.data.nuscenes import NuScenesFrames, read_sweep
from fusionocc_core.engine.robustness.conditions import (
    RING,
    CameraMiscalibration,
    CamerasDropped,
    Clean,
    Condition,
    Corrupted,
    LidarBeams,
    LidarDropped,
    LidarMiscalibration,
)
from fusionocc_core.engine.robustness.delay import SENSORS, Delay
from fusionocc_core.engine.robustness.scene_files import SceneFiles
from fusionocc_core.simulation.corruptions import CAMERA_CORRUPTIONS, LIDAR_CORRUPTIONS, Corruption

GROUPS = ("cameras", "lidar", "beams", "delay", "calibration", "corruptions")
"""In the order of the table."""
DROPPED = range(1, 7)
"""Cameras; besides, all of them."""
BEAMS = (16, 8, 4)
DELAYS_MS = (50, 100, 200)
NOTICED_MS = (200,)
"""Delays that are also tried with right stamps, where there are files between the keyframes."""
DEGREES = (1.0, 2.0, 5.0)
SEVERITY = 3
"""Of the corruptions, where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class Rig:
    """What a data set has, as far as it decides which conditions make sense."""

    cameras: int
    rings: int
    """Of the LiDAR; 0 without."""
    sweeping: frozenset[str]
    """Of delay.SENSORS: those with files between the keyframes."""


def rig_of(frames: NuScenesFrames) -> Rig:
    """Look at the first scene, and at the first cloud that there is.

    Raises:
        FileNotFoundError, ValueError: it cannot be read.
    """
    scene = frames.keyframe(0).scene
    files = SceneFiles(frames)
    channels = {"camera": frames.cameras, "lidar": (frames.lidar,) if frames.lidar else ()}
    sweeping = {s for s in SENSORS if any(files.has_files_between_keyframes(scene, c) for c in channels[s])}
    keyframes = (frames.keyframe(index) for index in range(len(frames)))
    cloud = next((k.records[frames.lidar] for k in keyframes if frames.lidar in k.records), None)
    rings = 0 if cloud is None else int(read_sweep(cloud).points[:, RING].max()) + 1
    return Rig(cameras=len(frames.cameras), rings=rings, sweeping=frozenset(sweeping))


def standard_conditions(rig: Rig, severities: Sequence[int] = (SEVERITY,)) -> tuple[Condition, ...]:
    """All conditions that make sense with a rig, without the clean one.

    Args:
        rig: of the data.
        severities: of the corruptions, 1 to 5.

    Raises:
        ValueError: a severity that does not exist.
    """
    sensors = [name for name, there in zip(SENSORS, (rig.cameras > 0, rig.rings > 0), strict=True) if there]
    corruptions = [name for name in CAMERA_CORRUPTIONS if rig.cameras] + [n for n in LIDAR_CORRUPTIONS if rig.rings]
    counts = sorted({count for count in DROPPED if count < rig.cameras} | ({rig.cameras} if rig.cameras else set()))
    return (
        *(CamerasDropped(count=count, of=rig.cameras) for count in counts),
        *([LidarDropped()] if rig.rings else []),
        *(LidarBeams(keep=keep, of=rig.rings) for keep in BEAMS if keep < rig.rings),
        *(Delay(sensor=sensor, delay_ms=ms) for sensor in sensors for ms in DELAYS_MS),
        *(Delay(sensor=s, delay_ms=ms, noticed=True) for s in sensors if s in rig.sweeping for ms in NOTICED_MS),
        *(CameraMiscalibration(degrees=degrees) for degrees in DEGREES if rig.cameras),
        *(LidarMiscalibration(degrees=degrees) for degrees in DEGREES if rig.rings),
        *(
            Corrupted(corruption=Corruption(name=name, severity=severity))
            for name in corruptions
            for severity in sorted(set(severities))
        ),
    )


def chosen_conditions(conditions: Sequence[Condition], wanted: Sequence[str] | None) -> tuple[Condition, ...]:
    """The clean condition and those of the wanted groups or names; None takes all.

    Raises:
        ValueError: a name that is neither, with the nearest ones; a group that this data cannot have; nothing at all.
    """
    names = [*GROUPS, *(condition.key for condition in conditions)]
    for name in wanted or ():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            hint = f"nearest: {', '.join(near)}; " if near else ""
            raise ValueError(
                f"condition {name!r} is not known, or not possible with this data; {hint}groups: {', '.join(GROUPS)}; "
                f"single conditions: {', '.join(names[len(GROUPS) :])}"
            )
        if name in GROUPS and not any(condition.group == name for condition in conditions):
            raise ValueError(f"conditions {name!r}: this data has nothing to try them on; leave them out")
    chosen = [c for c in conditions if wanted is None or c.group in wanted or c.key in wanted]
    if not chosen:
        raise ValueError("no condition is chosen; name groups or single conditions")
    return (Clean(), *chosen)

"""Earlier keyframes as frames of their own, for networks with a memory that nobody hands on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusionocc_core.structures import InputConfig, SensorFrame

LONG_AGO_NS = 3600 * 10**9
"""What is remembered from so long ago is forgotten by any network."""


@dataclass(frozen=True, kw_only=True)
class History:
    """Keyframes of history that a frame must bring."""

    cameras: int
    lidar: int


def history_of(inputs: InputConfig) -> History:
    """What a network's frames must bring: its own history, and that of the keyframes that it remembers."""
    return History(cameras=inputs.camera_history + inputs.remembered, lidar=inputs.lidar_history + inputs.remembered)


def earlier_frame(frame: SensorFrame, age: int) -> SensorFrame:
    """The frame of ``age`` keyframes ago, out of the history of ``frame``.

    Cameras that its pictures lack stay as they are now, pose included, so that all frames of a batch hold equally many.
    Where there is no keyframe so early (a scene's start), it is ``frame`` itself, an hour ago: a memory of it is not
    used.

    Args:
        frame: with at least ``age`` keyframes of history where the data has them.
        age: keyframes, 1 for the one before.
    """
    if age > len(frame.camera_history) and age > len(frame.lidar_history):
        return replace(
            frame, stamp_ns=frame.stamp_ns - LONG_AGO_NS, camera_history=(), lidar_history=frame.lidar_history
        )
    pictures = frame.camera_history[age - 1] if age <= len(frame.camera_history) else ()
    known = {camera.name: camera for camera in pictures}
    sweep = frame.lidar_history[age - 1] if age <= len(frame.lidar_history) else None
    reference = sweep or next(iter(known.values()))
    return replace(
        frame,
        stamp_ns=reference.stamp_ns,
        ego2global=reference.ego2global,
        cameras=tuple(known.get(camera.name, camera) for camera in frame.cameras),
        lidar=sweep,
        camera_history=frame.camera_history[age:],
        lidar_history=frame.lidar_history[age:],
    )

"""Moments between the keyframes of a data set, for learning from what nobody has labelled."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.nuscenes_tables import Keyframe, SensorRecord

MOST_APART_NS = 100_000_000
"""A camera's picture and the sweep that it goes with; nuScenes' cameras take one every 83 ms."""


def frames_between(frames: NuScenesFrames) -> NuScenesFrames:
    """One frame between each two keyframes of a scene.

    The LiDAR sweep nearest to the middle, and each camera's picture nearest to that. The frames follow each other at
    the pace of the keyframes, so that history means what it means there.

    Args:
        frames: whole scenes. Reads the tables, which an index does without.

    Raises:
        ValueError: there is no LiDAR, or nothing between the keyframes.
    """
    if frames.lidar is None:
        raise ValueError(f"{frames.root}: no LiDAR, so that there are no sweeps between keyframes")
    found: list[Keyframe] = []
    for scene in frames.scenes:
        keyframes = [frames.keyframe(index) for index in frames.scene_indices(scene)]
        by_channel: dict[str, list[SensorRecord]] = {}
        for record in frames.sensor_records(scene):
            by_channel.setdefault(record.channel, []).append(record)
        found += _between(keyframes, by_channel, frames.lidar, frames.cameras)
    if not found:
        raise ValueError(
            f"{frames.root}: no LiDAR sweep lies between keyframes; extract the sweeps/ of the data set, or set "
            "data.unlabelled_sweeps=false"
        )
    return frames.with_keyframes(found)


def _between(
    keyframes: Sequence[Keyframe], by_channel: dict[str, list[SensorRecord]], lidar: str, cameras: Sequence[str]
) -> list[Keyframe]:
    sweeps = [record for record in by_channel.get(lidar, []) if not record.is_key_frame]
    found: list[Keyframe] = []
    for before, after in pairwise(keyframes):
        inside = [record for record in sweeps if before.stamp_ns < record.stamp_ns < after.stamp_ns]
        if not inside:
            continue
        middle = (before.stamp_ns + after.stamp_ns) // 2
        sweep = min(inside, key=lambda record: abs(record.stamp_ns - middle))
        records = {lidar: sweep}
        for channel in cameras:
            picture = _nearest(by_channel.get(channel, []), sweep.stamp_ns)
            if picture is not None and abs(picture.stamp_ns - sweep.stamp_ns) <= MOST_APART_NS:
                records[channel] = picture
        if len(records) == 1 + len(cameras):
            found.append(
                Keyframe(
                    token=sweep.token, scene=before.scene, position=len(found), stamp_ns=sweep.stamp_ns, records=records
                )
            )
    return found


def _nearest(records: Sequence[SensorRecord], stamp_ns: int) -> SensorRecord | None:
    """Of records in the order of time."""
    at = bisect_left([record.stamp_ns for record in records], stamp_ns)
    return min(records[max(at - 1, 0) : at + 1], key=lambda r: abs(r.stamp_ns - stamp_ns), default=None)

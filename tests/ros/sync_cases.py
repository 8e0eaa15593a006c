"""A synchroniser and the traffic of a vehicle, for tests."""

from __future__ import annotations

import random
from dataclasses import replace

from fusionocc_ros.sync import MS, SYNC_CAUSES, LidarAnchoredSync, S, SensorSet, SyncConfig

CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
NUSCENES_OFFSET_MS = dict(zip(CAMERAS, (-42.8, -35.3, -27.3, -0.3, -10.1, -19.7), strict=True))
START = 1_500_000_000 * S


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def make(clock: Clock | None = None, **changes: object) -> tuple[LidarAnchoredSync[object], Clock]:
    clock = clock or Clock()
    return LidarAnchoredSync(replace(SyncConfig(cameras=CAMERAS), **changes), clock), clock


def traffic(
    seconds: float,
    rng: random.Random,
    *,
    dead: tuple[str, ...] = (),
    loss: float = 0.0,
    jitter_ms: float = 5.0,
    start: int = START,
) -> list[tuple[int, str, int]]:
    """(arrival, source, stamp) of a 20 Hz LiDAR and 12 Hz cameras with the phases of nuScenes, ordered by arrival."""
    events = []
    for k in range(int(seconds * 20)):
        stamp = start + k * 50 * MS
        events.append((stamp + int(rng.uniform(20, 20 + jitter_ms) * MS), "LIDAR", stamp))
    for camera in CAMERAS:
        if camera in dead:
            continue
        for k in range(int(seconds * 12) + 2):
            stamp = start + int((NUSCENES_OFFSET_MS[camera] + k * 1000 / 12) * MS)
            if rng.random() >= loss:
                events.append((stamp + int(rng.uniform(15, 15 + jitter_ms) * MS), camera, stamp))
    return sorted(events)


def replay(
    sync: LidarAnchoredSync[object], clock: Clock, events: list[tuple[int, str, int]], poll_every: int = 10 * MS
) -> list[SensorSet[object]]:
    sets = []
    end = events[-1][0] + S
    clock.now = events[0][0]
    next_poll = clock.now
    for arrival, source, stamp in [*events, (end, "END", 0)]:
        while next_poll <= arrival:
            clock.now = next_poll
            sets += sync.poll()
            next_poll += poll_every
        clock.now = arrival
        if source == "LIDAR":
            sets += sync.add_sweep(stamp, ("LIDAR", stamp))
        elif source != "END":
            sets += sync.add_picture(source, stamp, (source, stamp))
    return sets


def assert_ledger(sync: LidarAnchoredSync[object]) -> None:
    counters = sync.counters
    assert counters.received == counters.released + sum(counters.dropped.values()) + sync.pending
    assert set(counters.dropped) <= set(SYNC_CAUSES)

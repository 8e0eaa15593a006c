"""The synchroniser against simulated sensors: phases, losses, jitter, restarts. No ROS needed."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_ros.sync import (
    DUPLICATE,
    LIDAR,
    MS,
    OUT_OF_ORDER,
    OVERFLOW,
    STOPPED,
    SYNC_CAUSES,
    TIME_JUMP,
    TOO_FEW_CAMERAS,
    ZERO_STAMP,
    LidarAnchoredSync,
    S,
    SensorSet,
    SyncConfig,
)

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


def test_nuscenes_timing_gives_a_complete_set_for_every_sweep() -> None:
    sync, clock = make()
    sets = replay(sync, clock, traffic(20, random.Random(0)))
    assert len(sets) == 400
    assert sum(len(s.pictures) == 6 for s in sets) >= 399
    assert [s.stamp_ns for s in sets] == sorted(s.stamp_ns for s in sets)
    worst = [max(abs(p.stamp_ns - s.stamp_ns) for p in s.pictures.values()) for s in sets[1:]]
    assert sum(worst) / len(worst) < 42 * MS
    assert max(worst) <= 43 * MS
    assert_ledger(sync)


def test_pictures_are_the_nearest_ones_with_and_without_expecting_the_pace() -> None:
    events = traffic(10, random.Random(1))
    stamps = {c: sorted(s for _, source, s in events if source == c) for c in CAMERAS}
    released = {}
    for expect_pace in (True, False):
        sync, clock = make(expect_pace=expect_pace)
        sets = replay(sync, clock, events)
        for s in sets:
            for camera, picture in s.pictures.items():
                best = min(abs(t - s.stamp_ns) for t in stamps[camera])
                assert abs(picture.stamp_ns - s.stamp_ns) == best
        released[expect_pace] = sum(s.released_ns - s.arrived_ns for s in sets) / len(sets)
    assert released[True] < released[False]


def test_set_carries_the_items_and_the_order_of_the_configuration() -> None:
    sync, clock = make()
    sets = replay(sync, clock, traffic(2, random.Random(2)))
    for s in sets[2:]:
        assert tuple(s.pictures) == CAMERAS
        assert s.sweep == ("LIDAR", s.stamp_ns)
        assert all(p.item == (camera, p.stamp_ns) for camera, p in s.pictures.items())


def test_dead_camera_costs_the_deadline_only_at_first() -> None:
    sync, clock = make()
    sets = replay(sync, clock, traffic(20, random.Random(3), dead=("CAM_BACK",)))
    assert len(sets) == 400
    assert all("CAM_BACK" not in s.pictures for s in sets)
    assert sum(len(s.pictures) == 5 for s in sets) >= 399
    assert not sync.waited_for("CAM_BACK")
    assert max(s.released_ns - s.arrived_ns for s in sets[20:]) <= 110 * MS
    assert sync.counters.missing["CAM_BACK"] == 400


def test_dead_camera_drops_every_set_where_all_are_required() -> None:
    sync, clock = make(min_cameras=6)
    assert replay(sync, clock, traffic(5, random.Random(3), dead=("CAM_BACK",))) == []
    assert sync.counters.dropped == {TOO_FEW_CAMERAS: 100}
    assert_ledger(sync)


def test_camera_that_comes_back_is_waited_for_again() -> None:
    sync, clock = make()
    events = [e for e in traffic(10, random.Random(4)) if e[1] != "CAM_FRONT" or not 3 * S < e[2] - START < 6 * S]
    sets = replay(sync, clock, events)
    assert any("CAM_FRONT" not in s.pictures for s in sets)
    assert all(len(s.pictures) == 6 for s in sets if s.stamp_ns - START > 6.2 * S)
    assert sync.waited_for("CAM_FRONT")


def test_lost_pictures_are_replaced_by_neighbours() -> None:
    sync, clock = make()
    sets = replay(sync, clock, traffic(20, random.Random(5), loss=0.05))
    assert len(sets) == 400
    assert sum(len(s.pictures) == 6 for s in sets) >= 390


def test_time_offset_moves_what_counts_as_nearest() -> None:
    offsets = {camera: int(ms * MS) for camera, ms in NUSCENES_OFFSET_MS.items()}
    sync, clock = make(time_offset_ns=offsets, tolerance_ns=10 * MS)
    sets = replay(sync, clock, traffic(5, random.Random(6)))
    whole = [s for s in sets if len(s.pictures) == 6]
    # 12 Hz and 20 Hz meet four times a second.
    assert [(s.stamp_ns - START) % (250 * MS) for s in whole] == [0] * len(whole)
    assert len(whole) == 20
    for s in whole:
        for camera, picture in s.pictures.items():
            assert abs(picture.stamp_ns - s.stamp_ns - offsets[camera]) < MS


def test_tolerance_refuses_what_is_too_far() -> None:
    sync, clock = make(cameras=("A",), tolerance_ns=20 * MS, min_cameras=1)
    sync.add_picture("A", START - 21 * MS, 1)
    assert sync.add_sweep(START, 0) == []
    clock.now += 150 * MS
    assert sync.poll() == []
    assert sync.counters.dropped == {TOO_FEW_CAMERAS: 1}


def test_sweep_without_cameras_passes_where_none_is_required() -> None:
    sync, clock = make(min_cameras=0)
    assert sync.add_sweep(START, "sweep") == []
    clock.now += 150 * MS
    (released,) = sync.poll()
    assert released.pictures == {}
    assert released.sweep == "sweep"


def test_no_cameras_configured_releases_at_once() -> None:
    sync, _ = make(cameras=(), min_cameras=0)
    (released,) = sync.add_sweep(START, "sweep")
    assert released.stamp_ns == START


def test_keyframes_alone_do_not_wait_for_the_deadline_once_the_pace_is_known() -> None:
    sync, clock = make()
    waits = []
    for k in range(6):
        stamp = START + k * 500 * MS
        for camera in CAMERAS:
            sync.add_picture(camera, stamp + int(NUSCENES_OFFSET_MS[camera] * MS), camera)
        sets = sync.add_sweep(stamp, k)
        if not sets:
            clock.now += 150 * MS
            sets = sync.poll()
        (one,) = sets
        assert len(one.pictures) == 6
        waits.append(one.released_ns - one.arrived_ns)
        clock.now += 10 * S
    assert waits == [150 * MS, 150 * MS, 0, 0, 0, 0] or waits == [150 * MS, 0, 0, 0, 0, 0]


def test_sweep_that_comes_before_its_pictures_waits_for_them() -> None:
    sync, clock = make()
    for k in range(4):
        stamp = START + k * 500 * MS
        assert sync.add_sweep(stamp, k) == []
        for camera in CAMERAS:
            sets = sync.add_picture(camera, stamp + int(NUSCENES_OFFSET_MS[camera] * MS), camera)
        if not sets:
            clock.now += 150 * MS
            sets = sync.poll()
        assert [len(s.pictures) for s in sets] == [6]
        clock.now += 20 * S


def test_zero_duplicate_and_late_sweeps_are_dropped_under_their_names() -> None:
    sync, clock = make(min_cameras=0)
    for stamp in (0, -5, START, START, START - 50 * MS):
        clock.now += MS
        sync.add_sweep(stamp, None)
    assert sync.counters.dropped == {ZERO_STAMP: 2, DUPLICATE: 1, OUT_OF_ORDER: 1}
    clock.now += S
    assert len(sync.poll()) == 1
    assert_ledger(sync)


@pytest.mark.parametrize(("older_ms", "cause"), [(0, DUPLICATE), (150, OUT_OF_ORDER)])
def test_a_slow_lidar_that_repeats_its_messages_does_not_start_anew_each_time(older_ms: int, cause: str) -> None:
    sync, clock = make(min_cameras=0)
    for k in range(10):
        sync.add_sweep(START + k * 500 * MS, k)
        clock.now += 350 * MS
        if k:  # its pace is not known before
            sync.add_sweep(START + (k * 500 - older_ms) * MS, k)
        clock.now += 150 * MS
    assert sync.counters.dropped == {cause: 9}
    assert (sync.epoch, sync.counters.resets, sync.counters.released) == (0, 0, 10)
    clock.now += S
    sync.add_sweep(START + 9 * 500 * MS, "again")
    assert (sync.epoch, sync.counters.resets) == (1, 1)
    assert_ledger(sync)


def test_zero_and_duplicate_pictures_are_counted() -> None:
    sync, _ = make()
    for stamp in (0, START, START):
        sync.add_picture("CAM_BACK", stamp, None)
    assert sync.counters.messages["CAM_BACK"] == 3
    assert sync.counters.not_kept == {("CAM_BACK", ZERO_STAMP): 1, ("CAM_BACK", DUPLICATE): 1}


def test_late_picture_is_still_used() -> None:
    sync, clock = make(cameras=("A",))
    sync.add_picture("A", START - 60 * MS, "far")
    sync.add_sweep(START, 0)
    sync.add_picture("A", START - 20 * MS, "near")
    sync.add_picture("A", START - 40 * MS, "late")
    clock.now += 150 * MS
    (released,) = sync.poll()
    assert released.pictures["A"].item == "near"


def test_memory_is_bounded_without_a_lidar_and_without_cameras() -> None:
    sync, _ = make(deadline_ns=3600 * S)
    for k in range(1000):
        sync.add_picture("CAM_BACK", START + k * 80 * MS, k)
    assert len(sync._streams["CAM_BACK"].stamps) == 20
    assert sync.counters.not_kept["CAM_BACK", OVERFLOW] == 980
    sync, _ = make(deadline_ns=3600 * S)
    for k in range(1000):
        sync.add_sweep(START + k * 50 * MS, k)
    assert sync.pending == 20
    assert sync.counters.dropped == {OVERFLOW: 980}
    assert_ledger(sync)


def test_bag_that_loops_starts_a_new_epoch_and_loses_little() -> None:
    sync, clock = make()
    rng = random.Random(7)
    once = traffic(5, rng)
    length = once[-1][0] - once[0][0] + 50 * MS
    thrice = [(arrival + k * length, source, stamp) for k in range(3) for arrival, source, stamp in once]
    sets = replay(sync, clock, sorted(thrice))
    assert sync.epoch == 2
    assert sync.counters.resets == 2
    assert len(sets) >= 3 * 100 - 2 * 4
    for s in sets:
        assert all(abs(p.stamp_ns - s.stamp_ns) <= 100 * MS for p in s.pictures.values())
    epochs = [s.epoch for s in sets]
    assert epochs == sorted(epochs)
    assert_ledger(sync)


@pytest.mark.parametrize("cameras_first", [True, False])
def test_bag_of_one_keyframe_looped_gives_a_set_every_time(cameras_first: bool) -> None:
    sync, clock = make()
    sets = []
    for _ in range(5):
        pictures = [(c, START + int(NUSCENES_OFFSET_MS[c] * MS)) for c in CAMERAS]
        pictures[-1] = (CAMERAS[-1], START + MS)
        if not cameras_first:
            sets += sync.add_sweep(START, "sweep")
        for camera, stamp in pictures:
            sets += sync.add_picture(camera, stamp, camera)
        if cameras_first:
            sets += sync.add_sweep(START, "sweep")
        clock.now += 400 * MS
        sets += sync.poll()
        clock.now += 600 * MS
    assert [len(s.pictures) for s in sets] == [6] * 5
    assert [s.epoch for s in sets] == [0, 1, 2, 3, 4]
    assert_ledger(sync)


def test_short_jump_back_is_a_new_epoch_too() -> None:
    sync, clock = make(cameras=("A",))
    sets = []
    for _ in range(3):
        for k in range(2):
            sets += sync.add_picture("A", START + k * 500 * MS - 20 * MS, k)
            sets += sync.add_sweep(START + k * 500 * MS, k)
            clock.now += 500 * MS
            sets += sync.poll()
    assert [(s.epoch, s.sweep, s.pictures["A"].item) for s in sets] == [(e, k, k) for e in range(3) for k in range(2)]


def test_one_wild_stamp_in_the_future_does_not_stop_the_rest() -> None:
    sync, clock = make()
    events = traffic(10, random.Random(8))
    middle = len(events) // 2
    wild = (events[middle][0], "CAM_FRONT", START + 10**9 * S)
    wild_sweep = (events[middle + 40][0], "LIDAR", START + 10**9 * S)
    sets = replay(sync, clock, sorted([*events, wild, wild_sweep]))
    assert len(sets) >= 190
    assert sum(len(s.pictures) == 6 for s in sets) >= 185
    assert all(s.stamp_ns < START + 20 * S for s in sets)
    assert_ledger(sync)


def test_camera_with_a_clock_of_its_own_is_left_out_but_harms_nobody() -> None:
    sync, clock = make()
    events = [(a, c, s - 3600 * S if c == "CAM_BACK" else s) for a, c, s in traffic(10, random.Random(9))]
    sets = replay(sync, clock, events)
    assert len(sets) == 200
    assert all("CAM_BACK" not in s.pictures and len(s.pictures) == 5 for s in sets[1:])


def test_stop_drops_what_waits_and_starts_anew() -> None:
    sync, clock = make()
    sync.add_sweep(START, 0)
    sync.stop()
    assert sync.counters.dropped == {STOPPED: 1}
    assert sync.pending == 0
    assert sync.add_sweep(START - 50 * MS, 1) == []
    assert sync.pending == 1
    clock.now += S
    sync.poll()
    assert_ledger(sync)


def test_unknown_camera_is_an_error_that_names_the_known_ones() -> None:
    sync, _ = make()
    with pytest.raises(ValueError, match=r"'CAM_SIDE' is not one of .*CAM_FRONT"):
        sync.add_picture("CAM_SIDE", START, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_cameras": 7}, "min_cameras=7: expected 0 to 6"),
        ({"cameras": ("A", "A")}, "names must differ"),
        ({"time_offset_ns": {"B": 1}}, r"time_offset_ns names \['B'\]"),
        ({"tolerance_ns": 0}, "tolerance_ns=0: must be positive"),
        ({"deadline_ns": -1}, "deadline_ns=-1: must be positive"),
        ({"noise_window_ns": -1}, "noise_window_ns=-1: must not be negative"),
        ({"reference": "B"}, r"reference='B': expected one of \['lidar', 'CAM_FRONT_LEFT'"),
    ],
)
def test_bad_configuration_names_the_field(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SyncConfig(cameras=CAMERAS), **changes)


def pictures_at(sync: LidarAnchoredSync[object], stamp_ns: int, cameras: tuple[str, ...] = CAMERAS) -> list[object]:
    return [s for camera in cameras for s in sync.add_picture(camera, stamp_ns, (camera, stamp_ns))]


# ---- without the reference, and with others --------------------------------------------------------------------------

ALONE = {"reference_timeout_ns": S, "min_cameras": 0}


def test_cameras_go_on_alone_when_the_lidar_dies_and_with_it_when_it_is_back() -> None:
    sync, clock = make(**ALONE)
    events = [e for e in traffic(12, random.Random(11)) if e[1] != "LIDAR" or not 3 * S <= e[2] - START < 8 * S]
    sets = replay(sync, clock, events)
    alone = [s for s in sets if LIDAR not in s.clouds]
    assert {s.missing for s in alone} == {(LIDAR,)}
    assert 3.9 * S < alone[0].stamp_ns - START < 4.3 * S
    # The stand-in is the first camera, at its own pace, until the LiDAR is back.
    assert all(s.pictures[CAMERAS[0]].stamp_ns == s.stamp_ns for s in alone)
    assert 44 <= len(alone) <= 50
    assert all(len(s.pictures) == 6 for s in alone)
    back = [s for s in sets if s.stamp_ns - START >= 8.1 * S]
    assert all(s.missing == () for s in back)
    assert len(back) >= 77
    assert sync.counters.stood_in == len(alone)
    assert (sync.counters.resets, sync.epoch) == (0, 0)
    assert [s.stamp_ns for s in sets] == sorted(s.stamp_ns for s in sets)
    assert_ledger(sync)


def test_cameras_alone_from_the_beginning_are_matched_by_their_offsets() -> None:
    offsets = {camera: int(ms * MS) for camera, ms in NUSCENES_OFFSET_MS.items()}
    sync, clock = make(**ALONE, time_offset_ns=offsets, tolerance_ns=10 * MS)
    sets = replay(sync, clock, [e for e in traffic(5, random.Random(12)) if e[1] != "LIDAR"])
    assert len(sets) >= 46
    assert all(len(s.pictures) == 6 for s in sets[:-2])
    assert sets[0].stamp_ns - START < 1.2 * S


def test_the_stand_in_is_the_first_that_speaks() -> None:
    sync, clock = make(**ALONE, lidars=(LIDAR, "LIDAR_REAR"))
    dead = [e for e in traffic(6, random.Random(13)) if e[1] not in ("LIDAR", CAMERAS[0])]
    half = START + 3 * S
    rear = [(a, "LIDAR_REAR" if c == CAMERAS[1] else c, s) for a, c, s in dead if c != CAMERAS[1] or s > half]
    sets = replay(sync, clock, rear)
    anchors = [next(n for n, m in (*s.clouds.items(), *s.pictures.items()) if m.stamp_ns == s.stamp_ns) for s in sets]
    assert anchors[0] == CAMERAS[2]
    assert anchors[-1] == "LIDAR_REAR"
    assert len(set(anchors)) == 2
    assert_ledger(sync)


def test_a_lidar_that_is_only_late_does_not_start_time_anew_when_it_is_back() -> None:
    sync, clock = make(**ALONE, cameras=("A",))
    for k in range(30):
        clock.now += 100 * MS
        sync.add_picture("A", START + k * 100 * MS, k)
    assert sync.counters.stood_in > 10
    for k in range(10):  # half a second behind the pictures
        clock.now += 100 * MS
        sync.add_picture("A", START + (30 + k) * 100 * MS, k)
        sync.add_sweep(START + (25 + k) * 100 * MS, k)
    assert (sync.counters.resets, sync.counters.dropped[OUT_OF_ORDER]) == (0, 6)
    assert sync.counters.stood_in < 22
    assert_ledger(sync)


def test_a_lidar_with_a_clock_of_its_own_starts_time_anew_once_when_it_comes() -> None:
    sync, clock = make(**ALONE, cameras=("A",))
    sets = []
    for k in range(40):
        clock.now += 100 * MS
        sets += sync.add_picture("A", START + k * 100 * MS, k)
        if k >= 30:
            sets += sync.add_sweep(50 * S + k * 100 * MS, k)  # seconds since it was switched on
    clock.now += S
    sets += sync.poll()
    assert (sync.counters.resets, sync.counters.dropped[OUT_OF_ORDER]) == (1, 0)
    alone = [s for s in sets if LIDAR not in s.clouds]
    assert all("A" in s.pictures for s in alone)
    assert [s.missing for s in sets[len(alone) :]] == [("A",)] * 10
    assert_ledger(sync)


def test_a_player_that_holds_its_bag_does_not_make_cameras_stand_in() -> None:
    sync, clock = make(**ALONE, cameras=("A",))
    for k in range(5):
        sync.add_picture("A", START + k * 500 * MS - 20 * MS, k)
        sync.add_sweep(START + k * 500 * MS, k)
        clock.now += 30 * S
        sync.poll()
    assert (sync.counters.stood_in, sync.counters.released) == (0, 5)


def test_cameras_alone_follow_a_bag_that_loops() -> None:
    sync, clock = make(**ALONE)
    once = [e for e in traffic(5, random.Random(7)) if e[1] != "LIDAR"]
    length = once[-1][0] - once[0][0] + 50 * MS
    sets = replay(sync, clock, [(a + k * length, c, s) for k in range(3) for a, c, s in once])
    assert (sync.epoch, sync.counters.resets) == (2, 2)
    assert len(sets) >= 48 + 2 * 50
    for s in sets:
        assert all(abs(p.stamp_ns - s.stamp_ns) <= 100 * MS for p in s.pictures.values())
    assert_ledger(sync)


def test_a_camera_may_be_the_reference_and_the_lidar_is_matched_to_it() -> None:
    sync, clock = make(reference="CAM_FRONT")
    sets = replay(sync, clock, traffic(5, random.Random(14)))
    assert 58 <= len(sets) <= 62
    assert all(s.pictures["CAM_FRONT"].stamp_ns == s.stamp_ns for s in sets)
    assert all(abs(s.clouds[LIDAR].stamp_ns - s.stamp_ns) <= 25 * MS + MS for s in sets[1:-1])
    assert sync.counters.messages[LIDAR] == 100


def test_clouds_of_several_lidars_are_matched_as_pictures_are() -> None:
    sync, clock = make(cameras=(), min_cameras=0, lidars=(LIDAR, "LEFT", "RIGHT"), time_offset_ns={"RIGHT": -20 * MS})
    sets = []
    for k in range(20):
        clock.now += 50 * MS
        stamp = START + k * 50 * MS
        sets += sync.add("LEFT", stamp + 7 * MS, "left")
        sets += sync.add("RIGHT", stamp - 22 * MS, "right")
        sets += sync.add_sweep(stamp, "top")
        sets += sync.add("RIGHT", stamp - 1 * MS, "not this")
    clock.now += S
    sets += sync.poll()
    assert len(sets) == 20
    assert {n: (c.stamp_ns - sets[9].stamp_ns) // MS for n, c in sets[9].clouds.items()} == {
        LIDAR: 0,
        "LEFT": 7,
        "RIGHT": -22,
    }
    assert sets[9].sweep == "top"
    assert sync.counters.complete == 20


# ---- waiting ---------------------------------------------------------------------------------------------------------


def test_latest_waits_for_nothing_and_takes_what_came_last() -> None:
    sync, clock = make(newest=True, tolerance_ns=200 * MS)
    sets = replay(sync, clock, traffic(10, random.Random(15), dead=("CAM_BACK",)))
    assert len(sets) == 200
    assert all(s.released_ns == s.arrived_ns for s in sets)
    assert all(len(s.pictures) == 5 for s in sets[2:])
    assert all(-130 * MS <= p.stamp_ns - s.stamp_ns <= 30 * MS for s in sets for p in s.pictures.values())
    assert sync.counters.late == {}


def test_a_picture_within_the_noise_window_is_not_bettered() -> None:
    for window, released in ((0, 0), (5 * MS, 1)):
        sync, _ = make(cameras=("A",), noise_window_ns=window)
        sync.add_picture("A", START - 4 * MS, "A")
        assert len(sync.add_sweep(START, 0)) == released


def test_sensors_that_a_set_waited_for_until_the_deadline_are_counted() -> None:
    sync, clock = make(cameras=("A", "B"), give_up_after=3)
    for k in range(5):
        clock.now += S
        sync.add_picture("A", START + k * S, "A")
        sync.add_sweep(START + k * S, "sweep")
        clock.now += 150 * MS
        sync.poll()
    assert sync.counters.late == {"B": 3}
    assert sync.counters.missing == {"B": 5}


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["LIDAR", "A", "B", "REAR", "POLL", "STOP"]),
        st.integers(min_value=-1, max_value=60),  # stamp, in tens of milliseconds
        st.integers(min_value=0, max_value=400),  # milliseconds since the event before
    ),
    max_size=120,
)
CONFIGS = st.fixed_dictionaries(
    {
        "min_cameras": st.integers(0, 2),
        "expect_pace": st.booleans(),
        "max_pending": st.integers(1, 4),
        "reference": st.sampled_from([LIDAR, LIDAR, "A", "REAR"]),
        "reference_timeout_ns": st.sampled_from([0, 100 * MS, 400 * MS]),
        "noise_window_ns": st.sampled_from([0, 30 * MS]),
        "newest": st.booleans(),
    }
)


@settings(max_examples=300, deadline=None)
@given(events=EVENTS, config=CONFIGS)
def test_whatever_comes_in_is_accounted_for(events: list[tuple[str, int, int]], config: dict[str, object]) -> None:
    sync, clock = make(cameras=("A", "B"), lidars=(LIDAR, "REAR"), max_pictures=4, **config)
    sets: list[SensorSet[object]] = []
    for source, tens, wait in events:
        clock.now += wait * MS
        stamp = tens * 10 * MS
        if source == "POLL":
            sets += sync.poll()
        elif source == "STOP":
            sync.stop()
        else:
            sensor = LIDAR if source == "LIDAR" else source
            sets += sync.add(sensor, stamp, (sensor, stamp))
        assert_ledger(sync)
        assert sync.pending <= sync.config.max_pending
        assert all(len(stream.stamps) <= 4 for stream in sync._streams.values())
        assert all(stream.stamps == sorted(set(stream.stamps)) for stream in sync._streams.values())
    clock.now += S
    sets += sync.poll()
    assert sync.pending == 0
    assert len(sets) == sync.counters.released
    for s in sets:
        assert len(s.pictures) >= sync.config.min_cameras
        found = {**s.clouds, **s.pictures}
        assert set(found) | set(s.missing) == {"A", "B", LIDAR, "REAR"}
        assert not set(found) & set(s.missing)
        for sensor, message in found.items():
            assert message.item == (sensor, message.stamp_ns)
            assert abs(message.stamp_ns - s.stamp_ns) <= sync.config.tolerance_ns
        assert s.stamp_ns in {m.stamp_ns for m in found.values()}
        assert s.released_ns - s.arrived_ns >= 0
    for earlier, later in itertools.pairwise(sets):
        assert earlier.epoch <= later.epoch
        assert earlier.epoch < later.epoch or earlier.stamp_ns < later.stamp_ns


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), loss=st.floats(0, 0.3), jitter_ms=st.floats(0, 60))
def test_no_sweep_is_lost_and_none_waits_longer_than_the_deadline(seed: int, loss: float, jitter_ms: float) -> None:
    # Sweeps overtake each other only where the jitter exceeds their spacing of 50 ms: those are dropped by name.
    sync, clock = make(min_cameras=0)
    events = traffic(4, random.Random(seed), loss=loss, jitter_ms=jitter_ms)
    sets = replay(sync, clock, events)
    assert len(sets) + sync.counters.dropped[OUT_OF_ORDER] == 80
    assert sync.counters.dropped[TIME_JUMP] == 0
    assert all(s.released_ns - s.arrived_ns <= sync.config.deadline_ns + 10 * MS for s in sets)

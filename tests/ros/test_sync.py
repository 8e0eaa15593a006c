"""The synchroniser against simulated sensors: phases, losses, jitter, restarts. No ROS needed."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from sync_cases import CAMERAS, NUSCENES_OFFSET_MS, START, assert_ledger, make, replay, traffic

from fusionocc_ros.sync import (
    DUPLICATE,
    MS,
    OUT_OF_ORDER,
    OVERFLOW,
    STOPPED,
    TOO_FEW_CAMERAS,
    ZERO_STAMP,
    S,
    SyncConfig,
)


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

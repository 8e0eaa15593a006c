"""The synchroniser without its reference, with others, and whatever comes in. No ROS needed."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from sync_cases import CAMERAS, NUSCENES_OFFSET_MS, START, assert_ledger, make, replay, traffic

from fusionocc_ros.sync import LIDAR, MS, OUT_OF_ORDER, TIME_JUMP, S, SensorSet

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

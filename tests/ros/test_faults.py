"""Faults, one after the other, in a vehicle of real processes: the node neither dies nor lies, and forgets them soon.

All tests share one node. After each of them every set that came in is accounted for, under a name, and no answer has
put a sensor where it was not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
from fault_street import LIDAR, MOVED_M, RECOVERY_S, TF, Message, Street, street
from synthetic_sensors import OFFICIAL_CAMERAS, S

from fusionocc_ros.causes import CAUSES

pytestmark = [pytest.mark.ros, pytest.mark.slow]

BACK = "CAM_BACK"


@pytest.fixture(scope="module")
def vehicle() -> Iterator[Street]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        with street() as made:
            yield made


@pytest.fixture(autouse=True)
def accounts(vehicle: Street) -> Iterator[None]:
    """Sets in = sets out + sets dropped, exactly; and what the node says it has sent has come."""
    vehicle.heal()
    with vehicle.silence():
        before, heard_before = vehicle.ledger(), len(vehicle.messages())
    node = vehicle.processes["fusionocc"]
    vehicle.recovers()
    yield
    assert vehicle.processes["fusionocc"].alive
    with vehicle.silence():
        after = vehicle.ledger()
    drops = {key.removeprefix("dropped: "): n for key, n in after.items() if key.startswith("dropped: ")}
    assert set(drops) <= set(CAUSES)
    assert "internal_error" not in drops
    assert after["sweeps received"] == after["occupancy published"] + sum(drops.values())
    if vehicle.processes["fusionocc"] is node:
        assert after["occupancy published"] - before["occupancy published"] == len(vehicle.messages()) - heard_before
    vehicle.check_poses()


def test_each_camera_is_killed_and_restarted(vehicle: Street) -> None:
    for camera in OFFICIAL_CAMERAS:
        without = vehicle.counter(f"sets without {camera}")
        vehicle.kill(camera)
        gone = vehicle.next(lambda m, c=camera: m.missing == {c: "no_message"}, f"an answer without {camera}")
        assert set(gone.cameras) == set(OFFICIAL_CAMERAS) - {camera}
        vehicle.wait_for(lambda c=camera, n=without: vehicle.counter(f"sets without {c}") > n, 2, "it is counted")
        vehicle.wait_for(lambda c=camera: f"sets without {c}" in vehicle.ears.problems["fusionocc"], 1, "it is said")
        vehicle.start(camera)
        sys.stdout.write(f"{camera} is back after {vehicle.recovers():.1f} s\n")


def test_all_cameras_are_killed_and_restarted(vehicle: Street) -> None:
    vehicle.kill(*OFFICIAL_CAMERAS)
    alone = vehicle.next(lambda m: m.cameras == (), "an answer from the LiDAR alone")
    assert set(alone.missing) == set(OFFICIAL_CAMERAS)
    assert LIDAR in alone.seen
    vehicle.start(*OFFICIAL_CAMERAS)
    vehicle.recovers()


def test_the_lidar_is_killed_and_restarted(vehicle: Street) -> None:
    vehicle.kill(LIDAR)
    alone = vehicle.next(lambda m: LIDAR in m.missing, "an answer from the cameras alone", 2.0)
    assert alone.cameras == OFFICIAL_CAMERAS
    vehicle.wait_for(lambda: "nothing from lidar" in vehicle.ears.problems["fusionocc"], 4, "diagnostics say so")
    vehicle.start(LIDAR)
    vehicle.recovers()


def test_a_camera_that_is_200_ms_late_is_not_waited_for(vehicle: Street) -> None:
    late = vehicle.counter(f"sets late for {BACK}")
    vehicle.tell(BACK, delay_ms=200)
    vehicle.next(lambda m: m.missing == {BACK: "no_message"}, "an answer without the late camera")
    vehicle.wait_for(lambda: vehicle.counter(f"sets late for {BACK}") > late, 2, "sets that waited are counted")
    vehicle.tell(BACK, delay_ms=0)
    vehicle.recovers()


def test_a_lidar_that_is_200_ms_late_costs_nothing_but_the_time(vehicle: Street) -> None:
    vehicle.tell(LIDAR, delay_ms=200)
    for _ in range(3):
        vehicle.next(lambda m: m.full, "an answer with every sensor")
    vehicle.tell(LIDAR, delay_ms=0)
    vehicle.recovers()


BAD = [
    (LIDAR, "nan", "empty_cloud"),
    (LIDAR, "empty", "empty_cloud"),
    (LIDAR, "huge", "too_large"),
    (LIDAR, "wrong_frame", "no_transform"),
    (BACK, "cut", "bad_image"),
    (BACK, "wrong_frame", "no_transform"),
]


@pytest.mark.parametrize(("sensor", "file", "cause"), BAD, ids=[f"{s}-{f}" for s, f, _ in BAD])
def test_a_message_that_cannot_be_used_costs_that_sensor(vehicle: Street, sensor: str, file: str, cause: str) -> None:
    counted = vehicle.counter(f"left out {sensor}: {cause}")
    vehicle.tell(sensor, file=file)
    vehicle.next(lambda m: m.missing == {sensor: cause}, f"an answer that names {sensor} and {cause}")
    vehicle.wait_for(lambda: vehicle.counter(f"left out {sensor}: {cause}") > counted, 2, "it is counted")
    said = f"left out {sensor}: {cause}"
    vehicle.wait_for(lambda: said in vehicle.ears.problems["fusionocc"], 1, "diagnostics say so")
    vehicle.tell(sensor, file="good")
    vehicle.recovers()


def test_a_transform_that_is_missing_is_used_when_it_comes(vehicle: Street) -> None:
    vehicle.tell(BACK, file="new_frame")
    vehicle.next(lambda m: m.missing == {BACK: "no_transform"}, "an answer without the back camera")
    vehicle.tell(TF, latch="static_new")
    vehicle.recovers()
    vehicle.tell(BACK, file="good")
    vehicle.recovers()


def test_transforms_that_are_late_are_waited_for_and_those_that_are_too_late_are_missed_by_name(
    vehicle: Street,
) -> None:
    vehicle.tell(TF, delay_ms=120)
    for _ in range(3):
        vehicle.next(lambda m: m.full, "an answer with every sensor")
    drops = vehicle.counter("dropped: no_ego_pose")
    vehicle.tell(TF, delay_ms=900)
    vehicle.wait_for(lambda: vehicle.counter("dropped: no_ego_pose") > drops, 4, "sets are dropped by name")
    vehicle.tell(TF, delay_ms=0)
    vehicle.recovers()


def test_the_transforms_die_and_come_back(vehicle: Street) -> None:
    drops = vehicle.counter("dropped: no_ego_pose")
    vehicle.kill(TF)
    vehicle.wait_for(lambda: vehicle.counter("dropped: no_ego_pose") > drops + 1, 4, "sets are dropped by name")
    vehicle.start(TF)
    vehicle.recovers()


def test_a_transform_that_has_changed_counts_from_then_on(vehicle: Street) -> None:
    vehicle.check_poses()
    vehicle.allowed_back_m = (0.0, MOVED_M)
    vehicle.tell(TF, latch="static_moved")
    vehicle.next(lambda m: m.errors_m()[BACK] > MOVED_M / 2, "the back camera has moved")
    vehicle.check_poses()
    vehicle.allowed_back_m = (MOVED_M,)
    vehicle.next(lambda m: m.full, "an answer with every sensor")
    vehicle.next(lambda m: m.full, "an answer with every sensor")
    vehicle.check_poses()
    vehicle.allowed_back_m = (0.0, MOVED_M)
    vehicle.tell(TF, latch="static")
    vehicle.next(lambda m: m.full and m.errors_m()[BACK] < MOVED_M / 2, "it is back", 2.0)
    vehicle.check_poses()
    vehicle.allowed_back_m = (0.0,)


def test_a_quality_of_service_that_does_not_match_is_said(vehicle: Street) -> None:
    vehicle.kill(BACK)
    vehicle.start(BACK, best_effort=True)  # the node insists on reliable messages from this one
    vehicle.next(lambda m: m.missing == {BACK: "no_message"}, "an answer without the back camera")
    vehicle.wait_for(
        lambda: "published with best effort, which qos" in vehicle.ears.problems["fusionocc"], 6, "diagnostics say why"
    )
    vehicle.kill(BACK)
    vehicle.start(BACK)
    vehicle.recovers()


@pytest.mark.parametrize(
    ("jump_s", "why"), [(-5, "a bag loops"), (-3600, "a clock is set back"), (3600, "a clock is set forward")]
)
def test_time_jumps(vehicle: Street, jump_s: int, why: str) -> None:
    jumps = vehicle.counter("time jumps")

    def there(message: Message) -> bool:
        return message.full and abs(message.stamp_ns - time.time_ns() - jump_s * S) < 2 * S

    vehicle.tell(offset_ns=jump_s * S)
    vehicle.next(there, why, RECOVERY_S)
    vehicle.next(lambda m: there(m) and m.lidar_history > 0, "memory comes back")
    vehicle.tell(offset_ns=0)
    vehicle.recovers()
    vehicle.wait_for(lambda: vehicle.counter("time jumps") > jumps, 2, "the jump is counted")


@pytest.mark.parametrize(("stamps", "cause"), [("zero", "zero_stamp"), ("same", "duplicate"), ("back", "out_of_order")])
def test_stamps_that_cannot_be_are_dropped_by_name(vehicle: Street, stamps: str, cause: str) -> None:
    drops = vehicle.counter(f"dropped: {cause}")
    vehicle.tell(LIDAR, stamps=stamps)
    vehicle.wait_for(lambda: vehicle.counter(f"dropped: {cause}") > drops + 1, 4, f"sweeps are dropped as {cause}")
    vehicle.tell(LIDAR, stamps="true")
    vehicle.recovers()


def test_two_nodes_in_one_domain_do_not_disturb_each_other(vehicle: Street) -> None:
    second = "second/fusionocc"
    vehicle.start_node(second)
    vehicle.next(lambda m: m.full, "the second node answers", 10, node=second)
    vehicle.recovers()
    with vehicle.silence():
        ledger = vehicle.ledger(second)
    drops = sum(n for key, n in ledger.items() if key.startswith("dropped: "))
    assert ledger["sweeps received"] == ledger["occupancy published"] + drops
    vehicle.kill(second)
    vehicle.recovers()


def test_a_node_that_is_killed_while_it_publishes_starts_again_with_half_of_the_cameras(vehicle: Street) -> None:
    half = OFFICIAL_CAMERAS[::2]
    vehicle.check_poses()
    vehicle.next(lambda m: m.full, "it publishes")
    vehicle.kill("fusionocc", *half)
    vehicle.ears.diagnostics.clear()
    heard = len(vehicle.messages())
    vehicle.start_node()
    vehicle.wait_for(lambda: vehicle.counter("lidar received") > 0, 10, "a sweep has been heard")
    heard_s = time.monotonic()  # up to a period of the diagnostics after it was
    vehicle.wait_for(lambda: any(LIDAR in m.seen for m in vehicle.messages()[heard:]), 1.8, "the first occupancy")
    first = next(m for m in vehicle.messages()[heard:] if LIDAR in m.seen)
    without = ", ".join(first.missing)
    sys.stdout.write(f"first occupancy {first.came - heard_s:+.2f} s after the first sweep, without {without}\n")
    assert set(first.missing) >= set(half)
    vehicle.next(lambda m: set(m.cameras) == set(OFFICIAL_CAMERAS) - set(half), "the cameras that are there", 2.0)
    log = vehicle.folder / "fusionocc.log"
    vehicle.wait_for(lambda: "first occupancy after" in log.read_text(), 2, "the log says so")
    sys.stdout.write(next(line for line in log.read_text().splitlines() if "first occupancy after" in line) + "\n")
    vehicle.start(*half)
    vehicle.recovers()

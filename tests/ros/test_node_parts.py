"""The node's parts that need no ROS graph: memory, worker, work."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from synthetic_sensors import GRID, LABELS, MS, S, points

from fusionocc_core.structures import LidarSweep, Occupancy, SensorFrame
from fusionocc_ros.assemble import Assembled, Moment
from fusionocc_ros.diagnostics import Statistics
from fusionocc_ros.ego_motion import Source
from fusionocc_ros.engine import Engine
from fusionocc_ros.history import KeyframeRing
from fusionocc_ros.occupancy_messages import Provenance
from fusionocc_ros.parameters import NodeParameters
from fusionocc_ros.sync import SensorSet
from fusionocc_ros.work import Work
from fusionocc_ros.worker import LatestWorker

# ---- memory ----------------------------------------------------------------------------------------------------------


def test_keyframes_alone_are_all_remembered_whatever_their_jitter() -> None:
    ring: KeyframeRing[int] = KeyframeRing(spacing_ns=S // 2, depth=7)
    stamps = np.cumsum([0, 399, 600, 450, 550, 399, 600, 500, 500, 399]) * MS
    for k, stamp in enumerate(stamps.tolist()):
        assert ring.before(stamp, 0) == list(range(k - 1, max(k - 8, -1), -1))
        ring.offer(stamp, 0, k)


def test_a_stream_of_sweeps_gives_keyframes_at_the_spacing() -> None:
    ring: KeyframeRing[int] = KeyframeRing(spacing_ns=S // 2, depth=3)
    for k in range(400):
        now = 100 * S + k * 50 * MS
        ring.offer(now, 0, now)
        found = ring.before(now, 0)
        if k > 60:
            gaps = [(a - b) / MS for a, b in pairwise([now, *found])]
            assert len(found) == 3
            assert all(350 <= gap <= 650 for gap in gaps)
        assert len(ring) <= 20


def test_memory_of_another_epoch_is_forgotten_and_depth_zero_keeps_nothing() -> None:
    ring: KeyframeRing[str] = KeyframeRing(spacing_ns=S // 2, depth=2)
    ring.offer(10 * S, 0, "old")
    assert ring.before(10 * S + S // 2, 1) == []
    ring.offer(5 * S, 1, "new")
    assert ring.before(5 * S + S // 2, 1) == ["new"]
    assert ring.before(10 * S + S // 2, 0) == []
    ring.discard("new")
    assert len(ring) == 0
    empty: KeyframeRing[str] = KeyframeRing(spacing_ns=S, depth=0)
    empty.offer(S, 0, "x")
    assert len(empty) == 0


@given(st.lists(st.integers(1, 2000), max_size=60), st.integers(1, 5))
def test_what_is_remembered_is_older_ordered_and_near_its_place(steps: list[int], depth: int) -> None:
    ring: KeyframeRing[int] = KeyframeRing(spacing_ns=500 * MS, depth=depth)
    now = 0
    for step in steps:
        now += step * MS
        found = ring.before(now, 0)
        assert len(found) <= depth
        assert all(250 * MS <= a - b <= 750 * MS for a, b in pairwise([now, *found]))
        ring.offer(now, 0, now)


# ---- worker ----------------------------------------------------------------------------------------------------------


def test_the_worker_takes_the_newest_and_gives_back_the_rest() -> None:
    done: list[int] = []
    overtaken: list[int] = []
    go = threading.Event()

    def work(item: int) -> None:
        go.wait(5)
        done.append(item)

    worker = LatestWorker(work, overtaken.append, name="test")
    worker.offer(0)
    while worker.in_hand and worker._slot:
        time.sleep(0.001)
    for item in range(1, 6):
        worker.offer(item)
    assert worker.in_hand == 2
    go.set()
    deadline = time.monotonic() + 5
    while worker.in_hand and time.monotonic() < deadline:
        time.sleep(0.001)
    worker.stop()
    assert worker.join(5)
    assert done == [0, 5]
    assert overtaken == [1, 2, 3, 4]


def test_a_stopped_worker_gives_back_what_waits_and_says_whether_it_is_still_at_work() -> None:
    overtaken: list[int] = []
    go = threading.Event()
    worker = LatestWorker(lambda _item: go.wait(5), overtaken.append, name="test")
    worker.offer(0)
    while worker._slot:
        time.sleep(0.001)
    worker.offer(1)
    worker.stop()
    assert overtaken == [1]
    worker.offer(2)
    assert overtaken == [1, 2]
    assert worker.in_hand == 1
    assert not worker.join(0.05)
    go.set()
    assert worker.join(5)
    worker.offer(3)
    assert overtaken == [1, 2, 3]
    assert worker.in_hand == 0


# ---- work ------------------------------------------------------------------------------------------------------------


class Bench:
    """Work with everything around it replaced; the network computes while the gate is shut."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.at_work = threading.Event()
        self.published: list[int] = []
        self.statistics = Statistics()
        self.work = Work(
            NodeParameters(),
            engine=Engine(predict=self.predict, num_cameras=0, model="fake"),
            assembler=self,  # type: ignore[arg-type]
            outputs=self,
            statistics=self.statistics,
            on_drop=lambda _cause, _message: None,
            on_source=lambda _source: None,
        )

    def serve(self, **_wishes: int) -> None:
        """In the place of the assembler's."""

    def offer(self, moment: Moment) -> None:
        """In the place of the assembler's."""

    def close(self) -> None:
        """In the place of the assembler's."""

    def assemble(self, moment: Moment) -> Assembled:
        sweep = LidarSweep(points=points(9), lidar2ego=np.eye(4), ego2global=np.eye(4), stamp_ns=moment.stamp_ns)
        frame = SensorFrame(stamp_ns=moment.stamp_ns, ego2global=np.eye(4), cameras=(), lidar=sweep)
        return Assembled(frame=frame, source=Source.NONE, lidar_frame_id="lidar")

    def predict(self, frame: SensorFrame) -> Occupancy:
        self.at_work.set()
        assert self.gate.wait(5)
        labels = np.full(GRID.shape, LABELS.free, dtype=np.uint8)
        return Occupancy(labels=labels, grid=GRID, label_set=LABELS, stamp_ns=frame.stamp_ns)

    def publish(self, occupancy: Occupancy, provenance: Provenance) -> None:
        self.published.append(occupancy.stamp_ns)

    def take(self, stamp_ns: int) -> None:
        sensors: SensorSet[Any] = SensorSet(stamp_ns=stamp_ns, pictures={}, arrived_ns=0, released_ns=0, epoch=0)
        self.work.offer(sensors)

    def finish(self) -> dict[str, int]:
        """What was dropped, once everything is done."""
        self.gate.set()
        deadline = time.monotonic() + 5
        while self.work.in_hand and time.monotonic() < deadline:
            time.sleep(0.001)
        assert self.work.close(5)
        return dict(self.statistics.snapshot().dropped)


def test_nothing_that_was_offered_before_a_pause_is_published_after_a_new_start() -> None:
    bench = Bench()
    bench.work.start()
    bench.take(1)
    assert bench.at_work.wait(5)
    bench.take(2)
    bench.work.pause()
    bench.work.start()
    assert bench.finish() == {"stopped_in_work": 2}
    assert bench.published == []


def test_what_is_offered_after_a_new_start_is_published_and_overtakes_what_was_paused() -> None:
    bench = Bench()
    bench.work.start()
    bench.take(1)
    assert bench.at_work.wait(5)
    bench.take(2)
    bench.work.pause()
    bench.work.start()
    bench.take(3)
    assert bench.finish() == {"stopped_in_work": 2}
    assert bench.published == [3]

"""Bags played over DDS to subscribers in another participant: contents, pace, loops, /clock, latching, waiting."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from nuscenes_tree import write_tree

pytest.importorskip("rclpy")

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros import commands, player
from fusionocc_ros.bag import write_bag
from fusionocc_ros.bag_reader import message_class, stamp_of
from fusionocc_ros.domains import claimed_domain
from fusionocc_ros.playback import BagClock
from fusionocc_ros.player import PlayOptions, PlayReport, TopicReport, play

pytestmark = pytest.mark.ros

LIDAR, CAMERA = "/lidar_top", "/cam_front/image_rect_compressed"
ANSWERS = "/occ/occupancy"


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """Three keyframes half a second apart, sweeps every 50 ms, pictures 5 and 10 ms before each sweep; 1 s long."""
    cameras = {"CAM_FRONT": 0.0, "CAM_BACK": 180.0}
    root = tmp_path_factory.mktemp("data")
    tree = write_tree(root / "d", scenes={"street": 3}, cameras=cameras, sweeps=9)
    return write_bag(tree.root, root / "bag")


@pytest.fixture
def domain(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setattr(player, "SETTLE_S", 0.4)
    with claimed_domain() as number:
        yield number


class Listener:
    """A node in a participant of its own, spinning in a thread; remembers what arrives, serialised."""

    def __init__(self, domain, topics, latched=()):
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("listener", context=self.context)
        self.heard = []
        self.changed = threading.Condition()
        for topic, kind in topics.items():
            durability = DurabilityPolicy.TRANSIENT_LOCAL if topic in latched else DurabilityPolicy.VOLATILE
            quality = QoSProfile(depth=500, durability=durability)
            self.node.create_subscription(kind, topic, self.remember(topic), quality, raw=True)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.spin)
        self.thread.start()

    def spin(self):
        with contextlib.suppress(ExternalShutdownException):
            self.executor.spin()

    def remember(self, topic):
        def callback(data):
            with self.changed:
                self.heard.append((topic, bytes(data)))
                self.changed.notify_all()

        return callback

    def on(self, topic):
        with self.changed:
            return [data for heard, data in self.heard if heard == topic]

    def wait(self, topic, count, timeout=10.0):
        deadline = time.monotonic() + timeout
        with self.changed:
            while sum(heard == topic for heard, _ in self.heard) < count:
                if not self.changed.wait(deadline - time.monotonic()):
                    break
        return self.on(topic)

    def close(self):
        self.executor.shutdown()
        self.thread.join()
        self.node.destroy_node()
        self.context.try_shutdown()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Answering(Listener):
    """Answers each sweep on ANSWERS after a while, as a slow network would."""

    def __init__(self, domain, delay, deaf_to=()):
        self.delay, self.deaf_to = delay, set(deaf_to)
        self.sequence = []
        super().__init__(domain, {LIDAR: PointCloud2, CAMERA: CompressedImage})
        self.publisher = self.node.create_publisher(SemanticOccupancy, ANSWERS, 5)

    def remember(self, topic):
        def callback(data):
            stamp = stamp_of(data)
            self.sequence.append(("camera" if topic == CAMERA else "sweep", stamp))
            if topic == LIDAR and stamp not in self.deaf_to:
                threading.Timer(self.delay, self.answer, (stamp,)).start()

        return callback

    def answer(self, stamp):
        message = SemanticOccupancy()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
        self.sequence.append(("answer", stamp))
        self.publisher.publish(message)


def recorded(path, topic):
    with Reader(path) as reader:
        return [bytes(raw) for connection, _, raw in reader.messages() if connection.topic == topic]


class TestPlaying:
    def test_every_message_arrives_unchanged_and_in_order(self, bag, domain):
        with Listener(domain, {LIDAR: PointCloud2, CAMERA: CompressedImage, "/tf": TFMessage}) as listener:
            report = play(bag.path, PlayOptions(rate=2.0), domain_id=domain)
            for topic in (LIDAR, CAMERA, "/tf"):
                expected = recorded(bag.path, topic)
                assert len(expected) == bag.messages[topic]
                assert listener.wait(topic, len(expected)) == expected
        assert report.topics[LIDAR].sent == bag.messages[LIDAR]
        assert report.topics[LIDAR].subscribers == 1
        assert report.topics["/odom"].subscribers == 0

    @pytest.mark.parametrize("rate", [0.8, 4.0])
    def test_the_rate_sets_the_pace(self, bag, domain, rate):
        report = play(bag.path, PlayOptions(rate=rate, subscriber_timeout_s=0.0), domain_id=domain)
        length = bag.duration_s / rate
        assert length - 0.01 < report.wall_s < length + 0.8

    def test_loops_until_it_is_stopped(self, bag, domain):
        class Enough(Exception):
            pass

        rounds = []

        def progress(done, length):
            if done == 0.0 and (not rounds or time.monotonic() - rounds[-1] > 0.05):
                rounds.append(time.monotonic())
            if len(rounds) == 3:
                raise Enough

        with Listener(domain, {LIDAR: PointCloud2}) as listener:
            with pytest.raises(Enough):
                play(bag.path, PlayOptions(rate=4.0, loop=True), progress, domain_id=domain)
            heard = listener.wait(LIDAR, 2 * bag.messages[LIDAR])
        assert heard == 2 * recorded(bag.path, LIDAR)

    def test_clock_runs_with_the_bag(self, bag, domain):
        with Listener(domain, {"/clock": Clock, LIDAR: PointCloud2}) as listener:
            play(bag.path, PlayOptions(rate=1.0, clock_hz=50.0), domain_id=domain)
            ticks = [stamp_of(data) for data in listener.wait("/clock", 40)]
            heard = list(listener.heard)
        first = bag.keyframe_stamps_ns[0]
        assert ticks == sorted(ticks)
        assert 35 <= len(ticks) <= 60
        assert ticks[-1] - ticks[0] == pytest.approx(1e9, abs=1.5e8)
        # Whoever follows /clock sees a sweep about when it happens.
        now, late = 0, []
        for topic, data in heard:
            if topic == "/clock":
                now = stamp_of(data)
            elif now:
                late.append((now - stamp_of(data)) * 1e-9)
        assert now > first
        assert abs(sorted(late)[len(late) // 2]) < 0.1

    def test_latched_transforms_reach_who_comes_late(self, bag, domain):
        class Enough(Exception):
            pass

        heard, begun = threading.Event(), threading.Event()

        def progress(done, length):
            begun.set()
            if heard.is_set():
                raise Enough

        def slowly():
            with contextlib.suppress(Enough):
                play(bag.path, PlayOptions(rate=0.05, subscriber_timeout_s=0.0), progress, domain_id=domain)

        playing = threading.Thread(target=slowly)
        playing.start()
        assert begun.wait(10.0)
        try:
            with Listener(domain, {"/tf_static": TFMessage}, latched=["/tf_static"]) as listener:
                assert len(listener.wait("/tf_static", 1)) == 1
        finally:
            heard.set()
            playing.join()

    def test_part_of_topics_and_time(self, bag, domain):
        options = PlayOptions(topics=(LIDAR, "/tf_static"), start_s=0.4, duration_s=0.3)
        with Listener(domain, {LIDAR: PointCloud2, "/tf_static": TFMessage}) as listener:
            report = play(bag.path, options, domain_id=domain)
            heard = listener.wait(LIDAR, report.topics[LIDAR].sent)
            assert len(listener.wait("/tf_static", 1)) == 1  # latched at the bag's beginning, sent all the same
        assert set(report.topics) == {LIDAR, "/tf_static"}
        begin = bag.keyframe_stamps_ns[0] - 10_000_000 + 400_000_000
        assert [begin <= stamp_of(data) < begin + 300_000_000 for data in heard] == [True] * 6

    def test_types_that_cannot_be_imported_are_named_and_skipped(self, domain, tmp_path, caplog):
        store = get_typestore(Stores.ROS2_JAZZY)
        store.register(get_types_from_msg("float64 value", "nowhere_msgs/msg/Thing"))
        with Writer(tmp_path / "b", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
            thing = writer.add_connection("/thing", "nowhere_msgs/msg/Thing", typestore=store)
            text = writer.add_connection("/text", "std_msgs/msg/String", typestore=store)
            writer.write(
                thing, 10, store.serialize_cdr(store.types["nowhere_msgs/msg/Thing"](1.0), "nowhere_msgs/msg/Thing")
            )
            writer.write(
                text, 20, store.serialize_cdr(store.types["std_msgs/msg/String"]("hello"), "std_msgs/msg/String")
            )
        with caplog.at_level(logging.WARNING), Listener(domain, {"/text": String}) as listener:
            report = play(tmp_path / "b", PlayOptions(), domain_id=domain)
            assert len(listener.wait("/text", 1)) == 1
        assert "nowhere_msgs/msg/Thing cannot be imported" in report.skipped["/thing"]
        assert "/thing is not played" in caplog.text

    def test_playing_to_nobody_says_so(self, bag, domain, caplog):
        with caplog.at_level(logging.WARNING):
            play(bag.path, PlayOptions(rate=8.0, subscriber_timeout_s=0.3), domain_id=domain)
        assert "nobody subscribes" in caplog.text


class TestWaiting:
    def test_a_slow_node_gets_every_keyframe_and_its_pictures_first(self, bag, domain):
        with Answering(domain, delay=0.4) as node:
            report = play(bag.path, PlayOptions(rate=3.0, wait_for=ANSWERS), domain_id=domain)
            time.sleep(0.5)
        keyframes = set(bag.keyframe_stamps_ns)
        assert report.awaited == report.answered == 3
        sweeps = [stamp for kind, stamp in node.sequence if kind == "sweep"]
        assert sweeps == [stamp_of(data) for data in recorded(bag.path, LIDAR)]
        for keyframe in keyframes:
            asked = node.sequence.index(("sweep", keyframe))
            told = node.sequence.index(("answer", keyframe))
            between = node.sequence[asked + 1 : told]
            # No further sweep may take the keyframe's place; pictures that belong to it still come.
            assert not [stamp for kind, stamp in between if kind == "sweep"]
            # Pictures from before the sweep may be taken after it: two topics' messages that both wait have no order.
            late = [stamp for kind, stamp in between if kind == "camera" and stamp > keyframe]
            assert all(stamp <= keyframe + 100_000_000 for stamp in late)
            assert len(late) == (1 if keyframe != max(keyframes) else 0)

    def test_bag_time_stands_still_while_waiting(self, bag, domain):
        with Answering(domain, delay=0.6) as node, Listener(domain, {"/clock": Clock}) as listener:
            report = play(bag.path, PlayOptions(wait_for=ANSWERS, clock_hz=40.0), domain_id=domain)
            ticks = [stamp_of(data) for data in listener.on("/clock")]
        assert report.wall_s > 1.0 + 2 * 0.5 - 0.05
        assert ticks == sorted(ticks)
        assert max(ticks) <= max(stamp for _, stamp in node.sequence) + 110_000_000
        assert len(ticks) - len(set(ticks)) >= 20  # it stood still, yet nobody who follows it starved

    def test_an_answer_that_never_comes_ends_it_with_the_stamp(self, bag, domain):
        second = bag.keyframe_stamps_ns[1]
        with (
            Answering(domain, delay=0.0, deaf_to=[second]),
            pytest.raises(TimeoutError, match=rf"{ANSWERS} with the stamp {second * 1e-9:.6f}.*\(1 of 2 answered\)"),
        ):
            play(bag.path, PlayOptions(wait_for=ANSWERS, wait_timeout_s=0.5), domain_id=domain)

    def test_nobody_listens(self, bag, domain):
        with pytest.raises(TimeoutError, match=r"nobody subscribes to /lidar_top within 0\.5 s"):
            play(bag.path, PlayOptions(wait_for=ANSWERS, subscriber_timeout_s=0.5), domain_id=domain)

    def test_nobody_answers(self, bag, domain):
        with (
            Listener(domain, {LIDAR: PointCloud2}),
            pytest.raises(TimeoutError, match=rf"nobody publishes {ANSWERS}"),
        ):
            play(bag.path, PlayOptions(wait_for=ANSWERS, subscriber_timeout_s=4.0), domain_id=domain)

    def test_topics_that_cannot_be_waited_after(self, bag, domain):
        with pytest.raises(ValueError, match=r"wait_after=\['/nothing'\]"):
            play(bag.path, PlayOptions(wait_for=ANSWERS, wait_after=("/nothing",)), domain_id=domain)
        with pytest.raises(ValueError, match="/tf is tf2_msgs/msg/TFMessage, which has no header"):
            play(bag.path, PlayOptions(wait_for=ANSWERS, wait_after=("/tf",)), domain_id=domain)


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("rate", 0.0), ("start_s", -1.0), ("duration_s", 0.0), ("clock_hz", -5.0), ("wait_timeout_s", float("nan"))],
    )
    def test_values_that_cannot_be_played(self, name, value):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            PlayOptions(**{name: value})

    def test_topics_and_times_outside_the_bag(self, bag, domain):
        with pytest.raises(ValueError, match=r"topics /lidar: not in the bag; it has .*/lidar_top"):
            play(bag.path, PlayOptions(topics=("/lidar",)), domain_id=domain)
        with pytest.raises(ValueError, match=r"start_s=99\.0: the bag is only 1\.01"):
            play(bag.path, PlayOptions(start_s=99.0), domain_id=domain)

    def test_message_class(self):
        assert message_class("sensor_msgs/msg/PointCloud2") is PointCloud2
        with pytest.raises(ModuleNotFoundError, match="std_msgs has no message Nothing"):
            message_class("std_msgs/msg/Nothing")


def test_bag_clock_holds_and_goes_on_from_there():
    clock = BagClock(rate=100.0)
    clock.start(1_000_000_000)
    clock.hold_at(1_200_000_000)
    time.sleep(0.02)
    assert clock.now_ns() == 1_200_000_000
    assert clock.seconds_until(1_300_000_000) == pytest.approx(0.001)
    clock.release()
    assert 1_200_000_000 <= clock.now_ns() < 1_400_000_000
    time.sleep(0.002)
    assert clock.now_ns() >= 1_400_000_000


def test_the_report_is_whole_on_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    topics = {
        f"/cam_front_{side}/image_rect_compressed": TopicReport(kind="sensor_msgs/msg/CompressedImage", sent=123456)
        for side in ("left", "right", "and_a_name_longer_than_the_terminal")
    }
    commands._print_report(PlayReport(topics=topics, wall_s=1000.0))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    first = "".join(line.split("│")[1].strip() for line in printed.splitlines() if "│" in line)
    for topic, report in topics.items():
        assert topic + report.kind in first
    assert printed.count("123456") == 3
    assert printed.count("123.5") == 3


def test_command_line(bag, domain):
    """Another process plays; this one listens."""
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "COLUMNS": "120"}
    command = [sys.executable, "-m", "fusionocc_ros.commands", "bag", "play", str(bag.path), "--rate", "3", "--clock"]
    with Listener(domain, {LIDAR: PointCloud2, "/clock": Clock}) as listener:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        heard = listener.wait(LIDAR, bag.messages[LIDAR])
        assert listener.on("/clock")
    # Between processes the middleware may pad the end of a message.
    for data, expected in zip(heard, recorded(bag.path, LIDAR), strict=True):
        assert data[: len(expected) // 4 * 4] == expected[: len(expected) // 4 * 4]
        assert deserialize_message(data, PointCloud2) == deserialize_message(expected, PointCloud2)
    row = next(line for line in done.stdout.splitlines() if " /lidar_top " in line)
    assert f" {bag.messages[LIDAR]} " in row

"""What becomes of the messages of a set: points of moving LiDARs, several of them, and sensors that are left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sensor_msgs.msg import PointField
from synthetic_sensors import MS, OFFICIAL_CAMERAS, START, S, camera_info, cloud, jpeg, points

from fusionocc_core.geometry import inverse, rotation_from_yaw, transform
from fusionocc_ros.assemble import Assembler, Moment, Needs
from fusionocc_ros.causes import DropFrame
from fusionocc_ros.deskew import bring_points
from fusionocc_ros.ego_motion import EgoMotion, Source
from fusionocc_ros.engine import load_engine
from fusionocc_ros.parameters import CameraParameters, LidarParameters, NodeParameters
from fusionocc_ros.readers import CameraInfos, Patience
from fusionocc_ros.sync import LIDAR, SensorSet, Stamped
from fusionocc_ros.tf_store import TfStore


def ego(stamp_ns: int) -> np.ndarray:
    """A vehicle that drives at 10 m/s and turns at 0.8 rad/s."""
    t = (stamp_ns - START) / S
    return transform(rotation_from_yaw(0.8 * t), (12.5 * np.sin(0.8 * t), 12.5 * (1 - np.cos(0.8 * t)), 0.0))


LIDAR_TOP = transform(rotation_from_yaw(-np.pi / 2), (0.9, 0.0, 1.8))
LIDAR_REAR = transform(rotation_from_yaw(np.pi), (-1.0, 0.2, 0.6))


def seen(world: np.ndarray, lidar2base: np.ndarray, stamps_ns: np.ndarray) -> np.ndarray:
    """Points (P, 5) that a LiDAR measures, each at its own time, of places in the world (P, 3)."""
    out = np.zeros((len(world), 5), np.float32)
    for i, stamp in enumerate(stamps_ns):
        out[i, :3] = (inverse(ego(int(stamp)) @ lidar2base) @ [*world[i], 1.0])[:3]
    return out


def timed_cloud(stamp_ns: int, values: np.ndarray, times_s: np.ndarray, frame: str = "lidar_top") -> Any:
    message = cloud(stamp_ns, np.c_[values[:, :5], times_s].astype(np.float32), names="x y z intensity ring time")
    assert message.fields[-1] == PointField(name="time", offset=20, datatype=7, count=1)
    message.header.frame_id = frame
    return message


WORLD = np.random.default_rng(0).uniform(-40, 40, (400, 3))


# ---- points ----------------------------------------------------------------------------------------------------------


def test_points_of_a_turning_vehicle_are_brought_to_one_moment() -> None:
    stamps = START + np.linspace(0, 100 * MS, len(WORLD)).astype(np.int64)
    at = START + 100 * MS
    got = bring_points(seen(WORLD, LIDAR_TOP, stamps), stamps, lambda t: ego(t) @ LIDAR_TOP, ego(at) @ LIDAR_TOP)
    still = seen(WORLD, LIDAR_TOP, np.full(len(WORLD), at))
    np.testing.assert_allclose(got[:, :3], still[:, :3], atol=2e-3)
    assert np.abs(seen(WORLD, LIDAR_TOP, stamps)[:, :3] - still[:, :3]).max() > 2
    assert got.dtype == np.float32


def test_other_columns_of_points_are_kept_and_the_input_is_not_touched() -> None:
    values = points(10)
    before = values.copy()
    got = bring_points(values, START, lambda _: LIDAR_TOP, np.eye(4))
    np.testing.assert_array_equal(values, before)
    np.testing.assert_array_equal(got[:, 3:], values[:, 3:])
    np.testing.assert_allclose(got[0, :3], (LIDAR_TOP @ [*values[0, :3], 1])[:3], rtol=1e-5)


# ---- sets ------------------------------------------------------------------------------------------------------------


class Bench:
    """An assembler with what it needs, filled by hand."""

    def __init__(self, *, moving: bool = True, needs: Needs | None = None, **changes: Any) -> None:
        cameras = tuple(
            CameraParameters(name=name, image_topic=name, info_topic=f"{name}/info") for name in OFFICIAL_CAMERAS
        )
        rear = LidarParameters(name="REAR", topic="lidar_rear")
        self.parameters = NodeParameters(
            cameras=cameras,
            other_lidars=(rear,),
            transform_timeout=0.05,
            ego_motion="tf" if moving else "none",
            **changes,
        )
        self.transforms = TfStore()
        self.transforms.set_static("base_link", "lidar_top", LIDAR_TOP)
        self.transforms.set_static("base_link", "lidar_rear", LIDAR_REAR)
        for name in OFFICIAL_CAMERAS:
            self.transforms.set_static("base_link", name.lower(), np.eye(4))
        for k in range(-30, 31):
            self.transforms.add("map", "base_link", START + k * 10 * MS, ego(START + k * 10 * MS))
        self.infos = CameraInfos()
        for name in OFFICIAL_CAMERAS:
            self.infos.put(name, camera_info(name))
        motion = EgoMotion(
            policy=self.parameters.ego_motion,
            base_frame="base_link",
            fixed_frame="map",
            transforms=self.transforms,
            odometry=TfStore(),
            timeout_s=0.05,
        )
        self.left_out: list[tuple[str, str]] = []
        self.assembler = Assembler(
            self.parameters,
            self.infos,
            self.transforms,
            motion,
            None,
            needs=needs,
            on_left_out=lambda sensor, cause, _text: self.left_out.append((sensor, cause)),
        )

    def moment(
        self, stamp_ns: int = START, *, clouds: dict[str, Any] | None = None, edit: Callable[[Any], Any] | None = None
    ) -> Moment:
        """All sensors at one stamp; ``edit`` changes the front camera's picture."""
        pictures = {name: Stamped(stamp_ns=stamp_ns, item=jpeg(name, stamp_ns)) for name in OFFICIAL_CAMERAS}
        if edit is not None:
            edit(pictures["CAM_FRONT"].item)
        messages = {LIDAR: cloud(stamp_ns)} if clouds is None else clouds
        stamped = {
            name: Stamped(stamp_ns=m.header.stamp.sec * S + m.header.stamp.nanosec, item=m)
            for name, m in messages.items()
        }
        return Moment(
            SensorSet(stamp_ns=stamp_ns, pictures=pictures, clouds=stamped, arrived_ns=0, released_ns=0, epoch=0)
        )


@contextmanager
def bench(**how: Any) -> Iterator[Bench]:
    made = Bench(**how)
    yield made
    made.assembler.close()


def test_a_sweep_with_times_is_deskewed_and_one_of_a_standing_clock_is_not() -> None:
    times_s = np.linspace(-0.1, 0, len(WORLD))
    smeared = seen(WORLD, LIDAR_TOP, START + (times_s * 1e9).astype(np.int64))
    still = seen(WORLD, LIDAR_TOP, np.full(len(WORLD), START))
    for how, expected in (
        ({}, still),
        ({"lidar_deskew": False}, smeared),
        ({"moving": False}, smeared),  # where the vehicle's motion is not known
    ):
        with bench(**how) as b:
            frame = b.assembler.assemble(b.moment(clouds={LIDAR: timed_cloud(START, smeared, times_s)})).frame
            np.testing.assert_allclose(frame.lidar.points[:, :3], expected[:, :3], atol=3e-3)


def test_times_that_are_not_understood_are_said_once_and_the_points_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = points(len(WORLD))
    strange = timed_cloud(START, values, np.full(len(WORLD), 4711.0))
    with bench() as b:
        for _ in range(2):
            frame = b.assembler.assemble(b.moment(clouds={LIDAR: strange})).frame
            np.testing.assert_array_equal(frame.lidar.points[:, :3], values[:, :3])
    assert [r.getMessage() for r in caplog.records] == [
        "lidar_top has times of points in a unit that is not known: its points are taken as of one moment"
    ]


def test_clouds_of_several_lidars_become_one_as_the_first_would_have_seen_it() -> None:
    times_s = np.linspace(-0.05, 0.03, len(WORLD))
    rear_stamp = START + 20 * MS
    rear = seen(WORLD, LIDAR_REAR, rear_stamp + (times_s * 1e9).astype(np.int64))
    top = seen(WORLD, LIDAR_TOP, np.full(len(WORLD), START))
    clouds = {LIDAR: cloud(START, top), "REAR": timed_cloud(rear_stamp, rear, times_s, "lidar_rear")}
    with bench() as b:
        sweep = b.assembler.assemble(b.moment(clouds=clouds)).frame.lidar
        np.testing.assert_allclose(sweep.points[:, :3], np.concatenate([top, top])[:, :3], atol=5e-3)
        assert sweep.stamp_ns == START
        np.testing.assert_allclose(sweep.lidar2ego, LIDAR_TOP)


def test_the_next_lidar_takes_the_place_of_a_first_one_that_cannot_be_read() -> None:
    broken = cloud(START, points(0))
    rear = cloud(START + 10 * MS, points(50))
    rear.header.frame_id = "lidar_rear"
    with bench() as b:
        assembled = b.assembler.assemble(b.moment(clouds={LIDAR: broken, "REAR": rear}))
        assert assembled.missing == {LIDAR: "empty_cloud"}
        assert assembled.lidar_frame_id == "lidar_rear"
        assert assembled.frame.lidar.stamp_ns == START + 10 * MS
        np.testing.assert_allclose(assembled.frame.ego2global, ego(START), atol=1e-9)


def cut(message: Any) -> None:
    message.data = message.data[:50]


def test_a_camera_that_cannot_be_read_is_left_out_and_named() -> None:
    with bench() as b:
        assembled = b.assembler.assemble(b.moment(edit=cut))
        assert [c.name for c in assembled.frame.cameras] == [n for n in OFFICIAL_CAMERAS if n != "CAM_FRONT"]
        assert assembled.missing == {"CAM_FRONT": "bad_image"}
        assert b.left_out == [("CAM_FRONT", "bad_image")]
        assert b.assembler.counters["left out CAM_FRONT: bad_image"] == 1


@pytest.mark.parametrize(
    ("how", "broken", "cause"),
    [
        ({"bad_sensors": "drop"}, "camera", "bad_image"),
        ({"bad_sensors": "drop"}, "lidar", "empty_cloud"),
        ({"needs": Needs(lidar=True)}, "lidar", "empty_cloud"),
        ({"needs": Needs(cameras=6)}, "camera", "bad_image"),
        ({"sync_min_cameras": 6}, "camera", "bad_image"),
        ({}, "both", "empty_cloud"),
    ],
)
def test_a_set_that_would_have_to_do_without_too_much_is_dropped_for_the_first_reason(
    how: dict[str, Any], broken: str, cause: str
) -> None:
    with bench(**how) as b:
        moment = b.moment(
            clouds={LIDAR: cloud(START, points(0))} if broken in ("lidar", "both") else None,
            edit=cut if broken == "camera" else None,
        )
        if broken == "both":
            moment.pictures.raw = {}
        with pytest.raises(DropFrame) as raised:
            b.assembler.assemble(moment)
        assert raised.value.cause == cause


def test_what_never_comes_is_waited_for_once_a_second_only() -> None:
    patience = Patience(0.05)
    assert patience.timeout_s("A") == 0.05
    patience.in_vain("A")
    assert (patience.timeout_s("A"), patience.timeout_s("B")) == (0.0, 0.05)
    with bench() as b:
        b.infos._latest.pop("CAM_BACK")
        began = time.monotonic()
        assert b.assembler.assemble(b.moment()).missing == {"CAM_BACK": "no_camera_info"}
        assert time.monotonic() - began >= 0.05
        b.infos.put("CAM_BACK", camera_info("CAM_BACK"))
        assert b.assembler.assemble(b.moment()).missing == {}


def test_keyframes_with_the_old_place_of_a_sensor_are_forgotten_when_it_is_corrected() -> None:
    with bench() as b:
        b.assembler.serve(camera_history=1, lidar_history=1, least_width=0)
        b.assembler._parameters = replace(b.assembler._parameters, keyframe_spacing=0.1)
        b.assembler.serve(camera_history=1, lidar_history=1, least_width=0)
        histories = []
        for k in range(5):
            if k == 3:
                b.transforms.set_static("base_link", "cam_back", LIDAR_TOP)
            moment = b.moment(START + k * 50 * MS - 100 * MS)
            b.assembler.offer(moment)
            frame = b.assembler.assemble(moment).frame
            histories.append((len(frame.camera_history), len(frame.lidar_history)))
        assert histories[2] == (1, 1)
        assert histories[3] == (0, 0)
        assert b.assembler.counters["keyframes_skipped"] > 0


def test_odometry_stands_in_where_the_transforms_have_no_pose() -> None:
    transforms, odometry = TfStore(), TfStore()
    motion = EgoMotion(
        policy="auto",
        base_frame="base_link",
        fixed_frame="map",
        transforms=transforms,
        odometry=odometry,
        timeout_s=0.0,
    )
    transforms.add("map", "base_link", START, ego(START))
    assert motion.locate(START)[0] is Source.TF
    with pytest.raises(DropFrame, match="vehicle pose from tf"):
        motion.locate(START + S)
    odometry.add("odom", "base_link", START + S, ego(START))
    motion.odometry_frames("base_link", "odom")
    assert motion.locate(START + S)[0] is Source.ODOMETRY
    assert motion.locate(START)[0] is Source.TF


def test_the_network_that_ships_works_on_the_lidar_alone_and_on_cameras_alone() -> None:
    engine = load_engine(NodeParameters(device="cpu"))
    assert not engine.needs_camera
    assert not engine.needs_lidar
    with bench(needs=Needs()) as b:
        whole = b.assembler.assemble(b.moment()).frame
        for frame in (replace(whole, cameras=()), replace(whole, lidar=None)):
            occupancy = engine.predict(frame)
            assert (occupancy.labels != occupancy.label_set.unknown).any()


def test_pictures_of_a_reduced_size_show_the_same_directions() -> None:
    with bench() as b:
        whole = b.assembler.assemble(b.moment()).frame.cameras[0]
        b.assembler.serve(camera_history=0, lidar_history=0, least_width=whole.image.shape[1] // 2)
        half = b.assembler.assemble(b.moment()).frame.cameras[0]
        assert half.image.shape == (whole.image.shape[0] // 2, whole.image.shape[1] // 2, 3)
        np.testing.assert_allclose(half.intrinsics, np.diag([0.5, 0.5, 1]) @ whole.intrinsics)
        # A calibration that does not say for which size it is belongs to the pictures as they came.
        b.infos.put(whole.name, camera_info(whole.name, height=0, width=0))
        unsaid = b.assembler.assemble(b.moment()).frame.cameras[0]
        np.testing.assert_allclose(unsaid.intrinsics, half.intrinsics)


def test_distortion_is_taken_out_of_reduced_pictures_as_out_of_whole_ones() -> None:
    with bench(distortion="undistort") as b:
        bent = camera_info(OFFICIAL_CAMERAS[0], d=[-0.3, 0.1, 0.0, 0.0, 0.0])
        b.infos.put(OFFICIAL_CAMERAS[0], bent)
        whole = b.assembler.assemble(b.moment()).frame.cameras[0].image.astype(float)
        b.assembler.serve(camera_history=0, lidar_history=0, least_width=whole.shape[1] // 2)
        half = b.assembler.assemble(b.moment()).frame.cameras[0].image.astype(float)
    mean = whole.reshape(whole.shape[0] // 2, 2, whole.shape[1] // 2, 2, 3).mean(axis=(1, 3))
    inner = (slice(3, -3), slice(3, -3))
    assert np.abs(half - mean)[inner].max() < 6
    plain = np.diff(mean[8], axis=0)[:, 0]
    assert np.ptp(plain) > 0.3  # the ramp is bent, so that it shows

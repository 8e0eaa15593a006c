"""What stands around the node: ego motion, rig files, silence, optional packages."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from synthetic_sensors import MS, S

from fusionocc_core import DEFAULT_PRESET
from fusionocc_ros.causes import DropFrame
from fusionocc_ros.clouds import BeamLayout, points_from_records
from fusionocc_ros.convert import picture_to_rgb
from fusionocc_ros.dds import PROFILE_VARIABLES, share_folder, use_shipped_profile
from fusionocc_ros.diagnostics import Throttle
from fusionocc_ros.ego_motion import EgoMotion, Source
from fusionocc_ros.engine import load_engine
from fusionocc_ros.parameters import NodeParameters
from fusionocc_ros.rig import load_rig
from fusionocc_ros.silence import Silence
from fusionocc_ros.sync import LIDAR
from fusionocc_ros.tf_store import TfStore


def pose(x: float) -> np.ndarray:
    out = np.eye(4)
    out[0, 3] = x
    return out


def motion(policy: str) -> tuple[EgoMotion, TfStore, TfStore]:
    transforms, odometry = TfStore(), TfStore()
    made = EgoMotion(
        policy=policy,
        base_frame="base_link",
        fixed_frame="map",
        transforms=transforms,
        odometry=odometry,
        timeout_s=0.0,
    )
    return made, transforms, odometry


def test_auto_prefers_tf_over_odometry_over_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusionocc_ros.ego_motion.GRACE_S", 0.5)
    made, transforms, odometry = motion("auto")
    began = time.monotonic()
    assert made.source() is Source.NONE
    assert time.monotonic() - began >= 0.5
    began = time.monotonic()
    assert made.source() is Source.NONE
    assert time.monotonic() - began < 0.45
    np.testing.assert_array_equal(made.base2fixed(Source.NONE, S), np.eye(4))
    odometry.add("odom", "base_link", S, pose(1))
    made.odometry_frames("base_link", "odom")
    assert made.source() is Source.ODOMETRY
    np.testing.assert_array_equal(made.base2fixed(Source.ODOMETRY, S), pose(1))
    transforms.add("map", "base_link", S, pose(2))
    assert made.source() is Source.TF
    np.testing.assert_array_equal(made.base2fixed(Source.TF, S), pose(2))


def test_odometry_of_another_frame_of_the_vehicle_is_carried_over() -> None:
    made, transforms, odometry = motion("odometry")
    with pytest.raises(DropFrame, match="no Odometry has come"):
        made.base2fixed(made.source(), S)
    odometry.add("odom", "imu", S, pose(10))
    made.odometry_frames("imu", "odom")
    transforms.set_static("base_link", "imu", pose(1.5))
    np.testing.assert_allclose(made.base2fixed(made.source(), S), pose(8.5))
    with pytest.raises(DropFrame, match=r"'imu' to 'odom' at 5\.000 s") as raised:
        made.base2fixed(made.source(), 5 * S)
    assert raised.value.cause == "no_ego_pose"


# ---- rig files -------------------------------------------------------------------------------------------------------


MOUNT = {"frame_id": "f", "translation": [0.0, 0.0, 1.0], "rotation_xyzw": [0.0, 0.0, 0.0, 1.0]}
LENS = {"width": 10, "height": 5, "fx": 8, "fy": 8, "cx": 5, "cy": 2.5}


def rig(**changes: Any) -> dict[str, Any]:
    return {
        "base_frame": "base_link",
        "lidar": MOUNT,
        "cameras": {"A": MOUNT, "B": {**MOUNT, "intrinsics": LENS}},
    } | changes


def test_a_rig_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rig.yaml"
    bent = {**LENS, "distortion_model": "equidistant", "distortion": [0.1, 0, 0, 0]}
    cameras = {**rig()["cameras"], "C": {**MOUNT, "intrinsics": bent}}
    path.write_text(yaml.safe_dump(rig(cameras=cameras, lidars={"REAR": MOUNT})))
    read = load_rig(path)
    assert (list(read.cameras), list(read.calibrations)) == (["A", "B", "C"], ["B", "C"])
    assert list(read.lidars) == ["lidar", "REAR"]
    assert (read.calibrations["C"].model, read.calibrations["C"].distortion) == ("equidistant", (0.1, 0.0, 0.0, 0.0))
    np.testing.assert_array_equal(read.lidars["lidar"].sensor2base[:3, 3], [0, 0, 1])
    assert read.calibrations["B"].size == (5, 10)
    np.testing.assert_array_equal(read.calibrations["B"].k, [[8, 0, 5], [0, 8, 2.5], [0, 0, 1]])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[", "rig.yaml: not a YAML file"),
        ("just text", "expected the keys base_frame, got 'just text'"),
        ({"base_frame": "b"}, "it places no sensor"),
        (rig(lidars=[MOUNT]), "lidars: expected names with an entry each"),
        (
            rig(cameras={"A": {**MOUNT, "intrinsics": {**LENS, "distortion": [1]}}}),
            r"cameras\.A\.intrinsics: distortion_model and distortion belong together",
        ),
        (rig(wheels=4), r"unknown \['wheels'\]"),
        ({"lidar": MOUNT}, r"missing \['base_frame'\]"),
        (rig(cameras={}), "cameras: expected names with an entry each"),
        (rig(lidar={**MOUNT, "translation": [0, 0]}), r"lidar\.translation: expected 3 numbers, got \[0, 0\]"),
        (rig(lidar={**MOUNT, "rotation_xyzw": [0, 0, 0, 0]}), "lidar: quaternion_wxyz: length is zero"),
        (rig(lidar={**MOUNT, "translation": [0, 0, "high"]}), "expected 3 numbers"),
        (
            rig(cameras={"A": {**MOUNT, "intrinsics": {**LENS, "fx": 0}}}),
            r"cameras\.A\.intrinsics: .* must be positive",
        ),
        (rig(cameras={"A": {**MOUNT, "lens": 3}}), r"cameras\.A: .*unknown \['lens'\].*perhaps intrinsics"),
    ],
)
def test_a_rig_file_that_cannot_be_used_says_where_and_why(tmp_path: Path, content: Any, text: str) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(ValueError, match=text):
        load_rig(path)
    with pytest.raises(FileNotFoundError, match=r"rig_file: there is no file .*none\.yaml"):
        load_rig(tmp_path / "none.yaml")


# ---- silence ---------------------------------------------------------------------------------------------------------


class Clocks:
    def __init__(self, simulated: int | None) -> None:
        self.simulated = simulated
        self.real = 50 * S
        self.silence = Silence(lambda: self.simulated, lambda: self.real)


def test_silence_is_measured_in_real_time_where_time_is_not_simulated() -> None:
    clocks = Clocks(None)
    clocks.silence.heard("lidar")
    clocks.real += 3 * S
    assert clocks.silence.of(("lidar", "A")) == {"lidar": 3.0, "A": float("inf")}
    assert clocks.silence.clock_stands_s() == 0


def test_a_dead_sensor_stays_silent_through_every_loop_of_a_bag() -> None:
    clocks = Clocks(0)
    clocks.silence.heard("dead")
    clocks.simulated = 100 * S  # the first /clock
    clocks.silence.heard("alive")
    assert clocks.silence.of(("dead",)) == {"dead": 0}
    for lap in range(1, 6):
        for step in range(5):
            clocks.simulated = 100 * S + step * S // 4
            clocks.silence.heard("alive")
        assert clocks.silence.of(("dead", "alive")) == {"dead": lap * 1.0, "alive": 0}


def test_simulated_time_that_stands_still_is_told_unless_it_is_excused() -> None:
    clocks = Clocks(100 * S)
    clocks.silence.heard("lidar")
    clocks.real += 9 * S
    assert (clocks.silence.clock_stands_s(), clocks.silence.of(("lidar",))) == (9, {"lidar": 0})
    clocks.silence.excuse()
    assert clocks.silence.clock_stands_s() == 0
    clocks.real += 2 * S
    assert clocks.silence.clock_stands_s() == 2
    clocks.simulated = 90 * S
    assert clocks.silence.clock_stands_s() == 0


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_throttled_messages_come_with_how_many_were_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("fusionocc_ros.diagnostics.time.monotonic", lambda: now[0])
    throttle = Throttle(5.0)
    assert throttle("a", "first") == "first"
    assert throttle("b", "other") == "other"
    assert [throttle("a", "again") for _ in range(3)] == [None, None, None]
    now[0] += 5
    assert throttle("a", "later") == "later (3 more like this since the last report)"
    now[0] += 5
    assert throttle("a", "at last") == "at last"


def test_of_messages_from_several_threads_one_gets_through_and_the_others_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fusionocc_ros.diagnostics.time.monotonic", lambda: 100.0)
    throttle = Throttle(5.0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            through = list(pool.map(lambda _: throttle("a", "text"), range(20_000)))
    finally:
        sys.setswitchinterval(interval)
    assert [t for t in through if t is not None] == ["text"]
    monkeypatch.setattr("fusionocc_ros.diagnostics.time.monotonic", lambda: 105.0)
    assert throttle("a", "text") == "text (19999 more like this since the last report)"


def test_the_shipped_profile_gives_way_to_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    profile = use_shipped_profile()
    assert profile == share_folder() / "config" / "fastdds_shm.xml"
    assert all(os.environ[name] == str(profile) for name in PROFILE_VARIABLES)
    monkeypatch.setenv(PROFILE_VARIABLES[0], "/my/own.xml")
    monkeypatch.delenv(PROFILE_VARIABLES[1])
    assert use_shipped_profile() is None
    assert PROFILE_VARIABLES[1] not in os.environ


def test_the_engine_is_the_network_that_the_parameters_name() -> None:
    engine = load_engine(NodeParameters(device="cpu", preset="fusionocc-tiny", confidence=True))
    assert (engine.model, engine.trained_on, engine.device) == ("fusionocc-tiny", "untrained weights", "cpu")
    engine = load_engine(NodeParameters(device="cpu"))
    assert engine.model == DEFAULT_PRESET
    assert "simulated streets" in engine.trained_on
    assert engine.num_cameras == 6
    assert min(engine.camera_history, engine.lidar_history) >= 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"preset": "nothing"}, "'nothing'"),
        ({"device": "tpu"}, "tpu"),
        ({"checkpoint": "/nowhere/w.pth"}, "/nowhere/w.pth"),
    ],
)
def test_an_engine_that_cannot_be_made_says_why(changes: dict[str, str], text: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        load_engine(NodeParameters(**{"device": "cpu", **changes}))


def test_approximate_time_gives_sets_where_message_filters_is_installed() -> None:
    pytest.importorskip("message_filters", reason="message_filters comes with a ROS installation and is not on PyPI")
    from synthetic_sensors import cloud, jpeg

    from fusionocc_ros.approximate_time import ApproximateTimeSync
    from fusionocc_ros.sync import SyncConfig

    sync = ApproximateTimeSync(SyncConfig(cameras=("CAM_FRONT", "CAM_BACK")), time.monotonic_ns)
    sets = []
    for k in range(1, 21):
        for camera in ("CAM_FRONT", "CAM_BACK"):
            sets += sync.add(camera, k * 100 * MS - 5 * MS, jpeg(camera, k * 100 * MS - 5 * MS))
        sets += sync.add(LIDAR, k * 100 * MS, cloud(k * 100 * MS))
    assert len(sets) >= 15
    assert all(abs(p.stamp_ns - s.stamp_ns) == 5 * MS for s in sets for p in s.pictures.values())
    counters = sync.counters
    assert counters.received == counters.released + sum(counters.dropped.values()) + sync.pending == 20


def test_cv_bridge_gives_the_same_pictures_where_it_is_installed() -> None:
    pytest.importorskip("cv_bridge", reason="cv_bridge comes with a ROS installation and is not on PyPI")
    from synthetic_sensors import jpeg, raw

    for message in (raw("CAM_FRONT", S), jpeg("CAM_FRONT", S)):
        ours, theirs = (picture_to_rgb(message, name="C", decoder=d) for d in ("builtin", "cv_bridge"))
        np.testing.assert_array_equal(ours, theirs)


def test_points_are_read_from_records_as_sensor_msgs_py_gives_them() -> None:
    values = np.zeros(3, np.dtype([("ring", ">u2"), ("x", ">f8"), ("y", "f4"), ("z", "f4"), ("intensity", "u1")]))
    values["ring"], values["x"], values["z"], values["intensity"] = (3, 4, 5), (1, np.nan, 2), 7, 9
    got = points_from_records(values, beams=BeamLayout(), intensity_scale=2.0, name="lidar")
    np.testing.assert_array_equal(got.points, [[1, 0, 7, 18, 3], [2, 0, 7, 18, 5]])
    assert (got.dropped, got.filled) == (1, ())
    with pytest.raises(DropFrame, match="lidar: PointCloud2 has no field x, y, z; its fields are ring"):
        points_from_records(values[["ring"]], beams=BeamLayout(), intensity_scale=1.0, name="lidar")


def test_sensor_msgs_py_gives_the_same_points_where_it_is_installed() -> None:
    pytest.importorskip("sensor_msgs_py", reason="sensor_msgs_py comes with a ROS installation and is not on PyPI")
    from synthetic_sensors import cloud

    from fusionocc_ros.convert import cloud_to_points

    settings = {"beams": BeamLayout(), "intensity_scale": 1.0, "name": "lidar"}
    ours, theirs = (cloud_to_points(cloud(S), reader=r, **settings).points for r in ("builtin", "sensor_msgs_py"))
    np.testing.assert_array_equal(ours, theirs)

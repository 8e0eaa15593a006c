"""Clouds and poses: messages to arrays, and what cannot be."""

from __future__ import annotations

import array
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import Transform
from hypothesis import given, settings
from hypothesis import strategies as st
from nav_msgs.msg import Odometry
from sensor_msgs.msg import PointCloud2, PointField
from synthetic_sensors import cloud, points

from fusionocc_ros.causes import CAUSES, DropFrame
from fusionocc_ros.clouds import BeamLayout, points_from_records
from fusionocc_ros.convert import (
    cloud_to_points,
    odometry_to_matrix,
    transform_to_matrix,
)

RNG = np.random.default_rng(3)


def read(message: PointCloud2, **changes: Any) -> Any:
    return cloud_to_points(message, **{"beams": BeamLayout(), "intensity_scale": 1.0, "name": "lidar", **changes})


TYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[tuple[str, str]], int, bool, int, int]:
    """Fields in any order with any types, gaps between them, byte order, rows, row padding."""
    fields = [(axis, draw(st.sampled_from(["f4", "f8"]))) for axis in "xyz"]
    fields += [
        ("intensity", draw(st.sampled_from(["u1", "u2", "f4"]))),
        ("ring", draw(st.sampled_from(["u1", "u2", "f4", "i4"]))),
    ]
    fields += [("t", "u4"), ("reflectivity", "u2")][: draw(st.integers(0, 2))]
    return (
        draw(st.permutations(fields)),
        draw(st.integers(0, 5)),
        draw(st.booleans()),
        draw(st.integers(1, 3)),
        draw(st.integers(0, 9)),
    )


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_any_order_offset_type_byte_order_and_row_padding_gives_the_same_points(
    layout: tuple[list[tuple[str, str]], int, bool, int, int],
) -> None:
    fields, gap, big, height, row_padding = layout
    width, message = 4, PointCloud2(is_bigendian=big)
    truth = np.round(points(height * width, seed=1), 3)
    offset, names, formats, offsets = 0, [], [], []
    for name, kind in fields:
        names.append(name)
        formats.append((">" if big else "<") + kind)
        offsets.append(offset)
        message.fields.append(PointField(name=name, offset=offset, datatype=TYPES[kind], count=1))
        offset += np.dtype(kind).itemsize + gap
    records = np.zeros(
        height * width, np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": offset})
    )
    for column, name in enumerate(("x", "y", "z", "intensity", "ring")):
        records[name] = truth[:, column]
    rows = np.frombuffer(records.tobytes(), np.uint8).reshape(height, -1)
    rows = np.concatenate([rows, np.full((height, row_padding), 99, np.uint8)], axis=1)
    message.height, message.width, message.point_step, message.row_step = height, width, offset, rows.shape[1]
    message.data = array.array("B", rows.tobytes())
    got = read(message)
    np.testing.assert_allclose(got.points, truth, rtol=1e-6)
    assert got.points.dtype == np.float32
    assert (got.dropped, got.filled) == (0, ())


def test_points_that_are_not_finite_are_dropped_and_counted() -> None:
    values = points(10)
    values[2, 0], values[5, 1], values[7, 2] = np.nan, np.inf, -np.inf
    values[3, 3] = np.nan  # an intensity: the point itself is good
    got = read(cloud(1, values))
    assert got.dropped == 3
    np.testing.assert_array_equal(got.points[:, :3], np.delete(values, [2, 5, 7], axis=0)[:, :3])
    assert np.isfinite(got.points).all()


def test_points_that_are_finite_as_doubles_alone_are_dropped() -> None:
    records = np.zeros(3, dtype=[("x", "<f8"), ("y", "<f8"), ("z", "<f8")])
    records["x"], records["y"][1] = (1.0, 2.0, -1e300), 1e30
    got = points_from_records(records, beams=BeamLayout(), intensity_scale=1.0, name="l")
    assert got.dropped == 2
    np.testing.assert_array_equal(got.points[:, 0], [1.0])


LATE_NS = np.array([-100_000_000, -50_000_000, 0, 20_000_000])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("time", LATE_NS.astype("<f4") / 1e9),  # Velodyne
        ("t", (LATE_NS + 100_000_000).astype("<u4")),  # Ouster
        ("time_stamp", (LATE_NS + 100_000_000).astype("<u4")),  # Autoware
        ("timestamp", 1_600_000_000.0 + LATE_NS / 1e9),  # Hesai, RoboSense
        ("timestamp", 1_600_000_000e9 + LATE_NS),  # Livox
    ],
)
def test_times_of_points_are_understood_in_the_units_of_common_drivers(name: str, values: np.ndarray) -> None:
    kind = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), (name, values.dtype)])
    records = np.ones(4, kind)
    records[name], records["y"][1] = values, np.nan
    got = points_from_records(
        records, beams=BeamLayout(), intensity_scale=1.0, name="lidar", stamp_ns=1_600_000_000_000_000_000
    )
    shift = 100_000_000 if values.dtype == np.dtype("<u4") else 0
    np.testing.assert_allclose(got.times_ns, LATE_NS[[0, 2, 3]] + shift, atol=300)
    assert not got.odd_times


@pytest.mark.parametrize("values", [[5e3] * 3, [np.nan, 0, 0], [1e18, 0, 0], [np.inf, 0, 0]])
def test_times_that_fit_no_habit_are_left_alone_and_said(values: list[float]) -> None:
    records = np.ones(3, np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("time", "f8")]))
    records["time"] = values
    got = points_from_records(
        records, beams=BeamLayout(), intensity_scale=1.0, name="lidar", stamp_ns=1_600_000_000_000_000_000
    )
    assert (got.times_ns, got.odd_times) == (None, True)


def test_a_cloud_of_more_points_than_allowed_is_refused_before_it_is_read() -> None:
    with pytest.raises(DropFrame, match=r"lidar: PointCloud2 has 500 points, more than lidar\.max_points \(499\)") as e:
        read(cloud(1, points(500)), max_points=499)
    assert e.value.cause == "too_large"
    assert len(read(cloud(1, points(500)), max_points=500).points) == 500


def test_missing_columns_are_filled_and_named() -> None:
    got = read(cloud(1, points(), names="x y z"))
    assert set(got.filled) == {"intensity", "ring"}
    assert (got.points[:, 3] == 0).all()
    assert set(np.unique(got.points[:, 4])) <= set(range(32))


def test_rings_follow_from_the_elevation_of_the_beams() -> None:
    rings = np.arange(32)
    elevation, azimuth = np.radians(-30.67 + rings * 41.34 / 31), RNG.uniform(-3, 3, 32)
    distance = RNG.uniform(2, 60, 32)[:, None]
    xyz = distance * np.c_[np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    got = read(cloud(1, xyz.astype(np.float32), names="x y z"))
    np.testing.assert_array_equal(got.points[:, 4], rings)
    sixteen = BeamLayout(beams=16, lowest_deg=-15.0, highest_deg=15.0)
    flat = np.array([[10, 0, 0], [10, 0, 10 * np.tan(np.radians(15))], [0, 10, -30]], np.float32)
    np.testing.assert_array_equal(sixteen.rings(flat), [8, 15, 0])


@pytest.mark.parametrize("name", ["ring", "channel", "line"])
def test_other_names_of_the_ring_are_known(name: str) -> None:
    values = points(20)
    got = read(cloud(1, values, names=f"x y z intensity {name}"))
    np.testing.assert_array_equal(got.points, values)


def test_intensity_is_scaled() -> None:
    values = points(20)
    np.testing.assert_allclose(read(cloud(1, values), intensity_scale=0.5).points[:, 3], values[:, 3] / 2)


def changed(**values: Any) -> PointCloud2:
    message = cloud(1, points(10))
    for name, value in values.items():
        setattr(message, name, value)
    return message


BAD_CLOUDS = pytest.mark.parametrize(
    ("message", "cause", "text"),
    [
        (cloud(1, points(0)), "empty_cloud", "0x1: the sensor sent no points"),
        (cloud(1, np.full((5, 5), np.nan, np.float32)), "empty_cloud", "none of the 5 points"),
        (cloud(1, points(), names="x y i"), "bad_cloud", "no field z; its fields are x, y, i"),
        (changed(data=array.array("B", bytes(150))), "bad_cloud", "150 bytes, 10x1 points of 20 bytes need 200"),
        (changed(point_step=0, row_step=0), "bad_cloud", "point_step 0"),
        (changed(point_step=10, row_step=100), "bad_cloud", "'z' at offset 8 reaches past the end of a point"),
        (changed(height=2, width=5, row_step=50), "bad_cloud", "row_step of at least 100"),
        (changed(fields=[]), "bad_cloud", "its fields are none"),
    ],
)


@BAD_CLOUDS
def test_clouds_that_cannot_be_read_say_why(message: PointCloud2, cause: str, text: str) -> None:
    with pytest.raises(DropFrame, match=f"lidar: .*{text}") as raised:
        read(message)
    assert raised.value.cause == cause


@pytest.fixture
def fake_sensor_msgs_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read_points that, like the real one, trusts its message."""

    def read_points(message: PointCloud2) -> np.ndarray:
        kinds = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 8: "<f8"}
        names, offsets = [f.name for f in message.fields], [f.offset for f in message.fields]
        formats = [kinds[f.datatype] for f in message.fields]
        dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": message.point_step})
        return np.ndarray(shape=message.width * message.height, dtype=dtype, buffer=message.data)

    package = ModuleType("sensor_msgs_py")
    package.point_cloud2 = SimpleNamespace(read_points=read_points)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sensor_msgs_py", package)


@BAD_CLOUDS
@pytest.mark.usefixtures("fake_sensor_msgs_py")
def test_clouds_are_checked_before_another_reader_gets_them(message: PointCloud2, cause: str, text: str) -> None:
    with pytest.raises(DropFrame, match=f"lidar: .*{text}") as raised:
        read(message, reader="sensor_msgs_py")
    assert raised.value.cause == cause


@pytest.mark.usefixtures("fake_sensor_msgs_py")
def test_another_reader_is_not_given_fields_that_it_cannot_read() -> None:
    message = cloud(1, points(10))
    np.testing.assert_array_equal(read(message, reader="sensor_msgs_py").points, read(message).points)
    message.fields = [*message.fields, PointField(name="extra", offset=16, datatype=99, count=1)]
    assert len(read(message).points) == 10
    with pytest.raises(DropFrame, match=r"lidar: .*unknown datatype \(extra\)") as raised:
        read(message, reader="sensor_msgs_py")
    assert raised.value.cause == "bad_cloud"
    padded = changed(height=2, width=4, row_step=100)
    assert len(read(padded).points) == 8
    with pytest.raises(DropFrame, match=r"PointCloud2 has padded rows \(row_step 100, 4 points of 20 bytes\)"):
        read(padded, reader="sensor_msgs_py")


def test_causes_have_to_be_known() -> None:
    with pytest.raises(ValueError, match="'bad_luck' is not one of"):
        DropFrame("bad_luck", "")
    assert all(CAUSES.values())


# ---- poses -----------------------------------------------------------------------------------------------------------


def test_transforms_and_odometry_become_matrices() -> None:
    message = Transform()
    message.translation.x, message.translation.z = 1.0, 3.0
    message.rotation.z = message.rotation.w = np.sqrt(0.5)
    expected = [[0, -1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(transform_to_matrix(message), expected, atol=1e-12)
    odometry = Odometry()
    odometry.pose.pose.position.x, odometry.pose.pose.position.z = 1.0, 3.0
    odometry.pose.pose.orientation.z = odometry.pose.pose.orientation.w = np.sqrt(0.5)
    np.testing.assert_allclose(odometry_to_matrix(odometry), expected, atol=1e-12)


def test_a_quaternion_of_zeros_is_refused() -> None:
    message = Transform()
    message.rotation.w = 0.0
    with pytest.raises(ValueError, match="length is zero"):
        transform_to_matrix(message)

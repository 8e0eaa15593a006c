"""Messages to arrays and occupancy to messages: values, layouts, limits, costs. No nodes."""

from __future__ import annotations

import array
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import Transform
from hypothesis import given, settings
from hypothesis import strategies as st
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField, RegionOfInterest
from synthetic_sensors import camera_info, cloud, points

from fusionocc_ros.causes import CAUSES, DropFrame
from fusionocc_ros.clouds import BeamLayout, points_from_records
from fusionocc_ros.convert import (
    camera_info_to_lens,
    cloud_to_points,
    ns_to_stamp,
    odometry_to_matrix,
    picture_to_rgb,
    stamp_to_ns,
    transform_to_matrix,
)
from fusionocc_ros.pictures import undistort

RNG = np.random.default_rng(3)


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_stamps_go_there_and_back(stamp_ns: int) -> None:
    assert stamp_to_ns(ns_to_stamp(stamp_ns)) == stamp_ns


# ---- pictures --------------------------------------------------------------------------------------------------------

PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def image(encoding: str, rows: np.ndarray, padding: int = 0) -> Image:
    height, width = rows.shape[:2]
    flat = rows.reshape(height, -1)
    padded = np.concatenate([flat, np.full((height, padding), 77, np.uint8)], axis=1)
    data = array.array("B", padded.tobytes())
    return Image(height=height, width=width, encoding=encoding, step=padded.shape[1], data=data)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "rows"),
    [
        ("rgb8", PIXELS),
        ("bgr8", PIXELS[..., ::-1]),
        ("rgba8", np.concatenate([PIXELS, PIXELS[..., :1]], axis=2)),
        ("bgra8", np.concatenate([PIXELS[..., ::-1], PIXELS[..., :1]], axis=2)),
    ],
)
def test_raw_pictures_become_rgb_whatever_the_channels_and_the_row_padding(
    encoding: str, rows: np.ndarray, padding: int
) -> None:
    np.testing.assert_array_equal(picture_to_rgb(image(encoding, rows, padding), name="C"), PIXELS)


def test_the_last_row_may_lack_its_padding() -> None:
    message = image("rgb8", PIXELS, padding=5)
    message.data = message.data[:-5]
    np.testing.assert_array_equal(picture_to_rgb(message, name="C"), PIXELS)


def test_grey_pictures_are_repeated_and_yuv_is_converted() -> None:
    grey = picture_to_rgb(image("mono8", PIXELS[..., :1]), name="C")
    np.testing.assert_array_equal(grey, np.repeat(PIXELS[..., :1], 3, axis=2))
    even = np.full((4, 6, 3), (200, 60, 20), dtype=np.uint8)
    y, u, v = cv2.cvtColor(even, cv2.COLOR_RGB2YUV)[0, 0]
    for encodings, pair in ((("uyvy", "yuv422"), [u, y, v, y]), (("yuyv", "yuv422_yuy2"), [y, u, y, v])):
        rows = np.tile(np.array(pair, np.uint8), (4, 3)).reshape(4, 6, 2)
        for encoding in encodings:
            got = picture_to_rgb(image(encoding, rows), name="C").astype(int)
            # Video range against full range: the hue has to be right.
            assert got[0, 0].argmax() == 0
            assert got[0, 0].argmin() == 2


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_mosaics_of_every_pattern_become_rgb(pattern: str) -> None:
    ramp = np.linspace(0, 60, 12, dtype=np.uint8)
    truth = np.stack([180 + ramp[:, None] + 0 * ramp, 90 + 0 * ramp[:, None] + ramp, 10 + 0 * ramp[:, None] + ramp], 2)
    mosaic = np.empty((12, 12, 1), np.uint8)
    for k, color in enumerate(pattern):
        mosaic[k // 2 :: 2, k % 2 :: 2, 0] = truth[k // 2 :: 2, k % 2 :: 2, "rgb".index(color)]
    got = picture_to_rgb(image(f"bayer_{pattern}8", mosaic, padding=3), name="C").astype(int)
    assert np.abs(got - truth)[2:-2, 2:-2].max() <= 6


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_a_small_file_that_promises_a_huge_picture_is_refused_before_it_is_decoded(extension: str) -> None:
    bomb = compressed(extension, pixels=np.zeros((8, 8, 3), np.uint8))
    data = bomb.data.tobytes()
    at = 16 if extension == ".png" else data.index(b"\xff\xc0") + 5
    size = (60_000).to_bytes(4 if extension == ".png" else 2, "big") * 2
    bomb.data[at : at + len(size)] = array.array("B", size)
    with pytest.raises(DropFrame, match="CAM: a picture of 60000x60000 pixels; at most 64000000") as raised:
        picture_to_rgb(bomb, name="CAM")
    assert raised.value.cause == "too_large"


def compressed(extension: str, image_format: str = "", pixels: np.ndarray = PIXELS) -> CompressedImage:
    _, data = cv2.imencode(extension, pixels[..., ::-1])
    return CompressedImage(format=image_format or extension[1:], data=array.array("B", data.tobytes()))


def test_png_is_exact_and_jpeg_is_close() -> None:
    np.testing.assert_array_equal(picture_to_rgb(compressed(".png"), name="C"), PIXELS)
    smooth = np.tile(np.linspace(0, 250, 64, dtype=np.uint8)[None, :, None], (32, 1, 3))
    smooth[..., 2] //= 3
    got = picture_to_rgb(compressed(".jpg", "bgr8; jpeg compressed bgr8", smooth), name="C")
    assert np.abs(got.astype(int) - smooth).mean() < 2
    swapped = picture_to_rgb(compressed(".png", "rgb8; png compressed rgb8"), name="C")
    np.testing.assert_array_equal(swapped, PIXELS[..., ::-1])


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_colours_of_eight_bits_are_read_without_a_copy(encoding: str) -> None:
    message = image(encoding, PIXELS)
    assert np.shares_memory(picture_to_rgb(message, name="C"), np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_truncated_files_are_noticed_although_decoders_fill_them_up(extension: str, share: float) -> None:
    message = compressed(extension, pixels=RNG.integers(0, 256, (90, 160, 3), dtype=np.uint8))
    message.data = message.data[: int(share * len(message.data))]
    with pytest.raises(DropFrame, match=r"CAM: CompressedImage is truncated: (JPEG|PNG) of \d+ bytes") as raised:
        picture_to_rgb(message, name="CAM")
    assert raised.value.cause == "bad_image"


def test_padding_behind_a_jpeg_is_allowed_and_damage_inside_is_not() -> None:
    message = compressed(".jpg")
    message.data.extend([0] * 16)
    assert picture_to_rgb(message, name="C").shape == PIXELS.shape
    damaged = compressed(".png", pixels=RNG.integers(0, 256, (90, 160, 3), dtype=np.uint8))
    damaged.data[16:24] = array.array("B", [0] * 8)  # width and height
    with pytest.raises(DropFrame, match="cannot be decoded: damaged"):
        picture_to_rgb(damaged, name="C")


@pytest.mark.parametrize(
    ("message", "cause", "text"),
    [
        (image("bayer_rggb16", PIXELS[..., :2]), "bad_encoding", "'bayer_rggb16' is not handled .*rgb8.*cv_bridge"),
        (image("bayer_rggb8", PIXELS[:2, :, :1]), "bad_image", "'bayer_rggb8' is 7x2; a mosaic needs at least 3x3"),
        (
            Image(height=9000, width=9000, encoding="mono8", step=9000),
            "too_large",
            "9000x9000 pixels; at most 64000000",
        ),
        (image("16UC1", PIXELS), "bad_encoding", "'16UC1'"),
        (
            Image(height=2, width=2, encoding="rgb8", step=5),
            "bad_image",
            "step 5; expected at least one row of at least 6",
        ),
        (Image(encoding="rgb8"), "bad_image", "0x0"),
        (Image(height=2, width=2, encoding="rgb8", step=6), "bad_image", "0 bytes, 2x2 rgb8 needs 12"),
        (CompressedImage(format="h264", data=b"\x00\x00\x00\x01gA"), "bad_encoding", "'h264' begins with 00 00 00 01"),
        (CompressedImage(format="jpeg"), "bad_encoding", "begins with nothing"),
    ],
)
def test_pictures_that_cannot_be_read_say_why(message: Any, cause: str, text: str) -> None:
    with pytest.raises(DropFrame, match=f"CAM: .*{text}") as raised:
        picture_to_rgb(message, name="CAM")
    assert raised.value.cause == cause


def test_undistorting_puts_points_where_a_pinhole_would() -> None:
    k = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
    for model, d in (("plumb_bob", (-0.3, 0.1, 0.001, -0.001, 0.0)), ("equidistant", (0.05, -0.01, 0.0, 0.0))):
        direction = np.array([[[0.25, -0.2, 1.0]]])
        if model == "equidistant":
            spot, _ = cv2.fisheye.projectPoints(direction, np.zeros(3), np.zeros(3), k, np.array(d))
        else:
            spot, _ = cv2.projectPoints(direction, np.zeros(3), np.zeros(3), k, np.array(d))
        u, v = spot.ravel()
        taken = np.zeros((240, 320, 3), np.uint8)
        cv2.circle(taken, (round(u), round(v)), 4, (255, 255, 255), -1)
        weights = undistort(taken, k, model, d, name="C")[..., 0].astype(float)
        ys, xs = np.mgrid[:240, :320]
        centre = np.array([(xs * weights).sum(), (ys * weights).sum()]) / weights.sum()
        np.testing.assert_allclose(centre, [160 + 75, 120 - 60], atol=0.8)
        assert abs(u - 235) > 2
        taken[..., 0] //= 3
        expected, backwards = (undistort(p, k, model, d, name="C") for p in (taken, taken[..., ::-1].copy()[..., ::-1]))
        np.testing.assert_array_equal(backwards, expected)


# ---- lenses ----------------------------------------------------------------------------------------------------------

SIZE = (36, 64)


def lens(info: CameraInfo, policy: str = "refuse", size: tuple[int, int] = SIZE) -> Any:
    return camera_info_to_lens(info, size=size, policy=policy, name="CAM")


def test_intrinsics_come_from_k_or_from_p_where_pictures_are_rectified() -> None:
    info = camera_info("CAM_FRONT", p=[40.0, 0, 30.0, 0, 0, 41.0, 17.0, 0, 0, 0, 1.0, 0])
    np.testing.assert_array_equal(lens(info).intrinsics, [[50, 0, 32], [0, 50, 18], [0, 0, 1]])
    np.testing.assert_array_equal(lens(info, "rectified").intrinsics, [[40, 0, 30], [0, 41, 17], [0, 0, 1]])


def test_distortion_is_refused_handed_on_or_left_behind() -> None:
    info = camera_info("CAM_FRONT", d=[-0.3, 0.1, 0.0, 0.0, 0.0])
    with pytest.raises(DropFrame, match=r"CAM: .*plumb_bob, D=\[-0\.3, 0\.1.*undistort, or to rectified") as raised:
        lens(info)
    assert raised.value.cause == "distorted"
    assert lens(info, "undistort").distortion == (-0.3, 0.1, 0.0, 0.0, 0.0)
    assert lens(info, "rectified").distortion == ()
    assert lens(camera_info("CAM_FRONT", d=[0.0] * 5)).distortion == ()


@pytest.mark.parametrize(
    ("changes", "policy", "cause", "text"),
    [
        ({"k": [0.0] * 9}, "refuse", "uncalibrated", r"K\[0\]=0"),
        ({"k": [float("nan")] * 9}, "refuse", "bad_calibration", r"not finite: K=\[nan"),
        ({"p": [float("inf")] + [0.0] * 11}, "rectified", "bad_calibration", r"not finite: P=\[inf"),
        ({"d": [0.1, float("nan"), 0, 0, 0]}, "undistort", "bad_calibration", r"not finite: .*D=\[0\.1, nan"),
        ({"d": [float("-inf"), 0, 0, 0, 0]}, "refuse", "bad_calibration", r"D=\[-inf"),
        ({"p": [0.0] * 12}, "rectified", "uncalibrated", r"P\[0\]=0"),
        ({"p": [50.0, 0, 32, -6.0, 0, 50.0, 18, 0, 0, 0, 1.0, 0]}, "rectified", "bad_calibration", r"P\[3\]=-6"),
        ({"r": [0.0, 1, 0, -1, 0, 0, 0, 0, 1]}, "rectified", "bad_calibration", "stereo"),
        ({"roi": RegionOfInterest(width=32, height=36)}, "refuse", "bad_calibration", "region of interest of 32x36"),
        ({"height": 48}, "refuse", "bad_calibration", "64x36 but CameraInfo is for 64x48"),
    ],
)
def test_calibrations_that_cannot_be_used_say_why(changes: dict[str, Any], policy: str, cause: str, text: str) -> None:
    with pytest.raises(DropFrame, match=text) as raised:
        lens(camera_info("CAM_FRONT", **changes), policy)
    assert raised.value.cause == cause


def test_intrinsics_are_scaled_to_pictures_of_another_size() -> None:
    half = lens(camera_info("CAM_FRONT"), size=(18, 32)).intrinsics
    np.testing.assert_allclose(half, [[25, 0, 15.75], [0, 25, 8.75], [0, 0, 1]])
    unsaid = lens(camera_info("CAM_FRONT", height=0, width=0), size=(18, 32)).intrinsics
    assert unsaid[0, 0] == 50


def test_a_scaled_picture_shows_a_direction_where_the_scaled_lens_says() -> None:
    # The picture's border maps to its border: u = -0.5 and u = width - 0.5 in both.
    k = lens(camera_info("CAM_FRONT"), size=(18, 32)).intrinsics
    for edge, scaled in ((-0.5, -0.5), (63.5, 31.5)):
        direction = (edge - 32) / 50
        assert k[0, 0] * direction + k[0, 2] == pytest.approx(scaled)


def test_a_region_of_interest_that_is_the_whole_picture_is_no_crop() -> None:
    assert lens(camera_info("CAM_FRONT", roi=RegionOfInterest(width=64, height=36))).intrinsics[0, 0] == 50


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match="distortion: 'ignore' is not one of refuse, rectified, undistort"):
        lens(camera_info("CAM_FRONT"), "ignore")


# ---- clouds ----------------------------------------------------------------------------------------------------------


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

"""Pictures and lenses: messages to arrays, and what cannot be."""

from __future__ import annotations

import array
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest
from synthetic_sensors import camera_info

from fusionocc_ros.causes import DropFrame
from fusionocc_ros.convert import (
    camera_info_to_lens,
    ns_to_stamp,
    picture_to_rgb,
    stamp_to_ns,
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

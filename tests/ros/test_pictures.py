"""Pictures as files and as messages: the same bytes get the same verdict, and raw pictures of odd width say why not."""

import cv2
import numpy as np
import pytest

from fusionocc_core.data.files import read_image
from fusionocc_ros.causes import DropFrame
from fusionocc_ros.pictures import decode_compressed, decode_raw

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
WHOLE = {kind: cv2.imencode(f".{kind}", NOISE)[1].tobytes() for kind in ("jpg", "png")}


def test_pictures_are_decoded_at_the_largest_fraction_that_is_wide_enough() -> None:
    rows, columns = np.mgrid[:96, :160]
    whole = np.stack([rows, columns, rows + columns // 2], axis=-1).astype(np.uint8)
    data = np.frombuffer(cv2.imencode(".jpg", whole[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes(), np.uint8)

    def decoded(least_width: int, content: np.ndarray = data) -> np.ndarray:
        return decode_compressed(content, image_format="jpeg", name="CAM", least_width=least_width)

    widths = {0: 160, 161: 160, 160: 160, 81: 160, 80: 80, 40: 40, 20: 20, 1: 20}
    assert {least: decoded(least).shape[1] for least in widths} == widths
    mean = whole.reshape(48, 2, 80, 2, 3).mean(axis=(1, 3))
    assert np.abs(decoded(80) - mean).max() < 4
    png = np.frombuffer(cv2.imencode(".png", whole)[1].tobytes(), np.uint8)
    assert decoded(20, png).shape == (96, 160, 3)
    odd = np.frombuffer(cv2.imencode(".jpg", whole[:95])[1].tobytes(), np.uint8)
    assert decoded(20, odd).shape == (95, 160, 3)


def with_preview(data):
    """With a small JPEG of its own in a segment, as cameras write it."""
    preview = cv2.imencode(".jpg", NOISE[:16, :16])[1].tobytes()
    return data[:2] + b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview + data[2:]


GOOD = {
    **WHOLE,
    "jpg_padded": WHOLE["jpg"] + bytes(16),
    "jpg_padded_a_lot": WHOLE["jpg"] + bytes(5000),
    "png_padded_a_lot": WHOLE["png"] + bytes(5000),
    "jpg_with_preview": with_preview(WHOLE["jpg"]) + b"padding",
}
CUT = {
    "jpg_one_byte": WHOLE["jpg"][:-1],
    "jpg_half": WHOLE["jpg"][: len(WHOLE["jpg"]) // 2],
    "jpg_half_filled_up": WHOLE["jpg"][: len(WHOLE["jpg"]) // 2] + bytes(5000),
    "jpg_head": WHOLE["jpg"][:40],
    "jpg_preview_only": with_preview(WHOLE["jpg"])[:-600],
    "png_one_byte": WHOLE["png"][:-1],
    "png_half": WHOLE["png"][: len(WHOLE["png"]) // 2],
}


def decode(data):
    return decode_compressed(np.frombuffer(data, np.uint8), image_format="jpeg", name="CAM")


@pytest.mark.parametrize("name", GOOD)
def test_whole_pictures_are_the_same_to_both(name, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(GOOD[name])
    np.testing.assert_array_equal(decode(GOOD[name]), read_image(path))
    np.testing.assert_array_equal(decode(GOOD[name]), decode(WHOLE[name[:3]]))


@pytest.mark.parametrize("name", CUT)
def test_cut_pictures_are_refused_by_both(name, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(CUT[name])
    with pytest.raises(ValueError, match=f"{path} is truncated"):
        read_image(path)
    with pytest.raises(DropFrame, match="CAM: CompressedImage is truncated") as raised:
        decode(CUT[name])
    assert raised.value.cause == "bad_image"


def test_other_formats_are_refused_by_both(tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(cv2.imencode(".bmp", NOISE)[1].tobytes())
    with pytest.raises(ValueError, match="expected a JPEG or PNG file"):
        read_image(path)
    with pytest.raises(DropFrame, match="expected a JPEG or PNG file") as raised:
        decode(path.read_bytes())
    assert raised.value.cause == "bad_encoding"


@pytest.mark.parametrize("encoding", ["uyvy", "yuv422", "yuyv", "yuv422_yuy2"])
def test_an_odd_width_of_paired_pixels(encoding):
    data = np.zeros(5 * 4 * 2, np.uint8)
    with pytest.raises(DropFrame, match=f"CAM: .*'{encoding}' has width 5; .* even") as raised:
        decode_raw(data, height=4, width=5, step=10, encoding=encoding, name="CAM")
    assert raised.value.cause == "bad_image"
    assert decode_raw(data, height=4, width=4, step=10, encoding=encoding, name="CAM").shape == (4, 4, 3)

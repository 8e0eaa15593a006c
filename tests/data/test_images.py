"""Augmentation of pictures: what happens to pixels is what the matrix says."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fusionocc_core.data.augmentation import (
    AugmentationConfig,
    BevAug,
    ImageAug,
    draw_bev_aug,
    draw_image_aug,
    fit_image,
)
from fusionocc_core.data.images import normalize_into, transform_image
from fusionocc_core.structures import InputConfig


def smooth_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)


def test_the_fixed_way_keeps_width_and_lower_part() -> None:
    aug = fit_image((900, 1600), (512, 1408))
    assert (aug.resized, aug.corner, aug.mirror, aug.turn_degrees) == ((1408, 792), (0, 280), False, 0.0)
    expected = np.diag([0.88, 0.88, 1.0, 1.0])
    expected[1, 3] = -280.0
    np.testing.assert_allclose(aug.matrix((512, 1408)), expected)


@pytest.mark.parametrize("width", [640, 1280, 1600, 1920, 1936, 2048, 3840])
@pytest.mark.parametrize("target", [(256, 704), (512, 1408), (128, 352)])
def test_the_fixed_way_fills_the_width_for_any_camera(width: int, target: tuple[int, int]) -> None:
    assert fit_image((width * 9 // 16, width), target).resized[0] == target[1]


def test_a_picture_that_is_too_low_gets_black_rows_on_top() -> None:
    picture = np.full((20, 64, 3), 200, np.uint8)
    for resampling in ("pillow", "opencv"):
        out = transform_image(picture, fit_image((20, 64), (32, 64)), (32, 64), resampling)
        assert out.shape == (32, 64, 3)
        assert (out[:12] == 0).all()
        assert (out[12:] == 200).all()


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(40, 200),
    width=st.integers(60, 300),
    scale=st.floats(0.15, 1.4),
    x=st.integers(-10, 40),
    y=st.integers(-20, 60),
    mirror=st.booleans(),
    degrees=st.sampled_from([0.0, 4.3, -5.4]),
)
def test_pillow_way_is_bit_for_bit_resize_crop_mirror_rotate(
    height: int, width: int, scale: float, x: int, y: int, mirror: bool, degrees: float
) -> None:
    picture = smooth_picture(height, width)
    aug = ImageAug(
        scale=scale,
        resized=(int(width * scale), int(height * scale)),
        corner=(x, y),
        mirror=mirror,
        turn_degrees=degrees,
    )
    columns_then_rows = Image.fromarray(picture).resize((aug.resized[0], height)).resize(aug.resized)
    expected = columns_then_rows.crop((x, y, x + 96, y + 48))
    if mirror:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ours = transform_image(picture, aug, (48, 96), "pillow")
    np.testing.assert_array_equal(ours, np.array(expected.rotate(degrees)))


@pytest.mark.parametrize("source", [(900, 1600), (1080, 1920), (1216, 1936), (544, 960)])
@pytest.mark.parametrize("target", [(512, 1408), (256, 704)])
def test_pillow_way_without_the_rows_above_is_the_same(source: tuple[int, int], target: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*source, 3), dtype=np.uint8)
    aug = fit_image(source, target)
    x, y = aug.corner
    expected = Image.fromarray(picture).resize(aug.resized).crop((x, y, x + target[1], y + target[0]))
    np.testing.assert_array_equal(transform_image(picture, aug, target, "pillow"), np.array(expected))


@pytest.mark.parametrize("scale", [0.88, 0.6, 0.3])
@pytest.mark.parametrize("degrees", [0.0, 5.0])
def test_opencv_way_shows_the_same_as_pillow(scale: float, degrees: float) -> None:
    picture = smooth_picture(180, 320)
    aug = ImageAug(
        scale=scale,
        resized=(int(320 * scale), int(180 * scale)),
        corner=(3, 5),
        mirror=True,
        turn_degrees=degrees,
    )
    size = (int(140 * scale), int(300 * scale))
    still = transform_image(picture, replace(aug, turn_degrees=0.0), size, "pillow")
    pillow = np.array(Image.fromarray(still).rotate(degrees, Image.Resampling.BILINEAR)).astype(int)
    edge = 8
    difference = np.abs(pillow - transform_image(picture, aug, size, "opencv"))[edge:-edge, edge:-edge]
    assert difference.mean() < 1.0


@pytest.mark.parametrize("channel_order", ["rgb", "bgr"])
@pytest.mark.parametrize("resampling", ["pillow", "opencv"])
def test_bytes_in_the_order_bgr_give_what_a_copy_in_the_order_rgb_gives(resampling: str, channel_order: str) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    view = np.ascontiguousarray(picture[..., ::-1])[..., ::-1]
    aug = ImageAug(scale=0.4, resized=(64, 36), corner=(3, 2), mirror=True, turn_degrees=3.0)
    inputs = InputConfig(image_size=(32, 56), channel_order=channel_order)
    seen = np.zeros((2, 3, 32, 56), np.float32)
    for out, source in zip(seen, (picture, view), strict=True):
        normalize_into(out, transform_image(source, aug, (32, 56), resampling), inputs)
    assert view.strides[2] < 0 < np.ptp(seen[0])
    np.testing.assert_array_equal(seen[1], seen[0])


@settings(deadline=None, max_examples=40)
@given(
    u=st.floats(60, 260),
    v=st.floats(40, 140),
    seed=st.integers(0, 10_000),
    resampling=st.sampled_from(["pillow", "opencv"]),
)
def test_a_spot_moves_to_where_the_matrix_says(u: float, v: float, seed: int, resampling: str) -> None:
    rows, columns = np.mgrid[0:180, 0:320]
    spot = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 5.0**2))
    picture = np.repeat(spot.astype(np.uint8)[..., None], 3, axis=2)
    config = AugmentationConfig(scale_offset=(-0.1, 0.4))
    size = (120, 240)
    aug = draw_image_aug((180, 320), size, config, torch.Generator().manual_seed(seed))
    out = transform_image(picture, aug, size, resampling)[..., 0].astype(float)
    expected = aug.matrix(size) @ [u, v, 1.0, 1.0]
    assume(20 < expected[0] < size[1] - 20 and 20 < expected[1] < size[0] - 20)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    found = np.array([(out * columns).sum(), (out * rows).sum()]) / out.sum()
    # The official rule u' = scale * u ignores that pixel centres lie at half numbers; mirroring adds up to one pixel.
    assert np.abs(found - expected[:2]).max() < 1.6


def test_draws_are_seeded_and_within_their_ranges() -> None:
    config = AugmentationConfig()
    draws = [
        draw_image_aug((900, 1600), (512, 1408), config, torch.Generator().manual_seed(seed)) for seed in range(200)
    ]
    assert draws[7] == draw_image_aug((900, 1600), (512, 1408), config, torch.Generator().manual_seed(7))
    scales = np.array([aug.scale for aug in draws])
    assert 0.82 <= scales.min() < 0.83 < 0.98 < scales.max() <= 0.99
    turns = np.array([aug.turn_degrees for aug in draws])
    assert -5.4 <= turns.min() < -5.0 < 5.0 < turns.max() <= 5.4
    assert 70 < sum(aug.mirror for aug in draws) < 130
    for aug in draws:
        assert 0 <= aug.corner[0] <= max(0, aug.resized[0] - 1408)
        assert aug.corner[1] == aug.resized[1] - 512
    generator = torch.Generator().manual_seed(0)
    flips = {(a.flip_x, a.flip_y) for a in (draw_bev_aug(config, generator) for _ in range(40))}
    assert len(flips) == 4
    never = AugmentationConfig(flip_x_chance=0.0, flip_y_chance=0.0)
    assert draw_bev_aug(never, generator) == BevAug()
    with pytest.raises(ValueError, match="no pixel left"):
        draw_image_aug((9, 16), (4, 8), AugmentationConfig(scale_offset=(-0.49, -0.49)), generator)


def test_normalisation_and_the_order_of_channels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    inputs = InputConfig(image_size=(5, 7))
    out = np.empty((3, 5, 7), np.float32)
    normalize_into(out, picture, inputs)
    expected = (picture.astype(np.float64) - inputs.mean) / inputs.std
    np.testing.assert_allclose(out, expected.transpose(2, 0, 1), rtol=0, atol=1e-6)
    normalize_into(out, picture, InputConfig(image_size=(5, 7), channel_order="bgr"))
    swapped = (picture[..., ::-1].astype(np.float64) - inputs.mean) / inputs.std
    np.testing.assert_allclose(out, swapped.transpose(2, 0, 1), rtol=0, atol=1e-6)

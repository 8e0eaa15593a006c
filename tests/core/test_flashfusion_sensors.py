"""The way of absent sensors from the data to the answer, for networks that obey masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flashfusion_cases import little_batch, little_config, little_network

from fusionocc_core.data.pipeline import collate, prepare
from fusionocc_core.engine.sensor_dropout import SensorDropout, mask_sensors
from fusionocc_core.losses import Targets
from fusionocc_core.predictor import Predictor, decode, hide_unobserved
from fusionocc_core.presets import preset_config
from fusionocc_core.structures import CameraImage, LidarSweep, Outputs, SensorFrame

EYE = np.eye(4)
UNKNOWN = 255


def make_frame(*, cameras=2, lidar=True):
    rng = np.random.default_rng(0)
    pose = np.array([[0.0, 0, 1, 0.3], [-1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]])
    intrinsics = np.array([[100.0, 0, 70], [0, 100, 40], [0, 0, 1]])
    pictures = tuple(
        CameraImage(
            name=f"c{i}",
            image=rng.integers(0, 255, (80 + 10 * i, 140, 3), dtype=np.uint8),
            intrinsics=intrinsics,
            cam2ego=pose,
            ego2global=EYE,
            stamp_ns=0,
        )
        for i in range(cameras)
    )
    points = np.c_[rng.uniform(-6, 6, (300, 3)), rng.uniform(0, 255, (300, 2))].astype(np.float32)
    sweep = LidarSweep(points=points, lidar2ego=EYE, ego2global=EYE, stamp_ns=0)
    return SensorFrame(stamp_ns=0, ego2global=EYE, cameras=pictures, lidar=sweep if lidar else None)


@pytest.mark.parametrize(("cameras", "lidar"), [(2, True), (1, False), (0, True)])
def test_frames_without_some_sensors_are_predicted(cameras, lidar):
    frame, config = make_frame(cameras=cameras, lidar=lidar), little_config()
    batch = prepare(frame, config.inputs, config.grid)
    assert batch.lidar_present_B.tolist() == [lidar]
    assert batch.camera_present_BN.shape == (1, cameras)
    assert batch.camera_present_BN.all()
    assert tuple(batch.images_BTNCHW.shape) == (1, 1, cameras, 3, 64, 128)
    occupancy = Predictor(little_network(), device="cpu")(frame)
    assert occupancy.labels.shape == config.grid.shape
    assert not (occupancy.labels == UNKNOWN).any()
    assert occupancy.labels.flags.c_contiguous


def test_points_beyond_the_grid_reach_the_network():
    """The raster has a margin, and slices below and above the grid."""
    config = little_config()
    points = prepare(make_frame(), config.inputs, config.grid).points[0]
    low, high = points[:, :3].amin(dim=0), points[:, :3].amax(dim=0)
    assert low[1] < config.grid.lower[1]
    assert high[1] > config.grid.upper[1]
    assert low[2] < config.grid.lower[2]
    assert high[2] > config.grid.upper[2]


def test_networks_that_need_a_camera_say_so():
    config = little_config()
    with pytest.raises(ValueError, match="no camera"):
        prepare(make_frame(cameras=0), replace(config.inputs, presence_masks=False), config.grid)


def test_joined_batches_keep_their_masks():
    config = little_config()
    both = collate([prepare(make_frame(lidar=lidar), config.inputs, config.grid) for lidar in (True, False)])
    assert both.lidar_present_B.tolist() == [True, False]
    silent = replace(both, lidar_present_B=None)
    assert collate([silent, both]).lidar_present_B.tolist() == [True, True, True, False]


def test_nothing_seen_is_unknown_and_not_free():
    model, batch = little_network(), little_batch(samples=1)
    nobody = replace(
        batch, camera_present_BN=torch.zeros(1, 4, dtype=torch.bool), lidar_present_B=torch.tensor([False])
    )
    with torch.no_grad():
        for seen, expected in ((batch, False), (nobody, True)):
            outputs = model(seen)
            labels, confidence = decode(outputs.logits_BKXYZ, confidence=True)
            hide_unobserved(outputs, model.config.label_set, labels, confidence)
            assert (labels == UNKNOWN).all() == expected
            assert (confidence == 0).all() == expected
    labels = np.zeros((2, 2, 2), np.uint8)
    hide_unobserved(Outputs(logits_BKXYZ=torch.zeros(1, 18, 2, 2, 2)), model.config.label_set, labels, None)
    assert not labels.any()


def one_sample():
    targets = Targets(
        labels_BXYZ=torch.zeros(1, 2, 2, 2, dtype=torch.uint8),
        depth_bins_BNhw=torch.ones(1, 4, 8, 16, dtype=torch.int64),
        segmentation_BNHW=torch.ones(1, 4, 64, 128, dtype=torch.uint8),
    )
    return little_batch(samples=1), targets


def test_masks_are_drawn_as_asked_and_one_sensor_always_stays():
    batch, targets = one_sample()
    config = SensorDropout(camera=0.2, pictures=0.2, lidar=0.3)
    generator = torch.Generator().manual_seed(0)
    lidar, blind, cameras = 0, 0, []
    for _ in range(600):
        masked, left = mask_sensors(batch, targets, config, unknown=UNKNOWN, generator=generator)
        here = masked.camera_present_BN[0]
        lidar += not masked.lidar_present_B if masked.lidar_present_B is not None else 0
        blind += not here.any()
        assert here.any() or masked.lidar_present_B is None
        if here.any():
            cameras.append(here.float().mean().item())
        assert torch.equal(left.depth_bins_BNhw[0].amax(dim=(1, 2)), here.long())
        assert torch.equal(left.segmentation_BNHW[0, :, 0, 0] == UNKNOWN, ~here)
        assert masked.images_BTNCHW is batch.images_BTNCHW
    assert lidar / 600 == pytest.approx(0.3, abs=0.06)
    assert blind / 600 == pytest.approx(0.2, abs=0.06)
    assert np.mean(cameras) == pytest.approx(0.8, abs=0.03)


def test_masks_never_take_the_only_sensor():
    batch, targets = one_sample()
    everything = SensorDropout(camera=0.9, lidar=0.999)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        blind = replace(batch, camera_present_BN=torch.zeros(1, 4, dtype=torch.bool))
        masked, _ = mask_sensors(blind, targets, everything, unknown=UNKNOWN, generator=generator)
        assert masked.lidar_present_B is None
        deaf = replace(batch, lidar_present_B=torch.tensor([False]))
        masked, _ = mask_sensors(deaf, targets, SensorDropout(pictures=0.999), unknown=UNKNOWN, generator=generator)
        assert masked.camera_present_BN.any()
        assert not masked.lidar_present_B


def test_the_camera_that_stays_is_one_that_was_there():
    batch, targets = one_sample()
    one_left = torch.tensor([[False, False, True, False]])
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        alone = replace(batch, camera_present_BN=one_left, lidar_present_B=torch.tensor([False]))
        masked, _ = mask_sensors(alone, targets, SensorDropout(camera=0.999), unknown=UNKNOWN, generator=generator)
        assert torch.equal(masked.camera_present_BN, one_left)


@pytest.mark.parametrize("preset", ["fusionocc-tiny", "flashocc-tiny"])
def test_networks_that_do_not_obey_masks_refuse_them(preset):
    config = preset_config(preset)
    with pytest.raises(ValueError, match=r"presence_masks=True: this network does not obey masks"):
        replace(config, inputs=replace(config.inputs, presence_masks=True))

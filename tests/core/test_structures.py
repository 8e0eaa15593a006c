import dataclasses

import numpy as np
import pytest
import torch

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS
from fusionocc_core.stream_pose import StreamPose
from fusionocc_core.structures import (
    Batch,
    CameraImage,
    InputConfig,
    LidarSweep,
    Occupancy,
    SensorFrame,
    Timings,
    cameras_present,
    lidar_present,
)

EYE = np.eye(4)


def camera(name="CAM_FRONT", **changes):
    values = {
        "name": name,
        "image": np.zeros((4, 6, 3), np.uint8),
        "intrinsics": np.diag([5.0, 5.0, 1.0]),
        "cam2ego": EYE,
        "ego2global": EYE,
        "stamp_ns": 7,
    }
    return CameraImage(**{**values, **changes})


def sweep(**changes):
    values = {"points": np.ones((3, 5), np.float32), "lidar2ego": EYE, "ego2global": EYE, "stamp_ns": 7}
    return LidarSweep(**{**values, **changes})


def frame(**changes):
    values = {"stamp_ns": 7, "ego2global": EYE, "cameras": (camera(),), "lidar": sweep()}
    return SensorFrame(**{**values, **changes})


def test_a_frame_may_mix_image_sizes_and_lack_a_sensor():
    big = camera("CAM_BACK", image=np.zeros((8, 9, 3), np.uint8))
    assert len(frame(cameras=(camera(), big)).cameras) == 2
    assert frame(lidar=None).lidar is None
    assert frame(cameras=()).cameras == ()
    assert sweep(points=np.ones((3, 6), np.float32)).points.shape == (3, 6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: camera(image=np.zeros((4, 6), np.uint8)), r"CAM_FRONT: image is uint8 \(4, 6\)"),
        (lambda: camera(image=np.zeros((4, 6, 3), np.float32)), "image is float32"),
        (lambda: camera(image=np.zeros((0, 6, 3), np.uint8)), r"image is uint8 \(0, 6, 3\)"),
        (lambda: camera(intrinsics=np.zeros((3, 3))), "fx=0.0.*uncalibrated"),
        (lambda: camera(intrinsics=np.full((3, 3), np.nan)), "intrinsics must be 3x3 and finite"),
        (lambda: camera(cam2ego=np.zeros((4, 4))), "CAM_FRONT: cam2ego: not a rigid"),
        (lambda: sweep(points=np.ones((3, 4), np.float32)), r"float32 \(3, 4\)"),
        (lambda: sweep(points=np.ones((3, 5))), "float64"),
        (lambda: sweep(points=np.empty((0, 5), np.float32)), "empty"),
        (lambda: sweep(points=np.full((2, 5), np.nan, np.float32)), "2 of 2 points are not finite"),
        (lambda: sweep(lidar2ego=np.eye(3)), "lidar2ego"),
        (lambda: frame(cameras=(), lidar=None), "at least one sensor"),
        (lambda: frame(cameras=(camera(), camera())), "names must differ"),
        (lambda: frame(camera_history=((camera(), camera()),)), "names must differ"),
        (lambda: frame(ego2global=np.full((4, 4), np.nan)), "SensorFrame.ego2global"),
        (lambda: InputConfig(image_size=(1, 1), resampling="lanczos"), "resampling='lanczos'"),
        (lambda: InputConfig(image_size=(1, 1), channel_order="brg"), "channel_order='brg'"),
        (lambda: InputConfig(image_size=(1, 1), key_pose="camera"), "key_pose='camera'"),
        (lambda: InputConfig(image_size=(0, 1)), "image_size"),
        (lambda: InputConfig(image_size=(1, 1), lidar_history=-1), "lidar_history=-1"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def batch(**changes):
    values = {
        "images_BTNCHW": torch.zeros(2, 1, 3, 3, 4, 6),
        "intrinsics_BTN33": torch.zeros(2, 1, 3, 3, 3),
        "image_aug_BTN44": torch.zeros(2, 1, 3, 4, 4),
        "cam2keyego_BTN44": torch.zeros(2, 1, 3, 4, 4),
        "bev_aug_B44": torch.zeros(2, 4, 4),
        "points": (torch.zeros(1, 5), torch.zeros(2, 5)),
        "depth_BNHW": torch.zeros(2, 3, 4, 6),
        "camera_present_BN": torch.ones(2, 3, dtype=torch.bool),
        "lidar_present_B": torch.ones(2, dtype=torch.bool),
        "pose": StreamPose(ego2global_B44=torch.zeros(2, 4, 4).double(), stamp_ns_B=torch.zeros(2).long()),
    }
    return Batch(**{**values, **changes})


def test_batch_moves_every_tensor():
    moved = batch(earlier=(batch(), batch())).to("meta")
    for one in (moved, *moved.earlier):
        for field in dataclasses.fields(one):
            value = getattr(one, field.name)
            parts = {"points": value, "earlier": (), "pose": one.pose and vars(one.pose).values()}
            for tensor in parts.get(field.name, (value,)):
                assert tensor.device.type == "meta", field.name


SHAPED = [f.name for f in dataclasses.fields(Batch) if f.name not in ("points", "pose", "earlier")]


@pytest.mark.parametrize("name", SHAPED)
def test_batch_refuses_parts_that_do_not_fit(name):
    with pytest.raises(ValueError, match="Batch"):
        batch(**{name: getattr(batch(), name)[:1]})


def test_batch_says_which_sensors_are_present():
    silent = batch(camera_present_BN=None, lidar_present_B=None)
    assert cameras_present(silent).all()
    assert lidar_present(silent).all()
    some = torch.tensor([[True, False, True], [False, False, False]])
    assert cameras_present(batch(camera_present_BN=some)) is some
    with pytest.raises(ValueError, match="expected bool"):
        batch(lidar_present_B=torch.ones(2))


def test_occupancy_counts_neither_free_nor_unknown():
    labels = np.full(OCC3D_GRID.shape, OCC3D_LABELS.free, np.uint8)
    labels[3, 2, 1], labels[0, 0, 0] = 4, OCC3D_LABELS.unknown
    timings = Timings(prepare_s=0.1, network_s=0.2, decode_s=0.3)
    occupancy = Occupancy(labels=labels, grid=OCC3D_GRID, label_set=OCC3D_LABELS, stamp_ns=1, timings=timings)
    assert occupancy.occupied().tolist() == [[3, 2, 1]]
    assert timings.total_s == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["labels", "confidence"])
def test_occupancy_must_fit_its_grid(name):
    good = np.zeros(OCC3D_GRID.shape, np.uint8)
    values = {"labels": good, "confidence": good, "grid": OCC3D_GRID, "label_set": OCC3D_LABELS, "stamp_ns": 1}
    with pytest.raises(ValueError, match=f"Occupancy.{name}: uint8"):
        Occupancy(**{**values, name: np.zeros((2, 2, 2), np.uint8)})

"""The input pipeline against tensors recorded from the genuine FusionOcc pipeline (eval: seed 11, train: seed 5)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fusionocc_core.data.augmentation import BevAug, ImageAug, fit_image
from fusionocc_core.data.files import read_cloud, read_image
from fusionocc_core.data.images import transform_seg_map
from fusionocc_core.data.nuscenes import CAMERA_ORDER
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.data.points import chosen_sweeps, sweep_in_key_lidar, thin_rings
from fusionocc_core.geometry import transform_from_wxyz
from fusionocc_core.grids import OCC3D_GRID, VoxelGrid
from fusionocc_core.structures import Batch, CameraImage, InputConfig, LidarSweep, SensorFrame

pytestmark = pytest.mark.data

SEEDS = {"eval": 11, "train": 5}
GRID = VoxelGrid(frame="ego", lower=(-40.0, -32.0, -1.0), upper=(40.0, 32.0, 5.4), voxel_size=(2.0, 2.0, 1.6))
INPUTS = InputConfig(
    image_size=(128, 352),
    camera_history=1,
    lidar_history=7,
    depth_range=(1.0, 45.0),
    resampling="pillow",
    channel_order="bgr",
    key_pose="first_camera",
    include_current_sweep=False,
    repeat_current_sweep=True,
    thin_rings_up_to=16,
    thin_keep=0.2,
    float32_poses=True,
)
SHARED_NEAREST_PIXELS = 3
"""Pixels of the recorded depth maps that do not hold the nearest point: upstream sorts by a rounded key."""


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "goldens" / "fusionocc"


@pytest.fixture(scope="module")
def golden(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "pipeline.safetensors")


@pytest.fixture(scope="module")
def frame(folder: Path) -> SensorFrame:
    """The made-up scene that the genuine pipeline read: frames.json is in its own form, not nuScenes tables."""
    root = folder / "pipeline_input"
    rows = json.loads((root / "frames.json").read_text())["frames"]
    cameras = [tuple(camera(root, row, name) for name in CAMERA_ORDER) for row in rows[:2]]
    sweeps = [sweep(root, row, index) for index, row in enumerate(rows)]
    return SensorFrame(
        stamp_ns=0,
        ego2global=sweeps[0].ego2global,
        cameras=cameras[0],
        lidar=sweeps[0],
        camera_history=tuple(cameras[1:]),
        lidar_history=tuple(sweeps[1:]),
    )


def pose(row: dict, name: str) -> np.ndarray:
    return transform_from_wxyz(row[f"{name}_rotation"], row[f"{name}_translation"])


def camera(root: Path, row: dict, name: str) -> CameraImage:
    info = row["cams"][name]
    return CameraImage(
        name=name,
        image=read_image(root / info["data_path"]),
        intrinsics=np.array(info["cam_intrinsic"]),
        cam2ego=pose(info, "sensor2ego"),
        ego2global=pose(info, "ego2global"),
        stamp_ns=0,
    )


def sweep(root: Path, row: dict, index: int) -> LidarSweep:
    points = read_cloud(root / row["lidar_path"])
    return LidarSweep(
        points=points, lidar2ego=pose(row, "lidar2ego"), ego2global=pose(row, "ego2global"), stamp_ns=-index
    )


def recorded_augs(golden: dict[str, np.ndarray], mode: str) -> tuple[dict[str, ImageAug], BevAug]:
    """The draws that the genuine pipeline made: scale, W, H, x0, y0, x1, y1, mirror, degrees for each camera."""
    augs = {}
    for name, (scale, width, height, x0, y0, _, _, mirror, degrees) in zip(
        CAMERA_ORDER, golden[f"{mode}.aug"], strict=True
    ):
        augs[name] = ImageAug(
            scale=scale,
            resized=(int(width), int(height)),
            corner=(int(x0), int(y0)),
            mirror=bool(mirror),
            turn_degrees=degrees,
        )
    _, _, flip_x, flip_y = golden[f"{mode}.bda_sample"]
    return augs, BevAug(flip_x=bool(flip_x), flip_y=bool(flip_y))


@pytest.fixture(scope="module", params=["eval", "train"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def batch(frame: SensorFrame, golden: dict[str, np.ndarray], mode: str) -> Batch:
    generator = torch.Generator().manual_seed(SEEDS[mode])
    if mode == "eval":
        return prepare(frame, INPUTS, GRID, generator)
    augs, bev_aug = recorded_augs(golden, mode)
    return prepare(frame, INPUTS, GRID, generator, image_augs=augs, bev_aug=bev_aug)


def test_the_fixed_augmentation_of_test_time_is_the_recorded_one(golden: dict[str, np.ndarray]) -> None:
    recorded, bev_aug = recorded_augs(golden, "eval")
    assert bev_aug == BevAug()
    for aug in recorded.values():
        assert aug == fit_image((900, 1600), INPUTS.image_size)


def test_pictures(batch: Batch, golden: dict[str, np.ndarray], mode: str) -> None:
    images = batch.images_BTNCHW[0]
    ours = torch.stack([images[0, 0], images[1, 0], images[0, 4]]).numpy()
    np.testing.assert_array_equal(ours, golden[f"{mode}.imgs"])


def test_calibration_and_augmentation_matrices(batch: Batch, golden: dict[str, np.ndarray], mode: str) -> None:
    aug = batch.image_aug_BTN44[0].reshape(12, 4, 4).numpy()
    np.testing.assert_allclose(aug[:, :3, :3], golden[f"{mode}.post_rots"], rtol=0, atol=2e-8)
    np.testing.assert_allclose(aug[:, :3, 3], golden[f"{mode}.post_trans"], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(batch.intrinsics_BTN33[0].reshape(12, 3, 3).numpy(), golden[f"{mode}.intrins"])
    np.testing.assert_array_equal(batch.bev_aug_B44[0, :3, :3].numpy(), golden[f"{mode}.bda"])


def test_poses(frame: SensorFrame, batch: Batch, golden: dict[str, np.ndarray], mode: str) -> None:
    cameras = (*frame.cameras, *frame.camera_history[0])
    ego2global = np.stack([c.ego2global for c in cameras]).astype(np.float32)
    cam2ego = np.stack([c.cam2ego for c in cameras]).astype(np.float32)
    np.testing.assert_array_equal(ego2global, golden[f"{mode}.ego2global"])
    np.testing.assert_allclose(cam2ego, golden[f"{mode}.sensor2ego"], rtol=0, atol=1e-6)
    recorded_ego, recorded_cam = (golden[f"{mode}.{k}"].astype(np.float64) for k in ("ego2global", "sensor2ego"))
    expected = np.linalg.inv(recorded_ego[0]) @ recorded_ego @ recorded_cam
    ours = batch.cam2keyego_BTN44[0].reshape(12, 4, 4).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)
    exact = prepare(frame, replace(INPUTS, float32_poses=False), GRID).cam2keyego_BTN44[0].reshape(12, 4, 4).numpy()
    assert 1e-6 < np.abs(exact - ours).max() < 2e-4


def test_depth_maps(batch: Batch, golden: dict[str, np.ndarray], mode: str) -> None:
    ours, recorded = batch.depth_BNHW[0].numpy(), golden[f"{mode}.sparse_depth"]
    assert (recorded > 0).sum() == {"eval": 7341, "train": 7327}[mode]
    np.testing.assert_array_equal(ours > 0, recorded > 0)
    differs = ours != recorded
    assert differs.sum() == SHARED_NEAREST_PIXELS
    assert (ours[differs] < recorded[differs]).all()


def test_fused_cloud_before_the_range_filter(frame: SensorFrame, golden: dict[str, np.ndarray], mode: str) -> None:
    sweeps = chosen_sweeps(frame.lidar, frame.lidar_history, INPUTS)
    points = torch.cat([sweep_in_key_lidar(s, frame.lidar, float32_poses=True) for s in sweeps])
    generator = torch.Generator().manual_seed(SEEDS[mode])
    thinned = thin_rings(points, 16, 0.2, generator)
    assert len(thinned) == golden[f"{mode}.n_fused"]
    np.testing.assert_array_equal(thinned[::16].numpy(), golden[f"{mode}.fused_points_lidar_frame_every16"])
    exact = torch.cat([sweep_in_key_lidar(s, frame.lidar, float32_poses=False) for s in sweeps])
    assert 1e-5 < (exact - points).abs().max() < 4e-4


def test_cloud(batch: Batch, golden: dict[str, np.ndarray], mode: str) -> None:
    (points,) = batch.points
    assert len(points) == golden[f"{mode}.n_points"]
    np.testing.assert_array_equal(points[::8].numpy(), golden[f"{mode}.points_every8"])


@pytest.mark.parametrize(("name", "key"), [("voxel_semantics", "semantics"), ("mask_camera", "mask_camera")])
def test_labels_are_mirrored_with_the_space(
    folder: Path, golden: dict[str, np.ndarray], mode: str, name: str, key: str
) -> None:
    _, bev_aug = recorded_augs(golden, mode)
    with np.load(folder / "pipeline_input" / "gts" / "labels.npz") as labels:
        volume = bev_aug.move_volume(labels[key], OCC3D_GRID, outside=255)
    np.testing.assert_array_equal(volume[:, :, 3], golden[f"{mode}.{name}_slice_z3"])


def test_seg_maps(folder: Path, golden: dict[str, np.ndarray], mode: str) -> None:
    augs, _ = recorded_augs(golden, mode)
    for index, name in enumerate(CAMERA_ORDER):
        stored = np.load(folder / "pipeline_input" / "imgseg" / "samples" / name / "im0.npy")
        ours = transform_seg_map(stored, augs[name], INPUTS.image_size)
        np.testing.assert_array_equal(ours, golden[f"{mode}.segs"][index])

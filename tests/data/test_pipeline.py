"""The input pipeline's rules and properties, on a tiny data set made here."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes_tree import Tree
from torch.utils.data import DataLoader, Dataset

from fusionocc_core.data import pipeline
from fusionocc_core.data.augmentation import BevAug, fit_image
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.pipeline import collate, prepare
from fusionocc_core.data.points import depth_maps, in_range, thin_rings
from fusionocc_core.geometry import apply, inverse, rotation_from_yaw, transform
from fusionocc_core.grids import OCC3D_GRID, SURROUNDOCC_GRID
from fusionocc_core.structures import Batch, CameraImage, InputConfig, LidarSweep, SensorFrame

INPUTS = InputConfig(image_size=(64, 128), camera_history=1, lidar_history=2)
FIELDS = ("images_BTNCHW", "intrinsics_BTN33", "image_aug_BTN44", "cam2keyego_BTN44", "bev_aug_B44", "depth_BNHW")


@pytest.fixture(scope="module")
def frames(tree: Tree) -> NuScenesFrames:
    return NuScenesFrames(tree.root, camera_history=1, lidar_history=7)


@pytest.fixture(scope="module")
def frame(frames: NuScenesFrames) -> SensorFrame:
    return frames[3]


def assert_equal(a: Batch, b: Batch) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert len(a.points) == len(b.points)
    assert all(torch.equal(p, q) for p, q in zip(a.points, b.points, strict=True))


def test_shapes_and_types(frame: SensorFrame) -> None:
    batch = prepare(frame, INPUTS, OCC3D_GRID)
    assert batch.images_BTNCHW.shape == (1, 2, 6, 3, 64, 128)
    assert batch.depth_BNHW.shape == (1, 6, 64, 128)
    assert batch.points[0].shape[1] == 5
    assert {getattr(batch, name).dtype for name in FIELDS} == {torch.float32}
    assert (batch.depth_BNHW > 0).sum() > 300


def test_the_same_frame_gives_the_same_batch(frame: SensorFrame) -> None:
    inputs = replace(INPUTS, thin_rings_up_to=16)
    assert_equal(prepare(frame, inputs, OCC3D_GRID), prepare(frame, inputs, OCC3D_GRID))
    seeded = [prepare(frame, inputs, OCC3D_GRID, torch.Generator().manual_seed(s)).points[0] for s in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0][:100], seeded[2][:100])


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_way_of_other_devices_gives_the_same_batch(frame: SensorFrame, order: str) -> None:
    numbered = torch.device("cpu", 0)  # taken for another device than "cpu"
    inputs = replace(INPUTS, thin_rings_up_to=16, channel_order=order, remembered=1)
    here = prepare(frame, inputs, OCC3D_GRID, bev_aug=BevAug(flip_y=True))
    there = prepare(frame, inputs, OCC3D_GRID, bev_aug=BevAug(flip_y=True), device=numbered)
    assert_equal(here, there)
    assert_equal(here.earlier[0], there.earlier[0])
    blind = replace(frame, lidar=None, lidar_history=())
    assert_equal(prepare(blind, INPUTS, OCC3D_GRID), prepare(blind, INPUTS, OCC3D_GRID, device=numbered))


@pytest.mark.parametrize("resampling", ["pillow", "opencv"])
def test_earlier_pictures_follow_newest_first(frames: NuScenesFrames, resampling: str) -> None:
    inputs = replace(INPUTS, resampling=resampling)
    now, before = (prepare(frames[i], inputs, OCC3D_GRID) for i in (3, 2))
    assert torch.equal(now.images_BTNCHW[:, 1], before.images_BTNCHW[:, 0])
    global2ego = inverse(frames[3].ego2global)
    expected = np.stack([global2ego @ c.ego2global @ c.cam2ego for c in frames[2].cameras])
    np.testing.assert_allclose(now.cam2keyego_BTN44[0, 1].numpy(), expected, atol=1e-5)


def test_at_the_start_of_a_scene_the_current_pictures_fill_the_gap(frames: NuScenesFrames) -> None:
    batch = prepare(frames[0], INPUTS, OCC3D_GRID)
    assert torch.equal(batch.images_BTNCHW[:, 1], batch.images_BTNCHW[:, 0])
    assert torch.equal(batch.cam2keyego_BTN44[:, 1], batch.cam2keyego_BTN44[:, 0])


def test_a_camera_missing_earlier_is_filled_alone(frame: SensorFrame) -> None:
    earlier = tuple(c for c in frame.camera_history[0] if c.name != "CAM_BACK")
    whole = prepare(frame, INPUTS, OCC3D_GRID)
    batch = prepare(replace(frame, camera_history=(earlier,)), INPUTS, OCC3D_GRID)
    back = [c.name for c in frame.cameras].index("CAM_BACK")
    assert torch.equal(batch.images_BTNCHW[0, 1, back], whole.images_BTNCHW[0, 0, back])
    assert torch.equal(batch.cam2keyego_BTN44[0, 1, back], whole.cam2keyego_BTN44[0, 0, back])
    others = [n for n in range(6) if n != back]
    assert torch.equal(batch.images_BTNCHW[0, 1, others], whole.images_BTNCHW[0, 1, others])


def test_key_pose_of_the_first_camera(frame: SensorFrame) -> None:
    batch = prepare(frame, replace(INPUTS, key_pose="first_camera"), OCC3D_GRID)
    first = frame.cameras[0]
    np.testing.assert_allclose(batch.cam2keyego_BTN44[0, 0, 0].numpy(), first.cam2ego, atol=1e-6)
    by_reference = prepare(frame, INPUTS, OCC3D_GRID).cam2keyego_BTN44[0, 0, 0].numpy()
    assert np.abs(by_reference - first.cam2ego).max() > 0.05


def test_which_sweeps_make_the_cloud(frames: NuScenesFrames) -> None:
    everything = replace(OCC3D_GRID, lower=(-80.0, -80.0, -80.0), upper=(80.0, 80.0, 80.0))
    per_sweep = len(frames[0].lidar.points)

    def count(index: int, **options: object) -> int:
        return len(prepare(frames[index], replace(INPUTS, lidar_history=3, **options), everything).points[0])

    assert count(3) == 4 * per_sweep
    assert count(1) == 2 * per_sweep
    assert count(0) == per_sweep
    assert count(3, include_current_sweep=False) == 3 * per_sweep
    assert count(0, include_current_sweep=False) == 0
    assert count(0, include_current_sweep=False, repeat_current_sweep=True) == 3 * per_sweep
    assert count(1, include_current_sweep=False, repeat_current_sweep=True) == 3 * per_sweep
    start = prepare(
        frames[0], replace(INPUTS, include_current_sweep=False, repeat_current_sweep=True), everything
    ).points[0]
    assert torch.allclose(start[:per_sweep], start[per_sweep:], atol=1e-5)


def test_earlier_points_are_where_they_were_in_the_world(frame: SensorFrame) -> None:
    everything = replace(OCC3D_GRID, lower=(-80.0, -80.0, -80.0), upper=(80.0, 80.0, 80.0))
    points = prepare(frame, INPUTS, everything).points[0].numpy().astype(np.float64)
    in_global = apply(frame.ego2global, points[:, :3])
    sweeps = (frame.lidar, *frame.lidar_history[:2])
    expected = [apply(s.ego2global @ s.lidar2ego, s.points[:, :3].astype(np.float64)) for s in sweeps]
    np.testing.assert_allclose(in_global, np.concatenate(expected), atol=2e-5)
    np.testing.assert_array_equal(points[:, 3:], np.concatenate([s.points[:, 3:5] for s in sweeps]))


def test_a_sweep_away_from_the_reference_time_is_moved(frame: SensorFrame) -> None:
    step = transform(rotation_from_yaw(0.1), [1.0, 0.5, 0.0])
    moved = replace(frame, ego2global=frame.ego2global @ step)
    points = prepare(frame, replace(INPUTS, lidar_history=0), OCC3D_GRID).points[0].numpy()
    other = prepare(moved, replace(INPUTS, lidar_history=0), OCC3D_GRID).points[0].numpy()
    back = apply(step, other[:, :3])
    nearest = np.abs(back[:, None, :] - points[None, :, :3]).max(axis=2).min(axis=1)
    assert np.median(nearest) < 1e-4


def test_the_sixth_column_stays_outside(frame: SensorFrame) -> None:
    points = np.concatenate([frame.lidar.points, np.full((len(frame.lidar.points), 1), -0.05, np.float32)], axis=1)
    batch = prepare(replace(frame, lidar=replace(frame.lidar, points=points)), INPUTS, OCC3D_GRID)
    assert_equal(batch, prepare(frame, INPUTS, OCC3D_GRID))


def test_thinning_spares_the_upper_rings() -> None:
    rings = torch.arange(32, dtype=torch.float32).repeat(2000)
    points = torch.stack([rings, rings, rings, rings, rings], dim=1)
    kept = thin_rings(points, 16, 0.2, torch.Generator().manual_seed(3))
    assert (kept[:, 4] > 16).sum() == 15 * 2000
    share = (kept[:, 4] <= 16).sum() / (17 * 2000)
    assert 0.19 < share < 0.21
    assert len(thin_rings(points, 16, 1.0, torch.Generator())) == len(points)
    assert len(thin_rings(points, -1, 0.2, torch.Generator())) == len(points)
    for keep in (0.0, 0.25, 1.5):
        with pytest.raises(ValueError, match="tenths"):
            replace(INPUTS, thin_keep=keep)


def test_the_range_leaves_out_its_border() -> None:
    x = torch.tensor([-40.0, -39.9995, -39.998, 0.0, 39.998, 39.9995, 40.0])
    points = torch.stack([x, torch.zeros(7), torch.zeros(7)], dim=1)
    assert in_range(points, OCC3D_GRID, 1e-3).tolist() == [False, False, True, True, True, False, False]
    assert in_range(points, OCC3D_GRID, 0.0).tolist() == [False, True, True, True, True, True, False]


def looking_ahead(image_size: tuple[int, int]) -> CameraImage:
    optical2ego = transform([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], np.zeros(3))
    return CameraImage(
        name="CAM",
        image=np.zeros((*image_size, 3), np.uint8),
        intrinsics=np.array([[100.0, 0.0, 64.0], [0.0, 100.0, 32.0], [0.0, 0.0, 1.0]]),
        cam2ego=optical2ego,
        ego2global=np.eye(4),
        stamp_ns=0,
    )


def test_the_depth_map_holds_the_nearest_point_of_each_pixel() -> None:
    xyz = [
        (20.0, 0.0, 0.0),  # the same pixel, three depths
        (5.0, 0.0, 0.0),
        (10.0, 0.0, 0.0),
        (0.5, 0.0, 0.1),  # too near
        (45.0, 0.0, 1.0),  # as far as the range's open end
        (-5.0, 0.3, 0.0),  # behind
        (10.0, 6.45, 0.0),  # u = -0.5: rounds to the even pixel 0
        (10.0, -6.35, 0.0),  # u = 127.5: rounds to the even pixel 128, outside
        (1.0, 0.0, 0.32),  # v = 0, at the range's closed start
    ]
    points = np.zeros((len(xyz), 5), np.float32)
    points[:, :3] = xyz
    sweep = LidarSweep(points=points, lidar2ego=np.eye(4), ego2global=np.eye(4), stamp_ns=0)
    camera = looking_ahead((64, 128))
    depth = depth_maps(sweep, [camera], torch.eye(4)[None], INPUTS)[0]
    rows, columns = depth.nonzero(as_tuple=True)
    found = {(int(r), int(c)): round(float(depth[r, c]), 4) for r, c in zip(rows, columns, strict=True)}
    assert found == {(32, 64): 5.0, (32, 0): 10.0, (0, 64): 1.0}


def test_the_depth_map_follows_the_pictures_augmentation(frame: SensorFrame) -> None:
    augs = {c.name: replace(fit_image((90, 160), INPUTS.image_size), mirror=True) for c in frame.cameras}
    plain, mirrored = (prepare(frame, INPUTS, OCC3D_GRID, image_augs=a) for a in (None, augs))
    # Column u becomes width - u, so that column 0 leaves the picture.
    shifted = mirrored.depth_BNHW.flip(-1).roll(1, -1)[..., 1:]
    assert (plain.depth_BNHW[..., 1:] != shifted).float().mean() < 1e-3


def test_mirrored_space_moves_points_and_nothing_that_is_seen(frame: SensorFrame) -> None:
    plain, mirrored = (prepare(frame, INPUTS, OCC3D_GRID, bev_aug=a) for a in (None, BevAug(flip_y=True)))
    assert torch.equal(mirrored.points[0], plain.points[0] * torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0]))
    assert mirrored.bev_aug_B44[0].diagonal().tolist() == [1.0, -1.0, 1.0, 1.0]
    for name in ("images_BTNCHW", "cam2keyego_BTN44", "depth_BNHW", "image_aug_BTN44"):
        assert torch.equal(getattr(mirrored, name), getattr(plain, name))


def test_pictures_of_different_sizes(frame: SensorFrame) -> None:
    large = replace(
        frame.cameras[2],
        image=np.repeat(np.repeat(frame.cameras[2].image, 2, axis=0), 2, axis=1),
        intrinsics=np.diag([2.0, 2.0, 1.0]) @ frame.cameras[2].intrinsics,
    )
    cameras = (*frame.cameras[:2], large, *frame.cameras[3:])
    mixed = prepare(replace(frame, cameras=cameras, camera_history=()), INPUTS, OCC3D_GRID)
    plain = prepare(frame, INPUTS, OCC3D_GRID)
    assert mixed.image_aug_BTN44[0, 0, 2, 0, 0] == plain.image_aug_BTN44[0, 0, 2, 0, 0] / 2
    same = (mixed.depth_BNHW == plain.depth_BNHW).float().mean()
    assert same > 0.9999
    assert (mixed.images_BTNCHW[0, 0, 2] - plain.images_BTNCHW[0, 0, 2]).abs().mean() < 0.1
    with pytest.raises(ValueError, match=f"camera {large.name}: the picture of 1 keyframes ago is 160x90"):
        prepare(replace(frame, cameras=cameras), INPUTS, OCC3D_GRID)


def test_numbers_of_cameras(frame: SensorFrame) -> None:
    four = replace(frame, cameras=frame.cameras[:4])
    assert prepare(four, INPUTS, OCC3D_GRID).images_BTNCHW.shape[2] == 4
    with pytest.raises(
        ValueError, match=r"has 6 cameras \(CAM_FRONT_LEFT, .*at most 5: name those .*--cameras`, camera_names of"
    ):
        prepare(frame, replace(INPUTS, num_cameras=5), OCC3D_GRID)
    with pytest.raises(ValueError, match="has no camera; the network takes 1 to 6"):
        prepare(replace(frame, cameras=()), INPUTS, OCC3D_GRID)


def test_without_lidar_depth_and_cloud_are_empty_and_that_is_said_once(
    frame: SensorFrame, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_without_lidar_logged", False)
    blind = replace(frame, lidar=None)
    with caplog.at_level(logging.WARNING):
        batches = [prepare(blind, INPUTS, OCC3D_GRID) for _ in range(2)]
    assert batches[0].points[0].shape == (0, 5)
    assert not batches[0].depth_BNHW.any()
    assert [r.message for r in caplog.records if "no LiDAR sweep" in r.message] == [caplog.records[0].message]


def test_what_does_not_fit_is_refused(frame: SensorFrame) -> None:
    with pytest.raises(ValueError, match="brings sensors to the frame 'ego'; expected a grid there"):
        prepare(frame, INPUTS, SURROUNDOCC_GRID)
    augs = {"CAM_FRONT_LEFT": fit_image((90, 160), (64, 128))}
    with pytest.raises(ValueError, match="image_augs: nothing given for CAM_FRONT, "):
        prepare(frame, INPUTS, OCC3D_GRID, image_augs=augs)


def test_read_only_and_reversed_arrays_as_messages_give_them(frame: SensorFrame) -> None:
    cameras = []
    for camera in frame.cameras:
        image = np.ascontiguousarray(camera.image[..., ::-1])[..., ::-1]
        image.flags.writeable = False
        cameras.append(replace(camera, image=image))
    points = frame.lidar.points.copy()
    points.flags.writeable = False
    lidar = replace(frame.lidar, points=points)
    for resampling in ("pillow", "opencv"):
        inputs = replace(INPUTS, resampling=resampling)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            batch = prepare(replace(frame, cameras=tuple(cameras), lidar=lidar), inputs, OCC3D_GRID)
        assert_equal(batch, prepare(frame, inputs, OCC3D_GRID))


def test_collate_equals_singles_side_by_side(frames: NuScenesFrames) -> None:
    singles = [prepare(frames[i], INPUTS, OCC3D_GRID) for i in (1, 3)]
    both = collate(singles)
    for n, single in enumerate(singles):
        for name in FIELDS:
            assert torch.equal(getattr(both, name)[n : n + 1], getattr(single, name))
        assert torch.equal(both.points[n], single.points[0])
    four = prepare(replace(frames[0], cameras=frames[0].cameras[:4]), INPUTS, OCC3D_GRID)
    with pytest.raises(ValueError, match="differ between the samples"):
        collate([singles[0], four])
    with pytest.raises(ValueError, match="no batch"):
        collate([])


class Prepared(Dataset):
    def __init__(self, frames: NuScenesFrames) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Batch:
        return prepare(self.frames[index], INPUTS, OCC3D_GRID)


def test_loader_workers_give_the_same(frames: NuScenesFrames) -> None:
    loader = DataLoader(Prepared(frames), batch_size=2, num_workers=2, collate_fn=collate)
    batches = list(loader)
    assert [len(batch.points) for batch in batches] == [2, 2, 1]
    assert_equal(batches[1], collate([prepare(frames[i], INPUTS, OCC3D_GRID) for i in (2, 3)]))


def moved(frame: SensorFrame, global2elsewhere: np.ndarray) -> SensorFrame:
    def move(sensor: CameraImage | LidarSweep) -> CameraImage | LidarSweep:
        return replace(sensor, ego2global=global2elsewhere @ sensor.ego2global)

    return replace(
        frame,
        ego2global=global2elsewhere @ frame.ego2global,
        cameras=tuple(move(c) for c in frame.cameras),
        lidar=move(frame.lidar),
        camera_history=tuple(tuple(move(c) for c in group) for group in frame.camera_history),
        lidar_history=tuple(move(s) for s in frame.lidar_history),
    )


@settings(deadline=None, max_examples=15)
@given(
    yaw=st.floats(-3.2, 3.2),
    shift=st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5), st.floats(-1e3, 1e3)),
    key_pose=st.sampled_from(["reference", "first_camera"]),
)
def test_moving_ego_and_world_together_changes_nothing(
    frame: SensorFrame, yaw: float, shift: tuple[float, float, float], key_pose: str
) -> None:
    inputs = replace(INPUTS, image_size=(16, 32), key_pose=key_pose)
    here = prepare(frame, inputs, OCC3D_GRID)
    there = prepare(moved(frame, transform(rotation_from_yaw(yaw), shift)), inputs, OCC3D_GRID)
    assert torch.equal(here.images_BTNCHW, there.images_BTNCHW)
    assert torch.allclose(here.cam2keyego_BTN44, there.cam2keyego_BTN44, atol=1e-5)
    assert here.points[0].shape == there.points[0].shape
    assert torch.allclose(here.points[0], there.points[0], atol=2e-4)
    # A point on the border between two pixels may change sides.
    assert ((here.depth_BNHW - there.depth_BNHW).abs() > 1e-3).sum() <= 4


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(6)))
def test_permuting_cameras_permutes_their_tensors(frame: SensorFrame, order: list[int]) -> None:
    inputs = replace(INPUTS, image_size=(16, 32))
    plain = prepare(frame, inputs, OCC3D_GRID)
    permuted = prepare(replace(frame, cameras=tuple(frame.cameras[n] for n in order)), inputs, OCC3D_GRID)
    for name in ("images_BTNCHW", "intrinsics_BTN33", "image_aug_BTN44", "cam2keyego_BTN44"):
        assert torch.equal(getattr(permuted, name), getattr(plain, name)[:, :, order])
    assert torch.equal(permuted.depth_BNHW, plain.depth_BNHW[:, order])
    assert torch.equal(permuted.points[0], plain.points[0])

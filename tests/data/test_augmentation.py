"""Turning, scaling and mirroring the space around the vehicle: points, voxels, masks and pixels stay together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes_tree import Tree

from fusionocc_core.data.augmentation import AugmentationConfig, BevAug, draw_bev_aug
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.geometry import apply
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, VoxelGrid
from fusionocc_core.layers.view_transform import cameras_at, frustum_points
from fusionocc_core.structures import InputConfig, SensorFrame

GRID = VoxelGrid(frame="ego", lower=(-8.0, -8.0, -1.0), upper=(8.0, 8.0, 5.4), voxel_size=(0.4, 0.4, 0.4))
ASKEW = VoxelGrid(frame="ego", lower=(-4.0, -8.0, -1.0), upper=(8.0, 4.8, 3.0), voxel_size=(0.4, 0.8, 0.5))
"""Neither symmetric nor of cubes."""
UNKNOWN = OCC3D_LABELS.unknown
INPUTS = InputConfig(image_size=(64, 128), depth_range=(1.0, 60.0))

AUGS = st.builds(
    BevAug,
    flip_x=st.booleans(),
    flip_y=st.booleans(),
    turn_degrees=st.floats(-180.0, 180.0),
    scale=st.floats(0.9, 1.1),
)


@pytest.fixture(scope="module")
def frame(tree: Tree) -> SensorFrame:
    return NuScenesFrames(tree.root)[3]


def volume(grid: VoxelGrid, seed: int = 0) -> np.ndarray:
    """A world of voxels: free space, a floor, some blocks, single voxels."""
    rng = np.random.default_rng(seed)
    labels = np.full(grid.shape, OCC3D_LABELS.free, np.uint8)
    labels[:, :, 1:3] = 11
    for corner in rng.integers(0, grid.shape, (12, 3)):
        x, y, z = corner
        labels[x : x + 6, y : y + 5, z : z + 4] = rng.integers(0, 17)
    spots = labels.size // 400
    labels[tuple(rng.integers(0, grid.shape, (spots, 3)).T)] = rng.integers(0, 17, spots)
    return labels


@pytest.mark.parametrize("grid", [GRID, ASKEW])
def test_identity_is_exact(grid: VoxelGrid) -> None:
    labels = volume(grid)
    np.testing.assert_array_equal(BevAug().move_volume(labels, grid, outside=UNKNOWN), labels)
    np.testing.assert_array_equal(BevAug().matrix(), np.eye(4))
    assert not np.signbit(BevAug(flip_x=True).matrix()[np.array(BevAug(flip_x=True).matrix()) == 0]).any()


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
@pytest.mark.parametrize(("flip_x", "flip_y"), [(False, False), (True, False), (False, True), (True, True)])
def test_quarter_turns_and_mirrors_are_exact(quarters: int, flip_x: bool, flip_y: bool) -> None:
    labels = volume(GRID)
    aug = BevAug(flip_x=flip_x, flip_y=flip_y, turn_degrees=90.0 * quarters)
    expected = np.rot90(labels, quarters)[:: -1 if flip_x else 1, :: -1 if flip_y else 1]
    np.testing.assert_array_equal(aug.move_volume(labels, GRID, outside=UNKNOWN), expected)
    indices = np.argwhere(labels != OCC3D_LABELS.free)
    moved = GRID.indices(apply(aug.matrix(), GRID.centers(indices)))
    np.testing.assert_array_equal(expected[tuple(moved.T)], labels[tuple(indices.T)])


def test_a_mirror_of_a_range_that_is_not_symmetric_leaves_part_of_it_unknown() -> None:
    labels = volume(ASKEW)
    moved = BevAug(flip_x=True).move_volume(labels, ASKEW, outside=UNKNOWN)
    np.testing.assert_array_equal(moved[:20], labels[:20][::-1])  # x from -4 to 4 m
    assert (moved[20:] == UNKNOWN).all()


@settings(deadline=None, max_examples=25)
@given(aug=AUGS, grid=st.sampled_from([GRID, ASKEW]))
def test_voxels_that_hold_points_still_do(aug: BevAug, grid: VoxelGrid) -> None:
    """Both ways, to the nearest voxel: that is half a voxel along each axis before the move, and no more."""
    labels = volume(grid)
    moved = aug.move_volume(labels, grid, outside=UNKNOWN)
    aug2ego = np.linalg.inv(aug.matrix())
    half = np.array(grid.voxel_size) / 2 + 1e-9
    # Every voxel of the result: its centre comes from a voxel of that class, whose points are within half a voxel.
    targets = np.argwhere(moved != UNKNOWN)
    before = apply(aug2ego, grid.centers(targets))
    sources = grid.indices(before)
    assert grid.contains(sources).all()
    np.testing.assert_array_equal(moved[tuple(targets.T)], labels[tuple(sources.T)])
    assert (np.abs(grid.centers(sources) - before) <= half).all()
    # What is unknown comes from outside.
    outside = grid.indices(apply(aug2ego, grid.centers(np.argwhere(moved == UNKNOWN))))
    assert not grid.contains(outside).any()
    # Every point of the world: inside a body, more than two voxels below its surface, the class is exact.
    rng = np.random.default_rng(1)
    points = rng.uniform(grid.lower, grid.upper, (2000, 3))
    deep = points[[same_around(labels, index) for index in grid.indices(points)]]
    after = grid.indices(apply(aug.matrix(), deep))
    inside = grid.contains(after)
    assert inside.sum() > 10
    found = moved[tuple(after[inside].T)]
    expected = labels[tuple(grid.indices(deep[inside]).T)]
    assert ((found == expected) | (found == UNKNOWN)).all()
    assert (found == expected).mean() > 0.5


def same_around(labels: np.ndarray, index: np.ndarray) -> bool:
    """Up to two voxels away all are of one class (one would do for cubes)."""
    window = tuple(slice(max(0, i - 2), i + 3) for i in index)
    return bool((labels[window] == labels[tuple(index)]).all())


@settings(deadline=None, max_examples=20)
@given(aug=AUGS)
def test_masks_follow_labels(aug: BevAug) -> None:
    labels = volume(GRID)
    mask = labels == 11
    moved = aug.move_volume(mask, GRID, outside=False)
    assert moved.dtype == np.bool_
    np.testing.assert_array_equal(moved, aug.move_volume(labels, GRID, outside=UNKNOWN) == 11)


@settings(deadline=None, max_examples=6)
@given(aug=AUGS)
def test_points_land_on_the_same_pixels_and_lift_to_the_same_place(frame: SensorFrame, aug: BevAug) -> None:
    """From the augmented cloud back through bev_aug and cam2keyego: pixel and depth are those of the depth map."""
    everything = replace(OCC3D_GRID, lower=(-80.0, -80.0, -80.0), upper=(80.0, 80.0, 80.0))
    plain, moved = (prepare(frame, INPUTS, everything, bev_aug=a) for a in (None, aug))
    for name in ("images_BTNCHW", "cam2keyego_BTN44", "depth_BNHW", "image_aug_BTN44", "intrinsics_BTN33"):
        assert torch.equal(getattr(moved, name), getattr(plain, name))
    torch.testing.assert_close(moved.bev_aug_B44[0].double(), torch.tensor(aug.matrix()), atol=1e-6, rtol=0)
    assert torch.equal(moved.points[0][:, 3:], plain.points[0][:, 3:])
    cameras = cameras_at(moved, 0)
    seen = 0
    for n in range(6):
        camera2aug = (moved.bev_aug_B44[0] @ cameras.cam2keyego_BN44[0, n]).double()
        homogeneous = torch.cat([moved.points[0][:, :3], torch.ones(len(moved.points[0]), 1)], dim=1).double()
        in_camera = (torch.linalg.inv(camera2aug) @ homogeneous.T)[:3]
        pixels = cameras.intrinsics_BN33[0, n].double() @ in_camera
        uvd = torch.stack([pixels[0] / pixels[2], pixels[1] / pixels[2], pixels[2], torch.ones_like(pixels[0])])
        uvd = (cameras.image_aug_BN44[0, n].double() @ uvd)[:3].T
        depth_HW = moved.depth_BNHW[0, n]
        nearest = uvd.round().long()
        inside = (
            (uvd[:, 2] > 1) & (nearest[:, :2] >= 0).all(dim=1) & (nearest[:, :2] < torch.tensor([128, 64])).all(dim=1)
        )
        for index in inside.nonzero()[:, 0].tolist():
            u, v, depth = uvd[index].tolist()
            if abs(float(depth_HW[round(v), round(u)]) - depth) > 1e-2:
                continue  # another point lies nearer in this pixel
            seen += 1
            sample = torch.tensor([[[[u, v, depth]]]])
            lifted = frustum_points(sample, cameras)[0, n, 0, 0, 0]
            torch.testing.assert_close(lifted, moved.points[0][index, :3], atol=2e-3, rtol=0)
    assert seen > 100


def test_the_cloud_fills_the_grid_after_the_move(frame: SensorFrame) -> None:
    """What a turn brings into the range is kept, as at test time; what it takes out is dropped."""
    grid = replace(OCC3D_GRID, lower=(-8.0, -20.0, -80.0), upper=(8.0, 20.0, 80.0))
    aug = BevAug(turn_degrees=90.0)
    wide = replace(grid, lower=(-20.0, -8.0, -80.0), upper=(20.0, 8.0, 80.0))
    turned = prepare(frame, INPUTS, grid, bev_aug=aug).points[0]
    expected = prepare(frame, INPUTS, wide).points[0]
    expected = torch.stack([-expected[:, 1], expected[:, 0], *expected[:, 2:].T], dim=1)
    torch.testing.assert_close(turned, expected, atol=1e-6, rtol=0)


def test_draws() -> None:
    """Without turns and scales no number more is drawn than ever."""
    config = AugmentationConfig(bev_turn_degrees=(-20.0, 30.0), bev_scale=(0.9, 1.2))
    draws = [draw_bev_aug(config, torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert draws[3] == draw_bev_aug(config, torch.Generator().manual_seed(3))
    turns, scales = np.array([(d.turn_degrees, d.scale) for d in draws]).T
    assert -20 <= turns.min() < -17 < 27 < turns.max() <= 30
    assert 0.9 <= scales.min() < 0.92 < 1.18 < scales.max() <= 1.2
    assert abs(np.corrcoef(turns, scales)[0, 1]) < 0.2
    for seed in range(20):
        one, two = (torch.Generator().manual_seed(seed) for _ in range(2))
        flips = torch.rand(2, generator=one, dtype=torch.float64) < 0.5
        assert draw_bev_aug(AugmentationConfig(), two) == BevAug(flip_x=bool(flips[0]), flip_y=bool(flips[1]))
        assert torch.equal(one.get_state(), two.get_state())
        assert (draws[seed].flip_x, draws[seed].flip_y) == tuple(flips.tolist())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"bev_scale": (0.0, 1.0)}, "bev_scale.*positive"),
        ({"bev_scale": (1.1, 0.9)}, "the lower first"),
        ({"bev_turn_degrees": (0.0, float("nan"))}, "bev_turn_degrees"),
        ({"turn_degrees": (5.0, -5.0)}, "AugmentationConfig.turn_degrees"),
    ],
)
def test_ranges_that_are_none(wrong: dict[str, tuple[float, float]], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AugmentationConfig(**wrong)
    with pytest.raises(ValueError, match="BevAug: scale=-1"):
        BevAug(scale=-1)

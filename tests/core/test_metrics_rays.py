"""Ray casting, RayIoU and RayPQ against recorded values of the reference and a caster that does one ray at a time."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.geometry import rotation_from_yaw, transform
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, VoxelGrid
from fusionocc_core.metrics.ray_iou import RayCounts, cast_pair, count_rays
from fusionocc_core.metrics.ray_pq import PanopticLabels, RayPanoptic, count_segments
from fusionocc_core.metrics.rays import Rays, cast_rays, make_rays, ray_directions, ray_origins
from fusionocc_core.metrics.voxels import mean_over_classes

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.baselines.ray_iou import walk

FREE = OCC3D_LABELS.free


@pytest.fixture(scope="module")
def recorded(goldens):
    return np.load(goldens / "metrics_rays.npz")


def one_ray(occupied, start, direction):
    """The walk of one ray, as the published algorithm has it: where it ends, flat, and how far that is."""
    last, distance = walk(occupied, start, direction)
    return np.ravel_multi_index(last, occupied.shape), distance


def test_directions_are_the_fan_of_the_reference():
    directions = ray_directions()
    assert directions.shape == (14040, 3)
    assert directions.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-6)
    pitches = np.rad2deg(np.arcsin(directions[::360, 2].astype(np.float64)))
    assert pitches[0] == pytest.approx(-45, abs=1e-4)
    assert pitches[9] == pytest.approx(-5.7106, abs=1e-3)
    assert pitches[-2] < np.rad2deg(0.21) <= pitches[-1]
    np.testing.assert_allclose(np.diff(pitches[8:]), np.diff(pitches[8:])[0], atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), density=st.sampled_from([0.0, 0.01, 0.1, 1.0]))
def test_all_rays_at_once_equal_one_ray_at_a_time(seed, density):
    rng = np.random.default_rng(seed)
    shape = (13, 9, 5)
    occupied = rng.random(shape) < density
    # Half of the rays start on edges and run along diagonals or axes: there the rule for ties decides.
    start = np.where(rng.random((60, 1)) < 0.5, rng.random((60, 3)), rng.integers(0, 2, (60, 3)) / 2) * (
        np.array(shape) - 0.1
    )
    direction = np.where(rng.random((60, 1)) < 0.5, rng.normal(size=(60, 3)), rng.integers(-1, 2, (60, 3)))
    direction = direction[(length := np.linalg.norm(direction, axis=1)) > 0] / length[length > 0, None]
    start = start[length > 0]
    hits = cast_rays(occupied, Rays(start=start, direction=direction), 0.5)
    expected = [one_ray(occupied, s, d) for s, d in zip(start.tolist(), direction.tolist(), strict=True)]
    np.testing.assert_array_equal(hits.voxel, [voxel for voxel, _ in expected])
    np.testing.assert_allclose(hits.distance, [0.5 * t for _, t in expected], atol=1e-9)


def test_rays_end_where_the_reference_says(recorded):
    origin = recorded["lidar_origins0"][0, int(recorded["one_origin_index"])]
    rays = make_rays(origin[None], OCC3D_GRID)
    for name, volume in (("gt", recorded["gt"][0]), ("pred", recorded["pred"][0])):
        hits = cast_rays(volume != FREE, rays, 0.4)
        np.testing.assert_array_equal(volume.ravel()[hits.voxel], recorded[f"one_{name}_label"])
        np.testing.assert_allclose(hits.distance, recorded[f"one_{name}_dist"], atol=2e-5)


def test_ray_iou_equals_the_reference(recorded):
    counts = RayCounts.zeros(OCC3D_LABELS)
    for n in range(2):
        origins = recorded[f"lidar_origins{n}"][0]
        counts = counts + count_rays(recorded["gt"][n], recorded["pred"][n], origins, OCC3D_GRID, OCC3D_LABELS)
    iou = counts.iou()
    np.testing.assert_allclose(iou[:, :FREE], recorded["iou_at_1_2_4"], atol=1e-6)
    means = [mean_over_classes(row, OCC3D_LABELS) for row in iou]
    np.testing.assert_allclose(means, [recorded[f"RayIoU@{t}"] for t in (1, 2, 4)], atol=1e-6)


def test_ray_pq_equals_the_reference(recorded):
    sums = RayPanoptic.zeros(OCC3D_LABELS)
    for n in range(2):
        truth = PanopticLabels(labels=recorded["gt"][n], instances=recorded["gt_inst"][n])
        said = PanopticLabels(labels=recorded["pred"][n], instances=recorded["pred_inst"][n])
        sums = sums + count_segments(truth, said, recorded[f"lidar_origins{n}"][0], OCC3D_GRID, OCC3D_LABELS)
    expected = [recorded[f"RayPQ@{t}"] for t in (1, 2, 4)]
    np.testing.assert_allclose(sums.ray_pq(OCC3D_LABELS), expected, atol=1e-6)


@pytest.mark.data
def test_recorded_scenes_of_fusionocc(shared):
    recorded = np.load(shared / "goldens" / "fusionocc" / "metrics.npz")
    np.testing.assert_array_equal(ray_directions(), recorded["ray.directions"])
    counts = RayCounts.zeros(OCC3D_LABELS)
    for n in range(3):
        arrays = (recorded[f"gt{n}"], recorded[f"pred{n}"], recorded[f"origins{n}"])
        counts = counts + count_rays(*arrays, OCC3D_GRID, OCC3D_LABELS)
    np.testing.assert_allclose(counts.iou()[:, :FREE], recorded["ray.iou_list_1_2_4"], atol=1e-6)
    hits = cast_rays(recorded["gt0"] != FREE, make_rays(recorded["origins0"], OCC3D_GRID), 0.4)
    label, distance = recorded["ray.gt0_label_dist"].T
    np.testing.assert_array_equal(recorded["gt0"].ravel()[hits.voxel], label)
    np.testing.assert_allclose(hits.distance, distance, atol=2e-5)


def wall(distance, label=15):
    """A wall across the grid ahead of the ego, one voxel thick."""
    volume = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    volume[round((distance + 40) / 0.4)] = label
    return volume


ORIGIN = np.array([[0.1, 0.1, 1.84]])


@pytest.mark.parametrize(("shift", "right"), [(0.0, (1, 1, 1)), (1.6, (0, 1, 1)), (2.8, (0, 0, 1)), (6.0, (0, 0, 0))])
def test_a_ray_is_right_within_the_threshold(shift, right):
    said = wall(10.0 + shift)
    pair = cast_pair(wall(10.0), said, ORIGIN, OCC3D_GRID, OCC3D_LABELS)
    # Some rays leave the grid before they meet the second wall; slanted ones may leave a voxel through its side.
    meet = said.ravel()[pair.prediction.voxel] == 15
    assert shift - 0.4 <= pair.error[meet].min() <= shift + 0.01
    counts = count_rays(wall(10.0), said, ORIGIN, OCC3D_GRID, OCC3D_LABELS)
    assert tuple(int(n > 0) for n in counts.right_TK[:, 15]) == right
    assert counts.truth_K[15] == len(pair.error)


def test_another_class_is_never_right_and_rays_without_truth_do_not_count():
    counts = count_rays(wall(10.0, 15), wall(10.0, 16), ORIGIN, OCC3D_GRID, OCC3D_LABELS)
    assert not counts.right_TK.any()
    assert counts.prediction_K[16] == counts.truth_K[15] > 0
    empty = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    nothing = count_rays(empty, wall(10.0), ORIGIN, OCC3D_GRID, OCC3D_LABELS)
    assert nothing.truth_K.sum() == nothing.prediction_K.sum() == 0
    assert np.isnan(nothing.iou()).all()
    assert np.isnan(mean_over_classes(nothing.iou()[0], OCC3D_LABELS))


def test_unknown_voxels_of_the_truth_let_rays_through():
    truth = wall(10.0)
    veil = truth.copy()
    veil[112] = OCC3D_LABELS.unknown
    plain = count_rays(truth, truth, ORIGIN, OCC3D_GRID, OCC3D_LABELS)
    veiled = count_rays(veil, truth, ORIGIN, OCC3D_GRID, OCC3D_LABELS)
    np.testing.assert_array_equal(plain.right_TK, veiled.right_TK)


def test_segments_of_few_rays_do_not_count():
    truth = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    truth[190, 100, 6] = 4
    nothing = PanopticLabels(labels=np.full_like(truth, FREE), instances=np.zeros_like(truth))
    some = PanopticLabels(labels=truth, instances=np.ones_like(truth))
    rays = len(cast_pair(truth, truth, ORIGIN, OCC3D_GRID, OCC3D_LABELS).error)
    assert 0 < rays < 10
    missed = count_segments(some, nothing, ORIGIN, OCC3D_GRID, OCC3D_LABELS)
    assert missed.missed_TK.sum() == 0
    found = count_segments(some, some, ORIGIN, OCC3D_GRID, OCC3D_LABELS)
    assert found.matched_TK[:, 4].tolist() == [1, 1, 1]
    np.testing.assert_allclose(found.ray_pq(OCC3D_LABELS), 1)


def test_origins_of_a_scene_follow_the_lidar():
    lidar2ego = transform(rotation_from_yaw(-np.pi / 2), [0.94, 0.0, 1.84])
    ego2global = np.stack(
        [
            transform(rotation_from_yaw(0.4), [600 + 4 * n * np.cos(0.4), 1600 + 4 * n * np.sin(0.4), 0])
            for n in range(30)
        ]
    )
    origins = ray_origins(ego2global @ lidar2ego, ego2global[10], OCC3D_GRID)
    assert len(origins) == 8
    np.testing.assert_allclose(origins[:, 1:], [[0.0, 1.84]] * 8, atol=1e-6)
    # Frames 1 to 19 lie within 39 m: 0.94 + 4 * (n - 10).
    np.testing.assert_allclose(origins[[0, -1], 0], [0.94 - 36, 0.94 + 36], atol=1e-6)
    moved = transform(rotation_from_yaw(1.1), [-50, 20, 3])
    np.testing.assert_allclose(
        ray_origins(moved @ ego2global @ lidar2ego, moved @ ego2global[10], OCC3D_GRID), origins, atol=1e-6
    )


def test_bad_origins_and_grids_are_refused():
    with pytest.raises(ValueError, match=r"41\.0.*outside the grid"):
        make_rays(np.array([[41.0, 0, 1]]), OCC3D_GRID)
    with pytest.raises(ValueError, match=r"\(O, 3\)"):
        make_rays(np.zeros(3), OCC3D_GRID)
    flat = VoxelGrid(frame="ego", lower=(-40, -40, -1), upper=(40, 40, 5.4), voxel_size=(0.4, 0.4, 0.8))
    with pytest.raises(ValueError, match="cubes"):
        make_rays(ORIGIN, flat)

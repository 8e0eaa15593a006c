"""Confusion matrices, IoUs, distance rings, F-score: recorded values, plain loops, sums over processes."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, SURROUNDOCC_GRID, LabelSet, VoxelGrid
from fusionocc_core.metrics import MASKS, OccupancyScore, OccupancyTruth
from fusionocc_core.metrics.surface import count_surface
from fusionocc_core.metrics.voxels import class_iou, count_voxels, counts_of_mask, geometric_iou, mean_over_classes
from fusionocc_core.structures import Occupancy

FREE = OCC3D_LABELS.free
SMALL_GRID = VoxelGrid(frame="ego", lower=(-4.0, -4.8, -1.0), upper=(4.0, 4.8, 1.0), voxel_size=(0.8, 0.8, 0.4))
SMALL_LABELS = LabelSet(
    name="small", names=("road", "car", "tree", "free"), colors=((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)), free=3
)
RINGS = (2.0, 4.0)


def occupancy(labels, grid=OCC3D_GRID, label_set=OCC3D_LABELS):
    return Occupancy(labels=labels, grid=grid, label_set=label_set, stamp_ns=0)


def small_pair(seed, masks=("camera", "lidar")):
    """A prediction and labels over the small grid, some of them unknown."""
    rng = np.random.default_rng(seed)
    shape = SMALL_GRID.shape
    labels = rng.choice([0, 1, 2, 3, 255], shape, p=[0.2, 0.2, 0.1, 0.4, 0.1]).astype(np.uint8)
    said = np.where(rng.random(shape) < 0.5, np.minimum(labels, 3), rng.integers(0, 4, shape)).astype(np.uint8)
    arrays = {f"mask_{m}": rng.random(shape) < 0.5 for m in masks}
    truth = OccupancyTruth(
        labels=labels, grid=SMALL_GRID, label_set=SMALL_LABELS, ray_origins=np.array([[0.1, 0.2, 0.3]]), **arrays
    )
    return occupancy(said, SMALL_GRID, SMALL_LABELS), truth


def small_score(**options):
    return OccupancyScore(SMALL_GRID, SMALL_LABELS, **{"ring_edges": RINGS, "rays": False, **options})


def recorded_frame(file, n):
    masks = {
        f"mask_{m}": np.unpackbits(file[f"mask_{m}{n}"]).astype(bool).reshape(OCC3D_GRID.shape)
        for m in ("camera", "lidar")
    }
    truth = OccupancyTruth(
        labels=file[f"gt{n}"], grid=OCC3D_GRID, label_set=OCC3D_LABELS, ray_origins=file[f"origins{n}"], **masks
    )
    return occupancy(file[f"pred{n}"]), truth


@pytest.mark.data
def test_everything_equals_the_recorded_evaluation_of_fusionocc(shared):
    file = np.load(shared / "goldens" / "fusionocc" / "metrics.npz")
    recorded = json.loads((shared / "goldens" / "fusionocc" / "metrics.json").read_text())
    score = OccupancyScore(OCC3D_GRID, OCC3D_LABELS)
    for n in range(3):
        score.add(*recorded_frame(file, n))
    report = score.report()
    assert report.frames == 3
    for mask, name in zip(MASKS, ("camera", "lidar", "nomask"), strict=True):
        scores = report.of_mask(mask)
        np.testing.assert_array_equal(scores.confusion_KK, file[f"miou.{name}.hist"])
        np.testing.assert_allclose(scores.iou_K, file[f"miou.{name}.iou"], rtol=1e-12)
        assert scores.miou == pytest.approx(recorded[name]["mIoU_exact"], abs=1e-12)
        assert round(100 * scores.miou, 2) == recorded[name]["mIoU_percent"]
    assert report.rays.ray_iou == pytest.approx(recorded["rayiou"]["RayIoU"], abs=1e-6)
    for value, key in zip(report.rays.per_threshold, ("r1", "r2", "r4"), strict=True):
        assert value == pytest.approx(recorded["rayiou"][key], abs=1e-6)
    occupied = [file[name] != FREE for name in ("pred0", "gt0")]
    surface = count_surface(*occupied, OCC3D_GRID)
    expected = recorded["fscore_sample0"]
    assert surface.accuracy == pytest.approx(expected["acc"], abs=1e-9)
    assert surface.completeness == pytest.approx(expected["complete"], abs=1e-9)
    assert surface.f_score == pytest.approx(expected["f1"], abs=1e-5)


def test_histograms_equal_the_recorded_ones(goldens):
    file = np.load(goldens / "metrics_rays.npz")
    total = 0
    for n in range(2):
        mask = np.unpackbits(file["mask_camera"][n]).astype(bool).reshape(OCC3D_GRID.shape)
        truth = OccupancyTruth(labels=file["gt"][n], grid=OCC3D_GRID, label_set=OCC3D_LABELS, mask_camera=mask)
        total = total + count_voxels(file["pred"][n], truth)
    camera, everything = (counts_of_mask(total, mask).sum(axis=0) for mask in ("camera", "none"))
    np.testing.assert_array_equal(camera, file["hist_camera_mask"])
    np.testing.assert_allclose(class_iou(camera), file["miou_camera_mask"], rtol=1e-12)
    np.testing.assert_allclose(class_iou(everything), file["miou_nomask"], rtol=1e-12)
    assert round(100 * mean_over_classes(class_iou(camera), OCC3D_LABELS), 2) == 27.17


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_counts_equal_a_plain_loop(seed):
    said, truth = small_pair(seed)
    counts = count_voxels(said.labels, truth, RINGS)
    centres = SMALL_GRID.centers(np.argwhere(np.ones(SMALL_GRID.shape, bool))).reshape(*SMALL_GRID.shape, 3)
    for mask in MASKS:
        expected = np.zeros((3, 4, 4), np.int64)
        for voxel in np.ndindex(SMALL_GRID.shape):
            if truth.labels[voxel] == 255 or (mask != "none" and not truth.mask(mask)[voxel]):
                continue
            radius = np.hypot(*centres[voxel][:2])
            expected[sum(radius >= edge for edge in RINGS), truth.labels[voxel], said.labels[voxel]] += 1
        np.testing.assert_array_equal(counts_of_mask(counts, mask), expected)


def test_a_class_seen_nowhere_does_not_count_and_one_never_found_counts_as_zero():
    truth = np.full((2, 1, 1), FREE, np.uint8)
    grid = VoxelGrid(frame="ego", lower=(0, 0, 0), upper=(2, 1, 1), voxel_size=(1, 1, 1))
    truth[0] = 4
    confusion = np.zeros((18, 18), np.int64)
    confusion[4, 4], confusion[4, FREE] = 4, 1
    iou = class_iou(confusion)
    assert np.isnan(iou[7])
    assert mean_over_classes(iou, OCC3D_LABELS) == pytest.approx(0.8)
    confusion[7, FREE] = 3
    assert mean_over_classes(class_iou(confusion), OCC3D_LABELS) == pytest.approx(0.4)
    assert np.isnan(mean_over_classes(class_iou(np.zeros((18, 18), np.int64)), OCC3D_LABELS))
    said = truth.copy()
    report = OccupancyScore(grid, OCC3D_LABELS, rays=False)
    report.add(occupancy(said, grid), OccupancyTruth(labels=truth, grid=grid, label_set=OCC3D_LABELS))
    assert report.report().of_mask("none").miou == 1.0


def test_geometric_iou_ignores_which_class():
    confusion = np.zeros((4, 4), np.int64)
    confusion[0, 1], confusion[2, 2] = 5, 3  # occupied in both
    confusion[0, 3], confusion[3, 2], confusion[3, 3] = 1, 7, 100
    assert geometric_iou(confusion, SMALL_LABELS) == pytest.approx(8 / 16)
    assert np.isnan(geometric_iou(np.diag([0, 0, 0, 9]), SMALL_LABELS))


@settings(deadline=None, max_examples=15)
@given(order=st.permutations(range(4)), cut=st.integers(0, 4))
def test_processes_sum_exactly_in_any_order(order, cut):
    frames = [small_pair(seed) for seed in range(4)]
    together, parts = small_score(), [small_score(), small_score()]
    for frame in frames:
        together.add(*frame)
    for position, n in enumerate(order):
        parts[position >= cut].add(*frames[n])
    parts = pickle.loads(pickle.dumps(parts))
    reduced = small_score()
    reduced.set_counts(sum(part.counts() for part in parts))
    parts[0].merge(parts[1])
    np.testing.assert_array_equal(parts[0].counts(), together.counts())
    np.testing.assert_array_equal(reduced.counts(), together.counts())
    assert parts[0].report().as_dict() == together.report().as_dict()


def test_rings_and_masks_add_up():
    score = small_score()
    score.add(*small_pair(1))
    report = score.report()
    for mask in MASKS:
        rings = [v for v in report.rings if v.mask == mask]
        assert [v.ring for v in rings] == [(0.0, 2.0), (2.0, 4.0), (4.0, float("inf"))]
        np.testing.assert_array_equal(sum(v.confusion_KK for v in rings), report.of_mask(mask).confusion_KK)


def test_every_line_states_its_setting_whatever_the_data_has():
    def lines(masks):
        score = OccupancyScore(SMALL_GRID, SMALL_LABELS, rays=False)
        score.add(*small_pair(3, masks))
        return score.report().lines()

    full, bare = lines(("camera", "lidar")), lines(())
    assert [v.setting for v in full if v.metric == "mIoU"] == ["camera mask", "LiDAR mask", "no mask"]
    assert [v.setting for v in bare if v.metric == "mIoU"] == [
        "camera mask: not in this data",
        "LiDAR mask: not in this data",
        "no mask",
    ]
    assert [np.isnan(v.value) for v in bare if v.metric == "mIoU"] == [True, True, False]
    score = OccupancyScore(OCC3D_GRID, OCC3D_LABELS)
    labels = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    labels[150] = 4
    truth = OccupancyTruth(
        labels=labels, grid=OCC3D_GRID, label_set=OCC3D_LABELS, ray_origins=np.array([[0.0, 0.0, 1.8]])
    )
    score.add(occupancy(labels), truth)
    report = score.report()
    assert [v.metric for v in report.lines()][-4:] == ["RayIoU@1", "RayIoU@2", "RayIoU@4", "RayIoU"]
    assert report.lines()[-1].value == 1.0
    assert json.loads(json.dumps(report.as_dict()))["ray_per_class"]["4"]["car"] == 1.0


def test_what_cannot_be_compared_is_refused():
    said, truth = small_pair(0)
    score = small_score()
    surround = OccupancyTruth(
        labels=np.zeros(SURROUNDOCC_GRID.shape, np.uint8), grid=SURROUNDOCC_GRID, label_set=OCC3D_LABELS
    )
    with pytest.raises(ValueError, match="cannot be compared"):
        OccupancyScore(OCC3D_GRID, OCC3D_LABELS).add(occupancy(np.zeros(OCC3D_GRID.shape, np.uint8)), surround)
    with pytest.raises(ValueError, match="cannot be compared"):
        OccupancyScore(OCC3D_GRID, OCC3D_LABELS).add(said, truth)
    renamed = replace(SMALL_LABELS, name="other", names=("road", "car", "bush", "free"))
    with pytest.raises(ValueError, match="bush"):
        score.add(replace(said, label_set=renamed), truth)
    unsure = said.labels.copy()
    unsure[0, 0, 0] = 255
    with pytest.raises(ValueError, match=r"holds 255; expected classes 0\.\.3"):
        score.add(replace(said, labels=unsure), truth)
    with pytest.raises(ValueError, match="no frame was added"):
        score.report()
    score.add(said, truth)
    with pytest.raises(ValueError, match="mask_lidar: 1 of 1 earlier frames have it, this one lacks it"):
        score.add(said, replace(truth, mask_lidar=None))
    with pytest.raises(ValueError, match="ray_origins"):
        small_score(rays=True).add(said, replace(truth, ray_origins=None))


def test_scores_of_other_settings_or_lengths_do_not_merge():
    score = small_score()
    with pytest.raises(ValueError, match="ring_edges"):
        score.merge(small_score(ring_edges=(1.0, 2.0)))
    with pytest.raises(ValueError, match="int64"):
        score.set_counts(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="ring_edges"):
        small_score(ring_edges=(4.0, 2.0))
    with pytest.raises(ValueError, match="ray_thresholds"):
        small_score(ray_thresholds=())
    a, b = small_score(), small_score()
    a.add(*small_pair(0))
    b.add(*small_pair(1, masks=()))
    a.merge(b)
    with pytest.raises(ValueError, match="only a part of the 2 frames"):
        a.report()


def test_truth_refuses_arrays_that_do_not_fit():
    good = {"labels": np.zeros(SMALL_GRID.shape, np.uint8), "grid": SMALL_GRID, "label_set": SMALL_LABELS}
    with pytest.raises(ValueError, match=r"labels: int64"):
        OccupancyTruth(**{**good, "labels": np.zeros(SMALL_GRID.shape, np.int64)})
    with pytest.raises(ValueError, match=r"labels holds 4; expected classes 0\.\.3"):
        OccupancyTruth(**{**good, "labels": np.full(SMALL_GRID.shape, 4, np.uint8)})
    with pytest.raises(ValueError, match=r"mask_camera: uint8"):
        OccupancyTruth(**good, mask_camera=np.zeros(SMALL_GRID.shape, np.uint8))
    with pytest.raises(ValueError, match=r"ray_origins"):
        OccupancyTruth(**good, ray_origins=np.zeros(3))


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_f_score_equals_all_pairs_of_voxels(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.random(SMALL_GRID.shape) < 0.05 for _ in range(2))
    counts = count_surface(a, b, SMALL_GRID, near=0.9)
    distance = np.linalg.norm(
        SMALL_GRID.centers(np.argwhere(a))[:, None] - SMALL_GRID.centers(np.argwhere(b))[None], axis=2
    )
    assert counts.predicted_near == (distance.min(axis=1, initial=9) < 0.9).sum()
    assert counts.true_near == (distance.min(axis=0, initial=9) < 0.9).sum()
    with pytest.raises(ValueError, match="their grid"):
        count_surface(a[1:], b, SMALL_GRID)

"""Keyframes as training examples: augmentation is consistent, draws follow from the key, sensors drop out."""

import dataclasses
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from labelled_sample_tree import write_labelled_tree
from small_recipes import GRID, small, small_flipped, small_plain

from fusionocc_core.data.augmentation import AugmentationConfig
from fusionocc_core.data.imgseg import imgseg_path
from fusionocc_core.data.occ3d import occ3d_path, read_occ3d
from fusionocc_core.engine import occupancy_examples
from fusionocc_core.engine.labels import crop_truth
from fusionocc_core.engine.occupancy_examples import DataConfig, OccupancyExamples
from fusionocc_core.engine.sampler import SampleKey
from fusionocc_core.engine.sensor_dropout import SensorDropout
from fusionocc_core.engine.session import open_frames
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, SURROUNDOCC_GRID
from fusionocc_core.losses import LossConfig, compute_losses
from fusionocc_core.structures import Outputs


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_labelled_tree(tmp_path_factory.mktemp("data") / "labelled")


@pytest.fixture(scope="module")
def frames(tree):
    return open_frames(tree.root, small().model.inputs, split="mini_train", version=None)


def source(frames, recipe, seed=0, **data):
    return OccupancyExamples(frames, replace(recipe.data, **data), recipe.needs, seed=seed)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for item in value for tensor in tensors(item)]
    if dataclasses.is_dataclass(value):
        return [tensor for f in dataclasses.fields(value) for tensor in tensors(getattr(value, f.name))]
    return []


def same(a, b):
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    return bool(pairs) and all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def test_labels_are_those_of_the_file_cut_to_the_grid(tree, frames):
    example = source(frames, small_plain()).examples([SampleKey(0, 1)])
    keyframe = frames.keyframe(1)
    truth = read_occ3d(occ3d_path(tree.root, keyframe.scene, keyframe.token))
    part = slice(88, 112)  # (-4.8 + 40) / 0.4 and 24 voxels
    assert np.array_equal(example.targets.labels_BXYZ[0].numpy(), truth.labels[part, part])
    assert np.array_equal(example.targets.mask_camera_BXYZ[0].numpy(), truth.mask_camera[part, part])
    assert np.array_equal(example.targets.mask_lidar_BXYZ[0].numpy(), truth.mask_lidar[part, part])
    assert example.tokens == (keyframe.token,)
    assert example.batch.images_BTNCHW.shape == (1, 2, 6, 3, 64, 96)


def test_flips_reach_labels_masks_and_points_alike(frames):
    plain = source(frames, small_plain()).examples([SampleKey(0, 2)])
    flipped = source(frames, small_flipped()).examples([SampleKey(0, 2)])
    for name in ("labels_BXYZ", "mask_camera_BXYZ", "mask_lidar_BXYZ"):
        assert torch.equal(getattr(flipped.targets, name), getattr(plain.targets, name).flip(1, 2))
    turned = flipped.batch.points[0] * torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0])
    assert torch.equal(turned, plain.batch.points[0])


def test_turned_and_scaled_space_takes_labels_masks_and_points_along(frames):
    aug = AugmentationConfig(
        flip_x_chance=0.0, flip_y_chance=1.0, bev_turn_degrees=(90.0, 90.0), scale_offset=(0.0, 0.0), mirror_chance=0.0
    )
    plain = source(frames, small_plain()).examples([SampleKey(0, 2)])
    turned = source(frames, small(), augmentation=aug).examples([SampleKey(0, 2)])
    for name in ("labels_BXYZ", "mask_camera_BXYZ", "mask_lidar_BXYZ"):
        assert torch.equal(getattr(turned.targets, name)[0], getattr(plain.targets, name)[0].rot90().flip(1))
    x, y, z, intensity, ring = plain.batch.points[0].T
    torch.testing.assert_close(turned.batch.points[0], torch.stack([-y, -x, z, intensity, ring], dim=1))

    shrunk = source(frames, small(), augmentation=replace(aug, bev_scale=(0.5, 0.5))).examples([SampleKey(0, 2)])
    inner = shrunk.targets.labels_BXYZ[0, 6:18, 6:18, :9]
    assert (shrunk.targets.labels_BXYZ != 255).sum() == (inner != 255).sum()
    unknown = shrunk.targets.labels_BXYZ == 255
    assert 0.5 < unknown.float().mean() < 1
    assert not (shrunk.targets.mask_camera_BXYZ & unknown).any()
    assert not (shrunk.targets.mask_lidar_BXYZ & unknown).any()
    torch.testing.assert_close(shrunk.batch.bev_aug_B44[0, :3, :3], turned.batch.bev_aug_B44[0, :3, :3] * 0.5)
    assert len(shrunk.batch.points[0]) > len(turned.batch.points[0])


def test_label_mask_hides_labels_before_the_space_is_turned(frames):
    aug = AugmentationConfig(bev_turn_degrees=(-25.0, 25.0), bev_scale=(0.9, 1.1))
    for mask in ("camera", "lidar"):
        kept, hidden = (
            source(frames, small(), augmentation=aug, label_mask=m).examples([SampleKey(1, 3)]).targets
            for m in ("none", mask)
        )
        seen = kept.mask_camera_BXYZ if mask == "camera" else kept.mask_lidar_BXYZ
        assert torch.equal(hidden.labels_BXYZ, kept.labels_BXYZ.where(seen, torch.tensor(255, dtype=torch.uint8)))
        assert 0.1 < seen.float().mean() < 0.9
        assert torch.equal(hidden.mask_lidar_BXYZ, kept.mask_lidar_BXYZ)


def test_draws_follow_from_the_key_alone(frames):
    one, other = source(frames, small()), source(frames, small())
    first = one.examples([SampleKey(3, 2)])
    one.examples([SampleKey(0, 1)])
    assert same(first, one.examples([SampleKey(3, 2)]))
    assert same(first, pickle.loads(pickle.dumps(other)).examples([SampleKey(3, 2)]))
    for another in (source(frames, small(), seed=1).examples([SampleKey(3, 2)]), one.examples([SampleKey(4, 2)])):
        assert not same(first.batch, another.batch)
    together = one.examples([SampleKey(3, 2), SampleKey(3, 0)])
    assert torch.equal(together.batch.images_BTNCHW[0], first.batch.images_BTNCHW[0])
    assert torch.equal(together.targets.labels_BXYZ[0], first.targets.labels_BXYZ[0])


def test_draws_do_not_depend_on_the_place_in_a_batch(frames):
    examples = source(frames, small())
    joined = examples.examples([SampleKey(1, 0), SampleKey(1, 2)])
    for place, sample in enumerate((0, 2)):
        alone = examples.examples([SampleKey(1, sample)])
        assert torch.equal(joined.batch.image_aug_BTN44[place], alone.batch.image_aug_BTN44[0])
        assert torch.equal(joined.batch.images_BTNCHW[place], alone.batch.images_BTNCHW[0])
        assert torch.equal(joined.targets.labels_BXYZ[place], alone.targets.labels_BXYZ[0])


def test_depth_labels_are_the_measured_bins(frames):
    example = source(frames, small_plain()).examples([SampleKey(0, 1)])
    depth_BNHW, bins_BNhw = example.batch.depth_BNHW, example.targets.depth_bins_BNhw
    assert bins_BNhw.shape == (1, 6, 4, 6)
    assert (bins_BNhw > 0).any()
    for n, row, column in (bins_BNhw[0] > 0).nonzero().tolist():
        cell = depth_BNHW[0, n, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        nearest = float(cell[cell > 0].min())
        assert int(bins_BNhw[0, n, row, column]) == int(nearest - 1.0) + 1


def test_label_maps_follow_the_picture(tree, frames):
    """Mirrored pictures have mirrored label maps: both come from one parameter."""
    recipe = small()
    augmentation = replace(recipe.data.augmentation, scale_offset=(0.0, 0.0), turn_degrees=(0.0, 0.0))
    plain, mirrored = (
        source(frames, recipe, augmentation=replace(augmentation, mirror_chance=chance)).examples([SampleKey(0, 1)])
        for chance in (0.0, 1.0)
    )
    assert torch.equal(mirrored.targets.segmentation_BNHW, plain.targets.segmentation_BNHW.flip(-1))
    stored = np.load(imgseg_path(tree.root, frames.keyframe(1).records[frames.cameras[0]]))
    assert set(np.unique(plain.targets.segmentation_BNHW[0, 0])) <= set(np.unique(stored)) | {0}


def test_what_no_loss_wants_is_not_read(frames):
    recipe = replace(small(), loss=replace(small().loss, depth=0.0, segmentation=0.0))
    example = source(frames, recipe).examples([SampleKey(0, 1)])
    assert example.targets.depth_bins_BNhw is None
    assert example.targets.segmentation_BNHW is None


def test_labels_outside_a_mask_can_be_made_unknown(frames):
    plain = source(frames, small_plain()).examples([SampleKey(0, 1)]).targets
    masked = source(frames, small_plain(), label_mask="camera").examples([SampleKey(0, 1)]).targets
    expected = plain.labels_BXYZ.where(plain.mask_camera_BXYZ, torch.tensor(255, dtype=torch.uint8))
    assert torch.equal(masked.labels_BXYZ, expected)
    with pytest.raises(ValueError, match="label_mask='lidr'"):
        DataConfig(label_mask="lidr")


@pytest.mark.parametrize("mask", ["camera", "lidar"])
def test_what_a_label_mask_hides_is_in_no_loss(frames, mask):
    """Every loss of voxels stays the same in every bit whatever the network says about hidden ones."""
    config = LossConfig(focal=1.0, semantic_affinity=1.0, geometric_affinity=1.0, lovasz=1.0)
    targets = source(frames, small_plain(), label_mask=mask).examples([SampleKey(0, 1)]).targets
    seen_BXYZ = targets.mask_camera_BXYZ if mask == "camera" else targets.mask_lidar_BXYZ
    logits = torch.randn(1, 18, *GRID.shape, generator=torch.Generator().manual_seed(0))
    other = torch.where(seen_BXYZ[:, None], logits, -logits)
    terms = [compute_losses(Outputs(logits_BKXYZ=x), targets, config, OCC3D_LABELS).terms for x in (logits, other)]
    assert set(terms[0]) == {"cross_entropy", "focal", "semantic_affinity", "geometric_affinity", "lovasz"}
    assert terms[0] == terms[1]
    plain = source(frames, small_plain()).examples([SampleKey(0, 1)]).targets
    without = compute_losses(Outputs(logits_BKXYZ=logits), plain, config, OCC3D_LABELS).terms
    assert all(without[name] != value for name, value in terms[0].items())


def test_a_label_mask_that_the_labels_lack_is_refused(frames, monkeypatch):
    read = occupancy_examples.read_truth
    monkeypatch.setattr(occupancy_examples, "read_truth", lambda *a: replace(read(*a), mask_lidar=None))
    examples = source(frames, small_plain(), label_mask="camera").examples([SampleKey(0, 1)])
    assert examples.targets.mask_lidar_BXYZ is None
    with pytest.raises(ValueError, match="label_mask='lidar': these labels have no such mask"):
        source(frames, small_plain(), label_mask="lidar").examples([SampleKey(0, 1)])


def test_missing_labels_are_counted_before_training(tmp_path):
    tree = write_labelled_tree(tmp_path)
    frames = open_frames(tree.root, small().model.inputs, split="mini_train", version=None)
    lost = imgseg_path(tree.root, frames.keyframe(1).records["CAM_BACK"])
    lost.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"1 of 24 files are missing, such as .*{lost.name}.*fusionocc prepare"
    ):
        source(frames, small())
    source(frames, replace(small(), loss=replace(small().loss, segmentation=0.0)))
    keyframe = frames.keyframe(3)
    occ3d_path(tree.root, keyframe.scene, keyframe.token).unlink()
    with pytest.raises(FileNotFoundError, match=r"Occ3D labels: 1 of 4 files are missing"):
        source(frames, small())


def test_a_grid_that_is_no_part_of_the_labels_is_refused(tree, frames):
    keyframe = frames.keyframe(0)
    truth = read_occ3d(occ3d_path(tree.root, keyframe.scene, keyframe.token))
    assert crop_truth(truth, OCC3D_GRID) is truth
    assert crop_truth(truth, GRID).grid == GRID
    shifted = replace(GRID, lower=(-4.6, -4.8, -1.0), upper=(5.0, 4.8, 5.4))
    larger = replace(OCC3D_GRID, lower=(-40.4, -40.0, -1.0))
    for grid in (shifted, larger, SURROUNDOCC_GRID):
        with pytest.raises(ValueError, match="no part of it, voxel by voxel"):
            crop_truth(truth, grid)


def test_lidar_dropout_hides_it_from_the_network_only(frames):
    plain = source(frames, small_plain()).examples([SampleKey(0, 1)])
    dropped = source(frames, small_plain(), sensor_dropout=SensorDropout(lidar=0.999)).examples([SampleKey(0, 1)])
    assert [len(cloud) for cloud in dropped.batch.points] == [0]
    assert len(plain.batch.points[0]) > 20
    assert dropped.batch.depth_BNHW.abs().sum() == 0
    assert torch.equal(dropped.targets.depth_bins_BNhw, plain.targets.depth_bins_BNhw)
    assert torch.equal(dropped.batch.images_BTNCHW, plain.batch.images_BTNCHW)


def test_picture_dropout_blanks_them(frames):
    dropped = source(frames, small_plain(), sensor_dropout=SensorDropout(pictures=0.999)).examples([SampleKey(0, 1)])
    assert dropped.batch.images_BTNCHW.abs().sum() == 0
    assert dropped.batch.depth_BNHW.sum() > 0
    assert len(dropped.batch.points[0]) > 20


def test_camera_dropout_takes_cameras_out_with_all_that_is_theirs(frames):
    chance = SensorDropout(camera=0.5)
    plain = source(frames, small_plain()).examples([SampleKey(0, 1)])
    seen = set()
    for epoch in range(12):
        example = source(frames, small_plain(), sensor_dropout=chance).examples([SampleKey(epoch, 1)])
        count = example.batch.depth_BNHW.shape[1]
        seen.add(count)
        kept = [place(example.batch.images_BTNCHW[:, :, k], plain.batch.images_BTNCHW) for k in range(count)]
        assert kept == sorted(set(kept))
        for name in ("intrinsics_BTN33", "image_aug_BTN44", "cam2keyego_BTN44"):
            assert torch.equal(getattr(example.batch, name), getattr(plain.batch, name)[:, :, kept])
        assert torch.equal(example.targets.depth_bins_BNhw, plain.targets.depth_bins_BNhw[:, kept])
        assert torch.equal(example.targets.segmentation_BNHW, plain.targets.segmentation_BNHW[:, kept])
    assert min(seen) >= 2
    assert len(seen) > 2


def place(picture, pictures_BTNCHW):
    """Which of the cameras took a picture."""
    return next(n for n in range(pictures_BTNCHW.shape[2]) if torch.equal(picture, pictures_BTNCHW[:, :, n]))


def test_samples_that_are_joined_keep_equally_many_cameras(frames):
    chance = SensorDropout(camera=0.5)
    for epoch in range(6):
        keys = [SampleKey(epoch, 0), SampleKey(epoch, 1), SampleKey(epoch, 2)]
        example = source(frames, small_plain(), sensor_dropout=chance).examples(keys)
        assert len(example.batch.images_BTNCHW) == 3


@pytest.mark.parametrize("wrong", [{"camera": 1.0}, {"lidar": -0.1}, {"pictures": 0.6, "lidar": 0.6}])
def test_chances_that_are_none(wrong):
    with pytest.raises(ValueError, match="SensorDropout"):
        SensorDropout(**wrong)


def test_a_share_of_what_nobody_observed_keeps_its_label(frames):
    whole = source(frames, small_plain()).examples([SampleKey(0, 1)]).targets.labels_BXYZ

    def known(key, **data):
        labels = source(frames, small_plain(), label_mask="camera", **data).examples([key]).targets.labels_BXYZ
        assert torch.equal(labels[labels != 255], whole[labels != 255])
        return labels != 255

    observed, some = known(SampleKey(0, 1)), known(SampleKey(0, 1), unobserved_share=0.2)
    assert some[observed].all()
    assert abs(some[~observed].float().mean() - 0.2) < 0.02
    assert torch.equal(some, known(SampleKey(0, 1), unobserved_share=0.2))
    assert not torch.equal(some, known(SampleKey(1, 1), unobserved_share=0.2))
    with pytest.raises(ValueError, match=r"unobserved_share=1\.5: expected a share from 0 to 1"):
        DataConfig(unobserved_share=1.5)

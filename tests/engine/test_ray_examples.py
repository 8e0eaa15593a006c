"""Rays of keyframes as training examples: where they come from, what they miss, and keyframes without labels."""

from __future__ import annotations

import logging
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_sample_tree import write_labelled_tree
from nuscenes_tree import write_tree
from uniocc_recipes import rendered, taught

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from labelled_tree import add_lidarseg

from fusionocc_core.data.augmentation import AugmentationConfig
from fusionocc_core.data.imgseg import imgseg_path
from fusionocc_core.data.sweep_frames import frames_between
from fusionocc_core.engine.occupancy_examples import OccupancyExamples
from fusionocc_core.engine.ray_examples import KeyframeRays
from fusionocc_core.engine.sampler import SampleKey
from fusionocc_core.engine.session import open_frames
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.losses import LossConfig, compute_losses
from fusionocc_core.presets import make_network


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    tree = write_labelled_tree(tmp_path_factory.mktemp("data") / "rays")
    add_lidarseg(tree)
    return tree


@pytest.fixture(scope="module")
def frames(tree):
    return open_frames(tree.root, rendered().model.inputs, split="mini_train", version=None)


def source(frames, recipe, **data):
    return OccupancyExamples(frames, replace(recipe.data, **data), recipe.needs, seed=0)


def test_rays_follow_from_the_key_and_go_with_the_augmentation(frames):
    plain = source(frames, rendered(), augmentation=None)
    rays = plain.examples([SampleKey(0, 1), SampleKey(0, 2)]).targets.rays
    assert 20 < len(rays) <= 120
    assert set(rays.sample_R.tolist()) == {0, 1}
    again = pickle.loads(pickle.dumps(plain)).examples([SampleKey(0, 1), SampleKey(0, 2)]).targets.rays
    assert torch.equal(rays.origin_R3, again.origin_R3)
    assert torch.equal(rays.label_R, again.label_R)
    mirror = AugmentationConfig(flip_x_chance=1.0, flip_y_chance=1.0)
    flipped = source(frames, rendered(), augmentation=mirror).examples([SampleKey(0, 1)]).targets.rays
    everything = replace(rendered().data.rays, count=10**6)
    both = [
        source(frames, rendered(), augmentation=a, rays=everything).examples([SampleKey(0, 1)]).targets.rays
        for a in (None, mirror)
    ]
    assert len(flipped) > 0
    turned = both[0].direction_R3 * torch.tensor([-1.0, -1.0, 1.0])
    torch.testing.assert_close(both[1].direction_R3, turned)
    torch.testing.assert_close(both[1].depth_R, both[0].depth_R)


def test_labels_of_voxels_are_not_read_where_no_loss_wants_them(frames, monkeypatch):
    monkeypatch.setattr("fusionocc_core.engine.occupancy_examples.read_truth", None)
    example = source(frames, rendered()).examples([SampleKey(0, 0)])
    assert (example.targets.labels_BXYZ == OCC3D_LABELS.unknown).all()


def test_neighbours_are_of_the_scene_and_labelled(frames):
    def neighbours(config, labelled, index):
        return KeyframeRays(frames, config, OCC3D_LABELS, labelled)._neighbours(index)

    config = replace(rendered().data.rays, neighbours=(-2, -1, 1, 5))
    assert neighbours(config, lambda i: True, 1) == [0, 2]
    assert neighbours(config, lambda i: i != 0, 1) == [2]
    assert neighbours(config, lambda i: i != 1, 1) == []
    assert neighbours(replace(config, source="none"), lambda i: True, 1) == []


def test_classes_from_maps_are_those_of_the_pictures(frames, tree):
    config = replace(rendered().data.rays, source="maps", count=10**6)
    paths = [imgseg_path(tree.root, frames.keyframe(3).records[name]) for name in frames.cameras]
    kept = [path.read_bytes() for path in paths]
    try:
        for number, path in enumerate(paths):
            np.save(path, np.full((7, 12), 17 if number == 5 else number, np.uint8))  # any resolution; 17: not painted
        rays = KeyframeRays(frames, config, OCC3D_LABELS, lambda i: True)._of(3, frames[3].ego2global)
    finally:
        for path, data in zip(paths, kept, strict=True):
            path.write_bytes(data)
    seen = rays.label_R.unique().tolist()
    assert len(seen) > 1
    assert set(seen) <= {0, 1, 2, 3, 4, OCC3D_LABELS.unknown}
    for label in seen:  # all rays of a camera begin in one place
        assert len(rays.origin_R3[rays.label_R == label].unique(dim=0)) == 1


def test_a_class_outside_the_set_and_missing_labels_are_named(frames, tree):
    maps = replace(rendered().data.rays, source="maps")
    path = imgseg_path(tree.root, frames.keyframe(0).records[frames.cameras[0]])
    good = path.read_bytes()
    np.save(path, np.full((14, 24), 40, np.uint8))
    with pytest.raises(ValueError, match=r"holds class 40; expected 0\.\.17"):
        KeyframeRays(frames, maps, OCC3D_LABELS, lambda i: True)._of(0, np.eye(4))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"label maps of pictures: 1 of \d+ files are missing"):
        KeyframeRays(frames, maps, OCC3D_LABELS, lambda i: True)
    path.write_bytes(good)
    with pytest.raises(ValueError, match="keyego2global"):
        KeyframeRays(frames, maps, OCC3D_LABELS, lambda i: True)._of(0, np.diag([1.0, 2.0, 1.0, 1.0]))


def test_all_rays_filtered_out_is_a_term_that_the_log_names(frames, caplog):
    recipe = rendered()
    example = source(frames, recipe, rays=replace(recipe.data.rays, farthest=0.5)).examples([SampleKey(0, 0)])
    assert len(example.targets.rays) == 0
    network = make_network(recipe.model)
    with caplog.at_level(logging.INFO):
        losses = compute_losses(network(example.batch), example.targets, recipe.loss, OCC3D_LABELS)
        losses.total.backward()
    assert losses.terms["rendered_depth"] == losses.terms["rendered_semantic"] == 0
    assert "rendered_depth: no ray in this batch" in caplog.text
    assert all(p.grad is not None for p in network.parameters())


def test_a_share_of_the_keyframes_is_labelled(frames):
    recipe = taught()
    data = recipe.data
    assert [data.is_labelled(i) for i in range(4)] == [False, True, False, True]
    assert replace(data, labelled_repeats=2).order(4) == [1, 3, 1, 3, 0, 2]
    assert replace(data, unlabelled="leave_out").order(4) == [1, 3]
    assert sum(replace(data, labelled_share=0.1).is_labelled(i) for i in range(510)) == 51
    in_runs = replace(data, labelled_share=0.1, labelled_run=10)
    assert [i for i in range(510) if in_runs.is_labelled(i)] == [
        i for k in range(9, 51, 10) for i in range(10 * k, 10 * k + 10)
    ]
    with pytest.raises(ValueError, match="labelled_run=0 are at least 1"):
        replace(data, labelled_run=0)
    with pytest.raises(ValueError, match="none would be labelled"):
        replace(data, labelled_share=0.1).order(4)
    examples = source(frames, recipe).examples([SampleKey(0, 0), SampleKey(0, 2)])  # keyframes 1 and 0
    known = (examples.targets.labels_BXYZ != OCC3D_LABELS.unknown).flatten(1).any(dim=1)
    assert known.tolist() == [True, False]
    rays = examples.targets.rays
    assert (rays.label_R[rays.sample_R == 1] == OCC3D_LABELS.unknown).all()
    assert (rays.label_R[rays.sample_R == 0] != OCC3D_LABELS.unknown).all()
    assert examples.unlabelled.places_U.tolist() == [1]
    mine, plain = examples.batch, examples.unlabelled.batch
    assert torch.equal(plain.bev_aug_B44[0], mine.bev_aug_B44[1])
    assert not torch.equal(plain.image_aug_BTN44[0], mine.image_aug_BTN44[1])


def test_moments_between_keyframes_come_without_labels(tmp_path):
    tree = write_tree(tmp_path / "sweeps", scenes={"scene-0061": 3}, image_size=(192, 108), sweeps=2)
    recipe = taught()
    frames = open_frames(tree.root, recipe.model.inputs, split="mini_train", version=None)
    with pytest.raises(FileNotFoundError, match="Occ3D labels"):
        source(frames, recipe)
    between = frames_between(frames)
    stamps, keys = [between.stamp_ns(i) for i in range(len(between))], [frames.stamp_ns(i) for i in range(3)]
    assert len(stamps) == 2
    assert keys[0] < stamps[0] < keys[1] < stamps[1] < keys[2]
    for index in range(2):
        frame = between[index]
        assert [camera.name for camera in frame.cameras] == list(frames.cameras)
        assert max(abs(camera.stamp_ns - frame.stamp_ns) for camera in frame.cameras) <= 100_000_000
    recipe = replace(rendered(), data=replace(recipe.data, labelled_share=1.0, unlabelled_sweeps=True))
    recipe = replace(recipe, train=replace(recipe.train, teacher=taught().train.teacher))
    examples = pickle.loads(pickle.dumps(source(frames, recipe, rays=replace(recipe.data.rays, source="none"))))
    assert len(examples) == 5
    example = examples.examples([SampleKey(0, 0), SampleKey(0, 4)])
    assert example.tokens[1] == between.keyframe(1).token
    assert example.unlabelled.places_U.tolist() == [1]
    assert (example.targets.rays.label_R == OCC3D_LABELS.unknown).all()
    plain = write_tree(tmp_path / "plain", scenes={"scene-0061": 2}, image_size=(192, 108))
    with pytest.raises(ValueError, match="no LiDAR sweep lies between keyframes"):
        frames_between(open_frames(plain.root, recipe.model.inputs, split="mini_train", version=None))


def test_recipes_that_cannot_be_are_refused():
    recipe = taught()
    with pytest.raises(ValueError, match=r"train\.teacher teaches keyframes without labels, but there are none"):
        replace(recipe, data=replace(recipe.data, unlabelled="leave_out"))
    with pytest.raises(ValueError, match="the teacher is the averaged network"):
        replace(recipe.train, ema=None)
    official = replace(recipe.loss.rendering, render=replace(recipe.loss.rendering.render, opacity="official"))
    with pytest.raises(ValueError, match="density is 'metric'"):
        replace(recipe, loss=replace(recipe.loss, rendering=official))
    whole = replace(recipe.loss.rendering, render=replace(recipe.loss.rendering.render, cells_across=100))
    with pytest.raises(ValueError, match=r"in 100 voxels, the network answers on 9\.6 m in 24"):
        replace(recipe, loss=replace(recipe.loss, rendering=whole))
    with pytest.raises(ValueError, match="one must be positive"):
        LossConfig(cross_entropy=0.0)

"""Centres of annotated objects as labels of a training example."""

from dataclasses import replace

import numpy as np
import pytest
from labelled_sample_tree import write_labelled_tree
from small_recipes import GRID, small_flipped, small_plain

from fusionocc_core.engine.occupancy_examples import OccupancyExamples
from fusionocc_core.engine.sampler import SampleKey
from fusionocc_core.engine.session import open_frames
from fusionocc_core.grids import LIDARSEG_TO_OCC3D, OCC3D_LABELS
from fusionocc_core.layers.center_head import NUSCENES_THINGS
from fusionocc_core.losses import panoptic_flashocc_losses


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """The boxes of the tree as if the LiDAR had seen them, each with a second one 3 m beside it that it has not seen
    and a third one 5 m behind it that it has."""
    tree = write_labelled_tree(tmp_path_factory.mktemp("data") / "labelled")
    frames = open_frames(tree.root, small_plain().model.inputs, split="mini_train", version=None)
    annotated = frames.boxes

    def boxes(index):
        moved = [(0.0, 0.0, 0.0), (0.0, 3.0, 0.0), (-5.0, 0.0, 0.3)]
        return [
            replace(box, center=box.center + shift, num_lidar_pts=points)
            for box in annotated(index)
            for shift, points in zip(moved, (9, 0, 1), strict=True)
        ]

    frames.boxes = boxes
    return frames


def centers_of(frames, recipe, keys):
    wide = replace(GRID, lower=(-40.0, -40.0, -1.0), upper=(40.0, 40.0, 5.4))
    recipe = replace(recipe, loss=panoptic_flashocc_losses(center_classes=NUSCENES_THINGS))
    needs = replace(recipe.needs, grid=wide)
    return OccupancyExamples(frames, recipe.data, needs, seed=0).examples(keys).targets.centers, wide


def places(centers, grid, sample=0):
    """Channel and position in metres of every object, from the labels alone."""
    found = []
    for (x, y), (dx, dy, z) in zip(
        centers.columns_BM2[sample].tolist(), centers.position_BM3[sample].tolist(), strict=True
    ):
        if x >= 0:
            channels = np.flatnonzero(centers.heatmap_BKXY[sample, :, x, y] == 1).tolist()
            x_m, y_m = (grid.lower[i] + grid.voxel_size[i] * p for i, p in ((0, x + dx), (1, y + dy)))
            found.append((channels, round(x_m, 3), round(y_m, 3), round(z, 3)))
    return found


def test_centers_are_those_of_the_boxes(frames):
    centers, grid = centers_of(frames, small_plain(), [SampleKey(0, 0), SampleKey(0, 1)])
    for sample in (0, 1):
        expected = [
            (NUSCENES_THINGS.index(OCC3D_LABELS.names[LIDARSEG_TO_OCC3D[box.name]]), *np.round(box.center, 3).tolist())
            for box in frames.boxes(sample)
            if box.num_lidar_pts > 0
        ]
        found = places(centers, grid, sample)
        assert len(found) == len(expected) == 2
        for (channels, *position), (channel, *center) in zip(found, expected, strict=True):
            assert channel in channels
            assert np.allclose(position, center, atol=2e-3)


def test_centers_are_mirrored_with_the_space(frames):
    plain, grid = centers_of(frames, small_plain(), [SampleKey(0, 2)])
    mirrored, _ = centers_of(frames, small_flipped(), [SampleKey(0, 2)])
    assert len(places(plain, grid)) == 2
    for one, other in zip(places(plain, grid), places(mirrored, grid), strict=True):
        assert one[0] == other[0]
        assert np.allclose(one[1:], [-other[1], -other[2], other[3]], atol=2e-3)

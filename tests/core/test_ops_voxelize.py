"""Voxelisation against a dictionary of points, and its properties."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.ops.voxelize import voxelize

LOWER, SIZE, SHAPE = (-4.0, -2.0, -1.0), (0.5, 0.25, 0.2), (16, 16, 10)


def cloud(count: int, seed: int = 0, columns: int = 5) -> torch.Tensor:
    """Points of which about a third lie outside the grid, several a voxel."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, columns, generator=generator)
    points[:, :3] = points[:, :3] * torch.tensor((10.0, 5.0, 2.4)) - torch.tensor((5.0, 2.5, 1.2))
    return points


def by_hand(clouds: list[torch.Tensor]) -> dict[tuple[int, ...], np.ndarray]:
    voxels: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
    for b, points in enumerate(clouds):
        for point in points.numpy():
            index = np.floor((point[:3] - np.float32(LOWER)) / np.float32(SIZE)).astype(int)
            if (index >= 0).all() and (index < SHAPE).all():
                voxels[(b, *index.tolist())].append(point)
    return {key: np.mean(points, axis=0) for key, points in sorted(voxels.items())}


def test_equals_a_dictionary_of_points():
    clouds = [cloud(3000), cloud(50, seed=1), cloud(0), cloud(1000, seed=2)]
    expected = by_hand(clouds)
    volume = voxelize(clouds, LOWER, SIZE, SHAPE)
    assert [tuple(row) for row in volume.coords_M4.tolist()] == list(expected)
    np.testing.assert_allclose(volume.features_MC.numpy(), np.stack(list(expected.values())), atol=1e-6)
    assert (volume.shape, volume.batch_size) == (SHAPE, 4)


def test_points_on_the_border_and_not_finite():
    nan, inf = float("nan"), float("inf")
    points = torch.tensor(
        [
            [-4.0, -2.0, -1.0],  # the lower corner belongs to voxel 0
            [4.0, 0.0, 0.0],  # the upper border is outside
            [-4.0001, 0.0, 0.0],  # floor, not truncation, below zero
            [nan, 0.0, 0.0],
            [0.0, inf, 0.0],
            [0.0, 0.0, -inf],
        ]
    )
    volume = voxelize([points], LOWER, SIZE, SHAPE)
    assert volume.coords_M4.tolist() == [[0, 0, 0, 0]]


def test_faces_are_decided_in_float32():
    x = torch.tensor(-27.1)  # on the face between voxels 257 and 258 of an official grid
    assert torch.floor((x.double() + 40.0) / 0.05) == 257
    volume = voxelize([torch.stack((x, x * 0, x * 0))[None]], (-40.0, -1.0, -1.0), (0.05, 0.05, 0.05), (1600, 40, 40))
    assert volume.coords_M4[0, 1] == 258


@pytest.mark.parametrize("clouds", [[cloud(0)], [cloud(0), cloud(0)], [cloud(5) + 100.0]])
def test_no_point_inside_gives_no_voxel(clouds):
    volume = voxelize(clouds, LOWER, SIZE, SHAPE)
    assert volume.coords_M4.shape == (0, 4)
    assert volume.features_MC.shape == (0, 5)
    assert volume.batch_size == len(clouds)


@given(seed=st.integers(0, 1000), count=st.integers(1, 400))
@settings(max_examples=20, deadline=None)
def test_order_of_points_does_not_matter(seed, count):
    points = cloud(count, seed)
    shuffled = points[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
    a, b = (voxelize([p], LOWER, SIZE, SHAPE) for p in (points, shuffled))
    assert torch.equal(a.coords_M4, b.coords_M4)
    torch.testing.assert_close(a.features_MC, b.features_MC, rtol=1e-6, atol=1e-6)


def test_two_in_a_batch_equal_two_singles():
    clouds = [cloud(700), cloud(900, seed=3)]
    both = voxelize(clouds, LOWER, SIZE, SHAPE)
    for b, points in enumerate(clouds):
        single, mine = voxelize([points], LOWER, SIZE, SHAPE), both.coords_M4[:, 0] == b
        assert torch.equal(both.coords_M4[mine, 1:], single.coords_M4[:, 1:])
        assert torch.equal(both.features_MC[mine], single.features_MC)


def test_moving_grid_and_points_together_changes_nothing():
    points = (cloud(800) * 128).round() / 128  # so that the shift is exact in float32
    shift = torch.tensor((8.0, -16.0, 4.0, 0.0, 0.0))
    lower = tuple(a + b for a, b in zip(LOWER, shift.tolist(), strict=False))
    here, there = voxelize([points], LOWER, SIZE, SHAPE), voxelize([points + shift], lower, SIZE, SHAPE)
    assert torch.equal(here.coords_M4, there.coords_M4)
    torch.testing.assert_close(here.features_MC + shift, there.features_MC)


def test_gradient_is_one_over_the_points_of_a_voxel():
    points = torch.tensor([[0.1, 0.1, 0.1, 1.0], [0.11, 0.1, 0.1, 2.0], [3.0, 0.0, 0.0, 5.0], [9.0, 0.0, 0.0, 7.0]])
    points.requires_grad_()
    voxelize([points], LOWER, SIZE, SHAPE).features_MC[:, 3].sum().backward()
    assert points.grad[:, 3].tolist() == [0.5, 0.5, 1.0, 0.0]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="points holds no cloud"):
        voxelize([], LOWER, SIZE, SHAPE)
    with pytest.raises(ValueError, match=r"\(4, 5\), \(4, 3\)"):
        voxelize([cloud(4), cloud(4, columns=3)], LOWER, SIZE, SHAPE)
    with pytest.raises(ValueError, match="at least 3"):
        voxelize([torch.zeros(4, 2)], LOWER, SIZE, SHAPE)
    with pytest.raises(ValueError, match="expected"):
        voxelize([torch.zeros(4)], LOWER, SIZE, SHAPE)

"""Which voxels rays pass through, against rays that are walked in tiny steps."""

from __future__ import annotations

import numpy as np
import pytest

from fusionocc_core.grids import OCC3D_GRID, VoxelGrid
from fusionocc_core.labelling.visibility import clipped
from fusionocc_core.metrics.rays import Rays, crossed_voxels

SHAPE = (12, 9, 7)
STEP = 1e-3


def random_rays(count: int, seed: int) -> tuple[Rays, np.ndarray]:
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(count, 3))
    direction[::5, rng.integers(0, 3)] = 0.0
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    start = rng.uniform(0, 1, (count, 3)) * SHAPE
    return Rays(start=start, direction=direction), rng.uniform(0, 15, count)


def walked(blocked: np.ndarray, rays: Rays, length: np.ndarray) -> np.ndarray:
    """Voxels left before the end, up to the first blocked one; a voxel crossed for less than STEP may be missed."""
    out = np.zeros(blocked.shape, bool)
    for start, direction, end in zip(rays.start, rays.direction, length, strict=True):
        cells = np.floor(start + np.arange(0, end, STEP)[:, None] * direction).astype(int)
        cells = cells[((cells >= 0) & (cells < blocked.shape)).all(axis=1).cumprod().astype(bool)]
        last = np.floor(start + end * direction).astype(int)
        for cell in map(tuple, cells):
            if tuple(last) == cell and not blocked[cell]:
                break
            out[cell] = True
            if blocked[cell]:
                break
    return out


@pytest.mark.parametrize("share", [0.0, 0.05, 0.4])
def test_the_voxels_are_those_that_tiny_steps_visit(share: float) -> None:
    blocked = np.random.default_rng(1).random(SHAPE) < share
    for seed in range(60):
        rays, length = random_rays(1, seed)
        found, expected = crossed_voxels(blocked, rays, length), walked(blocked, rays, length)
        assert not (expected & ~found).any(), seed
        # What the steps miss is a clipped corner: next to a voxel that they found, and never more than a few.
        assert (found & ~expected).sum() <= 2, seed


def test_many_rays_mark_what_each_marks() -> None:
    blocked = np.random.default_rng(2).random(SHAPE) < 0.05
    rays, length = random_rays(300, 7)
    each = [crossed_voxels(blocked, rays[slice(k, k + 1)], length[k : k + 1]) for k in range(300)]
    np.testing.assert_array_equal(crossed_voxels(blocked, rays, length), np.any(each, axis=0))


def test_a_ray_is_cut_into_chunks_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = np.random.default_rng(2).random(SHAPE) < 0.05
    rays, length = random_rays(50, 3)
    whole = crossed_voxels(blocked, rays, length)
    monkeypatch.setattr("fusionocc_core.metrics.rays._CHUNK", 7)
    np.testing.assert_array_equal(crossed_voxels(blocked, rays, length), whole)


def test_no_rays_mark_nothing() -> None:
    none = Rays(start=np.zeros((0, 3)), direction=np.zeros((0, 3)))
    assert not crossed_voxels(np.ones(SHAPE, bool), none, np.zeros(0)).any()


def test_clipping_keeps_the_part_inside_the_grid() -> None:
    rng = np.random.default_rng(0)
    start, end = rng.uniform(-80, 80, (2, 500, 3)) * (1, 1, 0.1)
    start[0], end[0] = (-50, 3.1, 0.3), (50, 3.1, 0.3)  # along an axis: from face to face
    start[1], end[1] = (-50, 41.0, 0.3), (50, 41.0, 0.3)  # beside the grid
    rays, length, kept = clipped(start, end, OCC3D_GRID)
    steps = np.linspace(0, 1, 4001)[:, None]
    inside = [OCC3D_GRID.contains(OCC3D_GRID.indices(a + steps * (b - a))) for a, b in zip(start, end, strict=True)]
    through = np.array([mask.sum() > 1 for mask in inside])
    assert 0 in kept
    assert 1 not in kept
    assert set(np.flatnonzero(through)) <= set(kept)
    assert len(kept) <= through.sum() + 3
    for ray, index in enumerate(kept):
        if through[index]:
            first = start[index] + steps[inside[index].argmax()] * (end[index] - start[index])
            np.testing.assert_allclose(OCC3D_GRID.lower + 0.4 * rays.start[ray], first, atol=0.06)
    ends_inside = np.array([mask[-1] for mask in inside])[kept]
    assert np.isfinite(length[ends_inside]).all()
    assert np.isinf(length[~ends_inside]).all()


def test_a_grid_in_another_frame_and_size_is_clipped_alike() -> None:
    grid = VoxelGrid(frame="lidar", lower=(-1.0, 0.0, -2.0), upper=(1.0, 4.0, 0.0), voxel_size=(0.5, 0.5, 0.5))
    rays, length, kept = clipped(np.array([[-3.0, 1.25, -0.75]]), np.array([[0.1, 1.25, -0.75]]), grid)
    crossed = crossed_voxels(np.zeros(grid.shape, bool), rays, length)
    assert list(kept) == [0]
    assert [tuple(v) for v in np.argwhere(crossed)] == [(0, 2, 2), (1, 2, 2)]

"""The published algorithms in benchmarks/baselines/ give what the package's ops give, forward and backward."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gaussian_splat_cases import GRID, leaves, some
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.data.imgseg import paint_pictures
from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.geometry import rotation_from_yaw, transform
from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.metrics.ray_iou import count_rays
from fusionocc_core.metrics.rays import Rays, cast_rays
from fusionocc_core.ops.bev_pool import bev_pool, plan_bev_pool
from fusionocc_core.ops.gaussian_splat import SplatOptions, splat_additive, splat_probabilistic
from fusionocc_core.ops.sparse_conv import plan_submanifold_conv3d, submanifold_conv3d
from fusionocc_core.ops.sparse_volume import sparse_volume
from fusionocc_core.ops.volume_render import volume_render
from fusionocc_core.ops.volume_render_rays import Rays as ViewRays
from fusionocc_core.ops.volume_render_rays import RenderConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.baselines.bev_pool import pool_by_cumsum
from benchmarks.baselines.imgseg import paint_point_by_point
from benchmarks.baselines.ray_iou import count_rays_one_by_one, walk
from benchmarks.baselines.sparse_conv import submanifold_by_searches
from benchmarks.baselines.splat import additive_by_pairs, probabilistic_by_pairs
from benchmarks.baselines.volume_render import render_everywhere

FREE, UNKNOWN = OCC3D_LABELS.free, OCC3D_LABELS.unknown


def with_gradients(function, inputs, seed=0):
    """The result, and the gradients of its product with a fixed random tensor."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    result = function(*inputs)
    weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(seed), dtype=result.dtype)
    return result.detach(), *torch.autograd.grad((result * weight).sum(), inputs, allow_unused=True)


def assert_same(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a is not None, "a gradient is missing"
        assert b is not None, "a gradient is missing"
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize(("batch", "cameras"), [(1, 6), (2, 1)])
@pytest.mark.parametrize("where", ["anywhere", "all in one voxel", "all outside", "one inside"])
def test_pooling(batch, cameras, where):
    generator = torch.Generator().manual_seed(batch)
    shape_zyx, frustum = (2, 4, 5), (batch, cameras, 6, 2, 3)
    voxel = torch.stack([torch.randint(-1, n + 1, frustum, generator=generator) for n in (5, 4, 2)], dim=-1)
    if where != "anywhere":
        voxel[:] = torch.tensor([1, 2, 1]) if where == "all in one voxel" else torch.tensor([-1, 2, 1])
    if where == "one inside":
        voxel[-1, -1, 3, 1, 2] = torch.tensor([4, 3, 1])
    depth = torch.rand(frustum, generator=generator, dtype=torch.float64)
    feat = torch.randn(batch, cameras, 7, 2, 3, generator=generator, dtype=torch.float64)
    plan = plan_bev_pool(voxel, shape_zyx)
    ours = with_gradients(lambda d, f: bev_pool(d, f, plan), (depth, feat))
    assert_same(with_gradients(lambda d, f: pool_by_cumsum(d, f, voxel, shape_zyx), (depth, feat)), ours)


@pytest.mark.parametrize("wanted", [0, 1])
def test_pooling_with_a_gradient_of_one_input(wanted):
    generator = torch.Generator().manual_seed(0)
    voxel = torch.stack([torch.randint(-1, n + 1, (1, 2, 6, 2, 3), generator=generator) for n in (5, 4, 2)], dim=-1)
    inputs = [torch.rand(1, 2, 6, 2, 3, generator=generator), torch.randn(1, 2, 7, 2, 3, generator=generator)]
    inputs[wanted].requires_grad_()
    plan = plan_bev_pool(voxel, (2, 4, 5))
    # The gradient of a sum is one number that is read everywhere.
    ours, theirs = (
        torch.autograd.grad(pooled.sum(), inputs[wanted])[0]
        for pooled in (bev_pool(*inputs, plan), pool_by_cumsum(*inputs, voxel, (2, 4, 5)))
    )
    torch.testing.assert_close(ours, theirs)


def voxels(shape, share, batch, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(batch, *shape, generator=generator) < share).nonzero()
    features = torch.randn(len(coords), channels, generator=generator, dtype=torch.float64)
    return sparse_volume(features, coords, shape, batch)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.4, 1.0])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 5)])
@pytest.mark.parametrize("batch", [1, 2])
def test_submanifold_convolution(share, kernel, batch):
    """Neighbouring rows of the grid, and the samples of a batch, lie side by side among the keys."""
    volume = voxels((5, 4, 7), share, batch, 3, seed=1)
    weight = torch.randn(6, *kernel, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plan = plan_submanifold_conv3d(volume, kernel, "torch")

    def ours(features, weight):
        return submanifold_conv3d(volume.with_features(features), weight, plan).features_MC

    def theirs(features, weight):
        return submanifold_by_searches(volume.with_features(features), weight).features_MC

    inputs = (volume.features_MC, weight)
    assert_same(with_gradients(theirs, inputs), with_gradients(ours, inputs))


@pytest.mark.parametrize("num", [0, 1, 25])
@pytest.mark.parametrize("kind", ["additive", "probabilistic"])
def test_splatting(num, kind):
    options = SplatOptions(reach=3.0, boxes="cube", backend="tiles")
    results = []
    for additive, probabilistic in (
        (splat_additive, splat_probabilistic),
        (additive_by_pairs, probabilistic_by_pairs),
    ):
        gaussians, inputs = leaves(some(num))
        if kind == "additive":
            volumes = [additive(gaussians, GRID, options)]
        else:
            splat = probabilistic(gaussians, GRID, options)
            volumes = [splat.semantics_BCZYX, splat.occupancy_BZYX, splat.density_BZYX]
        weights = [torch.linspace(0.5, 1.5, v.numel(), dtype=v.dtype).view(v.shape) for v in volumes]
        total = sum((v * w).sum() for v, w in zip(volumes, weights, strict=True))
        gradients = torch.autograd.grad(total, inputs, materialize_grads=True)
        results.append([*(v.detach() for v in volumes), *gradients])
    assert_same(*results, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_rendering(batch, count):
    generator = torch.Generator().manual_seed(count)
    config = RenderConfig(
        center=(0.0, 0.0, 0.5),
        radius=3.5,
        extent=4.0,
        box_lower=(-4.0, -4.0, -1.0),
        box_upper=(4.0, 4.0, 2.0),
        cells_across=16,
        least_alpha=0.0,
        least_weight=0.0,
        stop_below=0.0,
    )
    density = torch.rand(batch, 16, 16, 6, generator=generator, dtype=torch.float64)
    # Nowhere zero: a place without any opacity is left out by the op, its gradient too.
    density = 0.01 + density * (torch.rand(density.shape, generator=generator) < 0.3)
    semantic = torch.randn(batch, 16, 16, 6, 5, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(count, dtype=torch.int64)
    rays = ViewRays(
        origin_R3=torch.randn(count, 3, generator=generator, dtype=torch.float64) * 2,
        direction_R3=torch.randn(count, 3, generator=generator, dtype=torch.float64),
        depth_R=torch.ones(count, dtype=torch.float64),
        label_R=zeros,
        sample_R=torch.arange(count) % batch,
        current_R=torch.ones(count, dtype=torch.bool),
    )

    def ours(density, semantic):
        seen = volume_render(density, semantic, rays, config)
        return torch.cat([seen.depth_R[:, None], seen.semantic_RK], dim=1)

    def theirs(density, semantic):
        depth, scores = render_everywhere(density, semantic, rays, config)
        return torch.cat([depth[:, None], scores], dim=1)

    found, expected = (with_gradients(f, (density, semantic)) for f in (theirs, ours))
    assert_same(found, expected, rtol=1e-6, atol=2e-6)  # ours adds 1e-7 of the radius to every depth


SMALL_GRID = VoxelGrid(frame="ego", lower=(-5.2, -3.6, -1.0), upper=(5.2, 3.6, 3.0), voxel_size=(0.8, 0.8, 0.8))


@pytest.mark.parametrize("filled", [0.0, 0.05, 0.5, 1.0])
def test_ray_counts(filled):
    rng = np.random.default_rng(3)
    truth, said = (
        np.where(rng.random(SMALL_GRID.shape) < filled, rng.integers(0, 17, SMALL_GRID.shape), FREE).astype(np.uint8)
        for _ in range(2)
    )
    truth[rng.random(truth.shape) < 0.1] = UNKNOWN
    said[:7] = np.where(truth[:7] == UNKNOWN, FREE, truth[:7])  # so that some rays are right
    origins = np.array([[-4.0, 2.0, 0.4]])
    expected = count_rays(truth, said, origins, SMALL_GRID, OCC3D_LABELS)
    assert (expected.right_TK.sum() > 0) == (filled > 0)
    found = count_rays_one_by_one(truth, said, origins, SMALL_GRID, OCC3D_LABELS)
    for name in ("truth_K", "prediction_K", "right_TK"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_no_origin_has_no_rays():
    empty = np.full(SMALL_GRID.shape, FREE, np.uint8)
    for count in (count_rays, count_rays_one_by_one):
        assert count(empty, empty, np.zeros((0, 3)), SMALL_GRID, OCC3D_LABELS).truth_K.sum() == 0


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), density=st.sampled_from([0.0, 0.05, 1.0]))
def test_walk_of_a_ray(seed, density):
    """Half of the rays start on edges and run along diagonals and axes: there the rule for ties decides."""
    rng = np.random.default_rng(seed)
    occupied = rng.random((13, 9, 5)) < density
    whole = rng.random((30, 1)) < 0.5
    start = np.where(whole, rng.integers(0, 2, (30, 3)) / 2, rng.random((30, 3))) * (np.array(occupied.shape) - 0.1)
    direction = np.where(whole, rng.integers(-1, 2, (30, 3)), rng.normal(size=(30, 3)))
    length = np.linalg.norm(direction, axis=1)
    rays = Rays(start=start[length > 0], direction=direction[length > 0] / length[length > 0, None])
    hits = cast_rays(occupied, rays, 1.0)
    walks = [walk(occupied, s, d) for s, d in zip(rays.start.tolist(), rays.direction.tolist(), strict=True)]
    np.testing.assert_array_equal(hits.voxel, [np.ravel_multi_index(cell, occupied.shape) for cell, _ in walks])
    np.testing.assert_allclose(hits.distance, [distance for _, distance in walks], atol=1e-9)


def record(channel, sensor2ego, intrinsics=None, size=(0, 0)):
    return SensorRecord(
        token=channel,
        channel=channel,
        modality="lidar" if intrinsics is None else "camera",
        path=Path(channel),
        stamp_ns=0,
        is_key_frame=True,
        sensor2ego=sensor2ego,
        ego2global=transform(rotation_from_yaw(0.4), [600.0, 1600.0, 0.0]),
        intrinsics=intrinsics,
        width=size[0],
        height=size[1],
    )


@pytest.mark.parametrize("size", [(1600, 900), (200, 117), (33, 40)])
@pytest.mark.parametrize("count", [0, 1, 700])
def test_label_maps(size, count):
    rng = np.random.default_rng(count)
    optical = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    intrinsics = np.array([[0.8 * size[0], 0, size[0] / 2], [0, 0.8 * size[0], size[1] / 2], [0, 0, 1.0]])
    lidar = record("LIDAR_TOP", transform(np.eye(3), [0.9, 0.0, 1.84]))
    cameras = [
        record(f"CAM_{n}", transform(rotation_from_yaw(n) @ optical, [0.1, 0.2, 1.5]), intrinsics, size)
        for n in range(2)
    ]
    points = (rng.normal(size=(count, 5)) * rng.choice([0.3, 3.0, 30.0], (count, 1))).astype(np.float32)
    classes = rng.integers(0, 17, count).astype(np.uint8)
    ours, theirs = (paint(points, classes, lidar, cameras) for paint in (paint_pictures, paint_point_by_point))
    assert count < 700 or any((labels != FREE).any() for labels in theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)

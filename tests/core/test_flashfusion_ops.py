"""The raster and the pull lift agree with their references, forward and backward."""

import math

import pytest
import torch
from flashfusion_cases import HEIGHT, WIDTH, little_batch

from fusionocc_core.layers.pull_lift import BevMap, project_map, ray_channels
from fusionocc_core.layers.view_transform import cameras_at
from fusionocc_core.ops.pull_lift import PullPlan, pull_lift, pull_lift_reference
from fusionocc_core.ops.raster import RASTER_FEATURES, rasterize, rasterize_reference

RASTER = {"lower": (-2.0, -1.5, -1.0), "cell_size": (0.5, 0.5, 0.4), "shape_xyz": (8, 6, 4)}


def cloud(count, seed=0, columns=5):
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([-2.5, -2.0, -2.0]), torch.tensor([2.5, 2.0, 2.0])
    xyz = low + (high - low) * torch.rand(count, 3, generator=generator)
    return torch.cat([xyz, 255 * torch.rand(count, columns - 3, generator=generator)], dim=1)


def test_raster_agrees_with_its_reference():
    points = [cloud(700, 1), cloud(0), cloud(1, 2)]
    out = rasterize(points, **RASTER)
    torch.testing.assert_close(out, rasterize_reference(points, **RASTER), rtol=1e-5, atol=1e-5)
    assert out.shape == (3, 6 * RASTER_FEATURES, 6, 8)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert not out[1].any()


def test_raster_slices_and_features_are_where_they_belong():
    points = torch.tensor(
        [[-1.9, 1.4, -0.9, 51.0, 0], [-1.8, 1.3, -0.7, 153.0, 0], [1.0, 0.0, -9.0, 255.0, 0], [1.0, 0.0, 9.0, 0.0, 0]]
    )
    out = rasterize([points], **RASTER)[0].view(6, RASTER_FEATURES, 6, 8)
    assert out[1, :, 5, 0].tolist() == pytest.approx([math.log(3), 0.4, 0.0], abs=1e-5)
    assert out[0, :, 3, 6].tolist() == pytest.approx([math.log(2), 1.0, -0.5])
    assert out[5, :, 3, 6].tolist() == pytest.approx([math.log(2), 0.0, 0.5])
    assert out[:, 0].count_nonzero() == 3


def test_raster_drops_what_lies_beside_it_or_is_not_finite():
    inside = cloud(50, 3)
    beside = torch.tensor([[-2.01, 0, 0, 1, 0], [2.0, 0, 0, 1, 0], [0, 1.5, 0, 1, 0], [0, -1.51, 0, 1, 0]])
    bad = torch.tensor(
        [[math.nan, 0, 0, 1, 0], [0, 0, math.nan, 1, 0], [0, 0, math.inf, 1, 0], [0, -math.inf, 0, 1, 0]]
    )
    assert torch.equal(rasterize([torch.cat([inside, beside, bad])], **RASTER), rasterize([inside], **RASTER))
    torch.testing.assert_close(rasterize([bad], **RASTER), rasterize_reference([bad], **RASTER))


@pytest.mark.parametrize("points", [[], [torch.zeros(3, 3)], [torch.zeros(4)]])
def test_raster_refuses_other_clouds(points):
    with pytest.raises(ValueError, match=r"expected at least one, each \(P, 4 or more\)"):
        rasterize(points, **RASTER)


def random_plan(pairs=60, points=25, cameras=3, seed=0):
    """Pixels and depths inside, on the border of, and outside the maps of 4 x 5 cells and 6 bins."""
    generator = torch.Generator().manual_seed(seed)
    point = torch.randint(0, points, (pairs,), generator=generator).sort().values
    return PullPlan(
        point_Q=point,
        camera_Q=torch.randint(0, cameras, (pairs,), generator=generator),
        uv_Q2=torch.rand(pairs, 2, generator=generator) * torch.tensor([6.0, 5.0]) - 1,
        depth_bin_Q=torch.rand(pairs, generator=generator) * 9 - 2,
        weight_Q=1.0 / torch.bincount(point, minlength=points)[point],
        num_points=points,
    )


def test_pull_lift_agrees_with_its_reference_forward_and_backward():
    torch.manual_seed(0)
    plan = random_plan()
    maps = [torch.randn(3, 7, 4, 5), torch.rand(3, 6, 4, 5)]
    ours, theirs = ([m.clone().requires_grad_() for m in maps] for _ in range(2))
    one, other = pull_lift(*ours, plan), pull_lift_reference(*theirs, plan)
    torch.testing.assert_close(one, other)
    assert one.abs().sum() > 0
    weight = torch.randn_like(one)
    (one * weight).sum().backward()
    (other * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    unseen = torch.ones(25).bool()
    unseen[plan.point_Q] = False
    assert unseen.any()
    assert not one[unseen].any()


def test_pull_lift_of_a_constant_world_is_that_constant():
    """Every ray says 3 at every depth with probability 1: all points inside the maps say 3, whoever sees them."""
    plan = random_plan(pairs=40)
    inside = ((plan.uv_Q2 >= 0) & (plan.uv_Q2 <= torch.tensor([4.0, 3.0]))).all(dim=1)
    inside &= (plan.depth_bin_Q >= 0) & (plan.depth_bin_Q <= 5)
    plan = PullPlan(
        point_Q=plan.point_Q[inside],
        camera_Q=plan.camera_Q[inside],
        uv_Q2=plan.uv_Q2[inside],
        depth_bin_Q=plan.depth_bin_Q[inside],
        weight_Q=1.0 / torch.bincount(plan.point_Q[inside], minlength=25)[plan.point_Q[inside]],
        num_points=25,
    )
    out = pull_lift(torch.full((3, 2, 4, 5), 3.0), torch.ones(3, 6, 4, 5), plan)
    torch.testing.assert_close(out[plan.point_Q], torch.full((len(plan.point_Q), 2), 3.0))


def test_pull_lift_without_cameras_or_points_is_zero():
    plan = random_plan(pairs=0)
    assert not pull_lift(torch.zeros(0, 2, 4, 5), torch.zeros(0, 6, 4, 5), plan).any()
    with pytest.raises(ValueError, match="differ in cameras or cells"):
        pull_lift(torch.zeros(3, 2, 4, 5), torch.zeros(3, 6, 4, 4), plan)


def test_autocast_leaves_the_geometry_alone():
    cameras = cameras_at(little_batch(), 0)
    bev = BevMap(lower=(-15.0, -14.0), cell_size=(2.0, 1.5), shape=(15, 18))
    exact = *project_map(bev, (0.0, 1.3), cameras), ray_channels(cameras, (HEIGHT, WIDTH), 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = *project_map(bev, (0.0, 1.3), cameras), ray_channels(cameras, (HEIGHT, WIDTH), 16)
    for one, other in zip(exact, rounded, strict=True):
        assert torch.equal(one, other)

"""Parts of GaussianFormer: places and shapes of Gaussians, cells, where they begin, heads, losses, metrics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussianformer_cases import golden, little_config

from fusionocc_core.data.surroundocc import SURROUNDOCC_LABELS
from fusionocc_core.gaussians import Gaussians
from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.layers.gaussian_anchors import AnchorConfig, AnchorSpace, rotated
from fusionocc_core.layers.gaussian_attention import AttentionConfig, DeformableAttention, Views
from fusionocc_core.layers.gaussian_head import (
    AdditiveHead,
    AdditiveHeadConfig,
    EmptyGaussianConfig,
    ProbabilisticHead,
    ProbabilisticHeadConfig,
    semantic_columns,
)
from fusionocc_core.layers.gaussian_lifter import RayLifter, RayLifterConfig
from fusionocc_core.layers.gaussian_sparse_conv import (
    GaussianSparseConv,
    SparseConvConfig,
    cells_of,
    convolve_like_spconv,
    convolve_pooled,
)
from fusionocc_core.losses import LossConfig, Targets, compute_losses, gaussianformer_losses
from fusionocc_core.losses.gaussian_rays import occupied_points, ray_occupancy
from fusionocc_core.metrics.surroundocc import surroundocc_scores
from fusionocc_core.ops.gaussian_splat import SplatOptions
from fusionocc_core.ops.rulebook import submanifold_rulebook
from fusionocc_core.ops.sparse_conv import submanifold_conv3d
from fusionocc_core.ops.sparse_volume import sparse_volume
from fusionocc_core.structures import Outputs, RayOutputs

GRID = VoxelGrid(frame="ego", lower=(-8.0, -4.0, -1.0), upper=(8.0, 4.0, 3.0), voxel_size=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def misc(shared):
    return golden(shared / "goldens" / "gaussianformer" / "ops_misc.npz")


def space(**changes):
    return AnchorSpace(AnchorConfig(**{"classes": 3, "scale_range": (0.1, 2.0), **changes}), GRID)


def test_rotations_of_the_official_code(misc):
    q = misc["rot.q"]
    ones = torch.ones(1, len(q))
    gaussians = Gaussians(
        means_BG3=torch.zeros(1, len(q), 3),
        scales_BG3=torch.ones(1, len(q), 3),
        rotations_BG4=q[None],
        opacities_BG=ones,
        semantics_BGC=ones[..., None],
    )
    torch.testing.assert_close(gaussians.frame2local_BG33()[0], misc["rot.R"], rtol=0, atol=1e-6)


def test_rows_and_what_they_stand_for():
    torch.manual_seed(0)
    anchors = space(semantics="softmax")
    rows = torch.randn(2, 50, 14) * 5
    gaussians = anchors.gaussians(rows)
    lower, upper = torch.tensor(GRID.lower), torch.tensor(GRID.upper)
    assert ((gaussians.means_BG3 > lower) & (gaussians.means_BG3 < upper)).all()
    assert ((gaussians.scales_BG3 > 0.1) & (gaussians.scales_BG3 < 2.0)).all()
    torch.testing.assert_close(gaussians.semantics_BGC.sum(-1), torch.ones(2, 50))
    torch.testing.assert_close(anchors.means(anchors.positions(gaussians.means_BG3)), gaussians.means_BG3)
    outside = torch.tensor([[-9.0, 4.0, 7.0]])
    assert (anchors.means(anchors.positions(outside)) - torch.tensor([[-8.0, 4.0, 3.0]])).abs().max() < 2e-3
    offsets = torch.randn(2, 50, 4, 3)
    expected = torch.einsum("bgij,bgki->bgkj", gaussians.frame2local_BG33(), offsets)
    torch.testing.assert_close(rotated(offsets, rows), expected)
    bare = space(opacity=False)
    assert bare.config.width == 13
    assert (bare.gaussians(bare.fresh_rows(4)[None]).opacities_BG == 1).all()
    with pytest.raises(ValueError, match="rows of 13 numbers; expected 14"):
        anchors.parts(rows[..., 1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_range": (0.0, 1.0)}, "scale_range"),
        ({"scale_range": (2.0, 1.0)}, "scale_range"),
        ({"classes": 0}, "classes=0"),
        ({"semantics": "sigmoid"}, "semantics='sigmoid'"),
    ],
)
def test_rows_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        space(**change)


def cells_of_indices(indices_P4):
    """Gaussians in the middle of given cells of 1 m."""
    middle = torch.tensor(GRID.lower) + indices_P4[:, 1:] + 0.5
    return cells_of(middle[None], GRID)


def test_several_in_a_cell_as_in_the_official_library(misc):
    indices, x, weight = (
        misc["subm.indices"],
        misc["subm.x"].clone().requires_grad_(),
        misc["subm.weight_KRSC"].clone().requires_grad_(),
    )
    shape = tuple((indices[:, 1:].max(dim=0).values + 1).tolist())
    grid = VoxelGrid(frame="ego", lower=(0.0, 0.0, 0.0), upper=tuple(float(n) for n in shape), voxel_size=(1.0,) * 3)
    cells = cells_of((indices[:, 1:] + 0.5)[None], grid)
    assert len(cells.coords_S4) == 53
    rulebook = submanifold_rulebook(cells.volume(x[cells.first_S]), (5, 5, 5))
    ours = convolve_like_spconv(x, cells, weight, rulebook) + misc["subm.bias"]
    torch.testing.assert_close(ours, misc["subm.out"], rtol=0, atol=1e-5)
    grads = torch.autograd.grad(ours, [x, weight], misc["subm.gradout"])
    torch.testing.assert_close(grads[0], misc["subm.grad_x"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads[1], misc["subm.grad_w"], rtol=1e-4, atol=1e-5)


def test_alone_in_its_cell_all_rules_are_the_same_convolution(misc):
    keep = misc["subm_unique.keep"]
    indices, x, weight = misc["subm.indices"][keep], misc["subm.x"][keep], misc["subm.weight_KRSC"]
    cells = cells_of((indices[:, 1:] + 0.5)[None], replace(GRID, lower=(0.0,) * 3, upper=(64.0,) * 3))
    rulebook = submanifold_rulebook(cells.volume(x[cells.first_S]), (5, 5, 5))
    for rule in (convolve_like_spconv, convolve_pooled):
        ours = rule(x, cells, weight, rulebook) + misc["subm.bias"]
        torch.testing.assert_close(ours, misc["subm_unique.out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_sharing_a_cell_hangs_on_no_order(layers):
    torch.manual_seed(2)
    conv = GaussianSparseConv(SparseConvConfig(cell=2.0, layers=layers), 4, GRID).eval()
    feature, means = torch.randn(2, 40, 4), (torch.rand(2, 40, 3) - 0.5) * torch.tensor([16.0, 8.0, 4.0]) + 1e-3
    means[..., 2] += 1.0
    order = torch.randperm(40)
    torch.testing.assert_close(conv(feature[:, order], means[:, order]), conv(feature, means)[:, order])
    torch.testing.assert_close(conv(feature[1:], means[1:]), conv(feature, means)[1:])
    same = conv(torch.randn(1, 3, 4), torch.full((1, 3, 3), 0.25))
    torch.testing.assert_close(same[:, 0], same[:, 2])  # all three in one cell


def test_pooling_is_the_mean_of_a_cell():
    x, weight = torch.randn(3, 4), torch.randn(2, 5, 5, 5, 4)
    cells = cells_of_indices(torch.tensor([[0, 5, 2, 1], [0, 6, 2, 1], [0, 5, 2, 1]]))
    merged = sparse_volume(
        torch.stack([(x[0] + x[2]) / 2, x[1]]), torch.tensor([[0, 5, 2, 1], [0, 6, 2, 1]]), GRID.shape, 1
    )
    expected = submanifold_conv3d(merged, weight).features_MC
    torch.testing.assert_close(convolve_pooled(x, cells, weight, None), expected[[0, 1, 0]])


def looking(seen: float = 1.0):
    """A Gaussian attention, and views of one camera ahead and one behind."""
    torch.manual_seed(1)
    anchors = space()
    attention = DeformableAttention(AttentionConfig(learned_points=2, groups=2), 8, 2, anchors).eval()
    torch.nn.init.normal_(attention.weights_fc.weight)
    projection = torch.zeros(1, 2, 4, 4)
    projection[..., 3, 3] = 1
    for camera, sign in ((0, 1.0), (1, -1.0)):  # x ahead (or behind), y left
        projection[0, camera, 0] = torch.tensor([16.0 * sign, -16.0 * sign, 0, 0])
        projection[0, camera, 1] = torch.tensor([12.0 * sign, 0, -16.0, 0])
        projection[0, camera, 2] = torch.tensor([sign, 0, 0, 0])
    views = Views(
        maps_BNChw=(torch.randn(1, 2, 8, 6, 8), torch.randn(1, 2, 8, 3, 4)),
        projection_BN44=projection,
        image_size=(24, 32),
    )
    rows = anchors.fresh_rows(30)[None]
    return attention, views, torch.randn(1, 30, 8), torch.randn(1, 30, 8), rows


def test_weights_of_what_is_visible_sum_to_one():
    attention = looking()[0]
    visible = torch.rand(1, 2, 30, 9) < 0.2
    visible[:, :, 0] = False
    weights = attention.weights(torch.randn(1, 2, 30, 9, 2, 2), visible)
    assert (weights[~visible] == 0).all()
    torch.testing.assert_close(weights.sum(dim=(1, 3, 4))[:, 1:], torch.ones(1, 29, 2))
    assert not weights[:, :, 0].any()
    attention.train()
    torch.manual_seed(0)
    logits = torch.zeros(1, 2, 30, 9, 2, 2, requires_grad=True)
    dropped = attention.weights(logits, torch.ones_like(visible))
    assert 0.1 < float((dropped == 0).float().mean()) < 0.2
    dropped.square().sum().backward()
    assert logits.grad.isfinite().all()


def test_attention_in_parts_and_with_cameras_left_out():
    attention, views, feature, embedding, rows = looking()
    whole = attention(feature, embedding, rows, views)
    attention.config = replace(attention.config, gaussians_at_once=7)
    feature.requires_grad_()
    parts = attention(feature, embedding, rows, views)
    torch.testing.assert_close(parts, whole)
    parts.sum().backward()
    assert feature.grad.isfinite().all()
    first = replace(views, present_BN=torch.tensor([[True, False]]))
    alone = Views(
        maps_BNChw=tuple(m[:, :1] for m in views.maps_BNChw),
        projection_BN44=views.projection_BN44[:, :1],
        image_size=views.image_size,
    )
    torch.testing.assert_close(attention(feature, embedding, rows, first), attention(feature, embedding, rows, alone))
    none = replace(views, present_BN=torch.zeros(1, 2, dtype=torch.bool))
    unseen = attention(feature, embedding, rows, none)
    torch.testing.assert_close(unseen, attention.output_proj.bias.expand_as(unseen))
    swapped = Views(
        maps_BNChw=tuple(m.flip(1) for m in views.maps_BNChw),
        projection_BN44=views.projection_BN44.flip(1),
        image_size=views.image_size,
    )
    torch.testing.assert_close(attention(feature, embedding, rows, swapped), whole)


def ray_lifter(**changes):
    config = little_config().lifter
    torch.manual_seed(3)
    return RayLifter(replace(config, **{"drawn": 12, "learned": 3, **changes}), space(), GRID, 8, (4, 4, 4, 4))


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_exactly_as_many_points_as_wanted(count):
    lifter = ray_lifter().eval()
    points = (torch.rand(count, 3) - 0.5) * torch.tensor([16.0, 8.0, 2.0])
    outside = torch.tensor([[9.0, 0, 0], [0, 0, 3.0]])
    spread = lifter.spread(torch.cat([points, outside]), torch.Generator().manual_seed(0))
    lower, upper = torch.tensor(GRID.lower), torch.tensor(GRID.upper)
    assert spread.shape == (12, 3)
    assert ((spread >= lower) & (spread < upper)).all()
    if count:
        assert torch.cdist(spread, points).min(dim=1).values.max() < 1.0
    again = lifter.spread(torch.cat([points, outside]), torch.Generator().manual_seed(0))
    assert torch.equal(spread, again)


def some_rays(lifter, logits_BNhwE):
    projection = torch.zeros(*logits_BNhwE.shape[:2], 4, 4)
    projection[..., :3, :3] = torch.tensor([[32.0, -32.0, 0], [32.0, 0, -32.0], [1, 0, 0]])
    projection[..., 3, 3] = 1
    return RayOutputs(
        logits_BNhwE=logits_BNhwE,
        projection_BN44=projection,
        depths=lifter.config.depth_list(),
        image_size=(64, 64),
        grid=GRID,
    )


def test_points_are_drawn_where_rays_expect_something():
    lifter = ray_lifter(depths=(1.0, 8.0), num_depths=8).eval()
    logits = torch.full((1, 1, 8, 8, 9), -20.0)
    logits[..., 4, 4, 3] = 20.0  # one pixel is sure of 4 m; the others of nothing
    logits[..., 8] = 0.0
    points = lifter.points(some_rays(lifter, logits), None)
    assert points.shape == (1, 12, 3)
    assert (points[0, :, 0] - 4.0).abs().max() < 0.5  # x is the depth; copies are noisy
    seeded = [lifter.points(some_rays(lifter, torch.zeros(1, 1, 8, 8, 9)), None) for _ in range(2)]
    assert torch.equal(*seeded)
    lifter.config = replace(lifter.config, draws="global")
    free = [lifter.points(some_rays(lifter, torch.zeros(1, 1, 8, 8, 9)), None) for _ in range(2)]
    assert not torch.equal(*free)


def test_absent_cameras_draw_nothing():
    lifter = ray_lifter(depths=(1.0, 8.0), num_depths=8).eval()
    logits = torch.full((1, 2, 8, 8, 9), -20.0)
    logits[:, 0, ..., 2], logits[:, 1, ..., 6] = 0.0, 0.0
    points = lifter.points(some_rays(lifter, logits), torch.tensor([[True, False]]))
    assert (points[..., 0] - 3.0).abs().max() < 1e-4


@pytest.mark.parametrize(
    "change", [{"drawn": 0}, {"learned": -1}, {"depths": (0.0, 5.0)}, {"depths": (5.0, 5.0)}, {"num_depths": 1}]
)
def test_lifters_that_cannot_be(change):
    with pytest.raises(ValueError, match="RayLifterConfig"):
        RayLifterConfig(**{"drawn": 4, "learned": 4, **change})
    with pytest.raises(ValueError, match="draws='dice'"):
        RayLifterConfig(drawn=4, learned=4, draws="dice")


def some_gaussians(count=40, classes=17):
    anchors = AnchorSpace(AnchorConfig(classes=classes, scale_range=(0.2, 2.0), semantics="softmax"), GRID)
    torch.manual_seed(5)
    return anchors.gaussians(anchors.fresh_rows(count)[None])


def test_probabilities_sum_to_one_and_empty_space_is_free():
    head = ProbabilisticHead(ProbabilisticHeadConfig(splat=SplatOptions(reach=4.0)), GRID, OCC3D_LABELS)
    logits = head(some_gaussians())
    assert logits.shape == (1, 18, 16, 8, 4)
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(1, 16, 8, 4), rtol=0, atol=5e-5)
    nothing = head(some_gaussians(0))
    assert (nothing.argmax(dim=1) == OCC3D_LABELS.free).all()
    assert nothing.isfinite().all()


def test_the_empty_gaussian_is_a_gaussian():
    """Its closed form against splatting it as one of the set."""
    empty = EmptyGaussianConfig(mean=(1.0, 0.5, 0.0), scales=(6.0, 5.0, 2.0), start=3.0)
    gaussians = some_gaussians(5)
    ours = AdditiveHead(AdditiveHeadConfig(empty=empty), GRID, OCC3D_LABELS)(gaussians)
    widened = [torch.cat([gaussians.semantics_BGC, torch.zeros(1, 5, 1)], dim=2), torch.zeros(1, 1, 18)]
    widened[1][..., 17] = 3.0
    joined = Gaussians(
        means_BG3=torch.cat([gaussians.means_BG3, torch.tensor([[empty.mean]])], dim=1),
        scales_BG3=torch.cat([gaussians.scales_BG3, torch.tensor([[empty.scales]])], dim=1),
        rotations_BG4=torch.cat([gaussians.rotations_BG4, torch.tensor([[[1.0, 0, 0, 0]]])], dim=1),
        opacities_BG=torch.cat([gaussians.opacities_BG, torch.ones(1, 1)], dim=1),
        semantics_BGC=torch.cat(widened, dim=1),
    )
    reach = SplatOptions(reach=30.0)
    assert semantic_columns(AdditiveHeadConfig(), OCC3D_LABELS) == 18
    whole = AdditiveHead(AdditiveHeadConfig(splat=reach), GRID, OCC3D_LABELS)(joined)
    free = OCC3D_LABELS.free
    torch.testing.assert_close(ours.detach()[:, free], whole[:, free], rtol=1e-5, atol=1e-5)


def test_free_space_must_be_the_last_class():
    with pytest.raises(ValueError, match="free=3 of the label set 'occ3d' must be its last class, 17"):
        semantic_columns(ProbabilisticHeadConfig(), replace(OCC3D_LABELS, free=3))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_losses_and_gradients_of_the_official_code(version, misc):
    said = misc["loss.v1.logits" if version == "v1" else "loss.v2.probs"].clone().requires_grad_()
    scores = said if version == "v1" else said.clamp(1e-6, 1 - 1e-6).log()
    config = gaussianformer_losses()
    torch.testing.assert_close(torch.tensor(config.class_weights), misc["loss.class_weights"], rtol=1e-4, atol=0)
    targets = Targets(labels_BXYZ=misc["loss.labels"].to(torch.uint8)[..., None, None])  # here noise counts, too
    losses = compute_losses(Outputs(logits_BKXYZ=scores[..., None, None]), targets, config, SURROUNDOCC_LABELS)
    torch.testing.assert_close(losses.terms["cross_entropy"] / 10, misc[f"loss.{version}.ce"], rtol=1e-4, atol=0)
    torch.testing.assert_close(losses.terms["lovasz_occupied"], misc[f"loss.{version}.lovasz"], rtol=1e-4, atol=0)
    (grad,) = torch.autograd.grad(losses.total, said)
    reference = misc[f"loss.{version}.grad"]
    torch.testing.assert_close(grad, reference, rtol=1e-3, atol=1e-3 * float(reference.abs().max()))


def test_ray_loss_of_the_official_code(misc):
    probability = misc["loss.pixel.logits"].softmax(dim=-1)
    expected = torch.nn.functional.binary_cross_entropy(probability, misc["loss.pixel.gt"].float())
    torch.testing.assert_close(expected, misc["loss.pixel.bce_softmax"], rtol=1e-5, atol=0)


def test_what_rays_meet():
    """A wall at x = 5 m, unknown behind it."""
    lifter = ray_lifter(depths=(1.0, 8.0), num_depths=8)
    labels = torch.full((1, *GRID.shape), OCC3D_LABELS.free, dtype=torch.uint8)
    labels[:, 13], labels[:, 14:] = 15, OCC3D_LABELS.unknown
    rays = some_rays(lifter, torch.zeros(1, 1, 8, 8, 9, requires_grad=True))
    occupied, known = occupied_points(rays, labels, free=OCC3D_LABELS.free, unknown=OCC3D_LABELS.unknown)
    ahead = (0, 0, 4, 4)
    assert occupied[ahead].tolist() == [False] * 4 + [True] + [False] * 4
    assert known[ahead].tolist() == [True] * 5 + [False, False, True, True]  # 8 m is outside the grid; "none" is wrong
    steep = occupied[0, 0, 0]  # upwards, out of the grid: nothing there
    assert steep[:, :4].any() or steep[:, 8].all()
    loss = ray_occupancy(rays, labels, free=OCC3D_LABELS.free, unknown=OCC3D_LABELS.unknown)
    (grad,) = torch.autograd.grad(loss, rays.logits_BNhwE)
    assert grad[ahead][4] < 0
    nowhere = torch.full_like(labels, OCC3D_LABELS.unknown)
    assert ray_occupancy(rays, nowhere, free=OCC3D_LABELS.free, unknown=OCC3D_LABELS.unknown).isfinite()


def test_losses_that_need_rays_say_so():
    outputs = Outputs(logits_BKXYZ=torch.zeros(1, 18, 2, 2, 2))
    targets = Targets(labels_BXYZ=torch.zeros(1, 2, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"outputs\.rays is None.*LossConfig\.ray_occupancy=0"):
        compute_losses(outputs, targets, LossConfig(ray_occupancy=1.0), OCC3D_LABELS)


def test_scores_of_earlier_sets_count_as_much():
    torch.manual_seed(0)
    first, last = torch.randn(2, 1, 18, 4, 4, 2).unbind(0)
    targets = Targets(labels_BXYZ=torch.randint(0, 18, (1, 4, 4, 2), dtype=torch.uint8))
    config = gaussianformer_losses()
    alone = [compute_losses(Outputs(logits_BKXYZ=x), targets, config, OCC3D_LABELS).total for x in (first, last)]
    both = compute_losses(Outputs(logits_BKXYZ=last, earlier_logits=(first,)), targets, config, OCC3D_LABELS).total
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


def test_scores_of_the_official_metric(misc):
    confusion = np.zeros((18, 18), dtype=np.int64)
    for frame in (0, 1):
        truth, predicted = misc[f"metric.gt{frame}"].numpy(), misc[f"metric.pred{frame}"].numpy()
        known = truth != 0
        np.add.at(confusion, (truth[known], predicted[known]), 1)
    scores = surroundocc_scores(confusion)
    assert abs(100 * scores.miou - float(misc["metric.miou"])) < 1e-5
    assert abs(100 * scores.iou - float(misc["metric.iou"])) < 1e-5
    with pytest.raises(ValueError, match=r"\(18, 17\)"):
        surroundocc_scores(confusion[:, 1:])

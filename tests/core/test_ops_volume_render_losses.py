"""Losses on rendered rays: against plain formulas, and where there is nothing to learn from."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fusionocc_core.losses.rendering import (
    NUSCENES_RAY_COUNTS,
    RenderingLossConfig,
    ray_entropy,
    rendering_losses,
    renderocc_losses,
    silog_depth,
)
from fusionocc_core.ops.volume_render import RenderedRays
from fusionocc_core.ops.volume_render_rays import Rays

UNKNOWN = 255
LOGGER = "fusionocc_core.losses.rendering"


def example(rays: int = 12, classes: int = 17) -> tuple[RenderedRays, Rays]:
    generator = torch.Generator().manual_seed(0)
    rendered = RenderedRays(
        depth_R=torch.rand(rays, generator=generator).mul(30).requires_grad_(),
        semantic_RK=torch.randn(rays, classes, generator=generator).requires_grad_(),
        transmittance_R=torch.rand(rays, generator=generator).requires_grad_(),
        distortion_R=torch.rand(rays, generator=generator).requires_grad_(),
        places_R=torch.ones(rays, dtype=torch.int64),
        near_R=torch.rand(rays, generator=generator).requires_grad_(),
    )
    measured = Rays(
        origin_R3=torch.zeros(rays, 3),
        direction_R3=torch.tensor([1.0, 0.75, 0.0]).expand(rays, 3),
        depth_R=1 + 30 * torch.rand(rays, generator=generator),
        label_R=torch.arange(rays) % classes,
        sample_R=torch.arange(rays) % 2,
        current_R=torch.ones(rays, dtype=torch.bool),
    )
    return rendered, measured


def leaves(rendered: RenderedRays) -> list[torch.Tensor]:
    return [rendered.depth_R, rendered.semantic_RK, rendered.transmittance_R, rendered.distortion_R]


@pytest.mark.parametrize("target", ["range", "z"])
def test_terms_are_means_over_samples_of_plain_formulas(target):
    rendered, rays = example()
    rays.sample_R[3:] = 0  # samples of different size: ray 1 alone, and the others
    config = renderocc_losses(target=target)
    losses = rendering_losses(rendered, rays, config, unknown=UNKNOWN)
    expected = dict.fromkeys(losses.terms, 0.0)
    for b in (0, 1):
        own = rays.sample_R == b
        error = [
            math.log(d + 1e-7) - math.log(t * (1.25 if target == "range" else 1))
            for d, t in zip(rendered.depth_R[own].tolist(), rays.depth_R[own].tolist(), strict=True)
        ]
        mean, square = sum(error) / len(error), sum(e * e for e in error) / len(error)
        expected["rendered_depth"] += math.sqrt(square - 0.85 * mean**2) / 2
        weight = torch.tensor([1 / math.log(n + 0.001) for n in NUSCENES_RAY_COUNTS])
        entropy = F.cross_entropy(rendered.semantic_RK[own], rays.label_R[own], weight=weight)
        expected["rendered_semantic"] += entropy.item() / 2
        through = rendered.transmittance_R[own].tolist()
        nats = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in through]
        expected["entropy"] += 0.01 * sum(nats) / len(nats) / 2
        expected["distortion"] += 0.01 * rendered.distortion_R[own].mean().item() / 2
    assert {name: value.item() for name, value in losses.terms.items()} == pytest.approx(expected, rel=1e-5)
    assert [part.labelled for part in losses.parts] == [12] * 4


def test_rays_without_depth_or_class_count_where_they_can():
    rendered, rays = example()
    rays.depth_R[:4] = torch.tensor([0.0, math.nan, math.inf, -1.0])
    rays.label_R[-3:] = UNKNOWN
    losses = rendering_losses(rendered, rays, RenderingLossConfig(), unknown=UNKNOWN)
    assert {part.name: part.labelled for part in losses.parts} == {
        "rendered_depth": 8,
        "rendered_semantic": 9,
        "entropy": 12,
        "distortion": 12,
    }
    losses.total.backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves(rendered))
    assert (rendered.depth_R.grad[:4] == 0).all()
    assert (rendered.semantic_RK.grad[-3:] == 0).all()


@pytest.mark.parametrize("missing", ["no ray at all", "no depth", "no class"])
def test_a_term_without_rays_is_zero_and_the_log_names_it(missing, caplog):
    rendered, rays = example(rays=0 if missing == "no ray at all" else 12)
    if missing == "no depth":
        rays = replace(rays, depth_R=torch.zeros(12))
    if missing == "no class":
        rays = replace(rays, label_R=torch.full((12,), UNKNOWN))
    with caplog.at_level(logging.INFO, LOGGER):
        losses = rendering_losses(rendered, rays, RenderingLossConfig(), unknown=UNKNOWN)
    skipped = {
        "no ray at all": {"rendered_depth", "rendered_semantic", "entropy", "distortion"},
        "no depth": {"rendered_depth"},
        "no class": {"rendered_semantic"},
    }[missing]
    assert {name for name in losses.terms if f"loss {name}:" in caplog.text} == skipped
    for part in losses.parts:
        assert (part.labelled == 0) == (part.name in skipped)
        assert part.name not in skipped or part.value == 0
    losses.total.backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves(rendered))


def test_perfect_depth_has_no_gradient_and_no_nan():
    depth = torch.tensor([3.0, 5.0], requires_grad=True)
    silog_depth(depth, torch.tensor([3.0, 5.0]), variance_focus=0.85).backward()
    assert (depth.grad == 0).all()


def test_depth_zero_and_full_opacity_stay_finite():
    depth, through = torch.zeros(2, requires_grad=True), torch.tensor([0.0, 1.0], requires_grad=True)
    (silog_depth(depth, torch.tensor([3.0, 5.0]), variance_focus=0.85) + ray_entropy(through)).backward()
    assert depth.grad.isfinite().all()
    assert through.grad.isfinite().all()


def test_a_common_factor_is_nearly_forgiven():
    target = torch.tensor([2.0, 10.0, 30.0])
    common = silog_depth(1.5 * target, target, variance_focus=0.85)
    assert common.item() == pytest.approx(math.sqrt(0.15) * math.log(1.5), rel=1e-5)


@pytest.mark.parametrize("label", [-1, 17, 254])
def test_labels_that_are_no_class_are_refused(label):
    rendered, rays = example()
    rays.label_R[5] = label
    with pytest.raises(ValueError, match=rf"Rays.label_R holds \[{label}\]; expected 0..16, or 255"):
        rendering_losses(rendered, rays, RenderingLossConfig(), unknown=UNKNOWN)


def test_other_bad_input_is_refused():
    rendered, rays = example()
    with pytest.raises(ValueError, match="12 rendered rays, but 5 rays"):
        rendering_losses(rendered, rays.select(slice(5)), RenderingLossConfig(), unknown=UNKNOWN)
    with pytest.raises(ValueError, match="2 weights for 17 classes"):
        rendering_losses(rendered, rays, RenderingLossConfig(class_weights=(1.0, 1.0)), unknown=UNKNOWN)
    for wrong in ({"target": "x"}, {"entropy": -1.0}, {"variance_focus": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RenderingLossConfig(**wrong)
    with pytest.raises(ValueError, match="one must be positive"):
        RenderingLossConfig(rendered_depth=0.0, rendered_semantic=0.0, entropy=0.0, distortion=0.0)


def test_rays_are_wanted_to_end_where_something_was_measured():
    rendered, rays = example()
    rays.depth_R[:4] = torch.tensor([0.0, math.nan, math.inf, -1.0])
    config = RenderingLossConfig(rendered_depth=0.0, rendered_semantic=0.0, entropy=0.0, distortion=0.0, sight=2.0)
    losses = rendering_losses(rendered, rays, config, unknown=UNKNOWN)
    shares = [rendered.near_R[4:][rays.sample_R[4:] == b] for b in (0, 1)]
    expected = sum(-(s + 0.01).log().mean() for s in shares)  # weight 2, mean of two samples
    torch.testing.assert_close(losses.terms["sight"], expected)
    assert losses.parts[0].labelled == 8
    losses.total.backward()
    assert (rendered.near_R.grad[:4] == 0).all()
    assert (rendered.near_R.grad[4:] < 0).all()

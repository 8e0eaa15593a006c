"""RenderOcc and UniOcc: what must hold of any of them, and the rendering losses for every network."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from flashocc_cases import little_config as flashocc_config
from fusionocc_cases import random_batch
from renderocc_cases import little_config

from fusionocc_core.data.render_rays import rendering_of
from fusionocc_core.engine.reporting import resident_bytes
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.layers.density_head import DensityHeadConfig, density_outputs, two_step_logits
from fusionocc_core.layers.view_transform import measured_depth_bins
from fusionocc_core.losses import LossConfig, RenderingLossConfig, Targets, compute_losses
from fusionocc_core.losses.rendering import density_volume, renderocc_losses
from fusionocc_core.models.flashocc import FlashOcc
from fusionocc_core.models.renderocc import RenderOcc
from fusionocc_core.ops.volume_render_rays import Rays
from fusionocc_core.structures import Outputs

SQUARE = {"lower": (-8.0, -8.0, -1.0), "upper": (8.0, 8.0, 5.4), "voxel_size": (0.5, 0.5, 0.8)}


def square(config):
    """The same network over a square, which rendering_of knows how to render."""
    return replace(config, grid=replace(config.grid, **SQUARE))


def rays(count: int, samples: int = 1, seed: int = 0, label: int | None = None) -> Rays:
    generator = torch.Generator().manual_seed(seed)
    turn = torch.rand(count, generator=generator) * 6.28
    return Rays(
        origin_R3=torch.tensor([[0.5, 0.0, 1.6]]).repeat(count, 1),
        direction_R3=torch.stack([turn.cos(), turn.sin(), -0.3 * torch.rand(count, generator=generator)], dim=1),
        depth_R=1 + 6 * torch.rand(count, generator=generator),
        label_R=torch.full((count,), label) if label is not None else torch.arange(count) % 17,
        sample_R=torch.arange(count) % samples,
        current_R=torch.ones(count, dtype=torch.bool),
    )


def targets(config, samples: int, some: Rays) -> Targets:
    labels = torch.randint(0, 18, (samples, *config.grid.shape), generator=torch.Generator().manual_seed(1))
    return Targets(labels_BXYZ=labels.to(torch.uint8), rays=some)


@pytest.mark.parametrize("decoder", ["plane", "volume"])
@pytest.mark.parametrize("cameras", [1, 3])
def test_outputs_fit_together_and_samples_are_apart(decoder, cameras):
    config = little_config(decoder)
    torch.manual_seed(0)
    model = RenderOcc(config).eval()
    both = random_batch(config, samples=2, cameras=cameras, seed=3)
    with torch.no_grad():
        outputs = model(both)
    assert outputs.logits_BKXYZ.shape == (2, 18, *config.grid.shape)
    assert outputs.density.semantic_BXYZK.shape == (2, *config.grid.shape, 17)
    occupied = outputs.density.occupied_logits_BXYZ
    edge = config.grid.voxel_size[0]
    torch.testing.assert_close(1 - torch.exp(-outputs.density.density_BXYZ * edge), occupied.sigmoid())
    labels = outputs.logits_BKXYZ.argmax(dim=1)
    expected = torch.where(occupied > 0, outputs.density.semantic_BXYZK.argmax(dim=-1), OCC3D_LABELS.free)
    assert torch.equal(labels, expected)
    swapped = {name: getattr(both, name).flip(0) for name in ("images_BTNCHW", "intrinsics_BTN33", "image_aug_BTN44")}
    poses = {"cam2keyego_BTN44": both.cam2keyego_BTN44.flip(0), "bev_aug_B44": both.bev_aug_B44.flip(0)}
    with torch.no_grad():
        again = model(replace(both, **swapped, **poses))
    torch.testing.assert_close(again.logits_BKXYZ.flip(0), outputs.logits_BKXYZ, rtol=1e-4, atol=1e-5)


def test_the_answer_is_that_of_the_two_steps():
    generator = torch.Generator().manual_seed(0)
    scores, semantic = torch.randn(1, 4, 5, 3, 2, generator=generator), torch.randn(1, 4, 5, 3, 4, generator=generator)
    for config in (
        DensityHeadConfig(),
        DensityHeadConfig(density="official"),
        DensityHeadConfig(density="official", decision="density", threshold=0.7),
    ):
        density = density_outputs(config, scores[..., : config.scores], semantic, edge=0.4)
        decided = density.occupied_logits_BXYZ > 0 if config.decision == "score" else density.density_BXYZ > 0.7
        assert 5 < decided.sum() < 55
        best = semantic.argmax(dim=-1)
        for free in (0, 2, 4):
            expected = torch.where(decided, best + (best >= free).long(), free)
            assert torch.equal(two_step_logits(config, density, free=free).argmax(dim=1), expected)
    with pytest.raises(ValueError, match=r"density='s'.*expected one of"):
        DensityHeadConfig(density="s")


def test_densities_of_class_scores_stop_a_ray_as_often_as_a_voxel_is_occupied():
    logits = torch.randn(1, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    by_odds = rendering_of(square(little_config()).grid)
    render = replace(by_odds, opacity="metric")
    for free in (0, 3):
        volume = density_volume(Outputs(logits_BKXYZ=logits), render, free=free)
        occupied = 1 - logits.softmax(dim=1)[:, free]
        odds = density_volume(Outputs(logits_BKXYZ=logits), by_odds, free=free).density_BXYZ
        torch.testing.assert_close(odds.sigmoid(), occupied)
        torch.testing.assert_close(1 - torch.exp(-volume.density_BXYZ * 0.5), occupied)
        assert torch.equal(volume.semantic_BXYZK[..., -1], logits[:, 2 if free == 3 else 3])
    with pytest.raises(ValueError, match=r"belongs to networks with Outputs\.density"):
        density_volume(Outputs(logits_BKXYZ=logits), renderocc_losses().render, free=3)


def networks():
    torch.manual_seed(0)
    yield RenderOcc(square(little_config("plane")))
    yield RenderOcc(square(little_config("volume")))
    yield FlashOcc(square(flashocc_config()))


@pytest.mark.parametrize("network", list(networks()), ids=lambda n: type(n).__name__)
def test_rays_alone_teach_any_network(network):
    config = network.config
    batch = random_batch(config, samples=1, cameras=2, seed=1)
    wanted = targets(config, 1, rays(32, label=13))
    loss = LossConfig(cross_entropy=0.0, rendering=RenderingLossConfig(render=rendering_of(config.grid, step=1.0)))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    seen = []
    for _ in range(6):
        losses = compute_losses(network.train()(batch), wanted, loss, OCC3D_LABELS)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        seen.append(losses.terms["rendered_depth"].item() + losses.terms["rendered_semantic"].item())
    assert seen[-1] < 0.9 * seen[0]
    touched = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any("img_backbone" in name for name in touched)


def test_bad_rays_are_named_and_missing_ones_told(caplog):
    config = square(little_config())
    outputs = Outputs(logits_BKXYZ=torch.randn(1, 18, *config.grid.shape, requires_grad=True))
    loss = LossConfig(cross_entropy=0.0, rendering=RenderingLossConfig(render=rendering_of(config.grid)))

    def terms(some):
        return compute_losses(outputs, targets(config, 1, some), loss, OCC3D_LABELS)

    with pytest.raises(ValueError, match=r"targets\.rays is None"):
        terms(None)
    with pytest.raises(ValueError, match="holds 17, which is free space"):
        terms(rays(4, label=17))
    with pytest.raises(ValueError, match=r"holds \[40\]; expected 0\.\.17 but for 17"):
        terms(rays(4, label=40))
    with caplog.at_level(logging.INFO):
        unmeasured = terms(replace(rays(4, label=255), depth_R=torch.zeros(4)))
    assert unmeasured.terms["rendered_depth"] == unmeasured.terms["rendered_semantic"] == 0
    assert {"rendered_depth", "rendered_semantic"} <= {record.args[0] for record in caplog.records}
    none = terms(rays(0))
    none.total.backward()
    assert none.total == 0
    assert (outputs.logits_BKXYZ.grad == 0).all()
    for term in ("occupied", "occupied_class"):
        with pytest.raises(ValueError, match=f"loss {term} has a weight, but outputs.density is None"):
            compute_losses(
                outputs, targets(config, 1, rays(4)), LossConfig(cross_entropy=0.0, **{term: 1.0}), OCC3D_LABELS
            )


def training_steps(steps: int) -> list[int]:
    """Resident memory after each of some training steps whose numbers of rays differ from step to step."""
    config = square(little_config())
    torch.manual_seed(0)
    network = RenderOcc(config).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    rendering = RenderingLossConfig(sight=0.5, render=rendering_of(config.grid, step=1.6), chunk_rays=64)
    loss = LossConfig(cross_entropy=0.0, occupied=1.0, occupied_class=1.0, depth=0.05, rendering=rendering)
    batch, counts = random_batch(config, samples=2, cameras=2, seed=1), torch.Generator().manual_seed(0)
    bins = measured_depth_bins(batch.depth_BNHW, config.depth_bins, config.feature_stride)
    memory = []
    for step in range(steps):
        some = rays(int(torch.randint(1, 400, (), generator=counts)), samples=2, seed=step)
        wanted = replace(targets(config, 2, some), depth_bins_BNhw=bins)
        optimizer.zero_grad()
        compute_losses(network(batch), wanted, loss, OCC3D_LABELS).total.backward()
        optimizer.step()
        memory.append(resident_bytes())
    return memory


def test_memory_stays_flat_as_ray_counts_change():
    memory = training_steps(30)
    assert memory[-1] - max(memory[:15]) < 16e6


@pytest.mark.long
def test_memory_stays_flat_over_500_steps():
    memory = training_steps(500)
    later, earlier = sum(memory[400:]) / 100, sum(memory[100:200]) / 100
    assert later - earlier < 8e6, f"grew by {(later - earlier) / 300:.0f} bytes a step"

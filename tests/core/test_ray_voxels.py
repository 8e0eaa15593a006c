"""What rays say of single voxels, held against a loop over rays and places, and the loss of it."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from renderocc_cases import little_config

from fusionocc_core.data.render_rays import rendering_of
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.losses import LossConfig, RenderingLossConfig, Targets, compute_losses
from fusionocc_core.losses.ray_voxels import STEP, RayVoxels, ray_voxel_loss, ray_voxels
from fusionocc_core.ops.volume_render_rays import Rays
from fusionocc_core.structures import Outputs

GRID = replace(little_config().grid, lower=(-8.0, -8.0, -1.0), upper=(8.0, 8.0, 5.4), voxel_size=(0.5, 0.5, 0.8))
RENDER = rendering_of(GRID)
UNKNOWN = 255


def rays_of(*rows: tuple[tuple, tuple, float, int, int], others: tuple[int, ...] = ()) -> Rays:
    """Rays from (origin, direction, depth, label, sample); ``others`` are of neighbouring keyframes."""
    origin, direction, depth, label, sample = zip(*rows, strict=True)
    return Rays(
        origin_R3=torch.tensor(origin, dtype=torch.float32),
        direction_R3=torch.tensor(direction, dtype=torch.float32),
        depth_R=torch.tensor(depth),
        label_R=torch.tensor(label),
        sample_R=torch.tensor(sample),
        current_R=torch.tensor([n not in others for n in range(len(rows))]),
    )


def random_rays(count: int, samples: int, seed: int) -> Rays:
    generator = torch.Generator().manual_seed(seed)
    depth = 12 * torch.rand(count, generator=generator)
    depth[::17], depth[5::17] = 0.0, torch.nan
    label = torch.randint(0, 17, (count,), generator=generator)
    label[::5] = UNKNOWN
    return Rays(
        origin_R3=torch.randn(count, 3, generator=generator) + torch.tensor([0.0, 0.0, 1.5]),
        direction_R3=torch.randn(count, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.3]),
        depth_R=depth,
        label_R=label,
        sample_R=torch.randint(0, samples, (count,), generator=generator),
        current_R=torch.rand(count, generator=generator) < 0.3,
    )


def seen(rays: Rays, samples: int, least: int = 1, chunk: int = 100) -> RayVoxels:
    shape = (samples, *GRID.shape)
    return ray_voxels(rays, RENDER, shape_BXYZ=shape, unknown=UNKNOWN, least_crossings=least, chunk=chunk)


def by_hand(rays: Rays, samples: int) -> tuple[np.ndarray, np.ndarray, dict[tuple, Counter]]:
    """The same by a loop: ended, crossings, and the labels of each voxel."""
    ended, crossings = np.zeros((samples, *GRID.shape), bool), np.zeros((samples, *GRID.shape), int)
    votes: dict[tuple, Counter] = {}
    edge, lower = np.array(GRID.voxel_size), np.array(GRID.lower)

    def voxel(position, sample):
        cell = np.floor((position - lower) / edge).astype(int)
        return (sample, *cell) if ((cell >= 0) & (cell < GRID.shape)).all() else None

    for n in range(len(rays)):
        far, sample = float(rays.range_R[n]), int(rays.sample_R[n])
        if not far > 0:
            continue
        origin = rays.origin_R3[n].double().numpy()
        along = rays.direction_R3[n].double().numpy() / np.linalg.norm(rays.direction_R3[n].double())
        if place := voxel(origin + far * along, sample):
            ended[place] = True
            if rays.label_R[n] != UNKNOWN:
                votes.setdefault(place, Counter())[int(rays.label_R[n])] += 1
        ways = np.arange(0, (1 - RENDER.near_share) * far - RENDER.near, STEP * GRID.voxel_size[0])
        for place in {voxel(origin + way * along, sample) for way in ways} - {None}:
            crossings[place] += bool(rays.current_R[n])
    return ended, crossings, votes


@pytest.mark.parametrize(("chunk", "least"), [(7, 1), (1000, 1), (100, 2)])
def test_ends_and_crossings_are_those_of_a_loop(chunk, least):
    rays, shape = random_rays(300, 2, seed=4), (2, *GRID.shape)
    found = seen(rays, 2, least, chunk)
    ended, crossings, votes = by_hand(rays, 2)
    crossed = (crossings >= least) & ~ended
    assert ended.sum() > 100
    assert crossed.sum() > 50
    # Places within rounding of a voxel's side may fall on either.
    assert (found.ended_V.view(shape).numpy() != ended).sum() <= 2
    assert (found.crossed_V.view(shape).numpy() != crossed).sum() <= 0.01 * crossed.sum()
    assert not (found.ended_V & found.crossed_V).any()
    labels = found.label_V.view(shape)
    assert sum(int(labels[place]) not in counts for place, counts in votes.items()) <= 2
    assert abs(int((labels != UNKNOWN).sum()) - len(votes)) <= 2


def test_a_voxel_has_the_label_of_most_rays_and_an_end_outweighs_crossings():
    eye = (-6.0, 0.1, 1.1)
    rays = rays_of(
        (eye, (1.0, 0.0, 0.0), 4.1, 3, 0),
        (eye, (1.0, 0.0, 0.0), 4.2, 9, 0),
        (eye, (1.0, 0.0, 0.0), 4.3, 3, 0),
        (eye, (2.0, 0.0, 0.0), 4.0, UNKNOWN, 0),  # twice as far, through all of them
        (eye, (0.0, 0.0, 1.0), 50.0, 5, 0),  # ends outside
        (eye, (0.0, 1.0, 0.0), 0.0, 5, 1),  # measures nothing
    )
    found = seen(rays, 2)
    ended, crossed, label = (x.view(2, *GRID.shape) for x in (found.ended_V, found.crossed_V, found.label_V))
    y, z = int((0.1 + 8) / 0.5), int((1.1 + 1) / 0.8)
    assert ended.nonzero().tolist() == [[0, 12, y, z], [0, 20, y, z]]
    assert (int(label[0, 12, y, z]), int(label[0, 20, y, z])) == (3, UNKNOWN)
    assert int((label != UNKNOWN).sum()) == 1
    line = crossed[0, :, y, z].nonzero().flatten().tolist()
    assert line[0] == 4
    assert 12 not in line
    assert line[-1] == 18  # 8 m less a twentieth and 0.4 m before the end
    assert crossed[0, 4, y, z:].all(), "up to the roof of the grid"
    assert not crossed[1].any()


def test_many_rays_say_free_and_only_those_of_the_current_keyframe():
    eye, beside = (-6.0, 0.1, 1.1), (0.2, -6.0, 1.1)
    rays = rays_of(
        (eye, (1.0, 0.0, 0.0), 4.1, 3, 0),
        (eye, (1.0, 0.0, 0.0), 8.1, 3, 0),
        (beside, (0.0, 1.0, 0.0), 10.0, 4, 0),  # another keyframe's: may look behind things, or where one stands now
        others=(2,),
    )
    once, twice, thrice = (seen(rays, 1, least).crossed_V.view(GRID.shape) for least in (1, 2, 3))
    line = [cell for cell in range(4, 19) if cell != 12]
    assert once.nonzero().tolist() == [[cell, 16, 2] for cell in line]
    assert twice.nonzero().tolist() == [[cell, 16, 2] for cell in line if cell < 11]
    assert not thrice.any()
    assert seen(rays, 1).ended_V.view(GRID.shape).nonzero().tolist() == [[12, 16, 2], [16, 24, 2], [20, 16, 2]]


def test_the_loss_asks_for_what_the_rays_saw():
    rays, shape = random_rays(300, 1, seed=1), (1, *GRID.shape)
    voxels = seen(rays, 1)
    ended, crossed, named = voxels.ended_V, voxels.crossed_V, voxels.label_V != UNKNOWN

    def loss_of(odds: torch.Tensor, scores: torch.Tensor, weights=None) -> torch.Tensor:
        odds, scores = odds.view(shape), scores.view(*shape, 17)
        logits = torch.cat([odds[:, None] + scores.movedim(-1, 1), torch.zeros(1, 1, *shape[1:])], dim=1)
        return ray_voxel_loss(logits, odds, scores, voxels, free=17, unknown=UNKNOWN, class_weights=weights)

    odds = torch.zeros(shape).flatten().requires_grad_()
    scores = torch.zeros(len(odds), 17, requires_grad=True)
    nothing_known = loss_of(odds, scores)
    assert 0 < nothing_known.item() - np.log(2) - np.log(17) < 1, "what Lovasz adds"
    nothing_known.backward()
    assert (odds.grad[ended & named] < 0).all()
    assert (odds.grad[crossed] > 0).all()
    assert (odds.grad[~(ended | crossed)] == 0).all()
    right = torch.full((len(odds), 17), -20.0)
    right[named, voxels.label_V[named]] = 20.0
    sure = torch.where(ended, 20.0, -20.0)
    assert loss_of(sure, right) < 1e-6
    assert loss_of(-sure, right) > 20
    with_wrong_classes = loss_of(sure, -right)
    assert with_wrong_classes > 10
    assert loss_of(sure, -right, [0.0] * 17) < with_wrong_classes - 10, "weights are those of the classes"


def test_free_space_may_come_first():
    rays, shape = random_rays(200, 1, seed=2), (1, *GRID.shape)
    voxels = seen(rays, 1)
    generator = torch.Generator().manual_seed(0)
    odds, scores = torch.randn(shape, generator=generator), torch.randn(*shape, 17, generator=generator)
    free, others = torch.zeros(1, 1, *shape[1:]), scores.movedim(-1, 1) + odds[:, None]
    weights = torch.rand(17, generator=generator).tolist()
    last, first = (
        ray_voxel_loss(logits, odds, scores, voxels, free=where, unknown=UNKNOWN, class_weights=weights)
        for logits, where in ((torch.cat([others, free], 1), 17), (torch.cat([free, others], 1), 0))
    )
    torch.testing.assert_close(first, last)


def test_networks_without_density_learn_it_too_and_rays_that_say_nothing_are_told(caplog):
    logits = torch.zeros(1, 18, *GRID.shape, requires_grad=True)
    loss = LossConfig(cross_entropy=0.0, rendering=only_voxels())
    optimizer, rays = torch.optim.Adam([logits], lr=0.5), random_rays(200, 1, seed=3)
    known = Targets(labels_BXYZ=torch.full((1, *GRID.shape), UNKNOWN, dtype=torch.uint8), rays=rays)
    for _ in range(30):
        losses = compute_losses(Outputs(logits_BKXYZ=logits), known, loss, OCC3D_LABELS)
        assert list(losses.terms) == ["ray_voxels"], "nothing is rendered for it"
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    voxels = seen(rays, 1)
    answer = logits.argmax(dim=1).flatten()
    named = voxels.label_V != UNKNOWN
    assert torch.equal(answer[named], voxels.label_V[named])
    assert (answer[voxels.crossed_V] == OCC3D_LABELS.free).all()
    assert (answer[voxels.ended_V] != OCC3D_LABELS.free).all()
    blind = replace(known, rays=replace(rays, depth_R=torch.zeros(200)))
    with caplog.at_level(logging.INFO):
        nothing = compute_losses(Outputs(logits_BKXYZ=logits), blind, loss, OCC3D_LABELS)
    assert "ray_voxels" in caplog.text
    optimizer.zero_grad()
    nothing.total.backward()
    assert nothing.total == 0
    assert (logits.grad == 0).all()


def test_some_rays_are_rendered_and_all_say_what_is_free():
    rays = random_rays(300, 1, seed=6)
    logits = torch.randn(1, 18, *GRID.shape, generator=torch.Generator().manual_seed(1))
    known = Targets(labels_BXYZ=torch.full((1, *GRID.shape), UNKNOWN, dtype=torch.uint8), rays=rays)
    terms = {}
    for most in (None, 300, 40):
        rendering = RenderingLossConfig(ray_voxels=1.0, render=RENDER, most_rays=most)
        loss = LossConfig(cross_entropy=0.0, rendering=rendering)
        torch.manual_seed(0)
        parts = compute_losses(Outputs(logits_BKXYZ=logits), known, loss, OCC3D_LABELS).parts
        terms[most] = {part.name: (part.labelled, part.value.item()) for part in parts}
    assert terms[None] == terms[300]
    assert 0 < terms[40]["rendered_depth"][0] <= 40 < terms[None]["rendered_depth"][0]
    assert terms[40]["ray_voxels"] == terms[None]["ray_voxels"]
    rays = replace(rays, current_R=torch.arange(300) % 3 == 0)
    values = []
    for seen_by, only in ((rays, True), (rays.select(rays.current_R), False)):
        rendering = RenderingLossConfig(ray_voxels=1.0, render=RENDER, current_only=only)
        loss = LossConfig(cross_entropy=0.0, rendering=rendering)
        parts = compute_losses(Outputs(logits_BKXYZ=logits), replace(known, rays=seen_by), loss, OCC3D_LABELS).parts
        values.append({part.name: (part.labelled, part.value.item()) for part in parts})
    assert values[0]["rendered_depth"] == values[1]["rendered_depth"]
    assert values[0]["ray_voxels"] != values[1]["ray_voxels"]  # those of all rays
    for wrong in ({"most_rays": 0}, {"least_crossings": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RenderingLossConfig(**wrong)


def only_voxels() -> RenderingLossConfig:
    """No term but that of voxels."""
    none = dict.fromkeys(("rendered_depth", "rendered_semantic", "entropy", "distortion"), 0.0)
    return RenderingLossConfig(ray_voxels=1.0, render=RENDER, **none)

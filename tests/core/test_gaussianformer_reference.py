"""GaussianFormer against tensors of the official code, stage by stage, in three reduced configurations."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussianformer_cases import (
    REFERENCE_PRESETS,
    golden,
    reference_batch,
    reference_model,
    weights_of,
)

from fusionocc_core.data.surroundocc import SURROUNDOCC_LABELS
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.layers import gaussian_lifter
from fusionocc_core.losses import Targets, compute_losses, gaussianformer_losses
from fusionocc_core.losses.gaussian_rays import occupied_points, ray_occupancy, shares_along_rays
from fusionocc_core.models import gaussianformer_official
from fusionocc_core.models.gaussianformer import camera_projections
from fusionocc_core.models.gaussianformer_official import official_state_dict
from fusionocc_core.ops.pixel_rays import project_points
from fusionocc_core.ops.point_sampling import farthest_points

pytestmark = pytest.mark.data


@pytest.fixture(scope="module", params=list(REFERENCE_PRESETS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def tensors(name, shared):
    return golden(shared / "goldens" / "gaussianformer" / f"{name}.npz")


@pytest.fixture(scope="module")
def model(name, tensors, tmp_path_factory):
    return reference_model(name, tensors, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def run(name, model, tensors):
    """States after each block, what every submodule gave, and outputs; from the recorded first Gaussians."""
    given = {}
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: given.setdefault(name, []).append(output)
        )
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        lifted, views = model.lift(reference_batch(tensors))
        if name == "v2_prob_small":
            lifted.state.rows_BGA[0] = tensors["out.lifter.representation"]
        states = model.encoder(lifted.state, views)
        outputs = model.answer(states, lifted)
        logits = [model.head(model.encoder.gaussians(state)) for state in states]
    for hook in hooks:
        hook.remove()
    return lifted, states, outputs, logits, given


def assert_close(ours, reference, relative=1e-4):
    torch.testing.assert_close(ours, reference, rtol=0, atol=relative * float(reference.abs().max()))


def test_official_to_ours_and_back_is_bit_exact(model, tensors):
    official, again = weights_of(tensors), official_state_dict(model)
    assert set(official) == set(again)
    assert all(torch.equal(again[name], tensor) for name, tensor in official.items())


def test_in_the_pictures(run, tensors):
    given = run[-1]
    for stage in (2, 3):
        assert_close(given["img_backbone"][0][stage], tensors[f"stage.backbone.{stage}"])
    for level in range(4):
        assert_close(given["img_neck"][0][level], tensors[f"stage.fpn.{level}"])


def test_projections(tensors):
    ours = camera_projections(reference_batch(tensors))
    torch.testing.assert_close(ours, tensors["in.projection_mat"], rtol=1e-5, atol=1e-4)


def test_where_the_second_version_begins(name, model, run, tensors, monkeypatch):
    """Up to the list of points; which of them are the farthest, from the recorded list: ties hang on rounding."""
    if name != "v2_prob_small":
        assert torch.equal(run[0].state.rows_BGA[0], tensors["out.lifter.representation"])
        return
    lifter, rays, given = model.lifter, run[0].rays, run[-1]
    assert_close(given["lifter.initialize_backbone"][0], tensors["stage.init_secondfpn"])
    assert_close(rays.logits_BNhwE, tensors["out.pixel_logits"])
    assert_close(rays.logits_BNhwE.softmax(dim=-1), tensors["stage.lifter.pdf"])
    draws, scan = [tensors["in.sampler_uniform"].squeeze(-1)], []
    monkeypatch.setattr(gaussian_lifter, "_uniform", lambda *arguments: draws.pop())
    monkeypatch.setattr(
        gaussian_lifter, "farthest_points", lambda points, count: scan.append(points) or torch.arange(count)
    )
    lifter.points(rays, None)
    torch.testing.assert_close(scan[0], tensors["stage.lifter.scan"], rtol=0, atol=1e-3)
    chosen = farthest_points(tensors["stage.lifter.scan"], 160)
    assert torch.equal(chosen, tensors["stage.lifter.fps_idx"])
    rows = torch.cat([model.lifter.space.positions(tensors["stage.lifter.scan"][chosen]), lifter.anchor], dim=1)
    torch.testing.assert_close(
        torch.cat([rows, lifter.random_anchors]), tensors["out.lifter.representation"], rtol=0, atol=1e-4
    )


def test_what_is_occupied_along_rays(name, run, tensors):
    if name != "v2_prob_small":
        return
    outputs, labels = run[2], tensors["in.occ_label"]
    labels = labels.where(labels != 0, OCC3D_LABELS.free)  # the official loss counts noise as empty
    occupied, known = occupied_points(outputs.rays, labels, free=OCC3D_LABELS.free, unknown=OCC3D_LABELS.unknown)
    assert known.all()
    differs = (occupied != tensors["out.pixel_gt"]).float().mean()
    assert differs < 1e-3  # points on the face between two voxels
    official = shares_along_rays(outputs.rays.logits_BNhwE, tensors["out.pixel_gt"].bool(), known)
    torch.testing.assert_close(official, tensors["loss.PixelDistributionLoss"], rtol=1e-4, atol=0)
    loss = ray_occupancy(outputs.rays, labels, free=OCC3D_LABELS.free, unknown=OCC3D_LABELS.unknown)
    torch.testing.assert_close(loss, official, rtol=0, atol=10 * differs)  # each such point changes it by a few nats


def stages(name, model):
    """Our submodule and the recorded stage of every operation."""
    for part, place in sorted(gaussianformer_official._places(model.config).items(), key=lambda item: item[1]):
        block, module = part.split(".")
        if module != "refine":
            kind = "norm" if module.endswith("norm") else "ffn" if module.endswith("ffn") else module
            yield int(block), f"encoder.blocks.{part}", f"stage.enc{place:02d}_{kind}"


def test_first_deformable_attention(name, model, run, tensors):
    stage = next(stage for _, _, stage in stages(name, model) if stage.endswith("deformable"))
    attention, given = model.encoder.blocks[0].deformable, run[-1]
    key_points = given["encoder.blocks.0.deformable.kps_generator"][0]
    torch.testing.assert_close(key_points, tensors[f"{stage}.key_points"], rtol=0, atol=1e-4)
    uv, visible = project_points(key_points.flatten(1, 2), tensors["in.projection_mat"], (96, 192))
    agree = visible == tensors[f"{stage}.mask"].flatten(2)
    assert agree.float().mean() > 0.9999  # the rest lies on the edge of a picture
    torch.testing.assert_close(
        uv[visible & agree], tensors[f"{stage}.points_2d"].flatten(2, 3)[visible & agree], rtol=0, atol=1e-4
    )
    raw = given["encoder.blocks.0.deformable.weights_fc"][0]
    shape = (attention.levels, attention.config.points, attention.config.groups)
    logits = raw.unflatten(-1, shape)[:, :, :96]
    assert_close(logits.permute(0, 2, 1, 3, 4, 5), tensors[f"{stage}.weights_raw"])
    weights = attention.weights(logits.movedim(4, 3), visible.unflatten(2, key_points.shape[1:3])[:, :, :96])
    assert_close(weights.permute(0, 2, 3, 1, 4, 5).flatten(2), tensors[f"{stage}.weights_softmax"])


def test_every_operation_of_the_encoder(name, model, run, tensors):
    given = run[-1]
    for block in (0, 1):
        assert_close(given["encoder.anchor_encoder"][block], tensors[f"stage.anchor_embed.{block}"])
    for _, ours, stage in stages(name, model):
        assert_close(given[ours][0], tensors[stage], 2e-4)


def test_every_set_of_gaussians(name, model, run, tensors):
    refines = [
        f"stage.enc{p:02d}_refine"
        for part, p in gaussianformer_official._places(model.config).items()
        if "refine" in part
    ]
    for stage, state in zip(refines, run[1], strict=True):
        gaussians = model.encoder.gaussians(state)
        assert_close(state.rows_BGA, tensors[f"{stage}.anchor"])
        for ours, theirs in (("means_BG3", "means"), ("scales_BG3", "scales"), ("rotations_BG4", "rotations")):
            assert_close(getattr(gaussians, ours), tensors[f"{stage}.{theirs}"])
        opacities = tensors[f"{stage}.opacities"]
        assert_close(gaussians.opacities_BG, opacities[..., 0] if opacities.numel() else torch.ones(1, 512))
        semantics = tensors[f"{stage}.semantics"]
        assert_close(gaussians.semantics_BGC, semantics.softmax(-1) if name == "v2_prob_small" else semantics)


def test_scores_and_labels(name, run, tensors):
    for ours, key in zip(run[3], ("out.pred_occ.0", "out.pred_occ.1"), strict=True):
        ours = ours.exp() if name == "v2_prob_small" else ours
        torch.testing.assert_close(ours.flatten(2), tensors[key], rtol=0, atol=1e-4)
    best = tensors["out.pred_occ.1"].topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 1e-4
    assert clear.float().mean() > 0.05  # the first version says nothing at all about most voxels
    labels = run[2].logits_BKXYZ.argmax(dim=1).flatten(1)
    assert torch.equal(labels[clear], tensors["out.final_occ"][clear])


def targets_of(tensors):
    labels = tensors["in.occ_label"]
    return Targets(labels_BXYZ=labels.where(labels != 0, OCC3D_LABELS.unknown).to(torch.uint8))


def test_losses(name, run, tensors):
    outputs = run[2]
    for layer, logits in enumerate(run[3]):
        losses = compute_losses(
            replace(outputs, logits_BKXYZ=logits), targets_of(tensors), gaussianformer_losses(), SURROUNDOCC_LABELS
        )
        torch.testing.assert_close(losses.terms["cross_entropy"] / 10, tensors[f"loss.ce.{layer}"], rtol=1e-4, atol=0)
        torch.testing.assert_close(losses.terms["lovasz_occupied"], tensors[f"loss.lovasz.{layer}"], rtol=1e-4, atol=0)
        torch.testing.assert_close(losses.total, tensors[f"loss.layer_total.{layer}"], rtol=1e-4, atol=0)
    every = replace(outputs, earlier_logits=tuple(run[3][:-1]))
    losses = compute_losses(every, targets_of(tensors), gaussianformer_losses(), SURROUNDOCC_LABELS)
    torch.testing.assert_close(losses.total, tensors["loss.OccupancyLoss"], rtol=1e-4, atol=0)


def test_gradients(name, model, tensors, shared):
    """All that were recorded, and the norms of all."""
    model.zero_grad()
    lifted, views = model.lift(reference_batch(tensors))
    if name == "v2_prob_small":
        drawn = tensors["out.lifter.representation"][:160]
        rows = torch.cat([drawn, model.lifter.random_anchors])[None]
        lifted = replace(lifted, state=replace(lifted.state, rows_BGA=rows))
    outputs = model.answer(model.encoder(lifted.state, views), lifted)
    compute_losses(outputs, targets_of(tensors), gaussianformer_losses(), SURROUNDOCC_LABELS).total.backward()
    ours = from_ours(model, {k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    names = [key for key in tensors if key.startswith("grad.")]
    assert len(names) > 35
    for key in names:
        assert_close(ours[key.removeprefix("grad.")], tensors[key], 1e-3)
    with np.load(shared / "goldens" / "gaussianformer" / f"{name}.npz") as arrays:
        norms = json.loads(str(arrays["grad_norms_json"]))
    trained = {key: value for key, value in norms.items() if value is not None and key in ours}
    assert len(trained) > 190
    for key, norm in trained.items():
        assert abs(float(ours[key].norm()) - norm) < 1e-3 * max(norm, 1e-4), key


def from_ours(model, named):
    """Tensors by official names."""
    places = gaussianformer_official._places(model.config)
    out = {}
    for key, tensor in named.items():
        if found := gaussianformer_official.OURS.match(key):
            key = f"encoder.layers.{places[found[1]]}.{key[found.end() :]}"
        out[key] = tensor
    return out

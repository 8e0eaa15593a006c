"""RenderOcc, and the fork that is called UniOcc, against tensors of the official code; official names."""

import json
from dataclasses import replace

import pytest
import torch
from flashocc_cases import weights_of
from flashocc_temporal_cases import read, recorded_batch
from renderocc_cases import recorded_rays, reference_config, reference_model

from fusionocc_core.checkpoints import decode_config, encode_config
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.layers.view_transform import measured_depth_bins
from fusionocc_core.losses import Targets, compute_losses, renderocc_recipe_losses
from fusionocc_core.models.renderocc import RenderOcc, RenderOccConfig
from fusionocc_core.models.renderocc_official import from_official, official_state_dict
from fusionocc_core.models.renderocc_presets import renderocc_swinb
from fusionocc_core.presets import load_official

FILES = {"volume": "model_small.npz", "plane": "unioc2d_small.npz"}
LOSSES = {
    "occupied": "3d_geo",
    "occupied_class": "3d_sem",
    "rendered_depth": "render_depth",
    "rendered_semantic": "render_semantic",
    "entropy": "sdf_entropy",
    "distortion": "sdf_distortion",
    "depth": "lss_depth",
}
"""Ours, theirs."""


@pytest.fixture(scope="module", params=FILES)
def case(request, shared, tmp_path_factory):
    """A reduced network with the recorded weights, what it says in evaluation mode, and the recorded tensors."""
    tensors = read(shared / "goldens" / "renderocc" / FILES[request.param])
    model = reference_model(reference_config(request.param), tensors, tmp_path_factory.mktemp("official"))
    given = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, out, name=name: given.setdefault(name, []).append(out))
    return request.param, model, tensors, model(recorded_batch(tensors, 3)), given


def assert_close(ours, reference):
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.data
def test_every_tensor_of_the_official_network(shared):
    listed = json.loads((shared / "specs" / "state_dicts" / "renderocc_state_dict.json").read_text())
    with torch.device("meta"):
        model = RenderOcc(renderocc_swinb())
    ours = {name: list(tensor.shape) for name, tensor in official_state_dict(model).items()}
    assert ours == listed["renderocc_7frame"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 121_280_297


@pytest.mark.data
def test_official_to_ours_and_back_is_bit_exact(case):
    _, model, tensors, _, _ = case
    again, official = official_state_dict(model), weights_of(tensors)
    assert set(again) == set(official)
    weights = [name for name in official if not name.startswith(("semantic_loss.", "nerf_head."))]
    assert all(torch.equal(again[name], official[name]) for name in weights)


@pytest.mark.data
def test_stages(case):
    kind, _, tensors, outputs, given = case
    density, semantic = outputs.density, outputs.density.semantic_BXYZK[0]
    assert_close(outputs.depth_logits_BNDhw[0].softmax(dim=1), tensors["depth_prob_key"])
    if kind == "volume":
        assert_close(given["lift"][1], tensors["bev_lss_key"])
        assert_close(given["img_bev_encoder_neck"][0], tensors["vol_feat"])
        assert_close(semantic, tensors["semantic"][0])
        assert_close(density.density_BXYZ, tensors["density_prob"][..., 0])
    else:
        assert_close(given["img_bev_encoder_neck"][0], tensors["bev_enc"])
        rows = slice_of(semantic, tensors["semantic_f32_slice"])
        assert_close(semantic[rows], tensors["semantic_f32_slice"])
        assert_close(density.density_BXYZ[0, rows], tensors["density_prob_f32_slice"][..., 0])
        torch.testing.assert_close(density.density_BXYZ, tensors["density_prob"][..., 0].float(), rtol=2e-3, atol=1e-3)
    both = tensors["density_prob"].float()
    torch.testing.assert_close(density.occupied_logits_BXYZ, both[..., 0] - both[..., 1], rtol=0, atol=2e-3)


def slice_of(whole, part):
    """Which rows of a volume were kept in full precision."""
    for step in range(1, len(whole)):
        if torch.allclose(whole[::step][: len(part)], part, atol=1e-3):
            return slice(0, step * len(part), step)
    raise AssertionError("no even rows fit")


@pytest.mark.data
def test_the_answer_is_the_official_one(case):
    kind, model, tensors, outputs, _ = case
    labels = outputs.logits_BKXYZ.argmax(dim=1)[0]
    if kind == "plane":
        assert (labels == tensors["occ"]).float().mean() > 0.9999  # float32 rounding decides at equality
        return
    assert torch.equal(labels, tensors["occ_thr8p5"].long())
    median = replace(model.config.head, threshold=float(tensors["occ_median_thr"]))
    model.config, kept = replace(model.config, head=median), model.config
    labels = model(recorded_batch(tensors, 3)).logits_BKXYZ.argmax(dim=1)[0]
    model.config = kept
    assert (labels == tensors["occ_at_median"]).float().mean() > 0.9999


@pytest.mark.data
def test_losses_and_gradients(case):
    kind, model, tensors, outputs, _ = case
    config = renderocc_recipe_losses(
        voxels=1.0, rendering=1.0 if kind == "volume" else 0.1, mask="none" if kind == "volume" else "camera"
    )
    bins = model.config.depth_bins
    targets = Targets(
        labels_BXYZ=tensors["gt_semantics"],
        mask_camera_BXYZ=tensors["gt_mask_camera"],
        depth_bins_BNhw=measured_depth_bins(tensors["gt_depth"], bins, 16),
        rays=recorded_rays(tensors),
    )
    losses = compute_losses(outputs, targets, config, OCC3D_LABELS)
    for ours, theirs in LOSSES.items():
        expected = tensors[f"loss/loss_{theirs}"]
        torch.testing.assert_close(
            losses.terms[ours], expected, rtol=2e-5, atol=1e-8, msg=lambda m, n=ours: f"{n}: {m}"
        )
    model.zero_grad()
    losses.total.backward(retain_graph=True)
    named = dict(model.named_parameters())
    for name in (name for name in tensors if name.startswith("grad/")):
        expected = tensors[name]
        ours = named[name.removeprefix("grad/")].grad
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.data
def test_a_file_of_another_space_is_refused(case, tmp_path):
    _, model, tensors, _, _ = case
    weights = weights_of(tensors)
    weights["nerf_head.scene_radius"] = torch.full((3,), 25.0)
    with pytest.raises(ValueError, match=r"nerf_head\.scene_radius is \[25.0.*another space"):
        from_official(weights)
    del weights["density_mlp.0.bias"]
    weights["nerf_head.scene_radius"] = torch.full((3,), 39.0)
    torch.save({"state_dict": weights}, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"1 missing: density_mlp\.0\.bias"):
        load_official(model, tmp_path / "short.pth")


def test_the_config_survives_a_file():
    config = renderocc_swinb()
    assert decode_config(RenderOccConfig, json.loads(json.dumps(encode_config(config)))) == config

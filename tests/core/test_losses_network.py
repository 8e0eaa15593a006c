"""Losses and gradients of the whole FusionOcc network against the recorded run of the official code."""

import json

import numpy as np
import pytest
import torch
from fusionocc_cases import recorded_batch, reference_config
from safetensors.torch import load_file

from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.layers.view_transform import measured_depth_bins
from fusionocc_core.losses import Targets, compute_losses, fusionocc_losses
from fusionocc_core.models.fusionocc import FusionOcc
from fusionocc_core.models.fusionocc_official import official_state_dict
from fusionocc_core.presets import load_official
from fusionocc_core.structures import Outputs

pytestmark = pytest.mark.data

NAMES = {"cross_entropy": "loss_occ", "depth": "depth_loss", "segmentation": "seg_loss"}


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "goldens" / "fusionocc"


@pytest.fixture(scope="module")
def golden(folder):
    return load_file(folder / "small_io.safetensors")


@pytest.fixture(scope="module")
def recorded(folder):
    return json.loads((folder / "small_losses.json").read_text())


@pytest.fixture(scope="module")
def config(folder):
    return reference_config(json.loads((folder / "small_config.json").read_text()))


@pytest.fixture(scope="module")
def batch(golden):
    return recorded_batch(golden)


@pytest.fixture(scope="module")
def targets(golden, config):
    bins = measured_depth_bins(golden["in.sparse_depth"], config.depth_bins, config.image_backbone.stride)
    return Targets(
        labels_BXYZ=golden["in.voxel_semantics"],
        mask_camera_BXYZ=golden["in.mask_camera"].bool(),
        depth_bins_BNhw=bins,
        segmentation_BNHW=golden["in.segs"],
    )


def network(config, folder):
    model = FusionOcc(config)
    load_official(model, folder / "small_state_dict.safetensors")
    return model.eval()


def official_norms(model, gradients):
    """Norms of gradients by official names: put where the weights are, written out, and the weights put back."""
    weights = [p for p in model.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in weights]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.data = torch.zeros_like(weight) if gradient is None else gradient
    norms = {k: v.norm().item() for k, v in official_state_dict(model).items() if v.is_floating_point()}
    for weight, value in zip(weights, kept, strict=True):
        weight.data = value
    return norms


def assert_norms(ours, recorded):
    assert len(recorded) == 341
    total = np.linalg.norm(list(recorded.values()))
    assert np.linalg.norm([ours[name] for name in recorded]) == pytest.approx(total, rel=1e-3)
    for name, norm in recorded.items():
        # Biases in front of a batch norm have no gradient but rounding.
        assert ours[name] == pytest.approx(norm, rel=1e-3, abs=1e-6 * total), name


@pytest.mark.parametrize(("mask", "key"), [("camera", "evalbn.use_mask=True"), ("none", "evalbn.use_mask=False")])
def test_losses_of_the_recorded_outputs(golden, recorded, targets, mask, key):
    outputs = Outputs(
        logits_BKXYZ=golden["B.logits"].permute(0, 4, 1, 2, 3),
        # The softmax of the logarithm of probabilities is these probabilities.
        depth_logits_BNDhw=golden["B.depth_prob"].log().unflatten(0, (2, 6)),
        seg_logits_BNKhw=golden["B.seg_logits"].unflatten(0, (2, 6)),
    )
    losses = compute_losses(outputs, targets, fusionocc_losses(mask=mask), OCC3D_LABELS)
    for ours, theirs in NAMES.items():
        assert losses.terms[ours].item() == pytest.approx(recorded[key][theirs], rel=1e-5)


@pytest.mark.slow
def test_network_losses_and_every_gradient_norm(folder, recorded, config, batch, targets):
    model = network(config, folder)
    outputs = model(batch)
    weights = [p for p in model.parameters() if p.requires_grad]
    for mask, key in (("camera", "evalbn.use_mask=True"), ("none", "evalbn.use_mask=False")):
        losses = compute_losses(outputs, targets, fusionocc_losses(mask=mask), OCC3D_LABELS)
        for ours, theirs in NAMES.items():
            assert losses.terms[ours].item() == pytest.approx(recorded[key][theirs], abs=1e-4)
        gradients = torch.autograd.grad(losses.total, weights, retain_graph=mask == "camera", allow_unused=True)
        assert_norms(official_norms(model, gradients), recorded[f"{key}.grad_norm"])


@pytest.mark.slow
def test_network_losses_in_training(folder, recorded, config, batch, targets):
    """Batch norms with the statistics of the batch; depth labels hidden by the draws of the recorded seed."""
    model = network(config, folder).train()
    model.img_view_transformer.depth_seg_net.depth_conv[2].dropout.p = 0.0
    torch.manual_seed(123)
    losses = compute_losses(model(batch), targets, fusionocc_losses(mask="none"), OCC3D_LABELS)
    for ours, theirs in NAMES.items():
        assert losses.terms[ours].item() == pytest.approx(recorded["trainbn.use_mask=False.seed123"][theirs], abs=1e-4)
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(losses.total, weights, allow_unused=True)
    total = np.linalg.norm([g.norm().item() for g in gradients if g is not None])
    assert total == pytest.approx(recorded["trainbn.grad_total_norm"], rel=1e-3)

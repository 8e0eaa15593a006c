"""FlashOcc against tensors of the official code, stage by stage, in a reduced M1 configuration."""

import pytest
import torch
from flashocc_cases import golden, reference_batch, reference_model, weights_of

from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.layers.view_transform import cameras_at, frustum_points, frustum_samples
from fusionocc_core.losses import Targets, compute_losses, flashocc_losses
from fusionocc_core.models.flashocc_official import official_state_dict

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "goldens" / "flashocc"


@pytest.fixture(scope="module")
def tensors(folder):
    return golden(folder / "m1_small.npz")


@pytest.fixture
def model(tensors, tmp_path):
    return reference_model(tensors, tmp_path)


@pytest.fixture(scope="module")
def batch(tensors):
    return reference_batch(tensors)


@pytest.fixture(scope="module")
def run(tensors, batch, tmp_path_factory):
    """Outputs, and what every submodule gave."""
    given = {}
    model = reference_model(tensors, tmp_path_factory.mktemp("weights"))
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: given.__setitem__(name, output))
    with torch.no_grad():
        outputs = model(batch)
    return outputs, given


def assert_close(ours, reference):
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max()))


def test_official_to_ours_and_back_is_bit_exact(tensors, model):
    official, again = weights_of(tensors), official_state_dict(model)
    assert {name for name in official if not name.endswith("num_batches_tracked")} == {
        name for name in again if not name.endswith("num_batches_tracked")
    }
    assert all(torch.equal(again[name], tensor) for name, tensor in official.items())


def test_in_the_pictures(run, tensors):
    _, given = run
    assert_close(given["img_backbone"][1], tensors["out/backbone_c5"])
    assert_close(given["img_neck"].unflatten(0, (2, 6)), tensors["out/neck"])
    seen = given["img_view_transformer"]
    assert_close(seen.depth_logits_BDhw, tensors["out/depth_logits"])
    assert_close(seen.depth_logits_BDhw.softmax(dim=1), tensors["out/depth_prob"])
    assert_close(seen.context_BChw, tensors["out/context"])


def test_frustum(model, batch, tensors):
    assert torch.equal(batch.cam2keyego_BTN44[:, 0], tensors["out/sensor2keyego"])
    lift = model.lift
    samples = frustum_samples(lift.config, lift.bins, lift.image_size, lift.stride)
    assert torch.equal(samples, tensors["out/frustum"])
    points = frustum_points(samples, cameras_at(batch, 0))
    for sample in (0, 1):
        torch.testing.assert_close(points[sample, 1], tensors[f"out/frustum_ego_b{sample}n1"], rtol=0, atol=1e-5)


def test_every_sample_falls_into_the_references_cell(model, batch, tensors):
    plan = model.lift.plan(cameras_at(batch, 0))
    ours = torch.stack([plan.voxels_P, plan.depth_rows_P.long(), plan.feat_rows_P.long()], dim=1)
    theirs = torch.stack([tensors[f"out/ranks_{name}"].long() for name in ("bev", "depth", "feat")], dim=1)
    assert set(map(tuple, ours.tolist())) == set(map(tuple, theirs.tolist()))
    lengths = plan.starts_V1.diff()
    assert torch.equal(lengths[lengths > 0].int(), tensors["out/interval_lengths"])


def test_in_the_birds_eye_view(run, tensors):
    _, given = run
    assert_close(given["lift"][:, :, 0], tensors["out/bev_lss"])
    for stage, ours in enumerate(given["img_bev_encoder_backbone"]):
        reference = tensors[f"out/bev_l{stage}"]
        assert_close(ours[: len(reference)], reference)
    assert_close(given["img_bev_encoder_neck"][:1], tensors["out/bev_enc"])


def test_logits_and_labels(run, tensors):
    logits_BKXYZ = run[0].logits_BKXYZ
    assert logits_BKXYZ.permute(0, 2, 3, 4, 1).is_contiguous()
    assert_close(logits_BKXYZ[:1].permute(0, 2, 3, 4, 1), tensors["out/logits"])
    labels, best = logits_BKXYZ.argmax(dim=1), logits_BKXYZ.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear], tensors["out/occ"].long()[clear])


def targets_of(tensors):
    return Targets(labels_BXYZ=tensors["gt_semantics"], mask_camera_BXYZ=tensors["gt_mask_camera"])


@pytest.mark.parametrize("mask", ["camera", "none"])
@pytest.mark.parametrize("balanced", [False, True])
def test_losses(mask, balanced, run, tensors):
    losses = compute_losses(run[0], targets_of(tensors), flashocc_losses(mask=mask, balanced=balanced), OCC3D_LABELS)
    name = "loss_mask" if mask == "camera" else "loss_nomask"
    reference = tensors[f"loss/{name}{'_balanced' if balanced else ''}"]
    torch.testing.assert_close(losses.total, reference.float(), rtol=1e-5, atol=0)


def test_gradients(model, batch, tensors):
    losses = compute_losses(model(batch), targets_of(tensors), flashocc_losses(), OCC3D_LABELS)
    losses.total.backward()
    names = [name for name in tensors if name.startswith("grad/")]
    assert len(names) == 8
    for name in names:
        ours, reference = model.get_parameter(name.removeprefix("grad/")).grad, tensors[name]
        # ReLUs whose input is within rounding of zero: 3e-3 with one thread, which sums in another order than two.
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-2 * float(reference.abs().max()))


def test_with_the_statistics_of_the_batch(model, batch, tensors, folder):
    """In training mode: the loss, and the bird's-eye view's mean and deviation."""
    reference, encoded = golden(folder / "m1_small_trainmode.npz"), []
    model.train()
    model.img_bev_encoder_neck.register_forward_hook(lambda module, inputs, output: encoded.append(output))
    with torch.no_grad():
        losses = compute_losses(model(batch), targets_of(tensors), flashocc_losses(), OCC3D_LABELS)
    torch.testing.assert_close(losses.total, reference["loss_occ"], rtol=1e-5, atol=0)
    torch.testing.assert_close(encoded[0].mean(), reference["bev_enc_mean"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(encoded[0].std(), reference["bev_enc_std"], rtol=1e-4, atol=0)

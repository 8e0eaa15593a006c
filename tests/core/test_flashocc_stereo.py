"""FlashOcc with a depth network and with stereo, against tensors of the official code, and its official names."""

import json
from dataclasses import replace

import pytest
import torch
from flashocc_cases import weights_of
from flashocc_temporal_cases import depth_config, official_model, read, recorded_batch, stereo_config

from fusionocc_core.checkpoints import decode_config, encode_config
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.layers.image_backbones import TimmBackboneConfig
from fusionocc_core.layers.view_transform import measured_depth_bins
from fusionocc_core.losses import Targets, compute_losses, flashocc_losses
from fusionocc_core.models.flashocc import FlashOcc, FlashOccConfig
from fusionocc_core.models.flashocc_official import official_state_dict
from fusionocc_core.models.flashocc_presets import panoptic_flashocc_depth
from fusionocc_core.models.flashocc_temporal_presets import (
    flashocc_m2,
    flashocc_m3,
    panoptic_flashocc_depth4d,
    panoptic_flashocc_longterm8f,
)


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "goldens" / "flashocc"


@pytest.fixture(scope="module")
def tensors(folder):
    return read(folder / "bevstereo_small.npz")


def run(model, batch):
    """Outputs, and what every submodule gave, call by call."""
    given = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, out, name=name: given.setdefault(name, []).append(out))
    with torch.no_grad():
        return model(batch), given


def assert_close(ours, reference):
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max()))


def public(logits_BKXYZ):
    return logits_BKXYZ.permute(0, 2, 3, 4, 1)


# names and sizes


@pytest.mark.data
@pytest.mark.parametrize(
    ("config", "name", "parameters"),
    [
        (flashocc_m2(), "M2", 58_668_414),
        (flashocc_m3(), "M3", 144_989_110),
        (panoptic_flashocc_depth(), "panoptic_depth_noaux", 57_833_822),
        (panoptic_flashocc_depth4d(), "panoptic_depth4d", 75_258_862),
        (panoptic_flashocc_longterm8f(), "panoptic_8f", 76_871_662),
    ],
)
def test_every_tensor_of_the_official_networks(config, name, parameters, shared):
    """Names, their order, shapes; the lists are without the head for centres."""
    listed = json.loads((shared / "specs" / "state_dicts" / "flashocc_state_dict.json").read_text())[name]
    with torch.device("meta"):
        model = FlashOcc(replace(config, centers=None))
    ours = {name: list(tensor.shape) for name, tensor in official_state_dict(model).items()}
    assert list(ours.items()) == list(listed.items())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_published_size_belongs_to_64_lifted_channels():
    shipped = panoptic_flashocc_depth()
    narrow = replace(shipped.bev_encoder, channels=(128, 256, 512))
    with torch.device("meta"):
        model = FlashOcc(
            replace(shipped, view=replace(shipped.view, context_channels=64), bev_encoder=narrow, centers=None)
        )
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == 50.12


def test_configs_survive_a_file():
    for config in (flashocc_m2(), flashocc_m3(), panoptic_flashocc_longterm8f()):
        assert decode_config(FlashOccConfig, json.loads(json.dumps(encode_config(config)))) == config


@pytest.mark.data
def test_official_to_ours_and_back_is_bit_exact(tensors, tmp_path):
    again = official_state_dict(official_model(stereo_config(), tensors, tmp_path))
    official = weights_of(tensors)
    assert set(again) == set(official)
    assert all(torch.equal(again[name], tensor) for name, tensor in official.items())


# stages


@pytest.mark.data
def test_stereo_stage_by_stage(tensors, tmp_path):
    model, batch = official_model(stereo_config(), tensors, tmp_path), recorded_batch(tensors, 3)
    assert torch.equal(batch.cam2keyego_BTN44, tensors["sensor2keyego"])
    outputs, given = run(model, batch)
    before, key = given["stereo"]
    torch.testing.assert_close(before, tensors["costvol_prev"].float(), rtol=1e-3, atol=1e-5)  # stored in half
    torch.testing.assert_close(key, tensors["costvol_key"].float(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(key[0, :, ::4, ::4], tensors["costvol_key_f32_cam0"], rtol=1e-4, atol=1e-5)
    assert_close(given["lift"][0][:, :, 0], tensors["bev_lss_prev"])
    assert_close(given["lift"][1][:, :, 0], tensors["bev_lss_key"])
    assert_close(outputs.depth_logits_BNDhw[0].softmax(dim=1), tensors["depth_prob_key"])
    assert_close(given["img_bev_encoder_neck"][0], tensors["bev_enc"])
    assert_close(public(outputs.logits_BKXYZ)[:, ::2, ::2], tensors["logits"])


@pytest.mark.data
def test_stereo_with_growing_bins(tensors, folder, tmp_path):
    reference = read(folder / "bevstereo_small_sid.npz")
    model = official_model(stereo_config(spacing="log_official"), tensors, tmp_path)
    outputs, given = run(model, recorded_batch(tensors, 3))
    assert_close(given["lift"][1][:, :, 0], reference["bev_lss_key"])
    assert_close(outputs.depth_logits_BNDhw[0].softmax(dim=1), reference["depth_prob_key"])
    assert_close(given["img_bev_encoder_neck"][0].mean(), reference["bev_enc_mean"])
    assert_close(public(outputs.logits_BKXYZ)[:, ::4, ::4], reference["logits"])


@pytest.mark.data
def test_order_of_the_frames_matters(tensors, tmp_path):
    batch = recorded_batch(tensors, 3)
    other = official_model(replace(stereo_config(), frame_order="newest_first"), tensors, tmp_path)
    outputs, _ = run(other, batch)
    difference = public(outputs.logits_BKXYZ)[:, ::2, ::2] - tensors["logits"]
    assert difference.abs().max() > 0.1


@pytest.mark.data
def test_depth_network_in_the_whole(folder, tmp_path):
    reference = read(folder / "bevdepth_small.npz")
    model, batch = official_model(depth_config(), reference, tmp_path), recorded_batch(reference, 1)
    outputs, given = run(model, batch)
    assert_close(given["img_neck"][0].unflatten(0, (2, 3)), reference["neck"])
    assert_close(given["lift"][0][:, :, 0], reference["bev_lss"])
    assert_close(given["img_bev_encoder_neck"][0][:1], reference["bev_enc"])
    assert_close(public(outputs.logits_BKXYZ)[0, ::2, ::2], reference["logits_b0"])
    targets = Targets(
        labels_BXYZ=torch.zeros(2, *model.config.grid.shape, dtype=torch.uint8),
        mask_camera_BXYZ=torch.ones(2, *model.config.grid.shape, dtype=torch.bool),
        depth_bins_BNhw=measured_depth_bins(reference["gt_depth"], model.config.depth_bins, 16),
    )
    losses = compute_losses(outputs, targets, flashocc_losses(depth=1.0), OCC3D_LABELS)
    torch.testing.assert_close(losses.terms["depth"], reference["loss_depth"], rtol=1e-5, atol=0)


@pytest.mark.data
def test_what_learns_from_the_depth_loss(tensors, tmp_path):
    """Earlier pictures get no gradient, the cost volume gives none; the layers behind it learn."""
    model = official_model(stereo_config(), tensors, tmp_path)
    batch = recorded_batch(tensors, 3)
    batch.images_BTNCHW.requires_grad_()
    outputs = model(batch)
    outputs.depth_logits_BNDhw.square().sum().backward()
    gradient = batch.images_BTNCHW.grad.abs().amax(dim=(0, 2, 3, 4, 5))
    assert gradient[0] > 0
    assert gradient[1:].tolist() == [0.0, 0.0]
    weight = model.get_parameter("img_view_transformer.depth_net.cost_volumn_net.0.weight")
    assert weight.grad.abs().max() > 0


# configs that do not fit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"history_camera_pose": "old"}, "history_camera_pose='old': expected one of"),
        ({"frame_order": "random"}, "frame_order='random': expected one of"),
        (
            {"image_backbone": TimmBackboneConfig(name="resnet18", stride=16, out_channels=(256, 512))},
            "view.stereo needs a SwinConfig or a ResNetConfig",
        ),
    ],
)
def test_bad_configs(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(stereo_config(), **changes)


def test_stereo_needs_an_earlier_picture():
    config = stereo_config()
    with pytest.raises(ValueError, match=r"camera_history=0 is none"):
        replace(config, inputs=replace(config.inputs, camera_history=0))

"""The whole network against tensors of the official code, stage by stage, in a reduced configuration."""

import json

import pytest
import torch
import torch.nn.functional as F
from fusionocc_cases import recorded_batch, reference_config, reference_weight
from safetensors.torch import load_file

from fusionocc_core.layers.view_transform import frustum_points, frustum_samples, measured_depth_bins, voxel_indices
from fusionocc_core.models.fusionocc import FusionOcc
from fusionocc_core.models.fusionocc_official import official_state_dict
from fusionocc_core.ops.bev_pool import bev_pool, plan_bev_pool
from fusionocc_core.presets import load_official
from fusionocc_core.structures import Batch

pytestmark = pytest.mark.data
CLOSE = 1e-4
"""Of the tensor's maximum; measured: at most 6e-6."""


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "goldens" / "fusionocc"


@pytest.fixture(scope="module")
def golden(folder):
    return load_file(folder / "small_io.safetensors")


@pytest.fixture(scope="module")
def fresh(folder):
    """Makes a network with the reference run's weights, read as an official file."""

    def make():
        model = FusionOcc(reference_config(json.loads((folder / "small_config.json").read_text())))
        load_official(model, folder / "small_state_dict.safetensors")
        return model.eval()

    return make


@pytest.fixture(scope="module")
def batches(golden):
    """Our Batch of the recorded inputs: A is the first sample alone, B is both."""
    both = recorded_batch(golden)
    names = [name for name, value in vars(both).items() if isinstance(value, torch.Tensor)]
    first = Batch(points=both.points[:1], **{name: getattr(both, name)[:1] for name in names})
    return first, both


@pytest.fixture(scope="module")
def run_a(fresh, batches):
    """Outputs of the first sample, and what every submodule took and gave, call by call (0 = earlier frame, 1 =
    current)."""
    model = fresh()
    taken, given = {}, {}
    for name, module in model.named_modules():

        def record(module, inputs, output, name=name):
            taken.setdefault(name, []).append(inputs)
            given.setdefault(name, []).append(output)

        module.register_forward_hook(record)
    with torch.no_grad():
        outputs = model(batches[0])
    cameras = batches[0].images_BTNCHW.shape[2]
    for name in ("img_backbone", "img_neck", *(f"img_backbone.{part}" for part in dict.fromkeys(SWIN.values()))):
        calls = [given[name][start : start + cameras] for start in range(0, 2 * cameras, cameras)]
        given[name] = [joined(pictures) for pictures in calls]
    return outputs, taken, given


def joined(pictures):
    """What a module gave, picture by picture, as if it had taken all at once."""
    if isinstance(pictures[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*pictures, strict=True))
    return torch.cat(pictures)


GRADIENTS_CLOSE = 1e-2
"""A ReLU whose input is within rounding of zero lets a gradient through or not: measured 4e-6 with two threads, 3e-3
with one, which sums in another order."""


def assert_close(ours, reference, tolerance=CLOSE):
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= tolerance * reference.abs().max()


def public(logits_BXYZK):
    return logits_BXYZK.permute(0, 4, 1, 2, 3)


def test_weights_follow_from_their_names(folder):
    for name, tensor in load_file(folder / "small_state_dict.safetensors").items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, reference_weight(name, tuple(tensor.shape))), name


def test_official_to_ours_and_back_is_bit_exact(folder, fresh):
    official = load_file(folder / "small_state_dict.safetensors")
    again = official_state_dict(fresh())
    assert set(again) == set(official)
    assert all(torch.equal(again[name], tensor) for name, tensor in official.items())


SWIN = {
    "patch_embed_cam0": "patch_embed",
    "stage1.block0_cam0": "stages.0.blocks.0",
    "stage1.block1_cam0": "stages.0.blocks.1",
    "stage1_prenorm": "stages.0.blocks.1",
    "stage2_prenorm": "stages.1.blocks.1",
    "stage3_prenorm": "stages.2.blocks.1",
    "stage4_prenorm": "stages.3.blocks.1",
}


@pytest.mark.parametrize("stage", SWIN)
def test_swin_tokens(stage, run_a, golden):
    tokens = run_a[2][f"img_backbone.{SWIN[stage]}"][1].flatten(1, 2)
    reference = golden[f"A.cur.swin.{stage}"]
    assert_close(tokens[: len(reference)], reference)


def test_swin_maps_and_neck(run_a, golden):
    _, _, given = run_a
    for index in (0, 1):
        assert_close(given["img_backbone"][1][index], golden[f"A.cur.swin.out{index}"])
    for call, frame in enumerate(("adj", "cur")):
        assert_close(given["img_neck"][call], golden[f"A.{frame}.neck"])


def test_measured_depth_and_camera_vectors(run_a, golden):
    _, taken, _ = run_a
    for call, frame in enumerate(("adj", "cur")):
        _, bins_Bhw, vectors_BV = taken["img_view_transformer"][call]
        assert torch.equal(bins_Bhw, golden["A.depth_bin_index"].long())
        assert_close(vectors_BV.unflatten(0, (1, 6)), golden[f"A.{frame}.mlp_input"])


CROSS_MODAL = {
    "f_c": "img_reduce_conv",
    "f_d": "depth_encoder",
    "fused_cd": "cross_model_fusion",
    "further_fuse": "further_fuse",
    "aspp": "depth_seg_net.depth_conv.2",
}


@pytest.mark.parametrize("stage", CROSS_MODAL)
def test_cross_modal_stages(stage, run_a, golden):
    assert_close(run_a[2][f"img_view_transformer.{CROSS_MODAL[stage]}"][1], golden[f"A.cur.cml.{stage}"])


@pytest.mark.parametrize(("call", "frame"), [(0, "adj"), (1, "cur")])
def test_branches_in_the_picture(call, frame, run_a, golden):
    seen = run_a[2]["img_view_transformer"][call]
    assert_close(seen.depth_logits_BDhw, golden[f"A.{frame}.cml.depth_logits"])
    assert_close(seen.depth_logits_BDhw.softmax(dim=1), golden[f"A.{frame}.cml.depth_prob"])
    assert_close(seen.feature_BChw, golden[f"A.{frame}.cml.feature"])
    assert_close(seen.seg_logits_BKhw, golden[f"A.{frame}.cml.seg_logits"])


@pytest.mark.parametrize(("call", "name", "every"), [(0, "A.adj.geom_every11d", 11), (1, "A.cur.geom", 1)])
def test_frustum_is_exact(call, name, every, run_a, fresh, golden):
    _, taken, _ = run_a
    lift = fresh().lift
    samples = frustum_samples(lift.config, lift.bins, lift.image_size, lift.stride)
    points = frustum_points(samples, taken["lift"][call][2])[:, :, ::every]
    assert torch.equal(points, golden[name])


def test_pooling_alone(fresh, golden):
    lift = fresh().lift
    voxels = voxel_indices(golden["A.cur.geom"], lift.grid, lift.config.voxel_rounding)
    plan = plan_bev_pool(voxels, lift.grid.shape_zyx)
    pooled = bev_pool(golden["A.cur.cml.depth_prob"][None], golden["A.cur.cml.feature"][None], plan)
    assert_close(pooled, golden["A.cur.pooled"])


@pytest.mark.parametrize(("call", "frame"), [(0, "adj"), (1, "cur")])
def test_lifted_volumes(call, frame, run_a, golden):
    """The frustum is bit-exact here, so no sample changes its voxel; on other machines a few on faces might."""
    _, _, given = run_a
    reference = golden[f"A.{frame}.pooled"]
    off = (given["lift"][call] - reference).abs().amax(dim=1) > CLOSE * reference.abs().max()
    assert off.sum() <= 5, f"{int(off.sum())} voxels differ"
    assert_close(given["pre_process_net"][call][0], golden[f"A.{frame}.pre_process"])


def test_lidar_volume(run_a, golden):
    assert_close(run_a[2]["lidar_encoder"][0], golden["A.lidar.dense"].transpose(3, 4))


def test_volume_stages_and_logits(run_a, golden):
    outputs, taken, given = run_a
    assert_close(taken["img_bev_encoder_backbone"][0][0], golden["A.fused3d"])
    for index in range(3):
        assert_close(given["img_bev_encoder_backbone"][0][index], golden[f"A.occ_backbone{index}"])
    assert_close(given["img_bev_encoder_neck"][0], golden["A.occ_neck"])
    assert_close(given["final_conv"][0], golden["A.final_conv"])
    assert_close(outputs.logits_BKXYZ, public(golden["A.logits"]))


def test_labels(run_a, golden):
    labels = run_a[0].logits_BKXYZ.argmax(dim=1)
    best = golden["A.logits"].topk(2, dim=-1).values
    clear = best[..., 0] - best[..., 1] > 1e-3
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear], golden["A.occ"].long()[clear])


def test_two_samples_one_augmented_and_flipped(fresh, batches, golden):
    model, fused = fresh(), []
    model.img_bev_encoder_backbone.register_forward_hook(lambda module, inputs, output: fused.append(inputs[0]))
    with torch.no_grad():
        outputs = model(batches[1])
    assert_close(fused[0], golden["B.fused3d"])
    assert_close(outputs.logits_BKXYZ, public(golden["B.logits"]))
    assert_close(outputs.depth_logits_BNDhw.flatten(0, 1).softmax(dim=1), golden["B.depth_prob"])
    assert_close(outputs.seg_logits_BNKhw.flatten(0, 1), golden["B.seg_logits"])


def test_hidden_depth_labels_are_the_references(fresh, batches, golden):
    model, encoded = fresh(), []
    net = model.img_view_transformer
    net.training = True  # the masking alone: its batch norms stay in evaluation
    net.depth_encoder.register_forward_hook(lambda module, inputs, output: encoded.append(inputs[0]))
    torch.manual_seed(123)
    with torch.no_grad():
        outputs = model(batches[1])
    measured = golden["A.depth_bin_index"].flatten().bool()
    for one_hot, name in zip(encoded, ("C.mask_adj", "C.mask_cur"), strict=True):
        visible, hidden = one_hot.any(dim=1).flatten(), golden[name].bool()
        assert not visible[hidden].any()
        assert torch.equal(visible[: len(measured)], measured & ~hidden[: len(measured)])
    assert_close(outputs.logits_BKXYZ, public(golden["C.logits"]))


def test_running_statistics_after_one_step_in_training(fresh, batches, golden):
    model = fresh().train()
    model.img_view_transformer.depth_seg_net.depth_conv[2].dropout.p = 0.0
    torch.manual_seed(123)
    model(batches[1])
    state = model.state_dict()
    names = [name for name in golden if name.startswith("D.")]
    assert len(names) == 8
    for name in names:
        assert_close(state[name.removeprefix("D.")], golden[name])


def test_losses_and_gradients(fresh, batches, golden):
    """Of the three official losses without camera mask, with batch norms in evaluation."""
    model = fresh()
    outputs = model(batches[1])
    occupancy = F.cross_entropy(outputs.logits_BKXYZ, golden["in.voxel_semantics"].long())
    depth = outputs.depth_logits_BNDhw.flatten(0, 1).softmax(dim=1).permute(0, 2, 3, 1)
    config = model.config
    bins = measured_depth_bins(batches[1].depth_BNHW, config.depth_bins, config.image_backbone.stride).flatten(0, 1)
    seen = bins > 0
    target = F.one_hot(bins[seen] - 1, depth.shape[-1]).float()
    depth_loss = F.binary_cross_entropy(depth[seen], target, reduction="sum") / seen.sum()
    labels = golden["in.segs"][..., ::16, ::16].flatten(0, 1).long()
    seg_loss = F.cross_entropy(outputs.seg_logits_BNKhw.flatten(0, 1), labels, ignore_index=17)
    values = torch.stack([occupancy, 0.1 * depth_loss, 0.1 * seg_loss])
    assert_close(values.detach(), torch.tensor([6.22246, 1.64801, 1.01591]))
    values.sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    official = _as_official(gradients, model)
    names = [name for name in golden if name.startswith("grad.")]
    assert len(names) == 6
    for name in names:
        assert_close(official[name.removeprefix("grad.")], golden[name], GRADIENTS_CLOSE)


def _as_official(gradients, model):
    """Gradients under official names, by writing them where the weights were."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.zeros_like(parameter) if gradients[name] is None else gradients[name])
    return official_state_dict(model)

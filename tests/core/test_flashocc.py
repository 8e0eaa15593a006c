"""FlashOcc without the folder of reference tensors: parts against small ones, the whole against kept results."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from flashocc_cases import golden, golden_model, golden_results, little_config
from fusionocc_cases import random_batch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from fusionocc_core.checkpoints import decode_config, encode_config
from fusionocc_core.data.augmentation import BevAug, ImageAug, fit_image
from fusionocc_core.data.points import depth_maps
from fusionocc_core.grids import OCC3D_LABELS, LabelSet
from fusionocc_core.layers.camera_depth import CameraDepthConfig
from fusionocc_core.layers.height_head import ChannelToHeight
from fusionocc_core.layers.image_backbones import SwinConfig
from fusionocc_core.layers.image_necks import FpnLssConfig
from fusionocc_core.layers.view_transform import collapse_height, voxel_indices
from fusionocc_core.losses import Targets, compute_losses, panoptic_flashocc_losses
from fusionocc_core.models.flashocc import FlashOcc, FlashOccConfig
from fusionocc_core.models.flashocc_official import from_official, official_state_dict
from fusionocc_core.ops.bev_pool import bev_pool, plan_bev_pool
from fusionocc_core.presets import load_model, load_official, preset_config
from fusionocc_core.structures import CameraImage, InputConfig, LidarSweep, Outputs

OFFICIAL = {  # preset: name in the list of tensors, parameters and 1e9 multiplications without the head for centres
    "flashocc-m0": ("M0", 39_938_892, 153.3),
    "flashocc-m1": ("M1", 44_744_312, 247.7),
    "panoptic-flashocc-tiny": ("panoptic_depth_tiny", 45_317_698, 174.2),
    "panoptic-flashocc-depth": ("panoptic_depth_noaux", 57_833_822, 285.9),
}


@pytest.fixture(scope="module", params=OFFICIAL)
def official(request):
    """Names and shapes of an official network without memory for the weights."""
    with torch.device("meta"):
        model = load_model(request.param)
    return model, *OFFICIAL[request.param]


def without_centers(names):
    return {name for name in names if not name.startswith("aux_centerness_head.")}


def test_parameters(official):
    model, _, expected, _ = official
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(counts[name] for name in without_centers(counts)) == expected


def test_multiplications(official):
    """Counted by torch.utils.flop_counter, which leaves out the pooling: published and measured values do, too."""
    model, _, _, expected = official
    shape = model.config.bev_grid.shape_zyx
    model.aux_centerness_head = None
    model.lift.forward = lambda depth, feature, cameras: feature.new_zeros(1, feature.shape[2], *shape)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(random_batch(model.config, cameras=6).to("meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(expected, abs=0.06)


@pytest.mark.data
def test_every_tensor_of_the_official_networks(official, shared):
    model, listed, _, _ = official
    expected = json.loads((shared / "specs" / "state_dicts" / "flashocc_state_dict.json").read_text())[listed]
    ours = {name: list(tensor.shape) for name, tensor in official_state_dict(model).items()}
    assert {name: ours[name] for name in without_centers(ours)} == expected


def test_official_habits_are_on_in_m0_and_off_in_tiny():
    m0, tiny = preset_config("flashocc-m0"), preset_config("flashocc-tiny")
    assert tiny.inputs == InputConfig(image_size=(256, 704))
    assert tiny.lift == type(tiny.lift)()
    assert (m0.lift.frustum_pixels, m0.lift.frustum_depths, m0.lift.voxel_rounding) == (
        "corner_aligned",
        "lower_edges",
        "truncate",
    )
    changed = {
        name
        for name in vars(m0.inputs)
        if getattr(m0.inputs, name) != getattr(InputConfig(image_size=(256, 704)), name)
    }
    assert changed == {"resampling", "channel_order", "key_pose", "float32_poses"}


@pytest.mark.parametrize("backend", ["embedding_bag", "index_add"])
def test_pooling_and_both_gradients_equal_the_recorded_ones(backend, goldens):
    recorded = golden(goldens / "flashocc_bev_pool_v2.npz")
    lower, size, cells = (recorded[f"grid_{name}"] for name in ("lower", "interval", "size"))
    voxels = ((recorded["coor"] - lower) / size).trunc().long()
    depth, feature = recorded["depth"].requires_grad_(), recorded["feat"].requires_grad_()
    plan = plan_bev_pool(voxels, tuple(cells.flip(0).tolist()))
    assert len(plan.voxels_P) == len(recorded["ranks_bev"])
    pooled = bev_pool(depth, feature.movedim(-1, 2), plan, backend)
    torch.testing.assert_close(pooled, recorded["out"])
    torch.testing.assert_close(collapse_height(pooled), recorded["out_collapsed"])
    pooled.backward(recorded["out_grad"])
    torch.testing.assert_close(depth.grad, recorded["depth_grad"])
    torch.testing.assert_close(feature.grad, recorded["feat_grad"])


def test_truncation_has_edge_cases_in_the_recorded_points(goldens):
    """Points just below the grid fall into its first cells with the official rounding, and outside with ours."""
    recorded = golden(goldens / "flashocc_bev_pool_v2.npz")
    grid = little_config().grid
    grid = replace(
        grid,
        lower=tuple(recorded["grid_lower"].tolist()),
        upper=tuple((recorded["grid_lower"] + recorded["grid_interval"] * recorded["grid_size"]).tolist()),
        voxel_size=tuple(recorded["grid_interval"].tolist()),
    )
    kept = {}
    for rounding in ("truncate", "floor"):
        plan = plan_bev_pool(voxel_indices(recorded["coor"], grid, rounding), grid.shape_zyx)
        kept[rounding] = {tuple(p) for p in plan.depth_rows_P[:, None].tolist()}
    assert kept["floor"] < kept["truncate"]
    assert kept["truncate"] == {tuple(p) for p in recorded["ranks_depth"][:, None].tolist()}


def test_picture_augmentation_equals_the_recorded_one(goldens):
    recorded = golden(goldens / "flashocc_data_aug.npz")
    for i, scale in enumerate(recorded["resize"].tolist()):
        aug = ImageAug(
            scale=scale,
            resized=(int(1600 * scale), int(900 * scale)),
            corner=(int(recorded["crop_w"][i]), int(recorded["crop_h"][i])),
            mirror=bool(recorded["flip"][i]),
            turn_degrees=float(recorded["rot_deg"][i]),
        )
        matrix = torch.from_numpy(aug.matrix((256, 704))).float()
        torch.testing.assert_close(matrix[:2, :2], recorded["post_rot"][i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(matrix[:2, 3], recorded["post_tran"][i], rtol=1e-5, atol=1e-3)
    fitted = fit_image((900, 1600), (256, 704))
    assert [*fitted.corner, fitted.corner[0] + 704, fitted.corner[1] + 256] == recorded["test_crop"].tolist()
    for (turn, scale, flip_x, flip_y), expected in zip(
        recorded["bda_args"].tolist(), recorded["bda_mats"], strict=True
    ):
        aug = BevAug(turn_degrees=turn, scale=scale, flip_x=bool(flip_x), flip_y=bool(flip_y))
        torch.testing.assert_close(torch.from_numpy(aug.matrix()[:3, :3]).float(), expected)


def test_depth_map_equals_the_recorded_one(goldens):
    recorded = golden(goldens / "flashocc_data_aug.npz")
    uvd = recorded["depth_points"].numpy()
    uvd = uvd[uvd[:, 2] > 0]
    xyz = np.concatenate([uvd[:, :2] * uvd[:, 2:], uvd[:, 2:]], axis=1)
    eye = np.eye(4)
    points = np.concatenate([xyz, np.zeros((len(xyz), 2))], axis=1).astype(np.float32)
    sweep = LidarSweep(points=points, lidar2ego=eye, ego2global=eye, stamp_ns=0)
    picture = np.zeros((64, 176, 3), np.uint8)
    camera = CameraImage(name="c", image=picture, intrinsics=np.eye(3), cam2ego=eye, ego2global=eye, stamp_ns=0)
    ours = depth_maps(sweep, [camera], torch.eye(4)[None], InputConfig(image_size=(64, 176)))[0]
    theirs = recorded["depth_map"]
    assert ((ours > 0) == (theirs > 0)).float().mean() > 0.9995  # u * d / d may round to the other pixel
    both = (ours > 0) & (theirs > 0)
    assert (ours[both] <= theirs[both]).float().mean() > 0.999
    assert (ours[both] == theirs[both]).float().mean() > 0.99


@pytest.mark.data
def test_head_and_its_gradients_equal_the_recorded_ones(shared):
    recorded = golden(shared / "goldens" / "flashocc" / "head_v2_losses.npz")
    head = ChannelToHeight(8, heights=2, num_classes=OCC3D_LABELS.num)
    head.load_state_dict({name[3:]: tensor for name, tensor in recorded.items() if name.startswith("sd/")}, strict=True)
    logits = head(recorded["x"])
    torch.testing.assert_close(logits.permute(0, 2, 3, 4, 1)[0, ::20, ::20], recorded["logits_sample"])
    labels = recorded["gt_semantics"].where(recorded["gt_semantics"] != OCC3D_LABELS.unknown, OCC3D_LABELS.free)
    losses = compute_losses(
        Outputs(logits_BKXYZ=logits), Targets(labels_BXYZ=labels), panoptic_flashocc_losses(), OCC3D_LABELS
    )
    names = ("loss_occ", "loss_voxel_sem_scal", "loss_voxel_geo_scal", "loss_voxel_lovasz")
    for ours, name in zip(losses.terms.values(), names, strict=True):
        torch.testing.assert_close(ours, recorded[f"loss/{name}"], rtol=1e-5, atol=0)
    losses.total.backward()
    for name, parameter in head.named_parameters():
        reference = recorded[f"grad/{name}"]
        torch.testing.assert_close(parameter.grad, reference, rtol=1e-3, atol=1e-3 * float(reference.abs().max()))


def test_channels_become_heights():
    """Channel z * K + k is the score of class k at height z, of the column at the same x and y."""
    head = ChannelToHeight(3, heights=4, num_classes=5)
    bev = torch.randn(2, 3, 6, 7)
    with torch.no_grad():
        logits = head(bev)
        channels_BYXC = head.predicter(torch.relu(head.final_conv(bev)).permute(0, 2, 3, 1))
    assert logits.shape == (2, 5, 7, 6, 4)
    assert logits.permute(0, 2, 3, 4, 1).is_contiguous()
    for x, y, z, k in ((0, 0, 0, 0), (6, 2, 3, 1), (3, 5, 1, 4)):
        # Rows of a matrix product in another order may be rounded otherwise.
        torch.testing.assert_close(logits[:, k, x, y, z], channels_BYXC[:, y, x, z * 5 + k])


@pytest.mark.parametrize("habits", ["official", "correct"])
def test_results_are_those_that_were_kept(habits, goldens):
    kept, results = load_file(goldens / f"flashocc_{habits}.safetensors"), golden_results(golden_model(habits))
    assert set(results) == set(kept)
    for name, reference in kept.items():
        assert results[name].shape == reference.shape
        assert (results[name] - reference).abs().max() <= 1e-4 * reference.abs().max(), name


@pytest.fixture(scope="module")
def model():
    return golden_model("correct")


def test_order_of_cameras_does_not_matter(model):
    batch = random_batch(model.config, cameras=4)
    order = [2, 0, 3, 1]
    shuffled = replace(
        batch,
        images_BTNCHW=batch.images_BTNCHW[:, :, order],
        intrinsics_BTN33=batch.intrinsics_BTN33[:, :, order],
        image_aug_BTN44=batch.image_aug_BTN44[:, :, order],
        cam2keyego_BTN44=batch.cam2keyego_BTN44[:, :, order],
    )
    with torch.no_grad():
        one, other = model(batch), model(shuffled)
    torch.testing.assert_close(one.logits_BKXYZ, other.logits_BKXYZ, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.depth_logits_BNDhw[:, order], other.depth_logits_BNDhw, rtol=1e-4, atol=1e-5)


def test_two_samples_are_two_singles_and_one_camera_is_enough(model):
    both = random_batch(model.config, samples=2, cameras=1)
    both.bev_aug_B44[1, 0, 0] = -1.0
    parts = {f: getattr(both, f) for f in vars(both) if isinstance(getattr(both, f), torch.Tensor)}
    with torch.no_grad():
        together = model(both).logits_BKXYZ
        for b in range(2):
            one = replace(both, points=both.points[b : b + 1], **{n: t[b : b + 1] for n, t in parts.items()})
            torch.testing.assert_close(model(one).logits_BKXYZ, together[b : b + 1], rtol=1e-4, atol=1e-5)


def test_no_sample_within_the_grid(model):
    """All cameras far away: the bird's-eye view is empty, the answer finite."""
    batch = random_batch(model.config, cameras=2)
    batch.cam2keyego_BTN44[..., 0, 3] += 1e4
    with torch.no_grad():
        assert model(batch).logits_BKXYZ.isfinite().all()


def test_other_parts():
    """A Swin with its neck, the depth network that knows the camera, earlier pictures, other classes and heights."""
    config = little_config(
        image_backbone=SwinConfig(embed_channels=8, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4), window=3, drop_path=0.0),
        image_neck=FpnLssConfig(channels=16),
        view=CameraDepthConfig(mid_channels=16, context_channels=8, aspp_channels=4),
        label_set=LabelSet(name="two", names=("full", "free"), colors=((0, 0, 0), (9, 9, 9)), free=1),
        frame_blocks=1,
    )
    config = replace(config, inputs=replace(config.inputs, camera_history=1))
    assert decode_config(FlashOccConfig, json.loads(json.dumps(encode_config(config)))) == config
    model = FlashOcc(config).eval()
    assert model.img_bev_encoder_backbone.layers[0][0].conv1.in_channels == 16
    with torch.no_grad():
        outputs = model(random_batch(config, cameras=2))
    assert outputs.logits_BKXYZ.shape == (1, 2, *config.grid.shape)
    again = from_official(official_state_dict(model))
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_wrong_configs_and_batches_are_named(model):
    with pytest.raises(ValueError, match="must be multiples of 16"):
        little_config(inputs=InputConfig(image_size=(60, 96), depth_range=(1.0, 17.0)))
    with pytest.raises(ValueError, match="depth_range"):
        little_config(inputs=InputConfig(image_size=(64, 96), depth_range=(2.0, 17.0)))
    grid = little_config().grid
    with pytest.raises(ValueError, match="must be multiples of 8"):
        little_config(grid=replace(grid, upper=(15.0, 8.0, 5.4)))
    with pytest.raises(ValueError, match="frame_order='up'"):
        little_config(frame_order="up")
    other = little_config(inputs=InputConfig(image_size=(64, 128), depth_range=(1.0, 17.0)))
    with pytest.raises(ValueError, match=r"pictures of \(64, 128\) pixels; this network takes 1 frames"):
        model(random_batch(other))


def test_wrong_official_files_are_named(model, tmp_path):
    state = official_state_dict(model)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "ema.pth")
    load_official(FlashOcc(model.config), tmp_path / "ema.pth", preset="mine")
    del state["occ_head.predicter.2.bias"]
    state["loss_occ.weight"] = torch.ones(1)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"1 missing: occ_head\.predicter\.2\.bias; 1 unexpected: loss_occ\.weight"):
        load_official(FlashOcc(model.config), tmp_path / "other.pth")
    config = "grid_config = dict(x=[-51.2, 51.2, 0.8], y=[-16, 16, 1], z=[-1, 5.4, 6.4])"
    torch.save({"meta": {"config": config}, "state_dict": official_state_dict(model)}, tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"a grid with x from -51\.2"):
        load_official(FlashOcc(model.config), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match="ResNet-50 or Swin"), torch.device("meta"):
        official_state_dict(load_model("flashocc-tiny"))


def test_size_of_the_answer_and_fresh_weights_carry_signals():
    """flashocc-tiny-panoptic at full size: every head answers, with scores that neither explode nor die."""
    torch.manual_seed(0)
    model = load_model("flashocc-tiny-panoptic")
    assert sum(parameter.numel() for parameter in model.parameters()) < 16e6
    model.train()  # statistics of the batch: fresh running averages fit nothing
    with torch.no_grad():
        outputs = model(random_batch(model.config, cameras=2))
    assert outputs.logits_BKXYZ.shape == (1, 18, 200, 200, 16)
    assert outputs.centers.heatmap_logits_BKXY.shape == (1, 10, 200, 200)
    for scores in (outputs.logits_BKXYZ, outputs.depth_logits_BNDhw, outputs.centers.heatmap_logits_BKXY):
        assert 0.02 < scores.std() < 5
    assert 0.05 < outputs.centers.heatmap_logits_BKXY.sigmoid().mean() < 0.2

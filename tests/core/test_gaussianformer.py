"""GaussianFormer as a network: official names, invariances, gradients, configs, frames in, Gaussians out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fusionocc_cases import random_batch
from gaussianformer_cases import little_config

from fusionocc_core.checkpoints import decode_config, encode_config, save_model
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.grids import OCC3D_LABELS, SURROUNDOCC_GRID
from fusionocc_core.losses import LossConfig, Targets, compute_losses
from fusionocc_core.models.gaussian_initialiser import GaussianInitialiser, initialiser_of, occupied_voxels
from fusionocc_core.models.gaussianformer import GaussianFormer, GaussianFormerConfig, camera_projections
from fusionocc_core.models.gaussianformer_official import from_official, official_state_dict
from fusionocc_core.predictor import Predictor
from fusionocc_core.presets import load_model, make_network, preset_config
from fusionocc_core.structures import CameraImage, InputConfig, LidarSweep, SensorFrame

OFFICIAL = {
    "gaussianformer-144000": "nuscenes_gs144000",
    "gaussianformer-25600-solid": "nuscenes_gs25600_solid",
    "gaussianformer2-6400": "prob_nuscenes_gs6400",
    "gaussianformer2-12800": "prob_nuscenes_gs12800",
    "gaussianformer2-25600": "prob_nuscenes_gs25600",
}


@pytest.mark.data
@pytest.mark.parametrize("preset", list(OFFICIAL))
def test_every_tensor_of_the_official_networks(preset, shared):
    path = shared / "specs" / "state_dicts" / f"gaussianformer_state_dict_{OFFICIAL[preset]}.json"
    expected = json.loads(path.read_text())["state_dict"]
    with torch.device("meta"):
        model = make_network(preset_config(preset))
        ours = official_state_dict(model)
    assert set(ours) == set(expected)
    assert all(list(ours[name].shape) == entry["shape"] for name, entry in expected.items())
    learns = {name: tensor.requires_grad for name, tensor in official_names(model).items()}
    assert learns == {name: entry["requires_grad"] for name, entry in expected.items() if entry["kind"] == "param"}


def official_names(model):
    """Parameters, not tensors of a state dict, by official names."""
    state_dict = model.state_dict
    model.state_dict = lambda: state_dict(keep_vars=True)
    named = official_state_dict(model)
    del model.state_dict
    return {name: tensor for name, tensor in named.items() if isinstance(tensor, torch.nn.Parameter)}


def test_another_grid_in_an_official_file_is_noticed():
    model = GaussianFormer(little_config(1))
    state = official_state_dict(model)
    assert set(from_official(state, model.config)) == set(model.state_dict())
    name = next(name for name in state if name.endswith("pc_range"))
    with pytest.raises(ValueError, match=rf"{name} = .*trained for another grid"):
        from_official({**state, name: state[name] + 0.5}, model.config)


@pytest.fixture(scope="module", params=[1, 2])
def model(request):
    torch.manual_seed(0)
    model = GaussianFormer(little_config(request.param)).eval()
    for block in model.encoder.blocks:  # fresh attention is the same everywhere
        torch.nn.init.normal_(block.deformable.weights_fc.weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def batch(model):
    return random_batch(model.config, samples=2, cameras=3, seed=7)


@pytest.fixture(scope="module")
def outputs(model, batch):
    with torch.no_grad():
        return model(batch)


def test_what_comes_out(model, outputs):
    config = model.config
    assert outputs.logits_BKXYZ.shape == (2, 18, *config.grid.shape)
    assert outputs.logits_BKXYZ.isfinite().all()
    assert (outputs.gaussians.num, outputs.gaussians.num_classes) == (60, 17)
    assert outputs.earlier_logits == ()
    assert (outputs.rays is None) == (config.encoder.layout == "v1")
    torch.testing.assert_close(model.head(outputs.gaussians), outputs.logits_BKXYZ)


def test_the_same_input_gives_the_same_bits(model, batch, outputs):
    with torch.no_grad():
        again = model(batch)
    assert torch.equal(again.logits_BKXYZ, outputs.logits_BKXYZ)
    assert torch.equal(again.gaussians.means_BG3, outputs.gaussians.means_BG3)


def of_sample(batch, sample):
    tensors = {
        name: getattr(batch, name)[sample : sample + 1]
        for name in (
            "images_BTNCHW",
            "intrinsics_BTN33",
            "image_aug_BTN44",
            "cam2keyego_BTN44",
            "bev_aug_B44",
            "depth_BNHW",
        )
    }
    return replace(batch, points=batch.points[sample : sample + 1], **tensors)


def test_two_in_a_batch_equal_two_singles(batch, model, outputs):
    """Of the second version the first sample: draws follow each other within a batch."""
    for sample in (0, 1) if model.config.encoder.layout == "v1" else (0,):
        with torch.no_grad():
            alone = model(of_sample(batch, sample))
        torch.testing.assert_close(alone.logits_BKXYZ[0], outputs.logits_BKXYZ[sample], rtol=1e-3, atol=1e-3)


def test_pictures_matter_and_their_order_does_not(model, batch, outputs):
    blank = replace(batch, images_BTNCHW=torch.zeros_like(batch.images_BTNCHW))
    order = torch.tensor([2, 0, 1])
    names = ("images_BTNCHW", "intrinsics_BTN33", "image_aug_BTN44", "cam2keyego_BTN44")
    mixed = replace(
        batch, depth_BNHW=batch.depth_BNHW[:, order], **{name: getattr(batch, name)[:, :, order] for name in names}
    )
    with torch.no_grad():
        assert (model(blank).logits_BKXYZ - outputs.logits_BKXYZ).abs().max() > 1e-3
        if model.config.encoder.layout == "v1":  # the second draws points, one camera after the other
            torch.testing.assert_close(model(mixed).logits_BKXYZ, outputs.logits_BKXYZ, rtol=1e-3, atol=1e-3)


def test_points_fall_on_their_pixels():
    """The projection against the chain written out, space and pictures both augmented."""
    config = little_config()
    batch = random_batch(config, samples=1, cameras=2, seed=3)
    batch.bev_aug_B44[0] = torch.tensor([[-0.9, 0.3, 0, 0], [0.3, 0.9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    batch.image_aug_BTN44[0, 0, 1, 0] = torch.tensor([-0.05, 0.01, 0, 90.0])
    projection = camera_projections(batch)
    for camera in (0, 1):
        seen = torch.tensor([700.0, 500.0, 1.0]) * 6.0  # a pixel of the source picture, 6 m away
        in_camera = torch.linalg.solve(batch.intrinsics_BTN33[0, 0, camera], seen)
        point = batch.bev_aug_B44[0] @ batch.cam2keyego_BTN44[0, 0, camera] @ torch.cat([in_camera, torch.ones(1)])
        pixel = batch.image_aug_BTN44[0, 0, camera] @ torch.tensor([700.0, 500.0, 6.0, 1.0])
        image = projection[0, camera] @ point
        torch.testing.assert_close(image[:2] / image[2], pixel[:2], rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(image[2:], torch.tensor([6.0, 1.0]), rtol=1e-4, atol=1e-4)


def test_cameras_that_see_no_gaussian(model, batch):
    """All look straight up from far away: finite, with finite gradients."""
    away = batch.cam2keyego_BTN44.clone()
    away[..., :3, 3] += 1e3
    outputs = model(replace(batch, cam2keyego_BTN44=away))
    assert outputs.logits_BKXYZ.isfinite().all()
    outputs.logits_BKXYZ.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()


def random_targets(config, samples=2):
    torch.manual_seed(1)
    labels = torch.full((samples, *config.grid.shape), OCC3D_LABELS.free, dtype=torch.uint8)
    labels[:, :, :, 1] = torch.randint(0, 17, labels.shape[1:3], dtype=torch.uint8)
    labels[:, :4] = OCC3D_LABELS.unknown
    return Targets(labels_BXYZ=labels)


@pytest.mark.parametrize("version", [1, 2])
def test_every_weight_learns(version):
    """With scores of all sets, and what is along rays; weights that are kept get no gradient."""
    torch.manual_seed(0)
    config = little_config(version, supervised="all")
    model = GaussianFormer(config).train()
    loss = LossConfig(cross_entropy=10.0, lovasz_occupied=1.0, ray_occupancy=float(version == 2))
    for _ in range(2):  # attention weights and offsets begin at zero: what lies in front of them learns from then on
        outputs = model(random_batch(config, samples=2, cameras=3, seed=7))
        assert len(outputs.earlier_logits) == config.encoder.blocks - 1
        model.zero_grad()
        compute_losses(outputs, random_targets(config), loss, OCC3D_LABELS).total.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter -= 1e-3 * parameter.grad.sign()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.abs().max() > 0]
    # The first block chooses key points from features of zero: there, only the offset learns.
    assert silent == ["encoder.blocks.0.deformable.kps_generator.learnable_fc.weight"]
    kept = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert kept == ({"lifter.instance_feature"} if version == 1 else {"lifter.anchor", "lifter.instance_feature"})


@pytest.mark.parametrize("version", [1, 2])
def test_it_learns(version):
    torch.manual_seed(0)
    config = little_config(version)
    model, batch = GaussianFormer(config).train(), random_batch(config, samples=1, cameras=3, seed=7)
    targets, loss = random_targets(config, 1), LossConfig(cross_entropy=1.0, lovasz_occupied=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    values = []
    for _ in range(20):
        losses = compute_losses(model(batch), targets, loss, OCC3D_LABELS)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        values.append(float(losses.total.detach()))
    assert min(values[-3:]) < 0.85 * values[0]


def test_bfloat16_leaves_geometry_alone(model, batch, outputs):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        _, views = model.lift(batch)
        reduced = model(batch)
    assert views.projection_BN44.dtype == torch.float32
    torch.testing.assert_close(views.projection_BN44, camera_projections(batch), rtol=0, atol=0)
    assert reduced.gaussians.dtype == torch.float32
    assert reduced.logits_BKXYZ.isfinite().all()
    if model.config.encoder.layout == "v1":
        assert (reduced.gaussians.means_BG3 - outputs.gaussians.means_BG3).abs().max() < 0.2


def test_the_first_part_hands_its_weights_over():
    config = little_config()
    own = replace(config, lifter=replace(config.lifter, backbone=config.image_backbone, trained=False))
    torch.manual_seed(4)
    first = GaussianInitialiser(initialiser_of(own)).eval()
    whole = GaussianFormer(own).eval()
    state = first.state_dict()
    assert set(state) == {name for name in whole.state_dict() if name.startswith(("lifter.init", "lifter.proj"))}
    whole.load_state_dict({**whole.state_dict(), **state})
    batch = random_batch(config, samples=1, cameras=2, seed=1)
    with torch.no_grad():
        alone, joined = first(batch), whole(batch)
    torch.testing.assert_close(alone.rays.logits_BNhwE, joined.rays.logits_BNhwE)
    occupied = alone.logits_BKXYZ.argmax(dim=1) != OCC3D_LABELS.free
    assert torch.equal(occupied, occupied_voxels(alone.rays) > 0.5)
    whole.train()
    assert not any(p.requires_grad for name, p in whole.named_parameters() if name.startswith("lifter.init"))
    assert not whole.lifter.initialize_backbone.training
    outputs = whole(batch)
    assert not outputs.rays.logits_BNhwE.requires_grad
    with pytest.raises(ValueError, match="needs an image backbone of its own"):
        initialiser_of(config)
    with pytest.raises(ValueError, match="draws nothing along rays"):
        initialiser_of(little_config(1))


@pytest.mark.parametrize("version", [1, 2])
def test_files_hold_all_of_it(version, tmp_path):
    model = GaussianFormer(little_config(version)).eval()
    assert decode_config(GaussianFormerConfig, json.loads(json.dumps(encode_config(model.config)))) == model.config
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"supervised": "first"}, "supervised='first'"),
        ({"inputs": InputConfig(image_size=(65, 96))}, "multiples of 32"),
        ({"inputs": InputConfig(image_size=(64, 96), camera_history=1)}, "camera_history=1"),
        ({"inputs": InputConfig(image_size=(64, 96), presence_masks=True)}, "presence_masks"),
        (
            {"label_set": replace(OCC3D_LABELS, names=OCC3D_LABELS.names[1:], colors=OCC3D_LABELS.colors[1:], free=16)},
            "anchors.classes=17.* want 16",
        ),
        ({"encoder": replace(little_config().encoder, channels=24)}, "pyramid.channels=16"),
    ],
)
def test_parts_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        little_config(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "v3"}, "layout='v3'"),
        ({"layout": "v1"}, "wants attention.joined=True"),
        ({"step": "miles"}, "step='miles'"),
        ({"blocks": 0}, "blocks=0"),
    ],
)
def test_encoders_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        replace(little_config().encoder, **change)


def test_batches_that_do_not_fit(model, batch):
    with pytest.raises(ValueError, match=r"pictures of \(64, 64\) pixels; this network takes 1 frame .* \(64, 96\)"):
        model(replace(batch, images_BTNCHW=batch.images_BTNCHW[..., :64], depth_BNHW=batch.depth_BNHW[..., :64]))


def some_frame(lidar=True):
    """A camera ahead and a LiDAR that is turned by a quarter to the left, as on nuScenes' car to the right."""
    cam2ego = np.array([[0, 0, 1, 1.0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    lidar2ego = np.array([[0, 1, 0, 0.9], [-1, 0, 0, 0], [0, 0, 1, 1.8], [0, 0, 0, 1.0]])
    ego2global = np.eye(4)
    ego2global[:3, 3] = (100.0, 50.0, 0.0)
    intrinsics = np.array([[80.0, 0, 48], [0, 80, 32], [0, 0, 1]])
    random = np.random.default_rng(0)
    points = np.zeros((50, 5), dtype=np.float32)
    points[:, :3] = random.uniform(-7, 7, (50, 3)) * (1, 1, 0.1)
    sweep = LidarSweep(points=points, lidar2ego=lidar2ego, ego2global=ego2global, stamp_ns=0)
    camera = CameraImage(
        name="CAM_FRONT",
        image=random.integers(0, 255, (64, 96, 3), dtype=np.uint8),
        intrinsics=intrinsics,
        cam2ego=cam2ego,
        ego2global=ego2global,
        stamp_ns=0,
    )
    return SensorFrame(stamp_ns=0, ego2global=ego2global, cameras=(camera,), lidar=sweep if lidar else None)


def test_a_grid_in_the_lidars_frame():
    """Batches for it hold the LiDAR's own points, and cameras that see them where they are."""
    inputs, frame = InputConfig(image_size=(64, 96), key_pose="lidar", depth_range=(0.1, 60.0)), some_frame()
    batch = prepare(frame, inputs, SURROUNDOCC_GRID)
    torch.testing.assert_close(batch.points[0], torch.from_numpy(frame.lidar.points))
    expected = np.linalg.inv(frame.lidar.lidar2ego) @ frame.cameras[0].cam2ego
    np.testing.assert_allclose(batch.cam2keyego_BTN44[0, 0, 0], expected, atol=1e-5)
    homogeneous = torch.cat([batch.points[0][:, :3], torch.ones(50, 1)], dim=1)
    image = homogeneous @ camera_projections(batch)[0, 0].T
    seen = image[(image[:, 2] > 0.1)]
    column, row = (seen[:, :2] / seen[:, 2:3]).round().long().unbind(1)
    inside = (column >= 0) & (column < 96) & (row >= 0) & (row < 64)
    assert inside.sum() > 3
    depth = batch.depth_BNHW[0, 0][row[inside], column[inside]]
    assert (depth <= seen[inside, 2] + 1e-3).all()
    assert (depth > 0).all()
    with pytest.raises(ValueError, match="no LiDAR sweep, and the network answers in the LiDAR's frame"):
        prepare(some_frame(lidar=False), inputs, SURROUNDOCC_GRID)
    with pytest.raises(ValueError, match=r"grid\.frame='lidar'.*key_pose='reference'.*'ego'"):
        prepare(frame, InputConfig(image_size=(64, 96)), SURROUNDOCC_GRID)


def test_the_predictor_gives_gaussians(model):
    occupancy = Predictor(model, device="cpu")(some_frame())
    assert occupancy.labels.shape == model.config.grid.shape
    assert len(occupancy.gaussians) == 60
    assert occupancy.gaussians.labels_G.max() < OCC3D_LABELS.free

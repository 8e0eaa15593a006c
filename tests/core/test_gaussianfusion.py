"""GaussianFusion: absent sensors, gradients, where Gaussians begin, and what its parts compute, against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussianfusion_cases import BINS, GRID, small_batch, small_config, small_network
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.layers.depth_gate import DepthGate
from fusionocc_core.layers.gaussian_lidar import LidarFeatures
from fusionocc_core.layers.gaussian_points import PointLifterConfig, choose_cells, morton_keys
from fusionocc_core.losses import LossConfig, Targets, compute_losses
from fusionocc_core.ops.pixel_rays import project_points
from fusionocc_core.predictor import Predictor
from fusionocc_core.presets import load_model, make_network, preset_config
from fusionocc_core.structures import Batch, CameraImage, LidarSweep, Outputs, SensorFrame


@pytest.fixture(scope="module")
def network():
    """With weights that no start-up rule has set to zero."""
    network = small_network()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return network


def absent(batch: Batch, cameras=(), lidars=()) -> Batch:
    """(sample, camera) pairs and samples whose sensors are called absent."""
    camera_BN, lidar_B = batch.camera_present_BN.clone(), batch.lidar_present_B.clone()
    for b, n in cameras:
        camera_BN[b, n] = False
    for b in lidars:
        lidar_B[b] = False
    return replace(batch, camera_present_BN=camera_BN, lidar_present_B=lidar_B)


def spoilt(batch: Batch) -> Batch:
    """The same with NaN in everything that belongs to an absent sensor."""
    camera_BN, lidar_B = batch.camera_present_BN, batch.lidar_present_B

    def nan(tensor, axis):
        out = tensor.clone()
        out.transpose(1, axis)[~camera_BN] = torch.nan
        return out

    depth = batch.depth_BNHW.clone()
    depth[~camera_BN] = torch.nan
    depth[~lidar_B] = torch.nan
    return replace(
        batch,
        images_BTNCHW=nan(batch.images_BTNCHW, 2),
        intrinsics_BTN33=nan(batch.intrinsics_BTN33, 2),
        image_aug_BTN44=nan(batch.image_aug_BTN44, 2),
        cam2keyego_BTN44=nan(batch.cam2keyego_BTN44, 2),
        depth_BNHW=depth,
        points=tuple(p if here else p * torch.nan for p, here in zip(batch.points, lidar_B.tolist(), strict=True)),
    )


def tensors(outputs: Outputs) -> list[torch.Tensor]:
    return [outputs.logits_BKXYZ, outputs.depth_logits_BNDhw, *vars(outputs.gaussians).values()]


CASES = {
    "a camera": {"cameras": [(0, 1)]},
    "all cameras of a sample": {"cameras": [(1, 0), (1, 1), (1, 2)]},
    "all cameras": {"cameras": [(b, n) for b in range(2) for n in range(3)]},
    "a LiDAR": {"lidars": [0]},
    "all LiDARs": {"lidars": [0, 1]},
    "everything of a sample": {"cameras": [(0, 0), (0, 1), (0, 2)], "lidars": [0]},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", list(CASES))
def test_what_an_absent_sensor_holds_changes_no_bit(network, case, training):
    """Values, and in training the gradients of all weights."""
    network.train(training)
    found = []
    for make in (lambda batch: batch, spoilt):
        torch.manual_seed(0)
        outputs = network(make(absent(small_batch(), **CASES[case])))
        network.zero_grad()
        (outputs.logits_BKXYZ.sum() + outputs.depth_logits_BNDhw.square().sum()).backward()
        grads = [weight.grad for weight in network.parameters()]
        assert all(grad is not None and grad.isfinite().all() for grad in grads)
        found.append([*tensors(outputs), *grads])
    network.eval()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(tensor.isfinite().all() for tensor in found[0])


@pytest.mark.parametrize("case", list(CASES))
def test_a_sample_does_not_depend_on_its_neighbours_sensors(network, case):
    """In a batch of two, where the other sample has or lacks sensors, as alone."""
    batch = absent(small_batch(), **CASES[case])
    with torch.no_grad():
        both = tensors(network(batch))
        for b in range(2):
            names = [name for name, value in vars(batch).items() if isinstance(value, torch.Tensor)]
            alone = Batch(points=batch.points[b : b + 1], **{name: getattr(batch, name)[b : b + 1] for name in names})
            for of_both, of_one in zip(both, tensors(network(alone)), strict=True):
                torch.testing.assert_close(of_both[b], of_one[0], atol=2e-4, rtol=1e-3)


def test_an_absent_camera_is_as_one_that_is_not_on_the_vehicle(network):
    batch = absent(small_batch(samples=1), cameras=[(0, 2)])
    two = small_batch(samples=1)
    two = replace(
        two,
        images_BTNCHW=two.images_BTNCHW[:, :, :2],
        intrinsics_BTN33=two.intrinsics_BTN33[:, :, :2],
        image_aug_BTN44=two.image_aug_BTN44[:, :, :2],
        cam2keyego_BTN44=two.cam2keyego_BTN44[:, :, :2],
        depth_BNHW=two.depth_BNHW[:, :2],
        camera_present_BN=None,
        lidar_present_B=None,
    )
    with torch.no_grad():
        torch.testing.assert_close(network(batch).logits_BKXYZ, network(two).logits_BKXYZ, atol=1e-5, rtol=1e-5)
        none = replace(two, **{
            name: getattr(two, name)[:, :, :0]
            for name in ("images_BTNCHW", "intrinsics_BTN33", "image_aug_BTN44", "cam2keyego_BTN44")
        }, depth_BNHW=two.depth_BNHW[:, :0])  # fmt: skip
        blind = absent(small_batch(samples=1), cameras=[(0, n) for n in range(3)])
        assert torch.equal(network(none).logits_BKXYZ, network(blind).logits_BKXYZ)


def test_each_sensor_matters_and_observed_says_which_samples_have_one(network):
    batch = small_batch()
    with torch.no_grad():
        whole = network(batch)
        for case in ("a camera", "a LiDAR"):
            other = network(absent(batch, **CASES[case]))
            assert (whole.logits_BKXYZ[0] - other.logits_BKXYZ[0]).abs().max() > 1e-3
            assert other.observed_B.tolist() == [True, True]
        assert network(absent(batch, **CASES["everything of a sample"])).observed_B.tolist() == [False, True]


def test_under_autocast_geometry_stays_exact(network):
    """Where Gaussians begin is a matter of float32; the rest is rounded."""
    batch = small_batch()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(batch)
    with torch.no_grad():
        exact = network(batch)
    assert rounded.gaussians.dtype == torch.float32
    assert rounded.logits_BKXYZ.dtype == torch.float32
    assert (rounded.gaussians.means_BG3 - exact.gaussians.means_BG3).abs().median() < 0.05
    assert (rounded.logits_BKXYZ.argmax(1) == exact.logits_BKXYZ.argmax(1)).float().mean() > 0.9


def test_gradients_reach_every_weight_of_both_branches(network):
    network.train()
    network.zero_grad()
    outputs = network(small_batch())
    loss = (outputs.logits_BKXYZ * torch.randn(outputs.logits_BKXYZ.shape)).sum()
    loss.backward()
    network.eval()
    without = {name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert not without - {"anchors"}


def test_a_simulated_like_keyframe_can_be_learned():
    """A wall and a floor: the loss falls well below where it began, and Gaussians move to what is occupied."""
    network = small_network().train()
    batch = small_batch(samples=1)
    labels = torch.full((1, *GRID.shape), 17, dtype=torch.uint8)
    labels[:, :, :, 0] = 11
    labels[:, 12, :, 1:3] = 15
    config = LossConfig(cross_entropy=1.0, lovasz=1.0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = compute_losses(network(batch), Targets(labels_BXYZ=labels), config, network.config.label_set).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_gaussians_begin_where_points_are(network):
    cloud = torch.tensor([[1.0, 2.0, 0.5, 9, 9], [1.1, 2.1, 0.5, 9, 9], [-3.0, 0.0, -1.0, 9, 9], [99.0, 0, 0, 0, 0]])
    lidar = LidarFeatures(volume_BCZYX=torch.zeros(2, 8, 4, 16, 16), grid=GRID)
    with torch.no_grad():
        state = network.lifter([cloud, cloud[:0]], lidar)
        gaussians = network.space.gaussians(state.rows_BGA)
    assert state.rows_BGA.shape == (2, 60, network.config.anchors.width)
    first = {tuple(round(float(v), 3) for v in mean) for mean in gaussians.means_BG3[0, :2]}
    assert first == {(1.05, 2.05, 0.5), (-3.0, 0.0, -1.0)}
    torch.testing.assert_close(gaussians.scales_BG3[0, :2], torch.full((2, 3), 0.4))
    assert sorted(gaussians.opacities_BG[0, :2].tolist()) == pytest.approx([1 / 2, 2 / 3])
    torch.testing.assert_close(state.rows_BGA[0, 2:], network.lifter.anchors[2:])
    torch.testing.assert_close(state.rows_BGA[1], network.lifter.anchors)


@settings(max_examples=25, deadline=None)
@given(num=st.integers(0, 400), most=st.integers(0, 60), seed=st.integers(0, 99))
def test_chosen_cells_are_whole_cells_and_evenly_many(num, most, seed):
    cloud = 16 * torch.rand(num, 4, generator=torch.Generator().manual_seed(seed)) - 8
    cells = choose_cells(cloud, GRID, most)
    expected: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for point in cloud[:, :3]:
        place = tuple(math.floor((float(v) - low) / 0.8) for v, low in zip(point, GRID.lower, strict=True))
        if all(0 <= p < n for p, n in zip(place, GRID.shape, strict=True)):
            expected.setdefault(place, []).append(point)
    assert len(cells.hits_S) == min(len(expected), most)
    for mean, hits in zip(cells.means_S3, cells.hits_S, strict=True):
        members = min(expected.values(), key=lambda points, m=mean: float((torch.stack(points).mean(0) - m).norm()))
        torch.testing.assert_close(mean, torch.stack(members).mean(0))
        assert int(hits) == len(members)


def test_cells_are_chosen_all_over_the_grid():
    """Of cells that fill a plane, a quarter: none is far from a chosen one."""
    x, y = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    plane = torch.stack([0.8 * x - 6.0, 0.8 * y - 6.0, torch.zeros_like(x)], dim=-1).flatten(0, 1)
    chosen = choose_cells(plane, GRID, 64).means_S3
    assert torch.cdist(plane, chosen).amin(dim=1).max() < 0.8 * 2.3
    place = torch.randint(0, 1024, (300, 3), generator=torch.Generator().manual_seed(0))
    keys = morton_keys(place)
    assert keys.unique().numel() == place.unique(dim=0).shape[0]


def test_lidar_features_are_those_of_the_voxel_at_its_centre_and_zero_outside():
    volume = torch.randn(1, 3, 4, 16, 16)
    lidar = LidarFeatures(volume_BCZYX=volume, grid=GRID)
    index = torch.tensor([[3, 5, 2], [0, 15, 3]])
    points = torch.tensor(GRID.lower) + (index + 0.5) * 0.8
    found = lidar.at(torch.cat([points, torch.tensor([[9.0, 0, 0]])])[None, None])[0, 0]
    for row, (x, y, z) in zip(found, index.tolist(), strict=False):
        torch.testing.assert_close(row, volume[0, :, z, y, x])
    assert not found[2].any()
    assert lidar.inside(torch.cat([points, torch.tensor([[9.0, 0, 0]])])[None, None])[0, 0].tolist() == [1, 1, 0]


def test_the_gate_is_one_at_the_likeliest_depth_and_falls_beside_it():
    probability = torch.zeros(1, 1, BINS.num, 2, 2)
    probability[:, :, 4], probability[:, :, 5] = 0.6, 0.3
    gate = DepthGate(probability_BNDhw=probability, bins=BINS)
    projection = torch.tensor([[[[10.0, 0, 5, 0], [0, 10, 5, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]])
    points = torch.tensor([[[0.0, 0.0, depth] for depth in (5.5, 6.0, 6.5, 4.5, 20.0)]])
    uv, visible = project_points(points, projection, (10, 10))
    assert visible.all()
    assert gate.at(points, uv, projection)[0, 0].tolist() == pytest.approx([1, 0.75, 0.5, 0, 0], abs=1e-5)
    with pytest.raises(ValueError, match="12 probabilities"):
        DepthGate(probability_BNDhw=probability, bins=replace(BINS, stop=14.0))


def test_bad_configs_are_named():
    config = small_config()
    for change, message in (
        ({"anchors": replace(config.anchors, classes=18)}, "classes=18"),
        ({"inputs": replace(config.inputs, presence_masks=False)}, "presence_masks=True"),
        ({"inputs": replace(config.inputs, image_size=(60, 96))}, "multiples of 32"),
        ({"pyramid": replace(config.pyramid, channels=8)}, "those of the pyramid"),
        ({"lidar": replace(config.lidar, grid=replace(GRID, upper=(6.4, 6.4, 8.0), voxel_size=(0.4,) * 3))}, "span"),
        ({"depth_bins": replace(BINS, stop=12.0)}, "not the range"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **change)
    with pytest.raises(ValueError, match="measured=-1"):
        PointLifterConfig(measured=-1, learned=5)
    with pytest.raises(ValueError, match="must lie within the scales"):
        make_network(replace(config, points=replace(config.points, width=9.0)))
    network, batch = small_network(), small_batch(samples=1)
    narrow = replace(batch, images_BTNCHW=batch.images_BTNCHW[..., :32], depth_BNHW=batch.depth_BNHW[..., :32])
    with pytest.raises(ValueError, match="takes one frame of pictures of"):
        network(narrow)


def test_presets():
    with torch.device("meta"):
        large = make_network(preset_config("gaussianfusion-6400"))
    assert large.config.points.gaussians == 6400
    assert 7e7 < sum(weight.numel() for weight in large.parameters()) < 8e7
    tiny = load_model("gaussianfusion-tiny")
    cameras = preset_config("gaussianformer2-tiny")
    assert tiny.config.points.gaussians == cameras.lifter.gaussians
    assert sum(weight.numel() for weight in tiny.parameters()) < 5e6


# ---- from frames -----------------------------------------------------------------------------------------------------


def frame(*, cameras: int, lidar: bool) -> SensorFrame:
    rng = np.random.default_rng(0)
    batch = small_batch(samples=1)
    images = tuple(
        CameraImage(
            name=f"CAM_{n}",
            image=rng.integers(0, 256, (64, 96, 3), dtype=np.uint8),
            intrinsics=np.array([[50.0, 0, 48], [0, 50, 32], [0, 0, 1]]),
            cam2ego=batch.cam2keyego_BTN44[0, 0, n].double().numpy(),
            ego2global=np.eye(4),
            stamp_ns=0,
        )
        for n in range(cameras)
    )
    sweep = LidarSweep(points=batch.points[0].numpy(), lidar2ego=np.eye(4), ego2global=np.eye(4), stamp_ns=0)
    return SensorFrame(stamp_ns=0, ego2global=np.eye(4), cameras=images, lidar=sweep if lidar else None)


def test_the_predictor_runs_it_with_whatever_sensors_there_are(network):
    """Twice the same answer; cameras alone and the LiDAR alone give others; the Gaussians come with it."""
    predictor = Predictor(network, device="cpu", confidence=True)
    answers = {}
    for cameras, lidar in ((3, True), (0, True), (2, False), (1, True)):
        first, second = (predictor(frame(cameras=cameras, lidar=lidar)) for _ in range(2))
        np.testing.assert_array_equal(first.labels, second.labels)
        for name, values in vars(first.gaussians).items():
            np.testing.assert_array_equal(values, getattr(second.gaussians, name))
        assert len(first.gaussians) == 60
        assert (first.labels != network.config.label_set.unknown).all()
        answers[cameras, lidar] = first.confidence
    assert len({answer.tobytes() for answer in answers.values()}) == len(answers)

"""What must hold for FusionOcc whatever its weights are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fusionocc_cases import (
    camera_ring,
    little_config,
    official_habits,
    random_batch,
    with_reference_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.data.pipeline import collate, prepare
from fusionocc_core.geometry import rotation_from_yaw, transform
from fusionocc_core.grids import SURROUNDOCC_GRID, DepthBins
from fusionocc_core.models.fusionocc import FusionOcc
from fusionocc_core.structures import UNTRAINED, Batch, CameraImage, InputConfig, LidarSweep, SensorFrame


@pytest.fixture(scope="module")
def model():
    return with_reference_weights(FusionOcc(little_config()))


@pytest.fixture(scope="module")
def official():
    return with_reference_weights(FusionOcc(official_habits(little_config())))


def run(model, batch):
    with torch.no_grad():
        return model(batch)


def assert_same(one, other):
    scale = other.abs().max()
    assert scale > 0.1
    assert (one - other).abs().max() <= 1e-4 * scale


def permuted(batch: Batch, order) -> Batch:
    names = ("images_BTNCHW", "intrinsics_BTN33", "image_aug_BTN44", "cam2keyego_BTN44")
    moved = {name: getattr(batch, name)[:, :, order] for name in names}
    return replace(batch, depth_BNHW=batch.depth_BNHW[:, order], **moved)


def sample(batch: Batch, index: int) -> Batch:
    names = [name for name, value in vars(batch).items() if isinstance(value, torch.Tensor)]
    part = {name: getattr(batch, name)[index : index + 1] for name in names}
    return replace(batch, points=batch.points[index : index + 1], **part)


def test_shapes(model):
    outputs = run(model, random_batch(model.config, samples=2, cameras=3))
    assert outputs.logits_BKXYZ.shape == (2, 18, *model.config.grid.shape)
    assert outputs.depth_logits_BNDhw.shape == (2, 3, 16, 4, 6)
    assert outputs.seg_logits_BNKhw.shape == (2, 3, 18, 4, 6)
    assert outputs.logits_BKXYZ.isfinite().all()
    assert model.card.trained_on == UNTRAINED


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(4)))
def test_order_of_cameras_does_not_matter(model, order):
    batch = random_batch(model.config, cameras=4)
    plain, other = run(model, batch), run(model, permuted(batch, list(order)))
    assert_same(other.logits_BKXYZ, plain.logits_BKXYZ)
    assert_same(other.depth_logits_BNDhw, plain.depth_logits_BNDhw[:, list(order)])


@pytest.mark.parametrize("which", ["model", "official"])
def test_two_in_a_batch_equal_two_singles(which, request):
    network = request.getfixturevalue(which)
    both = random_batch(network.config, samples=2, cameras=3)
    together = run(network, both)
    for index in (0, 1):
        alone = run(network, sample(both, index))
        for name in ("logits_BKXYZ", "depth_logits_BNDhw", "seg_logits_BNKhw"):
            assert_same(getattr(together, name)[index : index + 1], getattr(alone, name))


@pytest.mark.parametrize("cameras", [1, 2, 5, 7])
def test_any_number_of_cameras(model, cameras):
    outputs = run(model, random_batch(model.config, cameras=cameras))
    assert outputs.depth_logits_BNDhw.shape[1] == cameras
    assert outputs.logits_BKXYZ.isfinite().all()


def test_every_input_matters(model):
    """Changing any one of them changes the answer, so that none is left unconnected."""
    batch = random_batch(model.config, cameras=2)
    plain = run(model, batch).logits_BKXYZ
    earlier = batch.images_BTNCHW.clone()
    earlier[:, 1] = 0.0
    now = batch.images_BTNCHW.clone()
    now[:, 0] = 0.0
    moved = batch.cam2keyego_BTN44.clone()
    moved[:, 1, :, 0, 3] -= 3.0
    changes = {
        "the earlier pictures": replace(batch, images_BTNCHW=earlier),
        "the current pictures": replace(batch, images_BTNCHW=now),
        "where the earlier pictures were taken": replace(batch, cam2keyego_BTN44=moved),
        "the cloud": replace(batch, points=(batch.points[0][:200],)),
        "the measured depth": replace(batch, depth_BNHW=torch.zeros_like(batch.depth_BNHW)),
        "the intrinsics": replace(batch, intrinsics_BTN33=batch.intrinsics_BTN33 * 1.1),
        "the augmentation": replace(batch, bev_aug_B44=torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))[None]),
    }
    for name, changed in changes.items():
        assert (run(model, changed).logits_BKXYZ - plain).abs().max() > 1e-3, name


def test_an_empty_cloud_leaves_the_cameras(model):
    """A frame without LiDAR arrives as a cloud without points and an empty depth map."""
    batch = random_batch(model.config, samples=2, cameras=2)
    empty = replace(batch, points=tuple(cloud[:0] for cloud in batch.points), depth_BNHW=batch.depth_BNHW * 0)
    outputs = run(model, empty)
    assert outputs.logits_BKXYZ.isfinite().all()
    assert outputs.logits_BKXYZ.std() > 0.1


@pytest.mark.parametrize(
    ("habit", "choice"), [("history_depth", "current"), ("history_camera_pose", "current"), ("lift", "official")]
)
def test_each_habit_changes_the_answer(model, habit, choice):
    habits = official_habits(model.config)
    other = FusionOcc(replace(model.config, **{habit: getattr(habits, habit)}))
    other.load_state_dict(model.state_dict())
    batch = random_batch(model.config, cameras=2)
    difference = (run(other.eval(), batch).logits_BKXYZ - run(model, batch).logits_BKXYZ).abs().max()
    assert difference > 1e-3


@pytest.mark.parametrize("history_gradient", [True, False])
def test_gradient_through_earlier_pictures(history_gradient):
    network = with_reference_weights(FusionOcc(little_config(history_gradient=history_gradient)))
    batch = random_batch(network.config, cameras=2)
    pictures = batch.images_BTNCHW.requires_grad_()
    network(batch).logits_BKXYZ.square().mean().backward()
    assert pictures.grad[:, 0].abs().sum() > 0
    assert bool(pictures.grad[:, 1].abs().sum() > 0) == history_gradient


def test_every_parameter_learns():
    network = with_reference_weights(FusionOcc(little_config())).train()
    outputs = network(random_batch(network.config, samples=2, cameras=2))
    total = outputs.logits_BKXYZ.square().mean() + outputs.depth_logits_BNDhw.square().mean()
    (total + outputs.seg_logits_BNKhw.square().mean()).backward()
    idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not idle


def make_frame(world: np.ndarray) -> SensorFrame:
    """Two keyframes of three cameras and a LiDAR on a vehicle that drives and turns; ``world`` moves everything."""
    random = np.random.RandomState(0)
    poses = camera_ring(3).numpy()
    k = np.array([[90.0, 0.0, 48.0], [0.0, 90.0, 32.0], [0.0, 0.0, 1.0]])

    def ego2global(seconds):
        return world @ transform(rotation_from_yaw(0.3 * seconds), (8.0 * seconds, 1.0, 0.2))

    def cameras(seconds):
        return tuple(
            CameraImage(
                name=f"camera_{i}",
                image=random.randint(0, 255, (64, 96, 3)).astype(np.uint8),
                intrinsics=k,
                cam2ego=pose,
                ego2global=ego2global(seconds + 0.01 * i),
                stamp_ns=int((seconds + 0.01 * i) * 1e9),
            )
            for i, pose in enumerate(poses)
        )

    xyz = random.uniform((-14, -11, -2.2), (14, 11, 3), (900, 3))
    rest = np.stack([random.rand(900) * 255, random.randint(0, 32, 900)], axis=1)
    lidar = LidarSweep(
        points=np.concatenate([xyz, rest], axis=1).astype(np.float32),
        lidar2ego=transform(np.eye(3), (0.9, 0.0, 1.8)),
        ego2global=ego2global(0.52),
        stamp_ns=520_000_000,
    )
    return SensorFrame(
        stamp_ns=520_000_000,
        ego2global=ego2global(0.52),
        cameras=cameras(0.5),
        lidar=lidar,
        camera_history=(cameras(0.0),),
    )


def test_moving_ego_and_world_together_changes_nothing(model):
    far = transform(rotation_from_yaw(2.1), (1234.5, -987.6, 12.3))
    answers = [
        run(model, prepare(make_frame(world), model.config.inputs, model.config.grid)) for world in (np.eye(4), far)
    ]
    assert_same(answers[1].logits_BKXYZ, answers[0].logits_BKXYZ)


def test_collated_frames_equal_single_frames(model):
    frames = [make_frame(np.eye(4)), make_frame(transform(rotation_from_yaw(0.5), (3.0, 2.0, 0.0)))]
    batches = [prepare(frame, model.config.inputs, model.config.grid) for frame in frames]
    together = run(model, collate(batches)).logits_BKXYZ
    assert_same(together[:1], run(model, batches[0]).logits_BKXYZ)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": InputConfig(image_size=(60, 96), depth_range=(1.0, 17.0))}, "multiples of 32"),
        ({"grid": SURROUNDOCC_GRID}, "the LiDAR encoder gives"),
        ({"depth_bins": DepthBins(start=1.0, stop=45.0, step=1.0)}, "depth_range"),
        ({"history_depth": "own"}, "history_depth='own'"),
    ],
)
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        little_config(**changes)


def test_batches_that_do_not_fit(model):
    batch = random_batch(model.config, cameras=2)
    one_frame = random_batch(replace(model.config, inputs=replace(model.config.inputs, camera_history=0)), cameras=2)
    large = random_batch(replace(model.config, inputs=replace(model.config.inputs, image_size=(96, 96))), cameras=2)
    with pytest.raises(ValueError, match="1 frames of 2 pictures"):
        model(one_frame)
    with pytest.raises(ValueError, match=r"\(96, 96\) pixels; this network takes 2 frames"):
        model(large)
    with pytest.raises(ValueError, match="2 frames of 0 pictures"):
        model(permuted(batch, []))

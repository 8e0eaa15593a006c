from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.predictor import Predictor, decode, pick_device
from fusionocc_core.structures import CameraImage, InputConfig, LidarSweep, Outputs, SensorFrame

GRID = VoxelGrid(frame="ego", lower=(-4.0, -3.0, -1.0), upper=(4.0, 3.0, 1.0), voxel_size=(1.0, 1.0, 1.0))
LABELS = LabelSet(name="two", names=("thing", "free"), colors=((1, 2, 3), (255, 255, 255)), free=1)


@dataclass(frozen=True)
class Config:
    inputs: InputConfig
    grid: VoxelGrid
    label_set: LabelSet


@dataclass(frozen=True)
class Card:
    preset: str
    trained_on: str


class CountsPoints(torch.nn.Module):
    """Says "thing" where a LiDAR point lies: an answer that shows which way x, y and z went."""

    def __init__(self, inputs):
        super().__init__()
        self.config = Config(inputs, GRID, LABELS)
        self.card = Card("counts-points", "nothing")

    def forward(self, batch):
        counts = torch.zeros(1, 2, *GRID.shape)
        counts[:, 1] = 0.5
        for point in batch.points[0]:
            x, y, z = GRID.indices(point[None, :3].numpy())[0]
            counts[0, 0, x, y, z] += 1
        return Outputs(logits_BKXYZ=counts)


def make_frame(points):
    camera = CameraImage(
        name="CAM_FRONT",
        image=np.zeros((8, 12, 3), np.uint8),
        intrinsics=np.array([[10.0, 0, 6], [0, 10, 4], [0, 0, 1]]),
        cam2ego=np.eye(4),
        ego2global=np.eye(4),
        stamp_ns=3,
    )
    lidar = LidarSweep(points=points, lidar2ego=np.eye(4), ego2global=np.eye(4), stamp_ns=5)
    return SensorFrame(stamp_ns=5, ego2global=np.eye(4), cameras=(camera,), lidar=lidar)


def test_a_frame_becomes_occupancy_on_the_right_voxels():
    points = np.array([[3.5, -2.5, 0.5, 9, 20], [-3.5, 2.5, -0.5, 9, 3]], np.float32)
    model = CountsPoints(InputConfig(image_size=(8, 12)))
    occupancy = Predictor(model, device="cpu", confidence=True)(make_frame(points))
    assert sorted(map(tuple, occupancy.occupied())) == [(0, 5, 0), (7, 0, 1)]
    assert occupancy.grid is GRID
    assert occupancy.stamp_ns == 5
    assert (occupancy.model, occupancy.trained_on) == ("counts-points", "nothing")
    assert occupancy.timings.total_s > 0
    assert not model.training
    # softmax of (1, 0.5) where a point lies, of (0, 0.5) elsewhere: the same margin
    np.testing.assert_array_equal(occupancy.confidence, round(255 / (1 + np.exp(-0.5))))


def test_random_thinning_is_the_same_in_every_call_and_follows_the_seed():
    rng = np.random.default_rng(0)
    points = np.c_[rng.uniform(-0.9, 0.9, (200, 3)), np.ones((200, 2))].astype(np.float32)
    model = CountsPoints(replace(InputConfig(image_size=(8, 12)), thin_rings_up_to=16))
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].points[0]))
    frame, predict = make_frame(points), Predictor(model, device="cpu", seed=1)
    predict(frame), predict(frame), Predictor(model, device="cpu", seed=2)(frame)
    assert 0 < len(seen[0]) < 100
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_decode_matches_softmax():
    logits = torch.randn(2, 5, 3, 4, 2, generator=torch.Generator().manual_seed(0))
    labels, confidence = decode(logits, confidence=True)
    probability, expected = logits[0].softmax(0).max(0)
    np.testing.assert_array_equal(labels, expected.numpy())
    np.testing.assert_allclose(confidence, probability.numpy() * 255, atol=0.51)
    assert decode(logits, confidence=False)[1] is None


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device='gpu': expected auto, cpu, cuda"):
        pick_device("gpu")


def test_cuda_where_there_is_none_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no CUDA device; use device='cpu'"):
        pick_device("cuda:0")

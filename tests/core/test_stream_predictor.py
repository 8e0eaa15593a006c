"""Networks that remember: keyframes before this one in the batch, and a state that is handed on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flashfusion_cases import little_config

from fusionocc_core.data.pipeline import collate, prepare
from fusionocc_core.data.remembered import earlier_frame, history_of
from fusionocc_core.layers.recurrent_bev import StreamLimits
from fusionocc_core.models.flashfusion import FlashFusion
from fusionocc_core.predictor import Predictor
from fusionocc_core.stream_predictor import StreamPredictor
from fusionocc_core.structures import CameraImage, LidarSweep, SensorFrame

S = 10**9


def network(remembered=0):
    torch.manual_seed(0)
    config = little_config(memory=StreamLimits())
    config = replace(config, inputs=replace(config.inputs, remembered=remembered, lidar_history=1))
    model = FlashFusion(config).eval()
    torch.nn.init.normal_(model.memory.update.change.weight, std=0.5)
    torch.nn.init.zeros_(model.head.scores.bias)  # or everything would be free
    return model


def drive(keyframes=4, cameras=2):
    """Frames of a vehicle that goes 1 m between two keyframes, each with the history of all before."""
    rng, frames = np.random.default_rng(0), []
    pictures, sweeps = [], []
    for k in range(keyframes):
        ego2global = np.eye(4)
        ego2global[0, 3] = 100.0 + k
        intrinsics = np.array([[40.0, 0, 32], [0, 40, 16], [0, 0, 1]])
        ahead = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
        now = tuple(
            CameraImage(
                name=f"C{n}",
                image=rng.integers(0, 256, (64, 128, 3), dtype=np.uint8),
                intrinsics=intrinsics,
                cam2ego=ahead,
                ego2global=ego2global,
                stamp_ns=k * S // 2,
            )
            for n in range(cameras)
        )
        points = rng.uniform(-6, 6, (400, 5)).astype(np.float32)
        points[:, 2] = rng.uniform(-1, 2, 400)
        sweep = LidarSweep(points=points, lidar2ego=np.eye(4), ego2global=ego2global, stamp_ns=k * S // 2)
        frames.append(
            SensorFrame(
                stamp_ns=k * S // 2,
                ego2global=ego2global,
                cameras=now,
                lidar=sweep,
                camera_history=tuple(reversed(pictures)),
                lidar_history=tuple(reversed(sweeps)),
            )
        )
        pictures.append(now)
        sweeps.append(sweep)
    return frames


def test_an_earlier_frame_is_the_frame_of_then():
    frames = drive()
    for age in (1, 2):
        then, out = frames[3 - age], earlier_frame(frames[3], age)
        assert out.stamp_ns == then.stamp_ns
        np.testing.assert_array_equal(out.ego2global, then.ego2global)
        assert [c.image is d.image for c, d in zip(out.cameras, then.cameras, strict=True)] == [True, True]
        assert [sweep.stamp_ns for sweep in out.lidar_history] == [sweep.stamp_ns for sweep in then.lidar_history]
    alone = earlier_frame(frames[0], 1)
    assert alone.stamp_ns < frames[0].stamp_ns - 1000 * S
    fewer = replace(frames[1], camera_history=((frames[0].cameras[1],),))
    assert earlier_frame(fewer, 1).cameras == (frames[1].cameras[0], frames[0].cameras[1])


def test_keyframes_in_the_batch_and_a_state_that_is_handed_on_give_the_same():
    frames, model = drive(), network(remembered=3)
    assert (history_of(model.config.inputs).cameras, history_of(model.config.inputs).lidar) == (3, 4)
    stream = StreamPredictor(model, precision="float32", device="cpu")
    answers = [stream(frame).labels for frame in frames]
    whole = Predictor(model, precision="float32", device="cpu")(frames[3]).labels
    np.testing.assert_array_equal(answers[3], whole)
    alone = Predictor(network(), precision="float32", device="cpu")(frames[3]).labels
    assert (alone != whole).any()
    np.testing.assert_array_equal(answers[0], Predictor(network(), precision="float32", device="cpu")(frames[0]).labels)
    stream.forget()
    np.testing.assert_array_equal(stream(frames[3]).labels, alone)


def test_a_reset_while_a_frame_is_worked_on_is_not_undone():
    frames, model = drive(), network()
    stream = StreamPredictor(model, precision="float32", device="cpu")
    inner = stream._network.label_next

    def interrupted(*args, **kwargs):
        stream.forget()
        return inner(*args, **kwargs)

    stream._network.label_next = interrupted
    stream(frames[0])
    stream._network.label_next = inner
    fresh = StreamPredictor(model, precision="float32", device="cpu")
    np.testing.assert_array_equal(stream(frames[1]).labels, fresh(frames[1]).labels)


def test_gradients_reach_the_reading_of_the_memory_and_samples_do_not_mix():
    frames, model = drive(), network(remembered=2).train()
    grid, inputs = model.config.grid, model.config.inputs
    batches = [prepare(frame, inputs, grid) for frame in (frames[3], frames[0])]
    both = collate(batches)
    assert [len(earlier.points) for earlier in both.earlier] == [2, 2]
    model(both).logits_BKXYZ.square().mean().backward()
    assert model.memory.update.hidden.weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        joined, single = model(both).logits_BKXYZ, [model(batch).logits_BKXYZ for batch in batches]
    for sample, logits in enumerate(single):
        torch.testing.assert_close(joined[sample : sample + 1], logits, atol=1e-5, rtol=1e-4)
    assert both.to("cpu").earlier[0].pose.stamp_ns_B.tolist() == both.earlier[0].pose.stamp_ns_B.tolist()


def test_keyframes_to_remember_without_a_memory_are_refused():
    config = little_config()
    with pytest.raises(ValueError, match="remembered=1 keyframes, and memory is None"):
        replace(config, inputs=replace(config.inputs, remembered=1))
    bare = replace(prepare(drive()[0], network().config.inputs, network().config.grid), pose=None)
    with pytest.raises(ValueError, match="has no pose"):
        network().label_next(bare, None, confidence=False)

"""FlashFusion.step: memory is a pure function, lies where it belongs, and changes nothing where there is none."""

import math
from dataclasses import replace

import pytest
import torch
from flashfusion_cases import little_batch, little_config, little_network, sample_of

from fusionocc_core.layers.pull_lift import BevMap
from fusionocc_core.layers.recurrent_bev import BevState, StreamLimits, warp_to, warped
from fusionocc_core.stream_pose import StreamPose

LIMITS = StreamLimits()
BEV = BevMap(lower=(-8.0, -4.0), cell_size=(1.0, 0.5), shape=(16, 16))


def remembering(**limits):
    """With a memory that has learned something."""
    model = little_network(little_config(memory=StreamLimits(**limits)))
    torch.nn.init.normal_(model.memory.update.change.weight)
    return model


def pose(x=0.0, y=0.0, yaw_degrees=0.0, seconds=0.0, samples=1):
    matrix = torch.eye(4, dtype=torch.float64)
    yaw = math.radians(yaw_degrees)
    matrix[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    matrix[:2, 3] = torch.tensor([x + 1000.0, y - 500.0])
    return StreamPose(
        ego2global_B44=matrix.repeat(samples, 1, 1),
        stamp_ns_B=torch.full((samples,), 10**18 + round(1e9 * seconds), dtype=torch.int64),
    )


@torch.no_grad()
def test_first_frame_and_forgotten_memories_are_the_stateless_answer():
    model, batch = remembering(), little_batch(samples=1)
    alone = model(batch).logits_BKXYZ
    first, state = model.step(batch, None, pose())
    assert torch.equal(first.logits_BKXYZ, alone)
    remembered, _ = model.step(batch, state, pose(seconds=0.5))
    assert not torch.equal(remembered.logits_BKXYZ, alone)
    elsewhere = {
        "gap": pose(seconds=1.6),
        "back in time": pose(seconds=-0.1),
        "jump": pose(x=30.0, seconds=0.5),
        "turn": pose(yaw_degrees=50, seconds=0.5),
    }
    for what, now in elsewhere.items():
        outputs, after = model.step(batch, state, now)
        assert torch.equal(outputs.logits_BKXYZ, alone), what
        assert torch.equal(after.stamp_ns_B, now.stamp_ns_B), what
    broken = replace(state, map_BCyx=state.map_BCyx * math.nan)
    assert torch.equal(model.step(batch, broken, pose(seconds=0.5))[0].logits_BKXYZ, alone)


@torch.no_grad()
def test_step_changes_neither_network_nor_state():
    model, batch = remembering(), little_batch(samples=1)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, state = model.step(batch, None, pose())
    before = state.map_BCyx.clone()
    one, _ = model.step(batch, state, pose(x=1.0, seconds=0.5))
    other, _ = model.step(batch, state, pose(x=1.0, seconds=0.5))
    assert torch.equal(one.logits_BKXYZ, other.logits_BKXYZ)
    assert torch.equal(state.map_BCyx, before)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_fresh_weights_remember_without_changing_anything():
    model, batch = little_network(little_config(memory=LIMITS)), little_batch(samples=1)
    _, state = model.step(batch, None, pose())
    outputs, _ = model.step(batch, state, pose(x=0.7, seconds=0.5))
    assert torch.equal(outputs.logits_BKXYZ, model(batch).logits_BKXYZ)


@torch.no_grad()
def test_memory_is_written_when_due_and_read_always():
    model, batch = remembering(), little_batch(samples=1)
    _, state = model.step(batch, None, pose())
    _, early = model.step(batch, state, pose(x=0.5, seconds=0.1))
    assert torch.equal(early.stamp_ns_B, state.stamp_ns_B)
    assert torch.equal(early.map_BCyx, state.map_BCyx)
    for now in (pose(x=1.2, seconds=0.1), pose(seconds=0.4)):
        _, late = model.step(batch, state, now)
        assert torch.equal(late.stamp_ns_B, now.stamp_ns_B)
        assert not torch.equal(late.map_BCyx, state.map_BCyx)


@torch.no_grad()
def test_streams_do_not_meet():
    model, batch = remembering(), little_batch(samples=2)
    start, later = pose(samples=2), pose(x=1.0, seconds=0.5, samples=2)
    later = replace(later, stamp_ns_B=later.stamp_ns_B + torch.tensor([0, 10**10]))
    _, state = model.step(batch, None, start)
    both, _ = model.step(batch, state, later)
    for number in range(2):
        one = slice(number, number + 1)
        own = sample_of(batch, number)
        _, alone = model.step(own, None, pose())
        now = StreamPose(ego2global_B44=later.ego2global_B44[one], stamp_ns_B=later.stamp_ns_B[one])
        outputs, _ = model.step(own, alone, now)
        torch.testing.assert_close(both.logits_BKXYZ[one], outputs.logits_BKXYZ, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.logits_BKXYZ[1], model(batch).logits_BKXYZ[1], rtol=0, atol=0)
    with pytest.raises(ValueError, match="state is of 2 streams, the batch of 1"):
        model.step(sample_of(batch, 0), state, pose())


def state_of(map_BCyx, where):
    return BevState(
        map_BCyx=map_BCyx,
        valid_B1yx=torch.ones_like(map_BCyx[:, :1], dtype=torch.bool),
        map2global_B44=where.ego2global_B44,
        stamp_ns_B=where.stamp_ns_B,
    )


def test_memory_of_a_place_stays_at_that_place():
    """A map that holds the coordinates of its cells says, after any motion, where in the old frame a cell lies."""
    centers = BEV.centers((0.0,), torch.zeros(()))[:, :, 0, :2]
    state = state_of(centers.permute(2, 0, 1)[None], pose())
    for motion in ({}, {"x": 2.0}, {"x": -0.3, "y": 0.7}, {"x": 1.3, "y": -0.4, "yaw_degrees": 30}):
        now = pose(**motion, seconds=0.5)
        out, valid = warped(state, warp_to(state, now.ego2global_B44, now.stamp_ns_B), BEV)
        yaw = math.radians(motion.get("yaw_degrees", 0))
        turn = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
        expected = centers @ turn.T + torch.tensor([motion.get("x", 0.0), motion.get("y", 0.0)])
        assert valid.float().mean() > 0.5
        assert valid.all() == (motion == {})
        difference = torch.where(valid, out - expected.permute(2, 0, 1), 0.0)
        assert difference.abs().max() < 1e-4


def test_memory_in_half_precision_lies_at_the_same_place():
    """Whole numbers below 256 are exact in bfloat16, so that only a rounded place could change the result."""
    exact = state_of(torch.arange(256.0).view(1, 1, 16, 16), pose())
    half = replace(exact, map_BCyx=exact.map_BCyx.bfloat16())
    warp = warp_to(exact, pose(x=0.3, y=-0.2, yaw_degrees=5, seconds=0.5).ego2global_B44, exact.stamp_ns_B)
    for one, other in zip(warped(exact, warp, BEV), warped(half, warp, BEV), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_memory_is_read_under_autocast():
    model, batch = remembering(), little_batch(samples=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone, state = model.step(batch, None, pose())
        remembered, _ = model.step(batch, state, pose(x=0.3, seconds=0.5))
    assert not torch.equal(remembered.logits_BKXYZ, alone.logits_BKXYZ)


def test_augmented_map_is_warped_through_the_vehicle():
    """A mirrored memory and a mirrored present: the same cells as without mirrors."""
    torch.manual_seed(0)
    old = torch.randn(1, 3, 16, 16)
    mirror = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    then, now = pose(), pose(x=1.4, y=0.3, yaw_degrees=10, seconds=0.5)
    plain = state_of(old, then)
    mirrored = replace(state_of(old.flip(2), then), map2global_B44=then.ego2global_B44 @ mirror)
    one, _ = warped(plain, warp_to(plain, now.ego2global_B44, now.stamp_ns_B), BEV)
    other, _ = warped(mirrored, warp_to(mirrored, now.ego2global_B44 @ mirror, now.stamp_ns_B), BEV)
    torch.testing.assert_close(one, other.flip(2), rtol=1e-4, atol=1e-4)


def test_network_without_memory_says_so():
    with pytest.raises(ValueError, match=r"no memory; build it with FlashFusionConfig\.memory"):
        little_network().step(little_batch(samples=1), None, pose())


def test_every_weight_gets_a_gradient_without_history():
    model = little_network(little_config(memory=LIMITS)).train()
    model(little_batch()).logits_BKXYZ.square().mean().backward()
    assert all(weight.grad is not None for weight in model.memory.parameters())

"""Earlier frames: aligned views, and streaming against recomputing everything from stacked frames."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flashocc_cases import reference_config
from flashocc_temporal_cases import SMALL_DEPTH, drive, read, stacked, stereo_config, strong_model

from fusionocc_core.data.pipeline import key2global, prepare
from fusionocc_core.geometry import rotation_from_yaw, transform
from fusionocc_core.grids import VoxelGrid
from fusionocc_core.layers.temporal import BEV_CELLS, align_bev
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.models.flashocc_stream import stream, stream_inputs
from fusionocc_core.structures import CameraImage, SensorFrame

GRID = VoxelGrid(frame="ego", lower=(-40.0, -40.0, -1.0), upper=(40.0, 40.0, 5.4), voxel_size=(2.0, 2.0, 6.4))


def pose(x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(transform(rotation_from_yaw(yaw), (x, y, 0.0)))


# aligned views


@pytest.mark.data
def test_aligned_view_as_the_official_code_has_it(shared):
    golden = read(shared / "goldens" / "flashocc" / "bev_warp.npz")
    bev_aug = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    bev_aug[:, :3, :3] = golden["bda"]
    now, earlier = (bev_aug @ golden[f"sensor2keyego_{name}"][:, 0].double() for name in ("curr", "prev"))
    aligned = align_bev(golden["bev"], now @ torch.linalg.inv(earlier), GRID, cells="lower_corners")
    torch.testing.assert_close(aligned, golden["out"], rtol=1e-4, atol=5e-5)
    assert not torch.allclose(align_bev(golden["bev"], now @ torch.linalg.inv(earlier), GRID), aligned, atol=0.1)


@pytest.mark.parametrize("cells", BEV_CELLS)
def test_a_shift_by_whole_cells_moves_cells(cells):
    view = torch.randn(2, 3, 40, 40)
    moved = align_bev(view, pose(x=4.0, y=-2.0)[None].repeat(2, 1, 1), GRID, cells=cells)
    expected = torch.zeros_like(view)
    expected[:, :, 1:, :-2] = view[:, :, :-1, 2:]  # now, everything lies 4 m nearer, and 2 m further to the left
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)


def test_a_quarter_turn_turns_cells_about_the_ego():
    view = torch.randn(1, 3, 40, 40)
    turned = align_bev(view, pose(yaw=math.pi / 2)[None], GRID)
    torch.testing.assert_close(turned, view.rot90(1, dims=(2, 3)), rtol=0, atol=1e-4)
    official = align_bev(view, pose(yaw=math.pi / 2)[None], GRID, cells="lower_corners")
    assert not torch.allclose(official[..., 1:-1, 1:-1], turned[..., 1:-1, 1:-1], atol=0.1)  # a cell off


def test_there_and_back_in_a_grid_that_is_not_square():
    grid = replace(GRID, lower=(-20.0, -40.0, -1.0), upper=(40.0, 40.0, 5.4))
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(30.0), indexing="ij")
    view = (torch.sin(x / 5) + torch.cos(y / 7))[None, None]
    motion = pose(x=1.3, y=0.4, yaw=0.06)[None]
    back = align_bev(align_bev(view, motion, grid), torch.linalg.inv(motion), grid)
    inner = (slice(None), slice(None), slice(5, -5), slice(5, -5))
    assert (back - view)[inner].abs().max() < 0.02
    assert (align_bev(view, motion, grid) - view)[inner].abs().max() > 0.1


def test_a_view_in_half_precision_lies_at_the_same_place():
    """Whole numbers below 256 are exact in bfloat16: only the answer is rounded, not where it is read."""
    view, motion = (torch.arange(1600.0) % 199).view(1, 1, 40, 40), pose(x=0.3, y=0.7, yaw=0.1)[None]
    half = align_bev(view.bfloat16(), motion, GRID)
    assert torch.equal(half, align_bev(view, motion, GRID).bfloat16())


def test_wrong_views():
    with pytest.raises(ValueError, match=r"view has \(40, 30\) cells along y and x, the grid \(40, 40\)"):
        align_bev(torch.zeros(1, 1, 40, 30), pose()[None], GRID)
    with pytest.raises(ValueError, match="cells='middle'"):
        align_bev(torch.zeros(1, 1, 40, 40), pose()[None], GRID, cells="middle")


# streaming

FOUR_FRAMES = replace(
    reference_config(),
    inputs=replace(reference_config().inputs, camera_history=3),
    view=SMALL_DEPTH,
    lift=LiftConfig(),
    frame_blocks=1,
    history_camera_pose="current",
)
STEREO = replace(stereo_config(), lift=LiftConfig())


def both_ways(config, poses, *, samples=1):
    """Step by step: outputs of the stream and of the stacked frames, and the joined views of both."""
    model, joined = strong_model(config), []
    model.img_bev_encoder_backbone.register_forward_hook(lambda module, inputs, out: joined.append(inputs[0]))
    batches, state, results = drive(config, poses, samples=samples), None, []
    for time, batch in enumerate(batches):
        step = stream(model, batch, poses[time].repeat(samples, 1, 1), state)
        state = step.state
        with torch.no_grad():
            outputs = model(stacked(batches, poses, time, config.inputs.camera_history))
        results.append((step.outputs, outputs, joined[-2], joined[-1]))
    return results


@pytest.mark.parametrize(("config", "alike_from"), [(FOUR_FRAMES, 0), (STEREO, 2)], ids=["4d", "stereo"])
def test_a_vehicle_that_stands_gets_what_stacked_frames_give(config, alike_from):
    """With stereo, stacked frames match a scene's first picture with one of the future; from the third on all agree."""
    poses = pose(x=700.0, y=1200.0, yaw=1.0).repeat(5, 1, 1)  # map coordinates
    results = both_ways(config, poses, samples=2)
    for streamed, recomputed, *_ in results[alike_from:]:
        torch.testing.assert_close(streamed.logits_BKXYZ, recomputed.logits_BKXYZ, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(streamed.depth_logits_BNDhw, recomputed.depth_logits_BNDhw, rtol=1e-4, atol=1e-4)
    (*_, third, _), (*_, last, _) = results[-2:]
    assert (third - last).abs().max() > 0.1  # the pictures differ and are seen
    assert (results[-2][0].logits_BKXYZ - results[-1][0].logits_BKXYZ).abs().max() > 0.01


@pytest.mark.parametrize("config", [FOUR_FRAMES, STEREO], ids=["4d", "stereo"])
def test_a_vehicle_that_moves_by_whole_cells(config):
    """Inside, away from where a grid ended, streaming is recomputing, but for samples on the faces of cells."""
    channels = config.view.context_channels
    poses = torch.stack([pose(x=300.0 + 2.0 * t, y=-2.0 * t) for t in range(4)])
    *_, streamed, recomputed = both_ways(config, poses)[-1]
    margin = 3 + config.lifted_frames  # what convolutions see of the border, and the way driven
    inner = (slice(None), slice(None), slice(margin, -margin), slice(margin, -margin))
    apart = (streamed - recomputed)[inner].abs() > 1e-3 * recomputed.abs().max()
    assert apart.float().mean() < 0.001
    assert recomputed[inner].abs().mean() > 1e-3
    key = slice(0, channels) if config.frame_order == "newest_first" else slice(-channels, None)
    torch.testing.assert_close(streamed[:, key], recomputed[:, key], rtol=1e-4, atol=1e-4)


def test_a_turn_is_followed():
    """Views that are moved along resemble recomputed ones far more than views that are left where they were."""
    poses = torch.stack([pose(x=1.7 * t, y=0.3 * t, yaw=0.08 * t) for t in range(4)])
    *_, streamed, recomputed = both_ways(FOUR_FRAMES, poses)[-1]
    still = both_ways(FOUR_FRAMES, pose().repeat(4, 1, 1))[-1][2]  # the same pictures: the views before any alignment
    oldest = slice(-FOUR_FRAMES.view.context_channels, None)
    inner = (slice(None), oldest, slice(8, -8), slice(8, -8))

    def likeness(one, other):
        one, other = (view[inner] - view[inner].mean(dim=(2, 3), keepdim=True) for view in (one, other))
        return float((one * other).sum() / (one.norm() * other.norm()))

    assert likeness(streamed, recomputed) > 0.8
    assert likeness(streamed, recomputed) > likeness(still, recomputed) + 0.2


def test_the_state_is_not_changed_and_a_new_scene_starts_anew():
    model, poses = strong_model(STEREO), pose().repeat(2, 1, 1)
    first, second = drive(STEREO, poses)
    start = stream(model, first, poses[:1], None)
    kept = start.state.views[0].bev_BCYX.clone()
    one, again = (stream(model, second, poses[:1], start.state) for _ in range(2))
    assert torch.equal(one.outputs.logits_BKXYZ, again.outputs.logits_BKXYZ)
    assert torch.equal(start.state.views[0].bev_BCYX, kept)
    assert len(one.state.views) == STEREO.lifted_frames - 1 == 1
    anew = stream(model, second, poses[:1], None)
    assert (anew.outputs.logits_BKXYZ - one.outputs.logits_BKXYZ).abs().max() > 5e-3


def test_a_frame_prepared_for_the_stream():
    """From sensors: the poses that the batch and the stream take are of one key time."""
    random = np.random.default_rng(0)
    rig = np.eye(4)
    rig[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    camera = CameraImage(
        name="front",
        image=random.integers(0, 255, (90, 160, 3), dtype=np.uint8),
        intrinsics=np.array([[126.0, 0, 80], [0, 126, 45], [0, 0, 1]]),
        cam2ego=rig,
        ego2global=pose(x=1.0).numpy(),
        stamp_ns=0,
    )
    frame = SensorFrame(stamp_ns=0, ego2global=pose(x=1.2).numpy(), cameras=(camera,), lidar=None)
    model = strong_model(STEREO)
    inputs = stream_inputs(model.config)
    batch = prepare(frame, inputs, model.config.grid)
    key = torch.from_numpy(key2global(frame, inputs))[None]
    assert key[0, 0, 3] == 1.0  # official: the first camera's
    torch.testing.assert_close(key[0] @ batch.cam2keyego_BTN44[0, 0, 0].double(), pose(x=1.0) @ torch.from_numpy(rig))
    step = stream(model, batch, key, None)
    assert torch.isfinite(stream(model, batch, key, step.state).outputs.logits_BKXYZ).all()


def test_what_does_not_fit_the_stream():
    model, poses = strong_model(STEREO), pose().repeat(2, 1, 1)
    (batch, _), key = drive(STEREO, poses), poses[:1]
    state = stream(model, batch, key, None).state
    with pytest.raises(ValueError, match=r"holds 3 frames .* prepare it with stream_inputs"):
        stream(model, stacked((batch, batch), poses, 1, 2), key, None)
    with pytest.raises(ValueError, match="float32"):
        stream(model, batch, key.float(), None)
    with pytest.raises(ValueError, match="had 2 cameras, this one has 1"):
        stream(model, drive(STEREO, poses, cameras=1)[0], key, state)
    with pytest.raises(ValueError, match=r"1 samples with stereo, the batch has 1 and the network works without"):
        stream(strong_model(FOUR_FRAMES), batch, key, state)
    with pytest.raises(ValueError, match="training mode"):
        stream(model.train(), batch, key, None)

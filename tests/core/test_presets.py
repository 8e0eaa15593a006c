"""The networks that have a name."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from fusionocc_cases import camera_ring, random_batch

from fusionocc_core import DEFAULT_PRESET
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.models.fusionocc import FusionOcc
from fusionocc_core.models.fusionocc_official import official_state_dict
from fusionocc_core.presets import (
    PRESETS,
    SHIPPED_WEIGHTS,
    config_differences,
    list_presets,
    load_model,
    make_network,
    preset_config,
    shipped_weights,
)
from fusionocc_core.structures import UNTRAINED, CameraImage, InputConfig, LidarSweep, SensorFrame


@pytest.fixture(scope="module")
def base():
    """Names and shapes without memory for the weights."""
    with torch.device("meta"):
        return load_model("fusionocc-base")


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return load_model("fusionocc-tiny")


def test_names_are_those_of_their_functions():
    assert {"fusionocc-base", "fusionocc-tiny", "flashocc-m0", "flashocc-m1", "flashocc-tiny"} <= set(list_presets())
    assert [function.__name__.replace("_", "-") for function in PRESETS.values()] == list(list_presets())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fusionocc-bas", "did you mean fusionocc-base"),
        ("tiny", "fusionocc-tiny"),
        ("fusionoc_tiny", "did you mean fusionocc-tiny"),
        ("zzz", "there are .*fusionocc-base"),
        ("", "there are .*fusionocc-base"),
    ],
)
def test_unknown_names_bring_the_nearest(name, message):
    with pytest.raises(ValueError, match=f"unknown preset {name!r}: .*{message}"):
        load_model(name)


def test_the_default_comes_with_trained_weights():
    model = load_model()
    assert (model.card.preset, model.config) == (DEFAULT_PRESET, preset_config(DEFAULT_PRESET))
    assert "simulated streets" in model.card.trained_on
    assert model.card.metrics["miou_camera"] > 0.4
    named = load_model(DEFAULT_PRESET).state_dict()
    assert all(torch.equal(named[name], tensor) for name, tensor in model.state_dict().items())
    fresh = make_network(preset_config(DEFAULT_PRESET))
    assert fresh.card.trained_on == UNTRAINED


def test_weights_that_ship_are_small_and_have_a_card():
    for name in SHIPPED_WEIGHTS:
        path = shipped_weights(name)
        assert path.stat().st_size < 15e6
        assert f"# {name}" in path.with_suffix(".md").read_text()
    with pytest.raises(ValueError, match="no trained weights come with 'fusionocc-base'"):
        shipped_weights("fusionocc-base")


def test_parameters_of_the_official_model(base):
    assert sum(parameter.numel() for parameter in base.parameters()) == 109_090_524
    assert len(official_state_dict(base)) == 735


@pytest.mark.data
def test_every_tensor_of_the_official_model(base, shared):
    listed = json.loads((shared / "specs" / "state_dicts" / "fusionocc_state_dict.json").read_text())["keys"]
    expected = {entry["key"]: (tuple(entry["shape"]), entry["dtype"]) for entry in listed}
    ours = {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in official_state_dict(base).items()
    }
    assert ours == expected
    parameters = {name for name, _ in base.named_parameters()}
    assert len(parameters) == sum(entry["kind"] == "param" for entry in listed)


@pytest.mark.data
def test_norms_of_the_official_model(base, shared):
    listed = json.loads((shared / "specs" / "state_dicts" / "fusionocc_state_dict.json").read_text())["keys"]
    expected = {
        entry["key"].removesuffix(".weight"): (entry["eps"], entry["momentum"])
        for entry in listed
        if "momentum" in entry and entry["key"].endswith(".weight")
    }
    ours = {
        name: (module.eps, module.momentum)
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    }
    assert ours == expected


def test_official_habits_are_on_in_base_and_off_in_tiny():
    official, ours = preset_config("fusionocc-base"), preset_config("fusionocc-tiny")
    correct = InputConfig(image_size=ours.inputs.image_size, lidar_history=ours.inputs.lidar_history)
    assert ours.inputs == correct
    assert ours.lift == LiftConfig()
    assert (ours.history_depth, ours.history_camera_pose, ours.history_gradient) == ("none", "own", True)
    assert (official.history_depth, official.history_camera_pose, official.history_gradient) == (
        "current",
        "current",
        False,
    )
    assert config_differences(official.lift, LiftConfig()) == [
        "frustum_pixels: corner_aligned and cell_centers",
        "frustum_depths: lower_edges and bin_centers",
        "voxel_rounding: truncate and floor",
    ]
    habits = replace(
        official.inputs, image_size=correct.image_size, lidar_history=correct.lidar_history, camera_history=0
    )
    differing = {difference.split(":")[0] for difference in config_differences(habits, correct)}
    assert differing == {
        "channel_order",
        "float32_poses",
        "include_current_sweep",
        "key_pose",
        "repeat_current_sweep",
        "resampling",
        "thin_rings_up_to",
    }


@pytest.mark.parametrize("name", ["fusionocc-base", "fusionocc-tiny"])
def test_both_answer_on_the_occ3d_grid(name):
    config = preset_config(name)
    assert config.grid == OCC3D_GRID
    assert config.label_set == OCC3D_LABELS
    assert config.depth_bins.num == 88


def test_tiny_says_that_it_is_untrained(tiny):
    assert tiny.card.preset == "fusionocc-tiny"
    assert tiny.card.trained_on == UNTRAINED
    assert not tiny.training
    assert sum(parameter.numel() for parameter in tiny.parameters()) < 15e6


def nearby(config):
    """The same network on a part of its grid and with smaller pictures, for tests that train."""
    grid = replace(config.grid, lower=(-10.0, -10.0, -1.0), upper=(10.0, 10.0, 5.4))
    lidar = replace(config.lidar, grid=replace(grid, voxel_size=config.lidar.grid.voxel_size))
    return replace(config, grid=grid, lidar=lidar, inputs=replace(config.inputs, image_size=(64, 192)))


def test_fresh_weights_carry_signals(tiny):
    """With the statistics of the batch, as in training, no stage explodes or dies."""
    model = FusionOcc(nearby(tiny.config)).train()
    batch = random_batch(model.config, samples=2, cameras=1, points=3000)
    with torch.no_grad():
        outputs = model(batch)
    for scores in (outputs.logits_BKXYZ, outputs.depth_logits_BNDhw, outputs.seg_logits_BNKhw):
        assert 0.02 < scores.std() < 5


def test_size_of_the_answer(tiny):
    with torch.inference_mode():
        logits = tiny(random_batch(tiny.config, cameras=6, points=20_000)).logits_BKXYZ
    assert logits.shape == (1, 18, 200, 200, 16)
    assert logits.isfinite().all()


def test_tiny_takes_a_frame_of_the_sensors(tiny):
    """Mixed picture sizes, no history, a cloud: through the same preparation as on a vehicle."""
    random = np.random.RandomState(0)
    cameras = tuple(
        CameraImage(
            name=f"camera_{i}",
            image=random.randint(0, 255, (height, width, 3)).astype(np.uint8),
            intrinsics=np.array([[0.8 * width, 0.0, width / 2], [0.0, 0.8 * width, height / 2], [0.0, 0.0, 1.0]]),
            cam2ego=pose,
            ego2global=np.eye(4),
            stamp_ns=i,
        )
        for i, (pose, (height, width)) in enumerate(zip(camera_ring(2).numpy(), [(900, 1600), (480, 640)], strict=True))
    )
    xyz = random.uniform((-30, -30, -1), (30, 30, 3), (5000, 3))
    points = np.concatenate([xyz, random.rand(5000, 2) * 30], axis=1).astype(np.float32)
    lidar = LidarSweep(points=points, lidar2ego=np.eye(4), ego2global=np.eye(4), stamp_ns=5)
    frame = SensorFrame(stamp_ns=5, ego2global=np.eye(4), cameras=cameras, lidar=lidar)
    with torch.inference_mode():
        outputs = tiny(prepare(frame, tiny.config.inputs, tiny.config.grid))
    assert outputs.logits_BKXYZ.isfinite().all()
    assert outputs.depth_logits_BNDhw.shape == (1, 2, 88, 16, 44)


def test_tiny_learns(tiny):
    """A few steps on one frame lower its loss: gradients reach the weights and point downhill."""
    torch.manual_seed(0)
    model = FusionOcc(nearby(tiny.config)).train()
    batch = random_batch(model.config, samples=2, cameras=1, points=3000)
    labels = torch.full((2, *model.config.grid.shape), 17)
    labels[..., :4] = 11
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = torch.nn.functional.cross_entropy(model(batch).logits_BKXYZ, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(value) for value in losses)
    assert losses[-1] < 0.7 * losses[0]


def test_the_package_offers_them_without_being_asked_for_torch():
    program = "import sys, fusionocc_core as f; assert 'torch' not in sys.modules; print(f.list_presets())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "fusionocc-tiny" in done.stdout, done.stderr

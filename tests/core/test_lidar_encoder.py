"""The sparse LiDAR encoder against the reference network, stage by stage, and its properties."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig, SparseLidarEncoder
from fusionocc_core.ops.sparse_conv import sparse_weight_from_official, sparse_weight_to_official, submanifold_conv3d
from fusionocc_core.ops.sparse_volume import SparseVolume

REFERENCE = LidarEncoderConfig(
    grid=VoxelGrid(frame="ego", lower=(-40.0, -32.0, -1.0), upper=(40.0, 32.0, 5.4), voxel_size=(0.25, 0.25, 0.2)),
    out_channels=8,
)
OFFICIAL = LidarEncoderConfig(
    grid=VoxelGrid(frame="ego", lower=(-40.0, -40.0, -1.0), upper=(40.0, 40.0, 5.4), voxel_size=(0.05, 0.05, 0.05)),
)
SMALL = LidarEncoderConfig(
    grid=VoxelGrid(frame="ego", lower=(-4.0, -2.0, -1.0), upper=(4.0, 2.0, 1.0), voxel_size=(0.25, 0.25, 0.25)),
    stage_channels=(8, 12, 16),
    out_channels=6,
)
PREFIX = "lidar_encoder."


def reference_weights() -> dict[str, Tensor]:
    """The weights of the reference run: drawn by a rule from each official key, so no file needs to carry them."""
    weights = {}
    for name, parameter in SparseLidarEncoder(REFERENCE).state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        draw = np.random.RandomState(zlib.crc32((PREFIX + name).encode()))
        if parameter.ndim == 5:
            shape = sparse_weight_to_official(parameter).shape
            value = draw.randn(*shape) * np.sqrt(3.0 / np.prod(shape[:-1]))
        elif name.endswith("running_var") or name.endswith(".1.weight"):
            value = draw.uniform(0.5, 1.5, parameter.shape)
        else:
            value = 0.1 * draw.randn(*parameter.shape)
        tensor = torch.from_numpy(value.astype(np.float32))
        weights[name] = sparse_weight_from_official(tensor) if tensor.ndim == 5 else tensor
    return weights


def reference_encoder(backend: str = "auto") -> SparseLidarEncoder:
    encoder = SparseLidarEncoder(replace(REFERENCE, backend=backend))
    missing, unexpected = encoder.load_state_dict(reference_weights(), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return encoder.eval()


def stages_of(encoder: SparseLidarEncoder, points: tuple[Tensor, ...]) -> tuple[Tensor, list[SparseVolume]]:
    """The dense output, and the volumes on the way: voxels, stem, stage 1, stage 2 ..."""
    with torch.no_grad():
        dense = encoder(points)
        volumes = [encoder._voxelize(points)]
        volumes.append(submanifold_conv3d(volumes[-1], encoder.conv_input.get_parameter("0.weight")))
        for stage in encoder.encoder_layers.values():
            volumes.append(encoder._run_stage(volumes[-1], stage))
    return dense, volumes


def clouds(*counts: int, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    scale, offset = torch.tensor((9.0, 5.0, 2.2, 1.0, 1.0)), torch.tensor((4.5, 2.5, 1.1, 0.0, 0.0))
    return tuple(torch.rand(count, 5, generator=generator) * scale - offset for count in counts)


def close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= 1e-4 * expected.abs().max())


@pytest.mark.parametrize("backend", ["auto", "spconv"])
def test_equals_the_reference_network(goldens: Path, backend):
    """Points in, every stage out; the golden keeps each 32nd row of a stage and the whole dense volume."""
    if backend == "spconv":
        pytest.importorskip("spconv", reason="optional backend spconv is not installed")
    golden = load_file(goldens / "ops_lidar_encoder.safetensors")
    dense, (voxels, _, *stages) = stages_of(reference_encoder(backend), (golden["points"],))
    assert torch.equal(voxels.coords_M4[::32], golden["voxels.coords"].long())
    assert close(voxels.features_MC[::32], golden["voxels.feats"])
    for number, stage in enumerate(stages, 1):
        assert len(stage.coords_M4) == golden[f"stage{number}.count"].item()
        assert torch.equal(stage.coords_M4[::32], golden[f"stage{number}.coords"].long())
        assert close(stage.features_MC[::32], golden[f"stage{number}.feats"])
    assert close(dense, golden["dense"].transpose(-1, -2))  # the reference keeps (B, C, Z, X, Y) at this place


@pytest.mark.data
def test_equals_every_row_of_the_reference_network(shared: Path):
    with safe_open(shared / "goldens/fusionocc/small_io.safetensors", "pt") as file:
        golden = {name: file.get_tensor(name) for name in file.keys() if ".lidar." in name or "points0" in name}  # noqa: SIM118
    encoder = reference_encoder()
    official = load_file(shared / "goldens/fusionocc/small_state_dict.safetensors")
    for name, value in reference_weights().items():
        mine = official[PREFIX + name]
        assert torch.equal(sparse_weight_from_official(mine) if mine.ndim == 5 else mine, value), name
    dense, (voxels, stem, *stages) = stages_of(encoder, (golden["in.points0"],))
    assert torch.equal(voxels.coords_M4, golden["A.lidar.voxel_coords"].long())
    assert close(voxels.features_MC, golden["A.lidar.voxel_feats"])
    assert close(stem.features_MC, golden["A.lidar.conv_input"])
    for number, stage in enumerate(stages, 1):
        assert torch.equal(stage.coords_M4, golden[f"A.lidar.stage{number}.coords"].long())
        assert close(stage.features_MC, golden[f"A.lidar.stage{number}.feats"])
    assert close(dense, golden["A.lidar.dense"].transpose(-1, -2))


@pytest.mark.data
def test_running_statistics_equal_those_of_the_reference_after_a_training_step(shared: Path):
    norm = "encoder_layers.encoder_layer1.0.1"
    with safe_open(shared / "goldens/fusionocc/small_io.safetensors", "pt") as file:
        points = tuple(file.get_tensor(f"in.points{b}") for b in range(2))
        expected = {key: file.get_tensor(f"D.{PREFIX}{norm}.{key}") for key in ("running_mean", "running_var")}
    encoder = reference_encoder().train()
    encoder(points)
    for key, value in expected.items():
        assert close(encoder.state_dict()[f"{norm}.{key}"], value)


@pytest.mark.data
def test_names_and_shapes_equal_the_official_checkpoint(shared: Path):
    spec = json.loads((shared / "specs/state_dicts/fusionocc_state_dict.json").read_text())
    official = {k["key"].removeprefix(PREFIX): tuple(k["shape"]) for k in spec["keys"] if k["key"].startswith(PREFIX)}
    mine = SparseLidarEncoder(OFFICIAL).state_dict()
    shapes = {k: tuple((sparse_weight_to_official(v) if v.ndim == 5 else v).shape) for k, v in mine.items()}
    assert shapes == official


def test_the_official_encoder_has_556016_parameters_and_ends_on_the_occupancy_grid():
    assert sum(p.numel() for p in SparseLidarEncoder(OFFICIAL).parameters()) == 556_016
    assert OFFICIAL.stride == 8
    assert OFFICIAL.output_grid.shape == (200, 200, 16)


@pytest.mark.parametrize("stages", [(8,), (8, 12), (8, 12, 16)])
def test_number_of_stages_sets_the_output_grid(stages):
    config = replace(SMALL, stage_channels=stages)
    with torch.no_grad():
        volume = SparseLidarEncoder(config).eval()(clouds(300))
    assert volume.shape == (1, 6, *config.output_grid.shape_zyx)
    assert config.output_grid.voxel_size == (0.25 * config.stride,) * 3


def test_two_in_a_batch_equal_two_singles():
    encoder, batch = SparseLidarEncoder(SMALL).eval(), clouds(400, 250)
    with torch.no_grad():
        both = encoder(batch)
        for b in range(2):
            torch.testing.assert_close(both[b], encoder(batch[b : b + 1])[0], rtol=1e-5, atol=1e-6)


def test_order_of_points_does_not_matter():
    encoder, (points,) = SparseLidarEncoder(SMALL).eval(), clouds(400)
    with torch.no_grad():
        torch.testing.assert_close(encoder((points,)), encoder((points.flip(0),)), rtol=1e-4, atol=1e-5)


def test_points_reach_only_voxels_nearby():
    encoder = SparseLidarEncoder(SMALL).eval()
    near = torch.tensor([[1.0, 0.5, 0.1, 9.0, 3.0]])
    with torch.no_grad():
        volume = encoder((near,))
    occupied = volume.abs().sum(1).nonzero()
    ix, iy, iz = (int((near[0, i] - SMALL.grid.lower[i]) / SMALL.output_grid.voxel_size[i]) for i in range(3))
    assert len(occupied)
    assert (occupied - torch.tensor([0, iz, iy, ix])).abs().max() <= 2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1)])
def test_weights_of_another_dtype(dtype, tolerance):
    encoder, points = SparseLidarEncoder(SMALL).eval(), clouds(400)
    with torch.inference_mode():
        expected = encoder(points)
        volume = encoder.to(dtype)(points)
    assert volume.dtype == dtype
    assert (volume - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("training", [True, False])
def test_sample_without_points_is_zero_and_leaves_the_other_alone(training):
    encoder = SparseLidarEncoder(SMALL).train(training)
    batch = (clouds(300)[0], torch.zeros(0, 5))
    volume = encoder(batch)
    assert not volume[1].any()
    torch.testing.assert_close(volume[:1], encoder(batch[:1]))


@pytest.mark.parametrize("training", [True, False])
def test_batch_without_points_is_zero_and_trains_nothing(training):
    encoder = SparseLidarEncoder(SMALL).train(training)
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    volume = encoder((torch.zeros(0, 5), torch.zeros(0, 5)))
    assert volume.shape == (2, 6, *SMALL.output_grid.shape_zyx)
    assert not volume.any()
    volume.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name  # distributed training waits for a gradient of every parameter
        assert not parameter.grad.any(), name
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_every_parameter_learns():
    encoder = SparseLidarEncoder(SMALL)
    encoder(clouds(400)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_spconv_backend_agrees_in_training():
    pytest.importorskip("spconv", reason="optional backend spconv is not installed")
    ours = SparseLidarEncoder(SMALL)
    theirs = SparseLidarEncoder(replace(SMALL, backend="spconv"))
    theirs.load_state_dict(ours.state_dict())
    points, upstream = clouds(400, 300), torch.randn(2, 6, *SMALL.output_grid.shape_zyx)
    volumes = [encoder(points) for encoder in (ours, theirs)]
    torch.testing.assert_close(volumes[0], volumes[1], rtol=1e-4, atol=1e-5)
    for volume in volumes:
        volume.backward(upstream)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() < 1e-4 * b.grad.abs().max(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage_channels": ()}, "at least one stage"),
        ({"stage_channels": (16, 0)}, "positive numbers"),
        ({"in_channels": 2}, "at least x, y, z"),
        ({"out_channels": 0}, "positive numbers"),
        ({"backend": "minkowski"}, "backend='minkowski'"),
        ({"stage_channels": (8,) * 5}, r"\(32, 16, 8\) voxels by 16, which does not divide"),
    ],
)
def test_bad_configuration_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_clouds_with_other_columns_are_refused():
    with pytest.raises(ValueError, match=r"\(7, 4\).*expected \(P, 5\)"):
        SparseLidarEncoder(SMALL)((torch.zeros(7, 4),))

"""Sparse convolutions against dense ones, their own reference, and spconv."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusionocc_core.ops import rulebook as rulebook_module
from fusionocc_core.ops.rulebook import strided_rulebook, submanifold_rulebook
from fusionocc_core.ops.sparse_conv import (
    convolve_reference,
    plan_submanifold_conv3d,
    sparse_conv3d,
    sparse_weight_from_official,
    sparse_weight_to_official,
    submanifold_conv3d,
)
from fusionocc_core.ops.sparse_volume import SparseVolume, densify, sparse_volume

SHAPE = (9, 7, 6)


def example(
    channels: int = 3,
    shape: tuple[int, int, int] = SHAPE,
    batch_size: int = 2,
    density: float = 0.2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> SparseVolume:
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(batch_size, *shape, generator=generator) < density).nonzero()
    features = torch.randn(len(coords), channels, generator=generator, dtype=dtype)
    return sparse_volume(features, coords, shape, batch_size)


def random_weight(
    out: int, kernel: tuple[int, int, int], channels: int = 3, dtype: torch.dtype = torch.float64
) -> Tensor:
    return torch.randn(out, *kernel, channels, dtype=dtype, generator=torch.Generator().manual_seed(out))


def dense_conv(volume: SparseVolume, weight: Tensor, stride: int | tuple = 1, padding: int | tuple = 1) -> Tensor:
    """F.conv3d over the densified volume with its axes in the weight's order; (B, C, Z, Y, X)."""
    dense_BCXYZ = densify(volume).permute(0, 1, 4, 3, 2)
    return F.conv3d(dense_BCXYZ, weight.permute(0, 4, 1, 2, 3), stride=stride, padding=padding).permute(0, 1, 4, 3, 2)


def at_voxels(dense: Tensor, volume: SparseVolume) -> Tensor:
    b, x, y, z = volume.coords_M4.unbind(1)
    return dense[b, :, z, y, x]


def with_leaves(volume: SparseVolume, weight: Tensor) -> tuple[SparseVolume, Tensor, Tensor]:
    features, weight = volume.features_MC.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    return volume.with_features(features), features, weight


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3), (5, 3, 1), (1, 3, 5)])
def test_submanifold_equals_dense_at_active_voxels(kernel):
    volume, weight = example(), random_weight(4, kernel)
    out = submanifold_conv3d(volume, weight)
    expected = dense_conv(volume, weight, padding=tuple(k // 2 for k in kernel))
    assert torch.equal(out.coords_M4, volume.coords_M4)
    assert (out.shape, out.batch_size) == (volume.shape, volume.batch_size)
    torch.testing.assert_close(out.features_MC, at_voxels(expected, volume))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((3, 3, 3), 2, 1),
        ((3, 3, 3), 1, 1),
        ((3, 3, 3), 3, 0),
        ((2, 2, 2), 2, 0),
        ((1, 1, 1), 2, 0),
        ((3, 1, 2), (2, 1, 3), (1, 0, 1)),
        ((2, 3, 1), (3, 2, 1), (0, 2, 0)),
    ],
)
def test_strided_equals_dense_everywhere(kernel, stride, padding):
    volume, weight = example(density=0.05), random_weight(4, kernel)
    out = sparse_conv3d(volume, weight, stride, padding)
    torch.testing.assert_close(densify(out), dense_conv(volume, weight, stride, padding))
    reached = dense_conv(
        volume.with_features(torch.ones_like(volume.features_MC)), torch.ones_like(weight), stride, padding
    )
    assert len(out.coords_M4) == int((reached[:, 0] > 0).sum())
    assert torch.equal(out.coords_M4, sparse_volume(out.features_MC, out.coords_M4, out.shape, 2).coords_M4)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("submanifold", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 7, 16384])
def test_blocks_equal_their_reference_forward_and_backward(submanifold, threads, rows, monkeypatch, set_threads):
    set_threads(threads)
    monkeypatch.setattr(rulebook_module, "BLOCK_ROWS", rows)
    volume, weight = example(), random_weight(4, (3, 3, 3))
    if submanifold:
        rulebook = submanifold_rulebook(volume, (3, 3, 3))
    else:
        rulebook = strided_rulebook(volume, (3, 3, 3), (2, 2, 2), (1, 1, 1))
    results = []
    for fast in (True, False):
        leaf_volume, features, leaf_weight = with_leaves(volume, weight)
        if not fast:
            out = convolve_reference(features, leaf_weight, rulebook)
        elif submanifold:
            out = submanifold_conv3d(leaf_volume, leaf_weight, rulebook).features_MC
        else:
            out = sparse_conv3d(leaf_volume, leaf_weight, 2, 1).features_MC
        out.backward(torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(5)))
        results.append((out.detach(), features.grad, leaf_weight.grad))
    torch.testing.assert_close(results[0], results[1])


def test_gradient_equals_that_of_the_dense_convolution():
    volume, weight = example(), random_weight(4, (3, 3, 3))
    leaf_volume, features, leaf_weight = with_leaves(volume, weight)
    densify(sparse_conv3d(leaf_volume, leaf_weight, 2, 1)).square().sum().backward()
    dense_volume, dense_features, dense_weight = with_leaves(volume, weight)
    dense_conv(dense_volume, dense_weight, 2, 1).square().sum().backward()
    torch.testing.assert_close(features.grad, dense_features.grad)
    torch.testing.assert_close(leaf_weight.grad, dense_weight.grad)


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3)])
def test_gradcheck_submanifold(kernel):
    volume, weight = example(channels=2, shape=(4, 4, 3), density=0.4), random_weight(2, kernel, channels=2)
    leaves = volume.features_MC.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, w: submanifold_conv3d(volume.with_features(f), w).features_MC, leaves, fast_mode=True
    )


def test_gradcheck_strided():
    volume, weight = example(channels=2, shape=(4, 4, 3), density=0.4), random_weight(2, (3, 3, 3), channels=2)
    leaves = volume.features_MC.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, w: sparse_conv3d(volume.with_features(f), w, 2, 1).features_MC, leaves, fast_mode=True
    )


def test_no_gradient_is_computed_where_none_is_asked():
    volume, weight = example(), random_weight(4, (3, 3, 3)).requires_grad_()
    submanifold_conv3d(volume, weight).features_MC.sum().backward()
    assert volume.features_MC.grad is None
    assert weight.grad is not None


@given(seed=st.integers(0, 10_000), density=st.floats(0.0, 1.0))
@settings(max_examples=15, deadline=None)
def test_any_density_equals_dense(seed, density):
    volume, weight = example(density=density, seed=seed, shape=(5, 4, 6)), random_weight(2, (3, 3, 3))
    out = submanifold_conv3d(volume, weight)
    torch.testing.assert_close(out.features_MC, at_voxels(dense_conv(volume, weight), volume))
    torch.testing.assert_close(densify(sparse_conv3d(volume, weight, 2, 1)), dense_conv(volume, weight, 2, 1))


def test_two_in_a_batch_equal_two_singles():
    volume, weight = example(), random_weight(4, (3, 3, 3))
    both = sparse_conv3d(submanifold_conv3d(volume, random_weight(3, (3, 3, 3))), weight, 2, 1)
    for b in range(2):
        mine = volume.coords_M4[:, 0] == b
        coords = volume.coords_M4[mine] - torch.tensor((b, 0, 0, 0))
        single = sparse_volume(volume.features_MC[mine], coords, volume.shape, 1)
        single = sparse_conv3d(submanifold_conv3d(single, random_weight(3, (3, 3, 3))), weight, 2, 1)
        torch.testing.assert_close(densify(both)[b], densify(single)[0])


@pytest.mark.parametrize("backend", ["auto", "torch", "spconv"])
def test_volume_without_voxels(backend):
    volume = example(density=0.0, dtype=torch.float32)
    leaf_volume, features, weight = with_leaves(volume, random_weight(4, (3, 3, 3), dtype=torch.float32))
    out = submanifold_conv3d(leaf_volume, weight, backend=backend)
    strided = sparse_conv3d(leaf_volume, weight, 2, 1, backend=backend)
    assert out.features_MC.shape == strided.features_MC.shape == (0, 4)
    assert (out.shape, strided.shape) == (SHAPE, (5, 4, 3))
    (out.features_MC.sum() + strided.features_MC.sum()).backward()
    assert features.grad.shape == (0, 3)
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threads", [1, 2])
def test_half_precision_features(dtype, threads, monkeypatch, set_threads):
    set_threads(threads)
    monkeypatch.setattr(rulebook_module, "BLOCK_ROWS", 16)
    volume, weight = example(channels=16, dtype=torch.float32), random_weight(8, (3, 3, 3), 16, torch.float32)
    exact = submanifold_conv3d(volume, weight).features_MC
    half = submanifold_conv3d(volume.with_features(volume.features_MC.to(dtype)), weight).features_MC
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < 2e-2 * exact.abs().max()


def test_autocast_changes_nothing():
    volume = example(dtype=torch.float32)
    weights = [random_weight(out, k, c, torch.float32) for out, k, c in ((4, (3, 3, 3), 3), (2, (1, 1, 1), 4))]
    results = []
    for enabled in (False, True):
        leaves = [weight.clone().requires_grad_() for weight in weights]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = submanifold_conv3d(submanifold_conv3d(volume, leaves[0]), leaves[1]).features_MC
        out.square().sum().backward()
        results.append((out.detach(), leaves[0].grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_results_repeat_exactly(threads, monkeypatch, set_threads):
    set_threads(threads)
    monkeypatch.setattr(rulebook_module, "BLOCK_ROWS", 64)
    volume, weight = example(channels=8, shape=(20, 20, 20), dtype=torch.float32), random_weight(8, (3,) * 3, 8).float()
    runs = []
    for _ in range(3):
        leaf_volume, features, leaf_weight = with_leaves(volume, weight)
        out = submanifold_conv3d(leaf_volume, leaf_weight).features_MC
        out.square().sum().backward()
        runs.append((out.detach(), features.grad, leaf_weight.grad))
    assert len(runs[0][0]) > 4 * 64
    assert all(torch.equal(one, first) for run in runs[1:] for one, first in zip(run, runs[0], strict=True))


def test_bad_input_is_named():
    volume, weight = example(), random_weight(4, (3, 3, 3))
    with pytest.raises(ValueError, match=r"expected \(out, kx, ky, kz, 3\)"):
        submanifold_conv3d(volume, random_weight(4, (3, 3, 3), channels=5))
    with pytest.raises(ValueError, match="weight is"):
        sparse_conv3d(volume, weight[0], 2, 1)
    with pytest.raises(ValueError, match="expected odd numbers"):
        submanifold_conv3d(volume, random_weight(4, (3, 2, 3)))
    with pytest.raises(ValueError, match="backend='cuda'"):
        submanifold_conv3d(volume, weight, backend="cuda")
    with pytest.raises(ValueError, match="stride="):
        sparse_conv3d(volume, weight, 0, 1)
    with pytest.raises(ValueError, match="larger than the volume"):
        sparse_conv3d(volume, random_weight(4, (3, 9, 3)), 1, 0)
    with pytest.raises(ValueError, match=r"make one for these voxels"):
        submanifold_conv3d(volume, weight, submanifold_rulebook(volume, (3, 1, 3)))
    with pytest.raises(ValueError, match=r"make one for these voxels"):
        submanifold_conv3d(volume, weight, submanifold_rulebook(example(seed=1), (3, 3, 3)))
    with pytest.raises(ValueError, match="rulebook was made for 'torch'"):
        submanifold_conv3d(volume, weight, submanifold_rulebook(volume, (3, 3, 3)), backend="spconv")


@pytest.mark.parametrize("shape", [(3, 3, 3, 16, 32), (1, 1, 1, 5, 16), (3, 3, 3, 64, 64)])
def test_both_official_weight_layouts_load(shape):
    mmcv = torch.randn(shape)
    ours = sparse_weight_from_official(mmcv)
    assert ours.shape == (shape[4], *shape[:4])
    assert ours[1, 0, 0, 0, 2] == mmcv[0, 0, 0, 2, 1]
    assert torch.equal(sparse_weight_from_official(ours), ours)
    assert torch.equal(sparse_weight_to_official(ours), mmcv)


@pytest.mark.parametrize(
    ("shape", "message"), [((3, 3, 3, 3, 8), "both fit"), ((16, 3, 3, 16), "neither"), ((4,) * 5, "neither")]
)
def test_weights_of_doubtful_layout_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        sparse_weight_from_official(torch.zeros(shape))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("strided", [True, False])
def test_spconv_agrees_forward_and_backward(strided, threads, set_threads):
    pytest.importorskip("spconv", reason="optional backend spconv is not installed")
    volume = example(channels=16, shape=(24, 20, 16), dtype=torch.float32)
    weight = random_weight(32, (3, 3, 3), 16, torch.float32)
    set_threads(threads)
    results = []
    for backend in ("torch", "spconv"):
        leaf_volume, features, leaf_weight = with_leaves(volume, weight)
        if strided:
            out = sparse_conv3d(leaf_volume, leaf_weight, 2, 1, backend)
        else:
            out = submanifold_conv3d(leaf_volume, leaf_weight, backend=backend)
        upstream = torch.randn(out.features_MC.shape, generator=torch.Generator().manual_seed(1))
        out.features_MC.backward(upstream)
        results.append((out, features.grad, leaf_weight.grad))
    assert torch.get_num_threads() == threads
    (ours, *our_grads), (theirs, *their_grads) = results
    assert torch.equal(ours.coords_M4, theirs.coords_M4)
    assert ours.shape == theirs.shape
    for a, b in [(ours.features_MC, theirs.features_MC), *zip(our_grads, their_grads, strict=True)]:
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


def test_spconv_leaves_no_trace():
    ops = pytest.importorskip("spconv.pytorch.ops", reason="optional backend spconv is not installed")
    stream = ops.get_current_stream
    state = torch.get_rng_state()
    volume = example(dtype=torch.float32)
    submanifold_conv3d(volume, random_weight(4, (3, 3, 3), dtype=torch.float32), backend="spconv")
    assert ops.get_current_stream is stream
    assert torch.equal(torch.get_rng_state(), state)


def test_spconv_rulebook_serves_two_convolutions():
    pytest.importorskip("spconv", reason="optional backend spconv is not installed")
    volume, weight = example(dtype=torch.float32), random_weight(3, (3, 3, 3), dtype=torch.float32)
    rulebook = plan_submanifold_conv3d(volume, (3, 3, 3), "spconv")
    twice = submanifold_conv3d(submanifold_conv3d(volume, weight, rulebook), weight, rulebook)
    expected = submanifold_conv3d(submanifold_conv3d(volume, weight), weight)
    torch.testing.assert_close(twice.features_MC, expected.features_MC, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="rulebook was made for 'spconv'"):
        submanifold_conv3d(volume, weight, rulebook, backend="torch")


def test_spconv_refuses_dtypes_it_does_not_know():
    pytest.importorskip("spconv", reason="optional backend spconv is not installed")
    volume = example(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch.bfloat16 on cpu.*backend='torch'"):
        submanifold_conv3d(volume, random_weight(4, (3, 3, 3)), backend="spconv")


def test_missing_spconv_names_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv", None)
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    with pytest.raises(ValueError, match=r"pip install spconv-cu118"):
        submanifold_conv3d(example(dtype=torch.float32), random_weight(4, (3, 3, 3)), backend="spconv")

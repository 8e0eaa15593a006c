"""BEV pooling: both backends against a plain loop, each other and the reference tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fusionocc_core.ops.bev_pool import BACKENDS as EVERY_BACKEND
from fusionocc_core.ops.bev_pool import bev_pool, plan_bev_pool

BACKENDS = EVERY_BACKEND[:3]
"""Those that run everywhere; the kernels: test_ops_bev_pool_triton.py."""

SHAPE_ZYX = (2, 4, 5)
FRUSTUM = (2, 3, 6, 2, 4)  # B N D h w


def example(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth weights, features (C = 7), and voxels of which some lie outside."""
    generator = torch.Generator().manual_seed(seed)
    b, n, _, h, w = FRUSTUM
    depth = torch.rand(*FRUSTUM, generator=generator, dtype=dtype)
    feat = torch.randn(b, n, 7, h, w, generator=generator, dtype=dtype)
    z, y, x = SHAPE_ZYX
    voxel = torch.stack([torch.randint(-1, size + 1, FRUSTUM, generator=generator) for size in (x, y, z)], dim=-1)
    return depth, feat, voxel


def loop(depth: torch.Tensor, feat: torch.Tensor, voxel: torch.Tensor) -> torch.Tensor:
    z, y, x = SHAPE_ZYX
    out = torch.zeros(len(depth), feat.shape[2], z, y, x, dtype=depth.dtype)
    for b, n, d, i, j in torch.cartesian_prod(*(torch.arange(size) for size in depth.shape)).tolist():
        ix, iy, iz = voxel[b, n, d, i, j].tolist()
        if 0 <= ix < x and 0 <= iy < y and 0 <= iz < z:
            out[b, :, iz, iy, ix] += depth[b, n, d, i, j] * feat[b, n, :, i, j]
    return out


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_a_loop_over_points(backend):
    depth, feat, voxel = example()
    pooled = bev_pool(depth, feat, plan_bev_pool(voxel, SHAPE_ZYX), backend)
    assert pooled.shape == (2, 7, *SHAPE_ZYX)
    assert pooled.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(pooled, loop(depth, feat, voxel))


def test_backends_agree_forward_and_backward_in_float32():
    depth, feat, voxel = example(seed=1, dtype=torch.float32)
    plan = plan_bev_pool(voxel, SHAPE_ZYX)
    grad = torch.randn(2, 7, *SHAPE_ZYX)
    results = []
    for backend in ("embedding_bag", "index_add"):
        leaves = depth.clone().requires_grad_(), feat.clone().requires_grad_()
        pooled = bev_pool(*leaves, plan, backend)
        pooled.backward(grad)
        results.append((pooled.detach(), *(leaf.grad for leaf in leaves)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_gradcheck(backend):
    depth, feat, voxel = example()
    plan = plan_bev_pool(voxel, SHAPE_ZYX)
    leaves = depth.requires_grad_(), feat.requires_grad_()
    assert torch.autograd.gradcheck(lambda d, f: bev_pool(d, f, plan, backend), leaves, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_two_in_a_batch_equal_two_singles(backend):
    depth, feat, voxel = example()
    both = bev_pool(depth, feat, plan_bev_pool(voxel, SHAPE_ZYX), backend)
    for b in range(2):
        one = slice(b, b + 1)
        torch.testing.assert_close(
            both[one], bev_pool(depth[one], feat[one], plan_bev_pool(voxel[one], SHAPE_ZYX), backend)
        )


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_permuting_cameras_with_their_calibration_changes_nothing(backend):
    depth, feat, voxel = example()
    order = [2, 0, 1]
    a = bev_pool(depth, feat, plan_bev_pool(voxel, SHAPE_ZYX), backend)
    b = bev_pool(depth[:, order], feat[:, order], plan_bev_pool(voxel[:, order], SHAPE_ZYX), backend)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_valid_mask_leaves_points_out(backend):
    depth, feat, voxel = example()
    valid = torch.rand(FRUSTUM) > 0.4
    pooled = bev_pool(depth, feat, plan_bev_pool(voxel, SHAPE_ZYX, valid), backend)
    torch.testing.assert_close(pooled, loop(depth * valid, feat, voxel))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_no_point_inside_the_grid(backend):
    depth, feat, voxel = example()
    feat.requires_grad_()
    pooled = bev_pool(depth, feat, plan_bev_pool(torch.full_like(voxel, -1), SHAPE_ZYX), backend)
    assert not pooled.any()
    pooled.sum().backward()
    assert not feat.grad.any()


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)])
def test_half_precision_is_summed_in_float32(backend, dtypes):
    depth, feat, voxel = example()
    depth, feat = depth.to(dtypes[0]), feat.to(dtypes[1])
    plan = plan_bev_pool(torch.zeros_like(voxel), SHAPE_ZYX)  # 144 points in one voxel
    pooled = bev_pool(depth, feat, plan, backend)
    exact = bev_pool(depth.double(), feat.double(), plan, backend)
    assert pooled.dtype == dtypes[0]
    torch.testing.assert_close(
        pooled, exact.to(pooled.dtype), rtol=1e-2 if dtypes[0] == torch.bfloat16 else 1e-5, atol=1e-5
    )


def test_plan_moves_as_a_whole():
    moved = plan_bev_pool(example()[2], SHAPE_ZYX).to("meta")
    tensors = (moved.depth_rows_P, moved.feat_rows_P, moved.voxels_P, moved.starts_V1)
    assert all(tensor.is_meta for tensor in tensors)
    assert (moved.frustum_shape, moved.shape_zyx) == (FRUSTUM, SHAPE_ZYX)


def test_bad_input_is_named():
    depth, feat, voxel = example()
    plan = plan_bev_pool(voxel, SHAPE_ZYX)
    with pytest.raises(ValueError, match="round the points to voxels"):
        plan_bev_pool(voxel.float(), SHAPE_ZYX)
    with pytest.raises(ValueError, match=r"expected integers \(B, N, D, h, w, 3\)"):
        plan_bev_pool(voxel[0], SHAPE_ZYX)
    with pytest.raises(ValueError, match="valid is"):
        plan_bev_pool(voxel, SHAPE_ZYX, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="depth is"):
        bev_pool(depth[:1], feat, plan)
    with pytest.raises(ValueError, match="feat is"):
        bev_pool(depth, feat[:, :2], plan)
    with pytest.raises(ValueError, match="feat is"):
        bev_pool(depth, feat[0], plan)
    with pytest.raises(ValueError, match="backend='cuda'"):
        bev_pool(depth, feat, plan, "cuda")


@pytest.mark.data
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_equals_the_reference_network(shared: Path, backend):
    """Depth, features and frustum of the reference, pooled: the reference's volume."""
    with safe_open(shared / "goldens/fusionocc/small_io.safetensors", "pt") as file:
        depth, feat, points, expected = (
            file.get_tensor(f"A.cur.{name}") for name in ("cml.depth_prob", "cml.feature", "geom", "pooled")
        )
    lower, size = torch.tensor((-40.0, -32.0, -1.0)), torch.tensor((2.0, 2.0, 1.6))
    voxel = ((points - lower) / size).long()  # the reference truncates
    plan = plan_bev_pool(voxel, (4, 32, 40))
    feat = feat.view(1, 6, -1, *feat.shape[-2:])
    pooled = bev_pool(depth.view(1, 6, *depth.shape[-3:]), feat, plan, backend)
    assert (pooled - expected).abs().max() < 1e-4 * expected.abs().max()

"""The Triton kernels of BEV pooling against embedding_bag: interpreted, and on a GPU where there is one."""

from __future__ import annotations

import sys

import pytest
import torch
from test_ops_bev_pool import SHAPE_ZYX, example
from triton_interpreter import interpreted

from fusionocc_core.ops.bev_pool import BevPoolPlan, bev_pool, plan_bev_pool
from fusionocc_core.ops.triton_device import unavailable


def pooled_and_gradients(plan: BevPoolPlan, backend: str, device: str) -> list[torch.Tensor]:
    depth, feat, _ = example(seed=3, dtype=torch.float32)
    leaves = depth.to(device).requires_grad_(), feat.to(device).requires_grad_()
    pooled = bev_pool(*leaves, plan, backend)
    generator = torch.Generator().manual_seed(5)
    pooled.backward(torch.randn(pooled.shape, generator=generator).to(device))
    return [pooled.detach(), *(leaf.grad for leaf in leaves)]


def compare(device: str) -> None:
    """Values and gradients: a voxel with many points, voxels without, and no point at all."""
    voxel = example(seed=3)[2]
    crowded, nowhere = voxel.clone(), torch.full_like(voxel, -1)
    crowded[0, 0] = 1
    for points in (voxel, crowded, nowhere):
        plan = plan_bev_pool(points, SHAPE_ZYX).to(device)
        expected = pooled_and_gradients(plan, "embedding_bag", device)
        found, again = (pooled_and_gradients(plan, "triton", device) for _ in range(2))
        for value, twice, other in zip(found, again, expected, strict=True):
            assert torch.equal(value, twice)
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)
    depth, feat, _ = example(dtype=torch.float16)
    half = bev_pool(depth.to(device), feat.to(device), plan_bev_pool(voxel, SHAPE_ZYX).to(device), "triton")
    assert half.dtype == torch.float16
    depth, feat, _ = example()
    with pytest.raises(ValueError, match=r"sums in float32, the inputs are torch\.float64"):
        bev_pool(depth.to(device), feat.to(device), plan_bev_pool(voxel, SHAPE_ZYX).to(device), "triton")
    sys.stdout.write("agree\n")


def test_kernels_agree_in_the_interpreter():
    interpreted("test_ops_bev_pool_triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: compiled kernels and graphs")
def test_kernels_agree_on_a_gpu():
    compare("cuda")


def test_where_the_kernels_cannot_run_the_error_says_why_and_what_to_do():
    depth, feat, voxel = example(dtype=torch.float32)
    if problem := unavailable("cpu"):
        with pytest.raises(ValueError, match=r"backend='triton': .*; take backend='auto'") as caught:
            bev_pool(depth, feat, plan_bev_pool(voxel, SHAPE_ZYX), "triton")
        assert problem in str(caught.value)

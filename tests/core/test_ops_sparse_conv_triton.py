"""The Triton kernels of sparse convolution against PyTorch: interpreted, and on a GPU where there is one."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from test_ops_sparse_conv import example, random_weight, with_leaves
from triton_interpreter import interpreted

from fusionocc_core.ops.sparse_conv import plan_submanifold_conv3d, sparse_conv3d, submanifold_conv3d
from fusionocc_core.ops.sparse_volume import SparseVolume
from fusionocc_core.ops.triton_device import unavailable


def on(device: str, volume: SparseVolume) -> SparseVolume:
    return replace(volume, features_MC=volume.features_MC.to(device), coords_M4=volume.coords_M4.to(device))


def results(volume: SparseVolume, weight: torch.Tensor, backend: str, strided: bool) -> list[torch.Tensor]:
    leaf_volume, features, leaf_weight = with_leaves(volume, weight)
    if strided:
        out = sparse_conv3d(leaf_volume, leaf_weight, 2, 1, backend)
    else:
        out = submanifold_conv3d(leaf_volume, leaf_weight, backend=backend)
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(out.features_MC.shape, generator=generator).to(out.features_MC)
    (out.features_MC * grad).sum().backward()
    return [out.features_MC.detach(), features.grad, leaf_weight.grad]


def compare(device: str) -> None:
    """Values and gradients: several blocks of voxels and of channels, and a volume without any voxel."""
    for ins, outs, density, strided in (
        (3, 4, 0.2, False),
        (3, 5, 0.2, True),
        (40, 36, 0.05, False),
        (3, 4, 0.0, False),
    ):
        volume = on(device, example(channels=ins, density=density, dtype=torch.float32))
        weight = random_weight(outs, (3, 3, 3), channels=ins, dtype=torch.float32).to(device)
        expected = results(volume, weight, "torch", strided)
        found, again = (results(volume, weight, "triton", strided) for _ in range(2))
        for value, twice, other in zip(found, again, expected, strict=True):
            assert torch.equal(value, twice)
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)
    volume, weight = (
        on(device, example(dtype=torch.float16)),
        random_weight(4, (3, 3, 3), dtype=torch.float16).to(device),
    )
    kept = plan_submanifold_conv3d(volume, (3, 3, 3), "triton")
    half = submanifold_conv3d(volume, weight, kept, "triton").features_MC
    assert half.dtype == torch.float16
    torch.testing.assert_close(
        half, submanifold_conv3d(volume, weight, kept, "torch").features_MC, rtol=1e-2, atol=1e-2
    )
    with pytest.raises(ValueError, match=r"takes float32 and float16, not torch\.float64"):
        submanifold_conv3d(on(device, example()), random_weight(4, (3, 3, 3)).to(device), backend="triton")
    sys.stdout.write("agree\n")


def test_kernels_agree_in_the_interpreter():
    interpreted("test_ops_sparse_conv_triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: compiled kernels and graphs")
def test_kernels_agree_on_a_gpu():
    compare("cuda")


def test_where_the_kernels_cannot_run_the_error_says_why_and_what_to_do():
    if problem := unavailable("cpu"):
        with pytest.raises(ValueError, match=r"backend='triton': .*; take backend='auto'") as caught:
            submanifold_conv3d(example(), random_weight(4, (3, 3, 3)), backend="triton")
        assert problem in str(caught.value)

"""The Triton kernels of voxelisation against PyTorch: interpreted, and on a GPU where there is one."""

from __future__ import annotations

import sys

import pytest
import torch
from test_ops_voxelize import LOWER, SHAPE, SIZE, cloud
from triton_interpreter import interpreted

from fusionocc_core.ops.sparse_volume import SparseVolume
from fusionocc_core.ops.triton_device import unavailable
from fusionocc_core.ops.voxelize import voxelize


def on_faces() -> torch.Tensor:
    """Points on the faces of voxels, where a division that is rounded otherwise lands next door."""
    steps = torch.arange(-2, 19, dtype=torch.float32)
    faces = torch.tensor(LOWER) + steps[:, None] * torch.tensor(SIZE)
    return torch.cat([faces, torch.ones(len(faces), 2)], dim=1)


def volume_and_gradients(clouds: list[torch.Tensor], backend: str) -> tuple[SparseVolume, list[torch.Tensor]]:
    leaves = [points.clone().requires_grad_() for points in clouds]
    volume = voxelize(leaves, LOWER, SIZE, SHAPE, backend)
    weights = torch.arange(volume.features_MC.numel(), device=clouds[0].device, dtype=torch.float32).cos()
    (volume.features_MC * weights.view_as(volume.features_MC)).sum().backward()
    return volume, [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def compare(device: str) -> None:
    """Voxels, means and gradients: several samples, an empty one, one beside the grid, borders, what is not finite."""
    odd = torch.tensor([[float("nan"), 0, 0, 1, 1], [0, float("inf"), 0, 1, 1], [0, 0, 0, 1, 1]])
    batches = (
        [cloud(3000), cloud(50, seed=1), cloud(0), cloud(1000, seed=2)],
        [on_faces(), odd, cloud(300) + 100.0],
        [cloud(0)],
    )
    for clouds in batches:
        here = [points.to(device) for points in clouds]
        (expected, gradients), (found, others), (again, repeated) = (
            volume_and_gradients(here, backend) for backend in ("torch", "triton", "triton")
        )
        assert torch.equal(found.coords_M4, expected.coords_M4)
        assert torch.equal(found.features_MC, again.features_MC)
        torch.testing.assert_close(found.features_MC, expected.features_MC, rtol=1e-5, atol=1e-6)
        for gradient, other, twice in zip(gradients, others, repeated, strict=True):
            torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-6)
            assert torch.equal(other, twice)
    with pytest.raises(ValueError, match=r"takes float32, points are torch\.float64"):
        voxelize([cloud(3).double().to(device)], LOWER, SIZE, SHAPE, "triton")
    sys.stdout.write("agree\n")


def test_kernels_agree_in_the_interpreter():
    interpreted("test_ops_voxelize_triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: compiled kernels and graphs")
def test_kernels_agree_on_a_gpu():
    compare("cuda")


def test_where_the_kernels_cannot_run_the_error_says_why_and_what_to_do():
    with pytest.raises(ValueError, match=r"backend='fast'; expected one of \('auto', 'torch', 'triton'\)"):
        voxelize([cloud(3)], LOWER, SIZE, SHAPE, "fast")
    if problem := unavailable("cpu"):
        with pytest.raises(ValueError, match=r"backend='triton': .*; take backend='auto'") as caught:
            voxelize([cloud(3)], LOWER, SIZE, SHAPE, "triton")
        assert problem in str(caught.value)

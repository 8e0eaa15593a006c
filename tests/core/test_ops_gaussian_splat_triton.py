"""The Triton kernels of splatting against the tiles in PyTorch: interpreted, and on a GPU where there is one."""

from __future__ import annotations

import sys

import pytest
import torch
from gaussian_splat_cases import GRID, some
from test_ops_gaussian_splat import volumes_and_gradients
from triton_interpreter import interpreted

from fusionocc_core.ops.gaussian_splat import SplatOptions, splat_additive
from fusionocc_core.ops.triton_device import unavailable


def compare(device: str) -> None:
    """Values and gradients of several shapes; two blocks of tiles, lists that are no multiple of what is worked on."""
    for num, classes, memory_bytes in ((30, 4, 2**28), (70, 18, 70_000), (0, 4, 2**28)):
        gaussians = some(num=num, batch=1, classes=classes, dtype=torch.float32).to(device)
        expected = volumes_and_gradients(gaussians, SplatOptions(backend="tiles"))
        kernels = SplatOptions(backend="triton", memory_bytes=memory_bytes)
        found, again = (volumes_and_gradients(gaussians, kernels) for _ in range(2))
        for value, twice, other in zip(found, again, expected, strict=True):
            assert torch.equal(value, twice)
            largest = max([1.0, *other.abs().flatten().tolist()])
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5 * largest)
    sys.stdout.write("agree\n")


def test_kernels_agree_in_the_interpreter():
    interpreted("test_ops_gaussian_splat_triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: compiled kernels and graphs")
def test_kernels_agree_on_a_gpu():
    compare("cuda")


def test_where_the_kernels_cannot_run_the_error_says_why_and_what_to_do():
    gaussians = some(dtype=torch.float32)
    if problem := unavailable("cpu"):
        with pytest.raises(ValueError, match=r"backend='triton': .*; take backend='tiles'") as caught:
            splat_additive(gaussians, GRID, SplatOptions(backend="triton"))
        assert problem in str(caught.value)
    with pytest.raises(ValueError, match=r"compute in float32, the Gaussians are torch\.float64"):
        splat_additive(gaussians.to(torch.float64), GRID, SplatOptions(backend="triton"))

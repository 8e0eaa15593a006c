"""SparseVolume: construction checks and densify."""

from __future__ import annotations

import pytest
import torch

from fusionocc_core.ops.sparse_volume import coords_from_keys, densify, sparse_volume, voxel_keys

SHAPE = (4, 3, 2)


def test_voxels_are_sorted_and_features_follow():
    coords = torch.tensor([[1, 0, 0, 0], [0, 3, 2, 1], [0, 0, 2, 1], [0, 0, 2, 0]])
    volume = sparse_volume(torch.arange(4.0)[:, None], coords, SHAPE, batch_size=2)
    assert volume.coords_M4.tolist() == [[0, 0, 2, 0], [0, 0, 2, 1], [0, 3, 2, 1], [1, 0, 0, 0]]
    assert volume.features_MC[:, 0].tolist() == [3.0, 2.0, 1.0, 0.0]


def test_keys_count_the_dense_array_and_come_back():
    grid = torch.cartesian_prod(torch.arange(2), *(torch.arange(n) for n in SHAPE))
    keys = voxel_keys(grid, SHAPE)
    assert keys.tolist() == list(range(2 * 4 * 3 * 2))
    assert torch.equal(coords_from_keys(keys, SHAPE), grid)


def test_densify_puts_every_voxel_at_b_c_z_y_x():
    coords = torch.tensor([[0, 3, 1, 0], [1, 2, 0, 1]])
    dense = densify(sparse_volume(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), coords, SHAPE, batch_size=2))
    assert dense.shape == (2, 2, 2, 3, 4)
    assert dense[0, :, 0, 1, 3].tolist() == [1.0, 2.0]
    assert dense[1, :, 1, 0, 2].tolist() == [3.0, 4.0]
    assert dense.count_nonzero() == 4
    assert dense.is_contiguous(memory_format=torch.channels_last_3d)


def test_densify_of_no_voxels_is_zero():
    volume = sparse_volume(torch.zeros(0, 5), torch.zeros(0, 4, dtype=torch.int64), SHAPE, batch_size=3)
    dense = densify(volume)
    assert dense.shape == (3, 5, 2, 3, 4)
    assert not dense.any()


def test_densify_gradcheck():
    coords = torch.tensor([[0, 3, 1, 0], [1, 2, 0, 1], [1, 2, 2, 1]])
    features = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: densify(sparse_volume(f, coords, SHAPE, 2)), (features,))


@pytest.mark.parametrize(
    ("features", "coords", "shape", "batch_size", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 4, dtype=torch.int64), SHAPE, 1, r"\(2, 3\).*\(3, 4\) do not fit"),
        (torch.zeros(2), torch.zeros(2, 4, dtype=torch.int64), SHAPE, 1, "do not fit"),
        (torch.zeros(1, 3), torch.zeros(1, 4), SHAPE, 1, "expected integer voxel indices"),
        (torch.zeros(1, 3), torch.tensor([[0, 4, 0, 0]]), SHAPE, 1, r"1 voxels lie outside.*\[0, 4, 0, 0\]"),
        (torch.zeros(1, 3), torch.tensor([[1, 0, 0, 0]]), SHAPE, 1, "lie outside batch_size=1"),
        (torch.zeros(1, 3), torch.tensor([[0, 0, -1, 0]]), SHAPE, 1, "lie outside"),
        (torch.zeros(2, 3), torch.tensor([[0, 1, 2, 0]] * 2), SHAPE, 1, r"more than once.*\[0, 1, 2, 0\]"),
        (torch.zeros(0, 3), torch.zeros(0, 4, dtype=torch.int64), (4, 0, 2), 1, "must be positive"),
        (torch.zeros(0, 3), torch.zeros(0, 4, dtype=torch.int64), SHAPE, 0, "must be positive"),
    ],
)
def test_bad_input_is_named(features, coords, shape, batch_size, message):
    with pytest.raises(ValueError, match=message):
        sparse_volume(features, coords, shape, batch_size)

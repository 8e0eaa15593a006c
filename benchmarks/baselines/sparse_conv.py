"""Submanifold sparse convolution that looks every neighbour up, offset after offset (Graham et al., CVPR 2018).

Shape suffixes as in fusionocc_core.ops.sparse_conv.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from fusionocc_core.ops.sparse_volume import SparseVolume, voxel_keys


def submanifold_by_searches(volume: SparseVolume, weight_OXYZI: Tensor) -> SparseVolume:
    """One search among all voxels for each of the 27 offsets of a 3 x 3 x 3 kernel, in every convolution.

    Args:
        volume: active voxels, sorted, with I channels.
        weight_OXYZI: odd extents.

    Returns:
        The same voxels with O channels; differentiable in features and weight, autograd keeping what was gathered.
    """
    keys_M = voxel_keys(volume.coords_M4, volume.shape)
    shape_3 = volume.coords_M4.new_tensor(volume.shape)
    out_MO = volume.features_MC.new_zeros(len(keys_M), len(weight_OXYZI))
    extents = weight_OXYZI.shape[1:4]
    for place in product(*map(range, extents)):
        offset_4 = keys_M.new_tensor([0, *(p - n // 2 for p, n in zip(place, extents, strict=True))])
        wanted_M4 = volume.coords_M4 + offset_4
        inside_M = ((wanted_M4[:, 1:] >= 0) & (wanted_M4[:, 1:] < shape_3)).all(dim=1)
        wanted_M = voxel_keys(wanted_M4, volume.shape)
        found_M = torch.searchsorted(keys_M, wanted_M).clamp(max=len(keys_M) - 1)
        out_R = (inside_M & (keys_M[found_M] == wanted_M)).nonzero().squeeze(1)
        weight_IO = weight_OXYZI[(slice(None), *place)].T
        out_MO = out_MO.index_add(0, out_R, volume.features_MC[found_M[out_R]] @ weight_IO)
    return volume.with_features(out_MO)
